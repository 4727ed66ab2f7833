//! Rotary position embedding followed by RMSNorm of each head (QK norm), in place.

/// Shape and constants of [`rope_norm`].
#[derive(Clone, Copy, Debug)]
pub struct RopeNorm {
    /// Positions of a row of the batch: row n of x stands at `start + n % t`.
    pub t: usize,
    /// Heads.
    pub h: usize,
    /// Channels of a head; even.
    pub d: usize,
    /// Position of the first row, counted from the start of the sequence.
    pub start: usize,
    /// Multiplies the normalised head: 1.2 in generation 5, 1 in generation 1.
    pub scale: f32,
    /// Added to the mean square.
    pub eps: f32,
}

/// Rotary tables: `cos[t, j] = cos(t * base^(-2j/D))`, and sin alike, for t < len, j < D/2.
///
/// Angles and their cosines are computed in f32, as upstream does. Returns (cos, sin), each (len, D/2).
/// Source: RoFormer, arXiv:2104.09864.
pub fn rope_tables(len: usize, d: usize, base: f32) -> (Vec<f32>, Vec<f32>) {
    let inv_freq: Vec<f32> =
        (0..d / 2).map(|j| 1.0 / base.powf((2 * j) as f32 / d as f32)).collect();
    let angles = (0..len).flat_map(|t| inv_freq.iter().map(move |f| t as f32 * f));
    angles.map(|a| (a.cos(), a.sin())).unzip()
}

/// Rotates each head by its position, then normalises it; x is overwritten.
///
/// With halves (x1, x2) of a head: `y1 = x1 cos + x2 sin`, `y2 = -x1 sin + x2 cos`, then
/// `x = scale * y * rstd`, `rstd = 1 / sqrt(mean_d(y^2) + eps)`.
///
/// Shapes: `x` (N, H, D); `rstd` (N, H), kept for the backward; `cos`, `sin` (>= start + T, D/2).
/// Source: nanochat (half-split layout, rotation by minus theta). Plain reference.
pub fn rope_norm(x: &mut [f32], rstd: &mut [f32], cos: &[f32], sin: &[f32], s: &RopeNorm) {
    let half = s.d / 2;
    for (i, head) in x.chunks_exact_mut(s.d).enumerate() {
        let at = (s.start + i / s.h % s.t) * half;
        let (x1, x2) = head.split_at_mut(half);
        for j in 0..half {
            let (a, b, cos, sin) = (x1[j], x2[j], cos[at + j], sin[at + j]);
            x1[j] = a * cos + b * sin;
            x2[j] = -a * sin + b * cos;
        }
        let ms = head.iter().map(|v| v * v).sum::<f32>() / s.d as f32;
        rstd[i] = 1.0 / (ms + s.eps).sqrt();
        for v in head.iter_mut() {
            *v *= s.scale * rstd[i];
        }
    }
}

/// [`rope_norm`] of rows that stand at positions of their own: row r of `T` positions begins at
/// `places[r, 0]`, and [`RopeNorm::start`] counts from there.
///
/// Shapes: `x` (rows, T, H, D), `places` (rows, any). Plain reference.
pub fn rope_norm_placed(
    x: &mut [f32],
    rstd: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    places: &[i32],
    s: &RopeNorm,
) {
    let rows = x.len() / (s.t * s.h * s.d);
    let stride = places.len() / rows;
    let each = x.chunks_exact_mut(s.t * s.h * s.d).zip(rstd.chunks_exact_mut(s.t * s.h));
    for (r, (x, rstd)) in each.enumerate() {
        let start = s.start + places[r * stride] as usize;
        rope_norm(x, rstd, cos, sin, &RopeNorm { start, ..*s });
    }
}

/// Gradient of [`rope_norm`] from its output, in place: `dx` comes in as the gradient of the output.
///
/// With `y^ = out / scale`: `dy = scale * rstd * (dx - y^ * mean_d(dx * y^))`, then the inverse
/// rotation `dx1 = dy1 cos - dy2 sin`, `dx2 = dy1 sin + dy2 cos`. Shapes as [`rope_norm`].
/// Plain reference; never optimise it.
pub fn rope_norm_backward(
    dx: &mut [f32],
    out: &[f32],
    rstd: &[f32],
    cos: &[f32],
    sin: &[f32],
    s: &RopeNorm,
) {
    let half = s.d / 2;
    for (i, head) in dx.chunks_exact_mut(s.d).enumerate() {
        let at = (s.start + i / s.h % s.t) * half;
        let out = &out[i * s.d..][..s.d];
        let dot = head.iter().zip(out).map(|(d, o)| d * o).sum::<f32>();
        let m = dot / (s.d as f32 * s.scale * s.scale);
        for (d, o) in head.iter_mut().zip(out) {
            *d = s.scale * rstd[i] * (*d - o * m);
        }
        let (d1, d2) = head.split_at_mut(half);
        for j in 0..half {
            let (a, b, cos, sin) = (d1[j], d2[j], cos[at + j], sin[at + j]);
            d1[j] = a * cos - b * sin;
            d2[j] = a * sin + b * cos;
        }
    }
}
