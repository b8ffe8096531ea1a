// One AdamW update (Loshchilov & Hutter 2019, algorithm 2) of w (n) with the gradient g (n) · clip[1]; m, v (n) the moments.

struct Params {
    width: u32,
    n: u32,
    rate: f32,
    beta1: f32,
    rest1: f32, // 1 - beta1
    beta2: f32,
    rest2: f32,
    eps: f32,
    decay: f32,
    m_scale: f32, // 1 / (1 - beta1^step)
    v_scale: f32,
}

@group(0) @binding(0) var<storage, read> g: array<f32>;
@group(0) @binding(1) var<storage, read> clip: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(256)
fn adamw(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = (group.y * p.width + group.x) * 256u + id;
    if i >= p.n {
        return;
    }
    let d = g[i] * clip[1];
    let first = p.beta1 * m[i] + p.rest1 * d;
    let second = p.beta2 * v[i] + p.rest2 * d * d;
    m[i] = first;
    v[i] = second;
    let step = first * p.m_scale / (sqrt(second * p.v_scale) + p.eps);
    w[i] -= p.rate * (step + p.decay * w[i]);
}
