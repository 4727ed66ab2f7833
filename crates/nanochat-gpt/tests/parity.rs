//! Logits, losses and every gradient against PyTorch, from fixtures (see `fixtures/README.md`).

use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use nanochat_compute::DType;
use nanochat_compute::cpu::Cpu;
use nanochat_compute::eager::Eager;
use nanochat_compute::reference::Reference;
use nanochat_gpt::nano::buffers::{Mode, StepPlan};
use nanochat_gpt::{Nano, import::import};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn f32s(t: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = t.tensor(name).expect(name).data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn i32s(t: &SafeTensors<'_>, name: &str) -> Vec<i32> {
    let data = t.tensor(name).expect(name).data().to_vec();
    data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Names of the gradients in a case file.
type GradName = fn(&str) -> String;

fn holds(be: &dyn Backend, model: &Nano, case: &Path, grad_name: GradName) {
    let bytes = std::fs::read(case).expect("the fixture is in the repository");
    let case = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let shape = case.tensor("ids").expect("ids").shape().to_vec();
    let (b, t, v) = (shape[0], shape[1], model.config().vocab_size);
    let plan = StepPlan::new(model.config(), b, t, Mode::Train);
    let arena = plan.layout().allocate(be).expect("a small arena");
    let bufs = plan.views(&arena);
    bufs.tokens.write_i32(&i32s(&case, "ids")).expect("B T ids");
    let targets = i32s(&case, "targets");
    bufs.targets.write_i32(&targets).expect("B T targets");

    // 2e-5: f32 itself strays by 6e-6 from the f64 that made the fixture.
    let losses = model.losses(be, &bufs).expect("forward");
    assert!(worst(&losses, &f32s(&case, "losses")) < 2e-5, "losses on {}", be.name());
    let positions = i32s(&case, "positions");
    let mut logits = Vec::new();
    for row in 0..b {
        for &p in &positions {
            let at = row * t + p as usize;
            logits.extend(model.logits(be, &bufs, at..at + 1).expect("logits"));
        }
    }
    assert_eq!(logits.len(), b * positions.len() * v);
    assert!(worst(&logits, &f32s(&case, "logits_sample")) < 2e-5, "logits on {}", be.name());

    let grads = be.alloc(model.table().len(), DType::F32).expect("gradients");
    let counted = targets.iter().filter(|&&t| t >= 0).count() as f32;
    model.forward_backward(be, &bufs, &grads, 1.0 / counted).expect("backward");
    for row in model.table().rows() {
        let want = f32s(&case, &grad_name(&row.name));
        let mut have = model.table().view(&grads, row.role).to_vec_f32().expect("f32");
        have.truncate(want.len()); // The fixture may have no padding rows.
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let off = worst(&have, &want);
        assert!(off < 1e-4 * largest, "{} on {}: {off} of {largest}", row.name, be.name());
    }
}

fn backends() -> Vec<Box<dyn Backend>> {
    let mut all: Vec<Box<dyn Backend>> = vec![Box::new(Reference)];
    all.extend(Cpu::every_f32(2).into_iter().map(|c| Box::new(c) as Box<dyn Backend>));
    let eager = |c| Box::new(Eager::new(c)) as Box<dyn Backend>;
    all.extend(Cpu::every_f32(2).into_iter().map(eager));
    all
}

#[test]
fn generation_5_equals_pytorch() {
    for be in backends() {
        let model = import(be.as_ref(), &fixture("gen5"), None).expect("gen5");
        let name = |n: &str| format!("grads/{n}");
        holds(be.as_ref(), &model, &fixture("gen5/case.safetensors"), name);
    }
}

#[test]
fn generation_1_equals_hugging_face() {
    for be in backends() {
        let model = import(be.as_ref(), &fixture("gen1/hf"), None).expect("gen1");
        let name = |n: &str| {
            let pairs = [
                ("transformer.wte.", "model.embed_tokens."),
                ("transformer.h.", "model.layers."),
                (".attn.c_proj.", ".self_attn.o_proj."),
                (".attn.c_", ".self_attn."),
                (".mlp.c_fc.", ".mlp.fc1."),
                (".mlp.c_proj.", ".mlp.fc2."),
            ];
            let n = pairs.iter().fold(n.to_owned(), |n, (a, b)| n.replace(a, b));
            let n = ["q", "k", "v"].iter().fold(n, |n, l| {
                n.replace(&format!(".self_attn.{l}."), &format!(".self_attn.{l}_proj."))
            });
            format!("grads/{n}")
        };
        holds(be.as_ref(), &model, &fixture("gen1/case.safetensors"), name);
    }
}
