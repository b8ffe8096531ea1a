//! Kernels of the CPU backend, and of the GPU's where there is one, at the sizes of a training step of the
//! 15-million-parameter preset: one list of ten responses, 64 + 64 tokens, 704 rows. Bench ids are the names of the backend's
//! operations.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use larpo_benches::{gpu, numbers, settings, time, tokens, validate};
use larpo_core::backend::{
    Activation, AdamWSpec, AttentionSpec, Backend, NormSpec, SamplingSpec, Segment, Store, Weight,
};
use larpo_core::cpu::{Cpu, DryRun};
use larpo_core::lists::{PackedLists, RankedLists};
use larpo_core::model::ModelConfig;
use larpo_core::objective::Objective;
use larpo_core::profile::Profiled;
use larpo_core::reference::Reference;
use ndarray::ArrayView2;
use std::hint::black_box;

/// Agreement of `f32` kernels with `f64` loops, relative to the largest number of the result.
const TOLERANCE: f64 = 1e-5;

/// As the preset has it.
const NORM: NormSpec = NormSpec { eps: 1e-5, offset: 0.0 };

/// Sizes of a list and of the vocabulary.
#[derive(Clone, Copy)]
struct Size {
    k: usize,
    prompt: usize,
    response: usize,
    vocab: usize,
}

/// What is timed.
const TIMED: Size = Size { k: 10, prompt: 64, response: 64, vocab: 32_000 };
/// What the double-precision loops check: texts longer than a block of attention, several blocks of the vocabulary.
const CHECKED: Size = Size { k: 3, prompt: 70, response: 70, vocab: 6000 };

impl Size {
    fn packed(self) -> PackedLists {
        let responses: Vec<Vec<u32>> = (0..self.k as u32).map(|i| tokens(10 + i, self.response, self.vocab)).collect();
        PackedLists::pack([(&tokens(9, self.prompt, self.vocab)[..], responses.iter().map(Vec::as_slice))])
    }

    fn rows(self) -> usize {
        self.prompt + self.k * self.response
    }
}

fn config() -> ModelConfig {
    ModelConfig::preset("s15m").expect("a preset")
}

fn attention_spec() -> AttentionSpec {
    config().attention()
}

/// What computes the results.
type Run<T> = dyn Fn(&mut [T]);

/// A kernel with its inputs, and the buffers that it writes.
struct Kernel<B: Backend> {
    backend: B,
    results: Vec<B::Buffer>,
    run: Box<Run<B::Buffer>>,
}

impl<B: Backend> Kernel<B> {
    fn new(backend: &B, results: Vec<B::Buffer>, run: impl Fn(&mut [B::Buffer]) + 'static) -> Self {
        Self { backend: backend.clone(), results, run: Box::new(run) }
    }

    fn run(&mut self) {
        (self.run)(black_box(&mut self.results));
    }

    fn read(&self) -> Vec<Vec<f64>> {
        self.results.iter().map(|x| self.backend.read(x)).collect()
    }
}

fn check<B: Backend>(name: &str, mut fast: Kernel<B>, mut slow: Kernel<Reference>) {
    fast.run();
    slow.run();
    for (got, want) in fast.read().iter().zip(&slow.read()) {
        validate(name, got, want, TOLERANCE);
    }
}

/// What a kernel is bound by: its floating-point operations where it has many for each byte that moves, else those bytes.
fn throughput(kernel: impl Fn(&Profiled<DryRun>, Size) -> Kernel<Profiled<DryRun>>) -> Throughput {
    let backend = Profiled::new(DryRun::new());
    let mut kernel = kernel(&backend, TIMED);
    backend.take();
    kernel.run();
    let (flops, bytes) =
        backend.take().values().fold((0.0, 0.0), |(flops, bytes), cost| (flops + cost.flops, bytes + cost.bytes));
    if flops > 10.0 * bytes { Throughput::Elements(flops as u64) } else { Throughput::Bytes(bytes as u64) }
}

