//! The flags of each verb but `sft`.

use super::groups::*;
use super::values::*;
use crate::resume::ResumeFrom;
use clap::Args;
use larpo_core::objective::LossType;
use larpo_data::model_folder::Format;
use std::path::{Path, PathBuf};

/// Flags of `larpo demo`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct DemoArgs {
    /// Where the final model goes
    #[arg(long, value_name = "DIR", default_value = "larpo-demo", help_heading = "Output")]
    pub output_dir: PathBuf,
    /// Replace what an earlier run left in output_dir [default: only an earlier demo is replaced]
    #[arg(long, help_heading = "Output")]
    pub overwrite_output_dir: bool,
    /// The same path with less training, in seconds instead of minutes; the numbers mean little
    #[arg(long)]
    pub quick: bool,
    #[command(flatten)]
    /// Seed, threads, JSON.
    pub common: CommonArgs,
}

/// Flags of `larpo sample`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct SampleArgs {
    /// The policy.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows whose prompts to answer: JSONL, a JSON array, CSV, TSV, each also .gz, Parquet, or plain text
    #[arg(long, value_name = "PATH", help_heading = "Data", conflicts_with = "prompt")]
    pub dataset_name: Option<PathBuf>,
    /// A prompt to answer; may be repeated
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    pub prompt: Vec<String>,
    /// Folder that candidates.jsonl is written to, as a whole at the end: interrupted, the verb starts again
    /// [default: the samples are only shown]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: Option<PathBuf>,
    /// Replace a candidates.jsonl that is there already
    #[arg(long, help_heading = "Output", requires = "output_dir")]
    pub overwrite_output_dir: bool,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Which part of the data.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How many responses.
    #[command(flatten)]
    pub generations: GenerationsArgs,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl SampleArgs {
    pub(super) fn validate(&self) -> Result<(), String> {
        self.sampling.one_temperature()?;
        if self.prompt.is_empty() && self.dataset_name.is_none() {
            return Err("name the prompts: --dataset_name PATH, or --prompt TEXT".into());
        }
        if !self.prompt.is_empty() {
            if self.split.split != Split::All || self.split.validation_fraction > 0.0 {
                return Err("--split and --validation_fraction are for --dataset_name, not for --prompt".into());
            }
            if self.data.max_samples.is_some() {
                return Err("--max_samples is for --dataset_name, not for --prompt".into());
            }
            if self.data.shuffle_seed.is_some() || self.data.read.dataset_schema.is_some() {
                return Err("--shuffle_seed and --dataset_schema are for --dataset_name, not for --prompt".into());
            }
        }
        self.split.validate()
    }
}

