//! Conversations in rows, in the forms of TRL's data sets: arrays of turns, rendered to the texts that a model reads.

use super::rows::{Row, describe};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::sync::Arc;

/// What makes texts of conversations.
#[derive(Debug, Clone, Copy, Default)]
pub enum Renderer<'a> {
    /// Nothing does: rows with conversations are refused.
    #[default]
    None,
    /// A line `role: content` for every turn, for people.
    Plain,
    /// The chat templates that came with a tokenizer.
    Templates(&'a Tokenizer),
}

/// A prompt and responses as texts.
pub(crate) struct Texts {
    pub(crate) prompt: String,
    pub(crate) responses: Vec<String>,
    /// The turns of the prompt as JSON, where it is a conversation: the texts then hold all that a template writes.
    pub(crate) conversation: Option<Arc<str>>,
}

impl Renderer<'_> {
    /// The texts of `prompt` and of the fields with responses.
    pub(crate) fn texts(self, row: &Row, fields: &[&str]) -> Result<Texts> {
        let Some(Value::Array(_)) = row.get("prompt") else {
            let prompt = row.string("prompt")?.to_string();
            let responses = fields.iter().map(|field| row.string(field).map(str::to_string)).collect::<Result<_>>()?;
            return Ok(Texts { prompt, responses, conversation: None });
        };
        let prompt = row.turns("prompt")?;
        let answers = fields.iter().map(|field| row.answer(field)).collect::<Result<Vec<_>>>()?;
        let answers: Vec<&[Value]> = answers.iter().map(Vec::as_slice).collect();
        self.rendered(row, "prompt", prompt, &answers)
    }

    /// A conversation of a row, and the answers to it.
    pub(crate) fn rendered(self, row: &Row, field: &str, turns: &[Value], answers: &[&[Value]]) -> Result<Texts> {
        if turns.last().is_none_or(|turn| turn["role"] == "assistant") {
            let found = if turns.is_empty() { "no turn" } else { "one that ends with the assistant's turn" };
            let mend =
                "Write the turns that are to be answered into the prompt, and the answer into a field of its own";
            return Err(row.error(field, "a conversation that asks for an answer", found, mend));
        }
        let tools = row.tools()?;
        let templates = match self {
            Self::Templates(tokenizer) => tokenizer.conversations()?,
            Self::None | Self::Plain => None,
        };
        let rendered = match (templates, self) {
            (Some(templates), _) => templates.answered(turns, answers, tools.as_deref()),
            (None, Self::Plain) => {
                let text = |turns: &[Value]| turns.iter().map(|turn| plain(turn) + "\n").collect::<String>();
                Ok((text(turns), answers.iter().map(|answer| text(answer)).collect()))
            }
            (None, _) => {
                let mend = "Use a model with a chat template (chat_template.jinja, or chat_template in tokenizer_config.json), \
                            or write texts in place of turns";
                return Err(row.error(field, "a string, as the model has no chat template", "a conversation", mend));
            }
        };
        let (prompt, responses) = rendered.map_err(|error| match error {
            Error::Template { path, problem } => {
                let mend = "Correct its turns, or use a model whose template takes them";
                let found = format!("one with which {} ends in an error: {problem}", path.display());
                row.error(field, "a conversation that the chat template takes", found, mend)
            }
            other => other,
        })?;
        Ok(Texts { prompt, responses, conversation: Some(Value::from(turns).to_string().into()) })
    }
}

impl<'a> From<Option<&'a Tokenizer>> for Renderer<'a> {
    fn from(tokenizer: Option<&'a Tokenizer>) -> Self {
        tokenizer.map_or(Self::None, Self::Templates)
    }
}

/// A turn on a line for people.
pub fn plain(turn: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    format!("{}: {}", text(&turn["role"]), text(&turn["content"]))
}

const EXAMPLE: &str = r#"[{"role": "user", "content": "2 + 2 ="}]"#;

impl Row<'_> {
    /// A field that holds a conversation.
    pub(crate) fn turns(&self, field: &str) -> Result<&[Value]> {
        let expected = "an array of turns with `role` and `content`";
        let mend = || format!("Write a text in quotes, or turns like \"{field}\": {EXAMPLE}");
        let items = match self.get(field) {
            None => return Err(self.missing(field, expected, &format!("\"{field}\": {EXAMPLE}"))),
            Some(Value::Array(items)) if items.iter().all(Value::is_object) => items,
            Some(other) => {
                let expected = format!("a string, or {expected}");
                return Err(self.error(field, expected, describe(other), mend()));
            }
        };
        match items.iter().position(|turn| !turn["role"].is_string()) {
            None => Ok(items),
            Some(i) => {
                let (at, found) = (format!("{field}[{i}].role"), describe(items[i].get("role").unwrap_or(&items[i])));
                Err(self.error(at, "the name of who speaks, as \"user\"", found, mend()))
            }
        }
    }

    /// A field with an answer to a conversation: turns, or the text of one.
    pub(crate) fn answer(&self, field: &str) -> Result<Vec<Value>> {
        match self.get(field) {
            Some(Value::String(text)) => Ok(vec![assistant(text)]),
            _ => self.turns(field).map(<[Value]>::to_vec),
        }
    }

    /// The functions that the model may call, also as JSON in a string.
    fn tools(&self) -> Result<Option<Vec<Value>>> {
        let expected = "an array of JSON schemas of functions";
        let mend = "Correct it, or leave it out";
        match self.get("tools") {
            None => Ok(None),
            Some(Value::Array(tools)) if tools.is_empty() => Ok(None),
            Some(Value::Array(tools)) => Ok(Some(tools.clone())),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Array(tools)) => Ok(Some(tools).filter(|tools| !tools.is_empty())),
                _ => Err(self.error("tools", expected, format!("the string {text:?}"), mend)),
            },
            Some(other) => Err(self.error("tools", expected, describe(other), mend)),
        }
    }
}

/// The assistant's turn.
pub fn assistant(text: &str) -> Value {
    json!({ "role": "assistant", "content": text })
}
