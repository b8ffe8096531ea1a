//! Model folders: files of other libraries, round trips, and weights that are refused.

mod common;
use common::{Folder, config, fixtures, holds, llama, numbers, tensors, write};
use half::{bf16, f16};
use larpo_data::model_folder::{Format, Head, ModelFolder, ModelForm, Positions, RopeScaling, write_config};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[test]
fn golden_llama_folders_are_read() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let open = |name: &str| ModelFolder::open(root.join(name)).unwrap();
    let tied = open("llama_tied");
    let untied = open("llama_untied");
    let sharded = open("llama_sharded");
    for folder in [&tied, &untied, &sharded] {
        assert_eq!(folder.config.eos_token_ids, [2]);
        assert_eq!(folder.config.bos_token_id, Some(1));
    }
    // Both dialects.
    let rotary = |theta| Positions::Rotary { theta, scaling: RopeScaling::None };
    let (a, b) = (&tied.config.shape, &untied.config.shape);
    assert_eq!((a.positions, b.positions), (rotary(10_000.0), rotary(500_000.0)));
    assert_eq!(b.head_dim, b.hidden_size / b.num_attention_heads);
    assert!(a.head == Head::Tied && tied.shape("lm_head.weight").is_none());
    assert_eq!(b.head, Head::Untied);

    assert_eq!(untied.tensor_names(), sharded.tensor_names());
    for name in untied.tensor_names() {
        assert_eq!(untied.read_f32(name).unwrap(), sharded.read_f32(name).unwrap(), "{name}");
    }
    // The half-precision copies hold the same numbers, rounded.
    let (as_bf16, as_f16) = (open("llama_tied_bf16"), open("llama_tied_f16"));
    for name in tied.tensor_names() {
        let (shape, full) = tied.read_f32(name).unwrap();
        let rounded: Vec<f32> = full.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(as_bf16.read_f32(name).unwrap(), (shape.clone(), rounded), "{name}");
        let rounded: Vec<f32> = full.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        assert_eq!(as_f16.read_f32(name).unwrap(), (shape, rounded), "{name}");
    }
}

/// Every tensor's place, format, shape and bytes, and the texts of the headers.
fn containers(folder: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        all.insert(format!("{file} {:?}", metadata.metadata()), Default::default());
        for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let held = (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec());
            assert!(all.insert(format!("{file} {name}"), held).is_none());
        }
    }
    all
}

fn json_files(folder: &Path) -> BTreeMap<String, Value> {
    let names = ["config.json", "generation_config.json", "model.safetensors.index.json"];
    let read =
        |name: &&str| Some((name.to_string(), serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok()?));
    names.iter().filter_map(read).collect()
}

/// All folders with weights.
fn golden_folders() -> Vec<PathBuf> {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("cannot read {}: {e}", root.display()));
    let weights = |folder: &PathBuf| {
        ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).exists())
    };
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(weights).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no model in {}", root.display());
    folders
}

#[test]
fn golden_models_are_written_as_they_were_read() {
    for golden in golden_folders() {
        let read = ModelFolder::open(&golden).unwrap();
        let form = read.form().unwrap();
        // What the caller is asked for is computed with; masks are not.
        let data = |folder: &ModelFolder, name: &str| Cow::<[f32]>::Owned(folder.read_f32(name).unwrap().1);
        let (same, kept) = (Folder::new(), Folder::new());
        form.write(same.path(), |name| data(&read, name)).unwrap();
        assert_eq!(containers(same.path()), containers(&golden), "{}", golden.display());
        assert_eq!(json_files(same.path()), json_files(&golden), "{}", golden.display());
        // By way of the single precision of training.
        form.write_f32(kept.path(), |name| data(&read, name)).unwrap();
        let kept = ModelFolder::open(kept.path()).unwrap();
        for name in kept.tensor_names() {
            assert_eq!(kept.read_f32(name).unwrap(), read.read_f32(name).unwrap());
        }
        let back = Folder::new();
        kept.form().unwrap().write(back.path(), |name| data(&kept, name)).unwrap();
        assert_eq!(containers(back.path()), containers(&golden), "{}", golden.display());
        assert_eq!(json_files(back.path()), json_files(&golden), "{}", golden.display());
    }
}

