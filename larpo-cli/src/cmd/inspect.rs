//! `larpo inspect`: what a data file or a run folder holds, before anything is made of it.

mod items;
mod render;
mod run_folder;
mod spread;
#[cfg(test)]
mod tests;

use crate::args::{BadRow, InspectArgs};
use crate::chat;
use crate::dataset::{RowReport, contradictions, read_options, window_lengths, with_flag};
use crate::error::{Error, Result};
use crate::messages::count;
use crate::output::at_work;
use crate::policy::{encode_prompt, prompt_prefix};
use items::{Item, Ranking, Rendered, items};
use larpo_data::records::{Dataset, Records, Renderer, Schema, read_dataset};
use larpo_data::tokenizer::Tokenizer;
use rayon::prelude::*;
use render::Style;
use serde_json::{Map, Value, json};
use spread::Spread;
use std::collections::HashMap;
use std::path::Path;

/// Runs the verb.
///
/// # Errors
/// A file that cannot be read, rows that fit several schemas, a folder that holds nothing to show or more than one thing.
pub fn run(args: &InspectArgs) -> Result<Value> {
    let tokenizer = args.tokenizer.as_ref().map(Tokenizer::open).transpose()?;
    if args.path.is_dir() {
        let mut found = match run_folder::find(&args.path)? {
            run_folder::Found::File(path) => {
                say!("{} is the one data file of the folder", path.display());
                return file(args, &path, tokenizer.as_ref());
            }
            run_folder::Found::Iterations(numbers) => run_folder::iterations(&args.path, &numbers),
            run_folder::Found::Record => run_folder::record(&args.path),
            run_folder::Found::Metrics(path) => run_folder::metrics(&path),
        }?;
        let at_work = at_work(&args.path);
        if let Some(holder) = &at_work {
            show!("A run{holder} is at work in the folder.");
        }
        found["at_work"] = json!(at_work.is_some());
        return Ok(found);
    }
    if let Some(end @ ("yaml" | "yml")) = args.path.extension().and_then(|end| end.to_str()) {
        let path = args.path.display();
        return Err(Error::request(format!(
            "{path}: a .{end} file holds flags for --config, no data; `larpo config VERB --config {path}` shows what comes of it"
        )));
    }
    file(args, &args.path, tokenizer.as_ref())
}

fn file(args: &InspectArgs, path: &Path, tokenizer: Option<&Tokenizer>) -> Result<Value> {
    let renderer = match tokenizer {
        Some(tokenizer) if !tokenizer.chat().names().is_empty() => Renderer::Templates(tokenizer),
        _ => Renderer::Plain,
    };
    let records = read_dataset(path, &read_options(&args.read, renderer))
        .map_err(|error| with_flag(error, args.read.on_bad_row))?;
    let mut report = RowReport::new(if records.schema == Schema::Text { "text" } else { "rows" }, records.rows());
    records.bad.iter().for_each(|bad| report.leave_out_at(bad.reason(), 1, bad.line));
    let all: Vec<usize> = (0..records.dataset.len()).collect();
    let refused = contradictions(&records.dataset, path, &all);
    report.leave_out_several(refused.reason, refused.rows.len());
    show!("file        {}", path.display());
    show!("form        {}", records.format);
    show!("schema      {} ({})", records.schema, records.why);
    show!("data        {report}");
    if let Some(first) = records.bad.first() {
        show!("malformed   the first of {}: {first}", records.bad.len());
    }
    if let Some((line, problem)) = &refused.first {
        let fate = match args.read.on_bad_row {
            BadRow::Error => "the verbs that learn refuse the file; --on_bad_row skip leaves such rows out",
            BadRow::Skip => "left out",
        };
        show!(
            "refused     {} with {} ({fate}); the first: {}:{line}: {problem}",
            count(refused.rows.len(), "rows"),
            refused.reason,
            path.display()
        );
    }
    if !records.unread.is_empty() {
        let fate = if records.schema == Schema::RankedList { "kept, not read" } else { "not read" };
        show!("fields      {fate}: {}", records.unread.join(", "));
    }
    let mut summary = Map::new();
    for (name, value) in [
        ("path", json!(path)),
        ("format", json!(records.format.to_string())),
        ("schema", json!(records.schema.name())),
        ("why", json!(records.why)),
        ("data", json!(report)),
        ("refused", json!(refused.first.as_ref().map(|(line, problem)| json!({ "line": line, "problem": problem })))),
        ("unread", json!(records.unread)),
    ] {
        summary.insert(name.into(), value);
    }
    let found = match &records.dataset {
        Dataset::Text(text) => whole_text(args, text, tokenizer)?,
        _ => rows(args, path, &records, tokenizer)?,
    };
    summary.extend(found);
    Ok(Value::Object(summary))
}

