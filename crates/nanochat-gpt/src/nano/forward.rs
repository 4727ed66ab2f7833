//! Ids to losses: the forward pass of every generation, in the order of nanochat's `gpt.py`.

use nanochat_compute::ops::{Attention, HeadLoss, LOSS_ROWS, MatMul, RopeNorm, Smear, ValueGate};
use nanochat_compute::{Backend, Tensor};

use super::Nano;
use super::buffers::{Buffers, LayerBuffers, MlpRows};
use super::packed::PackedWeights;
use super::table::Role;
use crate::Result;
use crate::config::SMEAR_CHANNELS;

/// What came before the tokens of a call: nothing in training, a KV cache in generation. The two ways
/// differ in position, smear and attention, and in nothing else.
pub(crate) trait Past {
    /// Position of the first token of each row.
    fn start(&self) -> usize;
    /// Where each row of layer `i` stands, if the device is to look it up: [`Past::start`] is not asked
    /// then.
    fn places(&self, i: usize) -> Option<&Tensor> {
        let _ = i;
        None
    }
    /// False where the caller counts the tokens: a step that is replayed does not come by here.
    fn is_counted(&self) -> bool {
        true
    }
    /// `out = x W^T` (or added to it) with the weight of a role.
    fn linear(
        &self,
        model: &Nano,
        be: &dyn Backend,
        (out, x): (&Tensor, &Tensor),
        role: Role,
        s: &MatMul,
    ) -> Result<()> {
        Ok(be.matmul(out, x, &model.param(role).slice(0..s.n * s.k), s)?)
    }
    /// `x0` from `e`, with the token before each row as its first one's neighbour.
    fn smear(&self, model: &Nano, be: &dyn Backend, bufs: &Buffers) -> Result<()>;
    /// Layer `i`: `o` from q, k and v, over what came before as well.
    fn attend(
        &self,
        model: &Nano,
        be: &dyn Backend,
        bufs: &Buffers,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()>;
}

/// Rows that begin at position 0.
pub(crate) struct NoPast;

impl Past for NoPast {
    fn start(&self) -> usize {
        0
    }

    fn smear(&self, model: &Nano, be: &dyn Backend, bufs: &Buffers) -> Result<()> {
        let gate = bufs.smear_gate.as_ref().expect("the generation smears");
        let (w, lambda) = (model.param(Role::SmearGate), model.param(Role::SmearLambda));
        Ok(be.smear(&bufs.x0, gate, &bufs.e, &w, &lambda, &model.smear_shape(bufs))?)
    }

    fn attend(
        &self,
        model: &Nano,
        be: &dyn Backend,
        bufs: &Buffers,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        let s = model.attention_shape(bufs, i);
        Ok(be.attention(&layer.o, &layer.lse, &layer.q, &layer.k, &layer.v, &s)?)
    }
}

impl Nano {
    /// Runs the layers on `buffers.tokens`; leaves the normalised last stream for the head.
    ///
    /// Errors: a token outside the vocabulary; a position past the rotary tables.
    pub(crate) fn forward_body(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        past: &dyn Past,
    ) -> Result<()> {
        let config = &self.config;
        let (n, c) = (bufs.b * bufs.t, config.n_embd);
        // Before any work: a position past the reach is an error.
        self.rope.tables(be, past.start() + bufs.t)?;
        if past.is_counted() {
            self.count(n);
        }
        // The raw embedding is needed for a moment only: the first layer's y1 lends its place.
        let raw = &bufs.layers[0].y1;
        be.embedding(raw, &self.param(Role::Wte), &bufs.tokens, c)?;
        be.norm(&bufs.e, &bufs.e_rstd, raw, c, self.eps())?;
        if config.rules().smear_backout {
            past.smear(self, be, bufs)?;
        } else if !config.rules().lambdas {
            be.copy(&bufs.x0, &bufs.e)?;
        }
        let mut x = &bufs.x0;
        for (i, layer) in bufs.layers.iter().enumerate() {
            if config.rules().lambdas {
                let (a, b) = self.lambdas(&self.params, i);
                be.mix(&layer.x, x, &bufs.x0, &a, &b)?;
            }
            self.forward_attention(be, bufs, past, i, layer)?;
            self.forward_mlp(be, bufs, past, i, layer)?;
            x = &layer.x;
        }
        let last = match &bufs.xf {
            Some(xf) => {
                let middle = &bufs.layers[config.backout_layer()].x;
                be.backout(xf, x, middle, &self.param(Role::BackoutLambda))?;
                xf
            }
            None => x,
        };
        Ok(be.norm(&bufs.yf, &bufs.yf_rstd, last, c, self.eps())?)
    }

