//! Every buffer of a step, as a table with lifetimes; bytes are known before anything is allocated.

use std::ops::Range;

use nanochat_compute::ops::StepStyle;
use nanochat_compute::plan::{BufferId, Layout, Plan};
use nanochat_compute::{Backend, DType, Tensor};

use crate::GptConfig;

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward and backward: activations are kept.
    Train,
    /// The same but for the MLP's hidden rows, (N, 4C) a layer: the backward makes them again, from the
    /// same operands and so with the same bits, [`MLP_ROWS`] at a time.
    TrainLean,
    /// Forward only: a layer's activations are dropped after it.
    Eval,
}

/// Rows of the MLP that are alive together in [`Mode::TrainLean`]: enough that packing the weights for
/// them is a small part of multiplying, few enough that they come from a cache.
pub const MLP_ROWS: usize = 4096;

impl Mode {
    /// Training on a device, the way that is best there.
    pub fn train(be: &dyn Backend) -> Self {
        if be.remakes_hidden() { Mode::TrainLean } else { Mode::Train }
    }
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
    back: Option<BackIds>,
}

/// Names of what only the backward of a layer writes.
struct BackIds {
    r: Option<BufferId>,
    t4: BufferId,
    dq: BufferId,
    dk: BufferId,
    dv: BufferId,
}

/// A planned step for a fixed (B, T).
pub struct StepPlan {
    /// Rows.
    pub b: usize,
    /// Positions.
    pub t: usize,
    /// What it is for.
    pub mode: Mode,
    mlp_rows: usize,
    keeps_square: bool,
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
    /// (N, 4C) max(c_fc y2, 0); in [`Mode::TrainLean`] (rows, 4C), only within the layer
    pub r: Tensor,
    /// (rows, 4C) r squared, only within the layer
    pub a: Tensor,
    pub back: Option<BackBuffers>,
}

/// What only the backward of a layer writes, as views of the arena.
pub(crate) struct BackBuffers {
    /// (rows, 4C) r made again, where it is not kept
    pub r: Option<Tensor>,
    /// (rows, 4C) r squared, then the gradient of what r was made of
    pub t4: Tensor,
    /// (N, H, D)
    pub dq: Tensor,
    /// (N, Hkv, D)
    pub dk: Tensor,
    /// (N, Hkv, D)
    pub dv: Tensor,
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
}

/// Rows that go through the MLP together.
pub(crate) struct MlpRows {
    rows: Range<usize>,
}

