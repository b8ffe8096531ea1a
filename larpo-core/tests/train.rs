//! Optimizer steps: accumulation equals one big batch, and a suspended trainer goes on as if nothing had happened.

use larpo_core::backend::Backend;
use larpo_core::cpu::Cpu;
use larpo_core::model::{Head, ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective, Ties};
use larpo_core::optim::{LossScale, OptimizerConfig, Schedule};
use larpo_core::reference::Reference;
use larpo_core::train::{ListTraining, RewardList, SftRow, Trainer, TrainingList, TrainingResponse, fill_references};

fn config() -> ModelConfig {
    ModelConfig { initializer_range: 0.3, ..ModelConfig::new(16, 24, 2, 4, 2, 29) }
}

fn optimizer() -> OptimizerConfig {
    OptimizerConfig {
        learning_rate: 1e-2,
        weight_decay: 0.1,
        schedule: Schedule::Cosine,
        warmup_ratio: 0.2,
        ..OptimizerConfig::default()
    }
}

fn ids(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (seed * 7919 + i * 104_729 + i * i * 31) % 29).collect()
}

/// Ragged rows: lengths differ, so a mean over micro-batches would not be the mean over tokens.
fn rows() -> Vec<SftRow> {
    (0..7)
        .map(|i| SftRow { prompt: ids(i, 1 + i as usize % 3), response: ids(i + 50, 1 + (i as usize * 5) % 9) })
        .collect()
}

/// Ragged lists with ties, references filled in by `model`.
fn lists<B: Backend>(model: &Transformer<B>) -> Vec<TrainingList> {
    let response = |i: u32, j: u32| TrainingResponse {
        ids: ids(100 + i * 10 + j, 1 + ((i + 2 * j) % 5) as usize),
        reward: f64::from((i + j) % 3),
        reference: Vec::new(),
        sampled: None,
    };
    let list = |i: u32| TrainingList {
        prompt: ids(i, 1 + i as usize % 4),
        responses: (0..2 + i % 4).map(|j| response(i, j)).collect(),
    };
    let mut lists: Vec<_> = (0..6).map(list).collect();
    fill_references(model, &mut lists, false).expect("references");
    lists
}

fn settings(ties: Ties) -> ListTraining {
    let objective = Objective { loss: LossType::Listmle, ties, ..Objective::default() };
    ListTraining { objective, beta: 0.5, sft_weight: 0.3 }
}

fn weights<B: Backend>(model: &Transformer<B>) -> Vec<f64> {
    (0..model.parameters().len()).flat_map(|i| model.backend().read(model.parameters().value(i))).collect()
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{a} and {b}");
    }
}

/// Gradients of one step in micro-batches of `micro`, on lists with a rule for ties or else on rows.
fn gradients<B: Backend>(backend: &B, micro: usize, on_lists: Option<Ties>) -> (f64, Vec<f64>) {
    let model = Transformer::random(backend, config(), 5).expect("a model");
    let reference = Transformer::random(backend, config(), 6).expect("a model");
    let lists = lists(&reference);
    let rows = rows();
    let mut trainer = Trainer::new(model, optimizer(), 10);
    let loss = match on_lists {
        Some(ties) => {
            trainer.list_step(&settings(ties), &lists.iter().collect::<Vec<_>>(), micro).expect("a step").loss
        }
        None => trainer.sft_step(&rows.iter().collect::<Vec<_>>(), micro).expect("a step").loss,
    };
    let read = |i| backend.read(trainer.gradients().get(i).expect("a gradient"));
    (loss, (0..trainer.model.parameters().len()).flat_map(read).collect())
}

#[test]
fn accumulation_equals_one_big_batch() {
    let rules = [Ties::Skip, Ties::Stable, Ties::Share, Ties::Random];
    for on_lists in std::iter::once(None).chain(rules.map(Some)) {
        let (whole_loss, whole) = gradients(&Reference, 100, on_lists);
        for micro in [1, 2, 3] {
            let (loss, parts) = gradients(&Reference, micro, on_lists);
            assert!((loss - whole_loss).abs() < 1e-6, "{loss} and {whole_loss}");
            // The weights of single tokens are uploaded in single precision.
            assert_close(&parts, &whole, 1e-7);
        }
    }
}

#[test]
fn a_suspended_trainer_goes_on_bit_for_bit() {
    let backend = Cpu::new();
    let lists = lists(&Transformer::random(&backend, config(), 6).expect("a model"));
    let batch: Vec<&TrainingList> = lists.iter().collect();
    let start = || Trainer::new(Transformer::random(&backend, config(), 5).expect("a model"), optimizer(), 6);
    let mut straight = start();
    for _ in 0..6 {
        straight.list_step(&settings(Ties::Skip), &batch, 2).expect("a step");
    }
    let mut broken = start();
    for step in 0..6 {
        if step == 3 {
            let text = serde_json::to_string(&broken.state()).expect("a state can be written");
            broken = Trainer::resume(broken.into_model(), serde_json::from_str(&text).expect("and read"))
                .expect("the same model");
        }
        broken.list_step(&settings(Ties::Skip), &batch, 2).expect("a step");
    }
    assert_eq!(weights(&straight.model), weights(&broken.model));
}

#[test]
fn a_state_of_another_model_is_refused() {
    let backend = Cpu::new();
    let mut state = Trainer::new(Transformer::random(&backend, config(), 5).expect("a model"), optimizer(), 6).state();
    state.moments[0] = Some((vec![0.0; 3], vec![0.0; 3]));
    let model = Transformer::random(&backend, config(), 5).expect("a model");
    assert!(Trainer::resume(model, state).is_err());
}

