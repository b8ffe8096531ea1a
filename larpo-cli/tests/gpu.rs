//! The GPU backend against the reference and the CPU: every operation, a training step, fine-tuning, decoding, and what
//! happens when the device fails.
//!
//! The adapter is the one that LARPO_ADAPTER names, else a GPU, else any; see `device`.

mod common;
mod device;

use common::*;

use larpo_cli::gpu::check::{self, CaseOutcome};
use larpo_cli::gpu::{Chosen, GpuBackend};
use larpo_cli::stop::Stop;
use larpo_core::Error;
use larpo_core::backend::{Backend, DropoutSpec, NormSpec, Store, Weight};
use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::reference::Reference;
use larpo_core::retriever::{self, NoHooks, Prompt, Sample, SamplingConfig};
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::train::{ListTraining, Trainer, TrainingList, TrainingResponse, fill_references};
use serde_json::{Value, json};

#[test]
fn gpu_conformance() {
    let Some(backend) = device::backend() else { return };
    let (mut cases, mut worst) = (0, 0f64);
    let mut failed: Vec<CaseOutcome> = Vec::new();
    check::cases(&backend, |case| {
        cases += 1;
        worst = worst.max(case.outcome.nmse);
        if !case.passed() {
            failed.push(case);
        }
    });
    assert_eq!(backend.fault(), None);
    let problems: Vec<String> = failed.iter().map(CaseOutcome::problem).collect();
    assert!(problems.is_empty(), "{} of {cases} cases failed:\n{}", problems.len(), problems.join("\n"));
    assert!(cases > 500, "{cases} cases");
    eprintln!("{cases} cases, largest NMSE {worst:.1e}");
}

/// Whole numbers from -`size` to `size`.
fn whole(stream: u32, len: usize, size: i32) -> Vec<f32> {
    let random = CounterRng::new(9, Purpose::Bench);
    let number = |at: u32| (random.uniform([stream, at, 0, 0]) * f64::from(2 * size + 1)) as i32 - size;
    (0..len as u32).map(|at| number(at) as f32).collect()
}

/// Sums of small whole numbers, which are exact in any order.
fn sums<B: Backend>(b: &B, (n, c, out): (usize, usize, usize)) -> Vec<Vec<f64>> {
    let up = |stream: u32, len: usize| b.upload(&whole(stream, len, 8));
    let (x, w, d_y) = (up(1, n * c), up(2, out * c), up(3, n * out));
    let (mut y, mut d_x, mut d_w) = (up(4, n * out), up(5, n * c), b.alloc(out * c));
    let weight = Weight { data: &w, out_features: out, in_features: c };
    b.linear(&x, weight, &mut y, Store::Add);
    b.linear_grad_x(&d_y, weight, &mut d_x, Store::Add);
    b.linear_grad_w(&d_y, &x, out, c, &mut d_w, Store::Set);
    let ids = b.upload_index(&whole(6, n, 3).iter().map(|id| (id + 3.0) as u32 % out as u32).collect::<Vec<_>>());
    let (mut embedded, mut d_table) = (b.alloc(n * c), up(7, out * c));
    b.embed(&w, &ids, c, &mut embedded);
    b.embed_grad(&x, &ids, c, &mut d_table, Store::Add);
    let (mut sum, mut rows, mut dot, mut norm) = (b.alloc(c), up(8, n * c), b.alloc(1), b.alloc(2));
    b.sum_rows(&x, &mut sum, Store::Set);
    b.broadcast_rows(&sum, &mut rows, Store::Add);
    b.weighted_sum(&x, &rows, &mut dot);
    b.fill(&mut norm, 0.0);
    b.sq_norm(&x, &mut norm, 1);
    [&y, &d_x, &d_w, &embedded, &d_table, &sum, &rows, &dot, &norm].map(|x| b.read(x)).to_vec()
}

#[test]
fn gpu_whole_numbers_are_exact() {
    let Some(backend) = device::backend() else { return };
    for shape in [(1, 1, 1), (3, 7, 5), (16, 17, 15), (63, 65, 33), (129, 127, 64), (200, 31, 300)] {
        assert_eq!(sums(&backend, shape), sums(&Reference, shape), "{shape:?}");
    }
}

