//! Whole decode steps of one row in one launch: from operations to the phases of kernels/program.cu.
//!
//! In: the fused operations of a step, as they are called, none of which is launched. Out: a program, where
//! all of them are such that the kernel has a phase for them; else nothing, and the step is recorded as
//! single kernels.

use std::collections::HashMap;

use super::Cuda;
use super::driver::{Arg, Grid};
use super::launch::{args, int};
use crate::ops::{After, Ahead, MatMul, StepAttention, StepEmbed, StepLinear, StepMix};
use crate::{DType, Result, Tensor};

/// Threads of a block: PROGRAM_THREADS in program.cuh.
const THREADS: u32 = 384;
/// Parts of a head's keys at most: MOST_SPLITS in program.cuh.
const SPLITS: usize = 8;
/// `sizeof(Space)` of program.cuh, and more.
const SPACE: usize = 13 << 10;
/// `sizeof(Phase)` of program.cuh.
const PHASE: usize = 304;
/// Bytes of a slot of the ring of weights, unless a row is longer: a good piece of a copy.
const SLOT: usize = 12 << 10;
/// Slots at most: MOST_SLOTS in program.cuh; and at least: those of a round, twice.
const SLOTS: std::ops::RangeInclusive<usize> = 4..=64;
/// Scores of queries and keys of this norm are summed as 2^score without a maximum: far below 2^127.
const MOST_SCORE: f32 = 60.0;

/// Packets of a phase: where they begin among all, and which phase makes them.
#[derive(Clone, Copy)]
struct Packets {
    at: usize,
    phase: usize,
}

/// A row that a phase reads: `a x + sign b y`, factors by address.
#[derive(Clone, Copy)]
struct Stream {
    x: Packets,
    y: Option<Packets>,
    a: u64,
    b: u64,
    sign: f32,
}

/// What a tensor holds at this point of the step.
#[derive(Clone, Copy)]
enum Value {
    Row(Stream),
    /// Heads that are still in parts.
    Parts(Packets),
}

/// A phase before packets have addresses.
#[derive(Default)]
struct Phase {
    input: Option<Stream>,
    add: Option<Stream>,
    w: [u64; 3],
    out: usize,
    logits: u64,
    /// Table, gate, lambda, last, ids.
    tables: [u64; 5],
    /// Keys, values, cosine, sine, places.
    cache: [u64; 5],
    /// Kind, n, k, norm, finish, partials.
    sizes: [i32; 8],
    /// eps, cap, scale of gates, of scores, of queries and keys.
    factors: [f32; 5],
    /// vocab, d, channels, wide last, h, hkv, window.
    more: [i32; 7],
}

const EMBED: i32 = 0;
const LINEAR: i32 = 1;
const ATTEND: i32 = 2;

/// A program as it is put together.
#[derive(Default)]
pub(super) struct Builder {
    phases: Vec<Phase>,
    values: HashMap<u64, Value>,
    packets: usize,
    /// Channels of a head, the longest row that is multiplied, the fewest rows of the head.
    d: usize,
    most_k: usize,
    vocab: usize,
    places: u64,
    /// The logits, then whether their largest is looked for.
    logits: Option<u64>,
    finds: bool,
    /// Something that no phase does.
    unfit: bool,
}

impl Builder {
    fn packets(&mut self, n: usize) -> Packets {
        let at = self.packets;
        // Pairs are read together.
        self.packets += n.next_multiple_of(2);
        Packets { at, phase: self.phases.len() }
    }

    fn row(&self, x: &Tensor) -> Option<Stream> {
        match self.values.get(&x.address())? {
            Value::Row(stream) => Some(*stream),
            Value::Parts(_) => None,
        }
    }

    /// The packets of a row that is not mixed.
    fn plain(&self, x: &Tensor) -> Option<Packets> {
        self.row(x).filter(|s| s.y.is_none()).map(|s| s.x)
    }

    fn keep(&mut self, x: &Tensor, at: Packets) {
        let stream = Stream { x: at, y: None, a: 0, b: 0, sign: 1.0 };
        self.values.insert(x.address(), Value::Row(stream));
    }

