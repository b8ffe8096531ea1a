// C (m, n) = A (m, k) · B (k, n), plus bias (n) in every row, set or accumulated, for few rows: every number of B is loaded once
// for eight rows of C, by invocations that are neighbours along k.
// Workgroup: an 8 x 4 piece of C; each of 64 invocations takes every 64th step of k (8 KiB of shared memory to add them up).
// Element (i, l) of A stands at a_at + i·a_row + l·a_col, one of the two strides being 1; B and C likewise (C by rows).
// `b_number(at)` reads B, which is in a precision of its own: matmul_b_f32.wgsl, matmul_b_bf16.wgsl.

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
    bias_at: u32,
}

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

// (8, 64): four columns of each row, of each invocation.
var<workgroup> sums: array<vec4<f32>, 512>;

fn a_value(i: u32, l: u32) -> f32 {
    if i < p.m {
        return a[p.a_at + i * p.a_row + l * p.a_col];
    }
    return 0.0;
}

// Columns beyond the edge repeat the last one; they are not stored.
fn b_value(l: u32, j: u32) -> f32 {
    return b_number(p.b_at + l * p.b_row + min(j, p.n - 1u) * p.b_col);
}

@compute @workgroup_size(64)
fn matmul_skinny(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let piece = group.y * p.width + group.x;
    let i0 = piece / p.tiles_n * 8u;
    let j0 = piece % p.tiles_n * 4u;
    if i0 >= p.m {
        return;
    }
    var c0 = vec4(0.0);
    var c1 = vec4(0.0);
    var c2 = vec4(0.0);
    var c3 = vec4(0.0);
    var c4 = vec4(0.0);
    var c5 = vec4(0.0);
    var c6 = vec4(0.0);
    var c7 = vec4(0.0);
    for (var l = id; l < p.k; l += 64u) {
        let y = vec4(b_value(l, j0), b_value(l, j0 + 1u), b_value(l, j0 + 2u), b_value(l, j0 + 3u));
        c0 += a_value(i0, l) * y;
        c1 += a_value(i0 + 1u, l) * y;
        c2 += a_value(i0 + 2u, l) * y;
        c3 += a_value(i0 + 3u, l) * y;
        c4 += a_value(i0 + 4u, l) * y;
        c5 += a_value(i0 + 5u, l) * y;
        c6 += a_value(i0 + 6u, l) * y;
        c7 += a_value(i0 + 7u, l) * y;
    }
    sums[id] = c0;
    sums[64u + id] = c1;
    sums[128u + id] = c2;
    sums[192u + id] = c3;
    sums[256u + id] = c4;
    sums[320u + id] = c5;
    sums[384u + id] = c6;
    sums[448u + id] = c7;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if id < half {
            for (var row = 0u; row < 512u; row += 64u) {
                sums[row + id] += sums[row + id + half];
            }
        }
        workgroupBarrier();
    }
    let i = i0 + id / 4u;
    let j = j0 + id % 4u;
    if id < 32u && i < p.m && j < p.n {
        let at = p.c_at + i * p.c_row + j;
        var result = sums[64u * (id / 4u)][id % 4u];
        if p.bias == 1u {
            result += bias[p.bias_at + j];
        }
        if p.add == 1u {
            result += c[at];
        }
        c[at] = result;
    }
}
