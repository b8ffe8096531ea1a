//! The safetensors container: headers, one tensor at a time in, one tensor at a time out.

use super::Stored;
use crate::error::{Error, Result};
use crate::files;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Headers above this are refused, as the format's own library does.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes converted at a time; a multiple of every element size.
const CHUNK: usize = 1 << 16;
/// Buffers that are no parameters are held until the model is written; larger ones are not what their name says.
const MAX_BUFFER: usize = 1 << 20;

fn fail(path: &Path, name: &str, problem: impl Into<String>) -> Error {
    Error::Tensor { path: path.to_path_buf(), name: name.into(), problem: problem.into() }
}

/// The header of a safetensors file.
pub(super) struct Header {
    /// Texts that go with the file.
    pub(super) metadata: HashMap<String, String>,
    /// The tensors in the order in which they lie in the file.
    pub(super) tensors: Vec<(String, Stored)>,
}

/// Reads the header of a safetensors file: names, formats, shapes and places, checked against the file's length.
pub(super) fn read_header(path: &Path) -> Result<Header> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let mut size = [0u8; 8];
    if length < 8 {
        return Err(fail(path, "", format!("{length} bytes are too few for a safetensors file")));
    }
    file.read_exact(&mut size).map_err(Error::io(path, "read"))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size + 8 > length {
        return Err(fail(
            path,
            "",
            format!("not a safetensors file, or cut short: it announces a header of {size} bytes and has {length}"),
        ));
    }
    let mut header = vec![0u8; size as usize];
    file.read_exact(&mut header).map_err(Error::io(path, "read"))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| fail(path, "", format!("the header cannot be read: {e}")))?;
    let data_start = 8 + size;
    let announced = data_start + metadata.data_len() as u64;
    if announced != length {
        return Err(fail(
            path,
            "",
            format!("the header announces {announced} bytes and the file has {length}; download or write it again"),
        ));
    }
    let stored = |name: String| {
        let info = metadata.info(&name)?.clone();
        Some((name, Stored { file: path.to_path_buf(), data_start, info }))
    };
    let tensors = metadata.offset_keys().into_iter().filter_map(stored).collect();
    Ok(Header { metadata: metadata.metadata().clone().unwrap_or_default(), tensors })
}

/// Calls `with` for the bytes of a tensor, a chunk at a time.
fn read_chunks(stored: &Stored, mut with: impl FnMut(&[u8])) -> Result<()> {
    let path = &stored.file;
    let (start, end) = stored.info.data_offsets;
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    file.seek(SeekFrom::Start(stored.data_start + start as u64)).map_err(Error::io(path, "read"))?;
    let mut buffer = vec![0u8; CHUNK.min(end - start)];
    let mut left = end - start;
    while left > 0 {
        let part = &mut buffer[..left.min(CHUNK)];
        file.read_exact(part).map_err(Error::io(path, "read"))?;
        with(part);
        left -= part.len();
    }
    Ok(())
}

/// Reads a small tensor as it is.
pub(super) fn read_bytes(name: &str, stored: &Stored) -> Result<Vec<u8>> {
    let (start, end) = stored.info.data_offsets;
    if end - start > MAX_BUFFER {
        return Err(fail(&stored.file, name, format!("{} bytes are too many for a buffer of this name", end - start)));
    }
    let mut bytes = Vec::new();
    read_chunks(stored, |part| bytes.extend_from_slice(part))?;
    Ok(bytes)
}

/// Whether two tensors are the same in format, shape and every bit.
pub(super) fn same(a: &Stored, b: &Stored) -> Result<bool> {
    if (a.info.dtype, &a.info.shape) != (b.info.dtype, &b.info.shape) {
        return Ok(false);
    }
    let mut equal = true;
    let mut second = File::open(&b.file).map_err(Error::io(&b.file, "open"))?;
    let start = b.data_start + b.info.data_offsets.0 as u64;
    second.seek(SeekFrom::Start(start)).map_err(Error::io(&b.file, "read"))?;
    let (mut other, mut broken) = (vec![0u8; CHUNK], None);
    read_chunks(a, |part| {
        let other = &mut other[..part.len()];
        match second.read_exact(other) {
            Ok(()) => equal &= part == other,
            Err(error) => broken = Some(error),
        }
    })?;
    broken.map_or(Ok(equal), |error| Err(Error::io(&b.file, "read")(error)))
}

/// A one in a format, little-endian; `None` of formats that masks are not stored in.
fn one(dtype: Dtype) -> Option<Vec<u8>> {
    Some(match dtype {
        Dtype::F32 => 1f32.to_le_bytes().to_vec(),
        Dtype::F16 => f16::ONE.to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::ONE.to_le_bytes().to_vec(),
        Dtype::U8 | Dtype::I8 | Dtype::BOOL => vec![1],
        _ => return None,
    })
}

/// Whether element `i` of a causal mask of `(1, 1, n, n)` is one: on and below the diagonal.
fn is_visible(i: usize, n: usize) -> bool {
    i % n <= i / n
}

/// Whether a tensor is a causal mask of `(1, 1, n, n)`.
pub(super) fn is_mask(stored: &Stored) -> Result<bool> {
    let (Some(one), &[1, 1, n, columns]) = (one(stored.info.dtype), &stored.info.shape[..]) else { return Ok(false) };
    let zero = vec![0; one.len()];
    let (mut i, mut causal) = (0, n == columns);
    // Chunks are a whole number of elements.
    read_chunks(stored, |part| {
        for element in part.chunks_exact(one.len()) {
            causal = causal && element == if is_visible(i, n) { &one } else { &zero };
            i += 1;
        }
    })?;
    Ok(causal)
}

