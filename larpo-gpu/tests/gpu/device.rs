//! The choice of an adapter, the recorder and its memory.

use crate::common::{Rng, devices, run};
use larpo_gpu::kernels::elementwise::{copy, fill, scale};
use larpo_gpu::kernels::matmul::{Matrix, Variant, matmul_as};
use larpo_gpu::{Adapter, Buffer, Checks, Choice, Error, Gpu, Recorder, Store, choose, wgpu};
use wgpu::DeviceType;

fn infos(types: &[DeviceType]) -> Vec<wgpu::AdapterInfo> {
    let info = |(i, device_type): (usize, &DeviceType)| wgpu::AdapterInfo {
        name: format!("Maker {i}"),
        ..wgpu::AdapterInfo::new(*device_type, wgpu::Backend::Vulkan)
    };
    types.iter().enumerate().map(info).collect()
}

#[test]
fn auto_takes_a_discrete_then_an_integrated_gpu_and_never_a_cpu() {
    use DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};
    let auto = |types: &[DeviceType]| choose(&infos(types), &Choice::Auto);
    assert_eq!(auto(&[Cpu, IntegratedGpu, DiscreteGpu, DiscreteGpu]), Ok(2));
    assert_eq!(auto(&[Cpu, VirtualGpu, IntegratedGpu]), Ok(2));
    assert_eq!(auto(&[VirtualGpu]), Ok(0));
    let error = auto(&[Cpu, Other]).unwrap_err().to_string();
    assert!(error.contains("discrete or integrated GPU") && error.contains("Maker 0 (CPU, vulkan"), "{error}");
    let error = auto(&[]).unwrap_err().to_string();
    assert!(error.contains("no Vulkan, Metal or DX12 adapter"), "{error}");
}

#[test]
fn names_and_numbers_take_cpu_adapters_too() {
    let infos = infos(&[DeviceType::DiscreteGpu, DeviceType::Cpu, DeviceType::Cpu]);
    let named = |name: &str| choose(&infos, &Choice::Named(name.into()));
    assert_eq!((named("maker 2"), named("CPU"), named("Maker")), (Ok(2), Ok(1), Ok(0)));
    assert!(matches!(named("radeon"), Err(Error::NoAdapter { found, .. }) if found.len() == 3));
    assert_eq!(choose(&infos, &Choice::Number(2)), Ok(2));
    assert!(choose(&infos, &Choice::Number(3)).unwrap_err().to_string().contains("adapter number 3"));
}

#[test]
fn gpu_what_is_uploaded_comes_back() {
    let Some(devices) = devices() else { return };
    let mut recorder = Recorder::new(&devices.trusted).unwrap();
    for len in [0, 1, 3, 64, 1021] {
        let floats: Vec<f32> = (0..len).map(|i| i as f32 - 0.5).collect();
        let words: Vec<u32> = (0..len).map(|i| u32::MAX - i).collect();
        let (a, b) = (recorder.upload(&floats).unwrap(), recorder.upload(&words).unwrap());
        assert_eq!(recorder.read(&a).unwrap(), floats);
        assert_eq!(recorder.read(&b).unwrap(), words);
    }
}

/// A number of bfloat16 comes back as it is, others rounded, also an odd number of them.
#[test]
fn gpu_bf16_comes_back_widened() {
    let Some(devices) = devices() else { return };
    let mut recorder = Recorder::new(&devices.trusted).unwrap();
    let x = recorder.upload_bf16(&[1.0, -2.5, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1e-3]).unwrap();
    assert_eq!((x.len(), x.pairs().len()), (5, 3));
    assert_eq!(recorder.read_bf16(&x).unwrap(), [1.0, -2.5, 1.0, 1.015625, f32::from_bits(0x3a83_0000)]);
    assert_eq!(recorder.alloc_bf16(7).unwrap().len(), 7);
}

/// Beyond a limit memory is handed back instead of kept.
#[test]
fn gpu_memory_is_limited() {
    let Some(devices) = devices() else { return };
    let mut recorder = Recorder::new(&devices.trusted).unwrap();
    let held = |recorder: &Recorder| recorder.stats().bytes;
    let kept = recorder.upload(&[1.0f32; 1024]).unwrap();
    for len in [1 << 12, 1 << 14, 1 << 16] {
        let y = recorder.alloc(len).unwrap();
        fill(&mut recorder, &y, 2.0);
    }
    let before = held(&recorder);
    recorder.limit(before);
    drop(recorder.alloc::<f32>(1 << 16).unwrap());
    assert_eq!(held(&recorder), before, "what fits is used again");
    let y = recorder.alloc(1 << 15).unwrap();
    fill(&mut recorder, &y, 3.0);
    assert!(held(&recorder) < before, "what is free goes");
    assert_eq!(recorder.read(&kept).unwrap(), [1.0; 1024], "what is in use stays");
    assert_eq!(recorder.read(&y).unwrap(), [3.0; 1 << 15]);
}

