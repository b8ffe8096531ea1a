//! The flags of a verb as texts, defaults included, for the record of a run.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use std::collections::{BTreeMap, BTreeSet};

/// The flags of a verb.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Every flag that has a value, by its name; a flag that may be given several times or takes a list has several.
    pub values: BTreeMap<String, Vec<String>>,
    /// Those whose value is not the default.
    pub given: BTreeSet<String>,
}

impl Settings {
    /// The flags of the verb that `matches` chose.
    pub(super) fn new(command: &Command, matches: &ArgMatches) -> Self {
        let Some((name, matches)) = matches.subcommand() else { return Self::default() };
        let mut settings = Self::default();
        for arg in command.find_subcommand(name).into_iter().flat_map(Command::get_arguments) {
            let id = arg.get_id().as_str();
            let Ok(Some(values)) = matches.try_get_raw(id) else { continue };
            let name = arg.get_long().unwrap_or(id).to_string();
            if matches.value_source(id) != Some(ValueSource::DefaultValue) {
                settings.given.insert(name.clone());
            }
            settings.values.insert(name, values.map(|value| value.to_string_lossy().into_owned()).collect());
        }
        settings
    }
}
