//! Rule rewards: hand-made cases, published verdicts, and the grammar of descriptions.

mod common;
use common::{Folder, fixtures, holds};
use larpo_data::records::{Keys, OnBadRow, read_keyed_rows};
use larpo_data::rules::{RuleSet, RuleSpec, Scored, check_statements, same_answer};

fn item<'a>(response: &'a str, reference: Option<&'a str>) -> Scored<'a> {
    Scored { prompt: "p", response, n_tokens: response.split_whitespace().count(), reference }
}

#[track_caller]
fn score(rules: &str, response: &str) -> f64 {
    RuleSet::parse(rules, None, None).unwrap().score(&item(response, Some("#### 18"))).unwrap()
}

#[track_caller]
fn refused(rules: &str, parts: &[&str]) {
    holds(&RuleSet::parse(rules, None, None).unwrap_err().to_string(), parts);
}

#[test]
fn published_verdicts_on_model_solutions_are_reproduced() {
    let root = fixtures("LARPO_DATA_DIR");
    let keys = Keys { reference: Some("reference".into()), label: Some("correct".into()), ..Keys::default() };
    let (rows, _) = read_keyed_rows(root.join("gsm8k/model_solutions.jsonl"), &keys, OnBadRow::Error).unwrap();
    let rules = RuleSet::parse("answer", None, Some(r"A:\s*(.*)")).unwrap();
    assert!(rows.len() >= 10);
    let mut right = 0;
    for row in &rows {
        let score = rules.score(&item(&row.responses[0], row.reference.as_deref())).unwrap();
        assert_eq!(score, row.labels[0], "line {}", row.line);
        right += usize::from(score == 1.0);
    }
    assert!(right > 0 && right < rows.len());
}

#[test]
fn answers_that_are_numbers_are_compared_as_numbers() {
    let same = [
        ("1,000", "1000"),
        ("1000.0", "1000"),
        ("$1000", "1,000.00"),
        ("1000.", "1000"),
        ("$1,000.", "1000"),
        ("50%", "50"),
        (" 18 ", "18"),
        ("-5", "-5.0"),
        ("-$5", "$-5"),
        ("+5", "5"),
        ("−5", "-5"),
        ("-0", "0"),
        ("0.50", ".5"),
        ("007", "7"),
        ("£3", "3"),
        ("5 %.", "5"),
        ("12,345,678", "12345678"),
        ("0.1", "0.10"),
        ("100000000000000000000000000000001", "100,000,000,000,000,000,000,000,000,000,001"),
        ("yes", " yes "),
        ("7/2", "7/2"),
        ("1,00", "1,00"),
    ];
    for (a, b) in same {
        assert!(same_answer(a, b) && same_answer(b, a), "{a} and {b}");
    }
    let different = [
        ("18", "19"),
        ("-18", "18"),
        ("1.0000000000000000000001", "1"),
        ("9007199254740993", "9007199254740992"),
        ("1,00", "100"),
        ("1,0000", "10000"),
        ("18 dollars", "18"),
        ("", ""),
        ("", "0"),
        ("yes", "Yes"),
        (".", "0"),
        ("--5", "5"),
        ("1.2.3", "1.23"),
        ("1e3", "1000"),
        ("$", "0"),
    ];
    for (a, b) in different {
        assert!(!same_answer(a, b), "{a} and {b}");
    }
}

#[test]
fn equal_answers_vote_alike() {
    let rules = RuleSet::parse("length,answer", None, None).expect("rules");
    let vote = |text: &str| rules.answer(text);
    assert_eq!(vote("#### 3\n#### $1,000."), vote("so #### 1000.0"));
    assert_eq!((vote("no answer"), vote("#### "), vote("#### 0")), (None, None, Some("0".into())));
    assert_eq!(rules.reference_answer("18.0"), vote("#### 18"), "a bare reference");
    let none = RuleSet::parse("length", None, None).expect("rules");
    assert!(rules.has_answers() && !none.has_answers() && none.answer("#### 1").is_none());
}

#[test]
fn answer_takes_the_last_match_and_a_bare_reference() {
    assert_eq!(score("answer", "#### 17\nno, wait\n#### $18.00"), 1.0);
    assert_eq!(score("answer", "#### 18\n#### 17"), 0.0);
    assert_eq!(score("answer", "The answer is 18"), 0.0);
    assert_eq!(score("answer", "####"), 0.0);
    // The answer is the rest of its own line, up to another mark.
    assert_eq!(score("answer", "#### 17 #### 18"), 1.0);
    assert_eq!(score("answer", "####\n18"), 0.0);
    assert_eq!(score("answer", "#### 18 dollars"), 0.0);
    assert_eq!(score("answer", ""), 0.0);
    assert_eq!(
        score(r"answer:pattern=is (\S+)", "it is 17, it is 18."),
        0.0,
        "the reference has to be read by the pattern"
    );
    let rules = RuleSet::parse(r"answer:pattern=is\s+(\S+)", None, None).unwrap();
    assert_eq!(rules.score(&item("it is 17, it is 18.", Some("18"))).unwrap(), 1.0);
    assert_eq!(rules.score(&item("it is 18", Some("so it is 18."))).unwrap(), 1.0);
    assert!(rules.needs_reference());
    holds(&rules.score(&item("it is 18", None)).unwrap_err().to_string(), &["`answer`", "no reference", "`reference`"]);
    holds(&rules.score(&item("it is 18", Some(" "))).unwrap_err().to_string(), &["`answer`", "blank"]);
    // The pattern that applies to all rules gives way to a rule's own.
    let rules = RuleSet::parse(r"answer,answer:pattern=B\:(.*)", None, Some("A:(.*)")).unwrap();
    assert_eq!(rules.score_each(&item("A: 1 \nB: 2", Some("2"))).unwrap(), [0.0, 1.0]);
}

