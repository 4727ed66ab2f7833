//! Every buffer of a step, as a table with lifetimes; bytes are known before anything is allocated.

use nanochat_compute::ops::StepStyle;
use nanochat_compute::plan::{BufferId, Layout, Plan};
use nanochat_compute::{Backend, DType, Tensor};

use crate::GptConfig;

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward and backward: activations are kept.
    Train,
    /// Forward only: a layer's activations are dropped after it.
    Eval,
}

/// Names of a layer's kept activations.
struct LayerIds {
    /// Residual stream after the layer.
    x: BufferId,
    y1: BufferId,
    rstd1: BufferId,
    q: BufferId,
    q_rstd: BufferId,
    k: BufferId,
    k_rstd: BufferId,
    v: BufferId,
    gate: Option<BufferId>,
    o: BufferId,
    lse: BufferId,
    y2: BufferId,
    rstd2: BufferId,
    r: BufferId,
    a: BufferId,
}

/// A planned step for a fixed (B, T).
pub struct StepPlan {
    /// Rows.
    pub b: usize,
    /// Positions.
    pub t: usize,
    /// What it is for.
    pub mode: Mode,
    layout: Layout,
    ids: Ids,
}

struct Ids {
    tokens: BufferId,
    targets: BufferId,
    e: BufferId,
    e_rstd: BufferId,
    smear_gate: Option<BufferId>,
    x0: BufferId,
    layers: Vec<LayerIds>,
    xf: Option<BufferId>,
    yf: BufferId,
    yf_rstd: BufferId,
    losses: BufferId,
    logits: BufferId,
    grads: Option<GradIds>,
}

struct GradIds {
    dx: BufferId,
    dx0: BufferId,
    dxb: Option<BufferId>,
    t1: BufferId,
    t4: BufferId,
}

/// A layer's activations, as views of the arena.
pub(crate) struct LayerBuffers {
    /// (N, C) residual stream after the layer
    pub x: Tensor,
    /// (N, C) normalised input of attention
    pub y1: Tensor,
    pub rstd1: Tensor,
    /// (N, H, D) after rope and norm
    pub q: Tensor,
    pub q_rstd: Tensor,
    /// (N, Hkv, D) after rope and norm
    pub k: Tensor,
    pub k_rstd: Tensor,
    /// (N, Hkv, D) value embedding included
    pub v: Tensor,
    /// (N, Hkv)
    pub gate: Option<Tensor>,
    /// (N, H, D)
    pub o: Tensor,
    /// (N, H)
    pub lse: Tensor,
    /// (N, C) normalised input of the MLP
    pub y2: Tensor,
    pub rstd2: Tensor,
    /// (N, 4C) max(c_fc y2, 0)
    pub r: Tensor,
    /// (N, 4C) r squared, only within the layer
    pub a: Tensor,
}

/// Gradients of activations.
pub(crate) struct GradBuffers {
    /// (N, C) residual stream
    pub dx: Tensor,
    /// (N, C) summed over layers
    pub dx0: Tensor,
    /// (N, C) share that backout sends to the middle layer
    pub dxb: Option<Tensor>,
    /// (N, C)
    pub t1: Tensor,
    /// (N, 4C)
    pub t4: Tensor,
}

/// All activations of a step, as views of one arena.
pub struct Buffers {
    /// Rows.
    pub b: usize,
    /// Positions.
    pub t: usize,
    /// (B, T) input ids
    pub tokens: Tensor,
    /// (B, T) target ids, -1 = ignore
    pub targets: Tensor,
    /// (B, T) nats
    pub losses: Tensor,
    pub(crate) e: Tensor,
    pub(crate) e_rstd: Tensor,
    pub(crate) smear_gate: Option<Tensor>,
    pub(crate) x0: Tensor,
    pub(crate) layers: Vec<LayerBuffers>,
    pub(crate) xf: Option<Tensor>,
    pub(crate) yf: Tensor,
    pub(crate) yf_rstd: Tensor,
    pub(crate) logits: Tensor,
    pub(crate) grads: Option<GradBuffers>,
}

impl StepPlan {
    /// Lays out a step of B rows of T tokens.
    ///
    /// The clock: 0 embedding, 1 + i layer i forward, L + 1 head, 2L + 1 - i layer i backward,
    /// 2L + 2 embedding backward.
    pub fn new(config: &GptConfig, b: usize, t: usize, mode: Mode) -> Self {
        Self::styled(config, b, t, mode, StepStyle::default())
    }

    /// As [`StepPlan::new`], as this device likes it.
    pub fn on(be: &dyn Backend, config: &GptConfig, b: usize, t: usize, mode: Mode) -> Self {
        Self::styled(config, b, t, mode, be.step_style())
    }

