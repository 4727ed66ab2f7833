//! Rotary tables as far as positions were asked for: what a short prompt does not need is not computed.

use std::cell::RefCell;

use nanochat_compute::ops::rope_tables;
use nanochat_compute::{Backend, Tensor};

use crate::{Error, GptConfig, Result};

/// Positions of the first tables: a prompt of a few sentences.
const FIRST: usize = 128;

/// Cosines and sines of a model's positions, made when they are needed.
pub(super) struct Rope {
    reach: usize,
    d: usize,
    base: f32,
    /// (positions, D/2) each; none at first.
    tables: RefCell<Option<(Tensor, Tensor)>>,
}

/// Positions that a model may see: ten times the sequence that it is made for, as upstream's tables
/// have it, but no more than a million for its sake.
pub(super) fn reach(config: &GptConfig) -> usize {
    (config.sequence_len * 10).min(1 << 20).max(config.sequence_len)
}

impl Rope {
    pub fn new(config: &GptConfig) -> Self {
        let (d, base) = (config.head_dim(), config.rules().rope_base);
        Self { reach: reach(config), d, base, tables: RefCell::new(None) }
    }

    /// (cos, sin) of the positions below `len` at least. They grow by doubling, so that a conversation
    /// computes each position about twice; a position's values do not depend on how many there are.
    ///
    /// Errors: `len` is past the reach; memory that is not there.
    pub fn tables(&self, be: &dyn Backend, len: usize) -> Result<(Tensor, Tensor)> {
        if len > self.reach {
            let detail = format!("{len} tokens in a row, the rotary tables reach {}", self.reach);
            return Err(Error::Config { field: "sequence_len", detail });
        }
        let mut tables = self.tables.borrow_mut();
        if let Some((cos, sin)) = &*tables
            && cos.len() >= len * (self.d / 2)
        {
            return Ok((cos.clone(), sin.clone()));
        }
        let positions = len.next_power_of_two().max(FIRST).min(self.reach);
        let (cos, sin) = rope_tables(positions, self.d, self.base);
        let made = (be.place_f32(&cos)?, be.place_f32(&sin)?);
        *tables = Some(made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use nanochat_compute::reference::Reference;

    use super::*;

    #[test]
    fn tables_that_grew_are_those_of_the_whole_reach() {
        let config = GptConfig::from_depth(2, 64, 64, 64, 512, "L").expect("sizes that fit");
        let rope = Rope::new(&config);
        let (cos, sin) = rope_tables(640, 64, config.rules().rope_base);
        for len in [1, 3, 129, 128, 600, 640, 1] {
            let (c, s) = rope.tables(&Reference, len).expect("inside the reach");
            let (c, s) = (c.to_vec_f32().expect("f32"), s.to_vec_f32().expect("f32"));
            assert!(c.len() >= len * 32 && c.len() == s.len() && c.len() <= cos.len());
            assert!(c == cos[..c.len()] && s == sin[..s.len()], "{len}");
        }
        assert!(rope.tables(&Reference, 641).is_err());
    }
}
