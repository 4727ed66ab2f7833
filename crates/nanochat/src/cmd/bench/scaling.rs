//! `nanochat bench scaling`: what a step would take on many devices, from one device's speed and the links
//! between them. Nothing is run; `--measured` sets measurements beside it.

mod events;
mod model;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::model::{Device, Links, Plan, Schedule};
use super::model::ModelFlags;

/// Flags of `bench scaling`.
#[derive(Args, Clone, Debug)]
pub struct ScalingBench {
    /// What is trained.
    #[command(flatten)]
    pub model: ModelFlags,
    /// Numbers of devices.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,512")]
    pub worlds: Vec<usize>,
    /// Tokens of a step, of all devices together.
    #[arg(long, default_value_t = 1_048_576)]
    pub total_batch_size: usize,
    /// Rows of a micro batch.
    #[arg(long, default_value_t = 32)]
    pub device_batch_size: usize,
    /// One device's step: a file whose last line is the JSON of `nanochat bench train` on it.
    #[arg(long, value_name = "FILE", required_unless_present = "tokens_per_sec")]
    pub profile: Option<std::path::PathBuf>,
    /// One device's tokens a second through forward and backward; wins over --profile.
    #[arg(long)]
    pub tokens_per_sec: Option<f64>,
    /// Milliseconds of one device's optimizer step, of which Muon takes two thirds; wins over --profile.
    #[arg(long)]
    pub optimizer_ms: Option<f64>,
    /// Devices of a node.
    #[arg(long, default_value_t = 8)]
    pub per_node: usize,
    /// GB a second of a device to the others of its node (NVLink of an H100: 370 of 450).
    #[arg(long, default_value_t = 370.0)]
    pub node_gb_per_sec: f64,
    /// GB a second of a device to other nodes (400 Gb/s InfiniBand: 45 of 50).
    #[arg(long, default_value_t = 45.0)]
    pub net_gb_per_sec: f64,
    /// Microseconds of a message's latency.
    #[arg(long, default_value_t = 10.0)]
    pub latency_us: f64,
    /// Bytes of a gradient or weight in a message.
    #[arg(long, default_value_t = 4.0)]
    pub message_bytes: f64,
    /// When messages go.
    #[arg(long, value_enum, default_value = "both")]
    pub schedule: Which,
    /// Cores that devices share, where a device is a rank of one thread; 0: each has its own.
    #[arg(long, default_value_t = 0)]
    pub cores: usize,
    /// Measured milliseconds of a step: DEVICES=MS.
    #[arg(long, value_delimiter = ',', value_name = "DEVICES=MS")]
    pub measured: Vec<String>,
}

/// Schedules that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// After the backward, as training does it today.
    After,
    /// Layer by layer, beside the backward and the next forward.
    Overlap,
    /// Both.
    Both,
}

impl Which {
    fn all(self) -> &'static [(&'static str, Schedule)] {
        const BOTH: [(&str, Schedule); 2] =
            [("after", Schedule::After), ("overlap", Schedule::Overlap)];
        match self {
            Which::After => &BOTH[..1],
            Which::Overlap => &BOTH[1..],
            Which::Both => &BOTH,
        }
    }
}

