//! Data sets: what is recognised, and what is said about rows that do not fit.

mod common;
use common::{Folder, holds};
use larpo_data::records::{Dataset, Example, Keys, read_dataset, read_keyed_rows};

fn read(name: &str, text: &str) -> Result<Dataset, String> {
    let folder = Folder::new();
    read_dataset(folder.file(name, text)).map_err(|error| error.to_string())
}

fn examples(text: &str) -> Vec<Example> {
    match read("data.jsonl", text).unwrap() {
        Dataset::Examples { rows, .. } => rows,
        other => panic!("expected examples, found {other:?}"),
    }
}

#[track_caller]
fn refused(text: &str, parts: &[&str]) {
    holds(&read("data.jsonl", text).unwrap_err(), parts);
}

#[test]
fn gsm8k_rows_become_prompt_completion_and_reference() {
    let rows = examples(
        "{\"question\": \"How many?\", \"answer\": \"1+1 = <<1+1=2>>2\\n#### 2\"}\n\n{\"question\": \"é\", \"answer\": \"x\"}\n",
    );
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].prompt, "How many?\n");
    assert_eq!(rows[0].completion.as_deref(), Some("1+1 = <<1+1=2>>2\n#### 2"));
    assert_eq!(rows[0].reference, rows[0].completion);
    assert_eq!((rows[1].index, rows[1].line), (1, 3));
}

#[test]
fn prompts_come_with_or_without_completions_and_references() {
    let rows = examples(
        r#"{"prompt": "a", "completion": "b", "reference": "c", "answer": "d", "id": 7}
{"prompt": "", "completion": null}
{"prompt": "e", "answer": "f"}"#,
    );
    let row = |i: usize| (rows[i].prompt.as_str(), rows[i].completion.as_deref(), rows[i].reference.as_deref());
    assert_eq!(row(0), ("a", Some("b"), Some("c")));
    assert_eq!(row(1), ("", None, None));
    assert_eq!(row(2), ("e", None, Some("f")));
}

#[test]
fn arrays_and_byte_order_marks_are_read_and_lines_are_right() {
    let rows = examples("\u{feff}[\n  {\"prompt\": \"a\"},\n\n  {\n   \"prompt\": \"b\"}\n]\n");
    assert_eq!(rows.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4]);
    refused("[\n{\"prompt\": \"a\"},\n{\"prompt\": 5}\n]", &["line 3", "`prompt`", "expected a string, found 5"]);
    refused("[\n{\"prompt\": \"a\"},\n{\"prompt\": \n]", &["line 4", "valid JSON"]);
    refused("[{\"prompt\": \"a\"}, 3]", &["line 1", "expected a JSON object, found 3"]);
    assert_eq!(examples("{\"prompt\": \"a\"}\r\n{\"prompt\": \"b\"}\r\n").len(), 2);
}

