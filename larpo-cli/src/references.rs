//! Log-probabilities under the reference, of the lists that the updates of a training use.

use crate::error::{Error, Result};
use crate::messages::count;
use crate::progress::Progress;
use crate::stop::Stop;
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::model::Transformer;
use larpo_core::train::{SCORING_ROWS, TrainingList, fill_references};

/// The updates that are to be made: an order, of which so many are made already.
pub type Updates = (BatchPlan, u64);

/// Numbers of the lists that are to be scored, in batches that are scored together: what the updates that are left use, and
/// the first update, by which a checkpoint knows what it was trained on. With `recorded`, lists whose log-probabilities were
/// all recorded while they were drawn get those; all others lose the references that they have.
///
/// The batches are cut from all that the order uses, in the order of their first use, whatever is made of it already: what is
/// scored beside a list could change its last bits, and a run that goes on must find the same.
pub fn batches(lists: &mut [TrainingList], (order, done): Updates, recorded: bool) -> Vec<Vec<usize>> {
    for list in lists.iter_mut() {
        let recorded = recorded && is_recorded(list);
        for response in &mut list.responses {
            response.reference = response.sampled.clone().filter(|_| recorded).unwrap_or_default();
        }
    }
    let used = |from: u64| {
        let (mut seen, mut used) = (vec![false; lists.len()], Vec::new());
        let mut batches = order.batches().skip(from as usize);
        while let Some(batch) = batches.next().filter(|_| used.len() < lists.len()) {
            used.extend(batch.into_iter().filter(|&i| !std::mem::replace(&mut seen[i], true)));
        }
        (seen, used)
    };
    let ((mut needed, _), (_, all)) = (used(done), used(0));
    order.batches().next().unwrap_or_default().into_iter().for_each(|i| needed[i] = true);
    let (mut batches, mut rows): (Vec<Vec<usize>>, usize) = (Vec::new(), 0);
    for i in all.into_iter().filter(|&i| !(recorded && is_recorded(&lists[i]))) {
        rows += lists[i].rows();
        match batches.last_mut() {
            Some(batch) if rows <= SCORING_ROWS => batch.push(i),
            _ => {
                rows = lists[i].rows();
                batches.push(vec![i]);
            }
        }
    }
    batches.retain(|batch| batch.iter().any(|&i| needed[i]));
    batches
}

fn is_recorded(list: &TrainingList) -> bool {
    list.responses.iter().all(|response| response.sampled.is_some())
}

/// Scores the lists of [`batches`] under `reference`; the others have no references afterwards.
///
/// # Errors
/// Lists that the model cannot take, a log-probability that is not finite; [`Error::Interrupted`] between two batches where
/// `stop` is raised.
pub fn fill<B: Backend>(
    reference: &Transformer<B>,
    lists: &mut [TrainingList],
    updates: Updates,
    recorded: bool,
    (label, stop): (&str, &Stop),
) -> Result<()> {
    let batches = batches(lists, updates, recorded);
    let all = batches.iter().map(Vec::len).sum::<usize>();
    if all == 0 {
        return Ok(());
    }
    let label = format!("{label}: references");
    let progress = Progress::new(&label, all as u64, "lists");
    let mut done = 0;
    for batch in batches {
        if stop.requested() {
            return Err(Error::stopped(format!("{label}, after {done} of {}", count(all, "lists"))));
        }
        score(reference, lists, &batch, recorded)?;
        done += batch.len();
        progress.advance(batch.len() as u64);
    }
    progress.finish();
    Ok(())
}

