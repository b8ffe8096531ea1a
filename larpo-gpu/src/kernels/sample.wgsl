// Draws one id a row of logits (n, vocab): temperature, top-k, top-p, min-p in this order, then the cumulative distribution in the
// order of ids at uniform (n), from the end where the number is negative. Workgroup: one row.
// The order of ids is (logit descending, id ascending). What is kept of it is a prefix: every id above a threshold, and the first
// `ties` of those at it. Thresholds are found bit by bit on logits mapped to u32 in their order.

struct Params {
    width: u32,
    n: u32,
    vocab: u32,
    limit: u32,   // ids at or above this are never drawn
    top_k: u32,   // 0: all
    inverse_temperature: f32, // 0: the most probable id
    top_p: f32,
    min_p: f32,
}

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> uniform_numbers: array<f32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // (n)
@group(0) @binding(3) var<storage, read_write> logp: array<f32>; // (n), untempered and untruncated
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> parts: array<f32, 256>;
var<workgroup> counts: array<u32, 256>;

fn sum_of(id: u32, value: f32) -> f32 {
    workgroupBarrier();
    parts[id] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if id < half {
            parts[id] += parts[id + half];
        }
        workgroupBarrier();
    }
    return parts[0];
}

fn count_of(id: u32, value: u32) -> u32 {
    workgroupBarrier();
    counts[id] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if id < half {
            counts[id] += counts[id + half];
        }
        workgroupBarrier();
    }
    return counts[0];
}

fn largest_of(id: u32, value: f32) -> f32 {
    workgroupBarrier();
    parts[id] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if id < half {
            parts[id] = max(parts[id], parts[id + half]);
        }
        workgroupBarrier();
    }
    return parts[0];
}

// The sum of what the invocations before this one hand in.
fn count_before(id: u32, value: u32) -> u32 {
    workgroupBarrier();
    counts[id] = value;
    workgroupBarrier();
    var sum = 0u;
    for (var i = 0u; i < id; i++) {
        sum += counts[i];
    }
    return sum;
}

// u32 in the order of the floats; 0 and -0 are one.
fn key(x: f32) -> u32 {
    let bits = bitcast<u32>(x + 0.0);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}

// Whether an id is in the prefix; `tie` counts the ids at the threshold so far.
fn is_kept(x: f32, threshold: u32, ties: u32, tie: ptr<function, u32>) -> bool {
    let k = key(x);
    if k == threshold {
        *tie += 1u;
        return *tie <= ties;
    }
    return k > threshold;
}

// The weights of the prefix among ids first .. end whose key is at least `lowest`.
fn kept_sum(base: u32, first: u32, end: u32, threshold: u32, ties: u32, before: u32, top: f32, lowest: u32) -> f32 {
    var tie = before;
    var sum = 0.0;
    for (var v = first; v < end; v++) {
        let x = logits[base + v];
        if is_kept(x, threshold, ties, &tie) && key(x) >= lowest {
            sum += exp((x - top) * p.inverse_temperature);
        }
    }
    return sum;
}

// The weight of an id that may be drawn, else 0.
fn kept_weight(x: f32, threshold: u32, ties: u32, tie: ptr<function, u32>, top: f32) -> f32 {
    if !is_kept(x, threshold, ties, tie) {
        return 0.0;
    }
    let weight = exp((x - top) * p.inverse_temperature);
    return select(0.0, weight, weight >= p.min_p);
}

