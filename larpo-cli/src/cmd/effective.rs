//! `larpo config`: what a run takes for settings that are not given, where that depends on others or on the model.

use crate::args::{
    Command, DataArgs, LIST_LEARNING_RATE, ListArgs, REWARD_LEARNING_RATE, SFT_LEARNING_RATE, Settings, SftArgs,
    TokenizerSpec,
};
use crate::dataset::LONGEST;
use crate::policy::model_folder_of;
use crate::threads;
use crate::training::selection;
use larpo_core::objective::LossType;
use larpo_data::model_folder::ModelFolder;
use std::path::Path;

/// The settings with everything that is known before the data are read.
pub fn settings(command: &Command, given: &Settings) -> Settings {
    let mut settings = given.clone();
    match command {
        Command::Sft(args) => sft(args, &mut settings),
        Command::Train(args) => {
            lists(&args.list, &mut settings);
            data(&args.data, Some(&args.model.model_name_or_path), &mut settings);
        }
        Command::Reward(args) => {
            settings.resolve("learning_rate", vec![format!("{REWARD_LEARNING_RATE:e}")], "default of reward", true);
            data(&args.data, Some(&args.model.model_name_or_path), &mut settings);
        }
        Command::Align(args) => {
            lists(&args.list, &mut settings);
            data(&args.data, Some(&args.model.model_name_or_path), &mut settings);
        }
        Command::Generate(args) => data(&args.data, Some(&args.model.model_name_or_path), &mut settings),
        Command::Score(args) => data(&args.data, args.model_name_or_path.as_deref(), &mut settings),
        Command::Sample(args) => data(&args.data, Some(&args.model.model_name_or_path), &mut settings),
        Command::Eval(args) => {
            let recall_at = args.recall_at().iter().map(usize::to_string).collect();
            settings.resolve("recall_at", recall_at, "default, as far as num_generations goes", true);
            let samples = vec![args.samples().to_string()];
            settings.resolve("num_generations", samples, "default: the largest of recall_at", true);
            // Each of several models has a limit of its own.
            data(&args.data, args.models().first().copied().filter(|_| args.models().len() == 1), &mut settings);
        }
        Command::Demo(_)
        | Command::Rank(_)
        | Command::Inspect(_)
        | Command::Report(_)
        | Command::Chat(_)
        | Command::Convert(_)
        | Command::Merge(_)
        | Command::Bench(_)
        | Command::Gpu(_) => {}
    }
    let threads = vec![threads::of_the_machine().to_string()];
    settings.resolve("threads", threads, "default: one for each core of this machine", false);
    settings
}

fn lists(args: &ListArgs, settings: &mut Settings) {
    let rate = vec![format!("{LIST_LEARNING_RATE:e}")];
    settings.resolve("learning_rate", rate, "default of train and align", true);
    let rule = format!("default of {}", args.loss_type);
    settings.resolve("select", vec![selection(args).to_string()], rule.as_str(), true);
    if args.loss_type == LossType::LipoLambda {
        settings.resolve("labels", vec!["rank".into()], rule, true);
    }
}

/// The limit of a row, which is the model's where that is less.
fn data(args: &DataArgs, folder: Option<&Path>, settings: &mut Settings) {
    // A model that is not there yet, or is damaged, is for the run to report.
    let folder = folder.and_then(|folder| model_folder_of(folder).ok());
    if let (None, Some(config)) = (args.max_length, folder.and_then(|f| ModelFolder::read_config(f).ok())) {
        longest(config.shape.max_position_embeddings, settings);
    }
}

fn longest(positions: usize, settings: &mut Settings) {
    let why = if positions < LONGEST { "default: the model's max_position_embeddings" } else { "default" };
    settings.resolve("max_length", vec![positions.min(LONGEST).to_string()], why, true);
}

fn sft(args: &SftArgs, settings: &mut Settings) {
    settings.resolve("learning_rate", vec![format!("{SFT_LEARNING_RATE:e}")], "default of sft", true);
    data(&args.data, args.model.model_name_or_path.as_deref(), settings);
    let Some(sizes) = args.model.fresh_sizes() else { return };
    longest(sizes.max_position_embeddings, settings);
    let preset = args.model.preset;
    // A file gives a preset or sizes, not both; the vocabulary and the positions go with either.
    let (why, settable) = match preset {
        Some(_) => ("of the preset", false),
        None => ("default", true),
    };
    for (key, size) in [
        ("hidden_size", sizes.hidden_size),
        ("intermediate_size", sizes.intermediate_size),
        ("num_hidden_layers", sizes.num_hidden_layers),
        ("num_attention_heads", sizes.num_attention_heads),
        ("num_key_value_heads", sizes.num_key_value_heads),
    ] {
        settings.resolve(key, vec![size.to_string()], why, settable);
    }
    settings.resolve("max_position_embeddings", vec![sizes.max_position_embeddings.to_string()], why, true);
    if let (Some(preset), None) = (preset, &args.model.tokenizer) {
        let tokenizer = TokenizerSpec::Bpe(preset.sizes().vocab_size).to_string();
        settings.resolve("tokenizer", vec![tokenizer], why, true);
    }
}
