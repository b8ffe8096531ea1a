//! Tensors that are larger than what one binding shows: kernels that run on one part after another give what they give on the
//! whole, which the other tests compare with twins.

use crate::common::{Rng, TIGHT, blank, devices, nmse, upper_halves, wide};
use larpo_gpu::kernels::adamw::{AdamW, adamw};
use larpo_gpu::kernels::gather::{SortedIds, embed_grad, gather_rows, gather_rows_bf16, gather_rows_grad};
use larpo_gpu::kernels::matmul::{Matrix, Variant, matmul_as};
use larpo_gpu::kernels::norm::{RmsNorm, rms_norm};
use larpo_gpu::kernels::sample::{Sampling, sample, uniform_numbers};
use larpo_gpu::kernels::token_logp::{Head, Targets, token_logp, token_logp_grad};
use larpo_gpu::kernels::{elementwise, reduce};
use larpo_gpu::{Buffer, Error, Recorder, Stats, Store};

/// Elements that one binding shows.
const MOST: usize = TIGHT as usize / 4;

type Outputs = Vec<Vec<f32>>;

/// What `kernels` give on a device that shows tensors whole and on one that does not; on the second one twice, to the same
/// bits, and with more kernel calls. `None` where there is no adapter.
fn both(kernels: impl Fn(&mut Recorder) -> Result<Vec<Buffer>, Error>) -> Option<(Outputs, Outputs)> {
    let devices = devices()?;
    let outputs = |gpu| -> (Outputs, Stats) {
        let mut r = Recorder::new(gpu).expect("memory");
        let mut once = || -> Outputs {
            let buffers = kernels(&mut r).expect("the device has memory for the test");
            buffers.iter().map(|buffer| r.read(buffer).expect("the device runs the test")).collect()
        };
        let (first, second) = (once(), once());
        let bits = |outputs: &Outputs| outputs.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&first), bits(&second), "two runs differ");
        (first, r.stats())
    };
    let (whole, once) = outputs(&devices.trusted);
    let (parts, several) = outputs(&devices.tight);
    assert!(several.dispatches > once.dispatches, "nothing was in parts");
    Some((whole, parts))
}

#[track_caller]
fn same(case: &str, kernels: impl Fn(&mut Recorder) -> Result<Vec<Buffer>, Error>) {
    if let Some((whole, parts)) = both(kernels) {
        assert_eq!(whole, parts, "{case}");
        assert!(whole.iter().flatten().all(|x| x.is_finite()), "{case}");
    }
}

/// Whole numbers, whose sums are exact in any order.
#[test]
fn gpu_products_of_parts() {
    // Each operand is too large in turn, and all of them; the rows and columns that are cut are those that lie apart.
    let shapes =
        [(300, 40, 33), (40, 300, 33), (33, 40, 300), (210, 190, 200), (129, 400, 65), (3, 7000, 5), (5, 3, 7000)];
    for (i, (m, n, k)) in shapes.into_iter().enumerate() {
        for (l, (a_t, b_t)) in [(false, true), (false, false), (true, false)].into_iter().enumerate() {
            let mut rng = Rng::new(i);
            let skip = 7 * l;
            let (a, b) = (rng.whole(m * k + skip, 4), rng.whole(k * n + skip, 4));
            let (bias, c) = (rng.whole(n, 4), rng.whole(m * n + skip, 4));
            for (variant, half) in Variant::ALL.into_iter().flat_map(|v| [(v, false), (v, true)]) {
                let store = if (i + l).is_multiple_of(2) { Store::Set } else { Store::Add };
                same(&format!("{variant:?} {m} {n} {k} {a_t} {b_t} {half}"), |r| {
                    let (a, bias, c) = (r.upload(&a)?, r.upload(&bias)?, r.upload(&c)?);
                    let (single, pairs) = (r.upload(&b)?, r.upload_bf16(&b)?);
                    let a = if a_t { Matrix::at(&a, skip, k, m).transposed() } else { Matrix::at(&a, skip, m, k) };
                    let b: larpo_gpu::Weight = if half { (&pairs).into() } else { (&single).into() };
                    let b = if b_t { Matrix::at(b, skip, n, k).transposed() } else { Matrix::at(b, skip, k, n) };
                    // Where nothing else is too large, one more operation is.
                    let large = r.alloc(MOST + 1)?;
                    elementwise::fill(r, &large, 1.0);
                    matmul_as(r, variant, a, b, (l < 2).then_some(&bias), Matrix::at(&c, skip, m, n), store);
                    Ok(vec![c, large])
                });
            }
        }
    }
}

