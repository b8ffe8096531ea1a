//! Conversations as prompts, through the chat template of a model's own folder.

use crate::error::{Error, Result};
use larpo_data::chat::{ChatOptions, Conversations};
use larpo_data::records::plain;
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::Path;

/// A template with the tokenizer that its texts are written for.
pub struct Chat<'a> {
    template: &'a Conversations,
    tokenizer: &'a Tokenizer,
}

impl<'a> Chat<'a> {
    /// The default template of the model in `folder`.
    ///
    /// # Errors
    /// A folder without one, a template that does not compile.
    pub fn new(tokenizer: &'a Tokenizer, folder: &Path) -> Result<Self> {
        let template = tokenizer.conversations()?.ok_or_else(|| {
            Error::request(format!(
                "{} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): it continues texts \
                 and does not converse; `larpo generate --prompt` continues one",
                folder.display()
            ))
        })?;
        Ok(Self { template, tokenizer })
    }

    /// Text and ids of a conversation up to where the assistant's turn begins. The template writes every special token itself.
    ///
    /// # Errors
    /// A conversation that the template refuses, a text that cannot be encoded.
    pub fn prompt(&self, messages: &[Value]) -> Result<(String, Vec<u32>)> {
        let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
        let text = self.template.render(messages, options)?;
        let ids = self.tokenizer.encode(&text)?;
        Ok((text, ids))
    }
}

/// Ids of a conversation and of answers to it, all as its chat template writes them, which puts the special tokens there itself.
///
/// # Errors
/// A text that cannot be encoded; an answer whose first characters become tokens with the last ones of the conversation.
pub fn encode(tokenizer: &Tokenizer, prompt: &str, answers: &[&str]) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
    let ids = tokenizer.encode(prompt)?;
    let behind = |answer: &&str| {
        let whole = tokenizer.encode(&format!("{prompt}{answer}"))?;
        match whole.strip_prefix(&ids[..]) {
            Some(answer) => Ok(answer.to_vec()),
            None => {
                let at = ids.iter().zip(&whole).take_while(|(a, b)| a == b).count();
                let token =
                    |ids: &[u32]| ids.get(at).and_then(|&id| tokenizer.token_of(id)).unwrap_or_default().to_string();
                Err(Error::request(format!(
                    "token {at} of the conversation is {:?}, and with the answer behind it {:?}: the chat template must end \
                     where a token does",
                    token(&ids),
                    token(&whole)
                )))
            }
        }
    };
    let answers = answers.iter().map(behind).collect::<Result<_>>()?;
    Ok((ids, answers))
}

/// The turns of a prompt's conversation.
///
/// # Errors
/// What is no JSON array, which [`larpo_data::records`] does not give.
pub fn turns(conversation: &str) -> Result<Vec<Value>> {
    serde_json::from_str(conversation).map_err(|error| Error::request(format!("a conversation: {error}")))
}

/// A conversation as one text, for a model that is told of it: what the user said, or a line for every turn.
///
/// # Errors
/// As [`turns`].
pub fn told(conversation: &str) -> Result<String> {
    let turns = turns(conversation)?;
    Ok(match &turns[..] {
        [only] if only["content"].is_string() => only["content"].as_str().unwrap_or_default().into(),
        several => several.iter().map(plain).collect::<Vec<_>>().join("\n"),
    })
}

/// A turn of a conversation.
pub fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}
