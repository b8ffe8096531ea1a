//! The command line of `larpo`: verbs, flags, defaults and the combinations that make no sense.
//!
//! Flags keep the names of TRL's configuration classes (`--learning_rate`,
//! `--per_device_train_batch_size`, …); every long flag may be written with hyphens too, and `--k`
//! stands for `--num_generations` wherever that exists. Nothing here opens a file or knows a model:
//! [`parse`] only turns words into [`Cli`], or into an error that says what to write instead.

mod groups;
mod settings;
mod sft;
mod values;
mod verbs;

#[cfg(test)]
mod tests;

pub use groups::*;
pub use settings::Settings;
pub use sft::*;
pub use values::*;
pub use verbs::*;

use clap::error::ErrorKind;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;

/// The whole command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "larpo",
    version,
    about = "Align a language model by sampling, ranking and training on ranked lists",
    after_help = "Flags may be written with hyphens instead of underscores. Start with: larpo demo"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Its flags as texts.
    #[arg(skip)]
    pub settings: Settings,
}

/// One verb with its flags.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Train a small model on generated word problems, align it, and show what changed
    Demo(DemoArgs),
    /// Supervised fine-tuning, from a model folder or from random weights
    Sft(Box<SftArgs>),
    /// Sample responses to prompts (the retriever)
    Sample(Box<SampleArgs>),
    /// Score and sort responses made elsewhere (the reranker)
    Rank(Box<RankArgs>),
    /// Train on a file of ranked lists made elsewhere
    Train(Box<TrainVerbArgs>),
    /// Sample, rank, train on the lists, and repeat
    Align(Box<AlignArgs>),
    /// Accuracy, Recall@N, votes, ranking and KL on a data set, of one model or several side by side
    Eval(Box<EvalArgs>),
    /// Show what a data file or a run folder holds: schema, counts, lengths, tokens, ties, duplicates
    Inspect(InspectArgs),
    /// One HTML page about a run: curves, samples, hardest prompts, settings
    Report(ReportArgs),
    /// Time a training step, sampling, matrix products, memory traffic or list losses
    Bench(BenchArgs),
}

impl Command {
    /// The verb as it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Demo(_) => "demo",
            Command::Sft(_) => "sft",
            Command::Sample(_) => "sample",
            Command::Rank(_) => "rank",
            Command::Train(_) => "train",
            Command::Align(_) => "align",
            Command::Eval(_) => "eval",
            Command::Inspect(_) => "inspect",
            Command::Report(_) => "report",
            Command::Bench(_) => "bench",
        }
    }

    /// Whether an interrupted run of the verb can be gone on with.
    pub fn can_resume(&self) -> bool {
        matches!(self, Command::Sft(_) | Command::Train(_) | Command::Align(_))
    }

    /// The flags every verb has.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Command::Demo(a) => &a.common,
            Command::Sft(a) => &a.common,
            Command::Sample(a) => &a.common,
            Command::Rank(a) => &a.common,
            Command::Train(a) => &a.common,
            Command::Align(a) => &a.common,
            Command::Eval(a) => &a.common,
            Command::Inspect(a) => &a.common,
            Command::Report(a) => &a.common,
            Command::Bench(a) => &a.common,
        }
    }

    /// Checks that need more than one flag at a time; the message says what to change.
    fn validate(&self) -> Result<(), String> {
        match self {
            Command::Demo(_) | Command::Inspect(_) | Command::Report(_) | Command::Bench(_) => Ok(()),
            Command::Sft(a) => a.validate(),
            Command::Sample(a) => a.validate(),
            Command::Rank(a) => a.reward.validate(),
            Command::Train(a) => a.validate(),
            Command::Align(a) => a.validate(),
            Command::Eval(a) => a.validate(),
        }
    }
}

/// Reads a command line, program name first.
///
/// # Errors
/// clap's own error (which also carries `--help` and `--version`), or one of the same kind for
/// flags that contradict each other. `error.exit()` prints it and ends the process.
pub fn parse<I, T>(argv: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let argv: Vec<OsString> = underscored(argv.into_iter().map(Into::into));
    // A negative number where none may stand is then refused by the flag's own message.
    let negative = |arg: Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
    let mut command = Cli::command().mut_subcommands(|verb| verb.mut_args(negative));
    let matches = command.try_get_matches_from_mut(argv)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
    cli.settings = Settings::new(&command, &matches);
    if let Err(message) = cli.command.validate() {
        let verb = command.find_subcommand_mut(cli.command.name());
        return Err(match verb {
            Some(verb) => verb.error(ErrorKind::ArgumentConflict, message),
            None => command.error(ErrorKind::ArgumentConflict, message),
        });
    }
    Ok(cli)
}

/// Rewrites the hyphens inside long flag names to underscores, so that each flag is declared once.
///
/// Values stay as they are: only what stands before the first `=` of a word that starts with `--`
/// is a name, and after a bare `--` nothing is.
fn underscored(argv: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut flags_ended = false;
    argv.map(|word| {
        let Some(text) = word.to_str() else {
            return word;
        };
        flags_ended |= text == "--";
        match text.strip_prefix("--") {
            Some(flag) if !flags_ended => {
                let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
                format!("--{}{value}", name.replace('-', "_")).into()
            }
            _ => word,
        }
    })
    .collect()
}
