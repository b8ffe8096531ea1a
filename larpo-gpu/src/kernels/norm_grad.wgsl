// Gradients of norm.wgsl, whose layout of rows and slots they share.

struct Params {
    width: u32,
    slots: u32, // norm_grad: rows · per; norm_grad_w: rows · counted slots
    per: u32,
    normed: u32,
    heads: u32,
    d: u32,
    row: u32,
    layer: u32,
    offset: f32,
    add: u32,   // 1: d_x += result
    first: u32, // norm_grad_w: the first slot that has the weight,
    count: u32, // and how many there are
    chunk: u32, // norm_grad_w: slots added up by one invocation
}

@group(0) @binding(0) var<storage, read> d_y: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> w2: array<f32>;
@group(0) @binding(4) var<storage, read> stats: array<f32>;
@group(0) @binding(5) var<storage, read_write> result: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> sums: array<vec2<f32>, 64>;

fn total(id: u32, value: vec2<f32>) -> vec2<f32> {
    sums[id] = value;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if id < half {
            sums[id] += sums[id + half];
        }
        workgroupBarrier();
    }
    return sums[0];
}

// (mean, rstd) of a normed slot
fn stat(at: u32) -> vec2<f32> {
    if p.layer == 1u {
        return vec2(stats[2u * at], stats[2u * at + 1u]);
    }
    return vec2(0.0, stats[at]);
}

fn weight(at_slot: u32, i: u32) -> f32 {
    if at_slot < p.heads {
        return p.offset + w[i];
    }
    return p.offset + w2[i];
}

// d_y, x, w, stats -> d_x, all of x's shape. Workgroup: one slot.
// With u = x - mean, g = d_y·w: d_x = rstd·g - u·rstd³·mean(g·u), and for layer norms - rstd·mean(g).
@compute @workgroup_size(64)
fn norm_grad(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = group.y * p.width + group.x;
    if index >= p.slots {
        return;
    }
    let row = index / p.per;
    let at_slot = index % p.per;
    let base = row * p.row + at_slot * p.d;
    if at_slot >= p.normed {
        for (var i = id; i < p.d; i += 64u) {
            put(base + i, d_y[base + i]);
        }
        return;
    }
    let s = stat(row * p.normed + at_slot);
    var part = vec2(0.0);
    for (var i = id; i < p.d; i += 64u) {
        let g = d_y[base + i] * weight(at_slot, i);
        part += vec2(g * (x[base + i] - s.x), g);
    }
    let sum = total(id, part) / f32(p.d);
    let along = sum.x * s.y * s.y * s.y;
    let shift = select(0.0, sum.y * s.y, p.layer == 1u);
    for (var i = id; i < p.d; i += 64u) {
        let g = d_y[base + i] * weight(at_slot, i);
        put(base + i, g * s.y - (x[base + i] - s.x) * along - shift);
    }
}

fn put(at: u32, value: f32) {
    if p.add == 1u {
        result[at] += value;
    } else {
        result[at] = value;
    }
}

// d_y, x, stats -> sums (chunks, d) of d_y·(x - mean)·rstd over chunks of slots. One invocation an element of the sums.
@compute @workgroup_size(64)
fn norm_grad_w(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = (group.y * p.width + group.x) * 64u + id;
    let chunk = index / p.d;
    let i = index % p.d;
    let start = chunk * p.chunk;
    if start >= p.slots {
        return;
    }
    var sum = 0.0;
    for (var at = start; at < min(start + p.chunk, p.slots); at++) {
        let row = at / p.count;
        let at_slot = p.first + at % p.count;
        let s = stat(row * p.normed + at_slot);
        let source = row * p.row + at_slot * p.d + i;
        sum += d_y[source] * (x[source] - s.x) * s.y;
    }
    result[chunk * p.d + i] = sum;
}
