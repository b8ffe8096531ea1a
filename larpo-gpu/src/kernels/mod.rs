//! The kernels: for each a function that records it, and its WGSL text, entry points and bindings as a constant.
//!
//! Functions take the recorder first, operands in the order of the formula, and results last. Matrices are row-major, shapes
//! are stated as `(rows, columns)`, and gradients `d_x` are those of the loss by `x`. Wrong lengths panic, naming the kernel:
//! they are bugs of the caller. A result is another buffer than the operands, except where a kernel says that it works in
//! place. Functions that need scratch memory return an [`Error`](crate::Error) when there is none.
//!
//! A tensor may be larger than what the device shows a kernel at a time ([`Gpu::max_binding_bytes`](crate::Gpu)), where it is
//! an operand of `matmul`, `token_logp`, `gather`, `elementwise`, `reduce`, `adamw` or `sample`: these run on one part after
//! another. Elsewhere that is an error ([`Recorder::fault`](crate::Recorder::fault)).
//!
//! Sums have a fixed order that depends on shapes and that limit alone, and no kernel uses atomics, so results are the same bits from run
//! to run on one adapter and driver.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod decode;
pub mod dropout;
pub mod elementwise;
pub mod gather;
pub mod list_loss;
pub mod lists;
pub mod matmul;
pub mod norm;
pub mod reduce;
pub mod rope;
pub mod sample;
pub mod sum_rows;
pub mod token_logp;
pub mod tuning;

use crate::buffer::{Buffer, Element, View};
use crate::shader::Shader;

/// Every shader that runs on any device; [`OPTIONAL`] has the others.
pub static ALL: &[&Shader] = &[
    &matmul::TILE_64,
    &matmul::TILE_128,
    &matmul::DIRECT,
    &matmul::TILE_64_BF16,
    &matmul::TILE_128_BF16,
    &matmul::DIRECT_BF16,
    &matmul::SKINNY,
    &matmul::SKINNY_BF16,
    &elementwise::SHADER,
    &activation::SHADER,
    &gather::SHADER,
    &gather::SHADER_BF16,
    &gather::SEGMENT_SUM,
    &norm::SHADER,
    &norm::GRAD,
    &rope::SHADER,
    &reduce::SHADER,
    &sum_rows::SHADER,
    &adamw::SHADER,
    &dropout::SHADER,
    &list_loss::SHADER,
    &list_loss::GAMMA,
    &list_loss::SOFTMAX,
    &token_logp::SHADER,
    &attention::SHADER,
    &attention::GRAD,
    &decode::SHADER,
    &sample::SHADER,
];

/// Shaders that need optional features, and more shared memory than every device has: products on matrix units.
pub static OPTIONAL: &[&Shader] = &[
    &matmul::MATRIX_UNITS[0].f32,
    &matmul::MATRIX_UNITS[0].bf16,
    &matmul::MATRIX_UNITS[1].f32,
    &matmul::MATRIX_UNITS[1].bf16,
    &matmul::MATRIX_UNITS[2].f32,
    &matmul::MATRIX_UNITS[2].bf16,
    &matmul::MATRIX_UNITS[3].f32,
    &matmul::MATRIX_UNITS[3].bf16,
];

/// Invocations in a workgroup of the kernels with one invocation an element.
const GROUP: u64 = 256;

/// Workgroups for `n` invocations.
fn groups(n: usize) -> u64 {
    (n as u64).div_ceil(GROUP)
}

/// A number of elements or rows as the kernels take it. Tensors have fewer than 2³² elements, so their dimensions fit.
#[track_caller]
fn word(n: usize) -> u32 {
    u32::try_from(n).expect("a dimension beyond u32")
}

/// A number as a parameter word.
fn bits(x: f64) -> u32 {
    (x as f32).to_bits()
}

/// Panics unless `buffer` holds `len` elements.
#[track_caller]
fn check<T: Element>(kernel: &str, name: &str, buffer: &Buffer<T>, len: usize) {
    assert_eq!(buffer.len(), len, "{kernel}: length of {name}");
}

/// An operand that a kernel takes whole.
fn slot<T: Element>(buffer: &Buffer<T>) -> View<'_> {
    buffer.whole()
}
