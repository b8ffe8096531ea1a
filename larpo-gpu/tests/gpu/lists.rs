//! List losses, softmax inside lists, and the way between targets and scores.

use crate::common::{Rng, blank, compare, devices, run, wide};
use larpo_gpu::kernels::list_loss::{gamma, gamma_grad, list_loss, list_softmax, list_softmax_grad};
use larpo_gpu::kernels::lists::{LipoLabels, ListSpec, LossType, RankedLists, Ties};
use larpo_gpu::{Error, Recorder};

/// Nothing, one item, lists of training, and more than a workgroup.
const SIZES: [usize; 14] = [0, 1, 2, 2, 3, 4, 4, 10, 10, 17, 33, 64, 65, 130];

fn offsets(sizes: &[usize]) -> Vec<u32> {
    let mut end = 0;
    let ends = sizes.iter().map(|&size| {
        end += size as u32;
        end
    });
    std::iter::once(0).chain(ends).collect()
}

#[derive(Clone, Copy, Debug)]
struct Options {
    loss: LossType,
    ties: Ties,
    labels: LipoLabels,
    log2: bool,
}

/// Loss and gradient of one list from the definitions, items compared by their rewards; `order` holds them best first.
fn twin(o: Options, rewards: &[f64], order: &[usize], g: &[f64]) -> (f64, Vec<f64>) {
    let m = rewards.len();
    let mut d = vec![0.0; m];
    let all_equal = rewards.iter().all(|&r| r == rewards[0]);
    if m < 2 || (all_equal && o.ties != Ties::Stable) {
        return (0.0, d);
    }
    let place = |i: usize| order.iter().position(|&other| other == i).unwrap();
    // How much i counts as the winner over j.
    let wins = |i: usize, j: usize| -> f64 {
        if rewards[i] != rewards[j] {
            return f64::from(u8::from(rewards[i] > rewards[j]));
        }
        match o.ties {
            Ties::Stable | Ties::Shuffled => f64::from(u8::from(place(i) < place(j))),
            Ties::Skip => 0.0,
            Ties::Share => 0.5,
        }
    };
    let label = |i: usize| match o.labels {
        LipoLabels::Reward => rewards[i],
        LipoLabels::Rank => {
            let above = rewards.iter().filter(|&&r| r > rewards[i]).count() as f64;
            let tied = rewards.iter().filter(|&&r| r == rewards[i]).count() as f64;
            (m as f64 - (above + (tied + 1.0) / 2.0)) / (m as f64 - 1.0)
        }
    };
    let discount = |i: usize| {
        let rank = 1 + (0..m).filter(|&j| g[j] > g[i] || (g[j] == g[i] && j < i)).count();
        if o.log2 { (1.0 + rank as f64).log2() } else { (1.0 + rank as f64).ln() }
    };
    let mut loss = 0.0;
    match o.loss {
        LossType::Contrastive | LossType::Listmle => {
            let winners = if o.loss == LossType::Contrastive { &order[..1] } else { order };
            for &i in winners {
                let rivals: Vec<usize> = (0..m).filter(|&j| j != i && wins(i, j) > 0.0).collect();
                let total = g[i].exp() + rivals.iter().map(|&j| g[j].exp()).sum::<f64>();
                loss += total.ln() - g[i];
                d[i] += g[i].exp() / total - 1.0;
                rivals.iter().for_each(|&j| d[j] += g[j].exp() / total);
            }
        }
        LossType::Pairwise | LossType::Lambdarank | LossType::LipoLambda => {
            let mut weights = 0.0;
            for (i, j) in (0..m).flat_map(|i| (0..m).map(move |j| (i, j))).filter(|(i, j)| i != j) {
                let weight = match o.loss {
                    LossType::LipoLambda if rewards[i] > rewards[j] => {
                        (label(i).exp2() - label(j).exp2()).abs() * (1.0 / discount(i) - 1.0 / discount(j)).abs()
                    }
                    LossType::LipoLambda => 0.0,
                    _ => wins(i, j),
                };
                let margin = g[i] - g[j];
                let slope = weight / (1.0 + margin.exp());
                loss += weight * (-margin).exp().ln_1p();
                d[i] -= slope;
                d[j] += slope;
                weights += weight;
            }
            if o.loss == LossType::Pairwise {
                loss /= weights;
                d.iter_mut().for_each(|d| *d /= weights);
            }
        }
    }
    (loss, d)
}

