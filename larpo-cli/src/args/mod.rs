//! The command line of `larpo`: verbs, flags, defaults and the combinations that make no sense.
//!
//! Flags keep the names of TRL's configuration classes (`--learning_rate`,
//! `--per_device_train_batch_size`, …); every long flag may be written with hyphens too, and `--k`
//! stands for `--num_generations` wherever that exists. Nothing here opens data or knows a model:
//! [`parse`] only turns words, and the settings in the files that they name, into [`Cli`], or into an error that says what
//! to write instead.

mod config;
mod groups;
mod recorded;
mod sft;
mod values;
mod verbs;
mod yaml;

#[cfg(test)]
mod tests;

pub use config::{Origin, Setting, Settings, default_of, write as write_settings};
pub use groups::*;
pub use sft::*;
pub use values::*;
pub use verbs::*;

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The end of `larpo --help`.
const AFTER_HELP: &str = "\
Flags may be written with hyphens instead of underscores. Start with: larpo demo

Exit codes: 0 done, 1 the run failed or was refused, 2 the command line or configuration file cannot be read,
101 a bug in larpo, 130 interrupted";

/// The whole command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "larpo",
    version,
    about = "Align a language model by sampling, ranking and training on ranked lists",
    after_help = AFTER_HELP
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub task: Task,
    /// The settings of the verb and where each comes from; none where there is no verb.
    #[arg(skip)]
    pub settings: Settings,
}

/// What to do: run a verb, or something about one.
#[derive(Debug, Clone, Subcommand)]
pub enum Task {
    /// Run a verb.
    #[command(flatten)]
    Run(Command),
    /// Print the settings that a command line of a verb amounts to, as a file for --config
    #[command(subcommand)]
    Config(Command),
    /// Say what memory and time a command line of a verb would take, without running it; where responses are still to be
    /// sampled, at most: they are taken to be as long as --max_new_tokens
    #[command(subcommand)]
    Plan(Planned),
    /// Print the completions of a shell, to be stored where it looks for them
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page of larpo or of a verb, or write all of them to a folder
    #[command(rename_all = "snake_case")]
    Man {
        /// The verb [default: the page of larpo itself]
        #[arg(value_name = "VERB", conflicts_with = "output_dir")]
        verb: Option<String>,
        /// Folder that larpo.1 and a page for each verb are written to
        #[arg(long, value_name = "DIR")]
        output_dir: Option<PathBuf>,
    },
}

impl Cli {
    /// The verb that the command line is about.
    pub fn command(&self) -> Option<&Command> {
        match &self.task {
            Task::Run(command) | Task::Config(command) | Task::Plan(Planned(command)) => Some(command),
            Task::Completions { .. } | Task::Man { .. } => None,
        }
    }
}

/// Verbs that compute with a model for long enough to be planned.
const PLANNED: [&str; 7] = ["sft", "sample", "train", "reward", "align", "eval", "bench"];

/// A verb that can be planned. Others are not offered, in the help, in completions or in manual pages.
#[derive(Debug, Clone)]
pub struct Planned(pub Command);

