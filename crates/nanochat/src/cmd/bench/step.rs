//! What the kernels of a decode step of few rows take: chains of one of them, a layer's weights after the
//! other's, replayed as a step is. `nanochat bench gpu` shows them beside the memory's limit.

use anyhow::{Context, Result};
use nanochat_compute::cuda::Cuda;
use nanochat_compute::ops::{
    After, CachedAttention, MatMul, NORM_EPS, PAGE, PackedWeight, StepAttention, StepEmbed,
    StepLinear, StepMix, StepOut, Weight, WeightFormat, rope_tables,
};
use nanochat_compute::{Backend, DType, Tensor};

/// Layers whose weights are read in turn: together they are larger than a second-level cache.
const LAYERS: usize = 12;

/// One kernel of the step.
pub struct Timed {
    /// What it is.
    pub name: String,
    /// Milliseconds of one.
    pub ms: f64,
    /// Bytes it reads and writes, each once.
    pub bytes: usize,
}

/// Sizes of the model.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Channels.
    pub c: usize,
    /// Heads.
    pub h: usize,
    /// Vocabulary.
    pub v: usize,
    /// Tokens that a row holds.
    pub len: usize,
    /// Rows.
    pub m: usize,
    /// Kernels may begin before those before them have ended.
    pub early: bool,
}

/// Tensors and weights of a step.
struct Step<'a> {
    be: &'a Cuda,
    s: Sizes,
    rounds: usize,
    random: &'a dyn Fn(usize, DType, u64) -> Result<Tensor>,
    x: Tensor,
    kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    a: Tensor,
    one: Tensor,
    timed: Vec<Timed>,
}

/// Times every kernel of a step; `random` makes numbers.
pub fn times(
    be: &Cuda,
    s: Sizes,
    rounds: usize,
    random: &dyn Fn(usize, DType, u64) -> Result<Tensor>,
) -> Result<Vec<Timed>> {
    let stream = |len, seed| random(s.m * len, DType::F32, seed);
    let mut step = Step {
        be,
        s,
        rounds,
        random,
        x: stream(s.c, 1)?,
        kept: stream(s.c, 2)?,
        q: stream(s.c, 3)?,
        k: stream(s.c, 4)?,
        v: stream(s.c, 5)?,
        o: stream(s.c, 6)?,
        a: stream(4 * s.c, 7)?,
        one: be.place_f32(&[0.5])?,
        timed: Vec::new(),
    };
    step.embed()?;
    let heads = step.weights(3 * s.c, s.c)?;
    step.heads(&heads)?;
    step.attention()?;
    let proj = step.weights(s.c, s.c)?;
    step.added("o proj", &proj, (s.c, s.c))?;
    let fc = step.weights(4 * s.c, s.c)?;
    step.fc(&fc)?;
    let down = step.weights(s.c, 4 * s.c)?;
    step.added("mlp proj", &down, (s.c, 4 * s.c))?;
    step.head()?;
    Ok(step.timed)
}

