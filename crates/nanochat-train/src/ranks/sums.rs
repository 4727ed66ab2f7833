//! Gradients summed so that the bits do not depend on the number of ranks.
//!
//! A running sum `((g0 + g1) + g2) + g3` has other bits than `(g0 + g1) + (g2 + g3)`, which is what two
//! ranks compute. Here each micro batch's gradient is made from zero and added pairwise: a node over
//! `2^k` micro batches is the sum of its two halves, on one rank or on two.

use nanochat_compute::{Backend, DType, Tensor};

use crate::{Error, Result};

/// How the gradients of a step's micro batches are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sum {
    /// In place, one after the other: no memory beside the gradients.
    #[default]
    Running,
    /// Pairwise: the same bits on 1, 2, 4 ... ranks, for `log2(micro batches of a rank)` more gradients
    /// in memory and one addition of all gradients a micro batch.
    Pairwise,
}

impl Sum {
    /// Errors: [`Error::Recipe`] where the pairs of one rank would not be pairs of the whole.
    pub fn check(self, accumulation: usize, world: usize) -> Result<()> {
        let each = accumulation / world;
        if !accumulation.is_multiple_of(world) {
            let detail = format!(
                "{accumulation} micro batches a step cannot be shared by {world} ranks: give a \
                 --device-batch-size so that total batch / (B x T) is a multiple of {world}"
            );
            return Err(Error::Recipe { what: "ranks", detail });
        }
        if self == Sum::Pairwise && world > 1 && !each.is_power_of_two() {
            let detail = format!(
                "{each} micro batches a rank are no power of two: leave --same-bits out, or choose \
                 --device-batch-size so that they are"
            );
            return Err(Error::Recipe { what: "--same-bits", detail });
        }
        Ok(())
    }
}

/// The partial sums of [`Sum::Pairwise`], like the digits of a binary counter.
#[derive(Default)]
pub struct Pairs {
    /// Sums over `2^level` micro batches, levels falling.
    open: Vec<(u32, Tensor)>,
    /// Memory that was used before.
    free: Vec<Tensor>,
}

impl Pairs {
    /// Takes in the gradient of the next micro batch, which lies in `grads`.
    pub fn push(&mut self, be: &dyn Backend, grads: &Tensor) -> Result<()> {
        let mut level = 0;
        while self.open.last().is_some_and(|(top, _)| *top == level) {
            let (_, left) = self.open.pop().expect("looked at above");
            fold(be, grads, &left)?;
            self.free.push(left);
            level += 1;
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None => be.alloc(grads.len(), DType::F32)?,
        };
        be.copy(&place, grads)?;
        self.open.push((level, place));
        Ok(())
    }

    /// Puts the sum of all into `grads`.
    pub fn finish(&mut self, be: &dyn Backend, grads: &Tensor) -> Result<()> {
        let Some((_, last)) = self.open.pop() else { return Ok(()) };
        be.copy(grads, &last)?;
        self.free.push(last);
        while let Some((_, left)) = self.open.pop() {
            fold(be, grads, &left)?;
            self.free.push(left);
        }
        Ok(())
    }

    /// Forgets a step that ended early.
    pub fn clear(&mut self) {
        self.free.extend(self.open.drain(..).map(|(_, place)| place));
    }
}

/// `right += left`: addition commutes to the bit, so the order of the two does not matter.
fn fold(be: &dyn Backend, right: &Tensor, left: &Tensor) -> Result<()> {
    Ok(be.add(right, left)?)
}