/// Checks a kernel against the reference backend, then times it.
macro_rules! kernel {
    ($group:expr, $backend:expr, $name:ident) => {
        check(stringify!($name), $name($backend, CHECKED), $name(&Reference, CHECKED));
        let mut timed = $name($backend, TIMED);
        $group.throughput(throughput($name));
        $group.bench_function(stringify!($name), |bench| time(bench, $backend, || timed.run()));
    };
}

fn rms_norm<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c) = (size.rows(), config().hidden_size);
    let (x, w) = (b.upload(&numbers(1, n * c)), b.upload(&numbers(2, c)));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * c), b.alloc(n)], move |results| {
        let [y, rstd] = results else { unreachable!("two results") };
        backend.rms_norm(&x, &w, NORM, y, rstd);
    })
}

fn rms_norm_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c) = (size.rows(), config().hidden_size);
    let (x, w, d_y) = (b.upload(&numbers(1, n * c)), b.upload(&numbers(2, c)), b.upload(&numbers(3, n * c)));
    let (mut y, mut rstd) = (b.alloc(n * c), b.alloc(n));
    b.rms_norm(&x, &w, NORM, &mut y, &mut rstd);
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * c), b.alloc(c)], move |results| {
        let [d_x, d_w] = results else { unreachable!("two results") };
        backend.rms_norm_grad(&d_y, &x, &w, NORM, &rstd, (d_x, Store::Set), Some((d_w, Store::Set)));
    })
}

fn glu<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, width) = (size.rows(), config().intermediate_size);
    let gate_up = b.upload(&numbers(1, 2 * n * width));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * width)], move |y| backend.glu(&gate_up, width, Activation::Silu, &mut y[0]))
}

fn glu_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, width) = (size.rows(), config().intermediate_size);
    let (gate_up, d_y) = (b.upload(&numbers(1, 2 * n * width)), b.upload(&numbers(2, n * width)));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(2 * n * width)], move |d| {
        backend.glu_grad(&d_y, &gate_up, width, Activation::Silu, &mut d[0])
    })
}

fn rope<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (spec, packed) = (attention_spec(), size.packed());
    let angles = numbers(1, (size.prompt + size.response) * spec.head_dim / 2);
    let half = spec.head_dim / 2;
    let table: Vec<f32> = angles
        .chunks_exact(half)
        .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())).collect::<Vec<_>>())
        .collect();
    let (table, positions) = (b.upload(&table), b.upload_index(&packed.positions));
    let backend = b.clone();
    // In place: a rotated row is as good an input as any.
    Kernel::new(b, vec![b.upload(&numbers(2, packed.rows() * spec.qkv_width()))], move |qkv| {
        backend.rope(&mut qkv[0], &positions, &table, &spec, false);
    })
}

fn attention<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (spec, packed) = (attention_spec(), size.packed());
    let n = packed.rows();
    let segments = b.upload_index(&Segment::flatten(&packed.segments));
    let qkv = b.upload(&numbers(1, n * spec.qkv_width()));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * spec.out_width()), b.alloc(n * spec.heads)], move |results| {
        let [o, lse] = results else { unreachable!("two results") };
        backend.attention(&qkv, &segments, &spec, o, lse);
    })
}

fn attention_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (spec, packed) = (attention_spec(), size.packed());
    let n = packed.rows();
    let segments = b.upload_index(&Segment::flatten(&packed.segments));
    let (qkv, d_o) = (b.upload(&numbers(1, n * spec.qkv_width())), b.upload(&numbers(2, n * spec.out_width())));
    let (mut o, mut lse) = (b.alloc(n * spec.out_width()), b.alloc(n * spec.heads));
    b.attention(&qkv, &segments, &spec, &mut o, &mut lse);
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * spec.qkv_width())], move |d_qkv| {
        backend.attention_grad(&d_o, &qkv, &o, &lse, &segments, &spec, &mut d_qkv[0]);
    })
}

