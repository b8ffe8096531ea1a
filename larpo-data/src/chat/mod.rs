//! Chat templates: conversations as the text that a chat model reads.
//!
//! A template is the Jinja source that comes with a tokenizer. It is rendered as transformers renders it: blocks trimmed,
//! `raise_exception`, `strftime_now` and `tojson` at hand, the methods of Python's strings, lists and dicts, values printed
//! as Python prints them. A template can read what it is given and nothing else, and its work is bounded.

mod conversations;
mod guard;
mod python;

pub use conversations::Conversations;

use crate::error::{Error, Result};
use crate::files;
use crate::tokenizer::{read_object, special_content};
use minijinja::machinery::{Vm, get_compiled_template, make_string_output};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior};
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// Steps of a template's work: some ten thousand messages with a usual template, or a thousand where each of them looks at all.
const FUEL: u64 = 20_000_000;
/// Bytes of a template; those of published models have some ten thousand.
const SOURCE: usize = 256 << 10;
/// Time for a template to compile in; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the stack for one byte of a template: what it nests without brackets (`--------1`, or a thousand `elif`), the
/// engine's parser and compiler nest too, and they limit brackets alone.
const STACK: usize = 4 << 10;
/// Characters between two items of JSON.
const WIDTH: usize = 64;
/// Templates, macros and loops inside one another.
const DEPTH: usize = 100;
/// The template's name inside its environment.
const NAME: &str = "chat_template";
/// The template used where none is named.
const DEFAULT: &str = "default";
/// The template used with tools, where there is one of that name.
const WITH_TOOLS: &str = "tool_use";

/// A template in the file of its own.
const FILE: &str = "chat_template.jinja";
/// The templates beside it.
pub(crate) const MORE: &str = "additional_chat_templates";
/// An older place of a template.
const JSON_FILE: &str = "chat_template.json";

/// One compiled template.
pub struct ChatTemplate {
    name: String,
    /// Where it came from.
    path: PathBuf,
    environment: Environment<'static>,
    /// Names of the functions that count what instructions make.
    calls: BTreeSet<String>,
    /// `bos_token` and the like with their texts.
    special_tokens: Map<String, Value>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("name", &self.name).field("path", &self.path).finish_non_exhaustive()
    }
}

/// What a conversation is rendered with, beside its messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatOptions<'a> {
    /// Ends with the beginning of an assistant's turn.
    pub add_generation_prompt: bool,
    /// JSON schemas of the functions that the model may call.
    pub tools: Option<&'a [Value]>,
}

impl ChatTemplate {
    /// Compiles `source`, which came from `path`.
    ///
    /// # Errors
    /// A source that is no template, with its line.
    pub fn new(name: &str, source: &str, special_tokens: Map<String, Value>, path: &Path) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(print);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_filter("trim", trim);
        environment.add_test("sequence", is_sequence);
        environment.add_filter("string", |value: minijinja::Value| python::display(&value));
        let source = without_generation_marks(source);
        let fail = |error: minijinja::Error| problem(name, path, "does not compile", &error);
        if source.len() > SOURCE {
            let problem = format!("the chat template has {} bytes; expected {SOURCE} at most", source.len());
            return Err(Error::Template { path: path.into(), problem });
        }
        let mut environment = compiled(environment, source, name, path)?;
        environment.remove_global("debug");
        let mut calls = BTreeSet::new();
        {
            let template = environment.get_template(NAME).map_err(fail)?;
            let compiled = get_compiled_template(&template);
            for instructions in [&compiled.instructions].into_iter().chain(compiled.blocks.values()) {
                guard::check_constants(instructions).map_err(fail)?;
                guard::calls(instructions, &mut calls);
            }
        }
        guard::add_functions(&mut environment, &calls);
        Ok(Self { name: name.into(), path: path.into(), environment, calls, special_tokens })
    }

    /// Its name; `default` where it has none of its own.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of a conversation. Messages are objects with `role` and `content`, and whatever else the template reads.
    /// The text holds the special tokens already: it is encoded with [`crate::tokenizer::Tokenizer::encode`].
    ///
    /// # Errors
    /// What the template raises, an operation it cannot do, and work without end, each with its line.
    pub fn render(&self, messages: &[Value], options: ChatOptions) -> Result<String> {
        let mut context = self.special_tokens.clone();
        context.insert("messages".into(), messages.into());
        context.insert("tools".into(), options.tools.map_or(Value::Null, Value::from));
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        let fail = |error: minijinja::Error| match error.kind() {
            ErrorKind::OutOfFuel => problem(&self.name, &self.path, "does not come to an end", &error),
            _ => problem(&self.name, &self.path, "refuses the conversation", &error),
        };
        guard::begin();
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let compiled = get_compiled_template(&template);
        let instructions = guard::guarded(&compiled.instructions, &self.calls);
        let blocks = compiled.blocks.iter().map(|(name, block)| (*name, guard::guarded(block, &self.calls))).collect();
        let mut text = String::new();
        let root = minijinja::Value::from_serialize(&context);
        let mut out = make_string_output(&mut text);
        Vm::new(&self.environment).eval(&instructions, root, &blocks, &mut out, AutoEscape::None).map_err(fail)?;
        drop(out);
        Ok(text)
    }
}

