//! Every operation on every backend of this machine against the plain references, and what all of
//! them refuse.

mod common;

use common::{Case, Operand, Role, Values, case, cases, every_host, random, steps, worst};
use nanochat_compute::cpu::simd::{Kernels, Simd};
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::eager::Eager;
use nanochat_compute::ops::{
    self, Attention, CachedAttention, HeadLoss, Layout, MatMul, Muon, PAGE, RopeNorm, Smear,
    ValueGate, WeightFormat,
};
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, DType, Error, Result, Tensor};

/// How far two correct sums of `terms` products of numbers below 1 may be apart.
///
/// Each addition rounds a partial sum, of size sqrt(terms) for random signs, by 2^-24 of it, and
/// the roundings walk: terms 2^-24 in all. The value itself is rounded a few times more, with exp
/// and tanh within 2e-7 (3.4 2^-24): 16 times its size, of which the largest element speaks for all.
fn tolerance(terms: usize, want: &[f32]) -> f32 {
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    2f32.powi(-24) * (16.0 * largest + terms as f32)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Reads are as they were, the rest is within `tolerance(terms, want)` of what the reference wrote.
fn assert_conforms(
    case: &Case,
    name: &str,
    got: &[Vec<f32>],
    want: &[Vec<f32>],
    tolerance: fn(usize, &[f32]) -> f32,
) {
    for (operand, got, want) in case.beside(got, want) {
        let what = || format!("{name}: {} of {case}", operand.name);
        let terms = match operand.role {
            Role::Read | Role::ReadSome => {
                assert!(same_bits(got, want), "{} is not as it was", what());
                continue;
            }
            Role::Scratch => continue,
            Role::Overwrite { terms } | Role::Change { terms } | Role::AnyLength { terms } => terms,
        };
        let (limit, apart) = (tolerance(terms, want), worst(got, want));
        assert!(apart <= limit, "{} is {apart:e} off, more than {limit:e}", what());
    }
}

#[test]
fn every_backend_equals_the_reference() {
    for simd in [Simd::Amx, Simd::Avx512Bf16, Simd::Avx512, Simd::Avx2, Simd::Portable] {
        if !simd.is_available() {
            println!("skipped {simd}: not on this machine");
        }
    }
    let backends = every_host();
    let cases: Vec<_> = cases::all().into_iter().chain(steps::batches()).collect();
    for case in &cases {
        let want = case.results(&Reference);
        for be in backends.iter().flatten() {
            let got = case.results(&**be);
            assert_conforms(case, &be.name(), &got, &want, tolerance);
        }
    }
    for be in backends.iter().flatten() {
        println!("{} equals the reference in {} cases", be.name(), cases.len());
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let [one, two, three] = every_host();
    for case in cases::all() {
        for (one, others) in one.iter().zip(two.iter().zip(&three)) {
            let want = case.results(&**one);
            for other in [others.0, others.1] {
                for (operand, got, want) in case.beside(&case.results(&**other), &want) {
                    let same = operand.role == Role::Scratch || same_bits(got, want);
                    assert!(same, "{}: {} of {case}", other.name(), operand.name);
                }
            }
        }
    }
}

#[test]
fn a_thousandth_of_an_output_is_more_than_the_tolerance() {
    for case in cases::all() {
        let want = case.results(&Reference);
        for (operand, _, want) in case.beside(&want, &want) {
            let (Role::Overwrite { terms } | Role::Change { terms }) = operand.role else {
                continue;
            };
            let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            // A norm of one channel has the gradient 0, but for rounding.
            let seen = largest < 1e-6 || tolerance(terms, want) < 1e-3 * largest;
            assert!(seen, "{case}: {} of size {largest} could be anything", operand.name);
        }
    }
}

#[test]
fn every_operation_has_a_case() {
    let source = include_str!("../src/ops/mod.rs");
    let methods = source.lines().filter_map(|line| line.strip_prefix("    fn "));
    let names: Vec<_> = methods.filter_map(|line| line.split('(').next()).collect();
    assert!(names.contains(&"matmul"), "the trait's methods were found: {names:?}");
    let cases = cases::all();
    let others = ["name", "profile_start", "profile_stop", "workspace_bytes", "alloc", "default"];
    let more = [
        "own_memory",
        "synchronize",
        "step_style",
        "place_f32",
        "place_i32",
        "muon_batch",
        "replay",
        "replay_ahead",
        "step_rows",
    ];
    let others =
        [&others[..], &more, &["pack", "matmul_packed", "cache_dtype", "remakes_hidden"]].concat();
    for name in names.into_iter().filter(|name| !others.contains(name)) {
        assert!(cases.iter().any(|case| case.op == name), "{name} has no case");
    }
}

/// The CPU and the eager backend, multiplying bf16.
fn both_in_bf16() -> [Box<dyn Backend>; 2] {
    let cpu = || Cpu::open(2, Precision::Bf16);
    [Box::new(cpu()), Box::new(Eager::new(cpu()))]
}

#[test]
fn bf16_products_are_the_products_of_rounded_operands() {
    for be in both_in_bf16() {
        println!("{}", be.name());
        for mut case in cases::all().into_iter().filter(|case| case.op == "matmul") {
            let mut got = case.results(&*be);
            for operand in &mut case.operands[1..] {
                let Values::F32(x) = &mut operand.values else { panic!("matrices are f32") };
                x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
            }
            let want = case.results(&Reference);
            got[1..].clone_from_slice(&want[1..]);
            assert_conforms(&case, &be.name(), &got, &want, tolerance);
        }
    }
}

#[test]
fn a_packed_weight_gives_the_bits_of_the_weight() {
    for simd in Simd::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let cpu = |simd| Cpu::with(Kernels::new(simd).expect("it is available"), 2, precision);
            let (cpu, other) = (cpu(simd), Cpu::with(Kernels::detect(), 1, Precision::F32));
            let be: &dyn Backend = &cpu;
            for (m, n, k) in [(1, 1, 1), (1, 100, 48), (3, 70, 200), (8, 33, 1000), (93, 64, 64)] {
                let tensor = |len, seed| Tensor::from_f32(&random(len, seed)).expect("small");
                let (x, w) = (tensor(m * k, 50), tensor(n * k, 51));
                let (want, got) = (tensor(m * n, 52), tensor(m * n, 52));
                let packed = be.pack(&w, n, k, WeightFormat::Auto).expect("a weight");
                let Some(packed) = packed else { continue };
                for s in [MatMul::forward(m, k, n), MatMul::forward(m, k, n).add()] {
                    be.matmul(&want, &x, &w, &s).expect("operands that fit");
                    be.matmul_packed(&got, &x, &packed, &s).expect("operands that fit");
                    let bits = |t: &Tensor| t.to_vec_f32().expect("f32");
                    assert!(same_bits(&bits(&got), &bits(&want)), "{} {s:?}", be.name());
                }
                let s = MatMul::forward(m, k, n);
                assert!(be.matmul_packed(&got, &x, &packed, &MatMul { n: n + 1, ..s }).is_err());
                assert!(
                    be.matmul_packed(&got, &x, &packed, &MatMul { layout: Layout::Nn, ..s })
                        .is_err()
                );
                assert!(Backend::matmul_packed(&other, &got, &x, &packed, &s).is_err());
                assert!(Backend::matmul_packed(&Reference, &got, &x, &packed, &s).is_err());
            }
        }
    }
}

