//! The fresh candidates of an iteration: drawn batch by batch into a file that an interrupted run goes on with, ranked, and
//! read back where they are there already, edited or not.

use crate::candidate_rows::{Known, from_row};
use crate::dataset::PromptRow;
use crate::edits::{Written, misnumbered};
use crate::error::{Error, Result};
use crate::generate::{candidate_lists, candidates, generate_batches};
use crate::messages::count;
use crate::policy::Policy;
use crate::reward::to_row;
use crate::stop::Stop;
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList};
use larpo_core::reranker::Reranker;
use larpo_core::retriever::{SamplingConfig, prompts_per_batch};
use larpo_data::candidates::CandidateList as CandidateRow;
use larpo_data::partial;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// Ranked candidates.
const FILE: &str = "candidates.jsonl";
/// Candidates as they are drawn, not yet ranked.
const PARTIAL: &str = "candidates.partial.jsonl";

/// What an iteration draws.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Its prompts.
    pub prompts: &'a [PromptRow],
    /// How responses are drawn.
    pub sampling: &'a SamplingConfig,
    /// Texts that end a response.
    pub stop_strings: &'a [String],
    /// Tokens of a prompt and an edited response together; what could have been sampled may be longer.
    pub max_length: usize,
    /// Label of the progress bar.
    pub label: &'a str,
}

/// Whether the candidates of an iteration are all drawn already.
pub fn are_drawn(folder: &Path) -> bool {
    folder.join(FILE).is_file()
}

/// Candidates that a folder holds.
pub struct Stored {
    /// The lists, best first. Rows that were edited have no log-probabilities, because nothing tells which of them still hold.
    pub lists: Vec<CandidateList>,
    /// Whether some were edited since they were written before.
    pub edited: bool,
}

/// Draws and ranks the candidates of an iteration, best first in every list. With a folder they are left in
/// `candidates.jsonl`; what is in the folder already is not drawn again.
///
/// # Errors
/// Prompts that the model cannot take, what the reranker reports, files that cannot be read or written, edited candidates
/// that do not fit; [`Error::Interrupted`] between two batches where `stop` is raised.
pub fn draw<B: Backend>(
    policy: &Policy<B>,
    request: Request,
    folder: Option<&Path>,
    reranker: &mut dyn Reranker,
    stop: &Stop,
) -> Result<Vec<CandidateList>> {
    let Request { prompts, sampling, stop_strings, label, .. } = request;
    let Some(folder) = folder else {
        let mut lists = candidates(policy, prompts, sampling, stop_strings, label)?;
        rank(&mut lists, reranker)?;
        return Ok(lists);
    };
    if let Some(taken) = take_up(policy, request, folder, reranker)? {
        if !taken.edited {
            let kept = count(taken.lists.len(), "prompts");
            let deleted = match prompts.len() - taken.lists.len() {
                0 => String::new(),
                n => format!("; {} deleted by hand", count(n, "rows")),
            };
            say!("{label}: kept the candidates of {kept}, which were drawn and ranked before{deleted}");
        }
        return Ok(taken.lists);
    }
    let path = folder.join(PARTIAL);
    if are_drawn(folder) && !path.exists() {
        warn!("{}: {} is missing beside it; they are drawn anew", folder.join(FILE).display(), crate::edits::FILE);
    }
    let mut lists = drawn_before(policy, request, &path)?;
    let done = lists.len();
    generate_batches(policy, prompts, done, sampling, stop_strings, label, |batch, responses| {
        let batch = candidate_lists(batch, responses, sampling);
        let unranked = |list| CandidateRow { rewards: Vec::new(), ..to_row(list, stop_strings) };
        partial::append(&path, &batch.iter().map(unranked).collect::<Vec<_>>())?;
        lists.extend(batch);
        match stop.requested() && lists.len() < prompts.len() {
            true => {
                let prompts = count(prompts.len(), "prompts");
                Err(Error::stopped(format!("{label}, after {} of {prompts}", lists.len())))
            }
            false => Ok(()),
        }
    })?;
    rank(&mut lists, reranker)?;
    write(folder, &lists, stop_strings, &BTreeSet::new())?;
    Ok(lists)
}

