//! `larpo bench`: how long a training step, sampling or a list loss takes on random data, and how fast the machine's
//! products and memory are. A step or a sampling run is reported beside its floor, the time that its arithmetic and its
//! memory traffic need at those two measured rates.
//!
//! | verb     | what is timed                                                                                 |
//! |----------|-----------------------------------------------------------------------------------------------|
//! | `step`   | forward, backward and AdamW on `--lists` lists with ListMLE, gradients clipped                |
//! | `sample` | exactly `--response` tokens for `--k` responses to each of `--lists` prompts, temperature 1   |
//! | `gemm`   | 20 products 1024³ after 5 warm-ups, and the preset's own products                             |
//! | `memory` | `a = b + s·c` over three arrays of 1 GiB, counted as 12 bytes an element                      |
//! | `lists`  | loss and gradient of `--lists` ranked lists of `--k` scores, compared with `f64` before         |
//!
//! Times are medians. The peak of memory is read before the machine is measured for the floor, so it is the step's own.

mod floor;
mod lists;
pub mod model;
mod profile;
#[cfg(test)]
mod tests;

use crate::args::{BenchArgs, BenchKind, Preset};
use crate::error::{Error, Result};
use crate::gpu::Device;
use crate::machine::{self, Product};
use crate::plan::bytes;
use crate::table::Table;
use clap::ValueEnum;
use floor::Machine;
use larpo_core::cpu::par;
use larpo_core::lists::PackedLists;
use larpo_core::model::ModelConfig;
use serde_json::{Map, Value, json};

/// Rows, or items of lists, that a benchmark may have.
const MAX_ROWS: usize = 1 << 27;

/// How much is measured to learn the machine's rates.
#[derive(Clone, Copy, Debug)]
struct ProbeSizes {
    /// Rows and columns of the square product.
    product: usize,
    /// Bytes of each of the three arrays of `bench memory`.
    memory: u64,
    /// Bytes of each of the three arrays behind a floor: larger than the caches, yet quickly measured.
    floor_memory: u64,
}

const PROBE: ProbeSizes = ProbeSizes { product: 1024, memory: 1 << 30, floor_memory: 256 << 20 };

/// Runs one benchmark on the current thread pool, shows its lines and returns the JSON object.
///
/// Keys of every benchmark: `what`, `threads`, `reps`, `seconds` (median of one step, sampling run, 1024³ product, memory
/// pass or evaluation), `tokens_per_second` (response tokens; null where there are none), `peak_rss_mib` (null where the
/// system does not tell), and those of `preset`, `k`, `lists`, `prompt`, `response` that it depends on. Further keys:
/// `step` and `sample` have `flops`, `floor_seconds` and the rates behind it, `machine_gflops` and `machine_gbps`; `gemm` has `gflops` and `shapes`;
/// `memory` has `gbps` and `array_mib`; `lists` has `loss_type`, `gbps` (8 bytes an item and 4 a list: scores in, losses and
/// gradients out), `machine_gbps`, `share`, the former over the latter, and `pairs_per_second`, of any two items of a list.
/// With `--profile`, `step` and `sample` have `profile_seconds`, the mean of the runs, and `profile`: an array of operations, the
/// longest first and what is outside of them last, each with `op`, `shape`, `calls`, `seconds` and `share` of a run,
/// `gflops` and `gbps` (null where there is nothing to count), `floor_seconds` and `distance`, the seconds over that floor.
///
/// # Errors
/// Sizes that make no benchmark (no prompt to sample from, nothing to score, more tokens than the model has positions),
/// as a sentence that says which flag to change.
pub fn run(args: &BenchArgs) -> Result<Value> {
    if let Device::Gpu(_) = args.common.device {
        let device = args.common.device;
        return Err(Error::request(format!(
            "--device {device}: larpo bench times the CPU; larpo gpu bench times a GPU"
        )));
    }
    run_with(args, PROBE)
}

