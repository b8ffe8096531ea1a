// Log-probabilities of targets from logits (rows, columns) of one chunk of the vocabulary at a time, the columns being the
// ids first .. first + columns.
// targets: row_offsets (rows + 1), then ids (n), then the targets' numbers (n), sorted by row: targets j of row r are
// row_offsets[r] .. row_offsets[r + 1].

struct Params {
    width: u32,
    rows: u32,
    n: u32,       // targets
    columns: u32,
    first: u32,   // id of the first column
    start: u32,   // 1: the first chunk
    softcap: f32, // logits become c·tanh(logit / c); 0: they stay
}

@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> d_logp: array<f32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>; // (rows, 2): maximum, sum of exp(logit - maximum)
@group(0) @binding(4) var<storage, read_write> hits: array<f32>;  // (n): logit of each target
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;   // (rows)
@group(0) @binding(6) var<storage, read_write> logp: array<f32>;  // (n), by the targets' own numbers
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> parts: array<vec2<f32>, 128>;

// (capped logit, slope of the cap)
fn capped(x: f32) -> vec2<f32> {
    if p.softcap > 0.0 {
        // tanh is 1 in single precision from 10 on; some drivers overflow far beyond.
        let t = tanh(clamp(x / p.softcap, -10.0, 10.0));
        return vec2(p.softcap * t, 1.0 - t * t);
    }
    return vec2(x, 1.0);
}

// Two parts of a log-sum-exp: e^x·y.
fn joined(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let top = max(a.x, b.x);
    return vec2(top, a.y * exp(a.x - top) + b.y * exp(b.x - top));
}

// logits -> stats, joined to those of the chunks before, and hits of this chunk. Workgroup: one row.
@compute @workgroup_size(128)
fn token_logp_chunk(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let row = group.y * p.width + group.x;
    if row >= p.rows {
        return;
    }
    let base = row * p.columns;
    var top = -1e30;
    for (var v = id; v < p.columns; v += 128u) {
        top = max(top, capped(logits[base + v]).x);
    }
    var sum = 0.0;
    for (var v = id; v < p.columns; v += 128u) {
        sum += exp(capped(logits[base + v]).x - top);
    }
    parts[id] = vec2(top, sum);
    workgroupBarrier();
    for (var half = 64u; half > 0u; half /= 2u) {
        if id < half {
            parts[id] = joined(parts[id], parts[id + half]);
        }
        workgroupBarrier();
    }
    if id == 0u {
        var all = parts[0];
        if p.start == 0u {
            all = joined(vec2(stats[2u * row], stats[2u * row + 1u]), all);
        }
        stats[2u * row] = all.x;
        stats[2u * row + 1u] = all.y;
    }
    for (var j = targets[row] + id; j < targets[row + 1u]; j += 128u) {
        let v = targets[p.rows + 1u + j] - p.first;
        if v < p.columns {
            hits[j] = capped(logits[base + v]).x;
        }
    }
}

// stats, hits -> lse (rows), logp (n). One invocation a row.
@compute @workgroup_size(128)
fn token_logp_finish(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let row = (group.y * p.width + group.x) * 128u + id;
    if row >= p.rows {
        return;
    }
    let total = stats[2u * row] + log_of(stats[2u * row + 1u]);
    lse[row] = total;
    for (var j = targets[row]; j < targets[row + 1u]; j++) {
        logp[targets[p.rows + 1u + p.n + j]] = hits[j] - total;
    }
}

// d_logp (n), lse (rows), logits -> d_logits, in the place of the logits. One invocation an element.
@compute @workgroup_size(128)
fn token_logp_grad(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let at = (group.y * p.width + group.x) * 128u + id;
    let row = at / p.columns;
    if row >= p.rows {
        return;
    }
    let word = p.first + at % p.columns;
    var all = 0.0;
    var hit = 0.0;
    for (var j = targets[row]; j < targets[row + 1u]; j++) {
        let d = d_logp[targets[p.rows + 1u + p.n + j]];
        all += d;
        if targets[p.rows + 1u + j] == word {
            hit += d;
        }
    }
    let z = capped(logits[at]);
    logits[at] = z.y * (hit - all * exp(z.x - lse[row]));
}
