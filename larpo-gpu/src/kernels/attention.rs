//! Attention over packed lists: a prompt that is there once and seen by all of its responses.

use super::norm::Heads;
use super::{bits, check, slot, word};
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Error, Recorder};

/// The forward kernel.
pub static SHADER: Shader = Shader {
    name: "attention",
    wgsl: concat!(include_str!("math.wgsl"), include_str!("attention.wgsl")),
    entries: &["attention"],
    bindings: &[Access::Read, Access::Read, Access::Write, Access::Write],
};

/// The gradient kernels.
pub static GRAD: Shader = Shader {
    name: "attention_grad",
    wgsl: include_str!("attention_grad.wgsl"),
    entries: &["attention_delta", "attention_grad_q", "attention_grad_kv"],
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write, Access::Write],
};

/// Largest number of channels of a head.
pub const MAX_HEAD_DIM: usize = 256;

/// Rows of a block of queries or keys.
const BLOCK: usize = 32;

/// A run of rows that see each other causally, after a shared prefix that all of them see.
///
/// The prompt of a packed list is a segment without a prefix; each response is a segment whose prefix is the prompt. The
/// responses of one prompt stand one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row of the run.
    pub start: u32,
    /// Rows in the run.
    pub len: u32,
    /// First row of the shared prefix.
    pub prefix_start: u32,
    /// Rows in the prefix; 0 where there is none.
    pub prefix_len: u32,
}

/// Who sees whom in a packed batch, ready for [`attention`].
#[derive(Clone, Debug)]
pub struct Packing {
    spans: Buffer<u32>,
    rows: usize,
    query_blocks: usize,
    key_blocks: usize,
    /// Pairs of a row and one that it sees, windows apart: the work of attention.
    pairs: f64,
}

impl Packing {
    /// Uploads the visibility of `rows` rows in `segments`, which together hold every row once.
    ///
    /// # Errors
    /// [`Error::Index`] for segments that leave a row out, hold one twice, reach beyond the last, or have a prefix that is not
    /// part of one segment without a prefix, or whose followers do not stand together; [`Error::TooLarge`],
    /// [`Error::OutOfMemory`].
    pub fn new(recorder: &Recorder, rows: usize, segments: &[Segment]) -> Result<Self, Error> {
        let followers = followers(rows, segments)?;
        let mut spans = vec![0u32; rows];
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        let mut pairs = 0.0;
        for s in segments {
            let (start, end) = (s.start, s.start + s.len);
            pairs += f64::from(s.len) * (f64::from(s.prefix_len) + 0.5 * (f64::from(s.len) + 1.0));
            for row in start..end {
                spans[row as usize] = s.prefix_len + row - start;
            }
            for first in (start..end).step_by(BLOCK) {
                let prefix_end = s.prefix_start + s.prefix_len;
                queries.push([first, end.min(first + BLOCK as u32), s.prefix_start, prefix_end, start]);
            }
            // Keys with other followers are in other blocks.
            let mut first = start;
            while first < end {
                let seen_by = followers[first as usize];
                let same =
                    (first..end).take(BLOCK).take_while(|&row| followers[row as usize] == seen_by).count() as u32;
                keys.push([first, first + same, end, seen_by.0, seen_by.1]);
                first += same;
            }
        }
        spans.extend(queries.iter().chain(&keys).flatten());
        Ok(Self { spans: recorder.upload(&spans)?, rows, query_blocks: queries.len(), key_blocks: keys.len(), pairs })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// For every row, the rows `(first, end)` of other segments that have it in their prefix.
fn followers(rows: usize, segments: &[Segment]) -> Result<Vec<(u32, u32)>, Error> {
    let error = |s: &Segment, problem: &str| Err(Error::Index(format!("attention: {s:?} {problem}")));
    let total = word(rows);
    // The number of a row's segment, from 1.
    let mut owner = vec![0u32; rows];
    for (s, number) in segments.iter().zip(1..) {
        if s.start.checked_add(s.len).is_none_or(|end| end > total) {
            return error(s, "reaches beyond the last row");
        }
        for owner in &mut owner[s.start as usize..(s.start + s.len) as usize] {
            if std::mem::replace(owner, number) != 0 {
                return error(s, "holds a row of another segment");
            }
        }
    }
    if let Some(row) = owner.iter().position(|&owner| owner == 0) {
        return Err(Error::Index(format!("attention: row {row} is in no segment")));
    }
    let mut followers = vec![(0, 0); rows];
    for s in segments.iter().filter(|s| s.prefix_len > 0 && s.len > 0) {
        let Some(end) = s.prefix_start.checked_add(s.prefix_len).filter(|&end| end <= total) else {
            return error(s, "has a prefix beyond the last row");
        };
        let prefix = s.prefix_start as usize..end as usize;
        let of = &segments[owner[prefix.start] as usize - 1];
        let whole = of.start == s.prefix_start && end <= of.start + of.len && of.prefix_len == 0;
        if !whole || of.start == s.start {
            return error(s, "has a prefix that is not the start of one segment without a prefix");
        }
        for seen_by in &mut followers[prefix] {
            if seen_by.1 == 0 {
                *seen_by = (s.start, s.start);
            }
            if seen_by.1 != s.start {
                return error(s, "does not stand next to the other segments of its prefix");
            }
            seen_by.1 = s.start + s.len;
        }
    }
    Ok(followers)
}

/// Head layout and scores of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Head layout of `qkv`; at most [`MAX_HEAD_DIM`] channels a head.
    pub heads: Heads,
    /// Factor on the scores `q·k`, usually `head_dim^-0.5`.
    pub scale: f64,
    /// Scores `s` become `c·tanh(s / c)` (Gemma Team 2024, section 2).
    pub softcap: Option<f64>,
    /// A row sees its last `window` keys, itself included (Beltagy et al. 2020).
    pub window: Option<usize>,
}

impl Attention {
    #[track_caller]
    fn check(&self, packing: &Packing, qkv: &Buffer, lse: &Buffer) {
        let h = self.heads;
        let divides = h.kv_heads > 0 && h.heads.is_multiple_of(h.kv_heads);
        assert!(divides && (1..=MAX_HEAD_DIM).contains(&h.head_dim), "attention: {h:?}");
        assert!(self.window != Some(0), "attention: a window of 0");
        check("attention", "qkv", qkv, packing.rows * h.qkv_width());
        check("attention", "lse", lse, packing.rows * h.heads);
    }

