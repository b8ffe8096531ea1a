//! Norms of rows and of heads, with their gradients.

use super::{bits, check, slot, sum_rows, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Error, Recorder, Store};

/// The forward kernel.
pub static SHADER: Shader = Shader {
    name: "norm",
    wgsl: include_str!("norm.wgsl"),
    entries: &["norm"],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Write, Access::Write],
};

/// The gradients by the rows and by the weights.
pub static GRAD: Shader = Shader {
    name: "norm_grad",
    wgsl: include_str!("norm_grad.wgsl"),
    entries: &["norm_grad", "norm_grad_w"],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
};

/// Head layout of a fused `qkv` row: `heads` query heads, then `kv_heads` key heads, then `kv_heads` value heads, each
/// `head_dim` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
}

impl Heads {
    /// Channels of one row of the fused projection.
    pub fn qkv_width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Channels of one row of the attention output.
    pub fn out_width(self) -> usize {
        self.heads * self.head_dim
    }
}

/// How rows divide into slots; see the shader.
#[derive(Clone, Copy)]
struct Layout {
    rows: usize,
    per: usize,
    normed: usize,
    heads: usize,
    d: usize,
    layer: bool,
    offset: f64,
}

impl Layout {
    fn plain(rows: usize, d: usize, layer: bool, offset: f64) -> Self {
        Self { rows, per: 1, normed: 1, heads: 1, d, layer, offset }
    }

    fn of_heads(rows: usize, h: Heads) -> Self {
        let (per, normed) = (h.heads + 2 * h.kv_heads, h.heads + h.kv_heads);
        Self { rows, per, normed, heads: h.heads, d: h.head_dim, layer: false, offset: 0.0 }
    }

    fn words(&self) -> [u32; 6] {
        [self.per, self.normed, self.heads, self.d, self.per * self.d, usize::from(self.layer)].map(word)
    }

    fn len(&self) -> usize {
        self.rows * self.per * self.d
    }

    fn stats(&self) -> usize {
        self.rows * self.normed * if self.layer { 2 } else { 1 }
    }

    #[track_caller]
    fn check(&self, kernel: &str, x: &Buffer, w: [&Buffer; 2], stats: &Buffer) {
        check(kernel, "x", x, self.len());
        check(kernel, "w", w[0], self.d);
        check(kernel, "w", w[1], self.d);
        check(kernel, "stats", stats, self.stats());
    }
}

#[track_caller]
fn forward(
    recorder: &mut Recorder,
    layout: &Layout,
    x: &Buffer,
    w: [&Buffer; 2],
    eps: f64,
    y: &Buffer,
    stats: &Buffer,
) {
    layout.check("norm", x, w, stats);
    check("norm", "y", y, layout.len());
    let [per, normed, heads, d, row, layer] = layout.words();
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: "norm",
        buffers: &[slot(x), slot(w[0]), slot(w[1]), slot(y), slot(stats)],
        params: &[word(layout.rows * layout.per), per, normed, heads, d, row, layer, bits(eps), bits(layout.offset)],
        groups: (layout.rows * layout.per) as u64,
        work: BYTE * 12.0 * layout.len() as f64,
    });
}

/// A weight's gradient: the first slot that has the weight, how many there are, and where the gradient goes.
type WeightGrad<'a> = (usize, usize, &'a Buffer, Store);

#[track_caller]
fn backward(
    recorder: &mut Recorder,
    layout: &Layout,
    operands: [&Buffer; 5],
    d_x: (&Buffer, Store),
    d_w: &[Option<WeightGrad>],
) -> Result<(), Error> {
    let [d_y, x, w, w2, stats] = operands;
    layout.check("norm_grad", x, [w, w2], stats);
    check("norm_grad", "d_y", d_y, layout.len());
    check("norm_grad", "d_x", d_x.0, layout.len());
    let slots = layout.rows * layout.per;
    record_grad(recorder, "norm_grad", layout, operands, d_x, [slots, 0, 1, 1], slots);
    for &(first, count, d_w, store) in d_w.iter().flatten() {
        check("norm_grad", "d_w", d_w, layout.d);
        let slots = layout.rows * count;
        let (chunk, chunks) = sum_rows::chunks(slots);
        let sums = recorder.alloc(chunks * layout.d)?;
        let groups = (chunks * layout.d).div_ceil(64);
        let dims = [slots, first, count, chunk];
        record_grad(recorder, "norm_grad_w", layout, operands, (&sums, Store::Set), dims, groups);
        sum_rows::sum_rows(recorder, &sums, d_w, store)?;
    }
    Ok(())
}

fn record_grad(
    recorder: &mut Recorder,
    entry: &'static str,
    layout: &Layout,
    [d_y, x, w, w2, stats]: [&Buffer; 5],
    (result, store): (&Buffer, Store),
    dims: [usize; 4],
    groups: usize,
) {
    let [per, normed, heads, d, row, layer] = layout.words();
    let [slots, first, count, chunk] = dims.map(word);
    let (offset, add) = (bits(layout.offset), store.flag());
    recorder.record(&Dispatch {
        shader: &GRAD,
        entry,
        buffers: &[slot(d_y), slot(x), slot(w), slot(w2), slot(stats), slot(result)],
        params: &[slots, per, normed, heads, d, row, layer, offset, add, first, count, chunk],
        groups: groups as u64,
        work: BYTE * 16.0 * layout.len() as f64,
    });
}

