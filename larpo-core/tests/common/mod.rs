//! Tiny models, packed lists and comparisons shared by the tests.
#![allow(dead_code, reason = "each test file uses its part")]

use larpo_core::backend::{Activation, Backend};
use larpo_core::lists::{PackedLists, RankedLists};
use larpo_core::model::{Head, ModelConfig, Naming, Norm, Positions, RopeScaling, Transformer};
use larpo_core::objective::Objective;
use larpo_core::ops;
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::tape::{Gradients, Tape};
use std::sync::Arc;

/// Largest difference over the largest magnitude of `want`.
pub fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    larpo_core::conformance::relative_error(got, want)
}

#[track_caller]
pub fn assert_close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    let error = relative_error(got, want);
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, permitted {tolerance:.0e}");
}

/// Numbers in (-`size`, `size`), decided by `stream`.
pub fn uniform(stream: u32, len: usize, size: f64) -> Vec<f64> {
    let random = CounterRng::new(5, Purpose::Bench);
    (0..len as u32).map(|i| (2.0 * random.uniform([stream, i, 0, 0]) - 1.0) * size).collect()
}

/// Derivative by central differences of fourth order, of `f` at a shift of 0.
///
/// The error is about `step⁴` times the fifth derivative over 30, plus rounding over `step`.
pub fn difference(step: f64, mut f: impl FnMut(f64) -> f64) -> f64 {
    let (far, near) = (f(2.0 * step) - f(-2.0 * step), f(step) - f(-step));
    (8.0 * near - far) / (12.0 * step)
}

/// Two layers with grouped heads; the head tied, or not tied and heads wider than the residual stream.
pub fn tiny(tied: bool) -> ModelConfig {
    let mut config = if tied { ModelConfig::new(12, 20, 2, 2, 1, 19) } else { ModelConfig::new(12, 18, 2, 4, 2, 23) };
    config.head = if tied { Head::Tied } else { Head::Untied };
    if !tied {
        config.head_dim = 4;
    }
    config.max_position_embeddings = 64;
    config.initializer_range = 0.35;
    config
}

/// Shapes of the families that differ most from a Llama's, with the sizes of `base`: what Gemma 2, Qwen and GPT-2 have.
pub fn families(base: &ModelConfig) -> [ModelConfig; 3] {
    let layers = base.num_hidden_layers;
    let gemma = ModelConfig {
        norm: Norm::RmsUnitOffset,
        post_norms: true,
        query_pre_attn_scalar: base.head_dim as f64 + 3.0,
        attn_logit_softcapping: Some(2.0),
        final_logit_softcapping: Some(1.5),
        sliding_window: Some(3),
        windowed_layers: (0..layers).map(|layer| layer.is_multiple_of(2)).collect(),
        activation: Activation::GeluTanh,
        scale_embeddings: true,
        ..base.clone()
    };
    let scaling = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16.0,
    };
    let qwen = ModelConfig {
        qkv_bias: true,
        head_norm: true,
        positions: Positions::Rotary { theta: 10_000.0, scaling },
        ..base.clone()
    };
    let gpt2 = ModelConfig {
        norm: Norm::Layer,
        positions: Positions::Learned,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        activation: Activation::GeluTanh,
        gated: false,
        naming: Naming::Gpt2 { prefix: String::new() },
        ..base.clone()
    };
    [gemma, qwen, gpt2]
}

/// Tiny shapes of all kinds.
pub fn shapes() -> Vec<ModelConfig> {
    [tiny(true), tiny(false)].into_iter().chain(families(&tiny(false))).collect()
}

/// A model with random norms too, with the same numbers on every backend.
pub fn model<B: Backend>(backend: &B, config: &ModelConfig, seed: u64) -> Transformer<B> {
    let mut model = Transformer::random(backend, config.clone(), seed).expect("a valid shape");
    for index in 0..model.parameters().len() {
        let parameter = model.parameters().iter().nth(index).expect("in range");
        if !parameter.decay {
            let mut norm = model.parameters().download(backend, index);
            let random = uniform(index as u32 + 100, norm.len(), 0.5);
            norm.iter_mut().zip(random).for_each(|(w, r)| *w += r as f32);
            model.parameters_mut().upload(backend, index, &norm).expect("the same shape");
        }
    }
    model
}

/// Prompts with their responses.
pub type Lists = Vec<(Vec<u32>, Vec<Vec<u32>>)>;

pub fn pack(lists: &Lists) -> PackedLists {
    PackedLists::pack(lists.iter().map(|(prompt, responses)| (&prompt[..], responses.iter().map(|r| &r[..]))))
}

/// Every response on its own, after its prompt.
pub fn separate(lists: &Lists) -> Lists {
    lists.iter().flat_map(|(p, responses)| responses.iter().map(|r| (p.clone(), vec![r.clone()]))).collect()
}

