//! Attention over packed lists.

use crate::common::{Rng, blank, compare, devices, wide};
use larpo_gpu::kernels::attention::{Attention, Packing, Segment, attention, attention_grad};
use larpo_gpu::kernels::norm::Heads;
use larpo_gpu::{Error, Recorder};

/// Lists of a prompt and responses, by their numbers of tokens.
type Shape = &'static [(u32, &'static [u32])];

const SHAPES: [Shape; 9] = [
    &[(1, &[])],
    &[(1, &[1])],
    // No prompt: every response stands alone.
    &[(0, &[3, 1, 17])],
    &[(5, &[3, 1, 4, 0, 2]), (0, &[2, 7]), (1, &[1]), (13, &[])],
    // Around blocks of 32, in prompts and in responses.
    &[(31, &[15, 16, 17])],
    &[(32, &[1, 31]), (17, &[33, 2])],
    &[(33, &[65]), (63, &[7, 1])],
    &[(0, &[64, 65, 3])],
    &[(98, &[2, 33])],
];

fn segments(shape: Shape) -> (usize, Vec<Segment>) {
    let (mut row, mut segments) = (0, Vec::new());
    for &(prompt, responses) in shape {
        let start = row;
        let mut push = |len: u32, prefix_len: u32, row: &mut u32| {
            if len > 0 {
                segments.push(Segment { start: *row, len, prefix_start: start, prefix_len });
                *row += len;
            }
        };
        push(prompt, 0, &mut row);
        responses.iter().for_each(|&len| push(len, prompt, &mut row));
    }
    (row as usize, segments)
}

/// Rows that row `i` sees: the last `window` of its prefix and its own segment up to itself.
fn visible(segments: &[Segment], i: usize, window: Option<usize>) -> Vec<usize> {
    let i = i as u32;
    let s = segments.iter().find(|s| (s.start..s.start + s.len).contains(&i)).unwrap();
    let all: Vec<usize> =
        (s.prefix_start..s.prefix_start + s.prefix_len).chain(s.start..=i).map(|row| row as usize).collect();
    all[window.map_or(0, |window| all.len().saturating_sub(window))..].to_vec()
}

struct Twin {
    o: Vec<f64>,
    lse: Vec<f64>,
    d_qkv: Vec<f64>,
}

fn twin(a: &Attention, segments: &[Segment], n: usize, qkv: &[f64], d_o: &[f64]) -> Twin {
    let Heads { heads, kv_heads, head_dim: d } = a.heads;
    let width = a.heads.qkv_width();
    let mut t = Twin { o: vec![0.0; n * heads * d], lse: vec![], d_qkv: vec![0.0; n * width] };
    for (i, h) in (0..n).flat_map(|i| (0..heads).map(move |h| (i, h))) {
        let seen = visible(segments, i, a.window);
        let kv = h / (heads / kv_heads);
        let (q, k, v) = (i * width + h * d, (heads + kv) * d, (heads + kv_heads + kv) * d);
        let dot = |j: usize| (0..d).map(|c| qkv[q + c] * qkv[j * width + k + c]).sum::<f64>() * a.scale;
        let (s, slope): (Vec<f64>, Vec<f64>) = seen
            .iter()
            .map(|&j| a.softcap.map_or((dot(j), 1.0), |c| (c * (dot(j) / c).tanh(), 1.0 - (dot(j) / c).tanh().powi(2))))
            .unzip();
        let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = s.iter().map(|s| (s - top).exp()).sum();
        t.lse.push(top + sum.ln());
        let w: Vec<f64> = s.iter().map(|s| (s - top).exp() / sum).collect();
        let out = (i * heads + h) * d;
        let d_w: Vec<f64> = seen.iter().map(|&j| (0..d).map(|c| d_o[out + c] * qkv[j * width + v + c]).sum()).collect();
        let mean: f64 = w.iter().zip(&d_w).map(|(w, d)| w * d).sum();
        for (at, &j) in seen.iter().enumerate() {
            let d_s = w[at] * (d_w[at] - mean) * slope[at] * a.scale;
            for c in 0..d {
                t.o[out + c] += w[at] * qkv[j * width + v + c];
                t.d_qkv[q + c] += d_s * qkv[j * width + k + c];
                t.d_qkv[j * width + k + c] += d_s * qkv[q + c];
                t.d_qkv[j * width + v + c] += w[at] * d_o[out + c];
            }
        }
    }
    t
}

