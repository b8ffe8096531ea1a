use super::*;

/// The numbers of a text in order.
fn numbers(text: &str) -> Vec<i64> {
    let digits = |c: char| !c.is_ascii_digit();
    text.split(digits).filter_map(|n| n.parse().ok()).collect()
}

/// `a+b` or `a*b`.
fn evaluate(expression: &str) -> i64 {
    let number = |text: &str| -> i64 { text.parse().expect("a number") };
    match (expression.split_once('+'), expression.split_once('*')) {
        (Some((a, b)), None) => number(a) + number(b),
        (None, Some((a, b))) => number(a) * number(b),
        _ => panic!("{expression} is not one operation"),
    }
}

/// The answer, from the words of the question alone.
fn solve(question: &str) -> i64 {
    let sentences: Vec<&str> = question.trim_end().split_inclusive(['.', '?']).collect();
    let mut value = 0;
    for sentence in &sentences {
        let found = numbers(sentence);
        match found[..] {
            [boxes, each] => {
                assert!(sentence.contains("boxes"), "{sentence}");
                value += boxes * each;
            }
            [n] => value += n,
            [] if sentence.contains("doubles") || sentence.contains("twice") => value *= 2,
            [] => assert!(sentence.ends_with('?'), "{sentence}"),
            _ => panic!("too many numbers in {sentence}"),
        }
    }
    value
}

/// Fails where `hits` of `n` is more than five standard deviations from `share`.
fn within(hits: usize, n: usize, share: f64) {
    let (hits, n) = (hits as f64, n as f64);
    let deviation = (n * share * (1.0 - share)).sqrt();
    assert!((hits - n * share).abs() < 5.0 * deviation, "{hits} of {n}, expected {share}");
}

fn answer_line(solution: &str) -> i64 {
    let (_, answer) = solution.rsplit_once("#### ").expect("an answer line");
    answer.parse().expect("a number")
}

#[test]
fn the_working_adds_up_and_ends_in_the_answer() {
    for index in 0..2000 {
        let p = problem(7, index);
        assert_eq!(solve(&p.prompt), p.answer, "{}", p.prompt);
        let (working, answer) = p.careful.rsplit_once("\n#### ").expect("an answer line");
        assert_eq!(working.lines().count(), p.steps, "{}", p.careful);
        let mut last = None;
        for equation in working.split([',', '\n']).map(str::trim) {
            let (left, right) = equation.split_once('=').expect("an equation");
            last = right.parse().ok();
            assert_eq!(Some(evaluate(left)), last, "{equation}");
        }
        assert_eq!(last, Some(p.answer));
        assert_eq!(answer, p.answer.to_string());
        assert_eq!(p.values.last(), Some(&p.answer));
    }
}

#[test]
fn numbers_stay_in_their_ranges() {
    for index in 0..2000 {
        let p = problem(3, index);
        assert!((2..=3).contains(&p.steps));
        for (i, sentence) in p.prompt.split_inclusive('.').enumerate() {
            match numbers(sentence)[..] {
                [n] if i == 0 => assert!((3..=15).contains(&n), "{sentence}"),
                [n] => assert!((2..=15).contains(&n), "{sentence}"),
                [boxes, each] => {
                    assert!((2..=4).contains(&boxes) && (2..=6).contains(&each), "{sentence}");
                }
                _ => {}
            }
        }
        assert!(p.prompt.ends_with("?\n") && !p.prompt.contains(['{', '}']), "{}", p.prompt);
    }
}

#[test]
fn careless_rows_have_their_share_and_are_usually_wrong() {
    let n = 10_000;
    let mut rows = [0; 4];
    let mut careless = [0; 4];
    let mut right = 0;
    for index in 0..n {
        let (row, p) = (training_row(11, index), problem(11, index));
        assert_eq!((&row.prompt, row.steps), (&p.prompt, p.steps));
        rows[row.steps] += 1;
        if !row.careless {
            assert_eq!(row.completion, p.careful);
            continue;
        }
        careless[row.steps] += 1;
        assert!(row.completion.starts_with("#### ") && !row.completion.contains('='));
        let answer = answer_line(&row.completion);
        assert!(answer > 0);
        right += usize::from(answer == p.answer);
    }
    within(rows[2], n as usize, 0.5);
    within(careless[2], rows[2], 0.40);
    within(careless[3], rows[3], 0.70);
    within(right, careless[2] + careless[3], CARELESS_RIGHT);
}

#[test]
fn the_three_sets_share_no_prompt() {
    let corpus = Corpus::generate(5, 10_000, 2_000, 500);
    assert_eq!((corpus.sft.len(), corpus.prompts.len(), corpus.eval.len()), (10_000, 2_000, 500));
    let sft = corpus.sft.iter().map(|r| &r.prompt);
    let all = sft.chain(corpus.prompts.iter().chain(&corpus.eval).map(|p| &p.prompt));
    let distinct: HashSet<&String> = all.collect();
    assert_eq!(distinct.len(), 12_500);
}

#[test]
fn repeated_problems_are_skipped() {
    // So many problems of one stream that some must coincide by chance (a birthday paradox): the
    // skipping above has something to do.
    let n = 60_000;
    let distinct: HashSet<String> = (0..n).map(|i| problem(5, i).prompt).collect();
    assert!(distinct.len() < n as usize, "no two of {n} problems coincide");
}

#[test]
fn a_seed_names_a_corpus() {
    let (a, b) = (Corpus::generate(1, 50, 20, 10), Corpus::generate(1, 50, 20, 10));
    assert_eq!((&a.sft, &a.prompts, &a.eval), (&b.sft, &b.prompts, &b.eval));
    let other = Corpus::generate(2, 50, 20, 10);
    assert_ne!(a.eval, other.eval);
    // The held-out set does not move when the other sizes do.
    assert_eq!(a.eval, Corpus::generate(1, 400, 90, 10).eval);
}

#[test]
fn the_generator_is_splitmix64() {
    // First outputs for seed 1234567, as published with the reference implementation
    // (https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
    let mut draw = Draw { stream: 1_234_567, count: 0 };
    let published: [u64; 5] =
        [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821];
    assert_eq!(published, std::array::from_fn(|_| draw.next()));
}

#[test]
fn draws_are_uniform() {
    let mut draw = Draw::new(1, 2, 3);
    let mut counts = [0; 13];
    for _ in 0..13_000 {
        counts[(draw.between(3, 15) - 3) as usize] += 1;
    }
    counts.iter().for_each(|&c| within(c, 13_000, 1.0 / 13.0));
}
