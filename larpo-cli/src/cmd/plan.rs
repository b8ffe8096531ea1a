//! `larpo plan`: memory and time of a verb before it runs; and the check that training verbs make.

use super::sft::Start;
use crate::align::AlignConfig;
use crate::args::{
    AlignArgs, BenchArgs, BenchKind, Command, EvalArgs, Iterations, Reference, RewardVerbArgs, SampleArgs, Settings,
    SftArgs, TrainArgs, TrainVerbArgs,
};
use crate::dataset::{PromptRow, Source};
use crate::error::{Error, Result};
use crate::generate::sampling_config;
use crate::gpu::Device;
use crate::machine;
use crate::output::OutputDir;
use crate::plan::calibrate::calibrate;
use crate::plan::{
    Advice, Plan, Planner, admit, bytes, candidate_bytes, list_bytes, longest_lists, prompt_bytes, reference_bytes,
    reward_list_bytes, row_bytes, without_memory,
};
use crate::policy::Opened;
use crate::progress::duration;
use crate::resume::{AlignPoint, ITERATION, Resume, ResumeFrom, align_point, checkpoint};
use crate::reward::RewardSource;
use crate::reward_model::OpenedRewardModel;
use crate::run_record::{Goal, RunRecord};
use crate::samples::are_drawn;
use crate::table::Table;
use crate::training::{LoopConfig, list_training};
use crate::watch::sampling_of;
use larpo_core::batches::BatchPlan;
use larpo_core::candidates::Memory as Remembered;
use larpo_core::model::ModelConfig;
use larpo_core::objective::{LossType, Objective};
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::select::Select;
use larpo_core::train::{ListTraining, RewardList, SftRow, TrainingList};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Plans a verb and shows it. Of a run that goes on, what is left is planned.
///
/// # Errors
/// A verb that has nothing to plan, and what reading its data reports.
pub fn run(command: &Command, settings: &Settings) -> Result<Value> {
    // What is read and gone through here, the run reads and goes through as well.
    let start = Instant::now();
    spares_inputs(command)?;
    if let device @ Device::Gpu(_) = command.common().device {
        warn!("--device {device}: memory and times of a plan are those of the CPU");
    }
    let plan = plan(command, settings)?;
    show(&plan, start.elapsed())
}

/// Reads what a verb reads and goes through its run.
fn plan(command: &Command, settings: &Settings) -> Result<Plan> {
    match command {
        Command::Sft(args) => sft(args),
        Command::Train(args) => train(args),
        Command::Reward(args) => reward(args),
        Command::Align(args) => align(args, settings),
        Command::Sample(args) => sample(args),
        Command::Eval(args) => eval(args),
        Command::Bench(args) => bench(args),
        other => Err(Error::request(format!("larpo {} has nothing to plan", other.name()))),
    }
}

/// What to change where a device gave no more than `gave` bytes for a run.
///
/// # Errors
/// A verb that has nothing to plan, and what reading its data reports.
pub(super) fn mend_of_memory(command: &Command, settings: &Settings, gave: u64) -> Result<String> {
    let mut trains = command.clone();
    let advice = match (command, trains.training()) {
        (Command::Align(_), Some((train, _))) => advice(train, SHORTER_SAMPLES),
        (_, Some((train, _))) => advice(train, &["--max_length"]),
        (_, None) => Advice { micro: 1, accumulation: 1, shorter: SHORTER_SAMPLES },
    };
    without_memory(&plan(command, settings)?, gave, advice, |micro, accumulation| {
        let mut command = command.clone();
        if let Some((train, _)) = command.training() {
            in_passes(train, micro, accumulation);
        }
        plan(&command, settings)
    })
}

/// What makes samples take less memory.
const SHORTER_SAMPLES: &[&str] = &["--max_new_tokens", "--num_generations", "--max_prompt_length"];

