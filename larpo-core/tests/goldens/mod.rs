//! Checks of models on any backend against the numbers of an independent double-precision forward pass.

use crate::checkpoint::{self, Checkpoint, id, ids, number, numbers};
use crate::common::assert_close;
use larpo_core::backend::{Backend, SamplingSpec, Store};
use larpo_core::lists::{PackedLists, RankedLists};
use larpo_core::model::{DecodeRow, Decoder, Places, Transformer, without_pads};
use larpo_core::objective::{LossType, Objective, Ties};
use larpo_core::ops;
use larpo_core::optim::OptimizerConfig;
use larpo_core::tape::{Gradients, Tape, Var};
use larpo_core::train::{RewardList, Trainer};
use serde_json::Value;

/// Permitted errors of numbers that the model computes.
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// Logits and log-probabilities of tokens, absolute.
    pub logit: f64,
    /// Losses, absolute.
    pub loss: f64,
    /// Gradients: norms relative to themselves, entries to the largest entry of the tensor.
    pub gradient: f64,
}

/// In single precision.
pub const SINGLE: Tolerance = Tolerance { logit: 1e-4, loss: 1e-4, gradient: 1e-3 };

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
pub fn sequences<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
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

pub fn responses<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
    for (i, case) in checkpoint.array("responses").iter().enumerate() {
        let at = format!("{} responses[{i}]", checkpoint.name);
        let (prompt, response) = (ids(&case["prompt"]), ids(&case["response"]));
        let logp = model.score(&PackedLists::pack([(&prompt[..], [&response[..]])])).unwrap();
        close(&logp, &numbers(&case["token_logp_f64"]), tolerance.logit, &at);
        sum_close(logp.iter().sum(), number(&case["sum_logp_f64"]), tolerance.logit, &at);
    }
}

pub fn greedy<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, _: Tolerance) {
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

/// In the backend's own precision: in two parts, each in single precision.
fn upload_f64<B: Backend>(b: &B, x: &[f64]) -> B::Buffer {
    let part = |of: &dyn Fn(f64) -> f32| b.upload(&x.iter().map(|&x| of(x)).collect::<Vec<_>>());
    let mut whole = part(&|x| x as f32);
    b.copy(&part(&|x| (x - f64::from(x as f32)) as f32), &mut whole, Store::Add);
    whole
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
    let mut reference = vec![0f64; packed.targets()];
    for (item, &member) in members.iter().enumerate() {
        let targets = packed.item_targets(item);
        let share = sums[member] / targets.len() as f64;
        reference[targets].fill(share);
    }
    let lists = RankedLists::new(&packed, rewards, objective, number(&case["beta"]), 1.0).unwrap();
    let tape = Tape::new(b);
    let logp = model.token_logp(&tape, &model.batch(&packed).unwrap());
    let counts = (lists.items(), lists.lists());
    let loss = ops::list_loss(&tape, &logp, &upload_f64(b, &reference), &b.upload_lists(&lists), counts, lists.scale());
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
            let got = tensor.stored(&gradient, parameter.cols);
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
    // Not every golden has the norm of all of them.
    if let Some(norm) = want.get("grad_norm_f64") {
        assert_close(&[total.sqrt()], &[number(norm)], tolerance, at);
    }
}

pub fn lists<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
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

/// The rows of a padded batch without their pads.
fn rows_of(batch: &Value) -> Vec<Vec<u32>> {
    let rows = checkpoint::items(&batch["input_ids"]).iter().zip(checkpoint::items(&batch["attention_mask"]));
    rows.map(|(row, mask)| {
        ids(row).into_iter().zip(ids(mask)).filter(|(_, mask)| *mask == 1).map(|(id, _)| id).collect()
    })
    .collect()
}

/// Rows of padded batches, which are lists of one response here, packed together.
pub fn padded<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
    for name in ["batch_right_padded", "batch_left_padded"] {
        let batch = checkpoint.field(name);
        let rows = rows_of(batch);
        let packed = PackedLists::pack(rows.iter().map(|row| (&[][..], [&row[..]])));
        let logp = model.score(&packed).unwrap();
        for (row, want) in numbers(&batch["sum_logp_all_tokens_f64"]).into_iter().enumerate() {
            let at = format!("{} {name}[{row}]", checkpoint.name);
            sum_close(logp[packed.item_targets(row)].iter().sum(), want, tolerance.logit, &at);
        }
    }
}

