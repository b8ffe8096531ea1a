//! Decoding with cached keys and values against scoring the finished sequences.

mod common;

use common::{Lists, log_softmax, model, pack, shapes, tiny};
use larpo_core::Error;
use larpo_core::backend::Backend;
use larpo_core::cpu::Cpu;
use larpo_core::model::{DecodeRow, Decoder, ModelConfig, Places, Transformer};
use larpo_core::reference::Reference;
use larpo_core::retriever::{FinishReason, NoHooks, Prompt, SamplingConfig, prompts_per_batch, sample};

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
    let prompts: Vec<(usize, &[u32])> = lists.iter().enumerate().map(|(place, (ids, _))| (place, &ids[..])).collect();
    let responses: Vec<(usize, &[u32])> =
        lists.iter().enumerate().flat_map(|(p, (_, all))| all.iter().map(move |r| (p, &r[..]))).collect();
    let capacity = responses.iter().map(|(_, r)| r.len()).max().unwrap();
    let prompt_tokens = prompts.iter().map(|(_, ids)| ids.len()).max().unwrap();
    let places =
        Places { prompts: prompts.len(), prompt_tokens, responses: responses.len(), response_tokens: capacity };
    let mut decoder = Decoder::new(model, places).unwrap();
    let logits = decoder.prefill(&prompts).unwrap();
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
    for config in shapes() {
        let model = model(backend, &config, 11);
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

/// What a text is followed by is what a longer text is scored with.
fn check_next<B: Backend>(backend: &B, tolerance: f64) {
    let choices = [4, 0, 17];
    for config in shapes() {
        let model = model(backend, &config, 11);
        let next = model.next_logp(&pack(&lists()), &choices).unwrap();
        let mut expected = Vec::new();
        for (prompt, responses) in lists() {
            for response in responses {
                let with = |id: &u32| [&response[..], &[*id]].concat();
                let longer = vec![(prompt.clone(), choices.iter().map(with).collect::<Vec<_>>())];
                let scored = model.score(&pack(&longer)).unwrap();
                expected.extend(scored.chunks(response.len() + 1).map(|logp| logp[response.len()]));
            }
        }
        assert_eq!(next.len(), expected.len());
        for (at, (got, want)) in next.iter().zip(&expected).enumerate() {
            assert!((got - want).abs() <= tolerance, "{at}: {got} as the next token, {want} scored");
        }
    }
}

#[test]
fn next_tokens_equal_scoring() {
    check_next(&Reference, 1e-10);
    check_next(&Cpu::new(), 1e-4);
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model(&Reference, &tiny(true), 1);
    let places = |prompt_tokens, response_tokens| Places { prompts: 1, prompt_tokens, responses: 1, response_tokens };
    let decoder = |prompt_tokens, response_tokens| Decoder::new(&model, places(prompt_tokens, response_tokens));
    assert_eq!(decoder(60, 5).err(), Some(Error::TooLong { tokens: 65, limit: 64 }));
    let error = model.next_logp(&pack(&lists()), &[19]).err();
    assert_eq!(error, Some(Error::TokenId { id: 19, vocab_size: 19 }));
    assert!(model.next_logp(&pack(&vec![(vec![1], vec![vec![]])]), &[1]).is_err());
    let mut decoder = decoder(60, 4).unwrap();
    assert!(matches!(decoder.prefill(&[(0, &[])]).err(), Some(Error::Setting { .. })));
    assert_eq!(decoder.prefill(&[(0, &[1; 61])]).err(), Some(Error::TooLong { tokens: 61, limit: 60 }));
    assert_eq!(decoder.prefill(&[(0, &[1, 19])]).err(), Some(Error::TokenId { id: 19, vocab_size: 19 }));

    decoder.prefill(&[(0, &[1, 2])]).unwrap();
    let row = DecodeRow { prompt: 0, response: 0, id: 3, generated: 4 };
    assert_eq!(decoder.step(&[row]).err(), Some(Error::TooLong { tokens: 5, limit: 4 }));
    let row = DecodeRow { id: 40, generated: 0, ..row };
    assert_eq!(decoder.step(&[row]).err(), Some(Error::TokenId { id: 40, vocab_size: 19 }));
}

#[test]
fn places_are_used_again_and_change_no_sample() {
    let config = ModelConfig { max_position_embeddings: 64, ..ModelConfig::new(128, 64, 1, 2, 2, 40) };
    let sampling = SamplingConfig {
        num_generations: 8,
        max_new_tokens: 48,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        // Responses of 10 tokens on average; some reach the limit.
        eos_ids: vec![0, 1, 2, 3],
        vocab_limit: 40,
        seed: 5,
        iteration: 1,
    };
    let texts: Vec<Vec<u32>> = (0..64).map(|i| (0..1 + i * 7 % 16).map(|j| (i * 5 + j * 11) % 40).collect()).collect();
    let prompts: Vec<_> = texts.iter().enumerate().map(|(i, ids)| Prompt { index: i as u32, ids }).collect();
    // All in one batch, of whose responses two thirds are decoded at once.
    assert_eq!(prompts_per_batch(&config, &sampling), 64);
    let model = Transformer::random(&Reference, config, 7).unwrap();
    let together = sample(&model, &prompts, &sampling, &mut NoHooks).unwrap();
    let alone = |prompt: &Prompt| sample(&model, &[*prompt], &sampling, &mut NoHooks).unwrap().remove(0);
    assert_eq!(together, prompts.iter().map(alone).collect::<Vec<_>>());
    let ended = |reason| together.iter().flatten().filter(|s| s.finish_reason == reason).count();
    assert!(ended(FinishReason::Stop) > 300 && ended(FinishReason::Length) > 0);
}