/// Refuses what the run itself would: to replace what it starts from.
fn spares_inputs(command: &Command) -> Result<()> {
    let (folder, overwrite, inputs) = match command {
        Command::Sft(a) => {
            let inputs = [a.model.model_name_or_path.as_ref(), a.eval.eval_dataset.as_ref(), a.tokenizer_folder()];
            (&a.output_dir, a.overwrite_output_dir, [&[Some(&a.dataset_name)], &inputs[..]].concat())
        }
        Command::Train(a) => {
            let inputs = vec![Some(&a.model.model_name_or_path), Some(&a.dataset_name)];
            (&a.output_dir, a.overwrite_output_dir, inputs)
        }
        Command::Align(a) => {
            let eval = a.iterate.eval_dataset.as_ref();
            let inputs = vec![Some(&a.model.model_name_or_path), Some(&a.dataset_name), eval];
            (&a.output_dir, a.overwrite_output_dir, inputs)
        }
        _ => return Ok(()),
    };
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(|path| path.as_path()).collect();
    if overwrite { OutputDir::spares(folder, &inputs) } else { Ok(()) }
}

/// The checkpoint that `sft` or `train` would go on from.
fn goes_on(folder: &Path, from: Option<&ResumeFrom>) -> Result<Option<Resume>> {
    match (from, folder.is_dir()) {
        (Some(from), true) => checkpoint(folder, from),
        _ => Ok(None),
    }
}

fn sft(args: &SftArgs) -> Result<Plan> {
    let resume = goes_on(&args.output_dir, args.train.resume_from_checkpoint.as_ref())?;
    let folder = resume.as_ref().map(|resume| &resume.checkpoint).or(args.model.model_name_or_path.as_ref());
    let read = super::sft::read(args, folder.map(|folder| folder.as_path()))?;
    let done = resume.as_ref().map_or(0, Resume::updates);
    plan_sft(args, &read.start, &read.rows, read.held_out.as_deref(), done)
}

fn plan_sft(args: &SftArgs, start: &Start, rows: &[SftRow], held_out: Option<&[SftRow]>, done: u64) -> Result<Plan> {
    let present = row_bytes(rows) + held_out.map_or(0, row_bytes);
    let mut planner = Planner::new(start.config().clone(), present);
    let config = LoopConfig::sft(&args.train, args.common.seed);
    let order = config.plan(rows.len());
    let passed = |steps: u64| args.eval.eval_steps.map_or(0, |every| steps / every as u64);
    let looks = 1 + passed(order.steps.saturating_sub(1)).saturating_sub(passed(done));
    let model = planner.model()?;
    if let Start::Fresh(..) = start {
        planner.fresh(&model);
    }
    planner.fine_tune(model, rows, (order, done), config.micro_batch, held_out.map(|rows| (rows, looks)))?;
    Ok(planner.finish_training(&args.train, 1, 0))
}

/// Refuses a run of `sft`, of which `done` updates are made, that cannot fit.
///
/// # Errors
/// As [`admit`].
pub(super) fn admit_sft(
    args: &SftArgs,
    start: &Start,
    rows: &[SftRow],
    held_out: Option<&[SftRow]>,
    done: u64,
) -> Result<u64> {
    let plan = plan_sft(args, start, rows, held_out, done)?;
    admit(&plan, advice(&args.train, &["--max_length", "--max_samples"]), |micro, accumulation| {
        let mut args = args.clone();
        in_passes(&mut args.train, micro, accumulation);
        plan_sft(&args, start, rows, held_out, done)
    })
}

fn advice(args: &TrainArgs, shorter: &'static [&'static str]) -> Advice {
    Advice { micro: args.per_device_train_batch_size, accumulation: args.gradient_accumulation_steps, shorter }
}

fn in_passes(args: &mut TrainArgs, micro: usize, accumulation: usize) {
    args.per_device_train_batch_size = micro;
    args.gradient_accumulation_steps = accumulation;
}

