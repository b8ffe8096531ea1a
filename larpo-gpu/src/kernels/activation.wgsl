// Activations and gated units. kind 0: x·sigmoid(x); 1: x/2·(1 + tanh(sqrt(2/pi)·(x + 0.044715·x³))).

struct Params {
    width: u32,
    n: u32,       // elements of the result, for glu_grad those of d_y
    columns: u32, // of one half of a row of gate_up
    kind: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> d_y: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

fn index(group: vec3<u32>, id: u32) -> u32 {
    return (group.y * p.width + group.x) * 256u + id;
}

// The activation and its slope.
fn activation(v: f32) -> vec2<f32> {
    if p.kind == 0u {
        let e = exp(-abs(v));
        let s = select(e, 1.0, v >= 0.0) / (1.0 + e);
        let other = select(1.0, e, v >= 0.0) / (1.0 + e); // 1 - s without cancellation
        return vec2(v * s, s + v * s * other);
    }
    let c = 0.7978845608028654;
    // tanh is 1 in single precision from 10 on; some drivers overflow far beyond.
    let t = tanh(clamp(c * (v + 0.044715 * v * v * v), -10.0, 10.0));
    let slope = c * (1.0 + 0.134145 * v * v);
    return vec2(0.5 * v * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * slope);
}

// x (n) -> y (n)
@compute @workgroup_size(256)
fn activate(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        y[i] = activation(x[i]).x;
    }
}

// d_y (n), x (n) -> d_x (n)
@compute @workgroup_size(256)
fn activate_grad(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        y[i] = d_y[i] * activation(x[i]).y;
    }
}

// gate_up (rows, 2·columns) -> y (rows, columns) = activation(gate)·up
@compute @workgroup_size(256)
fn glu(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        let at = i / p.columns * 2u * p.columns + i % p.columns;
        y[i] = activation(x[at]).x * x[at + p.columns];
    }
}

// d_y (rows, columns), gate_up (rows, 2·columns) -> d_gate_up (rows, 2·columns)
@compute @workgroup_size(256)
fn glu_grad(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = index(group, id);
    if i < p.n {
        let at = i / p.columns * 2u * p.columns + i % p.columns;
        let both = activation(x[at]);
        y[at] = d_y[i] * x[at + p.columns] * both.y;
        y[at + p.columns] = d_y[i] * both.x;
    }
}