/// Not whole numbers: sums along k are cut, so they are other sums.
#[test]
fn gpu_products_of_parts_are_as_exact() {
    let (m, n, k) = (20, 30, 3000);
    let mut rng = Rng::new(5);
    let (a, b) = (rng.floats(m * k, 1.0), rng.floats(k * n, 1.0));
    let (x, y) = (wide(&a), wide(&b));
    let want: Vec<f64> = (0..m * n).map(|at| (0..k).map(|l| x[at / n * k + l] * y[l * n + at % n]).sum()).collect();
    for variant in Variant::ALL {
        let outputs = both(|r| {
            let (a, b, c) = (r.upload(&a)?, r.upload(&b)?, blank(r, m * n)?);
            matmul_as(
                r,
                variant,
                Matrix::new(&a, m, k),
                Matrix::new(&b, k, n),
                None,
                Matrix::new(&c, m, n),
                Store::Set,
            );
            Ok(vec![c])
        });
        if let Some((_, parts)) = outputs {
            assert!(nmse(&parts[0], &want) <= 1e-10, "{variant:?}");
        }
    }
}

#[test]
fn gpu_rows_of_parts() {
    for (rows, columns) in [(1000, 24), (3000, 7), (400, 64)] {
        let mut rng = Rng::new(rows);
        let x = rng.whole(rows * columns, 9);
        let n = 100;
        // Some of them repeat, and two are beyond the matrix.
        let mut ids = rng.indices(n, rows);
        (ids[3], ids[4]) = (ids[7], ids[7]);
        let beyond: Vec<u32> = ids.iter().copied().chain([rows as u32, u32::MAX]).collect();
        let different: Vec<u32> = (0..n as u32).map(|i| i * (rows as u32 / n as u32)).collect();
        let d_y = rng.whole(n * columns, 9);
        let half = upper_halves(&x);
        same(&format!("{rows} {columns}"), |r| {
            let (table, pairs, d_y) = (r.upload(&x)?, r.upload_bf16(&half)?, r.upload(&d_y)?);
            let (beyond, different) = (r.upload(&beyond)?, r.upload(&different)?);
            let (y, y_half) = (blank(r, (n + 2) * columns)?, blank(r, (n + 2) * columns)?);
            gather_rows(r, &table, &beyond, columns, &y);
            gather_rows_bf16(r, &pairs, &beyond, columns, &y_half);
            let sorted = SortedIds::new(r, &ids)?;
            let (set, added) = (blank(r, rows * columns)?, r.upload(&x)?);
            embed_grad(r, &d_y, &sorted, columns, &set, Store::Set);
            embed_grad(r, &d_y, &sorted, columns, &added, Store::Add);
            let (set_rows, added_rows) = (blank(r, rows * columns)?, r.upload(&x)?);
            gather_rows_grad(r, &d_y, &different, columns, &set_rows, Store::Set);
            gather_rows_grad(r, &d_y, &different, columns, &added_rows, Store::Add);
            Ok(vec![y, y_half, set, added, set_rows, added_rows])
        });
    }
}

#[test]
fn gpu_elements_of_parts() {
    for (n, columns) in [(MOST + 1, 1), (3 * MOST + 77, 1), (900 * 31, 31), (5 * 8000, 8000)] {
        let mut rng = Rng::new(n);
        let (x, y, row) = (rng.whole(n, 9), rng.whole(n, 9), rng.whole(columns, 9));
        same(&format!("{n} {columns}"), |r| {
            let (x, row, factor) = (r.upload(&x)?, r.upload(&row)?, r.upload(&[3.0f32])?);
            let mut results = Vec::new();
            for store in [Store::Set, Store::Add] {
                let [copied, scaled] = [r.upload(&y)?, r.upload(&y)?];
                elementwise::copy(r, &x, &copied, store);
                elementwise::scaled_copy(r, &factor, &x, &scaled, store);
                results.extend([copied, scaled]);
                if columns < 8000 {
                    let rows = r.upload(&y)?;
                    elementwise::broadcast_rows(r, &row, &rows, store);
                    results.push(rows);
                }
            }
            let [filled, scaled, capped] = [r.upload(&y)?, r.upload(&y)?, r.upload(&y)?];
            elementwise::fill(r, &filled, 2.5);
            elementwise::scale(r, &scaled, &factor);
            elementwise::softcap(r, &capped, 5.0);
            results.extend([filled, scaled, capped]);
            Ok(results)
        });
    }
}

#[test]
fn gpu_sums_and_updates_of_parts() {
    for n in [MOST + 1, 2 * MOST, 5 * MOST + 3] {
        let mut rng = Rng::new(n);
        let (x, w, m) = (rng.whole(n, 3), rng.whole(n, 3), rng.floats(n, 0.1));
        let v: Vec<f32> = rng.floats(n, 0.1).iter().map(|v| v.abs()).collect();
        same(&n.to_string(), |r| {
            let sums = blank(r, 3)?;
            let (x, w, m, v) = (r.upload(&x)?, r.upload(&w)?, r.upload(&m)?, r.upload(&v)?);
            reduce::sq_norm(r, &x, &sums, 1)?;
            reduce::weighted_sum(r, &x, &w, &sums, 2)?;
            reduce::weighted_sum(r, &w, &w, &sums, 0)?;
            let clip = r.upload(&[1.0f32, 0.5])?;
            let s = AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3 };
            adamw(r, &s, &x, &clip, &w, &m, &v);
            Ok(vec![sums, w, m, v])
        });
    }
}

