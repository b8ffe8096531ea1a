//! Text to token ids and back.
//!
//! A tokenizer is a folder's `tokenizer.json` and `tokenizer_config.json`, the files every Hugging Face library reads.
//! They are trained here ([`Tokenizer::train_bpe`], [`Tokenizer::characters`]) or taken from any model folder
//! ([`Tokenizer::open`]). This module knows nothing of models, prompts or responses.

mod build;
mod pieces;

use crate::chat::{self, ChatTemplates, Conversations};
use crate::error::{Error, Result};
use crate::files;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tokenizers::models::ModelWrapper;

/// The end-of-sequence token of the tokenizers built here.
pub const EOS_TOKEN: &str = "<|endoftext|>";
/// The padding token of the tokenizers built here. Nothing in this workspace pads; other libraries ask for one.
pub const PAD_TOKEN: &str = "<|pad|>";

/// Files that belong to a tokenizer besides `tokenizer.json` and `tokenizer_config.json`; copied byte by byte on saving.
const COMPANIONS: [&str; 9] = [
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
];

/// Bytes of all added tokens together: a hundred times what tokenizers have.
const ADDED_BYTES: usize = 16 << 20;

/// What is looked at before the library reads a `tokenizer.json`.
#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(borrow)]
    added_tokens: Option<Vec<AddedToken<'a>>>,
}

#[derive(Deserialize)]
struct AddedToken<'a> {
    #[serde(borrow, default)]
    content: Cow<'a, str>,
}

