//! Low-rank adapters: against the merged model, against central differences, and what training with one leaves alone.

mod checkpoint;
mod common;

use common::{Loss, assert_close, difference, model, pack, ragged, rewards, separate, shapes, tiny, uniform};
use larpo_core::backend::Backend;
use larpo_core::cpu::{Cpu, DryRun};
use larpo_core::model::{DecodeRow, Decoder, Lora, ModelConfig, Places, Transformer};
use larpo_core::objective::{LossType, Objective, Ties};
use larpo_core::optim::OptimizerConfig;
use larpo_core::proofs::prove;
use larpo_core::reference::Reference;
use larpo_core::tape::Gradients;
use larpo_core::train::{ListTraining, SftRow, Trainer, TrainingList, TrainingResponse, fill_references};
use ndarray::Array2;
use std::collections::HashMap;

/// `config` with an adapter on every module but those that end in one of `but`.
fn with_adapter(config: &ModelConfig, but: &[&str], dropout: f64) -> ModelConfig {
    let targets = config.linear_modules().into_iter().filter(|m| !but.iter().any(|end| m.ends_with(end))).collect();
    ModelConfig { lora: Some(Lora { rank: 3, alpha: 5.0, rslora: false, dropout, targets }), ..config.clone() }
}

/// Random weights, and an adapter that does something.
fn adapted<B: Backend>(backend: &B, config: &ModelConfig, seed: u64) -> Transformer<B> {
    let mut model = model(backend, config, seed);
    model.reset_adapter(seed).unwrap();
    for index in 0..model.parameters().len() {
        let parameter = model.parameters().iter().nth(index).unwrap();
        if parameter.name.contains("lora_B") {
            let (shape, random) = ((parameter.rows, parameter.cols), uniform(index as u32, parameter.rows * 3, 0.3));
            let values = Array2::from_shape_vec(shape, random.iter().map(|&v| v as f32).collect()).unwrap();
            model.parameters_mut().upload(backend, index, &values).unwrap();
        }
    }
    model
}

/// Some of the parts of joint matrices, the first, the middle and the last one left out in turn.
fn all_shapes() -> Vec<ModelConfig> {
    let but: [&[&str]; 4] = [&[], &["q_proj", "up_proj"], &["k_proj", "c_fc"], &["v_proj", "gate_proj", "o_proj"]];
    shapes().iter().zip(but.iter().cycle()).map(|(config, but)| with_adapter(config, but, 0.0)).collect()
}

fn listmle() -> Objective {
    Objective { loss: LossType::Listmle, ties: Ties::Skip, ..Objective::default() }
}

