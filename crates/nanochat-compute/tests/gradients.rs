//! Every backward of the plain references against central differences of its forward.

mod common;

use common::{random, some_ids, worst};
use nanochat_compute::ops::{
    self, Attention, HeadLoss, IGNORE, Layout, MatMul, NORM_EPS, RopeNorm, Smear, ValueGate,
    rope_tables,
};

/// Step of the differences: a power of two, so that x + STEP of a coarse x is exact in f32.
const STEP: f32 = 1.0 / 32.0;

/// What gradients of parameters hold before: they are added to.
const BEFORE: f32 = 0.25;

/// Random numbers in [-1, 1] in multiples of 2^-10.
fn coarse(len: usize, seed: u64) -> Vec<f32> {
    random(len, seed).iter().map(|x| (x * 1024.0).round() / 1024.0).collect()
}

/// As [`coarse`], with every size between 0.5 and 1: far from the kinks of relu and of 1 / |x|.
fn away_from_zero(len: usize, seed: u64) -> Vec<f32> {
    coarse(len, seed).iter().map(|x| x / 2.0 + if *x < 0.0 { -0.5 } else { 0.5 }).collect()
}

/// A gradient that was added to [`BEFORE`].
fn added(len: usize, backward: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut d = vec![BEFORE; len];
    backward(&mut d);
    d.iter().map(|d| d - BEFORE).collect()
}

/// One gradient for each input, from the inputs and the weights.
type Backward<'a> = dyn Fn(&[Vec<f32>], &[f32]) -> Vec<Vec<f32>> + 'a;

/// A function, its inputs, and its gradient for `sum_i weights[i] out[i]`.
struct Check<'a> {
    name: String,
    inputs: Vec<Vec<f32>>,
    weights: Vec<f32>,
    forward: &'a dyn Fn(&[Vec<f32>]) -> Vec<f32>,
    backward: &'a Backward<'a>,
}

impl Check<'_> {
    fn loss(&self, inputs: &[Vec<f32>]) -> f64 {
        let out = (self.forward)(inputs);
        assert_eq!(out.len(), self.weights.len(), "{}", self.name);
        out.iter().zip(&self.weights).map(|(o, w)| f64::from(*o) * f64::from(*w)).sum()
    }

    /// The slope along one input, from four points: the error is of the order STEP^4.
    fn slope(&self, input: usize, i: usize) -> f64 {
        let at = |steps: f32| {
            let mut inputs = self.inputs.clone();
            inputs[input][i] += steps * STEP;
            self.loss(&inputs)
        };
        (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(STEP))
    }

    /// Compares every gradient with the slopes, and proves that a gradient 1 % too large, or with its
    /// largest element missing, would not pass.
    ///
    /// Tolerance: 1e-4 of the largest slope, and 4e-6. The outputs are f32 of size one, rounded by
    /// 2^-25, and the roundings of some tens of them walk to 1e-7, divided by STEP; STEP^4 is 1e-6,
    /// times fifth derivatives over 30.
    fn holds(&self) {
        let gradients = (self.backward)(&self.inputs, &self.weights);
        assert_eq!(gradients.len(), self.inputs.len(), "{}", self.name);
        let mut caught = 0;
        for (k, gradient) in gradients.iter().enumerate() {
            assert_eq!(gradient.len(), self.inputs[k].len(), "{} input {k}", self.name);
            let slopes: Vec<f32> = (0..gradient.len()).map(|i| self.slope(k, i) as f32).collect();
            let size = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let limit = 1e-4 * size(&slopes) + 4e-6;
            let apart = worst(gradient, &slopes);
            assert!(
                apart <= limit,
                "{} input {k}: {apart:e} off, more than {limit:e}: {gradient:?}, not {slopes:?}",
                self.name
            );
            if size(&slopes) < 1e-2 {
                continue;
            }
            let scaled: Vec<f32> = gradient.iter().map(|d| 1.01 * d).collect();
            assert!(worst(&scaled, &slopes) > limit, "{} input {k}: blind to 1 %", self.name);
            let largest = size(gradient);
            let holed: Vec<f32> =
                gradient.iter().map(|d| if d.abs() == largest { 0.0 } else { *d }).collect();
            assert!(worst(&holed, &slopes) > limit, "{} input {k}: blind to a hole", self.name);
            caught += 1;
        }
        println!(
            "{}: {caught} of {} gradients are large enough to tell",
            self.name,
            gradients.len()
        );
    }
}

