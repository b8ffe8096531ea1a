//! A number that is not finite stops a step before its update, and the tensor or the row that made it is named.

use larpo_core::Error;
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList};
use larpo_core::cpu::Cpu;
use larpo_core::finite::{check_trained_weights, check_weights};
use larpo_core::model::{Head, Lora, ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::reranker::Query;
use larpo_core::retriever::{NoHooks, Prompt, SamplingConfig, sample};
use larpo_core::train::{ListTraining, SftRow, Trainer, TrainingList, TrainingResponse, fill_references};

fn model() -> Transformer<Cpu> {
    let config = ModelConfig { initializer_range: 0.3, head: Head::Untied, ..ModelConfig::new(16, 24, 2, 4, 2, 29) };
    Transformer::random(&Cpu::new(), config, 5).expect("a model")
}

fn rows() -> Vec<SftRow> {
    (0..5).map(|i| SftRow { prompt: vec![1 + i, 2], response: vec![3, 4 + i, 5] }).collect()
}

fn lists(model: &Transformer<Cpu>) -> Vec<TrainingList> {
    let response = |i: u32, j: u32| TrainingResponse {
        ids: vec![6 + i, 7 + j],
        reward: f64::from(j),
        reference: Vec::new(),
        sampled: None,
    };
    let list = |i: u32| TrainingList { prompt: vec![i, 2], responses: (0..3).map(|j| response(i, j)).collect() };
    let mut lists: Vec<TrainingList> = (0..4).map(list).collect();
    fill_references(model, &mut lists, false).expect("references");
    lists
}

fn settings(beta: f64) -> ListTraining {
    let objective = Objective { loss: LossType::Lambdarank, ..Objective::default() };
    ListTraining { objective, beta, sft_weight: 0.0 }
}

/// Sets one element of parameter `index`.
fn spoil(model: &mut Transformer<Cpu>, index: usize, at: (usize, usize), value: f32) {
    let backend = model.backend().clone();
    let mut values = model.parameters().download(&backend, index);
    values[at] = value;
    model.parameters_mut().upload(&backend, index, &values).expect("the same shape");
}

fn weights(model: &Transformer<Cpu>) -> Vec<u64> {
    let all = (0..model.parameters().len()).flat_map(|i| model.backend().read(model.parameters().value(i)));
    all.map(f64::to_bits).collect()
}

fn parameter(model: &Transformer<Cpu>, name: &str) -> usize {
    model.parameters().iter().position(|p| p.name == name).expect("a parameter of this name")
}

/// Runs `step`, which must fail and leave weights and counter alone.
fn refused(trainer: &mut Trainer<Cpu>, step: impl FnOnce(&mut Trainer<Cpu>) -> Error) -> Error {
    let before = weights(&trainer.model);
    let error = step(trainer);
    assert_eq!(trainer.steps(), 0, "no update was counted");
    assert_eq!(weights(&trainer.model), before, "no weight was changed");
    error
}

#[test]
fn a_weight_is_named_by_its_tensor() {
    // Row 19 of the joint matrix of query, key and value (16 + 8 + 8 rows) is row 3 of the key's.
    let cases = [
        ("layers.1.qkv", (19, 5), "model.layers.1.self_attn.k_proj.weight", 3 * 16 + 5),
        ("layers.0.down", (2, 7), "model.layers.0.mlp.down_proj.weight", 2 * 24 + 7),
        ("norm", (0, 4), "model.norm.weight", 4),
    ];
    for (name, at, tensor, element) in cases {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let good = model();
            let (rows, lists) = (rows(), lists(&good));
            let mut bad = model();
            let index = parameter(&bad, name);
            spoil(&mut bad, index, at, value);
            let expected = Error::NotFinite { what: format!("weight {tensor}"), at: format!("element {element}") };
            assert_eq!(check_weights(&bad), Err(expected.clone()));
            assert_eq!(check_trained_weights(&bad), Err(expected.clone()));
            assert_eq!(fill_references(&bad, &mut lists.clone(), false), Err(expected.clone()));
            let mut trainer = Trainer::new(bad, OptimizerConfig::default(), 3);
            let error =
                refused(&mut trainer, |t| t.sft_step(&rows.iter().collect::<Vec<_>>(), 2).expect_err("not finite"));
            assert_eq!(error, expected);
            let error = refused(&mut trainer, |t| {
                t.list_step(&settings(0.1), &lists.iter().collect::<Vec<_>>(), 2).expect_err("not finite")
            });
            assert_eq!(error, expected);
        }
    }
    assert_eq!(check_weights(&model()), Ok(()));
}

#[test]
fn of_an_adapted_model_the_trained_weights_are_the_adapter() {
    let targets = vec!["model.layers.0.self_attn.q_proj".into()];
    let lora = Some(Lora { rank: 2, alpha: 4.0, rslora: false, dropout: 0.0, targets });
    let config = ModelConfig { lora, ..ModelConfig::new(16, 24, 2, 4, 2, 29) };
    let mut bad = Transformer::random(&Cpu::new(), config, 5).expect("a model");
    let embedding = parameter(&bad, "embedding");
    spoil(&mut bad, embedding, (3, 1), f32::NAN);
    assert!(check_weights(&bad).is_err());
    assert_eq!(check_trained_weights(&bad), Ok(()));
    let adapter = bad.parameters().iter().position(|p| p.trainable).expect("an adapter");
    spoil(&mut bad, adapter, (1, 0), f32::INFINITY);
    assert!(check_trained_weights(&bad).is_err_and(|error| error.to_string().contains("lora_A")));
}