#[test]
fn attention_and_head_in_bf16_stay_near_the_reference() {
    // Operands of size 1 to 3 are rounded by 2^-9 of their size, scores of size 3 sqrt(D) among
    // them, and so are the probabilities: errors of some hundredths. This finds gross mistakes.
    let loose = |_: usize, want: &[f32]| want.iter().fold(1f32, |m, x| m.max(x.abs())) / 30.0;
    let attention = ["attention", "attention_backward", "attention_cached"];
    let ops = [&attention[..], &["head_loss", "head_loss_weighted"]].concat();
    let backends = both_in_bf16();
    for case in cases::all().into_iter().filter(|case| ops.contains(&case.op)) {
        let want = case.results(&Reference);
        for be in &backends {
            assert_conforms(&case, &be.name(), &case.results(&**be), &want, loose);
        }
    }
}

#[test]
fn cached_attention_has_the_bits_of_the_forward() {
    for s in common::heads::attention_shapes() {
        let Attention { b, t, h, hkv, d, window, scale } = s;
        let (row, from) = (t * h * d, (t - 1) * h * d);
        let (q, k) = (random(b * row, 1), random(b * t * hkv * d, 2));
        let last: Vec<f32> = q.chunks(row).flat_map(|q| &q[from..]).copied().collect();
        // Each row's positions, filled up to whole pages.
        let pages = t.div_ceil(PAGE);
        let mut cache = vec![f32::NAN; b * pages * PAGE * hkv * d];
        for (i, k) in k.chunks(d).enumerate() {
            let (r, p, head) = (i / hkv / t, i / hkv % t, i % hkv);
            let at = ((r * pages + p / PAGE) * hkv + head) * PAGE + p % PAGE;
            cache[at * d..][..d].copy_from_slice(k);
        }
        let place = |r: usize| {
            let page = move |p: usize| (r * pages + p) as i32;
            std::iter::once((t - 1) as i32).chain((0..pages).map(page))
        };
        let places: Vec<i32> = (0..b).flat_map(place).collect();
        let places = Tensor::from_i32(&places).expect("a small tensor");
        let [q, k, last, cache] =
            [q, k, last, cache].map(|x| Tensor::from_f32(&x).expect("a small tensor"));
        let c = CachedAttention { rows: b, t: 1, pages, h, hkv, d, window, scale };
        let cpu = Cpu::open(2, Precision::F32);
        for be in [&Reference as &dyn Backend, &cpu] {
            let zeros = |len| be.alloc(len, DType::F32).expect("a small tensor");
            let (out, lse, got) = (zeros(q.len()), zeros(b * t * h), zeros(last.len()));
            be.attention(&out, &lse, &q, &k, &k, &s).expect("operands that fit");
            be.attention_cached(&got, &last, &cache, &cache, &places, &c)
                .expect("operands that fit");
            let (out, got) = (out.to_vec_f32().expect("f32"), got.to_vec_f32().expect("f32"));
            let want: Vec<f32> = out.chunks(row).flat_map(|o| &o[from..]).copied().collect();
            assert!(same_bits(&got, &want), "{}: {s:?}", be.name());
        }
    }
}

