//! The list losses by the batch, on random scores.

use crate::args::BenchArgs;
use crate::error::{Error, Result};
use crate::machine::timed;
use larpo_core::cpu::par;
use larpo_core::objective::{Objective, ObjectiveError, RankedBatch};
use larpo_core::rng::{CounterRng, Purpose};

/// Most lists that are compared with the losses in `f64` before anything is timed, and most pairs in them: in `f64` every
/// loss is what the paper writes, which of some takes time in proportion to the pairs.
const COMPARED: usize = 4096;
const COMPARED_PAIRS: usize = 100_000_000;
/// Of a loss relative to itself, of a derivative relative to the largest of its list.
const TOLERANCE: f64 = 1e-5;
/// Untimed evaluations; the first is the one that is compared.
const WARM_UPS: usize = 2;

/// Ranked lists of one length and the room for their results.
pub struct Batch {
    objective: Objective,
    length: usize,
    gamma: Vec<f32>,
    pub loss: Vec<f32>,
    d_gamma: Vec<f32>,
}

impl Batch {
    /// `--lists` lists of `--k` items, γ uniform in [-3, 3).
    pub fn new(args: &BenchArgs) -> Self {
        let (lists, length) = (args.lists(), args.num_generations);
        let random = CounterRng::new(args.common.seed, Purpose::Bench);
        let mut gamma = vec![0.0; lists * length];
        par::rows(&mut gamma, length, |first, rows| {
            for (list, row) in rows.chunks_mut(length).enumerate() {
                for (item, g) in row.iter_mut().enumerate() {
                    *g = (6.0 * random.uniform([(first + list) as u32, item as u32, 0, 0]) - 3.0) as f32;
                }
            }
        });
        let objective = Objective { loss: args.loss_type, ..Objective::default() };
        Self { objective, length, loss: vec![f32::NAN; lists], d_gamma: vec![f32::NAN; gamma.len()], gamma }
    }

    /// γ in, loss and dγ out.
    pub fn bytes(&self) -> f64 {
        (8 * self.gamma.len() + 4 * self.loss.len()) as f64
    }

    /// Pairs of items of the same list.
    pub fn pairs(&self) -> f64 {
        self.gamma.len() as f64 * (self.length - 1) as f64 / 2.0
    }

    fn evaluate(&mut self) -> Result<()> {
        let batch = RankedBatch::uniform(&self.gamma, self.length);
        self.objective.evaluate_batch(&batch, &mut self.loss, &mut self.d_gamma).map_err(request)
    }

    /// Compares lists from all over the batch with their evaluation in `f64`.
    pub fn compare(&self) -> Result<()> {
        let m = self.length;
        let every = self.loss.len().div_ceil((COMPARED_PAIRS / (m * m)).clamp(1, COMPARED));
        let compared: Vec<usize> = (0..self.loss.len()).step_by(every).collect();
        let wide = |x: &[f32]| -> Vec<f64> {
            compared.iter().flat_map(|list| &x[list * m..][..m]).map(|&x| f64::from(x)).collect()
        };
        let (gamma, d_gamma) = (wide(&self.gamma), wide(&self.d_gamma));
        let (mut want, mut want_d) = (vec![0.0; compared.len()], vec![0.0; gamma.len()]);
        let batch = RankedBatch::uniform(&gamma, m);
        self.objective.evaluate_batch_f64(&batch, &mut want, &mut want_d).map_err(request)?;
        for (at, &list) in compared.iter().enumerate() {
            let (got, want) = (f64::from(self.loss[list]), want[at]);
            let (d, want_d) = (&d_gamma[at * m..][..m], &want_d[at * m..][..m]);
            let largest = want_d.iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
            let close = (got - want).abs() <= TOLERANCE * want
                && d.iter().zip(want_d).all(|(d, want)| (d - want).abs() <= TOLERANCE * largest);
            if !close {
                let problem = format!("loss {got} and gradient {d:?}, in double precision {want} and {want_d:?}");
                return Err(Error::request(format!("bench lists: list {list} has {problem}; not timed")));
            }
        }
        Ok(())
    }

    /// Median seconds of `reps` evaluations, after the results of the first have been compared.
    pub fn time(&mut self, reps: usize) -> Result<f64> {
        self.evaluate()?;
        self.compare()?;
        timed(WARM_UPS - 1, reps, || self.evaluate())
    }
}

fn request(error: ObjectiveError) -> Error {
    Error::request(format!("bench lists: {error}"))
}