/// Inputs of the head: rows that predict, the weight, and the targets.
struct Head<B: Backend> {
    h: B::Buffer,
    w: B::Buffer,
    rows: usize,
    target_rows: B::Index,
    target_ids: B::Index,
    targets: usize,
    vocab: usize,
}

impl<B: Backend> Head<B> {
    fn new(b: &B, size: Size) -> Self {
        let (c, packed) = (config().hidden_size, size.packed());
        let rows = packed.scored_rows.len();
        Self {
            h: b.upload(&numbers(1, rows * c)),
            w: b.upload(&numbers(2, size.vocab * c).iter().map(|x| x / 10.0).collect::<Vec<_>>()),
            rows,
            target_rows: b.upload_index(&packed.target_rows),
            target_ids: b.upload_index(&packed.target_ids),
            targets: packed.targets(),
            vocab: size.vocab,
        }
    }

    fn weight(&self) -> Weight<'_, B::Buffer> {
        Weight { data: &self.w, out_features: self.vocab, in_features: config().hidden_size }
    }
}

fn token_logp<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let head = Head::new(b, size);
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(head.targets), b.alloc(head.rows)], move |results| {
        let [logp, lse] = results else { unreachable!("two results") };
        backend.token_logp(&head.h, head.weight(), None, &head.target_rows, &head.target_ids, logp, lse);
    })
}

fn token_logp_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let head = Head::new(b, size);
    let (mut logp, mut lse) = (b.alloc(head.targets), b.alloc(head.rows));
    b.token_logp(&head.h, head.weight(), None, &head.target_rows, &head.target_ids, &mut logp, &mut lse);
    let d_logp = b.upload(&numbers(3, head.targets));
    let (backend, c) = (b.clone(), config().hidden_size);
    Kernel::new(b, vec![b.alloc(head.rows * c), b.alloc(head.vocab * c)], move |results| {
        let [d_h, d_w] = results else { unreachable!("two results") };
        let (targets, ids) = (&head.target_rows, &head.target_ids);
        let (d_h, d_w) = ((d_h, Store::Set), Some((d_w, Store::Set)));
        backend.token_logp_grad(&d_logp, &head.h, head.weight(), None, targets, ids, &lse, d_h, d_w);
    })
}

fn adamw<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let n = size.vocab * config().hidden_size;
    let spec = AdamWSpec { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 3 };
    let squares: Vec<f32> = numbers(4, n).iter().map(|x| x * x).collect();
    let (g, clip) = (b.upload(&numbers(1, n)), b.upload(&[2.0, 0.5]));
    let state = vec![b.upload(&numbers(2, n)), b.upload(&numbers(3, n)), b.upload(&squares)];
    let backend = b.clone();
    Kernel::new(b, state, move |results| {
        let [w, m, v] = results else { unreachable!("three results") };
        backend.adamw(&spec, w, &g, m, v, &clip);
    })
}

fn embed<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c) = (size.rows(), config().hidden_size);
    let (table, ids) = (b.upload(&numbers(1, size.vocab * c)), b.upload_index(&tokens(2, n, size.vocab)));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * c)], move |y| backend.embed(&table, &ids, c, &mut y[0]))
}

fn embed_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c) = (size.rows(), config().hidden_size);
    let (d_y, ids) = (b.upload(&numbers(1, n * c)), b.upload_index(&tokens(2, n, size.vocab)));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(size.vocab * c)], move |d| backend.embed_grad(&d_y, &ids, c, &mut d[0], Store::Set))
}

fn gather_rows<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c, packed) = (size.rows(), config().hidden_size, size.packed());
    let (x, rows) = (b.upload(&numbers(1, n * c)), b.upload_index(&packed.scored_rows));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(packed.scored_rows.len() * c)], move |y| {
        backend.gather_rows(&x, &rows, c, &mut y[0]);
    })
}