#[test]
fn gpu_log_probabilities_of_parts() {
    let (rows, vocab, c, n) = (60, 700, 48, 90);
    let mut rng = Rng::new(11);
    let (h, w) = (rng.floats(rows * c, 1.0), rng.floats(vocab * c, 0.3));
    let (at, ids) = (rng.indices(n, rows), rng.indices(n, vocab));
    let d_logp = rng.floats(n, 1.0);
    for half in [false, true] {
        let outputs = both(|r| {
            let (h, single, pairs) = (r.upload(&h)?, r.upload(&w)?, r.upload_bf16(&w)?);
            let (logp, lse, d_logp) = (blank(r, n)?, blank(r, rows)?, r.upload(&d_logp)?);
            let (d_h, d_w) = (blank(r, rows * c)?, blank(r, vocab * c)?);
            let weight: larpo_gpu::Weight = if half { (&pairs).into() } else { (&single).into() };
            let head = Head { w: weight, channels: c, softcap: Some(4.0), chunk: None };
            let targets = Targets::new(r, rows, &at, &ids)?;
            token_logp(r, &h, &head, &targets, &logp, &lse)?;
            let into_w = (!half).then_some((&d_w, Store::Set));
            if half {
                elementwise::fill(r, &d_w, 0.0);
            }
            token_logp_grad(r, &d_logp, &h, &head, &targets, &lse, (&d_h, Store::Set), into_w)?;
            Ok(vec![logp, lse, d_h, d_w])
        });
        let Some((whole, parts)) = outputs else { return };
        for (i, (whole, parts)) in whole.iter().zip(&parts).enumerate() {
            assert!(nmse(parts, &wide(whole)) <= 1e-12, "{half} {i}");
        }
    }
}

#[test]
fn gpu_draws_of_parts() {
    let (n, vocab) = (500, 60);
    let mut rng = Rng::new(2);
    let logits = rng.floats(n * vocab, 3.0);
    let uniform: Vec<f64> = (0..n).map(|_| rng.uniform()).collect();
    let settings = Sampling { temperature: 0.8, top_k: 20, top_p: 0.9, min_p: 0.01, vocab_limit: 55 };
    let Some(devices) = devices() else { return };
    let draws = [&devices.trusted, &devices.tight].map(|gpu| {
        let mut r = Recorder::new(gpu).unwrap();
        let (logits, uniform) = (r.upload(&logits).unwrap(), r.upload(&uniform_numbers(&uniform)).unwrap());
        let (ids, logp) = (r.upload(&vec![u32::MAX; n]).unwrap(), blank(&r, n).unwrap());
        sample(&mut r, &logits, vocab, &settings, &uniform, &ids, &logp);
        (r.read(&ids).unwrap(), r.read(&logp).unwrap(), r.stats().dispatches)
    });
    let [(ids, logp, one), (ids_of_parts, logp_of_parts, several)] = draws;
    assert_eq!((ids, logp, one), (ids_of_parts, logp_of_parts, 1));
    assert!(several > 1);
}

/// Where a kernel takes its operands whole, the first one that is too large is named, and nothing is read from then on.
#[test]
fn gpu_other_kernels_refuse_by_name() {
    let Some(devices) = devices() else { return };
    let mut r = Recorder::new(&devices.tight).unwrap();
    let (rows, c) = (MOST / 16 + 1, 16);
    let (x, w, y, rstd) = (r.alloc(rows * c), r.alloc(c), r.alloc(rows * c), r.alloc(rows));
    let (x, w, y, rstd) = (x.unwrap(), w.unwrap(), y.unwrap(), rstd.unwrap());
    assert_eq!(r.fault(), Ok(()));
    rms_norm(&mut r, &x, &w, RmsNorm { eps: 1e-5, offset: 0.0 }, &y, &rstd);
    let expected = Error::Binding { kernel: "norm", bytes: 4 * (rows * c) as u64, limit: TIGHT };
    assert_eq!((r.fault(), r.read(&rstd)), (Err(expected.clone()), Err(expected.clone())));
    let message = expected.to_string();
    assert!(["norm", "32832 bytes", "32768 bytes"].iter().all(|part| message.contains(part)), "{message}");
    // A row that no binding shows cannot be cut either.
    let mut r = Recorder::new(&devices.tight).unwrap();
    let (x, y) = (r.alloc(MOST + 1).unwrap(), r.alloc(MOST + 1).unwrap());
    elementwise::broadcast_rows(&mut r, &x, &y, Store::Set);
    assert!(matches!(r.read(&y), Err(Error::Binding { kernel: "broadcast_rows", .. })));
}