/// Host writes come before the submission; a kernel recorded earlier must not find the later contents.
#[test]
fn gpu_uploads_do_not_overtake_recorded_kernels() {
    let Some(devices) = devices() else { return };
    let mut recorder = Recorder::new(&devices.trusted).unwrap();
    let y = recorder.upload(&[0.0f32; 64]).unwrap();
    for i in 0..10 {
        // Dropped at once, so that its memory is free while the copy is recorded and has not run.
        let x = recorder.upload(&[i as f32; 64]).unwrap();
        copy(&mut recorder, &x, &y, Store::Add);
    }
    assert_eq!(recorder.read(&y).unwrap(), [45.0; 64]);
}

#[test]
fn gpu_memory_is_used_again_and_given_back() {
    let Some(devices) = devices() else { return };
    let mut recorder = Recorder::new(&devices.trusted).unwrap();
    let step = |recorder: &mut Recorder| {
        let x = recorder.upload(&vec![1.0f32; 5000]).unwrap();
        for len in [100, 5000, 70_000] {
            let y = recorder.alloc(len).unwrap();
            fill(recorder, &y, 2.0);
            recorder.read(&y).unwrap();
        }
        let factor = recorder.upload(&[3.0f32]).unwrap();
        scale(recorder, &x, &factor);
        recorder.stats().bytes
    };
    let after: Vec<u64> = (0..50).map(|_| step(&mut recorder)).collect();
    assert!(after[2..].iter().all(|&bytes| bytes == after[2]), "{after:?}");
    recorder.trim();
    assert!(recorder.stats().bytes < after[2]);
}

#[test]
fn gpu_kernels_share_submissions() {
    let Some(devices) = devices() else { return };
    let mut recorder = Recorder::new(&devices.trusted).unwrap();
    let y = recorder.upload(&[0.0f32; 8]).unwrap();
    let one = recorder.upload(&[1.0f32; 8]).unwrap();
    // More than one page of parameters.
    for _ in 0..600 {
        copy(&mut recorder, &one, &y, Store::Add);
    }
    assert_eq!(recorder.stats().submits, 0);
    assert_eq!(recorder.read(&y).unwrap(), [600.0; 8]);
    let stats = recorder.stats();
    assert_eq!((stats.dispatches, stats.submits, stats.reads), (600, 1, 1));
}

/// Long work is cut into several submissions.
#[test]
fn gpu_submissions_are_bounded() {
    let Some(devices) = devices() else { return };
    let mut recorder = Recorder::new(&devices.trusted).unwrap();
    let y = recorder.alloc(1 << 22).unwrap();
    for _ in 0..30 {
        fill(&mut recorder, &y, 1.0);
    }
    recorder.submit();
    let stats = recorder.stats();
    let bound = if devices.trusted.is_cpu() { 2..30 } else { 1..30 };
    assert!(bound.contains(&stats.submits), "{stats:?}");
}

/// A product longer than a submission is cut, and stays the same to the last bit.
#[test]
fn gpu_long_products_are_cut() {
    let Some(devices) = devices() else { return };
    let (m, n, k) = (700, 33, 65);
    let mut rng = Rng::new(1);
    let (x, y) = (rng.floats(m * k, 1.0), rng.floats(k * n, 1.0));
    for (variant, transposed) in Variant::ALL.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let product = |seconds: f64| {
            let mut r = Recorder::new(&devices.trusted).unwrap();
            r.bound_submissions(seconds);
            let (x, y, z) = (r.upload(&x).unwrap(), r.upload(&y).unwrap(), r.alloc(m * n).unwrap());
            let a = if transposed { Matrix::new(&x, k, m).transposed() } else { Matrix::new(&x, m, k) };
            let (b, c) = (Matrix::new(&y, k, n), Matrix::new(&z, m, n));
            matmul_as(&mut r, variant, a, b, None, c, Store::Set);
            (r.read(&z).unwrap(), r.stats())
        };
        let (whole, one) = product(1.0);
        let (cut, six) = product(1e-12);
        assert_eq!((one.dispatches, six.dispatches), (1, 6), "{variant:?}");
        assert!(one.submits == 1 && six.submits >= 6, "{variant:?} {one:?} {six:?}");
        assert!(whole.iter().zip(&cut).all(|(a, b)| a.to_bits() == b.to_bits()), "{variant:?}");
    }
}