#[test]
fn modules_have_the_names_of_transformers() {
    let names: Vec<String> = tiny(true).linear_modules();
    assert_eq!(names.len(), 14);
    assert_eq!(names[0], "model.layers.0.self_attn.q_proj");
    assert_eq!(names[13], "model.layers.1.mlp.down_proj");
    // The original files of GPT-2 have no prefix, its modules do.
    let gpt2 = common::families(&tiny(true))[2].linear_modules();
    assert_eq!(gpt2.len(), 8);
    assert_eq!(gpt2[..2], ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"]);
    let config = with_adapter(&common::families(&tiny(true))[2], &["c_fc", "c_proj"], 0.0);
    let (c, width) = (config.hidden_size, config.attention().qkv_width());
    let shapes = config.adapter_tensors();
    assert_eq!(shapes.len(), 4);
    assert_eq!(shapes[0], ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight".into(), vec![3, c]));
    assert_eq!(shapes[1], ("base_model.model.transformer.h.0.attn.c_attn.lora_B.weight".into(), vec![width, 3]));
    assert_eq!(config.trainable_parameters(), 2 * 3 * (c + width) as u64);
}

#[test]
fn a_new_adapter_changes_nothing_and_a_merged_one_nothing_more() {
    fn check<B: Backend>(backend: &B, tolerance: f64) {
        for config in all_shapes() {
            let mut model = adapted(backend, &config, 4);
            let packed = pack(&ragged());
            let with = model.score(&packed).unwrap();
            assert_close(&model.merged().unwrap().score(&packed).unwrap(), &with, tolerance, "merged");
            let base = model.base().unwrap().score(&packed).unwrap();
            assert!(with.iter().zip(&base).any(|(a, b)| (a - b).abs() > 0.05), "the adapter does something");
            model.reset_adapter(9).unwrap();
            assert_eq!(model.score(&packed).unwrap(), base);
        }
    }
    // Weights are single precision: what merging rounds off is seen in double precision too.
    check(&Reference, 1e-6);
    check(&Cpu::new(), 1e-5);
}

#[test]
fn scales_are_those_of_the_two_papers() {
    let lora = |rslora| Lora { rank: 16, alpha: 8.0, rslora, dropout: 0.0, targets: vec![] };
    assert_eq!((lora(false).scale(), lora(true).scale()), (0.5, 2.0));
    // A scale that is not used could be right all the same: the merged weights tell.
    let mut config = with_adapter(&tiny(true), &[], 0.0);
    let plain = adapted(&Reference, &config, 4);
    config.lora.as_mut().unwrap().rslora = true;
    let stable = adapted(&Reference, &config, 4);
    let weight = |model: Transformer<Reference>| model.parameters().value(2).clone();
    let (w, a, b) = (weight(plain.base().unwrap()), weight(plain.merged().unwrap()), weight(stable.merged().unwrap()));
    let factor = 3f64.sqrt();
    for ((w, a), b) in w.iter().zip(&a).zip(&b) {
        assert!(((b - w) - factor * (a - w)).abs() < 1e-6, "{w} {a} {b}");
    }
    assert_ne!(w, a);
}

#[test]
fn gradients_equal_central_differences_and_frozen_weights_have_none() {
    // With dropout the loss is still a smooth function: what is left out is the same in every pass of an update.
    for (config, dropout) in all_shapes().into_iter().zip([0.0, 0.3].into_iter().cycle()) {
        let mut config = config;
        config.lora.as_mut().unwrap().dropout = dropout;
        let mut model = adapted(&Reference, &config, 3);
        let loss = Loss::of(&ragged(), &rewards(), listmle());
        let mut gradients = Gradients::new(model.parameters().len());
        let value = loss.backward_with(&model, &mut gradients, Some((7, 2)));
        assert_eq!(value, loss.value_with(&model, Some((7, 2))));
        assert_eq!(dropout > 0.0, value != loss.value_with(&model, Some((8, 2))), "each update leaves out others");
        for index in 0..model.parameters().len() {
            let parameter = model.parameters().iter().nth(index).unwrap();
            let (name, trainable) = (parameter.name.clone(), parameter.trainable);
            assert_eq!(trainable, name.contains("lora_"), "{name}");
            let Some(got) = gradients.get(index).cloned() else {
                assert!(!trainable, "no gradient reached {name}");
                continue;
            };
            assert!(trainable, "{name} is frozen");
            let mut want = got.clone();
            for element in (0..got.len()).step_by(got.len().div_ceil(24)) {
                let start = model.parameters().value(index)[element];
                want[element] = difference(3e-4, |shift| {
                    model.parameters_mut().value_mut(index)[element] = start + shift;
                    loss.value_with(&model, Some((7, 2)))
                });
                model.parameters_mut().value_mut(index)[element] = start;
            }
            assert!(want.iter().any(|d| d.abs() > 1e-5), "{name} does nothing");
            assert_close(&got, &want, 1e-6, &name);
        }
    }
}

#[test]
fn cpu_equals_the_reference_and_packed_lists_separate_rows() {
    for config in all_shapes() {
        let (exact, fast) = (adapted(&Reference, &config, 4), adapted(&Cpu::new(), &config, 4));
        let loss = Loss::of(&ragged(), &rewards(), listmle());
        let (grouped, apart) = (pack(&ragged()), pack(&separate(&ragged())));
        assert_close(&exact.score(&grouped).unwrap(), &exact.score(&apart).unwrap(), 1e-12, "packed");
        let (mut of_exact, mut of_fast) =
            (Gradients::new(exact.parameters().len()), Gradients::new(fast.parameters().len()));
        let (want, got) = (loss.backward(&exact, &mut of_exact), loss.backward(&fast, &mut of_fast));
        assert_close(&[got], &[want], 1e-5, "loss");
        for (index, parameter) in exact.parameters().iter().enumerate() {
            if let Some(want) = of_exact.get(index) {
                let got = fast.backend().read(of_fast.get(index).unwrap());
                // Each instruction set adds in an order of its own: AVX-512 comes to 1.2e-5 for one matrix.
                assert_close(&got, want, 3e-5, &parameter.name);
            }
        }
    }
}

#[test]
fn decoding_sees_the_adapter() {
    for config in all_shapes() {
        let model = adapted(&Reference, &config, 5);
        let (prompt, response) = ([1u32, 4, 2], [5u32, 3, 7]);
        let places = Places { prompts: 1, prompt_tokens: 3, responses: 1, response_tokens: 3 };
        let mut decoder = Decoder::new(&model, places).unwrap();
        let mut logits = decoder.prefill(&[(0, &prompt)]).unwrap();
        let mut got = Vec::new();
        for (generated, &id) in response.iter().enumerate() {
            got.push(common::log_softmax(&logits)[id as usize]);
            logits = decoder.step(&[DecodeRow { prompt: 0, response: 0, id, generated }]).unwrap();
        }
        let want = model.score(&pack(&vec![(prompt.to_vec(), vec![response.to_vec()])])).unwrap();
        assert_close(&got, &want, 1e-10, "log-probabilities");
    }
}

fn optimizer() -> OptimizerConfig {
    OptimizerConfig { learning_rate: 1e-2, weight_decay: 0.1, ..OptimizerConfig::default() }
}

fn rows() -> Vec<SftRow> {
    ragged()
        .into_iter()
        .flat_map(|(prompt, responses)| {
            let row = move |response: Vec<u32>| SftRow { prompt: prompt.clone(), response };
            responses.into_iter().filter(|r| r.len() > 1).map(row)
        })
        .collect()
}

fn numbers<B: Backend>(model: &Transformer<B>, trainable: bool) -> Vec<Vec<f32>> {
    let of = |(i, p): (usize, &larpo_core::model::Parameter<B>)| {
        (p.trainable == trainable).then(|| model.parameters().download(model.backend(), i).into_raw_vec_and_offset().0)
    };
    model.parameters().iter().enumerate().filter_map(of).collect()
}

#[test]
fn training_changes_the_adapter_alone_and_goes_on_to_the_same_bits() {
    let config = with_adapter(&tiny(true), &["k_proj"], 0.2);
    let start = || {
        let mut model = model(&Cpu::new(), &config, 3);
        model.reset_adapter(3).unwrap();
        model.seed_dropout(11, 2);
        model
    };
    let rows = rows();
    let rows: Vec<&SftRow> = rows.iter().collect();
    let frozen = numbers(&start(), false);
    let mut trainer = Trainer::new(start(), optimizer(), 6);
    let first = trainer.sft_step(&rows, 3).unwrap().loss;
    let second = trainer.sft_step(&rows, 3).unwrap().loss;
    trainer.sft_step(&rows, 3).unwrap();
    let state = trainer.state();
    for (parameter, moments) in trainer.model.parameters().iter().zip(&state.moments) {
        assert_eq!(parameter.trainable, moments.is_some(), "{}", parameter.name);
    }
    // As from files: another model, the adapter's numbers put in.
    let mut again = start();
    for index in 0..again.parameters().len() {
        let values = trainer.model.parameters().download(trainer.model.backend(), index);
        again.parameters_mut().upload(&Cpu::new(), index, &values).unwrap();
    }
    let mut resumed = Trainer::resume(again, state).unwrap();
    let mut last = 0.0;
    for _ in 0..3 {
        last = trainer.sft_step(&rows, 3).unwrap().loss;
        assert_eq!(resumed.sft_step(&rows, 3).unwrap().loss, last);
    }
    assert!(last < first - 0.1, "{first} to {last}");
    assert_eq!(numbers(&resumed.model, true), numbers(&trainer.model, true));
    assert_eq!(numbers(&trainer.model, false), frozen, "the base keeps every bit");
    // Another seed leaves out others, which shows as soon as B is not zero any more.
    let mut other = Trainer::new(start(), optimizer(), 6);
    other.model.seed_dropout(11, 3);
    assert_eq!(other.sft_step(&rows, 3).unwrap().loss, first);
    assert_ne!(other.sft_step(&rows, 3).unwrap().loss, second);
}

#[test]
fn proofs_hold_and_copies_share_what_is_frozen() {
    let config = with_adapter(&tiny(false), &[], 0.1);
    let mut model = model(&Cpu::new(), &config, 3);
    model.reset_adapter(3).unwrap();
    let response = |ids: &[u32], reward| TrainingResponse { ids: ids.into(), reward, reference: vec![], sampled: None };
    let list = TrainingList { prompt: vec![1, 2], responses: vec![response(&[3, 4], 1.0), response(&[5], 0.0)] };
    let settings = ListTraining { objective: listmle(), beta: 0.5, sft_weight: 0.0 };
    let mut lists = vec![list];
    let report = prove(&model, &settings, &[&lists[0]], true).unwrap();
    assert_eq!(report.constant_lists, Some(1), "dropout is off");
    let trained = model.parameters().iter().filter(|p| p.trainable).count();
    assert_eq!(report.reached, trained);
    assert!(!report.zero_gradients.is_empty() && report.zero_gradients.iter().all(|name| name.contains("lora_A")));
    fill_references(&model, &mut lists, false).unwrap();

    let (copy, base) = (model.duplicate().unwrap(), model.base().unwrap());
    let mut trainer = Trainer::new(model, optimizer(), 3);
    for _ in 0..3 {
        trainer.list_step(&settings, &[&lists[0]], 1).unwrap();
    }
    assert_eq!(numbers(&trainer.model, false), numbers(&copy, false));
    assert_ne!(numbers(&trainer.model, true), numbers(&copy, true), "the copy's adapter is its own");
    assert_eq!(numbers(&base, true).len(), numbers(&copy, false).len());
    let packed = larpo_core::train::pack(&[&lists[0]]);
    assert_eq!(base.score(&packed).unwrap(), copy.score(&packed).unwrap(), "a new adapter does nothing");
    assert_ne!(base.score(&packed).unwrap(), trainer.model.score(&packed).unwrap());
}

#[test]
fn adapters_that_cannot_be_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut Lora)| {
        let mut config = with_adapter(&tiny(true), &[], 0.0);
        change(config.lora.as_mut().unwrap());
        config.validate().unwrap_err().to_string()
    };
    assert!(with(&|lora| lora.rank = 0).contains("lora rank is 0"));
    assert!(with(&|lora| lora.alpha = f64::NAN).contains("lora alpha"));
    assert!(with(&|lora| lora.dropout = 1.0).contains("lora dropout is 1"));
    assert!(with(&|lora| lora.targets.clear()).contains("lora targets is none"));
    assert!(with(&|lora| lora.targets.push("lm_head".into())).contains("lora target is lm_head"));
}

