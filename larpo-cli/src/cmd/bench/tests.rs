use super::floor::{Machine, Phase, of_phases, of_step, sampling, step_flops};
use super::*;
use crate::args::{Command, Task, parse};
use crate::machine::{Kind, kibibytes, median, scaled_sum, shapes, timed};
use larpo_core::model::Head;
use larpo_core::profile::{Cost, Profile, Shape};

/// Small enough for a test, large enough that nothing is empty.
const SMALL: ProbeSizes = ProbeSizes { product: 64, memory: 1 << 16, floor_memory: 1 << 16 };

fn args(words: &str) -> BenchArgs {
    let words = format!("larpo bench {words}");
    match parse(words.split_whitespace()).expect("a valid command line").task {
        Task::Run(Command::Bench(args)) => args,
        other => panic!("bench became {other:?}"),
    }
}

fn report(words: &str) -> Value {
    run_with(&args(words), SMALL).expect("the benchmark runs")
}

fn refusal(words: &str) -> String {
    run_with(&args(words), SMALL).expect_err("the sizes make no benchmark").to_string()
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", report[key]))
}

/// The keys that every benchmark has, with the types and values that the flags give them.
fn check_common(report: &Value, what: &str) {
    assert_eq!(report["what"], what);
    let sizes =
        [("preset", json!("t1m")), ("k", json!(3)), ("lists", json!(2)), ("prompt", json!(5)), ("response", json!(4))];
    let of_what: &[&str] = match what {
        "memory" => &[],
        "lists" => &["k", "lists"],
        _ => &["preset", "k", "lists", "prompt", "response"],
    };
    for (key, value) in sizes {
        assert_eq!(report.get(key), of_what.contains(&key).then_some(&value), "{key}");
    }
    assert_eq!(report["reps"], json!(2));
    assert_eq!(report["threads"], json!(par::threads()));
    assert!(number(report, "seconds") > 0.0);
    if cfg!(target_os = "linux") {
        assert!(number(report, "peak_rss_mib") > 1.0);
    } else {
        assert!(report["peak_rss_mib"].is_null());
    }
}

const SIZES: &str = "--preset t1m --k 3 --prompt 5 --response 4 --lists 2 --reps 2";

#[test]
fn presets_are_the_shapes_of_the_library() {
    for preset in ["t1m", "s15m", "m135m"] {
        let built = config(&args(&format!("step --preset {preset}")));
        assert_eq!(Some(&built), ModelConfig::preset(preset).as_ref());
        assert_eq!((built.max_position_embeddings, built.head), (4096, Head::Tied));
    }
}

#[test]
fn flops_of_a_step_are_the_published_formula() {
    // 6·5971968·704 + 8·288·32000·631 + 14·63840·6·48·6
    let short = args("step --preset s15m --k 10 --prompt 64 --response 64");
    assert_eq!(step_flops(&config(&short), &packed(&short)), 73_292_378_112.0);
    let long = args("step --preset s15m --k 10 --prompt 512 --response 64");
    assert_eq!((step_flops(&config(&long), &packed(&long)) / 1e8).round(), 994.0);
}

#[test]
fn floor_of_a_step_by_hand() {
    let args = args("step --preset s15m --k 10 --prompt 64 --response 64");
    let machine = Machine { flops_per_second: 1e11, bytes_per_second: 2e10 };
    // 15,191,712 parameters, 28 bytes each.
    let expected = 0.732_923_781_12 + 0.021_268_396_8;
    let floor = of_step(&config(&args), step_flops(&config(&args), &packed(&args)), machine);
    assert!((floor - expected).abs() < 1e-12, "{floor}");
}

#[test]
fn floor_of_sampling_by_hand() {
    let config = ModelConfig::preset("t1m").expect("a preset");
    // 851,968 block parameters, 918,656 in all, 65,536 in the head; a cached row has 256 floats in each of 4 layers.
    let phases = sampling(&config, 1, 2, 3, 3);
    let expected = [
        Phase { flops: 5_255_168.0, bytes: 3_674_624.0 }, // 3 rows, 1 row of logits, 1 + 2 + 3 pairs
        Phase { flops: 3_686_400.0, bytes: 3_695_104.0 }, // 2 rows, 2·4 pairs, 3 + 2·1 cached rows
        Phase { flops: 3_690_496.0, bytes: 3_703_296.0 }, // 2 rows, 2·5 pairs, 3 + 2·2 cached rows
    ];
    assert_eq!(phases, expected);
    // At equal rates the prompt is bound by arithmetic and decoding by memory.
    let equal = Machine { flops_per_second: 1e9, bytes_per_second: 1e9 };
    assert!((of_phases(&phases, equal) - 0.012_653_568).abs() < 1e-15);
    let slow_products = Machine { flops_per_second: 1e8, bytes_per_second: 1e9 };
    assert!((of_phases(&phases, slow_products) - 0.126_320_64).abs() < 1e-14);
}

