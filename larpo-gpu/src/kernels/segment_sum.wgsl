// Adds the rows of x that share an id to that row of y. One invocation an element of a distinct id's row; the rows of an id are
// added in ascending order.

struct Params {
    width: u32,
    n: u32,        // distinct · c
    c: u32,        // columns
    distinct: u32, // distinct ids
    limit: u32,    // rows of the part of y
    first: u32,    // the first of them
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
// distinct ids, then distinct + 1 offsets, then the row numbers, sorted by id
@group(0) @binding(1) var<storage, read> sorted: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

// x (m, c) -> y (limit, c) += sums
@compute @workgroup_size(256)
fn segment_sum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = (group.y * p.width + group.x) * 256u + id;
    if i >= p.n {
        return;
    }
    let segment = i / p.c;
    let column = i % p.c;
    let row = sorted[segment] - p.first;
    if row >= p.limit {
        return;
    }
    let rows = 2u * p.distinct + 1u;
    let end = sorted[p.distinct + segment + 1u];
    var sum = 0.0;
    for (var r = sorted[p.distinct + segment]; r < end; r++) {
        sum += x[sorted[rows + r] * p.c + column];
    }
    y[row * p.c + column] += sum;
}
