//! The command stream: kernels are recorded one after another and handed to the device in few, bounded submissions.

use crate::buffer::{Buffer, Element, Pool, Slot, View};
use crate::device::Gpu;
use crate::shader::{PARAMS_BYTES, Pipeline, Shader};
use crate::{Error, Store};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use wgpu::DeviceType;

/// Most workgroups along one dimension that every device allows.
const MAX_GROUPS: u64 = 65_535;
/// A submission is closed when its estimated run time passes this, unless told otherwise; Windows resets a device after 2 s.
const SUBMISSION_SECONDS: f64 = 0.1;
/// Bind groups kept; a training step uses some hundreds.
const MAX_BIND_GROUPS: usize = 8192;
/// Parameter windows in one uniform buffer.
const PAGE_SLOTS: u64 = 256;

/// Counts of a recorder since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kernels recorded.
    pub dispatches: u64,
    /// Submissions to the queue.
    pub submits: u64,
    /// Times the host waited for the device.
    pub reads: u64,
    /// Bytes of the recorder's own buffers, those kept for reuse included.
    pub bytes: u64,
}

/// One kernel call.
pub(crate) struct Dispatch<'a> {
    pub(crate) shader: &'static Shader,
    pub(crate) entry: &'static str,
    /// As many as the shader has bindings.
    pub(crate) buffers: &'a [View<'a>],
    /// The shader's `Params` without the leading `width`.
    pub(crate) params: &'a [u32],
    pub(crate) groups: u64,
    /// Estimated floating-point operations, a byte of memory traffic counting as [`BYTE`].
    pub(crate) work: f64,
}

/// A byte moved costs about as much as this many floating-point operations, on GPUs and CPUs alike.
pub(crate) const BYTE: f64 = 4.0;

/// Uniform memory for the parameters of up to [`PAGE_SLOTS`] dispatches.
struct Page {
    buffer: wgpu::Buffer,
    group: wgpu::BindGroup,
}

/// What a bind group binds: a layout, and of each buffer its name, the first byte and the number of bytes.
type Bound = (usize, Vec<[u64; 3]>);

/// Records kernels into one open compute pass. Nothing runs before a submission, which comes when the estimated run time
/// passes a bound, when something is read, or by [`Recorder::submit`].
///
/// One recorder is one stream of commands with a memory pool of its own. What a kernel needs is checked when it is recorded;
/// wrong shapes panic, because they are bugs.
pub struct Recorder {
    gpu: Gpu,
    pool: Arc<Pool>,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    /// Whether the encoder is the caller's, who submits it.
    borrowed: bool,
    staged: Vec<u8>,
    slot_bytes: u64,
    page: Option<Page>,
    full_pages: Vec<(Page, Vec<u8>)>,
    free_pages: Vec<Page>,
    bind_groups: RefCell<HashMap<Bound, wgpu::BindGroup>>,
    pipelines: HashMap<(usize, &'static str), Arc<Pipeline>>,
    last_pipeline: Option<Arc<Pipeline>>,
    /// Buffers of other recorders in use by what is recorded: they must not be used again before it is submitted.
    guests: Vec<Arc<Slot>>,
    none: Buffer,
    /// The first kernel that could not be recorded.
    fault: Option<Error>,
    staging: Option<wgpu::Buffer>,
    limit: u64,
    seconds_per_work: f64,
    pending_seconds: f64,
    submission_seconds: f64,
    stats: Stats,
}

impl Recorder {
    /// A recorder that submits by itself.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(gpu: &Gpu) -> Result<Self, Error> {
        let pool = Arc::new(Pool::default());
        let none = pool.take(gpu, 4, false, u64::MAX, || {})?;
        // Rates well below what such devices reach: an estimate that is too long only means shorter submissions.
        let rate = match gpu.info().device_type {
            DeviceType::DiscreteGpu => 2e12,
            DeviceType::IntegratedGpu | DeviceType::VirtualGpu => 2e11,
            DeviceType::Cpu | DeviceType::Other => 5e9,
        };
        let alignment = u64::from(gpu.limits().min_uniform_buffer_offset_alignment);
        Ok(Self {
            gpu: gpu.clone(),
            pool,
            encoder: None,
            pass: None,
            borrowed: false,
            staged: Vec::new(),
            slot_bytes: PARAMS_BYTES.next_multiple_of(alignment),
            page: None,
            full_pages: Vec::new(),
            free_pages: Vec::new(),
            bind_groups: RefCell::default(),
            pipelines: HashMap::new(),
            last_pipeline: None,
            guests: Vec::new(),
            none,
            fault: None,
            staging: None,
            limit: u64::MAX,
            seconds_per_work: 1.0 / rate,
            pending_seconds: 0.0,
            submission_seconds: SUBMISSION_SECONDS,
            stats: Stats::default(),
        })
    }

