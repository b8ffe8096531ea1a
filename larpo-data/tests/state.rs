//! Trainer state: round trips, and named errors for everything that can happen to a file.

mod common;
use common::{Folder, holds};
use larpo_data::state::{load_state, save_state};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Trainer {
    step: u64,
    seed: u64,
    moments: BTreeMap<String, Vec<f32>>,
    best: Option<f64>,
    kind: Schedule,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Schedule {
    Constant,
    Cosine { steps: u32 },
}

fn trainer() -> Trainer {
    let values = vec![1.0e-38, -0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY, 0.1];
    Trainer {
        step: u64::MAX,
        seed: 3,
        moments: BTreeMap::from([("a".into(), values), ("b".into(), vec![0.5; 50_000])]),
        best: Some(0.1),
        kind: Schedule::Cosine { steps: 7 },
    }
}

#[test]
fn values_come_back_exactly() {
    let folder = Folder::new();
    let path = folder.path().join("trainer.bin");
    save_state(&path, "trainer", &trainer()).unwrap();
    let loaded: Trainer = load_state(&path, "trainer").unwrap();
    assert_eq!(loaded, trainer());
    assert!(loaded.moments["a"][1].is_sign_negative());
    // Again over the old file, with a smaller value.
    let small = Trainer { kind: Schedule::Constant, moments: BTreeMap::new(), best: None, ..trainer() };
    save_state(&path, "trainer", &small).unwrap();
    assert_eq!(load_state::<Trainer>(&path, "trainer").unwrap(), small);
    assert_eq!(folder.names(), ["trainer.bin"]);
}

#[test]
fn the_header_is_the_documented_one() {
    let folder = Folder::new();
    let path = folder.path().join("x.bin");
    save_state(&path, "ab", &7u8).unwrap();
    let mut expected = b"LARPOST\n".to_vec();
    expected.extend(2u32.to_le_bytes());
    expected.extend(2u32.to_le_bytes());
    expected.extend(b"ab");
    expected.extend(1u64.to_le_bytes());
    // FNV-1a of the single byte 7, computed by hand: (basis xor 7) × prime.
    expected.extend((0xcbf2_9ce4_8422_2325u64 ^ 7).wrapping_mul(0x100_0000_01b3).to_le_bytes());
    expected.push(7);
    assert_eq!(std::fs::read(&path).unwrap(), expected);
}

#[test]
fn damaged_foreign_and_other_files_are_told_apart() {
    let folder = Folder::new();
    let path = folder.path().join("trainer.bin");
    save_state(&path, "trainer", &trainer()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let load = |bytes: &[u8], kind: &str| {
        std::fs::write(&path, bytes).unwrap();
        load_state::<Trainer>(&path, kind).unwrap_err().to_string()
    };
    // Cut anywhere: never a panic, always named.
    for length in (0..40).chain([good.len() / 2, good.len() - 1]) {
        holds(&load(&good[..length], "trainer"), &["trainer.bin", "damaged", "Restore it from a copy"]);
    }
    let mut longer = good.clone();
    longer.push(0);
    holds(&load(&longer, "trainer"), &["damaged", "bytes and has"]);
    // Every byte of the payload counts.
    for at in [good.len() - 1, good.len() / 2, 50] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        holds(&load(&flipped, "trainer"), &["damaged", "checksum"]);
    }
    holds(&load(b"PK\x03\x04 some other file entirely", "trainer"), &["not a state file"]);
    let mut newer = good.clone();
    newer[8] = 3;
    holds(&load(&newer, "trainer"), &["format version 3", "reads 2"]);
    holds(&load(&good, "cache"), &["kind \"trainer\"", "expected \"cache\""]);
    let mut odd = good.clone();
    odd[15] = 0xff;
    holds(&load(&odd, "trainer"), &["damaged", "header is not plausible"]);
    holds(&load_state::<u8>(folder.path().join("none"), "x").unwrap_err().to_string(), &["none", "cannot open"]);
}

#[test]
fn another_type_is_refused() {
    let folder = Folder::new();
    let path = folder.path().join("x.bin");
    save_state(&path, "x", &(1u64, 2u64)).unwrap();
    holds(&load_state::<u64>(&path, "x").unwrap_err().to_string(), &["longer than expected"]);
    holds(&load_state::<(u64, u64, u64)>(&path, "x").unwrap_err().to_string(), &["cannot be understood"]);
    let missing = folder.path().join("no/such/folder/x.bin");
    holds(&save_state(&missing, "x", &1u8).unwrap_err().to_string(), &["cannot create"]);
}
