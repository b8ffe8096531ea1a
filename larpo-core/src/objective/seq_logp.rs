//! Log-probability of the scored tokens of a sequence, and supervised fine-tuning on it.

use super::ObjectiveError;
use super::error::check_len;
use super::numerics::log_sum_exp;

/// A sequence of `t` positions over a vocabulary of `v` tokens.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Logits, row-major `(t, v)`: row `i` predicts the token at position `i + 1`.
    pub logits: &'a [f64],
    /// Vocabulary size `v`.
    pub vocab: usize,
    /// Token ids `(t)`.
    pub ids: &'a [u32],
    /// `(t)`, `true` where the token is scored. Position 0 never is: no row predicts it.
    pub mask: &'a [bool],
}

/// Log-probability of a sequence, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct SeqLogp {
    /// Sum over the scored tokens.
    pub sum: f64,
    /// Number of scored tokens.
    pub count: usize,
    /// Entry `i` belongs to the token at position `i + 1`; exactly 0 where it is not scored. `t - 1` entries.
    pub per_token: Vec<f64>,
}

impl SeqLogp {
    /// `sum / max(1, count)`: an empty response has mean 0.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// `S = Σ_{t ≥ 1, mask[t]} log softmax(logits[t-1])[ids[t]]`.
///
/// # Errors
/// Arrays whose lengths disagree, a scored id outside the vocabulary, a row that predicts a scored token and has no
/// softmax.
pub fn seq_logp(sequence: &Sequence<'_>) -> Result<SeqLogp, ObjectiveError> {
    let mut result = SeqLogp { sum: 0.0, count: 0, per_token: vec![0.0; sequence.ids.len().saturating_sub(1)] };
    for_each_scored(sequence, |position, row, total| {
        let logp = row[sequence.ids[position] as usize] - total;
        result.per_token[position - 1] = logp;
        result.sum += logp;
        result.count += 1;
    })?;
    Ok(result)
}

/// Gradient of [`seq_logp`]: `dS/dlogits[t-1][v] = 1[v = ids[t]] - softmax(logits[t-1])[v]` for scored `t`, exactly 0
/// elsewhere. Writes `d_logits (t, v)`.
///
/// # Errors
/// As [`seq_logp`], and a `d_logits` of another length than the logits.
pub fn seq_logp_grad(sequence: &Sequence<'_>, d_logits: &mut [f64]) -> Result<(), ObjectiveError> {
    check_len("d_logits", d_logits.len(), sequence.logits.len())?;
    d_logits.fill(0.0);
    let vocab = sequence.vocab;
    for_each_scored(sequence, |position, row, total| {
        let d_row = &mut d_logits[(position - 1) * vocab..position * vocab];
        for (d, x) in d_row.iter_mut().zip(row) {
            *d = -(x - total).exp();
        }
        d_row[sequence.ids[position] as usize] += 1.0;
    })
}

/// Calls `visit(position, logits that predict it, their log-sum-exp)` for every scored token.
fn for_each_scored(sequence: &Sequence<'_>, mut visit: impl FnMut(usize, &[f64], f64)) -> Result<(), ObjectiveError> {
    let Sequence { logits, vocab, ids, mask } = *sequence;
    check_len("mask", mask.len(), ids.len())?;
    check_len("logits", logits.len(), ids.len() * vocab)?;
    for position in (1..ids.len()).filter(|&t| mask[t]) {
        let id = ids[position];
        if id as usize >= vocab {
            return Err(ObjectiveError::TokenId { position, id, vocab });
        }
        let row = &logits[(position - 1) * vocab..position * vocab];
        let total = log_sum_exp(row.iter().copied());
        if !total.is_finite() {
            return Err(ObjectiveError::Logits { position: position - 1 });
        }
        visit(position, row, total);
    }
    Ok(())
}

/// Supervised fine-tuning: negative log-likelihood per response token of the whole batch,
/// `-Σ S_i / max(1, Σ n_i)`, and its derivative with respect to every `S_i` (the same for all).
///
/// The mean runs over the tokens of the batch, not over its sequences, so that accumulating micro-batches equals one
/// big batch.
pub fn sft(sequences: &[SeqLogp]) -> (f64, f64) {
    let tokens = sequences.iter().map(|s| s.count).sum::<usize>().max(1) as f64;
    let sum = sequences.iter().map(|s| s.sum).sum::<f64>();
    (-sum / tokens, -1.0 / tokens)
}
