//! Arithmetic statements in a text, checked exactly.
//!
//! A statement is `a op b … = c`: two expressions of numbers around an equals sign, at least one expression of the
//! chain (`2+3 = 5 = 10/2` is two statements) with an operator. Expressions know + − * / x × · ÷, parentheses, decimals,
//! thousands commas, a currency sign before a number and a percent sign behind one (a hundredth). GSM8K's calculator
//! marks `<<48/2=24>>` are statements of their own and are otherwise looked through. Arithmetic is rational and exact:
//! `10/3 = 3.33` is false. What cannot be read as a whole (`x + 3 = 5`, `3 apples = 9`) is no statement. A division by
//! zero is false.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero;
use regex::Regex;
use std::sync::LazyLock;

/// How many statements a text makes, and how many of them are true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statements {
    /// All statements.
    pub total: usize,
    /// The true ones.
    pub correct: usize,
}

impl Statements {
    /// Share of true statements; 0 where there is none.
    pub fn share(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.correct as f64 / self.total as f64 }
    }
}

/// Deepest nesting of parentheses that is read; deeper ones are no statement.
const MAX_DEPTH: usize = 64;
/// Operands with more bits than this (about 1,200 digits) are not computed with, so that no text can stall the scoring; a
/// statement that needs them counts as not true, like one that divides by zero.
const MAX_BITS: u64 = 4096;

static ANNOTATION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"<<([^<>\n]*)>>").expect("the pattern is valid"));

/// "- ", "* " or "1. " at the start of a line numbers or marks an item; it is not part of the arithmetic.
static LIST_MARK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^[ \t]*(?:[-*+•]|[0-9]+[.)])[ \t]+").expect("the pattern is valid"));

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[$€£]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)%?")
        .expect("the pattern is valid")
});

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Number(BigRational),
    /// One of + - * / ( ); `spaced` where white space follows, `glued` where none precedes.
    Sign {
        sign: char,
        spaced: bool,
        glued: bool,
    },
    Equals,
    /// Anything else: it ends an expression. A word makes the operator before it unreadable; other marks do not.
    Other {
        word: bool,
    },
}

/// Checks every arithmetic statement of a text.
pub fn check_statements(text: &str) -> Statements {
    let mut result = Statements::default();
    for annotation in ANNOTATION.captures_iter(text) {
        check_line(&annotation[1], &mut result);
    }
    let plain = ANNOTATION.replace_all(text, "");
    let plain = LIST_MARK.replace_all(&plain, "");
    for line in plain.lines() {
        check_line(line, &mut result);
    }
    result
}

fn check_line(line: &str, result: &mut Statements) {
    if !line.contains('=') {
        return;
    }
    let tokens = tokens(line);
    // Each stretch between equals signs ends one expression and begins the next.
    let parts: Vec<&[Token]> = tokens.split(|token| *token == Token::Equals).collect();
    let mut chain: Vec<Expression> = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        // Between two equals signs the whole stretch has to be one expression for the chain to go on.
        let ending = if i > 0 { leading(part) } else { None };
        let through = ending.as_ref().is_some_and(|e| e.used == part.len());
        if let (Some(expression), false) = (ending, chain.is_empty()) {
            chain.push(expression);
        }
        if !through {
            judge(&chain, result);
            chain.clear();
        }
        if chain.is_empty() && i + 1 < parts.len() {
            chain.extend(trailing(part));
        }
    }
    judge(&chain, result);
}

/// Counts the statements of a chain of expressions joined by equals signs.
fn judge(chain: &[Expression], result: &mut Statements) {
    if !chain.iter().any(|expression| expression.has_operator) {
        return;
    }
    for pair in chain.windows(2) {
        result.total += 1;
        let equal = matches!((&pair[0].value, &pair[1].value), (Some(a), Some(b)) if a == b);
        result.correct += usize::from(equal);
    }
}

struct Expression {
    /// `None` after a division by zero.
    value: Option<BigRational>,
    has_operator: bool,
    /// Tokens it takes.
    used: usize,
}

