//! Weights packed once for generation, where nothing changes them: what a device reads fastest.

use std::collections::HashMap;

use nanochat_compute::ops::{MatMul, PackedWeight};
use nanochat_compute::{Backend, Tensor};

use super::Nano;
use super::table::{Group, Role};
use crate::Result;

/// The weights of the linear layers and the head that the device packs; the others are read where
/// they lie.
pub(super) struct PackedWeights {
    all: HashMap<Role, PackedWeight>,
}

impl PackedWeights {
    /// Packs a model's weights. The model must not change while they are in use.
    pub fn new(be: &dyn Backend, model: &Nano) -> Result<Self> {
        let mut all = HashMap::new();
        for row in model.table().rows() {
            let (is_head, k) = (row.role == Role::LmHead, *row.shape.last().unwrap_or(&1));
            if !is_head && row.group != Group::Matrix {
                continue;
            }
            // Rows of the vocabulary's padding are never multiplied.
            let n = if is_head { model.config().vocab_size } else { row.len() / k };
            let w = model.param(row.role).slice(0..n * k);
            if let Some(packed) = be.pack(&w, n, k)? {
                all.insert(row.role, packed);
            }
        }
        Ok(Self { all })
    }

    /// Bytes that were packed.
    pub fn bytes(&self) -> usize {
        self.all.values().map(|w| w.bytes).sum()
    }

    /// `out = x W^T` or added to it, as the shape says.
    pub fn linear(
        &self,
        model: &Nano,
        be: &dyn Backend,
        (out, x): (&Tensor, &Tensor),
        role: Role,
        s: &MatMul,
    ) -> Result<()> {
        match self.all.get(&role) {
            Some(w) => be.matmul_packed(out, x, w, s)?,
            None => be.matmul(out, x, &model.param(role).slice(0..s.n * s.k), s)?,
        }
        Ok(())
    }
}
