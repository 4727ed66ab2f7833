//! Bits per byte: the loss of a text, whatever its tokenizer.

use nanochat_compute::Backend;
use nanochat_data::Batches;
use nanochat_gpt::Nano;
use nanochat_gpt::nano::buffers::Buffers;

use crate::Result;

/// Sums of an evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BitsPerByte {
    /// Nats over counted targets.
    pub nats: f64,
    /// Bytes of counted targets.
    pub bytes: u64,
    /// Targets counted.
    pub tokens: u64,
}

impl BitsPerByte {
    /// `nats / (ln 2 * bytes)`; infinity when nothing was counted.
    pub fn bpb(&self) -> f64 {
        if self.bytes == 0 {
            return f64::INFINITY;
        }
        self.nats / (std::f64::consts::LN_2 * self.bytes as f64)
    }

    /// Takes one batch in: targets that are ignored, and those of 0 bytes (special tokens), are left
    /// out of both sums.
    pub fn add(&mut self, losses: &[f32], targets: &[i32], token_bytes: &[u32]) {
        for (&loss, &target) in losses.iter().zip(targets) {
            let bytes = usize::try_from(target).ok().and_then(|t| token_bytes.get(t)).copied();
            if let Some(bytes @ 1..) = bytes {
                self.nats += f64::from(loss);
                self.bytes += u64::from(bytes);
                self.tokens += 1;
            }
        }
    }
}

/// Bits per byte over `n_batches` batches of the shape that `buffers` were planned for.
pub fn evaluate(
    be: &dyn Backend,
    model: &Nano,
    buffers: &Buffers,
    batches: &mut dyn Batches,
    n_batches: usize,
    token_bytes: &[u32],
) -> Result<BitsPerByte> {
    let losses = |buffers: &Buffers| model.losses(be, buffers);
    evaluate_by(losses, buffers, batches, n_batches, token_bytes)
}

/// The same by any losses (B, T) of the ids and targets in `buffers`: of a model with packed weights.
pub fn evaluate_by(
    mut losses: impl FnMut(&Buffers) -> nanochat_gpt::Result<Vec<f32>>,
    buffers: &Buffers,
    batches: &mut dyn Batches,
    n_batches: usize,
    token_bytes: &[u32],
) -> Result<BitsPerByte> {
    let mut sum = BitsPerByte::default();
    for _ in 0..n_batches {
        let batch = batches.next_batch()?;
        buffers.tokens.write_i32(&batch.x)?;
        buffers.targets.write_i32(&batch.y)?;
        sum.add(&losses(buffers)?, &batch.y, token_bytes);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_computed_case() {
        let mut sum = BitsPerByte::default();
        // Tokens: 0 of 1 byte, 1 of 3 bytes, 2 a special. Counted: losses 2 and 6 over 4 bytes.
        sum.add(&[2.0, 6.0, 100.0, 100.0], &[0, 1, 2, -1], &[1, 3, 0]);
        assert_eq!((sum.nats, sum.bytes, sum.tokens), (8.0, 4, 2));
        assert!((sum.bpb() - 2.0 / std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(BitsPerByte::default().bpb(), f64::INFINITY);
    }
}
