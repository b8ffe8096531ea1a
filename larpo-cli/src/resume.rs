//! Where an interrupted run goes on: which checkpoint, and what is offered where that one is damaged.

use crate::checkpoint::{self, PREFIX};
use crate::cmd::losses;
use crate::error::{Error, Result};
use larpo_data::checksums;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What an iteration's folder is called, before its number.
pub const ITERATION: &str = "iteration-";

/// What tells that an iteration came to its end: written last.
pub const MANIFEST: &str = "manifest.json";

/// The log of an iteration's training, and that of a run of `sft`, `train` or `reward`.
pub const LOG: &str = "metrics.jsonl";

/// The value of `--resume_from_checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeFrom {
    /// The newest whole checkpoint, or the beginning where there is none.
    Latest,
    /// This one.
    Path(PathBuf),
}

impl FromStr for ResumeFrom {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(match text {
            "latest" => Self::Latest,
            path => Self::Path(path.into()),
        })
    }
}

/// A checkpoint to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// Its folder.
    pub checkpoint: PathBuf,
    /// Whether training starts anew, with a warning, where the checkpoint was made from other data.
    pub or_anew: bool,
}

impl Resume {
    /// Updates that were made when the checkpoint was written.
    pub fn updates(&self) -> u64 {
        let name = self.checkpoint.file_name().unwrap_or_default();
        number(&name.to_string_lossy(), PREFIX).unwrap_or(0)
    }
}

/// The checkpoint of `sft` or `train` to go on from; none: from the beginning.
///
/// # Errors
/// A named checkpoint that is damaged, with the one before it that is not; one that does not belong to the run.
pub fn checkpoint(folder: &Path, from: &ResumeFrom) -> Result<Option<Resume>> {
    let path = match from {
        ResumeFrom::Latest => match checkpoint::newest(folder, u64::MAX, pass_over)? {
            Some(path) => path,
            None => return Ok(None),
        },
        ResumeFrom::Path(path) => {
            let step = inside(folder, path).filter(|parts| parts.len() == 1).and_then(|p| number(&p[0], PREFIX));
            let Some(step) = step else {
                return Err(foreign(folder, path, &format!("{PREFIX}<step>")));
            };
            if let Err(error) = checksums::verify(path) {
                return Err(offer(error.into(), checkpoint::newest(folder, step, |_| ())?));
            }
            path.clone()
        }
    };
    Ok(Some(Resume { checkpoint: path, or_anew: false }))
}

/// Where `align` goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlignPoint {
    /// Iterations that are finished.
    pub done: u32,
    /// Checkpoint in the iteration after them.
    pub resume: Option<Resume>,
}

impl AlignPoint {
    /// The last whole checkpoint or iteration in the run's folder; none at the beginning.
    pub fn last(&self, folder: &Path) -> Option<PathBuf> {
        let iteration = || (self.done > 0).then(|| folder.join(format!("{ITERATION}{}", self.done)));
        self.resume.as_ref().map(|resume| resume.checkpoint.clone()).or_else(iteration)
    }
}

