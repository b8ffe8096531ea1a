//! TensorBoard event files: scalars as records of the TFRecord format, each an `Event` message of TensorFlow's
//! `event.proto`, written by hand because it is five fields.

use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// How event files are named; TensorBoard looks for it.
pub const PREFIX: &str = "events.out.tfevents.";

/// An event file that scalars are appended to.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// Starts a new file in the folder, beside those that are there. What they hold from step `first` on, of a session that
    /// was killed after its last checkpoint, is done again and TensorBoard drops it.
    ///
    /// # Errors
    /// A file that cannot be created or written to.
    pub fn create(folder: &Path, first: u64) -> io::Result<Self> {
        let time = now();
        // TensorBoard reads files in the order of their names, so the time comes first.
        let name =
            format!("{PREFIX}{:010}.larpo.{:09}.{}", time as u64, (time.fract() * 1e9) as u64, std::process::id());
        let mut file = File::options().write(true).create_new(true).open(folder.join(name))?;
        file.write_all(&[record(&version_event(time)), record(&start_event(time, first))].concat())?;
        Ok(Self { file })
    }

    /// Writes every number of a row of metrics under its `step`; a row without one writes nothing.
    ///
    /// # Errors
    /// A full disk, for instance.
    pub fn write(&mut self, row: &Map<String, Value>) -> io::Result<()> {
        let Some(step) = row.get("step").and_then(Value::as_u64) else { return Ok(()) };
        let scalars: Vec<(&str, f32)> = row
            .iter()
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()? as f32)))
            .collect();
        self.file.write_all(&record(&scalar_event(now(), step, &scalars)))?;
        self.file.flush()
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A record: length, its checksum, the data, their checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

/// CRC-32C (Castagnoli), rotated and offset as TFRecord wants it, so that checksums of checksums do not cancel.
fn masked_crc(data: &[u8]) -> u32 {
    let crc = !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    });
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// `Event { wall_time: 1, file_version: 3 }`, the first of every file.
fn version_event(time: f64) -> Vec<u8> {
    let mut event = double(1, time);
    event.extend(bytes(3, b"brain.Event:2"));
    event
}

/// `Event { wall_time: 1, step: 2, session_log: 7 { status: 1 = START } }`: earlier events of this step and later ones are
/// out of date.
fn start_event(time: f64, step: u64) -> Vec<u8> {
    let mut event = double(1, time);
    event.push(2 << 3);
    varint(step, &mut event);
    event.extend(bytes(7, &[1 << 3, 1]));
    event
}

/// `Event { wall_time: 1, step: 2, summary: 5 { value: 1 { tag: 1, simple_value: 2 } } }`.
fn scalar_event(time: f64, step: u64, scalars: &[(&str, f32)]) -> Vec<u8> {
    let value = |(tag, value): &(&str, f32)| {
        let mut message = bytes(1, tag.as_bytes());
        message.push(2 << 3 | 5);
        message.extend(value.to_le_bytes());
        bytes(1, &message)
    };
    let summary: Vec<u8> = scalars.iter().flat_map(value).collect();
    let mut event = double(1, time);
    event.push(2 << 3);
    varint(step, &mut event);
    event.extend(bytes(5, &summary));
    event
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

fn bytes(field: u8, data: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(data.len() as u64, &mut out);
    out.extend(data);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: 32 bytes of zeros, of ones, and the check value of "123456789".
        let unmasked = |data: &[u8]| masked_crc(data).wrapping_sub(0xA282_EAD8).rotate_left(15);
        assert_eq!(unmasked(&[0; 32]), 0x8A91_36AA);
        assert_eq!(unmasked(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(unmasked(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn an_event_is_encoded_as_protobuf_would() {
        // The classes of tensorboard 2.21 under protobuf 7.36 serialise Event(wall_time=1.5, step=300, summary=Summary(value=[Value(tag="a/b", simple_value=0.25)])) to this.
        let expected = "09000000000000f83f10ac022a0c0a0a0a03612f62150000803e";
        let hex: String = scalar_event(1.5, 300, &[("a/b", 0.25)]).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
        // Event(wall_time=1.5, step=300, session_log=SessionLog(status=SessionLog.START))
        let hex: String = start_event(1.5, 300).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "09000000000000f83f10ac023a020801");
    }

    #[test]
    fn rows_become_records() {
        let folder = std::env::temp_dir().join(format!("larpo-events-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("creates");
        let mut events = EventFile::create(&folder, 1).expect("creates");
        let row = json!({ "loss": 0.5, "kl": null, "step": 7, "note": "text" });
        events.write(row.as_object().expect("an object")).expect("writes");
        events.write(json!({ "loss": 1 }).as_object().expect("an object")).expect("no step, nothing");
        EventFile::create(&folder, 8).expect("another beside it");
        let mut names: Vec<_> =
            std::fs::read_dir(&folder).expect("reads").map(|e| e.expect("an entry").path()).collect();
        names.sort();
        let data = std::fs::read(&names[0]).expect("reads");
        std::fs::remove_dir_all(&folder).expect("removes");
        assert_eq!(names.len(), 2);
        let (mut at, mut sizes) = (0, Vec::new());
        while at < data.len() {
            let length = u64::from_le_bytes(data[at..at + 8].try_into().expect("8 bytes")) as usize;
            let body = &data[at + 12..at + 12 + length];
            assert_eq!(data[at + 12 + length..at + 16 + length], masked_crc(body).to_le_bytes());
            sizes.push(length);
            at += 16 + length;
        }
        // 9 + 2 + 13 bytes of a version; 9 + 2 + 4 of a start; 9 + 2 + (2 + 2 + (2 + 4) + 5) of one scalar.
        assert_eq!(sizes, [24, 15, 26]);
    }
}
