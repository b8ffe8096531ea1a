//! Aligned float buffers that return to a pool when dropped, so that a training loop allocates nothing in its steady state.

use super::bf16::Numbers;
use std::alloc::{Layout, handle_alloc_error};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// One cache line of floats.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

/// Bytes of a line.
pub(super) const LINE: usize = size_of::<Line>();

/// A block may be larger than what is asked for by one part in this many: a batch somewhat smaller than one before finds
/// that one's memory, instead of leaving it idle beside memory of its own. On GSM8K, whose rows are ragged, steps of
/// fine-tuning hold a third less for it; a larger reach costs steps of equal batches some percent.
const REACH: usize = 4;

/// Memory that a pool hands out.
pub(super) trait Block {
    /// Its size in cache lines.
    fn lines(&self) -> usize;
}

impl Block for Vec<Line> {
    fn lines(&self) -> usize {
        self.len()
    }
}

/// Blocks of memory to be used again, by size. Which block comes next, and when a new one is made, is decided here, for
/// the arrays themselves and for the dry run that only counts them.
pub(super) struct Pool<M = Vec<Line>> {
    state: Mutex<State<M>>,
}

struct State<M> {
    free: BTreeMap<usize, Vec<M>>,
    /// Lines of all blocks, free or in use.
    held: usize,
    /// Lines that a new block does not exceed while blocks are free.
    limit: usize,
}

impl<M> Default for Pool<M> {
    fn default() -> Self {
        Self { state: Mutex::new(State { free: BTreeMap::new(), held: 0, limit: usize::MAX }) }
    }
}

/// A flat array of `f32`, aligned to a cache line; of a frozen weight perhaps of bfloat16.
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
    half: bool,
    pool: Arc<Pool>,
}

/// Rounds a number of lines up to one of 32 sizes per doubling, so that ragged batches reuse each other's memory. Matrices of
/// usual sizes fall on such a size: eight a doubling cost a model of 135M parameters 4 % of what training holds.
fn size_class(lines: usize) -> usize {
    let step = (lines.next_power_of_two() / 64).max(1);
    lines.div_ceil(step) * step
}

impl<M: Block> State<M> {
    /// Drops all free blocks where there is no room for `lines` more. Fewer would leave holes in the system's allocator, which
    /// blocks of other sizes do not fit.
    fn make_room(&mut self, lines: usize) {
        if self.held + lines > self.limit {
            self.drop_free();
        }
    }

    fn drop_free(&mut self) {
        let blocks = std::mem::take(&mut self.free);
        self.held -= blocks.values().flatten().map(M::lines).sum::<usize>();
    }
}

impl<M: Block> Pool<M> {
    /// A block for `len` floats, a free one or one that `make` gives for a number of lines.
    pub(super) fn block(&self, len: usize, make: impl FnOnce(usize) -> M) -> M {
        let class = size_class(len.div_ceil(16));
        {
            let mut state = self.lock();
            let reused = state.free.range_mut(class..=class + class / REACH).find_map(|(_, free)| free.pop());
            if let Some(block) = reused {
                return block;
            }
            state.make_room(class);
            state.held += class;
        }
        make(class)
    }

    /// Takes a block back.
    pub(super) fn give(&self, block: M) {
        self.lock().free.entry(block.lines()).or_default().push(block);
    }

    pub(super) fn trim(&self) {
        self.lock().drop_free();
    }

    /// Free blocks are dropped rather than that all blocks take more than `bytes` together.
    pub(super) fn limit(&self, bytes: usize) {
        self.lock().limit = bytes / LINE;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<M>> {
        // The state is never left half-changed, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Pool {
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        Buffer { lines: self.lines(len), len, half: false, pool: self.clone() }
    }

    /// An array of bfloat16.
    pub(super) fn take_bf16(self: &Arc<Self>, len: usize) -> Buffer {
        Buffer { lines: self.lines(len.div_ceil(2)), len, half: true, pool: self.clone() }
    }

    /// Memory for `floats` floats.
    fn lines(&self, floats: usize) -> Vec<Line> {
        // Too little memory is no bug of the program's: it ends as where any other memory cannot be had.
        let make = |lines| match bytemuck::try_zeroed_vec(lines) {
            Ok(block) => block,
            Err(()) => handle_alloc_error(Layout::array::<Line>(lines).unwrap_or(Layout::new::<Line>())),
        };
        self.block(floats, make)
    }
}

impl Buffer {
    /// Number of floats.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no floats.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The floats, which must be of single precision.
    #[track_caller]
    pub fn as_slice(&self) -> &[f32] {
        assert!(!self.half, "{SINGLE}");
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The floats, writable.
    #[track_caller]
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        assert!(!self.half, "{SINGLE}");
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }

    /// The floats as they are stored.
    pub(super) fn numbers(&self) -> Numbers<'_> {
        match self.half {
            true => Numbers::Bf16(&bytemuck::cast_slice(&self.lines)[..self.len]),
            false => Numbers::F32(self.as_slice()),
        }
    }

    /// The upper halves of an array of bfloat16, writable.
    pub(super) fn halves_mut(&mut self) -> &mut [u16] {
        assert!(self.half, "an array of single precision has no halves");
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Why an operation does not take an array of bfloat16.
const SINGLE: &str = "weights in bfloat16 are the table of an embedding or the weight of a product";

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.lines));
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused_within_a_size_class() {
        let pool = Arc::new(Pool::default());
        let first = pool.take(100_000);
        let address = first.as_slice().as_ptr();
        drop(first);
        let second = pool.take(99_000);
        assert_eq!(second.as_slice().as_ptr(), address);
        assert_eq!(second.len(), 99_000);
        assert_eq!(address as usize % 64, 0);
    }

    #[test]
    fn beyond_a_limit_what_is_free_goes_first() {
        let pool = Arc::new(Pool::default());
        let held = |pool: &Pool| pool.lock().held * 16;
        let lens = [1 << 10, 1 << 12, 1 << 14, 1 << 16];
        let give_back = |pool: &Arc<Pool>| drop(lens.map(|len| pool.take(len)));
        give_back(&pool);
        let all = lens.iter().sum::<usize>();
        assert_eq!(held(&pool), all);
        pool.limit(4 * all);
        drop(pool.take(1 << 16));
        assert_eq!(held(&pool), all, "what fits is used again");
        let x = pool.take(1 << 13);
        assert_eq!(held(&pool), 1 << 13, "no room: what is free goes");
        let y = pool.take(1 << 14);
        assert_eq!(held(&pool), (1 << 13) + (1 << 14), "room");
        let w = pool.take(1 << 17);
        assert_eq!(held(&pool), (1 << 13) + (1 << 14) + (1 << 17), "what is in use stays");
        drop((w, x, y));
        pool.trim();
        assert_eq!(held(&pool), 0);
    }

    #[test]
    fn size_classes_waste_at_most_an_eighth() {
        for lines in 1..5000 {
            let class = size_class(lines);
            assert!(class >= lines && (class - lines) * 8 <= lines.max(8), "{lines} -> {class}");
        }
    }
}
