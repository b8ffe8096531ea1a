//! The demo's data: generated multi-step arithmetic word problems.
//!
//! Every problem has a *careful* solution, which shows the working and ends in `#### N`, the way
//! GSM8K marks its answers (Cobbe et al. 2021, arXiv 2110.14168). The supervised corpus is mixed, as
//! real ones are: a share of its rows, larger for longer problems, carries a *careless* solution
//! instead, a bare `#### N` that is usually wrong by a plausible slip. A model trained on it learns
//! both manners; which of them to prefer is what the answer checker can then teach it.
//!
//! Everything is a function of `(seed, index)`: the same seed gives the same corpus on every
//! machine. This file knows nothing of models, tokenizers or files.

use std::collections::HashSet;

/// Share of careless rows among two-step problems.
pub const CARELESS_TWO_STEPS: f64 = 0.40;
/// Share of careless rows among three-step problems.
pub const CARELESS_THREE_STEPS: f64 = 0.70;
/// How often a careless answer is right all the same.
pub const CARELESS_RIGHT: f64 = 0.10;

/// One word problem with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The question, ending in a line break, so that the solution starts a line of its own.
    pub prompt: String,
    /// The working, one line a step, then the line `#### N`.
    pub careful: String,
    /// The right answer.
    pub answer: i64,
    /// How many operations lead to it: 2 or 3.
    pub steps: usize,
    /// Value before the first step and after each step, `steps + 1` numbers; the last is `answer`.
    values: Vec<i64>,
}

/// A prompt with the solution to learn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingRow {
    /// The question.
    pub prompt: String,
    /// A careful or a careless solution.
    pub completion: String,
    /// Whether the solution is the careless one.
    pub careless: bool,
    /// How many operations the problem takes.
    pub steps: usize,
}

/// Three sets of problems of which no two share a prompt.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// Rows for supervised fine-tuning, careful and careless.
    pub sft: Vec<TrainingRow>,
    /// Problems to sample for; their solutions are not shown to the model.
    pub prompts: Vec<Problem>,
    /// Held-out problems.
    pub eval: Vec<Problem>,
}

impl Corpus {
    /// Draws `n_sft` rows, `n_prompts` problems and `n_eval` held-out problems, all different.
    ///
    /// The held-out set is drawn first, so it depends on `seed` and `n_eval` alone.
    pub fn generate(seed: u64, n_sft: usize, n_prompts: usize, n_eval: usize) -> Corpus {
        let mut seen = HashSet::new();
        let mut index = 0;
        // There are over a million different problems, so skipping the repeated ones ends soon.
        let mut fresh = |n: usize| -> Vec<u64> {
            let mut indices = Vec::with_capacity(n);
            while indices.len() < n {
                if seen.insert(problem(seed, index).prompt) {
                    indices.push(index);
                }
                index += 1;
            }
            indices
        };
        let (eval, prompts, sft) = (fresh(n_eval), fresh(n_prompts), fresh(n_sft));
        let problems = |of: Vec<u64>| of.into_iter().map(|i| problem(seed, i)).collect();
        Corpus {
            sft: sft.into_iter().map(|i| training_row(seed, i)).collect(),
            prompts: problems(prompts),
            eval: problems(eval),
        }
    }
}

/// Problem number `index` of the stream that `seed` names.
pub fn problem(seed: u64, index: u64) -> Problem {
    let mut draw = Draw::new(seed, index, 0);
    let name = draw.pick(&NAMES);
    let thing = draw.pick(&THINGS);
    let start = draw.between(3, 15);
    let steps = 2 + draw.below(2) as usize;

    let mut prompt = draw.pick(&OPENINGS).replace("{n}", name);
    prompt = prompt.replace("{v}", &start.to_string()).replace("{t}", thing);
    let mut careful = String::new();
    let mut values = vec![start];
    let mut value = start;
    let mut previous = None;
    for _ in 0..steps {
        let step = Step::draw(&mut draw, previous);
        let (sentence, working) = step.tell(&mut draw, name, thing, value);
        prompt.push(' ');
        prompt.push_str(&sentence);
        careful.push_str(&working);
        value = step.apply(value);
        values.push(value);
        previous = Some(step);
    }
    prompt.push(' ');
    prompt.push_str(&draw.pick(&QUESTIONS).replace("{n}", name).replace("{t}", thing));
    prompt.push('\n');
    careful.push_str(&format!("#### {value}"));
    Problem { prompt, careful, answer: value, steps, values }
}

/// The row that [`problem`] `(seed, index)` becomes in the supervised corpus.
pub fn training_row(seed: u64, index: u64) -> TrainingRow {
    let problem = problem(seed, index);
    // A stream of its own, so that the manner of a solution says nothing about its problem.
    let mut draw = Draw::new(seed, index, 1);
    let share = match problem.steps {
        2 => CARELESS_TWO_STEPS,
        _ => CARELESS_THREE_STEPS,
    };
    let careless = draw.unit() < share;
    let completion = match careless {
        true => format!("#### {}", careless_answer(&problem, &mut draw)),
        false => problem.careful,
    };
    TrainingRow { prompt: problem.prompt, completion, careless, steps: problem.steps }
}

