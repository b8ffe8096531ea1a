//! The gradient of every differentiable operation against central differences, in double precision.

mod common;

use common::{assert_close, difference, uniform};
use larpo_core::backend::{Activation, AttentionSpec, DropoutSpec, NormSpec, Segment};
use larpo_core::lists::{PackedLists, RankedLists};
use larpo_core::objective::{LossType, Objective, Ties};
use larpo_core::ops;
use larpo_core::reference::Reference;
use larpo_core::tape::{Gradients, Tape, Var};
use std::sync::Arc;

const TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-3;

struct Check<'a> {
    name: &'a str,
    /// Rows and columns of the inputs.
    shapes: &'a [(usize, usize)],
    /// An input that is constant: the operation must leave its gradient out and still give the others'.
    constant: Option<usize>,
}

/// Checks d(Σ r·f)/d(input) for every element of every input, with random weights r on the elements of the result.
fn check(name: &str, shapes: &[(usize, usize)], f: impl Fn(&Tape<Reference>, &[Var<Reference>]) -> Var<Reference>) {
    check_with(&Check { name, shapes, constant: None }, f);
}

fn check_with(check: &Check, f: impl Fn(&Tape<Reference>, &[Var<Reference>]) -> Var<Reference>) {
    let inputs: Vec<Vec<f64>> =
        check.shapes.iter().enumerate().map(|(i, (rows, cols))| uniform(i as u32, rows * cols, 1.0)).collect();
    let scalar = |tape: &Tape<Reference>, inputs: &[Vec<f64>]| {
        let vars: Vec<_> = inputs
            .iter()
            .zip(check.shapes)
            .enumerate()
            .map(|(i, (values, &(rows, cols)))| match check.constant == Some(i) {
                true => Var::constant(Arc::new(values.clone()), rows, cols),
                false => Var::parameter(i, Arc::new(values.clone()), rows, cols),
            })
            .collect();
        let y = f(tape, &vars);
        let weights = Arc::new(uniform(99, y.rows * y.cols, 1.0));
        ops::weighted_sum(tape, &y, &weights)
    };
    let mut gradients = Gradients::new(inputs.len());
    let tape = Tape::new(&Reference);
    let loss = scalar(&tape, &inputs);
    tape.backward(&loss, &mut gradients);
    for (i, values) in inputs.iter().enumerate() {
        if check.constant == Some(i) {
            assert!(gradients.get(i).is_none(), "{}: a constant got a gradient", check.name);
            continue;
        }
        let got = gradients.get(i).unwrap_or_else(|| panic!("{}: no gradient of input {i}", check.name));
        let want: Vec<f64> = (0..values.len())
            .map(|element| {
                difference(STEP, |shift| {
                    let mut moved = inputs.clone();
                    moved[i][element] += shift;
                    scalar(&Tape::inference(&Reference), &moved).value()[0]
                })
            })
            .collect();
        assert!(want.iter().any(|d| d.abs() > 1e-3), "{}: input {i} does nothing", check.name);
        assert_close(got, &want, TOLERANCE, &format!("{}, input {i}", check.name));
    }
}

fn index(values: &[u32]) -> Arc<Vec<u32>> {
    Arc::new(values.to_vec())
}

#[test]
fn low_rank() {
    let dropout = DropoutSpec { rate: 0.4, key: [3, 4], counter: [1, 0] };
    // All of the result, one part of it at its end, and two parts that do not touch.
    let layouts: [&[(usize, usize)]; 3] = [&[(6, 0)], &[(3, 3)], &[(2, 0), (2, 4)]];
    for (parts, dropout) in layouts.iter().flat_map(|parts| [(parts, None), (parts, Some(dropout))]) {
        let mut shapes = vec![(5, 6), (5, 4), (2 * parts.len(), 4)];
        shapes.extend(parts.iter().map(|(rows, _)| (*rows, 2)));
        for constant in [None, Some(0), Some(1)] {
            check_with(&Check { name: "low_rank", shapes: &shapes, constant }, |tape, x| {
                let parts = x[3..].iter().cloned().zip(parts.iter().map(|(_, first)| *first)).collect();
                let low = ops::LowRank { a: x[2].clone(), parts, scale: Arc::new(vec![0.7]), dropout };
                ops::low_rank(tape, x[0].clone(), &x[1], low)
            });
        }
    }
}