/// Flags of `larpo convert`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ConvertArgs {
    /// The model folder
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Folder that the model is written to, with every file of its tokenizer
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Format of the weights: float32, bfloat16 or float16 [default: as they are]
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    pub dtype: Option<Format>,
    /// Most bytes of tensors in a weight file, such as 5GB, 200MB or 64MiB; a larger tensor has a file of its own
    /// [default: the files as they are]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Output")]
    pub max_shard_size: Option<u64>,
    /// Replace a model that is in OUT already
    #[arg(long, help_heading = "Output")]
    pub overwrite_output_dir: bool,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `larpo merge`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct MergeArgs {
    /// The adapter's folder: adapter_config.json and adapter_model.safetensors
    #[arg(value_name = "ADAPTER")]
    pub input: PathBuf,
    /// Folder that the model is written to, with every file of its tokenizer
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// The model under the adapter [default: the one that the adapter names]
    #[arg(long, visible_alias = "model", value_name = "DIR", help_heading = "Model")]
    pub model_name_or_path: Option<PathBuf>,
    /// Format of the weights: float32, bfloat16 or float16 [default: that of the model under the adapter]
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    pub dtype: Option<Format>,
    /// Most bytes of tensors in a weight file, such as 5GB, 200MB or 64MiB; a larger tensor has a file of its own
    /// [default: the files of the model under the adapter]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Output")]
    pub max_shard_size: Option<u64>,
    /// Replace a model that is in OUT already
    #[arg(long, help_heading = "Output")]
    pub overwrite_output_dir: bool,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `larpo rank`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct RankArgs {
    /// Candidates (JSONL): rows with one response or with a list of them
    #[arg(value_name = "PATH", required_unless_present = "dataset_name")]
    pub input: Option<PathBuf>,
    /// The same, as a flag
    #[arg(long, value_name = "PATH", conflicts_with = "input", help_heading = "Data")]
    pub dataset_name: Option<PathBuf>,
    /// Folder that the sorted candidates.jsonl is written to, as a whole at the end: interrupted, the verb starts again
    /// [default: only counts are shown]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: Option<PathBuf>,
    /// Replace a candidates.jsonl that is there already
    #[arg(long, help_heading = "Output", requires = "output_dir")]
    pub overwrite_output_dir: bool,
    /// What a malformed row does: end the run with an error, or be left out and counted
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = BadRow::Error, help_heading = "Data")]
    pub on_bad_row: BadRow,
    /// Field that holds the prompt
    #[arg(long, value_name = "KEY", default_value = "prompt", help_heading = "Data")]
    pub prompt_key: String,
    /// Field that holds the response, or the list of them
    #[arg(long, value_name = "KEY", default_value = "responses", help_heading = "Data")]
    pub response_key: String,
    /// Field that holds the reference solution, for rewards that need one
    #[arg(long, value_name = "KEY", default_value = "reference", help_heading = "Data")]
    pub reference_key: String,
    /// Further fields with one entry for each response, to be sorted with them
    #[arg(long, value_name = "KEY,...", value_delimiter = ',', help_heading = "Data")]
    pub list_keys: Vec<String>,
    /// Folder of a tokenizer to count tokens with, for the length reward [default: the rows' token_ids,
    /// or words where a row has none]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub tokenizer: Option<PathBuf>,
    /// Field that holds a verdict, true or false, to compare the reward with
    #[arg(long, value_name = "KEY", help_heading = "Data")]
    pub label_key: Option<String>,
    /// The reranker.
    #[command(flatten)]
    pub reward: RewardArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl RankArgs {
    /// The candidates file, given either way.
    pub fn path(&self) -> Option<&PathBuf> {
        self.input.as_ref().or(self.dataset_name.as_ref())
    }
}

/// Flags of `larpo reward`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct RewardVerbArgs {
    /// Where it starts: a reward model, or a language model of Llama, Mistral, Gemma 2 or Qwen2, whose body gets a new score
    /// head.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Preference pairs (chosen and rejected), ranked lists (responses and rewards or ranks) or labelled completions
    /// (completion and label)
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub dataset_name: PathBuf,
    /// Where the reward model goes: itself a model folder
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: PathBuf,
    /// Replace what an earlier run left in output_dir
    #[arg(long, help_heading = "Output")]
    pub overwrite_output_dir: bool,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Share of the rows held back at the end, which the finished model orders
    #[arg(long, value_name = "F", value_parser = part, help_heading = "Data")]
    pub validation_fraction: Option<f64>,
    /// Weight of the squared sum of a pair's scores in the loss, which keeps scores around 0 (0.01 is a common choice)
    #[arg(long, value_name = "C", default_value_t = 0.0, value_parser = non_negative, help_heading = "Objective")]
    pub center_rewards_coefficient: f64,
    /// By how much the better response of a pair is to lead in the loss; a row's own `margin` counts more
    #[arg(long, value_name = "M", default_value_t = 0.0, value_parser = non_negative, help_heading = "Objective")]
    pub margin: f64,
    /// Optimizer and schedule.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `larpo generate`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct GenerateArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows whose prompts to answer
    #[arg(long, value_name = "PATH", help_heading = "Data", conflicts_with = "prompt")]
    pub dataset_name: Option<PathBuf>,
    /// A prompt to answer; may be repeated
    #[arg(long, value_name = "TEXT", help_heading = "Data", required_unless_present = "dataset_name")]
    pub prompt: Vec<String>,
    /// A prompt is a user's turn in the model's chat template, not the beginning of a text
    #[arg(long, help_heading = "Data")]
    pub apply_chat_template: bool,
    /// The system's turn in front of it
    #[arg(long, value_name = "TEXT", help_heading = "Data", requires = "apply_chat_template")]
    pub system: Option<String>,
    /// Folder that generations.jsonl is written to [default: the responses are shown]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: Option<PathBuf>,
    /// Replace a generations.jsonl that is there already
    #[arg(long, help_heading = "Output", requires = "output_dir")]
    pub overwrite_output_dir: bool,
    /// Draw tokens by --temperature, --top_k, --top_p and --min_p [default: always the most probable one]
    #[arg(long, help_heading = "Sampling")]
    pub do_sample: bool,
    /// Draw so many responses and give the one with the highest reward
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Sampling")]
    pub best_of: Option<usize>,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Which part of the data.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What --best_of goes by.
    #[command(flatten)]
    pub reward: RewardArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl GenerateArgs {
    pub(super) fn validate(&self) -> Result<(), String> {
        self.sampling.one_temperature()?;
        self.reward.validate()?;
        self.split.validate()
    }
}

