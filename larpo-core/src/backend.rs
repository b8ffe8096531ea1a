//! The backend trait: every operation a transformer and its list training need, each with its gradient.
//!
//! A backend owns flat arrays of floats ([`Backend::Buffer`]) and of `u32` ([`Backend::Index`]). Shapes are run-time
//! numbers that the caller passes; a matrix `(rows, cols)` is row-major. The trait has **no default methods**, so a
//! missing kernel is a compile error and never a hidden detour through the host.
//!
//! Naming: an operation `x` has its gradient in `x_grad`, and `d_y` is the gradient of the loss by `y`. [`Store`] tells a
//! kernel whether to overwrite its result or to add to it; gradients of parameters and of values with several consumers
//! accumulate in place that way.
//!
//! Kernels panic, naming the operation and the shapes, when a caller passes buffers of the wrong length: that is a bug of
//! the caller, not bad data.

use crate::lists::RankedLists;
use crate::rng::philox;
use serde::{Deserialize, Serialize};

/// Whether a kernel overwrites its destination or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `dst = result`; the old contents are not read.
    Set,
    /// `dst += result`.
    Add,
}

/// The weight operand of a product: `(out_features, in_features)`, row-major.
///
/// It may be stored in bfloat16 where it is not trained ([`Backend::upload_bf16`]).
#[derive(Debug)]
pub struct Weight<'a, T> {
    /// The stored numbers, `out_features * in_features` of them.
    pub data: &'a T,
    /// Rows: the width of the product's result.
    pub out_features: usize,
    /// Columns: the width of the product's input.
    pub in_features: usize,
}

impl<T> Clone for Weight<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Weight<'_, T> {}

/// Head layout of a fused `qkv` row: `heads` query heads, then `kv_heads` key heads, then `kv_heads` value heads, each
/// `head_dim` wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Channels of one head; even.
    pub head_dim: usize,
    /// Factor on the scores `q·k`, usually `head_dim^-0.5`.
    pub scale: f64,
    /// Scores `s` become `c·tanh(s / c)` (Gemma Team 2024, section 2); none leaves them.
    pub softcap: Option<f64>,
    /// A row sees its last `window` keys, itself included (Beltagy et al. 2020); none sees all before it. The cache of
    /// decoding is cut by the caller's spans.
    pub window: Option<usize>,
}

impl AttentionSpec {
    /// Channels of one row of the fused projection.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Channels of one row of the attention output.
    pub fn out_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of one cached row: keys, then values.
    pub fn cache_width(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Settings of a root-mean-square norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f64,
    /// Added to the stored weight: 0, or 1 for Gemma, whose weights are stored around zero.
    pub offset: f64,
}

/// Activation inside the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·σ(x)`.
    Silu,
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, the approximation of GELU (Hendrycks & Gimpel 2016).
    GeluTanh,
}

/// A run of rows that see each other causally, after a shared prefix that all of them see.
///
/// The prompt of a packed list is a segment without a prefix; each response is a segment whose prefix is the prompt.
/// Segments of one list are consecutive and share `prefix_start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row of the run.
    pub start: u32,
    /// Rows in the run.
    pub len: u32,
    /// First row of the shared prefix; equal to `start` where there is none.
    pub prefix_start: u32,
    /// Rows in the prefix.
    pub prefix_len: u32,
}

impl Segment {
    /// Flat form for an index array, four numbers a segment.
    pub fn flatten(segments: &[Segment]) -> Vec<u32> {
        segments.iter().flat_map(|s| [s.start, s.len, s.prefix_start, s.prefix_len]).collect()
    }

    /// Reads back what [`Segment::flatten`] wrote.
    pub fn parse(flat: &[u32]) -> impl Iterator<Item = Segment> + '_ {
        flat.chunks_exact(4).map(|s| Segment { start: s[0], len: s[1], prefix_start: s[2], prefix_len: s[3] })
    }
}

/// Settings of one AdamW update (Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSpec {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of this tensor.
    pub weight_decay: f64,
    /// Number of this update, counted from 1.
    pub step: u64,
}