#[test]
fn embed() {
    let ids = index(&[3, 0, 3, 4, 3]);
    check("embed", &[(5, 3)], |tape, x| ops::embed(tape, &x[0], &ids, 5));
}

#[test]
fn linear() {
    check("linear", &[(3, 4), (5, 4)], |tape, x| ops::linear(tape, &x[0], &x[1], None, None));
    check("linear of one row", &[(1, 1), (1, 1)], |tape, x| ops::linear(tape, &x[0], &x[1], None, None));
    check("linear with a residual", &[(3, 4), (5, 4), (3, 5)], |tape, x| {
        ops::linear(tape, &x[0], &x[1], None, Some(&x[2]))
    });
    check("linear with a bias", &[(3, 4), (5, 4), (5, 1)], |tape, x| {
        ops::linear(tape, &x[0], &x[1], Some(&x[2]), None)
    });
    check("linear with both", &[(3, 4), (5, 4), (5, 1), (3, 5)], |tape, x| {
        ops::linear(tape, &x[0], &x[1], Some(&x[2]), Some(&x[3]))
    });
    for constant in [Some(0), Some(1)] {
        let check = Check { name: "linear with a constant", shapes: &[(3, 4), (5, 4)], constant };
        check_with(&check, |tape, x| ops::linear(tape, &x[0], &x[1], None, None));
    }
}

/// Values and parameters with several consumers add their gradients up, whatever the order.
#[test]
fn several_consumers() {
    check("a residual that is also the input", &[(3, 4), (4, 4)], |tape, x| {
        let y = ops::linear(tape, &x[0], &x[1], None, Some(&x[0]));
        ops::linear(tape, &y, &x[1], None, Some(&y))
    });
    let (ids, rows, targets) = (index(&[1, 4, 2]), index(&[0, 1, 2, 2]), index(&[3, 0, 1, 1]));
    check("a table that is also the head", &[(5, 4)], |tape, x| {
        let h = ops::embed(tape, &x[0], &ids, 3);
        ops::token_logp(tape, &h, &x[0], None, &rows, &targets, 4)
    });
    check("both halves of a sum", &[(2, 3)], |tape, x| {
        let weights = Arc::new(uniform(7, 6, 1.0));
        let sum = ops::weighted_sum(tape, &x[0], &weights);
        ops::add(tape, &sum, &sum)
    });
}

fn norm(eps: f64) -> NormSpec {
    NormSpec { eps, offset: 0.0 }
}

#[test]
fn rms_norm() {
    check("rms_norm", &[(4, 5), (1, 5)], |tape, x| ops::rms_norm(tape, &x[0], &x[1], norm(1e-2)));
    check("rms_norm of one channel", &[(3, 1), (1, 1)], |tape, x| ops::rms_norm(tape, &x[0], &x[1], norm(0.5)));
    check("rms_norm with an offset", &[(4, 5), (1, 5)], |tape, x| {
        ops::rms_norm(tape, &x[0], &x[1], NormSpec { eps: 1e-2, offset: 1.0 })
    });
    for constant in [Some(0), Some(1)] {
        let check = Check { name: "rms_norm with a constant", shapes: &[(4, 5), (1, 5)], constant };
        check_with(&check, |tape, x| ops::rms_norm(tape, &x[0], &x[1], norm(1e-2)));
    }
}