/// Candidates that an iteration has left in `folder`; None where they are not complete. Rows that were edited since are
/// checked and ranked anew, and written as they are now; the others keep the rewards that stand there.
///
/// # Errors
/// A file that cannot be read or written, rows that are malformed or do not belong to the prompts, what the reranker reports.
pub fn take_up<B: Backend>(
    policy: &Policy<B>,
    request: Request,
    folder: &Path,
    reranker: &mut dyn Reranker,
) -> Result<Option<Stored>> {
    let Request { prompts, sampling, stop_strings, max_length, .. } = request;
    let Some(written) = Written::read(folder)?.filter(|_| are_drawn(folder)) else { return Ok(None) };
    let path = folder.join(FILE);
    let (lines, rows): (Vec<usize>, Vec<CandidateRow>) =
        larpo_data::candidates::read_numbered(&path)?.into_iter().unzip();
    check_prompts(&path, &lines, &rows, prompts)?;
    let edits = written.edits(&rows);
    let (mut lists, mut edited) = (Vec::with_capacity(rows.len()), written.edited());
    let (mut encoded, mut replaced, mut open) = (0, 0, 0);
    for (line, row) in lines.iter().zip(&rows) {
        let at = |error: Error| Error::request(format!("{}:{line}: {error}", path.display()));
        let prompt_index = row.prompt_index.unwrap_or_default();
        let untouched = !edits.changed.contains(&prompt_index);
        let known = Known { prompt_index, iteration: sampling.iteration, untouched };
        let scores = untouched.then_some(&row.rewards[..]);
        let mut list = from_row(policy, row, scores, known).map_err(at)?;
        if !untouched {
            let anew: Vec<bool> =
                list.candidates.iter().enumerate().map(|(i, c)| row.token_ids.get(i) != Some(&c.ids)).collect();
            encoded += anew.iter().filter(|&&anew| anew).count();
            // Nothing ended the text that stood there before.
            let unended = |i: &usize| row.finish_reason.get(*i).is_some_and(|reason| reason != "stop");
            open += (0..anew.len()).filter(|&i| anew[i]).filter(unended).count();
            for (i, candidate) in list.candidates.iter_mut().enumerate() {
                let (tokens, total) = (candidate.ids.len(), list.prompt_ids.len() + candidate.ids.len());
                if anew[i] && tokens > sampling.max_new_tokens && total > max_length {
                    return Err(at(Error::request(format!(
                        "`responses[{i}]`: {tokens} tokens, with the prompt {total}, and --max_length allows {max_length}; shorten \
                         the response"
                    ))));
                }
                candidate.logps.clear();
            }
            list.rank(reranker).map_err(|error| at(error.into()))?;
            let other = |(i, candidate): &(usize, &Candidate)| {
                !anew[*i] && row.rewards.get(*i).is_some_and(|&reward| reward != candidate.reward)
            };
            replaced += list.candidates.iter().enumerate().filter(other).count();
            sort(&mut list);
        }
        lists.push(list);
    }
    if edits.rows() == 0 {
        forget_drawn(folder)?;
        return Ok(Some(Stored { lists, edited: false }));
    }
    let deleted = match edits.deleted.len() {
        0 => String::new(),
        deleted => format!(", {deleted} of them deleted"),
    };
    say!(
        "note: {}: {} of {} edited by hand{deleted}; {} ranked anew, {} encoded anew, log-probabilities of ranked rows to be \
         computed anew",
        path.display(),
        edits.rows(),
        count(prompts.len(), "rows"),
        count(edits.changed.len(), "rows"),
        count(encoded, "responses")
    );
    if open > 0 {
        say!(
            "note: {}: {} encoded anew with a `finish_reason` other than \"stop\", and so without an end-of-text token; write \
             \"stop\" where such a response is complete",
            path.display(),
            count(open, "responses")
        );
    }
    if replaced > 0 {
        warn!(
            "{}: {} of responses whose texts are as they were drawn replaced by what --reward_funcs give them; a reward cannot be \
             edited, only the responses can",
            path.display(),
            count(replaced, "rewards")
        );
    }
    edited.extend(edits.changed.into_iter().chain(edits.deleted));
    write(folder, &lists, stop_strings, &edited)?;
    Ok(Some(Stored { lists, edited: true }))
}

