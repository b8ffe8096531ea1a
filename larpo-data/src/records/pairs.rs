//! Preference pairs, with a prompt of their own or with one that both responses begin with.

use super::conversation::Texts;
use super::rows::{Row, describe, number};
use super::{Pair, Renderer};
use crate::error::Result;
use serde_json::Value;

/// What stands in front of the assistant's turns in dialogues written as Anthropic's hh-rlhf writes them.
const TURN: &str = "\n\nAssistant:";

/// A row with `chosen` and `rejected`, and perhaps `prompt` and `margin`.
pub(super) fn pair(index: usize, row: &Row, renderer: Renderer) -> Result<Pair> {
    let are_turns = ["chosen", "rejected"].iter().any(|field| row.get(field).is_some_and(Value::is_array));
    // Beside whole conversations a text repeats their last common turn.
    let implicit_prompt = !row.has("prompt") || are_turns && row.get("prompt").is_some_and(Value::is_string);
    let texts = match (implicit_prompt, are_turns) {
        (false, _) => renderer.texts(row, &["chosen", "rejected"])?,
        (true, true) => shared_turns(row, renderer)?,
        (true, false) => shared_text(row)?,
    };
    let Texts { prompt, responses, conversation } = texts;
    let [chosen, rejected] = <[String; 2]>::try_from(responses).unwrap_or_default();
    let margin = match row.get("margin") {
        None => None,
        // In a table every value is a text.
        Some(value) => {
            let cell = value.as_str().filter(|_| row.cells).and_then(|text| text.trim().parse().ok());
            let margin = cell.filter(|x: &f64| x.is_finite()).or_else(|| number(value));
            if margin.is_none() {
                let mend = "Write it like \"margin\": 0.5, or leave it out";
                return Err(row.error("margin", "a finite number", describe(value), mend));
            }
            margin
        }
    };
    Ok(Pair { index, line: row.line, prompt, conversation, chosen, rejected, margin, implicit_prompt })
}

/// The prompt of a row that has none: the words that both responses begin with.
fn shared_text(row: &Row) -> Result<Texts> {
    let (chosen, rejected) = (row.string("chosen")?, row.string("rejected")?);
    match shared_prompt(chosen, rejected) {
        0 => {
            let expected = "a string, or `chosen` and `rejected` that begin with the same words";
            let mend = "Add the field, for example \"prompt\": \"2 + 2 =\"";
            Err(row.error("prompt", expected, "no such field, and no common beginning", mend))
        }
        end => Ok(Texts {
            prompt: chosen[..end].into(),
            responses: vec![chosen[end..].into(), rejected[end..].into()],
            conversation: None,
        }),
    }
}

/// The prompt of a row that has none: the turns that both conversations begin with, up to the last one that is not the
/// assistant's.
fn shared_turns(row: &Row, renderer: Renderer) -> Result<Texts> {
    let (chosen, rejected) = (row.turns("chosen")?, row.turns("rejected")?);
    let common = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
    let own = chosen[..common].iter().rev().take_while(|turn| turn["role"] == "assistant").count();
    let end = common - own;
    if end == 0 || end == chosen.len() || end == rejected.len() {
        let expected =
            "a conversation, or `chosen` and `rejected` that begin with the same turns and go on with different ones";
        let mend = r#"Add the field, for example "prompt": [{"role": "user", "content": "2 + 2 ="}]"#;
        return Err(row.error("prompt", expected, "no such field, and no common beginning", mend));
    }
    if let Some(prompt) = row.get("prompt").and_then(Value::as_str)
        && chosen[end - 1]["content"].as_str().map(str::trim) != Some(prompt.trim())
    {
        let expected = "the text of the last turn that `chosen` and `rejected` share";
        return Err(row.error("prompt", expected, "another text", "Remove the field, or write it as turns"));
    }
    renderer.rendered(row, "chosen", &chosen[..end], &[&chosen[end..], &rejected[end..]])
}

/// Length in bytes of the prompt that two texts share: up to the last turn of the assistant that both have, otherwise
/// up to the last white space that both have. A single space goes to the responses, as tokenizers take it.
fn shared_prompt(chosen: &str, rejected: &str) -> usize {
    let characters = chosen.chars().zip(rejected.chars());
    let common: usize = characters.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let common = &chosen[..common];
    if let Some(turn) = common.rfind(TURN) {
        return turn + TURN.len();
    }
    let words = common.trim_end_matches(|c: char| !c.is_whitespace());
    words.strip_suffix(' ').unwrap_or(words).len()
}

#[cfg(test)]
mod tests {
    use super::shared_prompt;

    #[test]
    fn prompts_end_at_the_last_common_turn_or_word() {
        let prompt = |chosen: &str, rejected: &str| chosen[..shared_prompt(chosen, rejected)].to_string();
        let (a, b) = ("\n\nHuman: hi\n\nAssistant: Hello you", "\n\nHuman: hi\n\nAssistant: Hello there");
        assert_eq!(prompt(a, b), "\n\nHuman: hi\n\nAssistant:");
        // The second turns differ already, so the first one is the last in common.
        let longer = "\n\nHuman: hi\n\nAssistant: Hello\n\nHuman: a\n\nAssistant: x";
        assert_eq!(prompt(longer, b), "\n\nHuman: hi\n\nAssistant:");
        assert_eq!(prompt("The sky is blue", "The sky is black"), "The sky is");
        assert_eq!(prompt("2 + 2 =\n4", "2 + 2 =\n5"), "2 + 2 =\n");
        assert_eq!(prompt("café é", "café è"), "café");
        assert_eq!(prompt("one two", "one two"), "one");
        assert_eq!((shared_prompt("one", "two"), shared_prompt("one", "only"), shared_prompt("", "x")), (0, 0, 0));
    }
}
