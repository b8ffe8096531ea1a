//! The fresh candidates of an iteration: drawn batch by batch into a file that an interrupted run goes on with, ranked, and
//! read back where they are there already, edited or not.

use crate::candidate_rows::{Known, from_row};
use crate::dataset::PromptRow;
use crate::error::{Error, Result};
use crate::generate::{candidate_lists, candidates, generate_batches};
use crate::messages::count;
use crate::policy::Policy;
use crate::reward::to_row;
use crate::stop::Stop;
use larpo_core::backend::Backend;
use larpo_core::candidates::CandidateList;
use larpo_core::reranker::Reranker;
use larpo_core::retriever::{SamplingConfig, prompts_per_batch};
use larpo_data::candidates::CandidateList as CandidateRow;
use larpo_data::checksums::Checksum;
use larpo_data::{files, partial};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// Ranked candidates.
const FILE: &str = "candidates.jsonl";
/// Their checksum as they were written, by which edits are found, and a line with the `prompt_index` of the rows that edits
/// changed or deleted before.
const SUM: &str = "candidates.checksum";
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
    /// Label of the progress bar.
    pub label: &'a str,
}

/// Whether the candidates of an iteration are all drawn already.
pub fn are_drawn(folder: &Path) -> bool {
    folder.join(FILE).is_file()
}

/// Candidates that a folder holds, not ranked again.
pub struct Stored {
    /// The lists; without log-probabilities where they were edited, because nothing tells which of them still hold.
    pub lists: Vec<CandidateList>,
    /// Whether they were edited since they were written before.
    pub edited: bool,
    /// `prompt_index` of the rows that edits changed or deleted, now or before.
    pub edited_rows: BTreeSet<usize>,
}

/// Draws and ranks the candidates of an iteration, best first in every list, and tells how many rows people edited. With a
/// folder they are left in `candidates.jsonl`; what is in the folder already is not drawn again.
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
) -> Result<(Vec<CandidateList>, usize)> {
    let Request { prompts, sampling, stop_strings, label } = request;
    let Some(folder) = folder else {
        let mut lists = candidates(policy, prompts, sampling, stop_strings, label)?;
        rank(&mut lists, reranker)?;
        return Ok((lists, 0));
    };
    if let Some(taken) = take_up(policy, request, folder, reranker)? {
        if !taken.edited {
            let (kept, all) = (taken.lists.len(), count(prompts.len(), "prompts"));
            say!("{label}: kept the candidates of {kept} of {all}, all of which were drawn and ranked before");
        }
        return Ok((taken.lists, taken.edited_rows.len()));
    }
    let path = folder.join(PARTIAL);
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
    Ok((lists, 0))
}

/// Candidates that an iteration has left in `folder`, best first in every list; None where they are not complete. Edited
/// ones are ranked anew and written as they are now.
///
/// # Errors
/// As [`draw`].
pub fn take_up<B: Backend>(
    policy: &Policy<B>,
    request: Request,
    folder: &Path,
    reranker: &mut dyn Reranker,
) -> Result<Option<Stored>> {
    let Request { prompts, sampling, stop_strings, .. } = request;
    let Some(mut taken) = stored(policy, prompts, sampling.iteration, folder)? else { return Ok(None) };
    rank(&mut taken.lists, reranker)?;
    match taken.edited {
        true => {
            let fewer = |list: &&CandidateList| list.candidates.len() != sampling.num_generations;
            taken.edited_rows.extend(taken.lists.iter().filter(fewer).map(|list| list.prompt_index));
            write(folder, &taken.lists, stop_strings, &taken.edited_rows)?;
        }
        false => forget_drawn(folder)?,
    }
    Ok(Some(taken))
}

/// How many rows of the candidates in `folder` were edited and taken up again, as recorded beside them.
pub fn edited_rows(folder: &Path) -> usize {
    let recorded = fs::read_to_string(folder.join(SUM)).unwrap_or_default();
    recorded.lines().nth(1).map_or(0, |rows| rows.split(' ').filter(|row| !row.is_empty()).count())
}

/// Candidates that `folder` holds. None where they are not complete.
///
/// # Errors
/// A file that cannot be read, rows that are malformed or do not belong to `prompts`.
fn stored<B: Backend>(
    policy: &Policy<B>,
    prompts: &[PromptRow],
    iteration: u32,
    folder: &Path,
) -> Result<Option<Stored>> {
    let (path, sum) = (folder.join(FILE), folder.join(SUM));
    let Ok(recorded) = fs::read_to_string(&sum) else { return Ok(None) };
    let (recorded, before) = recorded.trim().split_once('\n').unwrap_or((recorded.trim(), ""));
    let edited = recorded != Checksum::of_file(&path)?.to_string();
    let mut edited_rows: BTreeSet<usize> = before.split(' ').filter_map(|index| index.parse().ok()).collect();
    let by_index: HashMap<usize, &PromptRow> = prompts.iter().map(|prompt| (prompt.index, prompt)).collect();
    let mut seen: HashMap<usize, usize> = HashMap::new();
    let mut lists = Vec::with_capacity(prompts.len());
    let mut changed = 0;
    for (line, row) in larpo_data::candidates::read_numbered(&path)? {
        let at = |problem: &str| Error::request(format!("{}:{line}: {problem}", path.display()));
        let index = row.prompt_index.filter(|index| by_index.contains_key(index)).ok_or_else(|| {
            at("`prompt_index` is not that of a prompt of this iteration; delete the row, or restore the number")
        })?;
        if by_index[&index].text != row.prompt {
            return Err(at(&format!(
                "`prompt` is not row {index} of the data any more; restore it, or delete the row"
            )));
        }
        if let Some(first) = seen.insert(index, line) {
            return Err(at(&format!("`prompt_index` {index} is that of line {first} too; make one row of the two")));
        }
        let known = Known { prompt_index: index, iteration, untouched: !edited };
        let mut list = from_row(policy, &row, None, known).map_err(|error| at(&error.to_string()))?;
        if edited {
            let anew =
                list.candidates.iter().enumerate().filter(|(i, c)| row.token_ids.get(*i) != Some(&c.ids)).count();
            changed += anew;
            edited_rows.extend((anew > 0).then_some(index));
            list.candidates.iter_mut().for_each(|candidate| candidate.logps.clear());
        }
        lists.push(list);
    }
    if edited {
        edited_rows.extend(by_index.keys().filter(|index| !seen.contains_key(index)));
        say!(
            "note: {} was edited since it was written: {} of {}, {} encoded anew; all are ranked anew and their \
             log-probabilities computed anew",
            path.display(),
            lists.len(),
            count(prompts.len(), "prompts"),
            count(changed, "responses")
        );
    }
    Ok(Some(Stored { lists, edited, edited_rows }))
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
        list.candidates.sort_by(|a, b| b.reward.total_cmp(&a.reward));
    }
    Ok(())
}

/// Writes ranked candidates; the checksum says that they are complete, and only then the drawn ones go.
fn write(folder: &Path, lists: &[CandidateList], stop_strings: &[String], edited: &BTreeSet<usize>) -> Result<()> {
    let path = folder.join(FILE);
    let rows: Vec<_> = lists.iter().map(|list| to_row(list, stop_strings)).collect();
    larpo_data::candidates::write(&path, &rows)?;
    let mut sum = format!("{}\n", Checksum::of_file(&path)?);
    if !edited.is_empty() {
        sum += &edited.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
        sum.push('\n');
    }
    files::write_bytes(folder.join(SUM), sum.as_bytes())?;
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
