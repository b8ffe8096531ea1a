//! AdamW over all parameters, with global-norm clipping, learning-rate schedules and loss scaling.

use crate::backend::{AdamWSpec, Backend};
use crate::error::Error;
use crate::finite::blame_gradients;
use crate::model::Transformer;
use crate::tape::Gradients;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the learning rate moves after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls linearly to 0 at the last step.
    #[default]
    Linear,
    /// Falls along half a cosine to 0 at the last step (Loshchilov & Hutter 2017).
    Cosine,
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "constant" | "constant_with_warmup" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            _ => Err(Error::setting("lr_scheduler_type", name, "constant, linear or cosine")),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        })
    }
}

impl Schedule {
    /// Factor on the learning rate of update `step` (from 0) of `total`, after `warmup` updates of linear warm-up.
    ///
    /// As Hugging Face's schedulers, except that the first warm-up update is `1/warmup` of the rate, not 0.
    pub fn factor(self, step: u64, warmup: u64, total: u64) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => (1.0 - progress).max(0.0),
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
        }
    }
}

/// Settings of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; norms have none.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 does not clip.
    pub max_grad_norm: f64,
    /// Schedule after warm-up.
    pub schedule: Schedule,
    /// Share of the updates spent on linear warm-up.
    pub warmup_ratio: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            schedule: Schedule::Linear,
            warmup_ratio: 0.0,
        }
    }
}

/// The factor on the loss that keeps the gradients within half precision (dynamic loss scaling, Micikevicius et al. 2018): half
/// as large after gradients that were not finite, twice as large after [`LossScale::PATIENCE`] updates without any. A power of
/// two, so that nothing else is rounded in another way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f64,
    /// Updates since it last changed.
    updates: u32,
}

impl Default for LossScale {
    /// 65,536, as PyTorch begins with.
    fn default() -> Self {
        Self::new(16)
    }
}

impl LossScale {
    /// Updates after which a larger one is tried.
    pub const PATIENCE: u32 = 2000;
    /// Exponent of the largest one.
    const MAX_EXPONENT: u32 = 24;

    /// 2 to the `exponent`.
    pub fn new(exponent: u32) -> Self {
        Self { scale: 2f64.powi(exponent as i32), updates: 0 }
    }

    /// The factor.
    pub fn factor(&self) -> f64 {
        self.scale
    }

    /// After an update.
    fn held(&mut self) {
        self.updates += 1;
        if self.updates >= Self::PATIENCE && self.scale < 2f64.powi(Self::MAX_EXPONENT as i32) {
            *self = Self { scale: 2.0 * self.scale, updates: 0 };
        }
    }

    /// After gradients that are not finite; whether that may have been this factor's doing, and a smaller one mends it.
    fn lower(&mut self) -> bool {
        let scaled = self.scale > 1.0;
        if scaled {
            *self = Self { scale: 0.5 * self.scale, updates: 0 };
        }
        scaled
    }
}

/// Moments and counters of AdamW.
pub struct AdamW<B: Backend> {
    config: OptimizerConfig,
    total_steps: u64,
    step: u64,
    /// Of the loss that the gradients belong to.
    loss_scale: Option<LossScale>,
    moments: Vec<Option<(B::Buffer, B::Buffer)>>,
}

/// An optimizer's moments and counters, to be stored beside a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerState {
    /// Settings.
    pub config: OptimizerConfig,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Updates made.
    pub step: u64,
    /// The factor on the loss, where products are in half precision.
    pub loss_scale: Option<LossScale>,
    /// First and second moment of every parameter; none where it never had a gradient.
    pub moments: Vec<Option<Moments>>,
}

/// First and second moment of a parameter, row-major.
pub type Moments = (Vec<f32>, Vec<f32>);

/// What one update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
}

impl<B: Backend> AdamW<B> {
    /// An optimizer for the parameters of `model` that will make `total_steps` updates.
    pub fn new(model: &Transformer<B>, config: OptimizerConfig, total_steps: u64) -> Self {
        let moments = (0..model.parameters().len()).map(|_| None).collect();
        let loss_scale = model.backend().multiplies_in_half().then(LossScale::default);
        Self { config, total_steps, step: 0, loss_scale, moments }
    }

    /// Moments and counters on the host.
    pub fn state(&self, backend: &B) -> OptimizerState {
        let download = |x: &B::Buffer| {
            let mut values = vec![0f32; backend.len(x)];
            backend.download(x, &mut values);
            values
        };
        let moments = self.moments.iter().map(|m| m.as_ref().map(|(m, v)| (download(m), download(v)))).collect();
        let &Self { config, total_steps, step, loss_scale, .. } = self;
        OptimizerState { config, total_steps, step, loss_scale, moments }
    }

    /// The optimizer that [`AdamW::state`] described.
    ///
    /// # Errors
    /// Moments of other shapes than the model's parameters.
    pub fn restore(model: &Transformer<B>, state: OptimizerState) -> Result<Self, Error> {
        let b = model.backend();
        if state.moments.len() != model.parameters().len() {
            let problem = format!("{} moments for {} parameters", state.moments.len(), model.parameters().len());
            return Err(Error::Tensor { name: "optimizer state".into(), problem });
        }
        for (parameter, moments) in model.parameters().iter().zip(&state.moments) {
            let size = parameter.rows * parameter.cols;
            if moments.as_ref().is_some_and(|(m, v)| (m.len(), v.len()) != (size, size)) {
                let problem = format!("moments of another size than the parameter's {size}");
                return Err(Error::Tensor { name: parameter.tensor_names(), problem });
            }
        }
        // Each is dropped as soon as the backend has it: not all of them are held twice.
        let moments = state.moments.into_iter().map(|m| m.map(|(m, v)| (b.upload(&m), b.upload(&v)))).collect();
        let loss_scale = b.multiplies_in_half().then(|| state.loss_scale.unwrap_or_default());
        Ok(Self { config: state.config, total_steps: state.total_steps, step: state.step, loss_scale, moments })
    }

