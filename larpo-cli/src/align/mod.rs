//! Algorithm 1 (Jin et al. 2025): sample, rank, train on the ranked lists, repeat.

mod config;
mod report;

pub use config::AlignConfig;
pub use report::{IterationReport, describe};

use crate::args::{Reference, ReportTo};
use crate::cmd::losses;
use crate::dataset::PromptRow;
use crate::error::{Error, Result};
use crate::evaluate::untempered;
use crate::messages;
use crate::numbers::fixed;
use crate::policy::{Kind, Policy};
use crate::references;
use crate::resume::{AlignPoint, ITERATION, LOG, MANIFEST, Resume};
use crate::run_record;
use crate::samples::{self, Request, Stored};
use crate::status;
use crate::stop::Stop;
use crate::tensorboard::EventFile;
use crate::training::{Journal, train_lists};
use crate::watch::{self, Look, MOVED_PROMPTS};
use larpo_core::backend::Backend;
use larpo_core::candidates::{CandidateList, CandidateMemory, training_lists};
use larpo_core::model::Transformer;
use larpo_core::proofs::prove;
use larpo_core::reranker::Reranker;
use larpo_core::retriever::SamplingConfig;
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::train::TrainingList;
use larpo_data::checksums::{self, Checksum};
use larpo_data::files;
use report::reward_summary;
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The policy after an iteration, in its folder.
const MODEL: &str = "model";
/// The first policy on the watched prompts.
pub const START: &str = "start.json";

/// Why a run cannot be watched from its middle on.
pub const NOT_LOOKED_AT: &str = "earlier iterations of the run were not looked at; --until_kl, --early_stopping_patience and \
                                 --eval_dataset must be there from the beginning";

/// Where a run writes, what it goes on from, and who may end it early.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The folder; every iteration leaves `iteration-<n>/` there.
    pub folder: PathBuf,
    /// What is done already.
    pub point: AlignPoint,
    /// Raised to end at the next safe point: between batches of prompts, updates or iterations.
    pub stop: Stop,
}

impl Place {
    /// A run in `folder` from the beginning.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), ..Self::default() }
    }

    fn iteration(&self, n: u32) -> PathBuf {
        self.folder.join(format!("{ITERATION}{n}"))
    }
}

/// How the loop ended.
pub struct Aligned<B: Backend> {
    /// The last policy, or the best one where the run ends on the rewards of watched prompts.
    pub policy: Policy<B>,
    /// The iterations' reports ([`IterationReport::json`]), those of earlier sessions of the run among them.
    pub reports: Vec<Value>,
    /// Why it ended before the last iteration, where it did.
    pub ended: Option<String>,
    /// The iteration that `policy` comes from where that was chosen by them; 0 is the start.
    pub kept: Option<u32>,
}

/// Runs the loop from `policy` over `prompts`.
///
/// A run that goes on reads its last finished iteration's model, and the candidates of the iterations that are remembered.
/// Reference log-probabilities are computed again from the policy that the iteration started from: they are a function of
/// it, cost a fraction of the training, and so need no file that could be damaged.
///
/// # Errors
/// A failed step-0 proof, prompts that the model cannot take, what the reranker reports, files that cannot be read or
/// written; [`Error::Interrupted`] after an early end.
pub fn align<B: Backend>(
    policy: Policy<B>,
    prompts: &[PromptRow],
    config: &AlignConfig,
    reranker: &mut dyn Reranker,
    place: Option<&Place>,
) -> Result<Aligned<B>> {
    let bos = prove_bos(&policy, prompts)?;
    say!("step-0 proof: {bos} BOS token(s) a prompt, as the tokenizer puts them");
    let initial = match config.reference == Reference::Initial || config.watch.is_on() {
        true => Some(policy.model.duplicate()?),
        false => None,
    };
    let order = CounterRng::new(config.seed, Purpose::Shuffle).permutation(u64::MAX, prompts.len());
    let count = config.prompts_per_iteration.min(prompts.len());
    if count < config.prompts_per_iteration {
        say!("note: {} an iteration, because the data set has no more", messages::count(count, "prompts"));
    }
    let chosen = |iteration: u32| -> Vec<PromptRow> {
        let first = (iteration as usize - 1) * count;
        (first..first + count).map(|i| prompts[order[i % order.len()]].clone()).collect()
    };
    let mut run = Run { config, initial, memory: CandidateMemory::default(), place };
    let mut looks = run.first_look(&policy, reranker)?;
    let (mut policy, mut reports) = run.take_up(policy, chosen, reranker)?;
    looks.extend(reports.iter().filter_map(|report| Look::from_json(&report["watched"])));
    if config.watch.is_on() && looks.len() != reports.len() + 1 {
        return Err(Error::request(NOT_LOOKED_AT));
    }
    let mut ended = None;
    for iteration in reports.len() as u32 + 1..=config.iterations {
        ended = config.watch.ends(&looks);
        if ended.is_some() {
            break;
        }
        if place.is_some_and(|place| place.stop.requested()) {
            return Err(Error::stopped(format!("before iteration {iteration}/{}", config.iterations)));
        }
        let (next, report) = run.iteration(policy, iteration, &chosen(iteration), reranker)?;
        policy = next;
        looks.extend(report.watched);
        reports.push(report.json());
    }
    let kept = config.watch.patience.map(|_| watch::best(&looks) as u32);
    match (kept, place) {
        (Some(best), Some(place)) if best as usize != reports.len() => policy = run.best(policy, best, place)?,
        _ => {}
    }
    Ok(Aligned { policy, reports, ended, kept })
}

