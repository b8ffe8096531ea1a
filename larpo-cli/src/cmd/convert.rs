//! `larpo convert`: a model folder in another format of numbers, or in other files.

use crate::args::ConvertArgs;
use crate::error::{Error, Result};
use crate::messages::count;
use crate::output;
use crate::policy::check_model;
use larpo_data::model_folder::ModelFolder;
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::borrow::Cow;

/// Runs the verb. Tensors are read, converted and written one by one.
///
/// # Errors
/// A folder that is no model folder, tensors that do not fit its configuration, a number that is not finite or not within the
/// new format, a file that cannot be written.
pub fn run(args: &ConvertArgs) -> Result<Value> {
    let same = |a: &std::path::Path, b: &std::path::Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same(&args.input, &args.output) {
        return Err(Error::request("OUT is the folder that is converted; give another one, the model stays as it is"));
    }
    let files = check_model(&args.input)?;
    // Looked at before anything is written.
    let tokenizer = match args.input.join("tokenizer.json").is_file() {
        true => Some(Tokenizer::open(&args.input)?),
        false => None,
    };
    output::prepare_file(&args.output, "config.json", args.overwrite_output_dir, "OUT")?;
    let mut form = files.form()?;
    if let Some(format) = args.dtype {
        form = form.with_format(format);
    }
    if let Some(most) = args.max_shard_size {
        form = form.in_shards(most);
    }
    // A closure cannot end the writing with an error: what went wrong while reading is told instead of the lack of numbers.
    let mut failed = None;
    let written = form.write(&args.output, |name| match files.read_f32(name) {
        Ok((_, data)) => Cow::Owned(data),
        Err(error) => {
            failed.get_or_insert(error);
            Cow::Owned(Vec::new())
        }
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    written?;
    match tokenizer {
        Some(tokenizer) => tokenizer.save(&args.output)?,
        None => warn!("{} has no tokenizer.json: the converted folder has no tokenizer", args.input.display()),
    }
    let tensors = ModelFolder::open(&args.output)?.tensor_names().len();
    show!("{} in {}", count(tensors, "tensors"), args.output.display());
    Ok(json!({ "output_dir": args.output, "tensors": tensors, "files": form.files() }))
}