impl ChatTemplate {
    /// The template writes `prompt` in another way once an answer stands behind it, as `whole` says.
    pub(crate) fn changes_its_prompt(&self, prompt: &str, whole: &str) -> Error {
        let same = prompt.chars().zip(whole.chars()).take_while(|(a, b)| a == b).count();
        let around = |text: &str| text.chars().skip(same.saturating_sub(10)).take(40).collect::<String>();
        let problem = format!(
            "the chat template writes the conversation in another way once an answer stands behind it: {:?} becomes {:?}",
            around(prompt),
            around(whole)
        );
        Error::Template { path: self.path.clone(), problem }
    }
}

/// The templates of a tokenizer's folder, compiled when they are asked for: a folder is of use without them.
#[derive(Debug, Default)]
pub struct ChatTemplates {
    templates: Vec<Source>,
    special_tokens: Map<String, Value>,
}

#[derive(Debug)]
struct Source {
    name: String,
    text: String,
    path: PathBuf,
}

impl ChatTemplates {
    /// Reads the templates of `folder`, whose `tokenizer_config.json` holds `config`. `chat_template.jinja` goes before
    /// `chat_template` of the configuration, and that before `chat_template.json`; `additional_chat_templates` come beside.
    ///
    /// # Errors
    /// A file that cannot be read, a field of another form.
    pub fn open(folder: &Path, config: &Map<String, Value>) -> Result<Self> {
        let mut templates = Vec::new();
        let mut add = |name: &str, text: &str, path: &Path| {
            templates.push(Source { name: name.into(), text: text.into(), path: path.into() });
        };
        let (own, json) = (folder.join(FILE), folder.join(JSON_FILE));
        let in_config = folder.join("tokenizer_config.json");
        if own.is_file() {
            add(DEFAULT, &files::read_text(&own)?, &own);
        } else if let Some(value) = config.get("chat_template").filter(|value| !value.is_null()) {
            named(value, &in_config)?.into_iter().for_each(|(name, text)| add(name, text, &in_config));
        } else if let Some(object) = read_object(&json)? {
            let value = object.get("chat_template").unwrap_or(&Value::Null);
            named(value, &json)?.into_iter().for_each(|(name, text)| add(name, text, &json));
        }
        for path in jinja_files(&folder.join(MORE))? {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            add(&name, &files::read_text(&path)?, &path);
        }
        Ok(Self { templates, special_tokens: special_tokens(config) })
    }

    /// Their names.
    pub fn names(&self) -> Vec<&str> {
        self.templates.iter().map(|template| &template.name[..]).collect()
    }

    /// The template of that name; without a name the one for tools, where there are tools and such a template, or the
    /// default. None where there is no such template.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn get(&self, name: Option<&str>, tools: bool) -> Result<Option<ChatTemplate>> {
        let find = |name: &str| self.templates.iter().find(|template| template.name == name);
        let found = match name {
            Some(name) => find(name),
            None => (if tools { find(WITH_TOOLS) } else { None }).or_else(|| find(DEFAULT)),
        };
        let compiled =
            |Source { name, text, path }: &Source| ChatTemplate::new(name, text, self.special_tokens.clone(), path);
        found.map(compiled).transpose()
    }
}

/// One template, or several with their names.
fn named<'a>(value: &'a Value, path: &Path) -> Result<Vec<(&'a str, &'a str)>> {
    let fail = || {
        let mend = "Write the template as a string, or several as a list of objects with `name` and `template`";
        of_field(path, "neither a template nor a list of named ones", mend)
    };
    match value {
        Value::String(source) => Ok(vec![(DEFAULT, source)]),
        Value::Array(list) => list
            .iter()
            .map(|entry| {
                let field = |key: &str| entry.get(key).and_then(Value::as_str).ok_or_else(fail);
                Ok((field("name")?, field("template")?))
            })
            .collect(),
        _ => Err(fail()),
    }
}

fn of_field(path: &Path, problem: &str, mend: &str) -> Error {
    Error::Config { path: path.into(), field: "chat_template".into(), problem: problem.into(), mend: mend.into() }
}

