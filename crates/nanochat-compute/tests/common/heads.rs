//! Cases of matrix products, attention and the head.

use nanochat_compute::ops::{
    self, Attention, CachedAttention, HeadLoss, IGNORE, Layout, MatMul, PAGE,
};

use super::{Case, case, random};

pub fn all(all: &mut Vec<Case>) {
    // (m, n, k): a point, a vector, odd, even, sums and outputs longer than a block of the kernels.
    let mut products = vec![(1, 1, 1), (1, 65, 3), (3, 1, 65), (65, 65, 65), (64, 96, 128)];
    products.extend([(2, 130, 769), (130, 33, 770), (5, 7, 2000)]);
    for shape in products {
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            for beta in [0.0, 1.0, -0.5] {
                all.push(matmul(shape, layout, beta));
            }
        }
    }
    for s in attention_shapes() {
        attention(all, s);
    }
    for s in cached_shapes() {
        all.push(cached(s, false));
        all.push(cached(s, true));
    }
    // (N, C, V, padded V); 300 rows are more than are held at once.
    for shape in [
        (1, 1, 1, 1),
        (3, 5, 3, 3),
        (65, 64, 65, 70),
        (300, 24, 90, 128),
        (520, 33, 131, 131),
        (20, 8, 136, 136),
    ] {
        head_loss(all, shape);
    }
}

fn matmul((m, n, k): (usize, usize, usize), layout: Layout, beta: f32) -> Case {
    let s = MatMul { m, n, k, layout, beta };
    let c = match beta {
        0.0 => case("matmul", s).overwrite("c", m * n, k),
        _ => case("matmul", s).change("c", random(m * n, 30), k),
    };
    c.read("a", random(m * k, 31))
        .read("b", random(n * k, 32))
        .run(move |be, [c, a, b]| be.matmul(c, a, b, &s))
}

/// Windows of nothing, smaller than T, as large, larger; one to six heads on one key/value head.
pub fn attention_shapes() -> Vec<Attention> {
    let shapes = [
        (1, 1, 1, 1, 1, 0),
        (2, 3, 2, 1, 5, 10),
        (1, 65, 3, 3, 16, 65),
        (2, 65, 4, 2, 24, 17),
        (1, 130, 6, 2, 64, 128),
        (1, 129, 2, 2, 32, usize::MAX),
        (3, 70, 6, 1, 8, 0),
        (2, 64, 2, 1, 64, 1),
        (1, 150, 2, 1, 128, 70),
    ];
    let shape = |(b, t, h, hkv, d, window): (usize, usize, usize, usize, usize, usize)| Attention {
        b,
        t,
        h,
        hkv,
        d,
        window,
        scale: 1.0 / (d as f32).sqrt(),
    };
    shapes.map(shape).to_vec()
}

fn attention(all: &mut Vec<Case>, s: Attention) {
    let (queries, keys, rows) = (s.b * s.t * s.h * s.d, s.b * s.t * s.hkv * s.d, s.b * s.t * s.h);
    // Three times larger than one: scores spread over several e-folds.
    let larger = |x: Vec<f32>| x.iter().map(|x| 3.0 * x).collect::<Vec<_>>();
    let (q, k, v) = (larger(random(queries, 33)), random(keys, 34), random(keys, 35));
    let (mut out, mut lse) = (vec![0.0; queries], vec![0.0; rows]);
    ops::attention::attention(&mut out, &mut lse, &q, &k, &v, &s);
    all.push(
        case("attention", s)
            .overwrite("out", queries, s.t + 3 * s.d)
            .overwrite("lse", rows, s.t + 3 * s.d)
            .read("q", q.clone())
            .read("k", k.clone())
            .read("v", v.clone())
            .run(move |be, [out, lse, q, k, v]| be.attention(out, lse, q, k, v, &s)),
    );
    // A query group of a key/value head adds up too.
    let terms = s.t * s.h / s.hkv + 3 * s.d;
    all.push(
        case("attention_backward", s)
            .overwrite("dq", queries, terms)
            .overwrite("dk", keys, terms)
            .overwrite("dv", keys, terms)
            .read("dout", random(queries, 36))
            .read("out", out)
            .read("lse", lse)
            .read("q", q)
            .read("k", k)
            .read("v", v)
            .run(move |be, [dq, dk, dv, dout, out, lse, q, k, v]| {
                be.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, &s)
            }),
    );
}

