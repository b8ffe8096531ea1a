//! Data sets: what is recognised, and what is said about rows that do not fit.

mod common;
use common::{Folder, holds};
use larpo_data::records::{
    Dataset, Example, Keys, OnBadRow, ReadOptions, Records, Schema, read_dataset, read_keyed_rows,
};

fn read_as(name: &str, bytes: impl AsRef<[u8]>, options: ReadOptions) -> Result<Records, String> {
    let folder = Folder::new();
    read_dataset(folder.file(name, bytes), &options).map_err(|error| error.to_string())
}

fn read(name: &str, bytes: impl AsRef<[u8]>) -> Result<Dataset, String> {
    read_as(name, bytes, ReadOptions::default()).map(|records| records.dataset)
}

const SKIP: ReadOptions =
    ReadOptions { schema: None, on_bad_row: OnBadRow::Skip, renderer: larpo_data::records::Renderer::None };

fn gzip(text: &str) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut writer, text.as_bytes()).unwrap();
    writer.finish().unwrap()
}

fn examples(text: &str) -> Vec<Example> {
    match read("data.jsonl", text).unwrap() {
        Dataset::Examples(rows) => rows,
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
        "{\"question\": \"How many?\", \"answer\": \"1+1 = <<1+1=2>>2\\n#### 2\"}\n\n{\"question\": \"é\", \"answer\": \"#### x\"}\n",
    );
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].prompt, "How many?\n");
    assert_eq!(rows[0].completion.as_deref(), Some("1+1 = <<1+1=2>>2\n#### 2"));
    assert_eq!(rows[0].reference, rows[0].completion);
    assert_eq!((rows[1].index, rows[1].line), (1, 3));
    // A solution without its mark would be compared as a whole.
    let unmarked = "{\"question\": \"a\", \"answer\": \"1\\n#### 1\"}\n{\"question\": \"b\", \"answer\": \"2\"}";
    refused(unmarked, &[":2: ", "`answer`", "ends in `#### N`", "\"answer\": \"2 + 2 = 4\\n#### 4\""]);
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

fn lists(name: &str, text: &str) -> (Schema, Vec<larpo_data::candidates::CandidateList>) {
    let records = read_as(name, text, ReadOptions::default()).unwrap();
    let Dataset::RankedLists(rows) = records.dataset else { panic!("no lists") };
    (records.schema, rows.into_iter().map(|row| row.list).collect())
}

#[test]
fn pairs_may_have_a_margin() {
    let row = r#"{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}"#;
    let margins = |name: &str, text: &str| {
        let Dataset::Pairs(pairs) = read(name, text).unwrap() else { panic!("no pairs") };
        pairs.iter().map(|pair| pair.margin).collect::<Vec<_>>()
    };
    let without = r#"{"prompt": "a", "chosen": "b", "rejected": "c", "margin": null}"#;
    assert_eq!(margins("d.jsonl", &format!("{row}\n{without}")), [Some(0.5), None]);
    assert_eq!(margins("d.csv", "prompt,chosen,rejected,margin\na,b,c,-1e-1\n"), [Some(-0.1)]);
    refused(&row.replace("0.5", "\"0.5\""), &["`margin`", "a finite number", "\"0.5\""]);
}

/// A row as openbmb/UltraFeedback publishes it, but for the texts.
const ULTRAFEEDBACK: &str = r##"{"source": "sharegpt", "instruction": "How many?", "models": ["a", "b", "c"], "completions": [
 {"annotations": {"instruction_following": {"Rating": "2", "Rationale": "..."}, "honesty": {"Rating": "N/A", "Rationale": ""},
   "truthfulness": {"Type": ["1"], "Rationale": "", "Rating": "5", "Rationale For Rating": ""},
   "helpfulness": {"Type": ["1"], "Rationale": "", "Rating": "4", "Rationale For Rating": ""}},
  "custom_system_prompt": "...", "critique": "...", "fine-grained_score": 4.25, "overall_score": 10.0, "model": "a",
  "principle": "helpfulness", "response": "two"},
 {"annotations": {"helpfulness": {"Rating": "5"}}, "overall_score": 7.0, "response": "three"},
 {"annotations": {"helpfulness": {"Rating": "N/A"}}, "fine-grained_score": 1.5, "overall_score": 7.0, "response": ""}],
 "correct_answers": ["None"], "incorrect_answers": ["None"]}"##;

