//! The registry of operations: runs every operation of [`Backend`] on chosen inputs and compares it with [`Reference`].
//!
//! A new backend is right when [`run`] passes for every case of [`cases`]. Sizes are chosen where kernels break: 1,
//! primes, one below and above a tile, empty prompts, ragged lists, grouped heads, repeated rows, and a vocabulary of
//! more than one block.
//!
//! An operation stands in one place: a struct of dimensions that implements `Operation`, and one line in `cases_from`.

mod attention;
mod decode;
mod head;
mod inputs;
mod linear;
mod lists;
mod memory;
mod optim;
mod rows;

use crate::backend::Backend;
use crate::reference::Reference;
use inputs::{Inputs, Outputs};
use std::fmt;

/// Largest error of a single-precision backend, relative to the largest magnitude of the tensor.
pub const TOLERANCE: f64 = 1e-5;

/// An operation with dimensions; its `Debug` form is what a report shows.
trait Operation: fmt::Debug + Copy + Send + Sync + 'static {
    /// The methods of [`Backend`] that it is the case of; the first names it.
    const METHODS: &'static [&'static str];

    /// The dimensions to be tried.
    fn cases() -> Vec<Self>;

    /// Floating-point operations by the definition of the result, a multiplication and an addition counting as two.
    fn flops(&self) -> u64;

    /// Largest error relative to the largest magnitude of an output.
    fn tolerance(&self) -> f64 {
        TOLERANCE
    }

    /// Makes the inputs, runs the operation and hands out all it wrote.
    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs;
}

type Run<B> = Box<dyn Fn(&B) -> Outputs + Send + Sync>;

/// One operation on one set of inputs.
pub struct Case<B: Backend> {
    /// The methods of [`Backend`] that the case is for; the first names it.
    pub methods: &'static [&'static str],
    /// Its dimensions.
    pub dims: String,
    /// Largest permitted error, relative to the largest magnitude of an output.
    pub tolerance: f64,
    /// Floating-point operations by the definition of the result.
    pub flops: u64,
    on_backend: Run<B>,
    on_reference: Run<Reference>,
}

/// How a backend's result compares with the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The operation.
    pub op: &'static str,
    /// Its dimensions.
    pub dims: String,
    /// The output with the largest error.
    pub output: &'static str,
    /// That error, relative to the largest magnitude of the output; infinite for a number that is not one.
    pub error: f64,
    /// What was permitted.
    pub tolerance: f64,
    /// Squared error over squared magnitude of the output where that is largest; see [`nmse`].
    pub nmse: f64,
}

impl Outcome {
    /// Whether the error is permitted.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, dims, output, error, tolerance, .. } = self;
        write!(f, "{op}: {dims}: relative error of {output} is {error:.2e}, permitted is {tolerance:.0e}")
    }
}

fn add<B: Backend, O: Operation>(cases: &mut Vec<Case<B>>, seed: usize) {
    for (index, op) in O::cases().into_iter().enumerate() {
        let seed = seed + index;
        cases.push(Case {
            methods: O::METHODS,
            dims: format!("{op:?}"),
            tolerance: op.tolerance(),
            flops: op.flops(),
            on_backend: Box::new(move |b| op.run(&mut Inputs::new(seed), b)),
            on_reference: Box::new(move |b| op.run(&mut Inputs::new(seed), b)),
        });
    }
}

/// Every operation of [`Backend`] with every set of dimensions.
pub fn cases<B: Backend>() -> Vec<Case<B>> {
    cases_from(0)
}

/// The cases with inputs drawn from `seed` on.
fn cases_from<B: Backend>(seed: usize) -> Vec<Case<B>> {
    let mut cases = Vec::new();
    add::<B, memory::Transfer>(&mut cases, seed);
    add::<B, memory::Fill>(&mut cases, seed);
    add::<B, memory::Copy>(&mut cases, seed);
    add::<B, linear::Embed>(&mut cases, seed);
    add::<B, linear::EmbedGrad>(&mut cases, seed);
    add::<B, linear::GatherRows>(&mut cases, seed);
    add::<B, linear::GatherRowsGrad>(&mut cases, seed);
    add::<B, linear::Linear>(&mut cases, seed);
    add::<B, linear::LinearGradX>(&mut cases, seed);
    add::<B, linear::LinearGradW>(&mut cases, seed);
    add::<B, linear::Bf16>(&mut cases, seed);
    add::<B, linear::Precision>(&mut cases, seed);
    add::<B, rows::RmsNorm>(&mut cases, seed);
    add::<B, rows::RmsNormGrad>(&mut cases, seed);
    add::<B, rows::LayerNorm>(&mut cases, seed);
    add::<B, rows::LayerNormGrad>(&mut cases, seed);
    add::<B, rows::HeadNorm>(&mut cases, seed);
    add::<B, rows::HeadNormGrad>(&mut cases, seed);
    add::<B, rows::BroadcastRows>(&mut cases, seed);
    add::<B, rows::Dropout>(&mut cases, seed);
    add::<B, rows::SumRows>(&mut cases, seed);
    add::<B, rows::Rope>(&mut cases, seed);
    add::<B, rows::Glu>(&mut cases, seed);
    add::<B, rows::GluGrad>(&mut cases, seed);
    add::<B, rows::Activate>(&mut cases, seed);
    add::<B, rows::ActivateGrad>(&mut cases, seed);
    add::<B, attention::Attention>(&mut cases, seed);
    add::<B, attention::AttentionGrad>(&mut cases, seed);
    add::<B, head::TokenLogp>(&mut cases, seed);
    add::<B, head::TokenLogpGrad>(&mut cases, seed);
    add::<B, head::WeightedSum>(&mut cases, seed);
    add::<B, head::WeightedSumGrad>(&mut cases, seed);
    add::<B, head::Scale>(&mut cases, seed);
    add::<B, lists::ListLoss>(&mut cases, seed);
    add::<B, optim::SqNorm>(&mut cases, seed);
    add::<B, optim::Clip>(&mut cases, seed);
    add::<B, optim::AdamW>(&mut cases, seed);
    add::<B, decode::KvAppend>(&mut cases, seed);
    add::<B, decode::DecodeAttention>(&mut cases, seed);
    add::<B, head::Softcap>(&mut cases, seed);
    add::<B, decode::Sample>(&mut cases, seed);
    cases
}