#[test]
fn norm() {
    for (n, c) in [(1, 1), (2, 3), (3, 5), (1, 65)] {
        Check {
            name: format!("norm {n} x {c}"),
            inputs: vec![away_from_zero(n * c, 1)],
            weights: random(n * c, 2),
            forward: &|x| {
                let (mut out, mut rstd) = (vec![0.0; n * c], vec![0.0; n]);
                ops::norm::norm(&mut out, &mut rstd, &x[0], c, NORM_EPS);
                out
            },
            backward: &|x, dout| {
                let (mut out, mut rstd) = (vec![0.0; n * c], vec![0.0; n]);
                ops::norm::norm(&mut out, &mut rstd, &x[0], c, NORM_EPS);
                let mut over = vec![f32::NAN; n * c];
                ops::norm::norm_backward(&mut over, dout, &out, &rstd, c, 0.0);
                let plus = added(n * c, |dx| {
                    ops::norm::norm_backward(dx, dout, &out, &rstd, c, 1.0);
                });
                assert!(worst(&over, &plus) < 1e-6, "beta adds the same gradient");
                vec![over]
            },
        }
        .holds();
    }
}

#[test]
fn a_linear_layer() {
    for (n, n_in, n_out) in [(1, 1, 1), (3, 5, 2), (2, 65, 3)] {
        Check {
            name: format!("linear {n} rows, {n_in} to {n_out}"),
            inputs: vec![coarse(n * n_in, 1), coarse(n_out * n_in, 2)],
            weights: random(n * n_out, 3),
            forward: &|x| {
                let mut y = vec![f32::NAN; n * n_out];
                ops::matmul::matmul(&mut y, &x[0], &x[1], &MatMul::forward(n, n_in, n_out));
                y
            },
            backward: &|x, dy| {
                let mut dx = vec![f32::NAN; n * n_in];
                ops::matmul::matmul(&mut dx, dy, &x[1], &MatMul::input_grad(n, n_in, n_out));
                let dw = added(n_out * n_in, |dw| {
                    ops::matmul::matmul(dw, dy, &x[0], &MatMul::weight_grad(n, n_in, n_out));
                });
                vec![dx, dw]
            },
        }
        .holds();
    }
}

#[test]
fn the_layouts_of_a_product_are_one_product() {
    let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    };
    let (m, n, k) = (3, 5, 65);
    let (a, b) = (coarse(m * k, 1), coarse(n * k, 2));
    let product = |layout, a: &[f32], b: &[f32]| {
        let mut c = vec![f32::NAN; m * n];
        ops::matmul::matmul(&mut c, a, b, &MatMul { m, n, k, layout, beta: 0.0 });
        c
    };
    let nt = product(Layout::Nt, &a, &b);
    let (at, bt) = (transposed(&a, m, k), transposed(&b, n, k));
    assert_eq!(product(Layout::Nn, &a, &bt), nt);
    assert_eq!(product(Layout::Tn, &at, &bt), nt);
}

#[test]
fn smear() {
    for (b, t, c, channels) in [(1, 1, 3, 2), (2, 3, 3, 2), (1, 5, 7, 7)] {
        let (n, s) = (b * t, Smear { b, t, c, channels });
        let run = |x: &[Vec<f32>]| {
            let (mut out, mut gate) = (vec![f32::NAN; n * c], vec![f32::NAN; n]);
            ops::smear::smear(&mut out, &mut gate, &x[0], &x[1], &x[2], &s);
            (out, gate)
        };
        Check {
            name: format!("{s:?}"),
            inputs: vec![coarse(n * c, 1), coarse(channels, 2), vec![0.75]],
            weights: random(n * c, 3),
            forward: &|x| run(x).0,
            backward: &|x, dout| {
                let gate = run(x).1;
                let (mut dx, mut dlambda) = (vec![f32::NAN; n * c], vec![BEFORE]);
                let dw = added(channels, |dw| {
                    let (x, w, l) = (&x[0], &x[1], &x[2]);
                    ops::smear::smear_backward(&mut dx, dw, &mut dlambda, dout, x, &gate, w, l, &s);
                });
                vec![dx, dw, vec![dlambda[0] - BEFORE]]
            },
        }
        .holds();
    }
}

