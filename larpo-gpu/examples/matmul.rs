//! A matrix product on the GPU by every variant, checked and timed.
//!
//! `cargo run --release --example matmul [size]`; `LARPO_ADAPTER` names an adapter, CPU ones included.

use larpo_gpu::kernels::matmul::{Matrix, Variant, matmul_as};
use larpo_gpu::{Choice, Error, Gpu, Recorder, Store};
use std::time::Instant;

fn main() -> Result<(), Error> {
    let n: usize = std::env::args().nth(1).and_then(|size| size.parse().ok()).unwrap_or(512);
    let gpu = Gpu::open(&Choice::from_env())?;
    println!("{gpu}, ({n}, {n}) · ({n}, {n})");
    let mut recorder = Recorder::new(&gpu)?;
    // Small whole numbers: every sum is exact.
    let numbers = |seed: usize| -> Vec<f32> { (0..n * n).map(|i| ((i * seed) % 7) as f32 - 3.0).collect() };
    let (a, b) = (numbers(31), numbers(17));
    let (x, y, z) = (recorder.upload(&a)?, recorder.upload(&b)?, recorder.alloc(n * n)?);
    let corner: f32 = (0..n).map(|k| a[(n - 1) * n + k] * b[k * n + n - 1]).sum();
    for variant in Variant::ALL {
        let product = |recorder: &mut Recorder| {
            let (x, y, z) = (Matrix::new(&x, n, n), Matrix::new(&y, n, n), Matrix::new(&z, n, n));
            matmul_as(recorder, variant, x, y, None, z, Store::Set);
        };
        product(&mut recorder);
        let result = recorder.read(&z)?;
        assert_eq!(result[n * n - 1], corner, "{variant:?}");
        // The read of one number waits for the products before it.
        let probe = recorder.alloc::<f32>(1)?;
        recorder.read(&probe)?;
        let repeats = 5;
        let start = Instant::now();
        for _ in 0..repeats {
            product(&mut recorder);
        }
        recorder.read(&probe)?;
        let seconds = start.elapsed().as_secs_f64() / f64::from(repeats);
        let flops = 2.0 * (n as f64).powi(3);
        println!("{variant:?}: {:.2} ms, {:.1} GFLOP/s", 1e3 * seconds, flops / seconds / 1e9);
    }
    Ok(())
}
