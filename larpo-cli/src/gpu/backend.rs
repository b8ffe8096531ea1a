//! The methods of the trait, one after another.

use super::buffer::{Buffer, Index, Lists};
use larpo_core::backend::{
    Activation, AdamWSpec, AttentionSpec, Backend, Draw, DropoutSpec, NormSpec, SamplingSpec, Store, Weight,
};
use larpo_core::lists::RankedLists;
use larpo_core::objective::{LipoLabels, LogBase, LossType, Ties};
use larpo_gpu::kernels::attention::Attention;
use larpo_gpu::kernels::matmul::{Matrix, matmul};
use larpo_gpu::kernels::norm::{Heads, RmsNorm};
use larpo_gpu::kernels::token_logp::Head;
use larpo_gpu::kernels::{
    activation, adamw, attention, decode, dropout, elementwise, gather, list_loss, lists, norm, reduce, rope, sample,
    sum_rows, token_logp,
};
use larpo_gpu::{Error, Gpu, Recorder, Stats};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The backend on a GPU. Clones share one stream of commands and one pool of memory.
#[derive(Clone)]
pub struct GpuBackend {
    gpu: Gpu,
    state: Arc<Mutex<State>>,
}

struct State {
    recorder: Recorder,
    /// What failed first; nothing is recorded from then on.
    fault: Option<Error>,
}

impl GpuBackend {
    /// The backend on a device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(gpu: &Gpu) -> Result<Self, Error> {
        let state = State { recorder: Recorder::new(gpu)?, fault: None };
        Ok(Self { gpu: gpu.clone(), state: Arc::new(Mutex::new(state)) })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What failed first on the device; everything read since is NaN.
    pub fn fault(&self) -> Option<Error> {
        self.lock().fault.clone().or_else(|| self.gpu.fault().err())
    }

    /// Kernels, submissions and reads so far.
    pub fn stats(&self) -> Stats {
        self.lock().recorder.stats()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic, which is a bug of a caller, comes before anything of its kernel is recorded.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `run` gives; none once the device has failed.
    #[track_caller]
    fn run<T>(&self, run: impl FnOnce(&mut Recorder) -> Result<T, Error>) -> Option<T> {
        let mut state = self.lock();
        if state.fault.is_some() {
            return None;
        }
        let result = run(&mut state.recorder);
        // A kernel that could not be recorded.
        match result.and_then(|result| state.recorder.fault().map(|()| result)) {
            Ok(result) => Some(result),
            Err(error) => {
                state.fault = Some(error);
                None
            }
        }
    }

    /// Records kernels, which may fail for want of memory.
    #[track_caller]
    fn record<R: Recorded>(&self, kernels: impl FnOnce(&mut Recorder) -> R) {
        // What fails is kept.
        let _ = self.run(|r| kernels(r).done());
    }

    /// Reads a buffer back; none once the device has failed.
    fn floats(&self, x: &Buffer) -> Option<Vec<f32>> {
        self.run(|r| match x.weight() {
            larpo_gpu::Weight::F32(x) => r.read(x),
            larpo_gpu::Weight::Bf16(x) => r.read_bf16(x),
        })
    }
}

/// What recording kernels gives: nothing, or perhaps an error.
trait Recorded {
    fn done(self) -> Result<(), Error>;
}

impl Recorded for () {
    fn done(self) -> Result<(), Error> {
        Ok(())
    }
}

impl Recorded for Result<(), Error> {
    fn done(self) -> Result<(), Error> {
        self
    }
}

fn store(store: Store) -> larpo_gpu::Store {
    match store {
        Store::Set => larpo_gpu::Store::Set,
        Store::Add => larpo_gpu::Store::Add,
    }
}

fn into((x, how): (&mut Buffer, Store)) -> (&larpo_gpu::Buffer, larpo_gpu::Store) {
    (x.f32(), store(how))
}

fn heads(spec: &AttentionSpec) -> Heads {
    Heads { heads: spec.heads, kv_heads: spec.kv_heads, head_dim: spec.head_dim }
}

fn scores(spec: &AttentionSpec) -> Attention {
    Attention { heads: heads(spec), scale: spec.scale, softcap: spec.softcap, window: spec.window }
}

fn kind(activation: Activation) -> activation::Activation {
    match activation {
        Activation::Silu => activation::Activation::Silu,
        Activation::GeluTanh => activation::Activation::GeluTanh,
    }
}

#[track_caller]
fn rows(op: &str, x: &Buffer, width: usize) -> usize {
    assert!(width > 0 && x.len().is_multiple_of(width), "{op}: {} floats do not fill rows of {width}", x.len());
    x.len() / width
}

/// `(out, in)`
fn matrix<'a>(w: Weight<'a, Buffer>) -> Matrix<'a> {
    Matrix::new(w.data.weight(), w.out_features, w.in_features)
}

