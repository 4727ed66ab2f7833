//! `nanochat bench ops`: each operation of the model beside what this machine could do at most.
//!
//! In: rows, runs, which parts. Out: a table of each part, and one JSON object. Limits are measured in the
//! same run ([`limits`]), for a product again beside each shape: a share survives a change of machine and of
//! the hour, a rate does not.

mod attention;
mod elementwise;
mod limits;
mod operands;
mod products;
mod threads;
mod timing;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use self::limits::Limits;
use crate::cli::{Dtype, Global};

/// Flags of `bench ops`.
#[derive(Args, Clone, Debug)]
pub struct OpsBench {
    /// Rows of the products; with 32,768 columns only the first.
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 8192])]
    pub rows: Vec<usize>,
    /// Rows (tokens) of the operations that are not products.
    #[arg(long, default_value_t = 16384)]
    pub tokens: usize,
    /// Runs of each, of which the median and the best are printed.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// What is timed.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    pub only: Vec<Part>,
    /// Few shapes, small ones: seconds instead of minutes.
    #[arg(long)]
    pub quick: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Matrix products of a linear layer, and the head.
    Products,
    /// Attention, forward and backward.
    Attention,
    /// Everything that makes one pass over its operands.
    Elementwise,
    /// A training step on one thread and on all.
    Threads,
}

impl Part {
    const ALL: [Part; 4] = [Part::Products, Part::Attention, Part::Elementwise, Part::Threads];
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Products => "products",
            Part::Attention => "attention",
            Part::Elementwise => "elementwise",
            Part::Threads => "threads",
        })
    }
}

/// Runs the command.
pub fn run(args: &OpsBench, global: &Global) -> Result<()> {
    anyhow::ensure!(args.rows.iter().all(|&m| m > 0), "--rows 0: products have one row at least");
    anyhow::ensure!(args.tokens > 0 && args.runs > 0, "--tokens and --runs count from 1");
    let args = &if args.quick { quick(args) } else { args.clone() };
    let cpu = global.cpu()?;
    let limits = Limits::measure(&cpu, args.tokens);
    limits.print();
    let mut found = Map::new();
    let mut ops = Vec::new();
    for global in precisions(global) {
        let cpu = global.cpu()?;
        if args.only.contains(&Part::Products) {
            let (rows, summary) = products::run(args, &cpu)?;
            ops.extend(rows);
            let dtype = products::dtype(&cpu);
            found.insert(format!("summary_{dtype}"), summary);
        }
        if args.only.contains(&Part::Attention) {
            ops.extend(attention::run(args, &cpu)?);
        }
    }
    if args.only.contains(&Part::Elementwise) {
        ops.extend(elementwise::run(args, &cpu, &limits)?);
    }
    if args.only.contains(&Part::Threads) {
        found.insert("threads".into(), threads::run(args, global)?);
    }
    found.insert("limits".into(), limits.json());
    found.insert("ops".into(), Value::Array(ops));
    found.insert("backend".into(), json!(nanochat_compute::Backend::name(&cpu)));
    println!("{}", Value::Object(found));
    Ok(())
}

/// The settings with each arithmetic that this machine has units for, unless one was asked for.
fn precisions(global: &Global) -> Vec<Global> {
    let with = |dtype| Global { dtype, ..global.clone() };
    let is_bf16 = global.cpu().is_ok_and(|cpu| cpu.is_bf16());
    match global.dtype {
        Dtype::Auto if is_bf16 => vec![with(Dtype::Bf16), with(Dtype::F32)],
        _ => vec![global.clone()],
    }
}

fn quick(args: &OpsBench) -> OpsBench {
    OpsBench { rows: vec![args.rows[0].min(1024)], tokens: args.tokens.min(2048), ..args.clone() }
}