/// The same elements are left out as on the CPU, and the others are the same to the last bit.
#[test]
fn gpu_dropout_draws_what_the_cpu_draws() {
    let Some(backend) = device::backend() else { return };
    let data: Vec<f32> = whole(1, 10_007, 1000).iter().map(|x| x / 7.0).collect();
    fn dropped<B: Backend>(b: &B, data: &[f32], spec: &DropoutSpec) -> Vec<f64> {
        let mut y = b.alloc(data.len());
        b.dropout(&b.upload(data), spec, &mut y, Store::Set);
        b.read(&y)
    }
    for (rate, counter) in [(0.0, [0, 1]), (0.1, [5, 0]), (0.5, [7, 9]), (0.999, [1, 1])] {
        let spec = DropoutSpec { rate, key: [3, 4], counter };
        assert_eq!(dropped(&backend, &data, &spec), dropped(&Cpu::new(), &data, &spec), "{rate}");
    }
}

#[test]
fn gpu_a_training_step_agrees_with_the_cpu() {
    let Some(backend) = device::backend() else { return };
    let difference = check::step(&backend).unwrap();
    eprintln!("{difference:?}");
    assert!(difference.passed(), "{difference:?}");
}

#[test]
fn gpu_twenty_steps_of_fine_tuning_agree_with_the_cpu() {
    let Some(backend) = device::backend() else { return };
    let before = backend.stats();
    let got = check::sft_losses(&backend, 20).unwrap();
    let stats = backend.stats();
    let want = check::sft_losses(&Cpu::new(), 20).unwrap();
    let errors: Vec<f64> = got.iter().zip(&want).map(|(a, b)| (a - b).abs() / b).collect();
    let worst = errors.iter().copied().fold(0.0, f64::max);
    assert!(worst <= 1e-4, "{errors:?}");
    assert_ne!(got[0], got[19], "nothing was learned");
    let (dispatches, submits) = (stats.dispatches - before.dispatches, stats.submits - before.submits);
    eprintln!("20 steps: largest error {worst:.1e}, {dispatches} kernels in {submits} submissions");
    assert!(20 * submits <= dispatches, "{dispatches} kernels in {submits} submissions");
    assert_eq!(stats.reads - before.reads, 20, "the host waits once an update");
}

/// Memory is used again from step to step: 500 of them, on lists of seven shapes, with samples in between.
#[test]
fn gpu_memory_stays_flat() {
    let Some(backend) = device::backend() else { return };
    let model = Transformer::random(&backend, ModelConfig::new(32, 64, 2, 4, 2, 300), 5).unwrap();
    let mut trainer = Trainer::new(model, OptimizerConfig::default(), 500);
    let settings = ListTraining { objective: Objective::default(), beta: 0.1, sft_weight: 0.0 };
    let list = |shape: usize| {
        let response = |item: usize| TrainingResponse {
            ids: (0..1 + shape * item).map(|at| (at * 7 + item) as u32 % 300).collect(),
            reward: item as f64,
            reference: vec![-5.0; 1 + shape * item],
            sampled: None,
        };
        TrainingList { prompt: vec![1; 1 + 5 * shape], responses: (0..2 + shape).map(response).collect() }
    };
    let mut held = Vec::new();
    let before = backend.stats().reads;
    trainer.list_step(&settings, &[&list(0), &list(1), &list(2)], 1).unwrap();
    assert_eq!(backend.stats().reads - before, 1, "the host waits once an update, of however many passes");
    for step in 0..500 {
        trainer.list_step(&settings, &[&list(step % 7)], 1).unwrap();
        if step % 50 == 49 {
            draw(&trainer.model);
            held.push(backend.stats().bytes);
        }
    }
    assert_eq!(backend.fault(), None);
    // After fifty steps everything has been seen.
    assert!(held.iter().all(|bytes| *bytes == held[0]), "{held:?}");
}

