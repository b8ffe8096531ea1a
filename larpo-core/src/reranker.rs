//! The reranker: anything that scores the responses of a prompt.

use crate::error::Error;

/// A prompt with the responses to score.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// The prompt's text.
    pub prompt: &'a str,
    /// Its turns as a JSON array, where it is a conversation; the text is then its rendering for the policy.
    pub conversation: Option<&'a str>,
    /// What a correct response is compared with, where that is known.
    pub reference: Option<&'a str>,
    /// The responses.
    pub responses: Vec<Response<'a>>,
}

/// A response to score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// Its text, without end-of-text token and stop string.
    pub text: &'a str,
    /// Its length in tokens, those included.
    pub tokens: usize,
}

/// Scores the responses of a prompt: a rule, a reward model, a pairwise ranker.
pub trait Reranker {
    /// One finite score a response, higher is better. All responses of a prompt are scored together, so that rankers
    /// which compare them can.
    ///
    /// # Errors
    /// What keeps the reranker from scoring, e.g. a missing reference.
    fn score(&mut self, query: &Query) -> Result<Vec<f64>, Error>;

    /// Whether a score says how good a response is by itself; not so where it says how it compares with the others of its
    /// query.
    fn is_absolute(&self) -> bool {
        true
    }
}

impl<F> Reranker for F
where
    F: FnMut(&Query) -> Result<Vec<f64>, Error>,
{
    fn score(&mut self, query: &Query) -> Result<Vec<f64>, Error> {
        self(query)
    }
}
