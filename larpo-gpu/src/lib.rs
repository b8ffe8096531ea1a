#![doc = include_str!("../README.md")]
#![deny(missing_docs, unsafe_code)]

mod bf16;
mod buffer;
mod device;
mod error;
pub mod kernels;
mod recorder;
mod shader;

pub use bf16::{Bf16, Weight};
pub use buffer::{Buffer, Element};
pub use device::{Adapter, Choice, Gpu, choose};
pub use error::Error;
pub use recorder::{Recorder, Stats};
pub use shader::{Access, Checks, PARAMS_BYTES, Shader};

/// Whether a kernel overwrites its destination or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `dst = result`; the old contents are not read.
    Set,
    /// `dst += result`.
    Add,
}

impl Store {
    /// 1 for [`Store::Add`]: the flag that the kernels take.
    pub(crate) fn flag(self) -> u32 {
        u32::from(self == Self::Add)
    }
}

// The README's examples are compiled and run; this one says which wgpu the buffers and devices belong to.
pub use wgpu;
