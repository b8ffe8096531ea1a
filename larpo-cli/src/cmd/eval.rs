//! `larpo eval`: one model or several side by side, on the same prompts and seeds.

use super::{check_references, effective, prompts_of};
use crate::args::{Command, EvalArgs, Settings};
use crate::dataset::{PromptRow, RowReport, Source};
use crate::error::{Error, Result};
use crate::evaluate::{CORRECT, Comparison, EvalConfig, Evaluation, Judges, Metric, compare, evaluate};
use crate::generate::sampling_config;
use crate::messages;
use crate::output;
use crate::policy::{Opened, Policy};
use crate::reward::RewardSource;
use crate::run_record::checksums;
use crate::table::Table;
use larpo_core::backend::Backend;
use larpo_core::metrics::Resampling;
use larpo_data::files;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &EvalArgs, settings: &Settings, backend: &B) -> Result<Value> {
    if let Some(path) = &args.output {
        // Before the work, not after it.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Error::request(format!("--output: {} is no folder; create it first", folder.display())));
        }
        if path.is_dir() {
            return Err(Error::request(format!("--output: {} is a folder; give the name of a file", path.display())));
        }
        output::probe(folder).map_err(|error| Error::request(format!("--output: {error}; give another place")))?;
    }
    let reward = RewardSource::read(&args.reward)?;
    let reference = args.ref_model.as_deref().map(|folder| Policy::open(backend, folder)).transpose()?;
    let models = args.models();
    // KL needs no reward, so it is measured where the rewards lack what they compare with.
    let must_score = reward.needs_reference() && reference.is_none();
    let (mut first, mut rows) = same_prompts(args, &models, backend, must_score)?;
    let scored = !reward.needs_reference() || rows[0].prompts.iter().all(|p| p.has_reference());
    let mut reranker = reward.load(backend)?;
    let rules = reranker.rules().cloned();
    let mut results = Vec::with_capacity(models.len());
    for (&folder, Rows { prompts, files, .. }) in models.iter().zip(&mut rows) {
        *files = checksums(folder)?;
        let policy = match first.take() {
            Some(policy) => policy,
            None => Policy::open(backend, folder)?,
        };
        if let Some(reference) = &reference {
            same_tokens(reference, args.ref_model.as_deref().unwrap_or(folder), folder, prompts)?;
        }
        let config = EvalConfig {
            sampling: sampling_config(&args.sampling, &policy, args.samples(), args.common.seed),
            temperatures: args.sampling.temperature.clone(),
            stop: args.sampling.stop.clone(),
            recall_at: args.recall_at(),
            ndcg_at: args.ndcg_at,
            threshold: args.correct_threshold.or(args.reward.rules().map(|_| CORRECT)),
            resampling: Resampling { seed: args.common.seed, resamples: args.bootstrap_samples },
        };
        let mut judges = Judges {
            reranker: scored.then_some(&mut reranker as _),
            rules: rules.as_ref().filter(|_| scored),
            reference: reference.as_ref(),
        };
        let label = if models.len() == 1 { "eval".to_string() } else { folder.display().to_string() };
        results.push(evaluate(&policy, prompts, &config, &mut judges, &label)?);
    }
    reranker.report();
    let names: Vec<String> = models.iter().map(|folder| folder.display().to_string()).collect();
    let value = report(args, settings, &names, &results, &rows)?;
    if let Some(path) = &args.output {
        files::write_bytes(path, format!("{value}\n").as_bytes())?;
        say!("the numbers are in {}", path.display());
    }
    Ok(value)
}

/// A model's prompts, in its own tokens, and what became of the rows.
struct Rows {
    prompts: Vec<PromptRow>,
    report: RowReport,
    /// Checksums of the files of the model, as it is loaded: the folder may hold another one later.
    files: BTreeMap<String, String>,
}

/// The prompts for a model.
pub(super) fn prompts<B: Backend>(
    args: &EvalArgs,
    source: &Source,
    policy: &Policy<B>,
) -> Result<(Vec<PromptRow>, RowReport)> {
    prompts_of(source, policy, &args.data, &args.split, args.sampling.max_new_tokens)
}

