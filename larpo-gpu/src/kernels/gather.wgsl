// Rows by index, of `limit` rows of the matrix from row `first` on: where it is in parts, one after another. A row number
// beyond the matrix reads zeros and writes nothing.

struct Params {
    width: u32,
    n: u32,     // elements of the m gathered rows, m·c
    c: u32,     // columns
    limit: u32, // rows of the part of the matrix
    first: u32, // the first of them
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

// x (limit, c), rows (m) -> y (m, c)
@compute @workgroup_size(256)
fn gather_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = (group.y * p.width + group.x) * 256u + id;
    if i < p.n {
        let row = rows[i / p.c] - p.first;
        if row < p.limit {
            y[i] = x[row * p.c + i % p.c];
        } else if p.first == 0u {
            y[i] = 0.0;
        }
    }
}

// x (m, c), rows (m), all different -> y (limit, c) += x at those rows
@compute @workgroup_size(256)
fn scatter_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let i = (group.y * p.width + group.x) * 256u + id;
    if i < p.n {
        let row = rows[i / p.c] - p.first;
        if row < p.limit {
            y[row * p.c + i % p.c] += x[i];
        }
    }
}