/// The flags that an error of missing memory names are those of a run that fits.
#[cfg(target_os = "linux")]
#[test]
fn gpu_out_of_memory_names_what_fits() {
    let Some(backend) = device::backend() else { return };
    if !backend.gpu().is_cpu() {
        eprintln!("skipped: the memory of this device cannot be bounded");
        return;
    }
    let folder = Folder::new("out-of-memory");
    let numbers = |i: usize| (2 * i..2 * i + 20).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let rows: Vec<Value> = (0..480).map(|i| json!({"prompt": format!("{i} = "), "completion": numbers(i)})).collect();
    let (data, out) = (folder.rows("rows.jsonl", &rows), folder.name("out"));
    // What this adapter calls device memory is memory of the process.
    let run = |batch: &str, accumulation: &str| {
        let sizes = ["--hidden_size", "128", "--num_hidden_layers", "8", "--num_attention_heads", "4"];
        let passes = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation];
        let words = ["sft", "--dataset_name", &data, "--output_dir", &out, "--tokenizer", "char", "--max_steps", "1"];
        let words = [
            &words[..],
            &sizes,
            &passes,
            &["--max_position_embeddings", "256", "--device", "gpu", "--overwrite_output_dir"],
        ]
        .concat();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -v 1500000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_larpo")]).args(words);
        // Its threads have stacks, which count too.
        command.env("LARPO_ADAPTER", &backend.gpu().info().name).env("LP_NUM_THREADS", "2");
        command
    };
    let error = fails(&mut run("240", "1"));
    let parts = [
        "out of device memory",
        "this run needs about 1.",
        "of device memory and the device gave",
        "or take --device cpu",
    ];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    let after = |flag: &str| {
        let rest = error.split(flag).nth(1).expect("the flag");
        rest.split_whitespace().next().expect("its number").to_string()
    };
    let (batch, accumulation) = (after("--per_device_train_batch_size"), after("--gradient_accumulation_steps"));
    assert_eq!(batch.parse::<usize>().unwrap() * accumulation.parse::<usize>().unwrap(), 240, "{error}");
    // One pass shows it.
    succeeds(&mut run(&batch, "1"));
}

fn decoded<B: Backend>(backend: &B, settings: &SamplingConfig) -> Vec<Vec<Sample>> {
    let mut config = ModelConfig::new(32, 64, 2, 4, 2, 300);
    // Random logits that are far from equal.
    config.initializer_range = 0.3;
    let model = Transformer::random(backend, config, 3).unwrap();
    let prompts: Vec<Vec<u32>> = (1..=4).map(|n: u32| (0..3 * n).map(|i| (i * 37 + n) % 300).collect()).collect();
    let prompts: Vec<Prompt> = prompts.iter().zip(0..).map(|(ids, index)| Prompt { index, ids }).collect();
    retriever::sample(&model, &prompts, settings, &mut NoHooks).unwrap()
}

#[test]
fn gpu_decoding_draws_the_tokens_of_the_cpu() {
    let Some(backend) = device::backend() else { return };
    let sampled = SamplingConfig {
        num_generations: 5,
        max_new_tokens: 24,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: vec![7, 8, 9],
        vocab_limit: 290,
        seed: 1,
        iteration: 0,
    };
    let cut = SamplingConfig { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.01, ..sampled.clone() };
    for (name, settings) in [("greedy", sampled.clone().greedy()), ("sampled", sampled), ("cut", cut)] {
        let (got, want) = (decoded(&backend, &settings), decoded(&Cpu::new(), &settings));
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            assert_eq!((&got.ids, got.finish_reason), (&want.ids, want.finish_reason), "{name}");
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4;
            assert!(got.logps.iter().zip(&want.logps).all(close), "{name}: {:?} {:?}", got.logps, want.logps);
        }
    }
    assert_eq!(backend.fault(), None);
}

/// What is read from a device that is lost is no number, no step is made of it, and the backend knows why.
#[test]
fn gpu_a_lost_device_ends_in_an_error() {
    let Some(shared) = device::backend() else { return };
    let name = shared.gpu().info().name.clone();
    let gpu = larpo_gpu::Gpu::open(&larpo_gpu::Choice::Named(name)).unwrap();
    let backend = larpo_cli::gpu::GpuBackend::new(&gpu).unwrap();
    let x = backend.upload(&[1.0, 2.0]);
    assert_eq!(backend.read(&x), [1.0, 2.0]);
    assert_eq!(backend.fault(), None);
    gpu.device().destroy();
    assert!(backend.read(&x).iter().all(|x| x.is_nan()));
    assert!(backend.fault().is_some());
    // Everything goes on without a panic, and nothing of it is a number.
    let y = backend.upload(&[3.0; 5]);
    assert!(backend.len(&y) == 5 && backend.read(&y).iter().all(|y| y.is_nan()));
    let error = check::sft_losses(&backend, 1).unwrap_err().to_string();
    assert!(error.contains("not a finite number"), "{error}");
    assert!(check::step(&backend).is_err());
    let settings = SamplingConfig {
        num_generations: 2,
        max_new_tokens: 3,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: vec![],
        vocab_limit: 300,
        seed: 1,
        iteration: 0,
    };
    let model = Transformer::random(&backend, ModelConfig::new(32, 64, 2, 4, 2, 300), 3).unwrap();
    let prompts = [Prompt { index: 0, ids: &[1, 2, 3] }];
    let drawn = retriever::sample(&model, &prompts, &settings, &mut NoHooks);
    assert!(matches!(drawn, Err(Error::NotFinite { .. })), "{drawn:?}");
}