#[test]
fn prompts_share_the_weights_but_not_their_caches() {
    let config = ModelConfig::preset("t1m").expect("a preset");
    let (one, two) = (sampling(&config, 1, 2, 3, 3), sampling(&config, 2, 2, 3, 3));
    let weights = 4.0 * 918_656.0;
    for (one, two) in one.iter().zip(&two) {
        assert_eq!(two.flops, 2.0 * one.flops);
        assert_eq!(two.bytes - weights, 2.0 * (one.bytes - weights));
    }
}

#[test]
fn json_of_a_step() {
    let report = report(&format!("step {SIZES}"));
    check_common(&report, "step");
    let args = args(&format!("step {SIZES}"));
    assert_eq!(number(&report, "flops"), step_flops(&config(&args), &packed(&args)));
    let tokens = number(&report, "tokens_per_second") * number(&report, "seconds");
    assert!((tokens - 24.0).abs() < 1e-9, "2 lists, 3 responses, 4 tokens: {tokens}");
    let (gflops, gbps) = (number(&report, "machine_gflops"), number(&report, "machine_gbps"));
    let machine = Machine { flops_per_second: gflops * 1e9, bytes_per_second: gbps * 1e9 };
    let floor = of_step(&config(&args), number(&report, "flops"), machine);
    assert!((number(&report, "floor_seconds") / floor - 1.0).abs() < 1e-12);
}

#[test]
fn json_of_sampling() {
    let report = report(&format!("sample {SIZES}"));
    check_common(&report, "sample");
    let config = ModelConfig::preset("t1m").expect("a preset");
    let flops: f64 = sampling(&config, 2, 3, 5, 4).iter().map(|p| p.flops).sum();
    assert_eq!(number(&report, "flops"), flops);
    let tokens = number(&report, "tokens_per_second") * number(&report, "seconds");
    assert!((tokens - 24.0).abs() < 1e-9);
    assert!(number(&report, "floor_seconds") > 0.0);
}

#[test]
fn profiles_account_for_all_of_the_time() {
    for what in ["step", "sample"] {
        let report = report(&format!("{what} {SIZES} --profile"));
        check_common(&report, what);
        let lines = report["profile"].as_array().expect("an array");
        let sum = |key: &str| lines.iter().map(|line| line[key].as_f64().unwrap_or(0.0)).sum::<f64>();
        assert!((sum("share") - 1.0).abs() < 1e-9, "{what}: {}", sum("share"));
        let (outside, ops) = lines.split_last().expect("operations");
        assert_eq!((&outside["op"], &outside["distance"]), (&json!(profile::OUTSIDE), &Value::Null));
        assert!(number(outside, "seconds") > 0.0);
        assert!(ops.is_sorted_by(|a, b| number(a, "seconds") >= number(b, "seconds")));
        let flops: f64 = ops.iter().map(|op| op["gflops"].as_f64().unwrap_or(0.0) * number(op, "seconds") * 1e9).sum();
        // 2·(5 + 3·4) rows; a prompt's last row predicts three first tokens, its logits are computed once.
        let (config, packed) = (ModelConfig::preset("t1m").expect("a preset"), packed(&args(&format!("step {SIZES}"))));
        let expected = match what {
            "step" => config.step_flops(34, 20, packed.visible_pairs()),
            _ => number(&report, "flops"),
        };
        assert!((flops / expected - 1.0).abs() < 1e-9, "{what}: {flops} counted, {expected} by the formula");
        let qkv = ops.iter().find(|op| op["shape"] == if what == "step" { "34×128→384" } else { "6×128→384" });
        assert!(qkv.is_some_and(|op| op["calls"].as_u64() >= Some(4)), "{what}: {ops:?}");
    }
    let without = report(&format!("sample {SIZES}"));
    assert!(without["profile"].is_null());
    assert!(refusal("memory --profile").contains("--profile"));
}

