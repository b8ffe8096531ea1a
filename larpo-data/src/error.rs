//! The one error type of the crate: every message names the place, what was expected and the mend.

use crate::records::Schema;
use std::fmt;
use std::path::{Path, PathBuf};

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can be wrong with a file, a text or a description given to this crate.
///
/// Messages are complete sentences for the person who has to repair the input; callers may print them as they are.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as in "cannot {action}".
        action: &'static str,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A row of a record file does not hold what it must.
    Record(Box<RecordError>),
    /// The file as a whole is of no kind known here.
    Unrecognised {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What is accepted.
        mend: String,
    },
    /// The rows of a file fit several schemas, or rows of one file different ones.
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// Every schema that fits, with the line of the first row it fits.
        fits: Vec<(Schema, usize)>,
    },
    /// A field of a JSON configuration file is missing, wrong, or asks for something that is not supported.
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// How to repair it.
        mend: String,
    },
    /// A safetensors file or one of its tensors cannot be used.
    Tensor {
        /// The safetensors file or model folder.
        path: PathBuf,
        /// The tensor's name; empty for the file as a whole.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A tokenizer cannot be trained, read or used.
    Tokenizer {
        /// The file it came from, where there is one.
        path: Option<PathBuf>,
        /// What is wrong.
        problem: String,
        /// How to repair it.
        mend: String,
    },
    /// A chat template does not compile, or cannot render a conversation.
    Template {
        /// The file it came from.
        path: PathBuf,
        /// What is wrong, with the template's line.
        problem: String,
    },
    /// A text holds a character for which the tokenizer has no token.
    UnknownCharacter {
        /// The character.
        character: char,
        /// Its position in the text, in characters from 0.
        position: usize,
    },
    /// An id was to be decoded that stands for no token.
    UnknownId {
        /// The id.
        id: u32,
        /// Highest id of the vocabulary plus one.
        vocab_size: usize,
    },
    /// A state file is damaged, foreign, or of another version or kind.
    State {
        /// The state file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// How to repair it.
        mend: String,
    },
    /// A description of rewards cannot be understood, or a rule cannot be applied.
    Rule {
        /// The part of the description, or the rule's name.
        rule: String,
        /// What is wrong.
        problem: String,
        /// How to repair it.
        mend: String,
    },
}

/// The place and nature of a fault in a record file. See [`Error::Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// The record file.
    pub path: PathBuf,
    /// Line, counted from 1.
    pub line: usize,
    /// Number of the row, counted from 1, where the rows are elements of an array: a line may hold many.
    pub element: Option<usize>,
    /// The field, with an index where an element is meant (`rewards[2]`); empty for the row as a whole.
    pub field: String,
    /// What was expected there.
    pub expected: String,
    /// What stands there.
    pub found: String,
    /// How to repair it, with an example.
    pub mend: String,
    /// Whether the fault is the whole file's, so that no row can be told by leaving this one out.
    pub of_the_file: bool,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, element, field, expected, found, mend, of_the_file: _ } = self;
        write!(f, "{}:{line}: ", path.display())?;
        if let Some(element) = element {
            write!(f, "element {element} of the array: ")?;
        }
        if !field.is_empty() {
            write!(f, "field `{field}`: ")?;
        }
        write!(f, "expected {expected}, found {found}. {mend}")
    }
}

impl RecordError {
    /// The kind of fault in a few words, the same for every row that has it: what rows left out are counted by.
    pub fn reason(&self) -> String {
        match self.field.split('[').next() {
            Some(field) if !field.is_empty() => format!("malformed `{field}`"),
            _ => format!("not {}", self.expected),
        }
    }
}

impl From<RecordError> for Error {
    fn from(error: RecordError) -> Self {
        Error::Record(Box::new(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { path, action, source } => write!(f, "{}: cannot {action}: {source}", path.display()),
            Error::Record(record) => record.fmt(f),
            Error::Unrecognised { path, found, mend } => write!(f, "{}: {found}. {mend}", path.display()),
            Error::Ambiguous { path, fits } => {
                let list: Vec<String> = fits
                    .iter()
                    .map(|(schema, line)| format!("{schema} ({}) from line {line} on", schema.signature()))
                    .collect();
                write!(f, "{}: the rows fit more than one schema: {}. ", path.display(), list.join("; "))?;
                f.write_str("Say which schema to read them by, or keep rows of one kind in a file")
            }
            Error::Config { path, field, problem, mend } if field.is_empty() => {
                write!(f, "{}: {problem}. {mend}", path.display())
            }
            Error::Config { path, field, problem, mend } => {
                write!(f, "{}, field `{field}`: {problem}. {mend}", path.display())
            }
            Error::Tensor { path, name, problem } if name.is_empty() => write!(f, "{}: {problem}", path.display()),
            Error::Tensor { path, name, problem } => write!(f, "{}, tensor `{name}`: {problem}", path.display()),
            Error::Tokenizer { path: Some(path), problem, mend } => {
                write!(f, "{}: {problem}. {mend}", path.display())
            }
            Error::Tokenizer { path: None, problem, mend } => write!(f, "tokenizer: {problem}. {mend}"),
            Error::Template { path, problem } => write!(f, "{}: {problem}", path.display()),
            Error::UnknownCharacter { character, position } => write!(
                f,
                "the tokenizer has no token for the character {character:?} (U+{:04X}) at position {position} of the text. \
                 Remove the character, or build the tokenizer from a text that contains it",
                *character as u32
            ),
            Error::UnknownId { id, vocab_size } => write!(
                f,
                "token id {id} stands for no token of the tokenizer (ids go up to {}). \
                 Check that the ids were made with the same tokenizer",
                vocab_size.saturating_sub(1)
            ),
            Error::State { path, problem, mend } => write!(f, "{}: {problem}. {mend}", path.display()),
            Error::Rule { rule, problem, mend } => write!(f, "reward `{rule}`: {problem}. {mend}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Error {
    /// An [`Error::Io`] for `path`; made to be used with `map_err`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, action, source }
    }

    /// The same fault as one of the whole file.
    pub(crate) fn of_the_file(mut self) -> Self {
        if let Error::Record(error) = &mut self {
            error.of_the_file = true;
        }
        self
    }
}
