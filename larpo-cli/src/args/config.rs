//! `--config FILE` and `larpo config`: settings of a file become flags in front of those that were typed, so that every
//! flag, its values and its contradictions work alike; and settings in effect become such a file again.

use super::yaml::{self, Scalar, Value};
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Positional arguments and the flags that mean the same.
const SAME: [(&str, &str); 2] = [("input", "dataset_name"), ("models", "model_name_or_path")];
/// Arguments that a file cannot give.
const NOT_SETTINGS: [&str; 3] = ["config", "help", "version"];

/// A setting in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The long name of its flag.
    pub key: String,
    /// Its values as they would be typed; none where it is not set.
    pub values: Vec<String>,
    /// Whether it is `true` or `false`.
    pub switch: bool,
    /// Whether it takes a list.
    pub list: bool,
    /// Where it comes from.
    pub origin: Origin,
}

/// The settings of a verb in effect, in the order of the help.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(pub Vec<Setting>);

impl Settings {
    /// Every setting that has a value, by its name, for the record of a run.
    pub fn values(&self) -> BTreeMap<String, Vec<String>> {
        let set = self.0.iter().filter(|setting| !setting.values.is_empty());
        set.map(|setting| (setting.key.clone(), setting.values.clone())).collect()
    }

    /// Puts in what the run takes for a setting that is not given.
    pub fn resolve(&mut self, key: &str, values: Vec<String>, why: impl Into<String>, settable: bool) {
        let not_set = |s: &&mut Setting| s.key == key && s.values.is_empty();
        if let Some(setting) = self.0.iter_mut().find(not_set) {
            setting.values = values;
            setting.origin = Origin::Resolved { why: why.into(), settable };
        }
    }

    /// Those that a flag or a file gave.
    pub fn given(&self) -> BTreeSet<String> {
        let given = self.0.iter().filter(|setting| matches!(setting.origin, Origin::File(..) | Origin::Flag));
        given.map(|setting| setting.key.clone()).collect()
    }
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Not given; the text says what happens then.
    Default(String),
    /// Not given; the value is what the run takes then, and the text says why. Where `settable` is false, a file may not
    /// give it beside the others.
    Resolved {
        /// Why it is this one.
        why: String,
        /// Whether a configuration file may hold it.
        settable: bool,
    },
    /// A line of the configuration file.
    File(PathBuf, usize),
    /// The command line.
    Flag,
}

/// What a configuration file gave: the lines of its settings by the name of the flag.
#[derive(Debug, Default)]
pub struct Given {
    file: PathBuf,
    lines: BTreeMap<String, usize>,
    /// Switches that the command line took back.
    off: BTreeSet<String>,
}

/// Puts the settings of the file that `words` name in front of the flags of the verb, except those that `words` give
/// themselves. `at` is the place after the verb, `verb` its declaration.
///
/// # Errors
/// A sentence with file, line and mend.
pub fn merge(words: &mut Vec<OsString>, at: usize, verb: &Command) -> Result<Given, String> {
    let typed = typed(&words[at.min(words.len())..], verb);
    let off = switch(words, at, verb);
    let Some(file) = typed.get("config").map(PathBuf::from) else { return Ok(Given { off, ..Given::default() }) };
    let text = open(&file).map_err(|problem| format!("cannot read {}: {problem}", file.display()))?;
    let place = |line: usize| format!("{}:{line}", file.display());
    let entries = yaml::read(&text).map_err(|p| format!("{}: {}", place(p.line), p.message))?;
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    let mut flags = Vec::new();
    for entry in entries {
        let at = |problem: String| format!("{}: {}: {problem}", place(entry.line), entry.key);
        let arg = find(verb, &entry.key.replace('-', "_")).map_err(at)?;
        let id = arg.get_id().to_string();
        if let Some(first) = lines.insert(id.clone(), entry.line) {
            return Err(at(format!("given on line {first} already; leave one of the two out")));
        }
        let words = flag_words(arg, &entry.value).map_err(at)?;
        for word in &words {
            check(arg, word).map_err(at)?;
        }
        if typed.contains_key(&id) {
            lines.remove(&id);
        } else {
            flags.extend(words);
        }
    }
    words.splice(at..at, flags);
    Ok(Given { file, lines, off })
}

fn open(file: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|e| e.to_string())?;
    opened.take(yaml::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > yaml::MAX_BYTES {
        return Err(format!("it is larger than {} KiB, which no settings are", yaml::MAX_BYTES >> 10));
    }
    String::from_utf8(bytes).map_err(|e| format!("it is not UTF-8 at byte {}", e.utf8_error().valid_up_to()))
}

