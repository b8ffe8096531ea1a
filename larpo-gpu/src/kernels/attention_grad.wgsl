// Gradient of attention: d_o (n, heads·d), qkv (n, row), o, lse -> d_qkv (n, row), all of it overwritten, by three kernels.
// With weights w = exp(s - lse), d_w = d_o·v and delta = o·d_o: d_s = w·(d_w - delta)·slope·scale, d_q = sum of d_s·k over keys,
// d_k = sum of d_s·q and d_v = sum of w·d_o over queries.

// ---- what the kernels of attention share ---------------------------------------------------------------------------------
// Rows of a packed batch see keys of their own list: a prefix (the prompt), and their own segment up to themselves. Positions
// count along that list of keys; a window hides those `window` or more positions back.
// Workgroup: 32 x 32 scores of one head, 16 x 16 invocations of 2 x 2. Products run over chunks of 32 channels in shared memory.
// spans: the position of each row (n), then blocks of 32 query rows, then blocks of 32 keys, five words each (see below).
// qkv (n, row): `heads` query heads, `kv_heads` key heads, `kv_heads` value heads of d <= 256 channels.

struct Params {
    width: u32,
    blocks: u32,  // blocks of 32 rows
    blocks_at: u32, // where this kernel's blocks start in `spans`
    n: u32,
    heads: u32,
    kv_heads: u32,
    d: u32,
    row: u32,     // numbers of a row of qkv
    window: u32,
    scale: f32,
    softcap: f32, // scores become c·tanh(s / c); 0: they stay
}

var<workgroup> left: array<f32, 1056>;   // 32 rows, 32 channels and one of padding
var<workgroup> right: array<f32, 1056>;
var<workgroup> weights: array<f32, 1056>; // 32 x 32 scores

// (score, slope of the cap)
fn capped(s: f32) -> vec2<f32> {
    if p.softcap > 0.0 {
        // tanh is 1 in single precision from 10 on; some drivers overflow far beyond.
        let t = tanh(clamp(s / p.softcap, -10.0, 10.0));
        return vec2(p.softcap * t, 1.0 - t * t);
    }
    return vec2(s, 1.0);
}

fn position(i: u32) -> u32 {
    return spans[i];
}

// Rows first .. end of a matrix in 32 places, from channel `base` of rows of `stride` numbers.
struct Rows {
    first: u32,
    end: u32,
    stride: u32,
    base: u32,
    d_o: bool, // from d_o instead of qkv
}

fn number(rows: Rows, at: u32, channel: u32) -> f32 {
    let i = rows.first + at;
    if i >= rows.end || channel >= p.d {
        return 0.0;
    }
    let at_number = i * rows.stride + rows.base + channel;
    if rows.d_o {
        return d_o_number(at_number);
    }
    return qkv[at_number];
}

fn load_left(rows: Rows, chunk: u32, id: u32) {
    for (var i = id; i < 1024u; i += 256u) {
        left[i / 32u * 33u + i % 32u] = number(rows, i / 32u, chunk + i % 32u);
    }
}

fn load_right(rows: Rows, chunk: u32, id: u32) {
    for (var i = id; i < 1024u; i += 256u) {
        right[i / 32u * 33u + i % 32u] = number(rows, i / 32u, chunk + i % 32u);
    }
}

// Dot products of rows y, y + 16 of a with rows x, x + 16 of b: (y x, y x+16, y+16 x, y+16 x+16).
fn products(a: Rows, b: Rows, id: u32) -> vec4<f32> {
    let y = id / 16u * 33u;
    let x = id % 16u * 33u;
    var sum = vec4(0.0);
    for (var chunk = 0u; chunk < p.d; chunk += 32u) {
        workgroupBarrier();
        load_left(a, chunk, id);
        load_right(b, chunk, id);
        workgroupBarrier();
        let channels = min(p.d - chunk, 32u);
        for (var c = 0u; c < channels; c++) {
            let u = vec2(left[y + c], left[y + 528u + c]);
            let v = vec2(right[x + c], right[x + 528u + c]);
            sum += vec4(u.x * v, u.y * v);
        }
    }
    return sum;
}

fn store_weights(w: vec4<f32>, id: u32) {
    let at = id / 16u * 33u + id % 16u;
    weights[at] = w.x;
    weights[at + 16u] = w.y;
    weights[at + 528u] = w.z;
    weights[at + 544u] = w.w;
}