fn train(args: &TrainVerbArgs) -> Result<Plan> {
    let opened = Opened::read_to_train(&args.model.model_name_or_path, &args.lora, args.common.seed)?
        .with_base(args.lora.base_dtype)?
        .recomputing(args.train.gradient_checkpointing);
    let mut lists = super::train::read(args, &opened.blank()?)?.training;
    let resume = goes_on(&args.output_dir, args.train.resume_from_checkpoint.as_ref())?;
    plan_train(args, &opened.config, &mut lists, resume.as_ref().map_or(0, Resume::updates))
}

/// The lists get references without meaning.
fn plan_train(args: &TrainVerbArgs, model: &ModelConfig, lists: &mut [TrainingList], done: u64) -> Result<Plan> {
    let mut planner = Planner::new(model.clone(), list_bytes(lists));
    let config = LoopConfig::lists(&args.train, args.common.seed);
    let settings = list_training(&args.list, args.common.seed);
    let model = planner.model()?;
    let (order, micro) = (config.plan(lists.len()), config.micro_batch);
    let first: Vec<usize> = order.batches().next().into_iter().flatten().take(micro).collect();
    planner.prove(&model, lists, &settings, &first, ((order, done), false))?;
    let references = reference_bytes(lists);
    planner.train_lists(model, lists, &settings, (order, done), micro)?;
    Ok(planner.finish_training(&args.train, 1, references))
}

/// Refuses a run of `train`, of which `done` updates are made, that cannot fit. The lists get references without meaning.
///
/// # Errors
/// As [`admit`].
pub(super) fn admit_train(
    args: &TrainVerbArgs,
    model: &ModelConfig,
    lists: &mut [TrainingList],
    done: u64,
) -> Result<u64> {
    let plan = plan_train(args, model, lists, done)?;
    let lists = std::cell::RefCell::new(lists);
    admit(&plan, advice(&args.train, &["--max_length", "--select", "--max_samples"]), |micro, accumulation| {
        let mut args = args.clone();
        in_passes(&mut args.train, micro, accumulation);
        plan_train(&args, model, &mut lists.borrow_mut(), done)
    })
}

/// Responses of a list that training takes, of `k` candidates that all differ.
fn selected(select: Select, k: usize) -> usize {
    match select {
        Select::TopBottom { top, bottom } => k.min(top + bottom),
        Select::MaxMin => k.min(2),
        Select::OneVsRest | Select::Full => k,
    }
}

fn reward(args: &RewardVerbArgs) -> Result<Plan> {
    let opened = OpenedRewardModel::read_to_train(&args.model.model_name_or_path)?
        .recomputing(args.train.gradient_checkpointing);
    let lists = super::reward::read(args, &opened)?.lists;
    let resume = goes_on(&args.output_dir, args.train.resume_from_checkpoint.as_ref())?;
    plan_reward(args, opened.config(), &lists, resume.as_ref().map_or(0, Resume::updates))
}

fn plan_reward(args: &RewardVerbArgs, model: &ModelConfig, lists: &[RewardList], done: u64) -> Result<Plan> {
    let mut planner = Planner::new(model.clone(), reward_list_bytes(lists));
    let config = LoopConfig::rewards(&args.train, args.common.seed);
    let model = planner.model()?;
    planner.train_rewards(model, lists, (config.plan(lists.len()), done), config.micro_batch)?;
    Ok(planner.finish_training(&args.train, 1, 0))
}

/// Refuses a run of `reward`, of which `done` updates are made, that cannot fit.
///
/// # Errors
/// As [`admit`].
pub(super) fn admit_reward(args: &RewardVerbArgs, model: &ModelConfig, lists: &[RewardList], done: u64) -> Result<u64> {
    let plan = plan_reward(args, model, lists, done)?;
    admit(&plan, advice(&args.train, &["--max_length", "--max_samples"]), |micro, accumulation| {
        let mut args = args.clone();
        in_passes(&mut args.train, micro, accumulation);
        plan_reward(&args, model, lists, done)
    })
}