/// Which elements dropout leaves out: a pure function of these numbers and the element's place, so the gradient draws it
/// again instead of keeping a mask, and a run that goes on draws the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutSpec {
    /// Share of the elements that become zero, in [0, 1); the others are divided by 1 − rate.
    pub rate: f64,
    /// Key of the random numbers.
    pub key: [u32; 2],
    /// What tells uses of one key apart.
    pub counter: [u32; 2],
}

impl DropoutSpec {
    /// The factors of elements `4·block ..` and the three after it: 0 or 1 / (1 − rate).
    #[inline]
    pub fn factors(&self, block: u64) -> [f64; 4] {
        let words = philox([block as u32, (block >> 32) as u32, self.counter[0], self.counter[1]], self.key);
        let scale = 1.0 / (1.0 - self.rate);
        words.map(|word| if f64::from(word) < self.rate * 4_294_967_296.0 { 0.0 } else { scale })
    }
}

/// How one row of logits becomes a token (order as in Hugging Face generation: temperature, top-k, top-p, min-p).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingSpec {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f64,
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens whose probabilities sum to at least `top_p`; 1 keeps all.
    pub top_p: f64,
    /// Drops tokens less probable than `min_p` times the most probable one; 0 keeps all.
    pub min_p: f64,
    /// Ids at or above this are never drawn (ids without a token); the log-probability still covers all of them.
    pub vocab_limit: usize,
}

/// A sampled token and its log-probability under the untempered, untruncated softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Token id.
    pub id: u32,
    /// Natural-log probability at temperature 1 over the whole vocabulary.
    pub logp: f32,
}

