//! Adapters, the choice among them, and the device that everything else runs on.

use crate::Error;
use crate::kernels::tuning::Autotune;
use crate::shader::{Checks, Pipelines};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wgpu::DeviceType;

/// One adapter of this machine.
#[derive(Clone, Debug)]
pub struct Adapter {
    inner: wgpu::Adapter,
    info: wgpu::AdapterInfo,
}

impl Adapter {
    /// All adapters of this machine, CPU ones included, in the order of the system.
    pub fn all() -> Vec<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::PRIMARY,
            // No validation layers: the shaders are this crate's own and its tests cover them.
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        adapters.into_iter().map(|inner| Self { info: inner.get_info(), inner }).collect()
    }

    /// Name, kind, backend and driver.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// Limits of the adapter; a [`Gpu`] opened on it has all of them.
    pub fn limits(&self) -> wgpu::Limits {
        self.inner.limits()
    }

    /// Optional features of the adapter. The kernels need none.
    pub fn features(&self) -> wgpu::Features {
        self.inner.features()
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&line(&self.info))
    }
}

/// `NVIDIA H100 (discrete, vulkan, driver …)`
fn line(info: &wgpu::AdapterInfo) -> String {
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => "discrete",
        DeviceType::IntegratedGpu => "integrated",
        DeviceType::VirtualGpu => "virtual",
        DeviceType::Cpu => "CPU",
        DeviceType::Other => "unknown kind",
    };
    let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
    format!("{} ({kind}, {}, {})", info.name, info.backend, driver.trim())
}

/// Which adapter to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// A discrete GPU, else an integrated one, else a virtual one; never a CPU adapter.
    #[default]
    Auto,
    /// The first adapter whose name, kind, backend or driver contains this text, whatever the case. CPU ones count.
    Named(String),
    /// The adapter with this number in [`Adapter::all`]. CPU ones count.
    Number(usize),
}

impl Choice {
    /// [`Choice::Named`] by the environment variable `LARPO_ADAPTER` where it is set and not empty, else [`Choice::Auto`].
    pub fn from_env() -> Self {
        match std::env::var("LARPO_ADAPTER") {
            Ok(name) if !name.is_empty() => Self::Named(name),
            _ => Self::Auto,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("discrete or integrated GPU"),
            Self::Named(name) => write!(f, "adapter named \"{name}\""),
            Self::Number(number) => write!(f, "adapter number {number}"),
        }
    }
}

/// The index of the adapter that `choice` takes among those that `infos` describes.
///
/// # Errors
/// [`Error::NoAdapter`], which lists what there is.
pub fn choose(infos: &[wgpu::AdapterInfo], choice: &Choice) -> Result<usize, Error> {
    let of_type = |wanted| infos.iter().position(|info| info.device_type == wanted);
    let index = match choice {
        Choice::Auto => {
            [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::VirtualGpu].into_iter().find_map(of_type)
        }
        Choice::Named(name) => {
            let name = name.to_lowercase();
            infos.iter().position(|info| line(info).to_lowercase().contains(&name))
        }
        Choice::Number(number) => (*number < infos.len()).then_some(*number),
    };
    index.ok_or_else(|| Error::NoAdapter { wanted: choice.to_string(), found: infos.iter().map(line).collect() })
}

/// How long a device that failed is given to tell whether it was lost.
const LOSS_PATIENCE: Duration = Duration::from_secs(10);

/// What the driver reported outside of any call that could have returned it.
pub(crate) type Fault = Arc<Mutex<Option<Error>>>;

/// A device with its queue and its compiled kernels. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    pipelines: Pipelines,
    fault: Fault,
    tuning: Mutex<Option<Autotune>>,
}

