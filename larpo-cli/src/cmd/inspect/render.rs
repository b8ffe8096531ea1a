//! Tokens for people to look at: every token apart, those the loss looks at marked.

use crate::messages;
use larpo_data::tokenizer::Tokenizer;

/// Tokens of a prompt or response that are shown; of a longer one the middle is left out, and said to be.
pub(super) const SHOWN: usize = 160;
/// Of those, how many stand at the end.
const AT_END: usize = 40;
/// Characters shown of a text.
const CHARACTERS: usize = 600;

/// How tokens are set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// By brackets.
    Plain,
    /// By colours of the terminal.
    Coloured,
}

impl Style {
    /// Colours where results go to a terminal that has them and the variable NO_COLOR is not set (<https://no-color.org>).
    pub(super) fn of_results() -> Self {
        Self::of(messages::results_on_terminal() && !messages::dumb_terminal(), std::env::var_os("NO_COLOR").as_deref())
    }

    pub(super) fn of(terminal: bool, no_color: Option<&std::ffi::OsStr>) -> Self {
        match terminal && no_color.is_none_or(|value| value.is_empty()) {
            true => Self::Coloured,
            false => Self::Plain,
        }
    }

    pub(super) fn legend(self) -> &'static str {
        match self {
            Self::Plain => "token by token; [learned] tokens in square brackets, others |between| bars",
            Self::Coloured => {
                "token by token; \x1b[30;42mlearned\x1b[0m\x1b[30;46m tokens\x1b[0m on a ground, \x1b[2mothers \x1b[4mpale\x1b[0m"
            }
        }
    }

    /// The tokens of `ids`, marked as learned or not.
    pub(super) fn tokens(self, tokenizer: &Tokenizer, ids: &[u32], learned: bool) -> String {
        let (head, tail) = match ids.len() > SHOWN {
            true => (&ids[..SHOWN - AT_END], &ids[ids.len() - AT_END..]),
            false => (ids, &[][..]),
        };
        let mut text = self.run(tokenizer, head, learned);
        if !tail.is_empty() {
            text.push_str(&format!(" … {} tokens more … ", ids.len() - SHOWN));
            text.push_str(&self.run(tokenizer, tail, learned));
        }
        text
    }

    fn run(self, tokenizer: &Tokenizer, ids: &[u32], learned: bool) -> String {
        let texts = ids.iter().map(|&id| token(tokenizer, id));
        match (self, learned) {
            (Self::Plain, true) => texts.map(|text| format!("[{text}]")).collect(),
            (Self::Plain, false) if ids.is_empty() => String::new(),
            (Self::Plain, false) => format!("|{}|", texts.collect::<Vec<_>>().join("|")),
            (Self::Coloured, _) => {
                // Neighbours differ, so that one can see where a token ends.
                let codes = if learned { ["30;42", "30;46"] } else { ["2", "2;4"] };
                texts.enumerate().map(|(i, text)| format!("\x1b[{}m{text}\x1b[0m", codes[i % 2])).collect()
            }
        }
    }
}

/// One token on one line. A part of a character has no text of its own: its bytes, or its token as it stands in the
/// vocabulary.
fn token(tokenizer: &Tokenizer, id: u32) -> String {
    if let Some(bytes) = tokenizer.bytes_of(id) {
        let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        return bytes.utf8_chunks().map(|chunk| one_line(chunk.valid()) + &escaped(chunk.invalid())).collect();
    }
    match tokenizer.decode(&[id], false) {
        Ok(text) if !text.is_empty() && !text.contains('\u{FFFD}') => one_line(&text),
        _ => format!("‹{}›", tokenizer.token_of(id).unwrap_or("?")),
    }
}

/// Control characters as escapes: a text must not steer the terminal.
fn one_line(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// The beginning of a text on one line.
pub(super) fn text(text: &str) -> String {
    let total = text.chars().count();
    let mut line = one_line(&text.chars().take(CHARACTERS).collect::<String>());
    if total > CHARACTERS {
        line.push_str(&format!(" … {} characters more", total - CHARACTERS));
    }
    line
}