/// Scores the lists of one batch together.
///
/// # Errors
/// Lists that the model cannot take, a log-probability that is not finite.
pub fn score<B: Backend>(
    reference: &Transformer<B>,
    lists: &mut [TrainingList],
    batch: &[usize],
    recorded: bool,
) -> Result<()> {
    let mut taken: Vec<TrainingList> = batch.iter().map(|&i| std::mem::take(&mut lists[i])).collect();
    let scored = fill_references(reference, &mut taken, recorded);
    batch.iter().zip(taken).for_each(|(&i, list)| lists[i] = list);
    Ok(scored?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larpo_core::cpu::Cpu;
    use larpo_core::model::ModelConfig;
    use larpo_core::train::TrainingResponse;

    /// Lists of 500 rows, so that eight are scored together.
    fn lists(n: usize, sampled: impl Fn(usize) -> bool) -> Vec<TrainingList> {
        let ids = |i: usize, n: usize| (0..n).map(|t| ((t * t + i) % 8) as u32).collect::<Vec<_>>();
        let response = |i: usize, r: usize| TrainingResponse {
            ids: ids(i + r, 200),
            reward: r as f64,
            reference: vec![7.0],
            sampled: sampled(i).then(|| vec![-1.0; 200]),
        };
        (0..n).map(|i| TrainingList { prompt: ids(i, 100), responses: vec![response(i, 0), response(i, 1)] }).collect()
    }

    #[test]
    fn only_what_the_updates_use_is_scored() {
        let lists = lists(40, |i| i % 2 == 1);
        let order = |steps| BatchPlan::new(40, 4, 1.0, Some(steps), 3, 0);
        let sorted = |mut all: Vec<usize>| {
            all.sort_unstable();
            all
        };
        let scored = |updates| sorted(batches(&mut lists.clone(), updates, false).concat());
        assert_eq!(scored((order(10), 0)), (0..40).collect::<Vec<_>>());
        assert_eq!(scored((order(25), 0)), (0..40).collect::<Vec<_>>(), "each once");
        assert_eq!(scored((order(3), 0)), sorted(order(3).batches().flatten().collect()));
        // Two updates are scored together. Of those that are made, the first pair is what the checkpoint is known by.
        let left = order(10).batches().enumerate().filter(|(step, _)| !(2..6).contains(step));
        assert_eq!(scored((order(10), 6)), sorted(left.flat_map(|(_, batch)| batch).collect()));
        let cut = |done| batches(&mut lists.clone(), (order(10), done), false);
        assert_eq!(cut(0)[3..], cut(6)[1..], "as before");
        // What was recorded needs no model.
        let unknown = batches(&mut lists.clone(), (order(10), 0), true);
        assert_eq!(sorted(unknown.concat()), (0..40).step_by(2).collect::<Vec<_>>());
    }

    #[test]
    fn a_run_that_goes_on_finds_the_same_references_and_no_stale_ones() {
        let model = Transformer::random(&Cpu::new(), ModelConfig::new(8, 8, 1, 2, 2, 400), 1).expect("a model");
        let order = BatchPlan::new(24, 4, 1.0, None, 1, 0);
        let filled = |done, recorded| {
            let mut lists = lists(24, |i| i < 12);
            fill(&model, &mut lists, (order, done), recorded, ("t", &Stop::default())).expect("references");
            lists
        };
        let (whole, rest) = (filled(0, false), filled(4, false));
        let used: Vec<usize> = order.batches().skip(4).chain(order.batches().take(1)).flatten().collect();
        for (i, (a, b)) in whole.iter().zip(&rest).enumerate() {
            assert!(a.responses.iter().all(|r| r.reference.len() == r.ids.len()), "{i}");
            let left_out = b.responses.iter().all(|r| r.reference.is_empty());
            assert!(a == b || left_out && !used.contains(&i), "{i}");
        }
        assert_ne!(whole, rest, "a third is not needed any more");
        let recorded = filled(0, true);
        assert!(recorded[..12].iter().flat_map(|l| &l.responses).all(|r| Some(&r.reference) == r.sampled.as_ref()));
        assert!(recorded[12..].iter().zip(&whole[12..]).all(|(a, b)| a.responses.len() == b.responses.len()));
        let stop = Stop::default();
        stop.request();
        let stopped =
            fill(&model, &mut lists(2, |_| false), (BatchPlan::new(2, 1, 1.0, None, 1, 0), 0), false, ("t", &stop));
        assert!(matches!(stopped, Err(Error::Interrupted(_))), "{stopped:?}");
    }
}
