//! A whole training step on one ranked list: forward, backward and AdamW with ListMLE and clipping, on the CPU and on a GPU
//! where there is one. The throughput counts response tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use larpo_benches::{gpu, list, settings, time, validate};
use larpo_core::backend::Backend;
use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::reference::Reference;
use larpo_core::train::{ListTraining, Trainer, TrainingList};

/// Agreement of a single-precision step with double precision, relative to each result's largest number.
const TOLERANCE: f64 = 1e-4;

fn settings_of_step() -> ListTraining {
    let objective = Objective { loss: LossType::Listmle, ..Objective::default() };
    ListTraining { objective, beta: 0.1, sft_weight: 0.0 }
}

fn trainer<B: Backend>(backend: &B, config: &ModelConfig) -> Trainer<B> {
    let model = Transformer::random(backend, config.clone(), 0).expect("presets are valid shapes");
    Trainer::new(model, OptimizerConfig { learning_rate: 1e-6, ..OptimizerConfig::default() }, u64::MAX)
}

/// Loss, and the gradient of every parameter, of one step.
fn step<B: Backend>(backend: &B, config: &ModelConfig, list: &TrainingList) -> Vec<Vec<f64>> {
    let mut trainer = trainer(backend, config);
    let report = trainer.list_step(&settings_of_step(), &[list], 1).expect("a finite step");
    let gradients = (0..trainer.model.parameters().len()).filter_map(|i| trainer.gradients().get(i));
    [vec![report.loss, report.update.grad_norm]].into_iter().chain(gradients.map(|g| backend.read(g))).collect()
}

/// Compares a short step of the preset's model with the reference backend's.
fn check<B: Backend>(backend: &B, preset: &str, config: &ModelConfig) {
    let list = list(3, 5, 4, config.vocab_size);
    let (fast, slow) = (step(backend, config, &list), step(&Reference, config, &list));
    assert_eq!(fast.len(), slow.len(), "{preset}: gradients");
    for (at, (got, want)) in fast.iter().zip(&slow).enumerate() {
        validate(&format!("{preset}, result {at} of a step"), got, want, TOLERANCE);
    }
}

fn list_step(c: &mut Criterion) {
    list_step_on(c, "list_step", &Cpu::new());
    if let Some(backend) = gpu() {
        list_step_on(c, "list_step_gpu", &backend);
    }
}

fn list_step_on<B: Backend>(c: &mut Criterion, name: &str, backend: &B) {
    let mut group = c.benchmark_group(name);
    for (preset, k, prompt, response) in [("t1m", 10, 64, 64), ("s15m", 10, 64, 64)] {
        let config = ModelConfig::preset(preset).expect("a preset");
        check(backend, preset, &config);
        let list = list(k, prompt, response, config.vocab_size);
        let mut trainer = trainer(backend, &config);
        group.throughput(Throughput::Elements((k * response) as u64));
        group.bench_function(format!("{preset}_k{k}_{prompt}+{response}"), |bench| {
            time(bench, backend, || {
                trainer.list_step(&settings_of_step(), &[&list], 1).expect("a finite step");
            });
        });
    }
    group.finish();
}

criterion_group!(name = benches; config = settings(); targets = list_step);
criterion_main!(benches);