fn gather_rows_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c, packed) = (size.rows(), config().hidden_size, size.packed());
    let d_y = b.upload(&numbers(1, packed.scored_rows.len() * c));
    let rows = b.upload_index(&packed.scored_rows);
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * c)], move |d| {
        backend.gather_rows_grad(&d_y, &rows, c, &mut d[0], Store::Set);
    })
}

fn list_loss<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let packed = size.packed();
    let (targets, rewards) = (packed.targets(), (0..size.k).map(|i| (i % 4) as f64).collect());
    let lists = RankedLists::new(&packed, rewards, Objective::default(), 0.1, 1.0).expect("a ranked list");
    let (logp, reference) = (b.upload(&numbers(1, targets)), b.upload(&numbers(2, targets)));
    let (backend, lists) = (b.clone(), b.upload_lists(&lists));
    Kernel::new(b, vec![b.alloc(packed.items()), b.alloc(1), b.alloc(targets)], move |results| {
        let [gamma, loss, d_logp] = results else { unreachable!("three results") };
        backend.list_loss(&logp, &reference, &lists, gamma, loss, d_logp);
    })
}

fn sq_norm<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (backend, x) = (b.clone(), b.upload(&numbers(1, size.vocab * config().hidden_size)));
    Kernel::new(b, vec![b.alloc(1)], move |out| backend.sq_norm(&x, &mut out[0], 0))
}

fn fill<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(size.rows() * config().hidden_size)], move |x| backend.fill(&mut x[0], 0.5))
}

/// A residual, added.
fn copy<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let n = size.rows() * config().hidden_size;
    let (backend, x) = (b.clone(), b.upload(&numbers(1, n)));
    Kernel::new(b, vec![b.upload(&numbers(2, n))], move |y| backend.copy(&x, &mut y[0], Store::Add))
}

fn scale<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (backend, factor) = (b.clone(), b.upload(&[0.999]));
    Kernel::new(b, vec![b.upload(&numbers(1, size.packed().targets()))], move |x| backend.scale(&mut x[0], &factor))
}

fn weighted_sum<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let n = size.packed().targets();
    let positive = |seed| numbers(seed, n).iter().map(|x| x.abs()).collect::<Vec<_>>();
    let (backend, x, w) = (b.clone(), b.upload(&positive(1)), b.upload(&positive(2)));
    Kernel::new(b, vec![b.alloc(1)], move |y| backend.weighted_sum(&x, &w, &mut y[0]))
}

fn weighted_sum_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let n = size.packed().targets();
    let (backend, d_y, w) = (b.clone(), b.upload(&[1.5]), b.upload(&numbers(1, n)));
    Kernel::new(b, vec![b.alloc(n)], move |d_x| backend.weighted_sum_grad(&d_y, &w, &mut d_x[0], Store::Set))
}

/// Of as many gradients as a model has.
fn clip<B: Backend>(b: &B, _: Size) -> Kernel<B> {
    let squares: Vec<f32> = numbers(1, 75).iter().map(|x| x * x).collect();
    let (backend, squares) = (b.clone(), b.upload(&squares));
    Kernel::new(b, vec![b.alloc(2)], move |out| backend.clip(&squares, 1.0, &mut out[0]))
}

/// Rows of a cache that holds a prompt and its responses, and where each response's keys lie: the last step of decoding.
fn decoding(size: Size) -> (usize, Vec<u32>) {
    let [k, prompt, response] = [size.k, size.prompt, size.response].map(|n| n as u32);
    let spans = (0..k).flat_map(|i| [0, prompt, prompt + i * response, response]).collect();
    (size.rows(), spans)
}

