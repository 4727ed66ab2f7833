//! ReLU squared: forward, backward.

/// `r[i] = max(x[i], 0)` in place, `out[i] = r[i]^2`.
///
/// Shapes: `out`, `x` equal; x holds r afterwards, kept for [`relu2_backward`]. Source: Primer,
/// arXiv:2109.08668. Plain reference; never optimise it.
pub fn relu2(out: &mut [f32], x: &mut [f32]) {
    for (o, x) in out.iter_mut().zip(x) {
        *x = x.max(0.0);
        *o = *x * *x;
    }
}

/// `d[i] = 2 r[i] d[i]` in place, from r = max(x, 0). Plain reference; never optimise it.
pub fn relu2_backward(d: &mut [f32], r: &[f32]) {
    for (d, r) in d.iter_mut().zip(r) {
        *d *= 2.0 * r;
    }
}

/// `x[i] = max(x[i], 0)^2`, kept for [`relu2_in_place_backward`]. Plain reference; never optimise it.
pub fn relu2_in_place(x: &mut [f32]) {
    for x in x {
        let r = x.max(0.0);
        *x = r * r;
    }
}

/// `d[i] = 2 sqrt(a[i]) d[i]` in place, from a = max(x, 0)^2. Plain reference; never optimise it.
pub fn relu2_in_place_backward(d: &mut [f32], a: &[f32]) {
    for (d, a) in d.iter_mut().zip(a) {
        *d *= 2.0 * a.sqrt();
    }
}

/// `out[i] = r[i]^2`: what [`relu2`] wrote, made again for the backward. Plain reference.
pub fn square(out: &mut [f32], r: &[f32]) {
    for (o, r) in out.iter_mut().zip(r) {
        *o = r * r;
    }
}
