//! A reward model as the reranker: a sequence classifier whose one score is read off the last token of the conversation.

use crate::error::{Error, Result};
use crate::policy::{Kind, Opened, Policy};
use larpo_core::backend::Backend;
use larpo_core::lists::PackedLists;
use larpo_core::model::{ModelConfig, without_pads};
use larpo_core::reranker::{Query, Reranker};
use larpo_core::tape::Tape;
use larpo_data::chat::{ChatOptions, ChatTemplate};
use larpo_data::tokenizer::Tokenizer;
use serde_json::json;
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
        let opened = Opened::read_as(folder, Kind::RewardModel)?;
        let texts = Texts {
            folder: folder.into(),
            template: opened.tokenizer.chat().get(None, false)?,
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
    template: Option<ChatTemplate>,
    tokenizer: Arc<Tokenizer>,
    pad_id: Option<u32>,
    limit: usize,
}

impl Texts {
    /// Ids of a prompt with a response, up to the token whose score counts: through the model's own chat template where it
    /// has one, otherwise one text after the other.
    fn ids(&self, prompt: &str, response: &str) -> Result<Vec<u32>> {
        let text = match &self.template {
            None => format!("{prompt}{response}"),
            Some(template) => {
                let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
                let turns = [turn("user", prompt), turn("assistant", response)];
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
        let refused =
            |problem: String| Err(Error::request(format!("reward model {}: {problem}", self.folder.display())));
        match ids.len() {
            0 => refused("a prompt and its response are both empty".into()),
            n if n > self.limit => refused(format!(
                "a prompt with its response has {n} tokens, the model {} positions; shorten responses with --max_new_tokens \
                 or prompts with --max_prompt_length",
                self.limit
            )),
            _ => Ok(ids),
        }
    }
}

impl<B: Backend> RewardModel<B> {
    /// One score a response, the raw output of the score head. What all conversations begin with is computed once.
    ///
    /// # Errors
    /// A text that cannot be encoded, or is longer than the model's positions.
    pub fn rewards(&self, prompt: &str, responses: &[&str]) -> Result<Vec<f64>> {
        if responses.is_empty() {
            return Ok(Vec::new());
        }
        let texts = responses.iter().map(|response| self.texts.ids(prompt, response)).collect::<Result<Vec<_>>>()?;
        // Something is left of each.
        let most = texts.iter().map(Vec::len).min().unwrap_or(1) - 1;
        let same = |&at: &usize| texts.iter().all(|text| text[at] == texts[0][at]);
        let common = (0..most).take_while(same).count();
        let packed = PackedLists::pack([(&texts[0][..common], texts.iter().map(|text| &text[common..]))]);
        let backend = self.policy.model.backend();
        let tape = Tape::inference(backend);
        let rewards = self.policy.model.reward(&tape, &packed)?;
        Ok(backend.read(rewards.value()))
    }
}

impl<B: Backend> Reranker for RewardModel<B> {
    fn score(&mut self, query: &Query) -> std::result::Result<Vec<f64>, larpo_core::Error> {
        let responses: Vec<&str> = query.responses.iter().map(|response| response.text).collect();
        self.rewards(query.prompt, &responses).map_err(|error| larpo_core::Error::Caller(error.to_string()))
    }
}