fn kv_append<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let spec = attention_spec();
    let (rows, spans) = decoding(size);
    let slots: Vec<u32> = spans.chunks_exact(4).map(|span| span[2] + span[3] - 1).collect();
    let (qkv, slots) = (b.upload(&numbers(1, size.k * spec.qkv_width())), b.upload_index(&slots));
    let backend = b.clone();
    Kernel::new(b, vec![b.upload(&vec![0.0; rows * spec.cache_width()])], move |cache| {
        backend.kv_append(&qkv, &slots, &spec, &mut cache[0]);
    })
}

fn decode_attention<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let spec = attention_spec();
    let (rows, spans) = decoding(size);
    let (cache, spans) = (b.upload(&numbers(1, rows * spec.cache_width())), b.upload_index(&spans));
    let (backend, qkv) = (b.clone(), b.upload(&numbers(2, size.k * spec.qkv_width())));
    Kernel::new(b, vec![b.alloc(size.k * spec.out_width())], move |o| {
        backend.decode_attention(&qkv, &cache, &spans, &spec, &mut o[0]);
    })
}

/// The ids drawn and their log-probabilities.
fn draws<B: Backend>(b: &B, size: Size, spec: SamplingSpec) -> Kernel<B> {
    let logits: Vec<f32> = numbers(1, size.k * size.vocab).iter().map(|x| 6.0 * x).collect();
    let uniform: Vec<f64> = numbers(2, size.k).iter().map(|x| f64::from(0.5 + 0.499 * x)).collect();
    let (backend, logits) = (b.clone(), b.upload(&logits));
    Kernel::new(b, vec![b.upload(&vec![0.0; 2 * size.k])], move |results| {
        let draws = backend.sample(&logits, size.vocab, &spec, &uniform);
        let numbers: Vec<f32> = draws.iter().flat_map(|draw| [draw.id as f32, draw.logp]).collect();
        results[0] = backend.upload(&numbers);
    })
}

fn sample<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let spec = SamplingSpec { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, vocab_limit: usize::MAX };
    draws(b, size, spec)
}

fn sample_truncated<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    draws(b, size, SamplingSpec { temperature: 0.8, top_k: 50, top_p: 0.95, min_p: 0.0, vocab_limit: usize::MAX })
}

fn kernels(c: &mut Criterion) {
    kernels_of(c, "kernels", &Cpu::new());
    if let Some(backend) = gpu() {
        kernels_of(c, "kernels_gpu", &backend);
    }
}

fn kernels_of<B: Backend>(c: &mut Criterion, name: &str, backend: &B) {
    let mut group = c.benchmark_group(name);
    kernel!(group, backend, embed);
    kernel!(group, backend, embed_grad);
    kernel!(group, backend, gather_rows);
    kernel!(group, backend, gather_rows_grad);
    kernel!(group, backend, rms_norm);
    kernel!(group, backend, rms_norm_grad);
    kernel!(group, backend, glu);
    kernel!(group, backend, glu_grad);
    kernel!(group, backend, rope);
    kernel!(group, backend, attention);
    kernel!(group, backend, attention_grad);
    kernel!(group, backend, token_logp);
    kernel!(group, backend, token_logp_grad);
    kernel!(group, backend, list_loss);
    kernel!(group, backend, weighted_sum);
    kernel!(group, backend, weighted_sum_grad);
    kernel!(group, backend, scale);
    kernel!(group, backend, fill);
    kernel!(group, backend, copy);
    kernel!(group, backend, sq_norm);
    kernel!(group, backend, clip);
    kernel!(group, backend, adamw);
    kernel!(group, backend, kv_append);
    kernel!(group, backend, decode_attention);
    kernel!(group, backend, sample);
    kernel!(group, backend, sample_truncated);
    group.finish();
}

fn matrix(x: &[f32], rows: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, x.len() / rows), x).expect("rows divide the length")
}