fn whole_text(args: &InspectArgs, text: &str, tokenizer: Option<&Tokenizer>) -> Result<Map<String, Value>> {
    let (characters, lines) = (text.chars().count(), text.lines().count());
    show!("text        {} in {}", count(characters, "characters"), count(lines, "lines"));
    let mut summary = Map::new();
    summary.insert("characters".into(), json!(characters));
    summary.insert("lines".into(), json!(lines));
    if let Some(tokenizer) = tokenizer {
        let ids = tokenizer.encode(text)?;
        show!("tokens      {} ({:.2} characters each)", ids.len(), characters as f64 / ids.len().max(1) as f64);
        show!("\n{}", Style::of_results().legend());
        show!("{}", Style::of_results().tokens(tokenizer, &ids[..ids.len().min(render::SHOWN)], true));
        summary.insert("tokens".into(), json!(ids.len()));
        if let Some(max_length) = args.max_length {
            let windows = window_lengths(&ids, prompt_prefix(tokenizer)?, max_length)?;
            let last = windows.last().map_or(String::new(), |last| format!(", the last of {last} tokens"));
            show!(
                "windows     {} of at most {max_length} tokens{last}; every token is learned once",
                count(windows.len(), "windows")
            );
            summary.insert(
                "windows".into(),
                json!({ "max_length": max_length, "count": windows.len(), "last": windows.last() }),
            );
        }
    }
    Ok(summary)
}

/// What the tokenizer makes of a row.
struct Tokens {
    prompt: Vec<u32>,
    responses: Vec<Vec<u32>>,
    /// Whether prompt and response encoded as one text are other tokens than encoded apart.
    differs: Vec<bool>,
}

fn tokens_of(item: &Item, tokenizer: &Tokenizer) -> Result<Tokens> {
    if item.rendered == Rendered::All {
        let (prompt, responses) = chat::encode(tokenizer, item.prompt, &item.responses)?;
        // They are the parts of one text.
        return Ok(Tokens { prompt, differs: vec![false; responses.len()], responses });
    }
    let encode_prompt = |text: &str| match item.rendered {
        Rendered::Nothing => encode_prompt(tokenizer, text),
        _ => Ok(tokenizer.encode(text)?),
    };
    let prompt = encode_prompt(item.prompt)?;
    let (mut responses, mut differs) = (Vec::new(), Vec::new());
    for response in &item.responses {
        let ids = tokenizer.encode(response)?;
        let joint = encode_prompt(&format!("{}{response}", item.prompt))?;
        differs.push(joint.len() != prompt.len() + ids.len() || !joint.starts_with(&prompt) || !joint.ends_with(&ids));
        responses.push(ids);
    }
    Ok(Tokens { prompt, responses, differs })
}

