//! Which variant of a product is the fastest for its shape: measured on the adapter when such a shape first comes, and
//! remembered.

use super::elementwise::fill;
use super::matmul::{Matrix, Variant, matmul_as};
use crate::{Error, Gpu, Recorder, Store, Weight};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Instant;

/// First line of the text form; another number for another meaning.
const HEADER: &str = "larpo-gpu tuning 1";
/// Elements of the result that is measured, 16 MiB of them: of a larger one as many columns as that takes.
const RESULT: usize = 4 << 20;
/// Seconds of a measurement, about; of a product that takes longer, one.
const ROUND: f64 = 1e-3;
/// Measurements of a variant; the least counts.
const ROUNDS: usize = 3;
/// A variant that takes so many times the best is measured no further.
const HOPELESS: f64 = 3.0;

/// Products that take the same variant: sizes with the same next power of two, the same layout, the same precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    m: usize,
    n: usize,
    k: usize,
    /// Whether the operand's memory holds its transpose.
    a_transposed: bool,
    b_transposed: bool,
    b_half: bool,
}

impl Class {
    fn of(a: &Matrix, b: &Matrix) -> Self {
        let [(m, k), (_, n)] = [a.shape(), b.shape()];
        let [m, n, k] = [m, n, k].map(|size| size.max(1).next_power_of_two());
        let b_half = matches!(b.numbers(), Weight::Bf16(_));
        Self { m, n, k, a_transposed: a.is_transposed(), b_transposed: b.is_transposed(), b_half }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = |transposed| if transposed { 't' } else { 'n' };
        let (a, b) = (layout(self.a_transposed), layout(self.b_transposed));
        let precision = if self.b_half { "bf16" } else { "f32" };
        write!(f, "{} {} {} {a}{b} {precision}", self.m, self.n, self.k)
    }
}

/// The variants that were chosen so far, for [`Gpu::autotune`]. Its text form belongs to an adapter, its driver and these
/// kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning(BTreeMap<Class, Variant>);

impl Tuning {
    /// Number of kinds of products whose variant is known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a text form belongs to: adapter, backend, driver, and a hash of the kernels.
    pub fn key(gpu: &Gpu) -> String {
        let all = super::ALL.iter().chain(super::OPTIONAL);
        let texts = all.filter(|shader| shader.name.starts_with("matmul")).map(|shader| shader.wgsl);
        // FNV-1a.
        let hash = texts
            .flat_map(str::bytes)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        // Where products may be in half precision, others are the fastest.
        let half = if gpu.matrix_units().is_some() { ", half precision" } else { "" };
        let key = format!("{gpu}{half}, kernels {hash:016x}");
        key.replace(['\n', '\r'], " ")
    }

    /// Takes over what `other` knows and this does not.
    pub fn merge(&mut self, other: Self) {
        for (class, variant) in other.0 {
            self.0.entry(class).or_insert(variant);
        }
    }

    /// Lines: a header, the [key](Tuning::key), and for each kind of product m, n, k (at most), layout, precision, variant.
    pub fn to_text(&self, key: &str) -> String {
        let mut text = format!("{HEADER}\n{key}\n");
        for (class, variant) in &self.0 {
            writeln!(text, "{class} {variant:?}").expect("a text takes everything");
        }
        text
    }

    /// What [`Tuning::to_text`] wrote; none where that has another key, or is no such text.
    pub fn from_text(text: &str, key: &str) -> Option<Self> {
        let mut lines = text.lines();
        let belongs = lines.next()? == HEADER && lines.next()? == key;
        let parse = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let &[m, n, k, layout, precision, variant] = &words[..] else { return None };
            let transposed = |letter| match letter {
                b'n' => Some(false),
                b't' => Some(true),
                _ => None,
            };
            let &[a, b] = layout.as_bytes() else { return None };
            let class = Class {
                m: m.parse().ok()?,
                n: n.parse().ok()?,
                k: k.parse().ok()?,
                a_transposed: transposed(a)?,
                b_transposed: transposed(b)?,
                b_half: ["f32", "bf16"].iter().position(|name| *name == precision)? == 1,
            };
            let all = Variant::ALL.into_iter().chain([Variant::MatrixUnits]);
            let variant = all.into_iter().find(|known| format!("{known:?}") == variant)?;
            Some((class, variant))
        };
        if belongs { lines.map(parse).collect::<Option<_>>().map(Self) } else { None }
    }
}

