//! A reward model as the reranker: a sequence classifier whose one score is read off the last token of the conversation.

use crate::chat::{told, turn, turns};
use crate::error::{Error, Result};
use crate::plan::Dry;
use crate::policy::{Kind, Opened, Policy};
use larpo_core::backend::Backend;
use larpo_core::lists::PackedLists;
use larpo_core::model::{ModelConfig, without_pads};
use larpo_core::reranker::{Query, Reranker};
use larpo_core::tape::Tape;
use larpo_data::chat::ChatOptions;
use larpo_data::records::plain;
use larpo_data::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of a reward model without its weights.
pub struct OpenedRewardModel {
    opened: Opened,
    texts: Texts,
}

impl OpenedRewardModel {
    /// Reads everything but the weights.
    ///
    /// # Errors
    /// A folder that is no model folder, or holds no sequence classifier with one label; a template that does not compile.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::of(Opened::read_as(folder, Kind::RewardModel)?, folder)
    }

    /// As [`OpenedRewardModel::read`], to be trained: a language model gets a new score head.
    ///
    /// # Errors
    /// As [`Opened::read_for_rewards`].
    pub fn read_to_train(folder: &Path) -> Result<Self> {
        Self::of(Opened::read_for_rewards(folder)?, folder)
    }

    /// As [`Opened::recomputing`].
    pub fn recomputing(self, on: bool) -> Self {
        Self { opened: self.opened.recomputing(on), ..self }
    }

    fn of(opened: Opened, folder: &Path) -> Result<Self> {
        let texts = Texts {
            folder: folder.into(),
            tokenizer: opened.tokenizer.clone(),
            pad_id: opened.pad_id(),
            limit: opened.config.max_position_embeddings,
        };
        Ok(Self { opened, texts })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.texts.folder
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.opened.config
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.texts.tokenizer
    }

    /// Ranked texts in the model's tokens: what all of them begin with, and the rest of each; none where one of them is longer
    /// than `limit` tokens.
    ///
    /// # Errors
    /// A text that cannot be encoded.
    pub fn encode(&self, prompt: Prompt, responses: &[&str], limit: usize) -> Result<Option<SharedTexts>> {
        let ids = |response: &&str| self.texts.ids(prompt, response);
        let texts = responses.iter().map(ids).collect::<Result<Vec<_>>>()?;
        Ok(texts.iter().all(|text| text.len() <= limit).then(|| SharedTexts::new(texts)))
    }

    /// The model without its weights.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn blank(&self) -> Result<Policy<Dry>> {
        self.opened.blank()
    }

    /// The model with its weights, to be trained.
    ///
    /// # Errors
    /// As [`Opened::load`].
    pub fn load_to_train<B: Backend>(self, backend: &B) -> Result<Policy<B>> {
        self.opened.load(backend)
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// As [`Opened::load`].
    pub fn load<B: Backend>(self, backend: &B) -> Result<RewardModel<B>> {
        Ok(RewardModel { policy: self.opened.load(backend)?, texts: self.texts })
    }
}

/// A sequence classifier that scores responses (Llama, Mistral, Gemma 2 or Qwen2 `ForSequenceClassification`).
pub struct RewardModel<B: Backend> {
    policy: Policy<B>,
    texts: Texts,
}

/// How a conversation becomes ids.
struct Texts {
    folder: PathBuf,
    tokenizer: Arc<Tokenizer>,
    pad_id: Option<u32>,
    limit: usize,
}

