//! The grammar of reward descriptions: `NAME[:key=value…],NAME…`.

use super::answer::check_answer_pattern;
use crate::error::{Error, Result};
use regex::Regex;

/// Names and the options each of them takes.
const RULES: [(&str, &[&str]); 6] = [
    ("answer", &["pattern"]),
    ("regex", &["pattern"]),
    ("length", &["target"]),
    ("format", &["pattern"]),
    ("expression", &[]),
    ("words", &["file"]),
];

/// One rule's description, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// The rule's name.
    pub name: String,
    /// Its options in the order given, escapes removed.
    pub options: Vec<(String, String)>,
}

impl RuleSpec {
    /// Takes a list of descriptions apart. Commas separate rules and colons options; `\,` and `\:` stand for the
    /// characters themselves. Any other backslash is left as it is, so that patterns need no doubling.
    ///
    /// # Errors
    /// An empty description, an option without `=`, an option given twice, an unknown name or option.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        let specs: Vec<Self> = split(text, ',').iter().map(|part| Self::parse(part)).collect::<Result<_>>()?;
        for spec in &specs {
            spec.check_options()?;
        }
        Ok(specs)
    }

    fn parse(text: &str) -> Result<Self> {
        let fail = |problem: String, mend: &str| Error::Rule { rule: text.into(), problem, mend: mend.into() };
        let parts = split(text, ':');
        let mut spec = Self { name: parts[0].trim().to_string(), options: Vec::new() };
        if spec.name.is_empty() {
            return Err(fail("a name is missing".into(), "Write for example answer,length:target=40"));
        }
        for part in &parts[1..] {
            let Some((key, value)) = part.split_once('=') else {
                let mend = "Write options as key=value; a colon inside a value is written \\:";
                return Err(fail(format!("{part:?} is not an option"), mend));
            };
            let (key, value) = (key.trim().to_string(), unescape(value));
            if spec.get(&key).is_some() {
                return Err(fail(format!("the option `{key}` is given twice"), "Keep one of them"));
            }
            spec.options.push((key, value));
        }
        Ok(spec)
    }

    /// An option's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn error(&self, problem: impl Into<String>, mend: impl Into<String>) -> Error {
        Error::Rule { rule: self.name.clone(), problem: problem.into(), mend: mend.into() }
    }

    pub(super) fn unknown_name(&self) -> Error {
        let names = RULES.map(|(name, _)| name).join(", ");
        let mend = format!("The rules are {names}; a comma inside a value is written \\,");
        self.error("there is no rule of this name", mend)
    }

    pub(super) fn check_options(&self) -> Result<()> {
        let Some((_, known)) = RULES.iter().find(|(name, _)| *name == self.name) else {
            return Err(self.unknown_name());
        };
        match self.options.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) if known.is_empty() => {
                Err(self.error(format!("unknown option `{key}`"), "The rule takes no options"))
            }
            Some((key, _)) => {
                let mend = format!("Options of `{}`: {}", self.name, known.join(", "));
                Err(self.error(format!("unknown option `{key}`"), mend))
            }
        }
    }

    pub(super) fn required(&self, key: &str, example: &str) -> Result<&str> {
        let missing = || self.error(format!("the option `{key}` is missing"), format!("Write for example {example}"));
        self.get(key).filter(|value| !value.is_empty()).ok_or_else(missing)
    }

    pub(super) fn whole_number(&self, key: &str, text: &str) -> Result<usize> {
        let mend = format!("Write for example {}:{key}=40", self.name);
        text.trim().parse().map_err(|_| self.error(format!("`{key}` is {text:?}, not a whole number"), mend))
    }

    pub(super) fn regex(&self, pattern: &str) -> Result<Regex> {
        let mend = "Correct the pattern (syntax of the Rust crate `regex`; no look-around, no back-references)";
        Regex::new(pattern).map_err(|error| {
            let problem = error.to_string();
            self.error(format!("the pattern {pattern:?} is not valid: {}", problem.trim_end_matches('.')), mend)
        })
    }

    pub(super) fn answer_regex(&self, pattern: &str) -> Result<Regex> {
        let regex = self.regex(pattern)?;
        check_answer_pattern(&regex).map_err(|problem| {
            self.error(problem, r"Put the answer in parentheses, for example A:\s*(.*); other groups are written (?:…)")
        })?;
        Ok(regex)
    }
}

/// One finite weight per rule.
pub(super) fn parse_weights(text: &str, count: usize) -> Result<Vec<f64>> {
    let fail = |problem: String| Error::Rule {
        rule: text.into(),
        problem,
        mend: format!(
            "Give {count} weights separated by commas, one per rule, for example {}",
            vec!["1"; count].join(",")
        ),
    };
    let weights: Vec<f64> = text
        .split(',')
        .map(|part| {
            let weight = part.trim().parse().ok().filter(|w: &f64| w.is_finite());
            weight.ok_or_else(|| fail(format!("the weight {part:?} is not a finite number")))
        })
        .collect::<Result<_>>()?;
    if weights.len() != count {
        return Err(fail(format!("{} weights were given for {count} rules", weights.len())));
    }
    Ok(weights)
}

/// Splits at a separator that no backslash precedes. Escapes stay in the parts.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == separator && !escaped {
            parts.push(String::new());
            continue;
        }
        // A doubled backslash escapes itself, so it cannot escape what follows.
        escaped = c == '\\' && !escaped;
        parts.last_mut().expect("there is always a part").push(c);
    }
    parts
}

/// Removes the backslash before commas and colons, and no other.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match characters.next() {
            Some(next @ (',' | ':')) => out.push(next),
            Some(next) => out.extend(['\\', next]),
            None => out.push('\\'),
        }
    }
    out
}
