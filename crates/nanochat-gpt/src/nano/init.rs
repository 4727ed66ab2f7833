//! First values of every parameter, from a seed.

use nanochat_compute::Tensor;

use super::Nano;
use super::table::{Init, Role, Row};
use crate::Result;

/// A uniform draw in (0, 1): a hash of (seed, stream, counter), so that no draw depends on another.
///
/// Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), twice.
fn uniform(seed: u64, stream: u64, counter: u64) -> f64 {
    let mut z = seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for add in [counter, stream] {
        z = z.wrapping_add(add.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    ((z >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// A standard normal draw (Box and Muller 1958).
fn normal(seed: u64, stream: u64, counter: u64) -> f64 {
    let (u, v) = (uniform(seed, stream, 2 * counter), uniform(seed, stream, 2 * counter + 1));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn values(row: &Row, seed: u64, stream: u64) -> Vec<f32> {
    let n = row.len();
    (0..n)
        .map(|i| match row.init {
            Init::Fill(x) => x,
            Init::Normal(std) => (normal(seed, stream, i as u64) * f64::from(std)) as f32,
            Init::Uniform(a, b) => a + (uniform(seed, stream, i as u64) * f64::from(b - a)) as f32,
            Init::Line(a, b) => a + (b - a) * i as f32 / (n.max(2) - 1) as f32,
        })
        .collect()
}

impl Nano {
    /// Draws first values for every parameter, as the table says; the same seed, the same bits.
    pub fn init(&self, seed: u64) -> Result<()> {
        for (stream, row) in self.table.rows().iter().enumerate() {
            let to: Tensor = self.params.slice(row.offset..row.offset + row.len());
            to.write_f32(&values(row, seed, stream as u64))?;
        }
        Ok(())
    }

    /// Sets smear's lambda, which [`Nano::init`] leaves at 0 as upstream does: the weight with which
    /// a token's embedding gets the one before it added. A model without smear stays as it is.
    pub fn set_smear_lambda(&self, lambda: f32) -> Result<()> {
        match self.table.rows().iter().find(|row| row.role == Role::SmearLambda) {
            Some(_) => Ok(self.param(Role::SmearLambda).write_f32(&[lambda])?),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Generation, GptConfig, RawConfig};

    #[test]
    fn smear_starts_where_it_is_set_and_nothing_else_moves() {
        let be = nanochat_compute::reference::Reference;
        for generation in [Generation::G1, Generation::G5] {
            let raw = RawConfig {
                sequence_len: 8,
                vocab_size: 20,
                n_layer: 2,
                n_head: 1,
                n_kv_head: 1,
                n_embd: 24,
                generation,
                ..RawConfig::default()
            };
            let config = GptConfig::new(raw).expect("sizes that fit");
            let model = Nano::zeros(&be, config).expect("a small model");
            model.init(1).expect("f32 parameters");
            let mut before = model.params.to_vec_f32().expect("f32");
            model.set_smear_lambda(0.75).expect("f32 parameters");
            let row = model.table.rows().iter().find(|row| row.name == "smear_lambda");
            if let Some(row) = row {
                assert_eq!(before[row.offset], 0.0);
                before[row.offset] = 0.75;
            }
            assert_eq!(row.is_some(), generation == Generation::G5);
            assert_eq!(model.params.to_vec_f32().expect("f32"), before);
        }
    }

    #[test]
    fn draws_have_the_moments_they_claim() {
        let n = 40_000u64;
        let draws: Vec<f64> = (0..n).map(|i| normal(42, 3, i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        // Standard errors: 0.005 for the mean, 0.007 for the variance.
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03, "mean {mean}, variance {var}");
        let below = (0..n).filter(|&i| uniform(42, 1, i) < 0.25).count() as f64 / n as f64;
        assert!((below - 0.25).abs() < 0.01, "{below}");
    }
}