/// A tokenizer in the standard `tokenizer.json` form.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The text of `tokenizer.json`, kept so that saving a foreign tokenizer changes nothing in it.
    json: String,
    /// The fields of `tokenizer_config.json`.
    config: Map<String, Value>,
    /// That file as it was read, which is written again.
    config_file: Option<Vec<u8>>,
    /// Files beside them: path within the folder, contents.
    companions: Vec<(PathBuf, Vec<u8>)>,
    chat: ChatTemplates,
    /// The same, compiled when they are asked for.
    conversations: OnceLock<Option<Conversations>>,
    /// Token of every id; `None` where the numbering has a hole.
    tokens: Vec<Option<String>>,
    /// For a tokenizer with one token per character: the ids, so that a long text needs no machinery.
    characters: Option<HashMap<char, u32>>,
    /// A long text may be encoded piece by piece.
    separable: bool,
    /// Every byte has a token, and tokens are written in the characters that GPT-2 gave to bytes.
    byte_level: bool,
    /// The model may leave characters out without a word, so the coverage of the text is checked.
    may_drop: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("pad", &self.pad)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `special_tokens_map.json`, chat templates and whatever else
    /// belongs to a tokenizer where it exists, from a model or tokenizer folder.
    ///
    /// Truncation and padding written into `tokenizer.json` are switched off: a text is never cut or filled silently.
    ///
    /// # Errors
    /// A missing or unreadable file, a `tokenizer.json` of an unknown form, a special token that is not in the
    /// vocabulary.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("tokenizer.json");
        let json = files::read_text(&path)?;
        let mut config = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        // Older folders keep the special tokens in a file of their own; the configuration wins.
        for (key, value) in read_object(&folder.join("special_tokens_map.json"))?.unwrap_or_default() {
            config.entry(key).or_insert(value);
        }
        let read = |name: &str| {
            let file = folder.join(name);
            file.is_file().then(|| std::fs::read(&file).map_err(Error::io(&file, "read"))).transpose()
        };
        let config_file = read("tokenizer_config.json")?;
        let mut companions = Vec::new();
        for name in COMPANIONS {
            companions.extend(read(name)?.map(|bytes| (name.into(), bytes)));
        }
        for path in chat::jinja_files(&folder.join(chat::MORE))? {
            let name = Path::new(chat::MORE).join(path.file_name().unwrap_or_default());
            companions.push((name, std::fs::read(&path).map_err(Error::io(&path, "read"))?));
        }
        let chat = ChatTemplates::open(folder, &config)?;
        Ok(Self { config_file, companions, chat, ..Self::from_parts(json, config, Some(path))? })
    }

    /// Puts a tokenizer together and derives the tables that encoding and decoding need.
    fn from_parts(json: String, config: Map<String, Value>, path: Option<PathBuf>) -> Result<Self> {
        let fail = |problem: String, mend: &str| Error::Tokenizer { path: path.clone(), problem, mend: mend.into() };
        // The library panics on a `decoder` that is no JSON, and builds tables many times as large as the added tokens.
        let outline: Outline = serde_json::from_str(&json).map_err(|error| {
            fail(format!("not a tokenizer that can be read: {error}"), "Copy or download the file again")
        })?;
        let added: usize = outline.added_tokens.iter().flatten().map(|token| token.content.len()).sum();
        if added > ADDED_BYTES {
            return Err(fail(
                format!(
                    "`added_tokens` hold {} MiB of text, more than the {} MiB that are read",
                    added >> 20,
                    ADDED_BYTES >> 20
                ),
                "Remove from it what is no token, or copy or download the file again",
            ));
        }
        let mut inner: tokenizers::Tokenizer = guarded(|| json.parse())?.map_err(|e| {
            fail(
                format!("not a tokenizer that can be read: {e}"),
                "Save it again with a current version of `tokenizers`",
            )
        })?;
        inner
            .with_truncation(None)
            .map_err(|e| fail(format!("truncation cannot be switched off: {e}"), "Set `truncation` to null"))?;
        inner.with_padding(None);

        let vocabulary = inner.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        if size == 0 || size > 1 << 24 {
            return Err(fail(
                format!("the vocabulary has {} tokens and ids below {size}", vocabulary.len()),
                "A vocabulary has between one and 16,777,216 ids",
            ));
        }
        let mut tokens = vec![None; size];
        for (token, id) in vocabulary {
            tokens[id as usize] = Some(token);
        }

        let special = |key: &str| -> Result<Option<u32>> {
            let Some(content) = special_content(config.get(key)) else { return Ok(None) };
            match inner.token_to_id(content) {
                Some(id) => Ok(Some(id)),
                None => Err(fail(
                    format!("`{key}` is {content:?}, which is not in the vocabulary"),
                    "Correct tokenizer_config.json or add the token to tokenizer.json",
                )),
            }
        };
        let (bos, eos, pad) = (special("bos_token")?, special("eos_token")?, special("pad_token")?);
        // A template that asks for a token it does not have is found by using it.
        guarded(|| inner.encode_fast("a", true).map(|encoding| inner.decode(encoding.get_ids(), true)))
            .map_err(|error| {
                fail(error.to_string(), "Save the tokenizer again with a current version of `tokenizers`")
            })?
            .ok();
        Ok(Self {
            characters: build::character_table(&inner),
            separable: pieces::separable(&inner),
            byte_level: byte_level(&inner),
            may_drop: may_drop(&inner),
            inner,
            json,
            config,
            config_file: None,
            companions: Vec::new(),
            chat: ChatTemplates::default(),
            conversations: OnceLock::new(),
            tokens,
            bos,
            eos,
            pad,
        })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (and the companion files of a tokenizer that was opened)
    /// into `folder`, each whole or not at all. The folder is created where it is missing.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        files::create_folder(folder)?;
        files::write_bytes(folder.join("tokenizer.json"), self.json.as_bytes())?;
        let path = folder.join("tokenizer_config.json");
        match &self.config_file {
            Some(bytes) => files::write_bytes(path, bytes)?,
            None => {
                let config = serde_json::to_string_pretty(&self.config).expect("a JSON object can be written");
                files::write_bytes(path, format!("{config}\n").as_bytes())?;
            }
        }
        for (name, bytes) in &self.companions {
            let path = folder.join(name);
            files::create_folder(path.parent().unwrap_or(folder))?;
            files::write_bytes(path, bytes)?;
        }
        Ok(())
    }

    /// The chat templates that came with it.
    pub fn chat(&self) -> &ChatTemplates {
        &self.chat
    }

    /// The same, compiled; none where there are none.
    ///
    /// # Errors
    /// A template that does not compile.
    pub fn conversations(&self) -> Result<Option<&Conversations>> {
        if let Some(compiled) = self.conversations.get() {
            return Ok(compiled.as_ref());
        }
        let compiled = Conversations::new(&self.chat)?;
        Ok(self.conversations.get_or_init(|| compiled).as_ref())
    }

    /// The text of `tokenizer.json`, which decides every id.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The ids of `text`, without the special tokens that a post-processor would add. Special tokens written out in
    /// the text (`<|endoftext|>`) become their ids, as in every Hugging Face tokenizer.
    ///
    /// # Errors
    /// [`Error::UnknownCharacter`] where the vocabulary has neither a token for a character nor an unknown token;
    /// characters are never left out silently.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if let Some(table) = &self.characters
            && !self.has_added_token(text)
        {
            return text
                .chars()
                .enumerate()
                .map(|(position, character)| {
                    table.get(&character).copied().ok_or(Error::UnknownCharacter { character, position })
                })
                .collect();
        }
        if self.separable && !self.may_drop {
            let ids: Result<Vec<_>> = pieces::pieces(text).map(|piece| self.encode_inner(piece, false)).collect();
            if let Ok(ids) = ids {
                return Ok(ids.concat());
            }
        }
        // Errors name a position in the whole text.
        self.encode_inner(text, false)
    }

    /// The ids of `text` with the special tokens that the tokenizer itself adds (often a beginning-of-sequence token,
    /// often none).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_inner(text, true)
    }

    fn encode_inner(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        if !self.may_drop {
            return match guarded(|| self.inner.encode_fast(text, special))? {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(error) => Err(self.encode_error(text, error.as_ref())),
            };
        }
        let encoding =
            guarded(|| self.inner.encode(text, special))?.map_err(|e| self.encode_error(text, e.as_ref()))?;
        let mut covered = vec![false; text.len()];
        for &(start, end) in encoding.get_offsets() {
            covered[start..end].fill(true);
        }
        // Pre-tokenizers may drop white space on purpose; anything else that is missing was unknown.
        for (position, (at, character)) in text.char_indices().enumerate() {
            if !covered[at] && !character.is_whitespace() {
                return Err(Error::UnknownCharacter { character, position });
            }
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// Names the first character without a token of its own, which is why a model without an unknown token refuses.
    fn encode_error(&self, text: &str, error: &(dyn std::error::Error + Send + Sync)) -> Error {
        if let Some(table) = &self.characters {
            let added = self.inner.get_added_vocabulary().get_vocab();
            let (mut rest, mut position) = (text, 0);
            while let Some(character) = rest.chars().next() {
                // Added tokens may hold characters that have no token of their own.
                let token = added.keys().find(|token| rest.starts_with(token.as_str()));
                if token.is_none() && !table.contains_key(&character) {
                    return Error::UnknownCharacter { character, position };
                }
                let length = token.map_or(character.len_utf8(), String::len);
                position += rest[..length].chars().count();
                rest = &rest[length..];
            }
        }
        Error::Tokenizer {
            path: None,
            problem: format!("the text cannot be encoded: {error}"),
            mend: "Use a tokenizer whose vocabulary covers the text".into(),
        }
    }

    /// The text of `ids`. With `skip_special`, tokens marked special leave nothing behind.
    ///
    /// Bytes that are no UTF-8 (a byte-level response cut inside a character) become U+FFFD.
    ///
    /// # Errors
    /// [`Error::UnknownId`] for an id that stands for no token.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| self.token_of(id).is_none()) {
            return Err(Error::UnknownId { id, vocab_size: self.vocab_size() });
        }
        guarded(|| self.inner.decode(ids, skip_special))?.map_err(|error| Error::Tokenizer {
            path: None,
            problem: format!("the ids cannot be decoded: {error}"),
            mend: "Check the `decoder` of tokenizer.json".into(),
        })
    }

    /// Highest id plus one: the least `vocab_size` a model needs for this tokenizer.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The token (as it stands in `tokenizer.json`) of an id; `None` where no token has that id.
    pub fn token_of(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)?.as_deref()
    }

    /// The bytes that a token of a byte-level vocabulary (GPT-2's) stands for, which may be parts of a character; `None` in
    /// other vocabularies.
    pub fn bytes_of(&self, id: u32) -> Option<Vec<u8>> {
        self.token_of(id).filter(|_| self.byte_level)?.chars().map(byte_of).collect()
    }

    /// The id of a token as it stands in `tokenizer.json`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The end-of-sequence id that `tokenizer_config.json` names.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The beginning-of-sequence id that `tokenizer_config.json` names. It says nothing about whether
    /// [`Tokenizer::encode_with_special`] adds it.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The padding id that `tokenizer_config.json` names.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Whether the text holds an added token (`<|endoftext|>`) written out.
    fn has_added_token(&self, text: &str) -> bool {
        self.inner.get_added_vocabulary().get_vocab().keys().any(|token| text.contains(token.as_str()))
    }
}

