//! Groups of flags that several verbs share.

use super::values::*;
use crate::gpu::Device;
use crate::messages::Level;
use crate::resume::ResumeFrom;
use clap::Args;
use larpo_core::objective::{LipoLabels, LossType, RankBy, Ties};
use larpo_core::optim::Schedule;
use larpo_core::select::Select;
use larpo_data::model_folder::Format;
use larpo_data::records::Schema;
use larpo_data::rules::RuleSet;
use std::path::PathBuf;

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Common")]
pub struct CommonArgs {
    /// Seed of everything random: the same seed gives the same numbers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = seed)]
    pub seed: u64,
    /// Threads to compute with [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Where to compute: auto (a discrete, then an integrated GPU, else the CPU), cpu, gpu, or gpu:N with the number of
    /// `larpo gpu list`; LARPO_ADAPTER names the adapter of `gpu` by a part of its name. Verbs that only read and write
    /// files, and the plan, do not look at it
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    pub device: Device,
    /// How a GPU multiplies. With f16 everything but the operands of products stays in single precision, weights and moments too,
    /// and the loss is scaled; a GPU without matrix units for it, or whose self-test fails, is refused
    #[arg(long, value_enum, value_name = "PRECISION", default_value_t = GpuPrecision::F32)]
    pub gpu_precision: GpuPrecision,
    /// Whether kernels are measured on a GPU, once for each adapter, driver and kind of product. Another choice of kernels
    /// rounds in other ways: without the file that keeps the choices, in larpo/tuning of the user's cache folder, results are
    /// not the same to the last bit
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t = Autotune::On)]
    pub autotune: Autotune,
    /// The same bits for any number of threads; the CPU always computes so, on a GPU it turns --autotune off
    #[arg(long)]
    pub deterministic: bool,
    /// Print the result as one line with a JSON object, in place of what people read
    #[arg(long)]
    pub json: bool,
    /// Take settings from this YAML file, `name: value` a line under the names of the flags; flags given here count more
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Show the result, warnings and errors only: no progress, no notes
    #[arg(long)]
    pub quiet: bool,
    /// How much to show on stderr: error, warn, info or debug
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Level::Info, hide_possible_values = true)]
    pub log_level: Level,
}

impl CommonArgs {
    /// What is shown on stderr.
    pub fn level(&self) -> Level {
        if self.quiet { self.log_level.min(Level::Warn) } else { self.log_level }
    }

    /// Whether a GPU's products are in half precision.
    pub fn half(&self) -> bool {
        self.gpu_precision == GpuPrecision::F16
    }

    /// Whether kernels are measured on a GPU.
    pub fn tunes(&self) -> bool {
        self.autotune == Autotune::On && !self.deterministic
    }
}

/// The model to start from, where a verb needs one that exists.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model folder: config.json, model.safetensors and the tokenizer files; or the folder of an adapter
    #[arg(long, value_name = "DIR")]
    pub model_name_or_path: PathBuf,
}

/// What the rows of a file are.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct ReadArgs {
    /// What the rows are: text, prompt_only, prompt_completion, messages, gsm8k, preference, unpaired_preference,
    /// ranked_list, ultrafeedback or nectar [default: told by their fields]
    #[arg(long, value_name = "NAME")]
    pub dataset_schema: Option<Schema>,
    /// What a malformed row does: end the run with an error, or be left out and counted
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = BadRow::Error)]
    pub on_bad_row: BadRow,
}

/// How a data file is read.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct DataArgs {
    /// What the rows are.
    #[command(flatten)]
    pub read: ReadArgs,
    /// Put the rows in an order drawn with this seed, before any are held back or --max_samples takes the first
    /// [default: the order of the file]
    #[arg(long, value_name = "N", value_parser = seed)]
    pub shuffle_seed: Option<u64>,
    /// What becomes of a row longer than max_length, or with a longer prompt than max_prompt_length: it is left out and
    /// counted, it is an error, or its prompt loses its first (keep_end) or last (keep_start) tokens; responses are
    /// never cut, nor is anything that a reward model is trained on
    #[arg(long, value_enum, value_name = "MODE", default_value_t = TruncationMode::Skip)]
    pub truncation_mode: TruncationMode,
    /// Folder for tokenised data, which later runs take from there
    /// [default: larpo in the user's cache folder, for files of 1 MiB or more]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    pub cache_dir: Option<PathBuf>,
    /// Keep no tokenised data, and read none
    #[arg(long)]
    pub no_cache: bool,
    /// Longest row in tokens; --truncation_mode says what becomes of longer ones, plain text is cut into windows
    /// of this length [default: 1024, or the model's max_position_embeddings where that is less]
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub max_length: Option<usize>,
    /// Longest prompt in tokens; of a window of plain text, the tokens that make the prompt
    /// [default: no limit of its own; half of max_length for plain text]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_prompt_length: Option<usize>,
    /// Use only the first N rows; those that --validation_fraction holds back are not limited
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_samples: Option<usize>,
    /// The flag that said so, where it is another one.
    #[arg(skip)]
    pub samples_flag: Option<&'static str>,
}