    fn forward_attention(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        past: &dyn Past,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        let (n, c, kv) = (bufs.b * bufs.t, self.config.n_embd, self.config.kv_dim());
        be.norm(&layer.y1, &layer.rstd1, &layer.x, c, self.eps())?;
        let to_q = MatMul::forward(n, c, c);
        let to_kv = MatMul::forward(n, c, kv);
        past.linear(self, be, (&layer.q, &layer.y1), Role::Q(i), &to_q)?;
        past.linear(self, be, (&layer.k, &layer.y1), Role::K(i), &to_kv)?;
        past.linear(self, be, (&layer.v, &layer.y1), Role::V(i), &to_kv)?;
        if let Some(gate) = &layer.gate {
            let (table, w) = (self.param(Role::ValueEmbed(i)), self.param(Role::VeGate(i)));
            let s = self.gate_shape();
            be.value_gate(&layer.v, gate, &table, &bufs.tokens, &layer.y1, &w, &s)?;
        }
        let at = |query| RopeNorm { start: past.start(), ..self.rope_shape(bufs.t, query) };
        let (cos, sin) = self.rope.tables(be, past.start() + bufs.t)?;
        for (x, rstd, query) in [(&layer.q, &layer.q_rstd, true), (&layer.k, &layer.k_rstd, false)]
        {
            match past.places(i) {
                Some(places) => {
                    let s = self.rope_shape(bufs.t, query);
                    be.rope_norm_placed(x, rstd, &cos, &sin, places, &s)?;
                }
                None => be.rope_norm(x, rstd, &cos, &sin, &at(query))?,
            }
        }
        past.attend(self, be, bufs, i, layer)?;
        let out = MatMul::forward(n, c, c).add();
        past.linear(self, be, (&layer.x, &layer.o), Role::AttnProj(i), &out)
    }

    fn forward_mlp(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        past: &dyn Past,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        let (n, c) = (bufs.b * bufs.t, self.config.n_embd);
        be.norm(&layer.y2, &layer.rstd2, &layer.x, c, self.eps())?;
        for rows in MlpRows::all(n, bufs.mlp_rows) {
            let (m, wide) = (rows.len(), rows.kept(4 * c, &layer.r));
            let a = layer.a.slice(0..m * 4 * c);
            let y2 = rows.of(c, &layer.y2);
            past.linear(self, be, (&wide, &y2), Role::Fc(i), &MatMul::forward(m, c, 4 * c))?;
            match bufs.keeps_square {
                true => be.relu2_in_place(&a)?,
                false => be.relu2(&a, &wide)?,
            }
            let down = MatMul::forward(m, 4 * c, c).add();
            past.linear(self, be, (&rows.of(c, &layer.x), &a), Role::MlpProj(i), &down)?;
        }
        Ok(())
    }

    /// Counts tokens that go through the layers.
    pub(crate) fn count(&self, n: usize) {
        self.forwarded.set(self.forwarded.get() + n as u64);
    }

    /// Losses of every target, in nats, 0 where ignored: (B, T).
    ///
    /// Reads `buffers.tokens` and `buffers.targets`; writes `buffers.losses`.
    pub fn losses(&self, be: &dyn Backend, bufs: &Buffers) -> Result<Vec<f32>> {
        self.forward_body(be, bufs, &NoPast)?;
        let head = self.param(Role::LmHead);
        let s = self.head_shape(bufs, 0.0);
        be.head_loss(&bufs.losses, None, &bufs.logits, &bufs.yf, &head, &bufs.targets, &s)?;
        Ok(bufs.losses.to_vec_f32()?)
    }

