//! Fill, copy, scale, soft-cap and a row in every row.

use super::{bits, check, groups, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Recorder, Store};

/// The kernels with one invocation an element.
pub static SHADER: Shader = Shader {
    name: "elementwise",
    wgsl: include_str!("elementwise.wgsl"),
    entries: &["fill", "copy", "scale", "scaled_copy", "softcap", "broadcast_rows"],
    bindings: &[Access::Read, Access::Read, Access::Write],
};

struct Call<'a> {
    entry: &'static str,
    x: Option<&'a Buffer>,
    s: Option<&'a Buffer>,
    y: &'a Buffer,
    columns: usize,
    store: Store,
    value: f64,
}

fn record(recorder: &mut Recorder, call: &Call<'_>) {
    let none = recorder.none();
    let c = call.columns;
    for rows in recorder.parts(call.y.len() / c, c) {
        let part = c * rows.start..c * rows.end;
        // A row that goes into every row stays whole.
        let x = call.x.map_or(slot(&none), |x| if x.len() == call.y.len() { x.part(part.clone()) } else { slot(x) });
        let n = part.len();
        recorder.record(&Dispatch {
            shader: &SHADER,
            entry: call.entry,
            buffers: &[x, call.s.map_or(slot(&none), slot), call.y.part(part)],
            params: &[word(n), word(c), call.store.flag(), bits(call.value)],
            groups: groups(n),
            work: BYTE * 4.0 * n as f64 * (2.0 + call.store.reads()),
        });
    }
}

/// `y (n) = value`
pub fn fill(recorder: &mut Recorder, y: &Buffer, value: f64) {
    record(recorder, &Call { entry: "fill", x: None, s: None, y, columns: 1, store: Store::Set, value });
}

/// `y (n) = x (n)`, or `+=`.
#[track_caller]
pub fn copy(recorder: &mut Recorder, x: &Buffer, y: &Buffer, store: Store) {
    check("copy", "x", x, y.len());
    record(recorder, &Call { entry: "copy", x: Some(x), s: None, y, columns: 1, store, value: 0.0 });
}

/// `y (n) *= s[0]`
#[track_caller]
pub fn scale(recorder: &mut Recorder, y: &Buffer, s: &Buffer) {
    assert!(!s.is_empty(), "scale: no factor");
    record(recorder, &Call { entry: "scale", x: None, s: Some(s), y, columns: 1, store: Store::Set, value: 0.0 });
}

/// `y (n) = s[0] · x (n)`, or `+=`: the gradient of a weighted sum.
#[track_caller]
pub fn scaled_copy(recorder: &mut Recorder, s: &Buffer, x: &Buffer, y: &Buffer, store: Store) {
    assert!(!s.is_empty(), "scaled_copy: no factor");
    check("scaled_copy", "x", x, y.len());
    record(recorder, &Call { entry: "scaled_copy", x: Some(x), s: Some(s), y, columns: 1, store, value: 0.0 });
}

/// `y (n) = cap · tanh(y / cap)` (Gemma Team 2024, section 2).
pub fn softcap(recorder: &mut Recorder, y: &Buffer, cap: f64) {
    record(recorder, &Call { entry: "softcap", x: None, s: None, y, columns: 1, store: Store::Set, value: cap });
}

/// Every row of `y (n, c)` gets `x (c)`, or has it added: a bias.
#[track_caller]
pub fn broadcast_rows(recorder: &mut Recorder, x: &Buffer, y: &Buffer, store: Store) {
    let columns = x.len();
    assert!(columns > 0 && y.len().is_multiple_of(columns), "broadcast_rows: rows of {columns} in {}", y.len());
    record(recorder, &Call { entry: "broadcast_rows", x: Some(x), s: None, y, columns, store, value: 0.0 });
}
