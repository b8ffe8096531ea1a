//! Log-probability of target tokens through the head, one block of the vocabulary at a time.
//!
//! A block of logits `(rows, BLOCK)` is computed, folded into a running log-sum-exp, and dropped. Blocks run over the
//! vocabulary, not over rows, so that each row of the head is read once forward and its gradient written once backward.

use super::bf16::Numbers;
use super::matmul::{Threads, matmul, view, view_mut};
use super::{par, simd};
use crate::backend::Store;
use ndarray::s;

/// Floats of a block of logits: 4 MiB, a share of the last-level cache.
const BLOCK_FLOATS: usize = 1 << 20;

/// Vocabulary entries a block.
fn block_width(rows: usize, vocab: usize) -> usize {
    (BLOCK_FLOATS / rows.max(1)).next_multiple_of(64).clamp(256, 8192).min(vocab)
}

/// Targets of each row, as ranges into a list of target numbers.
struct Targets {
    starts: Vec<usize>,
    order: Vec<usize>,
}

impl Targets {
    fn new(rows: usize, target_rows: &[u32]) -> Self {
        let mut starts = vec![0; rows + 1];
        for &row in target_rows {
            starts[row as usize + 1] += 1;
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut order = vec![0; target_rows.len()];
        for (target, &row) in target_rows.iter().enumerate() {
            order[next[row as usize]] = target;
            next[row as usize] += 1;
        }
        Self { starts, order }
    }

    fn of(&self, row: usize) -> &[usize] {
        &self.order[self.starts[row]..self.starts[row + 1]]
    }
}

/// The operands of both directions: rows `h (r, c)`, head `w (v, c)`, and targets `(row, id)`.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub h: &'a [f32],
    pub w: Numbers<'a>,
    pub c: usize,
    /// Logits become `c·tanh(logit / c)`.
    pub softcap: Option<f32>,
    pub target_rows: &'a [u32],
    pub target_ids: &'a [u32],
}

/// Scratch: for a block of logits, [`tile_len`], and for the rows of a head that are widened, [`tile_columns`] of them.
type Scratch<'a> = (&'a mut [f32], &'a mut [f32]);

/// → `logp (targets)`, `lse (r)`.
pub fn token_logp(head: Head, logp: &mut [f32], lse: &mut [f32], (tile, wide): Scratch) {
    let Head { h, w, c, softcap, target_rows, target_ids } = head;
    let (rows, vocab) = (lse.len(), w.len() / c);
    let targets = Targets::new(rows, target_rows);
    // Running maximum and sum of exponentials of every row.
    let mut running = vec![(f32::NEG_INFINITY, 0f32); rows];
    for first in (0..vocab).step_by(block_width(rows, vocab)) {
        let width = block_width(rows, vocab).min(vocab - first);
        let tile = &mut tile[..rows * width];
        let block = w.slice(first * c..(first + width) * c).widened(wide);
        matmul(1.0, view(h, rows, c), view(block, width, c).t(), view_mut(tile, rows, width), Store::Set, Threads::All);
        let per_task = par::rows_per_task(rows, width, par::MIN_TASK);
        let tasks: Vec<_> = tile.chunks_mut(per_task * width).zip(running.chunks_mut(per_task)).collect();
        par::each(tasks, |(tile, running)| {
            simd::dispatch(
                #[inline(always)]
                || {
                    if let Some(c) = softcap {
                        tile.iter_mut().for_each(|x| *x = simd::softcap(c, *x).0);
                    }
                    for (row, (max, sum)) in tile.chunks_exact(width).zip(running) {
                        let new = simd::max(row).max(*max);
                        *sum = *sum * simd::exp(*max - new) + simd::sum_exp(row, new);
                        *max = new;
                    }
                },
            );
        });
        for (row, logits) in tile.chunks_exact(width).enumerate() {
            for &t in targets.of(row) {
                let id = target_ids[t] as usize;
                if (first..first + width).contains(&id) {
                    logp[t] = logits[id - first];
                }
            }
        }
    }
    for (lse, (max, sum)) in lse.iter_mut().zip(running) {
        *lse = max + sum.ln();
    }
    for (logp, &row) in logp.iter_mut().zip(target_rows) {
        *logp -= lse[row as usize];
    }
}

/// Columns of a block of logits.
pub fn tile_columns(rows: usize, vocab: usize) -> usize {
    block_width(rows, vocab)
}

/// Floats of a block of logits.
pub fn tile_len(rows: usize, vocab: usize) -> usize {
    rows * block_width(rows, vocab)
}

/// Gradient of [`token_logp`]: d_logit[row][v] = Σ_t d_logp[t]·(1[v = id_t] − p[row][v]) over the row's targets.
pub fn token_logp_grad(
    d_logp: &[f32],
    head: Head,
    lse: &[f32],
    d_h: (&mut [f32], Store),
    mut d_w: Option<(&mut [f32], Store)>,
    (tile, wide): Scratch,
) {
    let Head { h, w, c, softcap, target_rows, target_ids } = head;
    let (rows, vocab) = (lse.len(), w.len() / c);
    let targets = Targets::new(rows, target_rows);
    let totals: Vec<f32> = (0..rows).map(|row| targets.of(row).iter().map(|&t| d_logp[t]).sum()).collect();
    let (d_h, mut d_h_store) = d_h;
    for first in (0..vocab).step_by(block_width(rows, vocab)) {
        let width = block_width(rows, vocab).min(vocab - first);
        let tile = &mut tile[..rows * width];
        let block = view(w.slice(first * c..(first + width) * c).widened(wide), width, c);
        matmul(1.0, view(h, rows, c), block.t(), view_mut(tile, rows, width), Store::Set, Threads::All);
        par::rows(tile, width, |start, tile| {
            for (i, logits) in tile.chunks_exact_mut(width).enumerate() {
                let (total, lse) = (totals[start + i], lse[start + i]);
                let here = || {
                    let column = |&t: &usize| (t, (target_ids[t] as usize).wrapping_sub(first));
                    targets.of(start + i).iter().map(column).filter(|(_, column)| *column < width)
                };
                // The slope of the cap at the targets, before the logits are overwritten.
                let slopes: Vec<f32> = match softcap {
                    Some(c) => here().map(|(_, column)| simd::softcap(c, logits[column]).1).collect(),
                    None => Vec::new(),
                };
                simd::dispatch(
                    #[inline(always)]
                    || match softcap {
                        None => logits.iter_mut().for_each(|x| *x = -total * simd::exp(*x - lse)),
                        Some(c) => logits.iter_mut().for_each(|x| {
                            let (capped, slope) = simd::softcap(c, *x);
                            *x = -total * simd::exp(capped - lse) * slope;
                        }),
                    },
                );
                for (nth, (t, column)) in here().enumerate() {
                    logits[column] += d_logp[t] * slopes.get(nth).unwrap_or(&1.0);
                }
            }
        });
        let d_logits = view(tile, rows, width);
        matmul(1.0, d_logits, block, view_mut(d_h, rows, c), d_h_store, Threads::All);
        d_h_store = Store::Add;
        if let Some((d_w, store)) = &mut d_w {
            let mut d_w = view_mut(d_w, vocab, c);
            let d_block = d_w.slice_mut(s![first..first + width, ..]);
            matmul(1.0, d_logits.t(), view(h, rows, c), d_block, *store, Threads::All);
        }
    }
}
