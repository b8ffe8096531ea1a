//! `larpo merge`: an adapter becomes part of the weights of its model.

use crate::args::MergeArgs;
use crate::error::{Error, Result};
use crate::output;
use crate::policy::{Kind, Numbers, Opened, save_model};
use larpo_core::backend::Backend;
use larpo_data::model_folder::AdapterFolder;
use serde_json::{Value, json};
use std::sync::Arc;

/// Runs the verb. The sums are computed in double precision and rounded once to the format that is written.
///
/// # Errors
/// A folder that holds no adapter, or one whose model is not there or does not fit it; a number that is not finite or not within
/// the format, a file that cannot be written.
pub fn run<B: Backend>(args: &MergeArgs, backend: &B) -> Result<Value> {
    let (input, output) = (&args.input, &args.output);
    if !AdapterFolder::is_one(input) {
        return Err(Error::request(format!(
            "{} holds no adapter (adapter_config.json, without a model beside it); give the folder of one",
            input.display()
        )));
    }
    let opened = Opened::read_on(input, args.model_name_or_path.as_deref(), Kind::LanguageModel)?;
    let same = |path: &std::path::Path| path.canonicalize().is_ok_and(|path| output.canonicalize().ok() == Some(path));
    if same(input) || same(opened.model_folder()) {
        return Err(Error::request("OUT is a folder that is merged; give another one, both stay as they are"));
    }
    output::prepare_file(output, "config.json", args.overwrite_output_dir, "OUT")?;
    let policy = opened.load(backend)?;
    let (mut parts, merged) = (policy.parts(), policy.model.merged()?);
    drop(policy);
    parts.adapter = None;
    let mut form = parts.form.as_ref().clone();
    if let Some(format) = args.dtype {
        form = form.with_format(format);
    }
    if let Some(most) = args.max_shard_size {
        form = form.in_shards(most);
    }
    parts.form = Arc::new(form);
    save_model(&merged, &parts, Numbers::AsRead, output)?;
    show!("the merged model is in {}", output.display());
    Ok(json!({ "output_dir": output, "files": parts.form.files() }))
}