/// Settings of a root-mean-square norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
    /// Added to the stored weight: 0, or 1 for Gemma, whose weights are stored around zero.
    pub offset: f64,
}

fn rows(x: &Buffer, w: &Buffer) -> usize {
    x.len().checked_div(w.len()).unwrap_or(0)
}

/// Root-mean-square norm (Zhang & Sennrich 2019): `x (n, c), w (c) -> y (n, c) = x·rstd·(w + offset)`, `rstd (n)`.
#[track_caller]
pub fn rms_norm(recorder: &mut Recorder, x: &Buffer, w: &Buffer, settings: RmsNorm, y: &Buffer, rstd: &Buffer) {
    let layout = Layout::plain(rows(x, w), w.len(), false, settings.offset);
    forward(recorder, &layout, x, [w, w], settings.eps, y, rstd);
}

/// `d_y (n, c), x (n, c), w (c), rstd (n) -> d_x (n, c), d_w (c)`
///
/// # Errors
/// [`Error::OutOfMemory`].
#[allow(clippy::too_many_arguments)]
#[track_caller]
pub fn rms_norm_grad(
    recorder: &mut Recorder,
    d_y: &Buffer,
    x: &Buffer,
    w: &Buffer,
    settings: RmsNorm,
    rstd: &Buffer,
    d_x: (&Buffer, Store),
    d_w: Option<(&Buffer, Store)>,
) -> Result<(), Error> {
    let layout = Layout::plain(rows(x, w), w.len(), false, settings.offset);
    backward(recorder, &layout, [d_y, x, w, w, rstd], d_x, &[d_w.map(|(d_w, store)| (0, 1, d_w, store))])
}

/// Norm of mean and variance (Ba et al. 2016), the bias not included: `x (n, c), w (c) -> y (n, c) = (x − mean)·rstd·w`,
/// `stats (n, 2)` = mean, rstd.
#[track_caller]
pub fn layer_norm(recorder: &mut Recorder, x: &Buffer, w: &Buffer, eps: f64, y: &Buffer, stats: &Buffer) {
    let layout = Layout::plain(rows(x, w), w.len(), true, 0.0);
    forward(recorder, &layout, x, [w, w], eps, y, stats);
}

/// `d_y (n, c), x (n, c), w (c), stats (n, 2) -> d_x (n, c), d_w (c)`
///
/// # Errors
/// [`Error::OutOfMemory`].
#[track_caller]
pub fn layer_norm_grad(
    recorder: &mut Recorder,
    d_y: &Buffer,
    x: &Buffer,
    w: &Buffer,
    stats: &Buffer,
    d_x: (&Buffer, Store),
    d_w: Option<(&Buffer, Store)>,
) -> Result<(), Error> {
    let layout = Layout::plain(rows(x, w), w.len(), true, 0.0);
    backward(recorder, &layout, [d_y, x, w, w, stats], d_x, &[d_w.map(|(d_w, store)| (0, 1, d_w, store))])
}

/// Root-mean-square norm of each query head with `w_q (head_dim)` and of each key head with `w_k (head_dim)`:
/// `x (n, width) -> y (n, width)`, values copied, and `rstd (n, heads + kv_heads)`.
#[allow(clippy::too_many_arguments)]
#[track_caller]
pub fn head_norm(
    recorder: &mut Recorder,
    x: &Buffer,
    w_q: &Buffer,
    w_k: &Buffer,
    eps: f64,
    heads: Heads,
    y: &Buffer,
    rstd: &Buffer,
) {
    let layout = Layout::of_heads(x.len() / heads.qkv_width(), heads);
    forward(recorder, &layout, x, [w_q, w_k], eps, y, rstd);
}

/// `d_y (n, width), x, w_q, w_k, rstd -> d_x (n, width)`, overwritten, `d_w_q (head_dim)`, `d_w_k (head_dim)`.
///
/// # Errors
/// [`Error::OutOfMemory`].
#[allow(clippy::too_many_arguments)]
#[track_caller]
pub fn head_norm_grad(
    recorder: &mut Recorder,
    d_y: &Buffer,
    x: &Buffer,
    w_q: &Buffer,
    w_k: &Buffer,
    rstd: &Buffer,
    heads: Heads,
    d_x: &Buffer,
    d_w_q: Option<(&Buffer, Store)>,
    d_w_k: Option<(&Buffer, Store)>,
) -> Result<(), Error> {
    let layout = Layout::of_heads(x.len() / heads.qkv_width(), heads);
    let d_w = [
        d_w_q.map(|(d_w, store)| (0, heads.heads, d_w, store)),
        d_w_k.map(|(d_w, store)| (heads.heads, heads.kv_heads, d_w, store)),
    ];
    backward(recorder, &layout, [d_y, x, w_q, w_k, rstd], (d_x, Store::Set), &d_w)
}
