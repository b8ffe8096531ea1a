//! Every entry point of every shader through naga to SPIR-V, MSL and HLSL, without a device, and what its limits are.
//!
//! naga does not refuse what a target lacks, so the test looks at the text it writes.

use larpo_gpu::kernels::{ALL, OPTIONAL};
use larpo_gpu::{Access, PARAMS_BYTES, Shader};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess, TypeInner};

struct Parsed {
    shader: &'static Shader,
    module: Module,
    info: ModuleInfo,
}

/// What products on matrix units need.
const HALF: Capabilities = Capabilities::SHADER_FLOAT16.union(Capabilities::COOPERATIVE_MATRIX);

/// The shaders that every device runs, checked without any capability.
fn parsed() -> Vec<Parsed> {
    parse(ALL, Capabilities::empty())
}

/// Those that only some devices run.
fn optional() -> Vec<Parsed> {
    parse(OPTIONAL, HALF)
}

fn parse(shaders: &[&'static Shader], capabilities: Capabilities) -> Vec<Parsed> {
    let parse = |shader: &'static Shader| {
        let module = naga::front::wgsl::parse_str(shader.wgsl)
            .unwrap_or_else(|error| panic!("{}: {}", shader.name, error.emit_to_string(shader.wgsl)));
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{}: {}", shader.name, error.emit_to_string(shader.wgsl)));
        Parsed { shader, module, info }
    };
    shaders.iter().map(|shader| parse(shader)).collect()
}

#[test]
fn shaders_have_the_entries_and_bindings_they_state() {
    for Parsed { shader, module, .. } in parsed().into_iter().chain(optional()) {
        let entries: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(entries, shader.entries, "{}", shader.name);
        assert!(module.entry_points.iter().all(|entry| entry.stage == ShaderStage::Compute), "{}", shader.name);
        let mut bindings = vec![None; shader.bindings.len()];
        for (_, global) in module.global_variables.iter() {
            let size = module.types[global.ty].inner.size(module.to_ctx());
            match (&global.binding, global.space) {
                (Some(binding), AddressSpace::Storage { access }) => {
                    assert_eq!(binding.group, 0, "{}", shader.name);
                    let write = access.contains(StorageAccess::STORE);
                    bindings[binding.binding as usize] = Some(if write { Access::Write } else { Access::Read });
                    let TypeInner::Array { base, .. } = module.types[global.ty].inner else {
                        panic!("{}: a storage buffer that is no array", shader.name);
                    };
                    let element = module.types[base].inner.size(module.to_ctx());
                    assert_eq!(element, 4, "{}: elements of {element} bytes", shader.name);
                }
                (Some(binding), AddressSpace::Uniform) => {
                    assert_eq!((binding.group, binding.binding), (1, 0), "{}", shader.name);
                    assert!(u64::from(size) <= PARAMS_BYTES, "{}: {size} bytes of parameters", shader.name);
                    let TypeInner::Struct { members, .. } = &module.types[global.ty].inner else {
                        panic!("{}: parameters that are no struct", shader.name);
                    };
                    assert_eq!(members[0].name.as_deref(), Some("width"), "{}", shader.name);
                    assert_eq!(size as usize, 4 * members.len(), "{}: gaps in the parameters", shader.name);
                }
                (None, AddressSpace::WorkGroup) => {}
                (_, space) => panic!("{}: {:?} in {space:?}", shader.name, global.name),
            }
        }
        let stated: Vec<_> = shader.bindings.iter().copied().map(Some).collect();
        assert_eq!(bindings, stated, "{}", shader.name);
    }
}

/// WebGPU's default limits: 16 KiB of workgroup memory, 256 invocations, 8 storage buffers.
#[test]
fn shaders_fit_the_default_limits_of_webgpu() {
    for Parsed { shader, module, .. } in parsed() {
        assert!(shader.bindings.len() <= 8, "{}: {} storage buffers", shader.name, shader.bindings.len());
        let shared: u32 = module
            .global_variables
            .iter()
            .filter(|(_, global)| global.space == AddressSpace::WorkGroup)
            .map(|(_, global)| module.types[global.ty].inner.size(module.to_ctx()))
            .sum();
        assert!(shared <= 16 << 10, "{}: {shared} bytes of workgroup memory", shader.name);
        for entry in &module.entry_points {
            let invocations: u32 = entry.workgroup_size.iter().product();
            assert!(invocations <= 256, "{}: {invocations} invocations", entry.name);
        }
    }
}

/// What those for matrix units need: 28 KiB of workgroup memory, 512 invocations, 4 storage buffers.
#[test]
fn optional_shaders_have_limits() {
    for Parsed { shader, module, .. } in optional() {
        assert_eq!(shader.bindings.len(), 4, "{}", shader.name);
        let shared: u32 = module
            .global_variables
            .iter()
            .filter(|(_, global)| global.space == AddressSpace::WorkGroup)
            .map(|(_, global)| module.types[global.ty].inner.size(module.to_ctx()))
            .sum();
        assert!(shared <= 28 << 10, "{}: {shared} bytes of workgroup memory", shader.name);
        assert!(module.entry_points[0].workgroup_size[0] <= 512, "{}", shader.name);
    }
}

