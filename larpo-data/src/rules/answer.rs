//! Final answers: finding them in a text, and comparing them as numbers where they are numbers.

use regex::Regex;
use std::sync::LazyLock;

/// GSM8K's mark before the final answer, which is the rest of the line, up to another mark.
pub const DEFAULT_ANSWER_PATTERN: &str = r"####[ \t]*([^#\n]*)";

/// A number as people write it, after signs of currency and percent are gone: thousands separated by commas or not.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\A([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]*))?\z").expect("the pattern is valid")
});

/// A pattern must have exactly one capture group: the answer.
pub(super) fn check_answer_pattern(pattern: &Regex) -> Result<(), String> {
    match pattern.captures_len() - 1 {
        1 => Ok(()),
        n => Err(format!("the pattern {:?} has {n} capture groups, expected one", pattern.as_str())),
    }
}

/// What the pattern's capture group holds in its last match; `None` where nothing matches.
pub fn extract_answer<'t>(pattern: &Regex, text: &'t str) -> Option<&'t str> {
    let found = pattern.captures_iter(text).last()?;
    found.get(1).map(|answer| answer.as_str())
}

/// Whether two final answers are the same: as exact decimal numbers where both are numbers (1,000 = 1000.0 = $1000 =
/// 1000. = 1000%), otherwise as texts without white space around them. A blank answer equals nothing.
pub fn same_answer(a: &str, b: &str) -> bool {
    normal_answer(a).is_some_and(|a| normal_answer(b) == Some(a))
}

/// One spelling for all answers that are the same ([`same_answer`]), to count votes by; `None` for a blank one.
pub fn normal_answer(text: &str) -> Option<String> {
    let text = text.trim();
    normal_number(text).or_else(|| (!text.is_empty()).then(|| text.to_string()))
}

/// The number a text stands for, in one spelling per number: sign, whole digits without leading zeros, fraction
/// without trailing zeros; 0 as "0". Each is a number itself, so no other text is spelled like it. Digits are compared as text, so no precision is lost.
fn normal_number(text: &str) -> Option<String> {
    let mut text = text.trim();
    let mut negative = false;
    let mut signed = false;
    // -$5 and $-5 are both in use.
    while let Some(first) = text.chars().next() {
        match first {
            '-' | '−' | '+' if !signed => {
                signed = true;
                negative = first != '+';
            }
            '$' | '€' | '£' => {}
            _ => break,
        }
        text = text[first.len_utf8()..].trim_start();
    }
    // "18." and "5%." end a sentence; "18.%" does not occur.
    text = text.strip_suffix('.').unwrap_or(text).trim_end();
    text = text.trim_end_matches(['%', '$', '€', '£']).trim_end();
    let parts = NUMBER.captures(text)?;
    let whole = parts.get(1).map_or("", |m| m.as_str()).replace(',', "");
    let fraction = parts.get(2).map_or("", |m| m.as_str());
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if whole.is_empty() && fraction.is_empty() {
        return Some("0".into());
    }
    let sign = if negative { "-" } else { "" };
    Some(format!("{sign}{whole}.{fraction}"))
}
