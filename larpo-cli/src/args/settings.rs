//! The flags of a verb as texts, defaults included, for the record of a run.

use clap::{ArgMatches, Command};
use std::collections::BTreeMap;

/// Every flag of the verb that has a value, by its name; a flag that may be given several times or takes a list has
/// several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<String, Vec<String>>);

impl Settings {
    /// The flags of the verb that `matches` chose.
    pub(super) fn new(command: &Command, matches: &ArgMatches) -> Self {
        let Some((name, matches)) = matches.subcommand() else { return Self::default() };
        let verb = command.find_subcommand(name);
        let args = verb.into_iter().flat_map(Command::get_arguments);
        let value = |arg: &clap::Arg| {
            let values = matches.try_get_raw(arg.get_id().as_str()).ok()??;
            let name = arg.get_long().unwrap_or(arg.get_id().as_str());
            Some((name.to_string(), values.map(|value| value.to_string_lossy().into_owned()).collect()))
        };
        Self(args.filter_map(value).collect())
    }
}