/// Prompts for the verbs that sample.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct SplitArgs {
    /// Share of the rows, or of the text, that is held back at the end
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = part)]
    pub validation_fraction: f64,
    /// Which part to use
    #[arg(long, value_enum, default_value_t = Split::All)]
    pub split: Split,
}

impl SplitArgs {
    pub(super) fn validate(&self) -> Result<(), String> {
        match self.split {
            Split::All if self.validation_fraction > 0.0 => Err(
                "--validation_fraction holds rows back only with --split train or validation, which says which side \
                     to use"
                    .into(),
            ),
            Split::All => Ok(()),
            _ if self.validation_fraction > 0.0 => Ok(()),
            _ => Err("--split train or validation needs --validation_fraction, which says how \
                      much is held back"
                .into()),
        }
    }
}

/// The optimizer and its schedule, under TRL's names.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Training")]
pub struct TrainArgs {
    /// Highest learning rate of AdamW [default: 5e-4 for sft, 5e-5 for train and align, 1e-4 for reward]
    #[arg(long, value_name = "LR", value_parser = positive)]
    pub learning_rate: Option<f64>,
    /// Rows (for sft) or ranked lists (for train and align) in one forward and backward pass
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub per_device_train_batch_size: usize,
    /// Passes whose gradients make one update; equal to one batch that much larger
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub gradient_accumulation_steps: usize,
    /// Keep only what enters each block and compute the rest once more for the gradients: less memory, about a third more time,
    /// the same bits
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Passes over the data; for align, over the lists of each iteration
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = epochs)]
    pub num_train_epochs: f64,
    /// Exactly so many updates, for align in each iteration, instead of num_train_epochs; -1: as many as
    /// the epochs take
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true,
          value_parser = step_limit)]
    pub max_steps: i64,
    /// Share of the updates over which the learning rate rises from 0
    #[arg(long, value_name = "F", default_value_t = 0.1, value_parser = share)]
    pub warmup_ratio: f64,
    /// Course of the learning rate after the warm-up: constant, or linear or cosine down to 0
    #[arg(long, value_name = "NAME", default_value = "linear")]
    pub lr_scheduler_type: Schedule,
    /// Decoupled weight decay, on matrices only
    #[arg(long, value_name = "W", default_value_t = 0.0, value_parser = non_negative)]
    pub weight_decay: f64,
    /// Global norm the gradients are clipped to; 0 switches clipping off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = non_negative)]
    pub max_grad_norm: f64,
    /// AdamW's decay of the first moment
    #[arg(long, value_name = "B", default_value_t = 0.9, value_parser = part)]
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment
    #[arg(long, value_name = "B", default_value_t = 0.999, value_parser = part)]
    pub adam_beta2: f64,
    /// AdamW's addend to the root of the second moment
    #[arg(long, value_name = "E", default_value = "1e-8", value_parser = positive)]
    pub adam_epsilon: f64,
    /// Updates between lines of metrics.jsonl
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub logging_steps: usize,
    /// Where metrics go beside metrics.jsonl
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = ReportTo::None)]
    pub report_to: ReportTo,
    /// Format of the final model's weights: float32, bfloat16 or float16; checkpoints keep every bit
    /// [default: that of the folder it starts from, float32 of a new model or adapter]
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    pub dtype: Option<Format>,
    /// Updates between checkpoints, written to checkpoint-STEP/ [default: none]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Checkpoints")]
    pub save_steps: Option<usize>,
    /// Checkpoints to keep, the newest ones; an old one goes when the new one is on disk [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Checkpoints")]
    pub save_total_limit: Option<usize>,
    /// Go on with the run in output_dir: `latest` from its newest whole checkpoint (from the beginning where there is none
    /// yet), or a folder of a checkpoint; all other flags as before
    #[arg(long, value_name = "latest|DIR", conflicts_with = "overwrite_output_dir", help_heading = "Checkpoints")]
    pub resume_from_checkpoint: Option<ResumeFrom>,
    /// What becomes of the run when the GPU is lost (a driver that was reset, a laptop that slept)
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnDeviceLost::Stop, help_heading = "Checkpoints")]
    pub on_device_lost: OnDeviceLost,
}

