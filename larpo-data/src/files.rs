//! Whole-file reading with named errors, and writing that never leaves a half-written file behind.

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
    }
    .into()
}

/// Writes `path` through `fill` under a temporary name, forces it to disk, then renames it into place: a reader sees
/// the old file or the new one, never a part.
pub(crate) fn write_atomic(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let temporary = temporary_name(path);
    let written = (|| {
        let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        let mut writer = BufWriter::new(file);
        fill(&mut writer)?;
        writer.flush().map_err(Error::io(&temporary, "write"))?;
        writer.get_ref().sync_all().map_err(Error::io(&temporary, "write to disk"))?;
        drop(writer);
        fs::rename(&temporary, path).map_err(Error::io(path, "replace"))
    })();
    if written.is_err() {
        // The first error is the one worth reporting.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(path);
    Ok(())
}

/// [`write_atomic`] for bytes already in memory.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |w| w.write_all(bytes).map_err(Error::io(path, "write")))
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

/// Makes the rename itself durable. Not every system can open a folder; the file is complete either way.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