/// The files of `folder` that hold nothing but templates.
///
/// # Errors
/// A folder that cannot be read.
pub fn template_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = [FILE, JSON_FILE].map(|name| folder.join(name)).into_iter().filter(|path| path.is_file());
    Ok(single.chain(jinja_files(&folder.join(MORE))?).collect())
}

/// The templates in a folder by their names; none where there is no such folder.
pub(crate) fn jinja_files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let fail = |source| Error::Io { path: folder.into(), action: "read", source };
    let entries = std::fs::read_dir(folder).map_err(fail)?;
    let mut paths = entries.map(|entry| Ok(entry.map_err(fail)?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    Ok(paths)
}

/// `bos_token` and all other tokens that the configuration names, by their texts.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let tokens = config.iter().filter(|(key, _)| key.ends_with("_token"));
    tokens.filter_map(|(key, value)| Some((key.clone(), special_content(Some(value))?.into()))).collect()
}

/// The marks that tell transformers which part of the text the assistant wrote, as blocks that do nothing.
fn without_generation_marks(source: &str) -> String {
    static BEGIN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").expect("a valid expression"));
    static END: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").expect("a valid expression"));
    END.replace_all(&BEGIN.replace_all(source, "{%${1} if true ${2}%}"), "{%${1} endif ${2}%}").into_owned()
}

/// The environment with the template in it. The engine nests and works out constants while it compiles, without a limit of
/// its own: this happens on a thread with room enough, which is given up when it takes too long.
fn compiled(
    mut environment: Environment<'static>,
    source: String,
    name: &str,
    path: &Path,
) -> Result<Environment<'static>> {
    let problem_of = |problem: String| Error::Template { path: path.into(), problem };
    let stack = (1 << 20) + STACK * source.len();
    let (sender, receiver) = std::sync::mpsc::channel();
    let compile = move || {
        let done = environment.add_template_owned(NAME, source).map(|()| environment);
        // Nobody waits any longer for what took too long.
        let _ = sender.send(done);
    };
    std::thread::Builder::new().stack_size(stack).spawn(compile).map_err(|error| {
        problem_of(format!("the chat template cannot be compiled: no memory for {stack} bytes of stack ({error})"))
    })?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(done) => done.map_err(|error| problem(name, path, "does not compile", &error)),
        Err(RecvTimeoutError::Timeout) => {
            Err(problem_of(format!("the chat template does not compile: not within {} s", PATIENCE.as_secs())))
        }
        Err(RecvTimeoutError::Disconnected) => Err(problem_of("the chat template makes its compiler fail".into())),
    }
}

fn problem(name: &str, path: &Path, what: &str, error: &minijinja::Error) -> Error {
    let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
    // The reason alone: the rest of the library's message names its own places.
    let reason = match error.kind() {
        ErrorKind::OutOfFuel => format!("it is not done after {FUEL} steps"),
        kind => error.detail().map_or_else(|| kind.to_string(), String::from),
    };
    let named = if name == DEFAULT { String::new() } else { format!(" `{name}`") };
    Error::Template { path: path.into(), problem: format!("the chat template{named} {what}{line}: {reason}") }
}

/// Prints a value into the text as Python would.
fn print(out: &mut Output, _: &State, value: &minijinja::Value) -> std::result::Result<(), minijinja::Error> {
    let text = python::display(value)?;
    guard::spend(text.len() as u64)?;
    Ok(out.write_str(&text)?)
}

fn raise_exception(message: String) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> std::result::Result<String, minijinja::Error> {
    use std::fmt::Write as _;
    // A time has some forty characters at most.
    guard::spend(64 * format.len() as u64)?;
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no format of a time"))),
    }
}

/// What has a length and items: texts and objects too.
fn is_sequence(value: &minijinja::Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Bytes)
}

/// `str(value).strip(characters)`.
fn trim(value: minijinja::Value, characters: Option<&str>) -> std::result::Result<String, minijinja::Error> {
    let text = python::display(&value)?;
    Ok(match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).into(),
        None => text.trim().into(),
    })
}

/// `json.dumps` with the arguments that transformers passes on.
fn to_json(value: minijinja::Value, options: Kwargs) -> std::result::Result<minijinja::Value, minijinja::Error> {
    let json = python::Json {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get::<Option<usize>>("indent")?,
        separators: options.get::<Option<Vec<String>>>("separators")?,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let separators = json.separators.iter().flatten().map(String::len).max();
    if json.indent.max(separators).is_some_and(|width| width > WIDTH) {
        let detail = format!("tojson with an indent or separators of more than {WIDTH} characters");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, detail));
    }
    Ok(minijinja::Value::from_safe_string(json.dumps(&value)?))
}
