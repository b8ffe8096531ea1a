//! Whole-file reading with named errors, and writing that never leaves a half-written file or folder behind.
//!
//! There is one way to write here: under a temporary name in the same folder, forced to disk, renamed into place, and the
//! folder's own entry forced to disk too. After a crash at any instant a name stands for the old contents or the new ones.
//! What a killed process leaves are temporary names, which [`remove_leftovers`] clears away.

use crate::error::{Error, RecordError, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads a text file; text that is not UTF-8 is refused with the line of the first bad byte.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(Error::Unrecognised {
            path: path.into(),
            found: "the file is compressed with gzip".into(),
            mend: "Unpack it, for example with `gunzip -k`".into(),
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => utf8(path, error.as_bytes()).map(str::to_string),
    }
}

/// The bytes as text, or an error with the line of the first bad byte.
pub(crate) fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let line = 1 + bytes[..at].iter().filter(|&&b| b == b'\n').count();
        not_utf8(path, line, bytes[at], at)
    })
}

/// The complaint about the byte at `offset`.
pub(crate) fn not_utf8(path: &Path, line: usize, byte: u8, offset: usize) -> Error {
    RecordError {
        path: path.to_path_buf(),
        line,
        field: String::new(),
        expected: "UTF-8 text".into(),
        found: format!("the byte 0x{byte:02X} at offset {offset}, which is not UTF-8"),
        mend: "Convert the file to UTF-8, for example with `iconv -t UTF-8`".into(),
        element: None,
        of_the_file: false,
    }
    .into()
}

/// Writes `path` through `fill` under a temporary name, forces it to disk, then renames it into place: a reader sees
/// the old file or the new one, never a part.
pub(crate) fn write_atomic(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let temporary = temporary_name(path);
    let written = (|| {
        let file = File::create(&temporary).map_err(Error::io(path, "create"))?;
        let mut writer = BufWriter::new(file);
        fill(&mut writer)?;
        writer.flush().map_err(Error::io(path, "write"))?;
        writer.get_ref().sync_all().map_err(Error::io(path, "write to disk"))?;
        drop(writer);
        fs::rename(&temporary, path).map_err(Error::io(path, "replace"))
    })();
    if written.is_err() {
        // The first error is the one worth reporting.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder_of(path)
}

/// Writes a file at once and durably: afterwards it holds `bytes`, after a failure or a crash what it held before.
///
/// # Errors
/// A file that cannot be written.
pub fn write_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    write_atomic(path, |w| w.write_all(bytes).map_err(Error::io(path, "write")))
}

/// Makes a folder at once and durably: `fill` gets an empty folder under a temporary name, which is renamed to `path` when
/// everything in it is on disk. A folder that was there is replaced.
///
/// # Errors
/// What `fill` reports, or a folder that cannot be made; what was at `path` is then still there.
pub fn write_folder<E: From<Error>>(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let path = path.as_ref();
    let temporary = temporary_name(path);
    let written = (|| {
        fs::create_dir(&temporary).map_err(Error::io(path, "create the folder"))?;
        fill(&temporary)?;
        sync_folder(&temporary)?;
        // A folder that is not empty cannot be renamed over; the old one goes out of the way first.
        remove_folder(path)?;
        fs::rename(&temporary, path).map_err(Error::io(path, "put in place"))?;
        Ok(())
    })();
    if written.is_err() {
        let _ = fs::remove_dir_all(&temporary);
        return written;
    }
    Ok(sync_folder_of(path)?)
}

/// Removes a folder at once: it is renamed before its files go, so no reader meets a part of it. A folder that is not
/// there is fine.
///
/// # Errors
/// A folder that cannot be removed.
pub fn remove_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let temporary = temporary_name(path);
    match fs::rename(path, &temporary) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(Error::io(path, "remove"))?,
    }
    sync_folder_of(path)?;
    fs::remove_dir_all(&temporary).map_err(Error::io(path, "remove"))
}

/// Removes what killed processes left under temporary names in `folder`. Nobody else may be writing there.
///
/// # Errors
/// A folder that cannot be read, a file in it that cannot be removed.
pub fn remove_leftovers(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if path.file_name().is_some_and(|name| is_temporary(&name.to_string_lossy())) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

/// Creates a folder and its parents.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))
}

/// A name beside `path` that no other writer of this or another process uses.
fn temporary_name(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()))
}

/// Whether [`temporary_name`] makes such names.
fn is_temporary(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let middle = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    let numbers = middle.and_then(|name| name.rsplit_once('.')).and_then(|(_, end)| end.split_once('-'));
    numbers.is_some_and(|(process, count)| number(process) && number(count))
}

/// Makes the entry of `path` in its folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> Result<()> {
    sync_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes the entries of a folder durable. Only Unix can open a folder to do so; elsewhere the files are complete either way.
fn sync_folder(folder: &Path) -> Result<()> {
    match cfg!(unix) {
        true => File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder, "write to disk")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("larpo-files-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a temporary folder");
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").file_name());
        let mut names: Vec<String> = entries.map(|n| n.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_as_a_whole_or_stays_as_it_was() {
        let scratch = scratch("folder");
        let path = scratch.join("checkpoint-1");
        let fill = |text: &'static str| move |folder: &Path| write_bytes(folder.join("a"), text.as_bytes());
        write_folder(&path, fill("first")).expect("writes");
        write_folder(&path, fill("second")).expect("replaces");
        assert_eq!(fs::read_to_string(path.join("a")).expect("reads"), "second");
        let failing = |folder: &Path| -> Result<()> {
            write_bytes(folder.join("a"), b"third")?;
            write_bytes(folder.join("no/such/folder"), b"")
        };
        write_folder(&path, failing).expect_err("cannot be written");
        assert_eq!(fs::read_to_string(path.join("a")).expect("reads"), "second");
        assert_eq!(names(&scratch), ["checkpoint-1"]);
        remove_folder(&path).expect("removes");
        remove_folder(&path).expect("is not there");
        assert!(names(&scratch).is_empty());
        fs::remove_dir_all(&scratch).expect("removes");
    }

    #[test]
    fn leftovers_are_told_from_files_of_people() {
        let scratch = scratch("leftovers");
        let left = temporary_name(&scratch.join("model.safetensors"));
        fs::write(&left, "half").expect("writes");
        fs::create_dir(temporary_name(&scratch.join("checkpoint-2"))).expect("creates");
        let mine = [".notes.tmp", ".notes.1-.tmp", ".notes.x-1.tmp", "notes.1-2.tmp", "a"];
        for name in mine {
            fs::write(scratch.join(name), "mine").expect("writes");
        }
        assert!(is_temporary(&left.file_name().expect("a name").to_string_lossy()));
        remove_leftovers(&scratch).expect("removes");
        let mut expected = mine.map(String::from);
        expected.sort();
        assert_eq!(names(&scratch), expected);
        fs::remove_dir_all(&scratch).expect("removes");
    }
}
