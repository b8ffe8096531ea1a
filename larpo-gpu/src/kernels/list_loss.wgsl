// List losses and their gradients by gamma (items), over ragged lists.
//
// `meta` holds, one section after another (its start is a parameter):
//   item_offsets (lists + 1)   items of list l are item_offsets[l] .. item_offsets[l + 1]
//   counts (lists)             1 where the list contributes
//   norm (lists)               f32 bits: factor on the list's loss
//   list_of (items)            the list of an item
//   order (items)              the item at each position, best first inside its list
//   group (items, 2)           positions of the tie group of a position: start, end
//   gain (items)               f32 bits: 2^label at each position
// `work` (2, items): a term of the loss at each position, and L (ListMLE) or 1 / D(rank) (LiPO) of each position (item).
//
// A gamma of -infinity is a response of probability 0: among the rivals it contributes nothing, as the winner it makes the loss
// +infinity with a finite gradient. A gamma that is NaN or +infinity, and two of -infinity in one comparison, make the list's
// loss NaN and its gradient 0.

struct Params {
    width: u32,
    lists: u32,
    items: u32,
    counts_at: u32,
    norm_at: u32,
    list_at: u32,
    order_at: u32,
    group_at: u32,
    gain_at: u32,
    ties: u32,      // 0: stable (or shuffled), 1: skip, 2: share
    lipo: u32,      // 1: pairs are weighted
    log_scale: f32, // of the discount's logarithm: 1, or 1 / ln 2
    nan: f32,
    infinity: f32,
}

@group(0) @binding(0) var<storage, read> meta_data: array<u32>;
@group(0) @binding(1) var<storage, read> gamma: array<f32>;
@group(0) @binding(2) var<storage, read_write> work: array<f32>;
@group(0) @binding(3) var<storage, read_write> d_gamma: array<f32>;
@group(0) @binding(4) var<storage, read_write> loss: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

fn index(group: vec3<u32>, id: u32) -> u32 {
    return (group.y * p.width + group.x) * 64u + id;
}

fn item_at(position: u32) -> u32 {
    return meta_data[p.order_at + position];
}

fn group_start(position: u32) -> u32 {
    return meta_data[p.group_at + 2u * position];
}

fn group_end(position: u32) -> u32 {
    return meta_data[p.group_at + 2u * position + 1u];
}

// A log-sum-exp that grows term by term: e^x·y is the sum.
fn grow(sum: vec2<f32>, x: f32) -> vec2<f32> {
    if is_minus_infinity(x) {
        return sum;
    }
    if x > sum.x {
        return vec2(x, sum.y * exp(sum.x - x) + 1.0);
    }
    return vec2(sum.x, sum.y + exp(x - sum.x));
}

const NOTHING = vec2(-1e30, 0.0);

// What softmax terms have in place of L where there is no rival of positive probability.
const NO_RIVAL = -1e38;

// (loss, slope) of log(1 + e^excess); `lost` when the winner has probability 0.
fn term_of(excess: f32, lost: bool) -> vec2<f32> {
    if lost {
        return vec2(p.infinity, 1.0);
    }
    return vec2(softplus(excess), sigmoid(excess));
}

// Whether no gamma of a list is NaN or +infinity.
fn usable(first: u32, end: u32) -> bool {
    var fine = true;
    for (var item = first; item < end; item++) {
        fine = fine && !is_unusable(gamma[item]);
    }
    return fine;
}

fn zero(first: u32, end: u32) {
    for (var item = first; item < end; item++) {
        d_gamma[item] = 0.0;
    }
}

