//! The checkpoints of all families on a GPU, against the same numbers and at the same tolerances as on the CPU.
//!
//! The adapter is the one that LARPO_ADAPTER names, else a GPU, else any. Where there is none the tests are skipped with a
//! note, unless LARPO_DEVICE=gpu or LARPO_REQUIRE_GPU=1 makes that a failure; with LARPO_DEVICE=cpu they are not run.

#[path = "../../larpo-core/tests/checkpoint/mod.rs"]
mod checkpoint;
#[path = "../../larpo-core/tests/common/mod.rs"]
mod common;
mod device;
#[path = "../../larpo-core/tests/goldens/mod.rs"]
mod goldens;

use goldens::SINGLE;

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