/// Ragged lists: an empty response, an empty prompt, one response alone, equal responses.
pub fn ragged() -> Lists {
    vec![
        (vec![1, 2, 3, 4], vec![vec![5, 6, 7], vec![8], vec![9, 10, 11, 12, 13], vec![]]),
        (vec![], vec![vec![3, 4, 5], vec![6, 18], vec![7, 8, 9, 1]]),
        (vec![2], vec![vec![3, 1]]),
        (vec![14, 15, 16, 0, 17], vec![vec![17, 18], vec![1, 2, 3], vec![17, 18]]),
    ]
}

/// Rewards of [`ragged`], with ties.
pub fn rewards() -> Vec<f64> {
    vec![1.0, 0.0, 1.0, 0.5, 0.2, 0.9, 0.4, 1.0, 0.0, 1.0, 0.5]
}

/// A list loss plus a weighted negative log-likelihood, as in a training step.
pub struct Loss {
    pub packed: PackedLists,
    pub lists: RankedLists,
    pub reference: Vec<f64>,
    pub nll_weights: Vec<f64>,
}

impl Loss {
    /// `packed` says what the model computes, `grouped` which responses belong to a list.
    pub fn new(packed: PackedLists, grouped: &PackedLists, rewards: &[f64], objective: Objective) -> Self {
        let lists = RankedLists::new(grouped, rewards.to_vec(), objective, 0.5, 0.25).expect("valid lists");
        let reference = uniform(1, packed.targets(), 1.0).iter().map(|u| f64::from((u - 3.5) as f32)).collect();
        let nll_weights = uniform(2, packed.targets(), 0.05).iter().map(|u| f64::from((u - 0.1) as f32)).collect();
        Self { packed, lists, reference, nll_weights }
    }

    pub fn of(lists: &Lists, rewards: &[f64], objective: Objective) -> Self {
        let packed = pack(lists);
        Self::new(packed.clone(), &packed, rewards, objective)
    }

    fn record<B: Backend>(&self, model: &Transformer<B>, tape: &Tape<B>) -> larpo_core::tape::Var<B> {
        let b = model.backend();
        let batch = model.batch(&self.packed).expect("tokens and positions of the model");
        let logp = model.token_logp(tape, &batch);
        let single = |x: &[f64]| b.upload(&x.iter().map(|&v| v as f32).collect::<Vec<_>>());
        let counts = (self.lists.items(), self.lists.lists());
        let device = b.upload_lists(&self.lists);
        let list = ops::list_loss(tape, &logp, &single(&self.reference), &device, counts, self.lists.scale());
        let nll = ops::weighted_sum(tape, &logp, &Arc::new(single(&self.nll_weights)));
        ops::add(tape, &list.total, &nll)
    }

    pub fn value<B: Backend>(&self, model: &Transformer<B>) -> f64 {
        self.value_with(model, None)
    }

    /// The loss, with dropout of an update's pass.
    pub fn value_with<B: Backend>(&self, model: &Transformer<B>, dropout: Option<(u64, usize)>) -> f64 {
        let tape = Tape::inference(model.backend());
        let loss =
            self.record(model, &dropout.into_iter().fold(tape, |tape, (update, pass)| tape.with_dropout(update, pass)));
        model.backend().read(loss.value())[0]
    }

    /// Adds the gradient of every parameter and returns the loss.
    pub fn backward<B: Backend>(&self, model: &Transformer<B>, gradients: &mut Gradients<B>) -> f64 {
        self.backward_with(model, gradients, None)
    }

    /// The same with dropout of an update's pass.
    pub fn backward_with<B: Backend>(
        &self,
        model: &Transformer<B>,
        gradients: &mut Gradients<B>,
        dropout: Option<(u64, usize)>,
    ) -> f64 {
        let tape = Tape::new(model.backend());
        let tape = dropout.into_iter().fold(tape, |tape, (update, pass)| tape.with_dropout(update, pass));
        let loss = self.record(model, &tape);
        let value = model.backend().read(loss.value())[0];
        tape.backward(&loss, gradients);
        value
    }

    /// Loss and gradients of all parameters.
    pub fn gradients<B: Backend>(&self, model: &Transformer<B>) -> (f64, Vec<Vec<f64>>) {
        let mut gradients = Gradients::new(model.parameters().len());
        let value = self.backward(model, &mut gradients);
        (value, read(model, &gradients))
    }
}

/// All gradients on the host; every parameter must have one.
pub fn read<B: Backend>(model: &Transformer<B>, gradients: &Gradients<B>) -> Vec<Vec<f64>> {
    let one = |(index, p): (usize, &larpo_core::model::Parameter<B>)| {
        model.backend().read(gradients.get(index).unwrap_or_else(|| panic!("no gradient reached {}", p.name)))
    };
    model.parameters().iter().enumerate().map(one).collect()
}

/// Names of the parameters in order.
pub fn names<B: Backend>(model: &Transformer<B>) -> Vec<String> {
    model.parameters().iter().map(|p| p.name.clone()).collect()
}

/// `x - logsumexp(x)`.
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - total).collect()
}
