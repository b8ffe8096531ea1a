use super::*;
use larpo_data::records::{ReadOptions, parse_dataset};
use std::ffi::OsStr;

fn dataset(rows: &str) -> Dataset {
    parse_dataset("d.jsonl", rows.as_bytes().to_vec(), &ReadOptions::default()).expect("rows").dataset
}

#[test]
fn ties_order_and_direction_are_counted() {
    let lists = dataset(
        r#"{"prompt": "a", "responses": ["1", "2", "3"], "rewards": [3, 2, 2]}
{"prompt": "b", "responses": ["1", "2"], "rewards": [0, -0.0]}
{"prompt": "c", "responses": ["1", "2"], "ranks": [2, 1]}
{"prompt": "d", "responses": ["1", "2"], "rewards": [2, 1], "ranks": [1, 2]}
{"prompt": "e", "responses": ["1", "2"]}
{"prompt": "f", "responses": ["1"], "rewards": [1]}"#,
    );
    let ranking = Ranking::of(&lists, &items(&lists)).expect("ranked").json();
    let expected = json!({
        "direction": "`rewards`, higher is better, in 4 rows; `ranks`, 1 is best, in 1 row; `ranks` too, which agree, in 1 row",
        "lists": 4, "unscored": 1,
            "too_short": 1, "all_equal": 1, "some_equal": 1, "best_first": 2, "worst_first": 1,
        "responses_repeat_prompt": 0,
    });
    assert_eq!(ranking, expected);
    let pairs = dataset(r#"{"prompt": "Say", "chosen": "Say yes", "rejected": "Say no"}"#);
    let ranking = Ranking::of(&pairs, &items(&pairs)).expect("ranked");
    assert!(ranking.to_string().contains("both begin with `prompt`"), "{ranking}");
    let prompts = dataset(r#"{"prompt": "Say"}"#);
    assert_eq!(Ranking::of(&prompts, &items(&prompts)), None);
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    assert_eq!(Style::of(true, None), Style::Coloured);
    assert_eq!(Style::of(true, Some(OsStr::new(""))), Style::Coloured);
    assert_eq!(Style::of(true, Some(OsStr::new("1"))), Style::Plain);
    assert_eq!(Style::of(false, None), Style::Plain);
}

#[test]
fn tokens_are_set_apart_and_marked_and_never_steer_the_terminal() {
    let tokenizer = Tokenizer::characters(&["ab\n\x1b[".to_string()]).expect("a tokenizer");
    let ids = tokenizer.encode("a\n\x1b[").expect("known characters");
    assert_eq!(Style::Plain.tokens(&tokenizer, &ids, false), r"|a|\n|\u{1b}|[|");
    let with_end: Vec<u32> = ids.iter().copied().chain(tokenizer.eos_id()).collect();
    assert_eq!(Style::Plain.tokens(&tokenizer, &with_end, true), r"[a][\n][\u{1b}][[][<|endoftext|>]");
    assert_eq!(Style::Coloured.tokens(&tokenizer, &ids[..2], true), "\x1b[30;42ma\x1b[0m\x1b[30;46m\\n\x1b[0m");
    let long = Style::Plain.tokens(&tokenizer, &vec![ids[0]; 500], true);
    assert!(long.contains(" … 340 tokens more … ") && long.matches("[a]").count() == render::SHOWN, "{long}");
    assert_eq!(render::text("a\tb"), r"a\tb");
    assert!(render::text(&"x".repeat(700)).ends_with("x … 100 characters more"));
    // A part of a character is shown as its bytes, a whole one as itself, never in the letters that GPT-2 has for bytes.
    let bytes = Tokenizer::train_bpe(&["aa"], 258).expect("a tokenizer");
    let parts = bytes.encode(" é\n").expect("bytes");
    assert_eq!(Style::Plain.tokens(&bytes, &parts, true), r"[ ][\xc3][\xa9][\n]");
    let end: Vec<u32> = bytes.eos_id().into_iter().collect();
    assert_eq!(Style::Plain.tokens(&bytes, &end, true), "[<|endoftext|>]");
}

#[test]
fn texts_whose_tokens_depend_on_their_neighbours_are_found() {
    let texts: Vec<String> = vec!["the cat the cat the cat the cat".into()];
    let tokenizer = Tokenizer::train_bpe(&texts, 300).expect("a tokenizer");
    let item = |prompt, response| Item {
        line: 1,
        prompt,
        rendered: Rendered::Nothing,
        responses: vec![response],
        scores: None,
    };
    let differs = |prompt, response| tokens_of(&item(prompt, response), &tokenizer).expect("bytes").differs[0];
    // The prompt takes the space that begins a word.
    assert!(differs("the ", "cat"));
    assert!(!differs("the", " cat"));
    assert!(differs("the c", "at"));
}
