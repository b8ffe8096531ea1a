//! Rotary embedding, rows by index, and sums of rows.

use crate::common::{Rng, SIZES, STORES, before, blank, compare, stored, upper_halves, wide};
use larpo_gpu::Recorder;
use larpo_gpu::kernels::gather::{SortedIds, embed_grad, gather_rows, gather_rows_bf16, gather_rows_grad};
use larpo_gpu::kernels::norm::Heads;
use larpo_gpu::kernels::rope::rope;
use larpo_gpu::kernels::sum_rows::sum_rows;

#[test]
fn gpu_rope() {
    let mut rng = Rng::new(1);
    for (n, heads, kv_heads, head_dim) in [(1, 1, 1, 2), (3, 4, 2, 6), (17, 3, 3, 64), (65, 6, 1, 10)] {
        let (width, positions) = ((heads + 2 * kv_heads) * head_dim, 40);
        let (x, at) = (rng.floats(n * width, 2.0), rng.indices(n, positions));
        let half = head_dim / 2;
        let angle = |p: usize, i: usize| p as f64 * 100f64.powf(-(i as f64) / half as f64);
        let table: Vec<f32> = (0..positions)
            .flat_map(|p| {
                let cosines = (0..half).map(move |i| angle(p, i).cos() as f32);
                cosines.chain((0..half).map(move |i| angle(p, i).sin() as f32))
            })
            .collect();
        for inverse in [false, true] {
            let mut want = wide(&x);
            for row in 0..n {
                for (h, i) in (0..heads + kv_heads).flat_map(|h| (0..half).map(move |i| (h, i))) {
                    let (cos, sin) = (
                        f64::from(table[at[row] as usize * head_dim + i]),
                        f64::from(table[at[row] as usize * head_dim + half + i]) * if inverse { -1.0 } else { 1.0 },
                    );
                    let from = row * width + h * head_dim + i;
                    let (a, b) = (want[from], want[from + half]);
                    want[from] = a * cos - b * sin;
                    want[from + half] = a * sin + b * cos;
                }
            }
            let kernels = |r: &mut Recorder| {
                let (qkv, at, table) = (r.upload(&x)?, r.upload(&at)?, r.upload(&table)?);
                rope(r, &qkv, &at, &table, Heads { heads, kv_heads, head_dim }, inverse);
                Ok(vec![qkv])
            };
            compare(&format!("{n} {heads} {kv_heads} {head_dim} {inverse}"), kernels, &[want]);
        }
    }
}

#[test]
fn gpu_gather_rows() {
    let mut rng = Rng::new(2);
    for (i, &c) in SIZES.iter().enumerate() {
        let (v, m) = (SIZES[(5 * i + 2) % SIZES.len()], SIZES[(3 * i + 4) % SIZES.len()]);
        let (x, rows) = (rng.floats(v * c, 1.0), rng.indices(m, v));
        let want = rows.iter().flat_map(|&r| wide(&x[r as usize * c..(r as usize + 1) * c])).collect();
        let kernels = |r: &mut Recorder| {
            let (x, rows, y) = (r.upload(&x)?, r.upload(&rows)?, blank(r, m * c)?);
            gather_rows(r, &x, &rows, c, &y);
            Ok(vec![y])
        };
        compare(&format!("{v} {c} {m}"), kernels, &[want]);
    }
}

#[test]
fn gpu_gather_rows_bf16() {
    let mut rng = Rng::new(6);
    for (v, c, m) in [(1, 1, 3), (7, 3, 4), (64, 33, 65), (129, 64, 17)] {
        let (x, mut rows) = (upper_halves(&rng.floats(v * c, 1.0)), rng.indices(m, v));
        // One beyond the table.
        rows[m / 2] = v as u32;
        let row = |&r: &u32| if r < v as u32 { wide(&x[r as usize * c..][..c]) } else { vec![0.0; c] };
        let want = rows.iter().flat_map(row).collect();
        let kernels = |r: &mut Recorder| {
            let (x, rows, y) = (r.upload_bf16(&x)?, r.upload(&rows)?, blank(r, m * c)?);
            gather_rows_bf16(r, &x, &rows, c, &y);
            Ok(vec![y])
        };
        compare(&format!("{v} {c} {m}"), kernels, &[want]);
    }
}