impl Step<'_> {
    fn weights(&self, n: usize, k: usize) -> Result<Vec<PackedWeight>> {
        let w = (self.random)(n * k, DType::F32, 8)?;
        let pack = |_| self.be.pack(&w, n, k, WeightFormat::Bf16)?.context("bf16 is packed");
        (0..LAYERS).map(pack).collect()
    }

    /// Times `each` of 0 .. `count`, run as one replay.
    fn time(
        &mut self,
        name: &str,
        (count, bytes): (usize, usize),
        each: impl Fn(usize) -> nanochat_compute::Result<()>,
    ) -> Result<()> {
        let early = u64::from(self.s.early);
        let key = [0xbe9c, self.timed.len() as u64, self.s.m as u64, early];
        let replay = || self.be.replay(&key, &mut || (0..count).try_for_each(&each));
        for _ in 0..4 {
            replay()?;
        }
        let mut ms = Vec::new();
        for _ in 0..self.rounds {
            ms.push(1e3 * self.be.seconds(replay)? / count as f64);
        }
        ms.sort_by(f64::total_cmp);
        let late = if self.s.early { "" } else { ", in turn" };
        let name = format!("step of {}{late}: {name}", self.s.m);
        self.timed.push(Timed { name, ms: ms[ms.len() / 2], bytes });
        Ok(())
    }

    fn embed(&mut self) -> Result<()> {
        let (be, s) = (self.be, self.s);
        let table = (self.random)(s.v * s.c, DType::F32, 9)?;
        let ids = be.place_i32(&(0..s.m as i32).map(|i| 77 * i).collect::<Vec<_>>())?;
        let (last, w) =
            ((self.random)(s.m * s.c, DType::BF16, 10)?, (self.random)(24, DType::F32, 11)?);
        let (x0, lambda) = (self.x.clone(), self.one.clone());
        self.time("embedding", (LAYERS, 12 * s.m * s.c), |_| {
            let smear = Some((&w, &lambda, 24));
            let (x0, last, table, ids) = (&x0, &last, &table, &ids);
            be.step_embed(&StepEmbed { x0, last, table, ids, smear, c: s.c, eps: NORM_EPS })
        })
    }

    /// As one weight of three times the rows: what they are makes no difference to memory.
    fn heads(&mut self, all: &[PackedWeight]) -> Result<()> {
        let (be, s) = (self.be, self.s);
        let (x, y, kept) = (self.x.clone(), self.o.clone(), self.kept.clone());
        let (out, one) = (be.alloc(s.m * 3 * s.c, DType::F32)?, self.one.clone());
        self.time("mix, norm, q k v", (LAYERS, all[0].bytes), |i| {
            let outs = [StepOut { out: &out, w: Weight::Packed(&all[i]), n: 3 * s.c }];
            let mix = Some((StepMix::Mix { a: &one, b: &one }, &y, &kept));
            let (m, k, eps) = (s.m, s.c, NORM_EPS);
            let (gate, after) = (None, After::Nothing);
            be.step_linear(&StepLinear { outs: &outs, x: &x, mix, gate, after, m, k, eps })
        })
    }

    fn attention(&mut self) -> Result<()> {
        let (be, s) = (self.be, self.s);
        let d = s.c / s.h;
        let pages = s.len.div_ceil(PAGE).next_multiple_of(16);
        let cache = |seed| {
            let of = |i| (self.random)(s.m * pages * PAGE * s.c, DType::BF16, seed + i);
            (0..LAYERS as u64).map(of).collect::<Result<Vec<_>>>()
        };
        let (keys, values) = (cache(20)?, cache(40)?);
        let place = |r: usize| {
            let page = move |p: usize| (r * pages + p) as i32;
            std::iter::once(s.len as i32 - 1).chain((0..pages).map(page))
        };
        let places = be.place_i32(&(0..s.m).flat_map(place).collect::<Vec<_>>())?;
        let rows = be.alloc(s.m * s.h, DType::I32)?;
        let (cos, sin) = rope_tables(s.len, d, 100_000.0);
        let (cos, sin) = (be.place_f32(&cos)?, be.place_f32(&sin)?);
        let rstd = be.alloc(s.m * s.h, DType::F32)?;
        let [q, k, v, out] = [&self.q, &self.k, &self.v, &self.o].map(Tensor::clone);
        let shape = |window| CachedAttention {
            rows: s.m,
            t: 1,
            pages,
            h: s.h,
            hkv: s.h,
            d,
            window,
            scale: 1.0 / (d as f32).sqrt(),
        };
        for window in [512, s.len.max(513)] {
            let name = format!("attention, {} of {}", window.min(s.len), s.len);
            let bytes = 4 * s.m * window.min(s.len) * s.c;
            self.time(&name, (LAYERS, bytes), |i| {
                be.step_attention(&StepAttention {
                    out: &out,
                    q: &q,
                    k: &k,
                    v: &v,
                    rstd: &rstd,
                    keys: &keys[i],
                    values: &values[i],
                    cos: &cos,
                    sin: &sin,
                    places: &places,
                    rows: &rows,
                    s: shape(window),
                    qk_scale: 1.2,
                    eps: NORM_EPS,
                })
            })?;
        }
        Ok(())
    }

    fn added(&mut self, name: &str, all: &[PackedWeight], (n, k): (usize, usize)) -> Result<()> {
        let (be, f) = (self.be, MatMul::forward(self.s.m, k, n).add());
        let (x, from) =
            (self.x.clone(), if k == self.s.c { self.o.clone() } else { self.a.clone() });
        self.time(name, (LAYERS, all[0].bytes), |i| be.matmul_packed(&x, &from, &all[i], &f))
    }

    fn fc(&mut self, all: &[PackedWeight]) -> Result<()> {
        let (be, s) = (self.be, self.s);
        let (x, a) = (self.x.clone(), self.a.clone());
        self.time("norm, fc, relu2", (LAYERS, all[0].bytes), |i| {
            let outs = [StepOut { out: &a, w: Weight::Packed(&all[i]), n: 4 * s.c }];
            let (m, k, eps) = (s.m, s.c, NORM_EPS);
            let (mix, gate, after) = (None, None, After::Relu2);
            be.step_linear(&StepLinear { outs: &outs, x: &x, mix, gate, after, m, k, eps })
        })
    }

    fn head(&mut self) -> Result<()> {
        let (be, s) = (self.be, self.s);
        let w = (self.random)(s.v * s.c, DType::F32, 8)?;
        let packed = be.pack(&w, s.v, s.c, WeightFormat::Bf16)?.context("bf16 is packed")?;
        let logits = be.alloc(s.m * s.v, DType::F32)?;
        let (x, y, kept, lambda) =
            (self.x.clone(), self.o.clone(), self.kept.clone(), self.one.clone());
        self.time("backout, norm, head", (2, packed.bytes), |_| {
            let outs = [StepOut { out: &logits, w: Weight::Packed(&packed), n: s.v }];
            let mix = Some((StepMix::Backout { lambda: &lambda }, &y, &kept));
            let (m, k, eps) = (s.m, s.c, NORM_EPS);
            let (gate, after) = (None, After::Softcap(15.0));
            be.step_linear(&StepLinear { outs: &outs, x: &x, mix, gate, after, m, k, eps })
        })?;
        let ids = be.alloc(s.m, DType::I32)?;
        self.time("likeliest id", (LAYERS, 4 * s.m * s.v), |_| be.argmax(&ids, &logits, s.v))
    }
}
