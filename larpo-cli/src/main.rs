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
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    match cmd::run(&cli) {
        Ok(value) => {
            if common.json
                && let Err(error) = writeln!(std::io::stdout(), "{value}")
            {
                eprintln!("error: cannot write to standard output: {error}");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
