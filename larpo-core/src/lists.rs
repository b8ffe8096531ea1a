//! Lists in the shapes the model and the losses take them: packed token rows, and ranked responses over scored tokens.

use crate::backend::Segment;
use crate::error::Error;
use crate::objective::{LipoLabels, LossType, Objective, Ranking};
use std::ops::Range;

/// Prompts with their responses as ragged rows without padding: `[prompt | r1 | … | rk]` a list, lists one after another.
///
/// - Token `t` of a response stands at position `len(prompt) + t`, so every response continues the prompt.
/// - A row sees the prompt of its own list and its own segment up to itself ([`Segment`]).
/// - A *target* is a pair (row that predicts, token id). The last prompt row predicts the first token of every response,
///   a response's row its next token. With an empty prompt a response's first token has no predicting row and is no
///   target.
///
/// The result of a forward and backward pass equals that of separate rows `prompt + response`, at a fraction of the work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedLists {
    /// Token id of every row.
    pub ids: Vec<u32>,
    /// Position of every row.
    pub positions: Vec<u32>,
    /// Who sees whom.
    pub segments: Vec<Segment>,
    /// Distinct rows that predict something, ascending; the head runs on these alone.
    pub scored_rows: Vec<u32>,
    /// Predicting row of every target, as an index into `scored_rows`.
    pub target_rows: Vec<u32>,
    /// Token id of every target.
    pub target_ids: Vec<u32>,
    /// First target of every response, and one past the last.
    pub target_offsets: Vec<u32>,
    /// First response of every list, and one past the last.
    pub item_offsets: Vec<u32>,
    /// Last row of every response; [`PackedLists::NO_ROW`] of an empty one.
    pub last_rows: Vec<u32>,
}

impl PackedLists {
    /// Stands for a row that there is not.
    pub const NO_ROW: u32 = u32::MAX;

    /// Packs lists of `(prompt, responses)`.
    pub fn pack<'a, R>(lists: impl IntoIterator<Item = (&'a [u32], R)>) -> Self
    where
        R: IntoIterator<Item = &'a [u32]>,
    {
        let mut packed = Self { target_offsets: vec![0], item_offsets: vec![0], ..Self::default() };
        for (prompt, responses) in lists {
            packed.push(prompt, responses);
        }
        packed
    }

    fn push<'a>(&mut self, prompt: &[u32], responses: impl IntoIterator<Item = &'a [u32]>) {
        let start = self.ids.len() as u32;
        let prompt_len = prompt.len() as u32;
        let responses: Vec<&[u32]> = responses.into_iter().collect();
        // A single response simply continues its prompt: one causal run is less work than two.
        let single = responses.len() == 1;
        self.push_rows(prompt, 0);
        if !prompt.is_empty() {
            let len = if single { prompt_len + responses[0].len() as u32 } else { prompt_len };
            self.segments.push(Segment { start, len, prefix_start: start, prefix_len: 0 });
        }
        // Index of the last prompt row among the scored rows, once a response needs it.
        let mut prompt_target = None;
        for response in responses {
            let first = self.ids.len() as u32;
            self.push_rows(response, prompt_len);
            self.last_rows.push(match response.len() as u32 {
                0 => Self::NO_ROW,
                len => first + len - 1,
            });
            let continues_prompt = single && prompt_len > 0;
            if !response.is_empty() && !continues_prompt {
                let prefix_start = if prompt.is_empty() { first } else { start };
                self.segments.push(Segment {
                    start: first,
                    len: response.len() as u32,
                    prefix_start,
                    prefix_len: prompt_len,
                });
            }
            for (t, &id) in response.iter().enumerate() {
                let row = match t {
                    0 if prompt.is_empty() => continue,
                    0 => *prompt_target.get_or_insert_with(|| {
                        self.scored_rows.push(start + prompt_len - 1);
                        self.scored_rows.len() as u32 - 1
                    }),
                    _ => {
                        self.scored_rows.push(first + t as u32 - 1);
                        self.scored_rows.len() as u32 - 1
                    }
                };
                self.target_rows.push(row);
                self.target_ids.push(id);
            }
            self.target_offsets.push(self.target_ids.len() as u32);
        }
        self.item_offsets.push(self.target_offsets.len() as u32 - 1);
    }

    fn push_rows(&mut self, ids: &[u32], first_position: u32) {
        self.ids.extend_from_slice(ids);
        self.positions.extend((0..ids.len() as u32).map(|t| first_position + t));
    }

    /// Rows of all lists together.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Scored tokens of all responses together.
    pub fn targets(&self) -> usize {
        self.target_ids.len()
    }

    /// Responses of all lists together.
    pub fn items(&self) -> usize {
        self.target_offsets.len() - 1
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.item_offsets.len() - 1
    }

    /// Targets of response `item`.
    pub fn item_targets(&self, item: usize) -> Range<usize> {
        self.target_offsets[item] as usize..self.target_offsets[item + 1] as usize
    }

    /// Pairs (query, key) that see each other, over all rows: the work of attention.
    pub fn visible_pairs(&self) -> u64 {
        self.segments
            .iter()
            .map(|s| u64::from(s.len) * u64::from(s.prefix_len) + u64::from(s.len) * (u64::from(s.len) + 1) / 2)
            .sum()
    }
}