/// Reads one tensor and converts it to f32, a chunk of bytes at a time.
pub(super) fn read_f32(name: &str, stored: &Stored) -> Result<Vec<f32>> {
    let path = &stored.file;
    let convert: fn(&[u8], &mut Vec<f32>) = match stored.info.dtype {
        Dtype::F32 => |b, out| out.extend(b.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x))),
        Dtype::BF16 => |b, out| out.extend(b.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f32())),
        Dtype::F16 => |b, out| out.extend(b.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f32())),
        other => {
            return Err(fail(
                path,
                name,
                format!("numbers of the format {other:?} are not supported; convert them to F32, BF16 or F16"),
            ));
        }
    };
    let mut out = Vec::with_capacity(stored.info.shape.iter().product());
    read_chunks(stored, |part| convert(part, &mut out))?;
    Ok(out)
}

/// A tensor to be written.
pub(super) struct Output<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) content: &'a Content,
}

/// Where the numbers of a tensor come from when its file is written.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// From the caller, by this name, which is another's for a copy of that.
    Given(String),
    /// A causal mask.
    Mask,
    /// What was read.
    Bytes(Vec<u8>),
}

impl Output<'_> {
    /// Length of its data.
    pub(super) fn bytes(&self) -> usize {
        self.dtype.bitsize() / 8 * self.shape.iter().product::<usize>()
    }

    fn fail<T>(&self, path: &Path, problem: impl Into<String>) -> Result<T> {
        Err(fail(path, self.name, problem))
    }

    fn write<'a>(
        &self,
        path: &Path,
        data: &mut impl FnMut(&str) -> Cow<'a, [f32]>,
        put: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match self.content {
            Content::Bytes(bytes) => put(bytes),
            Content::Mask => {
                let one = one(self.dtype).unwrap_or_default();
                let n = self.shape.last().copied().unwrap_or(1);
                for row in 0..n {
                    let element = |i| if is_visible(row * n + i, n) { one.clone() } else { vec![0; one.len()] };
                    put(&(0..n).flat_map(element).collect::<Vec<u8>>())?;
                }
                Ok(())
            }
            Content::Given(name) => self.write_numbers(path, &data(name), put),
        }
    }

    fn write_numbers(&self, path: &Path, values: &[f32], put: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let expected: usize = self.shape.iter().product();
        if values.len() != expected {
            return self.fail(
                path,
                format!("{} numbers were given for the shape {:?} ({expected})", values.len(), self.shape),
            );
        }
        // Whether the number in the file is finite, too: half precision ends at 65,504.
        let convert: fn(f32, &mut Vec<u8>) -> bool = match self.dtype {
            Dtype::F32 => |x, out| {
                out.extend(x.to_le_bytes());
                x.is_finite()
            },
            Dtype::BF16 => |x, out| {
                let x = bf16::from_f32(x);
                out.extend(x.to_le_bytes());
                x.is_finite()
            },
            Dtype::F16 => |x, out| {
                let x = f16::from_f32(x);
                out.extend(x.to_le_bytes());
                x.is_finite()
            },
            other => return self.fail(path, format!("numbers of the format {other:?} are not supported")),
        };
        let mut bytes = Vec::with_capacity(CHUNK);
        for (i, part) in values.chunks(CHUNK / 4).enumerate() {
            bytes.clear();
            for (j, &x) in part.iter().enumerate() {
                // Checked on the way out, not in a pass of its own: the file has not taken its name yet.
                if !convert(x, &mut bytes) {
                    let at = i * (CHUNK / 4) + j;
                    let beyond = if x.is_finite() { format!(", beyond {:?}", self.dtype) } else { String::new() };
                    return self.fail(path, format!("not written: element {at} is {x}{beyond}"));
                }
            }
            put(&bytes)?;
        }
        Ok(())
    }
}

/// Writes a safetensors file with the tensors in this order; a number that is not finite ends it, and the file stays what
/// it was.
pub(super) fn write<'a>(
    path: &Path,
    metadata: HashMap<String, String>,
    tensors: &[Output],
    data: &mut impl FnMut(&str) -> Cow<'a, [f32]>,
) -> Result<()> {
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name)) {
        return twice.fail(path, "the name is given twice");
    }
    let mut infos = Vec::with_capacity(tensors.len());
    let mut offset = 0usize;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.to_vec(), data_offsets: (offset, end) };
        infos.push((tensor.name.to_string(), info));
        offset = end;
    }
    let metadata = Metadata::new(Some(metadata).filter(|texts| !texts.is_empty()), infos)
        .map_err(|e| fail(path, "", format!("the tensors cannot be laid out: {e}")))?;
    let mut header = serde_json::to_vec(&metadata).expect("a safetensors header can be written");
    // The data start at a multiple of eight, so that readers may map them.
    header.resize(header.len().next_multiple_of(8), b' ');

    files::write_atomic(path, |writer| {
        let mut put = |bytes: &[u8]| writer.write_all(bytes).map_err(Error::io(path, "write"));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        tensors.iter().try_for_each(|tensor| tensor.write(path, data, &mut put))
    })
}
