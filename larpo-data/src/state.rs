//! Trainer state on disk: any serde value, in bincode behind a checked header.
//!
//! Layout, little-endian: magic `LARPOST\n` (8 bytes), format version u32, length of the kind u32, kind (UTF-8), length
//! of the payload u64, FNV-1a checksum of the payload u64, payload.
//!
//! bincode is used in this module only. It is unmaintained (RUSTSEC-2025-0141), and version 3.0.0 on crates.io is
//! nothing but a `compile_error!`; so it is pinned to 2.0.1, and the format version below lets another encoding take
//! its place without a guess at what a file holds.

use crate::checksums::Hashing;
use crate::error::{Error, Result};
use crate::files;
use bincode::error::{DecodeError, EncodeError};
use bincode::serde::decode_from_std_read;
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"LARPOST\n";
/// The version written, and the only one read.
pub const FORMAT_VERSION: u32 = 2;
/// A longer kind means that the header is damaged.
const MAX_KIND: u32 = 256;

/// Writes `value` under a temporary name and renames it to `path`. `kind` says what the value is ("trainer", "cache")
/// and is asked for again on loading.
///
/// serde's `flatten`, `untagged`, `tag` and `skip_serializing_if` do not work with this format, which writes no names.
///
/// # Errors
/// The value cannot be serialised, or the file cannot be written.
pub fn save_state<T: Serialize + ?Sized>(path: impl AsRef<Path>, kind: &str, value: &T) -> Result<()> {
    let path = path.as_ref();
    files::write_atomic(path, |writer| {
        let io = || Error::io(path, "write");
        writer.write_all(MAGIC).map_err(io())?;
        writer.write_all(&FORMAT_VERSION.to_le_bytes()).map_err(io())?;
        writer.write_all(&(kind.len() as u32).to_le_bytes()).map_err(io())?;
        writer.write_all(kind.as_bytes()).map_err(io())?;
        // Length and checksum are known at the end: keep the place, stream the payload, come back.
        let place = writer.stream_position().map_err(io())?;
        writer.write_all(&[0; 16]).map_err(io())?;
        let mut hashed = Hashing::new(&mut *writer);
        bincode::serde::encode_into_std_write(value, &mut hashed, bincode::config::standard()).map_err(|error| {
            match error {
                EncodeError::Io { inner, .. } => io()(inner),
                error => State(path).error(format!("the value cannot be written: {error}"), "Check the value"),
            }
        })?;
        let (hash, length) = (hashed.sum.hash, hashed.sum.bytes);
        writer.seek(SeekFrom::Start(place)).map_err(io())?;
        writer.write_all(&length.to_le_bytes()).map_err(io())?;
        writer.write_all(&hash.to_le_bytes()).map_err(io())
    })
}

/// Reads a value that [`save_state`] wrote with the same `kind`.
///
/// # Errors
/// A file that is foreign, of another version or kind, cut short, damaged (checksum), or of another shape than `T`.
pub fn load_state<T: DeserializeOwned>(path: impl AsRef<Path>, kind: &str) -> Result<T> {
    let path = path.as_ref();
    let state = State(path);
    let io = || Error::io(path, "read");
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path, "open"))?);
    if state.take::<8>(&mut file).is_ok_and(|magic| magic != *MAGIC) {
        return Err(state.error("not a state file", "Give a file that was written by the same program"));
    }
    let version = u32::from_le_bytes(state.take(&mut file)?);
    if version != FORMAT_VERSION {
        let problem = format!("the state has format version {version}, this program reads {FORMAT_VERSION}");
        return Err(state.error(problem, "Use the version of the program that wrote it"));
    }
    let kind_length = u32::from_le_bytes(state.take(&mut file)?);
    if kind_length > MAX_KIND {
        return Err(state.damaged("its header is not plausible"));
    }
    let mut found = vec![0; kind_length as usize];
    file.read_exact(&mut found).map_err(|_| state.damaged("it ends inside the header"))?;
    if found != kind.as_bytes() {
        let problem =
            format!("the file holds a state of kind {:?}, expected {kind:?}", String::from_utf8_lossy(&found));
        return Err(state.error(problem, "Give the file that belongs here"));
    }
    let length = u64::from_le_bytes(state.take(&mut file)?);
    let hash = u64::from_le_bytes(state.take(&mut file)?);
    let start = file.stream_position().map_err(io())?;
    let size = file.get_ref().metadata().map_err(io())?.len();
    if size != start.saturating_add(length) {
        let problem = format!("it should have {} bytes and has {size}", start.saturating_add(length));
        return Err(state.damaged(&problem));
    }
    // First the checksum over the whole payload, then the decoder: it never sees damaged bytes.
    let mut sum = Hashing::new(io::sink());
    io::copy(&mut file, &mut sum).map_err(io())?;
    if sum.sum.hash != hash {
        return Err(state.damaged("its checksum does not fit"));
    }
    file.seek(SeekFrom::Start(start)).map_err(io())?;
    let mut payload = file.take(length);
    let other = "it was written by another version of the program, or holds another type";
    let value = decode(&mut payload, length)
        .map_err(|error| state.error(format!("the contents cannot be understood ({error})"), other))?;
    if payload.limit() != 0 {
        return Err(state.error("the contents are longer than expected", other));
    }
    Ok(value)
}

/// Decodes a payload of `length` bytes. The decoder takes memory for a text as soon as it has read its length; a limit that
/// is no more than 256 times the payload keeps it from believing any. It counts up to 16 bytes for one of the payload.
fn decode<T: DeserializeOwned>(payload: &mut impl Read, length: u64) -> std::result::Result<T, DecodeError> {
    const fn bytes(bits: u32) -> usize {
        match 1usize.checked_shl(bits) {
            Some(bytes) => bytes,
            None => usize::MAX,
        }
    }
    let standard = bincode::config::standard();
    match u64::BITS - length.saturating_mul(16).leading_zeros() {
        0..=16 => decode_from_std_read(payload, standard.with_limit::<{ bytes(16) }>()),
        17..=20 => decode_from_std_read(payload, standard.with_limit::<{ bytes(20) }>()),
        21..=24 => decode_from_std_read(payload, standard.with_limit::<{ bytes(24) }>()),
        25..=28 => decode_from_std_read(payload, standard.with_limit::<{ bytes(28) }>()),
        29..=32 => decode_from_std_read(payload, standard.with_limit::<{ bytes(32) }>()),
        33..=36 => decode_from_std_read(payload, standard.with_limit::<{ bytes(36) }>()),
        37..=40 => decode_from_std_read(payload, standard.with_limit::<{ bytes(40) }>()),
        _ => decode_from_std_read(payload, standard.with_limit::<{ bytes(48) }>()),
    }
}

/// Makes errors about one file.
struct State<'a>(&'a Path);

impl State<'_> {
    fn error(&self, problem: impl Into<String>, mend: &str) -> Error {
        Error::State { path: self.0.into(), problem: problem.into(), mend: mend.into() }
    }

    fn damaged(&self, how: &str) -> Error {
        self.error(
            format!("the state file is damaged: {how}"),
            "Restore it from a copy, or go on from an earlier checkpoint",
        )
    }

    fn take<const N: usize>(&self, file: &mut impl Read) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        file.read_exact(&mut bytes).map_err(|_| self.damaged("it ends inside the header"))?;
        Ok(bytes)
    }
}
