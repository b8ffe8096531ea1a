//! Tokenizers: round trips, determinism, and agreement with the Python library on its own files.

mod common;
use common::{Folder, golden_tokenizers, holds, ids};
use larpo_data::tokenizer::{EOS_TOKEN, PAD_TOKEN, Tokenizer};
use serde_json::Value;

const TEXTS: [&str; 4] = [
    "Tom has 12 apples and buys 30 more apples. 12 + 30 = 42\n",
    "Ann has 3 boxes of 4 pears. 3 * 4 = 12 pears\nShe eats 2 pears.",
    "the cat sat on the mat, the dog sat on the cat; the cat's mat is the dog's mat",
    "Ünïcode: naïve café, 日本語, emoji 🦀🦀, tabs\tand  double  spaces\r\n",
];

#[test]
fn tokens_of_bytes_stand_for_bytes() {
    let tokenizer = Tokenizer::train_bpe(&["the cat the cat"], 300).expect("a tokenizer");
    let text = "the cat\u{0}\n\u{7f}\u{a0}\u{ad}é🙂";
    let bytes =
        |ids: Vec<u32>| -> Vec<u8> { ids.iter().flat_map(|&id| tokenizer.bytes_of(id).expect("bytes")).collect() };
    assert_eq!(bytes(tokenizer.encode(text).expect("bytes")), text.as_bytes());
    let mut single: Vec<u8> = (0..tokenizer.vocab_size() as u32)
        .filter_map(|id| tokenizer.bytes_of(id).filter(|bytes| bytes.len() == 1))
        .flatten()
        .collect();
    single.sort_unstable();
    assert_eq!(single, (0..=255).collect::<Vec<u8>>(), "each once");
    assert_eq!(Tokenizer::characters(&["ab".to_string()]).expect("a tokenizer").bytes_of(0), None);
}

#[test]
fn bpe_gives_every_text_back_byte_for_byte() {
    let tokenizer = Tokenizer::train_bpe(&TEXTS, 320).unwrap();
    let every_plane: String = (0..0x11_0000u32).step_by(257).filter_map(char::from_u32).collect();
    let mut texts: Vec<String> = TEXTS.iter().map(|t| t.to_string()).collect();
    texts.extend(["", " ", "\n\n  \n", "\0\u{1}\u{7f}", "e\u{301} vs é", "１２３ ½ ²"].map(String::from));
    texts.push(every_plane);
    for text in &texts {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), true).unwrap(), *text);
    }
}

#[test]
fn bpe_splits_digits_and_keeps_the_promised_ids() {
    let tokenizer = Tokenizer::train_bpe(&["2024 2024 2024 2024 the the the the"; 8], 300).unwrap();
    let tokens: Vec<&str> =
        tokenizer.encode("the 2024").unwrap().iter().map(|&id| tokenizer.token_of(id).unwrap()).collect();
    assert_eq!(tokens, ["the", "Ġ", "2", "0", "2", "4"]);
    assert_eq!(tokenizer.token_of(0), Some(EOS_TOKEN));
    assert_eq!(tokenizer.token_of(1), Some(PAD_TOKEN));
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.bos_id()), (Some(0), Some(1), None));
    // 258 base tokens; "the" is learned with and without its space, and the data hold nothing more.
    assert!(tokenizer.vocab_size() > 258 && tokenizer.vocab_size() < 300);
    assert_eq!(tokenizer.token_of(tokenizer.vocab_size() as u32), None);
    for id in 0..tokenizer.vocab_size() as u32 {
        assert_eq!(tokenizer.id_of(tokenizer.token_of(id).unwrap()), Some(id));
    }
    // Nothing is added at the ends, and a special token written out is one id that decoding can drop.
    assert_eq!(tokenizer.encode("the").unwrap(), tokenizer.encode_with_special("the").unwrap());
    let marked = tokenizer.encode("the<|endoftext|>").unwrap();
    assert_eq!(marked.last(), Some(&0));
    assert_eq!(tokenizer.decode(&marked, true).unwrap(), "the");
    assert_eq!(tokenizer.decode(&marked, false).unwrap(), "the<|endoftext|>");
}