fn align(args: &AlignArgs, settings: &Settings) -> Result<Plan> {
    // As the verb itself looks for its place, but for the lock: a plan may be made while the run is at work.
    let more = matches!(args.iterate.iterations, Iterations::More(_)).then_some(&ResumeFrom::Latest);
    let from = args.train.resume_from_checkpoint.as_ref().or(more);
    let earlier = from.map(|_| RunRecord::read(&args.output_dir)).transpose()?.flatten();
    let point = match (from, &earlier) {
        (Some(from), Some(_)) => align_point(&args.output_dir, from)?,
        _ => AlignPoint::default(),
    };
    let given = settings.given().contains("iterations");
    let goal = Goal::new(args.iterate.iterations, given, earlier.as_ref(), point.done as usize)?;
    let opened = Opened::read_to_train(&args.model.model_name_or_path, &args.lora, args.common.seed)?
        .with_base(args.lora.base_dtype)?
        .recomputing(args.train.gradient_checkpointing);
    let reward = RewardSource::read(&args.reward)?;
    let (config, prompts, _) = super::align::read(args, goal, &opened.blank()?, false)?;
    plan_align(args, &config, (&opened.config, reward.model()), &prompts, &point)
}

/// The iterations after `point`, of which each trains on every list that it remembers.
fn plan_align(
    args: &AlignArgs,
    config: &AlignConfig,
    (model, judge): (&ModelConfig, Option<&ModelConfig>),
    prompts: &[PromptRow],
    point: &AlignPoint,
) -> Result<Plan> {
    let mut planner = Planner::new(model.clone(), prompt_bytes(prompts) + prompt_bytes(&config.watch.prompts));
    let (tokens, k) = (config.sampling.max_new_tokens, config.sampling.num_generations);
    let mut model = planner.model()?;
    let judge = judge.map(|config| planner.model_of(config.clone())).transpose()?;
    let keeps_first = config.reference == Reference::Initial || config.watch.is_on();
    let first = keeps_first.then(|| model.duplicate()).transpose()?;
    let count = config.prompts_per_iteration.min(prompts.len());
    // The order in which the iterations take the prompts, as in `align::align`.
    let order = CounterRng::new(config.seed, Purpose::Shuffle).permutation(u64::MAX, prompts.len());
    let prompts: Vec<PromptRow> = order.into_iter().map(|i| prompts[i].clone()).collect();
    let resumes = args.train.resume_from_checkpoint.is_some() || matches!(args.iterate.iterations, Iterations::More(_));
    let drawn = resumes && are_drawn(&args.output_dir.join(format!("{ITERATION}{}", point.done + 1)));
    let left = config.iterations.saturating_sub(point.done);
    let draws = left.saturating_sub(u32::from(drawn));
    if draws > 0 {
        planner.sample(&model, &prompts[..count], &config.sampling, f64::from(draws))?;
        if let Some(judge) = &judge {
            planner.rank(judge, &prompts[..count], (k, tokens), f64::from(draws))?;
        }
    }
    if let (Some(first), true) = (&first, config.watch.is_on() && left > 0) {
        let sampling = sampling_of(&config.sampling);
        let looks = f64::from(left + u32::from(point.done == 0));
        planner.sample(&model, &config.watch.prompts, &sampling, looks)?;
        if let Some(judge) = &judge {
            planner.rank(judge, &config.watch.prompts, (sampling.num_generations, tokens), looks)?;
        }
        let lists = longest_lists(&config.watch.prompts, sampling.num_generations, tokens);
        planner.score(first, lists, looks)?;
    }
    planner.trim();
    let mut held = 0;
    for iteration in point.done + 1..=config.iterations {
        let remembered = match config.memory {
            Remembered::None => 1,
            Remembered::Previous => iteration.min(2),
            Remembered::All => iteration,
        };
        // Lists of a prompt that came before grow, and as many of a list's responses are selected as before.
        let lists = (remembered as usize * count).min(prompts.len());
        let merged = k * (remembered as usize * count).div_ceil(prompts.len());
        let responses = selected(config.select, merged);
        let candidates = candidate_bytes(&prompts[..lists], merged, tokens);
        let mut lists = longest_lists(&prompts[..lists], responses, tokens);
        let present = candidates + list_bytes(&lists);
        let order = config.training.plan(lists.len());
        let recorded = config.reference == Reference::Previous && remembered == 1;
        let micro = config.training.micro_batch;
        let resume = point.resume.as_ref().filter(|_| iteration == point.done + 1);
        let done = resume.map_or(0, Resume::updates).min(order.steps);
        let first: Vec<usize> = (0..lists.len().min(micro)).collect();
        let passed = resume.filter(|resume| !resume.or_anew).map_or(0, |_| done);
        planner.prove(&model, &mut lists, &config.lists, &first, ((order, passed), recorded))?;
        held = held.max(present + reference_bytes(&lists));
        model = planner.train_lists(model, &lists, &config.lists, (order, done), micro)?;
        planner.trim();
    }
    // A model of every iteration, and the last or the best of them as the run's.
    Ok(planner.finish_training(&args.train, u64::from(left) + 1, held))
}