/// An answer without working: now and then right, else one step forgotten or a little off.
fn careless_answer(problem: &Problem, draw: &mut Draw) -> i64 {
    if draw.unit() < CARELESS_RIGHT {
        return problem.answer;
    }
    if draw.unit() < 0.5 {
        // The last step was forgotten; every step changes the value, so this is never right.
        return problem.values[problem.steps - 1];
    }
    let slip = draw.between(1, 4);
    match draw.below(2) {
        0 if problem.answer > slip => problem.answer - slip,
        _ => problem.answer + slip,
    }
}

/// One operation on the running count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// This many more.
    Add(i64),
    /// This many boxes with that many things each.
    Boxes(i64, i64),
    /// Twice as many.
    Double,
}

impl Step {
    /// Draws a step; doubling and boxes do not come twice in a row, which would read oddly.
    fn draw(draw: &mut Draw, previous: Option<Step>) -> Step {
        loop {
            let step = match draw.below(5) {
                0 | 1 => Step::Add(draw.between(2, 15)),
                2 | 3 => Step::Boxes(draw.between(2, 4), draw.between(2, 6)),
                _ => Step::Double,
            };
            match (step, previous) {
                (Step::Double, Some(Step::Double)) => {}
                (Step::Boxes(..), Some(Step::Boxes(..))) => {}
                _ => return step,
            }
        }
    }

    /// The count after this step.
    fn apply(self, value: i64) -> i64 {
        match self {
            Step::Add(more) => value + more,
            Step::Boxes(boxes, each) => value + boxes * each,
            Step::Double => value * 2,
        }
    }

    /// The sentence of the problem and the line of the working.
    fn tell(self, draw: &mut Draw, name: &str, thing: &str, value: i64) -> (String, String) {
        let after = self.apply(value);
        let (template, working) = match self {
            Step::Add(more) => {
                (draw.pick(&ADDITIONS).replace("{a}", &more.to_string()), format!("{value}+{more}={after}\n"))
            }
            Step::Boxes(boxes, each) => {
                let total = boxes * each;
                let sentence = draw.pick(&BOXES).replace("{a}", &boxes.to_string());
                (
                    sentence.replace("{b}", &each.to_string()),
                    format!("{boxes}*{each}={total}, {value}+{total}={after}\n"),
                )
            }
            Step::Double => (draw.pick(&DOUBLINGS).to_string(), format!("{value}*2={after}\n")),
        };
        (template.replace("{n}", name).replace("{t}", thing), working)
    }
}

const NAMES: [&str; 16] = [
    "Mia", "Tom", "Anna", "Ben", "Lena", "Omar", "Ruth", "Ivan", "Nora", "Paul", "Zoe", "Sam", "Eva", "Max", "Lucy",
    "Noah",
];

const THINGS: [&str; 12] =
    ["apples", "stamps", "cards", "shells", "coins", "books", "pens", "eggs", "marbles", "plums", "cups", "nuts"];

const OPENINGS: [&str; 3] = ["{n} has {v} {t}.", "{n} starts with {v} {t}.", "{n} owns {v} {t}."];

const ADDITIONS: [&str; 4] =
    ["{n} finds {a} more.", "{n} buys {a} more.", "A friend gives {n} {a} more.", "{n} gets {a} more."];

const BOXES: [&str; 3] =
    ["{n} buys {a} boxes of {b}.", "{n} gets {a} boxes with {b} each.", "{n} finds {a} boxes of {b}."];

const DOUBLINGS: [&str; 3] = ["Then the number doubles.", "{n} doubles the number.", "Then {n} has twice as many."];

const QUESTIONS: [&str; 3] =
    ["How many {t} does {n} have?", "How many {t} are there now?", "How many {t} is that in all?"];

/// Counter-based random numbers: draw number `i` of a stream is a hash of the stream and `i`.
struct Draw {
    stream: u64,
    count: u64,
}

/// The odd constant 2^64 / golden ratio, by which SplitMix64 counts.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Draw {
    /// The stream for `(seed, index, purpose)`.
    fn new(seed: u64, index: u64, purpose: u64) -> Draw {
        let mut stream = 0;
        for word in [seed, index, purpose] {
            stream = mix((stream ^ word).wrapping_add(GOLDEN));
        }
        Draw { stream, count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        mix(self.stream.wrapping_add(self.count.wrapping_mul(GOLDEN)))
    }

    /// Uniform on `0..n`; the bias of n / 2^64 is far below anything these corpora could show.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform on `low..=high`.
    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as u64) as i64
    }

    /// Uniform on [0, 1), with 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

#[cfg(test)]
#[path = "corpus_tests.rs"]
mod tests;