fn run_with(args: &BenchArgs, probe: ProbeSizes) -> Result<Value> {
    let config = config(args);
    check(args, &config)?;
    let mut report = header(args);
    if args.what == BenchKind::Step && args.num_generations == 1 {
        say!("note: a list of one response has no ranking loss; the step does all of its work on zero gradients");
    }
    match args.what {
        BenchKind::Step | BenchKind::Sample => model_bench(args, config, probe, &mut report)?,
        BenchKind::Gemm => gemm_bench(args, &config, probe, &mut report),
        BenchKind::Memory => memory_bench(args, probe, &mut report),
        BenchKind::Lists => lists_bench(args, probe, &mut report)?,
    }
    Ok(Value::Object(report))
}

/// The preset's shape.
pub(super) fn config(args: &BenchArgs) -> ModelConfig {
    preset_config(args.preset)
}

/// A preset's shape.
pub fn preset_config(preset: Preset) -> ModelConfig {
    let s = preset.sizes();
    let shape = ModelConfig::new(
        s.hidden_size,
        s.intermediate_size,
        s.num_hidden_layers,
        s.num_attention_heads,
        s.num_key_value_heads,
        s.vocab_size,
    );
    ModelConfig { max_position_embeddings: s.max_position_embeddings, ..shape }
}

/// Refuses sizes that make no benchmark.
pub(super) fn check(args: &BenchArgs, config: &ModelConfig) -> Result<()> {
    if args.profile && !matches!(args.what, BenchKind::Step | BenchKind::Sample) {
        let problem = format!("bench {} has no operations to show: leave out --profile", name(args.what));
        return Err(Error::request(problem));
    }
    if args.what == BenchKind::Memory {
        return Ok(());
    }
    if args.what == BenchKind::Lists {
        let items = args.lists().saturating_mul(args.num_generations);
        if args.num_generations < 2 {
            return Err(Error::request("bench lists: a list of one item has no loss; give --k 2 or more"));
        }
        if items > MAX_ROWS {
            let problem = format!("--lists × --k is {items} items, at most {MAX_ROWS} go");
            return Err(Error::request(format!("bench lists: {problem}")));
        }
        return Ok(());
    }
    let what = name(args.what);
    if args.what == BenchKind::Sample && args.prompt == 0 {
        return Err(Error::request("bench sample: --prompt is 0; sampling needs a prompt of at least 1 token"));
    }
    if args.prompt == 0 && args.response == 1 {
        let mend = "the first token after an empty prompt is not scored; give --prompt 1 or --response 2, or more";
        let problem = format!("bench {what}: --prompt 0 with --response 1 leaves nothing to score: {mend}");
        return Err(Error::request(problem));
    }
    let (tokens, limit) = (args.prompt.saturating_add(args.response), config.max_position_embeddings);
    if tokens > limit {
        let problem = format!("--prompt plus --response is {tokens} tokens, the presets have {limit} positions");
        return Err(Error::request(format!("bench {what}: {problem}")));
    }
    let rows = args.num_generations.saturating_mul(args.response).saturating_add(args.prompt);
    let rows = rows.saturating_mul(args.lists());
    if rows > MAX_ROWS {
        let problem = format!("--lists × (--prompt + --k × --response) is {rows} rows, at most {MAX_ROWS} go");
        return Err(Error::request(format!("bench {what}: {problem}")));
    }
    let least = least_bytes(args.what, config, rows as u64);
    match machine::total_memory().filter(|memory| least > *memory) {
        Some(memory) => Err(Error::request(format!(
            "bench {what}: {rows} rows need more than {}, and the machine has {}; give fewer --lists, a smaller --k, a \
             shorter --prompt or --response, or a smaller --preset",
            bytes(least),
            bytes(memory)
        ))),
        None => Ok(()),
    }
}

/// Less than what a benchmark on `rows` holds. A step: weights, gradients and moments, and what each block keeps for its
/// gradient; sampling: weights, keys and values; products: the largest factor.
fn least_bytes(what: BenchKind, config: &ModelConfig, rows: u64) -> u64 {
    let spec = config.attention();
    let kept = config.hidden_size + spec.qkv_width() + spec.out_width() + 2 * config.intermediate_size;
    let of_rows = |floats: usize| rows.saturating_mul((config.num_hidden_layers * floats) as u64);
    4 * match what {
        BenchKind::Step => 4 * config.parameters() + of_rows(kept),
        BenchKind::Sample => config.parameters() + of_rows(spec.cache_width()),
        _ => rows.saturating_mul(config.intermediate_size as u64),
    }
}

/// A value's name on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
}

