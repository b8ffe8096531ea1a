// C (m, n) = A (m, k) · B (k, n), plus bias (n) in every row, set or accumulated.
// For CPU adapters: no shared memory and no barrier. Each invocation makes a 4 x 8 piece of C.
// Element (i, l) of A stands at a_at + i·a_row + l·a_col, one of the two strides being 1; B and C likewise (C by rows).

struct Params {
    width: u32,
    m: u32,
    n: u32,
    k: u32,
    tiles_n: u32, // pieces of C along n
    a_at: u32,
    a_row: u32,
    a_col: u32,
    b_at: u32,
    b_row: u32,
    b_col: u32,
    c_at: u32,
    c_row: u32,
    add: u32,  // 1: C += result
    bias: u32, // 1: there is a bias
}

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

fn put(i: u32, j: u32, value: f32) {
    if i < p.m && j < p.n {
        let at = p.c_at + i * p.c_row + j;
        var result = value;
        if p.bias == 1u {
            result += bias[j];
        }
        if p.add == 1u {
            result += c[at];
        }
        c[at] = result;
    }
}

fn put_four(i: u32, j: u32, value: vec4<f32>) {
    put(i, j, value.x);
    put(i, j + 1u, value.y);
    put(i, j + 2u, value.z);
    put(i, j + 3u, value.w);
}

@compute @workgroup_size(64)
fn matmul_direct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let piece = (group.y * p.width + group.x) * 64u + id;
    let i = piece / p.tiles_n * 4u;
    let j = piece % p.tiles_n * 8u;
    if i >= p.m {
        return;
    }
    // Rows and columns beyond the edge repeat the last one; they are not stored.
    let last_i = p.m - 1u;
    let last_j = p.n - 1u;
    let a0 = p.a_at + min(i + 0u, last_i) * p.a_row;
    let a1 = p.a_at + min(i + 1u, last_i) * p.a_row;
    let a2 = p.a_at + min(i + 2u, last_i) * p.a_row;
    let a3 = p.a_at + min(i + 3u, last_i) * p.a_row;
    let b0 = p.b_at + min(j + 0u, last_j) * p.b_col;
    let b1 = p.b_at + min(j + 1u, last_j) * p.b_col;
    let b2 = p.b_at + min(j + 2u, last_j) * p.b_col;
    let b3 = p.b_at + min(j + 3u, last_j) * p.b_col;
    let b4 = p.b_at + min(j + 4u, last_j) * p.b_col;
    let b5 = p.b_at + min(j + 5u, last_j) * p.b_col;
    let b6 = p.b_at + min(j + 6u, last_j) * p.b_col;
    let b7 = p.b_at + min(j + 7u, last_j) * p.b_col;
    var l0 = vec4(0.0);
    var r0 = vec4(0.0);
    var l1 = vec4(0.0);
    var r1 = vec4(0.0);
    var l2 = vec4(0.0);
    var r2 = vec4(0.0);
    var l3 = vec4(0.0);
    var r3 = vec4(0.0);
    var at_a = 0u;
    var at_b = 0u;
    for (var k = 0u; k < p.k; k++) {
        let y = vec4(b[b0 + at_b], b[b1 + at_b], b[b2 + at_b], b[b3 + at_b]);
        let w = vec4(b[b4 + at_b], b[b5 + at_b], b[b6 + at_b], b[b7 + at_b]);
        let x0 = a[a0 + at_a];
        l0 += x0 * y;
        r0 += x0 * w;
        let x1 = a[a1 + at_a];
        l1 += x1 * y;
        r1 += x1 * w;
        let x2 = a[a2 + at_a];
        l2 += x2 * y;
        r2 += x2 * w;
        let x3 = a[a3 + at_a];
        l3 += x3 * y;
        r3 += x3 * w;
        at_a += p.a_col;
        at_b += p.b_row;
    }
    put_four(i, j, l0);
    put_four(i, j + 4u, r0);
    put_four(i + 1u, j, l1);
    put_four(i + 1u, j + 4u, r1);
    put_four(i + 2u, j, l2);
    put_four(i + 2u, j + 4u, r2);
    put_four(i + 3u, j, l3);
    put_four(i + 3u, j + 4u, r3);
}
