use super::*;
use larpo_core::objective::{LipoLabels, LossType, Ties};
use larpo_core::optim::Schedule;
use larpo_core::select::Select;
use std::path::{Path, PathBuf};

fn words(line: &str) -> Vec<String> {
    let line = format!("larpo {line}");
    line.split_whitespace().map(String::from).collect()
}

fn ok(line: &str) -> Command {
    match parse(words(line)) {
        Ok(cli) => run(cli),
        Err(e) => panic!("{line}: {e}"),
    }
}

/// The verb that a command line runs.
fn run(cli: Cli) -> Command {
    match cli.task {
        Task::Run(command) => command,
        other => panic!("{other:?}"),
    }
}

/// The error text of a line that must not parse.
fn err(line: &str) -> String {
    match parse(words(line)) {
        Ok(cli) => panic!("{line} was accepted: {cli:?}"),
        Err(e) => e.to_string(),
    }
}

fn align(extra: &str) -> Box<AlignArgs> {
    let base = "align --model_name_or_path m --dataset_name d.jsonl --output_dir o";
    match ok(&format!("{base} {extra}")) {
        Command::Align(a) => a,
        other => panic!("{other:?}"),
    }
}

fn align_err(extra: &str) -> String {
    err(&format!("align --model_name_or_path m --dataset_name d --output_dir o {extra}"))
}

fn sft(extra: &str) -> Box<SftArgs> {
    match ok(&format!("sft --dataset_name d.txt --output_dir o {extra}")) {
        Command::Sft(a) => a,
        other => panic!("{other:?}"),
    }
}

fn sft_err(extra: &str) -> String {
    err(&format!("sft --dataset_name d.txt --output_dir o {extra}"))
}

/// The verbs that do work.
fn verbs() -> clap::Command {
    Command::augment_subcommands(clap::Command::new("larpo"))
}

#[test]
fn declarations_are_consistent() {
    declarations().debug_assert();
}

#[test]
fn every_long_flag_has_underscores_only() {
    for verb in verbs().get_subcommands() {
        for arg in verb.get_arguments() {
            let names = arg.get_long_and_visible_aliases().unwrap_or_default();
            assert!(names.iter().all(|n| !n.contains('-')), "{} {names:?}", verb.get_name());
        }
    }
}

#[test]
fn every_verb_has_the_common_flags() {
    for verb in verbs().get_subcommands() {
        for name in ["seed", "threads", "device", "json", "config", "quiet", "log_level"] {
            let found = verb.get_arguments().any(|a| a.get_long() == Some(name));
            assert!(found, "{} --{name}", verb.get_name());
        }
    }
}

#[test]
fn both_spellings_mean_the_same() {
    let a = align("--learning_rate 3e-4 --per_device_train_batch_size=4 --loss_type listmle");
    let b = align("--learning-rate 3e-4 --per-device-train-batch-size=4 --loss-type listmle");
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
    assert_eq!(a.train.learning_rate, Some(3e-4));
    assert_eq!(a.train.per_device_train_batch_size, 4);
    assert_eq!(a.list.loss_type, LossType::Listmle);
}

#[test]
fn hyphens_in_values_survive() {
    let argv = ["larpo", "sft", "--output-dir=a-b", "--dataset-name", "c-d", "--preset", "t1m"];
    let cli = parse(argv).expect("parses");
    let Command::Sft(a) = run(cli) else { panic!("not sft") };
    assert_eq!(a.output_dir, Path::new("a-b"));
    assert_eq!(a.dataset_name, Path::new("c-d"));
    let after = underscored(["--a-b", "--", "--c-d", "-e-f", "g-h"].map(Into::into).into_iter());
    assert_eq!(after, ["--a_b", "--", "--c-d", "-e-f", "g-h"]);
}

#[test]
fn defaults_of_align() {
    let a = align("");
    assert_eq!(a.list.loss_type, LossType::Lambdarank);
    assert_eq!(a.list.beta, 0.1);
    assert_eq!(a.list.sft_weight, 0.0);
    assert_eq!(a.list.ties, Ties::Skip);
    assert!(a.list.select.is_none() && a.list.labels.is_none());
    assert_eq!(a.generations.num_generations, 10);
    assert_eq!(a.train.lr_scheduler_type, Schedule::Linear);
    assert_eq!(a.iterate.memory, Memory::All);
    assert_eq!(a.iterate.reference, Reference::Previous);
    assert_eq!(a.train.num_train_epochs, 1.0);
    assert_eq!(a.train.step_limit(), None);
    assert_eq!(a.train.max_grad_norm, 1.0);
    assert_eq!(a.train.adam_epsilon, 1e-8);
    assert_eq!(a.sampling.temperature, [1.0]);
    assert_eq!(a.reward.reward_funcs, "answer");
    assert!(!a.common.json && a.common.threads.is_none());
}

