//! Rows by index: embedding and selected rows, with their gradients.

use super::{check, elementwise, groups, slot, word};
use crate::buffer::View;
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Bf16, Buffer, Error, Recorder, Store};
use std::ops::Range;

/// Gather, and its gradient where the rows are all different.
pub static SHADER: Shader = Shader {
    name: "gather",
    wgsl: include_str!("gather.wgsl"),
    entries: &["gather_rows", "scatter_rows"],
    bindings: &[Access::Read, Access::Read, Access::Write],
};

/// Gather from a matrix in bfloat16.
pub static SHADER_BF16: Shader = Shader {
    name: "gather_bf16",
    wgsl: include_str!("gather_bf16.wgsl"),
    entries: &["gather_rows_bf16"],
    bindings: &[Access::Read, Access::Read, Access::Write],
};

/// The gradient of a gather whose rows repeat.
pub static SEGMENT_SUM: Shader = Shader {
    name: "segment_sum",
    wgsl: include_str!("segment_sum.wgsl"),
    entries: &["segment_sum"],
    bindings: &[Access::Read, Access::Read, Access::Write],
};

/// A kernel of `shader`, with `n` invocations, for each part of the matrix `(limit, columns)`; `buffers` by the part.
fn record<'b>(
    recorder: &mut Recorder,
    (shader, entry): (&'static Shader, &'static str),
    n: usize,
    [limit, columns]: [usize; 2],
    more: &[u32],
    buffers: impl Fn(Range<usize>) -> [View<'b>; 3],
) {
    for part in recorder.parts(limit, columns) {
        let mut params = vec![word(n), word(columns)];
        params.extend_from_slice(more);
        params.extend([word(part.len()), word(part.start)]);
        let (groups, work) = (groups(n), BYTE * 12.0 * n as f64);
        recorder.record(&Dispatch { shader, entry, buffers: &buffers(part), params: &params, groups, work });
    }
}

/// The elements of rows.
fn elements(rows: Range<usize>, columns: usize) -> Range<usize> {
    rows.start * columns..rows.end * columns
}

/// `y (m, columns) = x (n, columns)[rows (m)]`: an embedding, or selected rows. Rows beyond `n` give zeros.
#[track_caller]
pub fn gather_rows(recorder: &mut Recorder, x: &Buffer, rows: &Buffer<u32>, columns: usize, y: &Buffer) {
    assert!(columns > 0 && x.len().is_multiple_of(columns), "gather_rows: rows of {columns} in {}", x.len());
    check("gather_rows", "y", y, rows.len() * columns);
    record(recorder, (&SHADER, "gather_rows"), y.len(), [x.len() / columns, columns], &[], |part| {
        [x.part(elements(part, columns)), slot(rows), slot(y)]
    });
}

/// [`gather_rows`] from a matrix in bfloat16: the embedding of a model that is not trained.
#[track_caller]
pub fn gather_rows_bf16(recorder: &mut Recorder, x: &Bf16, rows: &Buffer<u32>, columns: usize, y: &Buffer) {
    assert!(columns > 0 && x.len().is_multiple_of(columns), "gather_rows_bf16: rows of {columns} in {}", x.len());
    let n = rows.len() * columns;
    check("gather_rows_bf16", "y", y, n);
    record(recorder, (&SHADER_BF16, "gather_rows_bf16"), n, [x.len() / columns, columns], &[], |part| {
        let part = elements(part, columns);
        [x.pairs().part(part.start / 2..part.end.div_ceil(2)), slot(rows), slot(y)]
    });
}

/// `d_x (n, columns)` gets `d_y (m, columns)` added at `rows (m)`, which are **all different**; with [`Store::Set`] the other
/// rows become zero.
#[track_caller]
pub fn gather_rows_grad(
    recorder: &mut Recorder,
    d_y: &Buffer,
    rows: &Buffer<u32>,
    columns: usize,
    d_x: &Buffer,
    store: Store,
) {
    assert!(columns > 0 && d_x.len().is_multiple_of(columns), "gather_rows_grad: rows of {columns} in {}", d_x.len());
    check("gather_rows_grad", "d_y", d_y, rows.len() * columns);
    if store == Store::Set {
        elementwise::fill(recorder, d_x, 0.0);
    }
    record(recorder, (&SHADER, "scatter_rows"), d_y.len(), [d_x.len() / columns, columns], &[], |part| {
        [slot(d_y), slot(rows), d_x.part(elements(part, columns))]
    });
}

/// Token ids sorted for [`embed_grad`].
#[derive(Clone, Debug)]
pub struct SortedIds {
    buffer: Buffer<u32>,
    rows: usize,
    distinct: usize,
    largest: usize,
}

impl SortedIds {
    /// Sorts and uploads `ids`.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`].
    pub fn new(recorder: &Recorder, ids: &[u32]) -> Result<Self, Error> {
        let mut order: Vec<u32> = (0..word(ids.len())).collect();
        order.sort_by_key(|&row| (ids[row as usize], row));
        let segments: Vec<&[u32]> = order.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]).collect();
        let mut flat: Vec<u32> = segments.iter().map(|rows| ids[rows[0] as usize]).collect();
        let mut end = 0;
        flat.push(0);
        flat.extend(segments.iter().map(|rows| {
            end += rows.len() as u32;
            end
        }));
        flat.extend_from_slice(&order);
        Ok(Self {
            buffer: recorder.upload(&flat)?,
            rows: ids.len(),
            distinct: segments.len(),
            largest: ids.iter().max().map_or(0, |&id| id as usize),
        })
    }
}

/// `d_table (v, columns)` gets `d_y (n, columns)` at the rows that `ids (n)` name, rows of equal ids added up.
///
/// # Panics
/// On wrong lengths and on an id of `v` or more.
#[track_caller]
pub fn embed_grad(
    recorder: &mut Recorder,
    d_y: &Buffer,
    ids: &SortedIds,
    columns: usize,
    d_table: &Buffer,
    store: Store,
) {
    check("embed_grad", "d_y", d_y, ids.rows * columns);
    if store == Store::Set {
        elementwise::fill(recorder, d_table, 0.0);
    }
    if ids.rows == 0 {
        return;
    }
    assert!((ids.largest + 1) * columns <= d_table.len(), "embed_grad: id {} is beyond the table", ids.largest);
    let dims = [d_table.len() / columns, columns];
    record(recorder, (&SEGMENT_SUM, "segment_sum"), ids.distinct * columns, dims, &[word(ids.distinct)], |part| {
        [slot(d_y), slot(&ids.buffer), d_table.part(elements(part, columns))]
    });
}
