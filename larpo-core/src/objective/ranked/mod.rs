//! Many ranked lists at once in `f32`: one list in each lane of a register, tasks of some thousand lists on all threads.
//!
//! ```
//! use larpo_core::objective::{LossType, Objective, RankedBatch};
//!
//! // Two lists of three responses, each from the best to the worst.
//! let objective = Objective { loss: LossType::Listmle, ..Objective::default() };
//! let batch = RankedBatch::uniform(&[0.4f32, -0.1, 0.2, 0.0, 0.0, 0.0], 3);
//! let (mut loss, mut d_gamma) = ([0.0; 2], [0.0; 6]);
//! objective.evaluate_batch(&batch, &mut loss, &mut d_gamma)?;
//! assert!((loss[1] - 6f32.ln()).abs() < 1e-6); // γ = 0: ln 3!
//! # Ok::<(), larpo_core::objective::ObjectiveError>(())
//! ```

mod kernels;
mod lanes;
mod sixteen;
mod tile;

use super::error::check_len;
use super::ranking::mix;
use super::{LipoLabels, LogBase, LossType, Objective, ObjectiveError, Ties};
use crate::cpu::par;
use crate::cpu::prefetch::{LINE, prefetch};
use kernels::Tied;
use lanes::{Lanes, MAX_LANES};
use pulp::{Arch, Simd, WithSimd};
use sixteen::BLOCK;
use std::ops::Range;
use tile::{List, SIDE_BY_SIDE, Tile};

/// Items of a task: γ and its gradient then fill half a megabyte.
const TASK: usize = 1 << 16;

/// How many items ahead the lists and their gradient are asked for where they lie side by side.
const AHEAD: usize = 512;

/// Lists one after another, each in rank order: from its best item to its worst.
#[derive(Debug, Clone, Copy)]
pub struct RankedBatch<'a, T> {
    /// Where the lists lie.
    pub lengths: Lengths<'a>,
    /// γ of every item, list after list.
    pub gamma: &'a [T],
    /// Reward of every item, not increasing within a list. Without it no two items of a list are tied.
    pub rewards: Option<&'a [T]>,
}

/// The lengths of the lists of a batch.
#[derive(Debug, Clone, Copy)]
pub enum Lengths<'a> {
    /// All lists have this many items.
    Uniform(usize),
    /// First item of every list, and one past the last item: `(lists + 1)`, from 0, not decreasing.
    Offsets(&'a [u32]),
}

impl<'a, T> RankedBatch<'a, T> {
    /// Lists of `length` items each, without ties.
    pub fn uniform(gamma: &'a [T], length: usize) -> Self {
        Self { lengths: Lengths::Uniform(length), gamma, rewards: None }
    }

    /// Lists of any lengths, without ties; see [`Lengths::Offsets`].
    pub fn ragged(gamma: &'a [T], offsets: &'a [u32]) -> Self {
        Self { lengths: Lengths::Offsets(offsets), gamma, rewards: None }
    }

    /// The same lists with the reward of every item.
    pub fn with_rewards(self, rewards: &'a [T]) -> Self {
        Self { rewards: Some(rewards), ..self }
    }

    /// Number of lists; 0 where [`Lengths::Uniform`] is 0.
    pub fn lists(&self) -> usize {
        match self.lengths {
            Lengths::Uniform(length) => self.gamma.len().checked_div(length).unwrap_or(0),
            Lengths::Offsets(offsets) => offsets.len().saturating_sub(1),
        }
    }

    /// Items of list `list`.
    #[inline]
    fn items(&self, list: usize) -> Range<usize> {
        match self.lengths {
            Lengths::Uniform(length) => list * length..(list + 1) * length,
            Lengths::Offsets(offsets) => offsets[list] as usize..offsets[list + 1] as usize,
        }
    }
}