fn head<'a>(w: Weight<'a, Buffer>, softcap: Option<f64>) -> Head<'a> {
    Head { w: w.data.weight(), channels: w.in_features, softcap, chunk: None }
}

/// Lists as the kernels take them.
fn upload_lists(recorder: &Recorder, of: &RankedLists) -> Result<lists::RankedLists, Error> {
    let objective = of.objective();
    let order = of.order();
    let spec = lists::ListSpec {
        item_offsets: of.item_offsets(),
        rewards: of.rewards(),
        order: Some(&order),
        target_offsets: of.target_offsets(),
        loss: match objective.loss {
            LossType::Pairwise => lists::LossType::Pairwise,
            LossType::Contrastive => lists::LossType::Contrastive,
            LossType::Lambdarank => lists::LossType::Lambdarank,
            LossType::Listmle => lists::LossType::Listmle,
            LossType::LipoLambda => lists::LossType::LipoLambda,
        },
        ties: match objective.ties {
            Ties::Stable => lists::Ties::Stable,
            Ties::Skip => lists::Ties::Skip,
            Ties::Share => lists::Ties::Share,
            Ties::Random => lists::Ties::Shuffled,
        },
        labels: match objective.labels {
            LipoLabels::Rank => lists::LipoLabels::Rank,
            LipoLabels::Reward => lists::LipoLabels::Reward,
        },
        log2: objective.log_base == LogBase::Two,
    };
    lists::RankedLists::new(recorder, &spec)
}

impl Backend for GpuBackend {
    type Buffer = Buffer;
    type Index = Index;
    type Lists = Lists;

    fn name(&self) -> String {
        self.gpu.to_string()
    }

    fn multiplies_in_half(&self) -> bool {
        self.gpu.matrix_units().is_some()
    }

    fn alloc(&self, len: usize) -> Buffer {
        Buffer::single(self.run(|r| r.alloc(len)), len)
    }

    fn len(&self, x: &Buffer) -> usize {
        x.len()
    }

    fn upload(&self, data: &[f32]) -> Buffer {
        Buffer::single(self.run(|r| r.upload(data)), data.len())
    }

    fn upload_bf16(&self, data: &[f32]) -> Buffer {
        Buffer::half(self.run(|r| r.upload_bf16(data)), data.len())
    }

    fn alloc_bf16(&self, len: usize) -> Buffer {
        Buffer::half(self.run(|r| r.alloc_bf16(len)), len)
    }

    fn upload_index(&self, data: &[u32]) -> Index {
        Index::new(data)
    }

    fn upload_lists(&self, lists: &RankedLists) -> Lists {
        let inner = self.run(|r| upload_lists(r, lists));
        Lists { inner, beta: lists.beta(), scale: lists.scale() }
    }

