//! The `larpo` command: reads the command line, runs the verb, prints and picks the exit code.

use larpo_cli::args;
use larpo_cli::cmd;
use larpo_cli::stop::Stop;
use std::io::Write;
use std::process::ExitCode;

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
        && let Err(error) = on_interrupt(stop.clone())
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

/// Ctrl-C and the system's wish to terminate: the first one ends the run where it can be gone on with, a second one at once.
fn on_interrupt(stop: Stop) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        let mut stderr = std::io::stderr();
        if stop.request() {
            let _ =
                writeln!(stderr, "\nended at once; --resume_from_checkpoint latest goes on from the last checkpoint");
            std::process::exit(INTERRUPTED.into());
        }
        let _ = writeln!(stderr, "\nending at the next safe point, with a checkpoint; once more to end at once");
    })
}

/// Says why on stderr, if there is one.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error}");
    ExitCode::FAILURE
}
