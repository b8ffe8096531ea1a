//! CPU time of the process, for the demo's comparison of equal effort.

/// Seconds of CPU time that this process has used, over all threads; wall time where the system does not tell.
pub fn cpu_seconds() -> f64 {
    from_proc().unwrap_or_else(wall_seconds)
}

fn from_proc() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields are counted after the command name, which ends with the last parenthesis: utime and stime are 12 and 13.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // Linux counts in USER_HZ, which is 100 on every architecture it reports to user space.
    Some((user + system) / 100.0)
}

fn wall_seconds() -> f64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}