/// What `work` with the tokenizers library gives. The library panics on some damaged files; that is an error of the file
/// like any other.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        Error::Tokenizer {
            path: None,
            problem: format!("tokenizer.json cannot be used: {}", text.unwrap_or("the tokenizers library gave up")),
            mend: "Save it again with a current version of `tokenizers`".into(),
        }
    })
}

/// A special token is written as a string or as an object with `content`.
pub(crate) fn special_content(value: Option<&Value>) -> Option<&str> {
    match value? {
        Value::String(text) => Some(text),
        Value::Object(object) => object.get("content")?.as_str(),
        _ => None,
    }
}

/// A byte-pair model without unknown token and byte fallback leaves out what it does not know, unless every byte has a
/// token.
fn may_drop(inner: &tokenizers::Tokenizer) -> bool {
    let ModelWrapper::BPE(model) = inner.get_model() else { return false };
    if model.unk_token.is_some() || model.byte_fallback {
        return false;
    }
    !byte_level(inner)
}

/// Whether every byte has a token, in the alphabet of GPT-2.
fn byte_level(inner: &tokenizers::Tokenizer) -> bool {
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    alphabet.iter().all(|c| inner.token_to_id(&c.to_string()).is_some())
}

/// The byte that GPT-2 writes as `character`: visible ones of Latin-1 stand for themselves, the others for those from 256 on,
/// in their order.
fn byte_of(character: char) -> Option<u8> {
    let visible = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u8::try_from(u32::from(character)) {
        Ok(byte) => Some(byte).filter(visible),
        Err(_) => (0..=255).filter(|byte| !visible(byte)).nth((u32::from(character) - 256) as usize),
    }
}

/// A JSON object from a file; `None` where there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = files::read_text(path)?;
    serde_json::from_str(&text).map(Some).map_err(|error| Error::Tokenizer {
        path: Some(path.to_path_buf()),
        problem: format!("not a JSON object: {error}"),
        mend: "Repair or remove the file".into(),
    })
}

/// The `tokenizer_config.json` of the tokenizers built here.
fn own_config() -> Map<String, Value> {
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
    });
    match config {
        Value::Object(map) => map,
        _ => unreachable!("the literal above is an object"),
    }
}
