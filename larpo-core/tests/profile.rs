//! The measuring backend: changes no result, and counts the work that the formulas of a step and of sampling state.

mod common;

use common::{Loss, pack, ragged, rewards, tiny};
use larpo_core::backend::Backend;
use larpo_core::conformance::{cases, run};
use larpo_core::cpu::Cpu;
use larpo_core::model::{DecodeRow, Decoder, Places};
use larpo_core::objective::{LossType, Objective};
use larpo_core::profile::{Cost, Profile, Profiled, Shape};
use larpo_core::reference::Reference;

#[test]
fn every_operation_is_handed_on() {
    let backend = Profiled::new(Reference);
    for case in cases() {
        let outcome = run(&backend, &case);
        assert_eq!(outcome.error, 0.0, "{outcome}");
    }
    let profile = backend.take();
    let measured: Vec<&str> = profile.keys().map(|(op, _)| *op).collect();
    // These only tell of the backend, measure or forget memory.
    let untimed = ["len", "trim", "limit", "name", "multiplies_in_half"];
    let methods = cases::<Reference>().into_iter().flat_map(|case| case.methods);
    for method in methods.filter(|method| !untimed.contains(method)) {
        assert!(measured.contains(method), "{method} was not measured");
    }
    assert!(backend.take().is_empty());
}

fn loss() -> Loss {
    Loss::of(&ragged(), &rewards(), Objective { loss: LossType::Listmle, ..Objective::default() })
}

#[test]
fn results_are_the_same() {
    fn gradients<B: Backend>(backend: &B) -> (f64, Vec<Vec<f64>>) {
        loss().gradients(&common::model(backend, &tiny(true), 3))
    }
    assert_eq!(gradients(&Profiled::new(Cpu::new())), gradients(&Cpu::new()));
}

fn total(profile: &Profile) -> Cost {
    profile.values().fold(Cost::default(), |sum, cost| Cost {
        calls: sum.calls + cost.calls,
        seconds: sum.seconds + cost.seconds,
        flops: sum.flops + cost.flops,
        bytes: sum.bytes + cost.bytes,
    })
}

#[test]
fn work_of_a_step_is_the_formula() {
    for tied in [true, false] {
        let (config, packed) = (tiny(tied), pack(&ragged()));
        let model = common::model(&Profiled::new(Cpu::new()), &config, 3);
        model.backend().take();
        loss().gradients(&model);
        let profile = model.backend().take();
        // The head runs once for a row that predicts several targets.
        let (rows, scored) = (packed.rows() as u64, packed.scored_rows.len() as u64);
        assert_eq!(total(&profile).flops, config.step_flops(rows, scored, packed.visible_pairs()));
        assert!(profile.values().all(|cost| cost.calls > 0 && cost.seconds >= 0.0));
        let layers = config.num_hidden_layers as u64;
        let down = Shape::Product(packed.rows(), config.intermediate_size, config.hidden_size);
        for op in ["linear", "linear_grad_x", "linear_grad_w"] {
            assert_eq!(profile[&(op, down)].calls, layers, "{op}");
        }
    }
}

#[test]
fn work_of_decoding_is_the_formula() {
    let config = tiny(false);
    let model = common::model(&Profiled::new(Cpu::new()), &config, 3);
    let places = Places { prompts: 2, prompt_tokens: 3, responses: 3, response_tokens: 2 };
    let mut decoder = Decoder::new(&model, places).expect("places that fit");
    decoder.prefill(&[(0, &[1, 2, 3]), (1, &[4, 5])]).expect("prompts that fit");
    model.backend().take();
    let row = |prompt, response| DecodeRow { prompt, response, id: 7, generated: 0 };
    decoder.step(&[row(0, 0), row(0, 1), row(1, 2)]).expect("rows that fit");
    let profile = model.backend().take();
    // Three rows see 3 + 1, 3 + 1 and 2 + 1 cached rows; the first prompt's three are read once.
    assert_eq!(total(&profile).flops, config.forward_flops(3, 3, 11));
    let spec = config.attention();
    let cost = profile[&("decode_attention", Shape::Rows(3, spec.out_width()))];
    let words = 2 * 3 * spec.out_width() + (3 + 2 + 3) * spec.cache_width();
    assert_eq!((cost.calls, cost.bytes), (2, 2.0 * 4.0 * words as f64));
}
