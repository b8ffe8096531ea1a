//! What the machine can do: the rate of matrix products, the rate of memory, and the memory that this process used.

use larpo_core::backend::Store;
use larpo_core::cpu::matmul::{Threads, matmul, view, view_mut};
use larpo_core::cpu::{par, simd};
use larpo_core::lists::PackedLists;
use larpo_core::model::ModelConfig;
use std::convert::Infallible;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Columns of the head that one product covers: the logits are computed in blocks of the vocabulary.
const HEAD_BLOCK: usize = 2048;
/// Floats of a task of a memory pass: 4 MiB of each array, so that a slow thread hands work over.
const TASK: usize = 1 << 20;

/// The middle of some times, the mean of the two middle ones where their number is even.
pub fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    match seconds.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => seconds[n / 2],
        n => (seconds[n / 2 - 1] + seconds[n / 2]) / 2.0,
    }
}

/// Median seconds of `reps` calls after `warm_ups` untimed ones; the first failing call ends it.
pub fn timed<E>(warm_ups: usize, reps: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    for _ in 0..warm_ups {
        call()?;
    }
    times(reps, call).map(median)
}

/// Seconds of each of `reps` calls; the first failing call ends it.
pub fn times<E>(reps: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    let mut seconds = Vec::with_capacity(reps);
    for _ in 0..reps {
        let start = Instant::now();
        call()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// How the operands of a product are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `a (m, k) · b (k, n)`, both row-major: the gradient by an input.
    Nn,
    /// `a (m, k) · bᵀ` with `b (n, k)`: the forward pass.
    Nt,
    /// `aᵀ · b (k, n)` with `a (k, m)`: the gradient by a weight.
    Tn,
}

impl Kind {
    /// `nn`, `nt` or `tn`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nn => "nn",
            Self::Nt => "nt",
            Self::Tn => "tn",
        }
    }
}

/// A product `(m, k) · (k, n)` and the median time that one takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// What the model computes with it.
    pub name: String,
    /// Rows of the result.
    pub m: usize,
    /// Length of the sums.
    pub k: usize,
    /// Columns of the result.
    pub n: usize,
    /// Storage of the operands.
    pub kind: Kind,
    /// Median seconds; NaN before it is timed.
    pub seconds: f64,
}

impl Product {
    fn new(name: impl Into<String>, (m, k, n): (usize, usize, usize), kind: Kind) -> Self {
        Self { name: name.into(), m, k, n, kind, seconds: f64::NAN }
    }

    /// Floating-point operations a second.
    pub fn rate(&self) -> f64 {
        2.0 * self.m as f64 * self.k as f64 * self.n as f64 / self.seconds
    }

    /// Times the product on all threads of the pool.
    pub fn timed(mut self, warm_ups: usize, reps: usize) -> Self {
        let (m, k, n) = (self.m, self.k, self.n);
        let (a, b, mut c) = (numbers(m * k), numbers(k * n), vec![0f32; m * n]);
        let seconds = timed(warm_ups, reps, || {
            let (a, b) = match self.kind {
                Kind::Nn => (view(&a, m, k), view(&b, k, n)),
                Kind::Nt => (view(&a, m, k), view(&b, n, k).reversed_axes()),
                Kind::Tn => (view(&a, k, m).reversed_axes(), view(&b, k, n)),
            };
            matmul(1.0, a, b, view_mut(&mut c, m, n), Store::Set, Threads::All);
            black_box(&mut c);
            Ok::<(), Infallible>(())
        });
        self.seconds = seconds.unwrap_or_else(|never| match never {});
        self
    }
}

/// Numbers in [-0.5, 0.5) without a pattern that a product could profit from.
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

/// The median of 20 square products after 5 warm-ups, with the best routine built in.
pub fn square(side: usize) -> Product {
    Product::new(format!("{side}³"), (side, side, side), Kind::Nn).timed(5, 20)
}

