//! Whether a plan fits into the machine's memory, and what would make it fit.

use super::Plan;
use crate::error::{Error, Result};
use crate::machine;
use crate::messages::count;

/// What a user can change where a run does not fit.
#[derive(Debug, Clone, Copy)]
pub struct Advice {
    /// Rows or lists of a pass now.
    pub micro: usize,
    /// Passes of an update now.
    pub accumulation: usize,
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

/// Says in one line what a run is going to hold. `with` plans the run with another number of rows of a pass, and of passes
/// of an update. The result is what the run's backend is to keep within ([`Plan::arrays`]).
///
/// # Errors
/// A run that cannot fit into the machine, with the flags that would change it, and what `with` reports.
pub fn admit(plan: &Plan, advice: Advice, with: impl Fn(usize, usize) -> Result<Plan>) -> Result<u64> {
    let limit = machine::total_memory();
    let of = limit.map_or_else(String::new, |limit| format!(" of the machine's {}", bytes(limit)));
    let parts: Vec<String> = plan
        .parts(plan.peak())
        .into_iter()
        .filter(|(_, part)| *part > 0)
        .map(|(name, part)| format!("{} {}", name.replace('_', " "), bytes(part)))
        .collect();
    let updates = count(plan.updates as usize, "updates");
    // Lists of equal rewards are known when they are ranked.
    let most = if plan.sampled.is_some() { "at most " } else { "" };
    say!("plan: {most}{updates} with {}{of}: {}", bytes(plan.total()), parts.join(", "));
    match limit {
        Some(limit) if plan.total() > limit => {
            let total = |micro, accumulation| with(micro, accumulation).map(|plan| plan.total());
            let (needs, has) = (bytes(plan.total()), bytes(limit));
            let start = format!("this run needs {needs} of memory and the machine has {has}");
            Err(Error::request(refusal(start, (plan.total(), limit), advice, total)?))
        }
        _ => Ok(plan.arrays()),
    }
}

/// What to change where a device had no more than `gave` bytes for a run of `plan`. `with` is as in [`admit`].
///
/// # Errors
/// What `with` reports.
pub fn without_memory(
    plan: &Plan,
    gave: u64,
    advice: Advice,
    with: impl Fn(usize, usize) -> Result<Plan>,
) -> Result<String> {
    let needed = plan.arrays();
    let start = format!("this run needs about {} of device memory and the device gave {}", bytes(needed), bytes(gave));
    let arrays = |micro, accumulation| with(micro, accumulation).map(|plan| plan.arrays());
    // Nothing that takes as much as this can fit, whatever the plan has not counted.
    let mend = refusal(start, (needed, gave.min(needed.saturating_sub(1))), advice, arrays)?;
    Ok(format!("{mend}; or take --device cpu"))
}

/// `start` with what to change so that no more than `limit` bytes are needed. Every batch that is named was planned itself:
/// memory does not shrink in proportion to it.
fn refusal(
    start: String,
    (needed, limit): (u64, u64),
    advice: Advice,
    total: impl Fn(usize, usize) -> Result<u64>,
) -> Result<String> {
    let Advice { micro, accumulation, shorter } = advice;
    let shorter = shorter.join(" or ");
    // Divisors leave the updates what they are.
    let smaller: Vec<usize> = (1..micro).filter(|part| micro.is_multiple_of(*part)).collect();
    let with = |part: usize| total(part, accumulation * (micro / part));
    let least = match smaller.first() {
        Some(&one) => with(one)?,
        None => needed,
    };
    if least > limit {
        let so = if smaller.is_empty() { String::new() } else { format!(", {} with one row a pass", bytes(least)) };
        return Ok(format!("{start}{so}: choose a smaller model, or a smaller {shorter}"));
    }
    // The largest that fits, by halves: what fits is below what does not.
    let (mut fits, mut above) = ((0, least), smaller.len());
    while above - fits.0 > 1 {
        let middle = (fits.0 + above) / 2;
        match with(smaller[middle])? {
            bytes if bytes <= limit => fits = (middle, bytes),
            _ => above = middle,
        }
    }
    let part = smaller[fits.0];
    Ok(format!(
        "{start}; with --per_device_train_batch_size {part} --gradient_accumulation_steps {} the updates stay the same and \
         it needs {}; a smaller {shorter} needs less too",
        accumulation * (micro / part),
        bytes(fits.1)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_was_planned_to_fit() {
        let gib = 1 << 30;
        let advice = Advice { micro: 12, accumulation: 2, shorter: &["--max_length", "--num_generations"] };
        // Not in proportion: 3 GiB whatever the batch, half of one for each row, and 2 from four rows on.
        let total = |micro: usize, accumulation: usize| {
            assert_eq!(micro * accumulation, 24);
            Ok(3 * gib + micro as u64 * gib / 2 + if micro >= 4 { 2 * gib } else { 0 })
        };
        let start = || format!("this run needs {}", bytes(11 * gib));
        let refused = |limit| refusal(start(), (11 * gib, limit), advice, total).expect("plans");
        let text = refused(9 * gib);
        assert!(text.contains("--per_device_train_batch_size 6 --gradient_accumulation_steps 4 "), "{text}");
        assert!(text.contains("needs 11.0 GiB") && text.contains("it needs 8.00 GiB"), "{text}");
        let text = refused(6 * gib);
        assert!(text.contains("--per_device_train_batch_size 3 --gradient_accumulation_steps 8 "), "{text}");
        let text = refused(3 * gib);
        assert!(
            text.contains("3.50 GiB with one row a pass: choose a smaller model, or a smaller --max_length"),
            "{text}"
        );
        let one = Advice { micro: 1, ..advice };
        let text =
            refusal(start(), (11 * gib, 9 * gib), one, |_, _| Err(Error::request("nothing smaller"))).expect("no plan");
        assert!(text.contains("choose a smaller model") && !text.contains("one row"), "{text}");
    }

    #[test]
    fn sizes_read_well() {
        let mib = 1 << 20;
        let shown = [1, 3 * mib / 2, 513 * mib, 2765 * mib, 20 * 1024 * mib].map(bytes);
        assert_eq!(shown, ["0.0 MiB", "1.5 MiB", "513 MiB", "2.70 GiB", "20.0 GiB"]);
    }
}
