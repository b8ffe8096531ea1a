//! Tokenised rows on disk, so that a later run with the same data, tokenizer and settings need not tokenise again.
//!
//! A file is named by the hash of all that decides its contents and holds that hash too. It is checked as a whole before
//! it is used: one that is damaged, foreign, of another version or of another shape is made anew. Nothing depends on the
//! cache but time. It is kept small: what nobody used for three months goes, and the longest unused beyond four GiB.

use crate::args::DataArgs;
use crate::cache_folder;
use crate::error::Result;
use larpo_data::state::{load_state, save_state};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Goes up with every change of what the ids of a row are.
const VERSION: u32 = 1;
/// A file this small is tokenised in less time than a person notices: it is not kept unless a folder is named.
const WORTH_KEEPING: usize = 1 << 20;
const KIND: &str = "tokens";
/// What the cache may hold before the longest unused files are removed, in bytes.
const MAX_BYTES: u64 = 4 << 30;
/// Files that were not used for so long are removed.
const MAX_AGE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// The ids of a prompt, as the tokenizer begins a text, and of its responses, without an end-of-text token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Encoded {
    pub(crate) prompt: Vec<u32>,
    pub(crate) responses: Vec<Vec<u32>>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    key: u128,
    rows: Vec<Encoded>,
}

/// Where tokenised rows are kept; nowhere if `folder` is none.
#[derive(Debug, Clone)]
pub(crate) struct TokenCache {
    folder: Option<PathBuf>,
    data: Hash,
}

impl TokenCache {
    /// The cache that the flags ask for, for the data `bytes` of a file named `path`.
    pub(crate) fn new(args: &DataArgs, path: &Path, bytes: &[u8]) -> Self {
        let folder = match &args.cache_dir {
            _ if args.no_cache => None,
            Some(folder) => Some(folder.clone()),
            None if bytes.len() < WORTH_KEEPING => None,
            None => cache_folder::larpo(),
        };
        let mut data = Hash::default();
        if folder.is_some() {
            data.add(&VERSION.to_le_bytes());
            data.add(env!("CARGO_PKG_VERSION").as_bytes());
            // The name tells the form of the file.
            data.add(path.file_name().unwrap_or_default().as_encoded_bytes());
            data.add(bytes);
        }
        Self { folder, data }
    }

    /// The rows kept under `tokenizer` (its tokenizer.json) and `settings`, or those that `make` gives. Kept ones must have
    /// as many responses as `shape` says, and ids below `vocab_size`.
    pub(crate) fn rows(
        &self,
        tokenizer: &str,
        settings: &str,
        shape: &[usize],
        vocab_size: usize,
        make: impl FnOnce() -> Result<Vec<Encoded>>,
    ) -> Result<Vec<Encoded>> {
        let Some(folder) = &self.folder else {
            debug!("tokenised data: not kept");
            return make();
        };
        let mut key = self.data;
        key.add(tokenizer.as_bytes());
        key.add(settings.as_bytes());
        let path = folder.join(format!("tokens-{:032x}.bin", key.0));
        if path.exists() {
            match load_state::<Stored>(&path, KIND) {
                Ok(stored) if stored.key == key.0 && fits(&stored.rows, shape, vocab_size) => {
                    // The time of the file tells when it was used. A read-only cache does without.
                    let file = std::fs::File::options().append(true).open(&path);
                    let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
                    debug!("tokenised data: taken from {}", path.display());
                    return Ok(stored.rows);
                }
                Ok(_) => say!("note: {} belongs to other data and is made anew", path.display()),
                Err(error) => {
                    debug!("{error}");
                    say!("note: {} is damaged, or of another version, and is made anew", path.display());
                }
            }
        }
        debug!("tokenised data: made, for {}", path.display());
        let stored = Stored { key: key.0, rows: make()? };
        // A full or read-only disk costs time at the next run, and nothing else.
        let kept = std::fs::create_dir_all(folder).map_err(|error| error.to_string());
        evict(folder, SystemTime::now(), MAX_BYTES);
        if let Err(error) = kept.and_then(|()| save_state(&path, KIND, &stored).map_err(|error| error.to_string())) {
            say!("note: tokenised data are not kept in {} ({error}); --no_cache goes without", folder.display());
        }
        Ok(stored.rows)
    }
}

