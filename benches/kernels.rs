//! Kernels of the CPU backend at the sizes of a training step of the 15-million-parameter preset: one list of ten
//! responses, 64 + 64 tokens, 704 rows. Bench ids are the names of the backend's operations.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use larpo_benches::{numbers, settings, tokens, validate};
use larpo_core::backend::{AdamWSpec, AttentionSpec, Backend, Segment, Store, Weight};
use larpo_core::cpu::{Buffer, Cpu};
use larpo_core::lists::PackedLists;
use larpo_core::model::ModelConfig;
use larpo_core::reference::Reference;
use ndarray::ArrayView2;
use std::hint::black_box;

/// Agreement of `f32` kernels with `f64` loops, relative to the largest number of the result.
const TOLERANCE: f64 = 1e-5;

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

fn check(name: &str, mut fast: Kernel<Cpu>, mut slow: Kernel<Reference>) {
    fast.run();
    slow.run();
    for (got, want) in fast.read().iter().zip(&slow.read()) {
        validate(name, got, want, TOLERANCE);
    }
}

/// Checks a kernel against the reference backend, then times it.
macro_rules! kernel {
    ($group:expr, $name:ident) => {
        check(stringify!($name), $name(&Cpu::new(), CHECKED), $name(&Reference, CHECKED));
        let mut timed = $name(&Cpu::new(), TIMED);
        $group.bench_function(stringify!($name), |bench| bench.iter(|| timed.run()));
    };
}

fn rms_norm<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c) = (size.rows(), config().hidden_size);
    let (x, w) = (b.upload(&numbers(1, n * c)), b.upload(&numbers(2, c)));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * c), b.alloc(n)], move |results| {
        let [y, rstd] = results else { unreachable!("two results") };
        backend.rms_norm(&x, &w, 1e-5, y, rstd);
    })
}

fn rms_norm_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, c) = (size.rows(), config().hidden_size);
    let (x, w, d_y) = (b.upload(&numbers(1, n * c)), b.upload(&numbers(2, c)), b.upload(&numbers(3, n * c)));
    let (mut y, mut rstd) = (b.alloc(n * c), b.alloc(n));
    b.rms_norm(&x, &w, 1e-5, &mut y, &mut rstd);
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * c), b.alloc(c)], move |results| {
        let [d_x, d_w] = results else { unreachable!("two results") };
        backend.rms_norm_grad(&d_y, &x, &w, &rstd, (d_x, Store::Set), Some((d_w, Store::Set)));
    })
}

fn glu<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, width) = (size.rows(), config().intermediate_size);
    let gate_up = b.upload(&numbers(1, 2 * n * width));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(n * width)], move |y| backend.glu(&gate_up, width, &mut y[0]))
}

fn glu_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let (n, width) = (size.rows(), config().intermediate_size);
    let (gate_up, d_y) = (b.upload(&numbers(1, 2 * n * width)), b.upload(&numbers(2, n * width)));
    let backend = b.clone();
    Kernel::new(b, vec![b.alloc(2 * n * width)], move |d| backend.glu_grad(&d_y, &gate_up, width, &mut d[0]))
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
        backend.token_logp(&head.h, head.weight(), &head.target_rows, &head.target_ids, logp, lse);
    })
}

fn token_logp_grad<B: Backend>(b: &B, size: Size) -> Kernel<B> {
    let head = Head::new(b, size);
    let (mut logp, mut lse) = (b.alloc(head.targets), b.alloc(head.rows));
    b.token_logp(&head.h, head.weight(), &head.target_rows, &head.target_ids, &mut logp, &mut lse);
    let d_logp = b.upload(&numbers(3, head.targets));
    let (backend, c) = (b.clone(), config().hidden_size);
    Kernel::new(b, vec![b.alloc(head.rows * c), b.alloc(head.vocab * c)], move |results| {
        let [d_h, d_w] = results else { unreachable!("two results") };
        let (targets, ids) = (&head.target_rows, &head.target_ids);
        let (d_h, d_w) = ((d_h, Store::Set), Some((d_w, Store::Set)));
        backend.token_logp_grad(&d_logp, &head.h, head.weight(), targets, ids, &lse, d_h, d_w);
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

fn kernels(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernels");
    kernel!(group, rms_norm);
    kernel!(group, rms_norm_grad);
    kernel!(group, glu);
    kernel!(group, glu_grad);
    kernel!(group, rope);
    kernel!(group, attention);
    kernel!(group, attention_grad);
    kernel!(group, token_logp);
    kernel!(group, token_logp_grad);
    kernel!(group, adamw);
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

/// Times one product and ndarray's `dot` on the same operands; the throughput is in floating-point operations.
fn product(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    (a, b): (ArrayView2<f32>, ArrayView2<f32>),
    y: &mut Buffer,
    run: impl Fn(&mut Buffer),
) {
    run(y);
    validate_product(name, a, b, matrix(y.as_slice(), a.nrows()));
    validate_product("ndarray's dot", a, b, a.dot(&b).view());
    group.throughput(Throughput::Elements(2 * (a.nrows() * a.ncols() * b.ncols()) as u64));
    group.bench_function(name, |bench| bench.iter(|| run(black_box(y))));
    group.bench_function(format!("{name}_ndarray"), |bench| bench.iter(|| black_box(a).dot(&b)));
}

fn products(c: &mut Criterion) {
    let (b, config, rows) = (Cpu::new(), config(), TIMED.rows());
    // Name, rows, in_features, out_features; the head is one block of the vocabulary.
    let shapes = [
        ("qkv", rows, config.hidden_size, attention_spec().qkv_width()),
        ("gate_up", rows, config.hidden_size, 2 * config.intermediate_size),
        ("head_block", 1 + TIMED.k * (TIMED.response - 1), config.hidden_size, 2048),
    ];
    for (name, n, inputs, outputs) in shapes {
        let (x, w, d_y) = (numbers(1, n * inputs), numbers(2, outputs * inputs), numbers(3, n * outputs));
        let (xs, ws, ds) = (matrix(&x, n), matrix(&w, outputs), matrix(&d_y, n));
        let (x, w, d_y) = (b.upload(&x), b.upload(&w), b.upload(&d_y));
        let weight = Weight { data: &w, out_features: outputs, in_features: inputs };
        let mut group = c.benchmark_group("linear");
        product(&mut group, name, (xs, ws.t()), &mut b.alloc(n * outputs), |y| b.linear(&x, weight, y, Store::Set));
        group.finish();
        let mut group = c.benchmark_group("linear_grad_x");
        product(&mut group, name, (ds, ws), &mut b.alloc(n * inputs), |y| {
            b.linear_grad_x(&d_y, weight, y, Store::Set);
        });
        group.finish();
        let mut group = c.benchmark_group("linear_grad_w");
        product(&mut group, name, (ds.t(), xs), &mut b.alloc(outputs * inputs), |y| {
            b.linear_grad_w(&d_y, &x, outputs, inputs, y, Store::Set);
        });
        group.finish();
    }
}

criterion_group!(name = benches; config = settings(); targets = products, kernels);
criterion_main!(benches);