/// Compares a product of two views with sums in `f64`, at places all over the result.
fn validate_product(what: &str, a: ArrayView2<f32>, b: ArrayView2<f32>, got: ArrayView2<f32>) {
    // The step is prime and divides no size, so the places spread over rows and columns alike.
    let places: Vec<(usize, usize)> =
        (0..got.len()).step_by(1009).map(|at| (at / got.ncols(), at % got.ncols())).collect();
    let sum = |&(i, j): &(usize, usize)| -> f64 {
        a.row(i).iter().zip(b.column(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let want: Vec<f64> = places.iter().map(sum).collect();
    let got: Vec<f64> = places.iter().map(|&at| f64::from(got[at])).collect();
    validate(what, &got, &want, TOLERANCE);
}

/// Times one product; the throughput is in floating-point operations.
fn product<B: Backend>(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    backend: &B,
    (a, b): (ArrayView2<f32>, ArrayView2<f32>),
    run: impl Fn(&mut B::Buffer),
) {
    let mut y = backend.alloc(a.nrows() * b.ncols());
    run(&mut y);
    let mut got = vec![0.0; backend.len(&y)];
    backend.download(&y, &mut got);
    validate_product(name, a, b, matrix(&got, a.nrows()));
    group.throughput(Throughput::Elements(2 * (a.nrows() * a.ncols() * b.ncols()) as u64));
    group.bench_function(name, |bench| time(bench, backend, || run(black_box(&mut y))));
}

/// ndarray's `dot` on the same operands.
fn peer(group: &mut BenchmarkGroup<WallTime>, name: &str, (a, b): (ArrayView2<f32>, ArrayView2<f32>)) {
    validate_product("ndarray's dot", a, b, a.dot(&b).view());
    group.bench_function(format!("{name}_ndarray"), |bench| bench.iter(|| black_box(a).dot(&b)));
}

fn products(c: &mut Criterion) {
    products_of(c, "", &Cpu::new());
    if let Some(backend) = gpu() {
        products_of(c, "_gpu", &backend);
    }
}

fn products_of<B: Backend>(c: &mut Criterion, suffix: &str, b: &B) {
    let (config, rows) = (config(), TIMED.rows());
    // Name, rows, in_features, out_features; the head is one block of the vocabulary.
    let shapes = [
        ("qkv", rows, config.hidden_size, attention_spec().qkv_width()),
        ("gate_up", rows, config.hidden_size, 2 * config.intermediate_size),
        ("decode_gate_up", TIMED.k, config.hidden_size, 2 * config.intermediate_size),
        ("decode_head", TIMED.k, config.hidden_size, TIMED.vocab),
        ("head_block", 1 + TIMED.k * (TIMED.response - 1), config.hidden_size, 2048),
    ];
    for (name, n, inputs, outputs) in shapes {
        let (x, w, d_y) = (numbers(1, n * inputs), numbers(2, outputs * inputs), numbers(3, n * outputs));
        let (xs, ws, ds) = (matrix(&x, n), matrix(&w, outputs), matrix(&d_y, n));
        let (x, w, d_y) = (b.upload(&x), b.upload(&w), b.upload(&d_y));
        let weight = Weight { data: &w, out_features: outputs, in_features: inputs };
        let mut time = |layer: &str, operands, run: &dyn Fn(&mut B::Buffer)| {
            let mut group = c.benchmark_group(format!("{layer}{suffix}"));
            product(&mut group, name, b, operands, run);
            // Once, beside the CPU's.
            if suffix.is_empty() {
                peer(&mut group, name, operands);
            }
            group.finish();
        };
        time("linear", (xs, ws.t()), &|y| b.linear(&x, weight, y, Store::Set));
        if name.starts_with("decode") {
            continue;
        }
        time("linear_grad_x", (ds, ws), &|y| b.linear_grad_x(&d_y, weight, y, Store::Set));
        time("linear_grad_w", (ds.t(), xs), &|y| b.linear_grad_w(&d_y, &x, outputs, inputs, y, Store::Set));
    }
}

criterion_group!(name = benches; config = settings(); targets = products, kernels);
criterion_main!(benches);