/// Announces the benchmark and starts its JSON object.
fn header(args: &BenchArgs) -> Map<String, Value> {
    let lists = [("k", json!(args.num_generations)), ("lists", json!(args.lists()))];
    let sizes = match args.what {
        BenchKind::Memory => Vec::new(),
        BenchKind::Lists => lists.to_vec(),
        BenchKind::Step | BenchKind::Sample | BenchKind::Gemm => {
            let texts = [("prompt", json!(args.prompt)), ("response", json!(args.response))];
            [vec![("preset", json!(name(args.preset)))], lists.to_vec(), texts.to_vec()].concat()
        }
    };
    let fields = [sizes, vec![("threads", json!(par::threads())), ("reps", json!(args.reps))]].concat();
    let shown: Vec<String> =
        fields.iter().map(|(key, value)| format!("{key} {}", value.to_string().trim_matches('"'))).collect();
    show!("bench {}: {}", name(args.what), shown.join(", "));
    let what = ("what", json!(name(args.what)));
    [what].into_iter().chain(fields).map(|(key, value)| (key.to_string(), value)).collect()
}

/// Writes the keys that every benchmark has; `tokens` response tokens took `seconds`.
fn timing(report: &mut Map<String, Value>, seconds: f64, tokens: Option<usize>) {
    report.insert("seconds".into(), json!(seconds));
    report.insert("tokens_per_second".into(), json!(tokens.map(|tokens| tokens as f64 / seconds)));
    report.insert("peak_rss_mib".into(), json!(machine::peak_rss_mib()));
}

/// `step` and `sample`: times the model first, so that its peak of memory is its own, and then the machine.
fn model_bench(
    args: &BenchArgs,
    config: ModelConfig,
    probe: ProbeSizes,
    report: &mut Map<String, Value>,
) -> Result<()> {
    let tokens = args.lists() * args.num_generations * args.response;
    let (seconds, measured) = model::time(args, config.clone())?;
    timing(report, seconds, Some(tokens));
    let machine = measure(probe);
    let (flops, floor) = if args.what == BenchKind::Sample {
        let phases = floor::sampling(&config, args.lists(), args.num_generations, args.prompt, args.response);
        (phases.iter().map(|phase| phase.flops).sum(), floor::of_phases(&phases, machine))
    } else {
        let flops = floor::step_flops(&config, &packed(args));
        (flops, floor::of_step(&config, flops, machine))
    };
    report.insert("flops".into(), json!(flops));
    report.insert("floor_seconds".into(), json!(floor));
    report.insert("machine_gflops".into(), json!(machine.flops_per_second / 1e9));
    report.insert("machine_gbps".into(), json!(machine.bytes_per_second / 1e9));
    let mut table = Table::new(["", "value", "unit"]);
    table.row([format!("median of {}", args.reps), format!("{seconds:.4}"), "s".into()]);
    table.row(["floor".into(), format!("{floor:.4}"), "s".to_string()]);
    table.row(["median / floor".into(), format!("{:.2}", seconds / floor), String::new()]);
    table.row(["response tokens".into(), format!("{:.1}", tokens as f64 / seconds), "/s".to_string()]);
    table.row(["work".into(), format!("{:.3}", flops / 1e9), "GFLOP".to_string()]);
    table.row(["rate".into(), format!("{:.1}", flops / seconds / 1e9), "GFLOP/s".to_string()]);
    table.row(["machine, products".into(), format!("{:.1}", machine.flops_per_second / 1e9), "GFLOP/s".to_string()]);
    table.row(["machine, memory".into(), format!("{:.1}", machine.bytes_per_second / 1e9), "GB/s".to_string()]);
    table.row(["peak memory".into(), megabytes(report), "MiB".to_string()]);
    show!("{}", table.to_string().trim_end());
    if let Some(measured) = measured {
        let lines = measured.lines(machine);
        let table = profile::table(&lines).to_string();
        let mean = measured.seconds / measured.runs as f64;
        show!(
            "\nthe mean of {} runs, {mean:.4} s, by operation; the floor of each is its own:\n{}",
            args.reps,
            table.trim_end()
        );
        report.insert("profile".into(), profile::json(&lines));
        report.insert("profile_seconds".into(), json!(mean));
    }
    Ok(())
}

