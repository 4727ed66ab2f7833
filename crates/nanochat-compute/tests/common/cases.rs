//! Cases of the operations on streams and rows: sums, mixes, relu2, embedding, norm, rope, gates.

use nanochat_compute::ops::{self, NORM_EPS, RopeNorm, Smear, ValueGate, rope_tables};

use super::{Case, case, fused, heads, random, some_ids, steps};

/// Every operation of the trait at several shapes.
pub fn all() -> Vec<Case> {
    let mut all = Vec::new();
    // 50,001 floats are four chunks of the CPU backend, the last one odd.
    for len in [1, 3, 65, 50_001] {
        sums(&mut all, len);
        mixes(&mut all, len);
        relu2(&mut all, len);
    }
    for shape in [(1, 1, 1), (7, 5, 3), (64, 30, 2), (65, 9, 64), (300, 100, 200)] {
        embedding(&mut all, shape);
    }
    for shape in [(1, 1), (3, 65), (65, 3), (64, 64), (301, 129)] {
        norm(&mut all, shape);
    }
    for shape in [(1, 1, 1, 2, 0), (2, 3, 3, 6, 5), (1, 65, 2, 64, 7), (2, 65, 5, 66, 1)] {
        rope(&mut all, shape);
    }
    for shape in [(1, 1, 1, 2), (3, 1, 2, 64), (2, 3, 3, 6), (5, 2, 5, 66)] {
        rope_placed(&mut all, shape);
    }
    for (n, v) in [(1, 1), (3, 5), (65, 70), (4, 3000)] {
        all.push(
            case("argmax", (n, v))
                .change_ids("out", vec![-7; n])
                .read("x", random(n * v, 70))
                .run(move |be, [out, x]| be.argmax(out, x, v)),
        );
    }
    for shape in [(1, 1, 1, 1), (2, 3, 3, 2), (1, 65, 64, 24), (3, 65, 257, 24)] {
        smear(&mut all, shape);
    }
    let gates = [(1, 1, 1, 1, 1, 1), (7, 5, 3, 2, 4, 2), (65, 9, 64, 3, 33, 12)];
    for shape in gates.into_iter().chain([(301, 33, 130, 2, 64, 12)]) {
        value_gate(&mut all, shape);
    }
    heads::all(&mut all);
    fused::all(&mut all);
    steps::all(&mut all);
    all
}

fn sums(all: &mut Vec<Case>, len: usize) {
    let x = || random(len, 1);
    all.push(
        case("fill", len).any_length("x", vec![f32::NAN; len], 0).run(|be, [x]| be.fill(x, 0.3)),
    );
    all.push(
        case("copy", len)
            .overwrite("out", len, 0)
            .read("x", x())
            .run(|be, [out, x]| be.copy(out, x)),
    );
    all.push(
        case("add", len)
            .change("out", random(len, 2), 2)
            .read("x", x())
            .run(|be, [out, x]| be.add(out, x)),
    );
    let large = x().iter().map(|x| 40.0 * x).collect();
    all.push(case("softcap", len).any_length("x", large, 1).run(|be, [x]| be.softcap(x, 15.0)));
}

fn mixes(all: &mut Vec<Case>, len: usize) {
    let (x, y, d) = (|| random(len, 3), || random(len, 4), || random(len, 5));
    all.push(
        case("mix", len)
            .overwrite("out", len, 2)
            .read("x", x())
            .read("y", y())
            .read("a", vec![1.1])
            .read("b", vec![-0.3])
            .run(|be, [out, x, y, a, b]| be.mix(out, x, y, a, b)),
    );
    all.push(
        case("mix_backward", len)
            .change("d", d(), 1)
            .change("dy", random(len, 6), 2)
            .change("da", vec![0.7], len)
            .change("db", vec![-0.2], len)
            .read("x", x())
            .read("y", y())
            .read("a", vec![1.1])
            .read("b", vec![-0.3])
            .run(|be, [d, dy, da, db, x, y, a, b]| be.mix_backward(d, dy, da, db, x, y, a, b)),
    );
    all.push(
        case("backout", len)
            .overwrite("out", len, 2)
            .read("x", x())
            .read("y", y())
            .read("lambda", vec![0.2])
            .run(|be, [out, x, y, lambda]| be.backout(out, x, y, lambda)),
    );
    all.push(
        case("backout_backward", len)
            .overwrite("dy", len, 1)
            .change("dlambda", vec![0.4], len)
            .read("dout", d())
            .read("y", y())
            .read("lambda", vec![0.2])
            .run(|be, [dy, dlambda, dout, y, l]| be.backout_backward(dy, dlambda, dout, y, l)),
    );
}

