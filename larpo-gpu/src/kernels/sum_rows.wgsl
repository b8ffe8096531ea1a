// Sums of columns over chunks of rows: x (rows, c) -> y (chunks, c). One invocation an element of y.

struct Params {
    width: u32,
    rows: u32,
    c: u32,
    chunk: u32, // rows of a chunk
    n: u32,     // chunks · c
    add: u32,   // 1: y += sums
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(256)
fn sum_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = (group.y * p.width + group.x) * 256u + id;
    if i >= p.n {
        return;
    }
    let start = i / p.c * p.chunk;
    var sum = 0.0;
    for (var row = start; row < min(start + p.chunk, p.rows); row++) {
        sum += x[row * p.c + i % p.c];
    }
    if p.add == 1u {
        y[i] += sum;
    } else {
        y[i] = sum;
    }
}