#[test]
fn regex_length_and_format() {
    assert_eq!(score("regex:pattern=^[a-z]+$", "abc"), 1.0);
    assert_eq!(score("regex:pattern=^[a-z]+$", "abc1"), 0.0);
    assert_eq!(score(r"regex:pattern=a{1\,2}\:\s\\", r"xaa: \"), 1.0);
    assert_eq!(score("length", "one two three"), -3.0);
    assert_eq!(score("length:target=5", "one two three"), -2.0);
    assert_eq!(score("length:target=2", "one two three"), -1.0);
    assert_eq!(score("format", "working\n#### 12\n\n"), 1.0);
    assert_eq!(score("format", "#### 12\nand more"), 0.0);
    assert_eq!(score("format", "so #### 12"), 0.0);
    assert_eq!(score("format", "working\n#### "), 0.0);
    assert_eq!(score("format", ""), 0.0);
    assert_eq!(score("format:pattern=a|b", "b"), 1.0);
    assert_eq!(score("format:pattern=a|b", "ab"), 0.0);
    assert_eq!(score("format:pattern=[a-z ]+", "ab\n"), 0.0);
    assert!(!RuleSet::parse("regex:pattern=x,length,format", None, None).unwrap().needs_reference());
}

#[test]
fn words_counts_the_share_of_known_words() {
    let folder = Folder::new();
    let path = folder.file("text.txt", "The cat's mat, don’t SIT: Zoë 12");
    let rules = format!("words:file={}", path.display().to_string().replace(':', r"\:").replace(',', r"\,"));
    assert_eq!(score(&rules, "the CAT'S mat"), 1.0);
    assert_eq!(score(&rules, "Don't sit, 'cat' zoë 12 13"), 4.0 / 6.0);
    assert_eq!(score(&rules, " ...'' "), 0.0);
    refused("words:file=/no/such/file.txt", &["/no/such/file.txt", "cannot read"]);
    let empty = folder.file("empty.txt", "...");
    refused(&format!("words:file={}", empty.display()), &["`words`", "holds no words"]);
}

/// Total and correct statements of a text.
fn statements(text: &str) -> (usize, usize) {
    let found = check_statements(text);
    (found.total, found.correct)
}

#[test]
fn arithmetic_statements_are_found_and_checked_exactly() {
    let cases = [
        ("2 + 2 = 4", (1, 1)),
        ("2 + 2 = 5", (1, 0)),
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.", (2, 2)),
        ("16 - 3 - 4 = <<16-3-4=9>>8 eggs", (2, 1)),
        ("12/60 = $<<12/60=0.2>>0.2", (2, 2)),
        ("(2 + 3) x 4 = 20, 3x4=12, 2 × 3 ÷ 6 = 1, 7 X 8 = 54", (4, 3)),
        ("2+3*4 = 14 and 8-4-2=2 and 16/4/2=2", (3, 3)),
        ("2 + 3 = 5 = 10/2", (2, 2)),
        ("2 + 3 = 5 = 6", (2, 1)),
        ("2 + 3 = 5 = y", (1, 1)),
        ("18 = 9*2", (1, 1)),
        (".1 + .2 = 0.3", (1, 1)),
        ("10/3 = 3.33", (1, 0)),
        ("1/3 + 1/3 + 1/3 = 1", (1, 1)),
        ("1,000 * 3 = 3,000. Then 1,234.5*2 = $2,469.", (2, 2)),
        ("20% * 50 = 10", (1, 1)),
        ("5 / 0 = 0", (1, 0)),
        ("-3 + 5 = 2; 3 * -2 = -6; 3 − 5 = −2", (3, 3)),
        ("2(3+4) = 14 and (1+1)(2+2)=8", (2, 2)),
        ("99999999999999999999999999999999999999999 * 10 = 999999999999999999999999999999999999999990", (1, 1)),
        ("- 3 + 4 = 7\n* 3 + 4 = 7\n1. 3 + 4 = 7\n2) 3 + 4 = 7", (4, 4)),
        ("In 2024 3 + 4 = 7.", (1, 1)),
        ("3 + 4 = 7 - so he has 7", (1, 1)),
        ("3 + 4 = 7 - 0 of them", (1, 1)),
        // No statements:
        ("x = 5", (0, 0)),
        ("x + 3 = 5", (0, 0)),
        ("x+4-2 = 10", (0, 0)),
        ("3x + 4 = 10", (0, 0)),
        ("2x = 10", (0, 0)),
        ("3 + 4 = 5 + y", (0, 0)),
        ("3 apples = 9", (0, 0)),
        ("5kg + 3kg = 9kg", (0, 0)),
        ("3 = 4", (0, 0)),
        ("3 + 4 == 7, 3 + 4 => 8, 3 + 4 >= 7, 3 + 4 != 8", (0, 0)),
        ("3 + = 7, = 4, 3 + 4 =", (0, 0)),
        ("(3 + 4 = 7", (0, 0)),
        ("", (0, 0)),
    ];
    for (text, expected) in cases {
        assert_eq!(statements(text), expected, "{text}");
    }
    assert_eq!(score("expression", "1+1=2, 1+1=3"), 0.5);
    assert_eq!(score("expression", "no arithmetic"), 0.0);
}

#[test]
fn hostile_texts_are_survived() {
    let deep = format!("{}1{} + 1 = 2", "(".repeat(10_000), ")".repeat(10_000));
    assert_eq!(statements(&deep), (0, 0));
    // A product of thousands of digits is not computed; the statement is not true.
    let long = format!("{}1 = 1", format!("{} * ", "9".repeat(300)).repeat(300));
    assert_eq!(statements(&long), (1, 0));
    assert_eq!(statements(&format!("{}1 = 1", "-".repeat(10_000))), (0, 0));
    assert_eq!(statements(&"5(".repeat(10_000)), (0, 0));
    assert_eq!(statements(&"=".repeat(10_000)), (0, 0));
    assert_eq!(statements(&format!("1{} = 2", "*1".repeat(5_000))), (1, 0));
    assert_eq!(statements("é+1=2 <<é=>> <<1+1=2"), (1, 1));
}

#[test]
fn descriptions_are_taken_apart_as_documented() {
    let specs = RuleSpec::parse_list(r"answer:pattern=A\:\s*(.*),length:target=40,regex:pattern=a\,b=\d").unwrap();
    let option = |i: usize| (specs[i].name.as_str(), specs[i].options[0].0.as_str(), specs[i].options[0].1.as_str());
    assert_eq!(option(0), ("answer", "pattern", r"A:\s*(.*)"));
    assert_eq!(option(1), ("length", "target", "40"));
    assert_eq!(option(2), ("regex", "pattern", r"a,b=\d"));
    // A doubled backslash is a regex's own and does not escape the separator behind it.
    let specs = RuleSpec::parse_list(r"regex:pattern=a\\,length").unwrap();
    assert_eq!((specs.len(), specs[0].get("pattern")), (2, Some(r"a\\")));
}

#[test]
fn weights_make_a_weighted_sum() {
    let rules = RuleSet::parse("answer,length,expression", Some("2, -0.5,1e-1"), None).unwrap();
    let response = "9 * 2 = 18\n#### 18";
    assert_eq!(rules.score_each(&item(response, Some("18"))).unwrap(), [1.0, -7.0, 1.0]);
    assert_eq!(rules.score(&item(response, Some("18"))).unwrap(), 2.0 + 3.5 + 0.1);
    assert_eq!(rules.rules().iter().map(|(r, _)| r.name()).collect::<Vec<_>>(), ["answer", "length", "expression"]);
    let error = |weights: &str| RuleSet::parse("answer,length", Some(weights), None).unwrap_err().to_string();
    holds(&error("1"), &["1 weights were given for 2 rules", "for example 1,1"]);
    holds(&error("1,x"), &["\"x\" is not a finite number"]);
    holds(&error("1,inf"), &["\"inf\" is not a finite number"]);
}

#[test]
fn bad_descriptions_are_refused_with_the_mend() {
    refused("anwser", &["`anwser`", "no rule of this name", "answer, regex, length, format, expression, words"]);
    refused("", &["a name is missing", "answer,length:target=40"]);
    refused("answer,,length", &["a name is missing"]);
    refused("length:40", &["\"40\" is not an option", "key=value"]);
    refused("length:target=ten", &["`target` is \"ten\"", "length:target=40"]);
    refused("length:target=-1", &["not a whole number"]);
    refused("length:goal=3", &["unknown option `goal`", "Options of `length`: target"]);
    refused("expression:x=1", &["unknown option `x`", "takes no options"]);
    refused("length:target=1:target=2", &["`target` is given twice"]);
    refused("regex", &["`pattern` is missing", "regex:pattern="]);
    refused("words", &["`file` is missing"]);
    refused("regex:pattern=(", &["not valid", "unclosed group"]);
    refused("format:pattern=)", &["not valid"]);
    refused("answer:pattern=A", &["0 capture groups, expected one", "in parentheses"]);
    refused("answer:pattern=(a)(b)", &["2 capture groups"]);
    refused("regex:pattern=a{1,2}", &["`2}`", "a comma inside a value is written \\,"]);
}
