//! Llama checkpoints against numbers computed by an independent double-precision forward pass: log-probabilities,
//! logits, greedy decoding, and losses with their gradients.
//!
//! The checkpoints are those of `models/` in the folder named by LARPO_GOLDEN_DIR, or the crate's own copy of one.

mod checkpoint;
mod common;

use checkpoint::{Checkpoint, id, ids, number, numbers};
use common::assert_close;
use larpo_core::backend::{Backend, SamplingSpec};
use larpo_core::cpu::Cpu;
use larpo_core::lists::{PackedLists, RankedLists};
use larpo_core::model::{DecodeRow, Decoder, Places, Transformer};
use larpo_core::objective::{LossType, Objective, Ties};
use larpo_core::ops;
use larpo_core::reference::Reference;
use larpo_core::tape::{Gradients, Tape};
use serde_json::Value;

/// Permitted errors of numbers that the model computes.
#[derive(Clone, Copy)]
struct Tolerance {
    /// Logits and log-probabilities of tokens, absolute.
    logit: f64,
    /// Losses, absolute.
    loss: f64,
    /// Gradients: norms relative to themselves, entries to the largest entry of the tensor.
    gradient: f64,
}

/// In single precision.
const SINGLE: Tolerance = Tolerance { logit: 1e-4, loss: 1e-4, gradient: 1e-3 };
/// In double precision, but with weights and rotary tables stored in single precision, as the model does.
const DOUBLE: Tolerance = Tolerance { logit: 1e-5, loss: 1e-5, gradient: 1e-5 };

/// Runs a check on every plain Llama checkpoint, on both backends.
macro_rules! on_every_llama {
    ($check:ident) => {
        for checkpoint in checkpoint::llamas() {
            $check(&checkpoint.model(&Reference), &checkpoint, DOUBLE);
            $check(&checkpoint.model(&Cpu::new()), &checkpoint, SINGLE);
        }
    };
}

#[track_caller]
fn close(got: &[f64], want: &[f64], tolerance: f64, at: &str) {
    assert_eq!(got.len(), want.len(), "{at}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance, "{at}[{i}]: {got} against {want}");
    }
}

fn sum_close(got: f64, want: f64, tolerance: f64, at: &str) {
    assert!((got - want).abs() <= tolerance + 0.1 * tolerance * want.abs(), "{at}: {got} against {want}");
}

/// Scores whole sequences as responses to an empty prompt, and computes their logits by prefilling them.
fn sequences<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
    for (i, sequence) in checkpoint.array("sequences").iter().enumerate() {
        let at = format!("{} sequences[{i}]", checkpoint.name);
        let tokens = ids(&sequence["ids"]);
        let logp = model.score(&PackedLists::pack([(&[][..], [&tokens[..]])])).unwrap();
        close(&logp, &numbers(&sequence["next_token_logp_f64"]), tolerance.logit, &at);

        let places = Places { prompts: 1, prompt_tokens: tokens.len(), responses: 0, response_tokens: 0 };
        let logits = Decoder::new(model, places).unwrap().prefill(&[(0, &tokens)]).unwrap();
        let logits = model.backend().read(&logits);
        close(&logits, &numbers(&sequence["last_logits_f64"]), tolerance.logit, &format!("{at} logits"));
        let largest = |x: &[f64]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
        assert_eq!(Some(largest(&logits) as u32), ids(&sequence["argmax"]).last().copied(), "{at}");
    }
}

#[test]
fn golden_models_llama_sequences() {
    on_every_llama!(sequences);
}

fn responses<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
    for (i, case) in checkpoint.array("responses").iter().enumerate() {
        let at = format!("{} responses[{i}]", checkpoint.name);
        let (prompt, response) = (ids(&case["prompt"]), ids(&case["response"]));
        let logp = model.score(&PackedLists::pack([(&prompt[..], [&response[..]])])).unwrap();
        close(&logp, &numbers(&case["token_logp_f64"]), tolerance.logit, &at);
        sum_close(logp.iter().sum(), number(&case["sum_logp_f64"]), tolerance.logit, &at);
    }
}

#[test]
fn golden_models_llama_responses() {
    on_every_llama!(responses);
}

fn greedy<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, _: Tolerance) {
    let case = checkpoint.field("greedy");
    let (prompt, want) = (ids(&case["prompt"]), ids(&case["new_tokens"]));
    let vocab = model.config().vocab_size;
    let spec = SamplingSpec { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, vocab_limit: vocab };
    let places = Places { prompts: 1, prompt_tokens: prompt.len(), responses: 1, response_tokens: want.len() };
    let mut decoder = Decoder::new(model, places).unwrap();
    let mut logits = decoder.prefill(&[(0, &prompt)]).unwrap();
    let mut got = Vec::new();
    for generated in 0..want.len() {
        let id = model.backend().sample(&logits, vocab, &spec, &[0.5])[0].id;
        got.push(id);
        logits = decoder.step(&[DecodeRow { prompt: 0, response: 0, id, generated }]).unwrap();
    }
    assert_eq!(got, want, "{}", checkpoint.name);
}

