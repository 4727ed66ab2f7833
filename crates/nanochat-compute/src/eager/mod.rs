//! The eager backend: what PyTorch runs without `torch.compile`, on [`Cpu`]'s threads and
//! instructions. It is the baseline that fusing and planning are measured against; [`Cpu`] is the
//! compiled side.
//!
//! One primitive a pass over memory, each vectorised and on all threads, each writing its result
//! into memory that is allocated for it and freed after its last use. The chain of primitives of an
//! operation is the one that PyTorch 2.9.1 dispatches on a CPU for the lines of nanochat's
//! `gpt.py`, backward included (recorded with a `TorchDispatchMode`); each function names it.
//! Results are those of every other backend.
//!
//! | room | what |
//! |---|---|
//! | `passes` | the primitives |
//! | `kernels` | which operation runs which chain |
//! | `norm`, `rope`, `relu2`, `mix`, `smear`, `value_gate`, `loss`, `matmul` | the chains |
//!
//! The same on both sides, because torch runs one kernel too: attention
//! (`scaled_dot_product_attention`), embedding and its backward, fill, copy, add; and the steps of
//! the optimizers, which upstream compiles in every mode. Matrix products are [`Cpu`]'s, f32 or
//! bf16. Numbers in memory are f32, as everywhere.
//!
//! Kinder than torch: there is no dispatcher; tensors for the backward are kept by the model's
//! plan, in memory that is warm, and the last primitive of an operation writes there; the gradient
//! of a table is added row by row, not as a whole table of zeros. Harsher: the model makes relu^2
//! again in the backward ([`crate::ops::relu2::square`], one pass on every backend), and the
//! product that is a weight's gradient is added to the one before it in the first micro-batch of a
//! step too, where torch takes it as it is.

mod kernels;
mod loss;
mod matmul;
mod mix;
mod norm;
mod passes;
mod relu2;
mod rope;
mod smear;
mod value_gate;

use crate::cpu::Cpu;

/// The eager backend over a [`Cpu`], whose threads, instructions and products it uses.
pub struct Eager {
    cpu: Cpu,
}

impl Eager {
    /// Takes the CPU.
    pub fn new(cpu: Cpu) -> Self {
        Self { cpu }
    }

    /// The CPU below.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }
}