// Sums over the 32 places of b of weight times channels x, x + 16 of a chunk: (y x, y x+16, y+16 x, y+16 x+16).
fn weighted(b: Rows, chunk: u32, id: u32) -> vec4<f32> {
    workgroupBarrier();
    load_right(b, chunk, id);
    workgroupBarrier();
    let y = id / 16u * 33u;
    let x = id % 16u;
    let count = min(b.end - b.first, 32u);
    var sum = vec4(0.0);
    for (var k = 0u; k < count; k++) {
        let w = vec2(weights[y + k], weights[y + 528u + k]);
        let v = vec2(right[k * 33u + x], right[k * 33u + x + 16u]);
        sum += vec4(w.x * v, w.y * v);
    }
    return sum;
}
@group(0) @binding(0) var<storage, read> spans: array<u32>;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> o: array<f32>;
@group(0) @binding(3) var<storage, read> d_o: array<f32>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> delta: array<f32>; // (n, heads): o·d_o of each row and head
@group(0) @binding(6) var<storage, read_write> d_qkv: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

fn d_o_number(at: u32) -> f32 {
    return d_o[at];
}

// A block of query rows first .. end of one segment: its prefix and the segment's own rows are what it sees.
struct Block {
    first: u32,
    end: u32,
    prefix: u32,
    prefix_end: u32,
    own: u32,
}

fn block(index: u32) -> Block {
    let at = p.blocks_at + 5u * index;
    return Block(spans[at], spans[at + 1u], spans[at + 2u], spans[at + 3u], spans[at + 4u]);
}

fn tiles(first: u32, end: u32) -> u32 {
    return (end - first + 31u) / 32u;
}

// The first key of first .. end that row i sees through the window, rows of consecutive positions.
fn windowed(first: u32, end: u32, i: u32) -> u32 {
    let low = position(i) - min(position(i), p.window - 1u);
    if first == end || position(first) >= low {
        return first;
    }
    return min(first + low - position(first), end);
}

// Whether query i sees key j, both inside the ranges of a block; `own` keys come from the query's segment.
fn sees(i: u32, j: u32, own: bool) -> bool {
    return (!own || j <= i) && position(i) - position(j) < p.window;
}

// o, d_o -> delta. One invocation a row and head.
@compute @workgroup_size(256)
fn attention_delta(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let at = (group.y * p.width + group.x) * 256u + id;
    if at >= p.n * p.heads {
        return;
    }
    var sum = 0.0;
    for (var c = 0u; c < p.d; c++) {
        sum += o[at * p.d + c] * d_o[at * p.d + c];
    }
    delta[at] = sum;
}

// The weight of a score, and its factor in the gradient: (w, w·slope·scale).
fn weight_of(raw: f32, row_lse: f32) -> vec2<f32> {
    let s = capped(raw * p.scale);
    let w = exp(s.x - row_lse);
    return vec2(w, w * s.y * p.scale);
}

// Adds to the shared weights of one score its w and d_s: (w, d_s), zero for what is hidden.
fn both(visible: bool, i: u32, head: u32, raw: f32, d_w: f32) -> vec2<f32> {
    if !visible {
        return vec2(0.0);
    }
    let at = i * p.heads + head;
    let w = weight_of(raw, lse[at]);
    return vec2(w.x, w.y * (d_w - delta[at]));
}

fn put(i: u32, end: u32, base: u32, channel: u32, value: f32) {
    if i < end && channel < p.d {
        d_qkv[i * p.row + base + channel] = value;
    }
}

fn put_chunk(i: u32, end: u32, base: u32, channel: u32, value: vec4<f32>) {
    put(i, end, base, channel, value.x);
    put(i, end, base, channel + 16u, value.y);
    put(i + 16u, end, base, channel, value.z);
    put(i + 16u, end, base, channel + 16u, value.w);
}

