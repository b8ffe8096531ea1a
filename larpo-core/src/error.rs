//! What can go wrong in the world rather than in the program.

use crate::objective::ObjectiveError;
use std::fmt;

/// An error of larpo-core, with what was wrong and what would mend it.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// A setting out of its range.
    Setting {
        /// Its name.
        what: String,
        /// What was given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A sequence that the model cannot take.
    TooLong {
        /// Tokens of the sequence.
        tokens: usize,
        /// Positions the model has.
        limit: usize,
    },
    /// A token id outside the vocabulary.
    TokenId {
        /// The id.
        id: u32,
        /// Ids the model knows.
        vocab_size: usize,
    },
    /// A loss, a reward or a log-probability that is not a number.
    NotFinite {
        /// What it is.
        what: String,
        /// Where it occurred.
        at: String,
    },
    /// A log-probability or a score of one row of a step that is not a number; the update was not made.
    RowNotFinite {
        /// What it is.
        what: String,
        /// The row or list in the step's batch, from 0.
        row: usize,
        /// The response in the list, from 0.
        response: usize,
        /// The scored token of the response, from 0, where one is to blame.
        token: Option<usize>,
        /// The update, from 1.
        update: u64,
    },
    /// A tensor that is missing or has the wrong shape.
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A proof that runs before training failed.
    Proof {
        /// Which proof.
        proof: &'static str,
        /// What was found.
        found: String,
    },
    /// A list loss refused its input.
    Objective(ObjectiveError),
    /// The caller asked to stop.
    Stopped,
    /// An error of the caller's own code (a reranker, a progress callback).
    Caller(String),
}

impl Error {
    pub(crate) fn setting(what: &str, value: impl fmt::Display, expected: &str) -> Self {
        Self::Setting { what: what.into(), value: value.to_string(), expected: expected.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { what, value, expected } => write!(f, "{what} is {value}; it must be {expected}"),
            Self::TooLong { tokens, limit } => write!(
                f,
                "a sequence has {tokens} tokens, the model has positions for {limit}; shorten it or raise max_position_embeddings"
            ),
            Self::TokenId { id, vocab_size } => {
                write!(
                    f,
                    "token id {id} is outside the model's vocabulary of {vocab_size}; tokenizer and model do not belong together"
                )
            }
            Self::NotFinite { what, at } => {
                write!(f, "{what} is not a finite number at {at}; lower the learning rate or look at the data there")
            }
            Self::RowNotFinite { what, row, response, token, update } => {
                write!(
                    f,
                    "{what} is not a finite number in update {update}: row {row} of its batch, response {response}"
                )?;
                token.map_or(Ok(()), |token| write!(f, ", token {token}"))?;
                f.write_str("; the update was not made. Lower the learning rate or look at the row")
            }
            Self::Tensor { name, problem } => write!(f, "tensor {name}: {problem}"),
            Self::Proof { proof, found } => write!(f, "step-0 proof failed: {proof}: {found}"),
            Self::Objective(error) => error.fmt(f),
            Self::Stopped => f.write_str("stopped"),
            Self::Caller(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

impl From<ObjectiveError> for Error {
    fn from(error: ObjectiveError) -> Self {
        Self::Objective(error)
    }
}