    fn styled(config: &GptConfig, b: usize, t: usize, mode: Mode, style: StepStyle) -> Self {
        let (l, n, c, kv) = (config.n_layer, b * t, config.n_embd, config.kv_dim());
        let (h, hkv) = (config.n_head, config.n_kv_head);
        let rules = config.rules();
        let train = mode == Mode::Train;
        let (head, end) = (l + 1, if train { 2 * l + 2 } else { l + 1 });
        let fwd = |i: usize| 1 + i;
        let bwd = |i: usize| if train { 2 * l + 1 - i } else { 1 + i };
        let plan = std::cell::RefCell::new(Plan::new());
        let put = |name: String, len: usize, dtype: DType, first: usize, last: usize| {
            plan.borrow_mut().add(name, len, dtype, first, last)
        };
        // Streams are stored as the device likes; statistics of rows, and what is read as a result, in
        // f32.
        let add = |name: String, len, first, last| put(name, len, style.activations, first, last);
        let exact = |name: String, len, first, last| put(name, len, DType::F32, first, last);
        let e = add("e".into(), n * c, 0, end);
        let e_rstd = exact("e_rstd".into(), n, 0, end);
        let smear_gate = rules.smear_backout.then(|| exact("smear_gate".into(), n, 0, end));
        // Without smear the residual stream starts as e itself; with no lambdas it is one buffer.
        let x0 = if rules.smear_backout {
            add("x0".into(), n * c, 0, end)
        } else if rules.lambdas {
            e
        } else {
            add("x".into(), n * c, 0, head)
        };
        let middle = config.backout_layer();
        let layers = (0..l)
            .map(|i| {
                let last_read = if i + 1 == l || !train { fwd(i + 1) } else { bwd(i + 1) };
                let last_x = if i == middle { last_read.max(head) } else { last_read };
                let kept = |what: &str, len| add(format!("{i}.{what}"), len, fwd(i), bwd(i));
                let stat = |what: &str, len| exact(format!("{i}.{what}"), len, fwd(i), bwd(i));
                let gate = config.has_value_embedding(i).then(|| stat("gate", n * hkv));
                LayerIds {
                    y1: kept("y1", n * c),
                    rstd1: stat("rstd1", n),
                    q: kept("q", n * c),
                    q_rstd: stat("q_rstd", n * h),
                    k: kept("k", n * kv),
                    k_rstd: stat("k_rstd", n * hkv),
                    v: kept("v", n * kv),
                    gate,
                    o: kept("o", n * c),
                    lse: stat("lse", n * h),
                    y2: kept("y2", n * c),
                    rstd2: stat("rstd2", n),
                    r: kept("r", n * 4 * c),
                    x: if rules.lambdas {
                        add(format!("{i}.x"), n * c, fwd(i), last_x)
                    } else {
                        x0
                    },
                    a: add(format!("{i}.a"), n * 4 * c, fwd(i), fwd(i)),
                }
            })
            .collect();
        let xf = rules.smear_backout.then(|| add("xf".into(), n * c, head, head));
        let yf = add("yf".into(), n * c, head, head);
        let yf_rstd = exact("yf_rstd".into(), n, head, head);
        let losses = exact("losses".into(), n, head, end);
        let logits_len = n.min(style.loss_rows) * config.vocab_size;
        // Logits that become gradients are a stream; those that somebody reads are results.
        let logits_dtype = if train { style.activations } else { DType::F32 };
        let logits = put("logits".into(), logits_len, logits_dtype, head, head);
        let grads = train.then(|| GradIds {
            dx: add("dx".into(), n * c, head, end),
            dx0: add("dx0".into(), n * c, head, end),
            dxb: rules.smear_backout.then(|| add("dxb".into(), n * c, head, bwd(middle))),
            t1: add("t1".into(), n * c, head, end),
            t4: add("t4".into(), n * 4 * c, bwd(l - 1), bwd(0)),
        });
        let tokens = put("tokens".into(), n, DType::I32, 0, end);
        let targets = put("targets".into(), n, DType::I32, 0, head);
        let ids = Ids {
            tokens,
            targets,
            e,
            e_rstd,
            smear_gate,
            x0,
            layers,
            xf,
            yf,
            yf_rstd,
            losses,
            logits,
            grads,
        };
        Self { b, t, mode, layout: plan.into_inner().layout(), ids }
    }

    /// Bytes of the arena, exactly.
    pub fn bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// The table of buffers and their places.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Views of an arena of at least [`StepPlan::bytes`].
    pub fn views(&self, arena: &Tensor) -> Buffers {
        let ids = &self.ids;
        let at = |id: BufferId| self.layout.view(arena, id);
        let layer = |l: &LayerIds| LayerBuffers {
            x: at(l.x),
            y1: at(l.y1),
            rstd1: at(l.rstd1),
            q: at(l.q),
            q_rstd: at(l.q_rstd),
            k: at(l.k),
            k_rstd: at(l.k_rstd),
            v: at(l.v),
            gate: l.gate.map(at),
            o: at(l.o),
            lse: at(l.lse),
            y2: at(l.y2),
            rstd2: at(l.rstd2),
            r: at(l.r),
            a: at(l.a),
        };
        Buffers {
            b: self.b,
            t: self.t,
            tokens: at(ids.tokens),
            targets: at(ids.targets),
            losses: at(ids.losses),
            e: at(ids.e),
            e_rstd: at(ids.e_rstd),
            smear_gate: ids.smear_gate.map(at),
            x0: at(ids.x0),
            layers: ids.layers.iter().map(layer).collect(),
            xf: ids.xf.map(at),
            yf: at(ids.yf),
            yf_rstd: at(ids.yf_rstd),
            logits: at(ids.logits),
            grads: ids.grads.as_ref().map(|g| GradBuffers {
                dx: at(g.dx),
                dx0: at(g.dx0),
                dxb: g.dxb.map(at),
                t1: at(g.t1),
                t4: at(g.t4),
            }),
        }
    }
}
