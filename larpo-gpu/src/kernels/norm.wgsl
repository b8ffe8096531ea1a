// Norms of rows. x is (rows, width), each row `per` slots of d numbers. The first `normed` slots of a row are normed, with the
// weights w (d) in the first `heads` of them and w2 (d) in the others; the remaining slots are copied.
// A plain norm of rows has per = normed = heads = 1 and width = d.
// Workgroup: one slot. stats (rows, normed), for layer norms (rows, normed, 2): mean, rstd.

struct Params {
    width: u32,
    slots: u32, // rows · per
    per: u32,
    normed: u32,
    heads: u32,
    d: u32,
    row: u32,   // numbers from one row of x to the next
    layer: u32, // 1: subtract the mean
    eps: f32,
    offset: f32, // added to the weights
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> w2: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> sums: array<f32, 64>;

// The sum over the workgroup, in a fixed order.
fn total(id: u32, value: f32) -> f32 {
    workgroupBarrier();
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

@compute @workgroup_size(64)
fn norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = group.y * p.width + group.x;
    if index >= p.slots {
        return;
    }
    let row = index / p.per;
    let at_slot = index % p.per;
    let base = row * p.row + at_slot * p.d;
    if at_slot >= p.normed {
        for (var i = id; i < p.d; i += 64u) {
            y[base + i] = x[base + i];
        }
        return;
    }
    var mean = 0.0;
    if p.layer == 1u {
        var sum = 0.0;
        for (var i = id; i < p.d; i += 64u) {
            sum += x[base + i];
        }
        mean = total(id, sum) / f32(p.d);
    }
    var square = 0.0;
    for (var i = id; i < p.d; i += 64u) {
        let u = x[base + i] - mean;
        square += u * u;
    }
    let rstd = 1.0 / sqrt(total(id, square) / f32(p.d) + p.eps);
    for (var i = id; i < p.d; i += 64u) {
        var weight = p.offset;
        if at_slot < p.heads {
            weight += w[i];
        } else {
            weight += w2[i];
        }
        y[base + i] = (x[base + i] - mean) * rstd * weight;
    }
    if id == 0u {
        let at = row * p.normed + at_slot;
        if p.layer == 1u {
            stats[2u * at] = mean;
            stats[2u * at + 1u] = rstd;
        } else {
            stats[at] = rstd;
        }
    }
}
