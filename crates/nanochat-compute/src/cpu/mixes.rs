//! Sums and products element by element. References: `ops/mix.rs`, `ops/relu2.rs`.

use super::Cpu;
use super::chunks::{CHUNK, each};
use super::math::{LANES, simd_fn, sum_lanes};

/// The elements of `x` that stand at chunk `i` of an output.
fn at<'a>(x: &'a [f32], i: usize, out: &[f32]) -> &'a [f32] {
    &x[i * CHUNK..][..out.len()]
}

pub(super) fn fill(cpu: &Cpu, x: &mut [f32], value: f32) {
    each(&cpu.pool, [(x, CHUNK)], |_, [x]| x.fill(value));
}

pub(super) fn copy(cpu: &Cpu, out: &mut [f32], x: &[f32]) {
    each(&cpu.pool, [(out, CHUNK)], |i, [out]| out.copy_from_slice(at(x, i, out)));
}

simd_fn! {
    fn add_chunk(out: &mut [f32], x: &[f32]) {
        for (o, x) in out.iter_mut().zip(x) {
            *o += x;
        }
    }
}

pub(super) fn add(cpu: &Cpu, out: &mut [f32], x: &[f32]) {
    each(&cpu.pool, [(out, CHUNK)], |i, [out]| {
        let x = at(x, i, out);
        add_chunk(&cpu.kernels, out, x);
    });
}

simd_fn! {
    fn mix_chunk(out: &mut [f32], x: &[f32], y: &[f32], a: f32, b: f32) {
        for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
            *o = a * x + b * y;
        }
    }
}

pub(super) fn mix(cpu: &Cpu, out: &mut [f32], x: &[f32], y: &[f32], a: f32, b: f32) {
    each(&cpu.pool, [(out, CHUNK)], |i, [out]| {
        let (x, y) = (at(x, i, out), at(y, i, out));
        mix_chunk(&cpu.kernels, out, x, y, a, b);
    });
}

simd_fn! {
    /// `dy += b d`, `d *= a`; the sums of `d x` and `d y`, in lanes, go to `sums`.
    fn mix_backward_chunk(d: &mut [f32], dy: &mut [f32], sums: &mut [f32], x: &[f32], y: &[f32], a: f32, b: f32) {
        let (mut ax, mut ay) = ([0f32; LANES], [0f32; LANES]);
        let whole = d.len() / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let (d, dy) = (&mut d[i..i + LANES], &mut dy[i..i + LANES]);
            let (x, y) = (&x[i..i + LANES], &y[i..i + LANES]);
            for j in 0..LANES {
                ax[j] += d[j] * x[j];
                ay[j] += d[j] * y[j];
                dy[j] += b * d[j];
                d[j] *= a;
            }
        }
        sums.copy_from_slice(&[sum_lanes(ax), sum_lanes(ay)]);
        for i in whole..d.len() {
            sums[0] += d[i] * x[i];
            sums[1] += d[i] * y[i];
            dy[i] += b * d[i];
            d[i] *= a;
        }
    }
}

/// Room for two sums of each chunk of `len` floats.
fn chunk_sums(len: usize) -> Vec<f32> {
    vec![0.0; 2 * len.div_ceil(CHUNK)]
}

/// The chunks' sums, in the order of the chunks.
fn total(sums: &[f32]) -> [f64; 2] {
    let add = |s: [f64; 2], c: &[f32]| [s[0] + f64::from(c[0]), s[1] + f64::from(c[1])];
    sums.chunks_exact(2).fold([0.0; 2], add)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn mix_backward(
    cpu: &Cpu,
    d: &mut [f32],
    dy: &mut [f32],
    da: &mut [f32],
    db: &mut [f32],
    x: &[f32],
    y: &[f32],
    a: f32,
    b: f32,
) {
    let mut sums = chunk_sums(d.len());
    each(&cpu.pool, [(d, CHUNK), (dy, CHUNK), (&mut sums, 2)], |i, [d, dy, sums]| {
        let (x, y) = (at(x, i, d), at(y, i, d));
        mix_backward_chunk(&cpu.kernels, d, dy, sums, x, y, a, b);
    });
    let sums = total(&sums);
    da[0] += sums[0] as f32;
    db[0] += sums[1] as f32;
}

simd_fn! {
    /// `dy = a d`; the sum of `d y`, in lanes, goes to `sum`.
    fn backout_backward_chunk(dy: &mut [f32], sum: &mut f32, d: &[f32], y: &[f32], a: f32) {
        let mut acc = [0f32; LANES];
        let whole = dy.len() / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let (dy, d, y) = (&mut dy[i..i + LANES], &d[i..i + LANES], &y[i..i + LANES]);
            for j in 0..LANES {
                acc[j] += d[j] * y[j];
                dy[j] = a * d[j];
            }
        }
        *sum = sum_lanes(acc);
        for i in whole..dy.len() {
            *sum += d[i] * y[i];
            dy[i] = a * d[i];
        }
    }
}

pub(super) fn backout_backward(
    cpu: &Cpu,
    dy: &mut [f32],
    dlambda: &mut [f32],
    dout: &[f32],
    y: &[f32],
    lambda: f32,
) {
    let mut sums = chunk_sums(dy.len());
    each(&cpu.pool, [(dy, CHUNK), (&mut sums, 2)], |i, [dy, sums]| {
        let (d, y) = (at(dout, i, dy), at(y, i, dy));
        backout_backward_chunk(&cpu.kernels, dy, &mut sums[0], d, y, -lambda);
    });
    dlambda[0] -= total(&sums)[0] as f32;
}

simd_fn! {
    fn relu2_chunk(out: &mut [f32], x: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(x) {
            *x = x.max(0.0);
            *o = *x * *x;
        }
    }
}

pub(super) fn relu2(cpu: &Cpu, out: &mut [f32], x: &mut [f32]) {
    each(&cpu.pool, [(out, CHUNK), (x, CHUNK)], |_, [out, x]| relu2_chunk(&cpu.kernels, out, x));
}

simd_fn! {
    fn relu2_backward_chunk(d: &mut [f32], r: &[f32]) {
        for (d, r) in d.iter_mut().zip(r) {
            *d *= 2.0 * r;
        }
    }
}

pub(super) fn relu2_backward(cpu: &Cpu, d: &mut [f32], r: &[f32]) {
    each(&cpu.pool, [(d, CHUNK)], |i, [d]| {
        let r = at(r, i, d);
        relu2_backward_chunk(&cpu.kernels, d, r);
    });
}

simd_fn! {
    fn square_chunk(out: &mut [f32], r: &[f32]) {
        for (o, r) in out.iter_mut().zip(r) {
            *o = r * r;
        }
    }
}

pub(super) fn square(cpu: &Cpu, out: &mut [f32], r: &[f32]) {
    each(&cpu.pool, [(out, CHUNK)], |i, [out]| {
        let r = at(r, i, out);
        square_chunk(&cpu.kernels, out, r);
    });
}