#[test]
fn golden_models_llama_greedy() {
    on_every_llama!(greedy);
}

/// Loss of one list of some of the golden's responses, and all gradients.
fn list_loss<B: Backend>(
    model: &Transformer<B>,
    case: &Value,
    (members, rewards): (&[usize], Vec<f64>),
    objective: Objective,
) -> (f64, Gradients<B>) {
    let b = model.backend();
    let prompt = ids(&case["prompt"]);
    let all: Vec<Vec<u32>> = checkpoint::items(&case["responses"]).iter().map(ids).collect();
    let packed = PackedLists::pack([(&prompt[..], members.iter().map(|&m| &all[m][..]))]);
    // The golden's reference is one sum a response; here every token has its share of it.
    let sums = numbers(&case["ref_logp"]);
    let mut reference = vec![0f32; packed.targets()];
    for (item, &member) in members.iter().enumerate() {
        let targets = packed.item_targets(item);
        let share = sums[member] / targets.len() as f64;
        reference[targets].fill(share as f32);
    }
    let lists = RankedLists::new(&packed, rewards, objective, number(&case["beta"]), 1.0).unwrap();
    let tape = Tape::new(b);
    let logp = model.token_logp(&tape, &model.batch(&packed).unwrap());
    let counts = (lists.items(), lists.lists());
    let loss = ops::list_loss(&tape, &logp, &b.upload(&reference), &b.upload_lists(&lists), counts, lists.scale());
    let value = b.read(loss.total.value())[0];
    let mut gradients = Gradients::new(model.parameters().len());
    tape.backward(&loss.total, &mut gradients);
    (value, gradients)
}

/// Compares the gradient of every checkpoint tensor, and the norm of all of them together.
fn compare<B: Backend>(model: &Transformer<B>, gradients: &Gradients<B>, want: &Value, tolerance: f64, at: &str) {
    let tensors = want["grads_f64"].as_object().unwrap_or_else(|| panic!("{at}: no gradients"));
    let mut compared = 0;
    let mut total = 0.0;
    for (index, parameter) in model.parameters().iter().enumerate() {
        let gradient = model.backend().read(gradients.get(index).expect("every parameter is reached"));
        for tensor in &parameter.tensors {
            let at = format!("{at} {}", tensor.name);
            let want = tensors.get(&tensor.name).unwrap_or_else(|| panic!("{at}: not in the golden"));
            assert_eq!(ids(&want["shape"]), tensor.shape.iter().map(|&n| n as u32).collect::<Vec<_>>(), "{at}");
            let got = &gradient[tensor.rows.start * parameter.cols..tensor.rows.end * parameter.cols];
            let squares: f64 = got.iter().map(|g| g * g).sum();
            let largest = got.iter().map(|g| g.abs()).fold(0.0, f64::max);
            assert_close(&[squares.sqrt()], &[number(&want["l2"])], tolerance, &at);
            let first = numbers(&want["first8"]);
            close(&got[..first.len()], &first, tolerance * largest, &at);
            total += squares;
            compared += 1;
        }
    }
    assert_eq!(compared, tensors.len(), "{at}: the golden has tensors that the model has not");
    assert_close(&[total.sqrt()], &[number(&want["grad_norm_f64"])], tolerance, at);
}

fn lists<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
    let case = checkpoint.field("list");
    let prompt = ids(&case["prompt"]);
    let all: Vec<Vec<u32>> = checkpoint::items(&case["responses"]).iter().map(ids).collect();
    let packed = PackedLists::pack([(&prompt[..], all.iter().map(|r| &r[..]))]);
    let logp = model.score(&packed).unwrap();
    for (item, want) in numbers(&case["logp_f64"]).into_iter().enumerate() {
        let sum = logp[packed.item_targets(item)].iter().sum();
        sum_close(sum, want, tolerance.logit, &format!("{} list.logp[{item}]", checkpoint.name));
    }
    let plain = |loss| Objective { loss, ties: Ties::Stable, ..Objective::default() };
    // On a list of two, the pairwise loss is DPO.
    let pair = [id(&case["dpo_chosen"]), id(&case["dpo_rejected"])];
    let rewards = numbers(&case["rewards"]);
    let all: Vec<usize> = (0..rewards.len()).collect();
    let runs = [
        ("dpo", list_loss(model, case, (&pair, vec![1.0, 0.0]), plain(LossType::Pairwise))),
        ("listmle", list_loss(model, case, (&all, rewards), plain(LossType::Listmle))),
    ];
    for (name, (loss, gradients)) in runs {
        let at = format!("{} {name}", checkpoint.name);
        close(&[loss], &[number(&case[name]["loss_f64"])], tolerance.loss, &at);
        compare(model, &gradients, &case[name], tolerance.gradient, &at);
    }
}

#[test]
fn golden_models_llama_lists() {
    on_every_llama!(lists);
}
