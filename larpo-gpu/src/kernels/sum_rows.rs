//! The sum of the rows of a matrix: the gradient of a bias.

use super::{groups, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Error, Recorder, Store};

/// The kernel.
pub static SHADER: Shader = Shader {
    name: "sum_rows",
    wgsl: include_str!("sum_rows.wgsl"),
    entries: &["sum_rows"],
    bindings: &[Access::Read, Access::Write],
};

/// Rows a chunk and number of chunks for a sum of `rows` rows: two steps of about the square root each, by the number alone.
pub(super) fn chunks(rows: usize) -> (usize, usize) {
    let chunk = rows.isqrt().max(32);
    (chunk, rows.div_ceil(chunk))
}

/// `y (c) = Σ x (n, c)` over the rows, or `+=`.
///
/// # Errors
/// [`Error::OutOfMemory`].
#[track_caller]
pub fn sum_rows(recorder: &mut Recorder, x: &Buffer, y: &Buffer, store: Store) -> Result<(), Error> {
    let c = y.len();
    assert!(c > 0 && x.len().is_multiple_of(c), "sum_rows: rows of {c} in {}", x.len());
    let rows = x.len() / c;
    let (chunk, chunks) = chunks(rows);
    if chunks <= 1 {
        record(recorder, x, y, [rows, c, rows.max(1), 1], store);
        return Ok(());
    }
    let partial = recorder.alloc(chunks * c)?;
    record(recorder, x, &partial, [rows, c, chunk, chunks], Store::Set);
    record(recorder, &partial, y, [chunks, c, chunks, 1], store);
    Ok(())
}

fn record(recorder: &mut Recorder, x: &Buffer, y: &Buffer, [rows, c, chunk, chunks]: [usize; 4], store: Store) {
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: "sum_rows",
        buffers: &[slot(x), slot(y)],
        params: &[word(rows), word(c), word(chunk), word(chunks * c), store.flag()],
        groups: groups(chunks * c),
        work: BYTE * 4.0 * (rows * c) as f64,
    });
}
