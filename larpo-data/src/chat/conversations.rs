//! Conversations with answers behind them, as the texts that a model reads.

use super::{ChatOptions, ChatTemplate, ChatTemplates};
use crate::error::Result;
use serde_json::Value;

/// The chat templates of a model: the one for tools too, where there is one.
#[derive(Debug)]
pub struct Conversations {
    template: ChatTemplate,
    with_tools: Option<ChatTemplate>,
}

impl Conversations {
    /// Compiles them; none where there is no template.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn new(templates: &ChatTemplates) -> Result<Option<Self>> {
        let compiled = |template| Ok(Self { template, with_tools: templates.get(None, true)? });
        templates.get(None, false)?.map(compiled).transpose()
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render(&self, turns: &[Value], options: ChatOptions) -> Result<String> {
        let tools = self.with_tools.as_ref().filter(|_| options.tools.is_some());
        tools.unwrap_or(&self.template).render(turns, options)
    }

    /// The text of `turns` up to where an answer begins, and behind it that of each of `answers`, which are turns too.
    ///
    /// # Errors
    /// A conversation that the template refuses, or writes in another way once an answer stands behind it.
    pub fn answered(
        &self,
        turns: &[Value],
        answers: &[&[Value]],
        tools: Option<&[Value]>,
    ) -> Result<(String, Vec<String>)> {
        let prompt = self.render(turns, ChatOptions { add_generation_prompt: true, tools })?;
        let behind = |answer: &&[Value]| {
            let whole = self.render(&[turns, answer].concat(), ChatOptions { add_generation_prompt: false, tools })?;
            match whole.strip_prefix(&prompt) {
                Some(answer) => Ok(answer.to_string()),
                None => Err(self.template.changes_its_prompt(&prompt, &whole)),
            }
        };
        let answers = answers.iter().map(behind).collect::<Result<_>>()?;
        Ok((prompt, answers))
    }
}