// ---- contrastive: the softmax term of the first position. One invocation a list.
@compute @workgroup_size(64)
fn contrastive(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let list = index(group, id);
    if list >= p.lists {
        return;
    }
    let first = meta_data[list];
    let end = meta_data[list + 1u];
    zero(first, end);
    loss[list] = 0.0;
    if meta_data[p.counts_at + list] == 0u {
        return;
    }
    if !usable(first, end) {
        loss[list] = p.nan;
        return;
    }
    let rivals = select(first + 1u, group_end(first), p.ties == 1u);
    var sum = NOTHING;
    for (var q = rivals; q < end; q++) {
        sum = grow(sum, gamma[item_at(q)]);
    }
    let winner = gamma[item_at(first)];
    let lost = is_minus_infinity(winner);
    if sum.y == 0.0 {
        // Every rival has probability 0.
        if lost {
            loss[list] = p.nan;
        }
        return;
    }
    let total = sum.x + log_of(sum.y);
    let term = term_of(total - winner, lost);
    loss[list] = term.x;
    d_gamma[item_at(first)] = -term.y;
    for (var q = rivals; q < end; q++) {
        let x = gamma[item_at(q)];
        if !is_minus_infinity(x) {
            d_gamma[item_at(q)] = term.y * exp(x - total);
        }
    }
}

// ---- ListMLE: the softmax term of every position against those below. One invocation a list.
// A backward scan keeps the log-sum-exp L of the rivals; a forward scan keeps that of ln(slope_i) - L_i, so that the gradient of
// a rival, the sum of slope_i·exp(gamma - L_i) over the positions above, is one term.
@compute @workgroup_size(64)
fn listmle(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let list = index(group, id);
    if list >= p.lists {
        return;
    }
    let first = meta_data[list];
    let end = meta_data[list + 1u];
    zero(first, end);
    loss[list] = 0.0;
    if meta_data[p.counts_at + list] == 0u {
        return;
    }
    if !usable(first, end) {
        loss[list] = p.nan;
        return;
    }

    var value = 0.0;
    var fine = true;
    var below = NOTHING;  // all positions below
    var outside = NOTHING; // those below the tie group
    for (var next = end; next > first; next--) {
        let q = next - 1u;
        if next == group_end(q) {
            outside = below;
        }
        var rivals = below;
        if p.ties != 0u {
            rivals = outside;
        }
        if p.ties == 2u {
            for (var r = group_start(q); r < group_end(q); r++) {
                if r != q {
                    rivals = grow(rivals, gamma[item_at(r)]);
                }
            }
        }
        let x = gamma[item_at(q)];
        let lost = is_minus_infinity(x);
        var total = NO_RIVAL;
        if rivals.y > 0.0 {
            total = rivals.x + log_of(rivals.y);
            value += term_of(total - x, lost).x;
        } else if lost && has_rival(q, end) {
            fine = false;
        }
        work[p.items + q] = total;
        below = grow(below, x);
    }
    if !fine {
        loss[list] = p.nan;
        return;
    }
    loss[list] = value;

    var above = NOTHING;   // ln(slope) - L of the positions above
    var beyond = NOTHING;  // of those above the tie group
    for (var q = first; q < end; q++) {
        if q == group_start(q) {
            beyond = above;
        }
        let x = gamma[item_at(q)];
        let lost = is_minus_infinity(x);
        let total = work[p.items + q];
        var winners = above;
        if p.ties != 0u {
            winners = beyond;
        }
        var d = 0.0;
        if total != NO_RIVAL {
            d -= term_of(total - x, lost).y;
        }
        if !lost {
            if winners.y > 0.0 {
                d += winners.y * exp(winners.x + x);
            }
            if p.ties == 2u {
                for (var r = group_start(q); r < group_end(q); r++) {
                    let other = work[p.items + r];
                    if r != q && other != NO_RIVAL {
                        let y = gamma[item_at(r)];
                        d += term_of(other - y, is_minus_infinity(y)).y * exp(x - other);
                    }
                }
            }
        }
        d_gamma[item_at(q)] = d;
        if total != NO_RIVAL {
            if lost {
                above = grow(above, -total);
            } else {
                above = grow(above, -softplus(x - total) - total);
            }
        }
    }
}

