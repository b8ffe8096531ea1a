//! Sampling.

use crate::common::{Rng, devices};
use larpo_gpu::kernels::sample::{Sampling, sample, uniform_numbers};
use larpo_gpu::{Gpu, Recorder};

const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, vocab_limit: usize::MAX };

/// The draw from the definition, and how far the number that decides is from deciding otherwise.
fn twin(logits: &[f64], s: &Sampling, u: f64) -> (u32, f64, f64) {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = top + logits.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    let allowed = &logits[..s.vocab_limit.min(logits.len())];
    let mut order: Vec<usize> = (0..allowed.len()).collect();
    order.sort_by(|&a, &b| allowed[b].total_cmp(&allowed[a]).then(a.cmp(&b)));
    if s.temperature == 0.0 {
        return (order[0] as u32, logits[order[0]] - lse, 1.0);
    }
    if s.top_k > 0 {
        order.truncate(s.top_k);
    }
    let weight = |i: usize| ((allowed[i] - allowed[order[0]]) / s.temperature).exp();
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let (mut kept, mut sum, mut distance) = (Vec::new(), 0.0, f64::INFINITY);
    for &i in &order {
        kept.push(i);
        sum += weight(i);
        if s.top_p < 1.0 {
            distance = distance.min((sum / total - s.top_p).abs());
            if sum >= s.top_p * total {
                break;
            }
        }
    }
    kept.retain(|&i| weight(i) >= s.min_p);
    kept.sort_unstable();
    let total: f64 = kept.iter().map(|&i| weight(i)).sum();
    let (mut sum, mut drawn) = (0.0, None);
    for &i in &kept {
        sum += weight(i);
        distance = distance.min((sum / total - u).abs());
        if sum > u * total {
            drawn.get_or_insert(i);
        }
    }
    let drawn = drawn.unwrap_or(kept[kept.len() - 1]);
    (drawn as u32, logits[drawn] - lse, distance)
}

fn draw(gpu: &Gpu, logits: &[f32], vocab: usize, s: &Sampling, uniform: &[f64]) -> (Vec<u32>, Vec<f32>) {
    let mut r = Recorder::new(gpu).unwrap();
    let n = uniform.len();
    let (logits, uniform) = (r.upload(logits).unwrap(), r.upload(&uniform_numbers(uniform)).unwrap());
    let (ids, logp) = (r.upload(&vec![u32::MAX; n]).unwrap(), r.upload(&vec![f32::NAN; n]).unwrap());
    sample(&mut r, &logits, vocab, s, &uniform, &ids, &logp);
    (r.read(&ids).unwrap(), r.read(&logp).unwrap())
}

/// Draws for random rows, whole-numbered logits (many of them tied) among them.
fn check(vocab: usize, s: Sampling) {
    let Some(devices) = devices() else { return };
    let mut rng = Rng::new(vocab);
    let n = 40;
    let mut logits = rng.floats(n * vocab / 2, 4.0);
    logits.extend(rng.whole(n * vocab - n * vocab / 2, 3));
    let uniform: Vec<f64> = (0..n).map(|_| rng.uniform()).collect();
    let (ids, logp) = draw(&devices.trusted, &logits, vocab, &s, &uniform);
    for gpu in [&devices.trusted, &devices.checked] {
        let again = draw(gpu, &logits, vocab, &s, &uniform);
        assert_eq!((&ids, &logp), (&again.0, &again.1), "two runs, or trusted and checked shaders");
    }
    let mut compared = 0;
    for row in 0..n {
        let wide: Vec<f64> = logits[row * vocab..(row + 1) * vocab].iter().map(|&z| f64::from(z)).collect();
        let (id, want, distance) = twin(&wide, &s, uniform[row]);
        // Nearer to a boundary than single precision resolves, either side is right.
        if distance > 1e-5 {
            assert_eq!(ids[row], id, "{vocab} {s:?} row {row}");
            assert!((f64::from(logp[row]) - want).abs() <= 1e-5 * (1.0 + want.abs()), "{vocab} {s:?} row {row}");
            compared += 1;
        }
    }
    assert!(compared >= n / 2, "{vocab} {s:?}: only {compared} rows are away from boundaries");
}

#[test]
fn gpu_sample() {
    for vocab in [1, 3, 64, 257, 1021] {
        check(vocab, PLAIN);
        check(vocab, Sampling { temperature: 0.0, ..PLAIN });
        check(vocab, Sampling { temperature: 0.7, top_k: 5, ..PLAIN });
        check(vocab, Sampling { top_p: 0.83, ..PLAIN });
        check(vocab, Sampling { min_p: 0.123, temperature: 1.3, ..PLAIN });
        check(vocab, Sampling { vocab_limit: vocab.div_ceil(2), ..PLAIN });
        check(vocab, Sampling { temperature: 1.1, top_k: 40, top_p: 0.91, min_p: 0.011, vocab_limit: vocab });
    }
}

/// Draws come as often as their probability says.
#[test]
fn gpu_sample_follows_the_distribution() {
    let Some(devices) = devices() else { return };
    let (n, logits) = (4000, [1.0f32, 0.0, 2.0, -1.0, 2.0]);
    let uniform: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5) / n as f64).collect();
    let (ids, _) = draw(&devices.trusted, &logits.repeat(n), 5, &Sampling { top_k: 3, ..PLAIN }, &uniform);
    let total = 1f64.exp() + 2.0 * 2f64.exp();
    for (id, weight) in [(0, 1f64.exp()), (1, 0.0), (2, 2f64.exp()), (3, 0.0), (4, 2f64.exp())] {
        let count = ids.iter().filter(|&&drawn| drawn == id).count() as f64;
        assert!((count - n as f64 * weight / total).abs() <= 1.0, "id {id}: {count}");
    }
}

/// Numbers that decide among ids of little probability, at either end, are not rounded away: ids fall off by factors of ten
/// towards both ends, some of them tied where only so many ties are kept.
#[test]
fn gpu_sample_resolves_both_ends() {
    let Some(devices) = devices() else { return };
    let vocab = 601;
    let logit = |i: usize| 10f64.ln() * (i.min(vocab - 1 - i).min(12) as f64 - 12.0);
    let row: Vec<f32> = (0..vocab).map(|i| logit(i) as f32).collect();
    let wide: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
    let near = [1e-12, 3e-11, 2e-10, 5e-9, 0.3, 0.49];
    let uniform: Vec<f64> = near.iter().copied().chain(near.iter().map(|u| 1.0 - u)).collect();
    for s in [PLAIN, Sampling { top_k: 580, ..PLAIN }, Sampling { top_k: 595, temperature: 0.9, ..PLAIN }] {
        let (ids, _) = draw(&devices.trusted, &row.repeat(uniform.len()), vocab, &s, &uniform);
        let mut compared = 0;
        for (&u, id) in uniform.iter().zip(ids) {
            let (want, _, distance) = twin(&wide, &s, u);
            if distance > 1e-5 * u.min(1.0 - u) {
                assert_eq!(id, want, "{s:?} {u}");
                compared += 1;
            }
        }
        assert!(compared >= 10, "{s:?}: {compared}");
    }
}
