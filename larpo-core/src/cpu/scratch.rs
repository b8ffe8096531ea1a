//! Working memory of a task: kept by its thread for the next one, so that a training loop allocates nothing.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of unspecified content. Calls may be nested.
pub fn with<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut memory = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    let result = f(&mut memory[..len]);
    FREE.with_borrow_mut(|free| free.push(memory));
    result
}

/// Calls `f` with an empty list of ids, whose memory the thread keeps. Calls are not nested.
pub fn with_ids<R>(f: impl FnOnce(&mut Vec<u32>) -> R) -> R {
    thread_local! {
        static IDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }
    let mut ids = IDS.take();
    ids.clear();
    let result = f(&mut ids);
    IDS.set(ids);
    result
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_kept_and_nested_calls_do_not_share_it() {
        let outer = super::with(100, |a| {
            a.fill(1.0);
            super::with(50, |b| b.fill(2.0));
            assert!(a.iter().all(|&v| v == 1.0));
            a.as_ptr() as usize
        });
        // The last one given back is the first one taken again.
        assert_eq!(super::with(100, |a| a.as_ptr() as usize), outer);
    }
}
