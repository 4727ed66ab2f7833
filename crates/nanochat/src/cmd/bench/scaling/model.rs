//! A step of data-parallel training with a sharded optimizer as works: what is computed, reduced, stepped
//! and gathered, bucket by bucket, and how long each takes by arithmetic.
//!
//! In: a model, one device's speed, links. Out: seconds of a step. Source of the formulas: the ring
//! algorithms of NCCL (a reduce-scatter or all-gather moves `(g - 1) / g` of the bytes through each link),
//! inside a node and then, a share a device, between nodes.

use nanochat_gpt::GptConfig;
use nanochat_gpt::nano::table::{Group, Role, Row, Table};
use nanochat_train::ranks::shards::{muon_cost, muon_loads, shards};

use super::events::{Work, run};

/// How devices are joined.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// Devices of a node.
    pub per_node: usize,
    /// Bytes a second of a device to the others of its node, and to other nodes.
    pub node: f64,
    pub net: f64,
    /// Seconds before the first byte of a message arrives.
    pub latency: f64,
}

impl Links {
    /// Seconds of a reduce-scatter or an all-gather of `bytes` over `world` devices.
    ///
    /// With g devices in each of n nodes: `bytes (g - 1) / g / node + bytes / g (n - 1) / n / net`, and the
    /// latency of `log2(world)` messages.
    pub fn seconds(&self, bytes: f64, world: usize) -> f64 {
        let g = world.min(self.per_node).max(1) as f64;
        let n = (world as f64 / g).max(1.0);
        let inside = bytes * (g - 1.0) / g / self.node;
        let between = bytes / g * (n - 1.0) / n / self.net;
        inside + between + self.latency * (world as f64).log2()
    }
}

/// What one device does alone.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Tokens a second through forward and backward.
    pub tokens_per_sec: f64,
    /// Seconds of the whole optimizer's step, of which Muon's.
    pub optimizer_s: f64,
    pub muon_s: f64,
}

/// When messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// After the backward, all in one; weights before the next forward.
    After,
    /// A layer's gradients while the layers below are differentiated, a layer's weights while those before it
    /// run forward.
    Overlap,
}

/// A run whose step is predicted.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Devices.
    pub world: usize,
    /// Tokens of a step, of all devices.
    pub total_tokens: f64,
    /// Micro steps of a device.
    pub micro_steps: usize,
    /// Bytes of a gradient, and of a weight, in a message.
    pub bytes: f64,
    /// How much longer a device takes for the same, because it shares its cores: 1 where it does not.
    pub slower: f64,
    /// When messages go.
    pub schedule: Schedule,
}

/// A step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// From one step's start to the next one's.
    pub seconds: f64,
    /// Forward and backward.
    pub compute_s: f64,
    /// The device with most to do.
    pub optimizer_s: f64,
    /// All reductions, and all gathers, were they alone.
    pub reduce_s: f64,
    pub gather_s: f64,
}

impl Step {
    /// Share of the step in which the device computes gradients.
    pub fn efficiency(&self) -> f64 {
        self.compute_s / self.seconds
    }
}

/// Parameters that are reduced together.
struct Bucket {
    elements: f64,
    /// Share of the forward that it is for.
    share: f64,
}

const COMPUTE: usize = 0;
const NETWORK: usize = 1;
/// Steps that are run through, of which the last two are compared.
const STEPS: usize = 4;

/// Embedding, layers, head: in the order of the forward.
fn buckets(config: &GptConfig, table: &Table) -> Vec<Bucket> {
    let layers = config.n_layer;
    let place = |row: &Row| match row.role {
        Role::Q(i) | Role::K(i) | Role::V(i) | Role::AttnProj(i) => i + 1,
        Role::VeGate(i) | Role::Fc(i) | Role::MlpProj(i) | Role::ValueEmbed(i) => i + 1,
        Role::LmHead => layers + 1,
        _ => 0,
    };
    let t = config.sequence_len;
    let attention = |i: usize| (2 * config.n_embd * config.window(i).min(t)) as f64;
    let mut all: Vec<Bucket> = (0..layers + 2)
        .map(|i| Bucket {
            elements: 0.0,
            share: if (1..=layers).contains(&i) { attention(i - 1) } else { 0.0 },
        })
        .collect();
    for row in table.rows() {
        let bucket = &mut all[place(row)];
        bucket.elements += row.len() as f64;
        bucket.share += if row.is_linear() { row.len() as f64 } else { 0.0 };
    }
    let sum: f64 = all.iter().map(|b| b.share).sum();
    all.iter_mut().for_each(|b| b.share /= sum);
    all
}

