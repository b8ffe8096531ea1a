//! Work split over threads: rayon where the feature is on, plain loops otherwise. Everything parallel goes through here.

#[cfg(feature = "rayon")]
use rayon::prelude::*;

/// Threads that will share the work.
pub fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Rows per task so that each thread gets a few tasks and none is smaller than about `min` floats.
pub fn rows_per_task(rows: usize, width: usize, min: usize) -> usize {
    let tasks = (rows * width / min.max(1)).clamp(1, threads() * 2);
    rows.div_ceil(tasks).max(1)
}

/// Floats below which splitting work costs more than it saves (a task costs about a microsecond, a sleeping thread ten).
pub const MIN_TASK: usize = 16 * 1024;

/// Cuts `y (n, out)` into groups of `width` columns: for each group, its part of every row.
pub fn columns(y: &mut [f32], out: usize, width: usize) -> Vec<Vec<&mut [f32]>> {
    let rows = y.len() / out;
    let mut groups: Vec<Vec<&mut [f32]>> = (0..out).step_by(width).map(|_| Vec::with_capacity(rows)).collect();
    for row in y.chunks_exact_mut(out) {
        for (group, part) in groups.iter_mut().zip(row.chunks_mut(width)) {
            group.push(part);
        }
    }
    groups
}

/// Calls `f(first_row, rows)` on blocks of `y (n, width)`.
pub fn rows<F>(y: &mut [f32], width: usize, f: F)
where
    F: Fn(usize, &mut [f32]) + Sync,
{
    if y.is_empty() {
        return;
    }
    let block = rows_per_task(y.len() / width, width, MIN_TASK);
    if block * width >= y.len() {
        return f(0, y);
    }
    #[cfg(feature = "rayon")]
    y.par_chunks_mut(block * width).enumerate().for_each(|(i, chunk)| f(i * block, chunk));
    #[cfg(not(feature = "rayon"))]
    y.chunks_mut(block * width).enumerate().for_each(|(i, chunk)| f(i * block, chunk));
}

/// Calls `f` on every item of `tasks`, in parallel, in any order; a single one on the calling thread.
pub fn each<T: Send, F: Fn(T) + Sync + Send>(tasks: Vec<T>, f: F) {
    if tasks.len() <= 1 {
        return tasks.into_iter().for_each(f);
    }
    #[cfg(feature = "rayon")]
    tasks.into_par_iter().with_max_len(1).for_each(f);
    #[cfg(not(feature = "rayon"))]
    tasks.into_iter().for_each(f);
}

/// Maps every item of `tasks`, in parallel; results keep their order; a single one on the calling thread.
pub fn map<T: Send, R: Send, F: Fn(T) -> R + Sync + Send>(tasks: Vec<T>, f: F) -> Vec<R> {
    if tasks.len() <= 1 {
        return tasks.into_iter().map(f).collect();
    }
    #[cfg(feature = "rayon")]
    return tasks.into_par_iter().with_max_len(1).map(f).collect();
    #[cfg(not(feature = "rayon"))]
    tasks.into_iter().map(f).collect()
}