/// Runs one case on `backend` and on [`Reference`] and compares all outputs.
pub fn run<B: Backend>(backend: &B, case: &Case<B>) -> Outcome {
    let (got, want) = ((case.on_backend)(backend), (case.on_reference)(&Reference));
    let mut worst = Outcome {
        op: case.methods[0],
        dims: case.dims.clone(),
        output: "nothing",
        error: 0.0,
        tolerance: case.tolerance,
        nmse: 0.0,
    };
    if want.0.is_empty() || got.0.len() != want.0.len() {
        (worst.error, worst.nmse) = (f64::INFINITY, f64::INFINITY);
        return worst;
    }
    for (got, want) in got.0.iter().zip(&want.0) {
        let error = match want.exact {
            true if got.values == want.values => 0.0,
            true => f64::INFINITY,
            false => relative_error(&got.values, &want.values),
        };
        if error >= worst.error {
            (worst.output, worst.error) = (want.name, error);
        }
        worst.nmse = worst.nmse.max(if want.exact { error } else { nmse(&got.values, &want.values) });
    }
    worst
}

/// Whether two runs of a case on `backend` give the same numbers to the last bit.
pub fn repeats<B: Backend>(backend: &B, case: &Case<B>) -> bool {
    let bits = || -> Vec<u64> {
        (case.on_backend)(backend).0.iter().flat_map(|output| &output.values).map(|v| v.to_bits()).collect()
    };
    bits() == bits()
}

/// Squared error over the squared magnitude of `want`; infinite where lengths differ or a number is not finite.
pub fn nmse(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().chain(want).any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let error: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
    let magnitude: f64 = want.iter().map(|v| v * v).sum();
    if error == 0.0 { 0.0 } else { error / magnitude }
}

/// Largest difference over the largest magnitude of `want`; infinite where lengths differ or a number is not finite.
pub fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().chain(want).any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let difference = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let magnitude = want.iter().map(|v| v.abs()).fold(0.0, f64::max);
    if difference == 0.0 { 0.0 } else { difference / magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The right results of other inputs must not pass, so every operation's outputs are compared.
    #[test]
    fn results_of_other_inputs_fail() {
        let mut caught = BTreeMap::new();
        for (case, other) in cases_from(0).into_iter().zip(cases_from(100_000)) {
            let op = case.methods[0];
            if caught.get(op) == Some(&true) {
                continue;
            }
            let mixed = Case::<Reference> { on_backend: other.on_backend, ..case };
            *caught.entry(op).or_insert(false) |= !run(&Reference, &mixed).passed();
        }
        // Filling does not depend on what was there before, the precision of products on no input.
        for op in ["fill", "multiplies_in_half"] {
            assert_eq!(caught.remove(op), Some(false), "{op}");
        }
        assert!(caught.values().all(|caught| *caught), "{caught:?}");
    }

    #[test]
    fn errors_are_relative_to_the_largest_number() {
        assert_eq!(relative_error(&[1.0, 4.5], &[1.0, 4.0]), 0.125);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_error(&[1e-30], &[0.0]), f64::INFINITY);
        assert_eq!(relative_error(&[f64::NAN], &[f64::NAN]), f64::INFINITY);
        assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!((nmse(&[4.0, 1.0], &[4.0, 3.0]), nmse(&[0.0], &[0.0])), (4.0 / 25.0, 0.0));
        assert_eq!((nmse(&[1.0], &[0.0]), nmse(&[f64::NAN], &[1.0])), (f64::INFINITY, f64::INFINITY));
    }
}