#[test]
fn help_shows_the_defaults() {
    let help = parse(["larpo", "align", "--help"]).expect_err("help").to_string();
    for part in [
        "[default: lambdarank]",
        "[default: 0.1]",
        "[default: 10]",
        "max_min for pairwise, top:1,bottom:3 for contrastive, top:2,bottom:2 otherwise",
        "[default: all]",
        "[default: previous]",
        "[default: skip]",
        "[alias: --k]",
    ] {
        assert!(help.contains(part), "{part} is missing from\n{help}");
    }
}

#[test]
fn the_objective_is_read_by_name() {
    let top_bottom = Select::TopBottom { top: 1, bottom: 3 };
    assert_eq!(align("--select top:1,bottom:3").list.select, Some(top_bottom));
    assert_eq!(align("--select max_min").list.select, Some(Select::MaxMin));
    assert!(align_err("--select best").contains("best"));
    for &loss in LossType::ALL {
        assert_eq!(align(&format!("--loss_type {loss}")).list.loss_type, loss);
    }
    assert!(align_err("--loss_type dpo").contains("lambdarank"));
    for &ties in Ties::ALL {
        assert_eq!(align(&format!("--ties {ties}")).list.ties, ties);
    }
}

#[test]
fn k_stands_for_num_generations() {
    assert_eq!(align("--k 4").generations.num_generations, 4);
    let Command::Bench(b) = ok("bench step --k 6 --preset m135m --prompt 512") else { panic!("not bench") };
    assert_eq!((b.num_generations, b.prompt, b.response), (6, 512, 64));
    let Command::Sample(s) = ok("sample --model_name_or_path m --prompt hello --k 3") else { panic!("not sample") };
    assert_eq!(s.generations.num_generations, 3);
    let Command::Eval(e) = ok("eval --model_name_or_path m --dataset_name d --k 32") else { panic!("not eval") };
    assert_eq!(e.samples(), 32);
}

#[test]
fn lists_are_split_at_commas() {
    let a = align("--iterations 3 --temperature 1.0,0.7");
    assert_eq!(a.sampling.temperature, [1.0, 0.7]);
    let by_iteration: Vec<f64> = (0..3).map(|i| a.sampling.temperature_of(i)).collect();
    assert_eq!(by_iteration, [1.0, 0.7, 0.7]);
    let a = align("--reward_funcs answer,length:target=30 --reward_weights 1,-0.5");
    assert_eq!(a.reward.reward_weights, [1.0, -0.5]);
    let Command::Eval(e) = ok("eval --model_name_or_path m --dataset_name d --recall_at 1,4") else {
        panic!("not eval")
    };
    assert_eq!((e.recall_at.as_slice(), e.samples()), (&[1, 4][..], 4));
}

#[test]
fn an_escaped_comma_does_not_start_another_reward() {
    let funcs = r"regex:pattern=a\,b,length";
    let argv = ["larpo", "rank", "c.jsonl", "--reward_funcs", funcs, "--reward_weights", "1,2"];
    assert!(parse(argv).is_ok());
    let one = ["larpo", "rank", "c.jsonl", "--reward_funcs", funcs, "--reward_weights", "1"];
    let message = parse(one).expect_err("one weight for two rewards").to_string();
    assert!(message.contains("1 weights were given for 2 rules"), "{message}");
}

#[test]
fn rules_that_are_none_are_a_fault_of_the_command_line() {
    for (rules, found) in [("anser", "no rule of this name"), ("length:goal=3", "`goal`"), ("regex:pattern=(", "regex")]
    {
        let message = parse(["larpo", "rank", "c.jsonl", "--reward_funcs", rules]).expect_err(rules).to_string();
        assert!(message.contains(found), "{message}");
    }
    // Whether a file can be read is for the run to find out.
    assert!(parse(["larpo", "rank", "c.jsonl", "--reward_funcs", "words:file=/no/such/file"]).is_ok());
}

