// Dropout: y (n) (+)= x (n), some elements left out and the others enlarged. One invocation four elements.
// The random numbers are those of Philox4x32 with ten rounds (Salmon et al., SC 2011) at counter (i / 4, 0, counter_0,
// counter_1): a function of the element's place alone.

struct Params {
    width: u32,
    n: u32,
    add: u32,     // 1: y += result
    any: u32,     // 0: nothing is left out
    last: u32,    // with `any`, a word up to this one leaves its element out
    scale: f32,   // factor on the others
    key_0: u32,
    key_1: u32,
    counter_0: u32,
    counter_1: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

// The upper half of a 64-bit product, by halves of 16 bits.
fn mul_high(a: u32, b: u32) -> u32 {
    let a_low = a & 0xffffu;
    let a_high = a >> 16u;
    let b_low = b & 0xffffu;
    let b_high = b >> 16u;
    let low = a_low * b_low;
    let middle = a_high * b_low + (low >> 16u);
    let other = a_low * b_high + (middle & 0xffffu);
    return a_high * b_high + (middle >> 16u) + (other >> 16u);
}

fn philox(block: u32) -> vec4<u32> {
    var c = vec4(block, 0u, p.counter_0, p.counter_1);
    var key = vec2(p.key_0, p.key_1);
    for (var round = 0u; round < 10u; round++) {
        let high_0 = mul_high(0xd2511f53u, c.x);
        let high_1 = mul_high(0xcd9e8d57u, c.z);
        c = vec4(high_1 ^ c.y ^ key.x, 0xcd9e8d57u * c.z, high_0 ^ c.w ^ key.y, 0xd2511f53u * c.x);
        key += vec2(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

fn put(i: u32, word: u32) {
    if i < p.n {
        let factor = select(p.scale, 0.0, p.any == 1u && word <= p.last);
        let kept = x[i] * factor;
        if p.add == 1u {
            y[i] += kept;
        } else {
            y[i] = kept;
        }
    }
}

@compute @workgroup_size(256)
fn dropout(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let block = (group.y * p.width + group.x) * 256u + id;
    if block < (p.n + 3u) / 4u {
        let words = philox(block);
        put(4u * block, words.x);
        put(4u * block + 1u, words.y);
        put(4u * block + 2u, words.z);
        put(4u * block + 3u, words.w);
    }
}