/// Rewards of texts, all packed together: each on its own, or as responses to what all of them begin with.
fn rewards<B: Backend>(model: &Transformer<B>, tape: &Tape<B>, texts: &[Vec<u32>], shared: bool) -> Var<B> {
    let same = |&at: &usize| texts.iter().all(|text| text.len() > at + 1 && text[at] == texts[0][at]);
    let common = if shared { (0..).take_while(same).count() } else { 0 };
    let responses = texts.iter().map(|text| &text[common..]).collect::<Vec<_>>();
    let packed = match shared {
        true => PackedLists::pack([(&texts[0][..common], responses)]),
        false => PackedLists::pack(texts.iter().map(|text| (&[][..], [&text[..]]))),
    };
    model.reward(tape, &packed).unwrap()
}

pub fn scores<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
    let pad = id(checkpoint.field("pad_token_id")) as u32;
    let b = model.backend();
    let check = |texts: &[Vec<u32>], want: &[f64], at: &str| {
        let texts: Vec<Vec<u32>> = texts.iter().map(|text| without_pads(text, Some(pad)).to_vec()).collect();
        for shared in [false, true] {
            let got = b.read(rewards(model, &Tape::inference(b), &texts, shared).value());
            close(&got, want, tolerance.logit, &format!("{} {at}", checkpoint.name));
        }
        // The first text once more with another ending: a prefix that is worth sharing.
        let other = [&texts[0][..texts[0].len() - 1], &[7, 8, 9]].concat();
        let pair = [texts[0].clone(), other.clone()];
        let got = b.read(rewards(model, &Tape::inference(b), &pair, true).value());
        close(&got[..1], &want[..1], tolerance.logit, &format!("{} {at}", checkpoint.name));
        let alone = b.read(rewards(model, &Tape::inference(b), &[other], false).value());
        close(&got[1..], &alone, tolerance.logit, &format!("{} {at}", checkpoint.name));
    };
    for sequence in checkpoint.array("sequences") {
        check(&[ids(&sequence["ids"])], &[number(&sequence["score_f64"])], "sequences");
    }
    for name in ["batch_right_padded", "batch_left_padded"] {
        let batch = checkpoint.field(name);
        check(&rows_of(batch), &numbers(&batch["scores_f64"]), name);
    }
    let last = checkpoint.field("last_token_is_pad_id");
    check(&[ids(&last["ids"])], &[number(&last["score_f64"])], "last_token_is_pad_id");
}

/// A training step on pairs with margins, centred (Eisenstein et al. 2023), all at once and one by one.
pub fn pairs<B: Backend>(model: &Transformer<B>, checkpoint: &Checkpoint, tolerance: Tolerance) {
    let case = checkpoint.field("bt");
    let texts = |name: &str| checkpoint::items(&case[name]).iter().map(ids).collect::<Vec<_>>();
    let (margins, center) = (numbers(&case["margin"]), number(&case["center_coefficient"]));
    let list = |((chosen, rejected), margin): ((Vec<u32>, Vec<u32>), &f64)| RewardList {
        prompt: Vec::new(),
        responses: vec![chosen, rejected],
        labels: vec![1.0, 0.0],
        margin: *margin,
    };
    let lists: Vec<RewardList> = texts("chosen").into_iter().zip(texts("rejected")).zip(&margins).map(list).collect();
    let optimizer = OptimizerConfig { max_grad_norm: 0.0, ..OptimizerConfig::default() };
    for micro in [1, lists.len()] {
        let mut trainer = Trainer::new(model.duplicate().unwrap(), optimizer, 1);
        let report = trainer.reward_step(&lists.iter().collect::<Vec<_>>(), center, micro).unwrap();
        let at = format!("{} bt", checkpoint.name);
        close(&[report.loss], &[number(&case["loss_f64"])], tolerance.loss, &at);
        compare(model, trainer.gradients(), case, tolerance.gradient, &at);
    }
}
