//! `larpo completions` and `larpo man`: made from the declarations of the flags.

use crate::args::declarations;
use crate::error::{Error, Result};
use crate::messages::count;
use clap_complete::Shell;
use clap_mangen::Man;
use serde_json::Value;
use std::path::Path;

/// The day of the commit, where the build knew it.
const DATE: Option<&str> = option_env!("LARPO_DATE");

/// The completions of a shell.
pub fn completions(shell: Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut declarations(), "larpo", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// The manual page of `larpo` or of a verb as a text; with a folder, all of them as files.
///
/// # Errors
/// No such verb, a file that cannot be written.
pub fn man(verb: Option<&str>, folder: Option<&Path>) -> Result<Value> {
    let mut command = declarations();
    command.build();
    if let Some(name) = verb {
        let page = command.find_subcommand(name).cloned().map(page).ok_or_else(|| {
            let verbs: Vec<&str> = command.get_subcommands().map(|verb| verb.get_name()).collect();
            Error::request(format!("larpo has no verb `{name}`; choose from {}", verbs.join(", ")))
        })?;
        return Ok(Value::String(page));
    }
    let Some(folder) = folder else { return Ok(Value::String(page(command))) };
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    // `larpo help VERB` and the verbs below `larpo config` have the same flags again.
    let verbs: Vec<_> = command.get_subcommands().filter(|verb| verb.get_name() != "help").cloned().collect();
    let mut files = Vec::new();
    for command in std::iter::once(command).chain(verbs) {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_string();
        let path = folder.join(format!("{name}.1"));
        std::fs::write(&path, page(command)).map_err(Error::io(&path, "write"))?;
        files.push(path);
    }
    say!("{} in {}", count(files.len(), "manual pages"), folder.display());
    Ok(serde_json::json!({ "pages": files }))
}

fn page(mut command: clap::Command) -> String {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_string();
    let usage = synopsis(&command.render_usage().to_string());
    let man = Man::new(command)
        .title(name.to_uppercase())
        .date(DATE.unwrap_or_default())
        .source(concat!("larpo ", env!("CARGO_PKG_VERSION")))
        .manual("larpo manual");
    let mut out = Vec::new();
    // Writing to memory cannot fail.
    let _ = man.render(&mut out);
    let page = String::from_utf8_lossy(&out).into_owned();
    // In place of a list of all flags, which stand below: those that are needed, with their values.
    let (start, end) = (".SH SYNOPSIS\n", "\n.SH DESCRIPTION");
    match page.split_once(start).and_then(|(before, rest)| Some((before, rest.split_once(end)?.1))) {
        Some((before, after)) => format!("{before}{start}{usage}{end}{after}"),
        None => page,
    }
}

/// The line `Usage: larpo VERB [OPTIONS] --flag <VALUE>` in the fonts of manual pages.
fn synopsis(usage: &str) -> String {
    let words = usage.trim().trim_start_matches("Usage:").split_whitespace().map(|word| {
        let plain: String = word.chars().filter(|c| !"<>".contains(*c)).collect();
        let font = if word.contains(['<', '[']) { 'I' } else { 'B' };
        format!("\\f{font}{}\\fR", plain.replace('\\', "\\e").replace('-', "\\-"))
    });
    // Program and verb are one name.
    words.collect::<Vec<_>>().join(" ").replacen("\\fBlarpo\\fR \\fB", "\\fBlarpo ", 1)
}
