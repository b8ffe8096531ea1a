
// B in bfloat16: elements 2i and 2i + 1 in the lower and upper half of word i.
@group(0) @binding(1) var<storage, read> b: array<u32>;

fn b_number(at: u32) -> f32 {
    let pair = b[at / 2u];
    return bitcast<f32>(select(pair << 16u, pair & 0xffff0000u, at % 2u == 1u));
}