@compute @workgroup_size(256)
fn sample(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let row = group.y * p.width + group.x;
    if row >= p.n {
        return;
    }
    let base = row * p.vocab;

    // Log-sum-exp of the whole row.
    var part = -1e30;
    for (var v = id; v < p.vocab; v += 256u) {
        part = max(part, logits[base + v]);
    }
    let row_top = largest_of(id, part);
    var exps = 0.0;
    for (var v = id; v < p.vocab; v += 256u) {
        exps += exp(logits[base + v] - row_top);
    }
    let lse = row_top + log_of(sum_of(id, exps));

    // From here on each invocation has ids first .. end, so that invocations are in the order of ids.
    let share = (p.limit + 255u) / 256u;
    let first = min(id * share, p.limit);
    let end = min(first + share, p.limit);
    part = -1e30;
    for (var v = first; v < end; v++) {
        part = max(part, logits[base + v]);
    }
    let top = largest_of(id, part);

    // The k-th largest: the largest threshold with at least k ids at or above it. One for temperature 0.
    var threshold = 0u;
    var ties = p.limit;
    let k = select(p.top_k, 1u, p.inverse_temperature == 0.0);
    if k > 0u && k < p.limit {
        for (var bit = 0u; bit < 32u; bit++) {
            let candidate = threshold | (0x80000000u >> bit);
            var count = 0u;
            for (var v = first; v < end; v++) {
                count += select(0u, 1u, key(logits[base + v]) >= candidate);
            }
            threshold = select(threshold, candidate, count_of(id, count) >= k);
        }
        var above = 0u;
        for (var v = first; v < end; v++) {
            above += select(0u, 1u, key(logits[base + v]) > threshold);
        }
        ties = k - count_of(id, above);
    }

    // The smallest prefix of at least top_p of the probability: likewise, with the ids at the threshold added one by one.
    if p.inverse_temperature > 0.0 && p.top_p < 1.0 {
        var mine = 0u;
        for (var v = first; v < end; v++) {
            mine += select(0u, 1u, key(logits[base + v]) == threshold);
        }
        let before = count_before(id, mine);
        let goal = p.top_p * sum_of(id, kept_sum(base, first, end, threshold, ties, before, top, 0u));
        var lowest = 0u;
        for (var bit = 0u; bit < 32u; bit++) {
            let candidate = lowest | (0x80000000u >> bit);
            let sum = sum_of(id, kept_sum(base, first, end, threshold, ties, before, top, candidate));
            lowest = select(lowest, candidate, sum >= goal);
        }
        let above_sum = sum_of(id, kept_sum(base, first, end, threshold, ties, before, top, lowest + 1u));
        let weight = exp((value_of(lowest) - top) * p.inverse_temperature);
        let needed = u32(clamp(ceil((goal - above_sum) / weight), 1.0, 4e9));
        ties = select(needed, min(needed, ties), lowest == threshold);
        threshold = lowest;
    }

    // What is kept, by ids.
    var mine = 0u;
    for (var v = first; v < end; v++) {
        mine += select(0u, 1u, key(logits[base + v]) == threshold);
    }
    let before = count_before(id, mine);
    var tie = before;
    var kept = 0.0;
    for (var v = first; v < end; v++) {
        kept += kept_weight(logits[base + v], threshold, ties, &tie, top);
    }
    workgroupBarrier();
    parts[id] = kept;
    workgroupBarrier();
    // Sums begin at the nearer end: the small ones there are exact to their own last digits.
    let from_end = uniform_numbers[row] < 0.0;
    if id == 0u {
        var total = 0.0;
        var lowest_part = 255u;
        var last = 0u;
        for (var i = 0u; i < 256u; i++) {
            total += parts[i];
            lowest_part = select(lowest_part, min(lowest_part, i), parts[i] > 0.0);
            last = select(last, i, parts[i] > 0.0);
        }
        let goal = abs(uniform_numbers[row]) * total;
        var sum = 0.0;
        var owner = select(last, lowest_part, from_end);
        if from_end {
            for (var i = last; i > lowest_part; i--) {
                if sum + parts[i] >= goal {
                    owner = i;
                    break;
                }
                sum += parts[i];
            }
        } else {
            for (var i = 0u; i < last; i++) {
                if sum + parts[i] > goal {
                    owner = i;
                    break;
                }
                sum += parts[i];
            }
        }
        counts[0] = owner;
        parts[0] = goal - sum;
    }
    workgroupBarrier();
    if id == counts[0] {
        tie = select(before, before + mine, from_end);
        var sum = 0.0;
        var drawn = first;
        for (var i = first; i < end; i++) {
            let v = select(i, end - 1u - (i - first), from_end);
            let x = logits[base + v];
            // The ids at the threshold before this one.
            if from_end && key(x) == threshold {
                tie -= 1u;
            }
            var at = tie;
            let weight = kept_weight(x, threshold, ties, &at, top);
            tie = select(at, tie, from_end);
            if weight > 0.0 {
                drawn = v;
                sum += weight;
                if sum > parts[0] || (from_end && sum >= parts[0]) {
                    break;
                }
            }
        }
        ids[row] = drawn;
        logp[row] = logits[base + drawn] - lse;
    }
}
