//! Decoding with cached keys and values against scoring the finished sequences.

mod common;

use common::{Lists, log_softmax, model, pack, tiny};
use larpo_core::Error;
use larpo_core::backend::Backend;
use larpo_core::cpu::Cpu;
use larpo_core::model::{DecodeRow, Decoder, Transformer};
use larpo_core::reference::Reference;

fn lists() -> Lists {
    vec![
        (vec![1, 2, 3, 4], vec![vec![5, 6, 7], vec![8], vec![9, 10, 11, 12, 13]]),
        (vec![7], vec![vec![1, 1, 1, 1], vec![2, 18]]),
        (vec![3, 14, 15, 9, 2, 6, 5], vec![vec![0, 17]]),
    ]
}

fn log_probability<B: Backend>(model: &Transformer<B>, logits: &B::Buffer, row: usize, id: u32) -> f64 {
    let vocab = model.config().vocab_size;
    log_softmax(&model.backend().read(logits)[row * vocab..][..vocab])[id as usize]
}

/// Log-probabilities of all responses' tokens, one step at a time; finished responses drop out of the batch.
fn decode<B: Backend>(model: &Transformer<B>, lists: &Lists) -> Vec<Vec<f64>> {
    let prompts: Vec<&[u32]> = lists.iter().map(|(prompt, _)| &prompt[..]).collect();
    let responses: Vec<(usize, &[u32])> =
        lists.iter().enumerate().flat_map(|(p, (_, all))| all.iter().map(move |r| (p, &r[..]))).collect();
    let capacity = responses.iter().map(|(_, r)| r.len()).max().unwrap();
    let (mut decoder, logits) = Decoder::prefill(model, &prompts, responses.len(), capacity).unwrap();
    let mut logp: Vec<Vec<f64>> =
        responses.iter().map(|(prompt, r)| vec![log_probability(model, &logits, *prompt, r[0])]).collect();
    for generated in 0..capacity - 1 {
        let mut rows = Vec::new();
        for (response, (prompt, ids)) in responses.iter().enumerate() {
            if generated + 1 < ids.len() {
                rows.push(DecodeRow { prompt: *prompt, response, id: ids[generated], generated });
            }
        }
        // The order of rows in a step is free.
        rows.reverse();
        let logits = decoder.step(&rows).unwrap();
        for (at, row) in rows.iter().enumerate() {
            let next = responses[row.response].1[generated + 1];
            logp[row.response].push(log_probability(model, &logits, at, next));
        }
    }
    logp
}

fn check<B: Backend>(backend: &B, tolerance: f64) {
    for tied in [true, false] {
        let model = model(backend, &tiny(tied), 11);
        let decoded: Vec<f64> = decode(&model, &lists()).into_iter().flatten().collect();
        let scored = model.score(&pack(&lists())).unwrap();
        assert_eq!(decoded.len(), scored.len());
        for (target, (got, want)) in decoded.iter().zip(&scored).enumerate() {
            assert!((got - want).abs() <= tolerance, "target {target}: {got} decoded, {want} scored");
        }
    }
}

#[test]
fn decoding_equals_scoring_on_the_reference() {
    check(&Reference, 1e-10);
}

#[test]
fn decoding_equals_scoring_on_the_cpu() {
    check(&Cpu::new(), 1e-4);
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model(&Reference, &tiny(true), 1);
    let error = |prompt: &[u32], capacity| Decoder::prefill(&model, &[prompt], 1, capacity).err();
    assert!(matches!(error(&[], 1), Some(Error::Setting { .. })));
    assert_eq!(error(&[1; 60], 5), Some(Error::TooLong { tokens: 65, limit: 64 }));
    assert_eq!(error(&[1, 19], 1), Some(Error::TokenId { id: 19, vocab_size: 19 }));
    assert!(error(&[1; 60], 4).is_none());

    let (mut decoder, _) = Decoder::prefill(&model, &[&[1, 2]], 1, 2).unwrap();
    let row = DecodeRow { prompt: 0, response: 0, id: 3, generated: 2 };
    assert_eq!(decoder.step(&[row]).err(), Some(Error::TooLong { tokens: 3, limit: 2 }));
    let row = DecodeRow { id: 40, generated: 0, ..row };
    assert_eq!(decoder.step(&[row]).err(), Some(Error::TokenId { id: 40, vocab_size: 19 }));
}
