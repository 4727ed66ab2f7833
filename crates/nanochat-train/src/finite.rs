//! Whether gradients are finite, before the optimizer sees them: their norm, and the first that is not.

use nanochat_compute::comm::Part;
use nanochat_compute::{Backend, Tensor};
use nanochat_gpt::nano::table::Table;

use crate::Result;

/// Elements that are looked at together: on a host what caches hold, on a device what is worth a launch.
const HOST_PIECE: usize = 1 << 18;
const DEVICE_PIECE: usize = 1 << 24;

/// Small beside any square that matters, and 1 / sqrt of it is finite.
const EPS: f32 = 1e-30;

/// `sum g^2` over gradients; not finite when one of them is not, or when a square overflows f32.
///
/// The operation is the model's own `norm` over rows of `c`: its `rstd` gives the sum of a row, so it is as
/// fast as memory on every device and only one number a row comes to the host. `scratch` (f32) is
/// overwritten.
pub(crate) fn sum_of_squares(
    be: &dyn Backend,
    grads: &Tensor,
    scratch: &Tensor,
    c: usize,
) -> Result<f64> {
    let most = if be.own_memory().is_some() { DEVICE_PIECE } else { HOST_PIECE };
    let rows = (most.min(scratch.len()) / (c + 1)).max(1);
    let whole = if scratch.len() > c { grads.len() / c * c } else { 0 };
    let mut sum = 0.0;
    for at in (0..whole).step_by(rows * c) {
        let x = grads.slice(at..whole.min(at + rows * c));
        let n = x.len() / c;
        let (out, rstd) = (scratch.slice(0..x.len()), scratch.slice(x.len()..x.len() + n));
        be.norm(&out, &rstd, &x, c, EPS)?;
        for rstd in rstd.to_vec_f32()?.into_iter().map(f64::from) {
            // An infinite row has rstd 0, a row with a NaN has NaN.
            sum += if rstd > 0.0 { c as f64 / (rstd * rstd) } else { f64::NAN };
        }
    }
    let rest = grads.slice(whole..grads.len()).to_vec_f32()?;
    sum += rest.into_iter().map(|g| f64::from(g).powi(2)).sum::<f64>();
    Ok(sum)
}

/// The row of the first of these parts that holds a value which is not finite.
pub(crate) fn first_not_finite(
    table: &Table,
    parts: &[Part],
    all: &Tensor,
) -> Result<Option<usize>> {
    for (i, row) in table.rows().iter().enumerate() {
        for part in parts {
            let (from, to) =
                (row.offset.max(part.range.start), (row.offset + row.len()).min(part.range.end));
            let is_bad = |values: Vec<f32>| values.iter().any(|x| !x.is_finite());
            if from < to && is_bad(all.slice(from..to).to_vec_f32()?) {
                return Ok(Some(i));
            }
        }
    }
    Ok(None)
}
