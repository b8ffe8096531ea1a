// Attention over packed lists: qkv (n, row) -> o (n, heads·d), and the log-sum-exp of the scores, lse (n, heads).
// Workgroup: a block of 32 query rows and a head.

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
@group(0) @binding(2) var<storage, read_write> o: array<f32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

fn d_o_number(at: u32) -> f32 {
    return 0.0;
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

@compute @workgroup_size(256)
fn attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = group.y * p.width + group.x;
    if index >= p.blocks * p.heads {
        return;
    }
    let b = block(index / p.heads);
    let head = index % p.heads;
    let kv = head / (p.heads / p.kv_heads);
    let queries = Rows(b.first, b.end, p.row, head * p.d, false);
    let k_base = (p.heads + kv) * p.d;
    let v_base = (p.heads + p.kv_heads + kv) * p.d;
    let y = id / 16u;
    let x = id % 16u;
    let upper = y * 33u;
    let lower = upper + 528u;

    // Of the invocation's two rows: running maximum and sum of the weights, and the weighted values, by chunks of channels.
    var top = vec2(-1e30);
    var sum = vec2(0.0);
    var o0 = vec4(0.0);
    var o1 = vec4(0.0);
    var o2 = vec4(0.0);
    var o3 = vec4(0.0);
    var o4 = vec4(0.0);
    var o5 = vec4(0.0);
    var o6 = vec4(0.0);
    var o7 = vec4(0.0);
    let prefix = windowed(b.prefix, b.prefix_end, b.first);
    let own = windowed(b.own, b.end, b.first);
    let prefix_tiles = tiles(prefix, b.prefix_end);
    let all = prefix_tiles + tiles(own, b.end);
    for (var tile = 0u; tile < all; tile++) {
        let is_own = tile >= prefix_tiles;
        let first = select(prefix + 32u * tile, own + 32u * (tile - prefix_tiles), is_own);
        let end = select(b.prefix_end, b.end, is_own);
        let raw = products(queries, Rows(first, end, p.row, k_base, false), id) * p.scale;
        let i = vec4(b.first + y, b.first + y, b.first + y + 16u, b.first + y + 16u);
        let j = vec4(first + x, first + x + 16u, first + x, first + x + 16u);
        var s = vec4(-1e30);
        if i.x < b.end && j.x < end && sees(i.x, j.x, is_own) {
            s.x = capped(raw.x).x;
        }
        if i.y < b.end && j.y < end && sees(i.y, j.y, is_own) {
            s.y = capped(raw.y).x;
        }
        if i.z < b.end && j.z < end && sees(i.z, j.z, is_own) {
            s.z = capped(raw.z).x;
        }
        if i.w < b.end && j.w < end && sees(i.w, j.w, is_own) {
            s.w = capped(raw.w).x;
        }
        store_weights(s, id);
        workgroupBarrier();
        let count = min(end - first, 32u);
        var next = top;
        for (var k = 0u; k < count; k++) {
            next = max(next, vec2(weights[upper + k], weights[lower + k]));
        }
        workgroupBarrier();
        // A hidden key has weight 0, also where a row sees nothing of the tile.
        let w = select(exp(s - next.xxyy), vec4(0.0), s <= vec4(-1e30));
        store_weights(w, id);
        workgroupBarrier();
        let shrink = exp(top - next);
        sum *= shrink;
        for (var k = 0u; k < count; k++) {
            sum += vec2(weights[upper + k], weights[lower + k]);
        }
        top = next;
        let values = Rows(first, end, p.row, v_base, false);
        o0 = o0 * shrink.xxyy + weighted(values, 0u, id);
        if p.d > 32u {
            o1 = o1 * shrink.xxyy + weighted(values, 32u, id);
        }
        if p.d > 64u {
            o2 = o2 * shrink.xxyy + weighted(values, 64u, id);
        }
        if p.d > 96u {
            o3 = o3 * shrink.xxyy + weighted(values, 96u, id);
        }
        if p.d > 128u {
            o4 = o4 * shrink.xxyy + weighted(values, 128u, id);
        }
        if p.d > 160u {
            o5 = o5 * shrink.xxyy + weighted(values, 160u, id);
        }
        if p.d > 192u {
            o6 = o6 * shrink.xxyy + weighted(values, 192u, id);
        }
        if p.d > 224u {
            o7 = o7 * shrink.xxyy + weighted(values, 224u, id);
        }
        workgroupBarrier();
    }
    let share = 1.0 / sum.xxyy;
    put_chunk(b.first + y, b.end, head, 0u + x, o0 * share);
    put_chunk(b.first + y, b.end, head, 32u + x, o1 * share);
    put_chunk(b.first + y, b.end, head, 64u + x, o2 * share);
    put_chunk(b.first + y, b.end, head, 96u + x, o3 * share);
    put_chunk(b.first + y, b.end, head, 128u + x, o4 * share);
    put_chunk(b.first + y, b.end, head, 160u + x, o5 * share);
    put_chunk(b.first + y, b.end, head, 192u + x, o6 * share);
    put_chunk(b.first + y, b.end, head, 224u + x, o7 * share);
    if x == 0u {
        if b.first + y < b.end {
            lse[(b.first + y) * p.heads + head] = top.x + log_of(sum.x);
        }
        if b.first + y + 16u < b.end {
            lse[(b.first + y + 16u) * p.heads + head] = top.y + log_of(sum.y);
        }
    }
}

fn put(i: u32, end: u32, head: u32, channel: u32, value: f32) {
    if i < end && channel < p.d {
        o[(i * p.heads + head) * p.d + channel] = value;
    }
}

fn put_chunk(i: u32, end: u32, head: u32, channel: u32, value: vec4<f32>) {
    put(i, end, head, channel, value.x);
    put(i, end, head, channel + 16u, value.y);
    put(i + 16u, end, head, channel, value.z);
    put(i + 16u, end, head, channel + 16u, value.w);
}