/// Both languages that have matrix units get them: no element is multiplied by itself.
#[test]
fn optional_shaders_translate_to_spirv_and_msl() {
    for Parsed { shader, module, info } in optional() {
        let entry_point = shader.entries[0].to_string();
        let options = spv::Options { lang_version: (1, 4), ..spv::Options::default() };
        let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry_point.clone() };
        let words = spv::write_vec(&module, &info, &options, Some(&pipeline)).expect(shader.name);
        let mut capabilities = Vec::new();
        let mut multiplications = 0;
        let mut at = 5;
        while at < words.len() {
            match words[at] & 0xffff {
                17 => capabilities.push(words[at + 1]),
                // OpCooperativeMatrixMulAddKHR
                4459 => multiplications += 1,
                _ => {}
            }
            at += (words[at] >> 16) as usize;
        }
        // Shader, Float16, CooperativeMatrixKHR.
        assert!([1, 9, 6022].iter().all(|wanted| capabilities.contains(wanted)), "{}: {capabilities:?}", shader.name);
        assert_eq!(multiplications, 8, "{}", shader.name);
        // Metal has matrices of 8 x 8.
        if shader.wgsl.contains("coop_mat8x8") {
            let pipeline = msl::PipelineOptions {
                entry_point: Some((ShaderStage::Compute, entry_point)),
                ..msl::PipelineOptions::default()
            };
            let options = msl::Options { lang_version: (2, 3), ..msl::Options::default() };
            let (text, _) = msl::write_string(&module, &info, &options, &pipeline).expect(shader.name);
            assert!(text.contains("simdgroup_half8x8") && text.contains("simdgroup_float8x8"), "{text}");
        }
    }
}

/// What every kernel may count on, and the marks of what it may not.
fn check_text(what: &str, text: &str, forbidden: &[&str]) {
    for mark in forbidden {
        assert!(!text.contains(mark), "{what}: {mark} in\n{text}");
    }
}

#[test]
fn shaders_translate_to_spirv() {
    for Parsed { module, info, .. } in parsed() {
        for entry in &module.entry_points {
            let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
            let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry.name.clone() };
            let words = spv::write_vec(&module, &info, &options, Some(&pipeline))
                .unwrap_or_else(|error| panic!("{}: {error}", entry.name));
            // OpCapability (17, two words): Shader alone, no 16-bit floats, no group operations.
            let mut at = 5;
            while at < words.len() {
                let (opcode, len) = (words[at] & 0xffff, (words[at] >> 16) as usize);
                if opcode == 17 {
                    assert_eq!(words[at + 1], 1, "{}: a capability beyond Shader", entry.name);
                }
                at += len;
            }
        }
    }
}

#[test]
fn shaders_translate_to_msl() {
    for Parsed { module, info, .. } in parsed() {
        for entry in &module.entry_points {
            let pipeline = msl::PipelineOptions {
                entry_point: Some((ShaderStage::Compute, entry.name.clone())),
                ..msl::PipelineOptions::default()
            };
            let options = msl::Options { lang_version: (2, 0), ..msl::Options::default() };
            let (text, _) = msl::write_string(&module, &info, &options, &pipeline)
                .unwrap_or_else(|error| panic!("{}: {error}", entry.name));
            check_text(&entry.name, &text, &["half ", "simd_", "atomic_"]);
        }
    }
}

#[test]
fn shaders_translate_to_hlsl() {
    for Parsed { module, info, .. } in parsed() {
        for entry in &module.entry_points {
            for shader_model in [hlsl::ShaderModel::V5_1, hlsl::ShaderModel::V6_2] {
                let options = hlsl::Options { shader_model, ..hlsl::Options::default() };
                let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, entry.name.clone())) };
                let mut text = String::new();
                hlsl::Writer::new(&mut text, &options, &pipeline)
                    .write(&module, &info, None)
                    .unwrap_or_else(|error| panic!("{}: {error}", entry.name));
                assert!(text.contains("[numthreads("), "{}: no entry point", entry.name);
                // The default variants need no more on 6.2 than on 5.1.
                check_text(&entry.name, &text, &["Wave", "float16_t", "half ", "half4", "Interlocked"]);
            }
        }
    }
}

/// No loop in the sources adds floats through atomics, and no NaN or infinity is written as a literal.
#[test]
fn shaders_use_no_atomics() {
    for shader in ALL {
        // A type is meant, not the names of what reads bfloat16 by its bits.
        check_text(shader.name, &shader.wgsl.replace("bf16", ""), &["atomic", "enable ", "subgroup", "f16"]);
    }
}
