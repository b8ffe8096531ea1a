//! How fast a GPU is: products by kernel and shape, kernels that move memory, the recording of kernels, a training step and
//! decoding. Every product is compared with its exact result before it is timed.

use super::GpuBackend;
use super::check;
use crate::args::Preset;
use crate::cmd::bench::preset_config;
use crate::error::{Error, Result};
use crate::machine::timed;
use crate::table::Table;
use larpo_core::backend::Backend;
use larpo_core::model::Transformer;
use larpo_core::retriever::{self, NoHooks, Prompt, SamplingConfig};
use larpo_gpu::kernels::adamw::{AdamW, adamw};
use larpo_gpu::kernels::elementwise::{copy, fill};
use larpo_gpu::kernels::list_loss::list_loss;
use larpo_gpu::kernels::lists::{LipoLabels, ListSpec, LossType, RankedLists, Ties};
use larpo_gpu::kernels::matmul::{Matrix, Variant, matmul_as};
use larpo_gpu::{Buffer, Recorder, Store};
use serde_json::{Value, json};
use std::time::Instant;

/// Timed repetitions, of which the median counts, after one that is not.
const REPS: usize = 5;

/// Sizes of what is timed, smaller on a CPU adapter.
struct Sizes {
    /// `(m, n, k)` of the products.
    products: &'static [(usize, usize, usize)],
    /// Floats of the arrays that are moved.
    moved: usize,
    /// Ranked lists of ten items.
    lists: usize,
    /// Kernels that do next to nothing.
    dispatches: usize,
    preset: Preset,
}

const ON_GPU: Sizes = Sizes {
    // Squares, those of a training step of the preset, and those of a decoding step.
    products: &[
        (1024, 1024, 1024),
        (4096, 4096, 4096),
        (704, 576, 576),
        (704, 3072, 576),
        (640, 8192, 576),
        (1, 3072, 576),
        (10, 3072, 576),
        (10, 49_152, 576),
    ],
    moved: 1 << 26,
    lists: 1_000_000,
    dispatches: 10_000,
    preset: Preset::M135m,
};

const ON_CPU_ADAPTER: Sizes = Sizes {
    products: &[(256, 256, 256), (512, 512, 512), (352, 384, 128), (10, 384, 128)],
    moved: 1 << 22,
    lists: 50_000,
    dispatches: 2_000,
    preset: Preset::T1m,
};

/// Times everything, shows it as tables and returns the object.
///
/// Keys: `adapter`, `products` (each with `kernel`, `m`, `n`, `k`, `seconds`, `tflops`), `memory` (`kernel`, `bytes`,
/// `seconds`, `gbps`), `dispatch_us` (recording one kernel) and `run_us` (recording and running one that does next to
/// nothing), `step` (`preset`, `seconds`, `dispatches`, `submits`, `encode_us`), `decode_tokens_per_second`.
///
/// # Errors
/// A product that is wrong; a device that failed.
pub fn run(backend: &GpuBackend, seed: u64) -> Result<Value> {
    let gpu = backend.gpu();
    show!("{gpu}");
    let sizes = if gpu.is_cpu() { &ON_CPU_ADAPTER } else { &ON_GPU };
    let mut recorder = Recorder::new(gpu).map_err(|error| failed(backend, error))?;
    let bench = Bench { backend, sizes, probe: recorder.alloc(1).map_err(|error| failed(backend, error))? };
    let products = bench.products(&mut recorder)?;
    let memory = bench.memory(&mut recorder)?;
    let (dispatch, run) = bench.dispatches(&mut recorder)?;
    show!("\nrecording a kernel: {dispatch:.2} µs; recording and running an empty one: {run:.2} µs");
    drop(recorder);
    let step = bench.step()?;
    let tokens = bench.decoding(seed)?;
    show!("decoding: {tokens:.0} tokens/s ({:?}, 10 responses at once)", sizes.preset);
    Ok(json!({
        "adapter": gpu.to_string(),
        "products": products,
        "memory": memory,
        "dispatch_us": dispatch,
        "run_us": run,
        "step": step,
        "decode_tokens_per_second": tokens,
    }))
}

fn failed(backend: &GpuBackend, source: larpo_gpu::Error) -> Error {
    Error::Device { device: backend.gpu().to_string(), source, mend: None }
}

struct Bench<'a> {
    backend: &'a GpuBackend,
    sizes: &'a Sizes,
    /// Reading it waits for everything recorded before.
    probe: Buffer,
}

