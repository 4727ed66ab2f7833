//! The samples of a step as micro batches, with the factors that the objective gives them now.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nanochat_data::{Batch, Batches};
use nanochat_gpt::Nano;

use super::RlRun;
use super::objective::LogProbs;
use super::rollout::{Sample, batch};
use crate::Result;
use crate::step::Trainer;

/// Micro batches that are there, one after another; clones serve from the same queue.
#[derive(Clone)]
pub(super) struct Served {
    queue: Arc<Mutex<VecDeque<Batch>>>,
    name: String,
}

impl Served {
    /// None yet, of questions with this name.
    pub(super) fn new(name: String) -> Self {
        Self { queue: Arc::default(), name }
    }

    /// These are next.
    pub(super) fn serve(&self, batches: Vec<Batch>) {
        *self.queue() = batches.into();
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Batch>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batches for Served {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        let why = || "a step asks for more micro batches than were drawn".into();
        self.queue().pop_front().ok_or_else(|| nanochat_data::Error::State { why: why() })
    }

    /// Nothing: what a step draws is a function of its number and of the weights.
    fn state(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: &[u8]) -> nanochat_data::Result<()> {
        Ok(())
    }

    fn fingerprint(&self) -> String {
        self.name.clone()
    }

    fn progress(&self) -> f64 {
        0.0
    }
}

/// A micro batch's samples with their advantages.
struct Group<'s> {
    samples: Vec<&'s Sample>,
    advantages: Vec<f64>,
    /// ln p of every target, (B, T), of the model that drew them and of the reference; empty if the
    /// objective does not look at them.
    old: Vec<f32>,
    reference: Vec<f32>,
}

/// All passes over the samples of a step.
pub(super) struct Pass<'s> {
    groups: Vec<Group<'s>>,
    /// Micro batches whose factors are all 0 are left out: what the others' mean must be multiplied by.
    share: f32,
    needs_logprobs: bool,
}

impl<'s> Pass<'s> {
    /// The samples of each question in micro batches.
    pub(super) fn new(
        run: &RlRun<'_>,
        trainer: &Trainer<'_>,
        questions: &'s [Vec<Sample>],
    ) -> Result<Self> {
        let recipe = run.recipe;
        let objective = &recipe.objective;
        let mut groups = Vec::new();
        for samples in questions {
            let rewards: Vec<f64> = samples.iter().map(|s| s.reward).collect();
            let advantages = objective.advantages(&rewards);
            let rows = recipe.device_batch_size.max(1);
            for (samples, advantages) in samples.chunks(rows).zip(advantages.chunks(rows)) {
                groups.push(Group {
                    samples: samples.iter().collect(),
                    advantages: advantages.to_vec(),
                    old: Vec::new(),
                    reference: Vec::new(),
                });
            }
        }
        let needs_logprobs = objective.needs_logprobs(recipe.passes);
        let all = groups.len();
        if !needs_logprobs {
            groups.retain(|g| g.advantages.iter().any(|a| *a != 0.0));
            // Every question was answered right, or every one wrong: a step of no gradient is still one.
            if groups.is_empty() {
                return Self::still(questions, all);
            }
        }
        let share = groups.len() as f32 / all.max(1) as f32;
        let mut pass = Self { groups, share, needs_logprobs };
        if needs_logprobs {
            pass.measure(run, trainer)?;
        }
        Ok(pass)
    }

    /// One micro batch without gradient.
    fn still(questions: &'s [Vec<Sample>], all: usize) -> Result<Self> {
        let samples: Vec<_> = questions.iter().flatten().take(1).collect();
        let advantages = vec![0.0; samples.len()];
        let (old, reference) = (Vec::new(), Vec::new());
        let groups = vec![Group { samples, advantages, old, reference }];
        Ok(Self { groups, share: 1.0 / all.max(1) as f32, needs_logprobs: false })
    }

    /// Log probabilities before the first optimizer step.
    fn measure(&mut self, run: &RlRun<'_>, trainer: &Trainer<'_>) -> Result<()> {
        let most = trainer.model.config().sequence_len;
        for group in &mut self.groups {
            let plain = batch(&group.samples, &group.ones(), run.tokenizer, most);
            group.old = logprobs(trainer, trainer.model, &plain)?;
            group.reference = match run.reference {
                Some(reference) => logprobs(trainer, reference, &plain)?,
                None => group.old.clone(),
            };
        }
        Ok(())
    }

    /// Micro batches with the factors that hold for the weights as they are.
    pub(super) fn batches(&self, run: &RlRun<'_>, trainer: &Trainer<'_>) -> Result<Vec<Batch>> {
        let most = trainer.model.config().sequence_len;
        let mut out = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let factors = group.advantages.iter().zip(&group.samples);
            let factors: Vec<Vec<f32>> =
                factors.map(|(a, s)| vec![*a as f32 * self.share; s.ids.len()]).collect();
            let mut batch = batch(&group.samples, &factors, run.tokenizer, most);
            if self.needs_logprobs {
                let now = logprobs(trainer, trainer.model, &batch)?;
                let w = batch.w.as_mut().expect("rows of samples have factors");
                for (at, w) in w.iter_mut().enumerate().filter(|(at, _)| batch.y[*at] >= 0) {
                    let p = LogProbs {
                        now: f64::from(now[at]),
                        old: f64::from(group.old[at]),
                        reference: f64::from(group.reference[at]),
                    };
                    let advantage = group.advantages[at / batch.t];
                    *w = self.share * run.recipe.objective.factor(advantage, &p) as f32;
                }
            }
            out.push(batch);
        }
        Ok(out)
    }
}

impl Group<'_> {
    fn ones(&self) -> Vec<Vec<f32>> {
        self.samples.iter().map(|s| vec![1.0; s.ids.len()]).collect()
    }
}

/// ln p of every target of a batch, 0 where there is none.
fn logprobs(trainer: &Trainer<'_>, model: &Nano, batch: &Batch) -> Result<Vec<f32>> {
    let buffers = trainer.eval_buffers(batch.b, batch.t)?;
    buffers.tokens.write_i32(&batch.x)?;
    buffers.targets.write_i32(&batch.y)?;
    let losses = model.losses(trainer.be, &buffers)?;
    Ok(losses.into_iter().map(|loss| -loss).collect())
}
