
// C (m, n) = A (m, k) · B (k, n), plus bias (n) in every row, set or accumulated: operands rounded to half precision, sums in
// single precision, on the device's matrix units.
// Before this text: `SIZE`, rows and columns of the matrices that they multiply; `LANES`, invocations of a subgroup; and their
// types `Left`, `Right`, `Sum`.
// Workgroup: a tile of C, 8 x 8 matrices, by eight subgroups of 2 x 4 matrices, over shared tiles of 32 along k
// (28 KiB with matrices of 16, 12 KiB with matrices of 8).
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

const TILE: u32 = 8u * SIZE;
const GROUP: u32 = 8u * LANES;
const STEP: u32 = 32u;
// A row (column) of a shared tile along k, with padding against bank conflicts.
const LINE: u32 = 40u;
const BLOCK: u32 = SIZE * SIZE;

var<workgroup> a_tile: array<f16, TILE * LINE>;
var<workgroup> b_tile: array<f16, TILE * LINE>;
// A matrix of each subgroup on its way to C.
var<workgroup> blocks: array<f32, 8u * BLOCK>;

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

// The matrix that the subgroup left in `blocks`, to the rows from i0 and columns from j0 of C.
fn put_block(subgroup: u32, lane: u32, i0: u32, j0: u32) {
    for (var e = lane; e < BLOCK; e += LANES) {
        let i = i0 + e / SIZE;
        let j = j0 + e % SIZE;
        if i < p.m && j < p.n {
            let at = p.c_at + i * p.c_row + j;
            var result = blocks[subgroup * BLOCK + e];
            if p.bias == 1u {
                result += bias[p.bias_at + j];
            }
            if p.add == 1u {
                result += c[at];
            }
            c[at] = result;
        }
    }
}

@compute @workgroup_size(GROUP)
fn matmul_units(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let tile = group.y * p.width + group.x;
    let i0 = tile / p.tiles_n * TILE;
    let j0 = tile % p.tiles_n * TILE;
    if i0 >= p.m {
        return;
    }
    let subgroup = id / LANES;
    let lane = id % LANES;
    // Of the subgroup's matrices, in the tile.
    let row = subgroup / 2u * 2u * SIZE;
    let column = subgroup % 2u * 4u * SIZE;

    var s00 = Sum();
    var s01 = Sum();
    var s02 = Sum();
    var s03 = Sum();
    var s10 = Sum();
    var s11 = Sum();
    var s12 = Sum();
    var s13 = Sum();
    for (var k0 = 0u; k0 < p.k; k0 += STEP) {
        for (var e = id; e < TILE * STEP; e += GROUP) {
            // Neighbouring invocations load neighbouring numbers: along k, or along the rows (columns) that are contiguous.
            let along_k = vec2(e % STEP, e / STEP);
            let along_c = vec2(e / TILE, e % TILE);
            let of_a = select(along_c, along_k, p.a_col == 1u);
            let of_b = select(along_c, along_k, p.b_row == 1u);
            a_tile[of_a.y * LINE + of_a.x] = f16(a_value(i0 + of_a.y, k0 + of_a.x));
            b_tile[of_b.y * LINE + of_b.x] = f16(b_value(k0 + of_b.x, j0 + of_b.y));
        }
        workgroupBarrier();
        for (var l = 0u; l < STEP; l += SIZE) {
            let a0 = coopLoadT<Left>(&a_tile[row * LINE + l], LINE);
            let a1 = coopLoadT<Left>(&a_tile[(row + SIZE) * LINE + l], LINE);
            let b0 = coopLoad<Right>(&b_tile[column * LINE + l], LINE);
            let b1 = coopLoad<Right>(&b_tile[(column + SIZE) * LINE + l], LINE);
            let b2 = coopLoad<Right>(&b_tile[(column + 2u * SIZE) * LINE + l], LINE);
            let b3 = coopLoad<Right>(&b_tile[(column + 3u * SIZE) * LINE + l], LINE);
            s00 = coopMultiplyAdd(a0, b0, s00);
            s01 = coopMultiplyAdd(a0, b1, s01);
            s02 = coopMultiplyAdd(a0, b2, s02);
            s03 = coopMultiplyAdd(a0, b3, s03);
            s10 = coopMultiplyAdd(a1, b0, s10);
            s11 = coopMultiplyAdd(a1, b1, s11);
            s12 = coopMultiplyAdd(a1, b2, s12);
            s13 = coopMultiplyAdd(a1, b3, s13);
        }
        workgroupBarrier();
    }
    let i = i0 + row;
    let j = j0 + column;
    let own = subgroup * BLOCK;
    coopStoreT(s00, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i, j);
    workgroupBarrier();
    coopStoreT(s01, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i, j + SIZE);
    workgroupBarrier();
    coopStoreT(s02, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i, j + 2u * SIZE);
    workgroupBarrier();
    coopStoreT(s03, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i, j + 3u * SIZE);
    workgroupBarrier();
    coopStoreT(s10, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i + SIZE, j);
    workgroupBarrier();
    coopStoreT(s11, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i + SIZE, j + SIZE);
    workgroupBarrier();
    coopStoreT(s12, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i + SIZE, j + 2u * SIZE);
    workgroupBarrier();
    coopStoreT(s13, &blocks[own], SIZE);
    workgroupBarrier();
    put_block(subgroup, lane, i + SIZE, j + 3u * SIZE);
}
