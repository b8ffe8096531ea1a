//! Building tokenizers: byte-level BPE from texts, and one token per character.

use super::pieces::pieces;
use super::{EOS_TOKEN, PAD_TOKEN, Tokenizer, own_config};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

/// Every character, newlines included, as a piece of its own. Written so that the regex engines of the Rust, Python
/// and JavaScript libraries all read it alike.
const EACH_CHARACTER: &str = r"[\s\S]";

impl Tokenizer {
    /// Trains a byte-level BPE tokenizer (GPT-2's pre-tokenizer, each digit a token of its own) on `texts`.
    ///
    /// Ids: 0 = `<|endoftext|>`, 1 = `<|pad|>`, then the 256 bytes, then the merges in the order learned. Every text
    /// can be encoded and comes back byte for byte. The same texts give the same tokenizer. Where the texts hold fewer
    /// pairs than asked for, [`Tokenizer::vocab_size`] stays below `size`.
    ///
    /// # Errors
    /// `size` below 258 (two special tokens and the bytes).
    pub fn train_bpe<S: AsRef<str> + Sync>(texts: &[S], size: usize) -> Result<Self> {
        let specials = special_tokens();
        let least = 256 + specials.len();
        if size < least {
            return Err(Error::Tokenizer {
                path: None,
                problem: format!("a byte-level BPE vocabulary of {size} is too small"),
                mend: format!("Ask for at least {least} tokens: 256 bytes and {} special tokens", specials.len()),
            });
        }
        let byte_level = || ByteLevel::new(false, false, true);
        let fail = |error: tokenizers::Error| Error::Tokenizer {
            path: None,
            problem: format!("training failed: {error}"),
            mend: "Check the texts and the vocabulary size".into(),
        };
        let mut inner =
            TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new(
            )
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
                PreTokenizerWrapper::Digits(Digits::new(true)),
                PreTokenizerWrapper::ByteLevel(byte_level()),
            ]))))
            .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level())))
            .build()
            .map_err(fail)?;
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(size)
            .min_frequency(2)
            .special_tokens(specials)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        inner.train(&mut trainer, texts.iter().flat_map(|text| pieces(text.as_ref()))).map_err(fail)?;
        let json = inner.to_string(true).map_err(fail)?;
        Self::from_parts(json, own_config(), None)
    }

    /// One token per Unicode character that occurs in `texts`.
    ///
    /// Ids: the characters in code-point order from 0, then `<|endoftext|>`, then `<|pad|>`. There is no unknown
    /// token: encoding a character that did not occur is an error.
    ///
    /// # Errors
    /// No character at all in `texts`.
    pub fn characters<S: AsRef<str>>(texts: &[S]) -> Result<Self> {
        let characters: BTreeSet<char> = texts.iter().flat_map(|t| t.as_ref().chars()).collect();
        if characters.is_empty() {
            return Err(Error::Tokenizer {
                path: None,
                problem: "there is no text to take characters from".into(),
                mend: "Give at least one text that is not empty".into(),
            });
        }
        let count = characters.len();
        let mut vocabulary: Map<String, Value> =
            characters.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
        let mut added = Vec::new();
        for (offset, token) in [EOS_TOKEN, PAD_TOKEN].into_iter().enumerate() {
            let id = count + offset;
            vocabulary.insert(token.into(), json!(id));
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
        }
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Split", "pattern": {"Regex": EACH_CHARACTER}, "behavior": "Isolated", "invert": false,
            },
            "post_processor": null,
            "decoder": {"type": "Fuse"},
            // The format asks for a name; no such token exists, so an unknown character is refused, not replaced.
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|unknown|>"},
        });
        let json = serde_json::to_string_pretty(&json).expect("a JSON value can be written");
        Self::from_parts(json, own_config(), None)
    }
}

fn special_tokens() -> Vec<AddedToken> {
    [EOS_TOKEN, PAD_TOKEN].map(|token| AddedToken::from(token, true)).to_vec()
}

/// The ids by character of a tokenizer of the form that [`Tokenizer::characters`] writes; `None` for any other.
pub(super) fn character_table(inner: &tokenizers::Tokenizer) -> Option<HashMap<char, u32>> {
    let (ModelWrapper::WordLevel(model), Some(PreTokenizerWrapper::Split(split))) =
        (inner.get_model(), inner.get_pre_tokenizer())
    else {
        return None;
    };
    let plain = inner.get_normalizer().is_none() && inner.get_post_processor().is_none();
    let by_character = matches!(&split.pattern, SplitPattern::Regex(r) if r == EACH_CHARACTER) && !split.invert;
    let has_unknown = inner.token_to_id(&model.unk_token).is_some();
    if !plain || !by_character || has_unknown {
        return None;
    }
    let mut table = HashMap::new();
    for (token, id) in inner.get_vocab(false) {
        let mut characters = token.chars();
        if let (Some(character), None) = (characters.next(), characters.next()) {
            table.insert(character, id);
        }
    }
    Some(table)
}