// -> the query part of d_qkv. Workgroup: a block of 32 query rows and a head.
@compute @workgroup_size(256)
fn attention_grad_q(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = group.y * p.width + group.x;
    if index >= p.blocks * p.heads {
        return;
    }
    let b = block(index / p.heads);
    let head = index % p.heads;
    let kv = head / (p.heads / p.kv_heads);
    let queries = Rows(b.first, b.end, p.row, head * p.d, false);
    let upstream = Rows(b.first, b.end, p.heads * p.d, head * p.d, true);
    let k_base = (p.heads + kv) * p.d;
    let v_base = (p.heads + p.kv_heads + kv) * p.d;
    let y = id / 16u;
    let x = id % 16u;
    var q0 = vec4(0.0);
    var q1 = vec4(0.0);
    var q2 = vec4(0.0);
    var q3 = vec4(0.0);
    var q4 = vec4(0.0);
    var q5 = vec4(0.0);
    var q6 = vec4(0.0);
    var q7 = vec4(0.0);
    let prefix = windowed(b.prefix, b.prefix_end, b.first);
    let own = windowed(b.own, b.end, b.first);
    let prefix_tiles = tiles(prefix, b.prefix_end);
    let all = prefix_tiles + tiles(own, b.end);
    for (var tile = 0u; tile < all; tile++) {
        let is_own = tile >= prefix_tiles;
        let first = select(prefix + 32u * tile, own + 32u * (tile - prefix_tiles), is_own);
        let end = select(b.prefix_end, b.end, is_own);
        let keys = Rows(first, end, p.row, k_base, false);
        let raw = products(queries, keys, id);
        let d_w = products(upstream, Rows(first, end, p.row, v_base, false), id);
        let i = b.first + y;
        let j = first + x;
        var d_s = vec4(0.0);
        d_s.x = both(i < b.end && j < end && sees(i, j, is_own), i, head, raw.x, d_w.x).y;
        d_s.y = both(i < b.end && j + 16u < end && sees(i, j + 16u, is_own), i, head, raw.y, d_w.y).y;
        d_s.z = both(i + 16u < b.end && j < end && sees(i + 16u, j, is_own), i + 16u, head, raw.z, d_w.z).y;
        d_s.w = both(i + 16u < b.end && j + 16u < end && sees(i + 16u, j + 16u, is_own), i + 16u, head, raw.w, d_w.w).y;
        store_weights(d_s, id);
        q0 += weighted(keys, 0u, id);
        if p.d > 32u {
            q1 += weighted(keys, 32u, id);
        }
        if p.d > 64u {
            q2 += weighted(keys, 64u, id);
        }
        if p.d > 96u {
            q3 += weighted(keys, 96u, id);
        }
        if p.d > 128u {
            q4 += weighted(keys, 128u, id);
        }
        if p.d > 160u {
            q5 += weighted(keys, 160u, id);
        }
        if p.d > 192u {
            q6 += weighted(keys, 192u, id);
        }
        if p.d > 224u {
            q7 += weighted(keys, 224u, id);
        }
        workgroupBarrier();
    }
    put_chunk(b.first + y, b.end, head * p.d, 0u + x, q0);
    put_chunk(b.first + y, b.end, head * p.d, 32u + x, q1);
    put_chunk(b.first + y, b.end, head * p.d, 64u + x, q2);
    put_chunk(b.first + y, b.end, head * p.d, 96u + x, q3);
    put_chunk(b.first + y, b.end, head * p.d, 128u + x, q4);
    put_chunk(b.first + y, b.end, head * p.d, 160u + x, q5);
    put_chunk(b.first + y, b.end, head * p.d, 192u + x, q6);
    put_chunk(b.first + y, b.end, head * p.d, 224u + x, q7);
}

// A block of keys first .. end of one segment: the segment's rows up to own_end see it, and rows after .. after_end that have it
// in their prefix.
struct KeyBlock {
    first: u32,
    end: u32,
    own_end: u32,
    after: u32,
    after_end: u32,
}

fn key_block(index: u32) -> KeyBlock {
    let at = p.blocks_at + 5u * index;
    return KeyBlock(spans[at], spans[at + 1u], spans[at + 2u], spans[at + 3u], spans[at + 4u]);
}

