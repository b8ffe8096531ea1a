use larpo_core::{cpu::Cpu, model::*, objective::*, optim::*, train::*, rng::*};
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (preset, k, p, r) = (&a[1], a[2].parse::<usize>().unwrap(), a[3].parse::<usize>().unwrap(), a[4].parse::<usize>().unwrap());
    let c = ModelConfig::preset(preset).unwrap();
    let v = c.vocab_size as f64;
    let b = Cpu::new();
    let m = Transformer::random(&b, c, 0).unwrap();
    let rng = CounterRng::new(1, Purpose::Bench);
    let tok = |i: u32, n: usize| (0..n).map(|j| (rng.uniform([i, j as u32, 0, 0]) * v) as u32).collect::<Vec<_>>();
    let list = TrainingList { prompt: tok(0, p), responses: (0..k).map(|i| TrainingResponse { ids: tok(i as u32 + 1, r), reward: i as f64, reference: vec![-10.0; r], sampled: None }).collect() };
    let mut t = Trainer::new(m, OptimizerConfig { learning_rate: 1e-6, ..Default::default() }, 100);
    let s = ListTraining { objective: Objective { loss: LossType::Listmle, ..Default::default() }, beta: 0.1, sft_weight: 0.0 };
    let mut ts = vec![];
    for i in 0..7 { let x = Instant::now(); let rep = t.list_step(&s, &[&list], 1).unwrap(); let e = x.elapsed().as_secs_f64(); if i > 1 { ts.push(e); } if i==0 {eprintln!("{rep:?}");} }
    ts.sort_by(f64::total_cmp);
    println!("{preset} k{k} {p}+{r}: {:.4}s", ts[ts.len() / 2]);
}