#[test]
fn training_is_deterministic_across_runs_and_threads() {
    let train = || {
        let folder = Folder::new();
        Tokenizer::train_bpe(&TEXTS, 400).unwrap().save(folder.path()).unwrap();
        assert_eq!(folder.names(), ["tokenizer.json", "tokenizer_config.json"]);
        std::fs::read(folder.path().join("tokenizer.json")).unwrap()
    };
    let first = train();
    let others: Vec<_> = (0..4).map(|_| std::thread::spawn(train)).collect();
    for other in others {
        assert_eq!(other.join().unwrap(), first);
    }
    assert_eq!(train(), first);
}

/// A long text is encoded in pieces; with the tokenizer's own additions, of which there are none here, as a whole.
#[test]
fn a_long_text_has_the_ids_that_it_has_as_a_whole() {
    let tokenizer = Tokenizer::train_bpe(&TEXTS, 400).unwrap();
    let parts = [
        "the",
        " cat",
        "\n",
        "\n\n",
        "\r\n",
        " \n",
        "\n ",
        "'s",
        "7",
        "42\n",
        "é",
        "🦀",
        "\u{a0}",
        "<|endoftext|>",
        ".",
        "\t",
    ];
    // Marsaglia's xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    for length in [1000, 100_000, 400_000] {
        let mut text = String::new();
        while text.len() < length {
            text.push_str(parts[random(parts.len())]);
        }
        let whole = tokenizer.encode_with_special(&text).unwrap();
        assert!(tokenizer.encode(&text).unwrap() == whole, "{length}");
        assert_eq!(tokenizer.decode(&whole, false).unwrap(), text);
    }
    // No line break to cut at.
    let text = "cat the ".repeat(20_000);
    assert!(tokenizer.encode(&text).unwrap() == tokenizer.encode_with_special(&text).unwrap());
}

#[test]
fn too_small_a_vocabulary_is_refused() {
    let message = Tokenizer::train_bpe(&TEXTS, 257).unwrap_err().to_string();
    holds(&message, &["257 is too small", "at least 258", "256 bytes and 2 special tokens"]);
    assert_eq!(Tokenizer::train_bpe(&TEXTS, 258).unwrap().vocab_size(), 258);
}

#[test]
fn characters_round_trip_and_unknown_ones_are_named() {
    let tokenizer = Tokenizer::characters(&["First Citizen:\nSpeak, é 🦀.\r\n", "abc"]).unwrap();
    let text = "bé🦀\n\n c\r\nF";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids.len(), text.chars().count());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    let message = tokenizer.encode("ab\nZ").unwrap_err().to_string();
    holds(&message, &["'Z' (U+005A)", "position 3", "build the tokenizer from a text that contains it"]);
    // The way through the library itself: added tokens in the text.
    let eos = tokenizer.eos_id().unwrap();
    let marked = tokenizer.encode("ab<|endoftext|>\nc").unwrap();
    assert_eq!(marked[2], eos);
    assert_eq!(tokenizer.decode(&marked, true).unwrap(), "ab\nc");
    let message = tokenizer.encode("ab<|endoftext|>Z").unwrap_err().to_string();
    holds(&message, &["'Z'", "position 15"]);
    assert_eq!(tokenizer.encode_with_special(text).unwrap(), tokenizer.encode(text).unwrap());
    // Ids follow code points; the specials come last.
    assert_eq!(tokenizer.token_of(0), Some("\n"));
    assert_eq!(eos as usize, tokenizer.vocab_size() - 2);
    assert!(Tokenizer::characters(&[""]).unwrap_err().to_string().contains("no text"));
}

