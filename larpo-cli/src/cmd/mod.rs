//! The verbs. Each takes its flags, shows its result to people and returns the object that `--json` prints in its place.
//!
//! What is made from the declarations of the flags (settings, completions, manual pages) returns a text, which is printed
//! as it is.

pub mod align;
pub mod bench;
pub mod chat;
pub mod convert;
mod declared;
pub mod demo;
mod effective;
mod ending;
pub mod eval;
pub mod generate;
pub mod gpu;
pub mod inspect;
pub mod losses;
pub mod merge;
pub mod plan;
pub mod rank;
pub mod report;
pub mod reward;
pub mod sample;
pub mod score;
pub mod sft;
pub mod train;

use crate::args::{Cli, Command, DataArgs, Planned, Settings, SplitArgs, Task, write_settings};
use crate::dataset::{Limits, Part, PromptRow, RowReport, Source};
use crate::error::{Error, Result};
use crate::gpu::check::healthy;
use crate::gpu::{Chosen, choose};
use crate::machine;
use crate::messages::quietly;
use crate::policy::Policy;
use crate::stop::Stop;
use larpo_core::backend::Backend;
use larpo_core::cpu::{Cpu, par};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// Does what a command line asks for: a JSON object, or a text that is to be printed as it is.
///
/// # Errors
/// What the verb reports.
pub fn run(cli: &Cli) -> Result<Value> {
    run_until(cli, &Stop::default())
}

/// [`run`], ended early at the next safe point where `stop` is raised. Verbs that cannot be gone on with do not look at it.
///
/// # Errors
/// What the verb reports; [`Error::Interrupted`] after an early end.
pub fn run_until(cli: &Cli, stop: &Stop) -> Result<Value> {
    match &cli.task {
        Task::Run(command) => {
            let start = std::time::Instant::now();
            debug!("{}; {} threads", crate::version::long().replace('\n', "; "), par::threads());
            cli.settings.0.iter().for_each(|setting| debug!("{setting}"));
            let result = run_verb(command, &cli.settings, stop);
            let peak =
                machine::peak_rss_mib().map_or_else(String::new, |mib| format!(", at most {mib:.0} MiB of memory"));
            debug!("{:.1} s{peak}", start.elapsed().as_secs_f64());
            result
        }
        Task::Config(command) => {
            let settings = effective::settings(command, &cli.settings);
            Ok(Value::String(write_settings(command.name(), &settings)))
        }
        Task::Plan(Planned(command)) => plan::run(command, &cli.settings),
        Task::Completions { shell } => Ok(Value::String(declared::completions(*shell))),
        Task::Man { verb, output_dir } => declared::man(verb.as_deref(), output_dir.as_deref()),
    }
}

/// Runs a verb on the device that is asked for; no other place chooses a backend.
fn run_verb(command: &Command, settings: &Settings, stop: &Stop) -> Result<Value> {
    let open = || if command.computes() { choose(command.common()) } else { Ok(Chosen::Cpu) };
    run_on_opened(open, command, settings, stop)
}

/// A device that works for so long again after it was lost was worth opening.
const WORKED: Duration = Duration::from_secs(600);
/// Times that a device is opened again without having [`WORKED`] in between.
const RETRIES: u32 = 5;
/// Time that a driver is given to come back, as often as it was lost.
const PAUSE: Duration = Duration::from_secs(2);

/// Runs a verb on what `open` opens. Where that is lost, and `--on_device_lost retry` is given, it is opened again and the run
/// goes on from its last checkpoint.
///
/// # Errors
/// What the verb reports.
pub fn run_on_opened(
    open: impl Fn() -> Result<Chosen>,
    command: &Command,
    settings: &Settings,
    stop: &Stop,
) -> Result<Value> {
    let again = command.after_device_loss();
    let (mut command, mut retries) = (command, 0);
    loop {
        let begun = Instant::now();
        let result = match open() {
            Ok(Chosen::Cpu) => return run_on(&Cpu::new(), command, settings, stop),
            Ok(Chosen::Gpu(backend)) => {
                let result = run_on(&backend, command, settings, stop);
                debug!("{:?}", backend.stats());
                // What else the verb reports followed from it.
                let result = healthy(&backend).and(result);
                // The memory that it held is free for the plan.
                drop(backend);
                result.map_err(|error| mended(error, command, settings))
            }
            Err(error) => Err(error),
        };
        if begun.elapsed() >= WORKED {
            retries = 0;
        }
        // A driver that does not come back at once is not there for a while.
        let lost = match &result {
            Err(Error::Device { source: larpo_gpu::Error::Lost(_), .. }) => true,
            result => result.is_err() && retries > 0 && begun.elapsed() < PAUSE,
        };
        let (Some(next), true) = (&again, lost && retries < RETRIES && !stop.requested()) else { return result };
        if let Err(error) = result {
            warn!("{error}");
        }
        retries += 1;
        say!("--on_device_lost retry: opening it again, {retries} of at most {RETRIES} times in a row");
        std::thread::sleep(retries * PAUSE);
        command = next;
    }
}

