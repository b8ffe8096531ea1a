// Rows by index of a matrix in bfloat16: elements 2i and 2i + 1 in the lower and upper half of word i.
// As gather.wgsl: rows from `first` on, zeros for a row number beyond the matrix.

struct Params {
    width: u32,
    n: u32,     // elements of the m gathered rows, m·c
    c: u32,     // columns
    limit: u32, // rows of the part of the matrix
    first: u32, // the first of them
}

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

// x (limit, c), rows (m) -> y (m, c)
@compute @workgroup_size(256)
fn gather_rows_bf16(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = (group.y * p.width + group.x) * 256u + id;
    if i < p.n {
        let row = rows[i / p.c] - p.first;
        if row < p.limit {
            let at = row * p.c + i % p.c;
            let pair = x[at / 2u];
            y[i] = bitcast<f32>(select(pair << 16u, pair & 0xffff0000u, at % 2u == 1u));
        } else if p.first == 0u {
            y[i] = 0.0;
        }
    }
}
