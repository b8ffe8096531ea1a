//! WGSL texts as constants, and their compiled pipelines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of the uniform window that holds a kernel's parameters.
pub const PARAMS_BYTES: u64 = 128;

/// How a kernel uses one of its storage buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
}

/// One WGSL file: its text, entry points and bindings, usable with any implementation of WebGPU.
///
/// - Group 0 holds the storage buffers, binding `i` with the access `bindings[i]`. An entry point may leave some unused;
///   the layout is the file's.
/// - Group 1, binding 0 is a uniform buffer with the file's `Params`, `u32` and `f32` without gaps. Its first word, `width`,
///   is the number of workgroups along x: kernels number their workgroups `y · width + x`, so that more than 65,535 of them
///   fold into y. Workgroups beyond the last one do nothing.
/// - The file's first lines state the shapes.
#[derive(Debug)]
pub struct Shader {
    /// Stem of the file.
    pub name: &'static str,
    /// The text.
    pub wgsl: &'static str,
    /// Entry points.
    pub entries: &'static [&'static str],
    /// Storage buffers of group 0.
    pub bindings: &'static [Access],
}

/// How carefully shaders are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    /// With bounds checks and bounded loops.
    Checked,
    /// Without: the kernels guard their own indices.
    Trusted,
}

impl Default for Checks {
    /// Checked in builds with debug assertions, trusted in others.
    fn default() -> Self {
        if cfg!(debug_assertions) { Self::Checked } else { Self::Trusted }
    }
}

/// One entry point, ready to run.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) buffers: wgpu::BindGroupLayout,
    /// Which layout `buffers` is: entry points of one file share bind groups.
    pub(crate) layout_key: usize,
}

#[derive(Debug)]
struct Module {
    module: wgpu::ShaderModule,
    buffers: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
}

/// Every pipeline of a device, compiled when first asked for.
#[derive(Debug)]
pub(crate) struct Pipelines {
    device: wgpu::Device,
    checks: Checks,
    pub(crate) params: wgpu::BindGroupLayout,
    modules: Mutex<HashMap<usize, Arc<Module>>>,
    entries: Mutex<HashMap<(usize, &'static str), Arc<Pipeline>>>,
}

fn key(shader: &'static Shader) -> usize {
    std::ptr::from_ref(shader) as usize
}

impl Pipelines {
    pub(crate) fn new(device: &wgpu::Device, checks: Checks) -> Self {
        let params = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("params"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
                count: None,
            }],
        });
        Self { device: device.clone(), checks, params, modules: Mutex::default(), entries: Mutex::default() }
    }

    /// The pipeline of `entry` in `shader`, which must be one of its entries.
    pub(crate) fn get(&self, shader: &'static Shader, entry: &'static str) -> Arc<Pipeline> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.entry((key(shader), entry)).or_insert_with(|| Arc::new(self.compile(shader, entry))).clone()
    }

    fn compile(&self, shader: &'static Shader, entry: &'static str) -> Pipeline {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = modules.entry(key(shader)).or_insert_with(|| Arc::new(self.module(shader))).clone();
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&module.layout),
            module: &module.module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes shared memory before it reads it.
                zero_initialize_workgroup_memory: self.checks == Checks::Checked,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: None,
        });
        Pipeline { pipeline, buffers: module.buffers.clone(), layout_key: key(shader) }
    }

    fn module(&self, shader: &'static Shader) -> Module {
        let entries: Vec<_> = shader
            .bindings
            .iter()
            .zip(0..)
            .map(|(access, binding)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let label = Some(shader.name);
        let buffers =
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&buffers), Some(&self.params)],
            immediate_size: 0,
        });
        let source = wgpu::ShaderSource::Wgsl(shader.wgsl.into());
        Module { module: self.shader_module(wgpu::ShaderModuleDescriptor { label, source }), buffers, layout }
    }

    #[allow(unsafe_code)]
    fn shader_module(&self, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
        match self.checks {
            Checks::Checked => self.device.create_shader_module(descriptor),
            // SAFETY: only this crate's own texts come here, through its kernels. Their invocations stop at the lengths that
            // the Rust side has checked against the buffers; an index that is read from a caller's buffer is compared with
            // what it indexes, those of prepared lists, targets and segments were checked on the host; every loop counts to a
            // bound; and the tests find the same bits as with checks.
            Checks::Trusted => unsafe {
                self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            },
        }
    }
}
