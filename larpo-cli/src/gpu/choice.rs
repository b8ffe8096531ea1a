//! `--device`: which device computes, and why.

use super::{GpuBackend, tuning};
use crate::args::CommonArgs;
use crate::error::{Error, Result};
use larpo_gpu::{Adapter, Checks, Choice, Gpu};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A discrete GPU, else an integrated one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or the adapter that LARPO_ADAPTER names; with a number that one of `larpo gpu list`.
    Gpu(Option<usize>),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(None)),
            _ => match text.strip_prefix("gpu:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Gpu(Some(number))),
                _ => Err("expected auto, cpu, gpu, or gpu:N with the number of `larpo gpu list`".into()),
            },
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(None) => f.write_str("gpu"),
            Self::Gpu(Some(number)) => write!(f, "gpu:{number}"),
        }
    }
}

/// What computes.
pub enum Chosen {
    /// The CPU.
    Cpu,
    /// A GPU.
    Gpu(GpuBackend),
}

/// Opens the device that `--device` stands for, with products as `--gpu_precision` and `--autotune` have them, and says on stderr
/// which one it is.
///
/// # Errors
/// An adapter that is asked for and is not there, gives no device, or does not multiply in half precision; half precision on a
/// CPU.
pub fn choose(args: &CommonArgs) -> Result<Chosen> {
    let half = args.half();
    let chosen = match args.device {
        Device::Cpu => Chosen::Cpu,
        Device::Auto => auto(half)?,
        Device::Gpu(number) => {
            let backend = open(number, half)?;
            say!("device: {}{}", backend.gpu(), precision(half));
            Chosen::Gpu(backend)
        }
    };
    match &chosen {
        Chosen::Cpu if half => {
            return Err(Error::request(
                "--gpu_precision f16: the CPU computes in single precision; leave the flag out, or give --device gpu",
            ));
        }
        Chosen::Gpu(backend) if args.tunes() => tuning::tune(backend.gpu()),
        _ => {}
    }
    Ok(chosen)
}

fn precision(half: bool) -> &'static str {
    if half { ", products in half precision" } else { "" }
}

/// Opens the adapter with a number of `larpo gpu list`, or else the one that LARPO_ADAPTER names, or else a GPU; with `half` for
/// products in half precision.
///
/// # Errors
/// No such adapter, or one that gives no device, or does not multiply in half precision.
pub fn open(number: Option<usize>, half: bool) -> Result<GpuBackend> {
    let choice = number.map_or_else(Choice::from_env, Choice::Number);
    open_choice(&choice, half)
        .map_err(|error| Error::request(format!("--device {}: {error}{}", Device::Gpu(number), mend(&error))))
}

fn open_choice(choice: &Choice, half: bool) -> std::result::Result<GpuBackend, larpo_gpu::Error> {
    let adapters = Adapter::all();
    let infos: Vec<_> = adapters.iter().map(|adapter| adapter.info().clone()).collect();
    let adapter = &adapters[larpo_gpu::choose(&infos, choice)?];
    let open = if half { Gpu::open_half } else { Gpu::open_adapter };
    GpuBackend::new(&open(adapter, Checks::default())?)
}

/// What a GPU shows as in `/dev` of Linux: rendering nodes, NVIDIA's own driver, WSL, and what phones and small boards have.
const NODES: [&str; 7] = ["dri", "nvidiactl", "dxg", "nvhost-gpu", "nvgpu", "kgsl-3d0", "mali0"];

/// Whether a GPU is out of the question. Drivers are then not loaded, which takes time and memory, and some of them write to
/// stderr.
fn is_without_gpu() -> bool {
    cfg!(target_os = "linux") && !NODES.iter().any(|node| Path::new("/dev").join(node).exists())
}

/// A GPU where there is one that can be opened, never a CPU adapter: it would be slower than the CPU itself.
fn auto(half: bool) -> Result<Chosen> {
    if is_without_gpu() {
        say!("device: the CPU (this machine has no GPU)");
        return Ok(Chosen::Cpu);
    }
    match open_choice(&Choice::Auto, half) {
        Ok(backend) => {
            let gpu = backend.gpu();
            say!("device: {gpu}{} (a GPU is taken before the CPU; --device cpu takes the CPU)", precision(half));
            Ok(Chosen::Gpu(backend))
        }
        // It was asked for.
        Err(error @ larpo_gpu::Error::NoHalf { .. }) => {
            Err(Error::request(format!("--gpu_precision f16: {error}{}", mend(&error))))
        }
        Err(error) => {
            say!("device: the CPU ({error})");
            Ok(Chosen::Cpu)
        }
    }
}

/// What to do where there is no such adapter.
fn mend(error: &larpo_gpu::Error) -> &'static str {
    match error {
        larpo_gpu::Error::NoAdapter { .. } => {
            "; take --device cpu, or name an adapter: gpu:N with its number in `larpo gpu list`, or a part of its name in \
             LARPO_ADAPTER"
        }
        larpo_gpu::Error::NoHalf { .. } => "; leave out --gpu_precision f16",
        _ => "; take --device cpu",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Auto, Device::Cpu, Device::Gpu(None), Device::Gpu(Some(3))] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for wrong in ["", "GPU", "gpu:", "gpu:x", "gpu:-1", "cuda"] {
            assert!(wrong.parse::<Device>().is_err_and(|problem| problem.contains("gpu:N")), "{wrong}");
        }
    }
}