/// Removes the cache's files that were not used for [`MAX_AGE`], and the longest unused ones beyond `max_bytes`. What cannot be
/// removed stays: another run may have done it, or the folder may be read-only.
fn evict(folder: &Path, now: SystemTime, max_bytes: u64) {
    let file = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        // What a killed run left under a temporary name too.
        let ours = name.starts_with("tokens-") && name.ends_with(".bin") || name.starts_with(".tokens-");
        let about = entry.metadata().ok().filter(|about| ours && about.is_file())?;
        Some((now.duration_since(about.modified().ok()?).unwrap_or_default(), about.len(), entry.path()))
    };
    let mut files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(file).collect();
    files.sort();
    let mut held = 0;
    for (unused, bytes, path) in files {
        held += bytes;
        if unused > MAX_AGE || held > max_bytes {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn fits(rows: &[Encoded], shape: &[usize], vocab_size: usize) -> bool {
    let known = |ids: &[u32]| ids.iter().all(|&id| (id as usize) < vocab_size);
    let row = |(row, &responses): (&Encoded, &usize)| {
        row.responses.len() == responses && known(&row.prompt) && row.responses.iter().all(|ids| known(ids))
    };
    rows.len() == shape.len() && rows.iter().zip(shape).all(row)
}

/// FNV-1a of 128 bits (Fowler, Noll and Vo) over texts with their lengths.
#[derive(Debug, Clone, Copy)]
struct Hash(u128);

impl Default for Hash {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Hash {
    /// Adds a text and its length: no two series of texts are the same bytes.
    fn add(&mut self, text: &[u8]) {
        self.bytes(&(text.len() as u64).to_le_bytes());
        self.bytes(text);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_is_kept_is_checked_and_made_anew_where_it_is_not_right() {
        let folder = std::env::temp_dir().join(format!("larpo-token-cache-{}", std::process::id()));
        let cache = TokenCache { folder: Some(folder.clone()), data: Hash::default() };
        let rows = vec![Encoded { prompt: vec![1, 2], responses: vec![vec![3], vec![]] }];
        let made = Cell::new(0);
        let make = || {
            made.set(made.get() + 1);
            Ok(rows.clone())
        };
        let get = |tokenizer: &str, settings: &str, shape: &[usize], vocab: usize| {
            assert_eq!(cache.rows(tokenizer, settings, shape, vocab, make).expect("made or kept"), rows);
            made.get()
        };
        assert_eq!((get("t", "s", &[2], 4), get("t", "s", &[2], 4)), (1, 1), "made once, then kept");
        assert_eq!((get("t2", "s", &[2], 4), get("t", "s2", &[2], 4), get("ts", "", &[2], 4)), (2, 3, 4));
        assert_eq!(get("t", "s", &[2], 4), 4);
        // Of another shape, or with an id that the tokenizer does not have.
        assert_eq!((get("t", "s", &[1], 4), get("t", "s", &[2, 2], 4), get("t", "s", &[2], 3)), (5, 6, 7));
        let mut path = std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let (a, b) = (path.next().expect("a file"), path.next().expect("a second file"));
        let whole = std::fs::read(&a).expect("reads");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&a, &damaged).expect("writes");
            let before = made.get();
            let all = [("t", "s"), ("t2", "s"), ("t", "s2"), ("ts", "")].map(|(t, s)| get(t, s, &[2], 4));
            assert_eq!(all[3], before + 1, "byte {at}: made anew once");
        }
        // A file under another's name is whole, and foreign.
        std::fs::copy(&b, &a).expect("copies");
        let before = made.get();
        let last = [("t", "s"), ("t2", "s"), ("t", "s2"), ("ts", "")].map(|(t, s)| get(t, s, &[2], 4))[3];
        assert_eq!(last, before + 1);
        std::fs::remove_dir_all(&folder).expect("removes");
        // No folder can be made where a file is.
        std::fs::write(&folder, "").expect("writes");
        assert!(get("t", "s", &[2], 4) > last && get("t", "s", &[2], 4) > last + 1);
        std::fs::remove_file(&folder).expect("removes");
    }

    #[test]
    fn what_is_long_unused_goes_first() {
        let folder = std::env::temp_dir().join(format!("larpo-token-cache-evict-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("creates");
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 60 * 60);
        let put = |name: &str, days: u32| {
            std::fs::write(folder.join(name), [0; 10]).expect("writes");
            let file = std::fs::File::options().append(true).open(folder.join(name)).expect("opens");
            file.set_modified(now - day * days).expect("sets");
        };
        let files = [
            ("tokens-a.bin", 1),
            ("tokens-b.bin", 5),
            ("tokens-c.bin", 91),
            (".tokens-d.bin.1-0.tmp", 100),
            ("mine", 400),
        ];
        let left = |max_bytes| {
            evict(&folder, now, max_bytes);
            files.map(|(name, _)| folder.join(name).exists())
        };
        files.into_iter().for_each(|(name, days)| put(name, days));
        assert_eq!(left(100), [true, true, false, false, true], "three months");
        assert_eq!(left(20), [true, true, false, false, true], "there is room for two");
        assert_eq!(left(19), [true, false, false, false, true], "the longest unused goes");
        // A file that is used is young again.
        let cache = TokenCache { folder: Some(folder.clone()), data: Hash::default() };
        let rows = || cache.rows("t", "s", &[], 4, || Ok(Vec::new())).expect("made or kept");
        rows();
        let path = std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let path = path.max_by_key(|path| path.as_os_str().len()).expect("the new file");
        let name = path.file_name().expect("a name").to_str().expect("UTF-8");
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::File::options().append(true).open(&path).and_then(|f| f.set_modified(now - day * 30)).expect("sets");
        rows();
        let age = now.duration_since(std::fs::metadata(&path).expect("is there").modified().expect("a time"));
        assert!(age.unwrap_or_default() < day && std::fs::read(&path).expect("reads") == bytes, "{name}");
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    /// Damage behind a checksum that fits. `LARPO_MUTATIONS` is the number of mutations, as in larpo-data.
    #[test]
    fn no_mutation_of_a_kept_file_is_trusted() {
        let folder = std::env::temp_dir().join(format!("larpo-token-cache-mutations-{}", std::process::id()));
        let cache = TokenCache { folder: Some(folder.clone()), data: Hash::default() };
        let rows: Vec<Encoded> =
            (0..4).map(|i| Encoded { prompt: vec![i, 70_000], responses: vec![vec![i; 3], vec![]] }).collect();
        let get = || cache.rows("t", "s", &[2; 4], 70_001, || Ok(rows.clone())).expect("made or kept");
        assert_eq!(get(), rows);
        let path = std::fs::read_dir(&folder).expect("a folder").next().expect("a file").expect("an entry").path();
        let whole = std::fs::read(&path).expect("reads");
        let start = 8 + 4 + 4 + KIND.len() + 16;
        let mutations = std::env::var("LARPO_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000u64);
        // Marsaglia's xorshift64.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as usize % n.max(1)
        };
        for _ in 0..mutations {
            let mut payload = whole[start..].to_vec();
            for _ in 0..=random(3) {
                let at = random(payload.len());
                match random(4) {
                    0 => payload[at] = random(256) as u8,
                    1 => payload.truncate(at + 1),
                    2 => payload.insert(at, random(256) as u8),
                    _ => drop(payload.splice(at..at, [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])),
                }
            }
            let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            let length = payload.len() as u64;
            let bytes = [&whole[..start - 16], &length.to_le_bytes(), &hash.to_le_bytes(), &payload].concat();
            std::fs::write(&path, bytes).expect("writes");
            // Whoever makes the checksum fit may put ids there, but only rows of the right shape with known ids.
            assert!(fits(&get(), &[2; 4], 70_001));
        }
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // Test vectors of the FNV reference distribution.
        let hash = |text: &str| {
            let mut hash = Hash::default();
            hash.bytes(text.as_bytes());
            hash.0
        };
        assert_eq!(hash("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }
}