#[test]
fn stop_strings_are_unescaped() {
    let argv =
        ["larpo", "sample", "--model_name_or_path", "m", "--prompt", "p", "--stop", r"\n\n", "--stop_strings", r"a\\b"];
    let Command::Sample(s) = run(parse(argv).expect("parses")) else { panic!("not sample") };
    assert_eq!(s.sampling.stop, ["\n\n", r"a\b"]);
    assert!(values::unescaped(r"\q").is_err() && values::unescaped("a\\").is_err());
}

#[test]
fn rank_takes_its_file_either_way() {
    let keys = "--response_key response --reference_key reference --label_key correct";
    let line = format!(r"rank s.jsonl --answer_pattern A:\s*(.*) {keys} --json");
    let Command::Rank(r) = ok(&line) else { panic!("not rank") };
    assert_eq!(r.path().map(PathBuf::as_path), Some(Path::new("s.jsonl")));
    assert_eq!(r.reward.answer_pattern.as_deref(), Some(r"A:\s*(.*)"));
    assert_eq!(r.response_key, "response");
    assert_eq!(r.label_key.as_deref(), Some("correct"));
    assert!(r.common.json);
    assert!(err("rank --reward_funcs answer").contains("PATH"));
    assert!(err("rank a.jsonl --dataset_name b.jsonl").contains("cannot be used with"));
}

#[test]
fn sft_starts_from_one_of_three() {
    assert_eq!(sft("--model_name_or_path m").model.fresh_sizes(), None);
    let preset = sft("--preset m135m").model.fresh_sizes().expect("fresh");
    assert_eq!((preset.hidden_size, preset.num_key_value_heads), (576, 3));
    let sizes = "--hidden_size 128 --num_hidden_layers 4 --num_attention_heads 4";
    let spelled = sft(&format!("{sizes} --tokenizer char --max_position_embeddings 64"));
    let s = spelled.model.fresh_sizes().expect("fresh");
    // 8/3 of 128 is 341.3, and 352 the next multiple of 32.
    assert_eq!((s.intermediate_size, s.num_key_value_heads), (352, 4));
    assert_eq!(s.max_position_embeddings, 64);

    assert!(sft_err("").contains("or continue from a folder"));
    assert!(sft_err("--preset t1m --model_name_or_path m").contains("cannot be used with"));
    assert!(sft_err("--preset t1m --hidden_size 8").contains("cannot be used with"));
    assert!(sft_err("--hidden_size 128 --tokenizer char").contains("--num_hidden_layers"));
    assert!(sft_err("--model_name_or_path m --tokenizer char").contains("cannot be used with"));
    assert!(sft_err("--model_name_or_path m --num_hidden_layers 2").contains("--hidden_size"));
}

#[test]
fn sft_checks_the_shape() {
    let base = "--num_hidden_layers 2 --tokenizer char";
    let e = sft_err(&format!("{base} --hidden_size 100 --num_attention_heads 3"));
    assert!(e.contains("cannot be divided"), "{e}");
    let e = sft_err(&format!("{base} --hidden_size 12 --num_attention_heads 4"));
    assert!(e.contains("even number"), "{e}");
    let heads = "--hidden_size 64 --num_attention_heads 4 --num_key_value_heads 3";
    let e = sft_err(&format!("{base} {heads}"));
    assert!(e.contains("shared out"), "{e}");
    let e = sft_err("--preset t1m --max_length 8192");
    assert!(e.contains("--max_position_embeddings 4096"), "{e}");
}

#[test]
fn tokenizers_are_named_or_folders() {
    let of = |text: &str| text.parse::<TokenizerSpec>();
    assert_eq!(of("bpe:512"), Ok(TokenizerSpec::Bpe(512)));
    assert_eq!(of("char"), Ok(TokenizerSpec::Char));
    assert_eq!(of("./tok"), Ok(TokenizerSpec::Dir("./tok".into())));
    assert_eq!(of("C:\\tok"), Ok(TokenizerSpec::Dir("C:\\tok".into())));
    for bad in ["bpe", "bpe:", "bpe:x", "bpe:256", ""] {
        assert!(of(bad).is_err(), "{bad}");
    }
    assert_eq!(TokenizerSpec::Bpe(512).to_string(), "bpe:512");
}

#[test]
fn held_out_data_come_from_one_place() {
    let both = "--preset t1m --eval_dataset e --validation_fraction 0.1";
    assert!(sft_err(both).contains("cannot be used with"));
    assert!(sft_err("--preset t1m --eval_steps 5").contains("--validation_fraction"));
    assert_eq!(sft("--preset t1m --validation_fraction 0.1 --eval_steps 5").eval.eval_steps, Some(5));
    assert!(align_err("--split validation").contains("--validation_fraction"));
    assert_eq!(align("--split train --validation_fraction 0.1").split.split, Split::Train);
}