    /// A recorder that records into the caller's encoder and never submits; [`Recorder::into_encoder`] gives it back. The
    /// caller keeps the buffers used alive until the commands are submitted.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn with_encoder(gpu: &Gpu, encoder: wgpu::CommandEncoder) -> Result<Self, Error> {
        let mut recorder = Self::new(gpu)?;
        recorder.encoder = Some(encoder);
        recorder.borrowed = true;
        Ok(recorder)
    }

    /// The encoder of [`Recorder::with_encoder`], with everything recorded.
    ///
    /// # Panics
    /// On a recorder that submits by itself.
    #[track_caller]
    pub fn into_encoder(mut self) -> wgpu::CommandEncoder {
        assert!(self.borrowed, "into_encoder: this recorder submits by itself");
        self.end_pass();
        self.write_params();
        self.encoder.take().expect("a borrowed encoder is there until it is given back")
    }

    /// Closes submissions when their estimated run time passes `seconds`, a tenth of one unless told; products are cut into
    /// parts of about that.
    pub fn bound_submissions(&mut self, seconds: f64) {
        self.submission_seconds = seconds;
    }

    /// The work of one submission.
    pub(crate) fn submission_work(&self) -> f64 {
        self.submission_seconds / self.seconds_per_work
    }

    /// Whether its commands are the caller's to submit.
    pub(crate) fn is_borrowed(&self) -> bool {
        self.borrowed
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What has been recorded and submitted so far.
    pub fn stats(&self) -> Stats {
        Stats { bytes: self.pool.held(), ..self.stats }
    }

    /// A buffer of `len` elements with **unspecified** contents (it may have been used before).
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`].
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<T>, Error> {
        self.take(len, false)
    }

    /// Copies `data` to the device.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`].
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>, Error> {
        let buffer = self.take(data.len(), true)?;
        self.gpu.queue().write_buffer(buffer.raw(), 0, bytemuck::cast_slice(data));
        Ok(buffer)
    }

    /// Reads a buffer back: the one call that waits for the device, and the one that learns of its errors.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Driver`], [`Error::OutOfMemory`], and what [`Recorder::fault`] gives.
    ///
    /// # Panics
    /// On a recorder that does not submit by itself.
    #[track_caller]
    pub fn read<T: Element>(&mut self, buffer: &Buffer<T>) -> Result<Vec<T>, Error> {
        Ok(self.read_all(&[buffer])?.swap_remove(0))
    }

    /// Reads several buffers back, and waits once; as [`Recorder::read`].
    ///
    /// # Errors
    /// As [`Recorder::read`].
    ///
    /// # Panics
    /// As [`Recorder::read`].
    #[track_caller]
    pub fn read_all<T: Element>(&mut self, buffers: &[&Buffer<T>]) -> Result<Vec<Vec<T>>, Error> {
        let views: Vec<View> = buffers.iter().map(|buffer| buffer.whole()).collect();
        self.read_views(&views, |bytes| bytemuck::pod_collect_to_vec(bytes))
    }

    /// Reads two buffers back, and waits once; as [`Recorder::read`].
    ///
    /// # Errors
    /// As [`Recorder::read`].
    ///
    /// # Panics
    /// As [`Recorder::read`].
    #[track_caller]
    pub fn read_both<T: Element, U: Element>(
        &mut self,
        first: &Buffer<T>,
        second: &Buffer<U>,
    ) -> Result<(Vec<T>, Vec<U>), Error> {
        let bytes = self.read_views(&[first.whole(), second.whole()], <[u8]>::to_vec)?;
        Ok((bytemuck::pod_collect_to_vec(&bytes[0]), bytemuck::pod_collect_to_vec(&bytes[1])))
    }

    /// The bytes of each view, as `convert` gives them.
    #[track_caller]
    fn read_views<T>(&mut self, views: &[View<'_>], convert: impl Fn(&[u8]) -> T) -> Result<Vec<T>, Error> {
        assert!(!self.borrowed, "read: this recorder's commands are submitted by the owner of its encoder");
        self.gpu.fault()?;
        self.fault()?;
        let bytes: u64 = views.iter().map(|view| view.bytes).sum();
        if bytes == 0 {
            return Ok(views.iter().map(|_| convert(&[])).collect());
        }
        self.end_pass();
        let staging = self.staging(bytes)?;
        let mut encoder = self.take_encoder();
        let mut at = 0;
        for view in views.iter().filter(|view| view.bytes > 0) {
            encoder.copy_buffer_to_buffer(view.slot.raw(), view.at, &staging, at, view.bytes);
            at += view.bytes;
        }
        self.encoder = Some(encoder);
        self.submit();
        self.stats.reads += 1;
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, ..bytes, move |result| {
            // The receiver is gone only when waiting has failed, which is reported below.
            let _ = sender.send(result);
        });
        let waited = self.gpu.device().poll(wgpu::PollType::wait_indefinitely());
        self.gpu.fault()?;
        waited.map_err(|error| self.gpu.failed(error))?;
        // Another thread may be the one that found the work done; its call of the closure is on its way.
        match receiver.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.gpu.failed(error)),
            Err(_) => return Err(self.gpu.failed("the device did not finish")),
        }
        let data = {
            let mapped = staging.get_mapped_range(..bytes).map_err(|error| self.gpu.failed(error))?;
            let mut rest = &mapped[..];
            let parts = views.iter().map(|view| {
                let (part, after) = rest.split_at(view.bytes as usize);
                rest = after;
                convert(part)
            });
            parts.collect()
        };
        staging.unmap();
        Ok(data)
    }

    /// Hands everything recorded to the device. Without effect when nothing is, or when the encoder is the caller's.
    pub fn submit(&mut self) {
        if self.borrowed {
            return;
        }
        self.end_pass();
        let Some(encoder) = self.encoder.take() else { return };
        self.write_params();
        self.gpu.queue().submit([encoder.finish()]);
        self.pool.submitted();
        self.guests.clear();
        self.pending_seconds = 0.0;
        self.stats.submits += 1;
    }

    /// Hands memory kept for reuse back to the system.
    pub fn trim(&mut self) {
        self.submit();
        self.staging = None;
        self.make_room();
    }

    /// From now on memory kept for reuse is handed back rather than that all buffers take more than `bytes` together. Buffers
    /// in use may take more.
    pub fn limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }

    fn take<T: Element>(&self, len: usize, for_host: bool) -> Result<Buffer<T>, Error> {
        self.pool.take(&self.gpu, len, for_host, self.limit, || self.make_room())
    }

    /// Hands back what is free and not in use by commands that are still to run.
    fn make_room(&self) {
        // Bind groups keep their buffers alive.
        self.bind_groups.borrow_mut().clear();
        self.pool.trim();
        // What this fails with shows at the next read.
        let _ = self.gpu.device().poll(wgpu::PollType::wait_indefinitely());
    }

    /// The first kernel that could not be recorded: what would follow from it is worth nothing, and is not read.
    ///
    /// # Errors
    /// [`Error::Binding`].
    pub fn fault(&self) -> Result<(), Error> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Something to bind where an operand is absent.
    pub(crate) fn none(&self) -> Buffer {
        self.none.clone()
    }

    /// Elements that one binding shows.
    pub(crate) fn binding(&self) -> usize {
        usize::try_from(self.gpu.max_binding_bytes() / 4).unwrap_or(usize::MAX)
    }

    /// The parts of `rows` rows of `columns` elements that bindings can show, one after another: all of them at once where
    /// one binding does.
    pub(crate) fn parts(&self, rows: usize, columns: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        // Whole words of bfloat16 pairs are aligned too.
        const STEP: usize = 2 * View::ALIGNMENT;
        let most = self.binding() / columns.max(1);
        // A part that is still too large is refused where it is recorded.
        let part = if rows <= most { rows.max(1) } else { (most / STEP).max(1) * STEP };
        (0..rows.max(1)).step_by(part).map(move |first| first..rows.min(first + part))
    }

    /// Adds one kernel to the open pass.
    pub(crate) fn record(&mut self, dispatch: &Dispatch<'_>) {
        let Dispatch { shader, entry, buffers, params, groups, work } = *dispatch;
        assert_eq!(buffers.len(), shader.bindings.len(), "{entry}: buffers for another layout");
        assert!(4 * (params.len() as u64 + 1) <= PARAMS_BYTES, "{entry}: too many parameters");
        if groups == 0 {
            return;
        }
        let limit = self.gpu.max_binding_bytes();
        if let Some(view) = buffers.iter().find(|view| view.bytes > limit) {
            self.fault.get_or_insert(Error::Binding { kernel: entry, bytes: view.bytes, limit });
            return;
        }
        let width = groups.min(MAX_GROUPS);
        let height = groups.div_ceil(width);
        assert!(height <= MAX_GROUPS, "{entry}: {groups} workgroups are more than any device takes");

        let pipeline = self.pipeline(shader, entry);
        let group = self.bind_group(&pipeline, buffers);
        let offset = self.stage(width as u32, params);
        let mut pass = self.take_pass();
        if !self.last_pipeline.as_ref().is_some_and(|last| Arc::ptr_eq(last, &pipeline)) {
            pass.set_pipeline(&pipeline.pipeline);
            self.last_pipeline = Some(pipeline);
        }
        pass.set_bind_group(0, &group, &[]);
        let page = self.page.as_ref().expect("stage leaves a page");
        pass.set_bind_group(1, &page.group, &[offset]);
        pass.dispatch_workgroups(width as u32, height as u32, 1);
        self.pass = Some(pass);

        self.stats.dispatches += 1;
        self.pending_seconds += work * self.seconds_per_work;
        if self.pending_seconds >= self.submission_seconds {
            self.submit();
        }
    }

    fn pipeline(&mut self, shader: &'static Shader, entry: &'static str) -> Arc<Pipeline> {
        let gpu = &self.gpu;
        let key = (std::ptr::from_ref(shader) as usize, entry);
        self.pipelines.entry(key).or_insert_with(|| gpu.pipelines().get(shader, entry)).clone()
    }

    fn bind_group(&mut self, pipeline: &Pipeline, buffers: &[View<'_>]) -> wgpu::BindGroup {
        for View { slot, .. } in buffers {
            if !slot.is_of(&self.pool) && !self.guests.iter().any(|guest| Arc::ptr_eq(guest, slot)) {
                self.guests.push((*slot).clone());
            }
        }
        // A cached group would keep the caller's own buffers alive.
        let cached = !buffers.iter().any(|view| view.slot.is_foreign());
        let limit = self.gpu.max_binding_bytes();
        // All of a buffer where one binding shows it, so that all that is ever in its memory shares one group.
        let range = |view: &View<'_>| match view.slot.raw().size() {
            size if size <= limit && view.at == 0 => (0, size),
            _ => (view.at, view.bytes.max(4)),
        };
        let name = |view: &View<'_>| [view.slot.id, range(view).0, range(view).1];
        let key = (pipeline.layout_key, buffers.iter().map(name).collect::<Vec<_>>());
        if let Some(group) = self.bind_groups.borrow().get(&key) {
            return group.clone();
        }
        let entries: Vec<_> = buffers
            .iter()
            .zip(0..)
            .map(|(view, binding)| {
                let (offset, bytes) = range(view);
                let (buffer, size) = (view.slot.raw(), wgpu::BufferSize::new(bytes));
                let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
                wgpu::BindGroupEntry { binding, resource }
            })
            .collect();
        let group = self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.buffers,
            entries: &entries,
        });
        if cached {
            let mut bind_groups = self.bind_groups.borrow_mut();
            if bind_groups.len() >= MAX_BIND_GROUPS {
                bind_groups.clear();
            }
            bind_groups.insert(key, group.clone());
        }
        group
    }

    /// Appends parameters to the open page; returns their offset in it.
    fn stage(&mut self, width: u32, params: &[u32]) -> u32 {
        if self.staged.len() as u64 == PAGE_SLOTS * self.slot_bytes {
            let page = self.page.take().expect("a full page was open");
            self.full_pages.push((page, std::mem::take(&mut self.staged)));
        }
        if self.page.is_none() {
            self.page = Some(self.free_pages.pop().unwrap_or_else(|| self.new_page()));
        }
        let offset = self.staged.len();
        self.staged.extend_from_slice(bytemuck::bytes_of(&width));
        self.staged.extend_from_slice(bytemuck::cast_slice(params));
        self.staged.resize(offset + self.slot_bytes as usize, 0);
        offset as u32
    }

    fn new_page(&self) -> Page {
        let device = self.gpu.device();
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: PAGE_SLOTS * self.slot_bytes,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let window = wgpu::BufferBinding { buffer: &buffer, offset: 0, size: wgpu::BufferSize::new(PARAMS_BYTES) };
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("params"),
            layout: &self.gpu.pipelines().params,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(window) }],
        });
        Page { buffer, group }
    }

    /// Writes the parameters of everything recorded. The queue orders the writes before the submission that follows, so
    /// the pages can be filled again for the one after it.
    fn write_params(&mut self) {
        let staged = std::mem::take(&mut self.staged);
        let open = self.page.take().map(|page| (page, staged));
        for (page, bytes) in self.full_pages.drain(..).chain(open) {
            self.gpu.queue().write_buffer(&page.buffer, 0, &bytes);
            self.free_pages.push(page);
        }
    }

    fn take_encoder(&mut self) -> wgpu::CommandEncoder {
        let device = self.gpu.device();
        self.encoder.take().unwrap_or_else(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()))
    }

    fn take_pass(&mut self) -> wgpu::ComputePass<'static> {
        if let Some(pass) = self.pass.take() {
            return pass;
        }
        let mut encoder = self.take_encoder();
        let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
        self.encoder = Some(encoder);
        self.last_pipeline = None;
        pass
    }

    fn end_pass(&mut self) {
        // Dropping a pass ends it.
        self.pass = None;
        self.last_pipeline = None;
    }

    /// Host-visible memory of at least `bytes`, kept from read to read.
    fn staging(&mut self, bytes: u64) -> Result<wgpu::Buffer, Error> {
        if let Some(staging) = self.staging.as_ref().filter(|staging| staging.size() >= bytes) {
            return Ok(staging.clone());
        }
        let scope = self.gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let staging = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: bytes.next_power_of_two().min(self.gpu.limits().max_buffer_size),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return Err(Error::OutOfMemory { bytes, held: self.pool.held() });
        }
        self.staging = Some(staging.clone());
        Ok(staging)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // A recorder that submits by itself does not lose what was recorded.
        if !std::thread::panicking() {
            self.submit();
        }
    }
}

impl Store {
    /// Bytes read of the destination for every byte written.
    pub(crate) fn reads(self) -> f64 {
        f64::from(self.flag())
    }
}