/// A low-rank adapter that is trained in place of the model's weights, under TRL's names.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Adapter")]
pub struct LoraArgs {
    /// Train a low-rank adapter (LoRA) and leave the weights as they are; checkpoints and the result are adapter folders as
    /// PEFT has them, which name the model folder that they belong to
    #[arg(long)]
    pub use_peft: bool,
    /// Rank of the adapter [default: 16]
    #[arg(long, value_name = "R", value_parser = at_least_one, requires = "use_peft")]
    pub lora_r: Option<usize>,
    /// Numerator of its scale, which is alpha / r [default: 32]
    #[arg(long, value_name = "A", value_parser = positive, requires = "use_peft")]
    pub lora_alpha: Option<f64>,
    /// Share of its input that is left out at random while training [default: 0.05]
    #[arg(long, value_name = "F", value_parser = part, requires = "use_peft")]
    pub lora_dropout: Option<f64>,
    /// Modules that have one: names or the ends of names, one regular expression, or all-linear
    /// [default: q_proj,v_proj; c_attn of GPT-2]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "use_peft")]
    pub lora_target_modules: Vec<String>,
    /// Scale by alpha / √r instead (rank-stabilised)
    #[arg(long, requires = "use_peft")]
    pub use_rslora: bool,
    /// How the weights under the adapter are held: f32, or bf16, which halves their memory and rounds what a checkpoint in
    /// another format has [default: f32]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    pub base_dtype: Option<BaseDtype>,
}

/// `sft`'s learning rate where none is given.
pub const SFT_LEARNING_RATE: f64 = 5e-4;
/// Learning rate of `train` and `align` where none is given.
pub const LIST_LEARNING_RATE: f64 = 5e-5;

/// `reward`'s learning rate where none is given.
pub const REWARD_LEARNING_RATE: f64 = 1e-4;

impl TrainArgs {
    /// The limit on updates, if there is one.
    pub fn step_limit(&self) -> Option<usize> {
        usize::try_from(self.max_steps).ok()
    }
}

/// The ranking objective and how a list is made of the candidates.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Objective")]
pub struct ListArgs {
    /// pairwise, contrastive, lambdarank, listmle or lipo_lambda
    #[arg(long, value_name = "NAME", default_value = "lambdarank")]
    pub loss_type: LossType,
    /// Factor of the log-ratio between policy and reference in the score
    #[arg(long, value_name = "B", default_value_t = 0.1, value_parser = positive)]
    pub beta: f64,
    /// Weight of the best response's mean negative log-likelihood, added to the list loss
    #[arg(long, value_name = "W", default_value_t = 0.0, value_parser = non_negative)]
    pub sft_weight: f64,
    /// Which candidates make the list: top:A,bottom:B, one_vs_rest, full or max_min
    /// [default: max_min for pairwise, top:1,bottom:3 for contrastive, top:2,bottom:2 otherwise]
    #[arg(long, value_name = "RULE")]
    pub select: Option<Select>,
    /// What equal rewards mean: stable, skip, share or random
    #[arg(long, value_name = "RULE", default_value = "skip")]
    pub ties: Ties,
    /// What lipo_lambda takes as labels: rank, (m - rank)/(m - 1) for m responses, or reward, which
    /// should lie between 0 and 1 [default: rank]
    #[arg(long, value_name = "KIND")]
    pub labels: Option<LipoLabels>,
}

