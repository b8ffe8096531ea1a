//! The order of a list: masked items removed, sorted by reward, ties grouped. Written once for all losses.

use super::error::check_len;
use super::{ObjectiveError, Ties};
use std::ops::Range;

/// A list put in order. It depends on the rewards alone, so it is made once per list and then evaluated for as many
/// γ as training asks for.
///
/// *Slots* are the caller's indices `0..slots`, *positions* are `0..len` in the sorted list, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    slots: usize,
    order: Vec<usize>,
    rewards: Vec<f64>,
    group: Vec<Range<usize>>,
    ties: Ties,
}

impl Ranking {
    /// Orders the valid items by reward descending, then by slot ascending; under [`Ties::Random`] tied items are
    /// shuffled by a hash of `seed` and slot instead.
    ///
    /// Shapes: `rewards (slots)`, `mask (slots)` with `true` for a valid item; no mask means that all are valid.
    /// A masked slot may hold anything.
    ///
    /// # Errors
    /// A mask of another length, or a valid reward that is not finite.
    pub fn new(rewards: &[f64], mask: Option<&[bool]>, ties: Ties, seed: u64) -> Result<Self, ObjectiveError> {
        let mut order = valid_slots(rewards, mask)?;
        // Not `total_cmp`, which would put 0.0 above -0.0. The rewards are finite, so this order is total.
        let by_reward =
            |&a: &usize, &b: &usize| rewards[b].partial_cmp(&rewards[a]).unwrap_or(std::cmp::Ordering::Equal);
        if ties == Ties::Random {
            order.sort_by(|a, b| by_reward(a, b).then_with(|| shuffle_key(seed, *a).cmp(&shuffle_key(seed, *b))));
        } else {
            order.sort_by(by_reward);
        }

        let sorted: Vec<f64> = order.iter().map(|&slot| rewards[slot]).collect();
        let mut group = Vec::with_capacity(sorted.len());
        for tied in sorted.chunk_by(|a, b| a == b) {
            let start = group.len();
            group.extend(std::iter::repeat_n(start..start + tied.len(), tied.len()));
        }
        Ok(Self { slots: rewards.len(), order, rewards: sorted, group, ties })
    }

    /// Number of slots, masked ones included: the length of γ and of its gradient.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Number of valid items.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether no item is valid.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The slot at each position, best first.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The reward at each position, descending.
    pub fn rewards(&self) -> &[f64] {
        &self.rewards
    }

    /// The positions that share the reward of `position`, itself included.
    pub fn tie_group(&self, position: usize) -> Range<usize> {
        self.group[position].clone()
    }

    /// The tie rule the list was ordered for.
    pub fn ties(&self) -> Ties {
        self.ties
    }

    /// Whether the list counts: at least two valid items, not all of the same reward. Under [`Ties::Stable`] a list
    /// of equal rewards counts too.
    pub fn contributes(&self) -> bool {
        self.len() >= 2 && (self.ties == Ties::Stable || self.group[0].len() < self.len())
    }

    /// Weights of "the item at `a` should win against the item at `b`" and of the reverse, for positions `a < b`.
    pub(super) fn pair_weights(&self, a: usize, b: usize) -> (f64, f64) {
        if self.group[a] != self.group[b] {
            return (1.0, 0.0);
        }
        match self.ties {
            Ties::Stable | Ties::Random => (1.0, 0.0),
            Ties::Skip => (0.0, 0.0),
            Ties::Share => (0.5, 0.5),
        }
    }

    /// Start of the positions that the item at `position` is compared with in a softmax term: all from there to the
    /// end of the list, except `position` itself.
    pub(super) fn rivals_from(&self, position: usize) -> usize {
        match self.ties {
            Ties::Stable | Ties::Random => position + 1,
            Ties::Skip => self.group[position].end,
            Ties::Share => self.group[position].start,
        }
    }
}