/// The share of Muon's work that the busiest of `world` devices has: `1 / world` at best.
fn muon_share(table: &Table, world: usize) -> f64 {
    let matrices = table.rows().iter().filter(|r| r.group == Group::Matrix);
    let all: f64 = matrices.map(|r| muon_cost(&r.shape)).sum();
    let most = muon_loads(table, &shards(table, world), world).into_iter().fold(0.0, f64::max);
    most / all
}

/// The step of a plan.
pub fn step(config: &GptConfig, device: &Device, links: &Links, plan: &Plan) -> Step {
    let table = Table::new(config);
    let buckets = buckets(config, &table);
    let world = plan.world as f64;
    let compute_s = plan.total_tokens / world / device.tokens_per_sec * plan.slower;
    let adamw = (device.optimizer_s - device.muon_s) / world;
    let optimizer_s = plan.slower * (adamw + device.muon_s * muon_share(&table, plan.world));
    let message = |elements: f64| match plan.world {
        1 => 0.0,
        _ => links.seconds(plan.bytes * elements, plan.world),
    };
    let all: f64 = buckets.iter().map(|b| b.elements).sum();
    let mut works: Vec<Work> = Vec::new();
    let mut add = |on, seconds, after: Vec<usize>| {
        works.push(Work { on, seconds, after });
        works.len() - 1
    };
    let micro = compute_s / plan.micro_steps as f64;
    let (forward, backward) = (micro / 3.0, micro * 2.0 / 3.0);
    // What the forward of each bucket waits for, and the last work of each step.
    let mut gathered: Vec<Option<usize>> = vec![None; buckets.len()];
    // Forward and backward follow each other; what is stepped comes between when it is ready.
    let (mut last, mut before) = (Vec::new(), None);
    for _ in 0..STEPS {
        for micro_step in 0..plan.micro_steps {
            for (bucket, gathered) in buckets.iter().zip(&mut gathered) {
                let after = before.into_iter().chain(gathered.take()).collect();
                before = Some(add(COMPUTE, forward * bucket.share, after));
            }
            if micro_step + 1 < plan.micro_steps {
                before = Some(add(COMPUTE, backward, before.into_iter().collect()));
            }
        }
        let mut done = Vec::new();
        for bucket in buckets.iter().rev() {
            before = Some(add(COMPUTE, backward * bucket.share, before.into_iter().collect()));
            done.extend(before);
        }
        let end = *done.last().expect("a model has buckets");
        match plan.schedule {
            Schedule::After => {
                let reduced = add(NETWORK, message(all), vec![end]);
                let stepped = add(COMPUTE, optimizer_s, vec![reduced]);
                let gather = add(NETWORK, message(all), vec![stepped]);
                gathered.fill(Some(gather));
                last.push(stepped);
            }
            Schedule::Overlap => {
                let reduced: Vec<usize> = buckets
                    .iter()
                    .rev()
                    .zip(&done)
                    .map(|(bucket, done)| add(NETWORK, message(bucket.elements), vec![*done]))
                    .collect();
                let mut stepped = end;
                for (i, bucket) in buckets.iter().enumerate() {
                    let reduced = reduced[buckets.len() - 1 - i];
                    let seconds = optimizer_s * bucket.elements / all;
                    stepped = add(COMPUTE, seconds, vec![reduced, end]);
                    gathered[i] = Some(add(NETWORK, message(bucket.elements), vec![stepped]));
                }
                last.push(stepped);
            }
        }
    }
    let ends = run(&works);
    let seconds = ends[last[STEPS - 1]] - ends[last[STEPS - 2]];
    Step { seconds, compute_s, optimizer_s, reduce_s: message(all), gather_s: message(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Links = Links { per_node: 8, node: 370e9, net: 45e9, latency: 0.0 };

    fn d20() -> GptConfig {
        GptConfig::from_depth(20, 64, 128, 2048, 32_768, "SSSL").expect("upstream's sizes")
    }

    /// 1.05 M tokens a step, bf16 messages; a device as fast as 695 ms for 131 k tokens.
    fn plan(world: usize, schedule: Schedule) -> Step {
        let device = Device { tokens_per_sec: 131_072.0 / 0.695, optimizer_s: 0.0, muon_s: 0.0 };
        let total_tokens = 1_048_576.0;
        let plan = Plan { world, total_tokens, micro_steps: 1, bytes: 2.0, slower: 1.0, schedule };
        step(&d20(), &device, &H100, &plan)
    }

    #[test]
    fn a_message_takes_what_the_formula_says() {
        for (world, ms) in [(1, 0.0), (8, 4.23), (64, 8.58), (512, 9.13)] {
            let got = H100.seconds(1.79e9, world) * 1e3;
            assert!((got - ms).abs() < 0.02, "{world}: {got} ms");
        }
        let slow = Links { latency: 1e-3, ..H100 };
        assert!((slow.seconds(0.0, 64) - 6e-3).abs() < 1e-12);
    }

    #[test]
    fn messages_after_the_backward_add_up() {
        for (world, percent) in [(8, 99.0), (64, 83.0), (512, 37.0)] {
            let step = plan(world, Schedule::After);
            let sum = step.compute_s + step.reduce_s + step.gather_s + step.optimizer_s;
            assert!((step.seconds - sum).abs() < 1e-12, "{step:?}");
            assert!((100.0 * step.efficiency() - percent).abs() < 1.0, "{world}: {step:?}");
        }
        assert!((plan(1, Schedule::After).efficiency() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn overlapped_messages_are_hidden_while_there_is_something_to_hide_them_behind() {
        for world in [8, 64, 512] {
            let (after, overlap) = (plan(world, Schedule::After), plan(world, Schedule::Overlap));
            assert!(overlap.seconds <= after.seconds, "{world}");
            // No schedule beats the busier of the two resources.
            let network = overlap.reduce_s + overlap.gather_s;
            assert!(overlap.seconds >= overlap.compute_s.max(network) - 1e-12, "{overlap:?}");
        }
        // The embedding's gradients come last and its weights are needed first: they stay in sight.
        assert!(plan(8, Schedule::Overlap).efficiency() > 0.99);
        assert!(plan(64, Schedule::Overlap).efficiency() > 0.95);
        assert!(plan(512, Schedule::Overlap).efficiency() < 0.6);
    }

    #[test]
    fn micro_steps_share_the_compute_and_matrices_the_optimizer() {
        let device = Device { tokens_per_sec: 1000.0, optimizer_s: 3.0, muon_s: 2.0 };
        let of = |world, micro_steps| {
            let (bytes, slower, schedule) = (4.0, 1.0, Schedule::After);
            let total_tokens = 8000.0;
            let plan = Plan { world, total_tokens, micro_steps, bytes, slower, schedule };
            step(&d20(), &device, &Links { node: f64::INFINITY, ..H100 }, &plan)
        };
        assert!((of(1, 1).seconds - 11.0).abs() < 1e-9);
        assert!((of(1, 4).seconds - 11.0).abs() < 1e-9);
        // 20 layers' matrices go evenly over 4 devices, but for the gates.
        let four = of(4, 2);
        assert!((four.optimizer_s - 0.75).abs() < 0.01, "{four:?}");
        assert!((four.seconds - 2.0 - four.optimizer_s).abs() < 1e-9);
    }
}