/// Rewards all different (0 levels) or tied in levels, and an order by them with tied items shuffled.
fn ranked(rng: &mut Rng, sizes: &[usize], levels: usize) -> (Vec<f64>, Vec<u32>) {
    let (mut rewards, mut order) = (Vec::new(), Vec::new());
    for &m in sizes {
        let first = rewards.len();
        rewards.extend((0..m).map(|_| match levels {
            0 => rng.uniform(),
            levels => rng.index(levels) as f64 / levels as f64,
        }));
        let mut items: Vec<u32> = (first as u32..(first + m) as u32).collect();
        items.sort_by_cached_key(|_| rng.next());
        items.sort_by(|&a, &b| rewards[b as usize].total_cmp(&rewards[a as usize]));
        order.extend(items);
    }
    (rewards, order)
}

fn check(o: Options, levels: usize, size: f64) {
    let mut rng = Rng::new(levels * 7 + size as usize);
    let item_offsets = offsets(&SIZES);
    let (rewards, shuffled) = ranked(&mut rng, &SIZES, levels);
    let g = rng.floats(rewards.len(), size);
    let (mut losses, mut d) = (Vec::new(), Vec::new());
    for range in item_offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize) {
        let mut order: Vec<usize> = (0..range.len()).collect();
        match o.ties {
            Ties::Shuffled => order = shuffled[range.clone()].iter().map(|&i| i as usize - range.start).collect(),
            _ => order.sort_by(|&a, &b| rewards[range.start + b].total_cmp(&rewards[range.start + a])),
        }
        let (loss, d_gamma) = twin(o, &rewards[range.clone()], &order, &wide(&g[range]));
        losses.push(loss);
        d.extend(d_gamma);
    }
    let spec = ListSpec {
        item_offsets: &item_offsets,
        rewards: &rewards,
        order: (o.ties == Ties::Shuffled).then_some(&shuffled[..]),
        target_offsets: &[],
        loss: o.loss,
        ties: o.ties,
        labels: o.labels,
        log2: o.log2,
    };
    let kernels = |r: &mut Recorder| {
        let lists = RankedLists::new(r, &spec)?;
        let (g, loss, d_gamma) = (r.upload(&g)?, blank(r, lists.lists())?, blank(r, lists.items())?);
        list_loss(r, &lists, &g, &loss, &d_gamma)?;
        Ok(vec![loss, d_gamma])
    };
    compare(&format!("{o:?} levels {levels} size {size}"), kernels, &[losses, d]);
}

fn check_all(loss: LossType, labels: LipoLabels, log2: bool) {
    for ties in Ties::ALL {
        for (levels, size) in [(0, 1.0), (1, 3.0), (2, 0.1), (3, 30.0)] {
            check(Options { loss, ties, labels, log2 }, levels, size);
        }
    }
}

#[test]
fn gpu_pairwise() {
    check_all(LossType::Pairwise, LipoLabels::Rank, false);
}

#[test]
fn gpu_contrastive() {
    check_all(LossType::Contrastive, LipoLabels::Rank, false);
}

#[test]
fn gpu_lambdarank() {
    check_all(LossType::Lambdarank, LipoLabels::Rank, false);
}

#[test]
fn gpu_listmle() {
    check_all(LossType::Listmle, LipoLabels::Rank, false);
}

#[test]
fn gpu_lipo_lambda() {
    check_all(LossType::LipoLambda, LipoLabels::Rank, false);
    check_all(LossType::LipoLambda, LipoLabels::Rank, true);
    check_all(LossType::LipoLambda, LipoLabels::Reward, false);
}

fn spec<'a>(loss: LossType, item_offsets: &'a [u32], rewards: &'a [f64]) -> ListSpec<'a> {
    let labels = LipoLabels::Rank;
    let ties = Ties::Skip;
    ListSpec { item_offsets, rewards, order: None, target_offsets: &[], loss, ties, labels, log2: false }
}

/// (loss, gradient) of lists of two or more items, descending in reward.
fn evaluate(loss: LossType, lists: &[&[f32]]) -> Option<(Vec<f32>, Vec<f32>)> {
    let item_offsets = offsets(&lists.iter().map(|list| list.len()).collect::<Vec<_>>());
    let rewards: Vec<f64> = lists.iter().flat_map(|list| (0..list.len()).map(|i| -(i as f64))).collect();
    let g: Vec<f32> = lists.concat();
    let mut outputs = run(|r| {
        let lists = RankedLists::new(r, &spec(loss, &item_offsets, &rewards))?;
        let (g, loss, d_gamma) = (r.upload(&g)?, blank(r, lists.lists())?, blank(r, lists.items())?);
        list_loss(r, &lists, &g, &loss, &d_gamma)?;
        Ok(vec![loss, d_gamma])
    })?;
    let d = outputs.pop()?;
    Some((outputs.pop()?, d))
}