/// The operations of a transformer, its list losses, its optimizer and its decoder.
pub trait Backend: Clone + Send + Sync + 'static {
    /// A flat array of floats on the device.
    type Buffer: Send + Sync + 'static;
    /// A flat array of `u32` on the device.
    type Index: Send + Sync + 'static;
    /// Ranked lists on the device, with their order and ties prepared.
    type Lists: Send + Sync + 'static;

    /// What computes, for records of runs: `cpu`, or an adapter with its driver.
    fn name(&self) -> String;
    /// Whether products round their operands to half precision, whose smallest numbers are too large for many gradients:
    /// training scales the loss ([`LossScale`](crate::optim::LossScale)).
    fn multiplies_in_half(&self) -> bool;

    // ---- memory ------------------------------------------------------------------------------------------------------

    /// A buffer of `len` floats with **unspecified** contents (it may have been used before).
    fn alloc(&self, len: usize) -> Self::Buffer;
    /// Number of floats in a buffer.
    fn len(&self, x: &Self::Buffer) -> usize;
    /// Copies `data` to the device.
    fn upload(&self, data: &[f32]) -> Self::Buffer;
    /// Copies `data` to the device, rounded to bfloat16 (to the nearest, then to the even): the weights of a model that is not
    /// trained. Such a buffer is the table of [`Backend::embed`] or a [`Weight`], and can be downloaded; no other operation
    /// takes it.
    fn upload_bf16(&self, data: &[f32]) -> Self::Buffer;
    /// A buffer as of [`Backend::upload_bf16`], with unspecified contents.
    fn alloc_bf16(&self, len: usize) -> Self::Buffer;
    /// Copies indices to the device.
    fn upload_index(&self, data: &[u32]) -> Self::Index;
    /// Copies ranked lists to the device and prepares their order.
    fn upload_lists(&self, lists: &RankedLists) -> Self::Lists;
    /// Reads a buffer back in single precision; `out` has the buffer's length.
    fn download(&self, x: &Self::Buffer, out: &mut [f32]);
    /// Reads a buffer back in double precision (exact on every backend).
    fn read(&self, x: &Self::Buffer) -> Vec<f64>;
    /// Reads several buffers back; the host waits for a device once.
    fn read_all(&self, buffers: &[&Self::Buffer]) -> Vec<Vec<f64>>;
    /// `x[..] = value`.
    fn fill(&self, x: &mut Self::Buffer, value: f64);
    /// `y = x` or `y += x`, same length.
    fn copy(&self, x: &Self::Buffer, y: &mut Self::Buffer, store: Store);
    /// Hands memory kept for reuse back to the system.
    fn trim(&self);
    /// From now on memory kept for reuse is handed back rather than that all arrays take more than `bytes` together. Arrays in
    /// use may take more.
    fn limit(&self, bytes: u64);

    // ---- embedding and products --------------------------------------------------------------------------------------

    /// `table (v, channels), ids (n) -> y (n, channels)`.
    fn embed(&self, table: &Self::Buffer, ids: &Self::Index, channels: usize, y: &mut Self::Buffer);
    /// `d_y (n, channels), ids (n) -> d_table (v, channels)`: rows of equal ids add up.
    fn embed_grad(
        &self,
        d_y: &Self::Buffer,
        ids: &Self::Index,
        channels: usize,
        d_table: &mut Self::Buffer,
        store: Store,
    );
    /// `x (n, in) · wᵀ -> y (n, out)`.
    fn linear(&self, x: &Self::Buffer, w: Weight<Self::Buffer>, y: &mut Self::Buffer, store: Store);
    /// `d_y (n, out) · w -> d_x (n, in)`.
    fn linear_grad_x(&self, d_y: &Self::Buffer, w: Weight<Self::Buffer>, d_x: &mut Self::Buffer, store: Store);
    /// `d_yᵀ · x -> d_w (out, in)` with `d_y (n, out)`, `x (n, in)`.
    fn linear_grad_w(
        &self,
        d_y: &Self::Buffer,
        x: &Self::Buffer,
        out_features: usize,
        in_features: usize,
        d_w: &mut Self::Buffer,
        store: Store,
    );

    // ---- rows --------------------------------------------------------------------------------------------------------

    /// Root-mean-square norm (Zhang & Sennrich 2019): `x (n, c), w (c) -> y (n, c) = x·rstd·(w + offset)`, `rstd (n)`.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        w: &Self::Buffer,
        spec: NormSpec,
        y: &mut Self::Buffer,
        rstd: &mut Self::Buffer,
    );
    /// `d_y (n, c), x (n, c), w (c), rstd (n) -> d_x (n, c), d_w (c)`.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_grad(
        &self,
        d_y: &Self::Buffer,
        x: &Self::Buffer,
        w: &Self::Buffer,
        spec: NormSpec,
        rstd: &Self::Buffer,
        d_x: (&mut Self::Buffer, Store),
        d_w: Option<(&mut Self::Buffer, Store)>,
    );
    /// Norm of mean and variance (Ba et al. 2016), the bias not included: `x (n, c), w (c) -> y (n, c) =
    /// (x − mean)·rstd·w`, `stats (n, 2)` = mean, rstd.
    fn layer_norm(&self, x: &Self::Buffer, w: &Self::Buffer, eps: f64, y: &mut Self::Buffer, stats: &mut Self::Buffer);
    /// `d_y (n, c), x (n, c), w (c), stats (n, 2) -> d_x (n, c), d_w (c)`.
    #[allow(clippy::too_many_arguments)]
    fn layer_norm_grad(
        &self,
        d_y: &Self::Buffer,
        x: &Self::Buffer,
        w: &Self::Buffer,
        stats: &Self::Buffer,
        d_x: (&mut Self::Buffer, Store),
        d_w: Option<(&mut Self::Buffer, Store)>,
    );
    /// Root-mean-square norm of each query head with `w_q (head_dim)` and of each key head with `w_k (head_dim)`:
    /// `x (n, width) -> y (n, width)`, values copied, and `rstd (n, heads + kv_heads)`.
    #[allow(clippy::too_many_arguments)]
    fn head_norm(
        &self,
        x: &Self::Buffer,
        w_q: &Self::Buffer,
        w_k: &Self::Buffer,
        eps: f64,
        spec: &AttentionSpec,
        y: &mut Self::Buffer,
        rstd: &mut Self::Buffer,
    );
    /// `d_y (n, width), x, w_q, w_k, rstd -> d_x (n, width)`, overwritten, `d_w_q (head_dim)`, `d_w_k (head_dim)`.
    #[allow(clippy::too_many_arguments)]
    fn head_norm_grad(
        &self,
        d_y: &Self::Buffer,
        x: &Self::Buffer,
        w_q: &Self::Buffer,
        w_k: &Self::Buffer,
        rstd: &Self::Buffer,
        spec: &AttentionSpec,
        d_x: &mut Self::Buffer,
        d_w_q: Option<(&mut Self::Buffer, Store)>,
        d_w_k: Option<(&mut Self::Buffer, Store)>,
    );
    /// `y (n, c)` gets `x (c)` in every row: a bias.
    fn broadcast_rows(&self, x: &Self::Buffer, y: &mut Self::Buffer, store: Store);
    /// `y (c)` gets the sum of the rows of `x (n, c)`: the gradient of [`Backend::broadcast_rows`].
    fn sum_rows(&self, x: &Self::Buffer, y: &mut Self::Buffer, store: Store);
    /// Rotary embedding (Su et al. 2021), half-split pairs, in place on the query and key heads of `qkv (n, width)`.
    ///
    /// `table (positions, head_dim)` holds `head_dim/2` cosines, then as many sines, a row. With `inverse` the rotation
    /// is undone, which is its own gradient.
    fn rope(
        &self,
        qkv: &mut Self::Buffer,
        positions: &Self::Index,
        table: &Self::Buffer,
        spec: &AttentionSpec,
        inverse: bool,
    );
    /// Causal attention inside segments with shared prefixes: `qkv (n, width) -> o (n, heads·head_dim)`, and the
    /// log-sum-exp of the scaled scores, `lse (n, heads)`. `segments` is [`Segment::flatten`]ed.
    fn attention(
        &self,
        qkv: &Self::Buffer,
        segments: &Self::Index,
        spec: &AttentionSpec,
        o: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    );
    /// `d_o, qkv, o, lse -> d_qkv (n, width)`, all of it overwritten.
    #[allow(clippy::too_many_arguments)]
    fn attention_grad(
        &self,
        d_o: &Self::Buffer,
        qkv: &Self::Buffer,
        o: &Self::Buffer,
        lse: &Self::Buffer,
        segments: &Self::Index,
        spec: &AttentionSpec,
        d_qkv: &mut Self::Buffer,
    );
    /// Gated unit (Shazeer 2020): `gate_up (n, 2·width) -> y (n, width) = activation(gate) · up`.
    fn glu(&self, gate_up: &Self::Buffer, width: usize, activation: Activation, y: &mut Self::Buffer);
    /// `d_y (n, width), gate_up (n, 2·width) -> d_gate_up (n, 2·width)`.
    fn glu_grad(
        &self,
        d_y: &Self::Buffer,
        gate_up: &Self::Buffer,
        width: usize,
        activation: Activation,
        d_gate_up: &mut Self::Buffer,
    );
    /// `y = activation(x)`, same length.
    fn activate(&self, x: &Self::Buffer, activation: Activation, y: &mut Self::Buffer);
    /// `d_y, x -> d_x`, all of one length.
    fn activate_grad(&self, d_y: &Self::Buffer, x: &Self::Buffer, activation: Activation, d_x: &mut Self::Buffer);
    /// `y (m, channels) = x[rows]`.
    fn gather_rows(&self, x: &Self::Buffer, rows: &Self::Index, channels: usize, y: &mut Self::Buffer);
    /// `d_x (n, channels)` gets `d_y (m, channels)` added at `rows`, which are distinct; with [`Store::Set`] the other
    /// rows become zero.
    fn gather_rows_grad(
        &self,
        d_y: &Self::Buffer,
        rows: &Self::Index,
        channels: usize,
        d_x: &mut Self::Buffer,
        store: Store,
    );

    // ---- head and losses ---------------------------------------------------------------------------------------------

    /// Log-probability of targets: `h (r, c)`, `w (v, c)`; target `t` is `(target_rows[t], target_ids[t])`.
    /// `logp (targets)` and the log-sum-exp of every row's logits, `lse (r)`. The `(r, v)` logits are never kept whole.
    /// With `softcap` c they are `c·tanh(logit / c)`.
    #[allow(clippy::too_many_arguments)]
    fn token_logp(
        &self,
        h: &Self::Buffer,
        w: Weight<Self::Buffer>,
        softcap: Option<f64>,
        target_rows: &Self::Index,
        target_ids: &Self::Index,
        logp: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    );
    /// Gradient of [`Backend::token_logp`] for any upstream `d_logp (targets)`; the logits are computed again.
    #[allow(clippy::too_many_arguments)]
    fn token_logp_grad(
        &self,
        d_logp: &Self::Buffer,
        h: &Self::Buffer,
        w: Weight<Self::Buffer>,
        softcap: Option<f64>,
        target_rows: &Self::Index,
        target_ids: &Self::Index,
        lse: &Self::Buffer,
        d_h: (&mut Self::Buffer, Store),
        d_w: Option<(&mut Self::Buffer, Store)>,
    );
    /// `y (1) = Σ w·x`.
    fn weighted_sum(&self, x: &Self::Buffer, w: &Self::Buffer, y: &mut Self::Buffer);
    /// `d_x = d_y[0] · w` (stored or added).
    fn weighted_sum_grad(&self, d_y: &Self::Buffer, w: &Self::Buffer, d_x: &mut Self::Buffer, store: Store);
    /// List losses over γ = β·Σ(log πθ − log πref) per response.
    ///
    /// `logp (targets)`, `reference (targets)` → `gamma (items)`, `loss (lists)` unscaled, and `d_logp (targets)`, the
    /// gradient of `Σ loss · lists.scale`.
    fn list_loss(
        &self,
        logp: &Self::Buffer,
        reference: &Self::Buffer,
        lists: &Self::Lists,
        gamma: &mut Self::Buffer,
        loss: &mut Self::Buffer,
        d_logp: &mut Self::Buffer,
    );
    /// `y = x` or `y += x` with some elements left out and the others enlarged; see [`DropoutSpec`]. It is its own gradient.
    fn dropout(&self, x: &Self::Buffer, spec: &DropoutSpec, y: &mut Self::Buffer, store: Store);
    /// `x *= y[0]`.
    fn scale(&self, x: &mut Self::Buffer, y: &Self::Buffer);

    // ---- optimizer ---------------------------------------------------------------------------------------------------

    /// `out[at] = Σ x²`.
    fn sq_norm(&self, x: &Self::Buffer, out: &mut Self::Buffer, at: usize);
    /// From squared norms of all gradients: `out (2)` = global norm, and `min(1, max_norm / norm)` (1 for
    /// `max_norm` ≤ 0).
    fn clip(&self, sq_norms: &Self::Buffer, max_norm: f64, out: &mut Self::Buffer);
    /// One AdamW update of `w` with gradient `g · clip[1]`.
    fn adamw(
        &self,
        spec: &AdamWSpec,
        w: &mut Self::Buffer,
        g: &Self::Buffer,
        m: &mut Self::Buffer,
        v: &mut Self::Buffer,
        clip: &Self::Buffer,
    );

    // ---- decoding ----------------------------------------------------------------------------------------------------

    /// Copies keys and values of `qkv (n, width)` to rows `slots (n)` of `cache (slots, 2·kv_heads·head_dim)`.
    fn kv_append(&self, qkv: &Self::Buffer, slots: &Self::Index, spec: &AttentionSpec, cache: &mut Self::Buffer);
    /// One query row per response against its prompt's and its own cached rows: `spans (n, 4)` holds prompt start,
    /// prompt length, own start, own length (in cache rows) → `o (n, heads·head_dim)`.
    fn decode_attention(
        &self,
        qkv: &Self::Buffer,
        cache: &Self::Buffer,
        spans: &Self::Index,
        spec: &AttentionSpec,
        o: &mut Self::Buffer,
    );
    /// `x = c·tanh(x / c)`: what [`Backend::token_logp`] does to logits, for those that are drawn from.
    fn softcap(&self, x: &mut Self::Buffer, c: f64);
    /// Draws one token a row of `logits (n, vocab)`; `uniform[i]` in [0, 1) decides row `i`.
    fn sample(&self, logits: &Self::Buffer, vocab: usize, spec: &SamplingSpec, uniform: &[f64]) -> Vec<Draw>;
}
