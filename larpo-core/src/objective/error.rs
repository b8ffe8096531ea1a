//! What can be wrong with the inputs of an objective.

use std::fmt;

/// Bad input to an objective; the message names the item, what was expected and the mend.
#[derive(Debug, Clone, PartialEq)]
pub enum ObjectiveError {
    /// Two arrays that describe the same items differ in length.
    Length {
        /// Name of the offending array.
        what: &'static str,
        /// Its expected number of entries.
        expected: usize,
        /// Its actual number of entries.
        found: usize,
    },
    /// An unmasked reward is NaN or infinite, so the list has no order.
    Reward {
        /// Slot of the item in the list.
        index: usize,
        /// The reward.
        value: f64,
    },
    /// A list of a batch that must be in rank order has a reward above the one before it.
    RankOrder {
        /// Index of the item in the batch.
        index: usize,
    },
    /// The offsets of a batch do not cut its items into lists.
    Offsets {
        /// Index of the offending list.
        list: usize,
        /// Number of items.
        items: usize,
    },
    /// An unmasked γ is NaN or +inf.
    Gamma {
        /// Slot of the item in the list.
        index: usize,
        /// The γ.
        value: f64,
    },
    /// Both sides of one comparison have γ = -inf, so their difference is undefined.
    TwoMinusInf {
        /// Slot of the preferred item.
        index: usize,
        /// Slot of the other item, or of one of them.
        other: usize,
    },
    /// The margin of a preference pair is NaN: a NaN log-probability, or -inf on both sides.
    Margin {
        /// Index of the pair in the batch.
        pair: usize,
    },
    /// A LiPO pair weight overflowed.
    PairWeight {
        /// Slot of the item with the higher label.
        index: usize,
        /// Slot of the item with the lower label.
        other: usize,
    },
    /// Two items of a list have no probability that one is better than the other.
    Preference {
        /// The one.
        index: usize,
        /// The other.
        other: usize,
        /// The probability given for the one.
        value: f64,
        /// The probability given for the other.
        opposite: f64,
    },
    /// A number of the settings is out of its range.
    Setting {
        /// Name of the setting.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range, in words.
        expected: &'static str,
    },
    /// A token id is not below the vocabulary size.
    TokenId {
        /// Position in the sequence.
        position: usize,
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab: usize,
    },
    /// The logits of one position have no softmax: a NaN, a +inf, or nothing but -inf.
    Logits {
        /// The position whose logits are meant.
        position: usize,
    },
    /// A name that is not one of the known ones.
    Name {
        /// What was to be named.
        what: &'static str,
        /// The text found.
        found: String,
        /// The known names.
        expected: &'static [&'static str],
    },
}

impl fmt::Display for ObjectiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { what, expected, found } => {
                write!(f, "{what} has {found} entries but {expected} were expected: pass one entry per item")
            }
            Self::Reward { index, value } => write!(
                f,
                "the reward of item {index} is {value}, a list is ordered by finite rewards: mask or drop the item"
            ),
            Self::RankOrder { index } => write!(
                f,
                "the reward of item {index} is above that of the item before it: \
                 sort every list by reward, best first, with its gamma"
            ),
            Self::Offsets { list, items } => write!(
                f,
                "the offsets of list {list} do not fit: offsets begin with 0, do not decrease and end with the number of \
                 items, {items}"
            ),
            Self::Gamma { index, value } => write!(
                f,
                "gamma of item {index} is {value}, expected a finite number or -inf: \
                 check its policy and reference log-probabilities"
            ),
            Self::TwoMinusInf { index, other } => write!(
                f,
                "items {index} and {other} both have gamma = -inf, so their difference is undefined: \
                 drop one of them, the policy gives both probability 0"
            ),
            Self::Margin { pair } => write!(
                f,
                "the margin of pair {pair} is undefined: its log-probabilities hold a NaN, or an infinity on both sides; \
                 drop the pair or check the forward pass that made them"
            ),
            Self::PairWeight { index, other } => write!(
                f,
                "the LiPO weight of items {index} and {other} overflows because gains are 2^label - 1: \
                 use labels in [0, 1] or rank labels"
            ),
            Self::Preference { index, other, value, opposite } => write!(
                f,
                "the preferences of items {index} and {other} are {value} and {opposite}, expected two probabilities that add \
                 up to 1"
            ),
            Self::Setting { what, value, expected } => write!(f, "{what} is {value}, expected {expected}"),
            Self::TokenId { position, id, vocab } => write!(
                f,
                "token id {id} at position {position} is outside the vocabulary of {vocab} tokens: \
                 encode with the tokenizer of this model"
            ),
            Self::Logits { position } => write!(
                f,
                "the logits at position {position} have no softmax (a NaN, a +inf or only -inf): \
                 check the forward pass that made them"
            ),
            Self::Name { what, found, expected } => {
                write!(f, "unknown {what} `{found}`, expected one of: {}", expected.join(", "))
            }
        }
    }
}

impl std::error::Error for ObjectiveError {}

/// `Ok` when `found == expected`, else the length error for `what`.
pub(super) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), ObjectiveError> {
    if found == expected { Ok(()) } else { Err(ObjectiveError::Length { what, expected, found }) }
}
