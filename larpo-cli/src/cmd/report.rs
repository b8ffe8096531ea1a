//! `larpo report`: one HTML file that tells the story of a run folder, made only of what the run left there.

mod command;
mod evaluation;
mod header;
mod html;
mod page;
mod plot;
mod run;
mod samples;
mod settings;
mod story;

use crate::args::ReportArgs;
use crate::error::{Error, Result};
pub use command::joined;
use run::Run;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// What the first line of every report holds, so that nothing else is ever overwritten.
const MARK: &str = "<!doctype html><!-- larpo report -->";

/// Runs the verb.
///
/// # Errors
/// A folder without a run, a file in the way, a file that cannot be written.
pub fn run(args: &ReportArgs) -> Result<Value> {
    let run = Run::read(&args.run)?;
    let output = args.output.clone().unwrap_or_else(|| args.run.join("report.html"));
    if output.exists() && !starts_with_mark(&output)? {
        return Err(Error::request(format!(
            "{} exists and is no report of larpo's; give another --output",
            output.display()
        )));
    }
    let page = page::render(&run, args.correct_threshold)?;
    let temporary = output.with_extension("html.tmp");
    fs::write(&temporary, format!("{MARK}\n{}", page.html)).map_err(Error::io(&temporary, "write"))?;
    fs::rename(&temporary, &output).map_err(Error::io(&output, "write"))?;
    page.notes.iter().for_each(|note| say!("{note}"));
    say!("the report is in {}", output.display());
    Ok(json!({ "report": output, "iterations": run.iterations.len(), "charts": page.charts, "notes": page.notes }))
}

fn starts_with_mark(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    Ok(bytes.starts_with(MARK.as_bytes()))
}
