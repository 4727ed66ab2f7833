//! Cases of the optimizers' steps.

use nanochat_compute::Tensor;
use nanochat_compute::ops::{AdamW, Muon, MuonMatrix};

use super::{Case, case, random};

pub fn all(all: &mut Vec<Case>) {
    for len in [1, 3, 65, 50_001] {
        for t in [1, 100] {
            all.push(adamw(len, t));
        }
    }
    for shape in [(1, 1), (1, 3), (3, 1), (2, 12), (65, 3), (3, 65), (64, 64), (96, 200)] {
        all.push(muon(shape));
    }
}

fn adamw(len: usize, t: u64) -> Case {
    let s = AdamW { lr: 0.02, beta1: 0.8, beta2: 0.95, eps: 1e-10, wd: 0.1, t };
    // Nothing has been learned by the first element: 0 / (0 + eps) is 0.
    let from_zero = |mut x: Vec<f32>| {
        x[0] = 0.0;
        x
    };
    let squares = random(len, 52).iter().map(|x| x * x + 0.01).collect();
    case("adamw", (len, s))
        .change("p", random(len, 50), 1)
        .change("m", from_zero(random(len, 51)), 1)
        .change("v", from_zero(squares), 1)
        .read("g", from_zero(random(len, 53)))
        .run(move |be, [p, m, v, g]| be.adamw(p, m, v, g, &s))
}

fn muon((m, n): (usize, usize)) -> Case {
    let s = Muon { m, n, lr: 0.02, momentum: 0.9, beta2: 0.9, wd: 0.1 };
    // The five iterations raise the smallest singular values by up to a thousand, and their
    // roundings with them: a step is lr of that, `second` takes 1 - beta2 of its square.
    let (step, share) = (20, 100);
    case("muon", s)
        .change("p", random(m * n, 54), step)
        .change("buf", random(m * n, 55), 2)
        .change("second", random(s.second_len(), 56).iter().map(|x| x * x).collect(), share)
        .scratch(s.scratch_len())
        .read("g", random(m * n, 57))
        .run(move |be, [p, buf, second, scratch, g]| be.muon(p, buf, second, scratch, g, &s))
}

/// Several matrices together: refused one by one, so that those before a wrong one are stepped.
pub fn batches() -> Vec<Case> {
    [(1, 1), (2, 12), (65, 3), (3, 65), (64, 64)].map(muon_batch).into()
}

/// Two matrices of one shape together.
fn muon_batch((m, n): (usize, usize)) -> Case {
    let s = Muon { m, n, lr: 0.02, momentum: 0.9, beta2: 0.9, wd: 0.1 };
    let (step, share) = (20, 100);
    let squares = |seed| random(s.second_len(), seed).iter().map(|x| x * x).collect();
    case("muon_batch", s)
        .change("p", random(m * n, 54), step)
        .change("buf", random(m * n, 55), 2)
        .change("second", squares(56), share)
        .read("g", random(m * n, 57))
        .change("p of the other", random(m * n, 58), step)
        .change("buf of the other", random(m * n, 59), 2)
        .change("second of the other", squares(60), share)
        .read("g of the other", random(m * n, 61))
        .scratch(2 * s.scratch_len())
        .run(move |be, [p, buf, second, g, p2, buf2, second2, g2, scratch]| {
            let matrix = |[p, buf, second, g]: [&Tensor; 4]| {
                let [p, buf, second, g] = [p, buf, second, g].map(Tensor::clone);
                MuonMatrix { p, buf, second, g }
            };
            let all = [matrix([p, buf, second, g]), matrix([p2, buf2, second2, g2])];
            be.muon_batch(&all, scratch, &s)
        })
}
