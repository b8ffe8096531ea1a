//! Rule rewards: scores of a response that a program can check. Higher is better.
//!
//! | name | score | options |
//! |---|---|---|
//! | `answer` | 1 where the final answer equals the reference's, else 0 | `pattern=RE` |
//! | `regex` | 1 where RE matches somewhere, else 0 | `pattern=RE`, required |
//! | `length` | −tokens (shorter is better); with a target N: −\|tokens − N\| | `target=N` |
//! | `format` | 1 where the last line that is not blank starts with a final answer; with a pattern: 1 where RE matches the whole response | `pattern=RE` |
//! | `expression` | share of the response's arithmetic statements that are true (none: 0) | |
//! | `words` | share of the response's words that occur in a text (none: 0) | `file=PATH`, required |
//!
//! A description is `NAME[:key=value…],NAME…`; a comma or colon inside a value is written `\,` or `\:`.
//! Every score is a pure function of prompt, response, number of tokens and reference.

mod answer;
mod expression;
mod spec;

pub use answer::{DEFAULT_ANSWER_PATTERN, extract_answer, normal_answer, same_answer};
pub use expression::{Statements, check_statements};
pub use spec::RuleSpec;

use crate::error::{Error, Result};
use crate::files;
use regex::Regex;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// What a rule may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scored<'a> {
    /// The prompt. No rule here reads it; rules of a caller's own may.
    pub prompt: &'a str,
    /// The response's text.
    pub response: &'a str,
    /// Its length in tokens.
    pub n_tokens: usize,
    /// What `answer` compares with.
    pub reference: Option<&'a str>,
}

/// One rule, ready to score.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Exact final answer; the pattern has one capture group, the last match counts.
    Answer(Regex),
    /// A pattern that is to occur.
    Regex(Regex),
    /// Length in tokens, against a target where there is one.
    Length(Option<usize>),
    /// The last line that is not blank is to start with this final-answer pattern.
    FinalLine(Regex),
    /// A pattern for the whole response; anchored at both ends.
    WholeResponse(Regex),
    /// True arithmetic.
    Expression,
    /// Words (lower case) of the text in a file.
    Words {
        /// The file.
        file: PathBuf,
        /// Its words.
        words: HashSet<String>,
    },
}

impl Rule {
    /// Makes a rule from its description. `answer_pattern` is used by `answer` and `format` where they have no pattern
    /// of their own; `None` stands for GSM8K's ([`DEFAULT_ANSWER_PATTERN`]).
    ///
    /// # Errors
    /// An unknown name, an unknown, missing or malformed option, a file that cannot be read.
    pub fn new(spec: &RuleSpec, answer_pattern: Option<&str>) -> Result<Self> {
        spec.check_options()?;
        let default = answer_pattern.unwrap_or(DEFAULT_ANSWER_PATTERN);
        Ok(match spec.name.as_str() {
            "answer" => Rule::Answer(spec.answer_regex(spec.get("pattern").unwrap_or(default))?),
            "regex" => Rule::Regex(spec.regex(spec.required("pattern", "regex:pattern=[0-9]+")?)?),
            "length" => Rule::Length(spec.get("target").map(|n| spec.whole_number("target", n)).transpose()?),
            "format" => match spec.get("pattern") {
                None => Rule::FinalLine(spec.answer_regex(default)?),
                Some(pattern) => {
                    // Compiled alone first, so that a complaint shows the pattern as it was given.
                    spec.regex(pattern)?;
                    Rule::WholeResponse(spec.regex(&format!(r"\A(?:{pattern})\z"))?)
                }
            },
            "expression" => Rule::Expression,
            "words" => {
                let path = spec.required("file", "words:file=vocabulary.txt")?;
                let text = files::read_text(Path::new(path))?;
                let words: HashSet<String> = words(&text).collect();
                if words.is_empty() {
                    return Err(spec.error(format!("{path} holds no words"), "Give a text with words"));
                }
                Rule::Words { file: path.into(), words }
            }
            _ => return Err(spec.unknown_name()),
        })
    }

