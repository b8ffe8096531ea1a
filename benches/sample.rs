//! Sampling: ten responses of 64 tokens to one prompt of 64, temperature 1, no truncation, no end of text; on
//! the CPU and on a GPU where there is one. The throughput counts response tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use larpo_benches::{gpu, settings, time, tokens, validate};
use larpo_core::backend::Backend;
use larpo_core::cpu::Cpu;
use larpo_core::lists::PackedLists;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::reference::Reference;
use larpo_core::retriever::{self, NoHooks, Prompt, Sample, SamplingConfig};
use std::hint::black_box;

/// Agreement of the log-probabilities of drawn tokens with double precision.
const TOLERANCE: f64 = 1e-5;

const K: usize = 10;
const PROMPT: usize = 64;
const RESPONSE: usize = 64;

fn sampling(k: usize, response: usize, vocab: usize) -> SamplingConfig {
    SamplingConfig {
        num_generations: k,
        max_new_tokens: response,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: vec![],
        vocab_limit: vocab,
        seed: 0,
        iteration: 0,
    }
}

fn draw<B: Backend>(model: &Transformer<B>, ids: &[u32], k: usize, response: usize) -> Vec<Sample> {
    let config = sampling(k, response, model.config().vocab_size);
    let mut samples =
        retriever::sample(model, &[Prompt { index: 0, ids }], &config, &mut NoHooks).expect("a valid prompt");
    samples.remove(0)
}

/// Compares the log-probability of every drawn token with the reference backend's, which scores the finished texts
/// without a cache.
fn check<B: Backend>(backend: &B, config: &ModelConfig) {
    let (k, response, prompt) = (3, 7, tokens(0, 9, config.vocab_size));
    let model = Transformer::random(backend, config.clone(), 0).expect("presets are valid shapes");
    let samples = draw(&model, &prompt, k, response);
    assert!(samples.len() == k && samples.iter().all(|s| s.ids.len() == response), "k responses of full length");
    assert!(samples.iter().any(|s| s.ids != samples[0].ids), "responses that differ");
    let judge = Transformer::random(&Reference, config.clone(), 0).expect("presets are valid shapes");
    let packed = PackedLists::pack([(&prompt[..], samples.iter().map(|s| &s.ids[..]))]);
    let want = judge.score(&packed).expect("ids of the vocabulary");
    let got: Vec<f64> = samples.iter().flat_map(|s| &s.logps).map(|&logp| f64::from(logp)).collect();
    validate("log-probabilities of samples", &got, &want, TOLERANCE);
}

fn sample(c: &mut Criterion) {
    sample_on(c, "sample", &Cpu::new());
    if let Some(backend) = gpu() {
        sample_on(c, "sample_gpu", &backend);
    }
}

fn sample_on<B: Backend>(c: &mut Criterion, name: &str, backend: &B) {
    let config = ModelConfig::preset("t1m").expect("a preset");
    check(backend, &config);
    let prompt = tokens(0, PROMPT, config.vocab_size);
    let model = Transformer::random(backend, config, 0).expect("presets are valid shapes");
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements((K * RESPONSE) as u64));
    group.bench_function(format!("t1m_k{K}_{PROMPT}+{RESPONSE}"), |bench| {
        time(bench, backend, || {
            black_box(draw(&model, &prompt, K, RESPONSE));
        });
    });
    group.finish();
}

criterion_group!(name = benches; config = settings(); targets = sample);
criterion_main!(benches);