#[test]
fn contradictions_are_refused() {
    assert!(align_err("--k 1").contains("nothing to rank"));
    assert!(align_err("--iterations 1 --temperature 1,2").contains("at most one for each"));
    assert!(align_err("--labels reward").contains("lipo_lambda only"));
    assert_eq!(align("--labels reward --loss_type lipo_lambda").list.labels, Some(LipoLabels::Reward));
    let eval = "eval --model_name_or_path m --dataset_name d";
    assert!(err(&format!("{eval} --recall_at 1,20 --k 8")).contains("at least 20 samples"));
    assert!(err(&format!("{eval} m")).contains("given twice"));
    assert!(err(&format!("{eval} --temperature 1,1")).contains("twice"));
    assert!(err(&format!("{eval} --bootstrap_samples 10")).contains("from 100"));
    assert!(err("eval --dataset_name d").contains("DIR"));
    let Command::Eval(e) = ok(&format!("{eval} b c --temperature 1,2 --correct_threshold -3")) else {
        panic!("not eval")
    };
    assert_eq!((e.models(), e.correct_threshold), (vec![Path::new("m"), Path::new("b"), Path::new("c")], Some(-3.0)));
    let sample = "sample --model_name_or_path m";
    assert!(err(sample).contains("--dataset_name"));
    assert!(err(&format!("{sample} --prompt p --dataset_name d")).contains("cannot be used"));
    assert!(err(&format!("{sample} --prompt p --max_samples 3")).contains("--max_samples is for --dataset_name"));
    assert!(err(&format!("{sample} --prompt p --split train --validation_fraction 0.1")).contains("not for --prompt"));
}

#[test]
fn numbers_out_of_range_are_refused() {
    for (flag, values) in [
        ("learning_rate", &["0", "-1e-5", "nan", "inf", "x"][..]),
        ("beta", &["0", "-1"]),
        ("warmup_ratio", &["-0.1", "1.1"]),
        ("top_p", &["0", "1.5"]),
        ("temperature", &["0", "-1", "1,,2", ""]),
        ("num_generations", &["0", "-3", "1.5", "99999999999999"]),
        ("max_steps", &["0", "-2", "99999999999999"]),
        ("adam_beta1", &["1", "-0.1"]),
        ("threads", &["0"]),
    ] {
        for value in values {
            let e = align_err(&format!("--{flag}={value}"));
            assert!(e.contains(flag), "{flag} {value}: {e}");
        }
    }
    assert_eq!(align("--max_steps -1").train.step_limit(), None);
    assert_eq!(align("--max_steps 20").train.step_limit(), Some(20));
    assert_eq!(align("--max_grad_norm 0").train.max_grad_norm, 0.0);
}

#[test]
fn demo_and_presets() {
    let Command::Demo(d) = ok("demo --quick --seed 3 --json") else { panic!("not demo") };
    assert!(d.quick && d.common.json);
    assert_eq!((d.common.seed, d.output_dir.as_path()), (3, Path::new("larpo-demo")));
    let t = Preset::T1m.sizes();
    assert_eq!((t.hidden_size, t.intermediate_size, t.num_hidden_layers), (128, 384, 4));
    let s = Preset::S15m.sizes();
    assert_eq!((s.hidden_size, s.intermediate_size, s.vocab_size), (288, 768, 32000));
}

