//! Parameter groups, their rates, and the optimizer's state. Source: nanochat `gpt.py`,
//! `setup_optimizer`, July 2026.

use nanochat_compute::ops::{AdamW, Muon, MuonMatrix};
use nanochat_compute::{Backend, DType, Tensor};
use nanochat_gpt::Nano;
use nanochat_gpt::nano::table::{Group, Row, Table};
use nanochat_gpt::weights::{Named, Reader};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::schedule::Rates;

/// Learning rates of the groups, before the width's factor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningRates {
    /// Token embedding; value embeddings take half.
    pub embedding: f64,
    /// Output head.
    pub unembedding: f64,
    /// Matrices (Muon).
    pub matrix: f64,
    /// x0 lambdas; residual lambdas take a hundredth.
    pub scalar: f64,
    /// Smear and backout: never scaled by batch or width.
    #[serde(default = "upstream_smear")]
    pub smear: f64,
}

/// Upstream's constant: what runs had before it could be chosen.
fn upstream_smear() -> f64 {
    0.2
}

impl Default for LearningRates {
    fn default() -> Self {
        Self {
            embedding: 0.3,
            unembedding: 0.008,
            matrix: 0.02,
            scalar: 0.5,
            smear: upstream_smear(),
        }
    }
}

impl LearningRates {
    /// All rates but that of smear times a factor.
    pub fn scaled(self, by: f64) -> Self {
        Self {
            embedding: self.embedding * by,
            unembedding: self.unembedding * by,
            matrix: self.matrix * by,
            scalar: self.scalar * by,
            ..self
        }
    }
}

const EPS: f32 = 1e-10;
/// Muon's decay of the variance buffer.
const MUON_BETA2: f32 = 0.9;

/// (lr, beta1, beta2, weight decay) of an AdamW group; `width` is (C / 768)^-0.5.
fn adamw_group(group: Group, lr: &LearningRates, width: f64) -> (f64, f32, f32, f32) {
    match group {
        Group::LmHead => (lr.unembedding * width, 0.8, 0.96, 0.01),
        Group::Wte => (lr.embedding * width, 0.8, 0.995, 0.001),
        Group::ValueEmbeds => (lr.embedding * width * 0.5, 0.8, 0.995, 0.01),
        Group::ResidLambdas => (lr.scalar * 0.01, 0.8, 0.95, 0.05),
        Group::X0Lambdas => (lr.scalar, 0.96, 0.95, 0.0),
        Group::Smear => (lr.smear, 0.8, 0.95, 0.0),
        Group::Matrix => unreachable!("matrices are Muon's"),
    }
}

/// AdamW for tables and scalars, Muon for matrices; state in f32.
pub struct Optimizer {
    rates: LearningRates,
    /// Steps taken, counted from 1 in the bias correction.
    t: u64,
    /// First moments and Muon momentum, laid out as the parameters.
    first: Tensor,
    /// Second moments (AdamW) and variance buffers (Muon), one view a row of the table.
    second: Vec<Tensor>,
}

/// Elements of a row's second buffer.
fn second_len(row: &Row) -> usize {
    match row.group {
        Group::Matrix => row.shape[0].max(row.shape[1]),
        _ => row.len(),
    }
}

impl Optimizer {
    /// Fresh state for a model.
    pub fn new(be: &dyn Backend, model: &Nano, rates: LearningRates) -> Result<Self> {
        let table = model.table();
        let alloc = |row| Ok(be.alloc(second_len(row), DType::F32)?);
        Ok(Self {
            rates,
            t: 0,
            first: be.alloc(table.len(), DType::F32)?,
            second: table.rows().iter().map(alloc).collect::<Result<_>>()?,
        })
    }

    /// Floats of scratch that [`Optimizer::step`] needs on a device: Muon's largest matrix, or as many
    /// of one shape as it takes together.
    pub fn scratch_len(be: &dyn Backend, table: &Table) -> usize {
        let most = be.step_style().muon_batch;
        let alike =
            |shape: &[usize]| matrices(table).filter(|r| r.shape == shape).count().min(most);
        let muon = |row: &Row| alike(&row.shape) * shape_of(row, 0.0, 0.0, 0.0).scratch_len();
        matrices(table).map(muon).max().unwrap_or(0)
    }

    /// Steps taken.
    pub fn t(&self) -> u64 {
        self.t
    }

