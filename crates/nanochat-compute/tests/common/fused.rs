//! Cases of the fused operations of a decode step.

use nanochat_compute::Tensor;
use nanochat_compute::ops::{
    After, CachedAttention, NORM_EPS, PAGE, StepAttention, StepEmbed, StepGate, StepLinear,
    StepMix, StepOut, ValueGate, Weight, rope_tables,
};

use super::{Case, case, random, some_ids};

pub fn all(all: &mut Vec<Case>) {
    for shape in [(1, 2, 3), (2, 40, 8), (8, 5, 300)] {
        embed(all, shape, false);
        embed(all, shape, true);
    }
    for (m, n, k) in [(1, 1, 1), (3, 5, 65), (8, 33, 24), (1, 7, 1100), (5, 3, 64)] {
        for after in [After::Relu2, After::Softcap(15.0), After::Nothing] {
            one(all, (m, n, k), after);
        }
        backout(all, (m, n, k));
    }
    // (m, V, C, H, Hkv, D, channels)
    let gates = [(1, 1, 1, 1, 1, 1, 1), (3, 9, 64, 4, 2, 6, 12), (8, 5, 30, 3, 3, 10, 30)];
    for shape in gates.into_iter().chain([(2, 33, 136, 2, 1, 64, 24)]) {
        heads(all, shape);
    }
    // rows, first position, (H, Hkv, D), window
    for shape in [
        (1, 0, (1, 1, 2), 0),
        (2, 64, (4, 2, 16), 1000),
        (3, 129, (6, 3, 8), 33),
        (2, 0, (2, 1, 64), usize::MAX),
        (2, 60, (4, 2, 64), 100),
        (3, 190, (5, 1, 64), 130),
        (1, 70, (2, 2, 128), usize::MAX),
        (2, 125, (6, 1, 128), 64),
    ] {
        attention(all, shape, false);
        attention(all, shape, true);
    }
}

/// (m, V, C)
fn embed(all: &mut Vec<Case>, shape: (usize, usize, usize), smears: bool) {
    let (m, v, c) = shape;
    let channels = c.min(24);
    let case = case("step_embed", (shape, smears))
        .overwrite("x0", m * c, c)
        .change("last", random(m * c, 80), c)
        .read("table", random(v * c, 81))
        .ids("ids", some_ids(m, v));
    let eps = NORM_EPS;
    all.push(match smears {
        true => case.read("w", random(channels, 82)).read("lambda", vec![0.7]).run(
            move |be, [x0, last, table, ids, w, lambda]| {
                let smear = Some((w, lambda, channels));
                be.step_embed(&StepEmbed { x0, last, table, ids, smear, c, eps })
            },
        ),
        false => case.run(move |be, [x0, last, table, ids]| {
            be.step_embed(&StepEmbed { x0, last, table, ids, smear: None, c, eps })
        }),
    });
}

/// One weight, and nothing mixed.
fn one(all: &mut Vec<Case>, shape: (usize, usize, usize), after: After) {
    let (m, n, k) = shape;
    // A square is as far off as its root, of size sqrt(k) for random signs, times twice the root.
    let terms = if after == After::Relu2 { 48 * k } else { 4 * k };
    all.push(
        case("step_linear", (shape, after))
            .overwrite("out", m * n, terms)
            .read("x", random(m * k, 83))
            .read("w", random(n * k, 84))
            .run(move |be, [out, x, w]| {
                let outs = [StepOut { out, w: Weight::Plain(w.clone()), n }];
                let (mix, gate, eps) = (None, None, NORM_EPS);
                be.step_linear(&StepLinear { outs: &outs, x, mix, gate, after, m, k, eps })
            }),
    );
}

fn backout(all: &mut Vec<Case>, shape: (usize, usize, usize)) {
    let (m, n, k) = shape;
    all.push(
        case("step_linear", (shape, "backout"))
            .overwrite("out", m * n, 2 * k)
            .overwrite("kept", m * k, 2)
            .read("x", random(m * k, 85))
            .read("y", random(m * k, 86))
            .read("w", random(n * k, 87))
            .read("lambda", vec![0.3])
            .run(move |be, [out, kept, x, y, w, lambda]| {
                let outs = [StepOut { out, w: Weight::Plain(w.clone()), n }];
                let mix = Some((StepMix::Backout { lambda }, y, kept));
                let (gate, after, eps) = (None, After::Softcap(15.0), NORM_EPS);
                be.step_linear(&StepLinear { outs: &outs, x, mix, gate, after, m, k, eps })
            }),
    );
}