fn check(
    shape: Shape,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    softcap: Option<f64>,
    window: Option<usize>,
) {
    let heads = Heads { heads, kv_heads, head_dim };
    let settings = Attention { heads, scale: (head_dim as f64).powf(-0.5), softcap, window };
    let (n, segments) = segments(shape);
    let mut rng = Rng::new(n * 100 + head_dim);
    let (qkv, d_o) = (rng.floats(n * heads.qkv_width(), 2.0), rng.floats(n * heads.out_width(), 1.0));
    let t = twin(&settings, &segments, n, &wide(&qkv), &wide(&d_o));
    let kernels = |r: &mut Recorder| {
        let packing = Packing::new(r, n, &segments)?;
        let (qkv, d_o) = (r.upload(&qkv)?, r.upload(&d_o)?);
        let (o, lse) = (blank(r, n * heads.out_width())?, blank(r, n * heads.heads)?);
        let d_qkv = blank(r, n * heads.qkv_width())?;
        attention(r, &settings, &packing, &qkv, &o, &lse);
        attention_grad(r, &settings, &packing, &d_o, &qkv, &o, &lse, &d_qkv)?;
        Ok(vec![o, lse, d_qkv])
    };
    // A softmax over one key is 1, and nothing flows back through it: rounding is all that there is to queries and keys.
    compare(&format!("{shape:?} {settings:?}"), kernels, &[t.o, t.lse, t.d_qkv]);
}

/// Multi-head, grouped and multi-query layouts; heads beside and beyond the chunks of 32 channels.
const HEADS: [(usize, usize, usize); 6] = [(1, 1, 2), (4, 2, 16), (3, 1, 33), (2, 2, 64), (6, 3, 6), (2, 1, 40)];

#[test]
fn gpu_attention() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        check(shape, HEADS[i % HEADS.len()], None, None);
    }
}

#[test]
fn gpu_attention_of_wide_heads() {
    for head_dim in [65, 129, 256] {
        check(&[(3, &[5, 33])], (2, 1, head_dim), None, None);
    }
}

/// One key, within a block, and beyond it; in the prompt, in the response, and across the two.
#[test]
fn gpu_attention_with_a_window() {
    for (i, (shape, window)) in SHAPES.into_iter().skip(3).zip([5, 1, 33, 40, 64, 100]).enumerate() {
        check(shape, HEADS[(i + 1) % HEADS.len()], None, Some(window));
    }
}

#[test]
fn gpu_attention_with_a_softcap() {
    check(SHAPES[3], HEADS[4], Some(0.7), None);
    check(SHAPES[4], HEADS[1], Some(30.0), None);
    check(SHAPES[5], HEADS[5], Some(2.0), Some(20));
}

#[test]
fn gpu_attention_refuses_segments_that_are_none() {
    let Some(devices) = devices() else { return };
    let recorder = Recorder::new(&devices.trusted).unwrap();
    let segment = |start, len, prefix_start, prefix_len| Segment { start, len, prefix_start, prefix_len };
    let refused = |rows: usize, segments: &[Segment], words: &str| {
        let error = Packing::new(&recorder, rows, segments).unwrap_err();
        assert!(matches!(&error, Error::Index(message) if message.contains(words)), "{error}");
    };
    let prompt = segment(0, 4, 0, 0);
    assert!(Packing::new(&recorder, 6, &[prompt, segment(4, 2, 0, 4)]).is_ok());
    refused(5, &[prompt, segment(4, 2, 0, 4)], "beyond the last row");
    refused(6, &[prompt, segment(3, 3, 0, 3)], "of another segment");
    refused(6, &[prompt], "row 4 is in no segment");
    refused(6, &[prompt, segment(4, 2, 1, 3)], "not the start of one segment");
    refused(6, &[prompt, segment(4, 2, 0, 5)], "not the start of one segment");
    refused(6, &[prompt, segment(4, 2, 4, 2)], "not the start of one segment");
    refused(6, &[prompt, segment(4, 2, 0, 9)], "prefix beyond the last row");
    let apart = [prompt, segment(4, 1, 0, 4), segment(5, 1, 5, 0), segment(6, 1, 0, 4)];
    refused(7, &apart, "next to the other segments");
}