/// The prompts of every model, those that all of them can take. With them comes the policy, where there is only one.
fn same_prompts<B: Backend>(
    args: &EvalArgs,
    models: &[&Path],
    backend: &B,
    must_score: bool,
) -> Result<(Option<Policy<B>>, Vec<Rows>)> {
    let (mut kept, mut rows) = (None, Vec::<Rows>::with_capacity(models.len()));
    let mut source: Option<Source> = None;
    for &folder in models {
        let opened = Opened::read(folder)?;
        // Every model's own chat template renders conversations; texts are the same for all.
        let source = match source.take().filter(|source| !source.has_conversations()) {
            Some(read) => source.insert(read),
            None => source.insert(Source::open(&args.dataset_name, &args.data, Some(&opened.tokenizer))?),
        };
        let (prompts, report) = prompts(args, source, &opened.blank()?)?;
        match rows.first().map(|first| &first.report) {
            None => say!("data: {report}"),
            // Other tokens or positions leave other prompts.
            Some(first) if *first != report => say!("data for {}: {report}", folder.display()),
            Some(_) => {}
        }
        check_references(&args.dataset_name, &prompts, must_score)?;
        rows.push(Rows { prompts, report, files: BTreeMap::new() });
        // Weights are heavy: those of several models are read when it is their turn.
        if models.len() == 1 {
            kept = Some(opened.load(backend)?);
        }
    }
    // By text too: a text is cut into windows by each model's own tokens.
    let of = |p: &PromptRow| (p.index, p.text.clone());
    let mut common: BTreeSet<(usize, String)> = rows[0].prompts.iter().map(of).collect();
    for Rows { prompts, .. } in &rows[1..] {
        let these: BTreeSet<_> = prompts.iter().map(of).collect();
        common.retain(|prompt| these.contains(prompt));
    }
    if common.is_empty() {
        return Err(Error::request(
            "no prompt that all models can take: their tokenizers cut this text into different prompts; evaluate them on \
             a file with one prompt a row",
        ));
    }
    let most = rows.iter().map(|rows| rows.prompts.len()).max().unwrap_or(0);
    if most > common.len() {
        say!("note: compared on the {} that every model can take, of {most}", messages::count(common.len(), "prompts"));
    }
    for Rows { prompts, report, .. } in &mut rows {
        let all = prompts.len();
        prompts.retain(|p| common.contains(&of(p)));
        report.leave_out_several("not for every model", all - prompts.len());
    }
    Ok((kept, rows))
}

/// A reference scores the ids that the policy drew, so both must mean the same by them.
fn same_tokens<B: Backend>(reference: &Policy<B>, at: &Path, model: &Path, prompts: &[PromptRow]) -> Result<()> {
    for prompt in prompts {
        if reference.encode_prompt(&prompt.text)? != prompt.ids {
            return Err(Error::request(format!(
                "--ref_model {} has another tokenizer than {}: they encode row {} differently; give a reference with the \
                 same tokenizer, such as the model that training started from",
                at.display(),
                model.display(),
                prompt.index + 1
            )));
        }
    }
    Ok(())
}

/// Tables for people, JSON for programs.
fn report(args: &EvalArgs, flags: &Settings, names: &[String], results: &[Evaluation], rows: &[Rows]) -> Result<Value> {
    let short = short_names(&args.models());
    for line in tables(args, &short, results) {
        show!("{line}");
    }
    let mut comparisons = Vec::new();
    for ((name, short_name), result) in names.iter().zip(&short).zip(results).skip(1) {
        let compared = compare(result, &results[0]).map_err(|error| Error::request(error.to_string()))?;
        show!("\n{short_name} less {}:", short[0]);
        show!("{}", comparison_table(&compared, args.sampling.temperature.len()).to_string().trim_end());
        comparisons.extend(compared.iter().map(|c| {
            let mut value = c.json();
            value["model"] = json!(name);
            value["against"] = json!(names[0]);
            value
        }));
    }
    if !comparisons.is_empty() {
        show!(
            "p: McNemar's exact test for greedy accuracy, random sign flips otherwise; not corrected for their number"
        );
    }
    let missing: BTreeSet<&String> = results.iter().flat_map(|r| &r.missing).collect();
    for line in missing {
        let of: Vec<&str> =
            results.iter().zip(&short).filter(|(r, _)| r.missing.contains(line)).map(|(_, n)| &**n).collect();
        // What is missing in all needs no names.
        match of.len() == results.len() {
            true => show!("{line}"),
            false => show!("{}: {line}", of.join(", ")),
        }
    }
    // As `run.json` has them, those included that follow from others.
    let flags = effective::settings(&Command::Eval(Box::new(args.clone())), flags).values();
    let object = |((name, result), rows): ((&String, &Evaluation), &Rows)| {
        let mut value = result.json();
        value["model"] = json!(name);
        value["files"] = json!(rows.files);
        value["data"] = json!(rows.report);
        value
    };
    let mut models: Vec<Value> = names.iter().zip(results).zip(rows).map(object).collect();
    if let [model] = &mut models[..] {
        model["flags"] = json!(flags);
        return Ok(model.take());
    }
    Ok(json!({
        "prompts": results[0].prompts,
        "data": rows[0].report,
        "models": models,
        "comparisons": comparisons,
        "flags": flags,
    }))
}