/// What is drawn, then the losses of two steps on ranked lists and the gradient of every parameter in the first one.
fn step_and_draw<B: Backend>(backend: &B, config: &ModelConfig) -> ([f64; 2], Vec<Vec<f64>>, Vec<Vec<u32>>) {
    let vocab = config.vocab_size as u32;
    let model = Transformer::random(backend, config.clone(), 2).unwrap();
    let optimizer = OptimizerConfig { learning_rate: 1e-2, max_grad_norm: 1.0, ..Default::default() };
    let mut trainer = Trainer::new(model, optimizer, 2);
    // From every part of the vocabulary, its ends among them.
    let id = |list: u32, at: u32| (list * 7919 + at * (vocab / 7)) % vocab;
    let mut lists: Vec<TrainingList> = (0..2u32)
        .map(|list| TrainingList {
            prompt: vec![id(list, 1), vocab - 1, id(list, 2)],
            responses: (0..3)
                .map(|item| TrainingResponse {
                    ids: (0..3 + item).map(|at| id(list + 3 * item, at)).chain([0, vocab - 1]).collect(),
                    reward: f64::from(item % 2 + list),
                    reference: vec![],
                    sampled: None,
                })
                .collect(),
        })
        .collect();
    fill_references(&trainer.model, &mut lists, false).unwrap();
    let objective = Objective { loss: LossType::Lambdarank, ..Default::default() };
    let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.5 };
    // Drawn before weights differ by what an update makes of rounding.
    let drawn = draw(&trainer.model);
    let step = |trainer: &mut Trainer<B>| trainer.list_step(&settings, &lists.iter().collect::<Vec<_>>(), 2).unwrap();
    let first = step(&mut trainer).loss;
    let gradients = (0..trainer.model.parameters().len())
        .map(|index| trainer.gradients().get(index).map(|g| backend.read(g)).unwrap_or_default())
        .collect();
    let losses = [first, step(&mut trainer).loss];
    (losses, gradients, drawn)
}

/// Tokens that are most probable, and random ones.
fn draw<B: Backend>(model: &Transformer<B>) -> Vec<Vec<u32>> {
    let vocab = model.config().vocab_size as u32;
    let sampled = SamplingConfig {
        num_generations: 2,
        max_new_tokens: 4,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: vec![],
        vocab_limit: model.config().vocab_size,
        seed: 1,
        iteration: 0,
    };
    let prompts = [Prompt { index: 0, ids: &[1, vocab - 2, 3] }, Prompt { index: 1, ids: &[vocab / 2] }];
    let settings = [sampled.clone().greedy(), sampled];
    let samples = settings.iter().flat_map(|s| retriever::sample(model, &prompts, s, &mut NoHooks).unwrap());
    samples.flatten().map(|sample| sample.ids).collect()
}

/// Of a table with `vocab` rows of `channels`: weights, moments, gradients and logits are seen in parts.
fn check_parts(backend: &GpuBackend, vocab: usize, channels: usize) {
    let mut config = ModelConfig::new(channels, 2 * channels, 1, 4, 2, vocab);
    // Logits that are far from equal.
    config.initializer_range = 2.0 / (channels as f64).sqrt();
    assert!((4 * vocab * channels) as u64 > backend.gpu().max_binding_bytes());
    let (losses, gradients, drawn) = step_and_draw(backend, &config);
    assert_eq!(backend.fault(), None);
    let (cpu_losses, cpu_gradients, cpu_drawn) = step_and_draw(&Cpu::new(), &config);
    for ((loss, cpu), permitted) in losses.iter().zip(cpu_losses).zip([1e-5, 1e-4]) {
        assert!((loss - cpu).abs() <= permitted * cpu.abs(), "{loss} instead of {cpu}");
    }
    for (index, (got, want)) in gradients.iter().zip(&cpu_gradients).enumerate() {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let difference = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
        assert!(difference <= 1e-4 * norm(&mut want.iter().copied()), "the gradient of parameter {index}");
    }
    assert_eq!(drawn, cpu_drawn);
}

/// 192 MiB, where lavapipe (and what weaker GPUs there are) shows 128 MiB at a time.
#[test]
fn gpu_a_table_above_the_binding_limit_trains_and_samples() {
    let Some(backend) = device::tight(128 << 20) else { return };
    check_parts(&backend, 49_152, 1024);
}