/// BOS tokens at the start of every prompt: as many as the tokenizer puts there, never two.
fn prove_bos<B: Backend>(policy: &Policy<B>, prompts: &[PromptRow]) -> Result<usize> {
    let Some(bos) = policy.tokenizer.bos_id() else { return Ok(0) };
    let leading = |ids: &[u32]| ids.iter().take_while(|&&id| id == bos).count();
    let expected = leading(&policy.prompt_prefix()?);
    // What a chat template writes is its own; twice is wrong anywhere.
    let wrong = |p: &&PromptRow| match p.conversation {
        Some(_) => leading(&p.ids) > 1,
        None => leading(&p.ids) != expected || expected > 1,
    };
    match prompts.iter().find(wrong) {
        None => Ok(prompts.first().map_or(expected, |first| leading(&first.ids))),
        Some(prompt) => Err(larpo_core::Error::Proof {
            proof: "as many BOS tokens as the tokenizer puts there, never two",
            found: format!("{} at the start of prompt {}", leading(&prompt.ids), prompt.index),
        }
        .into()),
    }
}

struct Run<'a, B: Backend> {
    config: &'a AlignConfig,
    initial: Option<Transformer<B>>,
    memory: CandidateMemory,
    place: Option<&'a Place>,
}

impl<B: Backend> Run<'_, B> {
    /// The first policy on the watched prompts. It is kept in the folder: a run that goes on compares with the same.
    fn first_look(&self, policy: &Policy<B>, reranker: &mut dyn Reranker) -> Result<Vec<Look>> {
        if !self.config.watch.is_on() {
            return Ok(Vec::new());
        }
        let path = self.place.map(|place| place.folder.join(START));
        if let Some((path, text)) = path.as_ref().and_then(|path| Some((path, std::fs::read(path).ok()?))) {
            let text = String::from_utf8_lossy(&text);
            let stored = serde_json::from_str(&text).ok().filter(|_| run_record::is_sealed(&text));
            if let Some(look) = stored.and_then(|value: Value| Look::from_json(&value["watched"])) {
                return Ok(vec![look]);
            }
            warn!("{} is damaged: its checksum does not fit. It is measured again", path.display());
        }
        let look = self.look(policy, reranker, "start")?;
        if let Some(path) = path {
            let text = format!("{:#}", json!({ "watched": look.json() }));
            files::write_bytes(path, run_record::sealed(&text).as_bytes())?;
        }
        Ok(vec![look])
    }

    fn look(&self, policy: &Policy<B>, reranker: &mut dyn Reranker, name: &str) -> Result<Look> {
        let (config, watch) = (self.config, &self.config.watch);
        let first = self.initial.as_ref().unwrap_or(&policy.model);
        let label = format!("{name}: watched prompts");
        let look = watch::look(policy, first, &watch.prompts, (&config.sampling, &config.stop), reranker, &label)?;
        say!(
            "{name}: on {} mean reward {}, KL from the first policy {} nats a response",
            messages::count(watch.prompts.len(), "watched prompts"),
            fixed(look.mean_reward, 3),
            fixed(look.kl, 3)
        );
        policy.model.backend().trim();
        Ok(look)
    }

    /// The policy after iteration `n`, or the first one.
    fn best(&mut self, last: Policy<B>, n: u32, place: &Place) -> Result<Policy<B>> {
        match (n, self.initial.take()) {
            (0, Some(initial)) => Ok(last.with_model(initial)),
            _ => {
                let folder = place.iteration(n).join(MODEL);
                checksums::verify(&folder)?;
                last.reloaded(&folder, Kind::LanguageModel)
            }
        }
    }

    /// What earlier sessions of the run left: their last policy and their reports; their candidates are remembered.
    fn take_up(
        &mut self,
        policy: Policy<B>,
        chosen: impl Fn(u32) -> Vec<PromptRow>,
        reranker: &mut dyn Reranker,
    ) -> Result<(Policy<B>, Vec<Value>)> {
        let Some(place) = self.place.filter(|place| place.point.done > 0) else { return Ok((policy, Vec::new())) };
        let done = place.point.done;
        if done > self.config.iterations {
            return Err(Error::request(format!(
                "--iterations {}: the run in {} has finished {done}; ask for as many or more",
                self.config.iterations,
                place.folder.display()
            )));
        }
        let mut reports = Vec::new();
        for n in 1..=done {
            checksums::verify_file(place.iteration(n), MANIFEST)?;
            if let Err(error) = checksums::verify_file(place.iteration(n), LOG) {
                // Nothing is computed from it.
                warn!("{error}. The run goes on, and leaves the file as it is");
            }
            let path = place.iteration(n).join(MANIFEST);
            let text = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
            let manifest: Value = serde_json::from_slice(&text)
                .map_err(|error| Error::request(format!("{}: {error}; restore it from a copy", path.display())))?;
            reports.push(manifest["report"].clone());
            let sampling = SamplingConfig { iteration: n, ..self.config.sampling.clone() };
            let (prompts, folder) = (chosen(n), place.iteration(n));
            let request = self.request(&prompts, &sampling, "");
            let Some(Stored { lists, .. }) = samples::take_up(&policy, request, &folder, reranker)? else {
                let lost = losses::candidates(&folder).unwrap_or_default();
                return Err(Error::request(format!("{}: {lost}", folder.display())));
            };
            self.memory.add(lists);
            self.memory.forget(self.config.memory, n);
        }
        let folder = place.iteration(done).join(MODEL);
        say!("goes on after iteration {done}/{}, with the model in {}", self.config.iterations, folder.display());
        Ok((policy.reloaded(&folder, Kind::LanguageModel)?, reports))
    }

    fn iteration(
        &mut self,
        policy: Policy<B>,
        iteration: u32,
        prompts: &[PromptRow],
        reranker: &mut dyn Reranker,
    ) -> Result<(Policy<B>, IterationReport)> {
        let name = format!("iteration {iteration}/{}", self.config.iterations);
        let temperature = self.config.temperature(iteration);
        let sampling = SamplingConfig { temperature, iteration, ..self.config.sampling.clone() };
        let folder = self.place.map(|place| place.iteration(iteration));
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        }
        if let (Some(place), Some(folder)) = (self.place, &folder) {
            run_record::copy(&place.folder, folder)?;
        }
        let stop = self.place.map(|place| place.stop.clone()).unwrap_or_default();
        let label = format!("{name}: sample");
        let request = self.request(prompts, &sampling, &label);
        let fresh = samples::draw(&policy, request, folder.as_deref(), reranker, &stop)?;
        policy.model.backend().trim();
        let (mean_reward, best_reward) = reward_summary(&fresh);
        // What people edited is no sample, and has no log-probabilities.
        let drawn = |list: &&CandidateList| list.candidates.iter().all(|c| c.logps.len() == c.ids.len());
        let known = if untempered(&sampling, sampling.temperature) { MOVED_PROMPTS } else { 0 };
        let before: Vec<CandidateList> = fresh.iter().filter(drawn).take(known).cloned().collect();
        self.memory.add(fresh);
        self.memory.forget(self.config.memory, iteration);
        // Lists that grew are scored as a whole again: a ranker may compare their members.
        let grew = |list: &&mut CandidateList| {
            list.candidates.first().is_some_and(|first| list.candidates.iter().any(|c| c.iteration != first.iteration))
        };
        self.memory.lists_mut().filter(grew).try_for_each(|list| list.rank(reranker))?;
        let (mut lists, counts) =
            training_lists(self.memory.lists(), self.config.select, &self.config.lists.objective, iteration)?;
        say!(
            "{name}: mean reward {}, best of {} {}; {} = {} to train on + {} with \
             equal rewards + {} with fewer than two different responses; {} among {}",
            fixed(mean_reward, 3),
            self.config.sampling.num_generations,
            fixed(best_reward, 3),
            messages::count(counts.lists, "lists"),
            counts.contributing,
            counts.equal,
            counts.too_short,
            messages::count(counts.duplicates, "duplicates"),
            messages::count(counts.candidates, "candidates")
        );
        let mut report = IterationReport {
            iteration,
            temperature,
            prompts: prompts.len(),
            mean_reward,
            best_reward,
            counts,
            proofs: None,
            outcome: None,
            moved: None,
            watched: None,
        };
        let metrics = folder.as_ref().map(|folder| folder.join(LOG));
        let policy = match lists.is_empty() {
            true => {
                warn!(
                    "{name}: no list contributes ({} with equal rewards, {} with fewer than two different responses, {} duplicate \
                     candidates); \
                     the policy stays as it is. Step-0 proofs of constants, log-probabilities and gradient skipped: there is no list",
                    counts.equal, counts.too_short, counts.duplicates
                );
                if let Some(path) = &metrics {
                    // Every iteration leaves the same files.
                    files::write_bytes(path, b"")?;
                }
                policy
            }
            false => {
                // A checkpoint to go on from belongs to the first iteration that is not finished.
                let point = self.place.map(|place| &place.point).filter(|point| iteration == point.done + 1);
                let resume = point.and_then(|point| point.resume.clone());
                let label = format!("{name}: train");
                let checkpoints =
                    self.place.map_or(Vec::new(), |place| (1..=iteration).rev().map(|n| place.iteration(n)).collect());
                let run = self.place.map(|place| place.folder.clone());
                let journal = Journal { label, metrics, checkpoints, run, resume, stop };
                let policy = self.train(policy, &name, &mut lists, journal, &mut report)?;
                report.moved = watch::moved(&before, &policy.model)?;
                if let Some(kl) = report.moved {
                    say!("{name}: moved the policy by {} nats a response (KL)", fixed(kl.mean, 3));
                }
                policy
            }
        };
        if self.config.watch.is_on() {
            report.watched = Some(self.look(&policy, reranker, &name)?);
        }
        if let (Some(place), ReportTo::Tensorboard) = (self.place, self.config.training.report_to) {
            // Before the manifest: an iteration that is done again drops its events, one that is done would lack them.
            let write = |mut events: EventFile| events.write(&report.scalars().into());
            let events = EventFile::create(&place.folder, u64::from(iteration)).and_then(write);
            events.map_err(Error::io(&place.folder, "write events to"))?;
        }
        if let Some(folder) = &folder {
            files::write_folder(folder.join(MODEL), |folder| {
                policy.save_exactly(folder)?;
                Ok::<(), Error>(checksums::seal(folder)?)
            })?;
            self.write_manifest(folder, prompts, &report)?;
            status::set_checkpoint(folder);
        }
        Ok((policy, report))
    }

    fn request<'r>(&'r self, prompts: &'r [PromptRow], sampling: &'r SamplingConfig, label: &'r str) -> Request<'r> {
        let AlignConfig { stop, max_length, .. } = self.config;
        Request { prompts, sampling, stop_strings: stop, max_length: *max_length, label }
    }

    fn train(
        &mut self,
        policy: Policy<B>,
        name: &str,
        lists: &mut [TrainingList],
        journal: Journal,
        report: &mut IterationReport,
    ) -> Result<Policy<B>> {
        let initial = self.initial.as_ref().filter(|_| self.config.reference == Reference::Initial);
        let mut training = self.config.training.clone();
        training.stream = u64::from(report.iteration);
        // In the first iteration the initial policy is the present one.
        let same = initial.is_none() || report.iteration == 1;
        // Lists with fresh responses come first: only their recorded log-probabilities are the present policy's.
        let fresh = |list: &&TrainingList| list.responses.iter().any(|r| r.sampled.is_some());
        let (recorded, others): (Vec<_>, Vec<_>) = lists.iter().partition(fresh);
        let batch: Vec<&TrainingList> = recorded.into_iter().chain(others).take(training.micro_batch).collect();
        let proofs = prove(&policy.model, &self.config.lists, &batch, same)?;
        say!("{name}: {}", describe(&proofs));
        report.proofs = Some(proofs);
        // A checkpoint that does not fit is passed over: then the updates that it made are made again.
        let done = journal.resume.as_ref().filter(|resume| !resume.or_anew).map_or(0, Resume::updates);
        let updates = (training.plan(lists.len()), done);
        let reference = initial.unwrap_or(&policy.model);
        references::fill(reference, lists, updates, initial.is_none(), (name, &journal.stop))?;
        let (policy, outcome) = train_lists(policy, lists, &self.config.lists, &training, journal)?;
        policy.model.backend().trim();
        report.outcome = Some(outcome);
        Ok(policy)
    }

    fn write_manifest(&self, folder: &Path, prompts: &[PromptRow], report: &IterationReport) -> Result<()> {
        let manifest = json!({
            "version": 1,
            "larpo": env!("CARGO_PKG_VERSION"),
            "config": self.config.json(),
            "prompts": prompts.iter().map(|p| p.index).collect::<Vec<_>>(),
            "report": report.json(),
        });
        let manifest = format!("{manifest:#}\n");
        let log = folder.join(LOG);
        File::open(&log).and_then(|log| log.sync_all()).map_err(Error::io(&log, "write to disk"))?;
        // The candidates are not listed: they may be edited.
        checksums::list(folder, &[(MANIFEST, Checksum::of(manifest.as_bytes())), (LOG, Checksum::of_file(&log)?)])?;
        Ok(files::write_bytes(folder.join(MANIFEST), manifest.as_bytes())?)
    }
}
