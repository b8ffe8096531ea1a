//! What the backend hands out: arrays, indices and lists on the device.

use larpo_core::backend::Segment;
use larpo_gpu::kernels::attention::{Packing, Segment as GpuSegment};
use larpo_gpu::kernels::gather::SortedIds;
use larpo_gpu::kernels::lists::RankedLists;
use larpo_gpu::kernels::token_logp::Targets;
use larpo_gpu::{Bf16, Error, Recorder, Weight};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A flat array of floats on the device; of a frozen weight perhaps of bfloat16.
#[derive(Debug)]
pub struct Buffer {
    data: Data,
    len: usize,
}

#[derive(Debug)]
enum Data {
    F32(larpo_gpu::Buffer),
    Bf16(Bf16),
    /// Of a device that has failed, which runs no kernels any more.
    Nothing,
}

impl Buffer {
    pub(super) fn single(x: Option<larpo_gpu::Buffer>, len: usize) -> Self {
        Self { data: x.map_or(Data::Nothing, Data::F32), len }
    }

    pub(super) fn half(x: Option<Bf16>, len: usize) -> Self {
        Self { data: x.map_or(Data::Nothing, Data::Bf16), len }
    }

    /// Number of floats.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no floats.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The floats, which must be of single precision.
    #[track_caller]
    pub(super) fn f32(&self) -> &larpo_gpu::Buffer {
        match self.weight() {
            Weight::F32(x) => x,
            Weight::Bf16(_) => {
                panic!("weights in bfloat16 are the table of an embedding or the weight of a product")
            }
        }
    }

    /// The floats in either precision.
    #[track_caller]
    pub(super) fn weight(&self) -> Weight<'_> {
        match &self.data {
            Data::F32(x) => Weight::F32(x),
            Data::Bf16(x) => Weight::Bf16(x),
            Data::Nothing => panic!("an array of a device that failed, used on another one"),
        }
    }
}

/// Whole numbers for kernels, which want them in several forms: each is made when it is first asked for, and kept, because
/// the same segments and targets serve every layer and the way back.
#[derive(Debug)]
pub struct Index {
    numbers: Vec<u32>,
    /// Tells it apart from every other one.
    id: u64,
    forms: Mutex<Forms>,
}

#[derive(Debug, Default)]
struct Forms {
    plain: Option<larpo_gpu::Buffer<u32>>,
    sorted: Option<SortedIds>,
    packing: Option<Packing>,
    /// With the rows that predict these ids: which index, of how many rows.
    targets: Option<(u64, usize, Targets)>,
}

/// What is kept, or what `make` makes.
fn kept<T: Clone>(form: &mut Option<T>, make: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    if form.is_none() {
        *form = Some(make()?);
    }
    Ok(form.clone().expect("made above"))
}

impl Index {
    pub(super) fn new(numbers: &[u32]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { numbers: numbers.to_vec(), id: NEXT.fetch_add(1, Ordering::Relaxed), forms: Mutex::default() }
    }

    fn forms(&self) -> MutexGuard<'_, Forms> {
        // Every form is whole or not there, so a panic elsewhere does not spoil it.
        self.forms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers as they are.
    pub(super) fn plain(&self, recorder: &Recorder) -> Result<larpo_gpu::Buffer<u32>, Error> {
        kept(&mut self.forms().plain, || recorder.upload(&self.numbers))
    }

    /// As ids whose rows are added up.
    pub(super) fn sorted(&self, recorder: &Recorder) -> Result<SortedIds, Error> {
        kept(&mut self.forms().sorted, || SortedIds::new(recorder, &self.numbers))
    }

    /// As [`Segment::flatten`]ed segments of `rows` rows.
    pub(super) fn packing(&self, recorder: &Recorder, rows: usize) -> Result<Packing, Error> {
        let make = || {
            let segment = |s: Segment| GpuSegment {
                start: s.start,
                len: s.len,
                prefix_start: s.prefix_start,
                prefix_len: s.prefix_len,
            };
            let segments: Vec<GpuSegment> = Segment::parse(&self.numbers).map(segment).collect();
            Packing::new(recorder, rows, &segments)
        };
        let packing = kept(&mut self.forms().packing, make)?;
        assert_eq!(packing.rows(), rows, "attention: segments of another number of rows");
        Ok(packing)
    }

    /// As the ids of targets that `rows_of` predict, each below `rows`.
    pub(super) fn targets(&self, recorder: &Recorder, rows_of: &Self, rows: usize) -> Result<Targets, Error> {
        let mut forms = self.forms();
        if let Some((of, among, targets)) = &forms.targets
            && (*of, *among) == (rows_of.id, rows)
        {
            return Ok(targets.clone());
        }
        let targets = Targets::new(recorder, rows, &rows_of.numbers, &self.numbers)?;
        forms.targets = Some((rows_of.id, rows, targets.clone()));
        Ok(targets)
    }
}

/// Ranked lists on the device.
#[derive(Debug)]
pub struct Lists {
    /// None of a device that has failed.
    pub(super) inner: Option<RankedLists>,
    pub(super) beta: f64,
    pub(super) scale: f64,
}
