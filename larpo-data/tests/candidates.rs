//! Candidate lists: exact round trips, and messages for people who edit them.

mod common;
use common::{Folder, holds};
use larpo_data::candidates::{CandidateList, read, write};

fn full() -> CandidateList {
    CandidateList {
        messages: None,
        prompt_index: Some(4),
        prompt: "2 + 2 =\n".into(),
        prompt_token_ids: Some(vec![1, 70_000]),
        reference: Some("A: 4".into()),
        stop_strings: vec!["\n\n".into()],
        responses: vec!["4 \"é\"\n".into(), String::new()],
        rewards: vec![0.1 + 0.2, -1e-300],
        ranks: vec![1.0, 2.0],
        iteration: vec![0, 1],
        temperature: vec![0.7, 1.0],
        seed: vec![u64::MAX, 0],
        finish_reason: vec!["stop".into(), "length".into()],
        token_ids: vec![vec![5, 0], vec![]],
        // The second decimal is a number that two roundings (by way of f64) would move to its neighbour.
        logps: vec![vec![-0.1, -7.038_531e-26], vec![]],
        extra: serde_json::from_str(r#"{"zeta": 1, "alpha": {"b": [2]}}"#).unwrap(),
    }
}

fn error_of(row: &str) -> String {
    let folder = Folder::new();
    let text = format!("{{\"prompt\": \"p\", \"responses\": [\"a\"]}}\n{row}\n");
    read(folder.file("candidates.jsonl", text)).expect_err("the row is accepted").to_string()
}

#[test]
fn lists_come_back_bit_for_bit_and_the_same_bytes() {
    let folder = Folder::new();
    let (first, second) = (folder.path().join("a.jsonl"), folder.path().join("b.jsonl"));
    let bare = CandidateList { prompt: "q".into(), responses: vec!["x".into()], ..CandidateList::default() };
    let mut many = full();
    // Single-precision numbers across all magnitudes.
    many.responses.truncate(1);
    for array in [&mut many.rewards, &mut many.ranks] {
        array.truncate(1);
    }
    many.iteration.truncate(1);
    many.temperature.truncate(1);
    many.seed.truncate(1);
    many.finish_reason.truncate(1);
    // Log-probabilities are negative.
    let bits = |i: u32| i.wrapping_mul(2_654_435_761) | 1 << 31;
    let numbers: Vec<f32> = (0..200_000u32).map(|i| f32::from_bits(bits(i))).filter(|x| x.is_finite()).collect();
    many.token_ids = vec![vec![3; numbers.len()]];
    many.logps = vec![numbers];
    let lists = vec![full(), bare, many];
    write(&first, &lists).unwrap();
    let back = read(&first).unwrap();
    assert_eq!(back, lists);
    assert_eq!(back[0].logps[0][1].to_bits(), 0x95ae_43fd);
    write(&second, &back).unwrap();
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    assert_eq!(folder.names(), ["a.jsonl", "b.jsonl"]);
}

#[test]
fn rows_are_written_in_a_fixed_order_of_fields() {
    let folder = Folder::new();
    let path = folder.path().join("a.jsonl");
    write(&path, &[full()]).unwrap();
    let expected = r##"{"prompt_index":4,"prompt":"2 + 2 =\n","prompt_token_ids":[1,70000],"reference":"A: 4","stop_strings":["\n\n"],"responses":["4 \"é\"\n",""],"rewards":[0.30000000000000004,-1e-300],"ranks":[1.0,2.0],"iteration":[0,1],"temperature":[0.7,1.0],"seed":[18446744073709551615,0],"finish_reason":["stop","length"],"token_ids":[[5,0],[]],"logps":[[-0.1,-7.038531e-26],[]],"zeta":1,"alpha":{"b":[2]}}
"##;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn files_made_elsewhere_need_little() {
    let folder = Folder::new();
    let path = folder.file(
        "x.jsonl",
        r#"{"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0.5], "judge": "me"}
{"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1.5, 3, 1.5]}
{"prompt": "p", "responses": ["a"], "rewards": null}"#,
    );
    let lists = read(&path).unwrap();
    assert_eq!(lists[0].scores(), Some(vec![1.0, 0.5]));
    assert_eq!(lists[0].extra["judge"], "me");
    assert_eq!(lists[1].scores(), Some(vec![-1.5, -3.0, -1.5]));
    assert_eq!(lists[2].scores(), None);
}

#[test]
fn every_mistake_is_named_by_line_and_field() {
    let start = r#""prompt": "p", "responses": ["a", "b"]"#;
    let cases: [(&str, &[&str]); 19] = [
        (r#""rewards": [1]"#, &["`rewards`", "expected 2 elements, one per response, found 1", "in all"]),
        (r#""rewards": []"#, &["`rewards`", "expected 2 elements", "found 0", "remove the field"]),
        (r#""rewards": [1, "2"]"#, &["`rewards[1]`", "finite numbers", "the string \"2\"", "\"rewards\": [1.0, 0.0]"]),
        (r#""rewards": [1, null]"#, &["`rewards[1]`", "found null"]),
        (r#""rewards": 1"#, &["`rewards`", "an array of finite numbers, found 1"]),
        (r#""rewards": [1, NaN]"#, &["`rewards`", "a finite number, found `NaN` at column", "no NaN"]),
        (r#""rewards": [1, 1e999]"#, &["valid JSON", "number out of range"]),
        (r#""ranks": [0, 1]"#, &["`ranks[0]`", "1 (best) or more", "found 0"]),
        (
            r#""rewards": [0, 1], "ranks": [1, 2]"#,
            &["`ranks[0]`", "order of the rewards", "Remove `ranks` or `rewards`"],
        ),
        (r#""iteration": [0, -1]"#, &["`iteration[1]`", "whole numbers", "found -1"]),
        (r#""iteration": [0, 1.5]"#, &["`iteration[1]`", "found 1.5"]),
        (r#""temperature": [1, -1]"#, &["`temperature[1]`", "0 or more", "found -1"]),
        (r#""seed": [1, 18446744073709551616]"#, &["`seed[1]`", "whole numbers"]),
        (
            r#""finish_reason": ["stop", "eos"]"#,
            &["`finish_reason[1]`", "\"stop\", \"length\" or \"stop_string\"", "\"eos\""],
        ),
        (r#""token_ids": [[1], 2]"#, &["`token_ids[1]`", "one array of numbers per response", "found 2"]),
        (
            r#""token_ids": [[1], [1, 2]], "logps": [[-1], [-1]]"#,
            &["`logps[1]`", "2 numbers, one per element of token_ids[1]"],
        ),
        (r#""logps": [[-1], ["x"]]"#, &["`logps[1]`"]),
        (r#""prompt_index": -3"#, &["`prompt_index`", "found -3"]),
        (r#""reference": 18"#, &["`reference`", "expected a string, found 18"]),
    ];
    for (field, parts) in cases {
        let message = error_of(&format!("{{{start}, {field}}}"));
        holds(&message, &["candidates.jsonl:2: "]);
        holds(&message, parts);
    }
    holds(&error_of(r#"{"prompt": "p"}"#), &[":2: ", "`responses`", "only `prompt`", "[\"first\", \"second\"]"]);
    holds(&error_of(r#"{"responses": ["a"]}"#), &[":2: ", "`prompt`", "a string"]);
    holds(&error_of(r#"{"prompt": "p", "responses": []}"#), &["`responses`", "at least one", "delete the row"]);
    holds(&error_of(r#"{"prompt": "p", "responses": ["a", 1]}"#), &["`responses[1]`", "found 1"]);
    holds(&error_of(r#"{"prompt": "p", "responses": ["a""#), &[":2: ", "cut short"]);
    holds(&error_of(r#"{"prompt": "p", "responses": ["a"], "logps": [[-1e39]]}"#), &[":2: ", "logps"]);
    holds(
        &error_of(r#"{"prompt": "p", "responses": ["a"], "logps": [[-1]], "logps": [[-2]]}"#),
        &[":2: ", "`logps`", "each name once"],
    );
    let folder = Folder::new();
    holds(&read(folder.file("e.jsonl", "\n")).unwrap_err().to_string(), &["e.jsonl", "no rows"]);
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let folder = Folder::new();
    let path = folder.path().join("a.jsonl");
    let refused = |change: fn(&mut CandidateList), parts: &[&str]| {
        let mut list = full();
        change(&mut list);
        holds(&write(&path, &[full(), list]).unwrap_err().to_string(), &["a.jsonl:2: "]);
        let mut list = full();
        change(&mut list);
        holds(&write(&path, &[list]).unwrap_err().to_string(), parts);
        assert!(folder.names().is_empty());
    };
    refused(|l| l.rewards[1] = f64::NAN, &["`rewards[1]`", "finite", "NaN"]);
    refused(|l| l.logps[0][1] = f32::NEG_INFINITY, &["`logps[0][1]`", "finite", "-inf"]);
    refused(|l| l.logps[0][1] = 0.5, &["`logps[0][1]`", "0 or less", "0.5"]);
    refused(|l| l.temperature[0] = f32::INFINITY, &["`temperature[0]`"]);
    refused(|l| l.seed.truncate(1), &["`seed`", "2 elements", "found 1"]);
    refused(|l| drop(l.extra.insert("rewards".into(), 1.into())), &["`rewards`", "another name"]);
}
