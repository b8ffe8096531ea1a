//! Decoding: the cache of keys and values, and attention to it.

use super::attention::{Attention, MAX_HEAD_DIM};
use super::norm::Heads;
use super::{bits, check, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Recorder};

/// The kernels of this module.
pub static SHADER: Shader = Shader {
    name: "decode",
    wgsl: include_str!("decode.wgsl"),
    entries: &["kv_append", "decode_attention"],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Write],
};

#[track_caller]
fn slots(kernel: &str, cache: &Buffer, heads: Heads) -> usize {
    let kept = 2 * heads.kv_heads * heads.head_dim;
    assert!(kept > 0 && cache.len().is_multiple_of(kept), "{kernel}: rows of {kept} in a cache of {}", cache.len());
    cache.len() / kept
}

/// Copies keys and values of `qkv (n, width)` to rows `places (n)`, all different, of `cache (slots, 2·kv_heads·head_dim)`,
/// keys first. A place beyond the cache is left out.
#[track_caller]
pub fn kv_append(recorder: &mut Recorder, heads: Heads, qkv: &Buffer, places: &Buffer<u32>, cache: &Buffer) {
    let n = places.len();
    check("kv_append", "qkv", qkv, n * heads.qkv_width());
    let slots = slots("kv_append", cache, heads);
    let numbers = n * 2 * heads.kv_heads * heads.head_dim;
    let none = recorder.none();
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: "kv_append",
        buffers: &[slot(qkv), slot(places), slot(&none), slot(cache)],
        params: &params(n, heads, slots, 1.0, None),
        groups: numbers.div_ceil(64) as u64,
        work: BYTE * 8.0 * numbers as f64,
    });
}

fn params(n: usize, h: Heads, slots: usize, scale: f64, softcap: Option<f64>) -> [u32; 7] {
    let [n, heads, kv_heads, head_dim, slots] = [n, h.heads, h.kv_heads, h.head_dim, slots].map(word);
    [n, heads, kv_heads, head_dim, slots, bits(scale), bits(softcap.unwrap_or(0.0))]
}

/// One query row a response, `qkv (n, width)`, against cached rows: `spans (n, 4)` holds prompt start, prompt length, own start
/// and own length, in rows of `cache (slots, 2·kv_heads·head_dim)` → `o (n, heads·head_dim)`. The window of `settings` is not
/// looked at: spans are cut by the caller.
#[track_caller]
pub fn decode_attention(
    recorder: &mut Recorder,
    settings: &Attention,
    qkv: &Buffer,
    cache: &Buffer,
    spans: &Buffer<u32>,
    o: &Buffer,
) {
    let h = settings.heads;
    let divides = h.kv_heads > 0 && h.heads.is_multiple_of(h.kv_heads);
    assert!(divides && (1..=MAX_HEAD_DIM).contains(&h.head_dim), "decode_attention: {h:?}");
    let n = spans.len() / 4;
    check("decode_attention", "spans", spans, 4 * n);
    check("decode_attention", "qkv", qkv, n * h.qkv_width());
    check("decode_attention", "o", o, n * h.out_width());
    let slots = slots("decode_attention", cache, h);
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: "decode_attention",
        buffers: &[slot(qkv), slot(spans), slot(cache), slot(o)],
        params: &params(n, h, slots, settings.scale, settings.softcap),
        groups: (n * h.heads) as u64,
        // At most every query looks at the whole cache once.
        work: 2.0 * (n * h.heads) as f64 * cache.len() as f64 / h.kv_heads as f64,
    });
}
