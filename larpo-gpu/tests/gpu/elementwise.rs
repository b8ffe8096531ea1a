//! Kernels with one invocation an element.

use crate::common::{Rng, STORES, before, blank, compare, run, stored, wide};
use larpo_gpu::kernels::activation::{Activation, activate, activate_grad, glu, glu_grad};
use larpo_gpu::kernels::dropout::{Dropout, dropout};
use larpo_gpu::kernels::elementwise::{broadcast_rows, copy, fill, scale, scaled_copy, softcap};

const LENGTHS: [usize; 6] = [1, 3, 64, 255, 257, 4099];

#[test]
fn gpu_fill() {
    for (len, value) in LENGTHS.into_iter().zip([0.0, -1.5, 3.25, 1e30, -0.0, 7.0]) {
        let got = run(|r| {
            let y = blank(r, len)?;
            fill(r, &y, value);
            Ok(vec![y])
        });
        assert!(got.is_none_or(|got| wide(&got[0]) == vec![f64::from(value as f32); len]));
    }
}

#[test]
fn gpu_copy_and_scale() {
    let mut rng = Rng::new(1);
    for (len, store) in LENGTHS.into_iter().flat_map(|len| STORES.map(|store| (len, store))) {
        let (x, factors) = (rng.floats(len, 1.0), [2.0f32, 5.0]);
        let y = before(&mut rng, len, store);
        let double: Vec<f64> = wide(&x).iter().map(|x| 2.0 * x).collect();
        let twins = [stored(&y, wide(&x), store), stored(&y, double.clone(), store), double];
        let kernels = |r: &mut larpo_gpu::Recorder| {
            let (from, s) = (r.upload(&x)?, r.upload(&factors)?);
            let (copied, scaled, in_place) = (r.upload(&y)?, r.upload(&y)?, r.upload(&x)?);
            copy(r, &from, &copied, store);
            scaled_copy(r, &s, &from, &scaled, store);
            scale(r, &in_place, &s);
            Ok(vec![copied, scaled, in_place])
        };
        compare(&format!("{len} {store:?}"), kernels, &twins);
    }
}

#[test]
fn gpu_softcap() {
    let mut rng = Rng::new(2);
    for (len, size) in LENGTHS.into_iter().zip([0.1, 3.0, 200.0, 1e20, 30.0, 1.0]) {
        let x = rng.floats(len, size);
        let want = wide(&x).iter().map(|x| 3.0 * (x / 3.0).tanh()).collect();
        let kernels = |r: &mut larpo_gpu::Recorder| {
            let y = r.upload(&x)?;
            softcap(r, &y, 3.0);
            Ok(vec![y])
        };
        compare(&format!("{len} {size}"), kernels, &[want]);
    }
}

#[test]
fn gpu_broadcast_rows() {
    let mut rng = Rng::new(3);
    for (rows, c) in [(1, 1), (3, 7), (17, 64), (65, 129), (255, 3)] {
        for store in STORES {
            let (x, y) = (rng.floats(c, 1.0), before(&mut rng, rows * c, store));
            let want = stored(&y, (0..rows * c).map(|i| f64::from(x[i % c])).collect(), store);
            let kernels = |r: &mut larpo_gpu::Recorder| {
                let (x, y) = (r.upload(&x)?, r.upload(&y)?);
                broadcast_rows(r, &x, &y, store);
                Ok(vec![y])
            };
            compare(&format!("{rows} {c} {store:?}"), kernels, &[want]);
        }
    }
}

/// Philox4x32 with ten rounds, from its definition (Salmon et al., SC 2011).
fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (0xD251_1F53 * u64::from(c[0]), 0xCD9E_8D57 * u64::from(c[2]));
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Bit for bit, the mask is that of the definition.
#[test]
fn gpu_dropout() {
    // A known answer of the Random123 distribution.
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    let mut rng = Rng::new(6);
    let rates = [0.0, 0.1, 0.5, 0.95, 1.0 - 1e-12, 0.3];
    for (len, rate) in LENGTHS.into_iter().zip(rates).chain([(70_001, 0.2), (1 << 12, 0.0)]) {
        let settings = Dropout {
            rate,
            key: [rng.next() as u32, rng.next() as u32],
            counter: [rng.next() as u32, rng.next() as u32],
        };
        let factor = |i: usize| {
            let word = philox([i as u32 / 4, 0, settings.counter[0], settings.counter[1]], settings.key)[i % 4];
            if f64::from(word) < rate * 4_294_967_296.0 { 0.0 } else { (1.0 / (1.0 - rate)) as f32 }
        };
        let (x, y) = (rng.floats(len, 1.0), rng.floats(len, 1.0));
        let kernels = |store| {
            let (x, y) = (&x, &y);
            move |r: &mut larpo_gpu::Recorder| {
                let (x, y) = (r.upload(x)?, r.upload(y)?);
                dropout(r, &x, &settings, &y, store);
                Ok(vec![y])
            }
        };
        let kept: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
        let got = run(kernels(larpo_gpu::Store::Set));
        assert!(got.is_none_or(|got| got[0] == kept), "{len} {rate}");
        let sums = stored(&y, wide(&kept), larpo_gpu::Store::Add);
        compare(&format!("{len} {rate}"), kernels(larpo_gpu::Store::Add), &[sums]);
    }
}

