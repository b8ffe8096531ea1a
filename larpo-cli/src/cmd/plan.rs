//! `larpo plan`: memory and time of a verb before it runs; and the check that training verbs make.

use super::read_prompts;
use crate::align::AlignConfig;
use crate::args::{
    AlignArgs, BenchArgs, BenchKind, Command, Iterations, Reference, SampleArgs, SftArgs, TrainVerbArgs,
};
use crate::dataset::{Limits, Part, PromptRow, Source};
use crate::error::{Error, Result};
use crate::generate::sampling_config;
use crate::machine;
use crate::plan::calibrate::calibrate;
use crate::plan::{Advice, Dry, Plan, Planner, admit, bytes, longest_lists};
use crate::policy::{Opened, Policy};
use crate::progress::duration;
use crate::table::Table;
use crate::training::{LoopConfig, list_training, selection};
use larpo_core::batches::BatchPlan;
use larpo_core::candidates::Memory as Remembered;
use larpo_core::model::ModelConfig;
use larpo_core::objective::{LossType, Objective};
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::select::Select;
use larpo_core::train::{ListTraining, SftRow, TrainingList};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// Plans a verb and shows it.
///
/// # Errors
/// A verb that has nothing to plan, and what reading its data reports.
pub fn run(command: &Command) -> Result<Value> {
    let plan = match command {
        Command::Sft(args) => sft(args)?,
        Command::Train(args) => train(args)?,
        Command::Align(args) => {
            let (policy, planner) = open(&args.model.model_name_or_path)?;
            let (prompts, _) = read_prompts(
                &policy,
                &args.dataset_name,
                &args.data,
                &args.split,
                args.sampling.max_new_tokens,
                false,
            )?;
            let (Iterations::Total(iterations) | Iterations::More(iterations)) = args.iterate.iterations;
            let config = AlignConfig::new(args, iterations as u32, &policy);
            align(args, &config, planner, &prompts)?
        }
        Command::Sample(args) => sample(args)?,
        Command::Eval(args) => {
            let (policy, mut planner) = open(args.models()[0])?;
            let (prompts, _) = read_prompts(
                &policy,
                &args.dataset_name,
                &args.data,
                &args.split,
                args.sampling.max_new_tokens,
                false,
            )?;
            let config = sampling_config(&args.sampling, &policy, args.samples(), args.common.seed);
            let model = planner.model()?;
            planner.sample(&model, &prompts, &config.clone().greedy(), 1.0)?;
            planner.sample(&model, &prompts, &config, 1.0)?;
            planner.finish()
        }
        Command::Bench(args) => bench(args)?,
        other => {
            return Err(Error::request(format!(
                "larpo {} has nothing to plan; plans are made of sft, sample, train, align, eval, bench step and bench sample",
                other.name()
            )));
        }
    };
    show(&plan)
}

/// Plans without weights: the policy is there for its tokenizer, its shape and its limits.
fn open(folder: &Path) -> Result<(Policy<Dry>, Planner)> {
    let Opened { config, tokenizer, eos_ids, .. } = Opened::read(folder)?;
    blank(config, tokenizer, eos_ids)
}

fn blank(
    config: ModelConfig,
    tokenizer: larpo_data::tokenizer::Tokenizer,
    eos_ids: Vec<u32>,
) -> Result<(Policy<Dry>, Planner)> {
    // A backend of its own: what the plan counts is the planner's.
    let backend = Dry::new(larpo_core::cpu::DryRun::new());
    let planner = Planner::new(config.clone());
    Ok((Policy::unspecified(&backend, config, tokenizer, eos_ids)?, planner))
}

fn sft(args: &SftArgs) -> Result<Plan> {
    let source = Source::open(&args.dataset_name, &args.data)?;
    let (policy, planner) = match &args.model.model_name_or_path {
        Some(folder) => open(folder)?,
        None => {
            let (config, tokenizer) = super::sft::recipe(args, &source)?;
            let eos_ids = tokenizer.eos_id().into_iter().collect();
            blank(config, tokenizer, eos_ids)?
        }
    };
    let limits = Limits::new(&args.data, &policy)?;
    let held_back = args.eval.validation_fraction.unwrap_or(0.0);
    let split = crate::args::Split::Train;
    let (rows, report) = source.sft_rows(&policy, limits, Part { held_back, split })?;
    say!("training data: {report}");
    let held_out = super::sft::held_out(args, &source, &policy, limits)?;
    plan_sft(args, planner, &rows, held_out.as_deref())
}