fn relu2(all: &mut Vec<Case>, len: usize) {
    let r = || random(len, 8).iter().map(|x| x.max(0.0)).collect::<Vec<_>>();
    all.push(
        case("relu2", len)
            .overwrite("out", len, 1)
            .change("x", random(len, 8), 0)
            .run(|be, [out, x]| be.relu2(out, x)),
    );
    all.push(
        case("relu2_backward", len)
            .change("d", random(len, 9), 1)
            .read("r", r())
            .run(|be, [d, r]| be.relu2_backward(d, r)),
    );
    all.push(
        case("relu2_in_place", len)
            .any_length("x", random(len, 8), 1)
            .run(|be, [x]| be.relu2_in_place(x)),
    );
    let squares = r().iter().map(|r| r * r).collect();
    all.push(
        case("relu2_in_place_backward", len)
            .change("d", random(len, 9), 1)
            .read("squares", squares)
            .run(|be, [d, a]| be.relu2_in_place_backward(d, a)),
    );
    all.push(
        case("square", len)
            .overwrite("out", len, 1)
            .read("r", r())
            .run(|be, [out, r]| be.square(out, r)),
    );
}

/// (rows, T, H, D): rows at positions of their own.
fn rope_placed(all: &mut Vec<Case>, shape: (usize, usize, usize, usize)) {
    let (rows, t, h, d) = shape;
    let s = RopeNorm { t, h, d, start: 1, scale: 1.2, eps: NORM_EPS };
    let n = rows * t * h;
    let (cos, sin) = rope_tables(4 * rows + t + 1, d, 10_000.0);
    let places = (0..rows as i32).map(|r| 4 * r).collect();
    all.push(
        case("rope_norm_placed", (shape, s))
            .change("x", random(n * d, 71), d)
            .overwrite("rstd", n, d)
            .read("cos", cos)
            .read("sin", sin)
            .ids("places", places)
            .run(move |be, [x, rstd, cos, sin, places]| {
                be.rope_norm_placed(x, rstd, cos, sin, places, &s)
            }),
    );
}

/// (N, V, C)
fn embedding(all: &mut Vec<Case>, shape: (usize, usize, usize)) {
    let (n, v, c) = shape;
    all.push(
        case("embedding", shape)
            .overwrite("out", n * c, 0)
            .read("table", random(v * c, 10))
            .ids("ids", some_ids(n, v))
            .run(move |be, [out, table, ids]| be.embedding(out, table, ids, c)),
    );
    for bf16 in [false, true] {
        let case = case("place_rows", (shape, if bf16 { "bf16" } else { "f32" }));
        // A bf16 is the same number in every backend: nothing is summed.
        let case = match bf16 {
            true => case.change_bf16("table", &random(v * c, 5), 0),
            false => case.change("table", random(v * c, 5), 1),
        };
        all.push(
            case.read("x", random(n.min(v) * c, 6))
                // Each row has one place: the last ones, backwards.
                .ids("ids", (0..n.min(v)).map(|i| (v - 1 - i) as i32).collect())
                .run(move |be, [table, x, ids]| be.place_rows(table, x, ids, c)),
        );
    }
    all.push(
        case("embedding_backward", shape)
            .change("dtable", random(v * c, 11), n)
            .read("dout", random(n * c, 12))
            .ids("ids", some_ids(n, v))
            .run(move |be, [dtable, dout, ids]| be.embedding_backward(dtable, dout, ids, c)),
    );
}

/// (N, C)
fn norm(all: &mut Vec<Case>, shape: (usize, usize)) {
    let (n, c) = shape;
    let x = random(n * c, 13);
    let (mut out, mut rstd) = (vec![0.0; n * c], vec![0.0; n]);
    ops::norm::norm(&mut out, &mut rstd, &x, c, NORM_EPS);
    all.push(
        case("norm", shape)
            .overwrite("out", n * c, c)
            .overwrite("rstd", n, c)
            .read("x", x)
            .run(move |be, [out, rstd, x]| be.norm(out, rstd, x, c, NORM_EPS)),
    );
    all.push(
        case("norm", ("a zero row", shape))
            .overwrite("out", c, c)
            .overwrite("rstd", 1, c)
            .read("x", vec![0.0; c])
            .run(move |be, [out, rstd, x]| be.norm(out, rstd, x, c, NORM_EPS)),
    );
    for beta in [0.0, 1.0] {
        let dx = case("norm_backward", (shape, beta));
        let dx = match beta {
            0.0 => dx.overwrite("dx", n * c, 2 * c),
            _ => dx.change("dx", random(n * c, 14), 2 * c),
        };
        let reads = dx.read("dout", random(n * c, 15)).read("out", out.clone());
        all.push(
            reads.read("rstd", rstd.clone()).run(move |be, [dx, dout, out, rstd]| {
                be.norm_backward(dx, dout, out, rstd, c, beta)
            }),
        );
    }
}

