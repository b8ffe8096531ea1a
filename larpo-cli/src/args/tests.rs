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
        Ok(cli) => cli.command,
        Err(e) => panic!("{line}: {e}"),
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

#[test]
fn declarations_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_long_flag_has_underscores_only() {
    for verb in Cli::command().get_subcommands() {
        for arg in verb.get_arguments() {
            let names = arg.get_long_and_visible_aliases().unwrap_or_default();
            assert!(names.iter().all(|n| !n.contains('-')), "{} {names:?}", verb.get_name());
        }
    }
}

#[test]
fn every_verb_has_seed_threads_and_json() {
    for verb in Cli::command().get_subcommands() {
        for name in ["seed", "threads", "json"] {
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
    let Command::Sft(a) = cli.command else { panic!("not sft") };
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
    assert!(message.contains("1 value(s) for 2 reward(s)"), "{message}");
}

#[test]
fn stop_strings_are_unescaped() {
    let argv =
        ["larpo", "sample", "--model_name_or_path", "m", "--prompt", "p", "--stop", r"\n\n", "--stop_strings", r"a\\b"];
    let Command::Sample(s) = parse(argv).expect("parses").command else { panic!("not sample") };
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
    assert_eq!((e.models(), e.correct_threshold), (vec![Path::new("m"), Path::new("b"), Path::new("c")], -3.0));
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