/// Flags of `larpo chat`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ChatArgs {
    /// The model, whose folder has a chat template.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The system's turn at the beginning
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    pub system: Option<String>,
    /// Always the most probable token [default: tokens are drawn by --temperature, --top_k, --top_p and --min_p]
    #[arg(long, help_heading = "Sampling")]
    pub greedy: bool,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `larpo score`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ScoreArgs {
    /// Model under which the responses' log-probabilities are computed
    #[arg(long, value_name = "DIR", help_heading = "Model", required_unless_present = "reward_model")]
    pub model_name_or_path: Option<PathBuf>,
    /// Reward model that scores them: a folder with a sequence classifier of one label
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub reward_model: Option<PathBuf>,
    /// Rows with responses: ranked or unranked lists, preference pairs, labelled completions, prompts with completions
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub dataset_name: PathBuf,
    /// Folder that scores.jsonl is written to [default: the first rows are shown]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: Option<PathBuf>,
    /// Replace a scores.jsonl that is there already
    #[arg(long, help_heading = "Output", requires = "output_dir")]
    pub overwrite_output_dir: bool,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Which part of the data.
    #[command(flatten)]
    pub split: SplitArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `larpo train`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct TrainVerbArgs {
    /// The policy, which is also the reference.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Ranked lists (prompt, responses and rewards in each row, as in candidates.jsonl), preference pairs (chosen and
    /// rejected) or labelled completions (completion and label)
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub dataset_name: PathBuf,
    /// Where the final model goes: itself a model folder
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: PathBuf,
    /// Replace what an earlier run left in output_dir
    #[arg(long, help_heading = "Output")]
    pub overwrite_output_dir: bool,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Which part of the data.
    #[command(flatten)]
    pub split: SplitArgs,
    /// The objective.
    #[command(flatten)]
    pub list: ListArgs,
    /// Optimizer and schedule.
    #[command(flatten)]
    pub train: TrainArgs,
    /// The adapter.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl TrainVerbArgs {
    pub(super) fn validate(&self) -> Result<(), String> {
        self.list.validate()?;
        self.split.validate()
    }
}

/// Flags of `larpo align`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct AlignArgs {
    /// The policy to start from.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows whose prompts to use: JSONL, a JSON array, CSV, TSV, each also .gz, Parquet, or plain text
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub dataset_name: PathBuf,
    /// Where the final model goes: itself a model folder, with iteration-N/ beside the weights
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: PathBuf,
    /// Replace what an earlier run left in output_dir
    #[arg(long, help_heading = "Output")]
    pub overwrite_output_dir: bool,
    /// The loop.
    #[command(flatten)]
    pub iterate: IterateArgs,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Which part of the data.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How many responses.
    #[command(flatten)]
    pub generations: GenerationsArgs,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// The reranker.
    #[command(flatten)]
    pub reward: RewardArgs,
    /// The objective.
    #[command(flatten)]
    pub list: ListArgs,
    /// Optimizer and schedule.
    #[command(flatten)]
    pub train: TrainArgs,
    /// The adapter.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The outer loop of `larpo align` (Jin et al. 2025, Algorithm 1).
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Iterations")]
pub struct IterateArgs {
    /// Rounds of sampling, ranking and training; +N: so many more in the run in output_dir, which goes on as with
    /// --resume_from_checkpoint latest, with its recorded settings where they are not given [default with --resume_from_checkpoint: as before]
    #[arg(long, value_name = "T|+N", default_value = "3")]
    pub iterations: Iterations,
    /// Prompts sampled for in each round; they walk a seeded shuffle of the data and wrap round
    #[arg(long, value_name = "M", default_value_t = 512, value_parser = at_least_one)]
    pub prompts_per_iteration: usize,
    /// Earlier rounds whose candidates are trained on again
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Memory::All)]
    pub memory: Memory,
    /// Policy the score compares with
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Reference::Previous)]
    pub reference: Reference,
    /// End after the iteration that moves the policy this far from the first one: KL in nats a response, estimated on
    /// sampled responses to held-out prompts, or else to the first prompts of the run
    #[arg(long, value_name = "X", value_parser = positive)]
    pub until_kl: Option<f64>,
    /// End after so many iterations without a better mean reward on held-out prompts, and keep the best iteration's model;
    /// the prompts are those of --eval_dataset or what --split train --validation_fraction holds back
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub early_stopping_patience: Option<usize>,
    /// Held-out rows whose prompts are looked at after each iteration
    #[arg(long, value_name = "PATH")]
    pub eval_dataset: Option<PathBuf>,
    /// Prompts that are looked at after each iteration, the first ones
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub eval_prompts: usize,
}

