//! Derivatives against central differences, and what the invariance of the losses demands of them.

mod lists;

use larpo_core::metrics::{KlEstimator, kl};
use larpo_core::objective::{PairLogps, SeqLogp, Sequence, dpo, seq_logp, seq_logp_grad, sft};
use lists::{TestList, Uniform, lists, objectives};

const STEP: f64 = 1e-5;

fn close(got: f64, want: f64, at: &str) {
    assert!((got - want).abs() <= 1e-8 + 1e-8 * want.abs(), "{at}: {got} against {want}");
}

/// Central difference of `f` in entry `i` of `x`.
fn difference(f: impl Fn(&[f64]) -> f64, x: &[f64], i: usize) -> f64 {
    let at = |shift: f64| {
        let mut moved = x.to_vec();
        moved[i] += shift;
        f(&moved)
    };
    (at(STEP) - at(-STEP)) / (2.0 * STEP)
}

#[test]
fn every_loss_under_every_tie_rule() {
    let mut contributing = 0;
    for objective in objectives() {
        for list in lists() {
            let (loss, d_gamma) = list.evaluate(&objective);
            contributing += usize::from(loss.is_some());
            for (i, &d) in d_gamma.iter().enumerate() {
                let value = |gamma: &[f64]| {
                    let moved = TestList { gamma: gamma.to_vec(), ..list.clone() };
                    moved.evaluate(&objective).0.unwrap_or(0.0)
                };
                close(d, difference(value, &list.gamma, i), &format!("{objective:?} item {i} of {list:?}"));
            }
        }
    }
    assert!(contributing > 1000, "only {contributing} lists contributed");
}

#[test]
fn adding_a_constant_to_all_gammas_changes_nothing() {
    for objective in objectives() {
        for list in lists() {
            let (loss, d_gamma) = list.evaluate(&objective);
            close(d_gamma.iter().sum(), 0.0, "sum of the gradient");
            let shifted = TestList { gamma: list.gamma.iter().map(|g| g + 0.75).collect(), ..list.clone() };
            let (other_loss, other_d_gamma) = shifted.evaluate(&objective);
            assert_eq!(loss.is_some(), other_loss.is_some());
            close(other_loss.unwrap_or(0.0), loss.unwrap_or(0.0), "shifted loss");
            for (d, other) in d_gamma.iter().zip(other_d_gamma) {
                close(other, *d, "shifted gradient");
            }
        }
    }
}

#[test]
fn smoothed_dpo() {
    let (w, l, ref_w, ref_l) = ([-3.0, -7.5, -2.0], [-4.0, -6.0, -2.0], [-3.5, -6.0, -2.5], [-3.0, -8.0, -2.5]);
    for (beta, smoothing) in [(0.1, 0.0), (1.0, 0.1), (2.0, 0.5)] {
        let loss = |w: &[f64], l: &[f64]| {
            let pairs = PairLogps { logp_w: w, logp_l: l, ref_w: &ref_w, ref_l: &ref_l };
            dpo(&pairs, beta, smoothing).unwrap()
        };
        let result = loss(&w, &l);
        for i in 0..3 {
            close(result.d_logp_w[i], difference(|w| loss(w, &l).value, &w, i), "d_logp_w");
            close(result.d_logp_l[i], difference(|l| loss(&w, l).value, &l, i), "d_logp_l");
        }
    }
}

#[test]
fn sequence_log_probability_and_sft() {
    let (vocab, ids, mask) = (5, [3, 0, 4, 4, 1], [true, false, true, true, false]);
    let mut uniform = Uniform(5);
    let logits: Vec<f64> = (0..vocab * ids.len()).map(|_| 4.0 * uniform.draw()).collect();
    let of = |logits: &[f64]| seq_logp(&Sequence { logits, vocab, ids: &ids, mask: &mask }).unwrap();
    let mut d_logits = vec![f64::NAN; logits.len()];
    seq_logp_grad(&Sequence { logits: &logits, vocab, ids: &ids, mask: &mask }, &mut d_logits).unwrap();
    for (i, &d) in d_logits.iter().enumerate() {
        close(d, difference(|logits| of(logits).sum, &logits, i), "d_logits");
    }
    // Rows 1 and 2 predict the two scored tokens; the others receive exactly nothing.
    assert!(d_logits[..vocab].iter().chain(&d_logits[3 * vocab..]).all(|d| *d == 0.0));

    // Two micro-batches weighted by their tokens give the loss of the whole batch.
    let (long, short) = (of(&logits), SeqLogp { sum: -1.25, count: 1, per_token: vec![-1.25] });
    let (value, d_sum) = sft(&[long.clone(), short.clone()]);
    close(value, -(long.sum + short.sum) / 3.0, "sft");
    close(d_sum, -1.0 / 3.0, "d_sum");
    close(value, (2.0 * sft(&[long]).0 + sft(&[short]).0) / 3.0, "accumulated sft");
    assert_eq!(sft(&[]).0, 0.0);
}

#[test]
fn kl_estimates() {
    let (logp, reference) = ([-1.0, -0.2, -3.0, -2.0], [-1.5, -1.0, -2.0, -2.0]);
    for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
        let grad = kl(estimator, &logp, &reference).unwrap().grad;
        for (i, &d) in grad.iter().enumerate() {
            let value = |logp: &[f64]| kl(estimator, logp, &reference).unwrap().value;
            close(d, difference(value, &logp, i), "kl");
        }
    }
}