    /// The rule's name in descriptions.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::Answer(_) => "answer",
            Rule::Regex(_) => "regex",
            Rule::Length(_) => "length",
            Rule::FinalLine(_) | Rule::WholeResponse(_) => "format",
            Rule::Expression => "expression",
            Rule::Words { .. } => "words",
        }
    }

    /// Whether the rule cannot score without a reference.
    pub fn needs_reference(&self) -> bool {
        matches!(self, Rule::Answer(_))
    }

    /// Whether the response has a final answer where this rule looks for one; `None` of a rule that looks for none.
    pub fn finds_answer(&self, response: &str) -> Option<bool> {
        match self {
            Rule::Answer(pattern) => Some(pattern.is_match(response)),
            _ => None,
        }
    }

    /// The score of a response; finite.
    ///
    /// # Errors
    /// `answer` without a reference, or with one that is blank.
    pub fn score(&self, item: &Scored) -> Result<f64> {
        let response = item.response;
        Ok(match self {
            Rule::Answer(pattern) => {
                let missing = |problem: &str| Error::Rule {
                    rule: self.name().into(),
                    problem: problem.into(),
                    mend: "Give every row a `reference` (or `answer`) that holds the correct answer".into(),
                };
                let reference = item.reference.ok_or_else(|| missing("the prompt has no reference to compare with"))?;
                // A reference is often the bare answer.
                let wanted = extract_answer(pattern, reference).unwrap_or(reference);
                if wanted.trim().is_empty() {
                    return Err(missing("the reference is blank"));
                }
                flag(extract_answer(pattern, response).is_some_and(|given| same_answer(given, wanted)))
            }
            Rule::Regex(pattern) => flag(pattern.is_match(response)),
            Rule::Length(None) => -(item.n_tokens as f64),
            Rule::Length(Some(target)) => -(item.n_tokens.abs_diff(*target) as f64),
            Rule::FinalLine(pattern) => {
                let last = response.lines().rev().map(str::trim).find(|line| !line.is_empty());
                flag(last.and_then(|line| pattern.captures(line)).is_some_and(|found| {
                    let starts = found.get(0).is_some_and(|whole| whole.start() == 0);
                    starts && found.get(1).is_some_and(|answer| !answer.as_str().trim().is_empty())
                }))
            }
            Rule::WholeResponse(pattern) => flag(pattern.is_match(response)),
            Rule::Expression => check_statements(response).share(),
            Rule::Words { words: known, .. } => {
                let (mut total, mut found) = (0usize, 0usize);
                for word in words(response) {
                    total += 1;
                    found += usize::from(known.contains(&word));
                }
                if total == 0 { 0.0 } else { found as f64 / total as f64 }
            }
        })
    }
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// The words of a text in lower case: runs of letters and digits, with apostrophes inside them.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '’'))
        .map(|word| word.trim_matches(['\'', '’']))
        .filter(|word| !word.is_empty())
        .map(|word| word.to_lowercase().replace('’', "'"))
}

/// A weighted sum of rules.
#[derive(Debug, Clone)]
pub struct RuleSet {
    rules: Vec<(Rule, f64)>,
}

impl RuleSet {
    /// Makes the rules of a description such as `answer,length:target=40` with weights such as `1,0.01` (`None`: 1
    /// each). `answer_pattern` replaces GSM8K's pattern in `answer` and `format`.
    ///
    /// # Errors
    /// A description that cannot be understood, weights that are no finite numbers or not as many as the rules.
    pub fn parse(functions: &str, weights: Option<&str>, answer_pattern: Option<&str>) -> Result<Self> {
        let specs = RuleSpec::parse_list(functions)?;
        let weights = match weights {
            None => vec![1.0; specs.len()],
            Some(text) => spec::parse_weights(text, specs.len())?,
        };
        if answer_pattern.is_some() && !specs.iter().any(|spec| ["answer", "format"].contains(&spec.name.as_str())) {
            return Err(Error::Rule {
                rule: "answer_pattern".into(),
                problem: "no rule looks for a final answer".into(),
                mend: "Leave it out, or add the rule `answer`".into(),
            });
        }
        let rules = specs.iter().map(|spec| Rule::new(spec, answer_pattern)).collect::<Result<Vec<_>>>()?;
        Ok(Self { rules: rules.into_iter().zip(weights).collect() })
    }

    /// The rules and their weights, in the order given.
    pub fn rules(&self) -> &[(Rule, f64)] {
        &self.rules
    }

    /// Files that the rules were made from.
    pub fn files(&self) -> Vec<&Path> {
        let files = self.rules.iter().filter_map(|(rule, _)| match rule {
            Rule::Words { file, .. } => Some(file.as_path()),
            _ => None,
        });
        files.collect()
    }

    /// Whether any rule cannot score without a reference.
    pub fn needs_reference(&self) -> bool {
        self.rules.iter().any(|(rule, _)| rule.needs_reference())
    }

    /// Whether a rule that looks for a final answer finds one in the response; `None` where no rule does.
    pub fn finds_answer(&self, response: &str) -> Option<bool> {
        self.rules.iter().filter_map(|(rule, _)| rule.finds_answer(response)).reduce(|a, b| a || b)
    }

    /// Whether a rule looks for final answers.
    pub fn has_answers(&self) -> bool {
        self.answer_pattern().is_some()
    }

    /// The final answer of a response under the first rule `answer`, spelled so that equal answers are equal texts
    /// ([`normal_answer`]); `None` where the response has none or no rule looks for one.
    pub fn answer(&self, response: &str) -> Option<String> {
        extract_answer(self.answer_pattern()?, response).and_then(normal_answer)
    }

    /// The correct answer, in the same spelling as [`RuleSet::answer`].
    pub fn reference_answer(&self, reference: &str) -> Option<String> {
        // A reference is often the bare answer.
        normal_answer(extract_answer(self.answer_pattern()?, reference).unwrap_or(reference))
    }

    fn answer_pattern(&self) -> Option<&Regex> {
        self.rules.iter().find_map(|(rule, _)| match rule {
            Rule::Answer(pattern) => Some(pattern),
            _ => None,
        })
    }

    /// Sum of weight × score.
    ///
    /// # Errors
    /// As [`Rule::score`].
    pub fn score(&self, item: &Scored) -> Result<f64> {
        Ok(self.score_each(item)?.iter().zip(&self.rules).map(|(score, (_, weight))| score * weight).sum())
    }

    /// The unweighted score of every rule, in the order given.
    ///
    /// # Errors
    /// As [`Rule::score`].
    pub fn score_each(&self, item: &Scored) -> Result<Vec<f64>> {
        self.rules.iter().map(|(rule, _)| rule.score(item)).collect()
    }
}