fn plan_sft(args: &SftArgs, mut planner: Planner, rows: &[SftRow], held_out: Option<&[SftRow]>) -> Result<Plan> {
    let config = LoopConfig::sft(&args.train, args.common.seed);
    let order = config.plan(rows.len());
    let looks = 1 + args.eval.eval_steps.map_or(0, |every| order.steps.saturating_sub(1) / every as u64);
    let model = planner.model()?;
    planner.fine_tune(model, rows, order, config.micro_batch, held_out.map(|rows| (rows, looks)))?;
    Ok(planner.finish_training(&args.train))
}

/// Refuses a run of `sft` that cannot fit; the model is loaded.
///
/// # Errors
/// As [`admit`].
pub(super) fn admit_sft(
    args: &SftArgs,
    model: &ModelConfig,
    rows: &[SftRow],
    held_out: Option<&[SftRow]>,
) -> Result<()> {
    let plan = plan_sft(args, Planner::new(model.clone()), rows, held_out)?;
    let advice = Advice { micro: args.train.per_device_train_batch_size, shorter: &["--max_length"] };
    admit(&plan, 4 * model.parameters(), advice)
}

fn train(args: &TrainVerbArgs) -> Result<Plan> {
    let source = Source::open(&args.dataset_name, &args.data)?;
    let (policy, planner) = open(&args.model.model_name_or_path)?;
    let limits = Limits::new(&args.data, &policy)?;
    let part = Part { held_back: args.split.validation_fraction, split: args.split.split };
    let settings = list_training(&args.list, args.common.seed);
    let mut lists = source.lists(&policy, limits, part)?;
    let (training, _) = lists.training(selection(&args.list), &settings.objective)?;
    say!("data: {}", lists.report);
    if training.is_empty() {
        return Err(Error::request(format!("{}: no list to train on", args.dataset_name.display())));
    }
    plan_train(args, planner, &training)
}

fn plan_train(args: &TrainVerbArgs, mut planner: Planner, lists: &[TrainingList]) -> Result<Plan> {
    let config = LoopConfig::lists(&args.train, args.common.seed);
    let settings = list_training(&args.list, args.common.seed);
    let model = planner.model()?;
    let mut lists = lists.to_vec();
    planner.prove(&model, &mut lists, &settings, config.micro_batch, false)?;
    planner.train_lists(model, &lists, &settings, config.plan(lists.len()), config.micro_batch)?;
    Ok(planner.finish_training(&args.train))
}

/// Refuses a run of `train` that cannot fit; the model is loaded.
///
/// # Errors
/// As [`admit`].
pub(super) fn admit_train(args: &TrainVerbArgs, model: &ModelConfig, lists: &[TrainingList]) -> Result<()> {
    let plan = plan_train(args, Planner::new(model.clone()), lists)?;
    let advice = Advice { micro: args.train.per_device_train_batch_size, shorter: &["--max_length", "--select"] };
    admit(&plan, 4 * model.parameters(), advice)
}

/// Responses of a list that training takes, of `k` candidates that all differ.
fn selected(select: Select, k: usize) -> usize {
    match select {
        Select::TopBottom { top, bottom } => k.min(top + bottom),
        Select::MaxMin => k.min(2),
        Select::OneVsRest | Select::Full => k,
    }
}

/// All iterations, of which each trains on every list that it remembers.
fn align(args: &AlignArgs, config: &AlignConfig, mut planner: Planner, prompts: &[PromptRow]) -> Result<Plan> {
    let mut model = planner.model()?;
    let _initial = (config.reference == Reference::Initial).then(|| model.duplicate()).transpose()?;
    let count = config.prompts_per_iteration.min(prompts.len());
    // The order in which the iterations take the prompts, as in `align::align`.
    let order = CounterRng::new(config.seed, Purpose::Shuffle).permutation(u64::MAX, prompts.len());
    let prompts: Vec<PromptRow> = order.into_iter().map(|i| prompts[i].clone()).collect();
    planner.sample(&model, &prompts[..count], &config.sampling, f64::from(config.iterations))?;
    planner.trim();
    for iteration in 1..=config.iterations {
        let remembered = match config.memory {
            Remembered::None => 1,
            Remembered::Previous => iteration.min(2),
            Remembered::All => iteration,
        };
        // Lists of a prompt that came before grow, and as many of a list's responses are selected as before.
        let lists = (remembered as usize * count).min(prompts.len());
        let merged = config.sampling.num_generations * (remembered as usize * count).div_ceil(prompts.len());
        let responses = selected(config.select, merged);
        let mut lists = longest_lists(&prompts[..lists], responses, config.sampling.max_new_tokens);
        let order = config.training.plan(lists.len());
        let recorded = config.reference == Reference::Previous && remembered == 1;
        let micro = config.training.micro_batch;
        planner.prove(&model, &mut lists, &config.lists, micro, recorded)?;
        model = planner.train_lists(model, &lists, &config.lists, order, micro)?;
        planner.trim();
    }
    Ok(planner.finish_training(&args.train))
}

