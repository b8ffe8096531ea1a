//! The flags of `larpo sft`, and the shape of the model it starts from.

use super::groups::*;
use super::values::*;
use clap::Args;
use std::path::PathBuf;

/// Flags of `larpo sft`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct SftArgs {
    /// GSM8K rows, prompt/completion rows (JSONL, a JSON array, CSV, TSV, each also .gz, or Parquet) or plain text
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub dataset_name: PathBuf,
    /// Where the final model goes: itself a model folder
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: PathBuf,
    /// Replace what an earlier run left in output_dir
    #[arg(long, help_heading = "Output")]
    pub overwrite_output_dir: bool,
    /// The model to train.
    #[command(flatten)]
    pub model: SftModelArgs,
    /// How the data are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// Held-out data and how often to look at them.
    #[command(flatten)]
    pub eval: SftEvalArgs,
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

/// Held-out data of `larpo sft`.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct SftEvalArgs {
    /// Held-out rows to evaluate on
    #[arg(long, value_name = "PATH", conflicts_with = "validation_fraction")]
    pub eval_dataset: Option<PathBuf>,
    /// Share of the rows, or of the text, held back at the end to evaluate on
    #[arg(long, value_name = "F", value_parser = part)]
    pub validation_fraction: Option<f64>,
    /// Updates between evaluations [default: only one, after the last update]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub eval_steps: Option<usize>,
}

/// What `larpo sft` trains: a model that exists, a preset, or sizes spelled out.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Model")]
pub struct SftModelArgs {
    /// Continue from this model folder
    #[arg(long, value_name = "DIR",
          conflicts_with_all = ["preset", "hidden_size", "tokenizer", "max_position_embeddings", "config_name"])]
    pub model_name_or_path: Option<PathBuf>,
    /// Start fresh with the family and shape of this config.json, or of the one in this folder; its vocabulary must have room
    /// for the tokenizer, whose special ids replace its own
    #[arg(long, value_name = "FILE", requires = "tokenizer",
          conflicts_with_all = ["preset", "hidden_size", "max_position_embeddings"])]
    pub config_name: Option<PathBuf>,
    /// Start fresh with a named shape
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "hidden_size")]
    pub preset: Option<Preset>,
    /// Start fresh with this many channels; needs the number of layers and heads too
    #[arg(long, value_name = "N", value_parser = at_least_one,
          requires_all = ["num_hidden_layers", "num_attention_heads", "tokenizer"])]
    pub hidden_size: Option<usize>,
    /// Channels inside the feed-forward block [default: 8/3 of hidden_size, up to a multiple of 32]
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "hidden_size")]
    pub intermediate_size: Option<usize>,
    /// Transformer blocks
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "hidden_size")]
    pub num_hidden_layers: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "hidden_size")]
    pub num_attention_heads: Option<usize>,
    /// Key-value heads [default: as many as query heads]
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "hidden_size")]
    pub num_key_value_heads: Option<usize>,
    /// Longest sequence a fresh model can take [default: 4096]
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub max_position_embeddings: Option<usize>,
    /// Tokenizer of a fresh model: bpe:SIZE or char, trained on the data, or a folder that has one
    /// [default with --preset: bpe of the preset's vocabulary]
    #[arg(long, value_name = "bpe:SIZE|char|DIR")]
    pub tokenizer: Option<TokenizerSpec>,
}

/// The sizes of a fresh model apart from its vocabulary, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshSizes {
    /// Channels of the residual stream.
    pub hidden_size: usize,
    /// Channels inside the feed-forward block.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads.
    pub num_key_value_heads: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
}

impl SftModelArgs {
    /// The sizes of the model to start fresh with; `None` to continue from a folder.
    pub fn fresh_sizes(&self) -> Option<FreshSizes> {
        let mut sizes = match (self.preset, self.hidden_size) {
            (Some(preset), _) => {
                let p = preset.sizes();
                FreshSizes {
                    hidden_size: p.hidden_size,
                    intermediate_size: p.intermediate_size,
                    num_hidden_layers: p.num_hidden_layers,
                    num_attention_heads: p.num_attention_heads,
                    num_key_value_heads: p.num_key_value_heads,
                    max_position_embeddings: p.max_position_embeddings,
                }
            }
            (None, Some(hidden)) => {
                let heads = self.num_attention_heads?;
                let mlp = (hidden * 8).div_ceil(3).next_multiple_of(32);
                FreshSizes {
                    hidden_size: hidden,
                    intermediate_size: self.intermediate_size.unwrap_or(mlp),
                    num_hidden_layers: self.num_hidden_layers?,
                    num_attention_heads: heads,
                    num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
                    max_position_embeddings: 4096,
                }
            }
            (None, None) => return None,
        };
        if let Some(positions) = self.max_position_embeddings {
            sizes.max_position_embeddings = positions;
        }
        Some(sizes)
    }

    fn validate(&self) -> Result<(), String> {
        let s = match (self.fresh_sizes(), self.model_name_or_path.as_ref().or(self.config_name.as_ref())) {
            (Some(sizes), _) => sizes,
            (None, Some(_)) => return Ok(()),
            (None, None) => {
                return Err(
                    "say what to train: start fresh with --preset, with --config_name or with --hidden_size and \
                            the other sizes, or continue from a folder with --model_name_or_path"
                        .into(),
                );
            }
        };
        let (hidden, heads, kv_heads) = (s.hidden_size, s.num_attention_heads, s.num_key_value_heads);
        if !hidden.is_multiple_of(heads) {
            return Err(format!("--hidden_size {hidden} cannot be divided among --num_attention_heads {heads}"));
        }
        if !(hidden / heads).is_multiple_of(2) {
            return Err(format!(
                "--hidden_size {hidden} over --num_attention_heads {heads} gives {} channels a \
                 head; rotary positions need an even number",
                hidden / heads
            ));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "--num_attention_heads {heads} cannot be shared out over --num_key_value_heads \
                 {kv_heads}"
            ));
        }
        Ok(())
    }
}

impl SftArgs {
    /// The folder that the tokenizer is taken from, if it is.
    pub fn tokenizer_folder(&self) -> Option<&PathBuf> {
        match &self.model.tokenizer {
            Some(TokenizerSpec::Dir(folder)) => Some(folder),
            _ => None,
        }
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        self.model.validate()?;
        if self.lora.use_peft && self.model.model_name_or_path.is_none() {
            return Err("--use_peft trains an adapter of a model that exists; give --model_name_or_path".into());
        }
        let (length, positions) = (self.data.max_length, self.model.fresh_sizes());
        if let (Some(length), Some(sizes)) = (length, positions)
            && length > sizes.max_position_embeddings
        {
            return Err(format!(
                "--max_length {length} is more than the model's --max_position_embeddings {}",
                sizes.max_position_embeddings
            ));
        }
        let nothing_held_out = self.eval.eval_dataset.is_none() && self.eval.validation_fraction.is_none();
        if self.eval.eval_steps.is_some() && nothing_held_out {
            return Err("--eval_steps needs --eval_dataset or --validation_fraction".into());
        }
        Ok(())
    }
}
