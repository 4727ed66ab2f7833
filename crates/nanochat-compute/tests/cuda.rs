//! The CUDA kernels on the CPU, by the machine's C++ compiler, against the plain references: the same
//! cases as every other backend's, in f32 and with activations in bf16.

mod common;

use common::{Case, Role, Values, cases, random, steps, to_bf16, worst};
use nanochat_compute::cpu::Precision;
use nanochat_compute::cuda::{self, Cuda};
use nanochat_compute::ops::{
    After, MatMul, NORM_EPS, StepLinear, StepMix, StepOut, Weight, WeightFormat,
};
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
    // Fused operations of a step keep streams in f32.
    let exact = ["adamw", "muon", "muon_batch", "matmul", "argmax"];
    if exact.contains(&case.op) || case.op.starts_with("step_") {
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

/// `out` of few rows by a weight in bf16, rows and results in f32.
fn fused(be: &dyn Backend, w: Weight<'_>, (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let [x, y] = [5, 6].map(|seed| be.place_f32(&random(m * k, seed)).expect("small"));
    let [out, kept] = [m * n, m * k].map(|len| be.place_f32(&vec![f32::NAN; len]).expect("small"));
    let lambda = be.place_f32(&[0.4]).expect("small");
    let outs = [StepOut { out: &out, w, n }];
    let mix = Some((StepMix::Backout { lambda: &lambda }, &y, &kept));
    let (gate, after, eps) = (None, After::Softcap(15.0), NORM_EPS);
    be.step_linear(&StepLinear { outs: &outs, x: &x, mix, gate, after, m, k, eps }).expect("fits");
    [out.to_vec_f32().expect("f32"), kept.to_vec_f32().expect("f32")].concat()
}

#[test]
fn products_of_few_rows_read_weights_in_bf16() {
    // One piece of a row and several, a part of one; enough rows that a warp takes four.
    let shapes = [(1, 5, 8), (2, 33, 264), (3, 9, 1032), (5, 4, 3072), (8, 7, 768), (1, 16_390, 8)];
    for cuda in devices(Precision::Bf16) {
        for (m, n, k) in shapes.into_iter().chain([(3, 16_385, 16), (8, 16_384, 24)]) {
            let rounded: Vec<f32> =
                random(n * k, 7).iter().map(|w| half::bf16::from_f32(*w).to_f32()).collect();
            let here = Reference.place_f32(&rounded).expect("small");
            let there = cuda.place_f32(&rounded).expect("small");
            let packed =
                cuda.pack(&there, n, k, WeightFormat::Bf16).expect("fits").expect("packed");
            let want = fused(&Reference, Weight::Plain(here.clone()), (m, n, k));
            let got = fused(&cuda, Weight::Packed(&packed), (m, n, k));
            let apart = worst(&got, &want);
            // Rows on tensor cores are within 2^-18 of their size, and so is each product.
            let rows = 2f32.powi(-17) * (k as f32).sqrt();
            assert!(apart <= tolerance(2 * k, &want) + rows, "{m} {n} {k}: {apart:e} off");

            let s = MatMul::forward(m, k, n).add();
            let product = |be: &dyn Backend| {
                let c = be.place_f32(&random(m * n, 8)).expect("small");
                let a = be.place_f32(&random(m * k, 9)).expect("small");
                match be.own_memory() {
                    Some(_) => be.matmul_packed(&c, &a, &packed, &s),
                    None => be.matmul(&c, &a, &here, &s),
                }
                .expect("fits");
                c.to_vec_f32().expect("f32")
            };
            let (got, want) = (product(&cuda), product(&Reference));
            let apart = worst(&got, &want);
            assert!(apart <= tolerance(k, &want) + rows, "{m} {n} {k}: {apart:e} off, added");
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