/// What a list loss needs to know about a packed batch: which targets make up a response, which responses a list, and
/// their rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedLists {
    objective: Objective,
    beta: f64,
    scale: f64,
    target_offsets: Vec<u32>,
    item_offsets: Vec<u32>,
    rewards: Vec<f64>,
    /// What tells the lists apart, the same in every batch.
    keys: Vec<u64>,
}

impl RankedLists {
    /// Lists over the targets of `packed`, with one reward a response.
    ///
    /// `scale` multiplies every list's loss: one over the contributing lists of the whole optimizer step, so that
    /// micro-batches add up to one big batch.
    ///
    /// # Errors
    /// A reward that is not finite or, as a label, too large; a β that is not finite and positive; a wrong number of
    /// rewards.
    pub fn new(
        packed: &PackedLists,
        rewards: Vec<f64>,
        objective: Objective,
        beta: f64,
        scale: f64,
    ) -> Result<Self, Error> {
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Error::setting("beta", beta, "a finite number above 0"));
        }
        if rewards.len() != packed.items() {
            return Err(Error::setting("rewards", rewards.len(), "one reward for every response"));
        }
        if let Some(bad) = rewards.iter().position(|r| !r.is_finite()) {
            return Err(Error::setting("reward", rewards[bad], "a finite number"));
        }
        let lists = Self {
            objective,
            beta,
            scale,
            target_offsets: packed.target_offsets.clone(),
            item_offsets: packed.item_offsets.clone(),
            rewards,
            keys: (0..packed.lists()).map(|list| key(packed, list)).collect(),
        };
        if objective.loss == LossType::LipoLambda && objective.labels == LipoLabels::Reward {
            lists.check_labels()?;
        }
        Ok(lists)
    }

    /// Refuses rewards that give no finite weight as labels.
    fn check_labels(&self) -> Result<(), Error> {
        for (list, ranking) in PreparedLists::new(self).rankings.iter().enumerate() {
            let zeros = vec![0.0; self.items_of(list).len()];
            let mut d_gamma = zeros.clone();
            let refused = |problem: &dyn std::fmt::Display| {
                Error::Caller(format!("rewards as labels: {problem}; bring them between 0 and 1"))
            };
            let loss =
                self.objective.evaluate_ranked(ranking, &zeros, &mut d_gamma).map_err(|error| refused(&error))?;
            if !d_gamma.iter().chain(&loss).all(|&x| (x as f32).is_finite()) {
                return Err(refused(&"the loss is too large for single precision"));
            }
        }
        Ok(())
    }

    /// Factor on every list's loss.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.item_offsets.len() - 1
    }

    /// Number of responses.
    pub fn items(&self) -> usize {
        self.rewards.len()
    }

    /// The loss with its options.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// Factor on the differences of log-probabilities.
    pub fn beta(&self) -> f64 {
        self.beta
    }

    /// First response of every list, and one past the last.
    pub fn item_offsets(&self) -> &[u32] {
        &self.item_offsets
    }

    /// First target of every response, and one past the last.
    pub fn target_offsets(&self) -> &[u32] {
        &self.target_offsets
    }

    /// Reward of every response.
    pub fn rewards(&self) -> &[f64] {
        &self.rewards
    }

    /// The responses of every list from the best on, those of equal reward by the rule for ties: `(items)`, numbers over all
    /// lists.
    pub fn order(&self) -> Vec<u32> {
        let of_list = |(list, ranking): (usize, &Ranking)| {
            let first = self.item_offsets[list];
            ranking.order().iter().map(move |&slot| first + slot as u32).collect::<Vec<_>>()
        };
        PreparedLists::new(self).rankings.iter().enumerate().flat_map(of_list).collect()
    }

    fn items_of(&self, list: usize) -> Range<usize> {
        self.item_offsets[list] as usize..self.item_offsets[list + 1] as usize
    }
}