#[test]
fn list_training_raises_the_winner_over_the_others() {
    let backend = Cpu::new();
    let model = Transformer::random(&backend, config(), 5).expect("a model");
    let lists = lists(&model);
    let batch: Vec<&TrainingList> = lists.iter().filter(|l| l.responses.len() > 2).collect();
    let mut trainer = Trainer::new(model, OptimizerConfig { schedule: Schedule::Constant, ..optimizer() }, 30);
    let settings = ListTraining { sft_weight: 0.0, ..settings(Ties::Skip) };
    let first = trainer.list_step(&settings, &batch, 8).expect("a step");
    assert_eq!(first.metrics.reward_chosen, 0.0, "γ is 0 where policy and reference are the same");
    let mut last = first;
    for _ in 0..29 {
        last = trainer.list_step(&settings, &batch, 8).expect("a step");
    }
    assert!(last.loss < 0.5 * first.loss, "{} after {}", last.loss, first.loss);
    assert!(last.metrics.reward_accuracy > 0.9, "{:?}", last.metrics);
}

#[test]
fn what_cannot_be_trained_on_is_refused() {
    let backend = Cpu::new();
    let mut trainer = Trainer::new(Transformer::random(&backend, config(), 5).expect("a model"), optimizer(), 6);
    assert!(trainer.list_step(&settings(Ties::Skip), &[], 1).is_err(), "no lists");
    let nothing = SftRow { prompt: vec![], response: vec![3] };
    assert!(trainer.sft_step(&[&nothing], 1).is_err(), "no token is predicted");
    let outside = SftRow { prompt: vec![1], response: vec![29] };
    let error = trainer.sft_step(&[&outside], 1).expect_err("an id outside the vocabulary");
    assert!(error.to_string().contains("29"), "{error}");
    let mut list = lists(&trainer.model).remove(0);
    list.responses[0].reference.pop();
    assert!(trainer.list_step(&settings(Ties::Skip), &[&list], 1).is_err(), "a reference of the wrong length");
}

/// A factor on the loss that is a power of two changes no bit of what is learned, in rows, ranked lists and ranked texts, and one
/// that is too large is lowered until the gradients are finite, on the same batch.
#[test]
fn a_scaled_loss_teaches_the_same() {
    let backend = Cpu::new();
    let learned = |exponent: Option<u32>| {
        let mut trainer = Trainer::new(Transformer::random(&backend, config(), 3).unwrap(), optimizer(), 6);
        trainer.set_loss_scale(exponent.map(LossScale::new));
        let (rows, lists) = (rows(), lists(&trainer.model));
        let mut reports = Vec::new();
        for _ in 0..3 {
            let sft = trainer.sft_step(&rows.iter().collect::<Vec<_>>(), 2).unwrap();
            let list = trainer.list_step(&settings(Ties::Skip), &lists.iter().collect::<Vec<_>>(), 4).unwrap();
            reports.push((sft.loss, sft.update, list.loss, list.update));
        }
        (weights(&trainer.model), reports, trainer.loss_scale())
    };
    let plain = learned(None);
    assert_eq!(plain.2, 1.0);
    for (exponent, expected) in [(0, Some(0)), (10, Some(10)), (126, None)] {
        let scaled = learned(Some(exponent));
        assert_eq!((&plain.0, &plain.1), (&scaled.0, &scaled.1), "2^{exponent}");
        match expected {
            Some(expected) => assert_eq!(scaled.2, 2f64.powi(expected)),
            None => assert!(scaled.2 > 1.0 && scaled.2 < 2f64.powi(126), "{}", scaled.2),
        }
    }
    let rewarded = |exponent: Option<u32>| {
        let model = Transformer::random(&backend, ModelConfig { head: Head::Score, ..config() }, 3).unwrap();
        let mut trainer = Trainer::new(model, optimizer(), 6);
        trainer.set_loss_scale(exponent.map(LossScale::new));
        let list = RewardList {
            prompt: ids(1, 4),
            responses: vec![ids(2, 3), ids(3, 5)],
            labels: vec![1.0, 0.0],
            margin: 0.0,
        };
        let report = trainer.reward_step(&[&list], 0.0, 1).unwrap();
        (weights(&trainer.model), report, trainer.loss_scale() < 2f64.powi(126))
    };
    let plain = rewarded(None);
    assert_eq!(rewarded(Some(20)), plain);
    assert_eq!(rewarded(Some(126)), plain);
}

/// What no factor mends is an error, and the weights stay.
#[test]
fn a_gradient_that_is_not_finite_without_a_factor_is_an_error() {
    let backend = Cpu::new();
    let mut trainer = Trainer::new(Transformer::random(&backend, config(), 3).unwrap(), optimizer(), 6);
    trainer.set_loss_scale(Some(LossScale::new(8)));
    let mut lists = lists(&trainer.model);
    lists.iter_mut().for_each(|list| list.responses[0].reward = 1e300);
    let huge = ListTraining { beta: 1e38, ..settings(Ties::Skip) };
    let before = weights(&trainer.model);
    let error = trainer.list_step(&huge, &lists.iter().collect::<Vec<_>>(), 4).unwrap_err().to_string();
    assert!(error.contains("gradient"), "{error}");
    assert_eq!((weights(&trainer.model), trainer.loss_scale()), (before, 1.0));
}