/// Refuses what is left of a run of `align` after `point` where it cannot fit.
///
/// # Errors
/// As [`admit`].
pub(super) fn admit_align(
    args: &AlignArgs,
    config: &AlignConfig,
    models: (&ModelConfig, Option<&ModelConfig>),
    prompts: &[PromptRow],
    point: &AlignPoint,
) -> Result<u64> {
    let plan = plan_align(args, config, models, prompts, point)?;
    let shorter = &["--max_new_tokens", "--num_generations", "--max_prompt_length", "--max_samples"];
    admit(&plan, advice(&args.train, shorter), |micro, accumulation| {
        let mut args = args.clone();
        in_passes(&mut args.train, micro, accumulation);
        let config = AlignConfig { training: LoopConfig::lists(&args.train, args.common.seed), ..config.clone() };
        plan_align(&args, &config, models, prompts, point)
    })
}

fn sample(args: &SampleArgs) -> Result<Plan> {
    let opened = Opened::read(&args.model.model_name_or_path)?;
    let policy = opened.blank()?;
    let (prompts, _) = super::sample::prompts(args, &policy)?;
    let config = sampling_config(&args.sampling, &policy, args.generations.num_generations, args.common.seed);
    let mut planner = Planner::new(opened.config.clone(), prompt_bytes(&prompts));
    let model = planner.model()?;
    planner.sample(&model, &prompts, &config, 1.0)?;
    Ok(planner.finish(candidate_bytes(&prompts, config.num_generations, config.max_new_tokens)))
}

/// Every model in turn, greedy and at every temperature, beside the reference.
fn eval(args: &EvalArgs) -> Result<Plan> {
    let mut models = Vec::new();
    for folder in args.models() {
        let opened = Opened::read(folder)?;
        let policy = opened.blank()?;
        let source = Source::open(&args.dataset_name, &args.data, Some(&policy.tokenizer))?;
        let (prompts, _) = super::eval::prompts(args, &source, &policy)?;
        let config = sampling_config(&args.sampling, &policy, args.samples(), args.common.seed);
        models.push((opened.config, prompts, config));
    }
    let present = models.iter().map(|(_, prompts, _)| prompt_bytes(prompts)).sum();
    let reference = args.ref_model.as_deref().map(Opened::read).transpose()?;
    let mut planner = Planner::new(models[0].0.clone(), present);
    let reference = reference.map(|opened| planner.model_of(opened.config)).transpose()?;
    let reward = RewardSource::read(&args.reward)?;
    let judge = reward.model().map(|config| planner.model_of(config.clone())).transpose()?;
    let mut held = 0;
    for (config, prompts, sampling) in models {
        let model = planner.model_of(config)?;
        let times = args.sampling.temperature.len() as f64;
        planner.sample(&model, &prompts, &sampling.clone().greedy(), 1.0)?;
        planner.sample(&model, &prompts, &sampling, times)?;
        planner.trim();
        let (k, tokens) = (sampling.num_generations, sampling.max_new_tokens);
        if let Some(judge) = &judge {
            planner.rank(judge, &prompts, (1, tokens), 1.0)?;
            planner.rank(judge, &prompts, (k, tokens), times)?;
        }
        held = held.max(candidate_bytes(&prompts, k, tokens));
        if let Some(reference) = &reference {
            planner.score(&model, longest_lists(&prompts, k, tokens), times)?;
            planner.score(reference, longest_lists(&prompts, k, tokens), times)?;
        }
    }
    Ok(planner.finish(held))
}