    /// Replaces the rates (SFT starts from base's state with its own).
    pub fn set_rates(&mut self, rates: LearningRates) {
        self.rates = rates;
    }

    /// One step over all parameters.
    ///
    /// `grads` and `scratch` ([`Optimizer::scratch_len`]) are f32.
    pub fn step(
        &mut self,
        be: &dyn Backend,
        model: &Nano,
        grads: &Tensor,
        scratch: &Tensor,
        rates: &Rates,
    ) -> Result<()> {
        self.t += 1;
        let width = (model.config().n_embd as f64 / 768.0).powf(-0.5);
        let lrm = rates.lr_multiplier;
        for (row, second) in model.table().rows().iter().zip(&self.second) {
            if row.group == Group::Matrix {
                continue;
            }
            let of = |all: &Tensor| all.slice(row.offset..row.offset + row.len());
            let (p, g, first) = (of(model.params()), of(grads), of(&self.first));
            let (lr, beta1, beta2, wd) = adamw_group(row.group, &self.rates, width);
            let s = AdamW { lr: (lr * lrm) as f32, beta1, beta2, eps: EPS, wd, t: self.t };
            be.adamw(&p, &first, second, &g, &s)?;
        }
        self.step_matrices(be, model, grads, scratch, rates)
    }

    /// Muon: matrices of one shape together, as many as the device likes.
    fn step_matrices(
        &mut self,
        be: &dyn Backend,
        model: &Nano,
        grads: &Tensor,
        scratch: &Tensor,
        rates: &Rates,
    ) -> Result<()> {
        let lr = (self.rates.matrix * rates.lr_multiplier) as f32;
        let (momentum, wd) = (rates.muon_momentum as f32, rates.muon_weight_decay as f32);
        let mut shapes: Vec<(&[usize], Vec<MuonMatrix>)> = Vec::new();
        for (row, second) in model.table().rows().iter().zip(&self.second) {
            if row.group != Group::Matrix {
                continue;
            }
            let of = |all: &Tensor| all.slice(row.offset..row.offset + row.len());
            let (p, g, buf) = (of(model.params()), of(grads), of(&self.first));
            let one = MuonMatrix { p, buf, second: second.clone(), g };
            match shapes.iter_mut().find(|(shape, _)| *shape == row.shape) {
                Some((_, all)) => all.push(one),
                None => shapes.push((&row.shape, vec![one])),
            }
        }
        for (shape, all) in shapes {
            let s = muon_of(shape, lr, momentum, wd);
            for some in all.chunks(be.step_style().muon_batch.max(1)) {
                be.muon_batch(some, &scratch.slice(0..some.len() * s.scratch_len()), &s)?;
            }
        }
        Ok(())
    }

    /// The state as tensors to be written, `first.<name>` and `second.<name>`: handles, no copies.
    pub fn named(&self, model: &Nano) -> Vec<Named> {
        let moments = |(row, second): (&Row, &Tensor)| {
            let first = self.first.slice(row.offset..row.offset + row.len());
            let name = |moment: &str| format!("{moment}.{}", row.name);
            [
                Named { name: name("first"), shape: row.shape.clone(), data: first },
                Named { name: name("second"), shape: vec![second.len()], data: second.clone() },
            ]
        };
        model.table().rows().iter().zip(&self.second).flat_map(moments).collect()
    }

    /// Takes over the state of [`Optimizer::named`] after `t` steps.
    ///
    /// Errors: a tensor that is missing or of another length, by name; then the state is part old,
    /// part new.
    pub fn restore(&mut self, model: &Nano, file: &Reader, t: u64) -> Result<()> {
        for tensor in self.named(model) {
            file.read(&tensor.name, &tensor.data)?;
        }
        self.t = t;
        Ok(())
    }
}

fn matrices(table: &Table) -> impl Iterator<Item = &Row> {
    table.rows().iter().filter(|row| row.group == Group::Matrix)
}

fn shape_of(row: &Row, lr: f32, momentum: f32, wd: f32) -> Muon {
    muon_of(&row.shape, lr, momentum, wd)
}

fn muon_of(shape: &[usize], lr: f32, momentum: f32, wd: f32) -> Muon {
    Muon { m: shape[0], n: shape[1], lr, momentum, beta2: MUON_BETA2, wd }
}
