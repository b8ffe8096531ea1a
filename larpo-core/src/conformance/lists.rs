//! List losses on the device.

use super::Operation;
use super::inputs::{Inputs, Outputs, Shape, blank, only, pack};
use crate::backend::Backend;
use crate::lists::RankedLists;
use crate::objective::{LipoLabels, LogBase, LossType, Objective, Ties};

const SHAPES: [Shape; 5] = [
    &[(3, &[1])],
    &[(1, &[1, 1])],
    &[(4, &[7, 3])],
    // Ragged, with an empty response, a list of one, and a list without a prompt.
    &[(5, &[3, 1, 4, 0, 2]), (2, &[6]), (0, &[2, 5, 1]), (7, &[4, 4, 4, 4, 4, 4, 4, 4, 4, 4])],
    // Longer than a tile in every direction.
    &[(1, &[65, 64, 63, 17, 16, 15, 1, 2, 3, 5, 7, 11, 13, 130, 90, 80, 70, 60]), (1, &[5, 5]), (1, &[9, 9, 9])],
];

/// A loss over lists whose rewards are all different, tied in levels, or all equal.
#[derive(Clone, Copy, Debug)]
pub struct ListLoss {
    objective: Objective,
    shape: Shape,
    /// Distinct rewards; 0 makes all of them different.
    levels: usize,
}

impl Operation for ListLoss {
    const METHODS: &'static [&'static str] = &["list_loss", "upload_lists"];

    fn cases() -> Vec<Self> {
        let mut objectives = Vec::new();
        for &loss in LossType::ALL {
            for &ties in Ties::ALL {
                objectives.push(Objective { loss, ties, seed: 3, ..Objective::default() });
            }
        }
        let lipo = Objective { loss: LossType::LipoLambda, ..Objective::default() };
        objectives.push(Objective { labels: LipoLabels::Reward, ..lipo });
        objectives.push(Objective { log_base: LogBase::Two, ..lipo });
        let mut cases = Vec::new();
        for objective in objectives {
            for shape in SHAPES {
                cases.extend([0, 1, 3].map(|levels| Self { objective, shape, levels }));
            }
        }
        cases
    }

    fn flops(&self) -> u64 {
        2 * pack(self.shape).targets() as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let packed = pack(self.shape);
        let reward = |x: &mut Inputs| match self.levels {
            0 => x.uniform(),
            levels => (x.uniform() * levels as f64).floor() / levels as f64,
        };
        let rewards: Vec<f64> = (0..packed.items()).map(|_| reward(x)).collect();
        let lists = RankedLists::new(&packed, rewards, self.objective, 0.3, 0.25)
            .expect("finite rewards, one a response, and a positive beta");
        // Policy and reference are close to each other and far from zero, as they are in training.
        let reference: Vec<f32> = x.floats(packed.targets(), 3.0).iter().map(|v| v - 5.0).collect();
        let policy: Vec<f32> = reference.iter().zip(x.floats(packed.targets(), 1.0)).map(|(r, d)| r + d).collect();
        let (mut gamma, mut loss) = (blank(b, packed.items()), blank(b, packed.lists()));
        let mut d_logp = blank(b, packed.targets());
        let (policy, reference) = (b.upload(&policy), b.upload(&reference));
        b.list_loss(&policy, &reference, &b.upload_lists(&lists), &mut gamma, &mut loss, &mut d_logp);
        only(b, "gamma", &gamma).and(b, "loss", &loss).and(b, "d_logp", &d_logp)
    }
}