/// The products of a training step on `packed`, each with its two gradients; not timed yet.
///
/// The head is one block of the vocabulary, of the width that it is computed in or near it.
pub fn shapes(config: &ModelConfig, packed: &PackedLists) -> Vec<Product> {
    let (spec, hidden, mlp) = (config.attention(), config.hidden_size, config.intermediate_size);
    let (rows, scored) = (packed.rows(), packed.scored_rows.len());
    // Name, rows, width of the input, width of the result.
    let layers = [
        ("qkv", rows, hidden, spec.qkv_width()),
        ("out", rows, spec.out_width(), hidden),
        ("gate_up", rows, hidden, 2 * mlp),
        ("down", rows, mlp, hidden),
        ("head", scored, hidden, config.vocab_size.min(HEAD_BLOCK)),
    ];
    layers
        .into_iter()
        .flat_map(|(name, rows, input, output)| {
            [
                Product::new(name, (rows, input, output), Kind::Nt),
                Product::new(format!("{name}_grad_x"), (rows, output, input), Kind::Nn),
                Product::new(format!("{name}_grad_w"), (output, rows, input), Kind::Tn),
            ]
        })
        .collect()
}

/// A measured pass over memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryPass {
    /// Bytes of one array.
    pub array_bytes: u64,
    /// Bytes counted for a pass, 12 an element: two reads and one write.
    pub bytes: u64,
    /// Median seconds of a pass.
    pub seconds: f64,
}

/// Median of `reps` passes `a = b + s·c` over three arrays of `array_bytes` each, or of a tenth of the machine's memory
/// where that is less, on all threads of the pool.
pub fn memory_pass(array_bytes: u64, reps: usize) -> MemoryPass {
    let array_bytes = total_memory().map_or(array_bytes, |total| array_bytes.min(total / 10));
    let len = (array_bytes / 4) as usize;
    let (mut a, mut b, mut c) = (vec![0f32; len], vec![0f32; len], vec![0f32; len]);
    // Pages that were never written all map to one page of zeros, which would be read from the cache.
    for (array, value) in [(&mut a, 0.5), (&mut b, 1.0), (&mut c, 2.0)] {
        par::each(array.chunks_mut(TASK).collect(), |chunk| chunk.fill(value));
    }
    let mut s = 0.0;
    let seconds = timed(1, reps, || {
        s += 1.0;
        scaled_sum(&mut a, &b, &c, black_box(s));
        black_box(&mut a);
        Ok::<(), Infallible>(())
    });
    let seconds = seconds.unwrap_or_else(|never| match never {});
    MemoryPass { array_bytes: 4 * len as u64, bytes: 12 * len as u64, seconds }
}

/// `a = b + s·c`.
pub fn scaled_sum(a: &mut [f32], b: &[f32], c: &[f32], s: f32) {
    let tasks: Vec<_> = a.chunks_mut(TASK).zip(b.chunks(TASK)).zip(c.chunks(TASK)).collect();
    par::each(tasks, |((a, b), c)| {
        simd::dispatch(|| {
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = b + s * c;
            }
        });
    });
}

/// The largest resident size that this process ever had, in MiB; known on Linux.
pub fn peak_rss_mib() -> Option<f64> {
    let kib = kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")?;
    Some(kib as f64 / 1024.0)
}

/// What of this process is in memory now, in bytes; known on Linux.
pub fn resident() -> Option<u64> {
    Some(kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")? * 1024)
}

/// Memory that this process may use, in bytes, the limits of its control groups included; known on Linux.
pub fn total_memory() -> Option<u64> {
    let machine = kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")? * 1024;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits =
        group_limits(&groups).into_iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    // `max`, and version 1's number near 2^63, are no limits.
    Some(limits.fold(machine, |least: u64, limit: u64| least.min(limit)))
}

/// Files that may hold a limit: those of the process's own groups and of every group around them (cgroups version 2 and 1).
fn group_limits(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        // Inside a container the path is the host's, and the root is the container's own group.
        files.extend(path.ancestors().map(|group| Path::new(root).join(group).join(name)));
    }
    files
}

/// The number of the line `key   123 kB`.
pub fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_all_groups_around_count() {
        let files = group_limits("0::/user.slice/app\n");
        let expected = ["user.slice/app/memory.max", "user.slice/memory.max", "memory.max"];
        assert_eq!(files, expected.map(|file| Path::new("/sys/fs/cgroup").join(file)));
        let files = group_limits("5:cpu,cpuacct:/x\n9:memory:/docker/1\n");
        let expected = ["docker/1/memory.limit_in_bytes", "docker/memory.limit_in_bytes", "memory.limit_in_bytes"];
        assert_eq!(files, expected.map(|file| Path::new("/sys/fs/cgroup/memory").join(file)));
        if cfg!(target_os = "linux") {
            assert!(total_memory() > resident(), "more than nothing, less than all");
        }
    }
}
