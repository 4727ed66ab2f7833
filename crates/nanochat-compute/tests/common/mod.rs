//! What the test programs of this crate share: seeded numbers, the backends of this machine, and
//! [`Case`], one operation with its operands, which any backend can run.
#![allow(dead_code)] // Each test program uses its own part.

pub mod cases;
pub mod fused;
pub mod heads;
pub mod steps;

use std::fmt::Debug;

use nanochat_compute::cpu::Cpu;
use nanochat_compute::eager::Eager;
use nanochat_compute::{Backend, DType, Result, Tensor};

/// Numbers in [-1, 1), the same for the same seed in every run.
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // The first numbers of neighbouring seeds are alike.
    next();
    next();
    (0..len).map(|_| next()).collect()
}

/// `n` ids below `v`: the last row of the table first, many of them repeated when n > v.
pub fn some_ids(n: usize, v: usize) -> Vec<i32> {
    (0..n).map(|i| if i == 0 { v - 1 } else { (i * i * 7 + i / 3) % v } as i32).collect()
}

/// The CPU with every family of instructions this machine has, and the eager backend over each, on
/// 1, 2 and 3 threads: one list for each number of threads, the families in the same order.
pub fn every_host() -> [Vec<Box<dyn Backend>>; 3] {
    [1, 2, 3].map(|threads| {
        let cpus = Cpu::every_f32(threads).into_iter().map(|cpu| Box::new(cpu) as Box<dyn Backend>);
        let below = Cpu::every_f32(threads).into_iter();
        let eager = below.map(|cpu| Box::new(Eager::new(cpu)) as Box<dyn Backend>);
        cpus.chain(eager).collect()
    })
}

/// Largest absolute difference; infinite when a number is not one.
pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.map(|d| if d.is_nan() { f32::INFINITY } else { d }).fold(0.0, f32::max)
}

/// What an operation does with an operand. `terms` is the length of the longest sum behind one of
/// its elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Only reads it.
    Read,
    /// Only reads it; it may be longer than the shape needs.
    ReadSome,
    /// Overwrites it: it holds NaN before.
    Overwrite { terms: usize },
    /// Adds to it, or works in place.
    Change { terms: usize },
    /// Works in place, whatever the length.
    AnyLength { terms: usize },
    /// Leaves anything in it: it holds NaN before.
    Scratch,
}

impl Role {
    pub fn is_written(self) -> bool {
        !matches!(self, Role::Read | Role::ReadSome)
    }

    /// Whether an operand one element shorter must be refused.
    pub fn has_length(self) -> bool {
        !matches!(self, Role::ReadSome | Role::AnyLength { .. })
    }
}

#[derive(Clone)]
pub enum Values {
    F32(Vec<f32>),
    /// The bits of bf16.
    Bf16(Vec<u16>),
    I32(Vec<i32>),
}

/// The bits of the nearest bf16.
pub fn to_bf16(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect()
}

/// The values of a tensor; of ids, as floats.
pub fn floats(t: &Tensor) -> Vec<f32> {
    let wide = |x: Vec<u16>| x.into_iter().map(|x| half::bf16::from_bits(x).to_f32()).collect();
    let ids = |x: Vec<i32>| x.into_iter().map(|x| x as f32).collect();
    let floats = t.to_vec_f32().or_else(|_| t.to_vec_bf16().map(wide));
    floats.or_else(|_| t.to_vec_i32().map(ids)).unwrap_or_default()
}

impl Values {
    pub fn tensor(&self) -> Tensor {
        match self {
            Values::F32(x) => Tensor::from_f32(x).expect("a small tensor"),
            Values::Bf16(x) => Tensor::from_bf16(x).expect("a small tensor"),
            Values::I32(x) => Tensor::from_i32(x).expect("a small tensor"),
        }
    }

    /// In the memory of a backend's device.
    pub fn tensor_on(&self, be: &dyn Backend) -> Tensor {
        let (len, dtype) = match self {
            Values::F32(x) => (x.len(), DType::F32),
            Values::Bf16(x) => (x.len(), DType::BF16),
            Values::I32(x) => (x.len(), DType::I32),
        };
        let t = be.alloc(len, dtype).expect("a small tensor");
        match self {
            Values::F32(x) => t.write_f32(x),
            Values::Bf16(x) => t.write_bf16(x),
            Values::I32(x) => t.write_i32(x),
        }
        .expect("as long as its values");
        t
    }
}

pub struct Operand {
    pub name: &'static str,
    pub role: Role,
    pub values: Values,
}

