//! What each operation of a step or of a sampling run took, beside the least that its own work takes on this machine.

use super::floor::Machine;
use crate::table::Table;
use larpo_core::profile::{Cost, Profile};
use serde_json::{Value, json};

/// The operations of some runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What they took, added up over the runs.
    pub profile: Profile,
    /// Seconds of all runs together.
    pub seconds: f64,
    /// Number of runs.
    pub runs: usize,
}

/// One line of the report, as means over the runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Name of the operation.
    pub op: &'static str,
    /// Its dimensions, empty where they vary.
    pub shape: String,
    /// Calls, seconds, operations and bytes of one run.
    pub cost: Cost,
    /// Part of the run's seconds.
    pub share: f64,
    /// Whether products bound its floor rather than memory.
    pub by_products: bool,
    /// The longer of `flops / R` and `bytes / B`, in seconds a run; none for what has neither.
    pub floor: Option<f64>,
}

/// Name of the line for what passes between operations.
pub const OUTSIDE: &str = "outside of operations";

impl Measured {
    /// The operations, the longest first, and then what is outside of them.
    pub fn lines(&self, machine: Machine) -> Vec<Line> {
        let runs = self.runs.max(1) as f64;
        let line = |op, shape: String, cost: Cost| {
            let (products, memory) = (cost.flops / machine.flops_per_second, cost.bytes / machine.bytes_per_second);
            let floor = products.max(memory) / runs;
            Line {
                op,
                shape,
                cost: Cost {
                    calls: cost.calls / self.runs.max(1) as u64,
                    seconds: cost.seconds / runs,
                    flops: cost.flops / runs,
                    bytes: cost.bytes / runs,
                },
                share: cost.seconds / self.seconds,
                by_products: products > memory,
                floor: (floor > 0.0).then_some(floor),
            }
        };
        let mut lines: Vec<Line> =
            self.profile.iter().map(|((op, shape), cost)| line(*op, shape.to_string(), *cost)).collect();
        lines.sort_by(|a, b| b.cost.seconds.total_cmp(&a.cost.seconds));
        let inside: f64 = self.profile.values().map(|cost| cost.seconds).sum();
        let outside = Cost { seconds: self.seconds - inside, ..Cost::default() };
        lines.push(line(OUTSIDE, String::new(), outside));
        lines
    }
}

impl Line {
    /// Gigaflops or gigabytes a second, whichever bounds the floor.
    fn rate(&self) -> Option<String> {
        let (amount, unit) = if self.by_products { (self.cost.flops, "GFLOP/s") } else { (self.cost.bytes, "GB/s") };
        self.floor.map(|_| format!("{:.1} {unit}", amount / self.cost.seconds / 1e9))
    }

    /// Seconds over the floor.
    fn distance(&self) -> Option<f64> {
        self.floor.map(|floor| self.cost.seconds / floor)
    }

    fn json(&self) -> Value {
        let rate = |amount: f64| (amount > 0.0).then(|| amount / self.cost.seconds / 1e9);
        json!({
            "op": self.op,
            "shape": self.shape,
            "calls": self.cost.calls,
            "seconds": self.cost.seconds,
            "share": self.share,
            "gflops": rate(self.cost.flops),
            "gbps": rate(self.cost.bytes),
            "floor_seconds": self.floor,
            "distance": self.distance(),
        })
    }
}

/// The lines as a table.
pub fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(["operation", "shape", "calls", "ms", "share", "rate", "× floor"]);
    for line in lines {
        table.row([
            line.op.to_string(),
            line.shape.clone(),
            if line.cost.calls == 0 { String::new() } else { line.cost.calls.to_string() },
            format!("{:.3}", line.cost.seconds * 1e3),
            format!("{:.1}%", 100.0 * line.share),
            line.rate().unwrap_or_default(),
            line.distance().map_or_else(String::new, |distance| format!("{distance:.2}")),
        ]);
    }
    table
}

/// The lines as an array.
pub fn json(lines: &[Line]) -> Value {
    Value::Array(lines.iter().map(Line::json).collect())
}