/// What is computed again for the gradients is the same to the bit, and so is all that follows.
#[test]
fn recomputed_blocks_give_the_same_bits() {
    fn check<B: Backend>(backend: &B) {
        for config in shapes().into_iter().chain(all_shapes()) {
            let (loss, mut lora) = (Loss::of(&ragged(), &rewards(), listmle()), config.lora.clone());
            lora.iter_mut().for_each(|lora| lora.dropout = 0.3);
            let gradients = |gradient_checkpointing| {
                let config = ModelConfig { gradient_checkpointing, lora: lora.clone(), ..config.clone() };
                let model = if lora.is_some() { adapted(backend, &config, 4) } else { model(backend, &config, 4) };
                let mut gradients = Gradients::new(model.parameters().len());
                let value = loss.backward_with(&model, &mut gradients, Some((3, 1)));
                let read = |i| gradients.get(i).map(|g| backend.read(g));
                (value, (0..model.parameters().len()).map(read).collect::<Vec<_>>())
            };
            let (kept, again) = (gradients(false), gradients(true));
            assert!(kept.1.iter().flatten().count() > 0);
            assert_eq!(kept, again);
        }
    }
    check(&Reference);
    check(&Cpu::new());
}

/// The nearest number of bfloat16, of two the even one.
fn nearest(x: f32) -> f32 {
    let below = x.to_bits() & 0xffff_0000;
    let [low, high] = [below, below + 0x1_0000].map(f32::from_bits);
    let (down, up) = ((x - low).abs(), (high - x).abs());
    if up < down || up == down && below & 0x1_0000 != 0 { high } else { low }
}

