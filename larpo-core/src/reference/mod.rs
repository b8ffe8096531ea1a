//! The reference backend: the same trait in `f64`, plain loops, one thread.
//!
//! Nothing here is fast or clever. Every operation is written from its definition, attention from the visibility rule of
//! a packed list row by row, so that the fast backends have something independent to be compared with, and gradients can
//! be checked against central differences.

mod decode;
mod rows;

use crate::backend::{
    Activation, AdamWSpec, AttentionSpec, Backend, Draw, DropoutSpec, NormSpec, SamplingSpec, Segment, Store, Weight,
};
use crate::lists::{PreparedLists, RankedLists};

/// The naive double-precision backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

type Buffer = Vec<f64>;
type Index = Vec<u32>;

fn put(store: Store, y: &mut f64, value: f64) {
    match store {
        Store::Set => *y = value,
        Store::Add => *y += value,
    }
}

/// Rows that row `i` sees, by the rule of a packed list: the last `window` of the prefix and its own segment up to it.
fn visible(segments: &Index, i: usize, window: Option<usize>) -> Vec<usize> {
    for s in Segment::parse(segments) {
        let (start, len) = (s.start as usize, s.len as usize);
        if (start..start + len).contains(&i) {
            let prefix = s.prefix_start as usize..(s.prefix_start + s.prefix_len) as usize;
            let all: Vec<usize> = prefix.chain(start..=i).collect();
            let hidden = window.map_or(0, |window| all.len().saturating_sub(window));
            return all[hidden..].to_vec();
        }
    }
    Vec::new()
}

/// The multiple of 2⁻⁷ of the power of two below `x` that is nearest, of two the even one; below the smallest power of single
/// precision, of that.
fn nearest_bf16(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = 2f64.powi((x.abs().log2().floor() as i32).max(-126) - 7);
    let rounded = (x / unit).round_ties_even() * unit;
    // As in the formats of IEEE 754, what rounds beyond the largest number is infinite.
    if rounded.abs() < 2f64.powi(128) { rounded } else { rounded.signum() * f64::INFINITY }
}

impl Backend for Reference {
    type Buffer = Buffer;
    type Index = Index;
    type Lists = PreparedLists;

    fn name(&self) -> String {
        "reference".into()
    }

    fn multiplies_in_half(&self) -> bool {
        false
    }

    fn alloc(&self, len: usize) -> Buffer {
        // Unspecified contents must not be relied upon; NaN shows who does.
        vec![f64::NAN; len]
    }

    fn len(&self, x: &Buffer) -> usize {
        x.len()
    }

    fn upload(&self, data: &[f32]) -> Buffer {
        data.iter().map(|&v| f64::from(v)).collect()
    }

    fn upload_bf16(&self, data: &[f32]) -> Buffer {
        data.iter().map(|&v| nearest_bf16(f64::from(v))).collect()
    }

    fn alloc_bf16(&self, len: usize) -> Buffer {
        self.alloc(len)
    }

    fn upload_index(&self, data: &[u32]) -> Index {
        data.to_vec()
    }

    fn upload_lists(&self, lists: &RankedLists) -> PreparedLists {
        PreparedLists::new(lists)
    }

