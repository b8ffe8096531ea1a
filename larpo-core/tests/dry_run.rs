//! What a step holds, with an allocator that counts: a dry run holds what the CPU backend holds, block by block, and the
//! logits are never held whole.

mod common;

use larpo_core::backend::Backend;
use larpo_core::cpu::{Cpu, DryRun, Memory};
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::retriever::{NoHooks, Prompt, SamplingConfig, sample};
use larpo_core::train::{ListTraining, SftRow, Trainer, TrainingList, TrainingResponse, fill_references};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Alignment of the pool's blocks; nothing else asks for it.
const LINE: usize = 64;

static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static ALL: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The allocator counts the whole process, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Counting;

fn add(layout: Layout) {
    if layout.align() == LINE {
        BLOCKS.fetch_add(layout.size(), Ordering::Relaxed);
    }
    let now = ALL.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is handed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if layout.align() == LINE {
            BLOCKS.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        ALL.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn config() -> ModelConfig {
    ModelConfig { max_position_embeddings: 600, ..ModelConfig::new(96, 256, 3, 4, 2, 3000) }
}

fn ids(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((seed * 7919 + i * 104_729 + i * i * 31) % 3000) as u32).collect()
}

/// Ragged rows: prompts of 5 to 40 tokens, responses of 20 to 150.
fn rows() -> Vec<SftRow> {
    let row = |i: usize| SftRow { prompt: ids(i, 5 + 7 * i % 36), response: ids(i + 50, 20 + 53 * i % 131) };
    (0..24).map(row).collect()
}

fn lists() -> Vec<TrainingList> {
    let response = |i: usize, j: usize| TrainingResponse {
        ids: ids(i * 10 + j, 10 + (13 * i + 29 * j) % 60),
        reward: j as f64,
        reference: Vec::new(),
        sampled: None,
    };
    let list =
        |i: usize| TrainingList { prompt: ids(i, 30 + 11 * i), responses: (0..4).map(|j| response(i, j)).collect() };
    (0..6).map(list).collect()
}

/// Fine-tuning on ragged batches; `look` is called after every update.
fn fine_tune<B: Backend>(backend: &B, config: &ModelConfig, mut look: impl FnMut()) {
    let model = Transformer::unspecified(backend, config.clone()).expect("a model");
    let mut trainer = Trainer::new(model, OptimizerConfig::default(), 6);
    let rows = rows();
    for batch in rows.chunks(8) {
        let _ = trainer.sft_step(&batch.iter().collect::<Vec<_>>(), 4);
        look();
    }
}

/// Sampling, scoring and list training, as an iteration does it.
fn align<B: Backend>(backend: &B, config: &ModelConfig, mut look: impl FnMut()) {
    let model = Transformer::unspecified(backend, config.clone()).expect("a model");
    let sampling = SamplingConfig {
        num_generations: 5,
        max_new_tokens: 30,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: vec![],
        vocab_limit: 3000,
        seed: 1,
        iteration: 1,
    };
    let texts: Vec<Vec<u32>> = (0..3).map(|i| ids(i, 20 + 15 * i)).collect();
    let prompts: Vec<Prompt> =
        texts.iter().enumerate().map(|(index, ids)| Prompt { index: index as u32, ids }).collect();
    sample(&model, &prompts, &sampling, &mut NoHooks).expect("samples");
    look();
    backend.trim();
    look();
    let mut lists = lists();
    fill_references(&model, &mut lists, false).expect("references");
    look();
    let objective = Objective { loss: LossType::Lambdarank, ..Objective::default() };
    let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.1 };
    let mut trainer = Trainer::new(model, OptimizerConfig::default(), 2);
    for _ in 0..2 {
        let _ = trainer.list_step(&settings, &lists.iter().collect::<Vec<_>>(), 4);
        look();
    }
}

/// Bytes of blocks, and with the scratch.
fn dry(run: impl FnOnce(&DryRun, &mut dyn FnMut(Memory))) -> Vec<Memory> {
    let (backend, mut seen) = (DryRun::new(), Vec::new());
    run(&backend, &mut |memory| seen.push(memory));
    seen
}

fn compare(name: &str, dry: &[Memory], wet: &[usize], peak: usize) {
    let blocks = |memory: &Memory| (memory.total() - memory.scratch) as usize;
    assert_eq!(dry.iter().map(blocks).collect::<Vec<_>>(), wet, "{name}");
    let most = dry.iter().map(Memory::total).max().expect("a phase") as f64;
    assert!((most / peak as f64 - 1.0).abs() < 0.1, "{name}: {most} planned, {peak} at the peak");
}

#[test]
fn a_dry_run_holds_what_a_run_holds() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    holds_what_a_run_holds(&config());
    common::families(&config()).iter().for_each(holds_what_a_run_holds);
}