// Whether the item at position q is compared with any other.
fn has_rival(q: u32, end: u32) -> bool {
    if p.ties == 0u {
        return q + 1u < end;
    }
    if p.ties == 1u {
        return group_end(q) < end;
    }
    return group_start(q) + 1u < end;
}

// ---- LiPO: work[items + i] = 1 / D(rank of item i by gamma, descending, ties to the lower item). One invocation an item.
@compute @workgroup_size(64)
fn lipo_discounts(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let item = index(group, id);
    if item >= p.items {
        return;
    }
    let list = meta_data[p.list_at + item];
    let end = meta_data[list + 1u];
    let x = gamma[item];
    var rank = 1u;
    for (var other = meta_data[list]; other < end; other++) {
        let y = gamma[other];
        if y > x || (y == x && other < item) {
            rank += 1u;
        }
    }
    work[p.items + item] = 1.0 / (p.log_scale * log_of(1.0 + f32(rank)));
}

// (loss, slope) of -log sigmoid(winner - loser); (NaN, 0) where both have probability 0.
fn pair(winner: f32, loser: f32) -> vec2<f32> {
    if is_minus_infinity(winner) {
        if is_minus_infinity(loser) {
            return vec2(p.nan, 0.0);
        }
        return vec2(p.infinity, 1.0);
    }
    if is_minus_infinity(loser) {
        return vec2(0.0);
    }
    let m = loser - winner;
    return vec2(softplus(m), sigmoid(m));
}

// ---- Pairs: the gradient of one item, and the terms of the pairs that it should win. One invocation a position.
@compute @workgroup_size(64)
fn pairs(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let q = index(group, id);
    if q >= p.items {
        return;
    }
    let list = meta_data[p.list_at + q];
    let item = item_at(q);
    work[q] = 0.0;
    d_gamma[item] = 0.0;
    if meta_data[p.counts_at + list] == 0u {
        return;
    }
    let norm = bitcast<f32>(meta_data[p.norm_at + list]);
    let start = group_start(q);
    let after = group_end(q);
    let end = meta_data[list + 1u];
    var value = 0.0;
    var d = 0.0;
    for (var r = meta_data[list]; r < end; r++) {
        var wins = select(0.0, 1.0, q < r);
        var loses = select(0.0, 1.0, q > r);
        if r >= start && r < after {
            if p.ties == 1u || p.lipo == 1u || r == q {
                wins = 0.0;
                loses = 0.0;
            } else if p.ties == 2u {
                wins = 0.5;
                loses = 0.5;
            }
        }
        let other = item_at(r);
        var weight = norm;
        if p.lipo == 1u {
            let gain = bitcast<f32>(meta_data[p.gain_at + q]) - bitcast<f32>(meta_data[p.gain_at + r]);
            weight = abs(gain) * abs(work[p.items + item] - work[p.items + other]);
        }
        // A weight of 0 takes no part: 0 times infinity would be NaN.
        if wins > 0.0 && weight > 0.0 {
            let term = pair(gamma[item], gamma[other]);
            value += weight * wins * term.x;
            d -= weight * wins * term.y;
        }
        if loses > 0.0 && weight > 0.0 {
            d += weight * loses * pair(gamma[other], gamma[item]).y;
        }
    }
    work[q] = value;
    d_gamma[item] = d;
}

// ---- The sum of the terms of a list of pairs. One invocation a list.
@compute @workgroup_size(64)
fn pair_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let list = index(group, id);
    if list >= p.lists {
        return;
    }
    let first = meta_data[list];
    let end = meta_data[list + 1u];
    loss[list] = 0.0;
    if meta_data[p.counts_at + list] == 0u {
        return;
    }
    var value = 0.0;
    var fine = usable(first, end);
    for (var q = first; q < end; q++) {
        let bits = bitcast<u32>(work[q]);
        fine = fine && (bits & 0x7fffffffu) <= 0x7f800000u;
        value += work[q];
    }
    if !fine {
        value = p.nan;
        zero(first, end);
    }
    loss[list] = value;
}