impl ListArgs {
    pub(super) fn validate(&self) -> Result<(), String> {
        match self.labels {
            Some(_) if self.loss_type != LossType::LipoLambda => Err(format!(
                "--labels is read by --loss_type lipo_lambda only, not by {}; leave it out",
                self.loss_type
            )),
            _ => Ok(()),
        }
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most tokens a response may have
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Sampling temperature; for align one per iteration, the last one repeated; for eval each in turn
    #[arg(long, value_name = "T[,T...]", value_delimiter = ',', default_value = "1.0",
          value_parser = temperature)]
    pub temperature: Vec<f64>,
    /// Draw from the N most probable tokens only [default: from all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub top_k: Option<usize>,
    /// Draw from the most probable tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = mass)]
    pub top_p: f64,
    /// Draw from the tokens at least this probable, relative to the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    pub min_p: f64,
    /// Text that ends a response and is cut from it; may be repeated; \n stands for a line break
    #[arg(long = "stop_strings", visible_alias = "stop", value_name = "TEXT",
          value_parser = unescaped)]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// The temperature of iteration `i`, counted from 0: a short list repeats its last value.
    pub fn temperature_of(&self, i: usize) -> f64 {
        let last = self.temperature.len().saturating_sub(1);
        self.temperature.get(i.min(last)).copied().unwrap_or(1.0)
    }

    pub(super) fn one_temperature(&self) -> Result<(), String> {
        match self.temperature.len() {
            0 | 1 => Ok(()),
            n => Err(format!("--temperature takes one value here, not {n}; only align and eval take a list")),
        }
    }
}

/// How many responses each prompt gets.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Sampling")]
pub struct GenerationsArgs {
    /// Responses sampled for each prompt
    #[arg(long, visible_alias = "k", value_name = "K", default_value_t = 10,
          value_parser = at_least_one)]
    pub num_generations: usize,
}

/// The reranker.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Reward")]
pub struct RewardArgs {
    /// Reward model that ranks in place of the rules: a folder with a sequence classifier of one label
    /// (...ForSequenceClassification), which reads the conversation through its own chat template and tokenizer
    #[arg(long, value_name = "DIR", conflicts_with_all = ["reward_funcs", "reward_weights", "answer_pattern"])]
    pub reward_model: Option<PathBuf>,
    /// Language model that ranks in place of the rules: it is asked which of two responses is better, in both orders
    #[arg(long, value_name = "DIR", requires = "ranker_template",
          conflicts_with_all = ["reward_model", "reward_funcs", "reward_weights", "answer_pattern"])]
    pub pairwise_ranker: Option<PathBuf>,
    /// The question of --pairwise_ranker: a text with {prompt}, {a} and {b}, which becomes a user's turn where the model has
    /// a chat template
    #[arg(long, value_name = "FILE", requires = "pairwise_ranker")]
    pub ranker_template: Option<PathBuf>,
    /// The answers of --pairwise_ranker that stand for {a} and {b}, one token each [default: A,B]
    #[arg(long, value_name = "A,B", value_delimiter = ',', requires = "pairwise_ranker")]
    pub ranker_labels: Vec<String>,
    /// How the preferences of --pairwise_ranker become rewards: win_rate, lipo_label, wins or bt (Bradley-Terry)
    /// [default: win_rate]
    #[arg(long, value_name = "RULE", requires = "pairwise_ranker")]
    pub rank_by: Option<RankBy>,
    /// Rewards to add up: answer, regex:pattern=RE, length[:target=N], format[:pattern=RE],
    /// expression, words:file=PATH; a comma or colon inside a value is written \, or \:
    #[arg(long, value_name = "NAME[:KEY=VALUE...],...", default_value = "answer")]
    pub reward_funcs: String,
    /// One factor for each reward [default: 1 for each]
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_hyphen_values = true,
          value_parser = finite)]
    pub reward_weights: Vec<f64>,
    /// Regular expression whose first group is the final answer, of which the last match counts;
    /// left out, it finds GSM8K's answer line '#### N'
    #[arg(long, value_name = "RE")]
    pub answer_pattern: Option<String>,
}

impl RewardArgs {
    /// The rules, where they are what ranks.
    pub fn rules(&self) -> Option<&str> {
        (self.reward_model.is_none() && self.pairwise_ranker.is_none()).then_some(&self.reward_funcs)
    }

    /// The rules and their weights.
    ///
    /// # Errors
    /// As [`RuleSet::parse`].
    pub fn rule_set(&self) -> larpo_data::Result<RuleSet> {
        let weights = self.reward_weights.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        let weights = Some(&weights[..]).filter(|_| !self.reward_weights.is_empty());
        RuleSet::parse(&self.reward_funcs, weights, self.answer_pattern.as_deref())
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if !matches!(self.ranker_labels.len(), 0 | 2) {
            return Err(format!(
                "--ranker_labels has {} labels, expected two: that of {{a}} and that of {{b}}, as in A,B",
                self.ranker_labels.len()
            ));
        }
        match self.rule_set() {
            Err(error @ larpo_data::Error::Rule { .. }) => Err(error.to_string()),
            // A file that cannot be read is no fault of the command line.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
