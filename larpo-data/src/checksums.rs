//! Checksums of files, and the list of them that seals a folder.
//!
//! A sealed folder holds `checksums.json`, written last: name, length and FNV-1a checksum of every other file. [`verify`]
//! finds a byte that changed, a file cut short, one that is missing and one too many. Any single changed byte changes an
//! FNV-1a sum with certainty (each step is a bijection), anything else with probability 1 − 2⁻⁶⁴; it is no protection
//! against intent.

use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

/// The file that lists the others.
pub const LIST: &str = "checksums.json";

/// Length and checksum of a run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checksum {
    /// Number of bytes.
    pub bytes: u64,
    /// FNV-1a, 64 bits (Fowler, Noll and Vo).
    pub hash: u64,
}

impl Default for Checksum {
    fn default() -> Self {
        Self { bytes: 0, hash: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Checksum {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.add(bytes);
        sum
    }

    /// Of a file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let mut hashing = Hashing::new(io::sink());
        io::copy(&mut file, &mut hashing).map_err(Error::io(path, "read"))?;
        Ok(hashing.sum)
    }

    /// Takes in more bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for &byte in bytes {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// `LENGTH:HEX`, which [`FromStr`] reads again.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.bytes, self.hash)
    }
}

impl FromStr for Checksum {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (bytes, hash) = text.split_once(':').ok_or(())?;
        let sum = Self { bytes: bytes.parse().map_err(|_| ())?, hash: u64::from_str_radix(hash, 16).map_err(|_| ())? };
        // One way of writing it only.
        (sum.to_string() == text).then_some(sum).ok_or(())
    }
}

