//! Log-probabilities through the head.

use crate::common::{Rng, STORES, before, blank, compare, stored, wide};
use larpo_gpu::Recorder;
use larpo_gpu::kernels::token_logp::{Head, Targets, token_logp, token_logp_grad};

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    channels: usize,
    vocab: usize,
    targets: usize,
    softcap: Option<f64>,
    chunk: Option<usize>,
}

fn capped(softcap: Option<f64>, z: f64) -> (f64, f64) {
    softcap.map_or((z, 1.0), |c| (c * (z / c).tanh(), 1.0 - (z / c).tanh().powi(2)))
}

fn check(case: Case, seed: usize) {
    let Case { rows, channels: c, vocab, targets, softcap, chunk } = case;
    let mut rng = Rng::new(seed);
    let (h, w) = (rng.floats(rows * c, 2.0), rng.floats(vocab * c, 1.0));
    let (target_rows, mut ids) = (rng.indices(targets, rows), rng.indices(targets, vocab));
    // The last id, and several targets of one row with the same id.
    ids[0] = vocab as u32 - 1;
    let (mut target_rows, last) = (target_rows, targets - 1);
    (target_rows[last], ids[last]) = (target_rows[targets / 2], ids[targets / 2]);
    let d_logp = rng.floats(targets, 1.0);
    let (store_h, store_w) = (STORES[seed % 2], STORES[seed / 2 % 2]);
    let (d_h, d_w) = (before(&mut rng, rows * c, store_h), before(&mut rng, vocab * c, store_w));

    let (mut logp, mut lse) = (vec![0.0; targets], Vec::new());
    let (mut want_h, mut want_w) = (vec![0.0; rows * c], vec![0.0; vocab * c]);
    for row in 0..rows {
        let x = wide(&h[row * c..(row + 1) * c]);
        let z: Vec<(f64, f64)> =
            (0..vocab).map(|v| capped(softcap, (0..c).map(|i| x[i] * f64::from(w[v * c + i])).sum())).collect();
        let total = z.iter().map(|z| z.0.exp()).sum::<f64>().ln();
        lse.push(total);
        for t in (0..targets).filter(|&t| target_rows[t] as usize == row) {
            logp[t] = z[ids[t] as usize].0 - total;
            for v in 0..vocab {
                let hit = f64::from(u8::from(v == ids[t] as usize));
                let d_z = f64::from(d_logp[t]) * (hit - (z[v].0 - total).exp()) * z[v].1;
                for i in 0..c {
                    want_h[row * c + i] += d_z * f64::from(w[v * c + i]);
                    want_w[v * c + i] += d_z * x[i];
                }
            }
        }
    }
    let twins = [logp, lse, stored(&d_h, want_h, store_h), stored(&d_w, want_w, store_w)];
    let kernels = |r: &mut Recorder| {
        let (h, w, d_logp) = (r.upload(&h)?, r.upload(&w)?, r.upload(&d_logp)?);
        let (d_h, d_w) = (r.upload(&d_h)?, r.upload(&d_w)?);
        let (logp, lse) = (blank(r, targets)?, blank(r, rows)?);
        let head = Head { w: (&w).into(), channels: c, softcap, chunk };
        let targets = Targets::new(r, rows, &target_rows, &ids)?;
        token_logp(r, &h, &head, &targets, &logp, &lse)?;
        let into_w = Some((&d_w, store_w));
        token_logp_grad(r, &d_logp, &h, &head, &targets, &lse, (&d_h, store_h), into_w)?;
        Ok(vec![logp, lse, d_h, d_w])
    };
    compare(&format!("{case:?}"), kernels, &twins);
}

#[test]
fn gpu_token_logp() {
    let heads = [
        (1, 1, 3, 1),
        (1, 17, 5, 4),
        (3, 16, 257, 3),
        (15, 64, 63, 30),
        (16, 33, 65, 1),
        (17, 5, 127, 20),
        (65, 31, 129, 64),
        (18, 5, 3001, 12),
    ];
    for (i, (rows, channels, vocab, targets)) in heads.into_iter().enumerate() {
        let case = Case { rows, channels, vocab, targets, softcap: None, chunk: None };
        check(case, i);
        check(Case { softcap: Some(30.0), chunk: Some(64), ..case }, i + 1);
        check(Case { softcap: Some(1.5), chunk: Some(vocab.div_ceil(2)), ..case }, i + 2);
    }
}

#[test]
fn gpu_token_logp_without_weights_or_targets() {
    let mut rng = Rng::new(5);
    let (h, w) = (rng.floats(6, 1.0), rng.floats(15, 1.0));
    let lse: Vec<f64> = (0..2)
        .map(|row| {
            let z = |v: usize| (0..3).map(|i| f64::from(h[row * 3 + i]) * f64::from(w[v * 3 + i])).sum::<f64>();
            (0..5).map(|v| z(v).exp()).sum::<f64>().ln()
        })
        .collect();
    let kernels = |r: &mut Recorder| {
        let (h, w) = (r.upload(&h)?, r.upload(&w)?);
        let (logp, lse, d_h) = (blank(r, 0)?, blank(r, 2)?, blank(r, 6)?);
        let head = Head { w: (&w).into(), channels: 3, softcap: None, chunk: None };
        let targets = Targets::new(r, 2, &[], &[])?;
        token_logp(r, &h, &head, &targets, &logp, &lse)?;
        token_logp_grad(r, &logp, &h, &head, &targets, &lse, (&d_h, larpo_gpu::Store::Set), None)?;
        Ok(vec![lse, d_h])
    };
    compare("no targets", kernels, &[lse, vec![0.0; 6]]);
}
