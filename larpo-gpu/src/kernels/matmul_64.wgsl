// C (m, n) = A (m, k) · B (k, n), plus bias (n) in every row, set or accumulated.
// Workgroup: a 64 x 64 tile of C, 16 x 16 invocations of 4 x 4, over shared tiles of 16 along k (8.5 KiB).
// Element (i, l) of A stands at a_at + i·a_row + l·a_col, one of the two strides being 1; B and C likewise (C by rows).
// `b_number(at)` reads B, which is in a precision of its own: matmul_b_f32.wgsl, matmul_b_bf16.wgsl.

struct Params {
    width: u32,
    m: u32,
    n: u32,
    k: u32,
    tiles_n: u32, // tiles of C along n
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

// 16 steps of k, each 16 groups of four rows (columns) and one of padding against bank conflicts.
var<workgroup> a_tile: array<vec4<f32>, 272>;
var<workgroup> b_tile: array<vec4<f32>, 272>;

fn a_value(i: u32, l: u32) -> f32 {
    if i < p.m && l < p.k {
        return a[p.a_at + i * p.a_row + l * p.a_col];
    }
    return 0.0;
}

fn b_value(l: u32, j: u32) -> f32 {
    if l < p.k && j < p.n {
        return b_number(p.b_at + l * p.b_row + j * p.b_col);
    }
    return 0.0;
}

fn a_four(i: u32, l: u32) -> vec4<f32> {
    return vec4(a_value(i, l), a_value(i + 1u, l), a_value(i + 2u, l), a_value(i + 3u, l));
}

fn b_four(l: u32, j: u32) -> vec4<f32> {
    return vec4(b_value(l, j), b_value(l, j + 1u), b_value(l, j + 2u), b_value(l, j + 3u));
}

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

@compute @workgroup_size(256)
fn matmul_64(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let tile = group.y * p.width + group.x;
    let i0 = tile / p.tiles_n * 64u;
    let j0 = tile % p.tiles_n * 64u;
    if i0 >= p.m {
        return;
    }
    // Neighbouring invocations load neighbouring numbers: along k, or along the rows (columns) that are contiguous.
    let along_k = vec2(id % 16u, id / 16u);
    let along_c = vec2(id / 16u, id % 16u);
    let a_from = select(along_c, along_k, p.a_col == 1u);
    let b_from = select(along_c, along_k, p.b_row == 1u);

    var c0 = vec4(0.0);
    var c1 = vec4(0.0);
    var c2 = vec4(0.0);
    var c3 = vec4(0.0);
    let row = id / 16u;
    let column = id % 16u;
    var next_a = a_four(i0 + 4u * a_from.y, a_from.x);
    var next_b = b_four(b_from.x, j0 + 4u * b_from.y);
    for (var l0 = 0u; l0 < p.k; l0 += 16u) {
        a_tile[a_from.x * 17u + a_from.y] = next_a;
        b_tile[b_from.x * 17u + b_from.y] = next_b;
        workgroupBarrier();
        next_a = a_four(i0 + 4u * a_from.y, l0 + 16u + a_from.x);
        next_b = b_four(l0 + 16u + b_from.x, j0 + 4u * b_from.y);
        for (var l = 0u; l < 16u; l++) {
            let x = a_tile[l * 17u + row];
            let y = b_tile[l * 17u + column];
            c0 += x.x * y;
            c1 += x.y * y;
            c2 += x.z * y;
            c3 += x.w * y;
        }
        workgroupBarrier();
    }
    let i = i0 + 4u * row;
    let j = j0 + 4u * column;
    put_four(i, j, c0);
    put_four(i + 1u, j, c1);
    put_four(i + 2u, j, c2);
    put_four(i + 3u, j, c3);
}