/// Probabilities of 0, and scores that are none. A list beside the bad one is not touched.
#[test]
fn gpu_list_losses_of_infinities_and_nan() {
    const INF: f32 = f32::INFINITY;
    for loss in LossType::ALL {
        let bad: [&[f32]; 3] = [&[0.5, f32::NAN, 0.0], &[INF, 0.0], &[-INF, -INF]];
        for list in bad {
            let Some((losses, d)) = evaluate(loss, &[&[0.0, 0.0], list, &[0.0, 0.0]]) else { return };
            assert!(losses[1].is_nan(), "{loss:?} {list:?}: {losses:?}");
            assert!(d[2..2 + list.len()].iter().all(|&d| d == 0.0), "{loss:?} {list:?}: {d:?}");
            assert!(losses[0] > 0.1 && losses[0] == losses[2] && d[0] < 0.0, "{loss:?} {list:?}: {losses:?} {d:?}");
        }
        // The rival has probability 0: nothing to learn. The preferred item has: all of it, with a finite gradient.
        let (losses, d) = evaluate(loss, &[&[0.0, -INF], &[-INF, 0.0]]).unwrap();
        assert_eq!((losses[0], &d[..2]), (0.0, &[0.0, 0.0][..]), "{loss:?}");
        assert_eq!(losses[1], INF, "{loss:?}");
        assert!(d[2] < 0.0 && d[2] == -d[3] && d[3].is_finite(), "{loss:?}: {d:?}");
        // Huge differences neither overflow nor cancel.
        let (losses, d) = evaluate(loss, &[&[-1000.0, 1000.0], &[1000.0, -1000.0]]).unwrap();
        assert!(losses[0] > 100.0 && losses[0].is_finite() && losses[1] == 0.0, "{loss:?}: {losses:?}");
        assert!(d[0] < 0.0 && d[0] == -d[1] && d[2] == 0.0, "{loss:?}: {d:?}");
    }
}

/// A list of two is the same loss in all of them, LiPO's weight apart: DPO.
#[test]
fn gpu_list_losses_of_two_items_agree() {
    let two: [&[f32]; 3] = [&[0.3, -0.9], &[-2.0, 1.5], &[0.25, 0.25]];
    let Some(want) = evaluate(LossType::Pairwise, &two) else { return };
    for loss in [LossType::Contrastive, LossType::Lambdarank, LossType::Listmle] {
        let (losses, d) = evaluate(loss, &two).unwrap();
        for (a, b) in losses.iter().chain(&d).zip(want.0.iter().chain(&want.1)) {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{loss:?}: {losses:?} {d:?} {want:?}");
        }
    }
}

/// Thousands of lists in a dispatch.
#[test]
fn gpu_many_lists() {
    let lists = 20_000;
    let (item_offsets, rewards): (Vec<u32>, Vec<f64>) =
        ((0..=lists).map(|l| 4 * l).collect(), (0..4 * lists).map(|i| f64::from(i % 4)).collect());
    let g = vec![0.5f32; rewards.len()];
    for (loss, at_equal) in [(LossType::Listmle, 24f64.ln()), (LossType::Lambdarank, 6.0 * 2f64.ln())] {
        let kernels = |r: &mut Recorder| {
            let lists = RankedLists::new(r, &spec(loss, &item_offsets, &rewards))?;
            let (g, loss, d_gamma) = (r.upload(&g)?, blank(r, lists.lists())?, blank(r, lists.items())?);
            list_loss(r, &lists, &g, &loss, &d_gamma)?;
            Ok(vec![loss])
        };
        compare(&format!("{loss:?}"), kernels, &[vec![at_equal; lists as usize]]);
    }
}