#[test]
fn models_in_training_are_kept_in_single_precision() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let read = ModelFolder::open(root.join("llama_tied_bf16")).unwrap();
    let folder = Folder::new();
    // Between two numbers of the half precision.
    let finer = |name: &str| Cow::Owned(read.read_f32(name).unwrap().1.iter().map(|x| x * 1.001).collect());
    read.form().unwrap().write_f32(folder.path(), finer).unwrap();
    let kept = ModelFolder::open(folder.path()).unwrap();
    let name = "model.embed_tokens.weight";
    assert_eq!(kept.read_f32(name).unwrap().1, finer(name).into_owned());
    // Half precision rounds to the nearest, and ends.
    let form = kept.form().unwrap();
    form.write(folder.path(), finer).unwrap();
    let rounded: Vec<f32> = finer(name).iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(ModelFolder::open(folder.path()).unwrap().read_f32(name).unwrap().1, rounded);
    let half = ModelFolder::open(root.join("llama_tied_f16")).unwrap();
    let large = |name: &str| Cow::Owned(vec![70_000.0; half.read_f32(name).unwrap().1.len()]);
    let message = half.form().unwrap().write(folder.path(), large).unwrap_err().to_string();
    holds(&message, &["element 0 is 70000, beyond F16"]);
}

#[test]
fn a_form_takes_another_format() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let read = ModelFolder::open(root.join("gpt2_hub_names")).unwrap();
    let folder = Folder::new();
    let form = read.form().unwrap().with_format(Format::Bf16);
    form.write(folder.path(), |name| Cow::Owned(read.read_f32(name).unwrap().1)).unwrap();
    let other = ModelFolder::open(folder.path()).unwrap();
    for name in other.tensor_names() {
        // Masks stay what they are.
        let wanted = if name.ends_with(".attn.bias") { Format::F32 } else { Format::Bf16 };
        assert_eq!(other.format(name), Some(wanted), "{name}");
    }
    let json = |folder: &ModelFolder| folder.config.json().clone();
    let mut expected = json(&read);
    expected["torch_dtype"] = json!("bfloat16");
    assert_eq!(json(&other), expected);
    assert_eq!(other.config.shape, read.config.shape);
}

#[test]
fn a_folder_never_holds_two_models() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let folder = Folder::new();
    let name = "model.norm.weight";
    for model in ["llama_tied", "llama_sharded", "llama_tied"] {
        let read = ModelFolder::open(root.join(model)).unwrap();
        read.form().unwrap().write(folder.path(), |name| Cow::Owned(read.read_f32(name).unwrap().1)).unwrap();
        assert_eq!(ModelFolder::open(folder.path()).unwrap().read_f32(name).unwrap(), read.read_f32(name).unwrap());
        assert_eq!(containers(folder.path()), containers(&root.join(model)));
    }
}