/// Queries, keys and gated values of mixed rows: (m, V, C, H, Hkv, D, channels).
fn heads(all: &mut Vec<Case>, shape: (usize, usize, usize, usize, usize, usize, usize)) {
    let (m, v, k, h, hkv, d, channels) = shape;
    let (wide, narrow) = (h * d, hkv * d);
    let s = ValueGate { c: k, hkv, d, channels, scale: 3.0 };
    all.push(
        case("step_linear", (shape, "heads"))
            .overwrite("q", m * wide, 2 * k)
            .overwrite("k", m * narrow, 2 * k)
            .overwrite("v", m * narrow, 4 * k)
            .overwrite("kept", m * k, 2)
            .read("x", random(m * k, 88))
            .read("y", random(m * k, 89))
            .read("a", vec![1.1])
            .read("b", vec![-0.3])
            .read("wq", random(wide * k, 90))
            .read("wk", random(narrow * k, 91))
            .read("wv", random(narrow * k, 92))
            .read("table", random(v * narrow, 93))
            .ids("ids", some_ids(m, v))
            .read("w", random(hkv * channels, 94))
            .run(move |be, [q, key, value, kept, x, y, a, b, wq, wk, wv, table, ids, w]| {
                let out = |out, w: &Tensor, n| StepOut { out, w: Weight::Plain(w.clone()), n };
                let outs = [out(q, wq, wide), out(key, wk, narrow), out(value, wv, narrow)];
                let (mix, gate) =
                    (Some((StepMix::Mix { a, b }, y, kept)), StepGate { table, ids, w, s });
                let (gate, after, eps) = (Some(gate), After::Nothing, NORM_EPS);
                be.step_linear(&StepLinear { outs: &outs, x, mix, gate, after, m, k, eps })
            }),
    );
}

type AttentionShape = (usize, usize, (usize, usize, usize), usize);

/// Rows at positions of their own, pages handed out from the last one on.
fn attention(all: &mut Vec<Case>, shape: AttentionShape, bf16: bool) {
    let (rows, start, (h, hkv, d), window) = shape;
    let at = |row: usize| start + 5 * row;
    let pages = (at(rows) + 1).div_ceil(PAGE);
    let s = CachedAttention { rows, t: 1, pages, h, hkv, d, window, scale: 0.4 };
    let (cos, sin) = rope_tables(at(rows) + 1, d, 10_000.0);
    let (all_pages, page) = (rows * pages, PAGE * hkv * d);
    let (mut places, mut new) = (Vec::new(), Vec::new());
    for row in 0..rows {
        places.push(at(row) as i32);
        for p in 0..pages {
            let lies = all_pages - 1 - (row * pages + p);
            places.push(if s.seen(at(row)).contains(&p) { lies as i32 } else { -1 });
        }
        let lies = all_pages - 1 - (row * pages + at(row) / PAGE);
        new.extend((0..hkv).map(|head| ((lies * hkv + head) * PAGE + at(row) % PAGE) as i32));
    }
    let cache = |seed| random(all_pages * page, seed);
    let case = case("step_attention", (shape, if bf16 { "bf16" } else { "f32" }))
        .overwrite("out", rows * h * d, 2 * (at(rows) + 2 * d))
        .spent("q", random(rows * h * d, 95))
        .spent("k", random(rows * hkv * d, 96))
        .read("v", random(rows * hkv * d, 97))
        .scratch(rows * h);
    let terms = 2 * d;
    let case = match bf16 {
        true => case.change_bf16("keys", &cache(98), terms).change_bf16("values", &cache(99), 1),
        false => case.change("keys", cache(98), terms).change("values", cache(99), 1),
    };
    all.push(case.read("cos", cos).read("sin", sin).ids("places", places).ids("rows", new).run(
        move |be, [out, q, k, v, rstd, keys, values, cos, sin, places, rows]| {
            let (qk_scale, eps) = (1.2, NORM_EPS);
            be.step_attention(&StepAttention {
                out,
                q,
                k,
                v,
                rstd,
                keys,
                values,
                cos,
                sin,
                places,
                rows,
                s,
                qk_scale,
                eps,
            })
        },
    ));
}
