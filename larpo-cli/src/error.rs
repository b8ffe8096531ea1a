//! The one error type of the command line: what the libraries report, files of a run, and requests that make no sense.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The codes that `larpo` exits with.
pub mod exit_code {
    /// The verb did its work.
    pub const OK: u8 = 0;
    /// The run failed, or was refused before it began.
    pub const FAILURE: u8 = 1;
    /// The command line or the configuration file cannot be read.
    pub const USAGE: u8 = 2;
    /// A bug in larpo; Rust's own code of a panic.
    pub const BUG: u8 = 101;
    /// Ctrl-C: 128 and the number of SIGINT, as shells have it.
    pub const INTERRUPTED: u8 = 130;
}

/// Why a verb could not do its work. Messages are complete and may be printed as they are.
#[derive(Debug)]
pub enum Error {
    /// A file, tokenizer, record or rule.
    Data(larpo_data::Error),
    /// Model, sampling, training.
    Core(larpo_core::Error),
    /// A file of the run.
    Io {
        /// Which file.
        path: PathBuf,
        /// What was attempted, as in "cannot {action}".
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The device that computed failed.
    Device {
        /// Which one.
        device: String,
        /// What happened to it.
        source: larpo_gpu::Error,
        /// What to do about it, where more is known than the failure.
        mend: Option<String>,
    },
    /// A request that cannot be met, with the mend.
    Request(String),
    /// The user stopped the run; the message says what is left of it.
    Interrupted(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(_) => exit_code::INTERRUPTED,
            Self::Data(_) | Self::Core(_) | Self::Io { .. } | Self::Device { .. } | Self::Request(_) => {
                exit_code::FAILURE
            }
        }
    }

    /// Whether a file could not be written because the disk, or what the user may take of it, is full.
    pub fn is_full_disk(&self) -> bool {
        let (Self::Io { source, .. } | Self::Data(larpo_data::Error::Io { source, .. })) = self else { return false };
        matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    }

    /// A request that cannot be met.
    pub fn request(message: impl Into<String>) -> Self {
        Self::Request(message.into())
    }

    /// The run ended early, as asked, at a place it can go on from.
    pub fn stopped(at: impl Into<String>) -> Self {
        let at = at.into();
        let next = "the same command with --resume_from_checkpoint latest goes on from there";
        Self::Interrupted(format!("stopped as asked ({at}); {next}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(error) => error.fmt(f),
            Self::Core(error) => error.fmt(f),
            Self::Io { path, action, source } => write!(f, "cannot {action} {}: {source}", path.display()),
            Self::Device { device, source, mend: Some(mend) } => write!(f, "{device}: {source}; {mend}"),
            Self::Device { device, source, mend: None } => write!(f, "{device}: {source}; {}", usual_mend(source)),
            Self::Request(message) | Self::Interrupted(message) => f.write_str(message),
        }
    }
}

/// What to do about a device that failed.
fn usual_mend(source: &larpo_gpu::Error) -> &'static str {
    use larpo_gpu::Error::{Binding, OutOfMemory, TooLarge};
    match source {
        OutOfMemory { .. } => {
            "take less memory with a smaller --per_device_train_batch_size or --max_length, or with --gradient_checkpointing \
             (`larpo plan` with the same command line says what it needs), or take --device cpu"
        }
        Binding { .. } => {
            "take a smaller --per_device_train_batch_size (with more --gradient_accumulation_steps a step stays what it is) or \
             --max_length, or take --device cpu"
        }
        TooLarge { .. } => "take --device cpu",
        _ => {
            "what was computed since the last checkpoint is lost, all checkpoints are whole: a run that can go on does so with \
             --resume_from_checkpoint latest, if need be with --device cpu; with --on_device_lost retry it does so by itself"
        }
    }
}

impl std::error::Error for Error {}

impl From<larpo_data::Error> for Error {
    fn from(error: larpo_data::Error) -> Self {
        Self::Data(error)
    }
}

impl From<larpo_core::Error> for Error {
    fn from(error: larpo_core::Error) -> Self {
        Self::Core(error)
    }
}
