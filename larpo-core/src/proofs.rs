//! Step-0 proofs: what must hold before the first update of an iteration, checked on the user's own model and data.

use crate::backend::Backend;
use crate::error::Error;
use crate::lists::RankedLists;
use crate::model::Transformer;
use crate::ops;
use crate::optim::LossScale;
use crate::tape::{Gradients, Tape};
use crate::train::{ListTraining, TrainingList, pack};

/// Largest difference of a list's loss at γ = 0 from its constant, relative to the constant.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Largest difference between a token's log-probability in sampling and in training, in nats.
const LOGP_TOLERANCE: f64 = 1e-4;
/// The same where products are in half precision, with eleven bits.
const HALF_LOGP_TOLERANCE: f64 = 5e-2;

/// What the proofs found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProofReport {
    /// Lists whose loss at γ = 0 equals its constant; none where the proof does not apply.
    pub constant_lists: Option<usize>,
    /// Why it does not apply.
    pub constant_skipped: Option<&'static str>,
    /// Largest difference between recorded and recomputed log-probabilities, over how many tokens.
    pub logp_difference: Option<(f64, usize)>,
    /// Parameters that the backward pass reached with a gradient of exactly zero.
    pub zero_gradients: Vec<String>,
    /// Parameters that it reached.
    pub reached: usize,
}

/// Runs the proofs on `lists` (a first batch; all of them contribute) without changing the model:
///
/// - *constant*: with γ = 0 every list's loss equals the constant that its length and ties dictate. Applies where
///   `reference_is_policy`; the reference is then the training path itself.
/// - *log-probabilities*: those recorded while sampling equal the training path's.
/// - *gradient*: the backward pass reaches every parameter that is trained.
///
/// # Errors
/// The proof that failed, and what was found.
pub fn prove<B: Backend>(
    model: &Transformer<B>,
    settings: &ListTraining,
    lists: &[&TrainingList],
    reference_is_policy: bool,
) -> Result<ProofReport, Error> {
    let b = model.backend();
    let mut report = ProofReport::default();
    let packed = pack(lists);
    let tape = Tape::new(b);
    let batch = model.batch(&packed)?;
    let logp = model.token_logp(&tape, &batch);
    let own = b.read(logp.value());
    let tolerance = if b.multiplies_in_half() { HALF_LOGP_TOLERANCE } else { LOGP_TOLERANCE };
    report.logp_difference = compare_sampled(lists, &packed, &own, tolerance)?;

    let rewards: Vec<f64> = lists.iter().flat_map(|l| l.rewards()).collect();
    let ranked = RankedLists::new(&packed, rewards, settings.objective, settings.beta, 1.0 / lists.len() as f64)?;
    let mut reference = b.alloc(packed.targets());
    b.copy(logp.value(), &mut reference, crate::backend::Store::Set);
    let shape = (packed.items(), packed.lists());
    let loss = ops::list_loss(&tape, &logp, &reference, &b.upload_lists(&ranked), shape, ranked.scale());
    match reference_is_policy {
        true => report.constant_lists = Some(compare_constants(settings, lists, &b.read(&loss.losses))?),
        false => report.constant_skipped = Some("the reference is not the present policy"),
    }

    let mut gradients = Gradients::new(model.parameters().len());
    let scale = if b.multiplies_in_half() { LossScale::default().factor() } else { 1.0 };
    tape.backward_scaled(&loss.total, scale, &mut gradients);
    for (index, parameter) in model.parameters().iter().enumerate().filter(|(_, parameter)| parameter.trainable) {
        let Some(gradient) = gradients.get(index) else {
            let found = format!("no gradient reached {}", parameter.tensor_names());
            return Err(Error::Proof { proof: "the backward pass reaches every parameter", found });
        };
        report.reached += 1;
        let mut square = b.alloc(1);
        b.sq_norm(gradient, &mut square, 0);
        if b.read(&square)[0] == 0.0 {
            report.zero_gradients.push(parameter.tensor_names());
        }
    }
    Ok(report)
}

fn compare_sampled(
    lists: &[&TrainingList],
    packed: &crate::lists::PackedLists,
    own: &[f64],
    tolerance: f64,
) -> Result<Option<(f64, usize)>, Error> {
    let mut worst = 0f64;
    let mut tokens = 0;
    for (item, response) in lists.iter().flat_map(|l| &l.responses).enumerate() {
        let Some(sampled) = &response.sampled else { continue };
        for (t, (own, sampled)) in own[packed.item_targets(item)].iter().zip(sampled).enumerate() {
            let difference = (own - f64::from(*sampled)).abs();
            if difference.is_nan() || difference > tolerance {
                let found = format!("{sampled} in sampling, {own} in training (response {item}, token {t})");
                let proof = "log-probabilities recorded while sampling equal the training path's";
                return Err(Error::Proof { proof, found });
            }
            worst = worst.max(difference);
            tokens += 1;
        }
    }
    Ok((tokens > 0).then_some((worst, tokens)))
}

fn compare_constants(settings: &ListTraining, lists: &[&TrainingList], losses: &[f64]) -> Result<usize, Error> {
    for (i, (list, &loss)) in lists.iter().zip(losses).enumerate() {
        let constant = settings.objective.at_zero(&list.rewards(), None)?.unwrap_or(0.0);
        let difference = (loss - constant).abs();
        if difference.is_nan() || difference > LOSS_TOLERANCE * constant.max(1.0) {
            let found = format!("list {i} of {} responses: {loss} instead of {constant}", list.responses.len());
            return Err(Error::Proof { proof: "at γ = 0 a list's loss is its constant", found });
        }
    }
    Ok(lists.len())
}
