//! The choices of an objective and their names on a command line and in a file.

use super::ObjectiveError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Implements `Display` and `FromStr` from one table of names, so that the two cannot disagree.
macro_rules! named {
    ($type:ident, $what:literal, [$(($variant:ident, $name:literal)),+ $(,)?]) => {
        impl $type {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used on the command line, in files and in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = ObjectiveError;

            fn from_str(text: &str) -> Result<Self, ObjectiveError> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(ObjectiveError::Name {
                        what: $what,
                        found: text.to_string(),
                        expected: &[$($name),+],
                    }),
                }
            }
        }
    };
}

/// Which loss is taken over a list `y_1 … y_m` sorted by reward descending, with `g_i = γ(y_i|x)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean of `-log σ(g_i - g_j)` over the ordered pairs; on a list of two this is DPO
    /// (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).
    Pairwise,
    /// `logsumexp(g) - g_1`: the best item against the others (Jin et al. 2025, arXiv 2502.03699).
    Contrastive,
    /// Sum of `-log σ(g_i - g_j)` over `1 ≤ i < j ≤ m` (Jin et al. 2025): RankNet on the sorted list.
    #[default]
    Lambdarank,
    /// `Σ_i logsumexp(g_i … g_m) - g_i`: Plackett–Luce likelihood (Xia et al., ICML 2008).
    Listmle,
    /// Pairs weighted by what swapping them would change in DCG (LiPO, Liu et al. 2024, arXiv 2402.01878).
    LipoLambda,
}
named!(
    LossType,
    "loss type",
    [
        (Pairwise, "pairwise"),
        (Contrastive, "contrastive"),
        (Lambdarank, "lambdarank"),
        (Listmle, "listmle"),
        (LipoLambda, "lipo_lambda"),
    ]
);

/// What equal rewards mean. A list whose rewards are all equal never counts, except under `Stable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// Tied items keep the order in which they were sampled and are compared like any others.
    Stable,
    /// A tied pair carries no information: pair losses drop it, and in contrastive and ListMLE an item is
    /// compared with the items of strictly lower reward only.
    #[default]
    Skip,
    /// Both orders at once: pair losses count each with weight 1/2, and every item of a tie group gets ListMLE's
    /// denominator of the whole group and everything below. Contrastive, with its single positive, is as `Stable`.
    Share,
    /// A seeded shuffle inside each tie group, then as `Stable`.
    Random,
}
named!(Ties, "tie rule", [(Stable, "stable"), (Skip, "skip"), (Share, "share"), (Random, "random"),]);

/// The labels of [`LossType::LipoLambda`]; the other losses use only the order of the rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LipoLabels {
    /// `(m - rank) / (m - 1)` with rank 1 for the best of the `m` items; tied rewards share their mean rank.
    #[default]
    Rank,
    /// The rewards themselves. The gain is `2^label - 1`, so rewards in [0, 1] are meant.
    Reward,
}
named!(LipoLabels, "label", [(Rank, "rank"), (Reward, "reward")]);

/// Base of the logarithm in the discount `D(r) = log(1 + r)` of [`LossType::LipoLambda`].
/// Going from `E` to `Two` multiplies the loss by ln 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum LogBase {
    /// Natural logarithm, as the LiPO paper prints it.
    #[default]
    #[serde(rename = "e")]
    E,
    /// Base 2, as DCG usually has it.
    #[serde(rename = "2")]
    Two,
}
named!(LogBase, "logarithm base", [(E, "e"), (Two, "2")]);

/// How the pairwise preferences among the items of a list become their scores; `P[i][j]` is the probability that `i` is better
/// than `j`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankBy {
    /// Mean of `P[i][j]` over the other items.
    #[default]
    WinRate,
    /// Mean of `P[i][j]` over all items, the item itself with 1/2 (LiPO, Liu et al. 2024, arXiv 2402.01878): the order of
    /// `WinRate` at another scale.
    LipoLabel,
    /// Items beaten, a draw as half of one (Copeland).
    Wins,
    /// Bradley–Terry scores of mean 0 (Bradley and Terry 1952).
    Bt,
}
named!(RankBy, "way to rank", [(WinRate, "win_rate"), (LipoLabel, "lipo_label"), (Wins, "wins"), (Bt, "bt")]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_agree_with_the_serialized_form() {
        fn check<T>(all: &[T])
        where
            T: Copy + fmt::Debug + fmt::Display + FromStr<Err = ObjectiveError> + PartialEq + Serialize,
        {
            for &value in all {
                let name = value.to_string();
                assert_eq!(name.parse::<T>(), Ok(value));
                assert_eq!(serde_json::to_string(&value).unwrap(), format!("\"{name}\""));
            }
        }
        check(LossType::ALL);
        check(Ties::ALL);
        check(LipoLabels::ALL);
        check(LogBase::ALL);
        check(RankBy::ALL);
        assert_eq!(LossType::ALL.len(), 5);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = "ranknet".parse::<LossType>().unwrap_err().to_string();
        for expected in ["ranknet", "loss type", "pairwise", "contrastive", "lambdarank", "listmle", "lipo_lambda"] {
            assert!(message.contains(expected), "{message}");
        }
    }
}
