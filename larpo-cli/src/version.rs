//! What this program is: version, commit, and what the processor allows it to use.

use larpo_core::cpu;

/// Version, commit where the build knew it, instruction set and features, on three lines.
pub fn long() -> String {
    let commit = option_env!("LARPO_COMMIT").map_or_else(String::new, |commit| format!(" (commit {commit})"));
    let features = match cpu::features() {
        [] => "none".into(),
        features => features.join(", "),
    };
    format!(
        "larpo {}{commit}\nCPU: {} on {}, {}\nfeatures: {features}",
        env!("CARGO_PKG_VERSION"),
        cpu::simd::instruction_set(),
        std::env::consts::ARCH,
        std::env::consts::OS,
    )
}