    /// As [`Nano::losses`], with packed weights.
    pub fn losses_with(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        weights: &PackedWeights,
    ) -> Result<Vec<f32>> {
        self.forward_body(be, bufs, weights)?;
        let (n, c, v) = (bufs.b * bufs.t, self.config.n_embd, self.config.vocab_size);
        for first in (0..n).step_by(LOSS_ROWS) {
            let rows = first..n.min(first + LOSS_ROWS);
            let (m, x) = (rows.len(), bufs.yf.slice(rows.start * c..rows.end * c));
            let logits = bufs.logits.slice(0..m * v);
            let s = MatMul::forward(m, c, v);
            weights.linear(self, be, (&logits, &x), Role::LmHead, &s)?;
            let (losses, targets) = (bufs.losses.slice(rows.clone()), bufs.targets.slice(rows));
            be.cross_entropy(&losses, &logits, &targets, v, self.config.rules().softcap)?;
        }
        Ok(bufs.losses.to_vec_f32()?)
    }

    /// Softcapped logits (rows, V) of some rows after [`Nano::losses`]; `rows` counts over B T and
    /// spans at most [`LOSS_ROWS`].
    pub fn logits(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        rows: std::ops::Range<usize>,
    ) -> Result<Vec<f32>> {
        self.logits_by(be, bufs, rows, &NoPast)
    }

    /// As [`Nano::logits`], after [`Nano::losses_with`] the same weights.
    pub fn logits_with(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        rows: std::ops::Range<usize>,
        weights: &PackedWeights,
    ) -> Result<Vec<f32>> {
        self.logits_by(be, bufs, rows, weights)
    }

    fn logits_by(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        rows: std::ops::Range<usize>,
        past: &dyn Past,
    ) -> Result<Vec<f32>> {
        let c = self.config.n_embd;
        let x = bufs.yf.slice(rows.start * c..rows.end * c);
        self.head(be, bufs, past, &x, rows.len())
    }

    /// Softcapped logits (m, V) of `m` rows of the normalised last stream, as many as
    /// [`LOSS_ROWS`] at most.
    pub(crate) fn head(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        past: &dyn Past,
        x: &Tensor,
        m: usize,
    ) -> Result<Vec<f32>> {
        Ok(self.head_on(be, bufs, past, x, m)?.to_vec_f32()?)
    }

    /// As [`Nano::head`]; the logits stay on the device.
    pub(crate) fn head_on(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        past: &dyn Past,
        x: &Tensor,
        m: usize,
    ) -> Result<Tensor> {
        let (c, v) = (self.config.n_embd, self.config.vocab_size);
        let out = bufs.logits.slice(0..m * v);
        past.linear(self, be, (&out, x), Role::LmHead, &MatMul::forward(m, c, v))?;
        be.softcap(&out, self.config.rules().softcap)?;
        Ok(out)
    }

    pub(crate) fn head_shape(&self, bufs: &Buffers, grad_scale: f32) -> HeadLoss {
        HeadLoss {
            n: bufs.b * bufs.t,
            c: self.config.n_embd,
            v: self.config.vocab_size,
            softcap: self.config.rules().softcap,
            grad_scale,
        }
    }

    pub(crate) fn smear_shape(&self, bufs: &Buffers) -> Smear {
        Smear { b: bufs.b, t: bufs.t, c: self.config.n_embd, channels: SMEAR_CHANNELS }
    }

    pub(crate) fn gate_shape(&self) -> ValueGate {
        let (channels, scale) = self.config.rules().value_gate.expect("the layer has a gate");
        let (hkv, d) = (self.config.n_kv_head, self.config.head_dim());
        ValueGate { c: self.config.n_embd, hkv, d, channels, scale }
    }

    pub(crate) fn rope_shape(&self, t: usize, query: bool) -> RopeNorm {
        let h = if query { self.config.n_head } else { self.config.n_kv_head };
        let (d, scale) = (self.config.head_dim(), self.config.rules().qk_scale);
        RopeNorm { t, h, d, start: 0, scale, eps: self.eps() }
    }

    pub(crate) fn attention_shape(&self, bufs: &Buffers, i: usize) -> Attention {
        let config = &self.config;
        let d = config.head_dim();
        Attention {
            b: bufs.b,
            t: bufs.t,
            h: config.n_head,
            hkv: config.n_kv_head,
            d,
            window: config.window(i),
            scale: 1.0 / (d as f32).sqrt(),
        }
    }

    /// (resid_lambda, x0_lambda) of layer `i` in a stretch of parameters or gradients.
    pub(crate) fn lambdas(&self, all: &Tensor, i: usize) -> (Tensor, Tensor) {
        let one = |role| self.table.view(all, role).slice(i..i + 1);
        (one(Role::ResidLambdas), one(Role::X0Lambdas))
    }
}
