//! Differentiable operations: one function each, its gradient in the same place.

use crate::backend::{Activation, AttentionSpec, Backend, DropoutSpec, NormSpec, Store, Weight};
use crate::tape::{Tape, Var};
use std::sync::Arc;

fn weight<B: Backend>(w: &Var<B>) -> Weight<'_, B::Buffer> {
    Weight { data: w.value(), out_features: w.rows, in_features: w.cols }
}

/// Rows `ids (n)` of `table (v, c)` → `(n, c)`.
pub fn embed<B: Backend>(tape: &Tape<B>, table: &Var<B>, ids: &Arc<B::Index>, n: usize) -> Var<B> {
    let (b, c) = (tape.backend(), table.cols);
    let mut y = b.alloc(n * c);
    b.embed(table.value(), ids, c, &mut y);
    let (table, ids) = (table.link(), ids.clone());
    tape.record(y, (n, c), &[table], move |b, d_y, flow| {
        flow.with(b, table, |d, store| b.embed_grad(&d_y, &ids, c, d, store));
    })
}

/// `x (n, in) · wᵀ`, with `w (out, in)`, plus `bias (1, out)` in every row and `residual (n, out)`, where there are such
/// → `(n, out)`.
pub fn linear<B: Backend>(
    tape: &Tape<B>,
    x: &Var<B>,
    w: &Var<B>,
    bias: Option<&Var<B>>,
    residual: Option<&Var<B>>,
) -> Var<B> {
    let b = tape.backend();
    let mut y = b.alloc(x.rows * w.rows);
    let mut inputs = vec![x.link(), w.link()];
    let mut store = Store::Set;
    if let Some(residual) = residual {
        b.copy(residual.value(), &mut y, Store::Set);
        inputs.push(residual.link());
        store = Store::Add;
    }
    if let Some(bias) = bias {
        b.broadcast_rows(bias.value(), &mut y, store);
        inputs.push(bias.link());
        store = Store::Add;
    }
    b.linear(x.value(), weight(w), &mut y, store);
    let shape = (x.rows, w.rows);
    // A frozen matrix needs no input for its gradient.
    let saved = w.link().needs_grad().then(|| x.saved());
    let (x, w) = (x.link(), w.clone());
    let (bias, residual) = (bias.map(Var::link), residual.map(Var::link));
    tape.record(y, shape, &inputs, move |b, d_y, flow| {
        flow.with(b, x, |d, store| b.linear_grad_x(&d_y, weight(&w), d, store));
        if let Some(saved) = saved {
            flow.with(b, w.link(), |d, store| b.linear_grad_w(&d_y, &saved.get(b), w.rows, w.cols, d, store));
        }
        if let Some(bias) = bias {
            flow.with(b, bias, |d, store| b.sum_rows(&d_y, d, store));
        }
        if let Some(residual) = residual {
            flow.give(b, residual, d_y);
        }
    })
}

/// A low-rank term of a product; see [`low_rank`].
pub struct LowRank<B: Backend> {
    /// `(parts·r, in)`: the parts' matrices A, one below the other.
    pub a: Var<B>,
    /// `(out_part, r)`: every part's matrix B, and the first column of the result that the part is added to.
    pub parts: Vec<(Var<B>, usize)>,
    /// `(1)`.
    pub scale: Arc<B::Buffer>,
    /// What is left out of the input.
    pub dropout: Option<DropoutSpec>,
}

/// Some columns of a matrix `(n, width)`: it is looked at as narrower rows, of which these are the ones inside.
struct Columns<B: Backend> {
    /// None for all columns.
    rows: Option<B::Index>,
    /// Width of such a row.
    channels: usize,
}