impl AlignArgs {
    /// Whether rows are held out to look at.
    pub fn holds_out(&self) -> bool {
        self.iterate.eval_dataset.is_some() || self.split.split == Split::Train
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if self.generations.num_generations < 2 {
            return Err("--num_generations 1 leaves nothing to rank; sample 2 or more".into());
        }
        if self.iterate.early_stopping_patience.is_some() && !self.holds_out() {
            return Err(
                "--early_stopping_patience needs held-out prompts: give --eval_dataset, or --split train with \
                        --validation_fraction"
                    .into(),
            );
        }
        if matches!(self.iterate.iterations, Iterations::More(_)) {
            match &self.train.resume_from_checkpoint {
                None | Some(ResumeFrom::Latest) if !self.overwrite_output_dir => {}
                _ => {
                    return Err("--iterations +N goes on with a run from its newest checkpoint; leave \
                                --overwrite_output_dir and other checkpoints out"
                        .into());
                }
            }
        }
        if let Iterations::Total(rounds) = self.iterate.iterations
            && self.sampling.temperature.len() > rounds
        {
            return Err(format!(
                "--temperature has {} values for --iterations {rounds}; give at most one for each",
                self.sampling.temperature.len()
            ));
        }
        if self.reward.pairwise_ranker.is_some() && self.iterate.early_stopping_patience.is_some() {
            return Err(
                "--early_stopping_patience watches the mean reward, and --pairwise_ranker gives none: it compares the \
                        responses to a prompt with one another; use --until_kl, or other rewards"
                    .into(),
            );
        }
        self.list.validate()?;
        self.reward.validate()?;
        self.split.validate()
    }
}

/// Flags of `larpo eval`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct EvalArgs {
    /// Model folders, side by side on the same prompts and seeds; each is compared with the first
    #[arg(value_name = "DIR", required_unless_present = "model_name_or_path")]
    pub models: Vec<PathBuf>,
    /// The same, as a flag that may be repeated; these come first
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub model_name_or_path: Vec<PathBuf>,
    /// Model folder of the reference: adds KL, and how the order by log πθ − log πref agrees with that of the
    /// rewards (NDCG, MRR, Kendall τ)
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub ref_model: Option<PathBuf>,
    /// Rows with prompts and reference solutions: JSONL, a JSON array, CSV, TSV, each also .gz, Parquet, or plain text
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub dataset_name: PathBuf,
    /// Every N of Recall@N, maj@N and best-of-N, all unbiased over the subsets of the samples [default: 1,5,20 as far
    /// as --num_generations goes]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one,
          help_heading = "Evaluation")]
    pub recall_at: Vec<usize>,
    /// A response counts as correct from this reward on [default: 1; none with --reward_model, whose rewards do not say what
    /// is correct]
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = finite, help_heading = "Evaluation")]
    pub correct_threshold: Option<f64>,
    /// k of NDCG@k
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = at_least_one,
          help_heading = "Evaluation")]
    pub ndcg_at: usize,
    /// Write the JSON object to this file too, once all is measured; a file that is there is replaced
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Resamples of the prompts behind every interval and p-value
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = resamples,
          help_heading = "Evaluation")]
    pub bootstrap_samples: usize,
    /// Responses sampled for each prompt [default: the largest N of --recall_at]
    #[arg(long, visible_alias = "k", value_name = "K", value_parser = at_least_one,
          help_heading = "Sampling")]
    pub num_generations: Option<usize>,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Which part of the data.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// The reranker.
    #[command(flatten)]
    pub reward: RewardArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl EvalArgs {
    /// The models, given either way.
    pub fn models(&self) -> Vec<&Path> {
        self.model_name_or_path.iter().chain(&self.models).map(PathBuf::as_path).collect()
    }

    /// Every N of Recall@N.
    pub fn recall_at(&self) -> Vec<usize> {
        match self.recall_at.is_empty() {
            true => [1, 5, 20].into_iter().filter(|&n| self.num_generations.is_none_or(|k| n <= k)).collect(),
            false => self.recall_at.clone(),
        }
    }

    /// How many responses to sample for each prompt.
    pub fn samples(&self) -> usize {
        self.num_generations.or(self.recall_at().into_iter().max()).unwrap_or(1)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let k = self.samples();
        if let Some(n) = self.recall_at.iter().find(|&&n| n > k) {
            return Err(format!(
                "--recall_at {n} needs at least {n} samples, but --num_generations is {k}; raise it or leave {n} out"
            ));
        }
        fn twice<T: PartialEq>(items: &[T]) -> Option<&T> {
            items.iter().enumerate().find(|(i, item)| items[..*i].contains(item)).map(|(_, item)| item)
        }
        if let Some(model) = twice(&self.models()) {
            return Err(format!("{} is given twice; name each model once", model.display()));
        }
        if let Some(n) = twice(&self.recall_at) {
            return Err(format!("--recall_at names {n} twice"));
        }
        if let Some(temperature) = twice(&self.sampling.temperature) {
            return Err(format!("--temperature names {temperature} twice"));
        }
        self.reward.validate()?;
        self.split.validate()
    }
}

