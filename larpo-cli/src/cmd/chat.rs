//! `larpo chat`: a conversation in the terminal, the answers shown as they are drawn.

use crate::args::ChatArgs;
use crate::chat::{Chat, turn};
use crate::error::{Error, Result};
use crate::generate::{first_stop, sampling_config};
use crate::messages;
use crate::policy::Policy;
use larpo_core::backend::Backend;
use larpo_core::retriever::{FinishReason, Prompt, SamplingHooks, sample};
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{BufRead, IsTerminal, Write};

/// Runs the verb: a line of standard input is a user's turn.
///
/// # Errors
/// A model without a chat template, a conversation that it refuses, input that cannot be read.
pub fn run<B: Backend>(args: &ChatArgs, backend: &B) -> Result<Value> {
    let folder = &args.model.model_name_or_path;
    let policy = Policy::open(backend, folder)?;
    let chat = Chat::new(&policy.tokenizer, folder)?;
    let system: Vec<Value> = args.system.iter().map(|text| turn("system", text)).collect();
    let mut messages = system.clone();
    let drawn = sampling_config(&args.sampling, &policy, 1, args.common.seed);
    let mut config = if args.greedy { drawn.greedy() } else { drawn };
    let limit = policy.model.config().max_position_embeddings;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        say!("/clear begins anew, /exit or Ctrl-D ends");
    }
    let mut turns = 0u32;
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            let mut out = std::io::stderr();
            let _ = out.write_all(b"> ").and_then(|()| out.flush());
        }
        let line = match lines.next() {
            None => break,
            Some(line) => line.map_err(|error| Error::request(format!("cannot read standard input: {error}")))?,
        };
        match line.trim() {
            "" => continue,
            "/exit" => break,
            "/clear" => {
                messages = system.clone();
                continue;
            }
            text => messages.push(turn("user", text)),
        }
        let mut ids = chat.prompt(&messages)?.1;
        let mut dropped = 0;
        // The oldest question and its answer make room.
        while ids.len() + args.sampling.max_new_tokens > limit && messages.len() > system.len() + 2 {
            messages.drain(system.len()..system.len() + 2);
            dropped += 1;
            ids = chat.prompt(&messages)?.1;
        }
        if dropped > 0 {
            say!("note: the conversation is too long; its first {} left out", messages::count(dropped, "exchanges"));
        }
        // Every answer has random numbers of its own.
        config.iteration = turns;
        turns += 1;
        let mut hooks = Stream {
            tokenizer: &policy.tokenizer,
            stop: &args.sampling.stop,
            silent: args.common.json,
            shown: Cell::new(0),
        };
        let drawn = sample(&policy.model, &[Prompt { index: 0, ids: &ids }], &config, &mut hooks)?;
        let Some(answer) = drawn.into_iter().flatten().next() else { break };
        let kept = match answer.finish_reason {
            FinishReason::Stop => &answer.ids[..answer.ids.len() - 1],
            _ => &answer.ids[..],
        };
        let mut text = policy.tokenizer.decode(kept, true)?;
        text.truncate(first_stop(&text, &args.sampling.stop).unwrap_or(text.len()));
        hooks.show(&text);
        if !args.common.json {
            messages::print("\n");
        }
        if answer.finish_reason == FinishReason::Length {
            say!("note: cut off after --max_new_tokens {}", args.sampling.max_new_tokens);
        }
        messages.push(turn("assistant", &text));
    }
    Ok(json!({ "messages": messages }))
}

/// Shows a response while it is drawn.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    /// The whole conversation is printed at the end.
    silent: bool,
    /// Bytes of the text that are shown.
    shown: Cell<usize>,
}

impl Stream<'_> {
    /// Shows what is new of `text`.
    fn show(&self, text: &str) {
        if let Some(new) = text.get(self.shown.get()..).filter(|_| !self.silent) {
            messages::print(new);
            self.shown.set(text.len());
        }
    }
}

impl SamplingHooks for Stream<'_> {
    fn stops(&self, ids: &[u32]) -> bool {
        let Ok(text) = self.tokenizer.decode(ids, true) else { return false };
        if first_stop(&text, self.stop).is_some() {
            return true;
        }
        // What may be the beginning of a stop string or part of a character waits for its end.
        let waits = self.stop.iter().map(String::len).max().unwrap_or(0);
        let mut end = text.trim_end_matches('\u{fffd}').len().saturating_sub(waits);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        if end > self.shown.get() {
            self.show(&text[..end]);
        }
        false
    }
}