impl MlpRows {
    /// All N of them, `most` at a time.
    pub fn all(n: usize, most: usize) -> impl Iterator<Item = Self> {
        (0..n).step_by(most.max(1)).map(move |first| Self { rows: first..n.min(first + most) })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// These rows of x, (N, width).
    pub fn of(&self, width: usize, x: &Tensor) -> Tensor {
        x.slice(self.rows.start * width..self.rows.end * width)
    }

    /// These rows of x where all N are kept, else the first of as many.
    pub fn kept(&self, width: usize, x: &Tensor) -> Tensor {
        if x.len() >= self.rows.end * width {
            self.of(width, x)
        } else {
            x.slice(0..self.len() * width)
        }
    }
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
    /// Rows of the MLP that are alive together: N, or [`MLP_ROWS`].
    pub(crate) mlp_rows: usize,
    /// A layer's r holds its own square, and a is r.
    pub(crate) keeps_square: bool,
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
    /// The clock: 0 embedding, 1 + i layer i forward, L + 1 last norm, L + 2 head, L + 3 backward of
    /// the last norm; then, from the last layer to the first, the MLP's backward and that of attention,
    /// a tick each; 3L + 4 embedding backward.
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
        let (train, lean) = (mode != Mode::Eval, mode == Mode::TrainLean);
        let mlp_rows = if lean { n.min(MLP_ROWS) } else { n };
        let keeps_square = style.keeps_square && !lean;
        let (last, head, into) = (l + 1, l + 2, l + 3);
        let end = if train { 3 * l + 4 } else { head };
        let fwd = |i: usize| 1 + i;
        let bwd_mlp = |i: usize| if train { into + 1 + 2 * (l - 1 - i) } else { fwd(i) };
        let bwd = |i: usize| if train { bwd_mlp(i) + 1 } else { fwd(i) };
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
            add("x".into(), n * c, 0, last)
        };
        let middle = config.backout_layer();
        let layers = (0..l)
            .map(|i| {
                let last_read = if i + 1 == l || !train { fwd(i + 1) } else { bwd(i + 1) };
                // Backout reads its layer in the last norm, and in that norm's backward.
                let backout = if train { into } else { last };
                let last_x = if i == middle { last_read.max(backout) } else { last_read };
                let back = train.then(|| {
                    let at = bwd_mlp(i);
                    let mlp = |what| add(format!("{i}.{what}"), mlp_rows * 4 * c, at, at);
                    let (r, t4) = (lean.then(|| mlp("r again")), mlp("t4"));
                    let d = |what, len| add(format!("{i}.{what}"), len, bwd(i), bwd(i));
                    BackIds { r, t4, dq: d("dq", n * c), dk: d("dk", n * kv), dv: d("dv", n * kv) }
                });
                let kept = |what: &str, len| add(format!("{i}.{what}"), len, fwd(i), bwd(i));
                let stat = |what: &str, len| exact(format!("{i}.{what}"), len, fwd(i), bwd(i));
                let gate = config.has_value_embedding(i).then(|| stat("gate", n * hkv));
                let r = if lean {
                    add(format!("{i}.r"), mlp_rows * 4 * c, fwd(i), fwd(i))
                } else {
                    add(format!("{i}.r"), n * 4 * c, fwd(i), bwd_mlp(i))
                };
                let a = if keeps_square {
                    r
                } else {
                    add(format!("{i}.a"), mlp_rows * 4 * c, fwd(i), fwd(i))
                };
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
                    y2: add(format!("{i}.y2"), n * c, fwd(i), bwd_mlp(i)),
                    rstd2: exact(format!("{i}.rstd2"), n, fwd(i), bwd_mlp(i)),
                    r,
                    x: if rules.lambdas {
                        add(format!("{i}.x"), n * c, fwd(i), last_x)
                    } else {
                        x0
                    },
                    a,
                    back,
                }
            })
            .collect();
        let xf = rules.smear_backout.then(|| add("xf".into(), n * c, last, last));
        let last_yf = if train { into } else { head };
        let yf = add("yf".into(), n * c, last, last_yf);
        let yf_rstd = exact("yf_rstd".into(), n, last, last_yf);
        let losses = exact("losses".into(), n, head, end);
        let logits_len = n.min(style.loss_rows) * config.vocab_size;
        // Logits that become gradients are a stream; those that somebody reads are results.
        let logits_dtype = if train { style.activations } else { DType::F32 };
        let logits = put("logits".into(), logits_len, logits_dtype, head, head);
        let grads = train.then(|| GradIds {
            dx: add("dx".into(), n * c, into, end),
            dx0: add("dx0".into(), n * c, into, end),
            dxb: rules.smear_backout.then(|| add("dxb".into(), n * c, into, bwd_mlp(middle))),
            t1: add("t1".into(), n * c, head, end),
        });
        let tokens = put("tokens".into(), n, DType::I32, 0, end);
        // A step may be run again on the rows that are there.
        let targets = put("targets".into(), n, DType::I32, 0, end);
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
        Self { b, t, mode, mlp_rows, keeps_square, layout: plan.into_inner().layout(), ids }
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
            back: l.back.as_ref().map(|b| BackBuffers {
                r: b.r.map(at),
                t4: at(b.t4),
                dq: at(b.dq),
                dk: at(b.dk),
                dv: at(b.dv),
            }),
        };
        Buffers {
            b: self.b,
            t: self.t,
            tokens: at(ids.tokens),
            targets: at(ids.targets),
            mlp_rows: self.mlp_rows,
            keeps_square: self.keeps_square,
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
            }),
        }
    }
}