/// The two rates behind a floor, measured in this process right after the model.
fn measure(probe: ProbeSizes) -> Machine {
    let product = machine::square(probe.product);
    let memory = machine::memory_pass(probe.floor_memory, 5);
    Machine { flops_per_second: product.rate(), bytes_per_second: memory.bytes as f64 / memory.seconds }
}

fn gemm_bench(args: &BenchArgs, config: &ModelConfig, probe: ProbeSizes, report: &mut Map<String, Value>) {
    let square = machine::square(probe.product);
    let shapes: Vec<Product> =
        machine::shapes(config, &packed(args)).into_iter().map(|shape| shape.timed(2, args.reps)).collect();
    timing(report, square.seconds, None);
    report.insert("gflops".into(), json!(square.rate() / 1e9));
    let mut table = Table::new(["product", "m", "k", "n", "kind", "GFLOP/s"]);
    for p in std::iter::once(&square).chain(&shapes) {
        let numbers = [p.m, p.k, p.n].map(|n| n.to_string());
        let [m, k, n] = numbers;
        table.row([p.name.clone(), m, k, n, p.kind.name().into(), format!("{:.1}", p.rate() / 1e9)]);
    }
    show!("{}", table.to_string().trim_end());
    let shapes: Vec<Value> = shapes
        .iter()
        .map(|p| {
            let kind = p.kind.name();
            json!({"name": p.name, "m": p.m, "k": p.k, "n": p.n, "kind": kind, "gflops": p.rate() / 1e9})
        })
        .collect();
    report.insert("shapes".into(), Value::Array(shapes));
}

fn memory_bench(args: &BenchArgs, probe: ProbeSizes, report: &mut Map<String, Value>) {
    let memory = machine::memory_pass(probe.memory, args.reps);
    let (gbps, mib) = (memory.bytes as f64 / memory.seconds / 1e9, memory.array_bytes as f64 / f64::from(1 << 20));
    timing(report, memory.seconds, None);
    report.insert("gbps".into(), json!(gbps));
    report.insert("array_mib".into(), json!(mib));
    show!("a = b + s·c over three arrays of {mib:.0} MiB: {gbps:.2} GB/s, median of {} passes", args.reps);
}

fn lists_bench(args: &BenchArgs, probe: ProbeSizes, report: &mut Map<String, Value>) -> Result<()> {
    let mut batch = lists::Batch::new(args);
    let seconds = batch.time(args.reps)?;
    timing(report, seconds, None);
    let machine = machine::memory_pass(probe.floor_memory, 5);
    let machine = machine.bytes as f64 / machine.seconds;
    let (rate, pairs) = (batch.bytes() / seconds, batch.pairs() / seconds);
    report.insert("loss_type".into(), json!(args.loss_type.name()));
    report.insert("gbps".into(), json!(rate / 1e9));
    report.insert("machine_gbps".into(), json!(machine / 1e9));
    report.insert("share".into(), json!(rate / machine));
    report.insert("pairs_per_second".into(), json!(pairs));
    let mut table = Table::new([args.loss_type.name(), "value", "unit"]);
    table.row([format!("median of {}", args.reps), format!("{:.3}", seconds * 1e3), "ms".into()]);
    table.row(["pairs".into(), format!("{:.3}", pairs / 1e9), "10⁹/s".to_string()]);
    table.row(["traffic".into(), format!("{:.2}", rate / 1e9), "GB/s".to_string()]);
    table.row(["machine, memory".into(), format!("{:.2}", machine / 1e9), "GB/s".to_string()]);
    table.row(["traffic / memory".into(), format!("{:.2}", rate / machine), String::new()]);
    show!("{}", table.to_string().trim_end());
    Ok(())
}

/// The token layout of a step with these sizes; the ids play no part in it.
fn packed(args: &BenchArgs) -> PackedLists {
    let (prompt, response) = (vec![0; args.prompt], vec![0; args.response]);
    PackedLists::pack((0..args.lists()).map(|_| (&prompt[..], vec![&response[..]; args.num_generations])))
}

fn megabytes(report: &Map<String, Value>) -> String {
    report["peak_rss_mib"].as_f64().map_or_else(|| "unknown".into(), |mib| format!("{mib:.0}"))
}
