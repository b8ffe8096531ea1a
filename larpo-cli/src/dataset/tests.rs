use super::*;

const LIMITS: Limits = Limits {
    max_length: 4,
    max_prompt_length: 2,
    max_samples: usize::MAX,
    samples_flag: "--max_samples",
    truncation_mode: TruncationMode::Skip,
};

#[test]
fn windows_score_every_token_once() {
    for n in 0..30u32 {
        let ids: Vec<u32> = (0..n).collect();
        // Nothing precedes the first token of the text, so it is not scored.
        let plain = Windows::cut(&ids, vec![], LIMITS).expect("room");
        let scored: Vec<u32> = plain.texts.iter().flat_map(|w| w[1..].to_vec()).collect();
        assert_eq!(scored, (1..n.max(1)).collect::<Vec<_>>(), "{n} tokens");
        let with_bos = Windows::cut(&ids, vec![99], LIMITS).expect("room");
        assert_eq!(with_bos.texts.concat(), ids);
        assert!(with_bos.texts.iter().all(|w| w.len() < LIMITS.max_length));
        let two = Windows::cut(&ids, vec![99], Limits { max_samples: 2, ..LIMITS }).expect("room");
        assert_eq!(two.report().rows, two.texts.len());
        assert_eq!(two.report().used(), two.used().len());
    }
    assert!(Windows::cut(&[1, 2], vec![99; 4], LIMITS).is_err());
}

#[test]
fn parts_are_disjoint_and_cover() {
    let part = |split| Part { held_back: 0.1, split }.range(25);
    assert_eq!((part(Split::Train), part(Split::Validation), part(Split::All)), (0..22, 22..25, 0..25));
}

#[test]
fn the_report_adds_up() {
    let mut report = RowReport::new("rows", 10);
    report.leave_out("longer than 4 tokens");
    report.leave_out("longer than 4 tokens");
    report.leave_out("no completion");
    report.leave_out_several("never", 0);
    let text = "10 rows in = 7 used + 2 left out (longer than 4 tokens) + 1 left out (no completion)";
    assert_eq!(report.to_string(), text);
    report.leave_out_at("contradictory labels", 2, 9);
    report.leave_out_at("contradictory labels", 1, 4);
    let told = report.nothing_left(Path::new("d.jsonl"));
    assert!(told.contains("3 left out (contradictory labels), the first in d.jsonl:4"), "{told}");
    assert!(told.contains("To mend it: correct the rows that") && told.contains("raise --max_length"), "{told}");
    report.left_out.remove("longer than 4 tokens");
    assert!(!report.nothing_left(Path::new("d.jsonl")).contains("--max_length"));
    report = RowReport::new("rows", 10);
    report.leave_out_several("longer than 4 tokens", 2);
    report.leave_out("no completion");
    report.shortened = 3;
    assert!(report.to_string().starts_with("10 rows in = 7 used (3 of them with a shortened prompt) + 2"));
}

#[test]
fn prompts_are_cut_at_one_end_and_never_wholly() {
    let limits = |truncation_mode| Limits { max_length: 8, max_prompt_length: 5, truncation_mode, ..LIMITS };
    let ids = [90, 1, 2, 3, 4, 5];
    let fit = |mode, longest| limits(mode).fit(&ids, 1, longest, 8);
    let (start, end) = (TruncationMode::KeepStart, TruncationMode::KeepEnd);
    // The limit of the prompt, then that of the whole.
    assert_eq!(fit(start, 1), Fit::Cut(vec![90, 1, 2, 3, 4]));
    assert_eq!(fit(end, 1), Fit::Cut(vec![90, 2, 3, 4, 5]));
    assert_eq!(fit(end, 6), Fit::Cut(vec![90, 5]));
    assert_eq!(fit(start, 6), Fit::Cut(vec![90, 1]));
    let no_room = Fit::LeftOut("response leaves no room for a prompt".into());
    assert_eq!(fit(end, 7), no_room);
    assert_eq!(fit(start, 900), no_room);
    assert_eq!(fit(TruncationMode::Skip, 1), Fit::LeftOut("prompt longer than 5 tokens".into()));
    assert_eq!(limits(TruncationMode::Skip).fit(&ids[..5], 1, 4, 8), Fit::LeftOut("longer than 8 tokens".into()));
    assert_eq!(limits(TruncationMode::Skip).fit(&ids[..5], 1, 3, 8), Fit::Whole);
    assert!(matches!(fit(TruncationMode::Error, 1), Fit::Refused(why) if why.contains("6 tokens")));
    for longest in 0..10 {
        for n in 1..12u32 {
            let ids: Vec<u32> = std::iter::once(90).chain(0..n).collect();
            for mode in [start, end] {
                if let Fit::Cut(cut) = limits(mode).fit(&ids, 1, longest, 8) {
                    assert!(cut.len() >= 2 && cut.len() <= 5 && cut.len() + longest <= 8 && cut[0] == 90);
                }
            }
        }
    }
}
