//! Checkpoints of all families against numbers computed by an independent double-precision forward pass: log-probabilities,
//! logits, greedy decoding, and losses with their gradients.
//!
//! The checkpoints are those of `models/` in the folder named by LARPO_GOLDEN_DIR, or the crate's own copy of one.

mod checkpoint;
mod common;
mod goldens;

use goldens::{SINGLE, Tolerance, greedy, lists, padded, pairs, responses, scores, sequences};
use larpo_core::cpu::Cpu;
use larpo_core::lists::PackedLists;
use larpo_core::model::{Decoder, Head, Places, without_pads};
use larpo_core::reference::Reference;
use larpo_core::tape::Tape;

/// Permitted errors in double precision.
const DOUBLE: Tolerance = Tolerance { logit: 1e-7, loss: 1e-7, gradient: 1e-7 };

/// Runs a check on every language model, or every reward model, on both backends.
macro_rules! on_every_model {
    ($check:ident) => {
        on_every_model!($check, language_models)
    };
    ($check:ident, $models:ident) => {
        for checkpoint in checkpoint::$models() {
            $check(&checkpoint.model(&Reference), &checkpoint, DOUBLE);
            $check(&checkpoint.model(&Cpu::new()), &checkpoint, SINGLE);
        }
    };
}

#[test]
fn golden_models_sequences() {
    on_every_model!(sequences);
}

#[test]
fn golden_models_responses() {
    on_every_model!(responses);
}

#[test]
fn golden_models_greedy() {
    on_every_model!(greedy);
}

#[test]
fn golden_models_lists() {
    on_every_model!(lists);
}

#[test]
fn golden_models_padded_batches() {
    on_every_model!(padded);
}

#[test]
fn golden_models_rewards() {
    on_every_model!(scores, reward_models);
}

#[test]
fn golden_models_reward_pairs() {
    on_every_model!(pairs, reward_models);
}

#[test]
fn a_reward_model_gives_no_logits_and_a_language_model_no_reward() {
    let b = Reference;
    let language = common::model(&b, &common::tiny(true), 1);
    let mut config = common::tiny(true);
    config.head = Head::Score;
    let reward = common::model(&b, &config, 1);
    let row = PackedLists::pack([(&[1][..], [&[2, 3][..]])]);
    let error = |message: Result<(), larpo_core::Error>| message.unwrap_err().to_string();
    let places = Places { prompts: 1, prompt_tokens: 4, responses: 0, response_tokens: 0 };
    for message in [
        error(reward.score(&row).map(drop)),
        error(Decoder::new(&reward, places).map(drop)),
        error(language.reward(&Tape::inference(&b), &row).map(drop)),
    ] {
        assert!(message.contains("head"), "{message}");
    }
    let nothing = PackedLists::pack([(&[1][..], [])]);
    let empty = PackedLists::pack([(&[1][..], [&[][..]])]);
    for packed in [&nothing, &empty] {
        assert!(error(reward.reward(&Tape::inference(&b), packed).map(drop)).contains("at least one token"));
    }
    assert_eq!(without_pads(&[0, 5, 0, 7, 0], Some(0)), [0, 5, 0, 7]);
    assert_eq!(without_pads(&[0, 0], Some(0)), [0]);
    assert_eq!(without_pads(&[3, 0], None), [3, 0]);
}