/// Names of the arguments that stand in `words`, each with its last value; that of a switch is empty.
pub(super) fn typed(words: &[OsString], verb: &Command) -> BTreeMap<String, OsString> {
    let mut found = BTreeMap::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        let Some(flag) = text.strip_prefix("--") else {
            // The first word that is no value of a flag.
            if !text.starts_with('-') {
                let has = |id: &str| verb.get_arguments().any(|arg| arg.get_id() == id);
                let flag = SAME.iter().find(|(positional, _)| has(positional)).map_or(SAME[0].1, |(_, flag)| flag);
                found.insert(flag.to_string(), word.clone());
            }
            continue;
        };
        if flag.is_empty() {
            break;
        }
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let Some(arg) = by_name(verb, name) else { continue };
        let value = match value {
            Some(value) => Some(OsString::from(value)),
            None if arg.get_action().takes_values() => words.next().cloned(),
            None => None,
        };
        found.insert(arg.get_id().to_string(), value.unwrap_or_default());
    }
    found
}

/// Lets `--switch=false` take back what a file switched on, and gives the names of those that do; `--switch=true` is
/// `--switch`.
fn switch(words: &mut Vec<OsString>, at: usize, verb: &Command) -> BTreeSet<String> {
    let (mut place, mut off) = (0, BTreeSet::new());
    words.retain_mut(|word| {
        place += 1;
        let text = word.to_string_lossy();
        let Some((name, value)) = text.strip_prefix("--").and_then(|flag| flag.split_once('=')) else { return true };
        let Some(arg) = by_name(verb, name).filter(|arg| place > at && !arg.get_action().takes_values()) else {
            return true;
        };
        match value {
            "true" => *word = format!("--{name}").into(),
            "false" => {
                off.insert(arg.get_id().to_string());
                return false;
            }
            _ => {}
        }
        true
    });
    off
}

pub(super) fn by_name<'a>(verb: &'a Command, name: &str) -> Option<&'a Arg> {
    let named = |arg: &&Arg| arg.get_long_and_visible_aliases().is_some_and(|names| names.contains(&name));
    verb.get_arguments().find(named)
}

/// The flag called `name`.
fn find<'a>(verb: &'a Command, name: &str) -> Result<&'a Arg, String> {
    match by_name(verb, name) {
        Some(arg) if arg.get_id() == "config" => Err("a configuration file cannot name another".into()),
        Some(arg) if !NOT_SETTINGS.contains(&arg.get_id().as_str()) => Ok(arg),
        _ => {
            let known = verb.clone().no_binary_name(true).try_get_matches_from([format!("--{name}")]);
            let similar = known.err().and_then(|e| match e.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(flag)) => Some(flag.trim_start_matches('-').to_string()),
                _ => None,
            });
            let mend = match similar {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("the names are those of the flags in `larpo {} --help`", verb.get_name()),
            };
            Err(format!("larpo {} has no such setting; {mend}", verb.get_name()))
        }
    }
}

/// The value as words of a command line.
fn flag_words(arg: &Arg, value: &Value) -> Result<Vec<OsString>, String> {
    let key = arg.get_long().unwrap_or_default();
    if !arg.get_action().takes_values() {
        return match value {
            Value::One(scalar) => match scalar.boolean() {
                Some(true) => Ok(vec![format!("--{key}").into()]),
                Some(false) => Ok(Vec::new()),
                None => Err(format!("`{}` where true or false was expected", scalar.text)),
            },
            Value::List(_) => Err("a list where true or false was expected".into()),
        };
    }
    let scalars: &[Scalar] = match value {
        Value::One(scalar) => std::slice::from_ref(scalar),
        Value::List(items) if !matches!(arg.get_action(), ArgAction::Append) => {
            return Err(format!("a list of {} where one value was expected", items.len()));
        }
        Value::List(items) => items,
    };
    if scalars.is_empty() || scalars.iter().any(Scalar::is_null) {
        return Err("no value; leave the line out for the default".into());
    }
    Ok(scalars.iter().map(|scalar| format!("--{key}={}", scalar.text).into()).collect())
}

/// Whether the flag takes the value, whatever else is given.
fn check(arg: &Arg, word: &OsString) -> Result<(), String> {
    let alone = arg
        .clone()
        .required(false)
        .conflicts_with(Resettable::Reset)
        .requires(Resettable::Reset)
        .required_unless_present(Resettable::Reset);
    let verb = Command::new("config").no_binary_name(true).disable_help_flag(true).arg(alone);
    let Err(error) = verb.try_get_matches_from([word]) else { return Ok(()) };
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let given = text(ContextKind::InvalidValue).unwrap_or_default();
    let expected = match (text(ContextKind::ValidValue), std::error::Error::source(&error)) {
        (Some(values), _) => format!("expected one of {values}"),
        (None, Some(why)) => why.to_string(),
        (None, None) => error.kind().to_string(),
    };
    Err(format!("`{given}`: {expected}"))
}

