//! Softmax inside ranked lists, and the list losses with their gradients.

use super::lists::{LossType, RankedLists, Ties};
use super::{check, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Error, Recorder};

/// The losses over scores γ.
pub static SHADER: Shader = Shader {
    name: "list_loss",
    wgsl: concat!(include_str!("math.wgsl"), include_str!("list_loss.wgsl")),
    entries: &["contrastive", "listmle", "lipo_discounts", "pairs", "pair_sums"],
    bindings: &[Access::Read, Access::Read, Access::Write, Access::Write, Access::Write],
};

/// Scores γ from log-probabilities of targets, and gradients back to them.
pub static GAMMA: Shader = Shader {
    name: "list_gamma",
    wgsl: include_str!("list_gamma.wgsl"),
    entries: &["gamma_short", "gamma_long", "spread_short", "spread_long"],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Write],
};

/// Softmax inside lists.
pub static SOFTMAX: Shader = Shader {
    name: "list_softmax",
    wgsl: concat!(include_str!("math.wgsl"), include_str!("list_softmax.wgsl")),
    entries: &["list_softmax", "list_softmax_grad"],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Write],
};

/// Invocations in a workgroup of this module.
fn groups(n: usize) -> u64 {
    (n as u64).div_ceil(64)
}

/// `γ (items) = beta · Σ (logp − reference)` over every item's targets: `logp (targets), reference (targets)`.
///
/// The differences are added up, not the sums subtracted: those are far larger than what the losses look at.
#[track_caller]
pub fn gamma(
    recorder: &mut Recorder,
    lists: &RankedLists,
    beta: f64,
    logp: &Buffer,
    reference: &Buffer,
    gamma: &Buffer,
) {
    check("gamma", "logp", logp, lists.targets);
    check("gamma", "reference", reference, lists.targets);
    check("gamma", "gamma", gamma, lists.items);
    per_item(recorder, lists, ["gamma_short", "gamma_long"], beta, [logp, reference, gamma]);
}

/// `d_logp (targets) = factor · d_gamma (items)` of the target's item; `factor` is β times the scale of the losses.
#[track_caller]
pub fn gamma_grad(recorder: &mut Recorder, lists: &RankedLists, factor: f64, d_gamma: &Buffer, d_logp: &Buffer) {
    check("gamma_grad", "d_gamma", d_gamma, lists.items);
    check("gamma_grad", "d_logp", d_logp, lists.targets);
    per_item(recorder, lists, ["spread_short", "spread_long"], factor, [d_gamma, d_gamma, d_logp]);
}

fn per_item(
    recorder: &mut Recorder,
    lists: &RankedLists,
    [short, long]: [&'static str; 2],
    factor: f64,
    [x, reference, y]: [&Buffer; 3],
) {
    // By the mean length alone, so that the order of the sums is that of the shapes.
    let is_long = lists.targets >= 32 * lists.items;
    recorder.record(&Dispatch {
        shader: &GAMMA,
        entry: if is_long { long } else { short },
        buffers: &[slot(&lists.meta), slot(x), slot(reference), slot(y)],
        params: &[word(lists.items), word(lists.at.target_offsets), (factor as f32).to_bits()],
        groups: if is_long { lists.items as u64 } else { groups(lists.items) },
        work: BYTE * (8 * lists.targets + 8 * lists.items) as f64,
    });
}

/// The loss of every list and its gradient by every score: `γ (items) -> loss (lists)`, unscaled, and `d_gamma (items)`.
///
/// Lists that do not count (fewer than two items, all rewards equal except under [`Ties::Stable`]) have loss and gradient 0.
/// A γ of -∞ is a response of probability 0: among the rivals it contributes nothing, as the preferred item it makes the loss
/// +∞ with a finite gradient. A γ that is NaN or +∞, and two of -∞ in one comparison, make the loss of their list NaN and its
/// gradient 0.
///
/// # Errors
/// [`Error::OutOfMemory`].
#[track_caller]
pub fn list_loss(
    recorder: &mut Recorder,
    lists: &RankedLists,
    gamma: &Buffer,
    loss: &Buffer,
    d_gamma: &Buffer,
) -> Result<(), Error> {
    check("list_loss", "gamma", gamma, lists.items);
    check("list_loss", "loss", loss, lists.lists);
    check("list_loss", "d_gamma", d_gamma, lists.items);
    let scratch: Buffer = recorder.alloc(2 * lists.items)?;
    let work = lists.items as f64 * (60.0 + BYTE * 64.0);
    // Every item looks at every other one of its list.
    let pair_work = lists.items as f64 * (lists.items as f64 / lists.lists.max(1) as f64) * 40.0;
    let lipo = lists.loss == LossType::LipoLambda;
    let params = [
        word(lists.lists),
        word(lists.items),
        word(lists.at.counts),
        word(lists.at.norm),
        word(lists.at.list_of),
        word(lists.at.order),
        word(lists.at.group),
        word(lists.at.gain),
        match lists.ties {
            Ties::Stable | Ties::Shuffled => 0,
            Ties::Skip => 1,
            Ties::Share => 2,
        },
        u32::from(lipo),
        if lists.log2 { std::f32::consts::LOG2_E } else { 1.0 }.to_bits(),
        f32::NAN.to_bits(),
        f32::INFINITY.to_bits(),
    ];
    let mut run = |entry, groups, work| {
        recorder.record(&Dispatch {
            shader: &SHADER,
            entry,
            buffers: &[slot(&lists.meta), slot(gamma), slot(&scratch), slot(d_gamma), slot(loss)],
            params: &params,
            groups,
            work,
        });
    };
    match lists.loss {
        LossType::Contrastive => run("contrastive", groups(lists.lists), work),
        LossType::Listmle => run("listmle", groups(lists.lists), work),
        LossType::Pairwise | LossType::Lambdarank | LossType::LipoLambda => {
            if lipo {
                run("lipo_discounts", groups(lists.items), work + pair_work);
            }
            run("pairs", groups(lists.items), work + pair_work);
            run("pair_sums", groups(lists.lists), work);
        }
    }
    Ok(())
}

/// Softmax inside every list: `x (items) -> y (items)`.
#[track_caller]
pub fn list_softmax(recorder: &mut Recorder, lists: &RankedLists, x: &Buffer, y: &Buffer) {
    softmax(recorder, lists, "list_softmax", [x, x, y]);
}

/// `y (items)` the softmax, `d_y (items) -> d_x (items)`.
#[track_caller]
pub fn list_softmax_grad(recorder: &mut Recorder, lists: &RankedLists, y: &Buffer, d_y: &Buffer, d_x: &Buffer) {
    softmax(recorder, lists, "list_softmax_grad", [y, d_y, d_x]);
}

#[track_caller]
fn softmax(recorder: &mut Recorder, lists: &RankedLists, entry: &'static str, [x, d_y, y]: [&Buffer; 3]) {
    for (name, buffer) in [("x", x), ("d_y", d_y), ("y", y)] {
        check(entry, name, buffer, lists.items);
    }
    recorder.record(&Dispatch {
        shader: &SOFTMAX,
        entry,
        buffers: &[slot(&lists.meta), slot(x), slot(d_y), slot(y)],
        params: &[word(lists.lists)],
        groups: groups(lists.lists),
        work: lists.items as f64 * (20.0 + BYTE * 20.0),
    });
}
