//! The pool of threads that everything parallel uses.

use crate::error::{Error, Result};

/// Sizes the pool; `None` takes one thread a core that this process may use: two threads of one core share the units that
/// products are made of, and wait for each other.
///
/// # Errors
/// The pool was used before, or the system gives no threads.
pub fn set(threads: Option<usize>) -> Result<()> {
    // The calling thread is one of them: handing every operation to a pool and waiting for it costs two wake-ups.
    rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .num_threads(threads.unwrap_or_else(of_the_machine))
        .build_global()
        .map_err(|error| Error::request(format!("cannot start {threads:?} threads: {error}")))
}

/// Cores that this process may use.
pub fn of_the_machine() -> usize {
    num_cpus::get_physical().min(num_cpus::get())
}
