//! The safetensors container: headers, one tensor at a time in, one tensor at a time out.

use super::Stored;
use crate::error::{Error, Result};
use crate::files;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Headers above this are refused, as the format's own library does.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes converted at a time; a multiple of every element size.
const CHUNK: usize = 1 << 16;

fn fail(path: &Path, name: &str, problem: impl Into<String>) -> Error {
    Error::Tensor { path: path.to_path_buf(), name: name.into(), problem: problem.into() }
}

/// Reads the header of a safetensors file: names, formats, shapes and places, checked against the file's length.
pub(super) fn read_header(path: &Path) -> Result<BTreeMap<String, Stored>> {
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
    let stored = |info: &TensorInfo| Stored { file: path.to_path_buf(), data_start, info: info.clone() };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect())
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
    let (start, end) = stored.info.data_offsets;
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    file.seek(SeekFrom::Start(stored.data_start + start as u64)).map_err(Error::io(path, "read"))?;
    let mut out = Vec::with_capacity(stored.info.shape.iter().product());
    let mut buffer = vec![0u8; CHUNK.min(end - start)];
    let mut left = end - start;
    while left > 0 {
        let part = &mut buffer[..left.min(CHUNK)];
        file.read_exact(part).map_err(Error::io(path, "read"))?;
        convert(part, &mut out);
        left -= part.len();
    }
    Ok(out)
}

/// Writes an f32 safetensors file in the order of the names; a number that is not finite ends it, and the file stays what
/// it was.
pub(super) fn write_f32<'a>(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    mut data: impl FnMut(&str) -> Cow<'a, [f32]>,
) -> Result<()> {
    let mut sorted: Vec<&(String, Vec<usize>)> = tensors.iter().collect();
    sorted.sort();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(fail(path, &twice[0].0, "the name is given twice"));
    }
    let mut infos = Vec::with_capacity(sorted.len());
    let mut offset = 0usize;
    for (name, shape) in &sorted {
        let end = offset + 4 * shape.iter().product::<usize>();
        infos.push((name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (offset, end) }));
        offset = end;
    }
    // "pt" is what transformers looks for before it loads a file.
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(format), infos)
        .map_err(|e| fail(path, "", format!("the tensors cannot be laid out: {e}")))?;
    let mut header = serde_json::to_vec(&metadata).expect("a safetensors header can be written");
    // The data start at a multiple of eight, so that readers may map them.
    header.resize(header.len().next_multiple_of(8), b' ');

    files::write_atomic(path, |writer| {
        let mut put = |bytes: &[u8]| writer.write_all(bytes).map_err(Error::io(path, "write"));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        let mut bytes = Vec::with_capacity(CHUNK);
        for (name, shape) in &sorted {
            let values = data(name);
            let expected: usize = shape.iter().product();
            if values.len() != expected {
                let problem = format!("{} numbers were given for the shape {shape:?} ({expected})", values.len());
                return Err(fail(path, name, problem));
            }
            for (i, part) in values.chunks(CHUNK / 4).enumerate() {
                // Checked on the way out, not in a pass of its own: the file has not taken its name yet.
                if let Some(at) = part.iter().position(|x| !x.is_finite()) {
                    let at = i * (CHUNK / 4) + at;
                    return Err(fail(path, name, format!("not written: element {at} is {}", values[at])));
                }
                bytes.clear();
                bytes.extend(part.iter().flat_map(|x| x.to_le_bytes()));
                put(&bytes)?;
            }
        }
        Ok(())
    })
}
