//! The `larpo` command: reads the command line, runs the verb, prints and picks the exit code.

use larpo_cli::args;
use larpo_cli::cmd;
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
    match cmd::run(&cli) {
        Ok(value) => {
            if common.json
                && let Err(error) = writeln!(std::io::stdout(), "{value}")
            {
                return fail(&format!("cannot write to standard output: {error}"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// Says why on stderr, if there is one.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error}");
    ExitCode::FAILURE
}
