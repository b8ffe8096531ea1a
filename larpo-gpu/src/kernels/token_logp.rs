//! Log-probabilities of targets through the head, over the vocabulary in chunks, with their gradients.

use super::matmul::{Matrix, matmul};
use super::{bits, check, elementwise, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Error, Recorder, Store, Weight};

/// The kernels between the products.
pub static SHADER: Shader = Shader {
    name: "token_logp",
    wgsl: concat!(include_str!("math.wgsl"), include_str!("token_logp.wgsl")),
    entries: &["token_logp_chunk", "token_logp_finish", "token_logp_grad"],
    bindings: &[Access::Read, Access::Read, Access::Write, Access::Write, Access::Write, Access::Write, Access::Write],
};

/// Largest number of logits in memory at a time, 32 MiB of them.
const CHUNK_LOGITS: usize = 8 << 20;

/// Targets sorted by row for [`token_logp`]: target `t` is `(rows[t], ids[t])`.
#[derive(Clone, Debug)]
pub struct Targets {
    buffer: Buffer<u32>,
    rows: usize,
    n: usize,
    largest: usize,
}

impl Targets {
    /// Sorts and uploads targets on `rows` rows: `target_rows (n)`, each below `rows`, and `target_ids (n)`.
    ///
    /// # Errors
    /// [`Error::Index`] for a row beyond the last; [`Error::TooLarge`], [`Error::OutOfMemory`].
    ///
    /// # Panics
    /// Where there are not as many rows as ids.
    #[track_caller]
    pub fn new(recorder: &Recorder, rows: usize, target_rows: &[u32], target_ids: &[u32]) -> Result<Self, Error> {
        assert_eq!(target_rows.len(), target_ids.len(), "targets: rows and ids");
        if let Some(row) = target_rows.iter().find(|&&row| row as usize >= rows) {
            return Err(Error::Index(format!("targets: row {row} of {rows}")));
        }
        let mut order: Vec<u32> = (0..word(target_rows.len())).collect();
        order.sort_by_key(|&t| (target_rows[t as usize], t));
        let mut flat = vec![0; rows + 1];
        for &row in target_rows {
            flat[row as usize + 1] += 1;
        }
        for row in 0..rows {
            flat[row + 1] += flat[row];
        }
        flat.extend(order.iter().map(|&t| target_ids[t as usize]));
        flat.extend_from_slice(&order);
        Ok(Self {
            buffer: recorder.upload(&flat)?,
            rows,
            n: target_rows.len(),
            largest: target_ids.iter().max().map_or(0, |&id| id as usize),
        })
    }

    /// Number of targets.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are no targets.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }
}

/// The head: a weight and what happens to its logits.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Weight `(vocab, channels)`, row-major.
    pub w: Weight<'a>,
    /// Width of `w`.
    pub channels: usize,
    /// Logits `z` become `c·tanh(z / c)` (Gemma Team 2024, section 2).
    pub softcap: Option<f64>,
    /// Ids whose logits are in memory at a time; none takes as many as fit 32 MiB.
    pub chunk: Option<usize>,
}

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.w.len() / self.channels
    }

    /// The chunks of the vocabulary, (first id, ids), for logits of `most` elements where the caller did not choose.
    fn chunks(&self, rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let vocab = self.vocab();
        let size = self.chunk.unwrap_or_else(|| (most / rows.max(1)).next_multiple_of(128)).max(1);
        (0..vocab).step_by(size).map(move |first| (first, size.min(vocab - first)))
    }

    #[track_caller]
    fn check(&self, h: &Buffer, targets: &Targets) {
        assert!(self.channels > 0 && self.w.len().is_multiple_of(self.channels), "token_logp: rows of the weight");
        check("token_logp", "h", h, targets.rows * self.channels);
        let inside = targets.is_empty() || targets.largest < self.vocab();
        assert!(inside, "token_logp: id {} is beyond the vocabulary of {}", targets.largest, self.vocab());
    }
}

struct Call<'a> {
    entry: &'static str,
    /// d_logp, logits, stats, hits, lse, logp
    buffers: [&'a Buffer; 6],
    chunk: (usize, usize),
    groups: usize,
}

fn record(recorder: &mut Recorder, head: &Head<'_>, targets: &Targets, call: &Call<'_>) {
    let [d_logp, logits, stats, hits, lse, logp] = call.buffers.map(slot);
    let (first, columns) = call.chunk;
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: call.entry,
        buffers: &[slot(&targets.buffer), d_logp, logits, stats, hits, lse, logp],
        params: &[
            word(targets.rows),
            word(targets.n),
            word(columns),
            word(first),
            u32::from(first == 0),
            bits(head.softcap.unwrap_or(0.0)),
        ],
        groups: call.groups as u64,
        work: (targets.rows * columns) as f64 * (20.0 + BYTE * 8.0),
    });
}