    /// The parameters of a kernel over `blocks` blocks from word `at` of the spans.
    fn params(&self, packing: &Packing, blocks: usize, at: usize) -> [u32; 10] {
        let h = self.heads;
        [
            word(blocks),
            word(at),
            word(packing.rows),
            word(h.heads),
            word(h.kv_heads),
            word(h.head_dim),
            word(h.qkv_width()),
            self.window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            bits(self.scale),
            bits(self.softcap.unwrap_or(0.0)),
        ]
    }

    fn work(&self, packing: &Packing) -> f64 {
        4.0 * packing.pairs * self.heads.out_width() as f64 + BYTE * 16.0 * packing.rows as f64
    }
}

/// Causal attention inside segments with shared prefixes: `qkv (n, width) -> o (n, heads·head_dim)`, and the log-sum-exp of the
/// scores, `lse (n, heads)`.
#[track_caller]
pub fn attention(
    recorder: &mut Recorder,
    settings: &Attention,
    packing: &Packing,
    qkv: &Buffer,
    o: &Buffer,
    lse: &Buffer,
) {
    settings.check(packing, qkv, lse);
    check("attention", "o", o, packing.rows * settings.heads.out_width());
    recorder.record(&Dispatch {
        shader: &SHADER,
        entry: "attention",
        buffers: &[slot(&packing.spans), slot(qkv), slot(o), slot(lse)],
        params: &settings.params(packing, packing.query_blocks, packing.rows),
        groups: (packing.query_blocks * settings.heads.heads) as u64,
        work: settings.work(packing),
    });
}

/// `d_o (n, heads·head_dim), qkv, o, lse -> d_qkv (n, width)`, all of it overwritten.
///
/// # Errors
/// [`Error::OutOfMemory`].
#[allow(clippy::too_many_arguments)]
#[track_caller]
pub fn attention_grad(
    recorder: &mut Recorder,
    settings: &Attention,
    packing: &Packing,
    d_o: &Buffer,
    qkv: &Buffer,
    o: &Buffer,
    lse: &Buffer,
    d_qkv: &Buffer,
) -> Result<(), Error> {
    settings.check(packing, qkv, lse);
    let h = settings.heads;
    for (name, buffer) in [("o", o), ("d_o", d_o)] {
        check("attention_grad", name, buffer, packing.rows * h.out_width());
    }
    check("attention_grad", "d_qkv", d_qkv, packing.rows * h.qkv_width());
    let delta: Buffer = recorder.alloc(packing.rows * h.heads)?;
    let mut run = |entry, blocks: usize, at: usize, groups: usize, work: f64| {
        recorder.record(&Dispatch {
            shader: &GRAD,
            entry,
            buffers: &[slot(&packing.spans), slot(qkv), slot(o), slot(d_o), slot(lse), slot(&delta), slot(d_qkv)],
            params: &settings.params(packing, blocks, at),
            groups: groups as u64,
            work,
        });
    };
    let (queries, keys) = (packing.query_blocks, packing.key_blocks);
    let work = settings.work(packing);
    run("attention_delta", 0, 0, (packing.rows * h.heads).div_ceil(256), BYTE * 8.0 * o.len() as f64);
    run("attention_grad_q", queries, packing.rows, queries * h.heads, 1.5 * work);
    run("attention_grad_kv", keys, packing.rows + 5 * queries, keys * h.kv_heads, 2.0 * work);
    Ok(())
}