/// Whether each row is one of a prompt of the iteration, and no two are of the same.
fn check_prompts(path: &Path, lines: &[usize], rows: &[CandidateRow], prompts: &[PromptRow]) -> Result<()> {
    let by_index: HashMap<usize, &PromptRow> = prompts.iter().map(|prompt| (prompt.index, prompt)).collect();
    if let Some(problem) = misnumbered(lines.iter().copied().zip(rows), |index| by_index.contains_key(&index)) {
        return Err(Error::request(format!("{}:{problem}", path.display())));
    }
    for (line, row) in lines.iter().zip(rows) {
        let index = row.prompt_index.unwrap_or_default();
        let prompt = by_index[&index];
        let changed = match prompt.text != row.prompt {
            true => Some("prompt"),
            false => (prompt.reference != row.reference).then_some("reference"),
        };
        if let Some(field) = changed {
            return Err(Error::request(format!(
                "{}:{line}: `{field}` is not that of row {index} of the data any more; restore it, or delete the row",
                path.display()
            )));
        }
    }
    Ok(())
}

/// What was drawn before the run was interrupted, in whole batches: another grouping of the prompts may round differently.
fn drawn_before<B: Backend>(policy: &Policy<B>, request: Request, path: &Path) -> Result<Vec<CandidateList>> {
    let Request { prompts, sampling, label, .. } = request;
    let batch = prompts_per_batch(policy.model.config(), sampling);
    let whole_batches = |n: usize| if n >= prompts.len() { prompts.len() } else { n - n % batch };
    let kept = partial::read(path, whole_batches)?;
    let mut lists = Vec::with_capacity(prompts.len());
    for (row, prompt) in kept.lists.iter().zip(prompts) {
        let known = Known { prompt_index: prompt.index, iteration: sampling.iteration, untouched: true };
        let mut list = from_row(policy, row, None, known)?;
        list.candidates.iter_mut().for_each(|candidate| candidate.temperature = sampling.temperature);
        let fits = row.prompt_index == Some(prompt.index)
            && list.prompt_ids == prompt.ids
            && list.candidates.len() == sampling.num_generations
            && list.candidates.iter().all(|c| c.ids.len() == c.logps.len() && c.seed == sampling.seed);
        if !fits {
            return Err(Error::request(format!(
                "{}, row {}: not what this run drew for the prompt {}; delete the file to draw anew",
                path.display(),
                lists.len() + 1,
                prompt.index
            )));
        }
        lists.push(list);
    }
    if !lists.is_empty() {
        let all = count(prompts.len(), "prompts");
        say!(
            "{label}: kept the candidates of {} of {all}, which were drawn before the run was interrupted",
            lists.len()
        );
    }
    if kept.cut > 0 {
        say!("{label}: a batch that was cut short ({}) is drawn again", count(kept.cut, "bytes"));
    }
    Ok(lists)
}

/// Scores every list and sorts it, best first, equal ones in their order: the order of the file.
fn rank(lists: &mut [CandidateList], reranker: &mut dyn Reranker) -> Result<()> {
    for list in lists {
        list.rank(reranker)?;
        sort(list);
    }
    Ok(())
}

fn sort(list: &mut CandidateList) {
    list.candidates.sort_by(|a, b| b.reward.total_cmp(&a.reward));
}

/// Writes ranked candidates; their checksums say that they are complete, and only then the drawn ones go.
fn write(folder: &Path, lists: &[CandidateList], stop_strings: &[String], edited: &BTreeSet<usize>) -> Result<()> {
    let path = folder.join(FILE);
    let rows: Vec<_> = lists.iter().map(|list| to_row(list, stop_strings)).collect();
    larpo_data::candidates::write(&path, &rows)?;
    Written::new(&rows, edited).write(folder)?;
    forget_drawn(folder)
}

/// Removes what was drawn, once the ranked candidates are complete; a run may have been killed between the two.
fn forget_drawn(folder: &Path) -> Result<()> {
    let partial = folder.join(PARTIAL);
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&partial, "remove")(error)),
        _ => Ok(()),
    }
}