/// Flags of `larpo report`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ReportArgs {
    /// Folder of a run: the --output_dir of align, demo, sft or train
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The page to write [default: RUN/report.html]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// A response counts as correct from this reward on
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true,
          value_parser = finite)]
    pub correct_threshold: f64,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `larpo bench`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct BenchArgs {
    /// What to time
    #[arg(value_enum, value_name = "WHAT")]
    pub what: BenchKind,
    /// Shape of the model, whose weights are random
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Preset::S15m)]
    pub preset: Preset,
    /// Responses in each list
    #[arg(long, visible_alias = "k", value_name = "K", default_value_t = 10,
          value_parser = at_least_one)]
    pub num_generations: usize,
    /// Tokens in the prompt
    #[arg(long, value_name = "P", default_value_t = 64, value_parser = whole)]
    pub prompt: usize,
    /// Tokens in each response
    #[arg(long, value_name = "R", default_value_t = 64, value_parser = at_least_one)]
    pub response: usize,
    /// Lists in a step, prompts of a sampling run, lists of `bench lists` [default: 1; a million for
    /// `bench lists`]
    #[arg(long, value_name = "L", value_parser = at_least_one)]
    pub lists: Option<usize>,
    /// Loss of `bench lists`: pairwise, contrastive, lambdarank, listmle or lipo_lambda
    #[arg(long, value_name = "NAME", default_value = "listmle")]
    pub loss_type: LossType,
    /// Timed repetitions, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub reps: usize,
    /// Also show what each operation of a step or of sampling takes (with --json as `profile`)
    #[arg(long)]
    pub profile: bool,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl BenchArgs {
    /// How many lists, or prompts.
    pub fn lists(&self) -> usize {
        self.lists.unwrap_or(if self.what == BenchKind::Lists { 1_000_000 } else { 1 })
    }
}

/// Flags of `larpo gpu`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct GpuArgs {
    /// What to do
    #[arg(value_enum, value_name = "WHAT")]
    pub what: GpuTask,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `larpo inspect`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct InspectArgs {
    /// A data file (JSONL, a JSON array, CSV, TSV, each also .gz, Parquet, or plain text), or the folder of a run
    #[arg(value_name = "FILE|DIR")]
    pub path: PathBuf,
    /// Folder of a tokenizer, to count and show tokens too
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub tokenizer: Option<PathBuf>,
    /// Say how many rows are longer than this in tokens, or into how many windows a text is cut
    #[arg(long, value_name = "N", value_parser = at_least_two, help_heading = "Data", requires = "tokenizer")]
    pub max_length: Option<usize>,
    /// Show the first N rows
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole, help_heading = "Data")]
    pub rows: usize,
    /// Show the rows that begin in these lines instead
    #[arg(long, value_name = "LINE,...", value_delimiter = ',', value_parser = at_least_one, help_heading = "Data",
          conflicts_with = "rows")]
    pub lines: Vec<usize>,
    /// What the rows are.
    #[command(flatten)]
    pub read: ReadArgs,
    /// Seed, threads, JSON.
    #[command(flatten)]
    pub common: CommonArgs,
}
