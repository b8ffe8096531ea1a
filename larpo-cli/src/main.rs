//! The `larpo` command: reads the command line, runs the verb, prints and picks the exit code.

use larpo_cli::args;
use larpo_cli::cmd;
use larpo_cli::stop::Stop;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let common = cli.command.common();
    if let Err(error) = larpo_cli::threads::set(common.threads) {
        return fail(&error);
    }
    let stop = Stop::default();
    if cli.command.can_resume()
        && let Err(error) = on_interrupt(&stop)
    {
        return fail(&error);
    }
    match cmd::run_until(&cli, &stop) {
        Ok(value) => {
            if common.json
                && let Err(error) = writeln!(std::io::stdout(), "{value}")
            {
                return fail(&format!("cannot write to standard output: {error}"));
            }
            ExitCode::SUCCESS
        }
        Err(error @ larpo_cli::error::Error::Interrupted(_)) => {
            fail(&error);
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => fail(&error),
    }
}

/// Exit code after Ctrl-C, as shells have it: 128 and the number of the signal.
const INTERRUPTED: u8 = 130;
/// Time between two looks at whether Ctrl-C was answered.
const ANSWER: Duration = Duration::from_millis(50);

/// Ctrl-C and SIGTERM: the first one ends the run where it can be gone on with, a second one at once.
fn on_interrupt(stop: &Stop) -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal raises the flag after this has looked at it.
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), stop.flag())?;
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

/// Says why on stderr, if there is one.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error}");
    ExitCode::FAILURE
}
