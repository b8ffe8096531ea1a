//! What can go wrong that is not a bug of the caller.

use std::fmt;

/// A failure of the world: no adapter, too large a tensor, no memory, a lost device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No adapter fits the choice.
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters there are, one line each.
        found: Vec<String>,
    },
    /// The adapter would not give a device.
    NoDevice {
        /// The adapter.
        adapter: String,
        /// The driver's reason.
        reason: String,
    },
    /// The adapter has no matrix units that multiply in half precision as they should.
    NoHalf {
        /// The adapter.
        adapter: String,
        /// What is missing, or what came out wrong.
        reason: String,
    },
    /// A tensor is larger than a buffer of this device may be, or than a `u32` can index.
    TooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// Largest size, in bytes.
        limit: u64,
    },
    /// A kernel that takes its operands whole met one that is larger than one binding of this device may be.
    Binding {
        /// The kernel's entry point.
        kernel: &'static str,
        /// Bytes of the operand.
        bytes: u64,
        /// Largest size of a binding, in bytes.
        limit: u64,
    },
    /// The device has no memory left for a tensor.
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that this recorder's buffers hold already, those kept for reuse included.
        held: u64,
    },
    /// The device was lost (driver reset, unplugged, time-out); nothing on it can be read any more.
    Lost(String),
    /// The driver reported an error.
    Driver(String),
    /// Numbers that are passed for use as indices do not fit what they index.
    Index(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAdapter { wanted, found } if found.is_empty() => {
                write!(f, "no {wanted}: this machine shows no Vulkan, Metal or DX12 adapter")
            }
            Self::NoAdapter { wanted, found } => write!(f, "no {wanted}; there are: {}", found.join(", ")),
            Self::NoDevice { adapter, reason } => write!(f, "{adapter} gives no device: {reason}"),
            Self::NoHalf { adapter, reason } => write!(f, "{adapter} multiplies in single precision only: {reason}"),
            Self::TooLarge { bytes, limit } => {
                write!(f, "a tensor of {bytes} bytes is above this device's limit of {limit} bytes")
            }
            Self::Binding { kernel, bytes, limit } => {
                write!(f, "{kernel}: a tensor of {bytes} bytes is above this device's limit of {limit} bytes a binding")
            }
            Self::OutOfMemory { bytes, held } => {
                write!(f, "out of device memory: {bytes} bytes more than the {held} held already")
            }
            Self::Lost(reason) => write!(f, "the device was lost: {reason}"),
            Self::Driver(message) => write!(f, "the driver reports: {message}"),
            Self::Index(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}
