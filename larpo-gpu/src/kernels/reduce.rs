//! Sums over whole tensors: squared norms, weighted sums, and the factor of gradient clipping.

use super::{bits, check, slot, word};
use crate::buffer::View;
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Error, Recorder};
use std::ops::Range;

/// The kernels of this module.
pub static SHADER: Shader = Shader {
    name: "reduce",
    wgsl: include_str!("reduce.wgsl"),
    entries: &["partial_sums", "whole_sum", "clip"],
    bindings: &[Access::Read, Access::Read, Access::Write],
};

#[derive(Clone, Copy)]
enum Mode {
    Squares = 0,
    Weighted = 1,
    Plain = 2,
}

/// `out[at] = Σ x²`
///
/// # Errors
/// [`Error::OutOfMemory`].
#[track_caller]
pub fn sq_norm(recorder: &mut Recorder, x: &Buffer, out: &Buffer, at: usize) -> Result<(), Error> {
    sum(recorder, Mode::Squares, [x, x], out, at)
}

/// `out[at] = Σ w·x`
///
/// # Errors
/// [`Error::OutOfMemory`].
#[track_caller]
pub fn weighted_sum(recorder: &mut Recorder, x: &Buffer, w: &Buffer, out: &Buffer, at: usize) -> Result<(), Error> {
    check("weighted_sum", "w", w, x.len());
    sum(recorder, Mode::Weighted, [x, w], out, at)
}

#[track_caller]
fn sum(recorder: &mut Recorder, mode: Mode, [x, w]: [&Buffer; 2], out: &Buffer, at: usize) -> Result<(), Error> {
    assert!(at < out.len(), "sum: element {at} of {}", out.len());
    // At least 16 elements an invocation; the number of partial sums of a part depends on its length alone.
    let groups = |n: usize| n.div_ceil(256 * 16).clamp(1, 1024);
    let parts: Vec<Range<usize>> = recorder.parts(x.len(), 1).collect();
    let all: usize = parts.iter().map(|part| groups(part.len())).sum();
    if all == 1 {
        record(recorder, "whole_sum", [x, w, out].map(slot), [x.len(), 1, mode as usize, at], 0.0, 1);
        return Ok(());
    }
    let partial = recorder.alloc(all)?;
    let mut first = 0;
    for part in parts {
        let groups = groups(part.len());
        let dims = [part.len(), groups, mode as usize, first];
        record(
            recorder,
            "partial_sums",
            [x.part(part.clone()), w.part(part), slot(&partial)],
            dims,
            0.0,
            groups as u64,
        );
        first += groups;
    }
    record(recorder, "whole_sum", [&partial, &partial, out].map(slot), [all, 1, Mode::Plain as usize, at], 0.0, 1);
    Ok(())
}

/// From the squared norms of all gradients: `out (2)` = their global norm, and `min(1, max_norm / norm)` (1 for `max_norm`
/// ≤ 0).
#[track_caller]
pub fn clip(recorder: &mut Recorder, sq_norms: &Buffer, max_norm: f64, out: &Buffer) {
    check("clip", "out", out, 2);
    let dims = [sq_norms.len(), 1, Mode::Plain as usize, 0];
    record(recorder, "clip", [sq_norms, sq_norms, out].map(slot), dims, max_norm, 1);
}

fn record(
    recorder: &mut Recorder,
    entry: &'static str,
    buffers: [View<'_>; 3],
    dims: [usize; 4],
    max_norm: f64,
    groups: u64,
) {
    let [n, partial, mode, at] = dims.map(word);
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry,
        buffers: &buffers,
        params: &[n, partial, mode, at, bits(max_norm)],
        groups,
        work: BYTE * 8.0 * f64::from(n),
    });
}