/// The activation of `x` and its slope, from their definitions.
fn twin(which: Activation, x: f64) -> (f64, f64) {
    match which {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let t = (c * (x + 0.044715 * x.powi(3))).tanh();
            let slope = c * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
    }
}

const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

#[test]
fn gpu_activate() {
    let mut rng = Rng::new(4);
    for which in ACTIVATIONS {
        for (len, size) in LENGTHS.into_iter().zip([1.0, 0.01, 30.0, 5.0, 150.0, 3.0]) {
            // The slopes have a zero below 0, where an error relative to a few numbers means nothing.
            let positive = |x: f32| if len < 64 { x.abs() } else { x };
            let x: Vec<f32> = rng.floats(len, size).into_iter().map(positive).collect();
            let d_y = rng.floats(len, 1.0);
            let values: Vec<_> = wide(&x).iter().map(|&x| twin(which, x)).collect();
            let twins =
                [values.iter().map(|v| v.0).collect(), values.iter().zip(wide(&d_y)).map(|(v, d)| v.1 * d).collect()];
            let kernels = |r: &mut larpo_gpu::Recorder| {
                let (x, d_y, y, d_x) = (r.upload(&x)?, r.upload(&d_y)?, blank(r, len)?, blank(r, len)?);
                activate(r, &x, which, &y);
                activate_grad(r, &d_y, &x, which, &d_x);
                Ok(vec![y, d_x])
            };
            compare(&format!("{which:?} {len} {size}"), kernels, &twins);
        }
    }
}

#[test]
fn gpu_glu() {
    let mut rng = Rng::new(5);
    for which in ACTIVATIONS {
        for (n, width) in [(1, 1), (3, 7), (8, 33), (17, 64), (65, 127)] {
            let (x, d_y) = (rng.floats(n * 2 * width, 3.0), rng.floats(n * width, 1.0));
            let (mut want, mut d_want) = (vec![0.0; n * width], vec![0.0; 2 * n * width]);
            for row in 0..n {
                for i in 0..width {
                    let (gate, up) = (f64::from(x[row * 2 * width + i]), f64::from(x[row * 2 * width + width + i]));
                    let (value, slope) = twin(which, gate);
                    let d = f64::from(d_y[row * width + i]);
                    want[row * width + i] = value * up;
                    d_want[row * 2 * width + i] = d * up * slope;
                    d_want[row * 2 * width + width + i] = d * value;
                }
            }
            let kernels = |r: &mut larpo_gpu::Recorder| {
                let (x, d_y) = (r.upload(&x)?, r.upload(&d_y)?);
                let (y, d_x) = (blank(r, n * width)?, blank(r, 2 * n * width)?);
                glu(r, &x, width, which, &y);
                glu_grad(r, &d_y, &x, width, which, &d_x);
                Ok(vec![y, d_x])
            };
            compare(&format!("{which:?} {n} {width}"), kernels, &[want, d_want]);
        }
    }
}

/// More workgroups than one dimension of a dispatch takes: the rest folds into y.
#[test]
fn gpu_workgroups_beyond_a_dimension_fold() {
    let (rows, c) = (65_536 * 256 / 1021 + 1, 1021);
    let x: Vec<f32> = (0..c).map(|i| i as f32).collect();
    let got = run(|r| {
        let (x, y) = (r.upload(&x)?, r.alloc(rows * c)?);
        broadcast_rows(r, &x, &y, larpo_gpu::Store::Set);
        Ok(vec![y])
    });
    assert!(got.is_none_or(|got| got[0].chunks(c).all(|row| row == x)));
}
