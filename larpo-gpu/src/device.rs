//! Adapters, the choice among them, and the device that everything else runs on.

use crate::kernels::matmul::{MATRIX_UNITS, Matrix, MatrixUnits, Variant, matmul_as};
use crate::kernels::tuning::Autotune;
use crate::shader::{Checks, Pipelines};
use crate::{Error, Recorder, Store};
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

    /// Optional features of the adapter. The kernels need none, but for products in half precision.
    pub fn features(&self) -> wgpu::Features {
        self.inner.features()
    }

    /// The kinds of matrix units that it lists, half precision in and single precision out, for which there is a kernel.
    pub fn matrix_units(&self) -> impl Iterator<Item = &'static MatrixUnits> + use<> {
        use wgpu::CooperativeScalarType::{F16, F32};
        let featured = self.features().contains(HALF);
        let limits = self.limits();
        let room = limits.max_compute_workgroup_storage_size >= HALF_SHARED;
        let invocations = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        let listed = self.inner.cooperative_matrix_properties();
        let lanes = self.info.subgroup_min_size..=self.info.subgroup_max_size;
        MATRIX_UNITS.iter().filter(move |units| {
            let sizes = (units.size, units.size, units.size, F16, F32);
            let fits = listed.iter().any(|p| (p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type) == sizes);
            featured && room && fits && lanes.contains(&units.lanes) && 8 * units.lanes <= invocations
        })
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

/// What products in half precision need.
const HALF: wgpu::Features = wgpu::Features::SHADER_F16.union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
/// Bytes of workgroup memory that they need.
const HALF_SHARED: u32 = 28 << 10;

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
    matrix_units: Option<&'static MatrixUnits>,
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
        let (device, queue) = request(adapter, limits, wgpu::Features::empty())?;
        Ok(Self::with_handlers(device, queue, checks, None))
    }

    /// Opens `adapter` for products in half precision: operands are rounded to it, sums are in single precision, and so is
    /// everything else. The matrix units are tried on products of known results before they are used.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::NoHalf`] where it lists no matrix units, or where they compute something else.
    pub fn open_half(adapter: &Adapter, checks: Checks) -> Result<Self, Error> {
        let no_half = |reason: String| Error::NoHalf { adapter: adapter.to_string(), reason };
        let kinds: Vec<_> = adapter.matrix_units().collect();
        if kinds.is_empty() {
            let reason = if adapter.features().contains(HALF) {
                "its matrix units multiply other shapes than 8 x 8 and 16 x 16 of f16 into f32"
            } else {
                "its driver offers no matrix units (cooperative matrices)"
            };
            return Err(no_half(reason.into()));
        }
        let (device, queue) = request(adapter, adapter.limits(), HALF)?;
        let mut problem = String::new();
        for units in kinds {
            let gpu = Self::with_handlers(device.clone(), queue.clone(), checks, Some(units));
            match try_matrix_units(&gpu) {
                Ok(()) => return Ok(gpu),
                Err(found) => {
                    problem =
                        format!("matrix units of {0} x {0} in subgroups of {1}: {found}", units.size, units.lanes);
                }
            }
        }
        Err(no_half(problem))
    }

    /// Kernels for a device that the caller made. Its error and loss handlers stay the caller's.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue, checks: Checks) -> Self {
        Self::new(device, queue, checks, None)
    }

    /// Kernels for a device whose errors and loss are this one's to tell.
    fn with_handlers(
        device: wgpu::Device,
        queue: wgpu::Queue,
        checks: Checks,
        matrix_units: Option<&'static MatrixUnits>,
    ) -> Self {
        let gpu = Self::new(device, queue, checks, matrix_units);
        let (on_error, on_loss) = (gpu.0.fault.clone(), gpu.0.fault.clone());
        gpu.0.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut fault = on_error.lock().unwrap_or_else(PoisonError::into_inner);
            fault.get_or_insert(Error::Driver(error.to_string()));
        }));
        gpu.0.device.set_device_lost_callback(move |_, message| {
            // Whatever else was reported followed from it.
            *on_loss.lock().unwrap_or_else(PoisonError::into_inner) = Some(Error::Lost(message));
        });
        gpu
    }

    fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        checks: Checks,
        matrix_units: Option<&'static MatrixUnits>,
    ) -> Self {
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
            matrix_units,
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

    /// The matrix units that multiply in half precision, on a device that [`Gpu::open_half`] gave.
    pub fn matrix_units(&self) -> Option<&'static MatrixUnits> {
        self.0.matrix_units
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

#[allow(unsafe_code)]
fn request(
    adapter: &Adapter,
    limits: wgpu::Limits,
    features: wgpu::Features,
) -> Result<(wgpu::Device, wgpu::Queue), Error> {
    let experimental_features = match features.intersects(wgpu::Features::all_experimental_mask()) {
        // SAFETY: cooperative matrices are the only such feature that is asked for. What wgpu does not yet check is that a
        // matrix is loaded from and stored to memory that is there; the one text that uses them does so in its own shared
        // arrays, at places that are constants of the text and the number of the subgroup, which its length bounds.
        true => unsafe { wgpu::ExperimentalFeatures::enabled() },
        false => wgpu::ExperimentalFeatures::disabled(),
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("larpo-gpu"),
        required_limits: limits,
        required_features: features,
        experimental_features,
        ..wgpu::DeviceDescriptor::default()
    };
    pollster::block_on(adapter.inner.request_device(&descriptor))
        .map_err(|error| Error::NoDevice { adapter: adapter.to_string(), reason: error.to_string() })
}

/// Multiplies whole numbers, whose sums are exact in half and in single precision, in every layout and of odd sizes.
fn try_matrix_units(gpu: &Gpu) -> Result<(), String> {
    let (m, n, k) = (131, 73, 45);
    let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 17) as f32 - 8.0).collect();
    let b: Vec<f32> = (0..k * n).map(|i| (i * 11 % 19) as f32 - 9.0).collect();
    let bias: Vec<f32> = (0..n).map(|j| j as f32 - 30.0).collect();
    let mut recorder = Recorder::new(gpu).map_err(|error| error.to_string())?;
    for (a_t, b_t) in [(false, true), (false, false), (true, false)] {
        let product = |recorder: &mut Recorder| {
            let (a, b, bias) = (recorder.upload(&a)?, recorder.upload(&b)?, recorder.upload(&bias)?);
            let c = recorder.upload(&vec![1.0f32; m * n])?;
            let a = if a_t { Matrix::new(&a, k, m).transposed() } else { Matrix::new(&a, m, k) };
            let b = if b_t { Matrix::new(&b, n, k).transposed() } else { Matrix::new(&b, k, n) };
            matmul_as(recorder, Variant::MatrixUnits, a, b, Some(&bias), Matrix::new(&c, m, n), Store::Add);
            recorder.fault()?;
            let found = recorder.read(&c)?;
            gpu.fault().map(|()| found)
        };
        let found = product(&mut recorder).map_err(|error| error.to_string())?;
        for (at, found) in found.into_iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let term = |l: usize| {
                let x = if a_t { a[l * m + i] } else { a[i * k + l] };
                x * if b_t { b[j * k + l] } else { b[l * n + j] }
            };
            let expected = 1.0 + bias[j] + (0..k).map(term).sum::<f32>();
            if found != expected {
                return Err(format!("a product has {found} where {expected} was expected"));
            }
        }
    }
    Ok(())
}