/// A file that is removed at the end of the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = std::env::temp_dir().join(format!("larpo-config-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("writes");
        Self(path)
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_gives_settings_and_flags_override_them() {
    let file = File::new(
        "overridden.yaml",
        "model_name_or_path: m\ndataset-name: d\noutput_dir: o\nk: 4\nlearning_rate: 5e-4\ntemperature: [1.0, 0.8]\n\
         stop_strings:\n  - '\\n\\n'\n  - \"\\n\"\njson: true\nsplit: all\n",
    );
    let with = |extra: &str| match ok(&format!("align --config {} {extra}", file.path())) {
        Command::Align(a) => a,
        other => panic!("{other:?}"),
    };
    let a = with("");
    assert_eq!((a.output_dir.as_path(), a.generations.num_generations), (Path::new("o"), 4));
    assert_eq!((a.train.learning_rate, &a.sampling.temperature[..]), (Some(5e-4), &[1.0, 0.8][..]));
    assert_eq!(a.sampling.stop, ["\n\n", "\n"]);
    assert!(a.common.json);
    let a = with("--num-generations 6 --learning_rate=1e-3 --temperature 0.5 --json=false --stop x");
    assert_eq!((a.generations.num_generations, a.train.learning_rate), (6, Some(1e-3)));
    assert_eq!((&a.sampling.temperature[..], &a.sampling.stop[..]), (&[0.5][..], &["x".to_string()][..]));
    assert!(!a.common.json);
    let e = err(&format!("align --config {} --k 1", file.path()));
    assert!(e.contains("nothing to rank") && e.contains("with the settings of"), "{e}");
    let rank = File::new("rank.yaml", "dataset_name: a.jsonl\nlabel_key: c\n");
    let Command::Rank(r) = ok(&format!("rank b.jsonl --config {}", rank.path())) else { panic!("not rank") };
    assert_eq!((r.path().map(PathBuf::as_path), r.label_key.as_deref()), (Some(Path::new("b.jsonl")), Some("c")));
}

#[test]
fn what_a_file_gets_wrong_is_named_by_line_and_key() {
    let refused = |text: &str| {
        let file = File::new("refused.yaml", text);
        err(&format!("align --config {}", file.path()))
    };
    for (text, parts) in [
        ("\nlearning_rat: 1\n", &["yaml:2: learning_rat", "did you mean `learning_rate`?"][..]),
        ("qqq: 1", &["yaml:1: qqq", "larpo align --help"]),
        ("learning_rate: fast", &["yaml:1: learning_rate", "`fast`", "expected a finite number"]),
        ("split: half", &["yaml:1: split", "`half`", "all, train, validation"]),
        ("json: 'true'", &["json", "`true` where true or false"]),
        ("json: [true]", &["json", "true or false"]),
        ("learning_rate: [1, 2]", &["learning_rate", "a list of 2"]),
        ("learning_rate:", &["learning_rate", "leave the line out"]),
        ("temperature: []", &["temperature", "leave the line out"]),
        ("temperature: [1, 0]", &["temperature", "`0`", "at least 0.001"]),
        ("k: 2\nnum_generations: 3", &["yaml:2: num_generations", "line 1"]),
        ("config: x", &["yaml:1: config", "another"]),
        ("a: {b: 1}", &["yaml:1: a", "nested"]),
        ("help: true", &["help", "no such setting"]),
    ] {
        let e = refused(text);
        assert!(parts.iter().all(|part| e.contains(part)), "{text:?}: {e}");
    }
    assert!(err("align --config /no/such.yaml").contains("/no/such.yaml"));
    let binary = File::new("binary.yaml", [0xff, 0xfe, 0x00]);
    assert!(err(&format!("align --config {}", binary.path())).contains("UTF-8"));
    let large = File::new("large.yaml", vec![b'#'; yaml::MAX_BYTES as usize + 1]);
    assert!(err(&format!("align --config {}", large.path())).contains("1024 KiB"));
    // A bad value is refused even where a flag overrides it.
    let file = File::new("overridden-bad.yaml", "k: none\n");
    assert!(err(&format!("align --config {} --k 3", file.path())).contains("yaml:1: k"));
}

