//! Ranked lists on the device: the order, the ties and the labels of every list, worked out once on the host.

use super::word;
use crate::{Buffer, Error, Recorder};
use std::ops::Range;

/// Which loss is taken over a list sorted by reward, best first, with `g_i` the score γ of item i (Jin et al. 2025,
/// arXiv 2502.03699).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossType {
    /// Mean of `-log σ(g_i - g_j)` over the ordered pairs; on a list of two this is DPO (Rafailov et al. 2023).
    Pairwise,
    /// `logsumexp(g) - g_1`: the best item against the others.
    Contrastive,
    /// Sum of `-log σ(g_i - g_j)` over `i < j`: RankNet on the sorted list.
    Lambdarank,
    /// `Σ_i logsumexp(g_i … g_m) - g_i`: Plackett–Luce likelihood (Xia et al. 2008).
    Listmle,
    /// Pairs weighted by what swapping them would change in DCG (LiPO, Liu et al. 2024, arXiv 2402.01878).
    LipoLambda,
}

impl LossType {
    /// Every loss.
    pub const ALL: [Self; 5] = [Self::Pairwise, Self::Contrastive, Self::Lambdarank, Self::Listmle, Self::LipoLambda];
}

/// What equal rewards mean. A list whose rewards are all equal never counts, except under `Stable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ties {
    /// Tied items keep the order in which they stand and are compared like any others.
    Stable,
    /// A tied pair carries no information: an item is compared with items of strictly different reward only.
    Skip,
    /// Both orders at once: pair losses count each with weight 1/2, and every item of a tie group gets ListMLE's
    /// denominator of the whole group and everything below. Contrastive is as `Stable`.
    Share,
    /// As `Stable`, in an order in which the caller has shuffled the tied items ([`ListSpec::order`]).
    Shuffled,
}

impl Ties {
    /// Every rule.
    pub const ALL: [Self; 4] = [Self::Stable, Self::Skip, Self::Share, Self::Shuffled];
}

/// Labels of [`LossType::LipoLambda`]; the other losses use only the order of the rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LipoLabels {
    /// `(m - rank) / (m - 1)` with rank 1 for the best of the `m` items; tied rewards share their mean rank.
    Rank,
    /// The rewards themselves; the gain is `2^label - 1`, so rewards in [0, 1] are meant.
    Reward,
}

/// Ragged lists with a loss.
#[derive(Clone, Copy, Debug)]
pub struct ListSpec<'a> {
    /// First item of every list, and one past the last: `(lists + 1)`.
    pub item_offsets: &'a [u32],
    /// Reward of every item, finite.
    pub rewards: &'a [f64],
    /// The items by reward descending inside every list, where the caller wants an order of tied items other than by
    /// number: `(items)`, item numbers.
    pub order: Option<&'a [u32]>,
    /// First target (scored token) of every item, and one past the last: `(items + 1)`; empty where scores are given
    /// directly.
    pub target_offsets: &'a [u32],
    /// The loss.
    pub loss: LossType,
    /// What equal rewards mean.
    pub ties: Ties,
    /// Labels of LiPO.
    pub labels: LipoLabels,
    /// Whether LiPO's discount takes the logarithm to base 2 instead of e.
    pub log2: bool,
}

/// Ranked lists on the device; see [`ListSpec`].
#[derive(Clone, Debug)]
pub struct RankedLists {
    pub(super) meta: Buffer<u32>,
    pub(super) lists: usize,
    pub(super) items: usize,
    pub(super) targets: usize,
    pub(super) loss: LossType,
    pub(super) ties: Ties,
    pub(super) log2: bool,
    pub(super) at: Sections,
}

/// Where the sections of `meta` start; they are described in `list_loss.wgsl`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sections {
    pub counts: usize,
    pub norm: usize,
    pub list_of: usize,
    pub order: usize,
    pub group: usize,
    pub gain: usize,
    pub target_offsets: usize,
}

impl RankedLists {
    /// Orders every list and uploads what the kernels need.
    ///
    /// # Errors
    /// [`Error::Index`] for offsets that do not ascend from 0, an order that is not one, or a reward that is not finite;
    /// [`Error::TooLarge`], [`Error::OutOfMemory`].
    pub fn new(recorder: &Recorder, spec: &ListSpec) -> Result<Self, Error> {
        let items = spec.rewards.len();
        check_offsets("item_offsets", spec.item_offsets, Some(items))?;
        if !spec.target_offsets.is_empty() {
            if spec.target_offsets.len() != items + 1 {
                return Err(Error::Index(format!("target_offsets: {} for {items} items", spec.target_offsets.len())));
            }
            check_offsets("target_offsets", spec.target_offsets, None)?;
        }
        if let Some(item) = spec.rewards.iter().position(|reward| !reward.is_finite()) {
            return Err(Error::Index(format!("rewards: that of item {item} is {}", spec.rewards[item])));
        }
        let order = ordered(spec)?;
        let lists = spec.item_offsets.len() - 1;
        let at = Sections::new(lists, items);
        let mut meta = spec.item_offsets.to_vec();
        meta.resize(at.target_offsets, 0);
        for (list, range) in ranges(spec.item_offsets).enumerate() {
            let ranking = Ranking { range, order: &order, spec };
            let (counts, norm) = ranking.counts_and_norm();
            meta[at.counts + list] = u32::from(counts);
            meta[at.norm + list] = (norm as f32).to_bits();
            for group in ranking.groups() {
                let gain = (ranking.label(&group).exp2() as f32).to_bits();
                for q in group.clone() {
                    meta[at.list_of + q] = list as u32;
                    meta[at.order + q] = order[q];
                    meta[at.group + 2 * q] = group.start as u32;
                    meta[at.group + 2 * q + 1] = group.end as u32;
                    meta[at.gain + q] = gain;
                }
            }
        }
        meta.extend_from_slice(spec.target_offsets);
        Ok(Self {
            meta: recorder.upload(&meta)?,
            lists,
            items,
            targets: spec.target_offsets.last().map_or(0, |&end| end as usize),
            loss: spec.loss,
            ties: spec.ties,
            log2: spec.log2,
            at,
        })
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.lists
    }