#[test]
fn ranked_lists_and_texts_are_recognised() {
    let lists = read("d.jsonl", r#"{"prompt": "p", "responses": ["a", "b"], "rewards": [0, 1]}"#).unwrap();
    assert!(matches!(lists, Dataset::RankedLists(lists) if lists[0].rewards == [0.0, 1.0]));
    let text = "{not: json}\nFirst Citizen:\n";
    assert_eq!(read("input.txt", text).unwrap(), Dataset::Text(text.into()));
    holds(&read("input.txt", "").unwrap_err(), &["input.txt", "empty"]);
    holds(&read("input.text", text).unwrap_err(), &["line 1", "valid JSON"]);
}

#[test]
fn rows_of_no_known_kind_are_refused_with_what_is_accepted() {
    refused(
        r#"{"instruction": "a", "output": "b"}"#,
        &[
            "data.jsonl",
            "line 1",
            "\"instruction\", \"output\"",
            "Accepted rows",
            "\"question\", \"answer\"",
            "responses",
        ],
    );
    refused(r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#, &["\"chosen\"", "\"ranks\": [1, 2]"]);
    refused("\n\n", &["no rows", "Accepted rows"]);
    refused("[]", &["no rows"]);
}

#[test]
fn bad_rows_are_named_by_line_and_field() {
    let good = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    refused(&format!("{good}{{\"prompt\": \"a\", \"compl"), &["line 2", "valid JSON", "cut short"]);
    refused(
        &format!("{good}\n{{\"prompt\": \"a\" \"x\": 1}}"),
        &["line 3", "at column 16", "one JSON object per line"],
    );
    refused(
        &format!("{good}{{\"completion\": \"b\"}}"),
        &["line 2", "`prompt`", "only `completion`", "\"prompt\": \"some text\""],
    );
    refused(&format!("{good}{{\"prompt\": [\"a\"]}}"), &["line 2", "`prompt`", "an array of 1 elements", "in quotes"]);
    refused(
        &format!("{good}{{\"prompt\": \"a\", \"completion\": 3}}"),
        &["line 2", "`completion`", "expected a string, found 3"],
    );
    refused(&format!("{good}\"text\""), &["line 2", "expected a JSON object", "the string \"text\""]);
    refused("{\"question\": \"a\"}", &["line 1", "`answer`", "only `question`"]);
    refused("{\"prompt\": \"a\", \"x\": NaN}", &["line 1", "no NaN and no infinity"]);
    refused("{\"prompt\": \"a\", \"x\": -Infinity}", &["line 1", "no NaN and no infinity"]);
}

#[test]
fn files_that_cannot_be_text_are_named() {
    let folder = Folder::new();
    let path = folder.file("latin1.jsonl", b"{\"prompt\": \"a\"}\n{\"prompt\": \"caf\xe9\"}\n");
    holds(&read_dataset(&path).unwrap_err().to_string(), &["line 2", "byte 0xE9 at offset 31", "iconv"]);
    holds(&read_dataset(folder.path().join("none.jsonl")).unwrap_err().to_string(), &["none.jsonl", "cannot read"]);
    let packed = folder.file("packed.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0");
    holds(&read_dataset(&packed).unwrap_err().to_string(), &["packed.jsonl.gz", "gzip", "gunzip"]);
    holds(&read_dataset(folder.path()).unwrap_err().to_string(), &["cannot read"]);
}

#[test]
fn keyed_rows_hold_one_response_or_several() {
    let folder = Folder::new();
    let path = folder.file(
        "rows.jsonl",
        r#"{"q": "p", "out": "a", "gold": "g", "ok": true, "id": 1}
{"out": ["a", "b"], "gold": "g", "ok": [false, 0.5]}"#,
    );
    let keys = Keys {
        prompt: "q".into(),
        response: "out".into(),
        reference: Some("gold".into()),
        label: Some("ok".into()),
        ..Keys::default()
    };
    let rows = read_keyed_rows(&path, &keys).unwrap();
    assert_eq!((rows[0].prompt.as_str(), rows[0].is_list, rows[0].labels.as_slice()), ("p", false, &[1.0][..]));
    assert_eq!(rows[0].responses, ["a"]);
    assert_eq!(rows[0].fields.keys().collect::<Vec<_>>(), ["q", "out", "gold", "ok", "id"]);
    assert_eq!((rows[1].prompt.as_str(), rows[1].is_list, rows[1].labels.as_slice()), ("", true, &[0.0, 0.5][..]));
    assert_eq!(rows[1].reference.as_deref(), Some("g"));

    let error = |text: &str| read_keyed_rows(folder.file("bad.jsonl", text), &keys).unwrap_err().to_string();
    holds(&error(r#"{"out": "a", "gold": "g"}"#), &["line 1", "`ok`", "true, false or a number", "\"ok\": true"]);
    holds(&error(r#"{"out": "a", "ok": 1}"#), &["line 1", "`gold`", "a string"]);
    holds(&error(r#"{"gold": "a", "ok": 1}"#), &["`out`", "a string or an array of strings"]);
    holds(&error(r#"{"out": ["a", 2], "gold": "g", "ok": [1, 2]}"#), &["`out[1]`", "found 2"]);
    holds(&error(r#"{"out": ["a", "b"], "gold": "g", "ok": [1]}"#), &["`ok`", "each of the 2 responses", "1 labels"]);
    holds(&error(r#"{"out": ["a", "b"], "gold": "g", "ok": true}"#), &["`ok`", "one label per response", "true"]);
    holds(&error(r#"{"out": "a", "gold": "g", "ok": "yes"}"#), &["`ok`", "the string \"yes\""]);
    holds(&error(""), &["no rows", "`out`"]);
}