fn rows(
    args: &InspectArgs,
    path: &Path,
    records: &Records,
    tokenizer: Option<&Tokenizer>,
) -> Result<Map<String, Value>> {
    let mut items = items(&records.dataset);
    let mut summary = Map::new();
    let mut spreads = Vec::new();
    spread_of(&mut spreads, "prompt_characters", items.iter().map(|item| item.prompt.chars().count()));
    let responses = || items.iter().flat_map(|item| &item.responses);
    spread_of(&mut spreads, "response_characters", responses().map(|text| text.chars().count()));
    if matches!(records.dataset, Dataset::RankedLists(_)) {
        spread_of(&mut spreads, "responses_per_row", items.iter().map(|item| item.responses.len()));
    }
    let tokens = match tokenizer {
        Some(tokenizer) => {
            let mut rows: Vec<Result<Tokens>> = items.par_iter().map(|item| tokens_of(item, tokenizer)).collect();
            let bad: Vec<bool> = rows.iter().map(Result::is_err).collect();
            if let (Some(i), BadRow::Skip) = (bad.iter().position(|&bad| bad), args.read.on_bad_row) {
                let why = rows[i].as_ref().err().map_or_else(String::new, ToString::to_string);
                let (all, left_out) = (items.len(), bad.iter().filter(|&&bad| bad).count());
                show!(
                    "not encoded {left_out} of {}, left out here too; the first: {}:{}: {why}",
                    count(all, "rows"),
                    path.display(),
                    items[i].line
                );
                summary.insert("not_encoded".into(), json!(left_out));
                let mut of_rows = bad.iter();
                rows.retain(|_| of_rows.next() == Some(&false));
                let mut of_items = bad.iter();
                items.retain(|_| of_items.next() == Some(&false));
            }
            let at = |(row, item): (Result<Tokens>, &Item)| {
                row.map_err(|error| Error::request(format!("{}:{}: {error}", path.display(), item.line)))
            };
            Some(rows.into_iter().zip(&items).map(at).collect::<Result<Vec<Tokens>>>()?)
        }
        None => None,
    };
    if let Some(tokens) = &tokens {
        spread_of(&mut spreads, "prompt_tokens", tokens.iter().map(|row| row.prompt.len()));
        spread_of(&mut spreads, "response_tokens", tokens.iter().flat_map(|row| row.responses.iter().map(Vec::len)));
        // What --max_length looks at: the longest response and its end-of-text token.
        let longest =
            |row: &Tokens| row.prompt.len() + row.responses.iter().map(|ids| ids.len() + 1).max().unwrap_or(0);
        spread_of(&mut spreads, "row_tokens", tokens.iter().map(longest));
        if let Some(max_length) = args.max_length {
            let longer = tokens.iter().filter(|row| longest(row) > max_length).count();
            // A response is never cut: where it leaves no room, the row goes whatever the mode.
            let front = tokenizer.map(prompt_prefix).transpose()?.map_or(0, |prefix| prefix.len());
            let no_room = |row: &&Tokens| {
                longest(row) > max_length && max_length.saturating_sub(longest(row) - row.prompt.len()) <= front
            };
            let hopeless = tokens.iter().filter(no_room).count();
            show!(
                "too long    {longer} of {} have more than {max_length} tokens: --truncation_mode skip leaves them out, \
                 keep_end and keep_start cut their prompts but for {hopeless} whose response leaves no room",
                count(items.len(), "rows")
            );
            summary.insert(
                "too_long".into(),
                json!({ "max_length": max_length, "rows": longer, "without_room_for_a_prompt": hopeless }),
            );
        }
    }
    for (name, spread) in &spreads {
        show!("\n{}", spread.show(&name.replace('_', " ")));
    }
    let lengths: Map<String, Value> = spreads.iter().map(|(name, spread)| ((*name).into(), spread.json())).collect();
    summary.insert("lengths".into(), Value::Object(lengths));
    show!("");
    let duplicates = duplicates(&items);
    summary.insert("duplicates".into(), duplicates);
    if let Dataset::Pairs(pairs) = &records.dataset {
        let implicit = pairs.iter().filter(|pair| pair.implicit_prompt).count();
        if implicit > 0 {
            show!(
                "prompts     {implicit} of {} without `prompt`: it is what `chosen` and `rejected` both begin with",
                count(pairs.len(), "rows")
            );
        }
        summary.insert("implicit_prompts".into(), json!(implicit));
    }
    if let Some(ranking) = Ranking::of(&records.dataset, &items) {
        show!("{ranking}");
        summary.insert("ranking".into(), ranking.json());
    }
    if let (Some(tokens), Some(tokenizer)) = (&tokens, tokenizer) {
        summary.insert("tokenisation".into(), tokenisation(&items, tokens, tokenizer));
    }
    show(args, path, &items, tokens.as_deref().zip(tokenizer))?;
    Ok(summary)
}

