//! Sampling on the device: only ids and their log-probabilities come back.

use super::{bits, check, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Recorder};

/// The kernel.
pub static SHADER: Shader = Shader {
    name: "sample",
    wgsl: concat!(include_str!("math.wgsl"), include_str!("sample.wgsl")),
    entries: &["sample"],
    bindings: &[Access::Read, Access::Read, Access::Write, Access::Write],
};

/// How one row of logits becomes a token (order as in Hugging Face generation: temperature, top-k, top-p, min-p).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token, of equal ones the first.
    pub temperature: f64,
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens whose probabilities sum to at least `top_p`; 1 keeps all.
    pub top_p: f64,
    /// Drops tokens less probable than `min_p` times the most probable one; 0 keeps all.
    pub min_p: f64,
    /// Ids at or above this are never drawn; the log-probability still covers all of them.
    pub vocab_limit: usize,
}

/// Numbers in [0, 1) as [`sample`] takes them: those from one half on with one subtracted, so that single precision tells
/// apart those near 1 as well as those near 0.
pub fn uniform_numbers(uniform: &[f64]) -> Vec<f32> {
    uniform.iter().map(|&u| if u < 0.5 { u as f32 } else { (u - 1.0) as f32 }).collect()
}

/// Draws one token a row of `logits (n, vocab)`; `uniform (n)` of [`uniform_numbers`] decides → `ids (n)` and `logp (n)`, the
/// log-probabilities at temperature 1 over the whole vocabulary.
///
/// Thresholds and sums are in single precision: a token within its rounding of a boundary may fall on either side of it.
///
/// # Panics
/// On wrong lengths, a limit of 0, and a temperature below 0.
#[track_caller]
pub fn sample(
    recorder: &mut Recorder,
    logits: &Buffer,
    vocab: usize,
    settings: &Sampling,
    uniform: &Buffer,
    ids: &Buffer<u32>,
    logp: &Buffer,
) {
    let n = ids.len();
    check("sample", "logits", logits, n * vocab);
    check("sample", "uniform", uniform, n);
    check("sample", "logp", logp, n);
    let limit = settings.vocab_limit.min(vocab);
    assert!(limit > 0 && settings.temperature >= 0.0, "sample: {settings:?}");
    let inverse = if settings.temperature == 0.0 { 0.0 } else { 1.0 / settings.temperature };
    for rows in recorder.parts(n, vocab) {
        let n = rows.len();
        let row_logits = logits.part(rows.start * vocab..rows.end * vocab);
        recorder.record(&Dispatch {
            shader: &SHADER,
            entry: "sample",
            buffers: &[row_logits, uniform.part(rows.clone()), ids.part(rows.clone()), logp.part(rows)],
            params: &[
                word(n),
                word(vocab),
                word(limit),
                word(settings.top_k.min(vocab)),
                bits(inverse),
                bits(settings.top_p),
                bits(settings.min_p),
            ],
            groups: n as u64,
            // Some seventy passes over a row.
            work: BYTE * 4.0 * 70.0 * (n * vocab) as f64,
        });
    }
}
