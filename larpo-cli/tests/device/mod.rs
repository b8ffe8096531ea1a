//! The device under test.

use larpo_cli::gpu::GpuBackend;
use larpo_gpu::{Adapter, Checks, Choice, Gpu, choose};
use std::sync::OnceLock;

/// A backend on a device of its own that shows kernels `bytes` of a tensor at a time at most.
#[allow(dead_code)]
pub fn tight(bytes: u64) -> Option<GpuBackend> {
    backend()?;
    let adapter = adapter()?;
    let mut limits = adapter.limits();
    limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(bytes);
    let gpu = Gpu::open_with_limits(&adapter, limits, Checks::default()).expect("the adapter gives a device");
    Some(GpuBackend::new(&gpu).expect("the device has memory"))
}

/// A backend of its own on the one device of these tests; `None`, after a note, where there is no adapter.
pub fn backend() -> Option<GpuBackend> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let asked = std::env::var("LARPO_DEVICE").unwrap_or_default();
    if asked == "cpu" {
        eprintln!("skipped: LARPO_DEVICE=cpu");
        return None;
    }
    let gpu = GPU.get_or_init(open);
    let required = asked == "gpu" || std::env::var("LARPO_REQUIRE_GPU").is_ok_and(|value| value == "1");
    assert!(gpu.is_some() || !required, "a GPU is required, and there is no adapter");
    gpu.as_ref().map(|gpu| GpuBackend::new(gpu).expect("the device has memory"))
}

/// A backend for products in half precision; `None`, after it made sure that this is refused by name, where the adapter has no
/// matrix units for them.
#[allow(dead_code)]
pub fn half() -> Option<GpuBackend> {
    backend()?;
    let adapter = adapter()?;
    match Gpu::open_half(&adapter, Checks::default()) {
        Ok(gpu) => Some(GpuBackend::new(&gpu).expect("the device has memory")),
        Err(error) => {
            let text = error.to_string();
            assert!(
                matches!(error, larpo_gpu::Error::NoHalf { .. }) && adapter.matrix_units().next().is_none(),
                "{text}"
            );
            eprintln!("left out: {text}");
            None
        }
    }
}

fn open() -> Option<Gpu> {
    Some(Gpu::open_adapter(&adapter()?, Checks::default()).expect("the adapter gives a device"))
}

fn adapter() -> Option<Adapter> {
    let mut adapters = Adapter::all();
    let infos: Vec<_> = adapters.iter().map(|adapter| adapter.info().clone()).collect();
    let index = match (choose(&infos, &Choice::from_env()), Choice::from_env()) {
        (Ok(index), _) => index,
        // Tests run on any adapter, if need be on a CPU.
        (Err(_), Choice::Auto) if !adapters.is_empty() => 0,
        (Err(error), _) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    Some(adapters.swap_remove(index))
}
