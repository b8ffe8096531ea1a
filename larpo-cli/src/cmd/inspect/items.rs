//! Rows of any schema as prompt, responses and scores, and what can be said of their ranking.

use crate::messages::count;
use larpo_data::records::Dataset;
use serde_json::{Value, json};
use std::fmt;

/// A row.
pub(super) struct Item<'a> {
    pub(super) line: usize,
    pub(super) prompt: &'a str,
    pub(super) rendered: Rendered,
    pub(super) responses: Vec<&'a str>,
    /// Higher is better.
    pub(super) scores: Option<Vec<f64>>,
}

/// Which texts of a row are a chat template's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rendered {
    Nothing,
    /// The responses are the assistant's answers alone.
    Prompt,
    /// The responses end as the template ends a turn.
    All,
}

/// The rows of a data set; none of a text.
pub(super) fn items(dataset: &Dataset) -> Vec<Item<'_>> {
    match dataset {
        Dataset::Examples(rows) => rows
            .iter()
            .map(|row| Item {
                line: row.line,
                prompt: &row.prompt,
                rendered: if row.conversation.is_some() { Rendered::All } else { Rendered::Nothing },
                responses: row.completion.as_deref().into_iter().collect(),
                scores: None,
            })
            .collect(),
        Dataset::Pairs(rows) => rows
            .iter()
            .map(|row| Item {
                line: row.line,
                prompt: &row.prompt,
                rendered: if row.conversation.is_some() { Rendered::All } else { Rendered::Nothing },
                responses: vec![&row.chosen, &row.rejected],
                scores: Some(vec![1.0, 0.0]),
            })
            .collect(),
        Dataset::Unpaired(rows) => rows
            .iter()
            .map(|row| Item {
                line: row.line,
                prompt: &row.prompt,
                rendered: if row.conversation.is_some() { Rendered::All } else { Rendered::Nothing },
                responses: vec![&row.completion],
                scores: Some(vec![f64::from(u8::from(row.label))]),
            })
            .collect(),
        Dataset::RankedLists(rows) => rows
            .iter()
            .map(|row| Item {
                line: row.line,
                prompt: &row.list.prompt,
                rendered: if row.list.messages.is_some() { Rendered::Prompt } else { Rendered::Nothing },
                responses: row.list.responses.iter().map(String::as_str).collect(),
                scores: row.list.scores(),
            })
            .collect(),
        Dataset::Text(_) => Vec::new(),
    }
}

/// What orders the responses, and how well it does.
#[derive(Debug, PartialEq)]
pub(super) struct Ranking {
    /// In words.
    direction: String,
    /// Rows with two responses or more that are scored.
    lists: usize,
    /// Rows without rewards and ranks.
    unscored: usize,
    /// Scored rows with fewer than two different responses: they teach nothing; not of labelled completions.
    too_short: usize,
    /// Rows in which every score is the same: they teach nothing.
    all_equal: usize,
    /// Rows with some equal scores and some different ones.
    some_equal: usize,
    /// Rows whose first response is the best, and so on.
    best_first: usize,
    /// Rows whose last response is the best, and so on.
    worst_first: usize,
    /// Pairs whose responses both begin with the prompt, which then stands there twice.
    repeat_prompt: usize,
}

impl Ranking {
    /// `None` where nothing is ranked.
    pub(super) fn of(dataset: &Dataset, items: &[Item]) -> Option<Self> {
        let (mut direction, mut repeat_prompt) = (String::new(), 0);
        match dataset {
            Dataset::Examples(_) | Dataset::Text(_) => return None,
            Dataset::Pairs(rows) => {
                direction.push_str("`chosen` is better than `rejected`");
                let repeats = |text: &str, prompt: &str| !prompt.is_empty() && text.starts_with(prompt);
                repeat_prompt =
                    rows.iter().filter(|r| repeats(&r.chosen, &r.prompt) && repeats(&r.rejected, &r.prompt)).count();
            }
            Dataset::Unpaired(rows) => {
                let good = rows.iter().filter(|row| row.label).count();
                direction.push_str(&format!("label true is better: {good} of {}", count(rows.len(), "rows")));
            }
            Dataset::RankedLists(rows) => {
                let rewards = rows.iter().filter(|row| !row.list.rewards.is_empty()).count();
                let ranks = rows.iter().filter(|row| !row.list.ranks.is_empty()).count();
                let both = rows.iter().filter(|r| !r.list.rewards.is_empty() && !r.list.ranks.is_empty()).count();
                if rewards > 0 {
                    direction.push_str(&format!("`rewards`, higher is better, in {}", count(rewards, "rows")));
                }
                if ranks > both {
                    let and = if rewards > 0 { "; " } else { "" };
                    direction.push_str(&format!("{and}`ranks`, 1 is best, in {}", count(ranks - both, "rows")));
                }
                if both > 0 {
                    direction.push_str(&format!("; `ranks` too, which agree, in {}", count(both, "rows")));
                }
                if rewards + ranks == 0 {
                    direction.push_str("neither `rewards` nor `ranks`; `larpo rank` scores them");
                }
            }
        }
        let mut ranking = Self {
            direction,
            lists: 0,
            unscored: 0,
            too_short: 0,
            all_equal: 0,
            some_equal: 0,
            best_first: 0,
            worst_first: 0,
            repeat_prompt,
        };
        for item in items {
            let alone = item.responses.windows(2).all(|pair| pair[0] == pair[1]);
            ranking.too_short +=
                usize::from(alone && !matches!(dataset, Dataset::Unpaired(_)) && item.scores.is_some());
            match &item.scores {
                None => ranking.unscored += 1,
                Some(scores) if scores.len() > 1 => ranking.count(scores),
                Some(_) => {}
            }
        }
        Some(ranking)
    }

    fn count(&mut self, scores: &[f64]) {
        self.lists += 1;
        let mut sorted = scores.to_vec();
        sorted.sort_by(f64::total_cmp);
        // -0 is 0, so it is equality and not the total order that tells.
        let different = sorted.windows(2).filter(|pair| pair[0] != pair[1]).count();
        match different {
            0 => self.all_equal += 1,
            n => {
                self.some_equal += usize::from(n + 1 < scores.len());
                self.best_first += usize::from(scores.windows(2).all(|pair| pair[0] >= pair[1]));
                self.worst_first += usize::from(scores.windows(2).all(|pair| pair[0] <= pair[1]));
            }
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "direction": self.direction,
            "lists": self.lists,
            "unscored": self.unscored,
            "too_short": self.too_short,
            "all_equal": self.all_equal,
            "some_equal": self.some_equal,
            "best_first": self.best_first,
            "worst_first": self.worst_first,
            "responses_repeat_prompt": self.repeat_prompt,
        })
    }
}

impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "direction   {}", self.direction)?;
        if self.unscored > 0 {
            write!(f, "\nunscored    {}", count(self.unscored, "rows"))?;
        }
        if self.too_short > 0 {
            write!(f, "\ntoo short   {} with fewer than two different responses", count(self.too_short, "rows"))?;
        }
        if self.lists > 0 {
            write!(
                f,
                "\nties        of {} {} with equal scores only and {} with some equal ones",
                count(self.lists, "lists"),
                self.all_equal,
                self.some_equal
            )?;
            write!(
                f,
                "\norder       best first in {}, worst first in {}",
                count(self.best_first, "lists"),
                self.worst_first
            )?;
        }
        if self.repeat_prompt > 0 {
            write!(
                f,
                "\nnote        in {} `chosen` and `rejected` both begin with `prompt`, which then stands there twice",
                count(self.repeat_prompt, "rows")
            )?;
        }
        Ok(())
    }
}
