//! Finding what made a number that is not finite: looked for only when a step met one, and before anything is updated.

use crate::backend::Backend;
use crate::error::Error;
use crate::lists::PackedLists;
use crate::model::{Parameter, Transformer};
use crate::tape::Gradients;
use std::ops::Range;

/// The tensor, as checkpoints name it, of element `at` of a parameter, which may hold several; and the element in it.
fn place<B: Backend>(parameter: &Parameter<B>, at: usize) -> (&str, usize) {
    let tensor = parameter.tensors.iter().find(|t| t.rows.contains(&(at / parameter.cols)));
    tensor.map_or((&parameter.name, at), |t| (&t.name, at - t.rows.start * parameter.cols))
}

/// Weights that are not finite, by tensor: the one that has most of them, and how many others have some.
///
/// # Errors
/// [`Error::NotFinite`] with the tensor's name and the element.
pub fn check_weights<B: Backend>(model: &Transformer<B>) -> Result<(), Error> {
    check_those(model, |_| true)
}

/// [`check_weights`] of those that updates change.
///
/// # Errors
/// As [`check_weights`].
pub fn check_trained_weights<B: Backend>(model: &Transformer<B>) -> Result<(), Error> {
    check_those(model, |parameter| parameter.trainable)
}

fn check_those<B: Backend>(model: &Transformer<B>, of: impl Fn(&Parameter<B>) -> bool) -> Result<(), Error> {
    // After an update that blew up every tensor has some: the first one in the model's order would always be the embedding.
    let (mut worst, mut bad): (Option<(f64, String, usize)>, usize) = (None, 0);
    for (index, parameter) in model.parameters().iter().enumerate().filter(|(_, parameter)| of(parameter)) {
        let values = model.parameters().download(model.backend(), index);
        let Some(at) = values.iter().position(|v| !v.is_finite()) else { continue };
        let share = values.iter().filter(|v| !v.is_finite()).count() as f64 / values.len() as f64;
        bad += 1;
        if worst.as_ref().is_none_or(|(most, ..)| share > *most) {
            let (name, at) = place(parameter, at);
            worst = Some((share, name.to_string(), at));
        }
    }
    match worst {
        None => Ok(()),
        Some((share, name, at)) => {
            let others = match bad - 1 {
                0 => String::new(),
                1 => format!(" ({:.0} % of it, and a part of 1 other parameter)", 100.0 * share),
                n => format!(" ({:.0} % of it, and parts of {n} other parameters)", 100.0 * share),
            };
            Err(Error::NotFinite { what: format!("weight {name}{others}"), at: format!("element {at}") })
        }
    }
}

/// The first gradient that is not finite in the order of the backward pass, by tensor, for the update `update`: what is below
/// it in the model follows from it.
pub(crate) fn blame_gradients<B: Backend>(model: &Transformer<B>, gradients: &Gradients<B>, update: u64) -> Error {
    for (index, parameter) in model.parameters().iter().enumerate().collect::<Vec<_>>().into_iter().rev() {
        let values = gradients.get(index).map(|g| model.backend().read(g)).unwrap_or_default();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let (name, at) = place(parameter, at);
            let what = format!("the gradient of {name}");
            return Error::NotFinite { what, at: format!("update {update}, element {at}") };
        }
    }
    Error::NotFinite { what: "the norm of all gradients together".into(), at: format!("update {update}") }
}

/// What made a loss that is not finite: a weight, else the first log-probability, else the first score.
///
/// `logps` and `gamma` are those of `packed`, whose first list is the row `first_row` of the step; no `gamma` where there
/// are no scores.
pub(crate) fn blame_loss<B: Backend>(
    model: &Transformer<B>,
    packed: &PackedLists,
    logps: &[f64],
    gamma: &[f64],
    first_row: usize,
    update: u64,
) -> Error {
    if let Err(error) = check_weights(model) {
        return error;
    }
    for list in 0..packed.lists() {
        let items: Range<usize> = packed.item_offsets[list] as usize..packed.item_offsets[list + 1] as usize;
        for (response, item) in items.enumerate() {
            let row = |what: &str, token| Error::RowNotFinite {
                what: what.into(),
                row: first_row + list,
                response,
                token,
                update,
            };
            if let Some(token) = logps[packed.item_targets(item)].iter().position(|v| !v.is_finite()) {
                return row("a log-probability", Some(token));
            }
            if gamma.get(item).is_some_and(|v| !v.is_finite()) {
                return row("the score γ", None);
            }
        }
    }
    Error::NotFinite { what: "the loss".into(), at: format!("update {update}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::model::ModelConfig;

    #[test]
    fn the_first_bad_number_is_placed_in_its_row() {
        let model = Transformer::random(&Cpu::new(), ModelConfig::new(8, 8, 1, 2, 2, 9), 1).expect("a model");
        let lists: [(&[u32], Vec<&[u32]>); 2] = [(&[1, 2], vec![&[3], &[4, 5]]), (&[6], vec![&[7, 8], &[1], &[2, 3]])];
        let packed = PackedLists::pack(lists.iter().map(|(prompt, responses)| (*prompt, responses.iter().copied())));
        // Scored tokens in order: 3 | 4 5 || 7 8 | 1 | 2 3.
        let logps = |bad: usize| (0..8).map(|i| if i == bad { f64::NAN } else { -1.0 }).collect::<Vec<_>>();
        let row = |what: &str, row, response, token| Error::RowNotFinite {
            what: what.into(),
            row,
            response,
            token,
            update: 5,
        };
        let found = |bad: usize, gamma: &[f64]| blame_loss(&model, &packed, &logps(bad), gamma, 10, 5);
        assert_eq!(found(0, &[]), row("a log-probability", 10, 0, Some(0)));
        assert_eq!(found(2, &[0.0; 5]), row("a log-probability", 10, 1, Some(1)));
        assert_eq!(found(7, &[]), row("a log-probability", 11, 2, Some(1)));
        assert_eq!(found(99, &[0.0, 0.0, 0.0, f64::INFINITY, 0.0]), row("the score γ", 11, 1, None));
        assert_eq!(found(99, &[]), Error::NotFinite { what: "the loss".into(), at: "update 5".into() });
    }
}