/// A base in bfloat16 gives the bits that its rounded numbers give: in scoring, decoding and training.
#[test]
fn a_base_in_bfloat16_is_its_rounded_numbers() {
    let backend = Cpu::new();
    for config in all_shapes() {
        let mut wide = adapted(&backend, &config, 4);
        for index in 0..wide.parameters().len() {
            let parameter = wide.parameters().iter().nth(index).unwrap();
            if !parameter.trainable && parameter.decay {
                let rounded = wide.parameters().download(&backend, index).mapv(nearest);
                wide.parameters_mut().upload(&backend, index, &rounded).unwrap();
            }
        }
        let half = adapted(&backend, &ModelConfig { frozen_bf16: true, ..config.clone() }, 4);
        for (index, parameter) in half.parameters().iter().enumerate() {
            let numbers = |model: &Transformer<Cpu>| model.parameters().download(&backend, index);
            assert_eq!(numbers(&half), numbers(&wide), "{}", parameter.name);
        }
        let packed = pack(&ragged());
        assert_eq!(half.score(&packed).unwrap(), wide.score(&packed).unwrap());
        assert_eq!(half.merged().unwrap().score(&packed).unwrap(), wide.merged().unwrap().score(&packed).unwrap());
        assert_eq!(half.base().unwrap().score(&packed).unwrap(), wide.base().unwrap().score(&packed).unwrap());
        let logits = |model: &Transformer<Cpu>| {
            let places = Places { prompts: 1, prompt_tokens: 3, responses: 1, response_tokens: 4 };
            let mut decoder = Decoder::new(model, places).unwrap();
            decoder.prefill(&[(0, &[1, 2, 3])]).unwrap();
            backend.read(&decoder.step(&[DecodeRow { prompt: 0, response: 0, id: 5, generated: 0 }]).unwrap())
        };
        assert_eq!(logits(&half), logits(&wide));
        let gradients = |model: &Transformer<Cpu>| {
            let mut gradients = Gradients::new(model.parameters().len());
            let value = Loss::of(&ragged(), &rewards(), listmle()).backward_with(model, &mut gradients, None);
            let read = |i| gradients.get(i).map(|g| backend.read(g));
            (value, (0..model.parameters().len()).map(read).collect::<Vec<_>>())
        };
        assert_eq!(gradients(&half), gradients(&wide));
    }
}

