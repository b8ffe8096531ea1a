//! Plain text as windows of tokens.

use super::{Limits, RowReport};
use crate::args::TruncationMode;
use crate::error::{Error, Result};

/// A text cut into windows of `max_length` tokens.
///
/// Where the tokenizer puts BOS in front of a prompt, every window gets it too and the windows follow one another. Without
/// it the first token of a window has nothing before it to be predicted from, so windows overlap by one token.
pub(super) struct Windows<'a> {
    /// What stands in front of every window.
    pub(super) prefix: Vec<u32>,
    /// The tokens of the text.
    pub(super) texts: Vec<&'a [u32]>,
    /// First windows to take.
    max_samples: usize,
    /// The flag that says so.
    samples_flag: &'static str,
}

impl<'a> Windows<'a> {
    pub(super) fn cut(ids: &'a [u32], prefix: Vec<u32>, limits: Limits) -> Result<Self> {
        let overlap = usize::from(prefix.is_empty());
        let Some(size) = limits.max_length.checked_sub(prefix.len()).filter(|&size| size > overlap) else {
            return Err(Error::request(format!(
                "--max_length {} leaves no room for text after the {} token(s) that the tokenizer puts in front",
                limits.max_length,
                prefix.len()
            )));
        };
        // A last window of one token that only repeats the end of the one before predicts nothing and is none.
        let starts = (0..ids.len().saturating_sub(overlap)).step_by(size - overlap);
        let texts = starts.map(|start| &ids[start..(start + size).min(ids.len())]).collect();
        let Limits { max_samples, samples_flag, .. } = limits;
        Ok(Self { prefix, texts, max_samples, samples_flag })
    }

    pub(super) fn used(&self) -> &[&'a [u32]] {
        &self.texts[..self.texts.len().min(self.max_samples)]
    }

    pub(super) fn report(&self) -> RowReport {
        let mut report = RowReport::new("windows", self.texts.len());
        report.leave_out_several(format!("beyond {}", self.samples_flag), self.texts.len() - self.used().len());
        report
    }
}

/// Tokens of the windows that `ids` are cut into, what stands in front of each among them.
///
/// # Errors
/// No room for text.
pub fn window_lengths(ids: &[u32], prefix: Vec<u32>, max_length: usize) -> Result<Vec<usize>> {
    let (front, truncation_mode) = (prefix.len(), TruncationMode::Skip);
    let limits = Limits {
        max_length,
        max_prompt_length: max_length,
        max_samples: usize::MAX,
        samples_flag: "--max_samples",
        truncation_mode,
    };
    Ok(Windows::cut(ids, prefix, limits)?.texts.iter().map(|window| front + window.len()).collect())
}
