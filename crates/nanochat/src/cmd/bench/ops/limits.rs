//! What the machine could do at most, measured in the same run.

use std::time::Duration;

use nanochat_compute::Backend;
use nanochat_compute::cpu::Cpu;
use nanochat_compute::cpu::peak::{self, Arithmetic, Streams};
use serde_json::{Value, json};

/// Floats of the arrays that no cache holds: 1 GB each of three, three times a cache of 300 MB.
const FAR: usize = 256 << 20;

/// Limits of this machine, in FLOP/s and bytes/s.
pub struct Limits {
    name: String,
    f32_peak: f64,
    bf16_peak: Option<f64>,
    /// Arrays as large as an activation of the run, which caches may hold: on one thread and on all.
    near: [Streams; 2],
    /// Arrays of memory, on all threads.
    far: Streams,
    read: f64,
    /// Floats of an activation.
    len: usize,
}

/// What a pass over its operands does.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Bytes that have to be read and written at least once.
    pub bytes: f64,
    /// Vector instructions of arithmetic, counted by lane, where they may take longer than memory.
    pub lane_instructions: f64,
}

impl Limits {
    /// Measures them; `tokens` rows of the width of depth 6 are what operations move.
    pub fn measure(cpu: &Cpu, tokens: usize) -> Self {
        let (kernels, threads) = (cpu.kernels(), cpu.threads());
        let flops = |a| peak::flops(&kernels, a, threads, Duration::from_millis(200));
        let len = tokens * super::elementwise::C;
        let near = |threads| peak::streams(&kernels, threads, len);
        let far = if tokens < 8192 { tokens * 8192 } else { FAR };
        Self {
            name: cpu.name(),
            f32_peak: flops(Arithmetic::F32).unwrap_or(f64::NAN),
            bf16_peak: flops(Arithmetic::Bf16),
            near: [near(1), near(threads)],
            far: peak::streams(&kernels, threads, far),
            read: peak::read_bandwidth(threads, 256 << 20),
            len,
        }
    }

    /// The least seconds that `work` takes at this moment: memory's or arithmetic's, whichever is more. An
    /// instruction does a lane's work in half a multiply-add.
    pub fn least_s(&self, cpu: &Cpu, work: &Work) -> f64 {
        let (kernels, threads) = (cpu.kernels(), cpu.threads());
        let near = peak::streams(&kernels, threads, self.len);
        let memory = work.bytes / near.triad.max(near.copy);
        if work.lane_instructions == 0.0 {
            return memory;
        }
        let time = Duration::from_millis(20);
        let flops = peak::flops(&kernels, Arithmetic::F32, threads, time).unwrap_or(f64::NAN);
        memory.max(work.lane_instructions / (flops / 2.0))
    }

    /// The limits in words.
    pub fn print(&self) {
        let gb = |x: f64| x / 1e9;
        println!("{}", self.name);
        println!("registers  f32 {:.0} GFLOP/s", gb(self.f32_peak));
        if let Some(bf16) = self.bf16_peak {
            println!("registers  bf16 {:.0} GFLOP/s", gb(bf16));
        }
        let line = |what: &str, s: &Streams| {
            println!("{what}  copy {:.1} GB/s, triad {:.1} GB/s", gb(s.copy), gb(s.triad));
        };
        line("activations, one thread ", &self.near[0]);
        line("activations, all threads", &self.near[1]);
        line("memory, all threads     ", &self.far);
        println!("memory, all threads       read {:.1} GB/s", gb(self.read));
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let streams = |s: &Streams| json!({"copy": s.copy, "triad": s.triad});
        json!({
            "f32_flops_per_sec": self.f32_peak, "bf16_flops_per_sec": self.bf16_peak,
            "read_bytes_per_sec": self.read,
            "one_thread_bytes_per_sec": streams(&self.near[0]),
            "bytes_per_sec": streams(&self.near[1]),
            "far_bytes_per_sec": streams(&self.far),
        })
    }
}