#[test]
fn a_line_of_a_profile_by_hand() {
    let cost = Cost { calls: 4, seconds: 2.0, flops: 4e9, bytes: 1e9 };
    let profile = Profile::from([(("linear", Shape::Product(2, 3, 4)), cost)]);
    let measured = profile::Measured { profile, seconds: 5.0, runs: 2 };
    let machine = Machine { flops_per_second: 4e9, bytes_per_second: 2e9 };
    let lines = measured.lines(machine);
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0].op, &*lines[0].shape, lines[0].cost.calls), ("linear", "2×3→4", 2));
    assert_eq!((lines[0].cost.seconds, lines[0].share, lines[0].floor), (1.0, 0.4, Some(0.5)));
    assert_eq!(
        (lines[1].op, lines[1].cost.seconds, lines[1].share, lines[1].floor),
        (profile::OUTSIDE, 1.5, 0.6, None)
    );
    let table = profile::table(&lines).to_string();
    assert!(table.contains("2.0 GFLOP/s") && table.contains("2.00"), "{table}");
    let by_memory = Machine { flops_per_second: 4e9, bytes_per_second: 5e8 };
    assert_eq!(measured.lines(by_memory)[0].floor, Some(1.0));
    assert!(profile::table(&measured.lines(by_memory)).to_string().contains("0.5 GB/s"));
}

#[test]
fn json_of_products() {
    let report = report(&format!("gemm {SIZES}"));
    check_common(&report, "gemm");
    assert!(report["tokens_per_second"].is_null());
    assert!((number(&report, "gflops") - 2.0 * 64f64.powi(3) / number(&report, "seconds") / 1e9).abs() < 1e-9);
    let shapes = report["shapes"].as_array().expect("an array");
    assert_eq!(shapes.len(), 15);
    // 2·(5 + 3·4) rows; 2·(1 + 3·3) rows that predict something.
    let by_name = |name: &str| shapes.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let size = |name: &str| ["m", "k", "n", "kind"].map(|key| by_name(name)[key].clone());
    assert_eq!(size("gate_up"), [json!(34), json!(128), json!(768), json!("nt")]);
    assert_eq!(size("qkv_grad_x"), [json!(34), json!(384), json!(128), json!("nn")]);
    assert_eq!(size("head_grad_w"), [json!(512), json!(20), json!(128), json!("tn")]);
    assert!(shapes.iter().all(|s| number(s, "gflops") > 0.0));
}

#[test]
fn json_of_memory() {
    let report = report(&format!("memory {SIZES}"));
    check_common(&report, "memory");
    assert_eq!(number(&report, "array_mib"), 0.0625);
    // 65,536 bytes are 16,384 elements of 12 bytes.
    assert!((number(&report, "gbps") * number(&report, "seconds") * 1e9 - 196_608.0).abs() < 1e-6);
}

#[test]
fn json_of_lists() {
    for loss in ["pairwise", "contrastive", "lambdarank", "listmle", "lipo_lambda"] {
        let report = report(&format!("lists {SIZES} --loss_type {loss}"));
        check_common(&report, "lists");
        assert_eq!(report["loss_type"], loss);
        // 2 lists of 3 items: 56 bytes and 6 pairs.
        let seconds = number(&report, "seconds");
        assert!((number(&report, "gbps") * seconds * 1e9 - 56.0).abs() < 1e-9);
        assert!((number(&report, "pairs_per_second") * seconds - 6.0).abs() < 1e-9);
        let share = number(&report, "gbps") / number(&report, "machine_gbps");
        assert!((number(&report, "share") / share - 1.0).abs() < 1e-12);
    }
    assert!(refusal("lists --k 1").contains("--k 2"));
    assert!(refusal("lists --lists 10000000 --k 17").contains("170000000 items"));
}

#[test]
fn lists_that_differ_from_double_precision_are_not_timed() {
    let mut batch = lists::Batch::new(&args("lists --lists 5000 --k 16"));
    batch.time(1).expect("the losses agree");
    batch.loss[4998] *= 1.000_1;
    let error = batch.compare().expect_err("a loss is off").to_string();
    assert!(error.contains("list 4998") && error.contains("not timed"), "{error}");
}

#[test]
fn a_step_with_an_empty_prompt_runs() {
    let report = report("step --preset t1m --k 2 --prompt 0 --response 3 --reps 1");
    // 2·3 rows, 2·2 scored tokens, 2·6 pairs.
    let flops = 6.0 * 851_968.0 * 6.0 + 8.0 * 65_536.0 * 4.0 + 14.0 * 12.0 * 512.0;
    assert_eq!(number(&report, "flops"), flops);
}