/// Passes bytes on while summing them.
pub(crate) struct Hashing<W> {
    inner: W,
    pub(crate) sum: Checksum,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, sum: Checksum::default() }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sum.add(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the list of the folder's files: the last thing to happen to it.
///
/// # Errors
/// A file that cannot be read, a list that cannot be written, a folder inside the folder.
pub fn seal(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    files::write_bytes(folder.join(LIST), text(&sums(folder)?).as_bytes())
}

/// Writes a list of some files of a folder, with the checksums that they have: the others may change, and [`verify_listed`]
/// compares these.
///
/// # Errors
/// A list that cannot be written.
pub fn list(folder: impl AsRef<Path>, files: &[(&str, Checksum)]) -> Result<()> {
    let sums: Vec<(String, Checksum)> = files.iter().map(|(name, sum)| (name.to_string(), *sum)).collect();
    files::write_bytes(folder.as_ref().join(LIST), text(&sums).as_bytes())
}

/// Compares every file of a sealed folder with the list.
///
/// # Errors
/// No list; the file that is changed, cut short, missing or not in the list, by name.
pub fn verify(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    let list = folder.join(LIST);
    let stored = fs::read(&list).map_err(Error::io(&list, "read"))?;
    let found = sums(folder)?;
    // Equal bytes say everything: a change in the list itself is a difference too.
    if stored == text(&found).as_bytes() {
        return Ok(());
    }
    let Some(expected) = expected(&stored) else {
        return Err(damaged(folder, LIST, "the list of checksums cannot be read".into()));
    };
    for (name, sum) in &found {
        match expected.get(name.as_str()) {
            None => return Err(damaged(folder, name, "the file is not in the list of checksums".into())),
            Some(known) => compare(folder, name, known, sum)?,
        }
    }
    match expected.keys().find(|name| !found.iter().any(|(known, _)| known == *name)) {
        Some(missing) => Err(damaged(folder, missing, "the file is missing".into())),
        None => Err(damaged(folder, LIST, "the list of checksums was changed".into())),
    }
}

/// [`verify`] for a folder that need not be sealed, and in which people may put files of their own: compares what a list
/// names, where there is one.
///
/// # Errors
/// The file that is changed, cut short or missing, by name; a list that is no JSON.
pub fn verify_listed(folder: impl AsRef<Path>) -> Result<()> {
    verify_some(folder.as_ref(), |_| true)
}

/// [`verify_listed`] for one file of the folder.
///
/// # Errors
/// As [`verify_listed`].
pub fn verify_file(folder: impl AsRef<Path>, name: &str) -> Result<()> {
    verify_some(folder.as_ref(), |listed| listed == name)
}

fn verify_some(folder: &Path, looked_at: impl Fn(&str) -> bool) -> Result<()> {
    let list = folder.join(LIST);
    let stored = match fs::read(&list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        stored => stored.map_err(Error::io(&list, "read"))?,
    };
    // JSON of another kind is a file of somebody else's.
    let expected = match serde_json::from_slice::<Value>(&stored) {
        Ok(list) => files_of(&list).unwrap_or_default(),
        Err(_) => {
            let mend = format!("Restore {LIST} from a copy, or remove it: then nothing is compared");
            return Err(Error::State { path: list, problem: "the list of checksums is damaged".into(), mend });
        }
    };
    let check = |(name, known): (&String, &Value)| match folder.join(name).is_file() {
        true => compare(folder, name, known, &Checksum::of_file(folder.join(name))?),
        false => Err(damaged(folder, name, "the file is missing".into())),
    };
    expected.iter().filter(|(name, _)| looked_at(name)).try_for_each(check).map_err(|error| match error {
        Error::State { path, problem, .. } => {
            let mend = format!("Restore the file from a copy; if it was changed on purpose, remove {LIST} beside it");
            Error::State { path, problem, mend }
        }
        error => error,
    })
}

fn damaged(folder: &Path, name: &str, problem: String) -> Error {
    let mend = "The folder is damaged: go on from an earlier checkpoint, or restore the file from a copy".into();
    Error::State { path: folder.join(name), problem, mend }
}

/// Checksums by file of a list as it is stored; None where it is none of this version.
fn expected(stored: &[u8]) -> Option<Map<String, Value>> {
    files_of(&serde_json::from_slice(stored).ok()?)
}

fn files_of(list: &Value) -> Option<Map<String, Value>> {
    list.get("files").and_then(Value::as_object).cloned()
}

fn compare(folder: &Path, name: &str, known: &Value, sum: &Checksum) -> Result<()> {
    match known.as_str().and_then(|text| text.parse::<Checksum>().ok()) {
        Some(known) if known.bytes != sum.bytes => {
            Err(damaged(folder, name, format!("it should have {} bytes and has {}", known.bytes, sum.bytes)))
        }
        Some(known) if known == *sum => Ok(()),
        _ => Err(damaged(folder, name, "its checksum does not fit".into())),
    }
}

/// Names and checksums of the files in a folder, sorted, the list left out.
fn sums(folder: &Path) -> Result<Vec<(String, Checksum)>> {
    let mut sums = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let entry = entry.map_err(Error::io(folder, "read"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != LIST {
            sums.push((name, Checksum::of_file(entry.path())?));
        }
    }
    sums.sort();
    Ok(sums)
}

/// The list as it stands in the file.
fn text(sums: &[(String, Checksum)]) -> String {
    let files: Map<String, Value> = sums.iter().map(|(name, sum)| (name.clone(), json!(sum.to_string()))).collect();
    format!("{:#}\n", json!({ "version": 1, "files": files }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_1a_gives_the_published_values() {
        // Test vectors of the FNV reference distribution.
        for (text, expected) in [("", 0xcbf29ce484222325), ("a", 0xaf63dc4c8601ec8c), ("foobar", 0x85944171f73967e8)] {
            assert_eq!(Checksum::of(text.as_bytes()).hash, expected, "{text}");
        }
    }

    #[test]
    fn a_sum_is_written_in_one_way() {
        let sum = Checksum::of(b"foobar");
        assert_eq!(sum.to_string(), "6:85944171f73967e8");
        assert_eq!("6:85944171f73967e8".parse(), Ok(sum));
        for other in ["06:85944171f73967e8", "6:85944171F73967e8", "+6:85944171f73967e8", "6:1", "6", ""] {
            assert_eq!(other.parse::<Checksum>(), Err(()), "{other}");
        }
    }

    #[test]
    fn every_change_to_a_sealed_folder_is_found_and_named() {
        let folder = std::env::temp_dir().join(format!("larpo-seal-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("creates");
        fs::write(folder.join("a"), "alpha").expect("writes");
        fs::write(folder.join("b"), "").expect("writes");
        seal(&folder).expect("seals");
        verify(&folder).expect("untouched");
        let refused = |name: &str, problem: &str| {
            let error = verify(&folder).expect_err("changed").to_string();
            assert!(error.contains(&folder.join(name).display().to_string()) && error.contains(problem), "{error}");
        };
        for (name, contents) in [("a", "alpha"), ("b", "")] {
            fs::write(folder.join(name), "alphb").expect("writes");
            refused(name, if name == "a" { "checksum" } else { "0 bytes and has 5" });
            fs::remove_file(folder.join(name)).expect("removes");
            refused(name, "missing");
            fs::write(folder.join(name), contents).expect("writes");
        }
        fs::write(folder.join("c"), "").expect("writes");
        refused("c", "not in the list");
        fs::remove_file(folder.join("c")).expect("removes");
        verify(&folder).expect("as before");
        // Every byte of the list counts.
        let list = fs::read(folder.join(LIST)).expect("reads");
        for at in 0..list.len() {
            let mut changed = list.clone();
            changed[at] ^= 1;
            fs::write(folder.join(LIST), changed).expect("writes");
            verify(&folder).expect_err("changed");
        }
        fs::remove_file(folder.join(LIST)).expect("removes");
        refused(LIST, "cannot read");
        fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn of_some_files_every_change_is_found_and_the_others_may_change() {
        let folder = std::env::temp_dir().join(format!("larpo-listed-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("creates");
        let write = |name: &str, contents: &[u8]| fs::write(folder.join(name), contents).expect("writes");
        let refused = |name: &str, problem: &str| {
            let error = verify_listed(&folder).expect_err(problem).to_string();
            assert!(error.contains(&folder.join(name).display().to_string()) && error.contains(problem), "{error}");
        };
        ["a", "b", "c"].into_iter().for_each(|name| write(name, b"alpha"));
        verify_listed(&folder).expect("no list");
        let sum = Checksum::of(b"alpha");
        list(&folder, &[("b", sum), ("a", sum)]).expect("writes");
        write("c", b"other");
        verify_listed(&folder).expect("as listed");
        for at in 0..5 {
            let mut changed = *b"alpha";
            changed[at] ^= 4;
            write("b", &changed);
            refused("b", "checksum");
            verify_file(&folder, "b").expect_err("changed");
            verify_file(&folder, "a").expect("as listed");
        }
        write("b", b"alph");
        refused("b", "5 bytes and has 4");
        fs::remove_file(folder.join("b")).expect("removes");
        refused("b", "missing");
        write("b", b"alpha");
        write(LIST, b"{\"files\"");
        refused(LIST, "damaged");
        write(LIST, b"[1]");
        verify_listed(&folder).expect("somebody else's");
        fs::remove_dir_all(&folder).expect("removes");
    }
}
