//! Types of single flag values and the functions that read them.

use clap::ValueEnum;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Which earlier iterations' candidates are trained on again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Memory {
    /// only the candidates of this iteration
    None,
    /// this iteration and the one before
    Previous,
    /// every iteration so far
    All,
}

/// How many rounds `align` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iterations {
    /// So many in all.
    Total(usize),
    /// So many more than the run had; written `+N`.
    More(usize),
}

impl FromStr for Iterations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => at_least_one(more).map(Self::More),
            None => at_least_one(text).map(Self::Total),
        }
    }
}

/// Which policy the log-ratio of the score compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Reference {
    /// the policy at the start of the iteration (Jin et al. 2025, Algorithm 1)
    Previous,
    /// the policy the run started from
    Initial,
}

/// Whether kernels are measured on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Autotune {
    /// products take the kernel that is the fastest on the adapter, measured when a shape first comes and kept for later runs
    On,
    /// products take a fixed kernel for each shape
    Off,
}

/// Precision of a GPU's products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum GpuPrecision {
    /// single precision
    F32,
    /// products of operands rounded to half precision, summed in single precision, on the adapter's matrix units
    F16,
}

/// What becomes of a run whose device is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum OnDeviceLost {
    /// it ends, and can be gone on with
    Stop,
    /// the device is opened again, and the run goes on from its last checkpoint
    Retry,
}

/// Which part of the data to use when `--validation_fraction` holds some back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Split {
    /// everything, whether held back or not
    All,
    /// what is not held back
    Train,
    /// what is held back: the last rows, or the end of a text
    Validation,
}

impl Split {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// How weights that are not trained are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum BaseDtype {
    /// single precision
    F32,
    /// bfloat16: half the memory, widened inside the products
    Bf16,
}

/// What a malformed row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum BadRow {
    /// end the run with its place and the mend
    Error,
    /// be left out and counted
    Skip,
}

impl BadRow {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Skip => "skip",
        }
    }
}

/// What becomes of a row that is too long. The names are TRL's; a response is never cut, so that its end is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum TruncationMode {
    /// it is left out and counted
    Skip,
    /// it is an error
    Error,
    /// its prompt loses its first tokens
    KeepEnd,
    /// its prompt loses its last tokens
    KeepStart,
}

impl TruncationMode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Error => "error",
            Self::KeepEnd => "keep_end",
            Self::KeepStart => "keep_start",
        }
    }
}

/// Where metrics go beside metrics.jsonl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum ReportTo {
    /// nowhere else
    #[default]
    None,
    /// event files for TensorBoard, beside every metrics.jsonl
    Tensorboard,
}

/// What `bench` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum BenchKind {
    /// forward, backward and AdamW on packed ranked lists with ListMLE
    Step,
    /// decoding for all responses of one prompt
    Sample,
    /// matrix products: 1024 x 1024 x 1024 and the preset's own shapes
    Gemm,
    /// a = b + s c over three large arrays
    Memory,
    /// one list loss with its gradient on --lists lists of --k scores, in single precision
    Lists,
}

/// What `larpo gpu` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum GpuTask {
    /// show the adapters with their drivers, limits and features
    List,
    /// compare every operation with the reference, and a training step with the CPU's
    Check,
    /// time products, elementwise kernels, the recording of kernels, a training step and decoding
    Bench,
}

/// Model shapes with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Preset {
    /// 0.9 million parameters: hidden 128, 4 layers, 4 heads, vocabulary 512
    T1m,
    /// 15 million parameters: hidden 288, 6 layers, 6 heads, vocabulary 32000
    S15m,
    /// 135 million parameters: hidden 576, 30 layers, 9 heads, 3 of them key-value, vocabulary 49152
    M135m,
}

/// The sizes a [`Preset`] stands for; the head is tied to the embedding in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresetSizes {
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
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
}

impl Preset {
    /// The preset's sizes.
    pub fn sizes(self) -> PresetSizes {
        let (hidden, mlp, layers, heads, kv_heads, vocab) = match self {
            Preset::T1m => (128, 384, 4, 4, 4, 512),
            Preset::S15m => (288, 768, 6, 6, 6, 32000),
            Preset::M135m => (576, 1536, 30, 9, 3, 49152),
        };
        PresetSizes {
            hidden_size: hidden,
            intermediate_size: mlp,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            vocab_size: vocab,
            max_position_embeddings: 4096,
        }
    }
}

/// Where a fresh model's tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSpec {
    /// Byte-level BPE trained on the data, with at most this many tokens.
    Bpe(usize),
    /// One token per character of the data.
    Char,
    /// A folder that holds `tokenizer.json`.
    Dir(PathBuf),
}