fn spread_of(spreads: &mut Vec<(&'static str, Spread)>, name: &'static str, values: impl Iterator<Item = usize>) {
    spreads.extend(Spread::of(values).map(|spread| (name, spread)));
}

/// Prompts and responses that occur more than once, and empty ones.
fn duplicates(items: &[Item]) -> Value {
    let mut prompts: HashMap<&str, usize> = HashMap::new();
    items.iter().for_each(|item| *prompts.entry(item.prompt).or_default() += 1);
    let repeated_prompts = items.len() - prompts.len();
    let repeated = |item: &Item| {
        let distinct: std::collections::HashSet<_> = item.responses.iter().collect();
        item.responses.len() - distinct.len()
    };
    let repeated_responses: usize = items.iter().map(repeated).sum();
    let rows_with_repeats = items.iter().filter(|item| repeated(item) > 0).count();
    // The first of equal responses to equal prompts, and what stands against it.
    let (mut first, mut earlier, mut contradictory) = (HashMap::new(), 0, Vec::new());
    for (row, item) in items.iter().enumerate() {
        for (i, response) in item.responses.iter().enumerate() {
            let score = item.scores.as_ref().map(|scores| scores[i]);
            let (known, line, other) = *first.entry((item.prompt, *response)).or_insert((row, item.line, score));
            earlier += usize::from(known != row);
            if other != score {
                contradictory.push((item.line, line));
            }
        }
    }
    let empty_prompts = items.iter().filter(|item| item.prompt.is_empty()).count();
    let empty_responses = items.iter().flat_map(|item| &item.responses).filter(|text| text.is_empty()).count();
    show!(
        "duplicates  {} with the prompt of an earlier one; {}, in {}, the same as another of their row",
        count(repeated_prompts, "rows"),
        count(repeated_responses, "responses"),
        count(rows_with_repeats, "rows")
    );
    if earlier > 0 {
        show!("            {}, the same as one to the same prompt in an earlier row", count(earlier, "responses"));
    }
    if let Some((line, other)) = contradictory.first() {
        show!(
            "contradict  {} with another score than the same response to the same prompt; the first in line {line}, against \
             line {other}",
            count(contradictory.len(), "responses")
        );
    }
    show!("empty       {}, {}", count(empty_prompts, "prompts"), count(empty_responses, "responses"));
    json!({
        "prompts": repeated_prompts,
        "responses": repeated_responses,
        "responses_of_earlier_rows": earlier,
        "contradictory": contradictory.len(),
        "rows_with_equal_responses": rows_with_repeats,
        "empty_prompts": empty_prompts,
        "empty_responses": empty_responses,
    })
}

fn tokenisation(items: &[Item], tokens: &[Tokens], tokenizer: &Tokenizer) -> Value {
    let differing: Vec<usize> = (0..items.len()).filter(|&i| tokens[i].differs.contains(&true)).collect();
    let ending = |row: &&Tokens| {
        let eos = tokenizer.eos_id();
        row.responses.iter().any(|ids| ids.iter().any(|&id| Some(id) == eos))
    };
    let with_eos = tokens.iter().filter(ending).count();
    let first = differing.first().map(|&i| items[i].line);
    let at = first.map_or(String::new(), |line| format!(", the first in line {line}"));
    show!(
        "boundary    in {} of {} prompt and response encoded as one text are other tokens{at}; they are encoded apart",
        differing.len(),
        count(items.len(), "rows")
    );
    if with_eos > 0 {
        show!("note        {} with the end-of-text token written out in a response", count(with_eos, "rows"));
    }
    json!({ "rows_joint_differs": differing.len(), "first_line": first, "rows_with_eos_in_text": with_eos })
}

/// The rows that were asked for, as tokens where there is a tokenizer.
fn show(args: &InspectArgs, path: &Path, items: &[Item], tokens: Option<(&[Tokens], &Tokenizer)>) -> Result<()> {
    let chosen: Vec<usize> = match args.lines.is_empty() {
        true => (0..items.len().min(args.rows)).collect(),
        false => {
            let find = |&line: &usize| {
                items.iter().position(|item| item.line == line).ok_or_else(|| {
                    Error::request(format!("{}:{line}: no row that can be used begins in this line", path.display()))
                })
            };
            args.lines.iter().map(find).collect::<Result<_>>()?
        }
    };
    let style = Style::of_results();
    if !chosen.is_empty() && tokens.is_some() {
        show!("\n{}", style.legend());
    }
    for i in chosen {
        let item = &items[i];
        show!("\nline {}", item.line);
        match tokens {
            None => show!("  prompt    {}", render::text(item.prompt)),
            Some((rows, tokenizer)) => {
                let ids = &rows[i].prompt;
                show!("  prompt    {:>4}  {}", ids.len(), style.tokens(tokenizer, ids, false));
            }
        }
        for (k, response) in item.responses.iter().enumerate() {
            let score = item.scores.as_ref().map_or(String::new(), |scores| format!("  score {}", scores[k]));
            match tokens {
                None => show!("  response  {}{score}", render::text(response)),
                Some((rows, tokenizer)) => {
                    let mut ids = rows[i].responses[k].clone();
                    ids.extend(tokenizer.eos_id().filter(|_| item.rendered != Rendered::All));
                    // The first token of a text has nothing before it, and is not learned.
                    let first = usize::from(rows[i].prompt.is_empty()).min(ids.len());
                    let shown =
                        style.tokens(tokenizer, &ids[..first], false) + &style.tokens(tokenizer, &ids[first..], true);
                    let apart = if rows[i].differs[k] { "  (other tokens as one text)" } else { "" };
                    show!("  response  {:>4}  {shown}{score}{apart}", ids.len());
                }
            }
        }
    }
    Ok(())
}
