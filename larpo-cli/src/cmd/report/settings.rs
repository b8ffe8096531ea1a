//! The settings of a run: what was chosen, what was left at its default, and the program and machine that ran it.

use super::command::OF_A_SESSION;
use super::html::{escape, words};
use super::run::Run;
use crate::args::{LIST_LEARNING_RATE, REWARD_LEARNING_RATE, SFT_LEARNING_RATE, declarations, default_of};
use crate::run_record::DEMO;
use crate::training::default_selection;
use serde_json::Value;

/// A flag and its value.
#[derive(Debug, PartialEq)]
pub struct Setting {
    /// The heading it stands under in the help; none for what is no flag.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Its value, for people.
    pub value: String,
    /// What it would be if it were not given; none where nothing tells.
    pub default: String,
}

/// All that is recorded of a run.
#[derive(Debug, Default, PartialEq)]
pub struct Settings {
    /// Program and machine, with their names.
    pub build: Vec<(String, String)>,
    /// What differs from the defaults.
    pub changed: Vec<Setting>,
    /// What is at its default.
    pub defaults: Vec<Setting>,
    /// Of a run without a record of flags: what its manifests say.
    pub recorded: Vec<Setting>,
}

impl Settings {
    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads them off the files of a run.
    pub fn of(run: &Run) -> Self {
        let mut settings = Self { build: build(run), ..Self::default() };
        let declared = declarations();
        let verb = run.record["verb"].as_str().and_then(|verb| declared.find_subcommand(verb));
        let (Some(verb), Some(flags)) = (verb, run.record["flags"].as_object()) else {
            leaves("", run.config(), &mut settings.recorded);
            return settings;
        };
        if run.record["verb"] == DEMO {
            // Its flags leave everything to its recipe.
            leaves("", run.config(), &mut settings.recorded);
        }
        for arg in verb.get_arguments() {
            let Some(name) = arg.get_long().filter(|name| *name != "help" && !OF_A_SESSION.contains(name)) else {
                continue;
            };
            let group = arg.get_help_heading().unwrap_or("Options").to_string();
            let switch = !arg.get_action().takes_values();
            let defaults: Vec<String> = match switch {
                true => vec!["false".into()],
                false => arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect(),
            };
            let of_the_verb = default_by_verb(run, name);
            let default = match defaults.is_empty() {
                true => of_the_verb.unwrap_or_else(|| default_of(arg)),
                false => defaults.join(", "),
            };
            let given = flags.get(name).map(texts).filter(|values| !values.is_empty());
            let at_default = given.as_ref().is_none_or(|values| *values == defaults);
            let value = match (name, given) {
                // `+N` was asked for in the middle of the run.
                ("iterations", _) if run.record["goal"].is_object() => text(&run.record["goal"]["iterations"]),
                (_, Some(values)) => values.join(", "),
                // What the default came to.
                (_, None) => match run.recorded(name) {
                    values if values.is_empty() => default.clone(),
                    values => values.join(", "),
                },
            };
            match at_default {
                true => settings.defaults.push(Setting { group, name: name.into(), value, default: String::new() }),
                false => settings.changed.push(Setting { group, name: name.into(), value, default }),
            }
        }
        // Of a version of larpo that has other flags.
        let known = |name: &str| verb.get_arguments().any(|arg| arg.get_long() == Some(name));
        for (name, value) in flags.iter().filter(|(name, _)| !known(name)) {
            let value = texts(value).join(", ");
            settings.changed.push(Setting { group: String::new(), name: name.clone(), value, default: String::new() });
        }
        settings
    }
}

/// The default of a flag for which it depends on the verb or on another flag, so that the help names several.
fn default_by_verb(run: &Run, name: &str) -> Option<String> {
    match (name, run.record["verb"].as_str()?) {
        ("learning_rate", "sft") => Some(format!("{SFT_LEARNING_RATE:e}")),
        ("learning_rate", "reward") => Some(format!("{REWARD_LEARNING_RATE:e}")),
        ("learning_rate", "train" | "align") => Some(format!("{LIST_LEARNING_RATE:e}")),
        ("select", _) => {
            let loss = run.flag("loss_type").into_iter().next()?.parse().ok()?;
            Some(default_selection(loss).to_string())
        }
        _ => None,
    }
}

impl Settings {
    /// As tables, what was chosen first; nothing where nothing is recorded.
    pub fn html(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut out = String::from("<h2>Settings</h2>");
        let headings = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        if !self.build.is_empty() {
            let row = |(name, value): &(String, String)| vec![short(name), short(value)];
            let rows: Vec<Vec<String>> = self.build.iter().map(row).collect();
            out += &words(&headings(&["program and machine", ""]), &rows);
        }
        if !self.changed.is_empty() {
            let row = |s: &Setting| vec![name(s), short(&s.value), short(&s.default)];
            let rows: Vec<Vec<String>> = self.changed.iter().map(row).collect();
            out += &words(&headings(&["chosen for this run", "value", "default"]), &rows);
        }
        out + &folded("Left at their defaults", &self.defaults)
            + &folded("As the iterations record them", &self.recorded)
    }
}

/// Settings under their headings, folded away.
fn folded(title: &str, all: &[Setting]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let row = |s: &Setting| vec![name(s), if s.value.is_empty() { "not set".into() } else { short(&s.value) }];
    let groups = all.chunk_by(|a, b| a.group == b.group);
    let tables = groups.map(|group| {
        let rows: Vec<Vec<String>> = group.iter().map(row).collect();
        words(&[escape(&group[0].group), String::new()], &rows)
    });
    format!("<details><summary>{title}</summary>{}</details>", tables.collect::<String>())
}

/// A name as HTML that breaks between its words.
fn name(setting: &Setting) -> String {
    short(&setting.name).replace('_', "_<wbr>")
}

/// A text as HTML, cut where it is very long.
fn short(text: &str) -> String {
    escape(&text.chars().take(2000).collect::<String>())
}

/// The program and the machine.
fn build(run: &Run) -> Vec<(String, String)> {
    let build = &run.record["build"];
    if !build.is_object() {
        let version = [&run.record["larpo"], run.version()].into_iter().find_map(Value::as_str);
        return version.map(|version| ("larpo".to_string(), version.to_string())).into_iter().collect();
    }
    let commit = build["commit"].as_str().map(|commit| format!(" (commit {commit})")).unwrap_or_default();
    let features = texts(&build["features"]).join(", ");
    [
        ("larpo", text(&build["larpo"]) + &commit),
        ("instruction set", text(&build["instruction_set"])),
        ("platform", text(&build["platform"])),
        ("threads", text(&build["threads"])),
        ("features", features),
        ("computed on", text(&build["device"])),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_string(), value))
    .collect()
}

/// A value for people; nothing for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A value, or those of a list, for people.
pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items.iter().map(text).collect(),
        other => vec![text(other)],
    }
}

/// `a.b: value` for every leaf that is set.
fn leaves(prefix: &str, value: &Value, out: &mut Vec<Setting>) {
    if let Value::Object(fields) = value {
        for (name, value) in fields {
            let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            leaves(&name, value, out);
        }
        return;
    }
    let values = texts(value);
    if !values.is_empty() {
        let value = values.join(", ");
        out.push(Setting { group: String::new(), name: prefix.into(), value, default: String::new() });
    }
}