impl Given {
    /// Tells, in an error about flags, that some of them were not typed.
    pub fn explain(&self, verb: &mut Command, error: clap::Error) -> clap::Error {
        if self.lines.is_empty() || matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return error;
        }
        let text = error.to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text);
        let message = message.split("\n\nUsage:").next().unwrap_or(message);
        verb.error(error.kind(), format!("{message}\n\n  (with the settings of {})", self.file.display()))
    }

    /// The settings in effect after a command line was read, in the order of the help.
    pub fn settings(&self, verb: &Command, matches: &ArgMatches) -> Settings {
        let flags = verb
            .get_arguments()
            .filter(|arg| arg.get_long().is_some() && !NOT_SETTINGS.contains(&arg.get_id().as_str()));
        // What a given flag takes the place of has no default.
        let given = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let replaced = |arg: &Arg| {
            arg.get_action().takes_values()
                && !arg.get_default_values().is_empty()
                && verb.get_arguments().filter(given).any(|other| {
                    verb.get_arg_conflicts_with(other).iter().any(|conflict| conflict.get_id() == arg.get_id())
                })
        };
        Settings(flags.filter(|arg| !replaced(arg)).map(|arg| self.setting(verb, arg, matches)).collect())
    }

    fn setting(&self, verb: &Command, arg: &Arg, matches: &ArgMatches) -> Setting {
        let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let mut id = arg.get_id().as_str();
        let switch = !arg.get_action().takes_values();
        let raw = |id: &str| -> Vec<String> {
            matches.get_raw(id).into_iter().flatten().map(|v| v.to_string_lossy().into_owned()).collect()
        };
        let mut values = match switch {
            true => vec![matches.get_flag(id).to_string()],
            false => raw(id),
        };
        let has = |id: &str| verb.get_arguments().any(|a| a.get_id() == id);
        if let Some((same, _)) = SAME.iter().find(|(same, flag)| *flag == id && has(same) && given(same)) {
            values.extend(raw(same));
            id = same;
        }
        let origin = match (given(id), self.lines.get(id)) {
            (true, Some(line)) => Origin::File(self.file.clone(), *line),
            (true, None) => Origin::Flag,
            (false, _) if self.off.contains(id) => Origin::Flag,
            (false, _) => Origin::Default(default_of(arg)),
        };
        let key = arg.get_long().unwrap_or_default().to_string();
        Setting { key, values, switch, list: matches!(arg.get_action(), ArgAction::Append), origin }
    }
}

/// What the help says of a flag that is not given: the text of `[default: …]`.
pub fn default_of(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    let text = help.split_once("[default: ").map_or("", |(_, text)| text);
    text.strip_suffix(']').unwrap_or(text).to_string()
}

impl Setting {
    /// `key: value`, a comment where it is not set.
    fn line(&self) -> String {
        let comment = if matches!(self.origin, Origin::Resolved { settable: false, .. }) { "# " } else { "" };
        match (&self.values[..], self.list) {
            ([], _) => format!("# {}:", self.key),
            ([value], false) if self.switch => format!("{}: {value}", self.key),
            ([value], false) => format!("{comment}{}: {}", self.key, yaml::write(value)),
            (values, _) => {
                let values: Vec<String> = values.iter().map(|value| yaml::write(value)).collect();
                format!("{}: [{}]", self.key, values.join(", "))
            }
        }
    }

    fn origin(&self) -> String {
        match &self.origin {
            Origin::Default(text) if text.is_empty() && self.values.is_empty() => "not set".into(),
            Origin::Default(text) if self.values.is_empty() => format!("not set; default: {text}"),
            Origin::Default(_) => "default".into(),
            Origin::Resolved { why, .. } => why.clone(),
            Origin::File(file, line) => format!("{}:{line}", file.display().to_string().escape_debug()),
            Origin::Flag => "flag".into(),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.line(), self.origin())
    }
}

/// Settings as a configuration file.
pub fn write(verb: &str, Settings(settings): &Settings) -> String {
    let width = settings.iter().map(|s| s.line().chars().count()).filter(|&width| width <= 48).max().unwrap_or(0);
    // What a file cannot hold is typed each time.
    let declared = super::declarations();
    let places = declared.find_subcommand(verb).into_iter().flat_map(Command::get_positionals);
    let typed = places.filter(|place| SAME.iter().all(|(positional, _)| place.get_id() != positional));
    let typed: String = typed.map(|place| format!("{place} ")).collect();
    let mut out = format!("# Settings of larpo {verb}; larpo {verb} {typed}--config FILE takes them up again.\n");
    for setting in settings {
        out.push_str(&format!("{:<width$}  # {}\n", setting.line(), setting.origin()));
    }
    out
}
