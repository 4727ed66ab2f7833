//! One architecture in five generations.
//!
//! [`table`] the parameters | [`buffers`] the activations | [`forward`] ids to loss | [`backward`] loss to
//! gradients | [`decode`] with a KV cache | [`recompute`] without one | [`packed`] weights in
//! fewer bits | [`count`] parameters, FLOPs, bytes

pub mod backward;
pub mod buffers;
mod cache;
pub mod count;
pub mod decode;
pub mod forward;
pub mod init;
pub mod packed;
pub mod recompute;
pub mod table;

use std::cell::Cell;

use nanochat_compute::ops::rope_tables;
use nanochat_compute::{Backend, DType, Tensor};

use crate::{GptConfig, Result};
use table::{Role, Table};

/// A model on a device: its parameters in one stretch of memory.
pub struct Nano {
    config: GptConfig,
    table: Table,
    params: Tensor,
    cos: Tensor,
    sin: Tensor,
    forwarded: Cell<u64>,
}

/// Positions of the rotary tables: ten times the sequence that a model is made for, as upstream has
/// it, but no more than a million for its sake.
fn rope_reach(config: &GptConfig) -> usize {
    (config.sequence_len * 10).min(1 << 20).max(config.sequence_len)
}

impl Nano {
    /// A model with all parameters zero.
    ///
    /// Errors: [`nanochat_compute::Error::Memory`].
    pub fn zeros(backend: &dyn Backend, config: GptConfig) -> Result<Self> {
        let table = Table::new(&config);
        let params = backend.alloc(table.len(), DType::F32)?;
        let reach = rope_reach(&config);
        let (cos, sin) = rope_tables(reach, config.head_dim(), config.rules().rope_base);
        let (cos, sin) = (Tensor::from_f32(&cos)?, Tensor::from_f32(&sin)?);
        Ok(Self { config, table, params, cos, sin, forwarded: Cell::new(0) })
    }

    /// Sizes and generation.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The parameter table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// All parameters, in the order of the table.
    pub fn params(&self) -> &Tensor {
        &self.params
    }

    /// Tokens that went through the layers since the model was made, whoever sent them.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.get()
    }

    /// Epsilon of every norm.
    pub(crate) fn eps(&self) -> f32 {
        self.config.rules().norm_eps
    }

    /// The parameter with this role.
    ///
    /// Panics when the generation has no such parameter.
    pub(crate) fn param(&self, role: Role) -> Tensor {
        self.table.view(&self.params, role)
    }
}
