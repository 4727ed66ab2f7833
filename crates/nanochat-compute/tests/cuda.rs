//! The CUDA kernels on the CPU, by the machine's C++ compiler, against the plain references: the same
//! cases as every other backend's, in f32 and with activations in bf16.

mod common;

use common::{Case, Role, Values, cases, random, steps, to_bf16, worst};
use nanochat_compute::cpu::Precision;
use nanochat_compute::cuda::{self, Cuda};
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, DType, Error};

/// The emulated device, and the GPU where there is one; said in a line, without a C++ compiler. With
/// NANOCHAT_EMULATED=0 the GPU alone.
fn devices(precision: Precision) -> Vec<Cuda> {
    let mut all = Vec::new();
    if std::env::var("NANOCHAT_EMULATED").is_ok_and(|wanted| wanted == "0") {
        println!("skipped: the emulated device (NANOCHAT_EMULATED=0)");
    } else {
        match Cuda::emulated(env!("CARGO_TARGET_TMPDIR").as_ref(), precision) {
            Ok(cuda) => all.push(cuda),
            Err(e) if e.to_string().contains("no C++ compiler") => println!("skipped: {e}"),
            Err(e) => panic!("{e}"),
        }
    }
    if cuda::gpus().is_ok_and(|gpus| !gpus.is_empty()) {
        all.push(Cuda::open(0, precision).expect("the GPU that is there"));
    }
    all
}

/// As in the conformance of the other backends; exp, tanh and square roots of a GPU are within a few
/// units of the last place, and sums run in another order.
fn tolerance(terms: usize, want: &[f32]) -> f32 {
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    2f32.powi(-24) * (32.0 * largest + 2.0 * terms as f32)
}

fn assert_near(case: &Case, got: &[Vec<f32>], want: &[Vec<f32>], limit: fn(usize, &[f32]) -> f32) {
    for (operand, got, want) in case.beside(got, want) {
        let terms = match operand.role {
            Role::Read | Role::ReadSome => {
                let same = got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} of {case} is not as it was", operand.name);
                continue;
            }
            Role::Scratch => continue,
            Role::Overwrite { terms } | Role::Change { terms } | Role::AnyLength { terms } => terms,
        };
        let (limit, apart) = (limit(terms, want), worst(got, want));
        assert!(apart <= limit, "{} of {case} is {apart:e} off, more than {limit:e}", operand.name);
    }
}

#[test]
fn every_kernel_equals_the_reference_in_f32() {
    for cuda in devices(Precision::F32) {
        for case in cases::all().into_iter().chain(steps::batches()) {
            assert_near(&case, &case.results(&cuda), &case.results(&Reference), tolerance);
        }
    }
}

/// What stays f32 beside activations in bf16: parameters, their gradients, statistics, results.
const EXACT: [&str; 25] = [
    "rstd", "gate", "w", "dw", "lambda", "dlambda", "a", "b", "da", "db", "table", "dtable", "cos",
    "sin", "lse", "losses", "p", "m", "v_", "buf", "second", "g", "q_", "k_", "weights",
];

/// The case with activations in bf16; none where an operation has none.
fn in_bf16(mut case: Case) -> Option<Case> {
    if ["adamw", "muon", "muon_batch", "matmul", "argmax"].contains(&case.op) {
        return None;
    }
    let mut any = false;
    for operand in &mut case.operands {
        let Values::F32(x) = &operand.values else { continue };
        if EXACT.contains(&operand.name) {
            continue;
        }
        // The cache of an f32 query may be of either type, and has cases of both.
        if case.op == "attention_cached" && ["k", "v"].contains(&operand.name) {
            return None;
        }
        operand.values = Values::Bf16(to_bf16(x));
        any = true;
    }
    any.then_some(case)
}

/// The reference on the numbers that the bf16 stand for.
fn widened(case: Case) -> Case {
    let mut case = case;
    for operand in &mut case.operands {
        if let Values::Bf16(x) = &operand.values {
            let wide = x.iter().map(|x| half::bf16::from_bits(*x).to_f32()).collect();
            operand.values = Values::F32(wide);
        }
    }
    case
}

#[test]
fn every_kernel_is_near_the_reference_with_activations_in_bf16() {
    let devices = devices(Precision::Bf16);
    // Results are rounded by 2^-9 of their size; within products and attention operands are too.
    let limit = |terms: usize, want: &[f32]| {
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        largest / 100.0 + 2f32.powi(-20) * terms as f32
    };
    let mut count = 0;
    for (case, again) in cases::all().into_iter().zip(cases::all()) {
        let Some(case) = in_bf16(case) else { continue };
        let wide = widened(in_bf16(again).expect("the same case"));
        let attends = case.op.starts_with("attention") || case.op.starts_with("head");
        let loose = |_: usize, want: &[f32]| want.iter().fold(1f32, |m, x| m.max(x.abs())) / 30.0;
        let limit = if attends { loose } else { limit };
        let want = wide.results(&Reference);
        for cuda in &devices {
            assert_near(&case, &case.results(cuda), &want, limit);
        }
        count += 1;
    }
    println!("{count} cases with activations in bf16");
}

#[test]
fn a_gpu_without_products_of_warpgroups_attends_the_same() {
    let dir = env!("CARGO_TARGET_TMPDIR").as_ref();
    let older = match Cuda::emulated_as(dir, Precision::Bf16, (8, 0)) {
        Ok(older) => older,
        Err(e) if e.to_string().contains("no C++ compiler") => return println!("skipped: {e}"),
        Err(e) => panic!("{e}"),
    };
    let loose = |_: usize, want: &[f32]| want.iter().fold(1f32, |m, x| m.max(x.abs())) / 30.0;
    for (case, again) in cases::all().into_iter().zip(cases::all()) {
        if ["attention", "attention_backward"].contains(&case.op) {
            let case = in_bf16(case).expect("attention has activations");
            let wide = widened(in_bf16(again).expect("the same case"));
            assert_near(&case, &case.results(&older), &wide.results(&Reference), loose);
        }
    }
}

#[test]
fn the_same_call_gives_the_same_bits() {
    let devices = devices(Precision::Bf16);
    for (case, cuda) in cases::all().iter().flat_map(|c| devices.iter().map(move |d| (c, d))) {
        let (one, two) = (case.results(cuda), case.results(cuda));
        for (operand, one, two) in case.beside(&one, &two) {
            let same = one.iter().zip(two).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same || operand.role == Role::Scratch, "{} of {case}", operand.name);
        }
    }
}

#[test]
fn operands_of_another_device_are_refused() {
    for cuda in devices(Precision::F32) {
        refuses_host_memory(&cuda);
    }
}

fn refuses_host_memory(cuda: &Cuda) {
    let here = cuda.place_f32(&random(8, 1)).expect("eight floats");
    let host = Reference.place_f32(&random(8, 2)).expect("eight floats");
    assert!(matches!(cuda.add(&here, &host), Err(Error::Elsewhere { .. })));
    assert!(matches!(Backend::add(&Reference, &host, &here), Err(Error::Elsewhere { .. })));
    let overlap = cuda.add(&here.slice(0..4), &here.slice(2..6));
    assert!(matches!(overlap, Err(Error::Overlap { .. })));
    assert!(matches!(cuda.alloc(8, DType::I32).map(|t| t.to_vec_f32()), Ok(Err(_))));
    assert_eq!(here.to_vec_f32().expect("f32"), random(8, 1));
}
