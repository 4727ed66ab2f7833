//! Attention: tensor cores for heads of 64 and 128 channels in bf16, plain kernels for the rest.

use super::driver::{Arg, Grid};
use super::launch::{args, int, warps};
use super::{Cuda, Work};
use crate::checks::expect;
use crate::ops::{Attention, CachedAttention, PAGE};
use crate::{DType, Error, Result, Tensor};

/// Queries of a block of the forward, keys or queries of one of the backward.
const ROWS: usize = 128;
/// Blocks that decoding is shared out to, if there are pages enough: two for each multiprocessor of a
/// large GPU.
const DECODE_BLOCKS: usize = 264;
/// Queries of a block that reads pages.
const PREFILL_ROWS: usize = 64;
/// The widest head of the plain kernels.
const WIDEST: usize = 256;

/// True when there is a kernel on tensor cores for it.
fn on_tensor_cores(dtype: DType, d: usize) -> bool {
    dtype == DType::BF16 && (d == 64 || d == 128)
}

fn expect_width(d: usize) -> Result<()> {
    expect("attention", d <= WIDEST, "heads of more than 256 channels have no kernel on a GPU")
}

/// Blocks of rows, heads, rows of the batch.
fn tiles(s: &Attention, heads: usize, threads: u32, shared: usize) -> Grid {
    let blocks = [s.t.div_ceil(ROWS) as u32, heads as u32, s.b as u32];
    Grid { blocks, threads, shared: shared as u32, early: false }
}

/// `int b, int t, int h, int hkv, int d`, or without b and d.
fn shape(s: &Attention) -> [Arg; 5] {
    [s.b, s.t, s.h, s.hkv, s.d].map(|x| Arg::I32(int(x)))
}

impl Cuda {
    /// True where heads of this width have kernels on the products of whole warpgroups, which only
    /// compute capability 9.0 has.
    fn multiplies_by_warpgroups(&self, d: usize) -> bool {
        d == 128 && self.driver.capability() == (9, 0)
    }

    /// [`crate::Backend::attention`] without the checks.
    pub(super) fn attention_forward(
        &self,
        dtype: DType,
        out: &Tensor,
        lse: &Tensor,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        s: &Attention,
    ) -> Result<()> {
        expect_width(s.d)?;
        let window = int(s.window.min(s.t));
        let [b, t, h, hkv, d] = shape(s);
        if on_tensor_cores(dtype, s.d) {
            let mut args = args![out, lse, q, k, v].to_vec();
            args.extend([t, h, hkv, Arg::I32(window), Arg::F32(s.scale)]);
            if self.multiplies_by_warpgroups(s.d) {
                let grid = tiles(s, s.h, 256, 160 << 10);
                return self.launch("attention_forward_wgmma_128", grid, &args);
            }
            let grid = tiles(s, s.h, 128, 768 * s.d);
            return self.launch(&format!("attention_forward_{}", s.d), grid, &args);
        }
        let mut args = args![out, lse, q, k, v].to_vec();
        args.extend([b, t, h, hkv, d, Arg::I32(window), Arg::F32(s.scale)]);
        let kernel = format!("attention_plain_forward_{}", dtype.name());
        self.launch(&kernel, warps(s.b * s.t * s.h), &args)
    }

    /// [`crate::Backend::attention_backward`] without the checks.
    pub(super) fn attention_gradients(
        &self,
        dtype: DType,
        (dq, dk, dv): (&Tensor, &Tensor, &Tensor),
        (dout, out, lse): (&Tensor, &Tensor, &Tensor),
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        s: &Attention,
    ) -> Result<()> {
        expect_width(s.d)?;
        let window = int(s.window.min(s.t));
        let [b, t, h, hkv, d] = shape(s);
        let rows = s.b * s.t * s.h;
        let delta = self.work(Work::Attention, rows, DType::F32)?;
        let kernel = format!("attention_delta_{}", dtype.name());
        self.launch(&kernel, warps(rows), args![&delta, dout, out, int(rows), int(s.d)])?;
        let rest = args![dout, lse, &delta, q, k, v];
        let (to_kv, to_q) = (args![dk, dv], args![dq]);
        if on_tensor_cores(dtype, s.d) {
            let end = [t, h, hkv, Arg::I32(window), Arg::F32(s.scale)];
            let (of_kv, of_q) = match self.multiplies_by_warpgroups(s.d) {
                true => (194 << 10, 192 << 10),
                false => (1024 * s.d + 1024, 1024 * s.d),
            };
            let unit = if self.multiplies_by_warpgroups(s.d) { "wgmma_" } else { "" };
            let kernel = format!("attention_backward_kv_{unit}{}", s.d);
            let grid = tiles(s, s.hkv, 256, of_kv);
            self.launch(&kernel, grid, &[&to_kv[..], rest, &end].concat())?;
            let kernel = format!("attention_backward_q_{unit}{}", s.d);
            let grid = tiles(s, s.h, 256, of_q);
            return self.launch(&kernel, grid, &[&to_q[..], rest, &end].concat());
        }
        let end = [b, t, h, hkv, d, Arg::I32(window), Arg::F32(s.scale)];
        let kernel = format!("attention_plain_backward_kv_{}", dtype.name());
        let grid = warps(s.b * s.t * s.hkv);
        self.launch(&kernel, grid, &[&to_kv[..], rest, &end].concat())?;
        let kernel = format!("attention_plain_backward_q_{}", dtype.name());
        self.launch(&kernel, warps(rows), &[&to_q[..], rest, &end].concat())
    }

