//! Tensors, kernels and devices: every operation of the model once as a plain reference ([`ops`]),
//! and again as fast as a device allows ([`cpu`]).
//!
//! | room | what |
//! |---|---|
//! | [`ops`] | trait [`Backend`]: all the mathematics; one file an operation with its plain reference |
//! | [`mod@reference`] | the backend that only calls the plain references: the law for the others |
//! | [`cpu`] | the fast CPU backend: thread pool, SIMD chosen at start, GEMM, attention |
//! | [`cuda`] | NVIDIA GPUs, and the same kernels emulated on a CPU |
//! | [`eager`] | the same mathematics one primitive at a time: the baseline of what fusing wins |
//! | [`tensor`] | typed views of device memory |
//! | [`comm`] | trait [`Comm`]: ranks that train together, and the collectives between them |
//! | [`profile`] | seconds by operation |
//! | [`plan`] | the arena planner: bytes of a step, known before anything is allocated |
//!
//! The kernels sum in a fixed order: results do not depend on the number of threads.

mod checks;
pub mod comm;
pub mod cpu;
pub mod cuda;
pub mod eager;
pub mod error;
mod host;
mod map;
mod memory;
pub mod ops;
pub mod plan;
pub mod profile;
pub mod reference;
pub mod tensor;

pub use comm::Comm;
pub use error::{Error, Result};
pub use ops::Backend;
pub use tensor::{DType, Floats, FloatsMut, Tensor};
