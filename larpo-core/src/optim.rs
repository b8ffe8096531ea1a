//! AdamW over all parameters, with global-norm clipping and learning-rate schedules.

use crate::backend::{AdamWSpec, Backend};
use crate::error::Error;
use crate::finite::blame_gradients;
use crate::model::{Parameters, Transformer};
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

/// Moments and counters of AdamW.
pub struct AdamW<B: Backend> {
    config: OptimizerConfig,
    total_steps: u64,
    step: u64,
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
    /// An optimizer for `parameters` that will make `total_steps` updates.
    pub fn new(parameters: &Parameters<B>, config: OptimizerConfig, total_steps: u64) -> Self {
        Self { config, total_steps, step: 0, moments: (0..parameters.len()).map(|_| None).collect() }
    }

    /// Moments and counters on the host.
    pub fn state(&self, backend: &B) -> OptimizerState {
        let download = |x: &B::Buffer| {
            let mut values = vec![0f32; backend.len(x)];
            backend.download(x, &mut values);
            values
        };
        let moments = self.moments.iter().map(|m| m.as_ref().map(|(m, v)| (download(m), download(v)))).collect();
        OptimizerState { config: self.config, total_steps: self.total_steps, step: self.step, moments }
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
        Ok(Self { config: state.config, total_steps: state.total_steps, step: state.step, moments })
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

    /// Clips the gradients by their global norm and updates every parameter that has one.
    ///
    /// # Errors
    /// A gradient that is not a finite number; the parameters are then unchanged.
    pub fn update(&mut self, model: &mut Transformer<B>, gradients: &Gradients<B>) -> Result<UpdateReport, Error> {
        let clip = self.clip(model, gradients);
        let norm = model.backend().read(&clip)[0];
        self.apply(model, gradients, &clip, norm)
    }

    /// The global norm of the gradients and the factor that clips it, for [`AdamW::apply`].
    pub(crate) fn clip(&self, model: &Transformer<B>, gradients: &Gradients<B>) -> B::Buffer {
        let b = model.backend();
        let reached: Vec<&B::Buffer> = (0..self.moments.len()).filter_map(|index| gradients.get(index)).collect();
        let mut squares = b.alloc(reached.len().max(1));
        b.fill(&mut squares, 0.0);
        for (at, g) in reached.into_iter().enumerate() {
            b.sq_norm(g, &mut squares, at);
        }
        let mut clip = b.alloc(2);
        b.clip(&squares, self.config.max_grad_norm, &mut clip);
        clip
    }

    /// [`AdamW::update`] with what [`AdamW::clip`] gave, and the norm that was read of it.
    pub(crate) fn apply(
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
