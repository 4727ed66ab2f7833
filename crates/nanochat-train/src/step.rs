//! The train step: base, SFT and RL differ in what they feed it and in what they do between steps, and
//! in nothing else.

use std::time::Instant;

use nanochat_compute::ops::HeadLoss;
use nanochat_compute::{Backend, DType, Tensor};
use nanochat_data::{Batch, Batches};
use nanochat_gpt::nano::buffers::{Buffers, Mode, StepPlan};
use nanochat_gpt::nano::count::state_bytes;
use nanochat_gpt::nano::table::Table;
use nanochat_gpt::{GptConfig, Nano};

use serde::{Deserialize, Serialize};

use crate::optim::Optimizer;
use crate::schedule::Rates;
use crate::{Error, Result};

/// A model in training: weights, gradients, optimizer state, and one arena for everything else.
pub struct Trainer<'a> {
    /// Device.
    pub be: &'a dyn Backend,
    /// Weights.
    pub model: &'a Nano,
    /// Groups and moments.
    pub optim: Optimizer,
    grads: Tensor,
    arena: Tensor,
    buffers: Buffers,
    mode: StepMode,
    plans: u64,
    /// Micro steps taken.
    steps: u64,
}

/// How a step gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepMode {
    /// Planned once for a shape, then run again and again in the same memory.
    #[default]
    Compiled,
    /// Planned and allocated for each micro batch, as an eager framework does: the baseline.
    Eager,
}

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Mean over micro batches of the mean loss over trained targets, nats.
    pub loss: f64,
    /// Tokens run through the model, padding included.
    pub tokens: usize,
    /// Targets that counted.
    pub trained_tokens: usize,
    /// Tokens that only filled rows.
    pub padding_tokens: usize,
    /// Seconds.
    pub dt_s: f64,
    /// Seconds of it spent waiting for data.
    pub data_s: f64,
    /// Seconds of it spent laying out and allocating memory: 0 for static shapes.
    pub plan_s: f64,
    /// Pass over the data.
    pub epoch: u64,
}

/// Bytes of training a model on B rows of T, by arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// Parameters, gradients, optimizer state.
    pub state: usize,
    /// Activations and scratch.
    pub arena: usize,
    /// What the device keeps for its operations, at most.
    pub workspace: usize,
}

impl Bytes {
    /// Of a model that is not there yet.
    pub fn of(be: &dyn Backend, config: &GptConfig, b: usize, t: usize) -> Self {
        let (n, c) = (b * t, config.n_embd);
        let head = HeadLoss { n, c, v: config.vocab_size, softcap: 0.0, grad_scale: 0.0 };
        // The widest operand of a product: the MLP's hidden rows, in the gradient of its weight.
        let workspace = be.workspace_bytes(&head, 4 * n * c);
        let plan = StepPlan::on(be, config, b, t, Mode::train(be));
        let arena = arena_bytes(be, &plan, &Table::new(config));
        Self { state: state_bytes(config), arena, workspace }
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.state + self.arena + self.workspace
    }
}

/// The arena serves the step's activations and, when they are dead, Muon's scratch.
fn arena_bytes(be: &dyn Backend, plan: &StepPlan, table: &Table) -> usize {
    plan.bytes().max(4 * Optimizer::scratch_len(be, table))
}

impl<'a> Trainer<'a> {
    /// Plans a step of `b` rows of `t` tokens and allocates all of its memory.
    pub fn new(
        be: &'a dyn Backend,
        model: &'a Nano,
        optim: Optimizer,
        b: usize,
        t: usize,
    ) -> Result<Self> {
        let plan = StepPlan::on(be, model.config(), b, t, Mode::train(be));
        let arena = be.alloc(arena_bytes(be, &plan, model.table()).div_ceil(4), DType::F32)?;
        let buffers = plan.views(&arena);
        let grads = be.alloc(model.table().len(), DType::F32)?;
        let mode = StepMode::Compiled;
        Ok(Self { be, model, optim, grads, arena, buffers, mode, plans: 1, steps: 0 })
    }

    /// The same trainer, stepping in this mode.
    pub fn with_mode(self, mode: StepMode) -> Self {
        Self { mode, ..self }
    }

    /// Bytes held: exact but for the workspace, which is at most this.
    pub fn bytes(&self) -> Bytes {
        let planned = Bytes::of(self.be, self.model.config(), self.buffers.b, self.buffers.t);
        Bytes { arena: self.arena.bytes(), ..planned }
    }

    /// How often a step was planned: 1 for static shapes in a compiled step.
    pub fn plans(&self) -> u64 {
        self.plans
    }

    /// Buffers of an evaluation of B rows of T: in the arena, which is free between steps, or beside it
    /// where it is too small.
    pub fn eval_buffers(&self, b: usize, t: usize) -> Result<Buffers> {
        let plan = StepPlan::on(self.be, self.model.config(), b, t, Mode::Eval);
        if plan.bytes() <= self.arena.bytes() {
            return Ok(plan.views(&self.arena));
        }
        Ok(plan.views(&plan.layout().allocate(self.be)?))
    }