#[test]
fn ultrafeedback_rows_are_lists_with_mean_ratings() {
    let row = ULTRAFEEDBACK.replace('\n', " ");
    let (schema, rows) = lists("data.jsonl", &row);
    assert_eq!((schema, &rows[0].prompt[..]), (Schema::Ultrafeedback, "How many?\n"));
    assert_eq!(rows[0].responses, ["two", "three", ""]);
    // The mean of 2, 5 and 4, without what is no number; the one rating there is; no rating at all.
    assert_eq!(rows[0].rewards, [11.0 / 3.0, 5.0, 1.5]);
    let unrated =
        row.replace("\"fine-grained_score\": 1.5, \"overall_score\": 7.0, \"response\": \"\"", "\"response\": \"\"");
    refused(&unrated, &[":1: ", "`completions[2].annotations`", "a number", "--on_bad_row skip"]);
    // Another scale is not put beside ratings; where there is nothing else it serves.
    refused(
        &row.replace("\"fine-grained_score\": 1.5, ", ""),
        &["`completions[2].annotations`", "as other completions"],
    );
    let overall = r#"{"instruction": "a", "completions": [{"response": "b", "overall_score": 7}, {"response": "c", "annotations": {"helpfulness": {"Rating": "N/A"}}, "overall_score": "9"}]}"#;
    assert_eq!(lists("data.jsonl", overall).1[0].rewards, [7.0, 9.0]);
    refused(
        r#"{"instruction": "a", "completions": [{"response": null, "overall_score": 1}]}"#,
        &["`completions[0].response`", "null"],
    );
    refused(r#"{"instruction": "a", "completions": []}"#, &["`completions`", "at least one object"]);
}

#[test]
fn nectar_rows_are_lists_with_ranks() {
    let row = r#"{"prompt": "\n\nHuman: How many?\n\nAssistant: ", "answers": [{"answer": "two", "model": "gpt-4", "rank": 2.0}, {"answer": "three", "model": "b", "rank": 1.0}], "turns": 1, "num_responses": 2, "source": ["lmsys-chat-1m"], "good_natured": true}"#;
    let (schema, rows) = lists("data.jsonl", row);
    assert_eq!((schema, &rows[0].prompt[..]), (Schema::Nectar, "\n\nHuman: How many?\n\nAssistant:"));
    assert_eq!((&rows[0].responses[..], &rows[0].ranks[..]), (&[" two".into(), " three".into()][..], &[2.0, 1.0][..]));
    assert_eq!(rows[0].scores(), Some(vec![-2.0, -1.0]));
    refused(&row.replace("1.0", "0.5"), &["`answers[1].rank`", "1 (best)"]);
    // A list of answers to compare with is none of responses.
    let texts = read_as("d.jsonl", r#"{"prompt": "a", "answers": ["b"]}"#, ReadOptions::default()).unwrap();
    assert_eq!(texts.schema, Schema::PromptOnly);
}

#[test]
fn arrays_and_byte_order_marks_are_read_and_lines_are_right() {
    let rows = examples("\u{feff}[\n  {\"prompt\": \"a\"},\n\n  {\n   \"prompt\": \"b\"}\n]\n");
    assert_eq!(rows.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4]);
    refused("[\n{\"prompt\": \"a\"},\n{\"prompt\": 5}\n]", &[":3: ", "`prompt`", "expected a string, found 5"]);
    refused("[\n{\"prompt\": \"a\"},\n{\"prompt\": \n]", &[":4: ", "valid JSON"]);
    for cut in ["[\n{\"prompt\": \"a\"},\n{\"prompt\": \"b", "[{\"prompt\": \"a\"},\n", "["] {
        refused(cut, &["the end of the file inside a", "The file is cut short"]);
    }
    refused("[{\"prompt\": \"a\"}, 3]", &[":1: ", "expected a JSON object, found 3"]);
    assert_eq!(examples("{\"prompt\": \"a\"}\r\n{\"prompt\": \"b\"}\r\n").len(), 2);
}

#[test]
fn ranked_lists_and_texts_are_recognised() {
    let lists = read("d.jsonl", r#"{"prompt": "p", "responses": ["a", "b"], "rewards": [0, 1]}"#).unwrap();
    assert!(matches!(lists, Dataset::RankedLists(rows) if rows[0].list.rewards == [0.0, 1.0]));
    let text = "{not: json}\nFirst Citizen:\n";
    assert_eq!(read("input.txt", text).unwrap(), Dataset::Text(text.into()));
    holds(&read("input.txt", "").unwrap_err(), &["input.txt", "empty"]);
    holds(&read("input.text", text).unwrap_err(), &[":1: ", "valid JSON"]);
}

#[test]
fn rows_of_no_known_kind_are_refused_with_what_is_accepted() {
    refused(
        r#"{"instruction": "a", "output": "b"}"#,
        &["data.jsonl", ":1: ", "\"instruction\", \"output\"", "Accepted rows", "\"question\": ", "responses"],
    );
    refused("\n\n", &["no rows", "Accepted rows"]);
    refused("[]", &["no rows"]);
}

#[test]
fn bad_rows_are_named_by_line_and_field() {
    let good = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    refused(&format!("{good}{{\"prompt\": \"a\", \"compl"), &[":2: ", "valid JSON", "cut short"]);
    refused(
        &format!("{good}\n{{\"prompt\": \"a\" \"x\": 1}}"),
        &[":3: ", "found `\"x\"` where a comma or `}` belongs at column 16", "a comma between"],
    );
    refused(
        &format!("{good}{{\"completion\": \"b\"}}"),
        &[":2: ", "`prompt`", "only `completion`", "\"prompt\": \"some text\""],
    );
    refused(&format!("{good}{{\"prompt\": [\"a\"]}}"), &[":2: ", "`prompt`", "an array of 1 element", "in quotes"]);
    refused(
        &format!("{good}{{\"prompt\": \"a\", \"completion\": 3}}"),
        &[":2: ", "`completion`", "expected a string, found 3"],
    );
    refused(&format!("{good}\"text\""), &[":2: ", "expected a JSON object", "the string \"text\""]);
    refused("{\"question\": \"a\"}", &[":1: ", "`answer`", "only `question`"]);
    // However the parser stumbles over them, in arrays too, behind texts that look like names.
    for word in ["NaN", "nan", "Infinity", "-Infinity", "inf", "-inf", "INF"] {
        let mend = "no NaN and no infinity";
        let found = format!("`{word}` at column 23");
        refused(&format!("{{\"prompt\": \"é\", \"x\": {word}}}"), &[":1: ", "field `x`", &found, mend]);
        let row = format!(r#"{{"prompt": "a\": b", "rewards": [1, [{word}, 2]]}}"#);
        refused(&format!("{{\"prompt\": \"a\"}}\n{row}"), &[":2: ", "field `rewards`", &format!("`{word}`"), mend]);
    }
    // What the parser says, in words that can be looked for.
    for (row, found, mend) in [
        ("{\"prompt\": \"a\", \"x\": nil}", "`nil`, which is no JSON value, at column", "true, false and null"),
        ("hello there", "`hello`, which is no JSON value, at column 1.", "double quotes"),
        ("{'prompt': 'a'}", "the name `'prompt'` without double quotes at column 2.", "{\"prompt\": "),
        ("{\"prompt\": \"a\",}", "a comma behind the last entry", "Remove"),
        ("{\"prompt\": \"a\"},", "`,` behind the end at column 16.", "one JSON object per line"),
        ("{\"prompt\" \"a\"}", "`\"a\"` where a colon belongs", "{\"prompt\": "),
        ("{\"prompt\": \"a\\q\"}", "a backslash that begins no escape", "\\\\"),
        ("{\"prompt\": \"a\tb\"}", "control character inside a text", "\\t"),
        ("{\"prompt\": \"\\ud800\"}", "half of a character", "\\ude00"),
        ("{\"prompt\": \"a", "the end of the row inside a text.", "cut short"),
    ] {
        refused(row, &[":1: ", "expected valid JSON", found, mend]);
    }
}

#[test]
fn files_that_cannot_be_text_are_named() {
    let folder = Folder::new();
    let path = folder.file("latin1.jsonl", b"{\"prompt\": \"a\"}\n{\"prompt\": \"caf\xe9\"}\n");
    holds(
        &read_dataset(&path, &ReadOptions::default()).unwrap_err().to_string(),
        &[":2: ", "byte 0xE9 at offset 31", "iconv"],
    );
    holds(
        &read_dataset(folder.path().join("none.jsonl"), &ReadOptions::default()).unwrap_err().to_string(),
        &["none.jsonl", "cannot read"],
    );
    holds(&read_dataset(folder.path(), &ReadOptions::default()).unwrap_err().to_string(), &["cannot read"]);
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
    let (rows, bad) = read_keyed_rows(&path, &keys, OnBadRow::Error).unwrap();
    assert!(bad.is_empty());
    assert_eq!((rows[0].prompt.as_str(), rows[0].is_list, rows[0].labels.as_slice()), ("p", false, &[1.0][..]));
    assert_eq!(rows[0].responses, ["a"]);
    assert_eq!(rows[0].fields.keys().collect::<Vec<_>>(), ["q", "out", "gold", "ok", "id"]);
    assert_eq!((rows[1].prompt.as_str(), rows[1].is_list, rows[1].labels.as_slice()), ("", true, &[0.0, 0.5][..]));
    assert_eq!(rows[1].reference.as_deref(), Some("g"));

    let error =
        |text: &str| read_keyed_rows(folder.file("bad.jsonl", text), &keys, OnBadRow::Error).unwrap_err().to_string();
    holds(&error(r#"{"out": "a", "gold": "g"}"#), &[":1: ", "`ok`", "true, false or a number", "\"ok\": true"]);
    holds(&error(r#"{"out": "a", "ok": 1}"#), &[":1: ", "`gold`", "a string"]);
    holds(&error(r#"{"gold": "a", "ok": 1}"#), &["`out`", "a string or an array of strings"]);
    holds(&error(r#"{"out": ["a", 2], "gold": "g", "ok": [1, 2]}"#), &["`out[1]`", "found 2"]);
    holds(&error(r#"{"out": ["a", "b"], "gold": "g", "ok": [1]}"#), &["`ok`", "each of the 2 responses", "1 labels"]);
    holds(&error(r#"{"out": ["a", "b"], "gold": "g", "ok": true}"#), &["`ok`", "one label per response", "true"]);
    holds(&error(r#"{"out": "a", "gold": "g", "ok": "yes"}"#), &["`ok`", "the string \"yes\""]);
    holds(&error(""), &["no rows", "`out`"]);
}

#[test]
fn pairs_have_a_prompt_of_their_own_or_in_common() {
    let pairs = |text: &str| match read("pairs.jsonl", text).unwrap() {
        Dataset::Pairs(rows) => rows,
        other => panic!("expected pairs, found {other:?}"),
    };
    let rows = pairs(
        r#"{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
{"chosen": "\n\nHuman: hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: hi\n\nAssistant: Hm."}"#,
    );
    let row = |i: usize| [&rows[i].prompt[..], &rows[i].chosen, &rows[i].rejected];
    assert_eq!(row(0), ["2 + 2 =", " 4", " 5"]);
    assert_eq!(row(1), ["\n\nHuman: hi\n\nAssistant:", " Hello.", " Hm."]);
    assert_eq!((rows[1].index, rows[1].line), (1, 2));
    refused(r#"{"chosen": "yes", "rejected": "no"}"#, &[":1: ", "`prompt`", "no common beginning", "2 + 2 ="]);
    refused(r#"{"prompt": "p", "chosen": "yes"}"#, &[":1: ", "`rejected`", "only `prompt`, `chosen`"]);
}

#[test]
fn labelled_completions_are_told_by_their_labels() {
    let rows = r#"{"prompt": "p", "completion": "a", "label": true}
{"prompt": "p", "completion": "b", "label": 0}"#;
    let Dataset::Unpaired(labelled) = read("d.jsonl", rows).unwrap() else { panic!("not labelled") };
    assert_eq!(
        labelled.iter().map(|row| (&row.completion[..], row.label)).collect::<Vec<_>>(),
        [("a", true), ("b", false)]
    );
    refused(&format!("{rows}\n{{\"prompt\": \"p\", \"completion\": \"c\"}}"), &[":3: ", "`label`", "true or false"]);
    // In quotes they are refused, not taken for a field that nobody reads: rejected completions would be learned.
    for (yes, no) in [("\"true\"", "\"false\""), ("\"1\"", "\"0\""), ("\"True\"", "\"False\"")] {
        let quoted = rows.replace("true", yes).replace("\"label\": 0", &format!("\"label\": {no}"));
        refused(&quoted, &[":1: ", "`label`", "without quotes"]);
    }
    refused(&rows.replace("0", "\"no\""), &[":2: ", "`label`", "the string \"no\"", "without quotes"]);
    // Labels of another kind are no verdicts.
    let classes = read_as("d.jsonl", rows.replace("true", "\"a\"").replace("0", "3"), ReadOptions::default()).unwrap();
    assert_eq!((classes.schema, classes.unread), (Schema::PromptCompletion, vec!["label".to_string()]));
}

#[test]
fn tables_with_another_separator_are_refused_with_a_hint() {
    for (name, text, found) in [
        ("a.csv", "prompt;completion\na;b\n", "which has semicolons"),
        ("a.csv", "\n\"prompt\";\"completion\"\n\"a\";\"b\"\n", ":2: "),
        ("a.csv", "prompt\tcompletion\na\tb\n", "which has tabs"),
        ("a.tsv", "prompt,completion\na,b\n", "which has commas"),
    ] {
        let hint = if name == "a.csv" { "Save it with commas" } else { "Save it with tabs" };
        holds(&read(name, text).unwrap_err(), &[found, "names separated by", hint]);
    }
    assert_eq!(read("a.csv", "prompt\na;b\n").unwrap().len(), 1);
}

#[test]
fn every_form_of_file_gives_the_same_rows() {
    let rows =
        ["2 + 2 =", "3, 4", "say \"é\"\nor not"].map(|p| format!("{{\"prompt\": {p:?}, \"completion\": \"x\"}}"));
    let lines = rows.join("\n");
    let expected = read("a.jsonl", &lines).unwrap();
    let texts = |dataset: &Dataset| match dataset {
        Dataset::Examples(rows) => {
            rows.iter().map(|r| (r.index, r.prompt.clone(), r.completion.clone())).collect::<Vec<_>>()
        }
        other => panic!("expected examples, found {other:?}"),
    };
    let array = format!("[{}]", rows.join(",\n"));
    let csv = "prompt,completion\r\n2 + 2 =,x\r\n\"3, 4\",x\r\n\"say \"\"é\"\"\nor not\",\"x\"\r\n";
    let tsv = "prompt\tcompletion\n2 + 2 =\tx\n3, 4\tx\n\"say \"\"é\"\"\nor not\"\tx";
    for (name, text) in [("a.json", &array[..]), ("a.csv", csv), ("A.TSV", tsv)] {
        assert_eq!(texts(&read(name, text).unwrap()), texts(&expected), "{name}");
        assert_eq!(texts(&read(&format!("{name}.gz"), gzip(text)).unwrap()), texts(&expected), "{name}.gz");
    }
    // gzip is told by its first bytes, and may have several members.
    let two = [gzip(&lines[..10]), gzip(&lines[10..])].concat();
    assert_eq!(read("packed.jsonl", &two).unwrap(), expected);
    assert_eq!(read("t.txt.gz", gzip("text")).unwrap(), Dataset::Text("text".into()));
    for damaged in [&two[..two.len() - 5], &two[..8], &[&two[..], b"x"].concat()] {
        holds(&read("packed.jsonl.gz", damaged).unwrap_err(), &["packed.jsonl.gz", "gzip", "bytes of text came out"]);
    }
}

#[test]
fn tables_are_taken_literally() {
    let table = |text: &str| read("t.csv", text);
    let refused = |text: &str, parts: &[&str]| holds(&table(text).unwrap_err(), parts);
    let labelled = "prompt,completion,label\np,a,True\np,b,0\n";
    let Dataset::Unpaired(rows) = table(labelled).unwrap() else { panic!("not labelled") };
    assert_eq!(rows.iter().map(|row| (row.line, row.label)).collect::<Vec<_>>(), [(2, true), (3, false)]);
    // An empty cell is an absent field.
    let Dataset::Examples(rows) = table("prompt,completion\np,\nq,x\n").unwrap() else { panic!("no examples") };
    assert_eq!(rows.iter().map(|row| row.completion.as_deref()).collect::<Vec<_>>(), [None, Some("x")]);
    refused("prompt,completion\np,a\nq\n", &["t.csv:3: ", "expected 2 fields", "found 1"]);
    refused("prompt,completion\np,a\n\"q,b\nr,c\n", &["t.csv:3: ", "never closed", "say \"\"yes\"\""]);
    refused("prompt,completion\np,a \"b\"\n", &["t.csv:2: ", "a quote inside a field"]);
    refused("prompt,completion\np,\"a\"b\n", &["t.csv:2: ", "behind the closing quote"]);
    refused("prompt,prompt\np,a\n", &["t.csv:1: ", "`prompt` twice"]);
    refused("prompt,\np,a\n", &["t.csv:1: ", "an empty one"]);
    refused("prompt,completion\n", &["no rows"]);
    refused("prompt,responses\np,a\n", &["t.csv:2: ", "`responses`", "an array of strings"]);
}

#[test]
fn names_that_are_given_twice_are_refused() {
    refused(r#"{"prompt": "a", "prompt": "b"}"#, &[":1: field `prompt`: ", "each name once", "column 24"]);
    refused(r#"{"prompt": "a", "x": [{"y": 1, "y": 1}]}"#, &[":1: field `y`: ", "each name once"]);
    assert_eq!(examples(r#"{"prompt": "a", "x": [{"y": 1}, {"y": 1}]}"#).len(), 1);
}

#[test]
fn malformed_rows_may_be_skipped_and_are_counted_by_reason() {
    let good = r#"{"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0]}"#;
    let text = format!(
        "{good}\n{{\"prompt\": \"cut\n\n{good}\n{}\n{}\n3\n",
        good.replace("[1, 0]", "[1, \"0\"]"),
        good.replace("[1, 0]", "[1, null]")
    );
    let mut bytes = text.into_bytes();
    bytes.extend(b"{\"prompt\": \"caf\xe9\"}\n");
    let records = read_as("d.jsonl", &bytes, SKIP).unwrap();
    let Dataset::RankedLists(rows) = &records.dataset else { panic!("no lists") };
    // What is left keeps its place.
    assert_eq!(rows.iter().map(|row| (row.index, row.line)).collect::<Vec<_>>(), [(0, 1), (2, 4)]);
    let reasons: Vec<_> = records.bad.iter().map(|bad| (bad.line, bad.reason())).collect();
    let expected = [
        (2, "not valid JSON"),
        (5, "malformed `rewards`"),
        (6, "malformed `rewards`"),
        (7, "not a JSON object"),
        (8, "not UTF-8 text"),
    ];
    assert_eq!(reasons, expected.map(|(line, reason)| (line, reason.to_string())));
    assert_eq!(records.rows(), 7);
    let first = read_as("d.jsonl", &bytes, ReadOptions::default()).unwrap_err();
    holds(&first, &["d.jsonl:2: ", "valid JSON"]);
    // Where nothing is left the first fault is the message.
    holds(&read_as("d.jsonl", "{\"prompt\": 1}\n3\n", SKIP).unwrap_err(), &["d.jsonl:1: ", "`prompt`"]);
}

#[test]
fn several_schemas_in_one_file_are_refused_until_one_is_chosen() {
    let both = r#"{"prompt": "p", "completion": "a", "chosen": "a", "rejected": "b"}"#;
    refused(
        both,
        &["preference (`chosen`, `rejected`) from line 1 on", "prompt_completion (`completion`) from line 1"],
    );
    let as_schema = |text: &str, schema: Schema, on_bad_row| {
        read_as("d.jsonl", text, ReadOptions { schema: Some(schema), on_bad_row, ..ReadOptions::default() })
    };
    let chosen = as_schema(both, Schema::Preference, OnBadRow::Error).unwrap();
    assert!(matches!(chosen.dataset, Dataset::Pairs(rows) if rows[0].rejected == "b"));
    assert_eq!(chosen.unread, ["completion"]);
    let completion = as_schema(both, Schema::PromptCompletion, OnBadRow::Error).unwrap();
    assert_eq!(completion.unread, ["chosen", "rejected"]);
    // Rows of one kind each, but not of one kind.
    let mixed =
        "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n{\"question\": \"q\", \"answer\": \"#### 1\"}";
    refused(mixed, &["gsm8k (`question`) from line 2 on", "preference"]);
    holds(&as_schema(mixed, Schema::Gsm8k, OnBadRow::Error).unwrap_err(), &["d.jsonl:1: ", "`answer`"]);
    let records = as_schema(mixed, Schema::Gsm8k, OnBadRow::Skip).unwrap();
    assert_eq!((records.dataset.len(), records.rows()), (1, 2));
    refused(r#"{"prompt": "p", "question": "q", "answer": "a"}"#, &["gsm8k", "prompt_only"]);
    // JSON rows read as text on request, and text as rows.
    assert!(matches!(as_schema(both, Schema::Text, OnBadRow::Error).unwrap().dataset, Dataset::Text(t) if t == both));
    let why = read_as("d.jsonl", "{\"prompt\": \"p\"}\n{\"prompt\": \"q\", \"completion\": \"c\"}", SKIP).unwrap();
    assert_eq!((why.schema, &why.why[..]), (Schema::PromptCompletion, "1 of 2 rows have `completion`"));
}

#[test]
fn the_published_data_sets_are_read() {
    let Some(folder) = std::env::var_os("LARPO_DATA_DIR").map(std::path::PathBuf::from) else { return };
    let rows = |name: &str| {
        let records = read_dataset(folder.join(name), &ReadOptions::default()).unwrap();
        (records.schema, records.dataset.len(), records.rows(), records.unread.len())
    };
    assert_eq!(rows("gsm8k/train.jsonl"), (Schema::Gsm8k, 7473, 7473, 0));
    assert_eq!(rows("gsm8k/test.jsonl"), (Schema::Gsm8k, 1319, 1319, 0));
    assert_eq!(rows("hh-rlhf/harmless-base-test.jsonl.gz"), (Schema::Preference, 2312, 2312, 0));
}

#[test]
fn a_field_that_lacks_or_has_an_s_is_told_its_name() {
    refused(r#"{"prompts": "a", "completions": "b"}"#, &[":1: ", "Rename `prompts` to `prompt`"]);
    refused(r#"{"Prompt": "a", " Completions": "b"}"#, &[":1: ", "Rename `Prompt` to `prompt`"]);
    refused("{\"prompt\": \"a\"}\n{\"prompts\": \"a\"}", &[":2: ", "`prompt`", "Rename `prompts` to `prompt`"]);
    let folder = Folder::new();
    let path = folder.file("rows.jsonl", r#"{"prompt": "a", "responses": ["b"]}"#);
    let error = read_keyed_rows(path, &Keys::default(), OnBadRow::Error).unwrap_err().to_string();
    holds(&error, &[":1: ", "`response`", "Rename `responses` to `response`"]);
}

#[test]
fn a_row_of_an_array_in_one_line_is_told_by_its_number() {
    let rows: Vec<&str> = (0..100).map(|i| if i == 69 { r#"{"prompt": 3}"# } else { r#"{"prompt": "a"}"# }).collect();
    let array = format!("[{}]", rows.join(", "));
    holds(&read("d.json", &array).unwrap_err(), &["d.json:1: element 70 of the array: field `prompt`"]);
    refused("[{\"prompt\": \"a\"}, 5]", &["data.jsonl:1: element 2 of the array: expected a JSON object, found 5"]);
}

#[test]
fn rows_that_are_all_malformed_are_counted() {
    let error = read_as("d.jsonl", "{\"prompt\": 1}\n{\"prompt\": 2}\n", SKIP).unwrap_err();
    holds(&error, &["every row is malformed, 2 of 2", "The first: ", "d.jsonl:1: field `prompt`"]);
}

#[test]
fn a_verdict_in_words_is_no_completion_to_learn() {
    refused(r#"{"prompt": "a", "completion": "b", "label": "yes"}"#, &[":1: ", "field `label`", "true or false"]);
    // The name of a kind is none.
    let kind = read("d.jsonl", r#"{"prompt": "a", "completion": "b", "label": "sums"}"#).unwrap();
    assert!(matches!(kind, Dataset::Examples(_)));
}

#[test]
fn the_first_malformed_row_is_the_first_of_the_file() {
    // A wrong field is found after rows that are no JSON.
    let text = "{\"prompt\": \"a\"}\n{\"prompt\": 1}\n{\"prompt\"\n";
    refused(text, &["data.jsonl:2: ", "`prompt`"]);
    let skipped = read_as("data.jsonl", text, SKIP).unwrap();
    assert_eq!(skipped.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn conversations_of_published_sets_are_read() {
    let options = ReadOptions { renderer: larpo_data::records::Renderer::Plain, ..ReadOptions::default() };
    let folder = Folder::new();
    let read = |text: &str| {
        folder.file("data.jsonl", text);
        larpo_data::records::read_dataset(folder.path().join("data.jsonl"), &options)
    };
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let answered = |question: &str, answer: &str| vec![turn("user", question), turn("assistant", answer)];
    // As in ultrafeedback_binarized: a text that the conversations repeat, and the chosen one once more as `messages`.
    let row = |prompt: &str| {
        let (chosen, rejected) = (answered("q", "a"), answered("q", "b"));
        serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected, "messages": chosen}).to_string()
    };
    let Dataset::Pairs(pairs) = read(&row("q ")).unwrap().dataset else { panic!("pairs") };
    assert_eq!(pairs[0].conversation.as_deref(), Some(r#"[{"role":"user","content":"q"}]"#));
    assert!(pairs[0].chosen.contains('a') && pairs[0].rejected.contains('b') && pairs[0].prompt.contains('q'));
    holds(&read(&row("r")).unwrap_err().to_string(), &["data.jsonl:1", "`prompt`", "the last turn"]);
    // As in the prompts of Online-RLHF.
    let prompts =
        serde_json::json!({"context": "q", "context_messages": [turn("user", "q")], "source": "x"}).to_string();
    let records = read(&prompts).unwrap();
    let Dataset::Examples(rows) = records.dataset else { panic!("examples") };
    assert_eq!((rows[0].completion.clone(), rows[0].conversation.is_some()), (None, true));
    assert_eq!(records.unread, ["context", "source"]);
}