/// The place in a run of `align` to go on from.
///
/// # Errors
/// A named place that is damaged, with the one before it that is not; one that does not belong to the run, or has a
/// finished iteration behind it.
pub fn align_point(folder: &Path, from: &ResumeFrom) -> Result<AlignPoint> {
    let iteration = |n: u32| folder.join(format!("{ITERATION}{n}"));
    match from {
        ResumeFrom::Latest => {
            let done = newest_iteration(folder, u32::MAX, pass_over)?;
            let next = checkpoint::newest(&iteration(done + 1), u64::MAX, pass_over)?;
            Ok(AlignPoint { done, resume: next.map(|checkpoint| Resume { checkpoint, or_anew: true }) })
        }
        ResumeFrom::Path(path) => {
            let parts = inside(folder, path).unwrap_or_default();
            let n = parts.first().and_then(|name| number(name, ITERATION)).and_then(|n| u32::try_from(n).ok());
            let point = match (n, parts.get(1).map(String::as_str)) {
                (Some(n), None | Some("model")) => AlignPoint { done: n, resume: None },
                (Some(n @ 1..), Some(name)) if number(name, PREFIX).is_some() => {
                    let step = number(name, PREFIX).unwrap_or(0);
                    if let Err(error) = checksums::verify(path) {
                        let before = match checkpoint::newest(&iteration(n), step, |_| ())? {
                            Some(path) => Some(path),
                            None => Some(newest_iteration(folder, n, |_| ())?).filter(|&n| n > 0).map(iteration),
                        };
                        return Err(offer(error.into(), before));
                    }
                    AlignPoint { done: n - 1, resume: Some(Resume { checkpoint: path.clone(), or_anew: false }) }
                }
                _ => {
                    let names = format!("{ITERATION}<n> or {ITERATION}<n>/{PREFIX}<step>");
                    return Err(foreign(folder, path, &names));
                }
            };
            if point.done > 0
                && let Err(error) = whole_iteration(&iteration(point.done))
            {
                let before = newest_iteration(folder, point.done, |_| ())?;
                return Err(offer(error, Some(before).filter(|&n| n > 0).map(iteration)));
            }
            match checkpoint::numbered(folder, ITERATION)?
                .into_iter()
                .rev()
                .find(|(n, path)| *n > u64::from(point.done) && whole_iteration(path).is_ok())
            {
                None => Ok(point),
                Some((_, later)) => Err(Error::request(format!(
                    "{} is finished and comes after {}; move it and what follows it away to make them again",
                    later.display(),
                    path.display()
                ))),
            }
        }
    }
}

/// The highest finished and whole iteration below `below`, 0 for none; damaged ones are given to `damaged`.
fn newest_iteration(folder: &Path, below: u32, mut damaged: impl FnMut(&Error)) -> Result<u32> {
    for (n, path) in checkpoint::numbered(folder, ITERATION)? {
        let Some(n) = u32::try_from(n).ok().filter(|n| *n < below && finished(&path)) else { continue };
        match whole_iteration(&path) {
            Ok(()) => return Ok(n),
            Err(error) => damaged(&error),
        }
    }
    Ok(0)
}

/// Whether an iteration came to its end.
pub fn finished(iteration: &Path) -> bool {
    iteration.join(MANIFEST).is_file()
}

/// Whether it came to its end, and its manifest and its model are what was written then.
fn whole_iteration(iteration: &Path) -> Result<()> {
    match finished(iteration) {
        true => match losses::model(iteration) {
            None => {
                checksums::verify_file(iteration, MANIFEST)?;
                Ok(checksums::verify(iteration.join("model"))?)
            }
            Some(lost) => Err(Error::request(format!("{}: {lost}", iteration.display()))),
        },
        false => Err(Error::request(format!("{} is not finished", iteration.display()))),
    }
}

fn pass_over(error: &Error) {
    warn!("{error}. It is passed over; the run goes on from what is whole before it, or begins that training again");
}

/// Adds to `error` what can be gone on from instead.
fn offer(error: Error, before: Option<PathBuf>) -> Error {
    Error::request(match before {
        Some(path) => format!("{error}. The newest whole one before it: --resume_from_checkpoint {}", path.display()),
        None => format!("{error}. None before it is whole; --resume_from_checkpoint latest goes on from what there is"),
    })
}

fn foreign(folder: &Path, path: &Path, names: &str) -> Error {
    Error::request(format!(
        "--resume_from_checkpoint {}: no checkpoint of the run in {}; give `latest`, or {}",
        path.display(),
        folder.display(),
        folder.join(names).display()
    ))
}

/// The names that lead from `folder` to `path`, where it lies inside.
fn inside(folder: &Path, path: &Path) -> Option<Vec<String>> {
    let (folder, path) = (folder.canonicalize().ok()?, path.canonicalize().ok()?);
    let rest = path.strip_prefix(folder).ok()?;
    Some(rest.iter().map(|part| part.to_string_lossy().into_owned()).collect())
}

fn number(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.parse().ok()
}
