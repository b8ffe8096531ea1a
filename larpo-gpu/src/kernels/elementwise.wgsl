// One invocation an element of y (n).

struct Params {
    width: u32,
    n: u32,
    c: u32,     // columns of a row
    add: u32,   // 1: y += result
    value: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> s: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

fn index(group: vec3<u32>, id: u32) -> u32 {
    return (group.y * p.width + group.x) * 256u + id;
}

fn put(i: u32, value: f32) {
    if p.add == 1u {
        y[i] += value;
    } else {
        y[i] = value;
    }
}

// y = value
@compute @workgroup_size(256)
fn fill(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        y[i] = p.value;
    }
}

// y (+)= x, x (n)
@compute @workgroup_size(256)
fn copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        put(i, x[i]);
    }
}

// y *= s[0]
@compute @workgroup_size(256)
fn scale(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        y[i] *= s[0];
    }
}

// y (+)= s[0] · x, x (n)
@compute @workgroup_size(256)
fn scaled_copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        put(i, s[0] * x[i]);
    }
}

// y = value · tanh(y / value)
@compute @workgroup_size(256)
fn softcap(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        // tanh is 1 in single precision from 10 on; some drivers overflow far beyond.
        y[i] = p.value * tanh(clamp(y[i] / p.value, -10.0, 10.0));
    }
}

// y (n / c, c) (+)= x (c) in every row
@compute @workgroup_size(256)
fn broadcast_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        put(i, x[i % p.c]);
    }
}