/// The folders without the leading part that all of them share, for the headings of tables.
fn short_names(models: &[&Path]) -> Vec<String> {
    let parts: Vec<Vec<_>> = models.iter().map(|model| model.components().collect()).collect();
    // Something is left of each.
    let most = parts.iter().map(Vec::len).min().unwrap_or(1).saturating_sub(1);
    let same = |at: &usize| parts.iter().all(|p| p[*at] == parts[0][*at]);
    let common = if models.len() > 1 { (0..most).take_while(same).count() } else { 0 };
    parts.iter().map(|p| p[common..].iter().collect::<std::path::PathBuf>().display().to_string()).collect()
}

/// A table of the greedy responses and one of every temperature: a row a metric, a column a model.
fn tables(args: &EvalArgs, names: &[String], results: &[Evaluation]) -> Vec<String> {
    let mut lines = Vec::new();
    let temperatures = args.sampling.temperature.iter().copied().map(Some);
    for temperature in std::iter::once(None).chain(temperatures) {
        let mut table = Table::new(std::iter::once("").chain(names.iter().map(String::as_str)));
        let mut rows: BTreeMap<(Metric, Option<usize>), Vec<String>> = BTreeMap::new();
        for (column, result) in results.iter().enumerate() {
            for measure in result.measures.iter().filter(|m| m.temperature == temperature) {
                let Some(estimate) = measure.estimate(result.resampling) else { continue };
                let cells = rows.entry((measure.metric, measure.at)).or_insert_with(|| vec![measure.label()]);
                // What another model has and this one lacks.
                cells.resize(column + 1, "-".into());
                let mut cell = measure.metric.show_estimate(&estimate);
                if estimate.n < result.prompts {
                    cell.push_str(&format!(" ({} prompts)", estimate.n));
                }
                cells.push(cell);
            }
        }
        if rows.is_empty() {
            continue;
        }
        rows.into_values().for_each(|mut cells| {
            cells.resize(names.len() + 1, "-".into());
            table.row(cells);
        });
        let title = match temperature {
            None => format!("\n{}, greedy decoding [95 % interval]", messages::count(results[0].prompts, "prompts")),
            Some(t) => {
                let count = args.samples();
                let samples = if count == 1 { "sample" } else { "samples" };
                format!("\n{count} {samples} a prompt at temperature {t}")
            }
        };
        lines.push(title);
        lines.push(table.to_string().trim_end().to_string());
    }
    lines
}

fn comparison_table(compared: &[Comparison], temperatures: usize) -> Table {
    let mut table = Table::new(["", "difference", "p", "prompts"]);
    for c in compared {
        let label = match c.measure.temperature {
            Some(t) if temperatures > 1 => format!("{}, t = {t}", c.measure.label()),
            _ => c.measure.label(),
        };
        let p = if c.p < 0.001 { "< 0.001".to_string() } else { format!("{:.3}", c.p) };
        table.row([label, c.measure.metric.show_estimate(&c.difference), p, c.difference.n.to_string()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_leave_out_what_all_models_share() {
        let of = |models: &[&str]| short_names(&models.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(of(&["runs/a/model", "runs/b"]), ["a/model", "b"]);
        assert_eq!(of(&["demo/sft", "demo"]), ["demo/sft", "demo"]);
        assert_eq!(of(&["/x/run/model"]), ["/x/run/model"]);
    }
}
