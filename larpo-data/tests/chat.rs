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
        (nested(100_000), "2400001 bytes; expected 262144 at most"),
        (nested(10_000), "does not compile"),
        (braces, "does not compile"),
        (lists, "does not compile"),
        ("{{ 'a' * 99999999999 }}".into(), "MiB of texts and lists"),
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

/// The engine works out what is constant while it compiles, however long it takes.
#[test]
fn templates_that_compile_without_end_are_given_up() {
    let begun = Instant::now();
    let error = render("{{ 2 in [1] * 4000000000000000000 }}").unwrap_err();
    assert!(error.contains("t.jinja: the chat template does not compile: not within 10 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn what_templates_build_is_bounded() {
    let doubled = |first: &str, step: &str, last: &str| {
        format!(
            "{{% set ns = namespace(s={first}) %}}{{% for i in range(60) %}}{{% set ns.s = {step} %}}{{% endfor %}}{last}"
        )
    };
    let after = |then: &str| format!("{{% set s = 'a' * 16777216 %}}{{% set ns = namespace(l=[]) %}}{then}");
    let text = r#""aaaaaaaaaaaaaaaa""#;
    let templates = [
        doubled(text, "ns.s + ns.s", "{{ ns.s }}"),
        doubled(text, "ns.s ~ ns.s", "{{ ns.s }}"),
        doubled(text, "ns.s * 16", "{{ ns.s }}"),
        doubled(text, r#"ns.s.replace("a", "aaaaaaaaaaaaaaaa")"#, "{{ ns.s }}"),
        doubled(text, r#"ns.s|replace("a", "aaaaaaaaaaaaaaaa")"#, "{{ ns.s }}"),
        doubled(text, "[ns.s, ns.s]|join", "{{ ns.s }}"),
        doubled(text, "ns.s.join(ns.s)", "{{ ns.s }}"),
        doubled("[1, 2, 3, 4]", "ns.s + ns.s", "{{ ns.s|list|length }}"),
        doubled("[1, 2, 3, 4]", "ns.s * 16", "{{ ns.s|length }}"),
        doubled("[1, 2]", "[ns.s, ns.s]", "{{ ns.s }}"),
        doubled("[1, 2]", "[ns.s, ns.s]", "{{ ns.s|tojson }}"),
        doubled("[1, 2]", "[ns.s, ns.s]", "{{ ns.s == [1] }}"),
        doubled("[1, 2]", "dict(a=ns.s, b=ns.s)", "{{ ns.s }}"),
        doubled("[1, 2]", "namespace(a=ns.s, b=ns.s)", "{{ ns.s }}"),
        doubled("[1, 2]", r#"{"a": ns.s, "b": ns.s}"#, "{{ ns.s }}"),
        r#"{{ range(9000)|join("y" * 90000) }}"#.into(),
        r#"{{ ("y" * 90000)|join("y" * 90000) }}"#.into(),
        r#"{% for i in range(9000) %}{% for j in range(90000) %}{{ "a" * 9000 }}{% endfor %}{% endfor %}"#.into(),
        format!(
            "{{% for i in range(9000) %}}{{% for j in range(90000) %}}{}{{% endfor %}}{{% endfor %}}",
            "a".repeat(90_000)
        ),
        r#"{{ "%2000000000d"|format(1) }}"#.into(),
        r#"{{ "{:2000000000d}".format(1) }}"#.into(),
        r#"{{ "a\nb"|indent(1500000000) }}"#.into(),
        r#"{{ "a\nb"|indent(width=1500000000) }}"#.into(),
        "{{ [1]|batch(2000000000, 0)|list }}".into(),
        "{{ [1]|slice(2000000000)|list }}".into(),
        "{{ [1]|tojson(indent=2000000000) }}".into(),
        // What a text doubled up to 16 MiB can do afterwards.
        after(r#"{{ [s]|map("replace", "a", "a" * 999)|list }}"#),
        after("{% set ns.l = [] %}{% for i in range(9999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}"),
        after("{% for i in range(99999) %}{% if 'b' in s %}x{% endif %}{% endfor %}"),
        after("{% for i in range(99999) %}{% if s == s ~ 'b' %}x{% endif %}{% endfor %}"),
        after("{% for i in range(99999) %}{% if [s] < [s] < [s] %}x{% endif %}{% endfor %}"),
        after("{% for i in range(99999) %}{{ s[9999999] }}{% endfor %}"),
        after("{% for i in range(99999) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}"),
        after("{% for i in range(99999) %}{% if s is lower %}x{% endif %}{{ s|length }}{% endfor %}"),
        after("{% for i in range(99999) %}{% if s.startswith('b') %}{% endif %}{{ s.find('b') }}{% endfor %}"),
        // Values as deep as the template runs long.
        "{% set ns = namespace(s=[1]) %}{% for i in range(99999) %}{% set t = namespace(x=0) %}{% set t.x = ns.s %}{% set ns.s = t %}{% endfor %}".into(),
        "{% set ns = namespace(s=[1]) %}{% for i in range(99999) %}{% set ns.s = ns.s|batch(1)|list %}{% endfor %}".into(),
        "{% set ns = namespace(s=[1]) %}{% for i in range(99999) %}{% set ns.s = ns.s|zip(ns.s)|list %}{% endfor %}".into(),
        "{% set ns = namespace(s={}) %}{% set ns.s = ns %}{{ ns == ns }}{{ ns < ns < ns }}{{ ns }}".into(),
        "{% set ns = namespace(s={}) %}{% set ns.s = ns %}{{ ns < ns < ns }}".into(),
        "{% set ns = namespace(s={}) %}{% set ns.s = [ns] %}{{ ns|tojson }}".into(),
        "{% macro m(a) %}{% endmacro %}{% set l = [1] * 9999999 %}{{ m(*l, *l, *l, *l, *l, *l) }}".into(),
        // Lists that the engine keeps as a factor, and pieces of a text.
        "{% set q = ([1]*4000000000000000000)|last %}".into(),
        "{{ ([1]*4000000000000000000)|tojson }}".into(),
        "{{ ([1]*3000000000)|sum }}".into(),
        "{% set x = ([1]*3000000000)[-1] %}".into(),
        "{{ ([[1]]*3000000000)|batch(2)|first }}".into(),
        "{% set t = ('a'*120000000)|batch(2)|list %}".into(),
        "{% set t = (' '*130000000).split(' ') %}".into(),
        "{% set t = ('\n'*120000000).splitlines() %}".into(),
        "{% set t = ('a '*60000000)|split %}".into(),
        "{% set f='%Y%m%d'*30000 %}{% for i in range(99999) %}{% set x=strftime_now(f) %}{% endfor %}".into(),
        // What nests without brackets.
        format!("{{{{ {}1 }}}}{{% if true %}}{}", "-".repeat(25_000), "a".repeat(300_000)),
        format!("{{{{ [1]{} }}}}", "[0]".repeat(80_000)),
        format!("{{{{ nothing{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ nothing{} }}}}", "()".repeat(100_000)),
        format!("{{% if a %}}{}{{% endif %}}{{{{ nothing.a }}}}", "{% elif a %}".repeat(20_000)),
        format!("{{{{ {}nothing.a }}}}", "not ".repeat(60_000)),
        format!("{{{{ nothing.a{} }}}}", "|upper".repeat(40_000)),
    ];
    for template in templates {
        let begun = Instant::now();
        let error = render(&template).unwrap_err();
        assert!(error.contains("the chat template"), "{template}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{template}: {:?}", begun.elapsed());
    }
}

/// What the counted operations give is what the engine's own give.
#[test]
fn counted_operations_are_the_engines() {
    for (template, expected) in [
        (r#"{{ "a" + "b" ~ 1 ~ 2.0 ~ none ~ [1, "x"] }}"#, r#"ab12.0None[1, "x"]"#),
        ("{{ 1 + 2 }} {{ 1.5 + 1 }} {{ true + 1 }} {{ 2 * 3 }} {{ 2 * 1.5 }} {{ 7 * true }}", "3 2.5 2 6 3.0 7"),
        (
            r#"{{ "ab" * 3 }} {{ 2 * "ab" }} {{ [1, 2] * 2 }} {{ [1] + [2, [3]] }}"#,
            "ababab abab [1, 2, 1, 2] [1, 2, [3]]",
        ),
        (
            r#"{{ "a,b".split(",")|join("-") }} {{ "-".join(["a", "b"]) }} {{ "x"|upper }} {{ " x "|trim }}"#,
            "a-b a-b X x",
        ),
        (
            r#"{{ "a-b"|replace("-", "+") }} {{ "%s is %d"|format("x", 3) }} {{ [3, 1]|sort }} {{ [[1, 2], [3]]|map("length")|list }}"#,
            "a+b x is 3 [1, 3] [2, 1]",
        ),
        (r#"{% macro m(x, y=2) %}{{ x + y }}{% endmacro %}{{ m(1) }}{{ m(1, y=3) }}"#, "34"),
        (r#"{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"#, "3"),
        (
            r#"{% set d = {"b": 1, "a": [2]} %}{{ d }} {{ d.a }} {{ {}|tojson }} {{ {"x": {"y": none}}|tojson }}"#,
            r#"{'b': 1, 'a': [2]} [2] {} {"x": {"y": null}}"#,
        ),
        (r#"{% block b %}{{ "a" + "b" }}{% endblock %}"#, "ab"),
        (
            r#"{{ "abcdef"[1:-1:2] }} {{ [1, 2, 3][::-1] }} {{ [1, 2, 3][:2]|length }} {{ "abc"[1] }} {{ {"a": 1}["a"] }}"#,
            "bd [3, 2, 1] 2 b 1",
        ),
        (
            "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 1 in [1] }} {{ 'a' not in 'bc' }} {{ 1 == 1.0 }} {{ 'a' != 'b' }}",
            "True False True True True True",
        ),
        (
            "{{ 1 is odd }} {{ x is defined }} {{ 'a' is in ['a'] }} {{ [1, 2, 3]|select('odd')|list }}",
            "True False True [1, 3]",
        ),
        (
            r#"{{ ["a-b", "c"]|map("replace", "-", "+")|map("upper")|list }} {{ [{"r": 1}]|map(attribute="r")|list }}"#,
            "['A+B', 'C'] [1]",
        ),
        (
            "{% for x in [1, [2, [3]]] recursive %}{% if x is number %}{{ x }}{% elif x %}({{ loop(x) }}){% else %}e{% endif %}{% else %}none{% endfor %}",
            "1(2(3))",
        ),
        (
            "{% for x in [] %}a{% else %}b{% endfor %}{% for x in 'abc' %}{% if x == 'b' %}{% continue %}{% endif %}{{ x }}{{ loop.index }}{% endfor %}",
            "ba1c3",
        ),
        (
            r#"{% macro m(a, b="x") %}{{ a }}{{ b }}{{ caller() if caller else "" }}{% endmacro %}{{ m(*[1, 2]) }}{% call m(3) %}c{% endcall %}"#,
            "123xc",
        ),
        ("{{ 'a' if 1 else 'b' }} {{ (none or 'c') and 'd' }} {{ loop is defined }}", "a d False"),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for k in {'b': 1} %}{{ k }}{{ loop.cycle('x', 'y') }}{% endfor %}",
            "a1bx",
        ),
    ] {
        assert_eq!(render(template).unwrap(), expected, "{template}");
    }
    // Half of it is nested without brackets.
    assert_eq!(render(&format!("{{{{ {}1 }}}}", "-".repeat(200_000))).unwrap(), "1");
    let error = render(r#"{{ "a" + 1 }}"#).unwrap_err();
    assert!(error.contains("line 1") && error.contains("unsupported types string and number"), "{error}");
    assert!(render("{{ nothing['a'] }}").unwrap_err().contains("undefined value"));
    assert!(render("{{ 1 is nothing }}").unwrap_err().contains("test nothing is unknown"));
    assert!(render(r#"{{ "a"|nothing }}"#).unwrap_err().contains("filter nothing is unknown"));
    assert!(render(r#"{% include "chat_template" %}"#).unwrap_err().contains("another template"));
}
