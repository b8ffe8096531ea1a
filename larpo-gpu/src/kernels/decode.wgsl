// Decoding: keys and values kept in a cache (slots, 2·kv_heads·d), keys first, and one query row a response against them.
// qkv (n, row): `heads` query heads, `kv_heads` key heads, `kv_heads` value heads of d <= 256 channels.

struct Params {
    width: u32,
    n: u32,
    heads: u32,
    kv_heads: u32,
    d: u32,
    slots: u32,   // rows of the cache; those at or beyond it are not written, and read as hidden
    scale: f32,
    softcap: f32, // scores become c·tanh(s / c); 0: they stay
}

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> places: array<u32>; // slots (n), or spans (n, 4)
@group(0) @binding(2) var<storage, read> cache: array<f32>;
@group(0) @binding(3) var<storage, read_write> result: array<f32>; // the cache, or o (n, heads·d)
@group(1) @binding(0) var<uniform> p: Params;

// Keys and values of qkv -> rows places (n) of the cache. One invocation a number.
@compute @workgroup_size(64)
fn kv_append(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let kept = 2u * p.kv_heads * p.d;
    let i = (group.y * p.width + group.x) * 64u + id;
    let row = i / kept;
    if row >= p.n || places[row] >= p.slots {
        return;
    }
    let c = i % kept;
    result[places[row] * kept + c] = qkv[row * (p.heads * p.d + kept) + p.heads * p.d + c];
}

var<workgroup> query: array<f32, 256>;
var<workgroup> weights: array<f32, 64>;

// Attention of one query row and head to the rows a .. a + b and c .. c + e of the cache, its spans (a, b, c, e).
// Workgroup: one row and head; 64 keys at a time, then 64 channels at a time.
@compute @workgroup_size(64)
fn decode_attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let index = group.y * p.width + group.x;
    if index >= p.n * p.heads {
        return;
    }
    let row = index / p.heads;
    let head = index % p.heads;
    let kept = 2u * p.kv_heads * p.d;
    let key_base = head / (p.heads / p.kv_heads) * p.d;
    let value_base = key_base + p.kv_heads * p.d;
    for (var c = id; c < p.d; c += 64u) {
        query[c] = qkv[row * (p.heads * p.d + kept) + head * p.d + c];
    }
    let first = places[4u * row];
    let first_len = places[4u * row + 1u];
    let second = places[4u * row + 2u];
    let total = first_len + places[4u * row + 3u];

    var top = -1e30;
    var sum = 0.0;
    // Channels id, id + 64, id + 128, id + 192.
    var o = vec4(0.0);
    for (var start = 0u; start < total; start += 64u) {
        workgroupBarrier();
        let key = start + id;
        let slot = select(second + key - first_len, first + key, key < first_len);
        var s = -1e30;
        if key < total && slot < p.slots {
            var dot = 0.0;
            for (var c = 0u; c < p.d; c++) {
                dot += query[c] * cache[slot * kept + key_base + c];
            }
            s = dot * p.scale;
            if p.softcap > 0.0 {
                // tanh is 1 in single precision from 10 on; some drivers overflow far beyond.
                s = p.softcap * tanh(clamp(s / p.softcap, -10.0, 10.0));
            }
        }
        weights[id] = s;
        workgroupBarrier();
        let count = min(total - start, 64u);
        var next = top;
        for (var k = 0u; k < count; k++) {
            next = max(next, weights[k]);
        }
        let shrink = exp(top - next);
        sum *= shrink;
        o *= shrink;
        top = next;
        for (var k = 0u; k < count; k++) {
            let at_key = start + k;
            let from_slot = select(second + at_key - first_len, first + at_key, at_key < first_len);
            if weights[k] > -1e30 {
                let w = exp(weights[k] - top);
                sum += w;
                let base = from_slot * kept + value_base;
                o.x += w * value(base, id);
                o.y += w * value(base, id + 64u);
                o.z += w * value(base, id + 128u);
                o.w += w * value(base, id + 192u);
            }
        }
    }
    // Nothing seen gives zeros.
    let share = select(0.0, 1.0 / sum, sum > 0.0);
    put(index, id, o.x * share);
    put(index, id + 64u, o.y * share);
    put(index, id + 128u, o.z * share);
    put(index, id + 192u, o.w * share);
}

fn value(base: u32, channel: u32) -> f32 {
    if channel < p.d {
        return cache[base + channel];
    }
    return 0.0;
}

fn put(index: u32, channel: u32, x: f32) {
    if channel < p.d {
        result[index * p.d + channel] = x;
    }
}
