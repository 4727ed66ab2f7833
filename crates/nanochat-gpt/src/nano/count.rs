//! Parameters, FLOPs and bytes by arithmetic.

use super::table::{Group, Role, Table};
use crate::GptConfig;

/// Parameters by kind, as upstream prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamCount {
    /// Token embedding.
    pub wte: usize,
    /// Value embeddings.
    pub value_embeds: usize,
    /// Output head.
    pub lm_head: usize,
    /// Matrices inside layers, gates included.
    pub transformer_matrices: usize,
    /// Lambdas and the smear gate.
    pub scalars: usize,
    /// Sum.
    pub total: usize,
}

impl ParamCount {
    /// Counts a model's parameters.
    pub fn of(config: &GptConfig) -> Self {
        let table = Table::new(config);
        let sum = |keep: &dyn Fn(Group) -> bool| {
            table.rows().iter().filter(|r| keep(r.group)).map(super::table::Row::len).sum()
        };
        Self {
            wte: sum(&|g| g == Group::Wte),
            value_embeds: sum(&|g| g == Group::ValueEmbeds),
            lm_head: sum(&|g| g == Group::LmHead),
            transformer_matrices: sum(&|g| g == Group::Matrix),
            scalars: sum(&|g| matches!(g, Group::ResidLambdas | Group::X0Lambdas | Group::Smear)),
            total: sum(&|_| true),
        }
    }

    /// Each kind by upstream's name, the total last.
    pub fn rows(&self) -> [(&'static str, usize); 6] {
        [
            ("wte", self.wte),
            ("value_embeds", self.value_embeds),
            ("lm_head", self.lm_head),
            ("transformer_matrices", self.transformer_matrices),
            ("scalars", self.scalars),
            ("total", self.total),
        ]
    }

    /// P_s: what the scaling laws count, matrices and head.
    pub fn scaling(&self) -> usize {
        self.transformer_matrices + self.lm_head
    }
}

/// P_mm: parameters that multiply activations, head and gates included.
pub fn matmul_params(config: &GptConfig) -> usize {
    let table = Table::new(config);
    table.rows().iter().filter(|r| r.is_linear()).map(super::table::Row::len).sum()
}

/// Sum over layers of `C * min(window, t)`.
fn attended(config: &GptConfig, t: usize) -> usize {
    (0..config.n_layer).map(|i| config.n_embd * config.window(i).min(t)).sum()
}

/// Training FLOPs a token: `6 P_mm + sum over layers of 12 C min(W, T)`.
pub fn train_flops_per_token(config: &GptConfig) -> f64 {
    let t = config.sequence_len;
    6.0 * matmul_params(config) as f64 + 12.0 * attended(config, t) as f64
}

/// Decode FLOPs a token at a context of n: `2 P_mm + sum over layers of 4 C min(n, W)`.
pub fn decode_flops_per_token(config: &GptConfig, n: usize) -> f64 {
    2.0 * matmul_params(config) as f64 + 4.0 * attended(config, n) as f64
}

/// KV-cache bytes a token: `2 L Hkv D bytes`.
pub fn kv_bytes_per_token(config: &GptConfig, bytes: usize) -> usize {
    2 * config.n_layer * config.kv_dim() * bytes
}

/// Bytes of training state outside the arena: parameters, gradients, AdamW moments, Muon buffers.
pub fn state_bytes(config: &GptConfig) -> usize {
    let table = Table::new(config);
    let mut floats = 2 * table.len();
    for row in table.rows() {
        floats += match row.group {
            Group::Matrix => row.len() + row.shape[0].max(row.shape[1]),
            _ => 2 * row.len(),
        };
    }
    4 * floats
}

impl GptConfig {
    /// The layer whose output backout subtracts: `floor(L / 2)`.
    pub fn backout_layer(&self) -> usize {
        self.n_layer / 2
    }

    /// True when the model has this parameter.
    pub fn has(&self, role: Role) -> bool {
        Table::new(self).row(role).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(depth: usize) -> GptConfig {
        GptConfig::from_depth(depth, 64, 128, 2048, 32768, "SSSL").expect("upstream's sizes")
    }

    #[test]
    fn parameters_of_depth_12_are_upstreams() {
        let n = ParamCount::of(&d(12));
        assert_eq!((n.wte, n.lm_head), (25_165_824, 25_165_824));
        assert_eq!(n.value_embeds, 150_994_944);
        assert_eq!(n.transformer_matrices, 12 * 12 * 768 * 768 + 6 * 6 * 12);
        assert_eq!(n.scalars, 50);
    }

    #[test]
    fn totals_and_flops_match_the_scaling_table() {
        // (depth, total parameters in millions, P_s in millions, train FLOPs a token)
        for (depth, total, scaling, flops) in [
            (4, 36.7, 11.5, 8.02e7),
            (6, 73.5, 23.2, 1.68e8),
            (12, 286.3, 110.1, 7.60e8),
            (20, 896.5, 435.2, 2.89e9),
            (32, 2818.6, 1677.7, 1.08e10),
        ] {
            let n = ParamCount::of(&d(depth));
            assert!((n.total as f64 / 1e6 - total).abs() < 0.06, "depth {depth}: {}", n.total);
            assert!((n.scaling() as f64 / 1e6 - scaling).abs() < 0.06, "depth {depth}");
            let f = train_flops_per_token(&d(depth));
            assert!((f / flops - 1.0).abs() < 0.005, "depth {depth}: {f}");
        }
    }
}