impl FromArgMatches for Planned {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Command::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Subcommand for Planned {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        let all = Command::augment_subcommands(clap::Command::new("all"));
        command.subcommands(all.get_subcommands().filter(|verb| Self::has_subcommand(verb.get_name())).cloned())
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        PLANNED.contains(&name)
    }
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
    /// Answer prompts: greedy, sampled, or the best of several
    Generate(Box<GenerateArgs>),
    /// Converse with a model in the terminal
    Chat(ChatArgs),
    /// Log-probabilities of responses under a model, and a reward model's scores
    Score(Box<ScoreArgs>),
    /// Train on a file of ranked lists made elsewhere
    Train(Box<TrainVerbArgs>),
    /// Train a reward model on preference pairs or ranked lists
    Reward(Box<RewardVerbArgs>),
    /// Sample, rank, train on the lists, and repeat
    Align(Box<AlignArgs>),
    /// Accuracy, Recall@N, votes, ranking and KL on a data set, of one model or several side by side
    Eval(Box<EvalArgs>),
    /// Show what a data file or a run folder holds: schema, counts, lengths, tokens, ties, duplicates
    ///
    /// Of a run's folder it shows the iterations, how the run ended, and how many rows of candidates.jsonl people edited: a
    /// row differs then from its line in candidates.checksum, or is marked there as edited and taken up before.
    Inspect(InspectArgs),
    /// One HTML page about a run: curves, samples, hardest prompts, settings
    Report(ReportArgs),
    /// Write a model folder in another format of numbers, or in other files
    Convert(ConvertArgs),
    /// Add an adapter to the weights of its model: one model folder
    Merge(MergeArgs),
    /// Time a training step, sampling, matrix products, memory traffic or list losses on the CPU
    Bench(BenchArgs),
    /// List the adapters of this machine, check what a GPU computes, or time it
    Gpu(GpuArgs),
}

impl Command {
    /// The verb as it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Demo(_) => "demo",
            Command::Sft(_) => "sft",
            Command::Sample(_) => "sample",
            Command::Rank(_) => "rank",
            Command::Generate(_) => "generate",
            Command::Chat(_) => "chat",
            Command::Score(_) => "score",
            Command::Train(_) => "train",
            Command::Reward(_) => "reward",
            Command::Align(_) => "align",
            Command::Eval(_) => "eval",
            Command::Inspect(_) => "inspect",
            Command::Report(_) => "report",
            Command::Convert(_) => "convert",
            Command::Merge(_) => "merge",
            Command::Bench(_) => "bench",
            Command::Gpu(_) => "gpu",
        }
    }

    /// Whether an interrupted run of the verb can be gone on with.
    pub fn can_resume(&self) -> bool {
        matches!(self, Command::Sft(_) | Command::Train(_) | Command::Reward(_) | Command::Align(_))
    }

    /// How the verb trains, and whether it may replace a folder; none of a verb that does not train.
    pub(crate) fn training(&mut self) -> Option<(&mut TrainArgs, &mut bool)> {
        match self {
            Command::Sft(a) => Some((&mut a.train, &mut a.overwrite_output_dir)),
            Command::Train(a) => Some((&mut a.train, &mut a.overwrite_output_dir)),
            Command::Reward(a) => Some((&mut a.train, &mut a.overwrite_output_dir)),
            Command::Align(a) => Some((&mut a.train, &mut a.overwrite_output_dir)),
            _ => None,
        }
    }

    /// The command that goes on with this one's run from its last checkpoint, where `--on_device_lost retry` asks for it.
    pub(crate) fn after_device_loss(&self) -> Option<Self> {
        let mut command = self.clone();
        let (train, overwrite) = command.training()?;
        let asked = train.on_device_lost == OnDeviceLost::Retry;
        train.resume_from_checkpoint = Some(crate::resume::ResumeFrom::Latest);
        *overwrite = false;
        asked.then_some(command)
    }

    /// Whether the verb computes with a model on the device that `--device` chooses. `bench` and `gpu` have one of their own.
    pub fn computes(&self) -> bool {
        !matches!(
            self,
            Command::Inspect(_)
                | Command::Report(_)
                | Command::Convert(_)
                | Command::Merge(_)
                | Command::Bench(_)
                | Command::Gpu(_)
        )
    }

    /// The flags every verb has.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Command::Demo(a) => &a.common,
            Command::Sft(a) => &a.common,
            Command::Sample(a) => &a.common,
            Command::Rank(a) => &a.common,
            Command::Generate(a) => &a.common,
            Command::Chat(a) => &a.common,
            Command::Score(a) => &a.common,
            Command::Train(a) => &a.common,
            Command::Reward(a) => &a.common,
            Command::Align(a) => &a.common,
            Command::Eval(a) => &a.common,
            Command::Inspect(a) => &a.common,
            Command::Report(a) => &a.common,
            Command::Convert(a) => &a.common,
            Command::Merge(a) => &a.common,
            Command::Bench(a) => &a.common,
            Command::Gpu(a) => &a.common,
        }
    }

    /// Checks that need more than one flag at a time; the message says what to change.
    fn validate(&self) -> Result<(), String> {
        match self {
            Command::Demo(_)
            | Command::Inspect(_)
            | Command::Report(_)
            | Command::Convert(_)
            | Command::Merge(_)
            | Command::Bench(_)
            | Command::Gpu(_) => Ok(()),
            Command::Sft(a) => a.validate(),
            Command::Sample(a) => a.validate(),
            Command::Rank(a) => a.reward.validate(),
            Command::Generate(a) => a.validate(),
            Command::Chat(a) => a.sampling.one_temperature(),
            Command::Score(a) => a.split.validate(),
            Command::Train(a) => a.validate(),
            Command::Reward(_) => Ok(()),
            Command::Align(a) => a.validate(),
            Command::Eval(a) => a.validate(),
        }
    }
}