/// The longest expression at the start of a stretch; `None` where there is none, or where it goes on with something
/// that cannot be read (`5 + y`).
fn leading(tokens: &[Token]) -> Option<Expression> {
    let mut parser = Parser { tokens, at: 0, has_operator: false, depth: 0 };
    let value = parser.sum()?;
    let expression = Expression { value, has_operator: parser.has_operator, used: parser.at };
    match &tokens[expression.used..] {
        // A dash between words is punctuation: "= 7 - so".
        [Token::Sign { sign: '-', spaced: true, .. }, Token::Other { .. }, ..] => Some(expression),
        [Token::Sign { sign: '+' | '-' | '*' | '/', .. }, Token::Other { word: true }, ..] => None,
        _ => Some(expression),
    }
}

/// The expression that ends a stretch: everything back to the last token that cannot belong to one, or to the border
/// between two operands. It has to be readable as a whole.
fn trailing(tokens: &[Token]) -> Option<Expression> {
    let mut start = tokens.len();
    while start > 0 {
        match (&tokens[start - 1], tokens.get(start)) {
            (Token::Other { .. } | Token::Equals, _) => break,
            // "in 2024 3+4", "2) 3+4"
            (Token::Number(_) | Token::Sign { sign: ')', .. }, Some(Token::Number(_))) => break,
            _ => start -= 1,
        }
    }
    let run = &tokens[start..];
    // "x+4": the sign continues a word.
    let continues = matches!(run.first(), Some(Token::Sign { glued: true, sign, .. }) if *sign != '(');
    if continues && start > 0 && matches!(tokens[start - 1], Token::Other { word: true }) {
        return None;
    }
    let expression = leading(run)?;
    (expression.used == run.len()).then_some(expression)
}

fn tokens(line: &str) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::new();
    let mut rest = line;
    let mut glued = false;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            glued = false;
            rest = &rest[c.len_utf8()..];
            continue;
        }
        if let Some(found) = NUMBER.find(rest) {
            let after = &rest[found.end()..];
            if !starts_word(after) {
                out.push(Token::Number(number(found.as_str())));
                glued = true;
                rest = after;
                continue;
            }
        }
        let (token, length) = other_token(c, rest, out.last(), glued);
        glued = true;
        out.push(token);
        rest = &rest[length..];
    }
    out
}

/// Whether a number runs on into letters ("5kg", "3rd"), other than a times sign before another number ("3x4").
fn starts_word(after: &str) -> bool {
    let mut characters = after.chars();
    match characters.next() {
        Some('x' | 'X') => !characters.next().is_some_and(|c| c.is_ascii_digit() || " (.$".contains(c)),
        Some(c) => c.is_alphabetic() || c == '_',
        None => false,
    }
}

/// A sign, an equals sign, a word or a mark, and its length in bytes.
fn other_token(c: char, rest: &str, before: Option<&Token>, glued: bool) -> (Token, usize) {
    let after = &rest[c.len_utf8()..];
    let spaced = after.starts_with(char::is_whitespace);
    let sign = |sign: char| (Token::Sign { sign, spaced, glued }, c.len_utf8());
    let operand_before = matches!(before, Some(Token::Number(_) | Token::Sign { sign: ')', .. }));
    let operand_after = after.trim_start().starts_with(|c: char| c.is_ascii_digit() || "($€£.-−".contains(c));
    match c {
        '+' | '-' | '*' | '/' | '(' | ')' => sign(c),
        '−' => sign('-'),
        '×' | '·' => sign('*'),
        '÷' => sign('/'),
        'x' | 'X' if operand_before && operand_after => sign('*'),
        '=' => {
            // ==, => and the like compare or point; they state nothing.
            let run = rest.len() - rest.trim_start_matches(['=', '>', '<']).len();
            if run == 1 { (Token::Equals, 1) } else { (Token::Other { word: true }, run) }
        }
        '<' | '>' | '!' | '≠' | '≈' | '~' if after.starts_with('=') => {
            (Token::Other { word: true }, c.len_utf8() + 1)
        }
        _ if c.is_alphanumeric() || c == '_' => {
            let length = rest.find(|c: char| !(c.is_alphanumeric() || "_'.,".contains(c))).unwrap_or(rest.len());
            let word = rest[..length].trim_end_matches(['.', ',', '\'']);
            (Token::Other { word: true }, word.len().max(c.len_utf8()))
        }
        _ => (Token::Other { word: false }, c.len_utf8()),
    }
}

