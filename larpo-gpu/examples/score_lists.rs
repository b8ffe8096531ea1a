//! A million ranked lists scored on the GPU: loss and gradient of every list in a few kernel calls.
//!
//! `cargo run --release --example score_lists [lists]`; `LARPO_ADAPTER` names an adapter, CPU ones included.

use larpo_gpu::kernels::list_loss::list_loss;
use larpo_gpu::kernels::lists::{LipoLabels, ListSpec, LossType, RankedLists, Ties};
use larpo_gpu::{Choice, Error, Gpu, Recorder};
use std::time::Instant;

fn main() -> Result<(), Error> {
    let lists: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let gpu = Gpu::open(&Choice::from_env())?;
    let mut recorder = Recorder::new(&gpu)?;
    // Ragged: two to six responses a prompt, rewarded in whole points, so that many are tied.
    let mut item_offsets = vec![0];
    item_offsets.extend((0..lists).scan(0, |end, list| {
        *end += 2 + list % 5;
        Some(*end)
    }));
    let items = item_offsets[lists as usize];
    let hash = |i: u32| (i ^ (i >> 15)).wrapping_mul(0x2c1b_3c6d) >> 8;
    let rewards: Vec<f64> = (0..items).map(|i| f64::from(hash(i) % 4)).collect();
    let scores: Vec<f32> = (0..items).map(|i| (hash(i + 7) % 1000) as f32 / 500.0 - 1.0).collect();
    println!("{gpu}, {lists} lists of {items} items");
    for loss in LossType::ALL {
        let start = Instant::now();
        let spec = ListSpec {
            item_offsets: &item_offsets,
            rewards: &rewards,
            order: None,
            target_offsets: &[],
            loss,
            ties: Ties::Skip,
            labels: LipoLabels::Rank,
            log2: false,
        };
        let lists = RankedLists::new(&recorder, &spec)?;
        let ordered = start.elapsed();
        let gamma = recorder.upload(&scores)?;
        let (losses, d_gamma) = (recorder.alloc(lists.lists())?, recorder.alloc(lists.items())?);
        // Once to compile the kernels.
        list_loss(&mut recorder, &lists, &gamma, &losses, &d_gamma)?;
        recorder.read(&losses)?;
        let start = Instant::now();
        list_loss(&mut recorder, &lists, &gamma, &losses, &d_gamma)?;
        let values = recorder.read(&losses)?;
        let seconds = start.elapsed().as_secs_f64();
        let contributing = values.iter().filter(|&&value| value != 0.0).count();
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / contributing.max(1) as f64;
        println!(
            "{loss:?}: mean {mean:.4} over {contributing} lists; {:.1} ms for losses and gradients, {:.0} lists/s, \
             {:.0} ms to order them on the host",
            1e3 * seconds,
            f64::from(values.len() as u32) / seconds,
            1e3 * ordered.as_secs_f64(),
        );
    }
    Ok(())
}
