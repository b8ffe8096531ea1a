//! `larpo completions` and `larpo man`: made from the declarations of the flags.

use crate::args::declarations;
use crate::error::{Error, Result};
use clap_complete::Shell;
use clap_mangen::Man;
use serde_json::Value;
use std::path::Path;

/// The completions of a shell.
pub fn completions(shell: Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut declarations(), "larpo", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// The manual page of `larpo` as a text; with a folder, that and one for each verb as files.
///
/// # Errors
/// A file that cannot be written.
pub fn man(folder: Option<&Path>) -> Result<Value> {
    let mut command = declarations();
    command.build();
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
    say!("{} manual pages are in {}", files.len(), folder.display());
    Ok(serde_json::json!({ "pages": files }))
}

fn page(command: clap::Command) -> String {
    let mut out = Vec::new();
    // Writing to memory cannot fail.
    let _ = Man::new(command).render(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}