/// Runs of a benchmark after which its pool grows no more.
const SETTLED: u64 = 4;

/// One timed step or sampling run of a benchmark, after as many as it takes for the pool to settle.
fn bench(args: &BenchArgs) -> Result<Plan> {
    let config = super::bench::config(args);
    super::bench::check(args, &config)?;
    let mut planner = Planner::new(config.clone(), 0);
    let model = planner.model()?;
    let lists = super::bench::model::lists(args, &config);
    match args.what {
        BenchKind::Step => {
            let objective = Objective { loss: LossType::Listmle, ..Objective::default() };
            let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.0 };
            let order = BatchPlan::new(lists.len(), lists.len(), 1.0, Some(SETTLED), 1, 0);
            planner.train_lists(model, &lists, &settings, (order, 0), lists.len())?;
        }
        BenchKind::Sample => {
            let prompt = |(index, list): (usize, &TrainingList)| PromptRow {
                index,
                line: 0,
                text: String::new(),
                conversation: None,
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
    Ok(planner.finish(0).one_of(SETTLED))
}

/// Measures the machine, and shows the plan as a table and as an object; it took `making` to make the plan.
fn show(plan: &Plan, making: Duration) -> Result<Value> {
    let limit = machine::total_memory();
    let rates = calibrate(plan)?;
    let seconds: Vec<f64> =
        plan.phases.iter().map(|phase| rates.seconds(&phase.work, phase.name == "sample")).collect();
    let mut table = Table::new(std::iter::once("peak of").chain(plan.phases.iter().map(|phase| phase.name)));
    let parts: Vec<_> = plan.phases.iter().map(|phase| plan.parts(Some(phase))).collect();
    for (row, (name, _)) in plan.parts(None).iter().enumerate() {
        let cells = parts.iter().map(|parts| bytes(parts[row].1));
        table.row(std::iter::once(name.replace('_', " ")).chain(cells));
    }
    let totals = plan.phases.iter().map(|phase| bytes(phase.total() + plan.data + plan.other));
    table.row(std::iter::once("all".to_string()).chain(totals));
    let times = seconds.iter().map(|&s| duration(Duration::from_secs_f64(s.min(1e9))));
    table.row(std::iter::once("time".to_string()).chain(times));
    show!("{}", table.to_string().trim_end());
    let (peak, whole) = (plan.total(), making.as_secs_f64() + seconds.iter().sum::<f64>());
    let of = limit.map_or_else(String::new, |limit| match peak > limit {
        true => format!(": MORE than the machine's {}", bytes(limit)),
        false => format!(" of the machine's {}", bytes(limit)),
    });
    show!(
        "about {}{of}, and {}, {} of it to read the data and go through the run",
        bytes(peak),
        duration(Duration::from_secs_f64(whole.min(1e9))),
        duration(making)
    );
    let phases: Map<String, Value> = plan
        .phases
        .iter()
        .zip(&seconds)
        .map(|(phase, seconds)| {
            (phase.name.to_string(), json!({ "bytes": phase.memory, "copies": phase.copies, "seconds": seconds }))
        })
        .collect();
    Ok(json!({
        "peak_bytes": peak,
        "machine_bytes": limit,
        "fits": limit.map(|limit| peak <= limit),
        "bytes": plan.peak().map(|phase| phase.memory).unwrap_or_default(),
        "copied_bytes": plan.peak().map_or(0, |phase| phase.copies),
        "data_bytes": plan.data,
        "other_bytes": plan.other,
        "seconds": whole,
        "preparing_seconds": making.as_secs_f64(),
        "updates": plan.updates,
        "phases": phases,
    }))
}