// -> the key and value parts of d_qkv. Workgroup: a block of 32 keys and a key head; its query heads one after another.
@compute @workgroup_size(256)
fn attention_grad_kv(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = group.y * p.width + group.x;
    if index >= p.blocks * p.kv_heads {
        return;
    }
    let b = key_block(index / p.kv_heads);
    let kv = index % p.kv_heads;
    let k_base = (p.heads + kv) * p.d;
    let v_base = (p.heads + p.kv_heads + kv) * p.d;
    let keys = Rows(b.first, b.end, p.row, k_base, false);
    let values = Rows(b.first, b.end, p.row, v_base, false);
    let shared_by = p.heads / p.kv_heads;
    let y = id / 16u;
    let x = id % 16u;
    var k0 = vec4(0.0);
    var k1 = vec4(0.0);
    var k2 = vec4(0.0);
    var k3 = vec4(0.0);
    var k4 = vec4(0.0);
    var k5 = vec4(0.0);
    var k6 = vec4(0.0);
    var k7 = vec4(0.0);
    var v0 = vec4(0.0);
    var v1 = vec4(0.0);
    var v2 = vec4(0.0);
    var v3 = vec4(0.0);
    var v4 = vec4(0.0);
    var v5 = vec4(0.0);
    var v6 = vec4(0.0);
    var v7 = vec4(0.0);
    // Rows farther on see none of the block through the window.
    let own_end = b.end + min(b.own_end - b.end, p.window - 1u);
    let own_tiles = tiles(b.first, own_end);
    let all = own_tiles + tiles(b.after, b.after_end);
    for (var step = 0u; step < all * shared_by; step++) {
        let tile = step / shared_by;
        let head = kv * shared_by + step % shared_by;
        let is_own = tile < own_tiles;
        let first = select(b.after + 32u * (tile - own_tiles), b.first + 32u * tile, is_own);
        let end = select(b.after_end, own_end, is_own);
        let queries = Rows(first, end, p.row, head * p.d, false);
        let upstream = Rows(first, end, p.heads * p.d, head * p.d, true);
        let raw = products(keys, queries, id);
        let d_w = products(values, upstream, id);
        let j = b.first + y;
        let i = first + x;
        let a0 = both(j < b.end && i < end && sees(i, j, is_own), i, head, raw.x, d_w.x);
        let a1 = both(j < b.end && i + 16u < end && sees(i + 16u, j, is_own), i + 16u, head, raw.y, d_w.y);
        let a2 = both(j + 16u < b.end && i < end && sees(i, j + 16u, is_own), i, head, raw.z, d_w.z);
        let a3 = both(j + 16u < b.end && i + 16u < end && sees(i + 16u, j + 16u, is_own), i + 16u, head, raw.w, d_w.w);
        store_weights(vec4(a0.x, a1.x, a2.x, a3.x), id);
        v0 += weighted(upstream, 0u, id);
        if p.d > 32u {
            v1 += weighted(upstream, 32u, id);
        }
        if p.d > 64u {
            v2 += weighted(upstream, 64u, id);
        }
        if p.d > 96u {
            v3 += weighted(upstream, 96u, id);
        }
        if p.d > 128u {
            v4 += weighted(upstream, 128u, id);
        }
        if p.d > 160u {
            v5 += weighted(upstream, 160u, id);
        }
        if p.d > 192u {
            v6 += weighted(upstream, 192u, id);
        }
        if p.d > 224u {
            v7 += weighted(upstream, 224u, id);
        }
        workgroupBarrier();
        store_weights(vec4(a0.y, a1.y, a2.y, a3.y), id);
        k0 += weighted(queries, 0u, id);
        if p.d > 32u {
            k1 += weighted(queries, 32u, id);
        }
        if p.d > 64u {
            k2 += weighted(queries, 64u, id);
        }
        if p.d > 96u {
            k3 += weighted(queries, 96u, id);
        }
        if p.d > 128u {
            k4 += weighted(queries, 128u, id);
        }
        if p.d > 160u {
            k5 += weighted(queries, 160u, id);
        }
        if p.d > 192u {
            k6 += weighted(queries, 192u, id);
        }
        if p.d > 224u {
            k7 += weighted(queries, 224u, id);
        }
        workgroupBarrier();
    }
    put_chunk(b.first + y, b.end, k_base, 0u + x, k0);
    put_chunk(b.first + y, b.end, k_base, 32u + x, k1);
    put_chunk(b.first + y, b.end, k_base, 64u + x, k2);
    put_chunk(b.first + y, b.end, k_base, 96u + x, k3);
    put_chunk(b.first + y, b.end, k_base, 128u + x, k4);
    put_chunk(b.first + y, b.end, k_base, 160u + x, k5);
    put_chunk(b.first + y, b.end, k_base, 192u + x, k6);
    put_chunk(b.first + y, b.end, k_base, 224u + x, k7);
    put_chunk(b.first + y, b.end, v_base, 0u + x, v0);
    put_chunk(b.first + y, b.end, v_base, 32u + x, v1);
    put_chunk(b.first + y, b.end, v_base, 64u + x, v2);
    put_chunk(b.first + y, b.end, v_base, 96u + x, v3);
    put_chunk(b.first + y, b.end, v_base, 128u + x, v4);
    put_chunk(b.first + y, b.end, v_base, 160u + x, v5);
    put_chunk(b.first + y, b.end, v_base, 192u + x, v6);
    put_chunk(b.first + y, b.end, v_base, 224u + x, v7);
}
