//! A decode step of few rows in the fused operations of a device: five kernels a layer instead of some
//! fifteen. What it computes is `forward_body` and the head, streams in f32.
//!
//! In: ids, a cache that is ready for one token a row, the last embeddings. Out: logits.

use nanochat_compute::ops::{
    After, MatMul, StepAttention, StepEmbed, StepGate, StepLinear, StepMix, StepOut,
};
use nanochat_compute::{Backend, DType, Tensor};

use super::Nano;
use super::cache::Cache;
use super::forward::Past;
use super::packed::PackedWeights;
use super::table::Role;
use crate::config::SMEAR_CHANNELS;
use crate::{GptConfig, Result};

/// Buffers of a fused step, for one number of rows.
pub(super) struct Step {
    rows: usize,
    /// Everything that follows, in one stretch.
    all: Tensor,
    /// (rows, C): where the residual stream begins.
    x0: Tensor,
    /// (rows, C) each: the residual stream after a layer; all the same where nothing is mixed.
    xs: Vec<Tensor>,
    /// (rows, C): what the head normalises, after backout.
    xf: Tensor,
    /// (rows, H, D)
    q: Tensor,
    /// (rows, Hkv, D)
    k: Tensor,
    /// (rows, Hkv, D)
    v: Tensor,
    /// (rows, H)
    rstd: Tensor,
    /// (rows, H, D)
    o: Tensor,
    /// (rows, 4C)
    a: Tensor,
}

/// What a step reads and writes beside its buffers.
pub(super) struct StepPast<'a> {
    pub weights: &'a PackedWeights,
    /// Ready for one token a row.
    pub cache: &'a Cache,
    /// (rows), i32
    pub tokens: &'a Tensor,
    /// (rows, C): normalised embeddings of the step before, for smear; those of this one afterwards.
    pub last: &'a Tensor,
    /// Rotary tables that reach every row's position.
    pub tables: (&'a Tensor, &'a Tensor),
    /// (rows, V), f32
    pub logits: &'a Tensor,
}

impl Step {
    /// The buffers, where the device's fused operations are the fast ones for so many rows.
    pub fn new(be: &dyn Backend, config: &GptConfig, rows: usize) -> Result<Option<Self>> {
        if rows > be.step_rows() {
            return Ok(None);
        }
        let (c, kv, l, h) = (config.n_embd, config.kv_dim(), config.n_layer, config.n_head);
        let mixes = if config.rules().lambdas { l } else { 0 };
        let lens = [c, mixes * c, c, c, kv, kv, h, c, 4 * c];
        // Each begins at a multiple of 16 bytes.
        let room = |len: usize| (rows * len).next_multiple_of(4);
        let all = be.alloc(lens.iter().map(|len| room(*len)).sum(), DType::F32)?;
        let mut next = 0;
        let [x0, xs, xf, q, k, v, rstd, o, a] = lens.map(|len| {
            let at = next;
            next += room(len);
            all.slice(at..at + rows * len)
        });
        let x = |i: usize| match config.rules().lambdas {
            true => xs.slice(i * rows * c..(i + 1) * rows * c),
            false => x0.clone(),
        };
        let xs = (0..l).map(x).collect();
        Ok(Some(Self { rows, all, x0, xs, xf, q, k, v, rstd, o, a }))
    }

    /// How many rows they are for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Where the buffers lie: a step that is replayed names it.
    pub fn address(&self) -> u64 {
        self.all.address()
    }

    /// Queues the step; leaves `past.logits`.
    pub fn run(&self, be: &dyn Backend, model: &Nano, past: &StepPast<'_>) -> Result<()> {
        let config = &model.config;
        let (m, k, eps) = (self.rows, config.n_embd, model.eps());
        let wte = model.param(Role::Wte);
        let rules = config.rules();
        let smear = rules
            .smear_backout
            .then(|| (model.param(Role::SmearGate), model.param(Role::SmearLambda)));
        be.step_embed(&StepEmbed {
            x0: &self.x0,
            last: past.last,
            table: &wte,
            ids: past.tokens,
            smear: smear.as_ref().map(|(w, lambda)| (w, lambda, SMEAR_CHANNELS)),
            c: k,
            eps,
        })?;
        for i in 0..config.n_layer {
            self.layer(be, model, past, i)?;
        }
        let x = &self.xs[config.n_layer - 1];
        let lambda = rules.smear_backout.then(|| model.param(Role::BackoutLambda));
        let middle = || &self.xs[config.backout_layer()];
        let mix = lambda.as_ref().map(|lambda| (StepMix::Backout { lambda }, middle(), &self.xf));
        let w = past.weights.weight(model, Role::LmHead);
        let head = StepOut { out: past.logits, w, n: config.vocab_size };
        let after = After::Softcap(rules.softcap);
        Ok(be.step_linear(&StepLinear { outs: &[head], x, mix, gate: None, after, m, k, eps })?)
    }

    fn layer(&self, be: &dyn Backend, model: &Nano, past: &StepPast<'_>, i: usize) -> Result<()> {
        let config = &model.config;
        let (m, k, kv, eps) = (self.rows, config.n_embd, config.kv_dim(), model.eps());
        let x = &self.xs[i];
        let out = |out, role, n| StepOut { out, w: past.weights.weight(model, role), n };

        let before = if i == 0 { &self.x0 } else { &self.xs[i - 1] };
        let lambdas = config.rules().lambdas.then(|| model.lambdas(&model.params, i));
        let mix = lambdas.as_ref().map(|(a, b)| (StepMix::Mix { a, b }, &self.x0, x));
        let gate = config
            .has_value_embedding(i)
            .then(|| (model.param(Role::ValueEmbed(i)), model.param(Role::VeGate(i))));
        let gate = gate.as_ref().map(|(table, w)| StepGate {
            table,
            ids: past.tokens,
            w,
            s: model.gate_shape(),
        });
        let outs = [
            out(&self.q, Role::Q(i), k),
            out(&self.k, Role::K(i), kv),
            out(&self.v, Role::V(i), kv),
        ];
        let after = After::Nothing;
        be.step_linear(&StepLinear { outs: &outs, x: before, mix, gate, after, m, k, eps })?;

        let ((keys, values, at), (cos, sin)) = (past.cache.layer(i), past.tables);
        let scale = 1.0 / (config.head_dim() as f32).sqrt();
        be.step_attention(&StepAttention {
            out: &self.o,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            rstd: &self.rstd,
            keys,
            values,
            cos,
            sin,
            places: &at.places,
            rows: &at.rows,
            s: past.cache.shape(i, m, 1, scale),
            qk_scale: config.rules().qk_scale,
            eps,
        })?;
        let add = MatMul::forward(m, k, k).add();
        past.weights.linear(model, be, (x, &self.o), Role::AttnProj(i), &add)?;

        let (outs, after) = ([out(&self.a, Role::Fc(i), 4 * k)], After::Relu2);
        be.step_linear(&StepLinear { outs: &outs, x, mix: None, gate: None, after, m, k, eps })?;
        let add = MatMul::forward(m, 4 * k, k).add();
        past.weights.linear(model, be, (x, &self.a), Role::MlpProj(i), &add)
    }
}