#[test]
fn numbers_are_read_from_bytes_laid_out_by_hand() {
    // Bit patterns from the formats' definitions: 1.5 and −2 in each.
    let cases: [(&str, &[u8]); 3] =
        [("F32", &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]), ("BF16", &[0xc0, 0x3f, 0, 0xc0]), ("F16", &[0, 0x3e, 0, 0xc0])];
    for (format, bytes) in cases {
        let folder = Folder::new();
        write_config(folder.path(), &config(false)).unwrap();
        let header = json!({"x": {"dtype": format, "shape": [2, 1], "data_offsets": [0, bytes.len()]}}).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend(bytes);
        folder.file("model.safetensors", &file);
        let open = ModelFolder::open(folder.path()).unwrap();
        assert_eq!(open.read_f32("x").unwrap(), (vec![2, 1], vec![1.5, -2.0]));
        holds(&open.read_f32("y").unwrap_err().to_string(), &["tensor `y`", "no tensor of this name"]);

        folder.file("model.safetensors", &file[..file.len() - 1]);
        holds(&ModelFolder::open(folder.path()).unwrap_err().to_string(), &["model.safetensors", "announces"]);
        folder.file("model.safetensors", &file[..6]);
        holds(&ModelFolder::open(folder.path()).unwrap_err().to_string(), &["6 bytes are too few"]);
        file[0] = 0xff;
        folder.file("model.safetensors", &file);
        holds(&ModelFolder::open(folder.path()).unwrap_err().to_string(), &["not a safetensors file, or cut short"]);
    }
    let folder = Folder::new();
    write_config(folder.path(), &config(false)).unwrap();
    let header = json!({"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend([0; 8]);
    folder.file("model.safetensors", &file);
    let message = ModelFolder::open(folder.path()).unwrap().read_f32("x").unwrap_err().to_string();
    holds(&message, &["tensor `x`", "I64", "convert them to F32, BF16 or F16"]);
}

#[test]
fn written_models_come_back_bit_for_bit_and_the_same_twice() {
    for tied in [false, true] {
        let (a, b) = (Folder::new(), Folder::new());
        let (config, tensors) = (config(tied), tensors(&llama(tied)));
        write(a.path(), &config, &tensors);
        write(b.path(), &config, &tensors);
        assert_eq!(a.names(), ["config.json", "generation_config.json", "model.safetensors"]);
        for name in a.names() {
            assert_eq!(std::fs::read(a.path().join(&name)).unwrap(), std::fs::read(b.path().join(&name)).unwrap());
        }
        let open = ModelFolder::open(a.path()).unwrap();
        assert_eq!(open.config, config);
        open.check(&tensors).unwrap();
        for (name, shape) in tensors {
            assert_eq!(open.read_f32(&name).unwrap(), (shape.clone(), numbers(&name, &shape)));
        }
        // The container as its own library reads it.
        let bytes = std::fs::read(a.path().join("model.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let norm = tensors.tensor("model.norm.weight").unwrap();
        let expected: Vec<u8> = numbers("model.norm.weight", &[6]).iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(norm.data(), expected);
    }
}

#[test]
fn a_failed_write_leaves_the_old_model_and_no_temporary_file() {
    let folder = Folder::new();
    let (config, tensors) = (config(false), tensors(&llama(false)));
    write(folder.path(), &config, &tensors);
    let before = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let form = ModelForm::fresh(config.clone(), &tensors);
    let message = form.write(folder.path(), |_| Cow::Owned(vec![0.0; 3])).unwrap_err().to_string();
    holds(&message, &["tensor `lm_head.weight`", "3 numbers", "[7, 6] (42)"]);
    let twice = [("x".to_string(), vec![1]), ("x".to_string(), vec![1])];
    let twice = ModelForm::fresh(config, &twice);
    let message = twice.write(folder.path(), |_| Cow::Owned(vec![0.0])).unwrap_err().to_string();
    holds(&message, &["tensor `x`", "given twice"]);
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let values = |name: &str| {
            let shape = &tensors.iter().find(|(n, _)| n == name).unwrap().1;
            let mut values = numbers(name, shape);
            if name == "model.embed_tokens.weight" {
                values[5] = bad;
            }
            Cow::Owned(values)
        };
        let message = form.write(folder.path(), values).unwrap_err().to_string();
        holds(&message, &["tensor `model.embed_tokens.weight`", &format!("element 5 is {bad}")]);
    }
    assert_eq!(std::fs::read(folder.path().join("model.safetensors")).unwrap(), before);
    assert_eq!(folder.names(), ["config.json", "generation_config.json", "model.safetensors"]);
}

#[test]
fn differences_of_names_and_shapes_are_listed() {
    let folder = Folder::new();
    let expected = tensors(&llama(true));
    let mut stored = expected.clone();
    stored.retain(|(name, _)| name != "model.norm.weight");
    stored[0].1 = vec![7, 5];
    for extra in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.mlp.up_proj.bias"] {
        stored.push((extra.to_string(), vec![2]));
    }
    write(folder.path(), &config(true), &stored);
    let open = ModelFolder::open(folder.path()).unwrap();
    let report = open.check_names(&expected);
    assert_eq!(report.missing, ["model.norm.weight"]);
    assert_eq!(report.unexpected, ["model.layers.0.mlp.up_proj.bias"]);
    assert_eq!(report.misshaped, [("model.embed_tokens.weight".to_string(), vec![7, 6], vec![7, 5])]);
    let message = open.check(&expected).unwrap_err().to_string();
    holds(
        &message,
        &["missing: model.norm.weight", "up_proj.bias", "embed_tokens.weight has shape [7, 5], expected [7, 6]"],
    );
}

/// A head that is stored beside the embedding it is tied to.
#[test]
fn a_tied_head_is_the_embedding_or_refused() {
    let expected = tensors(&llama(true));
    let mut stored = expected.clone();
    stored.push(("lm_head.weight".into(), vec![7, 6]));
    let form = ModelForm::fresh(config(true), &stored);
    let embedding = "model.embed_tokens.weight";
    let value = |name: &str| numbers(name, &stored.iter().find(|(n, _)| n == name).unwrap().1);
    let folder = Folder::new();
    form.write(folder.path(), |name| Cow::Owned(value(name))).unwrap();
    let message = ModelFolder::open(folder.path()).unwrap().check(&expected).unwrap_err().to_string();
    holds(&message, &["lm_head.weight is not the embedding"]);
    let tied = |name: &str| Cow::Owned(value(if name == "lm_head.weight" { embedding } else { name }));
    form.write(folder.path(), tied).unwrap();
    let open = ModelFolder::open(folder.path()).unwrap();
    open.check(&expected).unwrap();
    // After training it is still a copy.
    let other = Folder::new();
    let trained = |name: &str| {
        assert_ne!(name, "lm_head.weight", "asked for a tensor that the model has not");
        Cow::Owned(value(name).iter().map(|x| x + 1.0).collect())
    };
    open.form().unwrap().write(other.path(), trained).unwrap();
    let other = ModelFolder::open(other.path()).unwrap();
    assert_eq!(other.read_f32("lm_head.weight").unwrap(), other.read_f32(embedding).unwrap());
}

#[test]
fn a_mask_that_is_not_causal_is_refused() {
    let folder = Folder::new();
    let root = fixtures("LARPO_GOLDEN_DIR").join("models").join("gpt2_hub_names");
    for name in ["config.json", "generation_config.json"] {
        std::fs::copy(root.join(name), folder.path().join(name)).unwrap();
    }
    let mut bytes = std::fs::read(root.join("model.safetensors")).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let at = 8 + size + header["h.0.attn.bias"]["data_offsets"][0].as_u64().unwrap() as usize;
    let expected = |folder: &ModelFolder| -> Vec<(String, Vec<usize>)> {
        let names = folder.tensor_names();
        let parameter = |name: &&&str| !name.ends_with(".attn.bias");
        names.iter().filter(parameter).map(|name| (name.to_string(), folder.shape(name).unwrap().to_vec())).collect()
    };
    let check = |bytes: &[u8]| {
        folder.file("model.safetensors", bytes);
        let open = ModelFolder::open(folder.path()).unwrap();
        open.check(&expected(&open))
    };
    check(&bytes).unwrap();
    // The second key of the first row.
    bytes[at + 4..at + 8].copy_from_slice(&1f32.to_le_bytes());
    holds(&check(&bytes).unwrap_err().to_string(), &["h.0.attn.bias is no causal mask"]);
}

#[test]
fn an_index_that_does_not_fit_its_files_is_refused() {
    let folder = Folder::new();
    write(folder.path(), &config(false), &tensors(&llama(false)));
    std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("part.safetensors")).unwrap();
    let all: serde_json::Map<String, Value> =
        tensors(&llama(false)).into_iter().map(|(name, _)| (name, json!("part.safetensors"))).collect();
    let index = |map: Value| {
        folder.file("model.safetensors.index.json", json!({"weight_map": map}).to_string());
        ModelFolder::open(folder.path())
    };
    index(json!(all)).unwrap().check(&tensors(&llama(false))).unwrap();
    let mut map = all.clone();
    map.insert("ghost".into(), json!("part.safetensors"));
    holds(&index(json!(map)).unwrap_err().to_string(), &["`weight_map.ghost`", "holds no tensor"]);
    let mut map = all.clone();
    map.remove("model.norm.weight");
    holds(&index(json!(map)).unwrap_err().to_string(), &["`model.norm.weight` of `part.safetensors` is not listed"]);
    let mut map = all.clone();
    map["model.norm.weight"] = json!("../part.safetensors");
    holds(&index(json!(map)).unwrap_err().to_string(), &["expected the name of a file in the same folder"]);
    let mut map = all;
    map["model.norm.weight"] = json!("absent.safetensors");
    holds(&index(json!(map)).unwrap_err().to_string(), &["absent.safetensors", "cannot open"]);
}
