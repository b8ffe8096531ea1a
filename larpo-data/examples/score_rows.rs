//! Scores responses of a JSONL file with rule rewards and counts how often a reward of 1 agrees with a published
//! verdict:
//!
//! ```text
//! cargo run --example score_rows -- solutions.jsonl 'answer:pattern=A\:\s*(.*)' reference correct
//! ```

use larpo_data::records::{Keys, OnBadRow, read_keyed_rows};
use larpo_data::rules::{RuleSet, Scored};
use std::process::ExitCode;

fn run(arguments: &[String]) -> larpo_data::Result<()> {
    let keys = Keys { reference: arguments.get(2).cloned(), label: arguments.get(3).cloned(), ..Keys::default() };
    let rules = RuleSet::parse(&arguments[1], None, None)?;
    let (mut scored, mut agree, mut total) = (0usize, 0usize, 0.0);
    let (rows, _) = read_keyed_rows(&arguments[0], &keys, OnBadRow::Error)?;
    for row in rows {
        for (i, response) in row.responses.iter().enumerate() {
            let item = Scored {
                prompt: &row.prompt,
                response,
                n_tokens: response.split_whitespace().count(),
                reference: row.reference.as_deref(),
            };
            let score = rules.score(&item)?;
            total += score;
            scored += 1;
            agree += usize::from(row.labels.get(i).is_some_and(|label| (*label > 0.5) == (score > 0.5)));
        }
    }
    println!("{scored} responses, mean reward {:.4}, {agree} agree with their label", total / scored as f64);
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.len() < 2 {
        eprintln!("usage: score_rows FILE.jsonl RULES [REFERENCE_KEY [LABEL_KEY]]");
        return ExitCode::from(2);
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