/// Shapes, and the position of the first row's first query; each row after it is 3 further.
fn cached_shapes() -> Vec<(CachedAttention, usize)> {
    let shapes = [
        (1, 1, 0, (1, 1, 2), 0),
        (2, 1, 64, (4, 2, 16), 1000),
        (1, 5, 60, (3, 1, 24), 17),
        (3, 1, 129, (6, 3, 8), 33),
        (1, 65, 0, (2, 2, 32), 64),
        (2, 3, 127, (2, 1, 64), usize::MAX),
        (2, 1, 130, (4, 2, 64), 100),
        (1, 1, 70, (4, 1, 128), usize::MAX),
    ];
    let shape = |(rows, t, start, (h, hkv, d), window): (usize, usize, usize, _, _)| {
        let pages = (start + 3 * rows + t).div_ceil(PAGE);
        (CachedAttention { rows, t, pages, h, hkv, d, window, scale: 0.4 }, start)
    };
    shapes.map(shape).to_vec()
}

/// Pages are handed out from the last one on, so that none lies where its positions would; keys and
/// values in bf16 or f32.
pub fn cached((s, start): (CachedAttention, usize), bf16: bool) -> Case {
    let (queries, page) = (s.rows * s.t * s.h * s.d, PAGE * s.hkv * s.d);
    let all = s.rows * s.pages;
    let (mut places, mut ends) = (Vec::new(), Vec::new());
    for r in 0..s.rows {
        let start = start + 3 * r;
        places.push(start as i32);
        for p in 0..s.pages {
            let lies = all - 1 - (r * s.pages + p);
            // What no query sees need not be there.
            places.push(if s.seen(start).contains(&p) { lies as i32 } else { -1 });
            ends.push((lies, (start + s.t).saturating_sub(p * PAGE).min(PAGE)));
        }
    }
    let cache = |seed| {
        let mut cache = random(all * page, seed);
        for (lies, filled) in &ends {
            // What lies behind the last query is not filled and must not be read.
            for head in cache[lies * page..][..page].chunks_exact_mut(PAGE * s.d) {
                head[filled * s.d..].fill(f32::NAN);
            }
        }
        cache
    };
    let case = case("attention_cached", (s, if bf16 { "bf16" } else { "f32" }))
        .overwrite("out", queries, start + 3 * s.rows + s.t + 2 * s.d)
        .read("q", random(queries, 37));
    let case = match bf16 {
        true => case.read_bf16("k", &cache(38)).read_bf16("v", &cache(39)),
        false => case.read("k", cache(38)).read("v", cache(39)),
    };
    case.ids("places", places)
        .run(move |be, [out, q, k, v, places]| be.attention_cached(out, q, k, v, places, &s))
}

fn head_loss(all: &mut Vec<Case>, shape: (usize, usize, usize, usize)) {
    let (n, c, v, padded) = shape;
    let s = HeadLoss { n, c, v, softcap: 15.0, grad_scale: 0.5 };
    // Logits reach the bend of the softcap: x is up to 6.
    let x = || random(n * c, 40).iter().map(|x| 6.0 * x).collect::<Vec<_>>();
    let w = || random(padded * c, 41);
    let target = |i: usize| if i % 4 == 3 { IGNORE } else { ((i * i + 3 * i) % v) as i32 };
    let terms = 6 * c + v;
    let some: Vec<i32> = (0..n).map(target).collect();
    for (kind, targets) in [("some", some), ("none", vec![IGNORE; n])] {
        let z: Vec<f32> = random(n * v, 43).iter().map(|z| 40.0 * z).collect();
        all.push(
            case("cross_entropy", (kind, n, v))
                .overwrite("losses", n, v)
                .change("logits", z, 1)
                .ids("targets", targets.clone())
                .run(move |be, [losses, z, targets]| be.cross_entropy(losses, z, targets, v, 15.0)),
        );
        let of = |op| case(op, (kind, s)).overwrite("losses", n, terms);
        all.push(
            of("head_loss")
                .scratch(s.scratch_len())
                .read("x", x())
                .read_some("w", w())
                .ids("targets", targets.clone())
                .run(move |be, [losses, scratch, x, w, targets]| {
                    be.head_loss(losses, None, scratch, x, w, targets, &s)
                }),
        );
        let grads = |op| {
            of(op)
                .overwrite("dx", n * c, terms)
                .change("dw", random(padded * c, 42), terms + 6 * n)
                .scratch(s.scratch_len())
                .read("x", x())
                .read("w", w())
                .ids("targets", targets.clone())
        };
        all.push(grads("head_loss").run(move |be, [losses, dx, dw, scratch, x, w, targets]| {
            be.head_loss(losses, Some((dx, dw)), scratch, x, w, targets, &s)
        }));
        let case = grads("head_loss_weighted").read("weights", random(n, 44));
        all.push(case.run(move |be, [losses, dx, dw, scratch, x, w, targets, weights]| {
            let (grads, weights) = (Some((dx, dw)), Some(weights));
            be.head_loss_weighted(losses, grads, scratch, x, w, targets, weights, &s)
        }));
    }
}
