//! From the sampled candidates of a prompt to the ranked list that is trained on.
//!
//! Duplicates are dropped (the first stays), the rest is sorted by reward descending with ties in sampling order, and a
//! part of it is kept. Settings of Jin et al. 2025, arXiv 2502.03699: with k = 10 the contrastive loss takes
//! `top:1,bottom:3`, LambdaRank and ListMLE `top:2,bottom:2`; with k = 4 the contrastive loss takes `one_vs_rest`.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

/// Which of the sorted candidates form the list. Serialized as its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Select {
    /// The best `top` and the worst `bottom`; all of them when there are no more than that. Written
    /// `top:A,bottom:B`.
    TopBottom {
        /// Candidates kept from the top, at least 1.
        top: usize,
        /// Candidates kept from the bottom, at least 1.
        bottom: usize,
    },
    /// All candidates, the best against the others. Written `one_vs_rest`.
    OneVsRest,
    /// All candidates, each against those below it. The same list as `OneVsRest` with more positives. Written `full`.
    Full,
    /// The best and the worst. Written `max_min`.
    MaxMin,
}

/// The list made of a prompt's candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Indices of the chosen candidates, best first; at least two.
    pub order: Vec<usize>,
    /// How many of them, from the front, are positives; at least one and fewer than all.
    pub n_pos: usize,
}

/// Why no selection can be made or read.
#[derive(Debug, Clone, PartialEq)]
pub enum SelectError {
    /// A reward is NaN or infinite.
    Reward {
        /// Index of the candidate.
        index: usize,
        /// Its reward.
        value: f64,
    },
    /// Rewards and keys differ in number.
    Length {
        /// Number of rewards.
        rewards: usize,
        /// Number of keys.
        keys: usize,
    },
    /// `top` is 0.
    EmptyTop,
    /// A text that names no selection.
    Parse {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reward { index, value } => write!(
                f,
                "the reward of response {index} is {value}, expected a finite number: correct the reward or drop the response"
            ),
            Self::Length { rewards, keys } => {
                write!(f, "{rewards} rewards for {keys} responses: give one reward per response")
            }
            Self::EmptyTop => write!(f, "top is 0: a list needs at least one response from the top"),
            Self::Parse { text, reason } => write!(
                f,
                "cannot read the selection `{text}`: {reason}; \
                 expected top:A,bottom:B with A and B at least 1, one_vs_rest, full or max_min"
            ),
        }
    }
}

impl std::error::Error for SelectError {}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopBottom { top, bottom } => write!(f, "top:{top},bottom:{bottom}"),
            Self::OneVsRest => f.write_str("one_vs_rest"),
            Self::Full => f.write_str("full"),
            Self::MaxMin => f.write_str("max_min"),
        }
    }
}

impl FromStr for Select {
    type Err = SelectError;

    fn from_str(text: &str) -> Result<Self, SelectError> {
        match text.trim() {
            "one_vs_rest" => Ok(Self::OneVsRest),
            "full" => Ok(Self::Full),
            "max_min" => Ok(Self::MaxMin),
            other => parse_top_bottom(other).map_err(|reason| SelectError::Parse { text: text.to_string(), reason }),
        }
    }
}

impl From<Select> for String {
    fn from(select: Select) -> Self {
        select.to_string()
    }
}

impl TryFrom<String> for Select {
    type Error = SelectError;

    fn try_from(text: String) -> Result<Self, SelectError> {
        text.parse()
    }
}

/// Reads `top:A,bottom:B` in either order; the error says what is wrong.
fn parse_top_bottom(text: &str) -> Result<Select, String> {
    let (mut top, mut bottom) = (None, None);
    for part in text.split(',') {
        let (name, number) = part.split_once(':').ok_or_else(|| format!("`{part}` is not of the form name:number"))?;
        let side = match name.trim() {
            "top" => &mut top,
            "bottom" => &mut bottom,
            other => return Err(format!("`{other}` is neither top nor bottom")),
        };
        let count: usize = number.trim().parse().map_err(|_| format!("`{number}` is not a whole number"))?;
        if count == 0 {
            return Err(format!("`{part}` would leave no list"));
        }
        if side.replace(count).is_some() {
            return Err(format!("`{}` is given twice", name.trim()));
        }
    }
    match (top, bottom) {
        (Some(top), Some(bottom)) => Ok(Select::TopBottom { top, bottom }),
        (None, _) => Err("top:A is missing".to_string()),
        (_, None) => Err("bottom:B is missing".to_string()),
    }
}

/// Indices of the first occurrence of each key, ascending.
pub fn distinct<K: Eq + Hash>(keys: &[K]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity(keys.len());
    (0..keys.len()).filter(|&i| seen.insert(&keys[i])).collect()
}

