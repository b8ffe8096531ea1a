//! What this program is: version, commit, and what the processor allows it to use.

use larpo_core::cpu::{self, par};
use serde::{Deserialize, Serialize};

const COMMIT: Option<&str> = option_env!("LARPO_COMMIT");
const PLATFORM: [&str; 2] = [std::env::consts::ARCH, std::env::consts::OS];

/// A program on a machine, as records of runs keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Version of larpo.
    pub larpo: String,
    /// Commit, where the build knew it.
    pub commit: Option<String>,
    /// Instruction set in use, for instance AVX2.
    pub instruction_set: String,
    /// Architecture and operating system.
    pub platform: String,
    /// Threads that compute.
    pub threads: usize,
    /// Features of larpo-core.
    pub features: Vec<String>,
    /// What computes: the CPU, or an adapter with its driver. None in records of older versions, and of what computes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl Build {
    /// This program, here.
    pub fn current() -> Self {
        Self {
            larpo: env!("CARGO_PKG_VERSION").into(),
            commit: COMMIT.map(String::from),
            instruction_set: cpu::simd::instruction_set().into(),
            platform: PLATFORM.join(", "),
            threads: par::threads(),
            features: cpu::features().iter().map(ToString::to_string).collect(),
            device: None,
        }
    }
}

/// Version, commit where the build knew it, instruction set and features, on three lines.
pub fn long() -> String {
    // Not by way of [`Build`], which asks for the threads and so would start them before --threads is read.
    let commit = COMMIT.map_or_else(String::new, |commit| format!(" (commit {commit})"));
    let features = match cpu::features() {
        [] => "none".into(),
        features => features.join(", "),
    };
    format!(
        "larpo {}{commit}\nCPU: {} on {}\nfeatures: {features}",
        env!("CARGO_PKG_VERSION"),
        cpu::simd::instruction_set(),
        PLATFORM.join(", "),
    )
}