impl<T: Copy + PartialOrd + Into<f64>> RankedBatch<'_, T> {
    /// Lengths that fit, and rewards that are finite and in rank order.
    fn check(&self, objective: &Objective, loss: usize, d_gamma: usize) -> Result<(), ObjectiveError> {
        let items = self.gamma.len();
        match self.lengths {
            Lengths::Uniform(length) if length == 0 || !items.is_multiple_of(length) => {
                let expected = "a divisor of the number of items";
                return Err(ObjectiveError::Setting { what: "length of the lists", value: length as f64, expected });
            }
            Lengths::Uniform(_) => {}
            Lengths::Offsets(offsets) => {
                let ends = offsets.first().zip(offsets.last());
                let fit = ends.is_some_and(|(&first, &last)| first == 0 && last as usize == items);
                if let Some(list) = offsets.windows(2).position(|w| w[0] > w[1]) {
                    return Err(ObjectiveError::Offsets { list, items });
                } else if !fit {
                    return Err(ObjectiveError::Offsets { list: self.lists().saturating_sub(1), items });
                }
            }
        }
        check_len("loss", loss, self.lists())?;
        check_len("d_gamma", d_gamma, items)?;
        let Some(rewards) = self.rewards else {
            if objective.loss == LossType::LipoLambda && objective.labels == LipoLabels::Reward {
                return Err(ObjectiveError::Length { what: "rewards", expected: items, found: 0 });
            }
            return Ok(());
        };
        check_len("rewards", rewards.len(), items)?;
        if let Some(index) = rewards.iter().position(|&r| !r.into().is_finite()) {
            return Err(ObjectiveError::Reward { index, value: rewards[index].into() });
        }
        let rising = |list: usize| {
            let items = self.items(list);
            rewards[items.clone()].windows(2).position(|w| w[0] < w[1]).map(|at| items.start + at + 1)
        };
        match (0..self.lists()).find_map(rising) {
            Some(index) => Err(ObjectiveError::RankOrder { index }),
            None => Ok(()),
        }
    }

    /// One list in `f64`: its loss, 0 if it does not count and NaN if γ is not usable, and its gradient.
    fn evaluate_list(&self, objective: &Objective, list: usize, d_gamma: &mut [f64]) -> f64 {
        let items = self.items(list);
        let gamma: Vec<f64> = self.gamma[items.clone()].iter().map(|&g| g.into()).collect();
        let rewards: Vec<f64> = match self.rewards {
            Some(rewards) => rewards[items].iter().map(|&r| r.into()).collect(),
            None => (0..items.len()).rev().map(|rank| rank as f64).collect(),
        };
        let seeded = Objective { seed: mix(objective.seed ^ mix(list as u64)), ..*objective };
        let loss = seeded.evaluate(&gamma, &rewards, None, d_gamma);
        loss.map_or(f64::NAN, |loss| loss.unwrap_or(0.0))
    }
}

impl Objective {
    /// The loss of every list of a batch and its gradient, in `f32`, on all threads of rayon's pool where the feature
    /// `rayon` is on.
    ///
    /// Shapes: `loss (lists)`, `d_gamma (items)` with the gradient of each list's own loss.
    ///
    /// A list that does not count has loss 0 and gradient 0. So does not a list that [`Objective::evaluate`] refuses (a γ
    /// that is NaN or +inf, two -inf in one comparison, a weight that overflows): its loss is NaN, its gradient 0, and
    /// the others are not touched by it. [`Ties::Random`] shuffles list `i` by a seed made of `self.seed` and `i`, as
    /// [`super::list_batch`] does.
    ///
    /// Where the γ of a list span more than 40, the losses by pairs and ListMLE evaluate that list in `f64`, which takes many
    /// times longer.
    ///
    /// Losses are within 1e-5 of [`Objective::evaluate`] relative, derivatives within 1e-5 of the largest of their list.
    /// The result of a list does not depend on the lists around it or on the number of threads.
    ///
    /// # Errors
    /// Lengths or offsets that do not fit; a reward that is not finite or above the one before it; rewards missing where
    /// they are the labels. Nothing has been written then.
    pub fn evaluate_batch(
        &self,
        batch: &RankedBatch<'_, f32>,
        loss: &mut [f32],
        d_gamma: &mut [f32],
    ) -> Result<(), ObjectiveError> {
        batch.check(self, loss.len(), d_gamma.len())?;
        par::each(tasks(self, batch, loss, d_gamma), |task| Arch::new().dispatch(task));
        Ok(())
    }

    /// [`Objective::evaluate_batch`] in `f64`, list after list by [`Objective::evaluate`]: what the fast one is compared
    /// with.
    ///
    /// # Errors
    /// As [`Objective::evaluate_batch`].
    pub fn evaluate_batch_f64(
        &self,
        batch: &RankedBatch<'_, f64>,
        loss: &mut [f64],
        d_gamma: &mut [f64],
    ) -> Result<(), ObjectiveError> {
        batch.check(self, loss.len(), d_gamma.len())?;
        for (list, loss) in loss.iter_mut().enumerate() {
            *loss = batch.evaluate_list(self, list, &mut d_gamma[batch.items(list)]);
        }
        Ok(())
    }
}

/// Consecutive lists of a batch and where their results go.
struct Task<'a> {
    objective: &'a Objective,
    batch: &'a RankedBatch<'a, f32>,
    /// Number of the first list.
    first: usize,
    /// Its first item.
    start: usize,
    loss: &'a mut [f32],
    d_gamma: &'a mut [f32],
}

