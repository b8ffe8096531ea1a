//! The number of threads changes how fast a step is, and nothing else: not one bit of its result.
#![cfg(feature = "rayon")]

mod common;

use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::retriever::{NoHooks, Prompt, SamplingConfig, sample};
use larpo_core::train::{ListTraining, SftRow, Trainer, TrainingList, TrainingResponse, fill_references};

fn ids(seed: u32, len: usize, vocab: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (seed * 7919 + i * 104_729 + i * i * 31) % vocab).collect()
}

/// Ids and log-probabilities of a sample.
type Drawn = (Vec<u32>, Vec<f32>);

/// Weights after two list steps and a fine-tuning step, then sampled ids and log-probabilities.
fn run(threads: usize, config: &ModelConfig) -> (Vec<f64>, Vec<Drawn>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        let model = Transformer::random(&Cpu::new(), config.clone(), 3).expect("a model");
        let response = |i: u32| TrainingResponse {
            ids: ids(i, 30 + 7 * i as usize, 3000),
            reward: f64::from(i),
            reference: Vec::new(),
            sampled: None,
        };
        let list = |i: u32| TrainingList { prompt: ids(100 + i, 70, 3000), responses: (0..6).map(response).collect() };
        let mut lists: Vec<_> = (0..2).map(list).collect();
        fill_references(&model, &mut lists, false).expect("references");
        let objective = Objective { loss: LossType::Lambdarank, ..Objective::default() };
        let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.1 };
        let optimizer = OptimizerConfig { learning_rate: 1e-3, max_grad_norm: 1.0, ..OptimizerConfig::default() };
        let mut trainer = Trainer::new(model, optimizer, 3);
        for _ in 0..2 {
            trainer.list_step(&settings, &lists.iter().collect::<Vec<_>>(), 2).expect("a step");
        }
        let row = SftRow { prompt: ids(7, 40, 3000), response: ids(8, 200, 3000) };
        trainer.sft_step(&[&row], 1).expect("a step");
        let model = trainer.into_model();
        let weights = (0..model.parameters().len()).flat_map(|i| {
            use larpo_core::backend::Backend;
            model.backend().read(model.parameters().value(i))
        });
        let weights = weights.collect();
        let texts: Vec<Vec<u32>> = (0..3).map(|i| ids(20 + i, 9 + 20 * i as usize, 3000)).collect();
        let prompts: Vec<Prompt> = texts.iter().enumerate().map(|(i, ids)| Prompt { index: i as u32, ids }).collect();
        let sampling = SamplingConfig {
            num_generations: 5,
            max_new_tokens: 12,
            temperature: 0.8,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            eos_ids: vec![],
            vocab_limit: 3000,
            seed: 4,
            iteration: 1,
        };
        let samples = sample(&model, &prompts, &sampling, &mut NoHooks).expect("samples");
        (weights, samples.into_iter().flatten().map(|s| (s.ids, s.logps)).collect())
    })
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    // Large enough that products, norms, AdamW and the head's blocks are split among threads.
    let llama = ModelConfig::new(160, 416, 2, 5, 5, 3000);
    let others = common::families(&llama);
    for config in others.into_iter().chain([llama]) {
        let one = run(1, &config);
        for threads in [2, 3, 5] {
            let (weights, samples) = run(threads, &config);
            assert!(weights == one.0, "weights differ with {threads} threads: {config:?}");
            assert_eq!(samples, one.1, "{threads} threads: {config:?}");
        }
    }
}