/// Runs the command.
pub fn run(args: &ScalingBench) -> Result<()> {
    let config = args.model.config()?;
    let device = device(args)?;
    let measured = measured(&args.measured)?;
    let positive = |name: &str, x: f64| {
        anyhow::ensure!(x > 0.0 && x.is_finite(), "--{name} {x} is not above 0");
        Ok(x)
    };
    let links = Links {
        per_node: args.per_node.max(1),
        node: 1e9 * positive("node-gb-per-sec", args.node_gb_per_sec)?,
        net: 1e9 * positive("net-gb-per-sec", args.net_gb_per_sec)?,
        latency: 1e-6 * args.latency_us.max(0.0),
    };
    println!(
        "one device: {:.0} tokens/sec, optimizer {:.2} ms; a step of {} tokens\n",
        device.tokens_per_sec,
        1e3 * device.optimizer_s,
        args.total_batch_size
    );
    println!("devices schedule  step ms  compute  optim  reduce  gather  efficiency  measured");
    let (micro, mut rows) = (args.device_batch_size * config.sequence_len, Vec::new());
    for &world in &args.worlds {
        anyhow::ensure!(world > 0, "--worlds holds a 0");
        let shared = if args.cores == 0 { 1.0 } else { world as f64 / args.cores as f64 };
        for (name, schedule) in args.schedule.all() {
            let plan = Plan {
                world,
                total_tokens: args.total_batch_size as f64,
                micro_steps: (args.total_batch_size / world / micro.max(1)).max(1),
                bytes: positive("message-bytes", args.message_bytes)?,
                slower: shared.max(1.0),
                schedule: *schedule,
            };
            let step = model::step(&config, &device, &links, &plan);
            let ms = 1e3 * step.seconds;
            let beside = measured.iter().find(|(w, _)| *w == world).map(|(_, ms)| *ms);
            let said = beside
                .map_or(String::new(), |m| format!("{m:.1} ({:+.0} %)", 100.0 * (ms / m - 1.0)));
            println!(
                "{world:7} {name:8} {ms:8.1} {:8.1} {:6.2} {:7.2} {:7.2} {:9.1} %  {said}",
                1e3 * step.compute_s,
                1e3 * step.optimizer_s,
                1e3 * step.reduce_s,
                1e3 * step.gather_s,
                100.0 * step.efficiency(),
            );
            rows.push(json!({
                "devices": world, "schedule": name, "step_ms": ms,
                "tokens_per_sec": plan.total_tokens / step.seconds,
                "efficiency": step.efficiency(), "compute_ms": 1e3 * step.compute_s,
                "optimizer_ms": 1e3 * step.optimizer_s, "reduce_ms": 1e3 * step.reduce_s,
                "gather_ms": 1e3 * step.gather_s, "measured_ms": beside,
            }));
        }
    }
    println!("{}", json!({ "bench": "scaling", "predicted": rows }));
    Ok(())
}

/// The device of the flags, or of a profile.
fn device(args: &ScalingBench) -> Result<Device> {
    let (mut tokens_per_sec, mut optimizer_s, mut muon_s) = (f64::NAN, 0.0, 0.0);
    if let Some(path) = &args.profile {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let line = text.lines().rfind(|l| l.starts_with('{')).unwrap_or_default();
        let json: Value = serde_json::from_str(line).with_context(|| {
            format!("{} does not end in the JSON of `bench train`", path.display())
        })?;
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let part = |op: &str| number(&json["breakdown"][op]) / 1e3;
        let (all, step_s) = (number(&json["tokens_per_sec"]), number(&json["step_ms"]) / 1e3);
        anyhow::ensure!(
            all > 0.0 && step_s > 0.0,
            "{}: no tokens_per_sec and step_ms",
            path.display()
        );
        muon_s = part("muon");
        optimizer_s = muon_s + part("adamw");
        tokens_per_sec = all * step_s / (step_s - optimizer_s);
    }
    if let Some(ms) = args.optimizer_ms {
        (optimizer_s, muon_s) = (ms / 1e3, ms / 1.5e3);
    }
    let tokens_per_sec = args.tokens_per_sec.unwrap_or(tokens_per_sec);
    anyhow::ensure!(tokens_per_sec > 0.0, "--tokens-per-sec {tokens_per_sec} is not above 0");
    Ok(Device { tokens_per_sec, optimizer_s, muon_s })
}

fn measured(all: &[String]) -> Result<Vec<(usize, f64)>> {
    let one = |text: &String| {
        let (world, ms) = text.split_once('=')?;
        Some((world.parse().ok()?, ms.parse().ok()?))
    };
    let say = |text: &String| format!("--measured {text}: not DEVICES=MS, as 2=512.5");
    all.iter().map(|text| one(text).with_context(|| say(text))).collect()
}
