//! In the steady state a training step and a sampling run take no large memory from the system: buffers come from the
//! backend's pool, and the working memory of a task from its thread.

use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::retriever::{NoHooks, Prompt, SamplingConfig, sample};
use larpo_core::train::{ListTraining, Trainer, TrainingList, TrainingResponse, fill_references};
use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes from which an allocation counts.
const LARGE: usize = 64 << 10;

static COUNTING: AtomicBool = AtomicBool::new(false);
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The allocator counts the whole process, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// Set while a trace is taken, which allocates too.
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

impl Counting {
    fn note(size: usize) {
        if size >= LARGE && COUNTING.load(Ordering::Relaxed) && !TRACING.get() {
            TRACING.set(true);
            let trace = Backtrace::force_capture().to_string();
            if !by_product_library(&trace) {
                FOUND.lock().expect("no panic inside").push(format!("{size} bytes\n{trace}"));
            }
            TRACING.set(false);
        }
    }
}

/// Whether the innermost of the known frames is of the product library, which packs its operands into memory of its own.
fn by_product_library(trace: &str) -> bool {
    let own = trace.find("larpo_core").unwrap_or(trace.len());
    [" gemm", "<gemm", " dyn_stack", "<dyn_stack", " matrixmultiply"]
        .iter()
        .any(|library| trace[..own].contains(library))
}

// SAFETY: every call is handed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size);
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is allocated while `f` runs.
fn large(f: impl FnOnce()) -> Vec<String> {
    COUNTING.store(true, Ordering::Relaxed);
    f();
    COUNTING.store(false, Ordering::Relaxed);
    std::mem::take(&mut FOUND.lock().expect("no panic inside"))
}

fn ids(seed: u32, len: usize, vocab: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (seed * 7919 + i * 104_729 + i * i * 31) % vocab).collect()
}

/// Runs `work` until the pool is full and asserts that it then allocates nothing large.
fn assert_steady(mut work: impl FnMut()) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let first = large(&mut work);
    assert!(!first.is_empty(), "the allocator does not count");
    work();
    work();
    let found = large(|| (0..3).for_each(|_| work()));
    assert!(found.is_empty(), "{} large allocations, the first of {}", found.len(), found[0]);
}

#[test]
fn a_step_in_the_steady_state_allocates_nothing_large() {
    const VOCAB: u32 = 4000;
    let config = ModelConfig::new(128, 384, 2, 4, 2, VOCAB as usize);
    let model = Transformer::random(&Cpu::new(), config, 3).expect("a model");
    let response = |i: u32| TrainingResponse {
        ids: ids(i, 64, VOCAB),
        reward: f64::from(i),
        reference: Vec::new(),
        sampled: None,
    };
    let list = |i: u32| TrainingList { prompt: ids(90 + i, 300, VOCAB), responses: (0..10).map(response).collect() };
    let mut lists: Vec<_> = (0..2).map(list).collect();
    fill_references(&model, &mut lists, false).expect("references");
    let lists: Vec<_> = lists.iter().collect();
    let objective = Objective { loss: LossType::Lambdarank, ..Objective::default() };
    let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.1 };
    let mut trainer = Trainer::new(model, OptimizerConfig::default(), 8);
    assert_steady(|| {
        trainer.list_step(&settings, &lists, 1).expect("a step");
    });
}

#[test]
fn sampling_in_the_steady_state_allocates_nothing_large() {
    // So large that what is kept of it, where top-p keeps most, would be a large block.
    const VOCAB: u32 = 40_000;
    let config = ModelConfig::new(64, 128, 2, 4, 2, VOCAB as usize);
    let texts: Vec<Vec<u32>> = (0..6).map(|i| ids(i, 40 + 31 * i as usize, VOCAB)).collect();
    let prompts: Vec<_> = texts.iter().enumerate().map(|(i, ids)| Prompt { index: i as u32, ids }).collect();
    for (top_k, top_p) in [(0, 1.0), (50, 0.9), (0, 0.9)] {
        let model = Transformer::random(&Cpu::new(), config.clone(), 3).expect("a model");
        let sampling = SamplingConfig {
            num_generations: 10,
            max_new_tokens: 24,
            temperature: 1.0,
            top_k,
            top_p,
            min_p: 0.0,
            // Frequent enough that responses end at different lengths.
            eos_ids: (0..2000).collect(),
            vocab_limit: VOCAB as usize,
            seed: 1,
            iteration: 1,
        };
        assert_steady(|| {
            sample(&model, &prompts, &sampling, &mut NoHooks).expect("samples");
        });
    }
}
