//! Products.

use crate::common::{Rng, SIZES, STORES, before, compare, run, stored, upper_halves, wide};
use larpo_gpu::Store;
use larpo_gpu::kernels::matmul::{Matrix, Variant, matmul, matmul_as};

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    /// Whether the operand's memory holds its transpose.
    a_t: bool,
    b_t: bool,
    bias: bool,
    store: Store,
}

fn twin(c: &Case, a: &[f64], b: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut y = Vec::new();
    for i in 0..c.m {
        for j in 0..c.n {
            let term = |l: usize| {
                let x = if c.a_t { a[l * c.m + i] } else { a[i * c.k + l] };
                x * if c.b_t { b[j * c.k + l] } else { b[l * c.n + j] }
            };
            y.push((0..c.k).map(term).sum::<f64>() + if c.bias { bias[j] } else { 0.0 });
        }
    }
    y
}

fn check(variant: Variant, case: Case, whole: bool) {
    let Case { m, n, k, .. } = case;
    let mut rng = Rng::new(m * 1_000_003 + n * 1009 + k);
    let mut draw = |len| if whole { rng.whole(len, 8) } else { rng.floats(len, 1.0) };
    let (a, b, bias) = (draw(m * k), draw(k * n), draw(n));
    let c = if whole && case.store == Store::Add { draw(m * n) } else { before(&mut rng, m * n, case.store) };
    let want = stored(&c, twin(&case, &wide(&a), &wide(&b), &wide(&bias)), case.store);
    let kernels = |r: &mut larpo_gpu::Recorder| {
        let (a, b, bias, c) = (r.upload(&a)?, r.upload(&b)?, r.upload(&bias)?, r.upload(&c)?);
        let a = if case.a_t { Matrix::new(&a, k, m).transposed() } else { Matrix::new(&a, m, k) };
        let b = if case.b_t { Matrix::new(&b, n, k).transposed() } else { Matrix::new(&b, k, n) };
        matmul_as(r, variant, a, b, case.bias.then_some(&bias), Matrix::new(&c, m, n), case.store);
        Ok(vec![c])
    };
    if whole {
        // Sums of small whole numbers are exact in any order.
        if let Some(got) = run(kernels) {
            assert_eq!(wide(&got[0]), want, "{variant:?} {case:?}");
        }
    } else {
        compare(&format!("{variant:?} {case:?}"), kernels, &[want]);
    }
}

/// The three products of a layer: forward NT, by the input NN, by the weights TN.
const LAYOUTS: [(bool, bool); 3] = [(false, true), (false, false), (true, false)];

fn cases(variant: Variant) {
    let size = |i: usize| SIZES[i % SIZES.len()];
    for i in 0..SIZES.len() {
        for (l, (a_t, b_t)) in LAYOUTS.into_iter().enumerate() {
            let store = if (i + l).is_multiple_of(2) { Store::Set } else { Store::Add };
            let case = Case {
                m: size(i),
                n: size(5 * i + 3 + l),
                k: size(3 * i + 8 + 2 * l),
                a_t,
                b_t,
                bias: i % 3 == l,
                store,
            };
            check(variant, case, false);
            check(variant, case, true);
        }
    }
    let mut rng = Rng::new(7);
    for i in 0..6 {
        let (a_t, b_t) = LAYOUTS[i % 3];
        let mut size = || 1 + rng.index(300);
        let (m, n, k) = (size(), size(), size());
        check(variant, Case { m, n, k, a_t, b_t, bias: i < 3, store: Store::Set }, false);
    }
}

#[test]
fn gpu_matmul_64() {
    cases(Variant::Tile64);
}

#[test]
fn gpu_matmul_128() {
    cases(Variant::Tile128);
}

#[test]
fn gpu_matmul_direct() {
    cases(Variant::Direct);
}

#[test]
fn gpu_matmul_skinny() {
    cases(Variant::Skinny);
}

/// Parts of larger matrices, as the chunks of a vocabulary are.
#[test]
fn gpu_matmul_of_parts() {
    let (m, n, k, skip) = (5, 9, 6, 4);
    let mut rng = Rng::new(3);
    let (a, b, c) = (rng.floats(m * k, 1.0), rng.floats((n + skip) * k, 1.0), rng.floats((m + skip) * n, 1.0));
    let case = Case { m, n, k, a_t: false, b_t: true, bias: false, store: Store::Set };
    let part = twin(&case, &wide(&a), &wide(&b[skip * k..]), &[]);
    let mut want = wide(&c);
    want[2 * n..(2 + m) * n].copy_from_slice(&part);
    for variant in Variant::ALL {
        let kernels = |r: &mut larpo_gpu::Recorder| {
            let (a, b, c) = (r.upload(&a)?, r.upload(&b)?, r.upload(&c)?);
            let b = Matrix::at(&b, skip * k, n, k).transposed();
            matmul_as(r, variant, Matrix::new(&a, m, k), b, None, Matrix::at(&c, 2 * n, m, n), Store::Set);
            Ok(vec![c])
        };
        compare(&format!("{variant:?}"), kernels, std::slice::from_ref(&want));
    }
}

#[test]
#[should_panic(expected = "matmul: (2, 3) · (4, 5) -> (2, 5)")]
fn gpu_matmul_names_shapes_that_do_not_fit() {
    let kernels = |r: &mut larpo_gpu::Recorder| {
        let (a, b, c) = (r.alloc(6)?, r.alloc(20)?, r.alloc(10)?);
        matmul(r, Matrix::new(&a, 2, 3), Matrix::new(&b, 4, 5), None, Matrix::new(&c, 2, 5), Store::Set);
        Ok(vec![])
    };
    if run(kernels).is_none() {
        panic!("matmul: (2, 3) · (4, 5) -> (2, 5), had there been an adapter");
    }
}

/// A right operand in bfloat16 gives the sums of its numbers, also of an odd number of them and from an odd place on.
#[test]
fn gpu_matmul_bf16() {
    let mut rng = Rng::new(11);
    for variant in Variant::ALL {
        for (i, (m, n, k)) in [(1, 1, 1), (3, 7, 5), (17, 33, 9), (65, 129, 31), (8, 16, 64)].into_iter().enumerate() {
            for b_t in [false, true] {
                let store = STORES[i % 2];
                let case = Case { m, n, k, a_t: false, b_t, bias: false, store };
                let (a, c) = (rng.floats(m * k, 1.0), before(&mut rng, m * n, store));
                // Three numbers of another matrix stand before.
                let b = upper_halves(&rng.floats(3 + k * n, 1.0));
                let want = stored(&c, twin(&case, &wide(&a), &wide(&b[3..]), &[]), store);
                let kernels = |r: &mut larpo_gpu::Recorder| {
                    let (a, b, c) = (r.upload(&a)?, r.upload_bf16(&b)?, r.upload(&c)?);
                    let b = if b_t { Matrix::at(&b, 3, n, k).transposed() } else { Matrix::at(&b, 3, k, n) };
                    matmul_as(r, variant, Matrix::new(&a, m, k), b, None, Matrix::new(&c, m, n), store);
                    Ok(vec![c])
                };
                compare(&format!("{variant:?} {case:?}"), kernels, &[want]);
            }
        }
    }
}
