//! The pool of threads that everything parallel uses.

use crate::error::{Error, Result};

/// Sizes the pool; `None` takes one thread a core.
///
/// # Errors
/// The pool was used before, or the system gives no threads.
pub fn set(threads: Option<usize>) -> Result<()> {
    // The calling thread is one of them: handing every operation to a pool and waiting for it costs two wake-ups.
    rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .num_threads(threads.unwrap_or(0))
        .build_global()
        .map_err(|error| Error::request(format!("cannot start {threads:?} threads: {error}")))
}
