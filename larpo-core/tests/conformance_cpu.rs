//! The fast backend against the reference, operation by operation.

use larpo_core::conformance::{Case, cases, run};
use larpo_core::cpu::Cpu;
use std::collections::BTreeSet;

#[test]
fn cpu_agrees_with_the_reference() {
    let backend = Cpu::new();
    let failed: Vec<String> = cases::<Cpu>()
        .iter()
        .map(|case| run(&backend, case))
        .filter(|outcome| !outcome.passed())
        .map(|outcome| outcome.to_string())
        .collect();
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

/// The methods that the trait declares, read from its source.
fn declared() -> BTreeSet<String> {
    let source = include_str!("../src/backend.rs");
    let body = source.split_once("pub trait Backend").expect("the file declares the trait").1;
    let body = body.split_once("\n}").expect("the trait ends").0;
    let names = body.split("fn ").skip(1).filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_string());
    names.collect()
}

#[test]
fn every_method_of_the_trait_has_a_case() {
    let cases: Vec<Case<Cpu>> = cases();
    let covered: BTreeSet<String> = cases.iter().flat_map(|c| c.methods).map(|m| m.to_string()).collect();
    assert_eq!(covered, declared());
    assert!(covered.contains("attention_grad") && covered.len() > 30, "the trait was not read: {covered:?}");
}

#[test]
fn dims_tolerances_and_costs_are_stated() {
    let cases: Vec<Case<Cpu>> = cases();
    for case in &cases {
        assert!(case.tolerance > 0.0 && case.tolerance <= 1e-5, "{}: {}", case.methods[0], case.tolerance);
        assert!(!case.dims.is_empty());
    }
    let product = cases.iter().find(|c| c.methods[0] == "linear").expect("a product");
    assert_eq!(product.flops, 2);
}