/// Makes the list of one prompt; `None` with fewer than two distinct candidates.
///
/// `keys` tell candidates apart: token ids where they are known, else texts. Shapes: `rewards (k)`, `keys (k)`.
///
/// # Errors
/// A reward that is not finite (of a duplicate too), different numbers of rewards and keys, a `top` of 0.
pub fn select_list<K: Eq + Hash>(select: Select, rewards: &[f64], keys: &[K]) -> Result<Option<Selected>, SelectError> {
    if rewards.len() != keys.len() {
        return Err(SelectError::Length { rewards: rewards.len(), keys: keys.len() });
    }
    if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
        return Err(SelectError::Reward { index, value: rewards[index] });
    }
    let mut order = distinct(keys);
    // Finite, hence comparable; the sort is stable, so ties keep the sampling order.
    order.sort_by(|&a, &b| rewards[b].partial_cmp(&rewards[a]).unwrap_or(Ordering::Equal));
    let m = order.len();
    let (top, bottom) = match select {
        Select::TopBottom { top: 0, .. } => return Err(SelectError::EmptyTop),
        Select::TopBottom { top, bottom } => (top, bottom),
        Select::MaxMin => (1, 1),
        Select::OneVsRest => (1, m),
        Select::Full => (m, m),
    };
    if m < 2 {
        return Ok(None);
    }
    if m > top.saturating_add(bottom) {
        order.drain(top..m - bottom);
    }
    Ok(Some(Selected { order, n_pos: top.min(m - 1) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for select in [Select::TopBottom { top: 2, bottom: 13 }, Select::OneVsRest, Select::Full, Select::MaxMin] {
            assert_eq!(select.to_string().parse(), Ok(select));
            let json = serde_json::to_string(&select).unwrap();
            assert_eq!(json, format!("\"{select}\""));
            assert_eq!(serde_json::from_str::<Select>(&json).unwrap(), select);
        }
        assert_eq!("bottom:3, top:1".parse(), Ok(Select::TopBottom { top: 1, bottom: 3 }));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (text, reason) in [
            ("best", "`best` is not of the form"),
            ("", "is not of the form"),
            ("top:2", "bottom:B is missing"),
            ("bottom:2", "top:A is missing"),
            ("top:0,bottom:2", "would leave no list"),
            ("top:-1,bottom:2", "`-1` is not a whole number"),
            ("top:1,top:2", "given twice"),
            ("top:1,middle:2", "`middle` is neither"),
        ] {
            let message = text.parse::<Select>().unwrap_err().to_string();
            assert!(message.contains(reason) && message.contains("one_vs_rest"), "{message}");
        }
    }

    #[test]
    fn each_selection_of_five() {
        let rewards = [0.5, 2.0, -1.0, 2.0, 0.0]; // sorted: 1 3 0 4 2
        let keys = [0, 1, 2, 3, 4];
        let pick = |select| select_list(select, &rewards, &keys).unwrap().unwrap();
        let selected = |order: &[usize], n_pos| Selected { order: order.to_vec(), n_pos };
        assert_eq!(pick(Select::TopBottom { top: 1, bottom: 3 }), selected(&[1, 0, 4, 2], 1));
        assert_eq!(pick(Select::TopBottom { top: 2, bottom: 2 }), selected(&[1, 3, 4, 2], 2));
        assert_eq!(pick(Select::TopBottom { top: 9, bottom: 1 }), selected(&[1, 3, 0, 4, 2], 4));
        assert_eq!(pick(Select::TopBottom { top: usize::MAX, bottom: 1 }), selected(&[1, 3, 0, 4, 2], 4));
        assert_eq!(pick(Select::MaxMin), selected(&[1, 2], 1));
        assert_eq!(pick(Select::OneVsRest), selected(&[1, 3, 0, 4, 2], 1));
        assert_eq!(pick(Select::Full), selected(&[1, 3, 0, 4, 2], 4));
    }

    #[test]
    fn duplicates_keep_their_first_and_one_candidate_is_no_list() {
        let rewards = [0.0, 9.0, 1.0];
        let selected = select_list(Select::Full, &rewards, &[vec![1, 2], vec![1, 2], vec![3]]).unwrap().unwrap();
        assert_eq!(selected.order, [2, 0]);
        for select in [Select::Full, Select::OneVsRest, Select::MaxMin, Select::TopBottom { top: 2, bottom: 2 }] {
            assert_eq!(select_list(select, &rewards, &["a", "a", "a"]), Ok(None));
            assert_eq!(select_list::<u8>(select, &[], &[]), Ok(None));
        }
    }

    #[test]
    fn bad_rewards_are_named() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = select_list(Select::MaxMin, &[1.0, bad], &["a", "a"]).unwrap_err();
            assert!(error.to_string().contains("response 1"), "{error}");
        }
        assert!(select_list(Select::MaxMin, &[1.0], &["a", "b"]).is_err());
        let empty = Select::TopBottom { top: 0, bottom: 1 };
        assert_eq!(select_list(empty, &[1.0], &["a"]), Err(SelectError::EmptyTop));
    }

    #[test]
    fn zeros_of_either_sign_are_tied() {
        let selected = select_list(Select::MaxMin, &[-0.0, 0.0], &["a", "b"]).unwrap().unwrap();
        assert_eq!(selected.order, [0, 1]);
    }
}