/// The batch cut into tasks of about [`TASK`] items.
fn tasks<'a>(
    objective: &'a Objective,
    batch: &'a RankedBatch<'a, f32>,
    mut loss: &'a mut [f32],
    mut d_gamma: &'a mut [f32],
) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    let mut first = 0;
    while !loss.is_empty() {
        let start = batch.items(first).start;
        let fit = match batch.lengths {
            Lengths::Uniform(length) => TASK / length,
            Lengths::Offsets(offsets) => offsets[first + 1..].partition_point(|&end| end as usize - start <= TASK),
        };
        let lists = fit.clamp(1, loss.len());
        let items = batch.items(first + lists - 1).end - start;
        let (task_loss, task_d);
        (task_loss, loss) = loss.split_at_mut(lists);
        (task_d, d_gamma) = d_gamma.split_at_mut(items);
        tasks.push(Task { objective, batch, first, start, loss: task_loss, d_gamma: task_d });
        first += lists;
    }
    tasks
}

/// How a list is evaluated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Lanes(Tied),
    F64,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (first, count) = (self.first, self.loss.len());
        if let (Lengths::Uniform(length), None) = (self.batch.lengths, self.batch.rewards) {
            return self.evaluate_all(simd, length, Way::Lanes(Tied::Ordered), Lists::Run { first, count });
        }
        // Lists of one length and kind together.
        let mut order: Vec<(usize, Way, usize)> =
            (first..first + count).map(|list| (self.batch.items(list).len(), self.way(list), list)).collect();
        order.sort_unstable();
        for same in order.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (length, way, _) = same[0];
            self.evaluate_all(simd, length, way, Lists::Picked(same));
        }
    }
}

