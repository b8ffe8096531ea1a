//! The cache of keys and values, and attention to it.

use crate::common::{Rng, blank, compare, wide};
use larpo_gpu::Recorder;
use larpo_gpu::kernels::attention::Attention;
use larpo_gpu::kernels::decode::{decode_attention, kv_append};
use larpo_gpu::kernels::norm::Heads;

#[test]
fn gpu_kv_append() {
    let mut rng = Rng::new(1);
    for (n, heads, kv_heads, head_dim, slots) in
        [(1, 1, 1, 2, 1), (3, 4, 2, 8, 7), (17, 3, 1, 33, 65), (64, 2, 2, 5, 64)]
    {
        let heads = Heads { heads, kv_heads, head_dim };
        let (width, kept) = (heads.qkv_width(), 2 * kv_heads * head_dim);
        let (qkv, cache) = (rng.floats(n * width, 1.0), rng.floats(slots * kept, 1.0));
        let mut places: Vec<u32> = (0..slots as u32).collect();
        places.sort_by_cached_key(|_| rng.next());
        places.truncate(n);
        let mut want = wide(&cache);
        for (row, &place) in places.iter().enumerate() {
            let at = place as usize * kept;
            want[at..at + kept].copy_from_slice(&wide(&qkv[(row + 1) * width - kept..(row + 1) * width]));
        }
        let kernels = |r: &mut Recorder| {
            let (qkv, places, cache) = (r.upload(&qkv)?, r.upload(&places)?, r.upload(&cache)?);
            kv_append(r, heads, &qkv, &places, &cache);
            Ok(vec![cache])
        };
        compare(&format!("{n} {heads:?} {slots}"), kernels, &[want]);
    }
}

fn check(spans: &[[u32; 4]], (heads, kv_heads, head_dim): (usize, usize, usize), softcap: Option<f64>) {
    let heads = Heads { heads, kv_heads, head_dim };
    let settings = Attention { heads, scale: (head_dim as f64).powf(-0.5), softcap, window: None };
    let (n, width, kept) = (spans.len(), heads.qkv_width(), 2 * kv_heads * head_dim);
    let slots = spans.iter().map(|s| (s[0] + s[1]).max(s[2] + s[3])).max().unwrap() as usize;
    let mut rng = Rng::new(n + head_dim);
    let (qkv, cache) = (rng.floats(n * width, 2.0), rng.floats(slots * kept, 2.0));
    let mut want = Vec::new();
    for (row, s) in spans.iter().enumerate() {
        let seen: Vec<usize> = (s[0]..s[0] + s[1]).chain(s[2]..s[2] + s[3]).map(|slot| slot as usize).collect();
        for h in 0..heads.heads {
            let kv = h / (heads.heads / kv_heads);
            let score = |slot: usize| {
                let key = |c: usize| f64::from(cache[slot * kept + kv * head_dim + c]);
                let dot: f64 = (0..head_dim).map(|c| f64::from(qkv[row * width + h * head_dim + c]) * key(c)).sum();
                softcap.map_or(dot * settings.scale, |cap| cap * (dot * settings.scale / cap).tanh())
            };
            let total: f64 = seen.iter().map(|&slot| score(slot).exp()).sum();
            let value = |slot: usize, c: usize| f64::from(cache[slot * kept + (kv_heads + kv) * head_dim + c]);
            want.extend(
                (0..head_dim).map(|c| seen.iter().map(|&slot| score(slot).exp() / total * value(slot, c)).sum::<f64>()),
            );
        }
    }
    let kernels = |r: &mut Recorder| {
        let (qkv, cache, spans) = (r.upload(&qkv)?, r.upload(&cache)?, r.upload(&spans.concat())?);
        let o = blank(r, n * heads.out_width())?;
        decode_attention(r, &settings, &qkv, &cache, &spans, &o);
        Ok(vec![o])
    };
    compare(&format!("{spans:?} {settings:?}"), kernels, &[want]);
}

#[test]
fn gpu_decode_attention() {
    check(&[[0, 1, 1, 0]], (1, 1, 2), None);
    check(&[[0, 0, 3, 1], [0, 3, 4, 2]], (4, 2, 16), None);
    // Two responses of one prompt, one of another; around tiles of 64 keys.
    let spans = [[0, 63, 63, 2], [0, 63, 70, 64], [140, 64, 204, 65], [140, 129, 300, 3]];
    for heads in [(3, 1, 33), (2, 2, 64), (6, 3, 6), (2, 1, 65), (1, 1, 256)] {
        check(&spans, heads, None);
    }
    check(&spans, (4, 2, 40), Some(1.5));
}
