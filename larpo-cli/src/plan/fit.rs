//! Whether a plan fits into the machine's memory, and what would make it fit.

use super::Plan;
use crate::error::{Error, Result};
use crate::machine;

/// What a user can change where a run does not fit.
#[derive(Debug, Clone, Copy)]
pub struct Advice {
    /// Rows or lists of a pass now.
    pub micro: usize,
    /// Flags that shorten rows, the most effective first.
    pub shorter: &'static [&'static str],
}

/// `513 MiB`, `2.7 GiB`.
pub fn bytes(n: u64) -> String {
    let mib = n as f64 / f64::from(1 << 20);
    match mib {
        m if m >= 10_240.0 => format!("{:.1} GiB", m / 1024.0),
        m if m >= 1024.0 => format!("{:.2} GiB", m / 1024.0),
        m if m >= 10.0 => format!("{m:.0} MiB"),
        m => format!("{m:.1} MiB"),
    }
}

/// Says in one line what a run is going to hold.
///
/// # Errors
/// A run that cannot fit into the machine, with the flags that would change it.
pub fn admit(plan: &Plan, advice: Advice) -> Result<()> {
    let limit = machine::total_memory();
    let of = limit.map_or_else(String::new, |limit| format!(" of the machine's {}", bytes(limit)));
    let parts: Vec<String> = plan
        .parts(plan.peak())
        .into_iter()
        .filter(|(_, part)| *part > 0)
        .map(|(name, part)| format!("{} {}", name.replace('_', " "), bytes(part)))
        .collect();
    say!("plan: {} updates with {}{of}: {}", plan.updates, bytes(plan.total()), parts.join(", "));
    match limit {
        Some(limit) if plan.total() > limit => Err(Error::request(refusal(plan, limit, advice))),
        _ => Ok(()),
    }
}

fn refusal(plan: &Plan, limit: u64, advice: Advice) -> String {
    let peak = plan.peak().map(|phase| phase.memory).unwrap_or_default();
    let needed = plan.total();
    let start = format!("this run needs {} of memory and the machine has {}", bytes(needed), bytes(limit));
    // What grows with the rows of a pass; the rest is there whatever the batch.
    let varies = peak.activations + peak.logits + peak.kv_cache;
    let fixed = needed - varies;
    if fixed >= limit {
        let model = bytes(fixed);
        return format!(
            "{start}; weights, gradients, moments, the data and the program alone need {model}: choose a smaller model or \
             a smaller --max_samples"
        );
    }
    let share = (limit - fixed) as f64 / varies as f64;
    let micro = (advice.micro as f64 * share).floor() as usize;
    let shorter = advice.shorter.join(" or ");
    if peak.kv_cache > 0 || micro < 1 {
        return format!("{start}; a smaller {shorter} would make it fit");
    }
    let accumulation = advice.micro.div_ceil(micro);
    format!(
        "{start}; --per_device_train_batch_size {micro} would make it fit (with --gradient_accumulation_steps times \
         {accumulation} the updates stay the same), and so would a smaller {shorter}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Phase, Planner};
    use larpo_core::cpu::Memory;
    use larpo_core::model::ModelConfig;
    use larpo_core::profile::Profile;

    fn plan(memory: Memory, other: u64) -> Plan {
        let mut plan = Planner::new(ModelConfig::new(16, 32, 1, 2, 2, 64), 0).finish(0);
        plan.phases.push(Phase { name: "train", memory, copies: 0, work: Profile::new() });
        Plan { other, ..plan }
    }

    #[test]
    fn a_refusal_names_what_would_fit() {
        let gib = 1 << 30;
        let memory =
            Memory { weights: gib, moments: 2 * gib, gradients: gib, activations: 8 * gib, ..Memory::default() };
        let advice = Advice { micro: 8, shorter: &["--max_length", "--num_generations"] };
        let text = refusal(&plan(memory, gib), 9 * gib, advice);
        assert!(text.contains("needs 13.0 GiB") || text.contains("needs 13.00 GiB"), "{text}");
        // 4 GiB are left for activations: half of the batch.
        assert!(text.contains("--per_device_train_batch_size 4 would") && text.contains("times 2 "), "{text}");
        let text = refusal(&plan(memory, gib), 5 * gib + gib / 2, advice);
        assert!(text.contains("smaller --max_length or --num_generations would"), "{text}");
        let text = refusal(&plan(memory, gib), 5 * gib, advice);
        assert!(text.contains("choose a smaller model"), "{text}");
        let sampling = Memory { weights: gib, kv_cache: 2 * gib, ..Memory::default() };
        let text = refusal(&plan(sampling, 0), 2 * gib, advice);
        assert!(text.contains("smaller --max_length or --num_generations would"), "{text}");
    }

    #[test]
    fn sizes_read_well() {
        let mib = 1 << 20;
        let shown = [1, 3 * mib / 2, 513 * mib, 2765 * mib, 20 * 1024 * mib].map(bytes);
        assert_eq!(shown, ["0.0 MiB", "1.5 MiB", "513 MiB", "2.70 GiB", "20.0 GiB"]);
    }
}