/// A number that tells lists apart by their scored tokens (FNV-1a).
fn key(packed: &PackedLists, list: usize) -> u64 {
    let items = packed.item_offsets[list] as usize..packed.item_offsets[list + 1] as usize;
    let ids =
        &packed.target_ids[packed.target_offsets[items.start] as usize..packed.target_offsets[items.end] as usize];
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// [`RankedLists`] with the order of every list worked out once, evaluated on the host in `f64`.
#[derive(Clone, Debug)]
pub struct PreparedLists {
    lists: RankedLists,
    rankings: Vec<Ranking>,
}

/// Result of [`PreparedLists::evaluate`].
#[derive(Clone, Debug, PartialEq)]
pub struct ListResult {
    /// γ of every response.
    pub gamma: Vec<f64>,
    /// Loss of every list, unscaled; 0 for a list that does not contribute, NaN where γ is not a usable number.
    pub loss: Vec<f64>,
    /// Gradient of `Σ loss · scale` by every target's log-probability.
    pub d_logp: Vec<f64>,
}

impl PreparedLists {
    /// Orders every list.
    pub fn new(lists: &RankedLists) -> Self {
        let rankings = (0..lists.lists())
            .map(|list| {
                // Every list shuffles its ties differently, and always alike, whatever batch it is in.
                let seed = lists.objective.seed ^ lists.keys[list];
                let rewards = &lists.rewards[lists.items_of(list)];
                Ranking::new(rewards, None, lists.objective.ties, seed)
                    .expect("RankedLists holds finite rewards, which always have an order")
            })
            .collect();
        Self { lists: lists.clone(), rankings }
    }

    /// γ, losses and their gradient for log-probabilities per target.
    ///
    /// γ is β times the *sum of the per-token differences*: a difference of two long sums would lose what the loss looks
    /// at.
    pub fn evaluate(&self, logp: &[f64], reference: &[f64]) -> ListResult {
        let lists = &self.lists;
        let targets = |item: usize| lists.target_offsets[item] as usize..lists.target_offsets[item + 1] as usize;
        let gamma: Vec<f64> = (0..lists.items())
            .map(|item| lists.beta * targets(item).map(|t| logp[t] - reference[t]).sum::<f64>())
            .collect();
        let mut loss = vec![0.0; lists.lists()];
        let mut d_gamma = vec![0.0; lists.items()];
        for (list, ranking) in self.rankings.iter().enumerate() {
            let items = lists.items_of(list);
            loss[list] = lists
                .objective
                .evaluate_ranked(ranking, &gamma[items.clone()], &mut d_gamma[items])
                .map_or(f64::NAN, |value| value.unwrap_or(0.0));
        }
        let mut d_logp = vec![0.0; logp.len()];
        for (item, d) in d_gamma.iter().enumerate() {
            d_logp[targets(item)].fill(d * lists.beta * lists.scale);
        }
        ListResult { gamma, loss, d_logp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_two_responses() {
        let packed = PackedLists::pack([(&[10u32, 11][..], [&[20u32, 21, 22][..], &[30][..]])]);
        assert_eq!(packed.ids, [10, 11, 20, 21, 22, 30]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 4, 2]);
        assert_eq!(packed.scored_rows, [1, 2, 3]);
        assert_eq!(packed.target_rows, [0, 1, 2, 0], "the last prompt row predicts both first tokens");
        assert_eq!(packed.target_ids, [20, 21, 22, 30]);
        assert_eq!((packed.item_targets(0), packed.item_targets(1)), (0..3, 3..4));
        assert_eq!(packed.last_rows, [4, 5]);
        // Prompt 1 + 2, first response 3 + 4 + 5, second 3.
        assert_eq!(packed.visible_pairs(), 18);
    }

    #[test]
    fn a_single_response_continues_its_prompt() {
        let packed = PackedLists::pack([(&[1u32][..], [&[5u32, 6][..]]), (&[2u32, 3][..], [&[7][..]])]);
        assert_eq!((packed.segments.len(), &packed.last_rows[..]), (2, &[2, 5][..]));
    }

    #[test]
    fn an_empty_prompt_scores_from_the_second_token() {
        let packed = PackedLists::pack([(&[][..], [&[5u32, 6, 7][..], &[8][..], &[][..]])]);
        assert_eq!(packed.target_ids, [6, 7]);
        assert_eq!(packed.scored_rows, [0, 1]);
        assert_eq!((packed.items(), packed.item_targets(1), packed.item_targets(2)), (3, 2..2, 2..2));
        assert_eq!(packed.segments.len(), 2);
        assert_eq!(packed.last_rows, [2, 3, PackedLists::NO_ROW]);
    }
}