#[test]
fn a_step_on_a_single_response_runs() {
    // One causal run of 7 rows: 3 scored tokens, 28 pairs.
    let report = report("step --preset t1m --k 1 --prompt 4 --response 3 --reps 1");
    let flops = 6.0 * 851_968.0 * 7.0 + 8.0 * 65_536.0 * 3.0 + 14.0 * 28.0 * 512.0;
    assert_eq!(number(&report, "flops"), flops);
}

#[test]
fn sizes_that_make_no_benchmark_are_refused() {
    assert!(refusal("sample --preset t1m --prompt 0").contains("--prompt is 0"));
    assert!(refusal("step --preset t1m --prompt 0 --response 1").contains("nothing to score"));
    assert!(refusal("gemm --preset t1m --prompt 0 --response 1").contains("bench gemm"));
    assert!(refusal("step --preset t1m --prompt 4000 --response 97").contains("4097 tokens"));
    assert!(refusal("sample --preset t1m --k 1000000000").contains("rows"));
    assert!(refusal("step --preset t1m --lists 4294967295").contains("rows"));
    assert!(refusal("step --preset t1m --prompt 4294967295").contains("positions"));
}

#[test]
fn inputs_are_seeded_and_their_rewards_differ() {
    let (first, second) = (args("step --preset t1m --seed 1"), args("step --preset t1m --seed 2"));
    let config = config(&first);
    let lists = model::lists(&first, &config);
    assert_eq!(lists, model::lists(&first, &config));
    assert_ne!(lists, model::lists(&second, &config));
    let mut rewards = lists[0].rewards();
    rewards.dedup();
    assert_eq!(rewards.len(), 10);
    assert!(lists[0].responses.iter().flat_map(|r| &r.ids).all(|&id| id < 512));
    assert_ne!(lists[0].responses[0].ids, lists[0].responses[1].ids);
}

#[test]
fn products_of_a_step_add_up_to_its_flops() {
    // Every weight is met forward and twice backward; a short response keeps attention out of the count.
    let args = args("gemm --preset s15m --k 4 --prompt 8 --response 8");
    let config = config(&args);
    let packed = packed(&args);
    let blocks: f64 = shapes(&config, &packed)
        .iter()
        .filter(|p| !p.name.starts_with("head"))
        .map(|p| 2.0 * (p.m * p.k * p.n) as f64)
        .sum();
    let layers = config.num_hidden_layers as f64;
    assert_eq!(blocks * layers, config.step_flops(packed.rows() as u64, 0, 0));
    let kinds: Vec<Kind> = shapes(&config, &packed).iter().map(|p| p.kind).collect();
    assert_eq!(kinds[..3], [Kind::Nt, Kind::Nn, Kind::Tn]);
}

#[test]
fn medians() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(vec![4.0, 1.0, 2.0, 8.0]), 3.0);
    assert_eq!(median(vec![7.0]), 7.0);
}

#[test]
fn warm_ups_are_not_counted_and_errors_end_the_run() {
    let mut calls = 0;
    let seconds = timed(2, 3, || {
        calls += 1;
        Ok::<(), String>(())
    });
    assert!(seconds.is_ok_and(|s| s >= 0.0));
    assert_eq!(calls, 5);
    assert_eq!(timed(1, 3, || Err("broken")), Err("broken"));
}

#[test]
fn memory_passes_compute_what_they_say() {
    // Longer than one task and not a multiple of it.
    let n = (1 << 20) + 37;
    let b: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
    let c: Vec<f32> = (0..n).map(|i| (i % 77) as f32).collect();
    let mut a = vec![f32::NAN; n];
    scaled_sum(&mut a, &b, &c, 3.0);
    assert!((0..n).all(|i| a[i] == (i % 1000 + 3 * (i % 77)) as f32));
}

#[test]
fn numbers_of_the_proc_files() {
    let text = "Name:\tlarpo\nVmPeak:\t  999 kB\nVmHWM:\t    2048 kB\n";
    assert_eq!(kibibytes(text, "VmHWM:"), Some(2048));
    assert_eq!(kibibytes(text, "VmRSS:"), None);
    assert_eq!(kibibytes("VmHWM: many kB", "VmHWM:"), None);
}