    fn download(&self, x: &Buffer, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "download: lengths differ");
        for (out, x) in out.iter_mut().zip(x) {
            *out = *x as f32;
        }
    }

    fn read(&self, x: &Buffer) -> Vec<f64> {
        x.clone()
    }

    fn read_all(&self, buffers: &[&Buffer]) -> Vec<Vec<f64>> {
        buffers.iter().map(|x| self.read(x)).collect()
    }

    fn fill(&self, x: &mut Buffer, value: f64) {
        x.fill(value);
    }

    fn copy(&self, x: &Buffer, y: &mut Buffer, store: Store) {
        assert_eq!(x.len(), y.len(), "copy: lengths differ");
        for (y, &x) in y.iter_mut().zip(x) {
            put(store, y, x);
        }
    }

    fn trim(&self) {}

    fn limit(&self, _: u64) {}

    fn embed(&self, table: &Buffer, ids: &Index, channels: usize, y: &mut Buffer) {
        self.gather_rows(table, ids, channels, y);
    }

    fn embed_grad(&self, d_y: &Buffer, ids: &Index, channels: usize, d_table: &mut Buffer, store: Store) {
        self.gather_rows_grad(d_y, ids, channels, d_table, store);
    }

    fn linear(&self, x: &Buffer, w: Weight<Buffer>, y: &mut Buffer, store: Store) {
        let (i, o) = (w.in_features, w.out_features);
        for n in 0..x.len() / i {
            for r in 0..o {
                let sum = (0..i).map(|c| x[n * i + c] * w.data[r * i + c]).sum();
                put(store, &mut y[n * o + r], sum);
            }
        }
    }

    fn linear_grad_x(&self, d_y: &Buffer, w: Weight<Buffer>, d_x: &mut Buffer, store: Store) {
        let (i, o) = (w.in_features, w.out_features);
        for n in 0..d_y.len() / o {
            for c in 0..i {
                let sum = (0..o).map(|r| d_y[n * o + r] * w.data[r * i + c]).sum();
                put(store, &mut d_x[n * i + c], sum);
            }
        }
    }

    fn linear_grad_w(&self, d_y: &Buffer, x: &Buffer, o: usize, i: usize, d_w: &mut Buffer, store: Store) {
        for r in 0..o {
            for c in 0..i {
                let sum = (0..x.len() / i).map(|n| d_y[n * o + r] * x[n * i + c]).sum();
                put(store, &mut d_w[r * i + c], sum);
            }
        }
    }

    fn rms_norm(&self, x: &Buffer, w: &Buffer, spec: NormSpec, y: &mut Buffer, rstd: &mut Buffer) {
        rows::rms_norm(x, w, spec, y, rstd);
    }

    fn rms_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w: &Buffer,
        spec: NormSpec,
        rstd: &Buffer,
        d_x: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        rows::rms_norm_grad(d_y, x, w, spec, rstd, d_x, d_w);
    }

    fn layer_norm(&self, x: &Buffer, w: &Buffer, eps: f64, y: &mut Buffer, stats: &mut Buffer) {
        rows::layer_norm(x, w, eps, y, stats);
    }

    fn layer_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w: &Buffer,
        stats: &Buffer,
        d_x: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        rows::layer_norm_grad(d_y, x, w, stats, d_x, d_w);
    }

    fn head_norm(
        &self,
        x: &Buffer,
        w_q: &Buffer,
        w_k: &Buffer,
        eps: f64,
        spec: &AttentionSpec,
        y: &mut Buffer,
        rstd: &mut Buffer,
    ) {
        rows::head_norm(x, [w_q, w_k], eps, spec, y, rstd);
    }

    fn head_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w_q: &Buffer,
        w_k: &Buffer,
        rstd: &Buffer,
        spec: &AttentionSpec,
        d_x: &mut Buffer,
        d_w_q: Option<(&mut Buffer, Store)>,
        d_w_k: Option<(&mut Buffer, Store)>,
    ) {
        rows::head_norm_grad(d_y, x, [w_q, w_k], rstd, spec, d_x, [d_w_q, d_w_k]);
    }

    fn broadcast_rows(&self, x: &Buffer, y: &mut Buffer, store: Store) {
        for (i, y) in y.iter_mut().enumerate() {
            put(store, y, x[i % x.len()]);
        }
    }

    fn sum_rows(&self, x: &Buffer, y: &mut Buffer, store: Store) {
        let c = y.len();
        for (i, y) in y.iter_mut().enumerate() {
            put(store, y, (0..x.len() / c).map(|n| x[n * c + i]).sum());
        }
    }

    fn rope(&self, qkv: &mut Buffer, positions: &Index, table: &Buffer, spec: &AttentionSpec, inverse: bool) {
        let (d, width) = (spec.head_dim, spec.qkv_width());
        for (n, &position) in positions.iter().enumerate() {
            for h in 0..spec.heads + spec.kv_heads {
                for i in 0..d / 2 {
                    let (cos, sin) = (table[position as usize * d + i], table[position as usize * d + d / 2 + i]);
                    let sin = if inverse { -sin } else { sin };
                    let (at, other) = (n * width + h * d + i, n * width + h * d + i + d / 2);
                    let (a, b) = (qkv[at], qkv[other]);
                    qkv[at] = a * cos - b * sin;
                    qkv[other] = b * cos + a * sin;
                }
            }
        }
    }

    fn attention(&self, qkv: &Buffer, segments: &Index, spec: &AttentionSpec, o: &mut Buffer, lse: &mut Buffer) {
        let (d, width) = (spec.head_dim, spec.qkv_width());
        for n in 0..qkv.len() / width {
            let seen = visible(segments, n, spec.window);
            for h in 0..spec.heads {
                let kv = h / spec.group();
                let (k_at, v_at) = ((spec.heads + kv) * d, (spec.heads + spec.kv_heads + kv) * d);
                let score = |j: usize| -> f64 {
                    (0..d).map(|c| qkv[n * width + h * d + c] * qkv[j * width + k_at + c]).sum::<f64>() * spec.scale
                };
                let scores: Vec<f64> = seen.iter().map(|&j| rows::softcap(spec.softcap, score(j)).0).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                lse[n * spec.heads + h] = max + sum.ln();
                for c in 0..d {
                    let weighted = seen.iter().zip(&scores).map(|(&j, s)| (s - max).exp() * qkv[j * width + v_at + c]);
                    o[(n * spec.heads + h) * d + c] = weighted.sum::<f64>() / sum;
                }
            }
        }
    }

    fn attention_grad(
        &self,
        d_o: &Buffer,
        qkv: &Buffer,
        _o: &Buffer,
        _lse: &Buffer,
        segments: &Index,
        spec: &AttentionSpec,
        d_qkv: &mut Buffer,
    ) {
        let (d, width) = (spec.head_dim, spec.qkv_width());
        d_qkv.fill(0.0);
        for n in 0..qkv.len() / width {
            let seen = visible(segments, n, spec.window);
            for h in 0..spec.heads {
                let kv = h / spec.group();
                let (k_at, v_at) = ((spec.heads + kv) * d, (spec.heads + spec.kv_heads + kv) * d);
                let q_at = n * width + h * d;
                let (scores, slopes): (Vec<f64>, Vec<f64>) = seen
                    .iter()
                    .map(|&j| (0..d).map(|c| qkv[q_at + c] * qkv[j * width + k_at + c]).sum::<f64>() * spec.scale)
                    .map(|score| rows::softcap(spec.softcap, score))
                    .unzip();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
                let d_out = |c: usize| d_o[(n * spec.heads + h) * d + c];
                let d_p: Vec<f64> =
                    seen.iter().map(|&j| (0..d).map(|c| d_out(c) * qkv[j * width + v_at + c]).sum()).collect();
                let mean: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
                for (i, &j) in seen.iter().enumerate() {
                    let d_s = p[i] * (d_p[i] - mean) * slopes[i] * spec.scale;
                    for c in 0..d {
                        d_qkv[q_at + c] += d_s * qkv[j * width + k_at + c];
                        d_qkv[j * width + k_at + c] += d_s * qkv[q_at + c];
                        d_qkv[j * width + v_at + c] += p[i] * d_out(c);
                    }
                }
            }
        }
    }

    fn glu(&self, gate_up: &Buffer, width: usize, activation: Activation, y: &mut Buffer) {
        rows::glu(gate_up, width, activation, y);
    }

    fn glu_grad(&self, d_y: &Buffer, gate_up: &Buffer, width: usize, activation: Activation, d_gate_up: &mut Buffer) {
        rows::glu_grad(d_y, gate_up, width, activation, d_gate_up);
    }

    fn activate(&self, x: &Buffer, activation: Activation, y: &mut Buffer) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = rows::activation(activation, x).0;
        }
    }

    fn activate_grad(&self, d_y: &Buffer, x: &Buffer, activation: Activation, d_x: &mut Buffer) {
        for ((d_x, d_y), &x) in d_x.iter_mut().zip(d_y).zip(x) {
            *d_x = d_y * rows::activation(activation, x).1;
        }
    }

    fn gather_rows(&self, x: &Buffer, rows: &Index, channels: usize, y: &mut Buffer) {
        for (n, &row) in rows.iter().enumerate() {
            for c in 0..channels {
                y[n * channels + c] = x[row as usize * channels + c];
            }
        }
    }

    fn gather_rows_grad(&self, d_y: &Buffer, rows: &Index, channels: usize, d_x: &mut Buffer, store: Store) {
        if store == Store::Set {
            d_x.fill(0.0);
        }
        for (n, &row) in rows.iter().enumerate() {
            for c in 0..channels {
                d_x[row as usize * channels + c] += d_y[n * channels + c];
            }
        }
    }

    fn token_logp(
        &self,
        h: &Buffer,
        w: Weight<Buffer>,
        softcap: Option<f64>,
        target_rows: &Index,
        target_ids: &Index,
        logp: &mut Buffer,
        lse: &mut Buffer,
    ) {
        let capped = |row: usize| -> Vec<f64> {
            rows::logits(h, w, row).into_iter().map(|z| rows::softcap(softcap, z).0).collect()
        };
        for (row, lse) in lse.iter_mut().enumerate() {
            *lse = rows::log_sum_exp(&capped(row));
        }
        for (t, logp) in logp.iter_mut().enumerate() {
            let row = target_rows[t] as usize;
            *logp = capped(row)[target_ids[t] as usize] - lse[row];
        }
    }

    fn token_logp_grad(
        &self,
        d_logp: &Buffer,
        h: &Buffer,
        w: Weight<Buffer>,
        softcap: Option<f64>,
        target_rows: &Index,
        target_ids: &Index,
        _lse: &Buffer,
        d_h: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        let (c, vocab) = (w.in_features, w.out_features);
        let (d_h, store) = d_h;
        if store == Store::Set {
            d_h.fill(0.0);
        }
        let mut d_weight = vec![0.0; c * vocab];
        for (t, &d) in d_logp.iter().enumerate() {
            let row = target_rows[t] as usize;
            let (logits, slopes): (Vec<f64>, Vec<f64>) =
                rows::logits(h, w, row).into_iter().map(|z| rows::softcap(softcap, z)).unzip();
            let lse = rows::log_sum_exp(&logits);
            for v in 0..vocab {
                let hit = if v == target_ids[t] as usize { 1.0 } else { 0.0 };
                let d_logit = d * (hit - (logits[v] - lse).exp()) * slopes[v];
                for i in 0..c {
                    d_h[row * c + i] += d_logit * w.data[v * c + i];
                    d_weight[v * c + i] += d_logit * h[row * c + i];
                }
            }
        }
        if let Some((d_w, store)) = d_w {
            for (d, value) in d_w.iter_mut().zip(d_weight) {
                put(store, d, value);
            }
        }
    }

    fn weighted_sum(&self, x: &Buffer, w: &Buffer, y: &mut Buffer) {
        y[0] = x.iter().zip(w).map(|(x, w)| x * w).sum();
    }

    fn weighted_sum_grad(&self, d_y: &Buffer, w: &Buffer, d_x: &mut Buffer, store: Store) {
        for (d_x, w) in d_x.iter_mut().zip(w) {
            put(store, d_x, d_y[0] * w);
        }
    }

    fn list_loss(
        &self,
        logp: &Buffer,
        reference: &Buffer,
        lists: &PreparedLists,
        gamma: &mut Buffer,
        loss: &mut Buffer,
        d_logp: &mut Buffer,
    ) {
        let result = lists.evaluate(logp, reference);
        gamma.copy_from_slice(&result.gamma);
        loss.copy_from_slice(&result.loss);
        d_logp.copy_from_slice(&result.d_logp);
    }

    fn dropout(&self, x: &Buffer, spec: &DropoutSpec, y: &mut Buffer, store: Store) {
        for (i, y) in y.iter_mut().enumerate() {
            put(store, y, x[i] * spec.factors(i as u64 / 4)[i % 4]);
        }
    }

    fn scale(&self, x: &mut Buffer, y: &Buffer) {
        for x in x.iter_mut() {
            *x *= y[0];
        }
    }

    fn sq_norm(&self, x: &Buffer, out: &mut Buffer, at: usize) {
        out[at] = x.iter().map(|v| v * v).sum();
    }

    fn clip(&self, sq_norms: &Buffer, max_norm: f64, out: &mut Buffer) {
        let norm = sq_norms.iter().sum::<f64>().sqrt();
        out[0] = norm;
        out[1] = if max_norm > 0.0 && norm > max_norm { max_norm / norm } else { 1.0 };
    }

    fn adamw(&self, spec: &AdamWSpec, w: &mut Buffer, g: &Buffer, m: &mut Buffer, v: &mut Buffer, clip: &Buffer) {
        let step = spec.step as i32;
        for i in 0..w.len() {
            let g = g[i] * clip[1];
            m[i] = spec.beta1 * m[i] + (1.0 - spec.beta1) * g;
            v[i] = spec.beta2 * v[i] + (1.0 - spec.beta2) * g * g;
            let m_hat = m[i] / (1.0 - spec.beta1.powi(step));
            let v_hat = v[i] / (1.0 - spec.beta2.powi(step));
            w[i] -= spec.learning_rate * (m_hat / (v_hat.sqrt() + spec.eps) + spec.weight_decay * w[i]);
        }
    }

    fn kv_append(&self, qkv: &Buffer, slots: &Index, spec: &AttentionSpec, cache: &mut Buffer) {
        decode::kv_append(qkv, slots, spec, cache);
    }

    fn decode_attention(&self, qkv: &Buffer, cache: &Buffer, spans: &Index, spec: &AttentionSpec, o: &mut Buffer) {
        decode::decode_attention(qkv, cache, spans, spec, o);
    }

    fn softcap(&self, x: &mut Buffer, c: f64) {
        x.iter_mut().for_each(|x| *x = rows::softcap(Some(c), *x).0);
    }

    fn sample(&self, logits: &Buffer, vocab: usize, spec: &SamplingSpec, uniform: &[f64]) -> Vec<Draw> {
        logits.chunks(vocab).zip(uniform).map(|(row, &u)| decode::sample(row, spec, u)).collect()
    }
}