#[test]
fn a_log_probability_is_named_by_its_row() {
    // A norm that is huge but finite: every logit overflows, and no weight is to blame.
    let good = model();
    let (rows, lists) = (rows(), lists(&good));
    let mut bad = model();
    let index = parameter(&bad, "norm");
    for column in 0..16 {
        spoil(&mut bad, index, (0, column), 3e38);
    }
    assert_eq!(check_weights(&bad), Ok(()));
    // Of several tensors that which has most of it is named, not the first.
    let mut blown_up = model();
    let embedding = parameter(&blown_up, "embedding");
    spoil(&mut blown_up, embedding, (0, 1), f32::NAN);
    for column in 0..16 {
        spoil(&mut blown_up, index, (0, column), f32::INFINITY);
    }
    let named = check_weights(&blown_up).expect_err("not finite").to_string();
    assert!(named.starts_with("weight model.norm.weight (100 % of it, and a part of 1 other parameter)"), "{named}");
    let error = fill_references(&bad, &mut lists.clone(), false).expect_err("not finite").to_string();
    assert!(error.contains("a reference log-probability") && error.contains("[6, 7]"), "{error}");
    let mut trainer = Trainer::new(bad, OptimizerConfig::default(), 3);
    let what = "a log-probability".to_string();
    let expected = Error::RowNotFinite { what, row: 0, response: 0, token: Some(0), update: 1 };
    let error = refused(&mut trainer, |t| t.sft_step(&rows.iter().collect::<Vec<_>>(), 2).expect_err("not finite"));
    assert_eq!(error, expected);
    let error = refused(&mut trainer, |t| {
        t.list_step(&settings(0.1), &lists.iter().collect::<Vec<_>>(), 2).expect_err("not finite")
    });
    assert_eq!(error, expected);
    assert!(error.to_string().contains("row 0 of its batch, response 0, token 0"), "{error}");
}

#[test]
fn a_reference_and_a_reward_are_named_by_their_row() {
    let good = model();
    let mut lists = lists(&good);
    lists[1].responses[2].reference[0] = f32::NEG_INFINITY;
    let mut trainer = Trainer::new(good, OptimizerConfig::default(), 3);
    let error = refused(&mut trainer, |t| {
        t.list_step(&settings(0.1), &lists.iter().collect::<Vec<_>>(), 4).expect_err("not finite")
    });
    let expected = Error::RowNotFinite { what: "the score γ".into(), row: 1, response: 2, token: None, update: 1 };
    assert_eq!(error, expected);
    for bad in [f64::NAN, f64::INFINITY] {
        let mut lists = self::lists(&trainer.model);
        lists[0].responses[1].reward = bad;
        let error = refused(&mut trainer, |t| {
            t.list_step(&settings(0.1), &lists.iter().collect::<Vec<_>>(), 4).expect_err("not finite")
        });
        assert!(error.to_string().contains("reward"), "{error}");
    }
}

#[test]
fn a_sample_is_named_by_its_prompt_and_a_reward_by_its_response() {
    let config = SamplingConfig {
        num_generations: 2,
        max_new_tokens: 3,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: vec![],
        vocab_limit: 29,
        seed: 1,
        iteration: 0,
    };
    let prompts = [Prompt { index: 41, ids: &[1, 2] }, Prompt { index: 42, ids: &[3] }];
    let draw = |model: &Transformer<Cpu>| sample(model, &prompts, &config, &mut NoHooks).expect_err("not finite");
    let mut huge = model();
    let index = parameter(&huge, "norm");
    for column in 0..16 {
        spoil(&mut huge, index, (0, column), 3e38);
    }
    let error = draw(&huge).to_string();
    assert!(error.contains("log-probability of a sampled token") && error.contains("prompt 41, token 0"), "{error}");
    spoil(&mut huge, index, (0, 3), f32::NAN);
    let expected = Error::NotFinite { what: "weight model.norm.weight".into(), at: "element 3".into() };
    assert_eq!(draw(&huge), expected);

    let candidate = |reward| Candidate {
        ids: vec![1],
        logps: vec![-1.0],
        text: "a".into(),
        finish_reason: None,
        iteration: 1,
        temperature: 1.0,
        seed: 1,
        reward,
    };
    let mut list = CandidateList {
        prompt_index: 7,
        prompt: "p".into(),
        conversation: None,
        prompt_ids: vec![1],
        reference: None,
        candidates: vec![candidate(0.25), candidate(0.5)],
    };
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = list.rank(&mut |_: &Query| Ok(vec![1.0, bad])).expect_err("not finite");
        let expected = Error::NotFinite { what: "a reward".into(), at: "prompt 7, response 1".into() };
        assert_eq!(error, expected);
        let rewards: Vec<f64> = list.candidates.iter().map(|c| c.reward).collect();
        assert_eq!(rewards, [0.25, 0.5], "nothing was taken over");
    }
}

#[test]
fn a_gradient_is_named_by_its_tensor() {
    // At γ = 0 the loss is a constant, whatever β is; the gradient is proportional to it and overflows.
    let good = model();
    let lists = lists(&good);
    let mut trainer = Trainer::new(good, OptimizerConfig::default(), 3);
    let error = refused(&mut trainer, |t| {
        t.list_step(&settings(3e38), &lists.iter().collect::<Vec<_>>(), 4).expect_err("not finite")
    });
    let Error::NotFinite { what, at } = &error else { panic!("{error}") };
    assert!(what.starts_with("the gradient of ") && at.starts_with("update 1, element "), "{error}");
    let tensors = trainer.model.parameters().checkpoint_tensors();
    assert!(tensors.iter().any(|(name, _)| what == &format!("the gradient of {name}")), "{error}");
    assert!(!what.contains("embed_tokens"), "the backward pass comes there last: {error}");
}