#[test]
fn mix() {
    for n in [1, 3, 65] {
        Check {
            name: format!("mix {n}"),
            inputs: vec![coarse(n, 1), coarse(n, 2), vec![1.125], vec![-0.25]],
            weights: random(n, 3),
            forward: &|x| {
                let mut out = vec![f32::NAN; n];
                ops::mix::mix(&mut out, &x[0], &x[1], &x[2], &x[3]);
                out
            },
            backward: &|x, dout| {
                let (mut d, mut da, mut db) = (dout.to_vec(), [BEFORE], [BEFORE]);
                let dy = added(n, |dy| {
                    let (x, y, a, b) = (&x[0], &x[1], &x[2], &x[3]);
                    ops::mix::mix_backward(&mut d, dy, &mut da, &mut db, x, y, a, b);
                });
                vec![d, dy, vec![da[0] - BEFORE], vec![db[0] - BEFORE]]
            },
        }
        .holds();
    }
}

#[test]
fn backout() {
    for n in [1, 3, 65] {
        Check {
            name: format!("backout {n}"),
            inputs: vec![coarse(n, 1), coarse(n, 2), vec![0.25]],
            weights: random(n, 3),
            forward: &|x| {
                let mut out = vec![f32::NAN; n];
                ops::mix::backout(&mut out, &x[0], &x[1], &x[2]);
                out
            },
            backward: &|x, dout| {
                let mut dy = vec![f32::NAN; n];
                let dlambda = added(1, |dlambda| {
                    ops::mix::backout_backward(&mut dy, dlambda, dout, &x[1], &x[2]);
                });
                vec![dout.to_vec(), dy, dlambda]
            },
        }
        .holds();
    }
}

#[test]
fn rope_norm() {
    for (t, h, d, start) in [(1, 1, 2, 0), (3, 2, 4, 5), (2, 1, 6, 1)] {
        // Two rows of the batch; positions begin again in the second.
        let (heads, s) = (2 * t * h, RopeNorm { t, h, d, start, scale: 1.2, eps: NORM_EPS });
        let (cos, sin) = rope_tables(start + t, d, 100.0);
        let run = |x: &[Vec<f32>]| {
            let (mut out, mut rstd) = (x[0].clone(), vec![f32::NAN; heads]);
            ops::rope::rope_norm(&mut out, &mut rstd, &cos, &sin, &s);
            (out, rstd)
        };
        Check {
            name: format!("{s:?}"),
            inputs: vec![away_from_zero(heads * d, 1)],
            weights: random(heads * d, 2),
            forward: &|x| run(x).0,
            backward: &|x, dout| {
                let ((out, rstd), mut dx) = (run(x), dout.to_vec());
                ops::rope::rope_norm_backward(&mut dx, &out, &rstd, &cos, &sin, &s);
                vec![dx]
            },
        }
        .holds();
    }
}

#[test]
fn value_gate() {
    for (n, v, c, hkv, d, channels) in [(1, 1, 1, 1, 1, 1), (5, 3, 4, 2, 3, 3), (2, 5, 7, 1, 4, 7)]
    {
        let s = ValueGate { c, hkv, d, channels, scale: 3.0 };
        let ids = some_ids(n, v);
        let run = |x: &[Vec<f32>]| {
            let (mut out, mut gate) = (x[0].clone(), vec![f32::NAN; n * hkv]);
            ops::value_gate::value_gate(&mut out, &mut gate, &x[1], &ids, &x[2], &x[3], &s);
            (out, gate)
        };
        Check {
            name: format!("{n} rows, {v} tokens, {s:?}"),
            inputs: vec![
                coarse(n * hkv * d, 1),
                coarse(v * hkv * d, 2),
                coarse(n * c, 3),
                coarse(hkv * channels, 4),
            ],
            weights: random(n * hkv * d, 5),
            forward: &|x| run(x).0,
            backward: &|x, dv| {
                let (gate, table, y, w) = (run(x).1, &x[1], &x[2], &x[3]);
                let (mut dtable, mut dy) = (vec![BEFORE; table.len()], vec![BEFORE; y.len()]);
                let dw = added(w.len(), |dw| {
                    ops::value_gate::value_gate_backward(
                        &mut dtable,
                        dw,
                        &mut dy,
                        dv,
                        table,
                        &ids,
                        y,
                        w,
                        &gate,
                        &s,
                    );
                });
                let [dtable, dy] = [dtable, dy].map(|d| d.iter().map(|d| d - BEFORE).collect());
                vec![dv.to_vec(), dtable, dy, dw]
            },
        }
        .holds();
    }
}

