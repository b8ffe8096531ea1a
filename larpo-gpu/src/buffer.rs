//! Tensors on the device, and the pool they come from and go back to.

use crate::Error;
use crate::device::Gpu;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What a [`Buffer`] holds: `f32` or `u32`.
pub trait Element: bytemuck::Pod + sealed::Sealed {}
impl Element for f32 {}
impl Element for u32 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u32 {}
}

/// A flat array on the device. Clones are the same array; the last one to go gives the memory back to its pool.
#[derive(Debug)]
pub struct Buffer<T: Element = f32> {
    slot: Arc<Slot>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone(), len: self.len, element: PhantomData }
    }
}

impl<T: Element> Buffer<T> {
    /// The caller's own buffer, `len` elements of it, for use by kernels. It needs `BufferUsages::STORAGE`, and
    /// `COPY_SRC` to be read back.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for one with more elements than a `u32` counts.
    ///
    /// # Panics
    /// Where the buffer is shorter than `len` elements or lacks the usage.
    #[track_caller]
    pub fn from_wgpu(gpu: &Gpu, raw: wgpu::Buffer, len: usize) -> Result<Self, Error> {
        assert!(raw.size() >= 4 * len as u64, "from_wgpu: {len} elements in a buffer of {} bytes", raw.size());
        assert!(raw.usage().contains(wgpu::BufferUsages::STORAGE), "from_wgpu: a buffer without the usage STORAGE");
        check_size(gpu, raw.size())?;
        Ok(Self::new(Slot { raw: Some(raw), id: next_id(), pool: Weak::new() }, len))
    }

    fn new(slot: Slot, len: usize) -> Self {
        Self { slot: Arc::new(slot), len, element: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffer as wgpu knows it; it may be longer than [`Buffer::len`] elements.
    pub fn raw(&self) -> &wgpu::Buffer {
        self.slot.raw()
    }

    /// All of it, as a kernel sees it.
    pub(crate) fn whole(&self) -> View<'_> {
        View { slot: &self.slot, at: 0, bytes: 4 * self.len as u64 }
    }

    /// The elements of `range`, which begins at a multiple of [`View::ALIGNMENT`] elements.
    pub(crate) fn part(&self, range: Range<usize>) -> View<'_> {
        debug_assert!(range.start.is_multiple_of(View::ALIGNMENT) && range.end <= self.len);
        View { slot: &self.slot, at: 4 * range.start as u64, bytes: 4 * range.len() as u64 }
    }
}

/// What a kernel sees of a buffer: of one that a binding cannot show as a whole, a part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) slot: &'a Arc<Slot>,
    /// First byte.
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

impl View<'_> {
    /// Elements; no device wants bindings to begin at multiples of more than 256 bytes.
    pub(crate) const ALIGNMENT: usize = 64;
}

/// The memory of a [`Buffer`].
#[derive(Debug)]
pub(crate) struct Slot {
    raw: Option<wgpu::Buffer>,
    /// Names the memory in the cache of bind groups; never used twice.
    pub(crate) id: u64,
    /// Where it goes back to; nowhere for a buffer of the caller's.
    pool: Weak<Pool>,
}

impl Slot {
    pub(crate) fn raw(&self) -> &wgpu::Buffer {
        self.raw.as_ref().expect("taken only when dropped")
    }

    /// Whether this is a buffer of `pool`.
    pub(crate) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        std::ptr::eq(self.pool.as_ptr(), Arc::as_ptr(pool))
    }

    /// Whether it is a buffer that the caller made.
    pub(crate) fn is_foreign(&self) -> bool {
        self.pool.ptr_eq(&Weak::new())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let (Some(pool), Some(raw)) = (self.pool.upgrade(), self.raw.take()) {
            let freed_at = pool.submitted.load(Ordering::Relaxed);
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(raw.size()).or_default().push(Free { raw, id: self.id, freed_at });
        }
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn check_size(gpu: &Gpu, bytes: u64) -> Result<(), Error> {
    let limit = gpu.max_tensor_bytes();
    if bytes > limit { Err(Error::TooLarge { bytes, limit }) } else { Ok(()) }
}

#[derive(Debug)]
struct Free {
    raw: wgpu::Buffer,
    id: u64,
    /// Submissions made when it was given back: before one more, recorded commands may still use it.
    freed_at: u64,
}

/// Memory of one recorder: what is given back is used again for a tensor of about the same size.
///
/// Commands run in the order of their recording, so memory can be used again by later commands at once. Only the host's
/// writes overtake what is recorded and not yet submitted, so they take memory that was free before the last submission.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<HashMap<u64, Vec<Free>>>,
    submitted: AtomicU64,
    held: AtomicU64,
}

impl Pool {
    /// A buffer of `len` elements with unspecified contents; `for_host` when the host is going to write it. Where memory of
    /// its size is not free, `make_room` is called before all memory would take more than `limit` bytes, and once more
    /// when the device has none left.
    pub(crate) fn take<T: Element>(
        self: &Arc<Self>,
        gpu: &Gpu,
        len: usize,
        for_host: bool,
        limit: u64,
        make_room: impl Fn(),
    ) -> Result<Buffer<T>, Error> {
        let bytes = 4 * len as u64;
        check_size(gpu, bytes)?;
        // What one binding shows whole stays so.
        let whole = gpu.max_binding_bytes();
        let size = size_class(bytes).min(if bytes <= whole { whole } else { gpu.max_tensor_bytes() } / 4 * 4);
        let submitted = self.submitted.load(Ordering::Relaxed);
        let reused = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.get_mut(&size).and_then(|free| {
                let at = free.iter().rposition(|entry| !for_host || entry.freed_at < submitted)?;
                Some(free.swap_remove(at))
            })
        };
        let (raw, id) = match reused {
            Some(entry) => (entry.raw, entry.id),
            None => {
                if self.held() + size > limit {
                    make_room();
                }
                let created = match self.create(gpu, size) {
                    Err(Error::OutOfMemory { .. }) => {
                        make_room();
                        self.create(gpu, size)
                    }
                    created => created,
                };
                (created?, next_id())
            }
        };
        Ok(Buffer::new(Slot { raw: Some(raw), id, pool: Arc::downgrade(self) }, len))
    }

    fn create(&self, gpu: &Gpu, size: u64) -> Result<wgpu::Buffer, Error> {
        let held = self.held();
        let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return Err(Error::OutOfMemory { bytes: size, held });
        }
        self.held.fetch_add(size, Ordering::Relaxed);
        Ok(raw)
    }

    /// Bytes of all buffers, those kept for reuse included.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// To be called after every submission.
    pub(crate) fn submitted(&self) {
        self.submitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives what is free back to the system.
    pub(crate) fn trim(&self) {
        let free = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
        let bytes: u64 = free.iter().map(|(size, entries)| size * entries.len() as u64).sum();
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Sizes are rounded up by at most an eighth, so that tensors of nearly equal size share memory.
fn size_class(bytes: u64) -> u64 {
    let step = (bytes.max(256).next_power_of_two() / 16).max(256);
    bytes.max(1).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_by_an_eighth_at_most() {
        for bytes in [0, 4, 256, 260, 1 << 20, (1 << 20) + 4, 123_456_788] {
            let size = size_class(bytes);
            assert!(size >= bytes && size >= 256 && size.is_multiple_of(4), "{bytes} -> {size}");
            assert!(size <= bytes.max(256) + (bytes / 8).max(256), "{bytes} -> {size}");
            assert_eq!(size_class(size), size, "a class is its own");
        }
    }
}