#[test]
fn a_fresh_tensor_is_zero_and_time_is_noted() {
    let cpu = Cpu::open(2, Precision::Auto);
    for be in [&Reference as &dyn Backend, &cpu] {
        let x = be.alloc(65, DType::F32).expect("65 floats");
        assert_eq!((x.to_vec_f32().expect("f32"), x.dtype()), (vec![0.0; 65], DType::F32));
        let ids = be.alloc(3, DType::I32).expect("3 ids");
        assert_eq!((ids.to_vec_i32().expect("i32"), ids.len()), (vec![0; 3], 3));
    }
    let eager = Eager::new(Cpu::open(2, Precision::Auto));
    for be in [&cpu as &dyn Backend, &eager] {
        let x = be.alloc(65, DType::F32).expect("65 floats");
        be.profile_start();
        be.fill(&x, 1.0).expect("f32");
        be.softcap(&x, 15.0).expect("f32");
        let mut noted: Vec<_> = be.profile_stop().into_iter().map(|(op, _)| op).collect();
        noted.sort_unstable();
        assert_eq!(noted, ["fill", "softcap"], "{}", be.name());
    }
}

/// The cases small enough to be broken operand by operand.
fn small() -> Vec<Case> {
    let size = |case: &Case| case.tensors().iter().map(Tensor::len).sum::<usize>();
    cases::all().into_iter().filter(|case| size(case) < 2_000).collect()
}

/// Every kind of backend: the plain one, the fast one, the eager one.
fn kinds() -> [Box<dyn Backend>; 3] {
    let cpu = || Cpu::open(2, Precision::F32);
    [Box::new(Reference), Box::new(cpu()), Box::new(Eager::new(cpu()))]
}

/// Runs the case with operand `i` replaced; the other operands must be as they were.
fn run_with(case: &Case, be: &dyn Backend, i: usize, operand: Tensor) -> Result<()> {
    let bits = |t: &Tensor| match t.dtype() {
        DType::BF16 => t.to_vec_bf16().expect("bf16").into_iter().map(i32::from).collect(),
        _ => t.cast(DType::I32).to_vec_i32().expect("i32"),
    };
    let mut operands = case.tensors();
    operands[i] = operand;
    let before: Vec<_> = operands.iter().map(bits).collect();
    let result = case.run(be, &operands);
    if result.is_err() {
        let after: Vec<_> = operands.iter().map(bits).collect();
        assert!(before == after, "{case} was refused and yet wrote");
    }
    result
}

#[test]
fn a_short_operand_is_refused() {
    for be in kinds() {
        for case in small() {
            for (i, operand) in case.operands.iter().enumerate() {
                let whole = operand.values.tensor();
                let result = run_with(&case, &*be, i, whole.slice(0..whole.len() - 1));
                let refused = matches!(result, Err(Error::Shape { .. } | Error::Invalid { .. }));
                let what = format!("{}: {} of {case}: {result:?}", be.name(), operand.name);
                assert!(refused || !operand.role.has_length(), "{what}");
            }
        }
    }
}

