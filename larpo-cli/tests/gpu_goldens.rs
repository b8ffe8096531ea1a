//! The checkpoints of all families on a GPU, against the same numbers and at the same tolerances as on the CPU, and the list
//! losses against the same numbers as in double precision.
//!
//! The adapter is the one that LARPO_ADAPTER names, else a GPU, else any. Where there is none the tests are skipped with a
//! note, unless LARPO_DEVICE=gpu or LARPO_REQUIRE_GPU=1 makes that a failure; with LARPO_DEVICE=cpu they are not run.

#[path = "../../larpo-core/tests/checkpoint/mod.rs"]
mod checkpoint;
#[path = "../../larpo-core/tests/common/mod.rs"]
mod common;
mod device;
#[path = "../../larpo-core/tests/golden/mod.rs"]
mod golden;
#[path = "../../larpo-core/tests/goldens/mod.rs"]
mod goldens;

use golden::{Case, each_case, flags, number, numbers};
use goldens::SINGLE;
use larpo_cli::gpu::GpuBackend;
use larpo_gpu::Recorder;
use larpo_gpu::kernels::list_loss::list_loss;
use larpo_gpu::kernels::lists::{LipoLabels, ListSpec, LossType, RankedLists, Ties};

/// Runs a check on every language model, or every reward model.
macro_rules! on_every_model {
    ($check:ident) => {
        on_every_model!($check, language_models)
    };
    ($check:ident, $models:ident) => {
        let Some(backend) = device::backend() else { return };
        for checkpoint in checkpoint::$models() {
            goldens::$check(&checkpoint.model(&backend), &checkpoint, SINGLE);
        }
        assert_eq!(backend.fault(), None);
    };
}

#[test]
fn gpu_golden_models_sequences() {
    on_every_model!(sequences);
}

#[test]
fn gpu_golden_models_responses() {
    on_every_model!(responses);
}

#[test]
fn gpu_golden_models_greedy() {
    on_every_model!(greedy);
}

#[test]
fn gpu_golden_models_lists() {
    on_every_model!(lists);
}

#[test]
fn gpu_golden_models_padded_batches() {
    on_every_model!(padded);
}

#[test]
fn gpu_golden_models_rewards() {
    on_every_model!(scores, reward_models);
}

#[test]
fn gpu_golden_models_reward_pairs() {
    on_every_model!(pairs, reward_models);
}

/// Loss and gradient of a case with one list, γ rounded to single precision; the rewards are the input called `key`.
fn check_list(backend: &GpuBackend, case: &Case, loss: LossType, key: &str) {
    let text = |name: &str| case.param(name).as_str().unwrap_or_default();
    let ties = if case.param("skip_ties").as_bool() == Some(true) { Ties::Skip } else { Ties::Stable };
    let (logp, reference, rewards) = (case.inputs("logp"), case.inputs("ref"), case.inputs(key));
    let mask = case.json["inputs"].get("mask").filter(|mask| !mask.is_null()).map(flags);
    let valid: Vec<usize> = (0..logp.len()).filter(|&i| mask.as_ref().is_none_or(|mask| mask[i])).collect();
    let gamma: Vec<f32> = valid.iter().map(|&i| (case.beta() * (logp[i] - reference[i])) as f32).collect();
    let spec = ListSpec {
        item_offsets: &[0, valid.len() as u32],
        rewards: &valid.iter().map(|&i| rewards[i]).collect::<Vec<_>>(),
        order: None,
        target_offsets: &[],
        loss,
        ties,
        labels: LipoLabels::Reward,
        log2: text("log_base") == "2",
    };
    let mut recorder = Recorder::new(backend.gpu()).expect("memory");
    let mut run = || {
        let lists = RankedLists::new(&recorder, &spec)?;
        let (gamma, loss, d_gamma) = (recorder.upload(&gamma)?, recorder.alloc(1)?, recorder.alloc(valid.len())?);
        list_loss(&mut recorder, &lists, &gamma, &loss, &d_gamma)?;
        Ok::<_, larpo_gpu::Error>((recorder.read(&loss)?[0], recorder.read(&d_gamma)?))
    };
    let (value, d_gamma) = run().expect("the device runs the test");
    let close = |what: &str, got: f64, want: f64| {
        let near = (got - want).abs() <= 1e-5 + 1e-5 * want.abs();
        assert!(near || got == want || got.is_nan() && want.is_nan(), "{} {what}: {got} against {want}", case.at);
    };
    close("loss", f64::from(value), number(&case.json["value"]));
    let mut d_logp = vec![0.0; logp.len()];
    for (&i, d) in valid.iter().zip(d_gamma) {
        d_logp[i] = case.beta() * f64::from(d);
    }
    let want = numbers(&case.json["grad"]["logp"]);
    assert_eq!(d_logp.len(), want.len(), "{}", case.at);
    // A loss that is no number has no gradient.
    if value.is_finite() {
        d_logp.into_iter().zip(want).for_each(|(got, want)| close("gradient", got, want));
    }
}

#[test]
fn gpu_golden_losses() {
    let Some(backend) = device::backend() else { return };
    for (family, loss, key) in [
        ("contrastive", LossType::Contrastive, "rewards"),
        ("lambdarank", LossType::Lambdarank, "rewards"),
        ("listmle", LossType::Listmle, "rewards"),
        ("lipo_lambda", LossType::LipoLambda, "labels"),
    ] {
        each_case(family, |case| {
            // Scores that differ by less than single precision resolves rank otherwise there.
            if !NEAR_TIES.contains(&case.at.as_str()) {
                check_list(&backend, case, loss, key);
            }
        });
    }
}

/// Cases whose scores are ordered by differences that γ in single precision has not.
const NEAR_TIES: [&str; 1] = ["lipo_lambda/near_tie_gamma"];