impl Bench<'_> {
    /// Median seconds of `kernels`, waited for.
    fn seconds(
        &self,
        recorder: &mut Recorder,
        mut kernels: impl FnMut(&mut Recorder) -> std::result::Result<(), larpo_gpu::Error>,
    ) -> Result<f64> {
        timed(1, REPS, || {
            kernels(recorder)?;
            recorder.read(&self.probe).map(drop)
        })
        .map_err(|error| failed(self.backend, error))
    }

    fn products(&self, recorder: &mut Recorder) -> Result<Vec<Value>> {
        let mut table = Table::new(["product", "m", "n", "k", "ms", "TFLOP/s"]);
        let mut objects = Vec::new();
        for &(m, n, k) in self.sizes.products {
            // Small whole numbers: every sum is exact in any order.
            let numbers =
                |len: usize, by: usize| -> Vec<f32> { (0..len).map(|i| ((i * by) % 7) as f32 - 3.0).collect() };
            let (a, b) = (numbers(m * k, 31), numbers(n * k, 17));
            let upload = |x: &[f32]| recorder.upload(x).map_err(|error| failed(self.backend, error));
            let (x, w) = (upload(&a)?, upload(&b)?);
            let y = recorder.alloc(m * n).map_err(|error| failed(self.backend, error))?;
            let last: f32 = (0..k).map(|l| a[(m - 1) * k + l] * b[(n - 1) * k + l]).sum();
            // What is for few rows is not timed with many.
            for variant in Variant::of(self.backend.gpu()).filter(|&variant| variant != Variant::Skinny || m <= 64) {
                let product = |r: &mut Recorder| {
                    let w = Matrix::new(&w, n, k).transposed();
                    matmul_as(r, variant, Matrix::new(&x, m, k), w, None, Matrix::new(&y, m, n), Store::Set);
                    Ok(())
                };
                let seconds = self.seconds(recorder, product)?;
                let got = recorder.read(&y).map_err(|error| failed(self.backend, error))?[m * n - 1];
                if got != last {
                    let problem = format!("{variant:?} ({m}, {k}) · ({k}, {n}) gives {got} in place of {last}");
                    return Err(Error::request(format!("gpu bench: {problem}")));
                }
                let tflops = 2.0 * (m * n) as f64 * k as f64 / seconds / 1e12;
                let (kernel, ms) = (format!("{variant:?}"), 1e3 * seconds);
                table.row([
                    kernel.clone(),
                    m.to_string(),
                    n.to_string(),
                    k.to_string(),
                    format!("{ms:.2}"),
                    format!("{tflops:.4}"),
                ]);
                objects.push(json!({ "kernel": kernel, "m": m, "n": n, "k": k, "seconds": seconds, "tflops": tflops }));
            }
        }
        show!("\n{}", table.to_string().trim_end());
        Ok(objects)
    }

    fn memory(&self, recorder: &mut Recorder) -> Result<Vec<Value>> {
        let error = |error| failed(self.backend, error);
        let n = self.sizes.moved;
        let array = |recorder: &mut Recorder| -> Result<Buffer> {
            let x = recorder.alloc(n).map_err(error)?;
            fill(recorder, &x, 0.5);
            Ok(x)
        };
        let (x, y, m, v) = (array(recorder)?, array(recorder)?, array(recorder)?, array(recorder)?);
        let clip = recorder.upload(&[1.0f32, 1.0]).map_err(error)?;
        let settings = AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 10 };
        let lists = self.lists(recorder).map_err(error)?;
        let (gamma, d_gamma) =
            (recorder.alloc(lists.items()).map_err(error)?, recorder.alloc(lists.items()).map_err(error)?);
        let loss = recorder.alloc(lists.lists()).map_err(error)?;
        fill(recorder, &gamma, 0.25);
        let times = [
            (
                "copy",
                8 * n,
                self.seconds(recorder, |r| {
                    copy(r, &x, &y, Store::Set);
                    Ok(())
                })?,
            ),
            (
                "copy, added",
                12 * n,
                self.seconds(recorder, |r| {
                    copy(r, &x, &y, Store::Add);
                    Ok(())
                })?,
            ),
            // The gradient is read, three arrays are read and written.
            (
                "adamw",
                28 * n,
                self.seconds(recorder, |r| {
                    adamw(r, &settings, &x, &clip, &y, &m, &v);
                    Ok(())
                })?,
            ),
            // Scores in, losses and gradients out.
            (
                "list_loss (listmle)",
                8 * lists.items() + 4 * lists.lists(),
                self.seconds(recorder, |r| list_loss(r, &lists, &gamma, &loss, &d_gamma))?,
            ),
        ];
        let mut table = Table::new(["kernel", "MB", "ms", "GB/s"]);
        let mut objects = Vec::new();
        for (kernel, bytes, seconds) in times {
            let gbps = bytes as f64 / seconds / 1e9;
            let (mb, ms) = (format!("{:.1}", bytes as f64 / 1e6), format!("{:.2}", 1e3 * seconds));
            table.row([kernel.to_string(), mb, ms, format!("{gbps:.2}")]);
            objects.push(json!({ "kernel": kernel, "bytes": bytes, "seconds": seconds, "gbps": gbps }));
        }
        show!("\n{}", table.to_string().trim_end());
        Ok(objects)
    }

    /// Lists of ten items with rewards that all differ.
    fn lists(&self, recorder: &Recorder) -> std::result::Result<RankedLists, larpo_gpu::Error> {
        let offsets: Vec<u32> = (0..=self.sizes.lists as u32).map(|list| 10 * list).collect();
        let rewards: Vec<f64> = (0..10 * self.sizes.lists).map(|item| (item * 7 % 10) as f64).collect();
        let spec = ListSpec {
            item_offsets: &offsets,
            rewards: &rewards,
            order: None,
            target_offsets: &[],
            loss: LossType::Listmle,
            ties: Ties::Stable,
            labels: LipoLabels::Rank,
            log2: false,
        };
        RankedLists::new(recorder, &spec)
    }

    /// Microseconds for the recording of one kernel, and for its recording and run.
    fn dispatches(&self, recorder: &mut Recorder) -> Result<(f64, f64)> {
        let error = |error| failed(self.backend, error);
        let x = recorder.alloc(64).map_err(error)?;
        let n = self.sizes.dispatches;
        fill(recorder, &x, 1.0);
        recorder.read(&self.probe).map_err(error)?;
        let start = Instant::now();
        (0..n).for_each(|_| fill(recorder, &x, 1.0));
        let recorded = start.elapsed().as_secs_f64();
        recorder.read(&self.probe).map_err(error)?;
        let run = start.elapsed().as_secs_f64();
        Ok((1e6 * recorded / n as f64, 1e6 * run / n as f64))
    }

    /// One update of supervised fine-tuning of the smallest preset, with what was recorded for it.
    fn step(&self) -> Result<Value> {
        let before = self.backend.stats();
        let start = Instant::now();
        // The first update compiles kernels and takes memory.
        check::sft_losses(self.backend, 1)?;
        let warm = (start.elapsed().as_secs_f64(), self.backend.stats());
        let start = Instant::now();
        check::sft_losses(self.backend, 1 + REPS)?;
        let seconds = start.elapsed().as_secs_f64() / (1 + REPS) as f64;
        let stats = self.backend.stats();
        let per = |after: u64, before: u64| (after - before) as f64 / (1 + REPS) as f64;
        let (dispatches, submits) = (per(stats.dispatches, warm.1.dispatches), per(stats.submits, warm.1.submits));
        debug!("first update: {:.2} s, {} kernels", warm.0, warm.1.dispatches - before.dispatches);
        show!("a fine-tuning step (T1m): {:.1} ms, {dispatches:.0} kernels in {submits:.1} submissions", 1e3 * seconds);
        Ok(json!({ "preset": "t1m", "seconds": seconds, "dispatches": dispatches, "submits": submits }))
    }

    /// Tokens a second of decoding for one prompt.
    fn decoding(&self, seed: u64) -> Result<f64> {
        let config = preset_config(self.sizes.preset);
        let settings = SamplingConfig {
            num_generations: 10,
            max_new_tokens: 32,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            eos_ids: vec![],
            vocab_limit: config.vocab_size,
            seed,
            iteration: 0,
        };
        let model = Transformer::random(self.backend, config, seed)?;
        let ids: Vec<u32> = (1..65).collect();
        let prompts = [Prompt { index: 0, ids: &ids }];
        let drawn = || retriever::sample(&model, &prompts, &settings, &mut NoHooks).map(drop);
        let seconds = timed(1, REPS, drawn)?;
        self.backend.trim();
        Ok((settings.num_generations * settings.max_new_tokens) as f64 / seconds)
    }
}