/// `h (rows, channels)` through the head → `logp (n)` of the targets, natural logarithm, and the log-sum-exp of every row's
/// logits, `lse (rows)`. The `(rows, vocab)` logits are never whole in memory.
///
/// # Errors
/// [`Error::OutOfMemory`].
///
/// # Panics
/// On wrong lengths and on an id beyond the vocabulary.
#[track_caller]
pub fn token_logp(
    recorder: &mut Recorder,
    h: &Buffer,
    head: &Head,
    targets: &Targets,
    logp: &Buffer,
    lse: &Buffer,
) -> Result<(), Error> {
    head.check(h, targets);
    check("token_logp", "logp", logp, targets.n);
    check("token_logp", "lse", lse, targets.rows);
    if targets.rows == 0 {
        return Ok(());
    }
    let most = CHUNK_LOGITS.min(recorder.binding() / 2);
    let largest = head.chunks(targets.rows, most).map(|(_, columns)| columns).max().unwrap_or(0);
    let logits = recorder.alloc(targets.rows * largest)?;
    let (stats, hits, unused) = (recorder.alloc(2 * targets.rows)?, recorder.alloc(targets.n)?, recorder.alloc(1)?);
    let buffers = [&unused, &logits, &stats, &hits, lse, logp];
    for chunk in head.chunks(targets.rows, most) {
        chunk_logits(recorder, h, head, targets, chunk, &logits);
        record(recorder, head, targets, &Call { entry: "token_logp_chunk", buffers, chunk, groups: targets.rows });
    }
    let groups = targets.rows.div_ceil(128);
    record(recorder, head, targets, &Call { entry: "token_logp_finish", buffers, chunk: (0, 1), groups });
    Ok(())
}

/// `logits (rows, columns) = h · w[first .. first + columns]ᵀ`
fn chunk_logits(
    recorder: &mut Recorder,
    h: &Buffer,
    head: &Head<'_>,
    targets: &Targets,
    (first, columns): (usize, usize),
    logits: &Buffer,
) {
    let (rows, c) = (targets.rows, head.channels);
    let w = Matrix::at(head.w, first * c, columns, c).transposed();
    matmul(recorder, Matrix::new(h, rows, c), w, None, Matrix::new(logits, rows, columns), Store::Set);
}

/// Gradient of [`token_logp`] for any upstream `d_logp (n)`: `d_h (rows, channels)` and, where a destination is given,
/// `d_w (vocab, channels)`. The logits are computed again.
///
/// # Errors
/// [`Error::OutOfMemory`].
///
/// # Panics
/// As [`token_logp`].
#[allow(clippy::too_many_arguments)]
#[track_caller]
pub fn token_logp_grad(
    recorder: &mut Recorder,
    d_logp: &Buffer,
    h: &Buffer,
    head: &Head,
    targets: &Targets,
    lse: &Buffer,
    d_h: (&Buffer, Store),
    d_w: Option<(&Buffer, Store)>,
) -> Result<(), Error> {
    head.check(h, targets);
    check("token_logp_grad", "d_logp", d_logp, targets.n);
    check("token_logp_grad", "lse", lse, targets.rows);
    let (rows, c) = (targets.rows, head.channels);
    check("token_logp_grad", "d_h", d_h.0, rows * c);
    if let Some((d_w, store)) = d_w {
        check("token_logp_grad", "d_w", d_w, head.w.len());
        if rows == 0 && store == Store::Set {
            elementwise::fill(recorder, d_w, 0.0);
        }
    }
    if rows == 0 {
        return Ok(());
    }
    let most = CHUNK_LOGITS.min(recorder.binding() / 2);
    let largest = head.chunks(rows, most).map(|(_, columns)| columns).max().unwrap_or(0);
    let logits = recorder.alloc(rows * largest)?;
    let unused: [Buffer; 3] = [recorder.alloc(1)?, recorder.alloc(1)?, recorder.alloc(1)?];
    let buffers = [d_logp, &logits, &unused[0], &unused[1], lse, &unused[2]];
    for chunk in head.chunks(rows, most) {
        let (first, columns) = chunk;
        chunk_logits(recorder, h, head, targets, chunk, &logits);
        let groups = (rows * columns).div_ceil(128);
        record(recorder, head, targets, &Call { entry: "token_logp_grad", buffers, chunk, groups });
        let d_logits = Matrix::new(&logits, rows, columns);
        let part = Matrix::at(head.w, first * c, columns, c);
        let store = if first == 0 { d_h.1 } else { Store::Add };
        matmul(recorder, d_logits, part, None, Matrix::new(d_h.0, rows, c), store);
        if let Some((d_w, store)) = d_w {
            let into = Matrix::at(d_w, first * c, columns, c);
            matmul(recorder, d_logits.transposed(), Matrix::new(h, rows, c), None, into, store);
        }
    }
    Ok(())
}