/// The unmasked slots in ascending order, their rewards checked to be finite.
pub(super) fn valid_slots(rewards: &[f64], mask: Option<&[bool]>) -> Result<Vec<usize>, ObjectiveError> {
    if let Some(mask) = mask {
        check_len("mask", mask.len(), rewards.len())?;
    }
    let valid: Vec<usize> = (0..rewards.len()).filter(|&i| mask.is_none_or(|m| m[i])).collect();
    match valid.iter().find(|&&i| !rewards[i].is_finite()) {
        Some(&index) => Err(ObjectiveError::Reward { index, value: rewards[index] }),
        None => Ok(valid),
    }
}

/// Sort key of a slot in a shuffle: two rounds of the SplitMix64 finalizer (Steele, Lea and Flood 2014) over
/// `(seed, slot)`. A bijection of the slot for a fixed seed, hence no two slots share a key.
fn shuffle_key(seed: u64, slot: usize) -> u64 {
    mix(mix(seed) ^ slot as u64)
}

/// The SplitMix64 step: golden-ratio increment and finalizer.
pub(super) fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_sorts_and_groups() {
        let rewards = [1.0, f64::NAN, 2.0, 1.0, -0.0, 0.0, 2.0];
        let mask = [true, false, true, true, true, true, true];
        let ranking = Ranking::new(&rewards, Some(&mask), Ties::Stable, 0).unwrap();
        assert_eq!(ranking.order(), [2, 6, 0, 3, 4, 5]);
        assert_eq!(ranking.rewards(), [2.0, 2.0, 1.0, 1.0, 0.0, 0.0]);
        let groups: Vec<_> = (0..6).map(|p| ranking.tie_group(p)).collect();
        assert_eq!(groups, [0..2, 0..2, 2..4, 2..4, 4..6, 4..6]);
        assert_eq!((ranking.slots(), ranking.len()), (7, 6));
    }

    #[test]
    fn counts_lists_by_the_tie_rule() {
        for &ties in Ties::ALL {
            let contributes = |rewards: &[f64]| Ranking::new(rewards, None, ties, 3).unwrap().contributes();
            assert!(!contributes(&[]));
            assert!(!contributes(&[1.0]));
            assert!(contributes(&[1.0, 0.0]));
            assert!(contributes(&[1.0, 1.0, 0.0]));
            assert_eq!(contributes(&[1.0, 1.0]), ties == Ties::Stable);
        }
    }

    #[test]
    fn the_shuffle_stays_inside_tie_groups_and_follows_the_seed() {
        let rewards = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0];
        let order = |seed| Ranking::new(&rewards, None, Ties::Random, seed).unwrap().order().to_vec();
        let mut first = [0usize; 8];
        for seed in 0..4000 {
            let order = order(seed);
            assert!(order[..5].iter().all(|&slot| rewards[slot] == 1.0));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..8).collect::<Vec<_>>());
            first[order[0]] += 1;
        }
        assert_eq!(order(7), order(7));
        // Each of the five tied items leads a fifth of the time: 800 +- 5 standard deviations (25 each).
        for slot in [0, 2, 4, 5, 7] {
            assert!((675..=925).contains(&first[slot]), "{first:?}");
        }
    }

    #[test]
    fn a_valid_reward_must_be_finite() {
        let error = Ranking::new(&[0.0, f64::NAN], None, Ties::Skip, 0).unwrap_err();
        assert!(matches!(error, ObjectiveError::Reward { index: 1, value } if value.is_nan()));
        let error = Ranking::new(&[f64::INFINITY, 0.0], None, Ties::Skip, 0).unwrap_err();
        assert!(error.to_string().contains("item 0"), "{error}");
        let error = Ranking::new(&[0.0, 1.0], Some(&[true]), Ties::Skip, 0).unwrap_err();
        assert_eq!(error, ObjectiveError::Length { what: "mask", expected: 2, found: 1 });
    }
}