#[test]
fn layer_norm() {
    let shapes = [(4, 5), (1, 5), (1, 5)];
    check("layer_norm", &shapes, |tape, x| ops::layer_norm(tape, &x[0], &x[1], &x[2], 1e-2));
    for constant in [Some(0), Some(1), Some(2)] {
        let check = Check { name: "layer_norm with a constant", shapes: &shapes, constant };
        check_with(&check, |tape, x| ops::layer_norm(tape, &x[0], &x[1], &x[2], 1e-2));
    }
}

#[test]
fn head_norm() {
    let shapes = [(3, GROUPED.qkv_width()), (1, GROUPED.head_dim), (1, GROUPED.head_dim)];
    check("head_norm", &shapes, |tape, x| ops::head_norm(tape, &x[0], &x[1], &x[2], 1e-2, GROUPED));
    for constant in [Some(0), Some(1), Some(2)] {
        let check = Check { name: "head_norm with a constant", shapes: &shapes, constant };
        check_with(&check, |tape, x| ops::head_norm(tape, &x[0], &x[1], &x[2], 1e-2, GROUPED));
    }
}

const GROUPED: AttentionSpec =
    AttentionSpec { heads: 4, kv_heads: 2, head_dim: 4, scale: 0.7, softcap: None, window: None };
const SINGLE: AttentionSpec =
    AttentionSpec { heads: 1, kv_heads: 1, head_dim: 2, scale: 1.0, softcap: None, window: None };

#[test]
fn rope() {
    let positions = index(&[0, 1, 5, 2, 2]);
    let angles = uniform(50, 6 * 2, 3.0);
    let table: Vec<f64> = angles.chunks(2).flat_map(|a| [a[0].cos(), a[1].cos(), a[0].sin(), a[1].sin()]).collect();
    let table = Arc::new(table);
    let shape = [(5, GROUPED.qkv_width())];
    check("rope", &shape, |tape, x| ops::rope(tape, x[0].clone(), &positions, &table, GROUPED));
    let shapes = [(5, 3), (GROUPED.qkv_width(), 3)];
    check("rope in place of a product", &shapes, |tape, x| {
        ops::rope(tape, ops::linear(tape, &x[0], &x[1], None, None), &positions, &table, GROUPED)
    });
}

#[test]
fn attention() {
    let capped = AttentionSpec { softcap: Some(0.6), ..GROUPED };
    let windowed = AttentionSpec { window: Some(3), ..GROUPED };
    let lists: [(&[usize], AttentionSpec); 7] = [
        (&[3, 2, 1, 4], GROUPED),
        (&[0, 2, 3], GROUPED),
        (&[5], GROUPED),
        (&[1, 1], SINGLE),
        (&[3, 2, 1, 4], capped),
        (&[3, 2, 1, 4], windowed),
        (&[3, 2, 1, 4], AttentionSpec { softcap: Some(0.6), ..windowed }),
    ];
    for (lengths, spec) in lists {
        let ids = [0; 8];
        let responses = || lengths[1..].iter().map(|&len| &ids[..len]);
        // Two lists, so that one must not see the other.
        let packed = PackedLists::pack([(&ids[..lengths[0]], responses()), (&ids[..2], responses())]);
        let segments = index(&Segment::flatten(&packed.segments));
        check(&format!("attention {lengths:?}"), &[(packed.rows(), spec.qkv_width())], |tape, x| {
            ops::attention(tape, &x[0], &segments, spec)
        });
    }
}

#[test]
fn glu() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        check(&format!("glu {activation:?}"), &[(3, 8)], |tape, x| ops::glu(tape, &x[0], activation));
    }
}

#[test]
fn activate() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        check(&format!("activate {activation:?}"), &[(3, 8)], |tape, x| ops::activate(tape, &x[0], activation));
    }
}

#[test]
fn add_and_scaled() {
    check("add of matrices", &[(2, 3), (2, 3)], |tape, x| ops::add(tape, &x[0], &x[1]));
    let factor = Arc::new(vec![-1.7]);
    check("scaled", &[(2, 3)], |tape, x| ops::scaled(tape, x[0].clone(), &factor));
}