/// What a device knows of its products while it tunes them.
pub(crate) struct Autotune {
    known: Tuning,
    on_choice: Box<dyn Fn(&Tuning) + Send>,
}

impl fmt::Debug for Autotune {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Autotune").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Gpu {
    /// From here on the variant of a product is what was the fastest on this device when a product of its kind first came:
    /// sizes with the same next powers of two, the same layout and precision. `known` was measured before; `on_choice` is
    /// called with all that is known when something is new, so that it can be kept at once. A recorder that does not submit by
    /// itself measures nothing.
    ///
    /// Sums of different variants round in different ways: results are the same bits from run to run as long as what is known
    /// is.
    pub fn autotune(&self, known: Tuning, on_choice: impl Fn(&Tuning) + Send + 'static) {
        *self.tuning() = Some(Autotune { known, on_choice: Box::new(on_choice) });
    }
}

/// The variant for `a · b`.
pub(super) fn choose(recorder: &mut Recorder, a: Matrix, b: Matrix) -> Variant {
    let usual = Variant::choose(recorder, &a, &b);
    let class = Class::of(&a, &b);
    match &*recorder.gpu().tuning() {
        None => return usual,
        Some(autotune) => {
            if let Some(variant) = autotune.known.0.get(&class) {
                return *variant;
            }
        }
    }
    if recorder.is_borrowed() {
        return usual;
    }
    // Without memory to measure in, and on a device that fails, the usual one is as good as any.
    let Ok(variant) = fastest(recorder, a, b) else { return usual };
    if let Some(autotune) = &mut *recorder.gpu().tuning() {
        // Another recorder may have been faster.
        let variant = *autotune.known.0.entry(class).or_insert(variant);
        (autotune.on_choice)(&autotune.known);
        return variant;
    }
    variant
}

fn fastest(recorder: &mut Recorder, a: Matrix, b: Matrix) -> Result<Variant, Error> {
    let ((m, k), (_, n)) = (a.shape(), b.shape());
    let n = n.min((RESULT / m.max(1)).max(128));
    let b = b.first_columns(n);
    let (c, probe) = (recorder.alloc(m * n)?, recorder.alloc::<f32>(1)?);
    fill(recorder, &probe, 0.0);
    let mut best: Option<(f64, Variant)> = None;
    for variant in Variant::of(recorder.gpu()) {
        if !variant.suits(recorder, (m, n, k)) {
            continue;
        }
        let mut seconds = |runs: usize| -> Result<f64, Error> {
            recorder.read(&probe)?;
            let start = Instant::now();
            for _ in 0..runs {
                matmul_as(recorder, variant, a, b, None, Matrix::new(&c, m, n), Store::Set);
            }
            recorder.read(&probe)?;
            Ok(start.elapsed().as_secs_f64() / runs as f64)
        };
        // Compiles the kernel.
        seconds(1)?;
        let mut least = seconds(1)?;
        if best.is_some_and(|(best, _)| least > HOPELESS * best.max(ROUND)) {
            continue;
        }
        let runs = ((ROUND / least) as usize).clamp(1, 64);
        for _ in 0..ROUNDS {
            least = least.min(seconds(runs)?);
        }
        if best.is_none_or(|(best, _)| least < best) {
            best = Some((least, variant));
        }
    }
    Ok(best.map_or_else(|| Variant::choose(recorder, &a, &b), |(_, variant)| variant))
}