#[test]
fn relu2() {
    for n in [1, 3, 65] {
        let run = |x: &[Vec<f32>]| {
            let (mut out, mut r) = (vec![f32::NAN; n], x[0].clone());
            ops::relu2::relu2(&mut out, &mut r);
            (out, r)
        };
        Check {
            name: format!("relu2 {n}"),
            inputs: vec![away_from_zero(n, 1)],
            weights: random(n, 2),
            forward: &|x| run(x).0,
            backward: &|x, dout| {
                let mut d = dout.to_vec();
                ops::relu2::relu2_backward(&mut d, &run(x).1);
                vec![d]
            },
        }
        .holds();
    }
}

#[test]
fn embedding() {
    let (n, v, c) = (7, 4, 3);
    let ids = some_ids(n, v);
    Check {
        name: "embedding".into(),
        inputs: vec![coarse(v * c, 1)],
        weights: random(n * c, 2),
        forward: &|x| {
            let mut out = vec![f32::NAN; n * c];
            ops::embedding::embedding(&mut out, &x[0], &ids, c);
            out
        },
        backward: &|_, dout| {
            vec![added(v * c, |d| ops::embedding::embedding_backward(d, dout, &ids, c))]
        },
    }
    .holds();
}

#[test]
fn attention() {
    // Groups of queries, and windows of nothing, of some keys, of all.
    let shapes = [(1, 1, 1, 1, 1, 3), (1, 4, 2, 1, 3, 10), (2, 3, 1, 1, 2, 1), (1, 3, 6, 3, 2, 0)];
    for (b, t, h, hkv, d, window) in shapes {
        let s = Attention { b, t, h, hkv, d, window, scale: 0.75 };
        let (queries, keys) = (b * t * h * d, b * t * hkv * d);
        let run = |x: &[Vec<f32>]| {
            let (mut out, mut lse) = (vec![f32::NAN; queries], vec![f32::NAN; b * t * h]);
            ops::attention::attention(&mut out, &mut lse, &x[0], &x[1], &x[2], &s);
            (out, lse)
        };
        Check {
            name: format!("{s:?}"),
            inputs: vec![coarse(queries, 1), coarse(keys, 2), coarse(keys, 3)],
            weights: random(queries, 4),
            forward: &|x| run(x).0,
            backward: &|x, dout| {
                let (out, lse) = run(x);
                let mut d = [vec![f32::NAN; queries], vec![f32::NAN; keys], vec![f32::NAN; keys]];
                let [dq, dk, dv] = &mut d;
                let (q, k, v) = (&x[0], &x[1], &x[2]);
                ops::attention::attention_backward(dq, dk, dv, dout, &out, &lse, q, k, v, &s);
                d.to_vec()
            },
        }
        .holds();
    }
}

#[test]
fn head_loss() {
    // Logits reach 3, so a softcap of 2 bends them; one target in four does not count; two rows of
    // the weight are padding.
    for (n, c, v) in [(1, 3, 3), (5, 4, 7), (4, 1, 1)] {
        let s = HeadLoss { n, c, v, softcap: 2.0, grad_scale: 0.5 };
        let target = |i: usize| if i % 4 == 3 { IGNORE } else { (i * 3 % v) as i32 };
        let targets: Vec<i32> = (0..n).map(target).collect();
        let scratch = || vec![f32::NAN; s.scratch_len()];
        let factors = coarse(n, 3);
        Check {
            name: format!("{s:?}"),
            inputs: vec![coarse(n * c, 1), coarse((v + 2) * c, 2)],
            weights: factors.iter().map(|w| s.grad_scale * w).collect(),
            forward: &|x| {
                let mut losses = vec![f32::NAN; n];
                let (x, w) = (&x[0], &x[1]);
                let targets = &targets;
                ops::loss::head_loss(&mut losses, None, &mut scratch(), x, w, targets, None, &s);
                losses
            },
            backward: &|x, _| {
                let (x, w) = (&x[0], &x[1]);
                let (mut losses, mut dx) = (vec![f32::NAN; n], vec![f32::NAN; n * c]);
                let dw = added(w.len(), |dw| {
                    let (grads, factors) = (Some((dx.as_mut_slice(), dw)), Some(&factors[..]));
                    let scratch = &mut scratch();
                    ops::loss::head_loss(&mut losses, grads, scratch, x, w, &targets, factors, &s);
                });
                vec![dx, dw]
            },
        }
        .holds();
    }
}
