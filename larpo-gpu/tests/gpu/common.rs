//! Devices, inputs and the comparison that all tests share.

use larpo_gpu::{Adapter, Buffer, Checks, Choice, Error, Gpu, Recorder, choose};
use std::sync::OnceLock;

/// The sizes where tiles and workgroups end.
pub const SIZES: [usize; 14] = [1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129];

/// One adapter, opened three times.
pub struct Devices {
    pub trusted: Gpu,
    pub checked: Gpu,
    /// With bindings of [`TIGHT`] bytes at most.
    pub tight: Gpu,
}

/// Larger tensors than this many bytes are seen in parts by the kernels of [`Devices::tight`].
pub const TIGHT: u64 = 32 << 10;

/// The devices under test; `None`, after a note, where there is no adapter.
pub fn devices() -> Option<&'static Devices> {
    static DEVICES: OnceLock<Option<Devices>> = OnceLock::new();
    let devices = DEVICES.get_or_init(|| {
        let adapters = Adapter::all();
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
        let open = |checks| Gpu::open_adapter(&adapters[index], checks).expect("the adapter gives a device");
        let limits = larpo_gpu::wgpu::Limits { max_storage_buffer_binding_size: TIGHT, ..adapters[index].limits() };
        let tight =
            Gpu::open_with_limits(&adapters[index], limits, Checks::Checked).expect("a device with these limits");
        Some(Devices { trusted: open(Checks::Trusted), checked: open(Checks::Checked), tight })
    });
    if devices.is_none() {
        let required = std::env::var("LARPO_REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(!required, "LARPO_REQUIRE_GPU=1, and there is no adapter");
    }
    devices.as_ref()
}

/// Runs `kernels` twice on trusted and once on checked shaders; the outputs, after it made sure that all three agree to the
/// last bit. `None` where there is no adapter.
pub fn run(kernels: impl Fn(&mut Recorder) -> Result<Vec<Buffer>, Error>) -> Option<Vec<Vec<f32>>> {
    let devices = devices()?;
    Some(run_on(&devices.trusted, &devices.checked, kernels))
}

/// [`run`] on two devices with an adapter in common.
pub fn run_on(
    trusted: &Gpu,
    checked: &Gpu,
    kernels: impl Fn(&mut Recorder) -> Result<Vec<Buffer>, Error>,
) -> Vec<Vec<f32>> {
    let outputs = |recorder: &mut Recorder| -> Vec<Vec<f32>> {
        let buffers = kernels(recorder).expect("the device has memory for the test");
        buffers.iter().map(|buffer| recorder.read(buffer).expect("the device runs the test")).collect()
    };
    let mut recorder = Recorder::new(trusted).expect("memory");
    let first = outputs(&mut recorder);
    // The second run finds memory as the first one left it.
    assert_eq!(to_bits(&first), to_bits(&outputs(&mut recorder)), "two runs differ");
    let checked = outputs(&mut Recorder::new(checked).expect("memory"));
    assert_eq!(to_bits(&first), to_bits(&checked), "trusted and checked shaders differ");
    first
}

fn to_bits(outputs: &[Vec<f32>]) -> Vec<Vec<u32>> {
    outputs.iter().map(|output| output.iter().map(|x| x.to_bits()).collect()).collect()
}

/// Squared error over squared magnitude.
pub fn nmse(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    let error: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    let magnitude: f64 = want.iter().map(|w| w * w).sum();
    if error == 0.0 { 0.0 } else { error / magnitude }
}

/// Fails unless every output of `kernels` is within 1e-10 of its twin.
#[track_caller]
pub fn compare(case: &str, kernels: impl Fn(&mut Recorder) -> Result<Vec<Buffer>, Error>, twins: &[Vec<f64>]) {
    let Some(outputs) = run(kernels) else { return };
    assert_eq!(outputs.len(), twins.len(), "{case}: outputs");
    for (i, (got, want)) in outputs.iter().zip(twins).enumerate() {
        let error = nmse(got, want);
        assert!(error <= 1e-10, "{case}: output {i} has an NMSE of {error:.2e}");
    }
}

/// A counter-based generator (SplitMix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: usize) -> Self {
        Self(seed as u64)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `below`.
    pub fn index(&mut self, below: usize) -> usize {
        (self.next() % below as u64) as usize
    }

    /// Numbers in (-`size`, `size`).
    pub fn floats(&mut self, len: usize, size: f64) -> Vec<f32> {
        (0..len).map(|_| ((2.0 * self.uniform() - 1.0) * size) as f32).collect()
    }

    /// Whole numbers from -`size` to `size`.
    pub fn whole(&mut self, len: usize, size: usize) -> Vec<f32> {
        (0..len).map(|_| self.index(2 * size + 1) as f32 - size as f32).collect()
    }

    pub fn indices(&mut self, len: usize, below: usize) -> Vec<u32> {
        (0..len).map(|_| self.index(below) as u32).collect()
    }
}

/// The same numbers in `f64`.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The numbers cut to bfloat16.
pub fn upper_halves(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect()
}

/// A buffer of NaN: what a kernel leaves unwritten, or reads although it must not, shows.
pub fn blank(recorder: &Recorder, len: usize) -> Result<Buffer, Error> {
    recorder.upload(&vec![f32::NAN; len])
}

/// What is in a destination before a kernel runs: NaN where it is overwritten, numbers where it is added to.
pub fn before(rng: &mut Rng, len: usize, store: larpo_gpu::Store) -> Vec<f32> {
    match store {
        larpo_gpu::Store::Set => vec![f32::NAN; len],
        larpo_gpu::Store::Add => rng.floats(len, 1.0),
    }
}

/// `result` in, or added to, what was `before`.
pub fn stored(before: &[f32], result: Vec<f64>, store: larpo_gpu::Store) -> Vec<f64> {
    match store {
        larpo_gpu::Store::Set => result,
        larpo_gpu::Store::Add => before.iter().zip(result).map(|(&b, r)| f64::from(b) + r).collect(),
    }
}

pub const STORES: [larpo_gpu::Store; 2] = [larpo_gpu::Store::Set, larpo_gpu::Store::Add];
