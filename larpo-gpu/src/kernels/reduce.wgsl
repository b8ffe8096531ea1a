// Sums of all elements in a fixed order: partial sums of workgroups, then one workgroup adds those.

struct Params {
    width: u32,
    n: u32,      // elements of x
    groups: u32, // partial sums
    mode: u32,   // 0: x², 1: w·x, 2: x
    at: u32,     // where the (first) result goes
    max_norm: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> sums: array<f32, 256>;

fn total(id: u32, value: f32) -> f32 {
    sums[id] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if id < half {
            sums[id] += sums[id + half];
        }
        workgroupBarrier();
    }
    return sums[0];
}

fn term(i: u32) -> f32 {
    if p.mode == 0u {
        return x[i] * x[i];
    }
    if p.mode == 1u {
        return x[i] * w[i];
    }
    return x[i];
}

// The sum of the terms that workgroup `index` of `count` takes, in every invocation.
fn share(index: u32, count: u32, id: u32) -> f32 {
    var sum = 0.0;
    // Neighbours load neighbours; the step is the same for every workgroup.
    for (var i = index * 256u + id; i < p.n; i += count * 256u) {
        sum += term(i);
    }
    return total(id, sum);
}

// x (n), w (n) -> y[at ..] (groups)
@compute @workgroup_size(256)
fn partial_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = group.y * p.width + group.x;
    if index >= p.groups {
        return;
    }
    let sum = share(index, p.groups, id);
    if id == 0u {
        y[p.at + index] = sum;
    }
}

// x (n) -> y[at]: the sum. One workgroup.
@compute @workgroup_size(256)
fn whole_sum(@builtin(local_invocation_index) id: u32) {
    let sum = share(0u, 1u, id);
    if id == 0u {
        y[p.at] = sum;
    }
}

// squared norms x (n) -> y (2): the norm, and the factor that brings it to max_norm at most. One workgroup.
@compute @workgroup_size(256)
fn clip(@builtin(local_invocation_index) id: u32) {
    let norm = sqrt(share(0u, 1u, id));
    if id == 0u {
        y[0] = norm;
        y[1] = 1.0;
        if p.max_norm > 0.0 && norm > p.max_norm {
            y[1] = p.max_norm / norm;
        }
    }
}
