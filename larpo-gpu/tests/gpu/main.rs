//! Every kernel on the device against a naive twin in `f64`, and every shader translated offline.
//!
//! The device is the one that `LARPO_ADAPTER` names, else a GPU, else a CPU adapter. Where there is none, tests `gpu_*` are
//! skipped with a note, unless `LARPO_REQUIRE_GPU=1` makes that a failure.

mod attention;
mod common;
mod decode;
mod device;
mod elementwise;
mod half;
mod limits;
mod lists;
mod matmul;
mod norm;
mod offline;
mod optim;
mod rows;
mod sample;
mod token_logp;