    /// Factor on the loss before its gradients are taken; 1 where products are in single precision.
    pub fn loss_scale(&self) -> f64 {
        self.loss_scale.map_or(1.0, |scale| scale.factor())
    }

    /// Scales the loss from here on, or no longer.
    pub fn set_loss_scale(&mut self, scale: Option<LossScale>) {
        self.loss_scale = scale;
    }

    /// Halves the factor on the loss; whether there was one to halve.
    pub(crate) fn lower_loss_scale(&mut self) -> bool {
        self.loss_scale.as_mut().is_some_and(LossScale::lower)
    }

    /// Updates made so far.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Learning rate of the next update.
    pub fn learning_rate(&self) -> f64 {
        let warmup = (self.config.warmup_ratio * self.total_steps as f64).ceil() as u64;
        self.config.learning_rate * self.config.schedule.factor(self.step, warmup, self.total_steps)
    }

    /// `(2)`: the global norm of the gradients, without the [factor](AdamW::loss_scale) on the loss that they have, and what takes
    /// it away and clips them, for [`AdamW::apply`].
    pub fn clip(&self, model: &Transformer<B>, gradients: &Gradients<B>) -> B::Buffer {
        let b = model.backend();
        let reached: Vec<&B::Buffer> = (0..self.moments.len()).filter_map(|index| gradients.get(index)).collect();
        let mut squares = b.alloc(reached.len().max(1));
        b.fill(&mut squares, 0.0);
        for (at, g) in reached.into_iter().enumerate() {
            b.sq_norm(g, &mut squares, at);
        }
        let mut clip = b.alloc(2);
        let scale = self.loss_scale();
        b.clip(&squares, scale * self.config.max_grad_norm, &mut clip);
        if scale != 1.0 {
            let mut inverse = b.alloc(1);
            b.fill(&mut inverse, 1.0 / scale);
            b.scale(&mut clip, &inverse);
        }
        clip
    }

    /// Updates every parameter that has a gradient, with what [`AdamW::clip`] gave and the norm that was read of it.
    ///
    /// # Errors
    /// A gradient that is not a finite number; the parameters are then unchanged.
    pub fn apply(
        &mut self,
        model: &mut Transformer<B>,
        gradients: &Gradients<B>,
        clip: &B::Buffer,
        grad_norm: f64,
    ) -> Result<UpdateReport, Error> {
        if !grad_norm.is_finite() {
            return Err(blame_gradients(model, gradients, self.step + 1));
        }
        let b = model.backend().clone();
        let learning_rate = self.learning_rate();
        self.step += 1;
        if let Some(scale) = &mut self.loss_scale {
            scale.held();
        }
        let decays: Vec<bool> = model.parameters().iter().map(|p| p.decay).collect();
        for (index, decay) in decays.into_iter().enumerate() {
            let Some(g) = gradients.get(index) else { continue };
            let (m, v) = self.moments[index].get_or_insert_with(|| {
                let (mut m, mut v) = (b.alloc(b.len(g)), b.alloc(b.len(g)));
                b.fill(&mut m, 0.0);
                b.fill(&mut v, 0.0);
                (m, v)
            });
            let spec = AdamWSpec {
                learning_rate,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay: if decay { self.config.weight_decay } else { 0.0 },
                step: self.step,
            };
            b.adamw(&spec, model.parameters_mut().value_mut(index), g, m, v, clip);
        }
        Ok(UpdateReport { grad_norm, learning_rate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_scale_grows_with_patience_and_falls_at_once() {
        let mut scale = LossScale::default();
        assert_eq!(scale.factor(), 65536.0);
        (0..LossScale::PATIENCE - 1).for_each(|_| scale.held());
        assert_eq!(scale.factor(), 65536.0);
        scale.held();
        assert_eq!(scale.factor(), 131072.0);
        assert!(scale.lower());
        assert_eq!(scale.factor(), 65536.0);
        assert!((0..16).all(|_| scale.lower()) && scale.factor() == 1.0 && !scale.lower());
        (0..40 * LossScale::PATIENCE).for_each(|_| scale.held());
        assert_eq!(scale.factor(), 2f64.powi(24), "gradients are not scaled beyond it");
    }

    #[test]
    fn schedules_follow_their_formulas() {
        assert_eq!(Schedule::Constant.factor(0, 4, 10), 0.25);
        assert_eq!(Schedule::Constant.factor(9, 4, 10), 1.0);
        assert_eq!(Schedule::Linear.factor(4, 4, 10), 1.0);
        assert_eq!(Schedule::Linear.factor(7, 4, 10), 0.5);
        assert!((Schedule::Cosine.factor(7, 4, 10) - 0.5).abs() < 1e-15);
        assert_eq!(Schedule::Cosine.factor(10, 0, 10), 0.0);
        assert_eq!(Schedule::Linear.factor(20, 0, 10), 0.0);
    }
}
