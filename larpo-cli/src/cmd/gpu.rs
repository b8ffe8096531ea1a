//! `larpo gpu`: the adapters of this machine, whether one of them computes what the CPU does, and how fast it is.
//!
//! `check` and `bench` take the adapter of `--device gpu:N`, else the one that LARPO_ADAPTER names, else a GPU.

use crate::args::{GpuArgs, GpuTask};
use crate::error::{Error, Result};
use crate::gpu::tuning::tune;
use crate::gpu::{Device, GpuBackend, bench, check, open};
use crate::messages;
use crate::table::Table;
use larpo_gpu::Adapter;
use serde_json::{Value, json};

/// Problems that a failed check shows; all of them count.
const SHOWN: usize = 20;

/// Runs the verb.
///
/// # Errors
/// No such adapter; a check that failed, a device that failed.
pub fn run(args: &GpuArgs) -> Result<Value> {
    let backend = || match args.common.device {
        Device::Cpu => Err(Error::request("--device cpu: larpo gpu is about the others; give gpu or gpu:N")),
        Device::Auto => open(None, args.common.half()),
        Device::Gpu(number) => open(number, args.common.half()),
    };
    match args.what {
        GpuTask::List => Ok(list()),
        GpuTask::Check => run_check(&backend()?, args.common.json),
        GpuTask::Bench => {
            let backend = backend()?;
            if args.common.tunes() {
                tune(backend.gpu());
            }
            let result = bench::run(&backend, args.common.seed);
            check::healthy(&backend).and(result)
        }
    }
}

/// Shows the adapters. The object has them as `adapters`, each with `number`, `name`, `kind`, `backend`, `driver`,
/// `limits` (bytes, and counts of invocations and buffers), `matrix_units` (rows of the matrices that --gpu_precision f16
/// multiplies there; null where it does not) and `features`.
fn list() -> Value {
    let adapters = Adapter::all();
    let mut table = Table::new([
        "adapter",
        "kind",
        "backend",
        "driver",
        "largest buffer",
        "a binding",
        "workgroup memory",
        "f16 products",
        "features",
    ]);
    let mut objects = Vec::new();
    for (number, adapter) in adapters.iter().enumerate() {
        let (info, limits) = (adapter.info(), adapter.limits());
        let kind = format!("{:?}", info.device_type);
        let driver = driver(info);
        let units = adapter.matrix_units().next().map(|units| units.size);
        let features: Vec<&str> = adapter.features().iter_names().map(|(name, _)| name).collect();
        table.row([
            format!("{number}: {}", info.name),
            kind.clone(),
            info.backend.to_string(),
            driver.clone(),
            format!("{} MiB", limits.max_buffer_size >> 20),
            format!("{} MiB", limits.max_storage_buffer_binding_size >> 20),
            format!("{} KiB", limits.max_compute_workgroup_storage_size >> 10),
            units.map_or_else(|| "no".into(), |size| format!("{size} x {size}")),
            features.len().to_string(),
        ]);
        objects.push(json!({
            "number": number,
            "name": info.name,
            "kind": kind,
            "backend": info.backend.to_string(),
            "driver": driver,
            "limits": {
                "max_storage_buffer_binding_size": limits.max_storage_buffer_binding_size,
                "max_buffer_size": limits.max_buffer_size,
                "max_compute_workgroup_storage_size": limits.max_compute_workgroup_storage_size,
                "max_compute_invocations_per_workgroup": limits.max_compute_invocations_per_workgroup,
                "max_compute_workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
                "max_storage_buffers_per_shader_stage": limits.max_storage_buffers_per_shader_stage,
            },
            "matrix_units": units,
            "features": features,
        }));
    }
    match adapters.is_empty() {
        true => show!("no Vulkan, Metal or DX12 adapter"),
        false => show!("{}", table.to_string().trim_end()),
    }
    json!({ "adapters": objects })
}

fn driver(info: &larpo_gpu::wgpu::AdapterInfo) -> String {
    [info.driver.as_str(), info.driver_info.as_str()].join(" ").trim().into()
}

/// Compares every operation with the reference and a training step with the CPU's.
fn run_check(backend: &GpuBackend, as_json: bool) -> Result<Value> {
    let info = backend.gpu().info();
    show!("{}", backend.gpu());
    let (mut cases, mut problems) = (0, Vec::new());
    check::cases(backend, |case| {
        cases += 1;
        if !case.passed() {
            problems.push(case.problem());
        }
    });
    check::healthy(backend)?;
    let failed = problems.len();
    problems.iter().take(SHOWN).for_each(|problem| show!("{problem}"));
    show!("{cases} cases against the reference in double precision, {failed} failed");
    let step = check::step(backend)?;
    show!(
        "a training step against the CPU: loss {:.1e} apart, gradients at most {:.1e} ({})",
        step.loss_rel,
        step.grad_rel_max,
        step.parameter
    );
    let result = json!({
        "adapter": info.name,
        "driver": driver(info),
        "cases": cases,
        "failed": failed,
        "step": { "loss_rel": step.loss_rel, "grad_rel_max": step.grad_rel_max },
    });
    if failed == 0 && step.passed() {
        return Ok(result);
    }
    if as_json {
        messages::print(&format!("{result}\n"));
    }
    let step = if step.passed() { "" } else { ", and the training step is too far from the CPU's" };
    Err(Error::request(format!(
        "gpu check: {failed} of {cases} cases failed{step}; do not train on this device: take --device cpu, or try another driver"
    )))
}