    /// Number of items of all lists together.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Number of targets of all items together; 0 where scores are given directly.
    pub fn targets(&self) -> usize {
        self.targets
    }
}

impl Sections {
    fn new(lists: usize, items: usize) -> Self {
        let counts = lists + 1;
        let norm = counts + lists;
        let list_of = norm + lists;
        let order = list_of + items;
        let group = order + items;
        let gain = group + 2 * items;
        Self { counts, norm, list_of, order, group, gain, target_offsets: gain + items }
    }
}

fn ranges(offsets: &[u32]) -> impl Iterator<Item = Range<usize>> + '_ {
    offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize)
}

fn check_offsets(name: &str, offsets: &[u32], end: Option<usize>) -> Result<(), Error> {
    let ascending = offsets.first() == Some(&0) && offsets.is_sorted();
    let last = offsets.last().map_or(0, |&last| last as usize);
    if ascending && end.is_none_or(|end| end == last) {
        return Ok(());
    }
    Err(Error::Index(format!("{name} do not ascend from 0 to the number of what they divide")))
}

/// The items of every list, best first.
fn ordered(spec: &ListSpec) -> Result<Vec<u32>, Error> {
    let mut order: Vec<u32> = (0..word(spec.rewards.len())).collect();
    for range in ranges(spec.item_offsets) {
        // Not `total_cmp`, which would put 0.0 above -0.0. The rewards are finite, so this order is total.
        order[range].sort_by(|&a, &b| {
            let (a, b) = (spec.rewards[a as usize], spec.rewards[b as usize]);
            b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal)
        });
    }
    let Some(given) = spec.order else { return Ok(order) };
    let wrong = || Error::Index("order: not the items of every list by descending reward".into());
    if given.len() != order.len() {
        return Err(wrong());
    }
    for range in ranges(spec.item_offsets) {
        let mut sorted = given[range.clone()].to_vec();
        sorted.sort_unstable();
        let same_items = sorted.iter().copied().eq(range.clone().map(|item| item as u32));
        let same_rewards = |(a, b): (&u32, &u32)| spec.rewards[*a as usize] == spec.rewards[*b as usize];
        if !same_items || !given[range.clone()].iter().zip(&order[range]).all(same_rewards) {
            return Err(wrong());
        }
    }
    Ok(given.to_vec())
}

/// One list in its order; positions count over all lists.
struct Ranking<'a> {
    range: Range<usize>,
    order: &'a [u32],
    spec: &'a ListSpec<'a>,
}

impl Ranking<'_> {
    fn reward(&self, position: usize) -> f64 {
        self.spec.rewards[self.order[position] as usize]
    }

    /// The positions of each reward, best first.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut start = self.range.start;
        self.order[self.range.clone()]
            .chunk_by(|&a, &b| self.spec.rewards[a as usize] == self.spec.rewards[b as usize])
            .map(move |tied| {
                let group = start..start + tied.len();
                start = group.end;
                group
            })
    }

    /// Whether the list contributes, and the factor on its loss.
    fn counts_and_norm(&self) -> (bool, f64) {
        let m = self.range.len();
        if m < 2 {
            return (false, 0.0);
        }
        let all_equal = self.reward(self.range.start) == self.reward(self.range.end - 1);
        let counts = self.spec.ties == Ties::Stable || !all_equal;
        if self.spec.loss != LossType::Pairwise {
            return (counts, 1.0);
        }
        let mut pairs = m * (m - 1) / 2;
        if self.spec.ties == Ties::Skip {
            pairs -= self.groups().map(|tied| tied.len() * (tied.len() - 1) / 2).sum::<usize>();
        }
        (counts, 1.0 / pairs.max(1) as f64)
    }

    /// LiPO's label of the items of a tie group.
    fn label(&self, group: &Range<usize>) -> f64 {
        let m = self.range.len();
        match self.spec.labels {
            LipoLabels::Reward => self.reward(group.start),
            LipoLabels::Rank if m < 2 => 0.0,
            LipoLabels::Rank => {
                // Mean of the 1-based ranks of the group.
                let first = group.start - self.range.start;
                let rank = (2 * first + 1 + group.len()) as f64 / 2.0;
                (m as f64 - rank) / (m as f64 - 1.0)
            }
        }
    }
}
