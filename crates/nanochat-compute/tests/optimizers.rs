//! AdamW and Muon on every backend against six steps that PyTorch took on given gradients
//! (`fixtures/recipe`).

mod common;

use std::path::Path;

use common::worst;
use nanochat_compute::cpu::Cpu;
use nanochat_compute::ops::{AdamW, Muon};
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, Tensor};
use safetensors::SafeTensors;
use serde_json::Value;

/// The fixture is f64 stored as f32; PyTorch in f32 strays 2.8e-7 from it in six steps. Sums in
/// another order may stray as far in the other direction, and some more.
const STRAYS: f32 = 1e-6;

#[test]
fn adamw_takes_the_steps_of_pytorch() {
    let recipe = Recipe::load();
    for be in every_backend() {
        for group in recipe.groups().iter().filter(|group| group["kind"] == "adamw") {
            for name in group["params"].as_object().expect("names and shapes").keys() {
                let (strays, state) = recipe.adamw(&*be, group, name);
                let what = format!("{} on {}", name, be.name());
                assert!(strays < STRAYS, "{what} strays {strays:e}");
                for (got, key) in state.iter().zip(["m", "v"]) {
                    let strays = worst(got, &recipe.f32s(&format!("state/{name}/{key}")));
                    assert!(strays < 1e-8, "{key} of {what} strays {strays:e}: gradients are 0.01");
                }
            }
        }
    }
}

#[test]
fn muon_takes_the_steps_of_pytorch() {
    let recipe = Recipe::load();
    for be in every_backend() {
        for group in recipe.groups().iter().filter(|group| group["kind"] == "muon") {
            // PyTorch steps the stack at once; its matrices do not know of each other.
            let names: Vec<_> =
                group["params"].as_object().expect("names and shapes").keys().collect();
            let stack = |key: &str| recipe.f32s(&format!("state/{}/{key}", names[0]));
            let (mut momentum, mut variance) = (Vec::new(), Vec::new());
            for name in &names {
                let (strays, [buf, second]) = recipe.muon(&*be, group, name);
                assert!(strays < STRAYS, "{name} on {} strays {strays:e}", be.name());
                momentum.extend(buf);
                variance.extend(second);
            }
            let strays = worst(&momentum, &stack("momentum_buffer"));
            assert!(
                strays < 1e-8,
                "momentum of {} strays {strays:e}: gradients are 0.01",
                names[0]
            );
            let strays = worst(&variance, &stack("second_momentum_buffer"));
            assert!(strays < STRAYS, "variance of {} strays {strays:e}", names[0]);
        }
    }
}

/// The reference and every CPU, on one thread. The eager backend's steps are the CPU's.
fn every_backend() -> Vec<Box<dyn Backend>> {
    let cpus = Cpu::every_f32(1).into_iter().map(|cpu| Box::new(cpu) as Box<dyn Backend>);
    std::iter::once(Box::new(Reference) as Box<dyn Backend>).chain(cpus).collect()
}

/// The six steps of `fixtures/recipe/optim.*`.
struct Recipe {
    bytes: Vec<u8>,
    about: Value,
}

impl Recipe {
    fn load() -> Self {
        let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/recipe");
        let read = |name| std::fs::read(room.join(name)).expect("the fixture is in the repository");
        let about = serde_json::from_slice(&read("optim.json")).expect("JSON");
        Self { bytes: read("optim.safetensors"), about }
    }

    fn steps(&self) -> usize {
        self.about["steps"].as_u64().expect("a number of steps") as usize
    }

    fn groups(&self) -> &[Value] {
        self.about["groups"].as_array().expect("a list of groups")
    }

    /// Value of a schedule at a step.
    fn at(&self, schedule: &str, step: usize) -> f64 {
        self.about["per_step"][schedule][step].as_f64().expect("a number for every step")
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let data = file.tensor(name).expect(name).data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The given gradient of `name` at `step`, and the parameter PyTorch had after it.
    fn step(&self, name: &str, step: usize) -> (Vec<f32>, Vec<f32>) {
        let of = |what: &str| self.f32s(&format!("{what}/{step}/{name}"));
        (of("grads"), of("params"))
    }

    /// Steps the parameter `name` on `be`; returns the farthest it strays from PyTorch, and (m, v).
    fn adamw(&self, be: &dyn Backend, group: &Value, name: &str) -> (f32, [Vec<f32>; 2]) {
        let number = |v: &Value| v.as_f64().expect("a number");
        let p = Tensor::from_f32(&self.f32s(&format!("init/{name}"))).expect("a small tensor");
        let zeros = || Tensor::from_f32(&vec![0.0; p.len()]).expect("a small tensor");
        let (m, v) = (zeros(), zeros());
        let mut strays = 0f32;
        for step in 0..self.steps() {
            let (g, want) = self.step(name, step);
            let s = AdamW {
                lr: (number(&group["lr"]) * self.at("lr_multiplier", step)) as f32,
                beta1: number(&group["betas"][0]) as f32,
                beta2: number(&group["betas"][1]) as f32,
                eps: number(&group["eps"]) as f32,
                wd: number(&group["weight_decay"]) as f32,
                t: step as u64 + 1,
            };
            let g = Tensor::from_f32(&g).expect("a small tensor");
            be.adamw(&p, &m, &v, &g, &s).expect("operands of one length");
            strays = strays.max(worst(&p.to_vec_f32().expect("f32"), &want));
        }
        (strays, [m, v].map(|t| t.to_vec_f32().expect("f32")))
    }

    /// Steps the matrix `name` on `be`; returns the farthest it strays from PyTorch, and
    /// (momentum, variance).
    fn muon(&self, be: &dyn Backend, group: &Value, name: &str) -> (f32, [Vec<f32>; 2]) {
        let size = |i: usize| group["params"][name][i].as_u64().expect("a size") as usize;
        let number = |key: &str| group[key].as_f64().expect("a number");
        let (m, n) = (size(0), size(1));
        let shape = Muon { m, n, lr: 0.0, momentum: 0.0, beta2: number("beta2") as f32, wd: 0.0 };
        let p = Tensor::from_f32(&self.f32s(&format!("init/{name}"))).expect("a small tensor");
        let zeros = |len| Tensor::from_f32(&vec![0.0; len]).expect("a small tensor");
        let (buf, second) = (zeros(m * n), zeros(shape.second_len()));
        let scratch = zeros(shape.scratch_len());
        let mut strays = 0f32;
        for step in 0..self.steps() {
            let (g, want) = self.step(name, step);
            let s = Muon {
                lr: (number("lr") * self.at("lr_multiplier", step)) as f32,
                momentum: self.at("muon_momentum", step) as f32,
                wd: self.at("muon_weight_decay", step) as f32,
                ..shape
            };
            let g = Tensor::from_f32(&g).expect("a small tensor");
            be.muon(&p, &buf, &second, &scratch, &g, &s).expect("operands that fit");
            strays = strays.max(worst(&p.to_vec_f32().expect("f32"), &want));
        }
        (strays, [buf, second].map(|t| t.to_vec_f32().expect("f32")))
    }
}
