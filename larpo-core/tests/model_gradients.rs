//! The whole transformer on packed lists: gradients against central differences, the fast backend against the
//! reference, and packed lists against separate rows.

mod common;

use common::{
    Loss, assert_close, difference, families, model, names, pack, ragged, read, rewards, separate, shapes, tiny,
};
use larpo_core::backend::Backend;
use larpo_core::cpu::Cpu;
use larpo_core::lists::PackedLists;
use larpo_core::model::ModelConfig;
use larpo_core::objective::{LossType, Objective, Ties};
use larpo_core::reference::Reference;
use larpo_core::tape::Gradients;

fn objective(loss: LossType, ties: Ties) -> Objective {
    Objective { loss, ties, ..Objective::default() }
}

/// Elements of a tensor that are checked: all of a small one, about forty of a large one, spread over its columns.
fn elements(len: usize) -> impl Iterator<Item = usize> {
    let stride = len.div_ceil(40);
    (0..len).step_by(stride).enumerate().map(move |(i, start)| (start + i % stride).min(len - 1))
}

fn central_differences(config: &ModelConfig, objective: Objective) {
    let mut model = model(&Reference, config, 3);
    let loss = Loss::of(&ragged(), &rewards(), objective);
    let (_, gradients) = loss.gradients(&model);
    for (index, name) in names(&model).iter().enumerate() {
        let picked: Vec<usize> = elements(gradients[index].len()).collect();
        assert!(picked.len() == gradients[index].len() || picked.len() >= 30, "{name}: {}", picked.len());
        let mut want = gradients[index].clone();
        for element in picked {
            let start = model.parameters().value(index)[element];
            want[element] = difference(3e-4, |shift| {
                model.parameters_mut().value_mut(index)[element] = start + shift;
                loss.value(&model)
            });
            model.parameters_mut().value_mut(index)[element] = start;
        }
        assert!(want.iter().any(|d| d.abs() > 1e-4), "{name} does nothing");
        assert_close(&gradients[index], &want, 1e-6, name);
    }
}

#[test]
fn gradients_with_a_tied_head_equal_central_differences() {
    central_differences(&tiny(true), objective(LossType::Listmle, Ties::Share));
}

#[test]
fn gradients_with_a_separate_head_equal_central_differences() {
    central_differences(&tiny(false), objective(LossType::Lambdarank, Ties::Skip));
}

#[test]
fn gradients_of_other_families_equal_central_differences() {
    for config in families(&tiny(false)) {
        central_differences(&config, objective(LossType::Listmle, Ties::Skip));
    }
}

#[test]
fn cpu_equals_the_reference() {
    for config in shapes() {
        let (exact, fast) = (model(&Reference, &config, 4), model(&Cpu::new(), &config, 4));
        for &kind in LossType::ALL {
            let loss = Loss::of(&ragged(), &rewards(), objective(kind, Ties::Skip));
            let ((want_loss, want), (got_loss, got)) = (loss.gradients(&exact), loss.gradients(&fast));
            assert_close(&[got_loss], &[want_loss], 1e-5, &format!("{kind}"));
            for ((got, want), name) in got.iter().zip(&want).zip(names(&exact)) {
                assert_close(got, want, 1e-5, &format!("{kind} {name}"));
            }
        }
    }
}

/// k responses behind one prompt give what k rows `prompt + response` give, to rounding.
fn packed_equals_separate<B: Backend>(backend: &B, tolerance: f64) {
    let grouped = pack(&ragged());
    let apart = pack(&separate(&ragged()));
    assert_eq!(grouped.target_ids, apart.target_ids);
    assert!(grouped.rows() < apart.rows());
    for config in shapes() {
        let model = model(backend, &config, 5);
        let (got, want) = (model.score(&grouped).unwrap(), model.score(&apart).unwrap());
        assert_close(&got, &want, tolerance, "log-probabilities");
        let loss = |packed: &PackedLists| {
            Loss::new(packed.clone(), &grouped, &rewards(), objective(LossType::Listmle, Ties::Skip))
        };
        let ((got_loss, got), (want_loss, want)) = (loss(&grouped).gradients(&model), loss(&apart).gradients(&model));
        assert_close(&[got_loss], &[want_loss], tolerance, "loss");
        for ((got, want), name) in got.iter().zip(&want).zip(names(&model)) {
            assert_close(got, want, tolerance, &name);
        }
    }
}

#[test]
fn packed_lists_equal_separate_rows() {
    packed_equals_separate(&Reference, 1e-12);
}

#[test]
fn packed_lists_equal_separate_rows_on_the_cpu() {
    packed_equals_separate(&Cpu::new(), 1e-5);
}

/// Rows alone in a batch of their own give the same as in the big batch: lists do not see each other.
#[test]
fn lists_do_not_see_each_other() {
    let model = model(&Reference, &tiny(false), 6);
    let together = model.score(&pack(&ragged())).unwrap();
    let alone: Vec<f64> = ragged().into_iter().flat_map(|list| model.score(&pack(&vec![list])).unwrap()).collect();
    assert_close(&together, &alone, 1e-12, "log-probabilities");
}

/// Gradients of micro-batches add up to those of one big batch, and `zero` forgets them.
fn micro_batches_add_up<B: Backend>(backend: &B, tolerance: f64) {
    let model = model(backend, &tiny(true), 7);
    let (lists, rewards, listmle) = (ragged(), rewards(), objective(LossType::Listmle, Ties::Stable));
    let whole = Loss::of(&lists, &rewards, listmle);
    let (_, want) = whole.gradients(&model);
    let mut gradients = Gradients::new(model.parameters().len());
    whole.backward(&model, &mut gradients);
    gradients.zero();
    let mut items = 0;
    let mut targets = 0;
    for list in lists {
        let count = list.1.len();
        let mut part = Loss::of(&vec![list], &rewards[items..items + count], listmle);
        let end = targets + part.packed.targets();
        part.reference = whole.reference[targets..end].to_vec();
        part.nll_weights = whole.nll_weights[targets..end].to_vec();
        part.backward(&model, &mut gradients);
        (items, targets) = (items + count, end);
    }
    for ((got, want), name) in read(&model, &gradients).iter().zip(&want).zip(names(&model)) {
        assert_close(got, want, tolerance, &name);
    }
}

#[test]
fn accumulated_micro_batches_equal_one_batch() {
    micro_batches_add_up(&Reference, 1e-12);
    micro_batches_add_up(&Cpu::new(), 1e-5);
}

/// A response that no row predicts has no targets; nothing to score is no reason to fail.
#[test]
fn a_batch_without_targets_has_a_loss_of_zero() {
    fn check<B: Backend>(backend: &B) {
        let model = model(backend, &tiny(true), 8);
        let lists = vec![(vec![], vec![vec![3], vec![]]), (vec![4, 5], vec![vec![]])];
        let loss = Loss::of(&lists, &[1.0, 0.0, 1.0], objective(LossType::Pairwise, Ties::Skip));
        assert_eq!(loss.packed.targets(), 0);
        assert_eq!(model.score(&loss.packed).unwrap(), Vec::<f64>::new());
        let mut gradients = Gradients::new(model.parameters().len());
        // Both responses have probability 1 as far as they are scored: -log σ(0), times the scale of 1/4.
        let got = loss.backward(&model, &mut gradients);
        assert!((got - 0.25 * 2f64.ln()).abs() < 1e-7, "{got}");
        let touched = (0..model.parameters().len()).filter_map(|i| gradients.get(i));
        assert!(touched.flat_map(|g| backend.read(g)).all(|d| d == 0.0));
    }
    check(&Reference);
    check(&Cpu::new());
}