    fn embed(&mut self, o: &StepEmbed<'_>) -> Option<()> {
        if !self.phases.is_empty() || o.ids.len() != 1 || !o.c.is_multiple_of(8) {
            return None;
        }
        let out = self.packets(o.c);
        let (gate, lambda, channels) = match o.smear {
            Some((w, lambda, channels)) => (address(w), address(lambda), channels),
            None => (0, 0, 0),
        };
        let wide = i32::from(o.last.dtype() == DType::F32);
        self.phases.push(Phase {
            out: out.at,
            tables: [address(o.table), gate, lambda, address(o.last), address(o.ids)],
            sizes: [EMBED, 0, 0, 0, int(o.c), 0, 0, 0],
            factors: [o.eps, 0.0, 0.0, 0.0, 0.0],
            more: [int(o.table.len() / o.c), 0, int(channels), wide, 0, 0, 0],
            ..Phase::default()
        });
        self.keep(o.x0, out);
        self.most_k = self.most_k.max(o.c);
        Some(())
    }

    fn linear(&mut self, o: &StepLinear<'_>, weights: &[&Tensor]) -> Option<()> {
        if o.m != 1 || !fits(o.k, weights) {
            return None;
        }
        let mut input = self.row(o.x)?;
        if let Some((how, other, kept)) = &o.mix {
            let (x, y) = (self.plain(o.x)?, self.plain(other)?);
            let (a, b, sign) = match how {
                StepMix::Mix { a, b } => (address(a), address(b), 1.0),
                StepMix::Backout { lambda } => (0, address(lambda), -1.0),
            };
            input = Stream { x, y: Some(y), a, b, sign };
            self.values.insert(kept.address(), Value::Row(input));
        }
        let mut phase = Phase { input: Some(input), ..Phase::default() };
        let mut n = [0; 3];
        for (i, (part, weight)) in o.outs.iter().zip(weights).enumerate() {
            (phase.w[i], n[i]) = (address(weight), part.n);
        }
        let all: usize = n.iter().sum();
        let (finish, cap) = match o.after {
            After::Nothing => (0, 0.0),
            After::Relu2 => (1, 0.0),
            After::Softcap(cap) => (2, cap),
        };
        phase.sizes = [LINEAR, int(n[0]), int(n[1]), int(n[2]), int(o.k), 1, finish, 0];
        phase.factors = [o.eps, cap, 0.0, 0.0, 0.0];
        if let Some(g) = &o.gate {
            (phase.tables[0], phase.tables[1]) = (address(g.table), address(g.w));
            phase.factors[2] = g.s.scale;
            let vocab = int(g.table.len() / (g.s.hkv * g.s.d));
            phase.more = [vocab, int(g.s.d), int(g.s.channels), 0, 0, int(g.s.hkv), 0];
            // A lane a channel; heads are those of attention.
            if g.s.channels > 32 || !(self.d == 0 || self.d == g.s.d) {
                return None;
            }
            self.d = g.s.d;
        }
        match o.after {
            // The head: its results are for everybody.
            After::Softcap(_) => {
                let [part] = o.outs else { return None };
                phase.logits = address(part.out);
                (self.logits, self.vocab) = (Some(part.out.address()), all);
            }
            _ => {
                let out = self.packets(all);
                phase.out = out.at;
                let mut at = out.at;
                for part in o.outs {
                    self.keep(part.out, Packets { at, ..out });
                    at += part.n;
                }
            }
        }
        self.phases.push(phase);
        self.most_k = self.most_k.max(o.k);
        Some(())
    }

    /// `c = beta c + a w^T`.
    fn product(&mut self, c: &Tensor, a: &Tensor, w: &Tensor, s: &MatMul) -> Option<()> {
        let f32s = [c, a].iter().all(|t| t.dtype() == DType::F32);
        if s.m != 1 || !fits(s.k, &[w]) || !f32s || !(s.beta == 0.0 || s.beta == 1.0) {
            return None;
        }
        let (input, parts) = match self.values.get(&a.address())? {
            Value::Row(stream) => (*stream, 0),
            Value::Parts(x) => (Stream { x: *x, y: None, a: 0, b: 0, sign: 1.0 }, 1),
        };
        let add = if s.beta == 1.0 { Some(self.row(c)?) } else { None };
        let out = self.packets(s.n);
        // The heads' size and window say where their parts are.
        let more = match self.phases.get(input.x.phase) {
            Some(attend) if parts == 1 => attend.more,
            _ => [0; 7],
        };
        self.phases.push(Phase {
            input: Some(input),
            add,
            w: [address(w), 0, 0],
            out: out.at,
            sizes: [LINEAR, int(s.n), 0, 0, int(s.k), 0, 0, parts],
            more,
            ..Phase::default()
        });
        self.keep(c, out);
        self.most_k = self.most_k.max(s.k);
        Some(())
    }