#[test]
fn saved_tokenizers_come_back_the_same() {
    let built = [Tokenizer::train_bpe(&TEXTS, 350).unwrap(), Tokenizer::characters(&TEXTS).unwrap()];
    for tokenizer in built {
        let (folder, again) = (Folder::new(), Folder::new());
        tokenizer.save(folder.path()).unwrap();
        let loaded = Tokenizer::open(folder.path()).unwrap();
        assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
        assert_eq!(loaded.eos_id(), tokenizer.eos_id());
        for text in TEXTS {
            assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        loaded.save(again.path()).unwrap();
        for name in folder.names() {
            let bytes = |f: &Folder| std::fs::read(f.path().join(&name)).unwrap();
            assert_eq!(bytes(&folder), bytes(&again), "{name}");
        }
    }
}

#[test]
fn golden_tokenizers_agree_with_the_python_library() {
    let mut cases = 0;
    for folder in golden_tokenizers() {
        let golden = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let golden: Value = serde_json::from_str(&golden).unwrap();
        let tokenizer = Tokenizer::open(&folder).unwrap();
        for (key, id) in [("bos", tokenizer.bos_id()), ("eos", tokenizer.eos_id())] {
            let expected = &golden[key];
            let id = id.map(u64::from);
            assert!(expected.as_u64() == id || expected.as_str().and_then(|t| tokenizer.id_of(t)).map(u64::from) == id);
        }
        for case in golden["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let (with, without) = (ids(&case["ids"]), ids(&case["ids_no_special"]));
            assert_eq!(tokenizer.encode_with_special(text).unwrap(), with, "{text:?}");
            assert_eq!(tokenizer.encode(text).unwrap(), without, "{text:?}");
            assert_eq!(tokenizer.decode(&without, true).unwrap(), case["decode_skip_special"].as_str().unwrap());
            assert_eq!(tokenizer.decode(&without, false).unwrap(), case["decode_keep_special"].as_str().unwrap());
            cases += 1;
        }
        for case in golden["decode"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["skip_special"].as_str().unwrap());
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["keep_special"].as_str().unwrap());
            cases += 1;
        }
    }
    assert!(cases >= 40, "only {cases} cases were found");
}

#[test]
fn truncation_and_padding_of_a_file_are_not_applied() {
    let folder = Folder::new();
    Tokenizer::train_bpe(&TEXTS, 300).unwrap().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<|pad|>"});
    folder.file("tokenizer.json", json.to_string());
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    for text in ["a", TEXTS[0]] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), false).unwrap(), text);
    }
}

#[test]
fn a_model_that_would_drop_characters_names_them() {
    let folder = Folder::new();
    let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null, "model": {"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}"#;
    folder.file("tokenizer.json", json);
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("ab b").unwrap(), [2, 1]);
    assert_eq!(tokenizer.eos_id(), None);
    holds(&tokenizer.encode("ab é").unwrap_err().to_string(), &["'é'", "position 3"]);
}

#[test]
fn broken_folders_are_refused_by_name() {
    let folder = Folder::new();
    holds(&Tokenizer::open(folder.path()).unwrap_err().to_string(), &["tokenizer.json", "cannot read"]);
    folder.file("tokenizer.json", r#"{"version": "1.0", "model": {"#);
    holds(&Tokenizer::open(folder.path()).unwrap_err().to_string(), &["tokenizer.json", "not a tokenizer"]);
    let tokenizer = Tokenizer::characters(&["abc"]).unwrap();
    tokenizer.save(folder.path()).unwrap();
    // A configuration is written as it was read, to the byte.
    let text = r#"{ "model_max_length": 1000000000000000019884624838656,  "eos_token": "<|endoftext|>" }"#;
    folder.file("tokenizer_config.json", text);
    let copy = Folder::new();
    Tokenizer::open(folder.path()).unwrap().save(copy.path()).unwrap();
    assert_eq!(std::fs::read_to_string(copy.path().join("tokenizer_config.json")).unwrap(), text);
    folder.file("tokenizer_config.json", r#"{"eos_token": {"content": "</s>"}}"#);
    holds(
        &Tokenizer::open(folder.path()).unwrap_err().to_string(),
        &["`eos_token`", "\"</s>\"", "not in the vocabulary"],
    );
    holds(&tokenizer.decode(&[0, 5], true).unwrap_err().to_string(), &["token id 5", "up to 4"]);
}
