//! The loss of one ranked list under the five objectives, before and after the policy has moved.
//!
//! ```text
//! cargo run --release --example list_losses
//! ```

use larpo_core::objective::{LossType, Objective, ObjectiveError, gamma};

fn main() -> Result<(), ObjectiveError> {
    // Four responses to one prompt. Two of them are equally good.
    let rewards = [1.0, 0.5, 0.5, 0.0];
    // Summed log-probabilities in nats: under the reference, and under a policy that has moved away from it.
    let reference = [-12.0, -9.0, -14.0, -10.0];
    let policy = [-9.0, -8.0, -15.0, -13.0];

    let (mut start, mut moved) = ([0.0; 4], [0.0; 4]);
    gamma(0.1, &reference, &reference, &mut start)?;
    gamma(0.1, &policy, &reference, &mut moved)?;
    println!("rewards {rewards:?}, γ = 0.1·(log πθ − log πref) = {moved:.2?}\n");
    println!("{:<12} {:>8} {:>8} {:>8}   dL/dγ", "loss", "γ = 0", "constant", "moved");

    for &loss in LossType::ALL {
        let objective = Objective { loss, ..Objective::default() };
        let mut gradient = [0.0; 4];
        // A list whose rewards are all equal has no loss: `None`, printed as NaN.
        let at_start = objective.evaluate(&start, &rewards, None, &mut gradient)?.unwrap_or(f64::NAN);
        let constant = objective.at_zero(&rewards, None)?.unwrap_or(f64::NAN);
        let after = objective.evaluate(&moved, &rewards, None, &mut gradient)?.unwrap_or(f64::NAN);
        println!("{loss:<12} {at_start:>8.4} {constant:>8.4} {after:>8.4}   {gradient:+.3?}");
    }
    Ok(())
}
