//! Reading of `losses.json` and comparison with its numbers.
//!
//! Non-finite numbers are the strings "inf", "-inf" and "nan"; `null` means "undefined for this input".
#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::{Map, Value};
use std::path::PathBuf;

/// The file: in the folder named by LARPO_GOLDEN_DIR, or the crate's own copy. With the variable set, an absent file is
/// a failure.
fn path() -> PathBuf {
    match std::env::var_os("LARPO_GOLDEN_DIR") {
        Some(folder) => PathBuf::from(folder).join("losses.json"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/losses.json"),
    }
}

/// All families of the file.
pub fn families() -> Map<String, Value> {
    let path = path();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let file: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(file["meta"]["schema"], 1, "{}: unknown schema", path.display());
    file["families"].as_object().unwrap_or_else(|| panic!("{}: no families", path.display())).clone()
}

/// Runs `check` on every case of a family, of which there must be one at least.
pub fn each_case(family: &str, check: impl Fn(&Case)) {
    let families = families();
    let cases = families.get(family).and_then(Value::as_array).unwrap_or_else(|| panic!("no family {family}"));
    assert!(!cases.is_empty(), "family {family} is empty");
    for case in cases {
        let name = case["name"].as_str().unwrap_or_else(|| panic!("a case of {family} has no name"));
        check(&Case { at: format!("{family}/{name}"), json: case });
    }
}

/// One case, with its place for messages.
pub struct Case<'a> {
    pub at: String,
    pub json: &'a Value,
}

impl Case<'_> {
    pub fn input(&self, name: &str) -> &Value {
        &self.json["inputs"][name]
    }

    pub fn param(&self, name: &str) -> &Value {
        &self.json["params"][name]
    }

    pub fn inputs(&self, name: &str) -> Vec<f64> {
        numbers(self.input(name))
    }

    pub fn beta(&self) -> f64 {
        number(self.param("beta"))
    }

    /// Compares one number with the field `name` of the case.
    pub fn close(&self, name: &str, got: f64) {
        self.same(name, got, number(&self.json[name]));
    }

    /// Compares an array with the array `want`.
    pub fn close_all(&self, name: &str, got: &[f64], want: &Value) {
        let want = numbers(want);
        assert_eq!(got.len(), want.len(), "{} {name}: {got:?} against {want:?}", self.at);
        for (i, (&got, want)) in got.iter().zip(want).enumerate() {
            self.same(&format!("{name}[{i}]"), got, want);
        }
    }

    /// Compares a number that may be undefined.
    pub fn close_or_null(&self, name: &str, got: Option<f64>, want: &Value) {
        match got {
            Some(got) => self.same(name, got, number(want)),
            None => assert!(want.is_null(), "{} {name}: undefined against {want}", self.at),
        }
    }

    /// `|a - b| <= 1e-9 + 1e-9 |b|`; non-finite values must be equal.
    pub fn same(&self, name: &str, got: f64, want: f64) {
        let equal = if got.is_finite() && want.is_finite() {
            (got - want).abs() <= 1e-9 + 1e-9 * want.abs()
        } else {
            got == want || (got.is_nan() && want.is_nan())
        };
        assert!(equal, "{} {name}: {got} against {want}", self.at);
    }
}

pub fn number(value: &Value) -> f64 {
    match value {
        Value::Number(n) => n.as_f64().expect("a number fits f64"),
        Value::String(s) if matches!(s.as_str(), "inf" | "-inf" | "nan") => s.parse().expect("f64 reads the three"),
        other => panic!("{other} is not a number"),
    }
}

pub fn numbers(value: &Value) -> Vec<f64> {
    array(value).iter().map(number).collect()
}

pub fn count(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count")) as usize
}

pub fn counts(value: &Value) -> Vec<usize> {
    array(value).iter().map(count).collect()
}

/// A mask of true/false or 1/0.
pub fn flags(value: &Value) -> Vec<bool> {
    array(value).iter().map(|v| v.as_bool().unwrap_or_else(|| number(v) != 0.0)).collect()
}

pub fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is not an array"))
}
