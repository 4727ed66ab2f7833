//! Parameter groups, their rates, and the optimizer's state. Source: nanochat `gpt.py`,
//! `setup_optimizer`, July 2026.

use nanochat_compute::comm::Part;
use nanochat_compute::ops::{AdamW, Muon, MuonMatrix};
use nanochat_compute::{Backend, Comm, DType, Tensor};
use nanochat_gpt::Nano;
use nanochat_gpt::nano::table::{Group, Row, Table};
use nanochat_gpt::weights::{Named, Reader};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::ranks::shards::{self, Shard};
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

/// AdamW for tables and scalars, Muon for matrices; state in f32. Of several ranks each keeps the state
/// of its own shards.
pub struct Optimizer {
    rates: LearningRates,
    /// Steps taken, counted from 1 in the bias correction.
    t: u64,
    /// All shards, of every rank.
    shards: Vec<Shard>,
    world: usize,
    /// This rank's, in the order of `shards`.
    kept: Vec<Kept>,
}

/// The state of one shard.
struct Kept {
    shard: Shard,
    /// First moments and Muon momentum, as the parameters.
    first: Tensor,
    /// Second moments (AdamW), as the parameters, and variance buffers (Muon).
    second: Tensor,
}

/// Elements of the second buffer of `len` parameters of a row: as many, but for Muon one a row or column.
fn second_len(row: &Row, len: usize) -> usize {
    match row.group {
        Group::Matrix => row.shape[0].max(row.shape[1]),
        _ => len,
    }
}

impl Optimizer {
    /// Fresh state for a model on one rank.
    pub fn new(be: &dyn Backend, model: &Nano, rates: LearningRates) -> Result<Self> {
        Self::of_rank(be, model, rates, (0, 1))
    }

    /// Fresh state for the shards of one of several ranks: (rank, world).
    pub fn of_rank(
        be: &dyn Backend,
        model: &Nano,
        rates: LearningRates,
        (rank, world): (usize, usize),
    ) -> Result<Self> {
        let table = model.table();
        let shards = shards::shards(table, world);
        let mine = || shards.iter().filter(|shard| shard.part.is_of(rank));
        // Each begins on a line of its own, as the parameters do.
        let stretch = |shard: &Shard| shard.part.range.len().next_multiple_of(16);
        let first = be.alloc(mine().map(stretch).sum(), DType::F32)?;
        let (mut at, mut kept) = (0, Vec::new());
        for shard in mine() {
            let len = shard.part.range.len();
            let second = be.alloc(second_len(&table.rows()[shard.row], len), DType::F32)?;
            let first = first.slice(at..at + len);
            kept.push(Kept { shard: shard.clone(), first, second });
            at += stretch(shard);
        }
        Ok(Self { rates, t: 0, shards, world, kept })
    }

    /// Parts of the parameters, of every rank: what gradients are reduced to and weights gathered from.
    pub fn parts(&self) -> Vec<Part> {
        shards::joined(shards::parts(&self.shards))
    }

    /// How many ranks share the state.
    pub fn world(&self) -> usize {
        self.world
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
        for Kept { shard, first, second } in &self.kept {
            let row = &model.table().rows()[shard.row];
            if row.group == Group::Matrix {
                continue;
            }
            let of = |all: &Tensor| all.slice(shard.part.range.clone());
            let (p, g) = (of(model.params()), of(grads));
            let (lr, beta1, beta2, wd) = adamw_group(row.group, &self.rates, width);
            let s = AdamW { lr: (lr * lrm) as f32, beta1, beta2, eps: EPS, wd, t: self.t };
            be.adamw(&p, first, second, &g, &s)?;
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
        for Kept { shard, first, second } in &self.kept {
            let row = &model.table().rows()[shard.row];
            if row.group != Group::Matrix {
                continue;
            }
            let of = |all: &Tensor| all.slice(shard.part.range.clone());
            let (p, g, buf) = (of(model.params()), of(grads), first.clone());
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
    ///
    /// Panics on one of several ranks, which has not all of it: see [`Optimizer::gathered`].
    pub fn named(&self, model: &Nano) -> Vec<Named> {
        assert_eq!(self.world, 1, "a rank has its own shards alone");
        let moments = |(row, kept): (&Row, &Kept)| both(row, &kept.first, &kept.second);
        model.table().rows().iter().zip(&self.kept).flat_map(moments).collect()
    }

    /// As [`Optimizer::named`], of all ranks together: what is written does not know how many there were.
    /// Every rank takes part, and holds a whole state for as long as it holds the result.
    pub fn gathered(&self, be: &dyn Backend, model: &Nano, comm: &dyn Comm) -> Result<Vec<Named>> {
        if self.world == 1 {
            return Ok(self.named(model));
        }
        let (first, second) = self.whole(be, model.table(), comm)?;
        let moments = |row: &Row| {
            let to = |len| row.offset..row.offset + len;
            both(row, &first.slice(to(row.len())), &second.slice(to(second_len(row, row.len()))))
        };
        Ok(model.table().rows().iter().flat_map(moments).collect())
    }

    /// Both moments of all ranks, laid out as the parameters; a variance buffer begins where its matrix
    /// does.
    fn whole(&self, be: &dyn Backend, table: &Table, comm: &dyn Comm) -> Result<(Tensor, Tensor)> {
        let (first, second) =
            (be.alloc(table.len(), DType::F32)?, be.alloc(table.len(), DType::F32)?);
        for kept in &self.kept {
            let from = kept.shard.part.range.start;
            be.copy(&first.slice(from..from + kept.first.len()), &kept.first)?;
            be.copy(&second.slice(from..from + kept.second.len()), &kept.second)?;
        }
        comm.all_gather(&first, &self.parts())?;
        let seconds = self.shards.iter().map(|shard| {
            let Part { range, owner } = shard.part.clone();
            let len = second_len(&table.rows()[shard.row], range.len());
            Part { range: range.start..range.start + len, owner }
        });
        comm.all_gather(&second, &seconds.collect::<Vec<_>>())?;
        Ok((first, second))
    }

    /// Takes over the state of [`Optimizer::named`] after `t` steps, whatever number of ranks wrote it.
    ///
    /// Errors: a tensor that is missing or of another length, by name; then the state is part old,
    /// part new.
    pub fn restore(&mut self, model: &Nano, file: &Reader, t: u64) -> Result<()> {
        let rows = model.table().rows();
        for Kept { shard, first, second } in &self.kept {
            let row = &rows[shard.row];
            let from = shard.part.range.start - row.offset;
            let read = |moment: &str, to: &Tensor, whole: usize| -> Result<()> {
                let name = format!("{moment}.{}", row.name);
                if to.len() == whole {
                    return Ok(file.read(&name, to)?);
                }
                let all = Tensor::zeros(whole, DType::F32)?;
                file.read(&name, &all)?;
                Ok(to.write_f32(&all.slice(from..from + to.len()).to_vec_f32()?)?)
            };
            read("first", first, row.len())?;
            read("second", second, second_len(row, row.len()))?;
        }
        self.t = t;
        Ok(())
    }
}

/// The moments of a row as they are written.
fn both(row: &Row, first: &Tensor, second: &Tensor) -> [Named; 2] {
    let name = |moment: &str| format!("{moment}.{}", row.name);
    [
        Named { name: name("first"), shape: row.shape.clone(), data: first.clone() },
        Named { name: name("second"), shape: vec![second.len()], data: second.clone() },
    ]
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