impl FromStr for TokenizerSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // 256 byte tokens and two special ones are the floor of a byte-level vocabulary.
        const FLOOR: usize = 257;
        match text.split_once(':') {
            _ if text == "char" => Ok(TokenizerSpec::Char),
            _ if text == "bpe" => Err("bpe needs a vocabulary size, as in bpe:512".into()),
            Some(("bpe", size)) => match size.parse() {
                Ok(n) if n > FLOOR => Ok(TokenizerSpec::Bpe(n)),
                _ => Err(format!(
                    "the vocabulary size in bpe:{size} must be a whole number above {FLOOR}, \
                     because every byte is a token"
                )),
            },
            _ if text.is_empty() => Err("expected bpe:SIZE, char or a folder".into()),
            _ => Ok(TokenizerSpec::Dir(text.into())),
        }
    }
}

impl fmt::Display for TokenizerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenizerSpec::Bpe(size) => write!(f, "bpe:{size}"),
            TokenizerSpec::Char => f.write_str("char"),
            TokenizerSpec::Dir(path) => write!(f, "{}", path.display()),
        }
    }
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err("expected a finite number".into()),
    }
}

/// A finite number.
pub(super) fn finite(text: &str) -> Result<f64, String> {
    number(text)
}

/// A finite number above 0.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    number(text).and_then(|x| (x > 0.0).then_some(x).ok_or("must be above 0".into()))
}

/// A number of bytes, with the units that transformers takes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("expected a number with KB, MB, GB, KiB, MiB or GiB, such as 5GB".into()),
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("expected a whole number above 0 with its unit, such as 5GB".into()),
    }
}

/// A number of threads.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    at_least_one(text).and_then(|n| (n <= 1024).then_some(n).ok_or("must be at most 1024".into()))
}

/// A sampling temperature; near 0 nothing but the most probable token is left, and further down numbers overflow.
pub(super) fn temperature(text: &str) -> Result<f64, String> {
    let problem = "must be at least 0.001; the most probable tokens are what generate gives without --do_sample, and chat \
                   with --greedy";
    number(text).and_then(|x| (x >= 1e-3).then_some(x).ok_or(problem.into()))
}

/// A number of passes over the data.
pub(super) fn epochs(text: &str) -> Result<f64, String> {
    positive(text).and_then(|x| (x <= 1e6).then_some(x).ok_or("must be at most 1,000,000".into()))
}

/// A finite number, 0 or above.
pub(super) fn non_negative(text: &str) -> Result<f64, String> {
    number(text).and_then(|x| (x >= 0.0).then_some(x).ok_or("must not be negative".into()))
}

/// A number in [0, 1].
pub(super) fn share(text: &str) -> Result<f64, String> {
    let inside = |x: f64| (0.0..=1.0).contains(&x).then_some(x);
    number(text).and_then(|x| inside(x).ok_or("must lie between 0 and 1".into()))
}

/// A number in [0, 1): a share that may not be the whole.
pub(super) fn part(text: &str) -> Result<f64, String> {
    let inside = |x: f64| (0.0..1.0).contains(&x).then_some(x);
    number(text).and_then(|x| inside(x).ok_or("must be at least 0 and below 1".into()))
}

/// A share in (0, 1]: the probability mass that sampling keeps.
pub(super) fn mass(text: &str) -> Result<f64, String> {
    let inside = |x: f64| (x > 0.0 && x <= 1.0).then_some(x);
    number(text).and_then(|x| inside(x).ok_or("must be above 0 and at most 1".into()))
}

/// A whole number from `low` up. Counts stay below 2^32, so that arithmetic on them cannot overflow.
fn count(text: &str, low: usize, why: &str) -> Result<usize, String> {
    match text.parse::<u32>() {
        Ok(n) if n as usize >= low => Ok(n as usize),
        _ => Err(format!("expected a whole number from {low} to {}{why}", u32::MAX)),
    }
}

/// A seed.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// A whole number from 0 up.
pub(super) fn whole(text: &str) -> Result<usize, String> {
    count(text, 0, "")
}

/// A whole number from 1 up.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    count(text, 1, "")
}

/// A number of resamples: enough for the tails of an interval.
pub(super) fn resamples(text: &str) -> Result<usize, String> {
    count(text, 100, " (the tails of an interval need them)")
}

/// A whole number from 2 up: a row of one token has nothing to predict.
pub(super) fn at_least_two(text: &str) -> Result<usize, String> {
    count(text, 2, " (one token predicts nothing)")
}

/// -1 for "no limit", or a whole number from 1 up, as TRL's `max_steps`.
pub(super) fn step_limit(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(n) if n == -1 || (n > 0 && n <= u32::MAX.into()) => Ok(n),
        _ => Err("expected a whole number, 1 or above, or -1 for no limit".into()),
    }
}

/// Text in which `\n`, `\t`, `\r` and `\\` may be written out, since shells make real ones awkward.
pub(super) fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('\\') => '\\',
            Some(other) => {
                return Err(format!("unknown escape \\{other}; write \\\\ for a backslash"));
            }
            None => return Err("ends in a single backslash; write \\\\ for a backslash".into()),
        });
    }
    match out.is_empty() {
        true => Err("must not be empty".into()),
        false => Ok(out),
    }
}