/// A row beyond the table is no access beyond its memory.
#[test]
fn gpu_gather_rows_beyond_the_table_gives_zeros() {
    let kernels = |r: &mut Recorder| {
        let (x, rows, y) = (r.upload(&[1.0f32, 2.0])?, r.upload(&[1u32, 2, u32::MAX, 0])?, blank(r, 4)?);
        gather_rows(r, &x, &rows, 1, &y);
        Ok(vec![y])
    };
    compare("beyond", kernels, &[vec![2.0, 0.0, 0.0, 1.0]]);
}

#[test]
fn gpu_gather_rows_grad() {
    let mut rng = Rng::new(3);
    for (v, c, m) in [(1, 1, 1), (7, 3, 4), (64, 33, 64), (129, 65, 17)] {
        for store in STORES {
            // Distinct rows in no order.
            let mut rows: Vec<u32> = (0..v as u32).collect();
            rows.sort_by_cached_key(|_| rng.next());
            rows.truncate(m);
            let (d_y, d_x) = (rng.floats(m * c, 1.0), before(&mut rng, v * c, store));
            let mut sums = vec![0.0; v * c];
            for (i, d) in wide(&d_y).into_iter().enumerate() {
                sums[rows[i / c] as usize * c + i % c] += d;
            }
            let want = stored(&d_x, sums, store);
            let kernels = |r: &mut Recorder| {
                let (d_y, rows, d_x) = (r.upload(&d_y)?, r.upload(&rows)?, r.upload(&d_x)?);
                gather_rows_grad(r, &d_y, &rows, c, &d_x, store);
                Ok(vec![d_x])
            };
            compare(&format!("{v} {c} {m} {store:?}"), kernels, &[want]);
        }
    }
}

#[test]
fn gpu_embed_grad() {
    let mut rng = Rng::new(4);
    // The last: many rows of few ids.
    for (v, c, n) in [(1, 1, 1), (7, 3, 31), (65, 17, 64), (129, 64, 33), (3, 5, 1000), (9, 4, 0)] {
        for store in STORES {
            let ids = rng.indices(n, v);
            let (d_y, d_table) = (rng.floats(n * c, 1.0), before(&mut rng, v * c, store));
            let mut sums = vec![0.0; v * c];
            for (i, d) in wide(&d_y).into_iter().enumerate() {
                sums[ids[i / c] as usize * c + i % c] += d;
            }
            let want = stored(&d_table, sums, store);
            let kernels = |r: &mut Recorder| {
                let (d_y, d_table, ids) = (r.upload(&d_y)?, r.upload(&d_table)?, SortedIds::new(r, &ids)?);
                embed_grad(r, &d_y, &ids, c, &d_table, store);
                Ok(vec![d_table])
            };
            compare(&format!("{v} {c} {n} {store:?}"), kernels, &[want]);
        }
    }
}

#[test]
fn gpu_sum_rows() {
    let mut rng = Rng::new(5);
    let more = [(1000, 3), (2049, 1)];
    let sizes = SIZES.iter().enumerate().map(|(i, &c)| (SIZES[(5 * i + 1) % SIZES.len()], c)).chain(more);
    for (i, (n, c)) in sizes.enumerate() {
        let store = STORES[i % 2];
        let (x, y) = (rng.floats(n * c, 1.0), before(&mut rng, c, store));
        let sums = (0..c).map(|j| (0..n).map(|i| f64::from(x[i * c + j])).sum()).collect();
        let want = stored(&y, sums, store);
        let kernels = |r: &mut Recorder| {
            let (x, y) = (r.upload(&x)?, r.upload(&y)?);
            sum_rows(r, &x, &y, store)?;
            Ok(vec![y])
        };
        compare(&format!("{n} {c} {store:?}"), kernels, &[want]);
    }
}
