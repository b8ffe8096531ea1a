//! The optimizer.

use super::{bits, check, groups, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Recorder};

/// The kernel.
pub static SHADER: Shader = Shader {
    name: "adamw",
    wgsl: include_str!("adamw.wgsl"),
    entries: &["adamw"],
    bindings: &[Access::Read, Access::Read, Access::Write, Access::Write, Access::Write],
};

/// Settings of one AdamW update (Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of this tensor.
    pub weight_decay: f64,
    /// Number of this update, counted from 1.
    pub step: u64,
}

/// One update of `w (n)` and its moments `m (n)`, `v (n)` with the gradient `g (n) · clip[1]`; `clip (2)` is what
/// [`reduce::clip`](super::reduce::clip) writes.
#[track_caller]
pub fn adamw(recorder: &mut Recorder, settings: &AdamW, g: &Buffer, clip: &Buffer, w: &Buffer, m: &Buffer, v: &Buffer) {
    let n = w.len();
    for (name, buffer) in [("g", g), ("m", m), ("v", v)] {
        check("adamw", name, buffer, n);
    }
    check("adamw", "clip", clip, 2);
    let s = settings;
    let step = i32::try_from(s.step).unwrap_or(i32::MAX);
    let scale = |beta: f64| 1.0 / (1.0 - beta.powi(step));
    for part in recorder.parts(n, 1) {
        let n = part.len();
        let [g, w, m, v] = [g, w, m, v].map(|x| x.part(part.clone()));
        recorder.record(&Dispatch {
            shader: &SHADER,
            entry: "adamw",
            buffers: &[g, slot(clip), w, m, v],
            params: &[
                word(n),
                bits(s.learning_rate),
                bits(s.beta1),
                bits(1.0 - s.beta1),
                bits(s.beta2),
                bits(1.0 - s.beta2),
                bits(s.eps),
                bits(s.weight_decay),
                bits(scale(s.beta1)),
                bits(scale(s.beta2)),
            ],
            groups: groups(n),
            work: BYTE * 28.0 * n as f64,
        });
    }
}
