// Rotary embedding of the query and key heads of qkv (n, row), in place. One invocation a pair.
// positions (n), table (limit, d): d/2 cosines, then as many sines. A position at or beyond `limit` leaves the row.

struct Params {
    width: u32,
    n: u32,     // pairs: rows · heads · d/2
    heads: u32, // query and key heads
    d: u32,
    row: u32,   // numbers of a row of qkv
    limit: u32,
    inverse: u32,
}

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read_write> qkv: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(256)
fn rope(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = (group.y * p.width + group.x) * 256u + id;
    if index >= p.n {
        return;
    }
    let half = p.d / 2u;
    let i = index % half;
    let head = index / half % p.heads;
    let row = index / half / p.heads;
    let position = positions[row];
    if position >= p.limit {
        return;
    }
    let cosine = table[position * p.d + i];
    let sine = select(1.0, -1.0, p.inverse == 1u) * table[position * p.d + half + i];
    let at = row * p.row + head * p.d + i;
    let a = qkv[at];
    let b = qkv[at + half];
    qkv[at] = a * cosine - b * sine;
    qkv[at + half] = b * cosine + a * sine;
}