    fn attention(&mut self, o: &StepAttention<'_>) -> Option<()> {
        let s = &o.s;
        let (q, k, v) = (self.plain(o.q)?, self.plain(o.k)?, self.plain(o.v)?);
        let follow = k.at == q.at + s.h * s.d && v.at == k.at + s.hkv * s.d;
        let same = q.phase == k.phase && k.phase == v.phase;
        let bound = o.qk_scale * o.qk_scale * s.d as f32 * s.scale * std::f32::consts::LOG2_E;
        let known = self.d == 0 || self.d == s.d;
        if s.rows != 1
            || s.t != 1
            || !follow
            || !same
            || bound.is_nan()
            || bound > MOST_SCORE
            || !known
        {
            return None;
        }
        if !(s.d == 64 || s.d == 128) || o.keys.dtype() != DType::BF16 {
            return None;
        }
        let out = self.packets(s.h * SPLITS * (s.d + 2));
        let window = int(s.window.min(s.pages * crate::ops::PAGE));
        let tensors = [o.keys, o.values, o.cos, o.sin, o.places];
        self.phases.push(Phase {
            input: Some(Stream { x: q, y: None, a: 0, b: 0, sign: 1.0 }),
            out: out.at,
            cache: tensors.map(address),
            sizes: [ATTEND, 0, 0, 0, 0, 0, 0, 0],
            factors: [o.eps, 0.0, 0.0, s.scale, o.qk_scale],
            more: [0, int(s.d), 0, 0, int(s.h), int(s.hkv), window],
            ..Phase::default()
        });
        self.values.insert(o.out.address(), Value::Parts(out));
        (self.d, self.places) = (s.d, address(o.places));
        Some(())
    }
}

fn address(t: &Tensor) -> u64 {
    t.device().map_or(0, |(_, at)| at)
}

/// Weights in bf16 whose rows are whole copies.
fn fits(k: usize, weights: &[&Tensor]) -> bool {
    let one = |w: &&Tensor| w.dtype() == DType::BF16 && address(w).is_multiple_of(16);
    k.is_multiple_of(8) && weights.iter().all(one)
}

/// Words of 32 bits, as the kernel reads them.
#[derive(Default)]
struct Words(Vec<i32>);

impl Words {
    fn pointer(&mut self, at: u64) {
        self.0.extend([at as u32 as i32, (at >> 32) as u32 as i32]);
    }

    fn ints(&mut self, all: &[i32]) {
        self.0.extend_from_slice(all);
    }

    fn floats(&mut self, all: &[f32]) {
        self.0.extend(all.iter().map(|x| x.to_bits() as i32));
    }

    fn stream(&mut self, stream: Option<&Stream>, packets: u64) {
        let at = |p: Packets| packets + 8 * p.at as u64;
        let (x, y) = (stream.map(|s| s.x), stream.and_then(|s| s.y));
        self.pointer(x.map_or(0, at));
        self.pointer(y.map_or(0, at));
        self.pointer(stream.map_or(0, |s| s.a));
        self.pointer(stream.map_or(0, |s| s.b));
        let phase = |p: Option<Packets>| p.map_or(0, |p| int(p.phase));
        self.ints(&[phase(x), phase(y)]);
        self.floats(&[stream.map_or(1.0, |s| s.sign)]);
        self.ints(&[0]);
    }

    /// As struct Phase in program.cuh.
    fn phase(&mut self, p: &Phase, packets: u64) {
        self.stream(p.input.as_ref(), packets);
        self.stream(p.add.as_ref(), packets);
        p.w.iter().for_each(|w| self.pointer(*w));
        self.pointer(packets + 8 * p.out as u64);
        self.pointer(p.logits);
        p.tables.iter().chain(&p.cache).for_each(|at| self.pointer(*at));
        self.ints(&p.sizes);
        self.floats(&p.factors);
        self.ints(&p.more);
        self.ints(&[0, 0]);
    }
}

/// Steps that are ready to be launched.
pub(super) struct Program {
    phases: Tensor,
    /// What blocks hand each other.
    _packets: Tensor,
    best: Tensor,
    epoch: Tensor,
    count: i32,
    d: usize,
    grid: Grid,
    slots: i32,
    slot_bytes: i32,
    most_k: i32,
    finds: bool,
}

impl Cuda {
    /// Whether this device runs whole steps of one row as one launch, where there is a kernel for them.
    pub fn has_programs(&self) -> bool {
        self.driver.together().is_some()
    }

    /// Whether operations are put together to a program instead of being queued.
    pub(super) fn is_building(&self) -> bool {
        self.building.borrow().is_some()
    }