/// Many parts, which do not end where tiles do.
#[test]
fn gpu_tables_of_many_parts_train_and_sample() {
    for (vocab, channels) in [(9001, 24), (5003, 64)] {
        let Some(backend) = device::tight(256 << 10) else { return };
        check_parts(&backend, vocab, channels);
    }
}

/// A tensor that a kernel can only take whole, and cannot be shown whole, is named, and what follows is no number.
#[test]
fn gpu_activations_above_the_binding_limit_are_named() {
    let Some(backend) = device::tight(1 << 20) else { return };
    let settings = NormSpec { eps: 1e-5, offset: 0.0 };
    let (x, w) = (backend.upload(&[1.0; (1 << 18) + 64]), backend.upload(&[1.0; 64]));
    let (mut y, mut rstd) = (backend.alloc((1 << 18) + 64), backend.alloc((1 << 12) + 1));
    backend.rms_norm(&x, &w, settings, &mut y, &mut rstd);
    assert!(backend.read(&rstd).iter().all(|x| x.is_nan()));
    let error = check::healthy(&backend).unwrap_err().to_string();
    let parts = ["norm", "1048832 bytes", "1048576 bytes", "--per_device_train_batch_size", "--device cpu"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

/// A run whose device is lost goes on with another one, to the model that a run left alone ends with.
#[test]
fn gpu_a_run_goes_on_when_its_device_is_lost() {
    let Some(shared) = device::backend() else { return };
    let folder = Folder::new("device-lost");
    let (data, model) = tiny(&folder);
    let name = shared.gpu().info().name.clone();
    let run = |out: &std::path::Path, extra: &[&str], lose: usize| {
        let out_name = out.display().to_string();
        let words = align(&data, &model, &out_name, extra);
        let line = std::iter::once("larpo").chain(words);
        let cli = larpo_cli::args::parse(line).unwrap();
        let command = cli.command().unwrap();
        let left = std::sync::atomic::AtomicUsize::new(lose);
        let open = || {
            let gpu = larpo_gpu::Gpu::open(&larpo_gpu::Choice::Named(name.clone())).unwrap();
            let device = gpu.device().clone();
            if left.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                let nth = left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                // In the first iteration, and in the second one.
                let sign = out.join(if nth == lose { "iteration-1/checkpoint-5" } else { "iteration-2/metrics.jsonl" });
                std::thread::spawn(move || {
                    wait_for("a sign of life", || sign.exists());
                    device.destroy();
                });
            }
            Ok(Chosen::Gpu(GpuBackend::new(&gpu).unwrap()))
        };
        let result = larpo_cli::cmd::run_on_opened(open, command, &cli.settings, &Stop::default());
        (result, left.into_inner())
    };
    let alone = folder.path("alone");
    run(&alone, &[], 0).0.unwrap();
    // Without the flag it ends there, with its checkpoint.
    let stopped = folder.path("stopped");
    let error = run(&stopped, &[], 1).0.unwrap_err().to_string();
    assert!(error.contains("lost") && error.contains("--on_device_lost retry"), "{error}");
    assert!(stopped.join("iteration-1/checkpoint-5").exists());
    let lost = folder.path("lost");
    let (result, left) = run(&lost, &["--on_device_lost", "retry"], 2);
    result.unwrap();
    assert_eq!(left, 0, "the device was lost");
    assert_same(&results(&alone), &results(&lost), "device lost");
    // Runs remember where they were.
    let device = |out: &std::path::Path| -> Value {
        let record: Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
        record["build"]["device"].clone()
    };
    assert_eq!(device(&lost), shared.gpu().to_string());
    assert_eq!(device(model.as_ref()), "cpu");
}

/// Kernels that were measured are written at once, and the next run on the adapter measures nothing.
#[test]
fn gpu_tuning_is_kept_for_later_runs() {
    let Some(shared) = device::backend() else { return };
    let folder = Folder::new("tuning");
    let run = || {
        let gpu = larpo_gpu::Gpu::open(&larpo_gpu::Choice::Named(shared.gpu().info().name.clone())).unwrap();
        larpo_cli::gpu::tuning::remember(&gpu, &folder.path("larpo/tuning"));
        let backend = GpuBackend::new(&gpu).unwrap();
        let results = step_and_draw(&backend, &ModelConfig::new(32, 64, 1, 4, 2, 300));
        assert_eq!(backend.fault(), None);
        let files: Vec<_> = std::fs::read_dir(folder.path("larpo/tuning")).unwrap().collect();
        assert_eq!(files.len(), 1);
        let text = std::fs::read_to_string(files[0].as_ref().unwrap().path()).unwrap();
        (results, backend.stats().dispatches, text)
    };
    let (first, measured, text) = run();
    assert!(text.starts_with("larpo-gpu tuning 1\n") && text.contains(" nt f32 "), "{text}");
    let (second, dispatches, again) = run();
    assert_eq!((first, text), (second, again));
    assert!(measured > dispatches + 50, "{measured} kernels, then {dispatches}");
}

/// With products in half precision every operation and a step are as near to single precision as eleven bits allow, and
/// fine-tuning learns the same.
#[test]
fn gpu_half_precision_agrees_to_its_bits() {
    let Some(backend) = device::half() else { return };
    let mut problems = Vec::new();
    check::cases(&backend, |case| problems.extend((!case.passed()).then(|| case.problem())));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let difference = check::step(&backend).unwrap();
    assert!(difference.passed() && difference.grad_rel_max > 1e-5, "{difference:?}");
    let (got, want) = (check::sft_losses(&backend, 20).unwrap(), check::sft_losses(&Cpu::new(), 20).unwrap());
    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 2e-3 * b), "{got:?} {want:?}");
    assert_eq!(backend.fault(), None);
}

