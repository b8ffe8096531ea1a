//! The main job on generated word problems: build a tokenizer, train a small model, align it, show what changed.

pub mod corpus;
mod cpu_time;
mod recipe;

pub use recipe::Recipe;

use crate::align::{AlignConfig, Place, align};
use crate::args::{Reference, ReportTo};
use crate::dataset::PromptRow;
use crate::error::{Error, Result};
use crate::evaluate::{CORRECT, EvalConfig, Evaluation, Judges, RESAMPLES, evaluate};
use crate::policy::Policy;
use crate::reward::RuleReranker;
use crate::table::Table;
use crate::training::{Journal, LoopConfig, sft};
use crate::watch::Watch;
use corpus::{Corpus, Problem};
use cpu_time::cpu_seconds;
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::candidates::Memory;
use larpo_core::cpu::par;
use larpo_core::metrics::Resampling;
use larpo_core::model::ModelConfig;
use larpo_core::objective::Objective;
use larpo_core::optim::{OptimizerConfig, Schedule};
use larpo_core::retriever::SamplingConfig;
use larpo_core::train::{ListTraining, SftRow};
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::Path;

/// N of Recall@N.
const RECALL_AT: [usize; 3] = [1, 5, 20];
/// Sampled solutions shown before and after.
const SHOWN: usize = 3;

/// The data that the demo leaves beside its model: worked examples, fresh prompts, held-out problems.
const DATA_FILES: [&str; 3] = ["sft.jsonl", "prompts.jsonl", "held_out.jsonl"];

/// The four models of the demo, evaluated alike.
pub struct Outcome {
    /// Random weights.
    pub init: Evaluation,
    /// After supervised fine-tuning.
    pub sft: Evaluation,
    /// Fine-tuned on for as long as LarPO takes.
    pub sft_more: Evaluation,
    /// After LarPO.
    pub larpo: Evaluation,
}

impl Outcome {
    fn rows(&self) -> [(&'static str, &Evaluation); 4] {
        [("init", &self.init), ("sft", &self.sft), ("sft_more", &self.sft_more), ("larpo", &self.larpo)]
    }

    /// `{"init": R, "sft": R, "sft_more": R, "larpo": R}`: results only.
    pub fn json(&self) -> Value {
        Value::Object(self.rows().iter().map(|(name, e)| (name.to_string(), e.summary())).collect())
    }

    /// The table the demo ends with.
    pub fn table(&self) -> Table {
        let mut table = Table::new(["model", "greedy", "Recall@1", "Recall@5", "Recall@20"]);
        for (name, evaluation) in self.rows() {
            table.row(std::iter::once(name.to_string()).chain(evaluation.cells()));
        }
        table
    }
}

/// Runs the demo and leaves the aligned model, the data and the iterations in `folder`.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(recipe: &Recipe, seed: u64, backend: &B, folder: &Path) -> Result<Outcome> {
    let corpus = Corpus::generate(seed, recipe.sft_rows, recipe.prompts(), recipe.held_out);
    say!(
        "corpus: {} worked examples, {:.0} % of them careless; {} fresh problems without solutions; {} held out",
        corpus.sft.len(),
        100.0 * corpus.sft.iter().filter(|r| r.careless).count() as f64 / corpus.sft.len() as f64,
        corpus.prompts.len(),
        corpus.eval.len()
    );
    write_data(&corpus, folder)?;
    let texts: Vec<String> = corpus.sft.iter().map(|r| format!("{}{}", r.prompt, r.completion)).collect();
    let tokenizer = Tokenizer::train_bpe(&texts, recipe.vocabulary)?;
    let shape = ModelConfig {
        max_position_embeddings: 512,
        ..ModelConfig::new(
            recipe.hidden_size,
            recipe.intermediate_size,
            recipe.layers,
            recipe.heads,
            recipe.heads,
            tokenizer.vocab_size(),
        )
    };
    let init = Policy::fresh(backend, shape, tokenizer, seed)?;
    say!("model: {} parameters, tokenizer of {} tokens", init.model.config().parameters(), init.tokenizer.vocab_size());
    let held_out = prompt_rows(&init, &corpus.eval)?;
    let evaluation = |policy: &Policy<B>, name: &str| {
        let config = EvalConfig {
            sampling: sampling(recipe, policy, RECALL_AT[2], seed),
            temperatures: vec![1.0],
            stop: Vec::new(),
            recall_at: RECALL_AT.to_vec(),
            ndcg_at: 10,
            threshold: Some(CORRECT),
            resampling: Resampling { seed, resamples: RESAMPLES },
        };
        let mut reranker = RuleReranker::quiet_answer()?;
        let mut judges = Judges { reranker: Some(&mut reranker), rules: None, reference: None };
        evaluate(policy, &held_out, &config, &mut judges, &format!("evaluate {name}"))
    };
    let before = evaluation(&init, "init")?;

    let rows = sft_rows(&init, &corpus)?;
    let training = |steps, rate, stream| {
        let config = sft_loop(recipe, rate, seed);
        (BatchPlan::new(rows.len(), recipe.sft_batch, 1.0, Some(steps), seed, stream), config)
    };
    let (plan, config) = training(recipe.sft_steps(), recipe.sft_rate, 0);
    let (policy, _) = sft(init, &rows, plan, &config, None, Journal::bar("sft"))?;
    let sft_policy = policy.duplicate()?;
    // Kept so that the loop can be tried again from here with other settings.
    policy.save(&folder.join("sft"))?;
    let sft_evaluation = evaluation(&policy, "sft")?;