#[test]
fn gpu_too_large_a_tensor_is_an_error() {
    let Some(devices) = devices() else { return };
    let recorder = Recorder::new(&devices.trusted).unwrap();
    let limit = devices.trusted.max_tensor_bytes();
    assert!(limit <= 4 << 32, "what u32 can index");
    let error = recorder.alloc::<f32>(limit as usize / 4 + 1).unwrap_err();
    assert_eq!(error, Error::TooLarge { bytes: limit / 4 * 4 + 4, limit });
}

/// The caller's device, queue, buffers and encoder.
#[test]
fn gpu_records_into_the_callers_encoder() {
    let Some(devices) = devices() else { return };
    let (device, queue) = (devices.trusted.device().clone(), devices.trusted.queue().clone());
    let gpu = Gpu::from_device(device.clone(), queue.clone(), Checks::Checked);
    let own = |data: &[f32]| {
        use wgpu::BufferUsages as Usage;
        let usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        let size = 4 * data.len() as u64;
        let raw = device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        queue.write_buffer(&raw, 0, &bytes);
        Buffer::from_wgpu(&gpu, raw, data.len()).unwrap()
    };
    let (x, y) = (own(&[1.0, 2.0, 3.0]), own(&[10.0, 20.0, 30.0]));
    let encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut recorder = Recorder::with_encoder(&gpu, encoder).unwrap();
    copy(&mut recorder, &x, &y, Store::Add);
    copy(&mut recorder, &x, &y, Store::Add);
    recorder.submit();
    assert_eq!(recorder.stats().submits, 0);
    let encoder = recorder.into_encoder();
    queue.submit([encoder.finish()]);
    let mut reader = Recorder::new(&gpu).unwrap();
    assert_eq!(reader.read(&y).unwrap(), [12.0, 24.0, 36.0]);
}

/// A buffer of another recorder is not used again while what is recorded needs it.
#[test]
fn gpu_buffers_pass_between_recorders() {
    let Some(devices) = devices() else { return };
    let mut one = Recorder::new(&devices.trusted).unwrap();
    let mut two = Recorder::new(&devices.trusted).unwrap();
    let x = one.upload(&[5.0f32; 64]).unwrap();
    let y = two.alloc(64).unwrap();
    copy(&mut two, &x, &y, Store::Set);
    drop(x);
    let other = one.alloc(64).unwrap();
    fill(&mut one, &other, -1.0);
    one.submit();
    assert_eq!(two.read(&y).unwrap(), [5.0; 64]);
}

#[test]
fn gpu_adapters_have_a_name() {
    if devices().is_none() {
        return;
    }
    assert!(Adapter::all().iter().all(|adapter| adapter.to_string().len() > adapter.info().name.len()));
}

#[test]
fn gpu_nothing_is_nothing() {
    let got = run(|r| {
        let y = r.alloc(0)?;
        fill(r, &y, 1.0);
        Ok(vec![y])
    });
    assert!(got.is_none_or(|got| got == [vec![]]));
}

/// Whatever call meets it first, and whatever the driver says of that call, a loss is told as one.
#[test]
fn gpu_a_lost_device_is_known_as_lost() {
    let Some(devices) = devices() else { return };
    let name = devices.trusted.info().name.clone();
    for moment in 0..4 {
        let gpu = Gpu::open(&Choice::Named(name.clone())).unwrap();
        let mut recorder = Recorder::new(&gpu).unwrap();
        let x = recorder.upload(&[1.0f32; 1000]).unwrap();
        let step = |recorder: &mut Recorder, step: usize| {
            if step == moment {
                gpu.device().destroy();
            }
            match step {
                0 => drop(recorder.upload(&[2.0f32; 5000])),
                1 => scale(recorder, &x, &x),
                2 => recorder.submit(),
                _ => {}
            }
        };
        (0..4).for_each(|at| step(&mut recorder, at));
        let error = recorder.read(&x).unwrap_err();
        assert!(matches!(error, Error::Lost(_)), "lost before call {moment}: {error}");
        assert!(matches!(gpu.fault(), Err(Error::Lost(_))), "lost before call {moment}");
    }
}
