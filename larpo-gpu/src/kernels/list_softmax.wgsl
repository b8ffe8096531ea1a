// Softmax inside ragged lists: x (items) -> y (items), and its gradient. One invocation a list.
// item_offsets (lists + 1) are the first words of meta. A list whose entries are all -infinity gets zeros.

struct Params {
    width: u32,
    lists: u32,
}

@group(0) @binding(0) var<storage, read> meta_data: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> d_y: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(64)
fn list_softmax(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let list = (group.y * p.width + group.x) * 64u + id;
    if list >= p.lists {
        return;
    }
    let first = meta_data[list];
    let end = meta_data[list + 1u];
    var top = -1e30;
    for (var i = first; i < end; i++) {
        top = max(top, x[i]);
    }
    var sum = 0.0;
    for (var i = first; i < end; i++) {
        if is_minus_infinity(x[i]) {
            y[i] = 0.0;
        } else {
            y[i] = exp(x[i] - top);
            sum += y[i];
        }
    }
    if sum > 0.0 {
        for (var i = first; i < end; i++) {
            y[i] /= sum;
        }
    }
}

// x = the softmax, d_y (items) -> d_x = x·(d_y - sum of x·d_y over the list)
@compute @workgroup_size(64)
fn list_softmax_grad(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let list = (group.y * p.width + group.x) * 64u + id;
    if list >= p.lists {
        return;
    }
    let first = meta_data[list];
    let end = meta_data[list + 1u];
    var mean = 0.0;
    for (var i = first; i < end; i++) {
        mean += x[i] * d_y[i];
    }
    for (var i = first; i < end; i++) {
        y[i] = x[i] * (d_y[i] - mean);
    }
}
