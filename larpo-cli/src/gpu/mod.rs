//! The GPU as a [`Backend`](larpo_core::backend::Backend): core's trait over the kernels of larpo-gpu.
//!
//! Thin on purpose: every method records one kernel or a few, nothing is computed on the host in its place, and only
//! `download`, `read` and `sample` wait for the device. All clones share one recorder, so that the kernels of a step go to
//! the device in few submissions.
//!
//! **When the device fails** (it is lost, or has no memory left) the backend keeps the first error and does nothing any more:
//! results are unspecified arrays and everything that is read is NaN. The methods of the trait return no `Result`, because on
//! a device only reading can tell whether anything worked; and what is read is looked at already: a loss, a sampled token or
//! a weight that is not a number ends a run before an update, a row or a checkpoint is made of it. So nothing wrong is kept,
//! and [`GpuBackend::fault`] then says what the cause was; the verbs report it in place of what followed from it.

mod backend;
pub mod bench;
mod buffer;
pub mod check;
mod choice;
pub mod tuning;

pub use backend::GpuBackend;
pub use buffer::{Buffer, Index, Lists};
pub use choice::{Chosen, Device, choose, open};
