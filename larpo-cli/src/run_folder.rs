//! The output folder of a run that can be interrupted: begun, gone on with, finished.

use crate::args::Settings;
use crate::checkpoint;
use crate::cmd::losses;
use crate::error::{Error, Result};
use crate::output::{self, OutputDir};
use crate::resume::{ITERATION, ResumeFrom};
use crate::run_record::{self, Goal, RunRecord};
use larpo_data::files;
use serde_json::Value;
use std::path::Path;

/// What a run is and where it goes.
#[derive(Debug, Clone)]
pub struct RunRequest<'a> {
    /// The verb.
    pub verb: &'a str,
    /// Its flags.
    pub settings: &'a Settings,
    /// `--output_dir`.
    pub folder: &'a Path,
    /// `--overwrite_output_dir`.
    pub overwrite: bool,
    /// Where to go on from, if the run is to go on.
    pub from: Option<&'a ResumeFrom>,
    /// What it reads, by flag.
    pub inputs: &'a [(&'a str, &'a Path)],
    /// What computes ([`larpo_core::backend::Backend::name`]).
    pub device: String,
}

/// The folder, locked while this value lives.
#[derive(Debug)]
pub struct RunFolder<'a> {
    output: OutputDir<'a>,
    folder: &'a Path,
    record: RunRecord,
    /// What was recorded when the run began, where this goes on with it.
    earlier: Option<RunRecord>,
}

impl<'a> RunFolder<'a> {
    /// Locks the folder and looks whether the run may begin or go on there; nothing that is in it is touched yet.
    ///
    /// # Errors
    /// Another run at work in it; an earlier run that is neither gone on with nor replaced; flags or inputs that differ from
    /// those that the run began with; a folder that cannot be written to.
    pub fn open(request: &RunRequest<'a>) -> Result<Self> {
        let &RunRequest { folder, settings, from, .. } = request;
        let paths: Vec<&Path> = request.inputs.iter().map(|(_, path)| *path).collect();
        let output = match from {
            None => OutputDir::check(folder, request.overwrite, &paths)?,
            Some(from) => {
                if RunRecord::read(folder)?.is_none() {
                    nothing_yet(folder, from)?;
                }
                OutputDir::go_on(folder)?
            }
        };
        let mut record = RunRecord::new(request.verb, settings, request.inputs)?;
        record.set_device(request.device.clone());
        let earlier = match from {
            None => None,
            Some(from) => {
                let found = RunRecord::find(folder)?;
                match &found {
                    Some((earlier, note)) => {
                        if let Some(note) = note {
                            warn!("{note}");
                        }
                        earlier.check(&record, folder)?;
                        if let Some(before) = earlier.device().filter(|before| *before != request.device) {
                            say!(
                                "the run was on {before}; here it goes on, but rounds in another way: {}",
                                request.device
                            );
                        }
                    }
                    // Looked at again now that the folder is locked.
                    None => {
                        nothing_yet(folder, from)?;
                        say!("nothing to go on from in {} yet: the run begins", folder.display());
                    }
                }
                found.map(|(earlier, _)| earlier)
            }
        };
        Ok(Self { output, folder, record, earlier })
    }

    /// Where to go on from; none: from the beginning.
    pub fn from<'r>(&self, request: &RunRequest<'r>) -> Option<&'r ResumeFrom> {
        request.from.filter(|_| self.earlier.is_some())
    }

    /// The record of the run that is gone on with.
    pub fn earlier(&self) -> Option<&RunRecord> {
        self.earlier.as_ref()
    }

    /// What the finished run printed, where the newest place is asked for, the run is finished, and its final model is still
    /// what was written then.
    pub fn finished(&self, request: &RunRequest) -> Option<Value> {
        self.from(request).filter(|from| **from == ResumeFrom::Latest)?;
        let result = self.earlier.as_ref()?.result.as_ref()?;
        (run_record::weights(&run_record::checksums(self.folder).ok()?) == result.model).then(|| result.summary.clone())
    }

    /// Sets how far the run is to go; [`RunFolder::begin`] records it.
    pub fn set_goal(&mut self, goal: Goal) {
        self.record.goal = Some(goal);
    }

    /// Whether `flag` is what it was when the run was last begun or gone on with.
    pub fn unchanged(&self, flag: &str) -> bool {
        self.earlier.as_ref().is_some_and(|earlier| earlier.flags.get(flag) == self.record.flags.get(flag))
    }

    /// Makes room for a run that begins, clears away what a killed process left half-made, and records the flags: from here
    /// on the run can be gone on with.
    ///
    /// # Errors
    /// A file that cannot be removed or written.
    pub fn begin(&mut self) -> Result<()> {
        files::remove_leftovers(self.folder)?;
        for (_, iteration) in checkpoint::numbered(self.folder, ITERATION)? {
            files::remove_leftovers(iteration)?;
        }
        match &self.earlier {
            None => self.output.clear()?,
            Some(earlier) => self.keep_replaced(earlier)?,
        }
        self.record.write(self.folder)
    }

    /// Puts weights aside that stand in the place of those that the run ended with: people may have put them there, and the run
    /// writes its own again.
    fn keep_replaced(&self, earlier: &RunRecord) -> Result<()> {
        let Some(result) = &earlier.result else { return Ok(()) };
        for name in losses::replaced(self.folder, &result.model) {
            let (path, mut kept, mut n) = (self.folder.join(&name), self.folder.join(format!("{name}.replaced-1")), 1);
            while kept.exists() {
                n += 1;
                kept.set_extension(format!("replaced-{n}"));
            }
            std::fs::rename(&path, &kept).map_err(Error::io(&path, "rename"))?;
            warn!(
                "{}: not what the run ended with: it was changed or replaced since. It is kept as {}; the run writes its own again",
                path.display(),
                kept.display()
            );
        }
        Ok(())
    }

    /// Records that the run came to its end, and what it printed.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn finish(self, summary: &Value) -> Result<()> {
        self.record.finish(self.folder, summary)
    }
}

/// What a verb says and gives back where there is nothing left to do.
pub fn already_finished(folder: &Path, summary: Value) -> Result<Value> {
    say!("the run in {} is finished; there is nothing to go on with", folder.display());
    Ok(summary)
}

/// A folder without a record: fine where nothing of a run is in it and the newest checkpoint was asked for.
fn nothing_yet(folder: &Path, from: &ResumeFrom) -> Result<()> {
    match from {
        ResumeFrom::Path(path) => Err(Error::request(format!(
            "--resume_from_checkpoint {}: {} holds no run to go on with; `latest` begins one where there is none",
            path.display(),
            folder.display()
        ))),
        ResumeFrom::Latest if output::traces(folder)?.is_empty() => Ok(()),
        ResumeFrom::Latest => Err(Error::request(format!(
            "{} holds an earlier run without a record of its flags (run.json, of which a checkpoint has a copy), which cannot \
             be gone on with; give another --output_dir, or --overwrite_output_dir instead of --resume_from_checkpoint to replace it",
            folder.display()
        ))),
    }
}
