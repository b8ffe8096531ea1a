//! Products.

use crate::common::{Rng, SIZES, STORES, before, compare, devices, run, stored, upper_halves, wide};
use larpo_gpu::kernels::matmul::{Matrix, Variant, matmul, matmul_as};
use larpo_gpu::kernels::tuning::Tuning;
use larpo_gpu::{Choice, Error, Gpu, Recorder, Store};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Whether the operand's memory holds its transpose.
    pub a_t: bool,
    pub b_t: bool,
    pub bias: bool,
    pub store: Store,
}

pub fn twin(c: &Case, a: &[f64], b: &[f64], bias: &[f64]) -> Vec<f64> {
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
pub const LAYOUTS: [(bool, bool); 3] = [(false, true), (false, false), (true, false)];

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

/// A product by one variant, which is not measured.
fn product(recorder: &mut Recorder, (m, n, k): (usize, usize, usize), b_t: bool) -> Result<Vec<f32>, Error> {
    let mut rng = Rng::new(m + n + k);
    let (a, b, c) =
        (recorder.upload(&rng.whole(m * k, 8))?, recorder.upload(&rng.whole(k * n, 8))?, recorder.alloc(m * n)?);
    let b = if b_t { Matrix::new(&b, n, k).transposed() } else { Matrix::new(&b, k, n) };
    matmul(recorder, Matrix::new(&a, m, k), b, None, Matrix::new(&c, m, n), Store::Set);
    recorder.read(&c)
}

/// What is measured once is known from then on, is kept as a text, and changes no result beyond rounding.
#[test]
fn gpu_tuning_is_measured_once_for_each_kind_of_product() {
    let Some(devices) = devices() else { return };
    let name = devices.trusted.info().name.clone();
    let open = || Gpu::open(&Choice::Named(name.clone())).unwrap();
    let plain = open();
    let tuned = open();
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = kept.clone();
    tuned.autotune(Tuning::default(), move |known| keep.lock().unwrap().push(known.clone()));
    // The first two are of one kind.
    let shapes = [
        ((65, 33, 40), true),
        ((127, 64, 64), true),
        ((65, 33, 40), false),
        ((2, 700, 90), true),
        ((300, 300, 300), true),
    ];
    let dispatches = |gpu: &Gpu| {
        let mut recorder = Recorder::new(gpu).unwrap();
        let counts: Vec<u64> = shapes
            .iter()
            .map(|&(shape, b_t)| {
                let before = recorder.stats().dispatches;
                let got = product(&mut recorder, shape, b_t).unwrap();
                // Whole numbers: the same sums in any order.
                assert_eq!(got, product(&mut Recorder::new(&plain).unwrap(), shape, b_t).unwrap(), "{shape:?}");
                recorder.stats().dispatches - before
            })
            .collect();
        counts
    };
    let counts = dispatches(&tuned);
    assert!(counts[0] > 8 && counts[1] == 1 && counts[2..].iter().all(|&n| n > 8), "{counts:?}");
    assert!(dispatches(&tuned).iter().all(|&n| n == 1));
    let kept = kept.lock().unwrap();
    assert_eq!(kept.iter().map(Tuning::len).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let key = Tuning::key(&tuned);
    let text = kept[3].to_text(&key);
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.contains("128 64 64 nt f32 ") && text.contains("128 64 64 nn f32 "), "{text}");
    // The next run reads it and measures nothing.
    let again = open();
    again.autotune(Tuning::from_text(&text, &key).unwrap(), |_| panic!("nothing is new"));
    assert!(dispatches(&again).iter().all(|&n| n == 1));
}

/// What is known is taken: another choice than the usual one shows in how sums round.
#[test]
fn gpu_tuning_takes_what_is_known() {
    let Some(devices) = devices() else { return };
    let gpu = Gpu::open(&Choice::Named(devices.trusted.info().name.clone())).unwrap();
    let (m, n, k) = (5, 33, 1000);
    let mut rng = Rng::new(3);
    let (x, w) = (rng.floats(m * k, 1.0), rng.floats(n * k, 1.0));
    let product = |recorder: &mut Recorder, variant: Option<Variant>| {
        let (x, w, y) = (recorder.upload(&x).unwrap(), recorder.upload(&w).unwrap(), recorder.alloc(m * n).unwrap());
        let (x, w, c) = (Matrix::new(&x, m, k), Matrix::new(&w, n, k).transposed(), Matrix::new(&y, m, n));
        match variant {
            Some(variant) => matmul_as(recorder, variant, x, w, None, c, Store::Set),
            None => matmul(recorder, x, w, None, c, Store::Set),
        }
        recorder.read(&y).unwrap()
    };
    let mut recorder = Recorder::new(&gpu).unwrap();
    let key = Tuning::key(&gpu);
    for variant in [Variant::Skinny, Variant::Tile64] {
        let text = Tuning::default().to_text(&key) + &format!("8 64 1024 nt f32 {variant:?}\n");
        gpu.autotune(Tuning::from_text(&text, &key).unwrap(), |_| panic!("nothing is new"));
        assert_eq!(product(&mut recorder, None), product(&mut recorder, Some(variant)));
    }
    let [skinny, tile] = [Variant::Skinny, Variant::Tile64].map(|variant| product(&mut recorder, Some(variant)));
    assert_ne!(skinny, tile, "the variants can be told apart");
}

/// What another driver or another version has measured is not taken, nor what is damaged.
#[test]
fn gpu_tuning_belongs_to_an_adapter_and_its_kernels() {
    let Some(devices) = devices() else { return };
    let gpu = &devices.trusted;
    let key = Tuning::key(gpu);
    let text = Tuning::default().to_text(&key) + "8 512 512 nt bf16 Skinny\n";
    assert_eq!(Tuning::from_text(&text, &key).map(|known| known.len()), Some(1));
    assert_eq!(Tuning::from_text(&text, &key).unwrap().to_text(&key), text);
    // Of two choices the own one stays.
    let other = Tuning::default().to_text(&key) + "8 512 512 nt bf16 Direct\n4 1 1 nn f32 Tile64\n";
    let mut merged = Tuning::from_text(&text, &key).unwrap();
    merged.merge(Tuning::from_text(&other, &key).unwrap());
    assert!(merged.len() == 2 && merged.to_text(&key).contains("bf16 Skinny"));
    let wrong = [
        String::new(),
        text.replace("tuning 1", "tuning 0"),
        text.replace("kernels ", "kernels 0"),
        text.replace(&gpu.info().name, "another adapter"),
        text.replace("Skinny", "Fast"),
        text.replace("nt", "nx"),
        text.replace("bf16", "f64"),
        text.replace("8 512 512", "8 512"),
        text.replace("512", "-512"),
        text.replace("bf16 Skinny\n", "bf"),
    ];
    for text in wrong {
        assert_eq!(Tuning::from_text(&text, &key), None, "{text}");
    }
}