impl Task<'_> {
    /// Lists are put together by their length and this.
    fn way(&self, list: usize) -> Way {
        let Some(rewards) = self.batch.rewards else {
            return Way::Lanes(Tied::Ordered);
        };
        // LiPO finds ties in its labels.
        if self.objective.loss == LossType::LipoLambda
            || self.objective.ties == Ties::Stable
            || rewards[self.batch.items(list)].windows(2).all(|w| w[0] != w[1])
        {
            return Way::Lanes(Tied::Ordered);
        }
        match self.objective.ties {
            Ties::Stable => Way::Lanes(Tied::Ordered),
            Ties::Skip => Way::Lanes(Tied::Skip),
            Ties::Share => Way::Lanes(Tied::Share),
            Ties::Random => Way::F64,
        }
    }

    fn d_gamma_of(&mut self, list: usize) -> &mut [f32] {
        let items = self.batch.items(list);
        &mut self.d_gamma[items.start - self.start..items.end - self.start]
    }

    /// One list by way of [`Objective::evaluate`].
    #[inline(never)]
    fn evaluate_f64(&mut self, list: usize) {
        let mut d = vec![0.0; self.batch.items(list).len()];
        self.loss[list - self.first] = self.batch.evaluate_list(self.objective, list, &mut d) as f32;
        self.d_gamma_of(list).iter_mut().zip(d).for_each(|(narrow, d)| *narrow = d as f32);
    }

    /// Evaluates lists of `m` items and of one kind.
    #[inline(always)]
    fn evaluate_all<S: Simd>(&mut self, simd: S, m: usize, way: Way, lists: Lists<'_>) {
        let count = lists.len();
        let Way::Lanes(tied) = way else {
            return (0..count).for_each(|at| self.evaluate_f64(lists.get(at)));
        };
        if m < 2 {
            for at in 0..count {
                self.loss[lists.get(at) - self.first] = 0.0;
                self.d_gamma_of(lists.get(at)).fill(0.0);
            }
            return;
        }
        let left;
        let lists = if tied == Tied::Ordered && sixteen::has::<S>(self.objective.loss, m) {
            left = self.evaluate_sixteen(lists);
            Lists::Picked(&left)
        } else {
            lists
        };
        let count = lists.len();
        if count == 0 {
            return;
        }
        let mut tile = Tile::new(simd, m);
        let lipo = LipoTables::new(self.objective, m);
        if self.objective.loss == LossType::LipoLambda && self.batch.rewards.is_none() {
            for (rank, gain) in tile.gains.iter_mut().enumerate() {
                *gain = Lanes::splat(simd, lipo.gain_of_rank[2 * rank]);
            }
        }
        let mut at = 0;
        while at < count {
            let end = count.min(at + Lanes::<S>::COUNT);
            self.evaluate(simd, lists.part(at, end), tied, &mut tile, &lipo);
            at = end;
        }
    }

    /// Evaluates lists of sixteen items without ties by the kernels for them, and returns those that are not for these.
    #[inline(never)]
    fn evaluate_sixteen(&mut self, lists: Lists<'_>) -> Vec<(usize, Way, usize)> {
        let mut left = Vec::new();
        // Room for lists that lie apart or do not fill a block.
        let (mut apart, mut d_apart) = ([[0.0; SIDE_BY_SIDE]; BLOCK], [[0.0; SIDE_BY_SIDE]; BLOCK]);
        let mut loss_apart = [0.0; BLOCK];
        for at in (0..lists.len()).step_by(BLOCK) {
            let part = lists.part(at, lists.len().min(at + BLOCK));
            let loss: &[f32] = if let Lists::Run { first, count: BLOCK } = part {
                let items = first * SIDE_BY_SIDE..(first + BLOCK) * SIDE_BY_SIDE;
                let d_items = items.start - self.start..items.end - self.start;
                let gamma: &[List] = bytemuck::cast_slice(&self.batch.gamma[items]);
                let d_gamma: &mut [List] = bytemuck::cast_slice_mut(&mut self.d_gamma[d_items]);
                let loss = &mut self.loss[first - self.first..][..BLOCK];
                // One block each.
                let blocks = gamma.as_chunks().0.iter().zip(d_gamma.as_chunks_mut().0).zip(loss.as_chunks_mut().0);
                for ((gamma, d_gamma), loss) in blocks {
                    sixteen::evaluate(self.objective.loss, gamma, d_gamma, loss);
                }
                loss
            } else {
                for (lane, apart) in apart.iter_mut().take(part.len()).enumerate() {
                    apart.copy_from_slice(&self.batch.gamma[self.batch.items(part.get(lane))]);
                }
                sixteen::evaluate(self.objective.loss, &apart, &mut d_apart, &mut loss_apart);
                for (lane, (d_apart, &loss)) in d_apart.iter().zip(&loss_apart).take(part.len()).enumerate() {
                    self.d_gamma_of(part.get(lane)).copy_from_slice(d_apart);
                    self.loss[part.get(lane) - self.first] = loss;
                }
                &loss_apart[..part.len()]
            };
            // Asked of all together: one at a time would take as long as a quarter of a kernel.
            if !all_finite(loss) {
                let unusable = (0..loss.len()).filter(|&lane| !loss[lane].is_finite());
                left.extend(unusable.map(|lane| (SIDE_BY_SIDE, Way::Lanes(Tied::Ordered), part.get(lane))));
            }
        }
        left
    }

    /// Evaluates at most as many lists as there are lanes; lanes without a list repeat the last one.
    #[inline(always)]
    fn evaluate<S: Simd>(&mut self, simd: S, lists: Lists<'_>, tied: Tied, tile: &mut Tile<S>, lipo: &LipoTables) {
        let (m, count) = (tile.len(), lists.len());
        let side_by_side = match lists {
            Lists::Run { first, .. } if m == SIDE_BY_SIDE && count == Lanes::<S>::COUNT && tile::has_quads::<S>() => {
                Some(first * m..(first + count) * m)
            }
            _ => None,
        };
        let mut starts = [0; MAX_LANES];
        let starts = &mut starts[..Lanes::<S>::COUNT];
        let zero_or_nan = if let Some(items) = side_by_side.clone() {
            for ahead in (items.start + AHEAD..items.end + AHEAD).step_by(LINE) {
                prefetch(self.batch.gamma, ahead);
                prefetch(self.d_gamma, ahead - self.start);
            }
            tile::load_side_by_side(simd, &self.batch.gamma[items], &mut tile.gamma)
        } else {
            for (lane, start) in starts.iter_mut().enumerate() {
                *start = self.batch.items(lists.get(lane.min(count - 1))).start;
            }
            tile::load(simd, self.batch.gamma, starts, &mut tile.gamma)
        };
        if let Some(rewards) = self.batch.rewards {
            tile::load(simd, rewards, starts, &mut tile.rewards);
            if self.objective.loss == LossType::LipoLambda {
                lipo.gains(self.objective.labels, tile);
            }
        }
        let mut loss = match self.objective.loss {
            LossType::Pairwise => kernels::pairs(simd, tile, tied, true),
            LossType::Contrastive => kernels::contrastive(simd, tile, tied),
            LossType::Lambdarank => kernels::pairs(simd, tile, tied, false),
            LossType::Listmle => kernels::listmle(simd, tile, tied),
            LossType::LipoLambda => kernels::lipo_lambda(simd, tile, &lipo.discount),
        };
        if tied != Tied::Ordered {
            // A list whose rewards are all equal does not count.
            let zero = Lanes::splat(simd, 0.0);
            let equal = tile.rewards[0].equal(tile.rewards[m - 1]);
            loss = equal.select(zero, loss);
            for d in &mut tile.d {
                *d = equal.select(zero, *d);
            }
        }
        loss += zero_or_nan;
        if let Some(items) = side_by_side {
            let items = items.start - self.start..items.end - self.start;
            tile::store_side_by_side(simd, &tile.d, &mut self.d_gamma[items]);
        } else {
            starts.iter_mut().for_each(|start| *start -= self.start);
            tile::store(simd, &tile.d, starts, self.d_gamma);
        }
        let loss = &loss.as_slice()[..count];
        match lists {
            Lists::Run { first, .. } => self.loss[first - self.first..][..count].copy_from_slice(loss),
            Lists::Picked(lists) => {
                for (&(_, _, list), &loss) in lists.iter().zip(loss) {
                    self.loss[list - self.first] = loss;
                }
            }
        }
        if !all_finite(loss) {
            self.repair(loss, lists);
        }
    }

    /// Evaluates in `f64` those of the lists whose loss is not finite.
    #[cold]
    #[inline(never)]
    fn repair(&mut self, loss: &[f32], lists: Lists<'_>) {
        for at in (0..loss.len()).filter(|&at| !loss[at].is_finite()) {
            self.evaluate_f64(lists.get(at));
        }
    }
}