    let prompts = prompt_rows(&policy, &corpus.prompts)?;
    let start = cpu_seconds();
    let mut reranker = RuleReranker::answer()?;
    let aligned =
        align(policy, &prompts, &align_config(recipe, &sft_policy, seed), &mut reranker, Some(&Place::new(folder)))?
            .policy;
    let larpo_seconds = cpu_seconds() - start;
    aligned.save(folder)?;
    let larpo = evaluation(&aligned, "larpo")?;

    let start = cpu_seconds();
    let (plan, config) = training(recipe.more_steps, recipe.more_rate, 1);
    let (more, _) = sft(sft_policy, &rows, plan, &config, None, Journal::bar("sft_more"))?;
    let more_seconds = cpu_seconds() - start;
    let sft_more = evaluation(&more, "sft_more")?;
    say!("CPU time: larpo {larpo_seconds:.1} s, sft_more {more_seconds:.1} s");

    let outcome = Outcome { init: before, sft: sft_evaluation, sft_more, larpo };
    show(&corpus.eval, &outcome);
    Ok(outcome)
}

fn sampling<B: Backend>(recipe: &Recipe, policy: &Policy<B>, k: usize, seed: u64) -> SamplingConfig {
    SamplingConfig {
        num_generations: k,
        max_new_tokens: recipe.max_new_tokens,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: policy.eos_ids.clone(),
        vocab_limit: policy.tokenizer.vocab_size(),
        seed,
        iteration: 0,
    }
}

fn sft_loop(recipe: &Recipe, rate: f64, seed: u64) -> LoopConfig {
    LoopConfig {
        optimizer: OptimizerConfig {
            learning_rate: rate,
            beta2: 0.95,
            weight_decay: 0.01,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.05,
            ..OptimizerConfig::default()
        },
        micro_batch: recipe.sft_batch,
        accumulation: 1,
        epochs: 1.0,
        max_steps: None,
        logging_steps: 50,
        report_to: ReportTo::None,
        save_steps: None,
        save_total_limit: None,
        seed,
        stream: 0,
    }
}

fn align_config<B: Backend>(recipe: &Recipe, policy: &Policy<B>, seed: u64) -> AlignConfig {
    AlignConfig {
        iterations: recipe.iterations,
        prompts_per_iteration: recipe.prompts_per_iteration,
        memory: Memory::All,
        reference: Reference::Previous,
        sampling: sampling(recipe, policy, recipe.num_generations, seed),
        temperatures: vec![1.0],
        stop: Vec::new(),
        max_length: policy.model.config().max_position_embeddings,
        lists: ListTraining {
            objective: Objective { loss: recipe.loss, seed, ..Objective::default() },
            beta: 0.1,
            sft_weight: recipe.sft_weight,
        },
        select: recipe.select,
        training: LoopConfig {
            optimizer: OptimizerConfig {
                learning_rate: recipe.align_rate,
                schedule: Schedule::Linear,
                warmup_ratio: 0.1,
                ..OptimizerConfig::default()
            },
            micro_batch: recipe.align_batch,
            accumulation: 1,
            epochs: 1.0,
            max_steps: None,
            logging_steps: 5,
            report_to: ReportTo::None,
            save_steps: None,
            save_total_limit: None,
            seed,
            stream: 0,
        },
        watch: Watch::default(),
        seed,
        source: json!({ "demo": { "sft_rows": recipe.sft_rows, "threads": par::threads() } }),
    }
}

fn sft_rows<B: Backend>(policy: &Policy<B>, corpus: &Corpus) -> Result<Vec<SftRow>> {
    let encode = |row: &corpus::TrainingRow| {
        Ok(SftRow { prompt: policy.encode_prompt(&row.prompt)?, response: policy.encode_response(&row.completion)? })
    };
    corpus.sft.iter().map(encode).collect()
}

fn prompt_rows<B: Backend>(policy: &Policy<B>, problems: &[Problem]) -> Result<Vec<PromptRow>> {
    let row = |(index, problem): (usize, &Problem)| {
        Ok(PromptRow {
            index,
            line: index + 1,
            text: problem.prompt.clone(),
            conversation: None,
            ids: policy.encode_prompt(&problem.prompt)?,
            reference: Some(format!("#### {}", problem.answer)),
        })
    };
    problems.iter().enumerate().map(row).collect()
}

/// Leaves the data beside the model, so that the other verbs can go on from there.
fn write_data(corpus: &Corpus, folder: &Path) -> Result<()> {
    let write = |name: &str, rows: Vec<Value>| {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        larpo_data::files::write_bytes(folder.join(name), lines.as_bytes())?;
        Ok::<(), Error>(())
    };
    let problem = |p: &Problem| json!({ "prompt": p.prompt, "reference": format!("#### {}", p.answer) });
    let [sft, prompts, held_out] = DATA_FILES;
    write(sft, corpus.sft.iter().map(|r| json!({ "prompt": r.prompt, "completion": r.completion })).collect())?;
    write(prompts, corpus.prompts.iter().map(problem).collect())?;
    write(held_out, corpus.eval.iter().map(problem).collect())
}

fn show(problems: &[Problem], outcome: &Outcome) {
    let one_line = |text: &str| text.trim_end().replace('\n', " / ");
    for (i, problem) in problems.iter().take(SHOWN).enumerate() {
        show!("\n{}  (answer {})", problem.prompt.trim_end(), problem.answer);
        show!("  before: {}", one_line(&outcome.sft.responses[i]));
        show!("  after:  {}", one_line(&outcome.larpo.responses[i]));
    }
}