    /// [`crate::Backend::attention_cached`] without the checks.
    pub(super) fn attention_on_pages(
        &self,
        out: &Tensor,
        q: &Tensor,
        (k, v): (&Tensor, &Tensor),
        places: &Tensor,
        s: &CachedAttention,
    ) -> Result<()> {
        expect_width(s.d)?;
        let types = match (q.dtype(), k.dtype()) {
            (DType::F32, DType::F32) => "f32_f32",
            (DType::BF16, DType::BF16) => "bf16_bf16",
            (DType::F32, DType::BF16) => "f32_bf16",
            (have, need) => {
                let (have, need) = (have.name(), need.name());
                return Err(Error::DType { op: "attention_cached", have, need });
            }
        };
        let window = s.window.min(s.pages * PAGE);
        let [t, pages, h, hkv, d] = [s.t, s.pages, s.h, s.hkv, s.d].map(int);
        let (window_arg, scale) = (Arg::I32(int(window)), Arg::F32(s.scale));
        let is_tiled = s.d == 64 || s.d == 128;
        if s.t == 1 && is_tiled {
            return self.decode((out, q, k, v, places), types, window, s);
        }
        if is_tiled && types == "bf16_bf16" {
            let blocks = [s.t.div_ceil(PREFILL_ROWS) as u32, s.h as u32, s.rows as u32];
            let grid = Grid { blocks, threads: 128, shared: 640 * s.d as u32, early: false };
            let mut args = args![out, q, k, v, places, t, pages, h, hkv].to_vec();
            args.extend([window_arg, scale]);
            return self.launch(&format!("attention_prefill_{}", s.d), grid, &args);
        }
        let mut args = args![out, q, k, v, places, int(s.rows), t, pages, h, hkv, d].to_vec();
        args.extend([window_arg, scale]);
        let grid = warps(s.rows * s.t * s.h);
        self.launch(&format!("attention_cached_{types}"), grid, &args)
    }

    /// One query a row: the pages it sees are shared out to several blocks, whose parts are then added
    /// up in order.
    fn decode(
        &self,
        (out, q, k, v, places): (&Tensor, &Tensor, &Tensor, &Tensor, &Tensor),
        types: &str,
        window: usize,
        s: &CachedAttention,
    ) -> Result<()> {
        let group = s.h / s.hkv;
        // A block reads keys and values once for up to four of the heads that share them.
        let heads = if group > 1 { 4 } else { 1 };
        let columns = s.hkv * group.div_ceil(heads);
        let seen = s.pages.min(window / PAGE + 2);
        let splits = DECODE_BLOCKS.div_ceil(columns * s.rows).clamp(1, seen);
        let partial = s.rows * s.h * splits * (s.d + 4);
        let partial = self.work(Work::Attention, partial, DType::F32)?;
        let (pages, h, hkv) = (int(s.pages), int(s.h), int(s.hkv));
        let grid = Grid {
            blocks: [splits as u32, columns as u32, s.rows as u32],
            threads: 128,
            shared: (16 * heads * (s.d + 4)) as u32,
            early: false,
        };
        let args = args![&partial, q, k, v, places, pages, h, hkv, int(window), s.scale];
        self.launch(&format!("attention_decode_{types}_{}_{heads}", s.d), grid, args)?;
        let grid =
            Grid { blocks: [s.h as u32, s.rows as u32, 1], threads: 128, shared: 0, early: false };
        let kernel = format!("attention_decode_combine_{}", q.dtype().name());
        self.launch(&kernel, grid, args![out, &partial, int(splits), int(s.d)])
    }
}
