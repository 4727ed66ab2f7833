//! One architecture in five generations.
//!
//! [`table`] the parameters | [`buffers`] the activations | [`forward`] ids to loss | [`backward`] loss to
//! gradients | [`decode`] with a KV cache | [`batch`] with many sequences | [`recompute`] without a cache |
//! [`packed`] weights in fewer bits | [`count`] parameters, FLOPs, bytes

pub mod backward;
pub mod batch;
pub mod buffers;
mod cache;
pub mod count;
pub mod decode;
pub mod forward;
pub mod init;
pub mod packed;
pub mod recompute;
mod rope;
mod step;
pub mod table;

use std::cell::Cell;

use nanochat_compute::{Backend, DType, Tensor};

use crate::{GptConfig, Result};
use rope::Rope;
use table::{Role, Table};

/// A model on a device: its parameters in one stretch of memory, its own or that of a mapped file.
pub struct Nano {
    config: GptConfig,
    table: Table,
    params: Tensor,
    rope: Rope,
    forwarded: Cell<u64>,
}

impl Nano {
    /// A model with all parameters zero.
    ///
    /// Errors: [`nanochat_compute::Error::Memory`].
    pub fn zeros(backend: &dyn Backend, config: GptConfig) -> Result<Self> {
        let table = Table::new(&config);
        let params = backend.alloc(table.len(), DType::F32)?;
        Ok(Self::over(config, table, params))
    }

    /// A model whose parameters lie in `params` where `table` says.
    pub(crate) fn over(config: GptConfig, table: Table, params: Tensor) -> Self {
        let rope = Rope::new(&config);
        Self { config, table, params, rope, forwarded: Cell::new(0) }
    }

    /// True when the parameters lie in a file and can only be read: [`crate::checkpoint::open`].
    pub fn is_mapped(&self) -> bool {
        self.params.is_mapped()
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