/// The declarations of all verbs and flags, from which help, manual pages and completions are made too.
pub fn declarations() -> clap::Command {
    static VERSION: OnceLock<String> = OnceLock::new();
    let version: &'static str = VERSION.get_or_init(|| {
        let long = crate::version::long();
        long.strip_prefix("larpo ").map(String::from).unwrap_or(long)
    });
    // A negative number where none may stand is then refused by the flag's own message.
    let negative = |arg: Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
    <Cli as CommandFactory>::command()
        .long_version(version)
        .mut_subcommands(|verb| verb.mut_args(negative).mut_subcommands(|verb| verb.mut_args(negative)))
}

/// Reads a command line, program name first, and the configuration file that it names.
///
/// # Errors
/// clap's own error (which also carries `--help` and `--version`), or one of the same kind for
/// flags that contradict each other and for a configuration file. `error.exit()` prints it and ends the process.
pub fn parse<I, T>(argv: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let mut words: Vec<OsString> = underscored(argv.into_iter().map(Into::into));
    let mut command = declarations();
    // Names are complete only in a command that was built.
    command.build();
    // Words up to the verb: `larpo sft` or `larpo config sft`.
    let word = |at: usize| words.get(at).and_then(|word| word.to_str()).unwrap_or_default();
    let path: Vec<String> = match word(1) {
        about @ ("config" | "plan") => vec![about.into(), word(2).into()],
        verb => vec![verb.into()],
    };
    let given = match descend(&mut command, &path) {
        Some(verb) => {
            let at = 1 + path.len();
            let merged = config::merge(&mut words, at, verb);
            let taken = merged.and_then(|given| match path.last().is_some_and(|name| name == "align") {
                true => recorded::take_up(&mut words, at, verb).map(|()| given),
                false => Ok(given),
            });
            taken.map_err(|problem| verb.error(ErrorKind::ValueValidation, problem))?
        }
        None => config::Given::default(),
    };
    let matches = command.try_get_matches_from_mut(words);
    let explained = |command: &mut clap::Command, error| match descend(command, &path) {
        Some(verb) => given.explain(verb, error),
        None => error,
    };
    let matches = matches.map_err(|error| explained(&mut command, error))?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
    if let Some(verb) = descend(&mut command, &path)
        && let Some(verb_matches) = path.iter().try_fold(&matches, |matches, name| matches.subcommand_matches(name))
    {
        cli.settings = given.settings(verb, verb_matches);
        if let Err(message) = cli.command().map_or(Ok(()), Command::validate) {
            let error = verb.error(ErrorKind::ArgumentConflict, message);
            return Err(given.explain(verb, error));
        }
    }
    Ok(cli)
}

/// The subcommand at `path`.
fn descend<'a>(command: &'a mut clap::Command, path: &[String]) -> Option<&'a mut clap::Command> {
    path.iter().try_fold(command, |command, name| command.find_subcommand_mut(name))
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