#[test]
fn a_base_in_bfloat16_holds_half() {
    let held = |frozen_bf16| {
        let dry = DryRun::new();
        let config = with_adapter(&ModelConfig::new(256, 512, 4, 4, 2, 2000), &[], 0.0);
        let model = Transformer::unspecified(&dry, ModelConfig { frozen_bf16, ..config }).unwrap();
        let bytes = model.config().weight_bytes();
        let mut trainer = Trainer::new(model, optimizer(), 1);
        let row = SftRow { prompt: vec![1; 10], response: vec![2; 10] };
        trainer.sft_step(&[&row], 1).unwrap();
        (dry.memory().weights as f64, bytes as f64)
    };
    let ((wide, of_wide), (half, of_half)) = (held(false), held(true));
    assert!(half < 0.53 * wide, "{half} bytes instead of {wide}");
    for (held, said) in [(wide, of_wide), (half, of_half)] {
        assert!((held / said - 1.0).abs() < 0.05, "{held} held, {said} stated");
    }
}

/// Adapters that PEFT wrote, with the log-probabilities that PEFT computes (larpo-cli/tests/interop/make_adapters.py).
#[test]
fn golden_adapters_equal_peft() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folders: Vec<_> = std::fs::read_dir(golden.join("adapters")).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(folders.len(), 5);
    for folder in folders {
        let (config, want) =
            (checkpoint::json(&folder.join("adapter_config.json")), checkpoint::json(&folder.join("golden.json")));
        let mut tensors = HashMap::new();
        checkpoint::read_safetensors(&folder.join("adapter_model.safetensors"), &mut tensors);
        let targets = tensors.keys().filter_map(|name| {
            name.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight").map(String::from)
        });
        let lora = Lora {
            rank: checkpoint::id(&config["r"]),
            alpha: checkpoint::number(&config["lora_alpha"]),
            rslora: config["use_rslora"] == true,
            dropout: checkpoint::number(&config["lora_dropout"]),
            targets: targets.collect(),
        };
        let base = checkpoint::open(&golden.join("models").join(want["base"].as_str().unwrap()));
        let ids = checkpoint::ids(&want["ids"]);
        let packed = larpo_core::lists::PackedLists::pack([(&[][..], [&ids[..]])]);
        let (logp, without) = (checkpoint::numbers(&want["next_token_logp"]), checkpoint::numbers(&want["without"]));
        fn check<B: Backend>(model: &Transformer<B>, packed: &larpo_core::lists::PackedLists, want: [&[f64]; 2]) {
            // PEFT's numbers are single precision inside norms and softmax.
            let close = |got: Vec<f64>, want: &[f64]| {
                got.iter().zip(want).for_each(|(got, want)| assert!((got - want).abs() < 3e-5, "{got} {want}"));
            };
            close(model.score(packed).unwrap(), want[0]);
            close(model.merged().unwrap().score(packed).unwrap(), want[0]);
            close(model.base().unwrap().score(packed).unwrap(), want[1]);
        }
        check(&base.adapted(&Reference, &lora, &tensors), &packed, [&logp, &without]);
        check(&base.adapted(&Cpu::new(), &lora, &tensors), &packed, [&logp, &without]);
    }
}

#[test]
fn recomputed_blocks_hold_less() {
    let activations = |gradient_checkpointing| {
        let dry = DryRun::new();
        let config = ModelConfig { gradient_checkpointing, ..ModelConfig::new(64, 128, 12, 4, 2, 300) };
        let mut trainer = Trainer::new(Transformer::unspecified(&dry, config).unwrap(), optimizer(), 1);
        let row = SftRow { prompt: vec![1; 100], response: vec![2; 100] };
        trainer.sft_step(&[&row, &row], 2).unwrap();
        dry.memory().activations
    };
    let (kept, again) = (activations(false), activations(true));
    assert!(3 * again < kept, "{again} bytes instead of {kept}");
}