/// (B, T, H, D, start)
fn rope(all: &mut Vec<Case>, shape: (usize, usize, usize, usize, usize)) {
    let (b, t, h, d, start) = shape;
    let heads = b * t * h;
    let s = RopeNorm { t, h, d, start, scale: 1.2, eps: NORM_EPS };
    let (cos, sin) = rope_tables(start + t, d, 100_000.0);
    let x = random(heads * d, 16);
    let (mut out, mut rstd) = (x.clone(), vec![0.0; heads]);
    ops::rope::rope_norm(&mut out, &mut rstd, &cos, &sin, &s);
    all.push(
        case("rope_norm", s)
            .change("x", x, d)
            .overwrite("rstd", heads, d)
            .read("cos", cos.clone())
            .read("sin", sin.clone())
            .run(move |be, [x, rstd, cos, sin]| be.rope_norm(x, rstd, cos, sin, &s)),
    );
    all.push(
        case("rope_norm_backward", s)
            .change("dx", random(heads * d, 17), 4 * d)
            .read("out", out)
            .read("rstd", rstd)
            .read("cos", cos)
            .read("sin", sin)
            .run(move |be, [dx, out, rstd, cos, sin]| {
                be.rope_norm_backward(dx, out, rstd, cos, sin, &s)
            }),
    );
}

/// (B, T, C, channels)
fn smear(all: &mut Vec<Case>, shape: (usize, usize, usize, usize)) {
    let (b, t, c, channels) = shape;
    let (n, s) = (b * t, Smear { b, t, c, channels });
    let (x, w, lambda) = (random(n * c, 18), random(channels, 19), vec![0.8]);
    let (mut out, mut gate) = (vec![0.0; n * c], vec![0.0; n]);
    ops::smear::smear(&mut out, &mut gate, &x, &w, &lambda, &s);
    all.push(
        case("smear", s)
            .overwrite("out", n * c, channels)
            .overwrite("gate", n, channels)
            .read("x", x.clone())
            .read("w", w.clone())
            .read("lambda", lambda.clone())
            .run(move |be, [out, gate, x, w, l]| be.smear(out, gate, x, w, l, &s)),
    );
    all.push(
        case("smear_backward", s)
            .overwrite("dx", n * c, c)
            .change("dw", random(channels, 20), n + c)
            .change("dlambda", vec![0.1], n + c)
            .read("dout", random(n * c, 21))
            .read("x", x)
            .read("gate", gate)
            .read("w", w)
            .read("lambda", lambda)
            .run(move |be, [dx, dw, dlambda, dout, x, gate, w, l]| {
                be.smear_backward(dx, dw, dlambda, dout, x, gate, w, l, &s)
            }),
    );
}

/// (N, V, C, Hkv, D, channels)
fn value_gate(all: &mut Vec<Case>, shape: (usize, usize, usize, usize, usize, usize)) {
    let (n, v, c, hkv, d, channels) = shape;
    let s = ValueGate { c, hkv, d, channels, scale: 3.0 };
    let (table, y, w) = (random(v * hkv * d, 22), random(n * c, 23), random(hkv * channels, 24));
    let (mut values, mut gate) = (random(n * hkv * d, 25), vec![0.0; n * hkv]);
    let ids = some_ids(n, v);
    let before = values.clone();
    ops::value_gate::value_gate(&mut values, &mut gate, &table, &ids, &y, &w, &s);
    all.push(
        case("value_gate", (shape, s))
            .change("v", before, channels)
            .overwrite("gate", n * hkv, channels)
            .read("table", table.clone())
            .ids("ids", ids.clone())
            .read("y", y.clone())
            .read("w", w.clone())
            .run(move |be, [v, gate, table, ids, y, w]| {
                be.value_gate(v, gate, table, ids, y, w, &s)
            }),
    );
    all.push(
        case("value_gate_backward", (shape, s))
            .change("dtable", random(v * hkv * d, 26), 3 * n)
            .change("dw", random(hkv * channels, 27), n + d)
            .change("dy", random(n * c, 28), d + hkv)
            .read("dv", random(n * hkv * d, 29))
            .read("table", table)
            .ids("ids", ids)
            .read("y", y)
            .read("w", w)
            .read("gate", gate)
            .run(move |be, [dtable, dw, dy, dv, table, ids, y, w, gate]| {
                be.value_gate_backward(dtable, dw, dy, dv, table, ids, y, w, gate, &s)
            }),
    );
}
