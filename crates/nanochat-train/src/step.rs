//! The train step: base, SFT and RL differ in what they feed it and in what they do between steps, and
//! in nothing else.

use std::time::{Duration, Instant};

use nanochat_compute::comm::{Part, Solo};
use nanochat_compute::ops::HeadLoss;
use nanochat_compute::{Backend, Comm, DType, Tensor};
use nanochat_data::{Batch, Batches};
use nanochat_gpt::nano::buffers::{Buffers, Mode, StepPlan};
use nanochat_gpt::nano::count::state_bytes;
use nanochat_gpt::nano::table::Table;
use nanochat_gpt::{GptConfig, Nano};

use serde::{Deserialize, Serialize};

use crate::optim::Optimizer;
use crate::ranks::agree;
use crate::ranks::sums::{Pairs, Sum};
use crate::schedule::Rates;
use crate::stop::StopSignal;
use crate::{Error, Result, finite};

/// A model in training: weights, gradients, optimizer state, and one arena for everything else.
pub struct Trainer<'a> {
    /// Device.
    pub be: &'a dyn Backend,
    /// Weights.
    pub model: &'a Nano,
    /// Groups and moments.
    pub optim: Optimizer,
    /// The other ranks.
    pub comm: &'a dyn Comm,
    /// How gradients of micro batches are summed.
    pub sum: Sum,
    pairs: Pairs,
    /// What is reduced and gathered.
    parts: Vec<Part>,
    grads: Tensor,
    arena: Tensor,
    buffers: Buffers,
    mode: StepMode,
    plans: u64,
    /// Micro steps taken.
    steps: u64,
    /// Seconds of the longest micro step.
    longest_s: f64,
    /// What is looked at while a step goes.
    pub watch: Watch,
}

/// What a step looks at while it goes; the default is nothing but finite numbers.
#[derive(Clone, Debug)]
pub struct Watch {
    /// A loss above it does not reach the weights.
    pub loss_limit: f64,
    /// Asked before every micro step.
    pub stop: StopSignal,
    /// Seconds that saving takes, to be left before a deadline.
    pub save_s: f64,
    /// For tests: gradients that are made not finite.
    pub fault: Option<Fault>,
}

impl Default for Watch {
    fn default() -> Self {
        let stop = StopSignal::default();
        Self { loss_limit: f64::INFINITY, stop, save_s: 0.0, fault: None }
    }
}

/// For tests: a NaN is put into the gradients of the next `times` steps from step `from` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First step.
    pub from: u64,
    /// How often.
    pub times: u64,
}

impl Fault {
    fn strikes(&mut self, step: u64) -> bool {
        let strikes = step >= self.from && self.times > 0;
        self.times -= u64::from(strikes);
        strikes
    }
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

/// What a step did, on all ranks together.
#[derive(Clone, Debug, Default)]
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
    /// `sqrt(sum g^2)` over all gradients.
    pub grad_norm: f64,
}

