//! Dropout with random numbers that are drawn again wherever they are needed, so that no mask is kept.

use super::{bits, check, groups, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Recorder, Store};

/// The kernel.
pub static SHADER: Shader = Shader {
    name: "dropout",
    wgsl: include_str!("dropout.wgsl"),
    entries: &["dropout"],
    bindings: &[Access::Read, Access::Write],
};

/// Which elements are left out: a pure function of these numbers and the element's place.
///
/// Element `4i + j` is left out where word `j` of Philox4x32-10 (Salmon et al., SC 2011) at counter
/// `(i, 0, counter[0], counter[1])` is below `rate · 2³²`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of the elements that become zero, in [0, 1); the others are divided by 1 − rate.
    pub rate: f64,
    /// Key of the random numbers.
    pub key: [u32; 2],
    /// What tells uses of one key apart.
    pub counter: [u32; 2],
}

/// `y (n) = x (n)`, or `+=`, with some elements left out and the others enlarged. It is its own gradient.
///
/// # Panics
/// On other lengths and on a rate outside [0, 1).
#[track_caller]
pub fn dropout(recorder: &mut Recorder, x: &Buffer, settings: &Dropout, y: &Buffer, store: Store) {
    let n = y.len();
    check("dropout", "x", x, n);
    let Dropout { rate, key, counter } = *settings;
    assert!((0.0..1.0).contains(&rate), "dropout: a rate of {rate}");
    // A word, which is whole, is below this bound exactly where it is below the bound rounded up.
    let below = (rate * 4_294_967_296.0).ceil() as u64;
    let last = below.saturating_sub(1) as u32;
    let params = [
        word(n),
        store.flag(),
        u32::from(below > 0),
        last,
        bits(1.0 / (1.0 - rate)),
        key[0],
        key[1],
        counter[0],
        counter[1],
    ];
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: "dropout",
        buffers: &[slot(x), slot(y)],
        params: &params,
        groups: groups(n.div_ceil(4)),
        work: n as f64 * (30.0 + BYTE * 4.0 * (2.0 + store.reads())),
    });
}
