
// B in single precision.
@group(0) @binding(1) var<storage, read> b: array<f32>;

fn b_number(at: u32) -> f32 {
    return b[at];
}
