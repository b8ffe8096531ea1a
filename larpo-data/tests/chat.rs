//! Chat templates against what transformers makes of them, and templates that mean harm.

mod common;

use common::{Folder, golden_tokenizers, holds, ids};
use larpo_data::chat::{ChatOptions, ChatTemplate};
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The text of a case, and the error or text that is expected.
fn check(case: &Value, rendered: Result<String, String>) {
    let what = format!("{} of {}", case["template"], case["messages"]);
    match (rendered, case["text"].as_str()) {
        (Ok(text), Some(expected)) => assert_eq!(text, expected, "{what}"),
        (Err(error), None) => {
            // The words of raise_exception reach the user; those of the two libraries' own errors differ.
            let expected = case["error"].as_str().unwrap();
            let raised =
                expected.strip_prefix("TemplateError: ").or((!expected.contains("Error: ")).then_some(expected));
            assert!(raised.is_none_or(|raised| error.contains(raised)), "{what}: {error}");
        }
        (rendered, expected) => panic!("{what}: {rendered:?} instead of {expected:?}"),
    }
}

#[test]
fn golden_templates_are_rendered_as_transformers_renders_them() {
    let golden = read(Path::new("tests/golden/chat/cases.json"));
    let tokens = golden["special_tokens"].as_object().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 50, "only {} cases", cases.len());
    for case in cases {
        let rendered = ChatTemplate::new("default", case["template"].as_str().unwrap(), tokens.clone(), Path::new("t"))
            .and_then(|template| {
                let options = ChatOptions {
                    add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                    tools: case["tools"].as_array().map(Vec::as_slice),
                };
                template.render(case["messages"].as_array().unwrap(), options)
            });
        check(case, rendered.map_err(|error| error.to_string()));
    }
}

#[test]
fn golden_tokenizers_render_and_encode_conversations() {
    let mut cases = 0;
    for folder in golden_tokenizers() {
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let template = tokenizer.chat().get(None, false).unwrap().expect("a template");
        for case in read(&folder.join("golden.json"))["chat"].as_array().unwrap() {
            let add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
            let options = ChatOptions { add_generation_prompt, tools: None };
            let rendered = template.render(case["messages"].as_array().unwrap(), options);
            if let Ok(text) = &rendered {
                // The template writes BOS itself.
                assert_eq!(tokenizer.encode(text).unwrap(), ids(&case["ids"]), "{text:?}");
            }
            check(case, rendered.map_err(|error| error.to_string()));
            cases += 1;
        }
    }
    assert!(cases >= 20, "only {cases} cases were found");
}

#[test]
fn the_places_of_templates_and_their_order() {
    let folder = Folder::new();
    Tokenizer::characters(&["abc"]).unwrap().save(folder.path()).unwrap();
    let text = |name: Option<&str>, tools: bool| {
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        let template = tokenizer.chat().get(name, tools).unwrap();
        template.map(|template| template.render(&[], ChatOptions::default()).unwrap())
    };
    assert_eq!(text(None, false), None);
    folder.file("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(text(None, false).as_deref(), Some("json"));
    let config = json!({ "eos_token": { "content": "<|endoftext|>" }, "chat_template": [
        { "name": "default", "template": "config {{ eos_token }}" }, { "name": "tool_use", "template": "tools" },
        { "name": "broken", "template": "{% if %}" },
    ] });
    folder.file("tokenizer_config.json", config.to_string());
    assert_eq!(text(None, false).as_deref(), Some("config <|endoftext|>"));
    assert_eq!(text(None, true).as_deref(), Some("tools"));
    assert_eq!(text(Some("default"), true).as_deref(), Some("config <|endoftext|>"));
    assert_eq!(text(Some("absent"), true), None);
    folder.file("chat_template.jinja", "file");
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    folder.file("additional_chat_templates/rag.jinja", "more");
    assert_eq!(text(None, true).as_deref(), Some("file"));
    assert_eq!(text(Some("rag"), false).as_deref(), Some("more"));
    // All of it goes where the tokenizer goes.
    let again = Folder::new();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.chat().names(), ["default", "rag"]);
    tokenizer.save(again.path()).unwrap();
    for name in ["chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja"] {
        let bytes = |folder: &Folder| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(bytes(&folder), bytes(&again), "{name}");
    }
    for (config, expected) in [
        (json!({ "chat_template": 5 }), "neither a template nor a list"),
        (json!({ "chat_template": [{ "name": "x" }] }), "neither a template nor a list"),
    ] {
        std::fs::remove_file(folder.path().join("chat_template.jinja")).ok();
        folder.file("tokenizer_config.json", config.to_string());
        let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
        holds(&error, &["tokenizer_config.json", "`chat_template`", expected]);
    }
}

/// What a template without special tokens makes of one message.
fn render(source: &str) -> Result<String, String> {
    let template = ChatTemplate::new("default", source, Map::new(), Path::new("t.jinja"));
    let messages = [json!({ "role": "user", "content": "a" })];
    template.and_then(|t| t.render(&messages, ChatOptions::default())).map_err(|error| error.to_string())
}

#[test]
fn times_are_formatted_as_in_python() {
    let today = chrono::Local::now().format("%d %b %Y").to_string();
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), today);
    holds(&render("{{ strftime_now('%!') }}").unwrap_err(), &["line 1", "no format of a time"]);
}

#[test]
fn templates_that_mean_harm_come_to_a_named_end() {
    let start = Instant::now();
    let nested = |depth: usize| format!("{}x{}", "{% if true %}".repeat(depth), "{% endif %}".repeat(depth));
    let braces = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let lists = format!("{{{{ {}{} | tojson }}}}", "[".repeat(10_000), "]".repeat(10_000));
    let cases = [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}".into(),
            "come to an end",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(), "refuses the conversation"),
        (nested(100_000), "does not compile"),
        (braces, "does not compile"),
        (lists, "does not compile"),
        ("{{ 'a' * 99999999999 }}".into(), "too large"),
        ("{{ range(99999999999) }}".into(), "refuses the conversation"),
        ("{% include '/etc/passwd' %}".into(), "refuses the conversation"),
        ("\n\n{{ raise_exception('no such role') }}".into(), "in line 3: no such role"),
        ("{{ messages[0].content.__class__.__mro__ }}".into(), "refuses the conversation"),
    ];
    for (source, expected) in cases {
        let error = render(&source).expect_err(expected);
        assert!(error.contains("t.jinja") && error.contains(expected), "{}: {error}", &source[..source.len().min(60)]);
    }
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(render(&nested(30)).unwrap(), "x");
}