#[test]
fn gpu_gamma_and_its_gradient() {
    // Short responses, an empty one among them, and long ones.
    for lengths in [vec![1, 3, 0, 2, 31, 1], vec![64, 65, 1, 0, 300, 129]] {
        let mut rng = Rng::new(lengths[0]);
        let target_offsets = offsets(&lengths);
        let n: usize = lengths.iter().sum();
        let (logp, reference) = (rng.floats(n, 1.0), rng.floats(n, 1.0));
        let d_gamma = rng.floats(lengths.len(), 1.0);
        let (mut want, mut d_want) = (Vec::new(), Vec::new());
        for (i, pair) in target_offsets.windows(2).enumerate() {
            let targets = pair[0] as usize..pair[1] as usize;
            let difference = |t: usize| f64::from(logp[t]) - f64::from(reference[t]);
            want.push(0.3 * targets.clone().map(difference).sum::<f64>());
            d_want.extend(targets.map(|_| 0.3 * 0.25 * f64::from(d_gamma[i])));
        }
        let rewards = [1.0, 0.0, 0.5, 2.0, 1.0, 0.0];
        let item_offsets = [0, 4, 6];
        let spec = ListSpec { target_offsets: &target_offsets, ..spec(LossType::Listmle, &item_offsets, &rewards) };
        let kernels = |r: &mut Recorder| {
            let lists = RankedLists::new(r, &spec)?;
            let (logp, reference, d_gamma) = (r.upload(&logp)?, r.upload(&reference)?, r.upload(&d_gamma)?);
            let (g, d_logp) = (blank(r, lists.items())?, blank(r, lists.targets())?);
            gamma(r, &lists, 0.3, &logp, &reference, &g);
            gamma_grad(r, &lists, 0.3 * 0.25, &d_gamma, &d_logp);
            Ok(vec![g, d_logp])
        };
        compare(&format!("{lengths:?}"), kernels, &[want, d_want]);
    }
}

#[test]
fn gpu_list_softmax() {
    for size in [0.1, 3.0, 80.0] {
        let mut rng = Rng::new(size as usize);
        let item_offsets = offsets(&SIZES);
        let n = SIZES.iter().sum();
        let (x, d_y) = (rng.floats(n, size), rng.floats(n, 1.0));
        let (mut y, mut d_x) = (Vec::new(), Vec::new());
        for range in item_offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize) {
            let (x, d_y) = (wide(&x[range.clone()]), wide(&d_y[range]));
            let sum: f64 = x.iter().map(|x| x.exp()).sum();
            let p: Vec<f64> = x.iter().map(|x| x.exp() / sum).collect();
            let mean: f64 = p.iter().zip(&d_y).map(|(p, d)| p * d).sum();
            d_x.extend(p.iter().zip(&d_y).map(|(p, d)| p * (d - mean)));
            y.extend(p);
        }
        let rewards = vec![0.0; n];
        let kernels = |r: &mut Recorder| {
            let lists = RankedLists::new(r, &spec(LossType::Listmle, &item_offsets, &rewards))?;
            let (x, d_y, y, d_x) = (r.upload(&x)?, r.upload(&d_y)?, blank(r, n)?, blank(r, n)?);
            list_softmax(r, &lists, &x, &y);
            list_softmax_grad(r, &lists, &y, &d_y, &d_x);
            Ok(vec![y, d_x])
        };
        compare(&format!("{size}"), kernels, &[y, d_x]);
    }
}

#[test]
fn gpu_lists_refuse_what_has_no_order() {
    let Some(devices) = devices() else { return };
    let recorder = Recorder::new(&devices.trusted).unwrap();
    let refused = |spec: &ListSpec, words: &str| {
        let error = RankedLists::new(&recorder, spec).unwrap_err();
        assert!(matches!(&error, Error::Index(message) if message.contains(words)), "{error}");
    };
    let good = spec(LossType::Listmle, &[0, 2, 3], &[1.0, 2.0, 0.0]);
    assert!(RankedLists::new(&recorder, &good).is_ok());
    refused(&ListSpec { item_offsets: &[0, 2], ..good }, "item_offsets");
    refused(&ListSpec { item_offsets: &[0, 3, 2, 3], ..good }, "item_offsets");
    refused(&ListSpec { item_offsets: &[], ..good }, "item_offsets");
    refused(&ListSpec { rewards: &[1.0, f64::NAN, 0.0], ..good }, "item 1 is NaN");
    refused(&ListSpec { order: Some(&[0, 1, 2]), ..good }, "order");
    refused(&ListSpec { order: Some(&[1, 2, 0]), ..good }, "order");
    refused(&ListSpec { target_offsets: &[0, 1], ..good }, "target_offsets");
}
