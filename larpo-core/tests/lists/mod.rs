//! Lists and option combinations shared by the tests of the objectives.
#![allow(dead_code, reason = "each test file uses its part")]

use larpo_core::objective::{LipoLabels, LogBase, LossType, Objective, Ties};

/// Every loss with every tie rule; LiPO with all its options.
pub fn objectives() -> Vec<Objective> {
    let mut all = Vec::new();
    for &loss in LossType::ALL {
        for &ties in Ties::ALL {
            let plain = Objective { loss, ties, seed: 11, ..Objective::default() };
            if loss != LossType::LipoLambda {
                all.push(plain);
                continue;
            }
            for &labels in LipoLabels::ALL {
                for &log_base in LogBase::ALL {
                    all.push(Objective { labels, log_base, ..plain });
                }
            }
        }
    }
    all
}

/// γ and rewards of one list, with a mask.
#[derive(Debug, Clone)]
pub struct TestList {
    pub gamma: Vec<f64>,
    pub rewards: Vec<f64>,
    pub mask: Option<Vec<bool>>,
}

impl TestList {
    pub fn new(gamma: &[f64], rewards: &[f64]) -> Self {
        Self { gamma: gamma.to_vec(), rewards: rewards.to_vec(), mask: None }
    }

    /// Loss and gradient.
    pub fn evaluate(&self, objective: &Objective) -> (Option<f64>, Vec<f64>) {
        let mut d_gamma = vec![f64::NAN; self.gamma.len()];
        let loss = objective
            .evaluate(&self.gamma, &self.rewards, self.mask.as_deref(), &mut d_gamma)
            .unwrap_or_else(|e| panic!("{objective:?} on {self:?}: {e}"));
        (loss, d_gamma)
    }

    /// The same list without its masked items.
    pub fn compact(&self) -> Self {
        let mask = self.mask.clone().unwrap_or_else(|| vec![true; self.gamma.len()]);
        let kept = |values: &[f64]| values.iter().zip(&mask).filter(|(_, m)| **m).map(|(v, _)| *v).collect();
        Self { gamma: kept(&self.gamma), rewards: kept(&self.rewards), mask: None }
    }
}

/// Uniform numbers in (-1, 1) from a linear congruential generator (Knuth's MMIX constants).
pub struct Uniform(pub u64);

impl Uniform {
    pub fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Lists of 2 to 9 items: all rewards different, rewards 0/1, three levels, and each with some slots masked. The γ of
/// a list are at least 0.01 apart, so that LiPO's ranks do not change under a small step.
pub fn lists() -> Vec<TestList> {
    let mut uniform = Uniform(2024);
    let mut all = Vec::new();
    for m in 2..10 {
        for levels in [0, 2, 3] {
            for masked in [false, true] {
                let mut list = TestList { gamma: Vec::new(), rewards: Vec::new(), mask: None };
                while list.gamma.len() < m {
                    let g = 3.0 * uniform.draw();
                    if list.gamma.iter().all(|other| (other - g).abs() > 0.01) {
                        list.gamma.push(g);
                    }
                }
                list.rewards = (0..m)
                    .map(|_| {
                        let u = uniform.draw();
                        if levels == 0 { u } else { ((u + 1.0) / 2.0 * levels as f64).floor() / 2.0 }
                    })
                    .collect();
                if masked {
                    list.mask = Some((0..m).map(|_| uniform.draw() > -0.4).collect());
                }
                all.push(list);
            }
        }
    }
    all
}
