//! Preference pairs, with a prompt of their own or with one that both responses begin with.

use super::Pair;
use super::rows::Row;
use crate::error::Result;

/// What stands in front of the assistant's turns in dialogues written as Anthropic's hh-rlhf writes them.
const TURN: &str = "\n\nAssistant:";

/// A row with `chosen` and `rejected`, and perhaps `prompt`.
pub(super) fn pair(index: usize, row: &Row) -> Result<Pair> {
    let (chosen, rejected) = (row.string("chosen")?, row.string("rejected")?);
    let own = row.optional_string("prompt")?;
    let implicit_prompt = own.is_none();
    let (prompt, chosen, rejected) = match own {
        Some(prompt) => (prompt, chosen, rejected),
        None => match shared_prompt(chosen, rejected) {
            0 => {
                let expected = "a string, or `chosen` and `rejected` that begin with the same words";
                let mend = "Add the field, for example \"prompt\": \"2 + 2 =\"";
                return Err(row.error("prompt", expected, "no such field, and no common beginning", mend));
            }
            end => (&chosen[..end], &chosen[end..], &rejected[end..]),
        },
    };
    let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(String::from);
    Ok(Pair { index, line: row.line, prompt, chosen, rejected, implicit_prompt })
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
