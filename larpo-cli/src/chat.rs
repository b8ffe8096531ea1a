//! Conversations as prompts, through the chat template of a model's own folder.

use crate::error::{Error, Result};
use larpo_data::chat::{ChatOptions, ChatTemplate};
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// A template with the tokenizer that its texts are written for.
pub struct Chat {
    template: ChatTemplate,
    tokenizer: Arc<Tokenizer>,
}

impl Chat {
    /// The default template of the model in `folder`.
    ///
    /// # Errors
    /// A folder without one, a template that does not compile.
    pub fn new(tokenizer: &Arc<Tokenizer>, folder: &Path) -> Result<Self> {
        let template = tokenizer.chat().get(None, false)?.ok_or_else(|| {
            Error::request(format!(
                "{} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): it continues texts \
                 and does not converse; `larpo generate --prompt` continues one",
                folder.display()
            ))
        })?;
        Ok(Self { template, tokenizer: tokenizer.clone() })
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

/// A turn of a conversation.
pub fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}