#[test]
fn settings_of_every_verb_are_read_back() {
    let lines = [
        "demo --quick --output_dir a'b",
        "sft --dataset_name d --output_dir o --preset t1m --max_steps 7 --validation_fraction 0.1",
        "sft --dataset_name d --output_dir -- --hidden_size 8 --num_hidden_layers 1 --num_attention_heads 1 --tokenizer bpe:512",
        r"sample --model_name_or_path m --prompt # --prompt ~ --prompt a:b --stop \n --seed 3",
        r"rank s.jsonl --reward_funcs regex:pattern=a\,b,length --reward_weights 1,-0.5 --list_keys a,b",
        "train --model_name_or_path m --dataset_name d --output_dir o --overwrite_output_dir --threads 2",
        "align --model_name_or_path m --dataset_name d --output_dir o --temperature 1.0,0.7 --quiet --memory none",
        "eval --model_name_or_path m --dataset_name d --recall_at 1,4 --k 8 --log_level debug",
        "inspect x.jsonl --rows 5 --dataset_schema preference",
        "report run --output page.html",
        "convert in out --dtype bfloat16 --max_shard_size 2GB",
        "merge in out --dtype bfloat16 --model m --max_shard_size 2GB",
        "train --model_name_or_path m --dataset_name d --output_dir o --use_peft --lora_r 4 --lora_target_modules q_proj,v_proj",
        "generate --model_name_or_path m --prompt a --best_of 4 --reward_model r",
        "chat --model_name_or_path m --system s --top_k 3",
        "score --model_name_or_path m --reward_model r --dataset_name d --max_length 9",
        "reward --model_name_or_path m --dataset_name d --output_dir o --margin 0.5",
        "eval --model_name_or_path m --dataset_name d --reward_model r",
        "bench step --preset m135m --profile",
        "gpu check --device gpu:2 --json",
    ];
    let mut seen = std::collections::BTreeSet::new();
    for line in lines {
        let line = line.replace("--output_dir -- ", "--output_dir=-- ");
        let cli = parse(words(&format!("config {line}"))).unwrap_or_else(|e| panic!("{line}: {e}"));
        let Task::Config(command) = &cli.task else { panic!("{line}") };
        let text = write_settings(command.name(), &cli.settings);
        let file = File::new("again.yaml", &text);
        // Positional words are no settings.
        let what = match command {
            Command::Bench(_) => "step",
            Command::Gpu(_) => "check",
            Command::Inspect(_) => "x.jsonl",
            Command::Report(_) => "run",
            Command::Convert(_) | Command::Merge(_) => "in out",
            _ => "",
        };
        let again = parse(words(&format!("{} {what} --config {}", command.name(), file.path())));
        let again = again.unwrap_or_else(|e| panic!("{text}\n{e}"));
        // What the run sees is the same but for the name of the file, and for the positional path of `rank`.
        let shown = |command: &Command| {
            let text = format!("{command:?}").replace(&format!("config: Some({:?})", file.path()), "config: None");
            text.replace(
                r#"input: Some("s.jsonl"), dataset_name: None"#,
                r#"input: None, dataset_name: Some("s.jsonl")"#,
            )
        };
        assert_eq!(shown(command), shown(again.command().expect("a verb")), "{text}");
        let values = |cli: &Cli| cli.settings.0.iter().map(|s| (s.key.clone(), s.values.clone())).collect::<Vec<_>>();
        assert_eq!(values(&cli), values(&again), "{text}");
        let from_file = |s: &&Setting| matches!(s.origin, Origin::File(..));
        assert!(again.settings.0.iter().filter(from_file).count() > 2, "{text}");
        seen.insert(command.name());
    }
    let all: std::collections::BTreeSet<String> = verbs().get_subcommands().map(|v| v.get_name().to_string()).collect();
    assert_eq!(seen.into_iter().map(String::from).collect::<std::collections::BTreeSet<_>>(), all);
}

#[test]
fn settings_say_where_they_come_from() {
    let file = File::new("origin.yaml", "# mine\nlearning_rate: 1e-3\nbeta: 0.2\n");
    let line = format!(
        "config train --model_name_or_path m --dataset_name d --output_dir o --beta 0.3 --config {}",
        file.path()
    );
    let cli = parse(words(&line)).expect("parses");
    let text = write_settings("train", &cli.settings);
    for (start, end) in [
        ("learning_rate: 1e-3 ", &format!("# {}:2", file.path())[..]),
        ("beta: 0.3 ", "# flag"),
        ("ties: skip ", "# default"),
        ("# save_steps: ", "# not set; default: none"),
        ("# threads: ", "# not set; default: one for each core"),
    ] {
        let found = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {text}"));
        assert!(found.ends_with(end), "{found}");
    }
    assert!(!text.contains("\nconfig:"));
}

#[test]
fn the_help_ends_with_the_exit_codes() {
    use crate::error::exit_code::*;
    let help = parse(["larpo", "--help"]).expect_err("help").to_string();
    let end = help.split("Exit codes:").nth(1).expect("exit codes");
    for code in [OK, FAILURE, USAGE, BUG, INTERRUPTED] {
        assert!(end.contains(&code.to_string()), "{code}: {end}");
    }
    assert_eq!(parse(["larpo", "sft"]).expect_err("flags are missing").exit_code(), i32::from(USAGE));
    let version = parse(["larpo", "--version"]).expect_err("version").to_string();
    assert!(version.starts_with(&format!("larpo {}", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(version.contains(larpo_core::cpu::simd::instruction_set()) && version.contains("gemm, rayon"), "{version}");
}