#[test]
fn gather_rows() {
    let rows = index(&[4, 0, 2]);
    check("gather_rows", &[(5, 3)], |tape, x| ops::gather_rows(tape, &x[0], &rows, 3));
    check("gather_rows of a value with another consumer", &[(5, 3), (3, 3)], |tape, x| {
        let y = ops::linear(tape, &x[0], &x[1], None, None);
        let some = ops::gather_rows(tape, &y, &rows, 3);
        let others = ops::gather_rows(tape, &y, &index(&[2, 1, 0]), 3);
        ops::linear(tape, &some, &x[1], None, Some(&others))
    });
}

#[test]
fn token_logp() {
    let (rows, ids) = (index(&[0, 2, 2, 3, 2, 0]), index(&[6, 0, 3, 1, 3, 2]));
    let shapes = [(4, 3), (7, 3)];
    check("token_logp", &shapes, |tape, x| ops::token_logp(tape, &x[0], &x[1], None, &rows, &ids, 6));
    check("token_logp with a cap", &shapes, |tape, x| ops::token_logp(tape, &x[0], &x[1], Some(0.8), &rows, &ids, 6));
    for constant in [Some(0), Some(1)] {
        let check = Check { name: "token_logp with a constant", shapes: &shapes, constant };
        check_with(&check, |tape, x| ops::token_logp(tape, &x[0], &x[1], None, &rows, &ids, 6));
    }
}

#[test]
fn weighted_sum_and_add() {
    let (first, second) = (Arc::new(uniform(60, 6, 1.0)), Arc::new(uniform(61, 4, 1.0)));
    check("weighted_sum", &[(6, 1)], |tape, x| ops::weighted_sum(tape, &x[0], &first));
    check("add", &[(2, 3), (4, 1)], |tape, x| {
        ops::add(tape, &ops::weighted_sum(tape, &x[0], &first), &ops::weighted_sum(tape, &x[1], &second))
    });
}

#[test]
fn list_loss() {
    // Ragged responses, an empty one, a list of one, a list without a prompt; rewards with ties.
    let ids = [0; 6];
    let of = |lengths: &[usize]| lengths.iter().map(|&len| &ids[..len]).collect::<Vec<_>>();
    let packed =
        PackedLists::pack([(&ids[..2], of(&[3, 1, 0, 4])), (&ids[..1], of(&[2])), (&ids[..0], of(&[3, 2, 4]))]);
    let rewards = vec![1.0, 0.0, 0.5, 1.0, 0.3, 0.2, 0.8, 0.2];
    let reference = uniform(70, packed.targets(), 1.0);
    for &loss in LossType::ALL {
        for &ties in Ties::ALL {
            let objective = Objective { loss, ties, seed: 9, ..Objective::default() };
            let lists = RankedLists::new(&packed, rewards.clone(), objective, 0.6, 0.5).expect("valid lists");
            let prepared = larpo_core::lists::PreparedLists::new(&lists);
            let counts = (lists.items(), lists.lists());
            check(&format!("list_loss {loss} {ties}"), &[(packed.targets(), 1)], |tape, x| {
                ops::list_loss(tape, &x[0], &reference, &prepared, counts, lists.scale()).total
            });
        }
    }
}

/// The operations checked above are all there are.
#[test]
fn every_operation_is_checked() {
    let checked = [
        "embed",
        "linear",
        "low_rank",
        "add",
        "scaled",
        "rms_norm",
        "layer_norm",
        "head_norm",
        "rope",
        "attention",
        "glu",
        "activate",
        "gather_rows",
        "token_logp",
        "weighted_sum",
        "list_loss",
    ];
    let source = include_str!("../src/ops.rs");
    let written: Vec<&str> =
        source.split("\npub fn ").skip(1).filter_map(|rest| rest.split_once('<')).map(|(name, _)| name).collect();
    assert_eq!(written, checked);
}