/// The value of a number that [`NUMBER`] found.
fn number(text: &str) -> BigRational {
    let percent = text.ends_with('%');
    let digits: String = text.chars().filter(|c| c.is_ascii_digit()).collect();
    let fraction = text.split_once('.').map_or(0, |(_, f)| f.trim_end_matches('%').len());
    let places = fraction + if percent { 2 } else { 0 };
    let numerator: BigInt = digits.parse().expect("digits are a number");
    BigRational::new(numerator, BigInt::from(10).pow(places as u32))
}

/// Recursive descent. `None`: not an expression; `Some(None)`: an expression that divides by zero.
struct Parser<'t> {
    tokens: &'t [Token],
    at: usize,
    has_operator: bool,
    depth: usize,
}

type Value = Option<BigRational>;

impl Parser<'_> {
    fn sign(&self) -> Option<char> {
        match self.tokens.get(self.at) {
            Some(Token::Sign { sign, .. }) => Some(*sign),
            _ => None,
        }
    }

    fn sum(&mut self) -> Option<Value> {
        let mut value = self.product()?;
        while let Some(sign @ ('+' | '-')) = self.sign() {
            let Some(right) = self.operand(Self::product) else { break };
            value = combine(sign, value, right);
        }
        Some(value)
    }

    fn product(&mut self) -> Option<Value> {
        let mut value = self.factor()?;
        loop {
            match self.sign() {
                Some(sign @ ('*' | '/')) => {
                    let Some(right) = self.operand(Self::factor) else { break };
                    value = combine(sign, value, right);
                }
                // 2(3+4): a number or bracket directly before a bracket multiplies.
                Some('(') => {
                    let start = self.at;
                    let Some(right) = self.factor() else {
                        self.at = start;
                        break;
                    };
                    self.has_operator = true;
                    value = combine('*', value, right);
                }
                _ => break,
            }
        }
        Some(value)
    }

    /// What follows an operator; where that is nothing, the operator is left unread and the expression ends before it.
    fn operand(&mut self, next: impl Fn(&mut Self) -> Option<Value>) -> Option<Value> {
        let (start, had) = (self.at, self.has_operator);
        self.at += 1;
        self.has_operator = true;
        let value = next(self);
        if value.is_none() {
            (self.at, self.has_operator) = (start, had);
        }
        value
    }

    fn factor(&mut self) -> Option<Value> {
        match self.tokens.get(self.at)? {
            Token::Number(value) => {
                self.at += 1;
                Some(Some(value.clone()))
            }
            // A sign belongs to a number only when it stands right before it; "- 3" continues something unreadable.
            Token::Sign { sign: sign @ ('-' | '+'), spaced: false, .. } => {
                let negative = *sign == '-';
                self.nested(|parser| {
                    let value = parser.factor()?;
                    Some(value.map(|v| if negative { -v } else { v }))
                })
            }
            Token::Sign { sign: '(', .. } => self.nested(|parser| {
                let value = parser.sum()?;
                (parser.sign() == Some(')')).then(|| parser.at += 1)?;
                Some(value)
            }),
            _ => None,
        }
    }

    /// Steps over one token and goes a level deeper.
    fn nested(&mut self, inner: impl FnOnce(&mut Self) -> Option<Value>) -> Option<Value> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.at += 1;
        self.depth += 1;
        let value = inner(self);
        self.depth -= 1;
        value
    }
}

fn combine(sign: char, a: Value, b: Value) -> Value {
    let small = |v: &BigRational| v.numer().bits().max(v.denom().bits()) <= MAX_BITS;
    let (a, b) = (a.filter(small), b.filter(small));
    let (a, b) = (a?, b?);
    match sign {
        '+' => Some(a + b),
        '-' => Some(a - b),
        '*' => Some(a * b),
        _ if b.is_zero() => None,
        _ => Some(a / b),
    }
}