impl<B: Backend> Columns<B> {
    fn new(b: &B, n: usize, width: usize, first: usize, count: usize) -> Self {
        if count == width {
            return Self { rows: None, channels: width };
        }
        let gcd = |mut a: usize, mut b: usize| {
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let channels = gcd(gcd(width, first), count);
        let (of_row, from, to) = (width / channels, first / channels, (first + count) / channels);
        let rows: Vec<u32> = (0..n).flat_map(|row| (from..to).map(move |i| (row * of_row + i) as u32)).collect();
        Self { rows: Some(b.upload_index(&rows)), channels }
    }

    /// The columns of `x` for as long as `with` looks at them, `len` numbers.
    fn of<R>(&self, b: &B, x: &B::Buffer, len: usize, with: impl FnOnce(&B::Buffer) -> R) -> R {
        match &self.rows {
            None => with(x),
            Some(rows) => {
                let mut part = b.alloc(len);
                b.gather_rows(x, rows, self.channels, &mut part);
                with(&part)
            }
        }
    }

    /// The columns of `y` get `len` numbers that `write` makes. With [`Store::Set`] the other columns become zero.
    fn put(&self, b: &B, y: &mut B::Buffer, len: usize, store: Store, write: impl FnOnce(&mut B::Buffer, Store)) {
        match &self.rows {
            None => write(y, store),
            Some(rows) => {
                let mut part = b.alloc(len);
                write(&mut part, Store::Set);
                b.gather_rows_grad(&part, rows, self.channels, y, store);
            }
        }
    }
}

/// `y (n, out)` plus `scale · dropout(x)·Aᵀ·Bᵀ` in the columns of every part, with `x (n, in)` → `(n, out)` (Hu et al. 2021).
/// The parts share what is left out of `x`.
pub fn low_rank<B: Backend>(tape: &Tape<B>, y: Var<B>, x: &Var<B>, low: LowRank<B>) -> Var<B> {
    let (b, n, out) = (tape.backend(), x.rows, y.cols);
    let LowRank { a, parts, scale, dropout } = low;
    let (joint, r) = (a.rows, a.rows / parts.len());
    let mut inputs = vec![y.link(), x.link(), a.link()];
    inputs.extend(parts.iter().map(|(up, _)| up.link()));
    let residual = y.link();
    let mut y = y.into_buffer(b);
    // Kept with the scale, which then is in the gradient of B too.
    let mut h = b.alloc(n * joint);
    dropped(b, x.value(), dropout.as_ref(), |x| b.linear(x, weight(&a), &mut h, Store::Set));
    b.scale(&mut h, &scale);
    for (i, (up, first)) in parts.iter().enumerate() {
        Columns::new(b, n, joint, i * r, r).of(b, &h, n * r, |h| {
            let columns = Columns::new(b, n, out, *first, up.rows);
            columns.put(b, &mut y, n * up.rows, Store::Add, |y, store| b.linear(h, weight(up), y, store));
        });
    }
    let (x, saved) = (x.link(), x.saved());
    tape.record(y, (n, out), &inputs, move |b, d_y, flow| {
        let mut d_h = b.alloc(n * joint);
        for (i, (up, first)) in parts.iter().enumerate() {
            let of_h = Columns::new(b, n, joint, i * r, r);
            Columns::new(b, n, out, *first, up.rows).of(b, &d_y, n * up.rows, |d_y| {
                of_h.of(b, &h, n * r, |h| {
                    flow.with(b, up.link(), |d, store| b.linear_grad_w(d_y, h, up.rows, r, d, store));
                });
                let store = if i == 0 { Store::Set } else { Store::Add };
                of_h.put(b, &mut d_h, n * r, store, |d_h, store| b.linear_grad_x(d_y, weight(up), d_h, store));
            });
        }
        b.scale(&mut d_h, &scale);
        flow.with(b, a.link(), |d, store| {
            dropped(b, &saved.get(b), dropout.as_ref(), |x| b.linear_grad_w(&d_h, x, joint, a.cols, d, store));
        });
        flow.with(b, x, |d_x, store| match &dropout {
            None => b.linear_grad_x(&d_h, weight(&a), d_x, store),
            Some(spec) => {
                let mut d_kept = b.alloc(n * a.cols);
                b.linear_grad_x(&d_h, weight(&a), &mut d_kept, Store::Set);
                b.dropout(&d_kept, spec, d_x, store);
            }
        });
        flow.give(b, residual, d_y);
    })
}

/// `x` with some elements left out, for as long as `with` looks at it.
fn dropped<B: Backend, R>(
    b: &B,
    x: &B::Buffer,
    dropout: Option<&DropoutSpec>,
    with: impl FnOnce(&B::Buffer) -> R,
) -> R {
    match dropout {
        None => with(x),
        Some(spec) => {
            let mut kept = b.alloc(b.len(x));
            b.dropout(x, spec, &mut kept, Store::Set);
            with(&kept)
        }
    }
}

/// `x + y`, of one shape.
pub fn add<B: Backend>(tape: &Tape<B>, x: &Var<B>, y: &Var<B>) -> Var<B> {
    let b = tape.backend();
    let mut sum = b.alloc(x.rows * x.cols);
    b.copy(x.value(), &mut sum, Store::Set);
    b.copy(y.value(), &mut sum, Store::Add);
    let (shape, x, y) = ((x.rows, x.cols), x.link(), y.link());
    tape.record(sum, shape, &[x, y], move |b, d, flow| {
        flow.with(b, x, |d_x, store| b.copy(&d, d_x, store));
        flow.give(b, y, d);
    })
}

/// `x` times the constant `factor (1)`.
pub fn scaled<B: Backend>(tape: &Tape<B>, x: Var<B>, factor: &Arc<B::Buffer>) -> Var<B> {
    let b = tape.backend();
    let (link, shape) = (x.link(), (x.rows, x.cols));
    let mut y = x.into_buffer(b);
    b.scale(&mut y, factor);
    let factor = factor.clone();
    tape.record(y, shape, &[link], move |b, mut d_y, flow| {
        b.scale(&mut d_y, &factor);
        flow.give(b, link, d_y);
    })
}

/// Root-mean-square norm of the rows of `x (n, c)` with weights `w (1, c)` → `(n, c)`. What consumes the result makes it
/// again from `x` for its gradient instead of keeping it.
pub fn rms_norm<B: Backend>(tape: &Tape<B>, x: &Var<B>, w: &Var<B>, spec: NormSpec) -> Var<B> {
    let b = tape.backend();
    let (mut y, mut rstd) = (b.alloc(x.rows * x.cols), b.alloc(x.rows));
    b.rms_norm(x.value(), w.value(), spec, &mut y, &mut rstd);
    let (x, w) = (x.clone(), w.clone());
    let again = (x.clone(), w.clone());
    let y = tape.record(y, (x.rows, x.cols), &[x.link(), w.link()], move |b, d_y, flow| {
        // The weight's gradient needs the same pass over the rows, even where x is an input without a gradient.
        let (mut d_x, store) = flow.take(b, x.link()).unwrap_or_else(|| (b.alloc(x.rows * x.cols), Store::Set));
        let mut d_w = flow.take(b, w.link());
        let into = d_w.as_mut().map(|(d, store)| (d, *store));
        b.rms_norm_grad(&d_y, x.value(), w.value(), spec, &rstd, (&mut d_x, store), into);
        flow.put(x.link(), d_x);
        if let Some((d_w, _)) = d_w {
            flow.put(w.link(), d_w);
        }
    });
    y.recomputed(move |b| {
        let (x, w) = &again;
        let (mut y, mut rstd) = (b.alloc(x.rows * x.cols), b.alloc(x.rows));
        b.rms_norm(x.value(), w.value(), spec, &mut y, &mut rstd);
        y
    })
}

/// Norm of mean and variance of the rows of `x (n, c)` with weights `w (1, c)` and `bias (1, c)` → `(n, c)`. Made again for
/// gradients as in [`rms_norm`].
pub fn layer_norm<B: Backend>(tape: &Tape<B>, x: &Var<B>, w: &Var<B>, bias: &Var<B>, eps: f64) -> Var<B> {
    fn forward<B: Backend>(b: &B, [x, w, bias]: [&Var<B>; 3], eps: f64) -> (B::Buffer, B::Buffer) {
        let (mut y, mut stats) = (b.alloc(x.rows * x.cols), b.alloc(2 * x.rows));
        b.layer_norm(x.value(), w.value(), eps, &mut y, &mut stats);
        b.broadcast_rows(bias.value(), &mut y, Store::Add);
        (y, stats)
    }
    let (y, stats) = forward(tape.backend(), [x, w, bias], eps);
    let (x, w, bias) = (x.clone(), w.clone(), bias.clone());
    let again = (x.clone(), w.clone(), bias.clone());
    let y = tape.record(y, (x.rows, x.cols), &[x.link(), w.link(), bias.link()], move |b, d_y, flow| {
        let (mut d_x, store) = flow.take(b, x.link()).unwrap_or_else(|| (b.alloc(x.rows * x.cols), Store::Set));
        let mut d_w = flow.take(b, w.link());
        let into = d_w.as_mut().map(|(d, store)| (d, *store));
        b.layer_norm_grad(&d_y, x.value(), w.value(), &stats, (&mut d_x, store), into);
        flow.put(x.link(), d_x);
        if let Some((d_w, _)) = d_w {
            flow.put(w.link(), d_w);
        }
        flow.with(b, bias.link(), |d, store| b.sum_rows(&d_y, d, store));
    });
    y.recomputed(move |b| forward(b, [&again.0, &again.1, &again.2], eps).0)
}

/// Root-mean-square norm of each query head with `w_q (1, head_dim)` and each key head with `w_k (1, head_dim)`:
/// `qkv (n, width)` → `(n, width)`.
pub fn head_norm<B: Backend>(
    tape: &Tape<B>,
    qkv: &Var<B>,
    w_q: &Var<B>,
    w_k: &Var<B>,
    eps: f64,
    spec: AttentionSpec,
) -> Var<B> {
    let b = tape.backend();
    let (n, width) = (qkv.rows, qkv.cols);
    let (mut y, mut rstd) = (b.alloc(n * width), b.alloc(n * (spec.heads + spec.kv_heads)));
    b.head_norm(qkv.value(), w_q.value(), w_k.value(), eps, &spec, &mut y, &mut rstd);
    let (x, w_q, w_k) = (qkv.clone(), w_q.clone(), w_k.clone());
    tape.record(y, (n, width), &[x.link(), w_q.link(), w_k.link()], move |b, d_y, flow| {
        let mut d_x = b.alloc(n * width);
        let (mut d_q, mut d_k) = (flow.take(b, w_q.link()), flow.take(b, w_k.link()));
        let into_q = d_q.as_mut().map(|(d, store)| (d, *store));
        let into_k = d_k.as_mut().map(|(d, store)| (d, *store));
        b.head_norm_grad(&d_y, x.value(), w_q.value(), w_k.value(), &rstd, &spec, &mut d_x, into_q, into_k);
        flow.give(b, x.link(), d_x);
        for (link, d) in [(w_q.link(), d_q), (w_k.link(), d_k)] {
            if let Some((d, _)) = d {
                flow.put(link, d);
            }
        }
    })
}

/// Rotary embedding of the query and key heads of `qkv (n, width)` at `positions (n)`; `table` as in [`Backend::rope`].
pub fn rope<B: Backend>(
    tape: &Tape<B>,
    qkv: Var<B>,
    positions: &Arc<B::Index>,
    table: &Arc<B::Buffer>,
    spec: AttentionSpec,
) -> Var<B> {
    let b = tape.backend();
    let (link, shape) = (qkv.link(), (qkv.rows, qkv.cols));
    let mut y = qkv.into_buffer(b);
    b.rope(&mut y, positions, table, &spec, false);
    let (positions, table) = (positions.clone(), table.clone());
    tape.record(y, shape, &[link], move |b, mut d_y, flow| {
        b.rope(&mut d_y, &positions, &table, &spec, true);
        flow.give(b, link, d_y);
    })
}

/// Attention inside packed segments: `qkv (n, width)` → `(n, heads·head_dim)`; `segments` as in [`Backend::attention`].
pub fn attention<B: Backend>(tape: &Tape<B>, qkv: &Var<B>, segments: &Arc<B::Index>, spec: AttentionSpec) -> Var<B> {
    let b = tape.backend();
    let n = qkv.rows;
    let (mut o, mut lse) = (b.alloc(n * spec.out_width()), b.alloc(n * spec.heads));
    b.attention(qkv.value(), segments, &spec, &mut o, &mut lse);
    let o = Arc::new(o);
    let (qkv, segments, saved) = (qkv.clone(), segments.clone(), o.clone());
    tape.record(o, (n, spec.out_width()), &[qkv.link()], move |b, d_o, flow| {
        let mut d_qkv = b.alloc(qkv.rows * qkv.cols);
        b.attention_grad(&d_o, qkv.value(), &saved, &lse, &segments, &spec, &mut d_qkv);
        flow.give(b, qkv.link(), d_qkv);
    })
}

/// Gated unit: `gate_up (n, 2·width)` → `(n, width)`. Made again for gradients as in [`rms_norm`].
pub fn glu<B: Backend>(tape: &Tape<B>, gate_up: &Var<B>, activation: Activation) -> Var<B> {
    let (b, n, width) = (tape.backend(), gate_up.rows, gate_up.cols / 2);
    let mut y = b.alloc(n * width);
    b.glu(gate_up.value(), width, activation, &mut y);
    let (gate_up, again) = (gate_up.clone(), gate_up.clone());
    let y = tape.record(y, (n, width), &[gate_up.link()], move |b, d_y, flow| {
        let mut d = b.alloc(n * 2 * width);
        b.glu_grad(&d_y, gate_up.value(), width, activation, &mut d);
        flow.give(b, gate_up.link(), d);
    });
    y.recomputed(move |b| {
        let mut y = b.alloc(n * width);
        b.glu(again.value(), width, activation, &mut y);
        y
    })
}

/// The activation of every element of `x`. Made again for gradients as in [`rms_norm`].
pub fn activate<B: Backend>(tape: &Tape<B>, x: &Var<B>, activation: Activation) -> Var<B> {
    let (b, shape) = (tape.backend(), (x.rows, x.cols));
    let len = x.rows * x.cols;
    let mut y = b.alloc(len);
    b.activate(x.value(), activation, &mut y);
    let (x, again) = (x.clone(), x.clone());
    let y = tape.record(y, shape, &[x.link()], move |b, d_y, flow| {
        let mut d = b.alloc(len);
        b.activate_grad(&d_y, x.value(), activation, &mut d);
        flow.give(b, x.link(), d);
    });
    y.recomputed(move |b| {
        let mut y = b.alloc(len);
        b.activate(again.value(), activation, &mut y);
        y
    })
}

/// Distinct `rows (m)` of `x (n, c)` → `(m, c)`.
pub fn gather_rows<B: Backend>(tape: &Tape<B>, x: &Var<B>, rows: &Arc<B::Index>, m: usize) -> Var<B> {
    let (b, c) = (tape.backend(), x.cols);
    let mut y = b.alloc(m * c);
    b.gather_rows(x.value(), rows, c, &mut y);
    let (x, rows) = (x.link(), rows.clone());
    tape.record(y, (m, c), &[x], move |b, d_y, flow| {
        flow.with(b, x, |d, store| b.gather_rows_grad(&d_y, &rows, c, d, store));
    })
}

/// Log-probability of `count` targets through the head `w (v, c)`: `h (r, c)` → `(count, 1)`; see [`Backend::token_logp`].
#[allow(clippy::too_many_arguments)]
pub fn token_logp<B: Backend>(
    tape: &Tape<B>,
    h: &Var<B>,
    w: &Var<B>,
    softcap: Option<f64>,
    target_rows: &Arc<B::Index>,
    target_ids: &Arc<B::Index>,
    count: usize,
) -> Var<B> {
    let b = tape.backend();
    let (mut logp, mut lse) = (b.alloc(count), b.alloc(h.rows));
    b.token_logp(h.value(), weight(w), softcap, target_rows, target_ids, &mut logp, &mut lse);
    let (h, saved, len, w) = (h.link(), h.saved(), h.rows * h.cols, w.clone());
    let (rows, ids) = (target_rows.clone(), target_ids.clone());
    tape.record(logp, (count, 1), &[h, w.link()], move |b, d, flow| {
        let (mut d_h, store) = flow.take(b, h).unwrap_or_else(|| (b.alloc(len), Store::Set));
        let mut d_w = flow.take(b, w.link());
        let into = d_w.as_mut().map(|(d, store)| (d, *store));
        b.token_logp_grad(&d, &saved.get(b), weight(&w), softcap, &rows, &ids, &lse, (&mut d_h, store), into);
        flow.put(h, d_h);
        if let Some((d_w, _)) = d_w {
            flow.put(w.link(), d_w);
        }
    })
}

/// `Σ weights · x` → `(1, 1)`, with constant weights.
pub fn weighted_sum<B: Backend>(tape: &Tape<B>, x: &Var<B>, weights: &Arc<B::Buffer>) -> Var<B> {
    let b = tape.backend();
    let mut y = b.alloc(1);
    b.weighted_sum(x.value(), weights, &mut y);
    let (x, weights) = (x.link(), weights.clone());
    tape.record(y, (1, 1), &[x], move |b, d_y, flow| {
        flow.with(b, x, |d, store| b.weighted_sum_grad(&d_y, &weights, d, store));
    })
}

/// What [`list_loss`] computes.
pub struct ListLoss<B: Backend> {
    /// `Σ loss · scale`, the scalar to go backward from.
    pub total: Var<B>,
    /// γ of every response, in packed order.
    pub gamma: B::Buffer,
    /// Loss of every list, unscaled.
    pub losses: B::Buffer,
}

/// List losses over `logp (targets, 1)` against `reference (targets)`; see [`Backend::list_loss`].
pub fn list_loss<B: Backend>(
    tape: &Tape<B>,
    logp: &Var<B>,
    reference: &B::Buffer,
    lists: &B::Lists,
    (items, list_count): (usize, usize),
    scale: f64,
) -> ListLoss<B> {
    let b = tape.backend();
    let (mut gamma, mut losses, mut d_logp) = (b.alloc(items), b.alloc(list_count), b.alloc(logp.rows));
    b.list_loss(logp.value(), reference, lists, &mut gamma, &mut losses, &mut d_logp);
    let mut scales = b.alloc(list_count);
    b.fill(&mut scales, scale);
    let mut total = b.alloc(1);
    b.weighted_sum(&losses, &scales, &mut total);
    let logp = logp.link();
    let total = tape.record(total, (1, 1), &[logp], move |b, d, flow| {
        b.scale(&mut d_logp, &d);
        flow.give(b, logp, d_logp);
    });
    ListLoss { total, gamma, losses }
}