impl Gpu {
    /// Opens the adapter that `choice` takes, with its own limits and the build's usual [`Checks`].
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::NoDevice`].
    pub fn open(choice: &Choice) -> Result<Self, Error> {
        let mut adapters = Adapter::all();
        let infos: Vec<_> = adapters.iter().map(|adapter| adapter.info.clone()).collect();
        Self::open_adapter(&adapters.swap_remove(choose(&infos, choice)?), Checks::default())
    }

    /// Opens `adapter` with its own limits.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub fn open_adapter(adapter: &Adapter, checks: Checks) -> Result<Self, Error> {
        Self::open_with_limits(adapter, adapter.limits(), checks)
    }

    /// Opens `adapter` with limits of the caller's, for example those of a weaker one.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub fn open_with_limits(adapter: &Adapter, limits: wgpu::Limits, checks: Checks) -> Result<Self, Error> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("larpo-gpu"),
            required_limits: limits,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.inner.request_device(&descriptor))
            .map_err(|error| Error::NoDevice { adapter: adapter.to_string(), reason: error.to_string() })?;
        let gpu = Self::from_device(device, queue, checks);
        let (on_error, on_loss) = (gpu.0.fault.clone(), gpu.0.fault.clone());
        gpu.0.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut fault = on_error.lock().unwrap_or_else(PoisonError::into_inner);
            fault.get_or_insert(Error::Driver(error.to_string()));
        }));
        gpu.0.device.set_device_lost_callback(move |_, message| {
            // Whatever else was reported followed from it.
            *on_loss.lock().unwrap_or_else(PoisonError::into_inner) = Some(Error::Lost(message));
        });
        Ok(gpu)
    }

    /// Kernels for a device that the caller made. Its error and loss handlers stay the caller's.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue, checks: Checks) -> Self {
        let (info, limits) = (device.adapter_info(), device.limits());
        let pipelines = Pipelines::new(&device, checks);
        Self(Arc::new(Inner {
            device,
            queue,
            info,
            limits,
            pipelines,
            fault: Fault::default(),
            tuning: Mutex::default(),
        }))
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    /// Its queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// The adapter it was opened on.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.0.info
    }

    /// The limits it was opened with.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.0.limits
    }

    /// Whether the adapter is a CPU, where shared memory and barriers cost more than they save.
    pub fn is_cpu(&self) -> bool {
        self.0.info.device_type == DeviceType::Cpu
    }

    /// Largest tensor in bytes: what one buffer may hold, and what a `u32` can index.
    pub fn max_tensor_bytes(&self) -> u64 {
        let indexable = 4 * u64::from(u32::MAX);
        self.0.limits.max_buffer_size.min(indexable)
    }

    /// Largest part of a tensor that a kernel sees at a time, in bytes. Weights, what belongs to them, operands of products and
    /// logits may be larger: their kernels run on one part after another.
    pub fn max_binding_bytes(&self) -> u64 {
        self.0.limits.max_storage_buffer_binding_size.min(self.max_tensor_bytes())
    }

    pub(crate) fn pipelines(&self) -> &Pipelines {
        &self.0.pipelines
    }

    pub(crate) fn tuning(&self) -> MutexGuard<'_, Option<Autotune>> {
        self.0.tuning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the device is well: what its driver reported first outside of any call that could have returned it, or that
    /// the device was lost.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Driver`].
    pub fn fault(&self) -> Result<(), Error> {
        let known = || self.0.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Error::Driver(_)) = known() {
            // On a lost device calls fail before it tells of its loss, which it does when it is asked for finished work.
            let all = wgpu::PollType::Wait { submission_index: None, timeout: Some(LOSS_PATIENCE) };
            let _ = self.device().poll(all);
        }
        known().map_or(Ok(()), Err)
    }

    /// Keeps what a call failed with, and gives back what is behind it: perhaps a lost device.
    pub(crate) fn failed(&self, error: impl fmt::Display) -> Error {
        let error = Error::Driver(error.to_string());
        self.0.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        self.fault().err().unwrap_or(error)
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&line(&self.0.info))
    }
}
