//! The list losses with their gradients: one list of 4, 10 or 100 responses in `f64`, and 10,000 lists of 16 in `f32`, on
//! the CPU and on a GPU where there is one. Bench ids are the names of the losses.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use larpo_benches::{gpu, numbers, settings, validate};
use larpo_core::objective::{LossType, Objective, RankedBatch};
use larpo_gpu::kernels::list_loss::list_loss as gpu_list_loss;
use larpo_gpu::kernels::lists;
use larpo_gpu::{Gpu, Recorder};
use std::hint::black_box;
use std::time::Instant;

/// Agreement of the losses with their definitions; both are in `f64`.
const TOLERANCE: f64 = 1e-12;
/// Agreement of the gradients with central differences of the definitions.
const GRADIENT_TOLERANCE: f64 = 1e-6;
/// Agreement of the batch in `f32` with the batch in `f64`, of its largest number.
const BATCH_TOLERANCE: f64 = 1e-5;

/// `-log σ(x)`.
fn pair(x: f64) -> f64 {
    (-x).exp().ln_1p()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    x.iter().map(|x| x.exp()).sum::<f64>().ln()
}

/// Σ w_ij·(−log σ(g_i − g_j)) over positions i < j.
fn pair_sum(g: &[f64], weight: impl Fn(usize, usize) -> f64) -> f64 {
    let pairs = (0..g.len()).flat_map(|i| (i + 1..g.len()).map(move |j| (i, j)));
    pairs.map(|(i, j)| weight(i, j) * pair(g[i] - g[j])).sum()
}

/// Weight of LiPO-λ for positions i < j of a list without ties, whose labels are (m − rank)/(m − 1):
/// |2^label_i − 2^label_j|·|1/ln(1 + τ_i) − 1/ln(1 + τ_j)| with τ the rank by the scores `at` (arXiv 2402.01878).
fn lipo_weight(at: &[f64], i: usize, j: usize) -> f64 {
    let m = at.len() as f64;
    let label = |i: usize| (m - 1.0 - i as f64) / (m - 1.0);
    let discount = |i: usize| 1.0 / (2.0 + at.iter().filter(|&&g| g > at[i]).count() as f64).ln();
    (label(i).exp2() - label(j).exp2()).abs() * (discount(i) - discount(j)).abs()
}

/// A loss from its definition, best response first. `at` are the scores that LiPO's weights are taken at: they are
/// constants of its gradient.
fn definition(loss: LossType, g: &[f64], at: &[f64]) -> f64 {
    let m = g.len();
    match loss {
        LossType::Pairwise => pair_sum(g, |_, _| 1.0) / (m * (m - 1) / 2) as f64,
        LossType::Lambdarank => pair_sum(g, |_, _| 1.0),
        LossType::Contrastive => log_sum_exp(g) - g[0],
        LossType::Listmle => (0..m).map(|i| log_sum_exp(&g[i..]) - g[i]).sum(),
        LossType::LipoLambda => pair_sum(g, |i, j| lipo_weight(at, i, j)),
    }
}

/// Compares loss and gradient with the definition.
fn validate_loss(loss: LossType, gamma: &[f64], got: f64, d_gamma: &[f64]) {
    let name = loss.name();
    validate(name, &[got], &[definition(loss, gamma, gamma)], TOLERANCE);
    let h = 1e-5;
    let shifted = |slot: usize, by: f64| {
        let mut g = gamma.to_vec();
        g[slot] += by;
        definition(loss, &g, gamma)
    };
    let slopes: Vec<f64> = (0..gamma.len()).map(|i| (shifted(i, h) - shifted(i, -h)) / (2.0 * h)).collect();
    validate(&format!("gradient of {name}"), d_gamma, &slopes, GRADIENT_TOLERANCE);
}

fn list_loss(c: &mut Criterion) {
    for &loss in LossType::ALL {
        let mut group = c.benchmark_group(loss.name());
        for m in [4, 10, 100] {
            let objective = Objective { loss, ..Objective::default() };
            let gamma: Vec<f64> = numbers(m as u32, m).iter().map(|&x| 2.0 * f64::from(x)).collect();
            let rewards: Vec<f64> = (0..m).map(|i| (m - i) as f64).collect();
            let ranking = objective.rank(&rewards, None).expect("the rewards are finite");
            let mut d_gamma = vec![0.0; m];
            let mut run = || {
                let loss = objective.evaluate_ranked(&ranking, black_box(&gamma), &mut d_gamma);
                loss.expect("the scores are finite").expect("the rewards differ")
            };
            let value = run();
            validate_loss(loss, &gamma, value, &d_gamma);
            group.throughput(Throughput::Elements(m as u64));
            group.bench_function(BenchmarkId::from_parameter(m), |bench| {
                bench.iter(|| {
                    let loss = objective.evaluate_ranked(&ranking, black_box(&gamma), black_box(&mut d_gamma));
                    black_box(loss)
                });
            });
        }
        group.finish();
    }
}

