//! A tiny model with random weights learns to prefer one of two responses.
//!
//! ```text
//! cargo run --release --example train_lists
//! ```

use larpo_core::Error;
use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::proofs::prove;
use larpo_core::train::{ListTraining, Trainer, TrainingList, TrainingResponse, fill_references};

const STEPS: u64 = 20;

fn response(ids: &[u32], reward: f64) -> TrainingResponse {
    TrainingResponse { ids: ids.to_vec(), reward, reference: Vec::new(), sampled: None }
}

fn main() -> Result<(), Error> {
    // Hidden size 32, feed-forward 64, 2 layers, 2 heads, a vocabulary of 16 token ids.
    let model = Transformer::random(&Cpu::new(), ModelConfig::new(32, 64, 2, 2, 2, 16), 1)?;
    let mut lists = [TrainingList {
        prompt: vec![3, 1, 4],
        responses: vec![response(&[1, 5, 9, 0], 1.0), response(&[2, 6, 0], 0.0)],
    }];
    // The reference is the model before training.
    fill_references(&model, &mut lists, false)?;
    let batch: Vec<&TrainingList> = lists.iter().collect();

    let objective = Objective { loss: LossType::Listmle, ..Objective::default() };
    let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.0 };
    let proofs = prove(&model, &settings, &batch, true)?;
    println!("at γ = 0 the loss is its constant; the gradient reaches all {} parameters\n", proofs.reached);

    let config = OptimizerConfig { learning_rate: 3e-3, ..OptimizerConfig::default() };
    let mut trainer = Trainer::new(model, config, STEPS);
    println!("step    loss   margin  logp chosen  logp rejected");
    for step in 1..=STEPS {
        let report = trainer.list_step(&settings, &batch, 1)?;
        let m = report.metrics;
        let margin = m.reward_chosen - m.reward_rejected;
        println!("{step:>4} {:>7.4} {margin:>8.4} {:>12.3} {:>14.3}", report.loss, m.logp_chosen, m.logp_rejected);
    }
    Ok(())
}