    /// Gradients of the last step, before the optimizer has used them up.
    pub fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// One step: the gradients of `accumulation` micro batches, each the mean over its trained targets,
    /// then the optimizer.
    ///
    /// Errors: [`Error::NotFinite`] before the optimizer has touched anything.
    pub fn step(
        &mut self,
        step: u64,
        batches: &mut dyn Batches,
        accumulation: usize,
        rates: &Rates,
    ) -> Result<StepReport> {
        let start = Instant::now();
        let mut report = StepReport {
            loss: 0.0,
            tokens: 0,
            trained_tokens: 0,
            padding_tokens: 0,
            dt_s: 0.0,
            data_s: 0.0,
            plan_s: 0.0,
            epoch: 0,
        };
        self.be.fill(&self.grads, 0.0)?;
        for micro_step in 0..accumulation {
            let waiting = Instant::now();
            let batch = batches.next_batch()?;
            report.data_s += waiting.elapsed().as_secs_f64();
            let planning = Instant::now();
            if self.fit(batch.b, batch.t)? {
                report.plan_s += planning.elapsed().as_secs_f64();
            }
            let loss = self.micro_step(&batch, accumulation)?;
            if !loss.is_finite() {
                return Err(Error::NotFinite { step, micro_step, batch: batch.name, loss });
            }
            report.loss += loss / accumulation as f64;
            report.tokens += batch.x.len();
            report.trained_tokens += batch.trained_tokens;
            report.padding_tokens += batch.padding_tokens;
            report.epoch = batch.epoch;
        }
        let scratch = self.arena.slice(0..Optimizer::scratch_len(self.be, self.model.table()));
        self.optim.step(self.be, self.model, &self.grads, &scratch, rates)?;
        report.dt_s = start.elapsed().as_secs_f64();
        Ok(report)
    }

    /// One step of a policy: the gradients of `sum_i scale_i * sum(losses of batch i)`, then the optimizer.
    /// A scale may be negative. The reported loss is that sum.
    ///
    /// Errors: as [`Trainer::step`].
    pub fn weighted_step(
        &mut self,
        step: u64,
        batches: &[(Batch, f32)],
        rates: &Rates,
    ) -> Result<StepReport> {
        let start = Instant::now();
        self.be.fill(&self.grads, 0.0)?;
        let (mut loss, mut tokens, mut trained_tokens, mut padding_tokens) = (0.0, 0, 0, 0);
        for (micro_step, (batch, scale)) in batches.iter().enumerate() {
            self.fit(batch.b, batch.t)?;
            self.buffers.tokens.write_i32(&batch.x)?;
            self.buffers.targets.write_i32(&batch.y)?;
            self.steps += 1;
            let (be, bufs) = (self.be, &self.buffers);
            let losses = self.model.forward_backward(be, bufs, &self.grads, *scale)?;
            let sum: f64 = losses.iter().map(|&l| f64::from(l)).sum();
            if !sum.is_finite() {
                let batch = batch.name.clone();
                return Err(Error::NotFinite { step, micro_step, batch, loss: sum });
            }
            loss += f64::from(*scale) * sum;
            tokens += batch.x.len();
            trained_tokens += batch.trained_tokens;
            padding_tokens += batch.padding_tokens;
        }
        let scratch = self.arena.slice(0..Optimizer::scratch_len(self.be, self.model.table()));
        self.optim.step(self.be, self.model, &self.grads, &scratch, rates)?;
        let dt_s = start.elapsed().as_secs_f64();
        let (data_s, plan_s, epoch) = (0.0, 0.0, 1);
        Ok(StepReport { loss, tokens, trained_tokens, padding_tokens, dt_s, data_s, plan_s, epoch })
    }

    /// Adds the gradients of one batch; returns its mean loss over trained targets.
    fn micro_step(&mut self, batch: &Batch, accumulation: usize) -> Result<f64> {
        self.buffers.tokens.write_i32(&batch.x)?;
        self.buffers.targets.write_i32(&batch.y)?;
        self.steps += 1;
        let counted = batch.trained_tokens.max(1) as f64;
        let scale = 1.0 / (counted * accumulation as f64);
        let losses =
            self.model.forward_backward(self.be, &self.buffers, &self.grads, scale as f32)?;
        Ok(losses.iter().map(|&l| f64::from(l)).sum::<f64>() / counted)
    }

    /// Plans anew when a batch has another shape (dynamic batching), and always in an eager step, which
    /// knows nothing of the batch before; true when it did.
    fn fit(&mut self, b: usize, t: usize) -> Result<bool> {
        let fits = (self.buffers.b, self.buffers.t) == (b, t);
        let fresh = self.mode == StepMode::Eager && self.steps > 0;
        if fits && !fresh {
            return Ok(false);
        }
        let plan = StepPlan::on(self.be, self.model.config(), b, t, Mode::train(self.be));
        let need = arena_bytes(self.be, &plan, self.model.table()).div_ceil(4);
        if need > self.arena.len() || self.mode == StepMode::Eager {
            self.drop_arena()?;
            self.arena = self.be.alloc(need, DType::F32)?;
        }
        self.buffers = plan.views(&self.arena);
        self.plans += 1;
        Ok(true)
    }

    /// The old arena goes before the new one comes.
    fn drop_arena(&mut self) -> Result<()> {
        let least = StepPlan::on(self.be, self.model.config(), 1, 1, Mode::train(self.be));
        self.arena = least.layout().allocate(self.be)?;
        self.buffers = least.views(&self.arena);
        Ok(())
    }
}