/// `--gpu_precision f16` runs the loop with all its proofs, and a run that is gone on with ends in the same bits; where there are
/// no matrix units it is refused before anything is written.
#[test]
fn gpu_half_precision_runs_the_loop() {
    let Some(shared) = device::backend() else { return };
    let folder = Folder::new("half-precision");
    let (data, model) = tiny(&folder);
    let name = shared.gpu().info().name.clone();
    let run = |out: &std::path::Path, stop: &Stop, extra: &[&str]| {
        let out = out.display().to_string();
        let extra = [&["--gpu_precision", "f16", "--device", "gpu"], extra].concat();
        let words = align(&data, &model, &out, &extra);
        let cli = larpo_cli::args::parse(std::iter::once("larpo").chain(words)).unwrap();
        let command = cli.command().unwrap();
        let args = command.common();
        assert!(args.half());
        let number = larpo_gpu::Adapter::all().iter().position(|adapter| adapter.info().name == name);
        let open = || larpo_cli::gpu::open(number, args.half()).map(Chosen::Gpu);
        larpo_cli::cmd::run_on_opened(open, command, &cli.settings, stop)
    };
    let alone = folder.path("alone");
    if device::half().is_none() {
        let error = run(&alone, &Stop::default(), &[]).unwrap_err().to_string();
        assert!(error.contains("single precision only") && error.contains("leave out --gpu_precision f16"), "{error}");
        assert!(!alone.exists());
        return;
    }
    run(&alone, &Stop::default(), &[]).unwrap();
    let (halted, stop) = (folder.path("halted"), Stop::default());
    let (sign, raised) = (halted.join("iteration-1/checkpoint-5"), stop.clone());
    std::thread::spawn(move || {
        wait_for("a checkpoint", || sign.exists());
        raised.request();
    });
    assert!(run(&halted, &stop, &[]).is_err(), "it is interrupted");
    run(&halted, &Stop::default(), &["--resume_from_checkpoint", "latest"]).unwrap();
    assert_same(&results(&alone), &results(&halted), "gone on with");
}

/// The CPU has no half precision, and does not pretend to.
#[test]
fn half_precision_is_refused_on_the_cpu() {
    let folder = Folder::new("half-precision-cpu");
    let (data, model) = tiny(&folder);
    let out = folder.path("out").display().to_string();
    let error = fails(&mut larpo(&align(&data, &model, &out, &["--gpu_precision", "f16", "--device", "cpu"])));
    assert!(error.contains("--gpu_precision f16: the CPU computes in single precision"), "{error}");
}

/// A tensor that one buffer cannot hold is refused, and named.
#[test]
fn gpu_too_large_a_tensor_is_named() {
    let Some(backend) = device::backend() else { return };
    let limit = backend.gpu().max_tensor_bytes();
    let x = backend.alloc(limit as usize / 4 + 1);
    assert_eq!(backend.len(&x), limit as usize / 4 + 1);
    let fault = backend.fault().expect("a failure").to_string();
    assert!(fault.contains(&limit.to_string()), "{fault}");
}
