//! Rotary position embedding.

use super::norm::Heads;
use super::{check, groups, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Recorder};

/// The kernel.
pub static SHADER: Shader = Shader {
    name: "rope",
    wgsl: include_str!("rope.wgsl"),
    entries: &["rope"],
    bindings: &[Access::Read, Access::Read, Access::Write],
};

/// Rotary embedding (Su et al. 2021), half-split pairs, in place on the query and key heads of `qkv (n, width)`.
///
/// `table (positions, head_dim)` holds `head_dim/2` cosines, then as many sines, a row. With `inverse` the rotation is undone,
/// which is its own gradient. Rows at a position beyond the table stay as they are.
#[track_caller]
pub fn rope(
    recorder: &mut Recorder,
    qkv: &Buffer,
    positions: &Buffer<u32>,
    table: &Buffer,
    heads: Heads,
    inverse: bool,
) {
    let (n, d) = (positions.len(), heads.head_dim);
    check("rope", "qkv", qkv, n * heads.qkv_width());
    assert!(d > 0 && d.is_multiple_of(2) && table.len().is_multiple_of(d), "rope: a table of {} for {d}", table.len());
    let rotated = heads.heads + heads.kv_heads;
    let pairs = n * rotated * (d / 2);
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: "rope",
        buffers: &[slot(positions), slot(table), slot(qkv)],
        params: &[
            word(pairs),
            word(rotated),
            word(d),
            word(heads.qkv_width()),
            word(table.len() / d),
            u32::from(inverse),
        ],
        groups: groups(pairs),
        work: BYTE * 24.0 * pairs as f64,
    });
}
