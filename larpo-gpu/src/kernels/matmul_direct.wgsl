// C (m, n) = A (m, k) · B (k, n), plus bias (n) in every row, set or accumulated.
// For CPU adapters: no shared memory and no barrier. Each invocation makes an 8 x 16 piece of C: such
// adapters load one number at a time, so that loads cost far more than sums.
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

fn put(i: u32, j: u32, value: f32) {
    if i < p.m && j < p.n {
        let at = p.c_at + i * p.c_row + j;
        var result = value;
        if p.bias == 1u {
            result += bias[p.bias_at + j];
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

@compute @workgroup_size(16)
fn matmul_direct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let piece = (group.y * p.width + group.x) * 16u + id;
    let i = piece / p.tiles_n * 8u;
    let j = piece % p.tiles_n * 16u;
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
    let a4 = p.a_at + min(i + 4u, last_i) * p.a_row;
    let a5 = p.a_at + min(i + 5u, last_i) * p.a_row;
    let a6 = p.a_at + min(i + 6u, last_i) * p.a_row;
    let a7 = p.a_at + min(i + 7u, last_i) * p.a_row;
    let b0 = p.b_at + min(j + 0u, last_j) * p.b_col;
    let b1 = p.b_at + min(j + 1u, last_j) * p.b_col;
    let b2 = p.b_at + min(j + 2u, last_j) * p.b_col;
    let b3 = p.b_at + min(j + 3u, last_j) * p.b_col;
    let b4 = p.b_at + min(j + 4u, last_j) * p.b_col;
    let b5 = p.b_at + min(j + 5u, last_j) * p.b_col;
    let b6 = p.b_at + min(j + 6u, last_j) * p.b_col;
    let b7 = p.b_at + min(j + 7u, last_j) * p.b_col;
    let b8 = p.b_at + min(j + 8u, last_j) * p.b_col;
    let b9 = p.b_at + min(j + 9u, last_j) * p.b_col;
    let b10 = p.b_at + min(j + 10u, last_j) * p.b_col;
    let b11 = p.b_at + min(j + 11u, last_j) * p.b_col;
    let b12 = p.b_at + min(j + 12u, last_j) * p.b_col;
    let b13 = p.b_at + min(j + 13u, last_j) * p.b_col;
    let b14 = p.b_at + min(j + 14u, last_j) * p.b_col;
    let b15 = p.b_at + min(j + 15u, last_j) * p.b_col;
    var c0_0 = vec4(0.0);
    var c0_1 = vec4(0.0);
    var c0_2 = vec4(0.0);
    var c0_3 = vec4(0.0);
    var c1_0 = vec4(0.0);
    var c1_1 = vec4(0.0);
    var c1_2 = vec4(0.0);
    var c1_3 = vec4(0.0);
    var c2_0 = vec4(0.0);
    var c2_1 = vec4(0.0);
    var c2_2 = vec4(0.0);
    var c2_3 = vec4(0.0);
    var c3_0 = vec4(0.0);
    var c3_1 = vec4(0.0);
    var c3_2 = vec4(0.0);
    var c3_3 = vec4(0.0);
    var c4_0 = vec4(0.0);
    var c4_1 = vec4(0.0);
    var c4_2 = vec4(0.0);
    var c4_3 = vec4(0.0);
    var c5_0 = vec4(0.0);
    var c5_1 = vec4(0.0);
    var c5_2 = vec4(0.0);
    var c5_3 = vec4(0.0);
    var c6_0 = vec4(0.0);
    var c6_1 = vec4(0.0);
    var c6_2 = vec4(0.0);
    var c6_3 = vec4(0.0);
    var c7_0 = vec4(0.0);
    var c7_1 = vec4(0.0);
    var c7_2 = vec4(0.0);
    var c7_3 = vec4(0.0);
    var at_a = 0u;
    var at_b = 0u;
    for (var k = 0u; k < p.k; k++) {
        let y0 = vec4(b_number(b0 + at_b), b_number(b1 + at_b), b_number(b2 + at_b), b_number(b3 + at_b));
        let y1 = vec4(b_number(b4 + at_b), b_number(b5 + at_b), b_number(b6 + at_b), b_number(b7 + at_b));
        let y2 = vec4(b_number(b8 + at_b), b_number(b9 + at_b), b_number(b10 + at_b), b_number(b11 + at_b));
        let y3 = vec4(b_number(b12 + at_b), b_number(b13 + at_b), b_number(b14 + at_b), b_number(b15 + at_b));
        let x0 = a[a0 + at_a];
        c0_0 += x0 * y0;
        c0_1 += x0 * y1;
        c0_2 += x0 * y2;
        c0_3 += x0 * y3;
        let x1 = a[a1 + at_a];
        c1_0 += x1 * y0;
        c1_1 += x1 * y1;
        c1_2 += x1 * y2;
        c1_3 += x1 * y3;
        let x2 = a[a2 + at_a];
        c2_0 += x2 * y0;
        c2_1 += x2 * y1;
        c2_2 += x2 * y2;
        c2_3 += x2 * y3;
        let x3 = a[a3 + at_a];
        c3_0 += x3 * y0;
        c3_1 += x3 * y1;
        c3_2 += x3 * y2;
        c3_3 += x3 * y3;
        let x4 = a[a4 + at_a];
        c4_0 += x4 * y0;
        c4_1 += x4 * y1;
        c4_2 += x4 * y2;
        c4_3 += x4 * y3;
        let x5 = a[a5 + at_a];
        c5_0 += x5 * y0;
        c5_1 += x5 * y1;
        c5_2 += x5 * y2;
        c5_3 += x5 * y3;
        let x6 = a[a6 + at_a];
        c6_0 += x6 * y0;
        c6_1 += x6 * y1;
        c6_2 += x6 * y2;
        c6_3 += x6 * y3;
        let x7 = a[a7 + at_a];
        c7_0 += x7 * y0;
        c7_1 += x7 * y1;
        c7_2 += x7 * y2;
        c7_3 += x7 * y3;
        at_a += p.a_col;
        at_b += p.b_row;
    }
    put_four(i, j, c0_0);
    put_four(i, j + 4u, c0_1);
    put_four(i, j + 8u, c0_2);
    put_four(i, j + 12u, c0_3);
    put_four(i + 1u, j, c1_0);
    put_four(i + 1u, j + 4u, c1_1);
    put_four(i + 1u, j + 8u, c1_2);
    put_four(i + 1u, j + 12u, c1_3);
    put_four(i + 2u, j, c2_0);
    put_four(i + 2u, j + 4u, c2_1);
    put_four(i + 2u, j + 8u, c2_2);
    put_four(i + 2u, j + 12u, c2_3);
    put_four(i + 3u, j, c3_0);
    put_four(i + 3u, j + 4u, c3_1);
    put_four(i + 3u, j + 8u, c3_2);
    put_four(i + 3u, j + 12u, c3_3);
    put_four(i + 4u, j, c4_0);
    put_four(i + 4u, j + 4u, c4_1);
    put_four(i + 4u, j + 8u, c4_2);
    put_four(i + 4u, j + 12u, c4_3);
    put_four(i + 5u, j, c5_0);
    put_four(i + 5u, j + 4u, c5_1);
    put_four(i + 5u, j + 8u, c5_2);
    put_four(i + 5u, j + 12u, c5_3);
    put_four(i + 6u, j, c6_0);
    put_four(i + 6u, j + 4u, c6_1);
    put_four(i + 6u, j + 8u, c6_2);
    put_four(i + 6u, j + 12u, c6_3);
    put_four(i + 7u, j, c7_0);
    put_four(i + 7u, j + 4u, c7_1);
    put_four(i + 7u, j + 8u, c7_2);
    put_four(i + 7u, j + 12u, c7_3);
}
