//! Trains a byte-level BPE tokenizer on a data set and writes it as a Hugging Face folder:
//!
//! ```text
//! cargo run --example tokenizer_from_text -- train.jsonl 4096 out/
//! ```

use larpo_data::records::{ReadOptions, read_dataset};
use larpo_data::tokenizer::Tokenizer;
use std::process::ExitCode;

fn run(file: &str, size: usize, folder: &str) -> larpo_data::Result<()> {
    let texts = read_dataset(file, &ReadOptions::default())?.dataset.texts();
    let tokenizer = Tokenizer::train_bpe(&texts, size)?;
    tokenizer.save(folder)?;
    println!("{} tokens written to {folder}", tokenizer.vocab_size());
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, size, folder] = arguments.as_slice() else {
        eprintln!("usage: tokenizer_from_text FILE SIZE FOLDER");
        return ExitCode::from(2);
    };
    let Ok(size) = size.parse() else {
        eprintln!("SIZE is a whole number, found {size:?}");
        return ExitCode::from(2);
    };
    match run(file, size, folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