    fn download(&self, x: &Buffer, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "download: lengths differ");
        match self.floats(x) {
            Some(x) => out.copy_from_slice(&x),
            None => out.fill(f32::NAN),
        }
    }

    fn read(&self, x: &Buffer) -> Vec<f64> {
        let floats = self.floats(x);
        floats.map_or_else(|| vec![f64::NAN; x.len()], |x| x.into_iter().map(f64::from).collect())
    }

    fn read_all(&self, buffers: &[&Buffer]) -> Vec<Vec<f64>> {
        let read = self.run(|r| r.read_all(&buffers.iter().map(|x| x.f32()).collect::<Vec<_>>()));
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
        match read {
            Some(read) => read.into_iter().map(wide).collect(),
            None => buffers.iter().map(|x| vec![f64::NAN; x.len()]).collect(),
        }
    }

    fn fill(&self, x: &mut Buffer, value: f64) {
        self.record(|r| elementwise::fill(r, x.f32(), value));
    }

    fn copy(&self, x: &Buffer, y: &mut Buffer, how: Store) {
        self.record(|r| elementwise::copy(r, x.f32(), y.f32(), store(how)));
    }

    fn trim(&self) {
        self.record(|r| r.trim());
    }

    fn limit(&self, bytes: u64) {
        self.record(|r| r.limit(bytes));
    }

    fn embed(&self, table: &Buffer, ids: &Index, channels: usize, y: &mut Buffer) {
        self.record(|r| {
            let ids = ids.plain(r)?;
            match table.weight() {
                larpo_gpu::Weight::F32(table) => gather::gather_rows(r, table, &ids, channels, y.f32()),
                larpo_gpu::Weight::Bf16(table) => gather::gather_rows_bf16(r, table, &ids, channels, y.f32()),
            }
            Ok(())
        });
    }

    fn embed_grad(&self, d_y: &Buffer, ids: &Index, channels: usize, d_table: &mut Buffer, how: Store) {
        self.record(|r| {
            let ids = ids.sorted(r)?;
            gather::embed_grad(r, d_y.f32(), &ids, channels, d_table.f32(), store(how));
            Ok(())
        });
    }

    fn linear(&self, x: &Buffer, w: Weight<Buffer>, y: &mut Buffer, how: Store) {
        let n = rows("linear", x, w.in_features);
        self.record(|r| {
            let (x, y) = (Matrix::new(x.f32(), n, w.in_features), Matrix::new(y.f32(), n, w.out_features));
            matmul(r, x, matrix(w).transposed(), None, y, store(how));
            Ok(())
        });
    }

    fn linear_grad_x(&self, d_y: &Buffer, w: Weight<Buffer>, d_x: &mut Buffer, how: Store) {
        let n = rows("linear_grad_x", d_y, w.out_features);
        self.record(|r| {
            let (d_y, d_x) = (Matrix::new(d_y.f32(), n, w.out_features), Matrix::new(d_x.f32(), n, w.in_features));
            matmul(r, d_y, matrix(w), None, d_x, store(how));
            Ok(())
        });
    }

    fn linear_grad_w(&self, d_y: &Buffer, x: &Buffer, out_f: usize, in_f: usize, d_w: &mut Buffer, how: Store) {
        let n = rows("linear_grad_w", x, in_f);
        self.record(|r| {
            let (d_y, x) = (Matrix::new(d_y.f32(), n, out_f), Matrix::new(x.f32(), n, in_f));
            matmul(r, d_y.transposed(), x, None, Matrix::new(d_w.f32(), out_f, in_f), store(how));
            Ok(())
        });
    }

    fn rms_norm(&self, x: &Buffer, w: &Buffer, spec: NormSpec, y: &mut Buffer, rstd: &mut Buffer) {
        let settings = RmsNorm { eps: spec.eps, offset: spec.offset };
        self.record(|r| norm::rms_norm(r, x.f32(), w.f32(), settings, y.f32(), rstd.f32()));
    }

    fn rms_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w: &Buffer,
        spec: NormSpec,
        rstd: &Buffer,
        d_x: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        let settings = RmsNorm { eps: spec.eps, offset: spec.offset };
        self.record(|r| {
            norm::rms_norm_grad(r, d_y.f32(), x.f32(), w.f32(), settings, rstd.f32(), into(d_x), d_w.map(into))
        });
    }

    fn layer_norm(&self, x: &Buffer, w: &Buffer, eps: f64, y: &mut Buffer, stats: &mut Buffer) {
        self.record(|r| norm::layer_norm(r, x.f32(), w.f32(), eps, y.f32(), stats.f32()));
    }

    fn layer_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w: &Buffer,
        stats: &Buffer,
        d_x: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        self.record(|r| norm::layer_norm_grad(r, d_y.f32(), x.f32(), w.f32(), stats.f32(), into(d_x), d_w.map(into)));
    }

    fn head_norm(
        &self,
        x: &Buffer,
        w_q: &Buffer,
        w_k: &Buffer,
        eps: f64,
        spec: &AttentionSpec,
        y: &mut Buffer,
        rstd: &mut Buffer,
    ) {
        self.record(|r| norm::head_norm(r, x.f32(), w_q.f32(), w_k.f32(), eps, heads(spec), y.f32(), rstd.f32()));
    }

    fn head_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w_q: &Buffer,
        w_k: &Buffer,
        rstd: &Buffer,
        spec: &AttentionSpec,
        d_x: &mut Buffer,
        d_w_q: Option<(&mut Buffer, Store)>,
        d_w_k: Option<(&mut Buffer, Store)>,
    ) {
        let (heads, d_w_q, d_w_k) = (heads(spec), d_w_q, d_w_k);
        self.record(|r| {
            let (w_q, w_k, rstd) = (w_q.f32(), w_k.f32(), rstd.f32());
            let (d_w_q, d_w_k) = (d_w_q.map(into), d_w_k.map(into));
            norm::head_norm_grad(r, d_y.f32(), x.f32(), w_q, w_k, rstd, heads, d_x.f32(), d_w_q, d_w_k)
        });
    }

    fn broadcast_rows(&self, x: &Buffer, y: &mut Buffer, how: Store) {
        self.record(|r| elementwise::broadcast_rows(r, x.f32(), y.f32(), store(how)));
    }

    fn sum_rows(&self, x: &Buffer, y: &mut Buffer, how: Store) {
        self.record(|r| sum_rows::sum_rows(r, x.f32(), y.f32(), store(how)));
    }

    fn rope(&self, qkv: &mut Buffer, positions: &Index, table: &Buffer, spec: &AttentionSpec, inverse: bool) {
        self.record(|r| {
            let positions = positions.plain(r)?;
            rope::rope(r, qkv.f32(), &positions, table.f32(), heads(spec), inverse);
            Ok(())
        });
    }

    fn attention(&self, qkv: &Buffer, segments: &Index, spec: &AttentionSpec, o: &mut Buffer, lse: &mut Buffer) {
        let n = rows("attention", qkv, spec.qkv_width());
        self.record(|r| {
            let packing = segments.packing(r, n)?;
            attention::attention(r, &scores(spec), &packing, qkv.f32(), o.f32(), lse.f32());
            Ok(())
        });
    }

    fn attention_grad(
        &self,
        d_o: &Buffer,
        qkv: &Buffer,
        o: &Buffer,
        lse: &Buffer,
        segments: &Index,
        spec: &AttentionSpec,
        d_qkv: &mut Buffer,
    ) {
        let n = rows("attention_grad", qkv, spec.qkv_width());
        self.record(|r| {
            let packing = segments.packing(r, n)?;
            let (d_o, qkv, o, lse) = (d_o.f32(), qkv.f32(), o.f32(), lse.f32());
            attention::attention_grad(r, &scores(spec), &packing, d_o, qkv, o, lse, d_qkv.f32())
        });
    }

    fn glu(&self, gate_up: &Buffer, width: usize, activation: Activation, y: &mut Buffer) {
        self.record(|r| activation::glu(r, gate_up.f32(), width, kind(activation), y.f32()));
    }

    fn glu_grad(&self, d_y: &Buffer, gate_up: &Buffer, width: usize, activation: Activation, d_gate_up: &mut Buffer) {
        let kind = kind(activation);
        self.record(|r| activation::glu_grad(r, d_y.f32(), gate_up.f32(), width, kind, d_gate_up.f32()));
    }

    fn activate(&self, x: &Buffer, activation: Activation, y: &mut Buffer) {
        self.record(|r| activation::activate(r, x.f32(), kind(activation), y.f32()));
    }

    fn activate_grad(&self, d_y: &Buffer, x: &Buffer, activation: Activation, d_x: &mut Buffer) {
        self.record(|r| activation::activate_grad(r, d_y.f32(), x.f32(), kind(activation), d_x.f32()));
    }

    fn gather_rows(&self, x: &Buffer, rows: &Index, channels: usize, y: &mut Buffer) {
        self.record(|r| {
            let rows = rows.plain(r)?;
            gather::gather_rows(r, x.f32(), &rows, channels, y.f32());
            Ok(())
        });
    }

    fn gather_rows_grad(&self, d_y: &Buffer, rows: &Index, channels: usize, d_x: &mut Buffer, how: Store) {
        self.record(|r| {
            let rows = rows.plain(r)?;
            gather::gather_rows_grad(r, d_y.f32(), &rows, channels, d_x.f32(), store(how));
            Ok(())
        });
    }

    fn token_logp(
        &self,
        h: &Buffer,
        w: Weight<Buffer>,
        softcap: Option<f64>,
        target_rows: &Index,
        target_ids: &Index,
        logp: &mut Buffer,
        lse: &mut Buffer,
    ) {
        let n = rows("token_logp", h, w.in_features);
        self.record(|r| {
            let targets = target_ids.targets(r, target_rows, n)?;
            token_logp::token_logp(r, h.f32(), &head(w, softcap), &targets, logp.f32(), lse.f32())
        });
    }

    fn token_logp_grad(
        &self,
        d_logp: &Buffer,
        h: &Buffer,
        w: Weight<Buffer>,
        softcap: Option<f64>,
        target_rows: &Index,
        target_ids: &Index,
        lse: &Buffer,
        d_h: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        let n = rows("token_logp_grad", h, w.in_features);
        self.record(|r| {
            let targets = target_ids.targets(r, target_rows, n)?;
            let (head, d_h, d_w) = (head(w, softcap), into(d_h), d_w.map(into));
            token_logp::token_logp_grad(r, d_logp.f32(), h.f32(), &head, &targets, lse.f32(), d_h, d_w)
        });
    }

    fn weighted_sum(&self, x: &Buffer, w: &Buffer, y: &mut Buffer) {
        self.record(|r| reduce::weighted_sum(r, x.f32(), w.f32(), y.f32(), 0));
    }

    fn weighted_sum_grad(&self, d_y: &Buffer, w: &Buffer, d_x: &mut Buffer, how: Store) {
        self.record(|r| elementwise::scaled_copy(r, d_y.f32(), w.f32(), d_x.f32(), store(how)));
    }

    fn list_loss(
        &self,
        logp: &Buffer,
        reference: &Buffer,
        lists: &Lists,
        gamma: &mut Buffer,
        loss: &mut Buffer,
        d_logp: &mut Buffer,
    ) {
        self.record(|r| {
            // None only on a device that has failed, where nothing is recorded.
            let Some(inner) = &lists.inner else { return Ok(()) };
            let d_gamma = r.alloc(inner.items())?;
            list_loss::gamma(r, inner, lists.beta, logp.f32(), reference.f32(), gamma.f32());
            list_loss::list_loss(r, inner, gamma.f32(), loss.f32(), &d_gamma)?;
            list_loss::gamma_grad(r, inner, lists.beta * lists.scale, &d_gamma, d_logp.f32());
            Ok(())
        });
    }

    fn dropout(&self, x: &Buffer, spec: &DropoutSpec, y: &mut Buffer, how: Store) {
        let settings = dropout::Dropout { rate: spec.rate, key: spec.key, counter: spec.counter };
        self.record(|r| dropout::dropout(r, x.f32(), &settings, y.f32(), store(how)));
    }

    fn scale(&self, x: &mut Buffer, y: &Buffer) {
        self.record(|r| elementwise::scale(r, x.f32(), y.f32()));
    }

    fn sq_norm(&self, x: &Buffer, out: &mut Buffer, at: usize) {
        self.record(|r| reduce::sq_norm(r, x.f32(), out.f32(), at));
    }

    fn clip(&self, sq_norms: &Buffer, max_norm: f64, out: &mut Buffer) {
        self.record(|r| reduce::clip(r, sq_norms.f32(), max_norm, out.f32()));
    }

    fn adamw(&self, spec: &AdamWSpec, w: &mut Buffer, g: &Buffer, m: &mut Buffer, v: &mut Buffer, clip: &Buffer) {
        let &AdamWSpec { learning_rate, beta1, beta2, eps, weight_decay, step } = spec;
        let settings = adamw::AdamW { learning_rate, beta1, beta2, eps, weight_decay, step };
        self.record(|r| adamw::adamw(r, &settings, g.f32(), clip.f32(), w.f32(), m.f32(), v.f32()));
    }

    fn kv_append(&self, qkv: &Buffer, slots: &Index, spec: &AttentionSpec, cache: &mut Buffer) {
        self.record(|r| {
            let slots = slots.plain(r)?;
            decode::kv_append(r, heads(spec), qkv.f32(), &slots, cache.f32());
            Ok(())
        });
    }

    fn decode_attention(&self, qkv: &Buffer, cache: &Buffer, spans: &Index, spec: &AttentionSpec, o: &mut Buffer) {
        self.record(|r| {
            let spans = spans.plain(r)?;
            decode::decode_attention(r, &scores(spec), qkv.f32(), cache.f32(), &spans, o.f32());
            Ok(())
        });
    }

    fn softcap(&self, x: &mut Buffer, c: f64) {
        self.record(|r| elementwise::softcap(r, x.f32(), c));
    }

    fn sample(&self, logits: &Buffer, vocab: usize, spec: &SamplingSpec, uniform: &[f64]) -> Vec<Draw> {
        let n = rows("sample", logits, vocab);
        assert_eq!(n, uniform.len(), "sample: one random number a row");
        let &SamplingSpec { temperature, top_k, top_p, min_p, vocab_limit } = spec;
        let settings = sample::Sampling { temperature, top_k, top_p, min_p, vocab_limit };
        let uniform = sample::uniform_numbers(uniform);
        let draws = self.run(|r| {
            let (uniform, ids, logp) = (r.upload(&uniform)?, r.alloc(n)?, r.alloc(n)?);
            sample::sample(r, logits.f32(), vocab, &settings, &uniform, &ids, &logp);
            r.read_both(&ids, &logp)
        });
        let (ids, logps) = draws.unwrap_or_else(|| (vec![0; n], vec![f32::NAN; n]));
        ids.into_iter().zip(logps).map(|(id, logp)| Draw { id, logp }).collect()
    }
}