type Run = Box<dyn Fn(&dyn Backend, &[Tensor]) -> Result<()>>;

/// One operation with all its operands.
pub struct Case {
    pub op: &'static str,
    pub shape: String,
    pub operands: Vec<Operand>,
    run: Run,
}

impl Case {
    /// New tensors with the operands' first values.
    pub fn tensors(&self) -> Vec<Tensor> {
        self.operands.iter().map(|operand| operand.values.tensor()).collect()
    }

    pub fn run(&self, be: &dyn Backend, operands: &[Tensor]) -> Result<()> {
        (self.run)(be, operands)
    }

    /// The same, in the memory of a backend's device.
    pub fn tensors_on(&self, be: &dyn Backend) -> Vec<Tensor> {
        self.operands.iter().map(|operand| operand.values.tensor_on(be)).collect()
    }

    /// Every operand after the operation, in order, as floats.
    pub fn results(&self, be: &dyn Backend) -> Vec<Vec<f32>> {
        let tensors = self.tensors_on(be);
        self.run(be, &tensors).unwrap_or_else(|e| panic!("{self}: {e}"));
        tensors.iter().map(floats).collect()
    }

    /// Names of the operands, and their results in the first run and in the second.
    pub fn beside<'a>(
        &'a self,
        a: &'a [Vec<f32>],
        b: &'a [Vec<f32>],
    ) -> impl Iterator<Item = (&'a Operand, &'a [f32], &'a [f32])> {
        self.operands.iter().zip(a).zip(b).map(|((o, a), b)| (o, a.as_slice(), b.as_slice()))
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.op, self.shape)
    }
}

/// The operands of a [`Case`], in the order of the method's arguments.
pub struct Operands {
    op: &'static str,
    shape: String,
    list: Vec<Operand>,
}

/// Begins the case of `op` at `shape`.
pub fn case(op: &'static str, shape: impl Debug) -> Operands {
    Operands { op, shape: format!("{shape:?}"), list: Vec::new() }
}

impl Operands {
    fn with(mut self, name: &'static str, role: Role, values: Values) -> Self {
        self.list.push(Operand { name, role, values });
        self
    }

    pub fn read(self, name: &'static str, values: Vec<f32>) -> Self {
        self.with(name, Role::Read, Values::F32(values))
    }

    pub fn read_some(self, name: &'static str, values: Vec<f32>) -> Self {
        self.with(name, Role::ReadSome, Values::F32(values))
    }

    pub fn read_bf16(self, name: &'static str, values: &[f32]) -> Self {
        self.with(name, Role::Read, Values::Bf16(to_bf16(values)))
    }

    pub fn change_bf16(self, name: &'static str, values: &[f32], terms: usize) -> Self {
        self.with(name, Role::Change { terms }, Values::Bf16(to_bf16(values)))
    }

    pub fn ids(self, name: &'static str, values: Vec<i32>) -> Self {
        self.with(name, Role::Read, Values::I32(values))
    }

    pub fn change_ids(self, name: &'static str, values: Vec<i32>) -> Self {
        self.with(name, Role::Change { terms: 0 }, Values::I32(values))
    }

    pub fn overwrite(self, name: &'static str, len: usize, terms: usize) -> Self {
        self.with(name, Role::Overwrite { terms }, Values::F32(vec![f32::NAN; len]))
    }

    pub fn change(self, name: &'static str, values: Vec<f32>, terms: usize) -> Self {
        self.with(name, Role::Change { terms }, Values::F32(values))
    }

    pub fn any_length(self, name: &'static str, values: Vec<f32>, terms: usize) -> Self {
        self.with(name, Role::AnyLength { terms }, Values::F32(values))
    }

    pub fn scratch(self, len: usize) -> Self {
        self.with("scratch", Role::Scratch, Values::F32(vec![f32::NAN; len]))
    }

    /// Read, and anything afterwards.
    pub fn spent(self, name: &'static str, values: Vec<f32>) -> Self {
        self.with(name, Role::Scratch, Values::F32(values))
    }

    /// Completes the case: `run` gets the operands in the order in which they were given.
    pub fn run<const N: usize>(
        self,
        run: impl Fn(&dyn Backend, [&Tensor; N]) -> Result<()> + 'static,
    ) -> Case {
        assert_eq!(self.list.len(), N, "{}: operands and arguments", self.op);
        let run = move |be: &dyn Backend, x: &[Tensor]| run(be, std::array::from_fn(|i| &x[i]));
        Case { op: self.op, shape: self.shape, operands: self.list, run: Box::new(run) }
    }
}