fn holds_what_a_run_holds(config: &ModelConfig) {
    let planned = dry(|backend, look| fine_tune(backend, config, || look(backend.memory())));
    let (before, mut wet) = (BLOCKS.load(Ordering::Relaxed), Vec::new());
    let all = ALL.load(Ordering::Relaxed);
    PEAK.store(all, Ordering::Relaxed);
    fine_tune(&Cpu::new(), config, || wet.push(BLOCKS.load(Ordering::Relaxed) - before));
    compare("fine-tuning", &planned, &wet, PEAK.load(Ordering::Relaxed) - all);
    let last = planned.last().expect("a phase");
    let parameters = config.parameters();
    // Rounding up to a size class adds an eighth at most.
    for (bytes, copies) in [(last.weights, 1), (last.gradients, 1), (last.moments, 2)] {
        assert!((4 * copies * parameters..4 * copies * parameters * 9 / 8 + 4096).contains(&bytes), "{last:?}");
    }
    assert!(last.activations > 0 && last.logits > 0 && last.kv_cache == 0, "{last:?}");

    let planned = dry(|backend, look| align(backend, config, || look(backend.memory())));
    let (before, mut wet) = (BLOCKS.load(Ordering::Relaxed), Vec::new());
    let all = ALL.load(Ordering::Relaxed);
    PEAK.store(all, Ordering::Relaxed);
    align(&Cpu::new(), config, || wet.push(BLOCKS.load(Ordering::Relaxed) - before));
    compare("an iteration", &planned, &wet, PEAK.load(Ordering::Relaxed) - all);
    assert!(planned[0].kv_cache > 0 && planned[1].kv_cache == 0, "the cache is given back");
}

/// Peak bytes beyond weights, gradients and moments of list steps on a narrow model with `vocab` tokens and lists of four
/// responses of `len` tokens.
fn activations_of_a_step(vocab: usize, len: usize) -> usize {
    let config = ModelConfig { max_position_embeddings: 2000, ..ModelConfig::new(32, 64, 1, 2, 1, vocab) };
    let parameters = 4 * config.parameters() as usize;
    let before = ALL.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let model = Transformer::unspecified(&Cpu::new(), config).expect("a model");
    let response =
        |i: usize| TrainingResponse { ids: ids(i, len), reward: i as f64, reference: vec![0.0; len], sampled: None };
    let list = TrainingList { prompt: ids(9, 20), responses: (0..4).map(response).collect() };
    let settings = ListTraining { objective: Objective::default(), beta: 0.1, sft_weight: 0.0 };
    let mut trainer = Trainer::new(model, OptimizerConfig::default(), 2);
    for _ in 0..2 {
        trainer.list_step(&settings, &[&list], 1).expect("a step");
    }
    PEAK.load(Ordering::Relaxed) - before - 4 * parameters
}

#[test]
fn a_step_never_holds_vocabulary_times_tokens() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // The threads take their working memory with the first step.
    activations_of_a_step(3000, 100);
    for len in [100, 800] {
        let [small, large] = [3000, 48_000].map(|vocab| activations_of_a_step(vocab, len));
        // Held whole, the logits of 4 × 800 tokens are 614 MB.
        assert!(large < small + small / 4, "{len} tokens: {small} bytes with 3,000 tokens, {large} with 48,000");
    }
}

#[test]
fn five_hundred_steps_hold_no_more_than_the_first_ones() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let backend = Cpu::new();
    let model = Transformer::unspecified(&backend, ModelConfig::new(32, 64, 1, 2, 1, 300)).expect("a model");
    let lists: Vec<TrainingList> = lists()
        .into_iter()
        .map(|list| {
            let ids = |ids: Vec<u32>| ids.into_iter().map(|id| id % 300).collect();
            let response =
                |r: TrainingResponse| TrainingResponse { reference: vec![0.0; r.ids.len()], ids: ids(r.ids), ..r };
            TrainingList { prompt: ids(list.prompt), responses: list.responses.into_iter().map(response).collect() }
        })
        .collect();
    let settings = ListTraining { objective: Objective::default(), beta: 0.1, sft_weight: 0.0 };
    let mut trainer = Trainer::new(model, OptimizerConfig::default(), 500);
    let mut held = Vec::new();
    for step in 0..500 {
        trainer.list_step(&settings, &[&lists[step % lists.len()]], 1).expect("a step");
        held.push(ALL.load(Ordering::Relaxed));
    }
    // Every list was seen by then. What the test harness itself takes is little.
    let (early, late) = (held[20], held[499]);
    assert!(late <= early + 4096, "{early} bytes after 20 steps, {late} after 500");
}
