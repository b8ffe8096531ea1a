//! Products in half precision, where the adapter has matrix units for them.

use crate::common::{Rng, SIZES, before, devices, nmse, run_on, stored, upper_halves, wide};
use crate::matmul::{Case, LAYOUTS, twin};
use larpo_gpu::kernels::matmul::{Matrix, Variant, matmul, matmul_as};
use larpo_gpu::kernels::tuning::Tuning;
use larpo_gpu::{Adapter, Checks, Error, Gpu, Recorder, Store};
use std::sync::OnceLock;

/// The adapter under test, opened with trusted and with checked shaders. `None` without an adapter, and where it has no matrix
/// units, after it made sure that this is what the adapter says.
fn half() -> Option<&'static [Gpu; 2]> {
    static DEVICES: OnceLock<Option<[Gpu; 2]>> = OnceLock::new();
    let open = || {
        let name = devices()?.trusted.info().clone();
        let adapter = Adapter::all().into_iter().find(|adapter| *adapter.info() == name)?;
        let listed = adapter.matrix_units().next();
        match (listed, Gpu::open_half(&adapter, Checks::Trusted)) {
            (None, Err(error @ Error::NoHalf { .. })) => {
                let text = error.to_string();
                assert!(text.contains(&name.name) && text.contains("matrix units"), "{text}");
                eprintln!("left out: {text}");
                None
            }
            (Some(_), Ok(trusted)) => {
                Some([trusted, Gpu::open_half(&adapter, Checks::Checked).expect("with checks too")])
            }
            (listed, opened) => panic!("{:?}: {opened:?}", listed.map(|units| (units.size, units.lanes))),
        }
    };
    DEVICES.get_or_init(open).as_ref()
}

/// Numbers that half precision has: ten bits behind the leading one.
fn halves(rng: &mut Rng, len: usize) -> Vec<f32> {
    // Below 2⁻¹⁴ there are fewer bits.
    let cut = |x: f32| if x.abs() < 1e-3 { 0.0 } else { f32::from_bits(x.to_bits() & !0x1fff) };
    rng.floats(len, 1.0).into_iter().map(cut).collect()
}

fn product(case: &Case, a: &[f32], b: &[f32], bias: &[f32], c: &[f32], b_bf16: bool) -> Option<Vec<f32>> {
    let [trusted, checked] = half()?;
    let &Case { m, n, k, .. } = case;
    let kernels = |r: &mut Recorder| {
        let (a, bias, c) = (r.upload(a)?, r.upload(bias)?, r.upload(c)?);
        let (wide, short) = if b_bf16 { (None, Some(r.upload_bf16(b)?)) } else { (Some(r.upload(b)?), None) };
        let b = wide.as_ref().map(larpo_gpu::Weight::from).or(short.as_ref().map(larpo_gpu::Weight::from));
        let b = b.expect("one of both");
        let a = if case.a_t { Matrix::new(&a, k, m).transposed() } else { Matrix::new(&a, m, k) };
        let b = if case.b_t { Matrix::new(b, n, k).transposed() } else { Matrix::new(b, k, n) };
        matmul_as(r, Variant::MatrixUnits, a, b, case.bias.then_some(&bias), Matrix::new(&c, m, n), case.store);
        Ok(vec![c])
    };
    run_on(trusted, checked, kernels).pop()
}

/// Whole numbers come out exact, and numbers of half precision as well as single precision has their sums.
#[test]
fn gpu_half_products_of_what_it_has_are_those_of_single_precision() {
    let size = |i: usize| SIZES[i % SIZES.len()];
    for i in 0..SIZES.len() {
        for (l, (a_t, b_t)) in LAYOUTS.into_iter().enumerate() {
            let store = if (i + l).is_multiple_of(2) { Store::Set } else { Store::Add };
            let (m, n, k) = (size(i), size(5 * i + 3 + l), size(3 * i + 8 + 2 * l));
            let case = Case { m, n, k, a_t, b_t, bias: i % 3 == l, store };
            let b_bf16 = (i + l) % 4 == 3;
            let mut rng = Rng::new(m * 1_000_003 + n * 1009 + k);
            let c = before(&mut rng, m * n, store);
            for whole in [true, false] {
                let mut draw = |len| if whole { rng.whole(len, 8) } else { halves(&mut rng, len) };
                let (a, b, bias) = (draw(m * k), draw(k * n), draw(n));
                let b = if b_bf16 { upper_halves(&b) } else { b };
                let c = if whole && store == Store::Add { draw(m * n) } else { c.clone() };
                let want = stored(&c, twin(&case, &wide(&a), &wide(&b), &wide(&bias)), store);
                let Some(got) = product(&case, &a, &b, &bias, &c, b_bf16) else { return };
                if whole {
                    assert_eq!(wide(&got), want, "{case:?}");
                } else {
                    let error = nmse(&got, &want);
                    assert!(error <= 1e-10, "{case:?}: {error:.2e}");
                }
            }
        }
    }
}

/// Other numbers are rounded once, to eleven bits: an error of at most 2⁻¹⁰ of each number, whichever way the device rounds.
#[test]
fn gpu_half_products_round_their_operands_alone() {
    let (m, n, k) = (150, 131, 517);
    let case = Case { m, n, k, a_t: false, b_t: true, bias: false, store: Store::Set };
    let mut rng = Rng::new(5);
    let (a, b) = (rng.floats(m * k, 3.0), rng.floats(n * k, 0.2));
    let Some(got) = product(&case, &a, &b, &vec![0.0; n], &vec![f32::NAN; m * n], false) else { return };
    let error = nmse(&got, &twin(&case, &wide(&a), &wide(&b), &[]));
    assert!((1e-9..4e-6).contains(&error), "{error:.2e}");
}

/// A device that was opened for it takes them without being told, but not for few rows, and knows the choice by its name.
#[test]
fn gpu_half_products_are_chosen() {
    let Some([gpu, _]) = half() else { return };
    let run = |(m, n, k): (usize, usize, usize), variant: Option<Variant>| {
        let mut rng = Rng::new(9);
        let mut r = Recorder::new(gpu).unwrap();
        let (a, b) = (r.upload(&rng.floats(m * k, 1.0)).unwrap(), r.upload(&rng.floats(k * n, 1.0)).unwrap());
        let c = r.alloc(m * n).unwrap();
        let (x, w, y) = (Matrix::new(&a, m, k), Matrix::new(&b, n, k).transposed(), Matrix::new(&c, m, n));
        match variant {
            Some(variant) => matmul_as(&mut r, variant, x, w, None, y, Store::Set),
            None => matmul(&mut r, x, w, None, y, Store::Set),
        }
        r.read(&c).unwrap()
    };
    let many = (70, 40, 300);
    assert_eq!(run(many, None), run(many, Some(Variant::MatrixUnits)));
    assert_ne!(run(many, None), run(many, Some(Variant::Tile64)), "what is rounded can be told apart");
    let few = (3, 40, 300);
    let single = if gpu.is_cpu() { Variant::Direct } else { Variant::Skinny };
    assert_eq!(run(few, None), run(few, Some(single)));
    let key = Tuning::key(gpu);
    assert!(key.contains("half precision") && !Tuning::key(&devices().unwrap().trusted).contains("half precision"));
    let text = Tuning::default().to_text(&key) + "128 64 512 nt f32 MatrixUnits\n";
    assert_eq!(Tuning::from_text(&text, &key).map(|known| known.len()), Some(1));
}
