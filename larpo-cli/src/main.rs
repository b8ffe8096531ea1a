//! The `larpo` command: reads the command line, runs the verb, prints and picks the exit code.

use larpo_cli::args::Task;
use larpo_cli::error::{Error, exit_code};
use larpo_cli::stop::Stop;
use larpo_cli::{args, cmd, messages, status, threads};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Time between two looks at whether Ctrl-C was answered.
const ANSWER: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    status::hook_panics();
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let common = cli.command().map(|command| command.common());
    if let Some(common) = common {
        messages::set_level(common.level());
        if common.json {
            messages::set_json();
        }
    }
    let stop = Stop::default();
    let done = threads::set(common.and_then(|common| common.threads)).and_then(|()| {
        // What is planned or listed can be left at any time.
        if matches!(&cli.task, Task::Run(command) if command.can_resume()) {
            on_interrupt(&stop)
                .map_err(|error| Error::request(format!("cannot listen for Ctrl-C and SIGTERM: {error}")))?;
        }
        cmd::run_until(&cli, &stop)
    });
    let printed = done.and_then(|value| {
        match value {
            Value::String(text) => messages::print(&text),
            value if common.is_some_and(|common| common.json) => messages::print(&format!("{value}\n")),
            _ => {}
        }
        messages::printed().map_err(|error| Error::request(format!("cannot write to standard output: {error}")))
    });
    match printed {
        Ok(()) => ExitCode::from(exit_code::OK),
        Err(error) => {
            let mut out = std::io::stderr();
            let _ = match &error {
                // What was asked for is no error; the exit code tells scripts that the work is not done.
                Error::Interrupted(_) => writeln!(out, "{error}"),
                _ => writeln!(out, "error: {error}"),
            };
            if error.is_full_disk() {
                let resumable = cli.command().is_some_and(|command| command.can_resume());
                let _ = writeln!(out, "{}", status::after_full_disk(resumable));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// SIGHUP, which comes when the terminal is closed. Not where it is ignored, as `nohup` has it for its command: a handler would
/// take that back. Where nothing tells, the signal is left as it is.
#[cfg(unix)]
fn hangup() -> Option<i32> {
    use signal_hook::consts::SIGHUP;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let ignored = u64::from_str_radix(mask.trim(), 16).ok()?;
    (ignored >> (SIGHUP - 1) & 1 == 0).then_some(SIGHUP)
}

#[cfg(not(unix))]
fn hangup() -> Option<i32> {
    None
}

/// Ctrl-C, SIGTERM and a closed terminal: the first one ends the run where it can be gone on with, a second one at once.
fn on_interrupt(stop: &Stop) -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal raises the flag after this has looked at it.
        flag::register_conditional_shutdown(signal, exit_code::INTERRUPTED.into(), stop.flag())?;
        flag::register(signal, stop.flag())?;
    }
    // A closed terminal may say so twice: to its foreground job, and through the shell.
    if let Some(signal) = hangup() {
        flag::register(signal, stop.flag())?;
    }
    // A signal handler may not print.
    let stop = stop.clone();
    std::thread::spawn(move || {
        while !stop.requested() {
            std::thread::sleep(ANSWER);
        }
        let _ =
            writeln!(std::io::stderr(), "\nending at the next safe point, with a checkpoint; once more to end at once");
    });
    Ok(())
}