#[test]
fn a_wrong_type_is_refused() {
    for be in kinds() {
        for case in small() {
            for (i, operand) in case.operands.iter().enumerate() {
                let right = operand.values.tensor();
                let wrong = match right.dtype() {
                    DType::F32 => right.cast(DType::I32),
                    DType::BF16 => be.alloc(right.len(), DType::I32).expect("a small tensor"),
                    DType::I32 => right.cast(DType::F32),
                };
                let result = run_with(&case, &*be, i, wrong);
                let refused = matches!(result, Err(Error::DType { .. }));
                assert!(refused, "{}: {} of {case}: {result:?}", be.name(), operand.name);
            }
        }
    }
}

#[test]
fn an_output_that_shares_memory_is_refused() {
    for be in kinds() {
        for case in small() {
            for (i, written) in case.operands.iter().enumerate() {
                for (j, other) in case.operands.iter().enumerate() {
                    if i == j || !written.role.is_written() {
                        continue;
                    }
                    let mut operands = case.tensors();
                    let [a, b] = [i, j].map(|i| operands[i].clone());
                    let memory = Tensor::zeros(a.len().max(b.len()), DType::F32).expect("memory");
                    operands[i] = memory.slice(0..a.len());
                    operands[j] = match b.dtype() {
                        // Overlap is seen before the type is.
                        DType::BF16 => memory.slice(0..b.len()),
                        dtype => memory.slice(0..b.len()).cast(dtype),
                    };
                    let result = case.run(&*be, &operands);
                    let refused = matches!(result, Err(Error::Overlap { .. }));
                    let names = (written.name, other.name);
                    assert!(refused, "{}: {names:?} of {case}: {result:?}", be.name());
                }
            }
        }
    }
}

#[test]
fn ids_and_targets_outside_the_vocabulary_are_refused() {
    let mut broken = 0;
    for be in kinds() {
        for case in small() {
            let is_ids = |o: &Operand| o.role == Role::Read && matches!(o.values, Values::I32(_));
            let Some(i) = case.operands.iter().position(is_ids) else {
                continue;
            };
            let Values::I32(ids) = &case.operands[i].values else { unreachable!() };
            // -1 is IGNORE for a target; 70 is in the padding of the widest small head, or behind.
            for bad in [-2, i32::MIN, 70, i32::MAX] {
                let mut ids = ids.clone();
                *ids.last_mut().expect("one id at least") = bad;
                let ids = Tensor::from_i32(&ids).expect("a small tensor");
                let result = run_with(&case, &*be, i, ids);
                let refused = matches!(result, Err(Error::Invalid { .. }));
                assert!(refused, "{}: {bad} in {case}: {result:?}", be.name());
                broken += 1;
            }
        }
    }
    assert!(broken > 0);
}

#[test]
fn a_target_in_the_padding_is_refused() {
    let s = HeadLoss { n: 1, c: 2, v: 3, softcap: 15.0, grad_scale: 1.0 };
    let head = |target| {
        case("head_loss", target)
            .overwrite("losses", 1, 1)
            .scratch(s.scratch_len())
            .read("x", random(2, 1))
            .read("w", random(5 * 2, 2))
            .ids("targets", vec![target])
            .run(move |be, [l, scratch, x, w, t]| be.head_loss(l, None, scratch, x, w, t, &s))
    };
    for be in kinds() {
        let run = |target: i32| head(target).run(&*be, &head(target).tensors());
        assert!(matches!(run(3), Err(Error::Invalid { .. })), "{}", be.name());
        assert!(run(2).is_ok() && run(ops::IGNORE).is_ok(), "{}", be.name());
        let tensor = |x: &[f32]| Tensor::from_f32(x).expect("small");
        let (losses, logits) = (tensor(&[0.0]), tensor(&[1.0, 2.0, 3.0]));
        let run = |t: i32| {
            let targets = Tensor::from_i32(&[t]).expect("small");
            be.cross_entropy(&losses, &logits, &targets, 3, 15.0)
        };
        assert!(matches!(run(3), Err(Error::Invalid { .. })), "{}", be.name());
        assert!(run(2).is_ok() && run(ops::IGNORE).is_ok(), "{}", be.name());
    }
}