/// Whether there is neither NaN nor infinity among `losses`, without a branch for each.
#[inline(always)]
fn all_finite(losses: &[f32]) -> bool {
    losses.iter().fold(0, |largest: u32, x| largest.max(x.abs().to_bits())) < f32::INFINITY.to_bits()
}

/// Some lists of a batch.
#[derive(Clone, Copy)]
enum Lists<'a> {
    /// Consecutive ones.
    Run { first: usize, count: usize },
    /// By length, kind and number.
    Picked(&'a [(usize, Way, usize)]),
}

impl Lists<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        match self {
            Self::Run { count, .. } => *count,
            Self::Picked(lists) => lists.len(),
        }
    }

    /// The number of a list in its batch.
    #[inline(always)]
    fn get(&self, at: usize) -> usize {
        match self {
            Self::Run { first, .. } => first + at,
            Self::Picked(lists) => lists[at].2,
        }
    }

    /// Those from `start` to before `end`.
    #[inline(always)]
    fn part(self, start: usize, end: usize) -> Self {
        match self {
            Self::Run { first, .. } => Self::Run { first: first + start, count: end - start },
            Self::Picked(lists) => Self::Picked(&lists[start..end]),
        }
    }
}

/// What LiPO looks up for lists of one length m; empty for the other losses.
struct LipoTables {
    /// `1/D(τ)` by the rank τ from 0.
    discount: Vec<f32>,
    /// `2^label` by twice the rank from 0: the mean rank of a tie can be a half.
    gain_of_rank: Vec<f32>,
}

impl LipoTables {
    fn new(objective: &Objective, m: usize) -> Self {
        if objective.loss != LossType::LipoLambda {
            return Self { discount: Vec::new(), gain_of_rank: Vec::new() };
        }
        let base = match objective.log_base {
            LogBase::E => 1.0,
            LogBase::Two => std::f64::consts::LN_2,
        };
        let last = (m - 1) as f64;
        Self {
            discount: (0..m).map(|rank| (base / (rank as f64 + 2.0).ln()) as f32).collect(),
            gain_of_rank: (0..2 * m).map(|twice| ((last - twice as f64 / 2.0) / last).exp2() as f32).collect(),
        }
    }

    /// Gains of lists with rewards, lane by lane.
    fn gains<S: Simd>(&self, labels: LipoLabels, tile: &mut Tile<S>) {
        let m = tile.len();
        for lane in 0..Lanes::<S>::COUNT {
            let reward = |k: usize| tile.rewards[k].as_slice()[lane];
            let mut first = 0;
            while first < m {
                let end = (first + 1..m).find(|&k| reward(k) != reward(first)).unwrap_or(m);
                let gain = match labels {
                    LipoLabels::Reward => f64::from(reward(first)).exp2() as f32,
                    LipoLabels::Rank => self.gain_of_rank[first + end - 1],
                };
                for k in first..end {
                    tile.gains[k].as_mut_slice()[lane] = gain;
                }
                first = end;
            }
        }
    }
}