/// Refuses a run of `align` that cannot fit; the model is loaded.
///
/// # Errors
/// As [`admit`].
pub(super) fn admit_align(
    args: &AlignArgs,
    config: &AlignConfig,
    model: &ModelConfig,
    prompts: &[PromptRow],
) -> Result<()> {
    let plan = align(args, config, Planner::new(model.clone()), prompts)?;
    let shorter = &["--max_new_tokens", "--num_generations", "--max_prompt_length"];
    let advice = Advice { micro: args.train.per_device_train_batch_size, shorter };
    admit(&plan, 4 * model.parameters(), advice)
}

fn sample(args: &SampleArgs) -> Result<Plan> {
    let (policy, mut planner) = open(&args.model.model_name_or_path)?;
    let (prompts, _) = super::sample::prompts(args, &policy)?;
    let config = sampling_config(&args.sampling, &policy, args.generations.num_generations, args.common.seed);
    let model = planner.model()?;
    planner.sample(&model, &prompts, &config, 1.0)?;
    Ok(planner.finish())
}

/// Runs of a benchmark after which its pool grows no more.
const SETTLED: u64 = 4;

/// One timed step or sampling run of a benchmark, after as many as it takes for the pool to settle.
fn bench(args: &BenchArgs) -> Result<Plan> {
    let config = super::bench::config(args);
    super::bench::check(args, &config)?;
    let mut planner = Planner::new(config.clone());
    let model = planner.model()?;
    let lists = super::bench::model::lists(args, &config);
    match args.what {
        BenchKind::Step => {
            let objective = Objective { loss: LossType::Listmle, ..Objective::default() };
            let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.0 };
            let order = BatchPlan::new(lists.len(), lists.len(), 1.0, Some(SETTLED), 1, 0);
            planner.train_lists(model, &lists, &settings, order, lists.len())?;
        }
        BenchKind::Sample => {
            let prompt = |(index, list): (usize, &TrainingList)| PromptRow {
                index,
                line: 0,
                text: String::new(),
                ids: list.prompt.clone(),
                reference: None,
            };
            let prompts: Vec<PromptRow> = lists.iter().enumerate().map(prompt).collect();
            let sampling = super::bench::model::sampling(args, &config);
            for _ in 0..SETTLED {
                planner.sample(&model, &prompts, &sampling, 1.0)?;
            }
        }
        _ => return Err(Error::request("plans of benchmarks are made of step and sample")),
    }
    Ok(planner.finish().one_of(SETTLED))
}

/// Measures the machine, and shows the plan as a table and as an object.
fn show(plan: &Plan) -> Result<Value> {
    let (other, limit) = (machine::resident().unwrap_or(0) + plan.copies, machine::total_memory());
    let rates = calibrate(plan)?;
    let seconds: Vec<f64> =
        plan.phases.iter().map(|phase| rates.seconds(&phase.work, phase.name == "sample")).collect();
    let mut table = Table::new(std::iter::once("peak of").chain(plan.phases.iter().map(|phase| phase.name)));
    let parts: Vec<_> = plan.phases.iter().map(|phase| phase.memory.parts()).collect();
    for (row, (name, _)) in plan.peak().parts().iter().enumerate() {
        let cells = parts.iter().map(|parts| bytes(parts[row].1));
        table.row(std::iter::once(name.replace('_', " ")).chain(cells));
    }
    table.row(std::iter::once("other".to_string()).chain(parts.iter().map(|_| bytes(other))));
    let totals = plan.phases.iter().map(|phase| bytes(phase.memory.total() + other));
    table.row(std::iter::once("all".to_string()).chain(totals));
    let times = seconds.iter().map(|&s| duration(Duration::from_secs_f64(s.min(1e9))));
    table.row(std::iter::once("time".to_string()).chain(times));
    say!("{}", table.to_string().trim_end());
    let (peak, whole) = (plan.peak().total() + other, seconds.iter().sum::<f64>());
    let of = limit.map_or_else(String::new, |limit| match peak > limit {
        true => format!(": MORE than the machine's {}", bytes(limit)),
        false => format!(" of the machine's {}", bytes(limit)),
    });
    say!("about {}{of}, and {}", bytes(peak), duration(Duration::from_secs_f64(whole.min(1e9))));
    let phases: Map<String, Value> = plan
        .phases
        .iter()
        .zip(&seconds)
        .map(|(phase, seconds)| (phase.name.to_string(), json!({ "bytes": phase.memory, "seconds": seconds })))
        .collect();
    Ok(json!({
        "peak_bytes": peak,
        "machine_bytes": limit,
        "fits": limit.map(|limit| peak <= limit),
        "bytes": plan.peak(),
        "other_bytes": other,
        "seconds": whole,
        "updates": plan.updates,
        "phases": phases,
    }))
}
