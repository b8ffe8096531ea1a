//! What the benchmarks share: settings, inputs, and the comparison that must hold before anything is timed.

#![deny(missing_docs)]

use criterion::Criterion;
use criterion::measurement::WallTime;
use larpo_cli::gpu::GpuBackend;
use larpo_core::backend::Backend;
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::train::{TrainingList, TrainingResponse};
use larpo_gpu::{Choice, Gpu};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ten samples within about two seconds for each benchmark; criterion's flags override them. The calling thread becomes one
/// of the pool, as in the `larpo` command: handing small operations to other threads would be most of what is timed.
///
/// # Panics
/// A pool that exists already.
pub fn settings() -> Criterion {
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().expect("the first to use the pool");
    Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2))
}

/// The adapter that LARPO_ADAPTER names, else a GPU; none, after a note, where there is none.
///
/// # Panics
/// A device without memory.
pub fn gpu() -> Option<GpuBackend> {
    static BACKEND: OnceLock<Option<GpuBackend>> = OnceLock::new();
    let open = || match Gpu::open(&Choice::from_env()) {
        Ok(gpu) => {
            eprintln!("GPU: {gpu}");
            Some(GpuBackend::new(&gpu).expect("the device has memory"))
        }
        Err(error) => {
            eprintln!("no benchmarks on a GPU: {error}");
            None
        }
    };
    BACKEND.get_or_init(open).clone()
}

/// Times `run` on `backend`, to the end of what it has the device do: the device is waited for once a sample, not once a run.
pub fn time<B: Backend>(bench: &mut criterion::Bencher<'_, WallTime>, backend: &B, mut run: impl FnMut()) {
    let probe = backend.upload(&[0.0]);
    bench.iter_custom(|runs| {
        let start = Instant::now();
        (0..runs).for_each(|_| run());
        // Commands run in their order.
        backend.read(&probe);
        start.elapsed()
    });
}

/// Numbers in [-1, 1), another sequence for every `stream`.
pub fn numbers(stream: u32, len: usize) -> Vec<f32> {
    let random = CounterRng::new(0, Purpose::Bench);
    (0..len as u32).map(|at| (2.0 * random.uniform([stream, at, 0, 0]) - 1.0) as f32).collect()
}

/// Token ids below `vocab`, another sequence for every `stream`.
pub fn tokens(stream: u32, len: usize, vocab: usize) -> Vec<u32> {
    numbers(stream, len).iter().map(|x| ((f64::from(*x) + 1.0) / 2.0 * vocab as f64) as u32).collect()
}

/// A list of `k` random responses with rewards that all differ; the prompt has at least one token.
pub fn list(k: usize, prompt: usize, response: usize, vocab: usize) -> TrainingList {
    let response = |item: u32| TrainingResponse {
        ids: tokens(item, response, vocab),
        reward: f64::from(item),
        reference: numbers(1000 + item, response).iter().map(|x| x / 2.0 - (vocab as f32).ln()).collect(),
        sampled: None,
    };
    TrainingList { prompt: tokens(0, prompt, vocab), responses: (1..=k as u32).map(response).collect() }
}

/// Stops the benchmark unless `got` is `want` within `tolerance` of the largest number of `want`.
///
/// # Panics
/// Lengths that differ, or a number outside the tolerance, NaN included.
pub fn validate(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: another length than the reference");
    let scale = want.iter().fold(0.0, |scale: f64, x| scale.max(x.abs()));
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= tolerance * scale;
        assert!(close, "{what}: element {at} is {got}, the reference has {want}; not timed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_within_the_tolerance_passes() {
        validate("x", &[100.0, 1e-5], &[100.001, 0.0], 1e-4);
    }

    #[test]
    #[should_panic(expected = "element 1 is 0.2")]
    fn a_wrong_number_stops_the_benchmark() {
        validate("x", &[100.0, 0.2], &[100.0, 0.0], 1e-4);
    }

    #[test]
    #[should_panic(expected = "element 0 is NaN")]
    fn not_a_number_stops_the_benchmark() {
        validate("x", &[f64::NAN], &[1.0], 1e-4);
    }

    #[test]
    #[should_panic(expected = "another length")]
    fn a_missing_number_stops_the_benchmark() {
        validate("x", &[1.0], &[1.0, 1.0], 1e-4);
    }

    #[test]
    fn inputs_cover_their_range() {
        let ids = tokens(3, 4000, 7);
        assert!((0..7).all(|id| ids.contains(&id)) && ids.iter().all(|&id| id < 7));
        let x = numbers(4, 4000);
        assert!(x.iter().all(|x| (-1.0..1.0).contains(x)) && x.iter().any(|&x| x < -0.9) && x.iter().any(|&x| x > 0.9));
        assert_ne!(numbers(5, 10), numbers(6, 10));
    }

    #[test]
    fn rewards_of_a_list_differ_and_every_token_has_a_reference() {
        let list = list(3, 5, 4, 11);
        assert_eq!((list.rewards(), list.rows()), (vec![1.0, 2.0, 3.0], 17));
        assert!(list.responses.iter().all(|r| r.reference.len() == 4));
    }
}