const LISTS: usize = 10_000;
const LENGTH: usize = 16;

/// Scores of the batch.
fn scores() -> Vec<f32> {
    numbers(0, LISTS * LENGTH).iter().map(|x| 3.0 * x).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Compares losses and gradients of the batch with those in `f64`.
fn validate_batch(loss: LossType, gamma: &[f32], got: &[f32], d_gamma: &[f32]) {
    let (gamma, objective) = (wide(gamma), Objective { loss, ..Objective::default() });
    let (mut want, mut want_d) = (vec![0.0; LISTS], vec![0.0; gamma.len()]);
    let twin = RankedBatch::uniform(&gamma, LENGTH);
    objective.evaluate_batch_f64(&twin, &mut want, &mut want_d).expect("the lists fit");
    validate(loss.name(), &wide(got), &want, BATCH_TOLERANCE);
    validate(&format!("gradient of {loss}"), &wide(d_gamma), &want_d, BATCH_TOLERANCE);
}

/// The same losses in `f32` on a batch of lists of 16.
fn list_loss_batch(c: &mut Criterion) {
    let gamma = scores();
    let batch = RankedBatch::uniform(&gamma, LENGTH);
    let mut group = c.benchmark_group("batch");
    for &loss in LossType::ALL {
        let objective = Objective { loss, ..Objective::default() };
        let (mut got, mut d_gamma) = (vec![0.0; LISTS], vec![0.0; gamma.len()]);
        objective.evaluate_batch(&batch, &mut got, &mut d_gamma).expect("the lists fit");
        validate_batch(loss, &gamma, &got, &d_gamma);
        group.throughput(Throughput::Elements(gamma.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(loss.name()), |bench| {
            bench.iter(|| objective.evaluate_batch(black_box(&batch), &mut got, black_box(&mut d_gamma)));
        });
    }
    group.finish();
}

/// The same batch on a GPU, to the end of its kernels.
fn list_loss_gpu(c: &mut Criterion) {
    let Some(backend) = gpu() else { return };
    batch_on(c, backend.gpu()).expect("the device works");
}

fn batch_on(c: &mut Criterion, gpu: &Gpu) -> Result<(), larpo_gpu::Error> {
    let (mut recorder, scores) = (Recorder::new(gpu)?, scores());
    let offsets: Vec<u32> = (0..=LISTS as u32).map(|list| LENGTH as u32 * list).collect();
    // As the lists lie: the best response first.
    let rewards: Vec<f64> = (0..scores.len()).map(|item| (LENGTH - item % LENGTH) as f64).collect();
    let gamma = recorder.upload(&scores)?;
    let (losses, d_gamma) = (recorder.alloc(LISTS)?, recorder.alloc(scores.len())?);
    let probe = recorder.upload(&[0.0f32])?;
    let mut group = c.benchmark_group("batch_gpu");
    for &loss in LossType::ALL {
        let spec = lists::ListSpec {
            item_offsets: &offsets,
            rewards: &rewards,
            order: None,
            target_offsets: &[],
            loss: match loss {
                LossType::Pairwise => lists::LossType::Pairwise,
                LossType::Contrastive => lists::LossType::Contrastive,
                LossType::Lambdarank => lists::LossType::Lambdarank,
                LossType::Listmle => lists::LossType::Listmle,
                LossType::LipoLambda => lists::LossType::LipoLambda,
            },
            ties: lists::Ties::Stable,
            labels: lists::LipoLabels::Rank,
            log2: false,
        };
        let lists = lists::RankedLists::new(&recorder, &spec)?;
        gpu_list_loss(&mut recorder, &lists, &gamma, &losses, &d_gamma)?;
        validate_batch(loss, &scores, &recorder.read(&losses)?, &recorder.read(&d_gamma)?);
        group.throughput(Throughput::Elements(scores.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(loss.name()), |bench| {
            bench.iter_custom(|runs| {
                let start = Instant::now();
                (0..runs).for_each(|_| drop(gpu_list_loss(&mut recorder, &lists, &gamma, &losses, &d_gamma)));
                recorder.read(&probe).expect("the device works");
                start.elapsed()
            });
        });
    }
    group.finish();
    Ok(())
}

criterion_group!(name = benches; config = settings(); targets = list_loss, list_loss_batch, list_loss_gpu);
criterion_main!(benches);