impl Texts {
    /// Ids of a prompt with a response, up to the token whose score counts: through the model's own chat template where it
    /// has one, otherwise one text after the other.
    fn ids(&self, prompt: Prompt, response: &str) -> Result<Vec<u32>> {
        let text = match (prompt, self.tokenizer.conversations()?) {
            (Prompt::Rendered(prompt) | Prompt::Text(prompt), None) | (Prompt::Rendered(prompt), Some(_)) => {
                format!("{prompt}{response}")
            }
            (Prompt::Conversation(turns), None) => format!("{}\n{}", told(turns)?, plain(&turn("assistant", response))),
            (prompt, Some(template)) => {
                let mut turns = match prompt {
                    Prompt::Conversation(all) => turns(all)?,
                    Prompt::Text(text) | Prompt::Rendered(text) => vec![turn("user", text)],
                };
                turns.push(turn("assistant", response));
                template.render(&turns, ChatOptions::default())?
            }
        };
        let mut ids = self.tokenizer.encode_with_special(&text)?;
        // Templates write a beginning-of-sequence token that most tokenizers put there too; the model has seen one.
        if let (Some(bos), [first, second, ..]) = (self.tokenizer.bos_id(), &ids[..])
            && *first == bos
            && *second == bos
        {
            ids.remove(0);
        }
        ids.truncate(without_pads(&ids, self.pad_id).len());
        match ids.is_empty() {
            true => Err(self.refused("a prompt and its response are both empty")),
            false => Ok(ids),
        }
    }

    /// Refuses what the model cannot take.
    fn check(&self, ids: &[u32]) -> Result<()> {
        match ids.len() > self.limit {
            true => Err(self.refused(&format!(
                "a prompt with its response has {} tokens, the model {} positions; shorten responses with --max_new_tokens \
                 or prompts with --max_prompt_length",
                ids.len(),
                self.limit
            ))),
            false => Ok(()),
        }
    }

    fn refused(&self, problem: &str) -> Error {
        Error::request(format!("reward model {}: {problem}", self.folder.display()))
    }
}

/// What a reward model is told before a response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prompt<'a> {
    /// A text: the user's turn.
    Text(&'a str),
    /// The turns of a conversation, as JSON.
    Conversation(&'a str),
    /// What the model's own chat template made of a conversation; so are the responses.
    Rendered(&'a str),
}

/// Texts in tokens, of which what all begin with stands once.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedTexts {
    /// What all begin with.
    pub prompt: Vec<u32>,
    /// What follows, at least one token each.
    pub rest: Vec<Vec<u32>>,
}

impl SharedTexts {
    /// Shares what `texts` begin with, but the last token of the shortest.
    pub fn new(texts: Vec<Vec<u32>>) -> Self {
        // Something is left of each.
        let most = texts.iter().map(Vec::len).min().unwrap_or(1).saturating_sub(1);
        let same = |&at: &usize| texts.iter().all(|text| text[at] == texts[0][at]);
        let common = (0..most).take_while(same).count();
        let prompt = texts.first().map(|text| text[..common].to_vec()).unwrap_or_default();
        Self { prompt, rest: texts.into_iter().map(|text| text[common..].to_vec()).collect() }
    }

    /// As lists for a model.
    pub fn pack(lists: &[Self]) -> PackedLists {
        PackedLists::pack(lists.iter().map(|list| (&list.prompt[..], list.rest.iter().map(|text| &text[..]))))
    }
}

impl<B: Backend> RewardModel<B> {
    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.texts.tokenizer
    }

    /// One score a response, the raw output of the score head. What all conversations begin with is computed once.
    ///
    /// # Errors
    /// A text that cannot be encoded, or is longer than the model's positions.
    pub fn rewards(&self, prompt: Prompt, responses: &[&str]) -> Result<Vec<f64>> {
        if responses.is_empty() {
            return Ok(Vec::new());
        }
        let ids = |response: &&str| {
            let ids = self.texts.ids(prompt, response)?;
            self.texts.check(&ids).map(|()| ids)
        };
        let texts = SharedTexts::new(responses.iter().map(ids).collect::<Result<Vec<_>>>()?);
        let packed = SharedTexts::pack(&[texts]);
        let backend = self.policy.model.backend();
        let tape = Tape::inference(backend);
        let rewards = self.policy.model.reward(&tape, &packed)?;
        Ok(backend.read(rewards.value()))
    }
}

impl<B: Backend> Reranker for RewardModel<B> {
    fn score(&mut self, query: &Query) -> std::result::Result<Vec<f64>, larpo_core::Error> {
        let responses: Vec<&str> = query.responses.iter().map(|response| response.text).collect();
        let prompt = query.conversation.map_or(Prompt::Text(query.prompt), Prompt::Conversation);
        self.rewards(prompt, &responses).map_err(|error| larpo_core::Error::Caller(error.to_string()))
    }
}
