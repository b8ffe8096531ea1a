//! A batch of lists: the mean over the lists that count.

use super::ranking::mix;
use super::{Objective, ObjectiveError};

/// One list of a batch; all arrays have one entry per slot.
#[derive(Debug, Clone, Copy)]
pub struct List<'a> {
    /// γ of each item.
    pub gamma: &'a [f64],
    /// Reward of each item.
    pub rewards: &'a [f64],
    /// `true` for a valid item; `None` when all are.
    pub mask: Option<&'a [bool]>,
}

/// Loss and gradient of a batch of lists.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchLoss {
    /// Sum of the list losses over the number of contributing lists; 0 if there is none.
    pub value: f64,
    /// Number of lists that count.
    pub contributing: usize,
    /// d(value)/dγ, one array per list.
    pub d_gamma: Vec<Vec<f64>>,
}

/// The mean of `objective` over the contributing lists. List `i` breaks random ties by a seed made of
/// `objective.seed` and `i`.
///
/// # Errors
/// The index of the offending list with its error.
pub fn list_batch(objective: &Objective, lists: &[List<'_>]) -> Result<BatchLoss, (usize, ObjectiveError)> {
    let mut batch = BatchLoss { value: 0.0, contributing: 0, d_gamma: Vec::with_capacity(lists.len()) };
    for (index, list) in lists.iter().enumerate() {
        let seeded = Objective { seed: mix(objective.seed ^ mix(index as u64)), ..*objective };
        let mut d_gamma = vec![0.0; list.gamma.len()];
        let loss =
            seeded.evaluate(list.gamma, list.rewards, list.mask, &mut d_gamma).map_err(|error| (index, error))?;
        if let Some(loss) = loss {
            batch.value += loss;
            batch.contributing += 1;
        }
        batch.d_gamma.push(d_gamma);
    }
    if batch.contributing > 0 {
        let count = batch.contributing as f64;
        batch.value /= count;
        batch.d_gamma.iter_mut().flatten().for_each(|d| *d /= count);
    }
    Ok(batch)
}