/// The failure of a device with the flags of `command` that matter.
fn mended(error: Error, command: &Command, settings: &Settings) -> Error {
    use larpo_gpu::Error::{Binding, OutOfMemory};
    let Error::Device { device, source, mend: None } = error else { return error };
    let trains = command.clone().training().is_some();
    let mend = match source {
        OutOfMemory { held, .. } => quietly(|| plan::mend_of_memory(command, settings, held)).ok(),
        _ => None,
    };
    // What is usually told is about training.
    let shorter = || "take shorter texts, or --device cpu".to_string();
    let mend = mend.or_else(|| (matches!(source, OutOfMemory { .. } | Binding { .. }) && !trains).then(shorter));
    Error::Device { device, source, mend }
}

fn run_on<B: Backend>(backend: &B, command: &Command, settings: &Settings, stop: &Stop) -> Result<Value> {
    match command {
        Command::Demo(args) => demo::run(args, settings, backend),
        Command::Sft(args) => sft::run(args, settings, stop, backend),
        Command::Sample(args) => sample::run(args, backend),
        Command::Rank(args) => rank::run(args, backend),
        Command::Generate(args) => generate::run(args, backend),
        Command::Chat(args) => chat::run(args, backend),
        Command::Score(args) => score::run(args, backend),
        Command::Train(args) => train::run(args, settings, stop, backend),
        Command::Reward(args) => reward::run(args, settings, stop, backend),
        Command::Align(args) => align::run(args, settings, stop, backend),
        Command::Eval(args) => eval::run(args, settings, backend),
        Command::Inspect(args) => inspect::run(args),
        Command::Report(args) => report::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Merge(args) => merge::run(args, backend),
        Command::Bench(args) => bench::run(args),
        Command::Gpu(args) => gpu::run(args),
    }
}

/// The prompts of a data set that the flags ask for, with the report of what was used, which goes to stderr too. A row
/// without the reference that the rewards need is found here, before anything is sampled.
fn read_prompts<B: Backend>(
    policy: &Policy<B>,
    path: &Path,
    data: &DataArgs,
    split: &SplitArgs,
    max_new_tokens: usize,
    needs_reference: bool,
) -> Result<(Vec<PromptRow>, RowReport)> {
    let source = Source::open(path, data, Some(&policy.tokenizer))?;
    let (prompts, report) = prompts_of(&source, policy, data, split, max_new_tokens)?;
    say!("data: {report}");
    check_references(path, &prompts, needs_reference)?;
    Ok((prompts, report))
}

/// The prompts of a data set that is open, in the tokens of `policy`.
fn prompts_of<B: Backend>(
    source: &Source,
    policy: &Policy<B>,
    data: &DataArgs,
    split: &SplitArgs,
    max_new_tokens: usize,
) -> Result<(Vec<PromptRow>, RowReport)> {
    let part = Part { held_back: split.validation_fraction, split: split.split };
    let limits = Limits::new(data, policy)?;
    let explicit = data.max_prompt_length.is_some();
    source.prompts(policy, limits, part, max_new_tokens, explicit)
}

/// Whether the prompts have what the rewards compare with.
fn check_references(path: &Path, prompts: &[PromptRow], needs_reference: bool) -> Result<()> {
    let bare: Vec<_> = prompts.iter().filter(|p| !p.has_reference()).collect();
    match bare.first() {
        Some(first) if needs_reference => Err(Error::request(format!(
            "{}:{}: no reference for the reward `answer` to compare with ({} of {} prompts lack it); add a field \
             `reference`, or choose other --reward_funcs",
            path.display(),
            first.line,
            bare.len(),
            prompts.len()
        ))),
        _ => Ok(()),
    }
}
