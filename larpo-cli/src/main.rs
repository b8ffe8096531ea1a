//! The `larpo` command: reads the command line, runs the verb, prints and picks the exit code.

use larpo_cli::error::{Error, exit_code};
use larpo_cli::{args, cmd, messages, status, threads};
use serde_json::Value;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    status::hook_panics();
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let common = cli.command().map(|command| command.common());
    if let Some(common) = common {
        messages::set_level(common.level());
    }
    let done = threads::set(common.and_then(|common| common.threads)).and_then(|()| cmd::run(&cli));
    let printed = done.and_then(|value| match value {
        Value::String(text) => print(&text),
        value if common.is_some_and(|common| common.json) => print(&format!("{value}\n")),
        _ => Ok(()),
    });
    match printed {
        Ok(()) => ExitCode::from(exit_code::OK),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::request(format!("cannot write to standard output: {error}")))
}
