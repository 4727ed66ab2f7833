//! `nanochat doctor`: what this machine offers, and what is missing.

use anyhow::Result;
use nanochat_compute::cpu::simd::Simd;
use nanochat_compute::cuda;
use serde_json::json;

use crate::cli::Global;
use crate::figures::size;
use crate::machine;
use crate::memory::Room;

/// Runs the command.
pub fn run(global: &Global) -> Result<()> {
    let (cpu, memory) = machine::device();
    let simd: Vec<String> = Simd::available().iter().map(Simd::to_string).collect();
    let room = Room::now();
    println!("CPU      {cpu}, {} threads, {}", global.threads_given(), simd.join(", "));
    let of = if memory > 0 { format!(" of {}", size(memory as f64)) } else { String::new() };
    println!("memory   {} free{of} ({})", size(room.free as f64), room.by);
    let libraries = cuda::libraries();
    for library in &libraries {
        match &library.path {
            Some(path) => println!("{:<8} {}: {}", "found", library.name, path.display()),
            None => {
                let (name, what) = (library.name, library.purpose);
                println!("{:<8} {name} ({what}): {}", "missing", library.hint);
            }
        }
    }
    let gpus = match cuda::gpus() {
        Ok(gpus) => gpus,
        Err(e) => {
            println!("GPU      {e}");
            Vec::new()
        }
    };
    if gpus.is_empty() {
        println!("GPU      none: everything runs on the CPU");
    }
    for gpu in &gpus {
        let (major, minor) = gpu.capability;
        println!(
            "GPU {}    {}, {}, compute capability {major}.{minor}, {} multiprocessors",
            gpu.ordinal,
            gpu.name,
            size(gpu.bytes as f64),
            gpu.multiprocessors
        );
    }
    let sandbox = nanochat_sandbox::probe();
    match &sandbox {
        Ok(report) => println!("sandbox  {report}"),
        Err(e) => println!("sandbox  missing, so no generated code is run: {e}"),
    }
    let backend = global.backend()?.name();
    println!("runs on  {backend}");
    let libraries: Vec<_> =
        libraries.iter().map(|l| json!({"name": l.name, "path": l.path})).collect();
    let gpus: Vec<_> = gpus
        .iter()
        .map(|g| json!({"name": g.name, "bytes": g.bytes, "capability": [g.capability.0, g.capability.1]}))
        .collect();
    if global.json {
        println!(
            "{}",
            json!({
                "cpu": cpu, "simd": simd, "memory_bytes": memory, "libraries": libraries,
                "gpus": gpus, "backend": backend,
                "sandbox": match &sandbox {
                    Ok(r) => json!({"available": true, "python": r.python, "landlock": r.landlock}),
                    Err(e) => json!({"available": false, "layer": e.layer, "why": e.why, "hint": e.hint}),
                },
            })
        );
    }
    Ok(())
}