    /// A step's operation that has no phase makes the program unfit; nothing is queued either way.
    fn build(&self, add: impl FnOnce(&mut Builder) -> Option<()>) {
        if let Some(builder) = self.building.borrow_mut().as_mut()
            && add(builder).is_none()
        {
            builder.unfit = true;
        }
    }

    /// Something is launched that no program has.
    pub(super) fn build_nothing(&self) {
        self.build(|_| None);
    }

    pub(super) fn build_embed(&self, o: &StepEmbed<'_>) {
        self.build(|b| b.embed(o));
    }

    pub(super) fn build_linear(&self, o: &StepLinear<'_>, weights: &[&Tensor]) {
        self.build(|b| b.linear(o, weights));
    }

    pub(super) fn build_product(&self, c: &Tensor, a: &Tensor, w: &Tensor, s: &MatMul) {
        self.build(|b| b.product(c, a, w, s));
    }

    pub(super) fn build_attention(&self, o: &StepAttention<'_>) {
        self.build(|b| b.attention(o));
    }

    pub(super) fn build_argmax(&self, out: &Tensor, x: &Tensor) {
        self.build(|b| {
            let ids = b.phases.first()?.tables[4];
            b.finds = true;
            (b.logits == Some(x.address()) && address(out) == ids).then_some(())
        });
    }

    /// The program of the operations that `run` calls; none where there is no kernel for one of them, or
    /// none for this device.
    ///
    /// Errors: those of `run`, and memory.
    pub(super) fn program_of(
        &self,
        run: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Program>> {
        let Some((blocks, shared)) = self.driver.together() else { return Ok(None) };
        *self.building.borrow_mut() = Some(Builder::default());
        let ran = run();
        let built = self.building.borrow_mut().take();
        ran?;
        let Some(mut b) = built.filter(|b| !b.unfit && b.d > 0 && b.logits.is_some()) else {
            return Ok(None);
        };
        let last_is_head = b.phases.last().is_some_and(|p| p.logits != 0);
        // The ids of all blocks are looked through by one, each by a thread.
        let blocks = blocks.min(THREADS as usize).min(b.vocab);
        let most_k = b.most_k.max(2 * blocks).next_multiple_of(4);
        let slot = SLOT.max((2 * b.most_k).next_multiple_of(128));
        let fixed = SPACE + 4 * most_k + PHASE * b.phases.len();
        let slots = (shared.saturating_sub(fixed) / slot).min(*SLOTS.end());
        if !last_is_head || slots < *SLOTS.start() {
            return Ok(None);
        }
        b.phases[0].cache[4] = b.places;
        let packets = self.alloc_on(2 * b.packets, DType::I32)?;
        let mut words = Words::default();
        b.phases.iter().for_each(|p| words.phase(p, address(&packets)));
        let phases = self.alloc_on(words.0.len(), DType::I32)?;
        phases.write_i32(&words.0)?;
        let best = self.alloc_on(4 * blocks, DType::I32)?;
        let epoch = self.alloc_on(1, DType::I32)?;
        // Memory is zero at first: no packet has this tag.
        epoch.write_i32(&[1])?;
        let shared = (fixed + slots * slot) as u32;
        Ok(Some(Program {
            phases,
            _packets: packets,
            best,
            epoch,
            count: int(b.phases.len()),
            d: b.d,
            grid: Grid { blocks: [blocks as u32, 1, 1], threads: THREADS, shared, early: false },
            slots: int(slots),
            slot_bytes: int(slot),
            most_k: int(most_k),
            finds: b.finds,
        }))
    }

    /// Queues `ahead.steps` steps.
    pub(super) fn run_program(&self, p: &Program, ahead: &Ahead<'_>) -> Result<()> {
        let found = ahead.found.map_or(Arg::Ptr(0), Arg::from);
        let tokens = if p.finds { Arg::from(ahead.ids) } else { Arg::Ptr(0) };
        let mut all = args![&p.phases, p.count, int(ahead.steps)].to_vec();
        all.extend([tokens, found]);
        all.extend_from_slice(args![&p.best, &p.epoch, p.slots, p.slot_bytes, p.most_k]);
        // SAFETY: the kernel's arguments in its order; the phases name tensors whose shapes the operations
        // have checked, and which live as long as what is replayed (`Cuda::replayed`). All blocks fit at
        // once: the driver has said how many do.
        unsafe { self.driver.launch_together(&format!("decode_program_{}", p.d), p.grid, &all) }
    }
}
