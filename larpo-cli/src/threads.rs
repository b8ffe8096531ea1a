//! The pool of threads that everything parallel uses.

use crate::error::{Error, Result};

/// Sizes the pool; `None` takes one thread a core.
///
/// # Errors
/// The pool was used before, or the system gives no threads.
pub fn set(threads: Option<usize>) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build_global()
        .map_err(|error| Error::request(format!("cannot start {threads:?} threads: {error}")))
}
