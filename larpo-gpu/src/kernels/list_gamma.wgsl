// gamma of every item from log-probabilities of its targets, and the way back.
// target_offsets (items + 1): targets of item i are target_offsets[i] .. target_offsets[i + 1].
// Entries for short items have one invocation an item, those for long ones a workgroup.

struct Params {
    width: u32,
    items: u32,
    offsets_at: u32, // where target_offsets start in meta
    factor: f32,     // beta, or beta · scale on the way back
}

@group(0) @binding(0) var<storage, read> meta_data: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>; // log-probabilities (targets), or d_gamma (items)
@group(0) @binding(2) var<storage, read> reference: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // gamma (items), or d_logp (targets)
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> sums: array<f32, 64>;

// x (targets), reference (targets) -> gamma (items) = factor · sum of the differences
@compute @workgroup_size(64)
fn gamma_short(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let item = (group.y * p.width + group.x) * 64u + id;
    if item >= p.items {
        return;
    }
    let end = meta_data[p.offsets_at + item + 1u];
    var sum = 0.0;
    for (var t = meta_data[p.offsets_at + item]; t < end; t++) {
        sum += x[t] - reference[t];
    }
    y[item] = p.factor * sum;
}

@compute @workgroup_size(64)
fn gamma_long(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let item = group.y * p.width + group.x;
    if item >= p.items {
        return;
    }
    let end = meta_data[p.offsets_at + item + 1u];
    var sum = 0.0;
    for (var t = meta_data[p.offsets_at + item] + id; t < end; t += 64u) {
        sum += x[t] - reference[t];
    }
    sums[id] = sum;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if id < half {
            sums[id] += sums[id + half];
        }
        workgroupBarrier();
    }
    if id == 0u {
        y[item] = p.factor * sums[0];
    }
}

// x = d_gamma (items) -> d_logp (targets) = factor · d_gamma of the target's item
@compute @workgroup_size(64)
fn spread_short(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let item = (group.y * p.width + group.x) * 64u + id;
    if item >= p.items {
        return;
    }
    let end = meta_data[p.offsets_at + item + 1u];
    for (var t = meta_data[p.offsets_at + item]; t < end; t++) {
        y[t] = p.factor * x[item];
    }
}

@compute @workgroup_size(64)
fn spread_long(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let item = group.y * p.width + group.x;
    if item >= p.items {
        return;
    }
    let end = meta_data[p.offsets_at + item + 1u];
    for (var t = meta_data[p.offsets_at + item] + id; t < end; t += 64u) {
        y[t] = p.factor * x[item];
    }
}