impl StepReport {
    /// Takes in a batch of the step, whichever rank runs it.
    fn drew(&mut self, batch: &Batch) {
        self.tokens += batch.x.len();
        self.trained_tokens += batch.trained_tokens;
        self.padding_tokens += batch.padding_tokens;
        self.epoch = batch.epoch;
    }
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
    /// Plans a step of `b` rows of `t` tokens and allocates all of its memory; alone, unless
    /// [`Trainer::among`] says otherwise.
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
        Ok(Self {
            be,
            model,
            parts: optim.parts(),
            optim,
            comm: &Solo,
            sum: Sum::default(),
            pairs: Pairs::default(),
            grads,
            arena,
            buffers,
            mode,
            plans: 1,
            steps: 0,
            longest_s: 0.0,
            watch: Watch::default(),
        })
    }

    /// The same trainer, as one of several ranks.
    ///
    /// Panics when its optimizer was made for another number of them.
    pub fn among(self, comm: &'a dyn Comm, sum: Sum) -> Self {
        assert_eq!(self.optim.world(), comm.world(), "Optimizer::of_rank has the same world");
        Self { comm, sum, ..self }
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
    /// Of W ranks each draws all batches and runs its W-th of them, the first of the ranks the first ones;
    /// gradients are summed to the ranks that step them, and the new weights are gathered. Every rank
    /// returns the same report.
    ///
    /// Errors: [`Error::NotFinite`] and [`Error::Spike`] before the optimizer has touched anything;
    /// [`Error::Interrupted`] between micro steps (several ranks: between steps) when [`Watch::stop`] asks.
    pub fn step(
        &mut self,
        step: u64,
        batches: &mut dyn Batches,
        accumulation: usize,
        rates: &Rates,
    ) -> Result<StepReport> {
        let start = Instant::now();
        let (rank, world) = (self.comm.rank(), self.comm.world());
        self.sum.check(accumulation, world)?;
        let each = accumulation / world;
        let mine = rank * each..(rank + 1) * each;
        if world > 1 {
            let asked = self.watch.stop.asked(self.reserve(each));
            if let Some(why) = agree::stop(self.comm, asked)? {
                return Err(Error::Interrupted { step, why });
            }
        }
        let mut report = StepReport::default();
        let (mut names, mut losses) = (Vec::new(), vec![0.0; accumulation]);
        self.be.fill(&self.grads, 0.0)?;
        self.pairs.clear();
        for micro_step in 0..accumulation {
            if world == 1
                && let Some(why) = self.watch.stop.asked(self.reserve(1))
            {
                return Err(Error::Interrupted { step, why });
            }
            let waiting = Instant::now();
            let batch = batches.next_batch()?;
            report.data_s += waiting.elapsed().as_secs_f64();
            report.drew(&batch);
            if mine.contains(&micro_step) && losses.iter().all(|l| f64::is_finite(*l)) {
                let planning = Instant::now();
                if self.fit(batch.b, batch.t)? {
                    report.plan_s += planning.elapsed().as_secs_f64();
                }
                losses[micro_step] = self.micro_step(&batch, accumulation)?;
                self.longest_s = self.longest_s.max(waiting.elapsed().as_secs_f64());
            }
            names.push(batch.name);
            if world == 1 {
                self.check_losses(step, &losses, &names)?;
            }
        }
        self.pairs.finish(self.be, &self.grads)?;
        if world > 1 {
            // Each was made by one rank; the others have zeros there.
            self.comm.all_reduce_sum(&mut losses)?;
            self.check_losses(step, &losses, &names)?;
        }
        report.loss = losses.iter().fold(0.0, |sum, loss| sum + loss / accumulation as f64);
        self.inject(step)?;
        self.comm.reduce_scatter(&self.grads, &self.parts)?;
        report.grad_norm = self.check(step, report.loss, &names)?;
        let scratch = self.arena.slice(0..Optimizer::scratch_len(self.be, self.model.table()));
        self.optim.step(self.be, self.model, &self.grads, &scratch, rates)?;
        self.comm.all_gather(self.model.params(), &self.parts)?;
        report.dt_s = start.elapsed().as_secs_f64();
        Ok(report)
    }

    /// What the next micro steps and saving may take.
    fn reserve(&self, micro_steps: usize) -> Duration {
        Duration::from_secs_f64(micro_steps as f64 * self.longest_s + self.watch.save_s)
    }

    /// Errors: the first loss that is not finite, with the parameter to blame.
    fn check_losses(&self, step: u64, losses: &[f64], names: &[String]) -> Result<()> {
        let Some(micro_step) = losses.iter().position(|loss| !loss.is_finite()) else {
            return Ok(());
        };
        let (table, params) = (self.model.table(), self.model.params());
        let everything = [Part { range: 0..table.len(), owner: None }];
        let bad = finite::first_not_finite(table, &everything, params)?;
        let name = |row: usize| format!("the parameter {}", table.rows()[row].name);
        let tensor = bad.map_or("the loss".into(), name);
        let (batch, loss) = (names[micro_step].clone(), losses[micro_step]);
        Err(Error::NotFinite { step, micro_step, batch, loss, tensor })
    }

    /// For tests: a NaN in the gradients of the last rank.
    fn inject(&mut self, step: u64) -> Result<()> {
        let strikes = self.watch.fault.as_mut().is_some_and(|fault| fault.strikes(step));
        if strikes && self.comm.rank() + 1 == self.comm.world() {
            self.grads.slice(0..1).write_f32(&[f32::NAN])?;
        }
        Ok(())
    }

    /// The norm of the gradients, of all ranks. Errors: they must not reach the weights.
    fn check(&mut self, step: u64, loss: f64, names: &[String]) -> Result<f64> {
        let table = self.model.table();
        let c = self.model.config().n_embd;
        let (rank, world) = (self.comm.rank(), self.comm.world());
        let whole = [Part { range: 0..table.len(), owner: None }];
        // What all ranks have counts once.
        let is_counted = |part: &&Part| part.owner.unwrap_or(0) == rank;
        let parts: Vec<Part> = match world {
            1 => whole.to_vec(),
            _ => self.parts.iter().filter(is_counted).cloned().collect(),
        };
        let mut sum = [0.0];
        for part in &parts {
            let grads = self.grads.slice(part.range.clone());
            sum[0] += finite::sum_of_squares(self.be, &grads, &self.arena, c)?;
        }
        self.comm.all_reduce_sum(&mut sum)?;
        let norm = sum[0].sqrt();
        if !norm.is_finite() {
            let bad = finite::first_not_finite(table, &parts, &self.grads)?;
            let bad = agree::least(self.comm, bad)?;
            let tensor = bad.map_or("the norm of the gradients".into(), |row| {
                format!("the gradient of {}", table.rows()[row].name)
            });
            let micro_step = names.len().saturating_sub(1);
            return Err(Error::NotFinite {
                step,
                micro_step,
                batch: names.join(", "),
                loss,
                tensor,
            });
        }
        let limit = self.watch.loss_limit;
        if loss > limit {
            return Err(Error::Spike { step, batch: names.join(", "), loss, limit });
        }
        Ok(norm)
    }

    /// Adds the gradients of one batch, weighted if it has weights; returns its mean loss over trained
    /// targets, which is never weighted.
    fn micro_step(&mut self, batch: &Batch, accumulation: usize) -> Result<f64> {
        self.buffers.tokens.write_i32(&batch.x)?;
        self.buffers.targets.write_i32(&batch.y)?;
        self.steps += 1;
        let counted = batch.trained_tokens.max(1) as f64;
        let scale = (1.0 / (counted * accumulation as f64)) as f32;
        let weights = batch.w.as_ref().map(|w| self.be.place_f32(w)).transpose()?;
        let (be, buffers, grads) = (self.be, &self.buffers, &self.grads);
        if self.sum == Sum::Pairwise {
            be.fill(grads, 0.0)?;
        }
        let losses =
            self.model.forward_backward_weighted(be, buffers, grads, scale, weights.as_ref())?;
        if self.sum == Sum::Pairwise {
            self.pairs.push(be, grads)?;
        }
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
