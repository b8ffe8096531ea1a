//! The order of training: seeded permutations of the items, cut into batches.

use crate::rng::{CounterRng, Purpose};
use serde::{Deserialize, Serialize};

/// The order in which training walks over its items: a new seeded permutation every epoch, cut into batches.
///
/// Stateless: the batch of a step depends on nothing but the plan, so a run can be taken up at any step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// Items.
    pub items: usize,
    /// Items of a step.
    pub batch: usize,
    /// Steps in all.
    pub steps: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Sets plans under the same seed apart, e.g. the iteration.
    pub stream: u64,
}

impl BatchPlan {
    /// `epochs` passes over `items`; with `max_steps` exactly that many steps instead, however many passes that takes.
    /// The last batch of an epoch may be smaller.
    pub fn new(items: usize, batch: usize, epochs: f64, max_steps: Option<u64>, seed: u64, stream: u64) -> Self {
        let batch = batch.max(1);
        let steps = max_steps.unwrap_or_else(|| (epochs * items.div_ceil(batch) as f64).ceil() as u64);
        Self { items, batch, steps, seed, stream }
    }

    /// Batches of item numbers, in order of the steps.
    pub fn batches(self) -> impl Iterator<Item = Vec<usize>> {
        let random = CounterRng::new(self.seed, Purpose::Shuffle);
        let epochs = if self.items == 0 { 0..0 } else { 0..u64::from(u32::MAX) };
        epochs
            .flat_map(move |epoch| {
                let order = random.permutation(self.stream << 32 | epoch, self.items);
                order.chunks(self.batch).map(<[usize]>::to_vec).collect::<Vec<_>>()
            })
            .take(self.steps as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_item_once() {
        let plan = BatchPlan::new(10, 4, 2.0, None, 1, 0);
        let batches: Vec<_> = plan.batches().collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
        for epoch in batches.chunks(3) {
            let mut seen = epoch.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(batches[0], batches[3], "epochs are shuffled differently");
        assert_eq!(BatchPlan::new(10, 4, 2.0, Some(5), 1, 0).batches().count(), 5);
        assert_eq!(BatchPlan::new(10, 4, 2.0, Some(9), 1, 0).batches().count(), 9);
        assert_eq!(BatchPlan::new(0, 4, 2.0, None, 1, 0).batches().count(), 0);
    }
}