/// Cases whose lengths agree and whose shapes no kernel can take.
fn impossible() -> Vec<Case> {
    let x = |len| random(len, 1);
    let attend = Attention { b: 1, t: 2, h: 3, hkv: 2, d: 2, window: 5, scale: 0.7 };
    let attention = |s: Attention| {
        let (q, kv) = (s.t * s.h * s.d, s.t * s.hkv * s.d);
        let out = case("attention", s).overwrite("out", q, 1).overwrite("lse", s.t * s.h, 1);
        out.read("q", x(q))
            .read("k", x(kv))
            .read("v", x(kv))
            .run(move |be, [out, lse, q, k, v]| be.attention(out, lse, q, k, v, &s))
    };
    let cached = |h, hkv, place: [i32; 2]| {
        let (rows, t, pages, d) = (1, 1, 1, 2);
        let s = CachedAttention { rows, t, pages, h, hkv, d, window: 5, scale: 0.7 };
        let cache = || x(PAGE * hkv * d);
        case("attention_cached", s)
            .overwrite("out", h * d, 1)
            .read("q", x(h * d))
            .read("k", cache())
            .read("v", cache())
            .ids("places", place.to_vec())
            .run(move |be, [out, q, k, v, places]| be.attention_cached(out, q, k, v, places, &s))
    };
    let rope = |rows: usize, h, d, start| {
        let s = RopeNorm { t: 2, h, d, start, scale: 1.0, eps: 1e-6 };
        let out = case("rope_norm", s).change("x", x(rows * d), 1).overwrite("rstd", rows, 1);
        out.read("cos", x(2 * (d / 2)))
            .read("sin", x(2 * (d / 2)))
            .run(move |be, [x, r, c, s_]| be.rope_norm(x, r, c, s_, &s))
    };
    let product = |m, n, k| {
        let s = MatMul { m, n, k, layout: Layout::Nt, beta: 0.0 };
        let c = case("matmul", s).overwrite("c", m * n, 1);
        c.read("a", x(m * k)).read("b", x(n * k)).run(move |be, [c, a, b]| be.matmul(c, a, b, &s))
    };
    let smear = Smear { b: 1, t: 1, c: 2, channels: 3 };
    let gate = ValueGate { c: 2, hkv: 1, d: 2, channels: 3, scale: 3.0 };
    let muon = Muon { m: 0, n: 3, lr: 0.1, momentum: 0.9, beta2: 0.9, wd: 0.0 };
    vec![
        attention(attend),
        attention(Attention { hkv: 0, ..attend }),
        cached(3, 2, [0, 0]),
        // Past the place's pages, before its first position, a page that is not there.
        cached(2, 1, [PAGE as i32, 0]),
        cached(2, 1, [-1, 0]),
        cached(2, 1, [0, 1]),
        cached(2, 1, [0, -1]),
        // A cosine table that ends too early, an odd head, a row of heads cut short.
        rope(2, 1, 2, 1),
        rope(2, 1, 3, 0),
        rope(3, 2, 2, 0),
        rope(2, 0, 2, 0),
        product(0, 2, 2),
        product(2, 2, 0),
        case("norm", 0)
            .overwrite("out", 0, 1)
            .overwrite("rstd", 2, 1)
            .read("x", vec![])
            .run(|be, [out, rstd, x]| be.norm(out, rstd, x, 0, 1e-6)),
        case("embedding", 0)
            .overwrite("out", 0, 1)
            .read("table", x(2))
            .ids("ids", vec![1])
            .run(|be, [out, table, ids]| be.embedding(out, table, ids, 0)),
        case("smear", smear)
            .overwrite("out", 2, 1)
            .overwrite("gate", 1, 1)
            .read("x", x(2))
            .read("w", x(3))
            .read("lambda", x(1))
            .run(move |be, [out, gate, x, w, l]| be.smear(out, gate, x, w, l, &smear)),
        case("value_gate", gate)
            .change("v", x(2), 1)
            .overwrite("gate", 1, 1)
            .read("table", x(2))
            .ids("ids", vec![0])
            .read("y", x(2))
            .read("w", x(3))
            .run(move |be, [v, g, table, ids, y, w]| be.value_gate(v, g, table, ids, y, w, &gate)),
        case("muon", muon)
            .change("p", vec![], 1)
            .change("buf", vec![], 1)
            .change("second", vec![0.0; muon.second_len()], 1)
            .scratch(muon.scratch_len())
            .read("g", vec![])
            .run(move |be, [p, buf, second, s, g]| be.muon(p, buf, second, s, g, &muon)),
    ]
}

#[test]
fn a_shape_that_no_kernel_can_take_is_an_error_not_a_panic() {
    for be in kinds() {
        for case in impossible() {
            let result = case.run(&*be, &case.tensors());
            let refused = matches!(result, Err(Error::Shape { .. } | Error::Invalid { .. }));
            assert!(refused, "{}: {case}: {result:?}", be.name());
        }
    }
}
