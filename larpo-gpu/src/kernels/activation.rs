//! Activations and gated units, with their gradients.

use super::{check, groups, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Recorder};

/// The kernels of this module.
pub static SHADER: Shader = Shader {
    name: "activation",
    wgsl: include_str!("activation.wgsl"),
    entries: &["activate", "activate_grad", "glu", "glu_grad"],
    bindings: &[Access::Read, Access::Read, Access::Write],
};

/// Activation inside a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·σ(x)`.
    Silu,
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, the approximation of GELU (Hendrycks & Gimpel 2016).
    GeluTanh,
}

fn record(
    recorder: &mut Recorder,
    entry: &'static str,
    [x, d_y, y]: [&Buffer; 3],
    n: usize,
    columns: usize,
    activation: Activation,
) {
    let kind = match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    };
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry,
        buffers: &[slot(x), slot(d_y), slot(y)],
        params: &[word(n), word(columns), kind],
        groups: groups(n),
        work: n as f64 * (20.0 + 5.0 * 4.0 * BYTE),
    });
}

/// `y (n) = activation(x (n))`
#[track_caller]
pub fn activate(recorder: &mut Recorder, x: &Buffer, activation: Activation, y: &Buffer) {
    check("activate", "y", y, x.len());
    record(recorder, "activate", [x, x, y], x.len(), 1, activation);
}

/// `d_y (n), x (n) -> d_x (n)`
#[track_caller]
pub fn activate_grad(recorder: &mut Recorder, d_y: &Buffer, x: &Buffer, activation: Activation, d_x: &Buffer) {
    check("activate_grad", "d_y", d_y, x.len());
    check("activate_grad", "d_x", d_x, x.len());
    record(recorder, "activate_grad", [x, d_y, d_x], x.len(), 1, activation);
}

/// Gated unit (Shazeer 2020): `gate_up (n, 2·width) -> y (n, width) = activation(gate) · up`.
#[track_caller]
pub fn glu(recorder: &mut Recorder, gate_up: &Buffer, width: usize, activation: Activation, y: &Buffer) {
    check("glu", "gate_up", gate_up, 2 * y.len());
    record(recorder, "glu", [gate_up, gate_up, y], y.len(), width, activation);
}

/// `d_y (n, width), gate_up (n, 2·width) -> d_gate_up (n, 2·width)`
#[track_caller]
pub fn glu_grad(
    recorder: &mut Recorder,
    d_y: &Buffer,
    gate_up: &Buffer,
    width: usize,
    activation: Activation,
    d_gate_up: &Buffer,
) {
    check("glu_grad", "gate_up", gate_up, 2 * d_y.len());
    check("glu_grad", "d_gate_up", d_gate_up, 2 * d_y.len());
    record(recorder, "glu_grad", [gate_up, d_y, d_gate_up], d_y.len(), width, activation);
}
