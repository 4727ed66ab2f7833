//! Weights packed once for generation and evaluation, where nothing changes them: in the order that a
//! device reads fastest, in as many bits as the caller asks for.

use std::collections::HashMap;

use nanochat_compute::ops::{MatMul, PackedWeight, Weight, WeightFormat};
use nanochat_compute::{Backend, Tensor};

use super::Nano;
use super::buffers::{Buffers, LayerBuffers};
use super::forward::{NoPast, Past};
use super::table::{Group, Role};
use crate::Result;

/// The weights of the linear layers and the head that the device packs; the others are read where
/// they lie.
pub struct PackedWeights {
    all: HashMap<Role, PackedWeight>,
    /// Bytes of the linear layers and the head that were not packed.
    unpacked: usize,
    addresses: Vec<u64>,
}

impl PackedWeights {
    /// Packs a model's weights. The model must not change while they are in use.
    ///
    /// Errors: those of [`Backend::pack`].
    pub fn new(be: &dyn Backend, model: &Nano, format: WeightFormat) -> Result<Self> {
        let (mut all, mut unpacked) = (HashMap::new(), 0);
        for row in model.table().rows().iter().filter(|row| row.is_linear()) {
            let (is_head, k) = (row.role == Role::LmHead, *row.shape.last().unwrap_or(&1));
            // Rows of the vocabulary's padding are never multiplied.
            let n = if is_head { model.config().vocab_size } else { row.len() / k };
            // Gates are a few rows, which other operations read.
            let is_packed =
                is_head || row.group == Group::Matrix && !matches!(row.role, Role::VeGate(_));
            let w = model.param(row.role).slice(0..n * k);
            match if is_packed { be.pack(&w, n, k, format)? } else { None } {
                Some(packed) => drop(all.insert(row.role, packed)),
                None => unpacked += w.bytes(),
            }
        }
        let mut addresses: Vec<u64> = all.values().filter_map(|w| w.address).collect();
        addresses.sort_unstable();
        Ok(Self { all, unpacked, addresses })
    }

    /// What the linear layers and the head are read as: `f32`, `bf16` or `int8`.
    pub fn format(&self) -> WeightFormat {
        self.all.values().next().map_or(WeightFormat::F32, |w| w.format)
    }

    /// The weight of a role as a fused step reads it; of the head, without its padding.
    pub(super) fn weight(&self, model: &Nano, role: Role) -> Weight<'_> {
        match self.all.get(&role) {
            Some(w) => Weight::Packed(w),
            None if role == Role::LmHead => {
                let config = model.config();
                Weight::Plain(model.param(role).slice(0..config.vocab_size * config.n_embd))
            }
            None => Weight::Plain(model.param(role)),
        }
    }

    /// Where they lie on a device that replays its steps, ascending.
    pub(crate) fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// Bytes that were packed: memory beside the model's.
    pub fn bytes(&self) -> usize {
        self.all.values().map(|w| w.bytes).sum()
    }

    /// Bytes of weights that a token multiplies: those packed, and those read where they lie.
    pub fn read_bytes(&self) -> usize {
        self.bytes() + self.unpacked
    }
}

/// Rows that begin at position 0, with packed weights.
impl Past for PackedWeights {
    fn start(&self) -> usize {
        NoPast.start()
    }

    fn linear(
        &self,
        model: &Nano,
        be: &dyn Backend,
        operands: (&Tensor, &Tensor),
        role: Role,
        s: &MatMul,
    ) -> Result<()> {
        match self.all.get(&role) {
            Some(w) => Ok(be.matmul_packed(operands.0, operands.1, w, s)?),
            None => NoPast.linear(model, be, operands, role, s),
        }
    }

    fn smear(&self, model: &Nano, be: &dyn Backend, bufs: &Buffers) -> Result<()> {
        NoPast.smear(model, be, bufs)
    }

    fn attend(
        &self,
        model: &Nano,
        be: &dyn Backend,
        bufs: &Buffers,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        NoPast.attend(model, be, bufs, i, layer)
    }
}
