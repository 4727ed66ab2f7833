//! The head on tile registers: logits, softcap, cross entropy and gradients in one walk over the tokens.
//!
//! In: rows of x (N, C) and the weight (V, C). Out: losses, dx, dw. Reference: `ops/loss.rs`.
//!
//! A softcap bounds the logits, so that powers `e^(s - cap)` need no maximum, and a row's gradient is,
//! but for its target, `g_j = e^(s_j - cap) (1 - (s_j / cap)^2)` times one factor for the whole row,
//! `scale / sum_j e^(s_j - cap)`. So `dx` can be summed while the sum of powers still grows, and is
//! multiplied at the end; for `dw` the rows of x are multiplied. What is left of the target,
//! `scale (softmax - 1) (1 - (s / cap)^2)`, is added apart in f32.
//!
//! A task takes some rows through all of V, a few panels at a time: logits, powers and the product with
//! the weight meet in L2. Memory sees the gradients once, as bf16 in the order in which `dw` reads them.

mod powers;

use self::powers::{Gradients, LANES, MAX_CAP, Powers, TILE};
use super::gemm::amx::{Amx, Strip};
use super::gemm::buffer::{Use, with_words};
use super::gemm::kernel::{A_ROW, Kernel, Piece, Tiles};
use super::gemm::{PackedB, Shared, SharedConst};
use super::math::tanh;
use super::simd::Simd;
use super::{Cpu, gemm};
use crate::ops::{HeadLoss, IGNORE};

/// Words of a tile's row of 32 bf16, rows of a tile.
const TILE_WORDS: usize = TILE * LANES;
/// Rows whose gradients are held at once: sums of `dw` are that long before they meet memory.
const CHUNK: usize = 1024;
/// Rows of a chunk that are summed in registers at a time: 32 KiB of gradients.
const SUMMED: usize = 512;
/// Bytes of L2 for what a task keeps, and for what it streams.
const KEPT: usize = 640 << 10;
const STREAMED: usize = 800 << 10;
/// Rows of a task at most.
const MAX_ROWS: usize = 256;
/// Panels of 32 ids of a task of `dw`.
const DW_PANELS: usize = 8;

/// True when [`head_loss`] is for this: tile registers, and a softcap whose powers stay normal. Very few
/// rows, whose gradients in whole tiles would not fit into the scratch, are not.
pub(super) fn is_for(cpu: &Cpu, s: &HeadLoss) -> bool {
    let amx = cpu.kernels.simd() == Simd::Amx && cpu.is_bf16();
    amx && s.softcap > 0.0 && s.softcap <= MAX_CAP && Sizes::new(cpu, s).chunk > 0
}

/// Bytes of memory of its own, beside the packed weight: at most.
pub(super) fn workspace_bytes(threads: usize, s: &HeadLoss) -> usize {
    let sizes = Sizes::of(threads, s);
    4 * (threads * sizes.task_words().next_power_of_two() + sizes.call_words().next_power_of_two())
}

/// How the work is cut. Only speed depends on it, but for `chunk`.
#[derive(Clone, Copy)]
struct Sizes {
    c: usize,
    /// Panels of 32: of V, of C.
    v_panels: usize,
    c_panels: usize,
    /// Rows of a chunk, a multiple of TILE.
    chunk: usize,
    /// Rows of a task, a multiple of TILE.
    rows: usize,
    /// Panels of V at a time.
    panels: usize,
}

impl Sizes {
    fn new(cpu: &Cpu, s: &HeadLoss) -> Sizes {
        Self::of(cpu.pool.threads(), s)
    }

    fn of(threads: usize, s: &HeadLoss) -> Sizes {
        let c = s.c.next_multiple_of(TILE);
        let v_panels = s.v.div_ceil(TILE);
        let fit = s.scratch_len() / (v_panels * LANES) / TILE * TILE;
        let chunk = s.n.min(CHUNK).next_multiple_of(TILE).min(fit);
        // bf16 rows of x, f32 rows of dx; every thread has two tasks or more.
        let rows = (KEPT / (6 * c)).min(MAX_ROWS).min(chunk / (2 * threads));
        let rows = (rows / TILE * TILE).max(TILE);
        // Two packed weights and the gradients of a panel.
        let panels = (STREAMED / (2 * 2 * TILE * c + 2 * TILE * rows)).max(1);
        Sizes { c, v_panels, c_panels: c / TILE, chunk, rows, panels }
    }

    /// Words of a task: x, gradients of some panels, sums of powers, dx. Those of a task of `dw` fit too.
    fn task_words(&self) -> usize {
        let x = self.rows * A_ROW * gemm::blocks_of::<Amx>(self.c);
        let (gradients, sums) = (self.panels * self.rows * LANES, self.rows * LANES);
        (x + gradients + sums + self.rows * self.c).max(TILE * self.c)
    }

    /// Words of a call: the rows of x in the order of `dw`, and per row its factor, the target's part.
    fn call_words(&self) -> usize {
        self.chunk * self.c / 2 + 2 * self.chunk
    }
}

/// The packed weight: for logits, and for `dx`.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub plain: &'a [f32],
    pub logits: &'a PackedB,
    pub grad: Option<&'a PackedB>,
}

/// What a call reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub x: &'a [f32],
    pub weights: Weights<'a>,
    pub targets: &'a [i32],
    /// One factor a row.
    pub scales: Option<&'a [f32]>,
}

/// Losses, and gradients if there are any: `dx` is overwritten, `dw` added to.
///
/// The machine has tile registers ([`is_for`]); `scratch` holds the gradients of a chunk.
pub(super) fn head_loss(
    cpu: &Cpu,
    losses: &mut [f32],
    mut grads: Option<(&mut [f32], &mut [f32])>,
    scratch: &mut [f32],
    inputs: Inputs,
    s: &HeadLoss,
) {
    let sizes = Sizes::new(cpu, s);
    with_words(Use::Call, sizes.call_words(), |words| {
        let turned_x = Shared(words.as_mut_ptr());
        // SAFETY: the words of `call_words`: first the rows of x, then two floats a row.
        let factors = unsafe { turned_x.get().add(sizes.chunk * sizes.c / 2).cast::<f32>() };
        for first in (0..s.n).step_by(sizes.chunk) {
            let rows = sizes.chunk.min(s.n - first);
            let rows_of =
                |all: &mut [f32], of: usize| Shared(all[first * of..][..rows * of].as_mut_ptr());
            let chunk = Chunk {
                sizes,
                s,
                inputs: Inputs {
                    x: &inputs.x[first * s.c..][..rows * s.c],
                    targets: &inputs.targets[first..][..rows],
                    scales: inputs.scales.map(|w| &w[first..][..rows]),
                    ..inputs
                },
                rows,
                losses: rows_of(losses, 1),
                dx: grads.as_mut().map(|(dx, _)| rows_of(dx, s.c)),
                held: Shared(scratch.as_mut_ptr().cast()),
                factors: Shared(factors),
                // SAFETY: as above.
                targets: Shared(unsafe { factors.add(sizes.chunk) }),
            };
            cpu.pool.run(rows.div_ceil(sizes.rows), |task| {
                with_words(Use::Task, sizes.task_words(), |own| {
                    // SAFETY: `is_for` proves the instructions; a task has rows of its own.
                    unsafe { chunk.rows(task * sizes.rows, own.as_mut_ptr()) }
                });
            });
            let Some((_, dw)) = &mut grads else { continue };
            let dw = Shared(dw[..s.v * s.c].as_mut_ptr());
            cpu.pool.run(rows.div_ceil(TILE), |task| {
                // SAFETY: as above; the factors of all rows are written.
                unsafe { chunk.turn_x(task * TILE, turned_x) }
            });
            cpu.pool.run(sizes.v_panels.div_ceil(DW_PANELS), |task| {
                with_words(Use::Task, sizes.task_words(), |own| {
                    let panels = task * DW_PANELS..sizes.v_panels.min((task + 1) * DW_PANELS);
                    // SAFETY: as above; a task has panels of `dw` of its own.
                    unsafe { chunk.dw(panels, SharedConst(turned_x.get()), dw, own.as_mut_ptr()) }
                });
            });
        }
    });
}

/// Some rows, whose gradients are held until `dw` has them.
struct Chunk<'a> {
    sizes: Sizes,
    s: &'a HeadLoss,
    inputs: Inputs<'a>,
    rows: usize,
    losses: Shared<f32>,
    dx: Option<Shared<f32>>,
    /// Gradients: for each panel of V, each TILE rows, a tile of 32 ids of 32 rows.
    held: Shared<u32>,
    /// What a row's gradients are multiplied by, and the part of its target.
    factors: Shared<f32>,
    targets: Shared<f32>,
}

/// A tile of sums.
#[repr(C, align(64))]
struct Sums([f32; TILE * TILE]);

impl Chunk<'_> {
    /// Words from a panel of V to the next one, in `held`.
    fn held_panel(&self) -> usize {
        self.sizes.chunk * LANES
    }

    /// Rows `first` .. of the chunk through all of V: their losses, factors, `dx`, and what `dw` needs.
    ///
    /// # Safety
    /// The machine has tile registers; nobody else works on these rows; `own` has `task_words` words.
    unsafe fn rows(&self, first: usize, own: *mut u32) {
        let Sizes { rows, panels, c, c_panels, .. } = self.sizes;
        let count = rows.min(self.rows - first);
        let padded = count.next_multiple_of(TILE);
        let blocks = gemm::blocks_of::<Amx>(c);
        let (logits, grad) = (self.inputs.weights.logits, self.inputs.weights.grad);
        // SAFETY: the parts of `own` are those of `task_words`; `packed_x` writes rows of the first; tiles
        // of V and C are those of the packed weights; `held` has a tile for each panel and TILE rows.
        unsafe {
            let gradients = own.add(rows * A_ROW * blocks);
            let sums: *mut f32 = gradients.add(panels * rows * LANES).cast();
            let dx = sums.add(rows * LANES);
            self.pack_x(first, count, own);
            sums.write_bytes(0, padded * LANES);
            let mut target_logits = [f32::NAN; MAX_ROWS];
            let mut targets = [IGNORE; MAX_ROWS];
            targets[..count].copy_from_slice(&self.inputs.targets[first..][..count]);
            let _tiles = Tiles::<Amx>::begin();
            let mut tile = Sums([0.0; TILE * TILE]);
            let tile = tile.0.as_mut_ptr();
            for some in self.panel_groups() {
                for (i, panel) in some.clone().enumerate() {
                    for r in (0..padded).step_by(TILE) {
                        for block in 0..blocks {
                            let a = own.add((block * rows + r) * A_ROW);
                            Amx::multiply(&Strip {
                                a,
                                a_ld: A_ROW,
                                lower: LANES * A_ROW,
                                a_line: LANES,
                                b: logits.tiles::<Amx>(block, panel),
                                lines: logits.lines::<Amx>(block),
                                sums: tile,
                                adds: block > 0,
                            });
                        }
                        let at = (panel * self.sizes.chunk + first + r) * LANES;
                        Powers {
                            logits: tile,
                            first: panel * TILE,
                            v: self.s.v,
                            targets: targets.as_ptr().add(r),
                            target_logits: target_logits.as_mut_ptr().add(r),
                            sums: sums.add(r * LANES),
                            gradients: self.dx.map(|_| Gradients {
                                along: gradients.add((i * rows + r) * LANES),
                                turned: self.held.get().add(at),
                            }),
                        }
                        .run(self.s.softcap);
                    }
                }
                let Some(grad) = grad.filter(|_| self.dx.is_some()) else { continue };
                let (block, line) = grad.block_of::<Amx>(some.start);
                for column in 0..c_panels {
                    for r in (0..padded).step_by(TILE) {
                        Amx::multiply(&Strip {
                            a: gradients.add(r * LANES),
                            a_ld: LANES,
                            lower: LANES * LANES,
                            a_line: rows * LANES,
                            b: grad.tiles::<Amx>(block, column).add(line * TILE_WORDS),
                            lines: some.len(),
                            sums: dx.add((r * c_panels + column * TILE) * TILE),
                            adds: some.start > 0,
                        });
                    }
                }
            }
            for (r, &logit) in target_logits.iter().enumerate().take(count) {
                self.finish(first + r, logit, sums.add(r * LANES), |j| {
                    let tile = (r / TILE * c_panels + j / TILE) * TILE * TILE;
                    dx.add(tile + r % TILE * TILE + j % TILE)
                });
            }
        }
    }

    /// Panels of V that are taken together: those of one block of the weight for `dx`.
    fn panel_groups(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let all = self.sizes.v_panels;
        let block = self.inputs.weights.grad.map_or(all, |grad| grad.lines::<Amx>(0));
        let (step, end) = (self.sizes.panels, move |at: usize| ((at / block + 1) * block).min(all));
        let next = move |at: &usize| Some(end(*at).min(at + step)).filter(|next| *next < all);
        std::iter::successors(Some(0), next).map(move |at| at..end(at).min(at + step))
    }

    /// The rows as the logits read them; zero up to a multiple of TILE.
    ///
    /// # Safety
    /// As [`Chunk::rows`].
    unsafe fn pack_x(&self, first: usize, count: usize, own: *mut u32) {
        let c = self.s.c;
        let rows = self.sizes.rows;
        for block in 0..gemm::blocks_of::<Amx>(c) {
            let (k0, k) = gemm::elements_of::<Amx>(c, block);
            // SAFETY: `count` rows from `first` on exist; `own` has `rows` of A_ROW words for each block.
            unsafe {
                let own = own.add(block * rows * A_ROW);
                let src = self.inputs.x.as_ptr().add(first * c + k0);
                let reach = self.rows - first;
                Amx::pack_a(&Piece { src, ld: c, k_contiguous: true, count, reach, k }, own);
                own.add(count * A_ROW).write_bytes(0, (rows - count) * A_ROW);
            }
        }
    }

    /// A row whose sums of powers are whole: its loss, its factors, its `dx`, whose sums are at `sum(j)`.
    ///
    /// # Safety
    /// As [`Chunk::rows`]; LANES sums of powers at `powers`, and a sum for every j < C.
    unsafe fn finish(
        &self,
        row: usize,
        target_logit: f32,
        powers: *const f32,
        sum: impl Fn(usize) -> *const f32,
    ) {
        let (cap, c) = (self.s.softcap, self.s.c);
        let target = self.inputs.targets[row];
        // SAFETY: the conditions of this function; `row` is a row of the chunk, its target an id below V.
        unsafe {
            let all: f32 = std::slice::from_raw_parts(powers, LANES).iter().sum();
            let (mut loss, mut factor, mut own) = (0.0, 0.0, 0.0);
            if target != IGNORE {
                let scale = self.s.grad_scale * self.inputs.scales.map_or(1.0, |w| w[row]);
                let t = tanh::<true>(target_logit / cap);
                let (s, lse) = (cap * t, cap + all.ln());
                loss = lse - s;
                factor = scale / all;
                own = scale * (-loss).exp_m1() * (1.0 - t * t);
            }
            *self.losses.get().add(row) = loss;
            *self.factors.get().add(row) = factor;
            *self.targets.get().add(row) = own;
            let Some(dx) = self.dx else { return };
            let dx = std::slice::from_raw_parts_mut(dx.get().add(row * c), c);
            if target == IGNORE {
                return dx.fill(0.0);
            }
            let w = &self.inputs.weights.plain[target as usize * c..][..c];
            for (j, (dx, w)) in dx.chunks_mut(TILE).zip(w.chunks(TILE)).enumerate() {
                let sums = std::slice::from_raw_parts(sum(j * TILE), dx.len());
                for ((dx, w), sum) in dx.iter_mut().zip(w).zip(sums) {
                    *dx = factor * sum + own * w;
                }
            }
        }
    }

    /// TILE rows of x times their factors, in the order of the right operand of `dw`.
    ///
    /// # Safety
    /// As [`Chunk::rows`], after it, for all rows; `turned` has `chunk * c / 2` words.
    unsafe fn turn_x(&self, first: usize, turned: Shared<u32>) {
        let (c, count) = (self.s.c, TILE.min(self.rows - first));
        let mut scaled = [0f32; TILE * TILE];
        for column in 0..self.sizes.c_panels {
            let columns = TILE.min(c - column * TILE);
            // SAFETY: the conditions of this function; `scaled` has TILE rows of TILE.
            unsafe {
                for r in 0..count {
                    let factor = *self.factors.get().add(first + r);
                    let x = &self.inputs.x[(first + r) * c + column * TILE..][..columns];
                    for (scaled, x) in scaled[r * TILE..].iter_mut().zip(x) {
                        *scaled = factor * x;
                    }
                }
                let dst = column * self.sizes.chunk * LANES + first * LANES;
                let src = scaled.as_ptr();
                let piece = Piece {
                    src,
                    ld: TILE,
                    k_contiguous: false,
                    count: columns,
                    reach: columns,
                    k: count,
                };
                Amx::pack_b(&piece, turned.get().add(dst));
            }
        }
    }

    /// Adds the chunk to the rows of `dw` of some panels of V.
    ///
    /// # Safety
    /// As [`Chunk::turn_x`], after it, for all rows; nobody else works on these rows of `dw`; `own` has
    /// `task_words` words.
    unsafe fn dw(
        &self,
        panels: std::ops::Range<usize>,
        turned: SharedConst<u32>,
        dw: Shared<f32>,
        own: *mut u32,
    ) {
        let Sizes { c_panels, chunk, .. } = self.sizes;
        let (c, v) = (self.s.c, self.s.v);
        let padded = self.rows.next_multiple_of(TILE);
        let sums: *mut f32 = own.cast();
        // SAFETY: the conditions of this function; `task_words` has TILE rows of c floats.
        unsafe {
            let _tiles = Tiles::<Amx>::begin();
            for panel in panels.clone() {
                for r in (0..padded).step_by(SUMMED) {
                    for column in 0..c_panels {
                        Amx::multiply(&Strip {
                            a: self.held.get().add(panel * self.held_panel() + r * LANES),
                            a_ld: LANES,
                            lower: LANES * LANES,
                            a_line: TILE_WORDS,
                            b: turned.get().add(column * chunk * LANES + r * LANES),
                            lines: SUMMED.min(padded - r) / TILE,
                            sums: sums.add(column * TILE * TILE),
                            adds: r > 0,
                        });
                    }
                }
                for i in 0..TILE.min(v - panel * TILE) {
                    let dw = dw.get().add((panel * TILE + i) * c);
                    let dw = std::slice::from_raw_parts_mut(dw, c);
                    for (column, dw) in dw.chunks_mut(TILE).enumerate() {
                        let sums = sums.add((column * TILE + i) * TILE);
                        for (dw, sum) in dw.iter_mut().zip(std::slice::from_raw_parts(sums, TILE)) {
                            *dw += sum;
                        }
                    }
                }
            }
            for (row, &target) in self.inputs.targets.iter().enumerate() {
                if target == IGNORE || !panels.contains(&(target as usize / TILE)) {
                    continue;
                }
                let own = *self.targets.get().add(row);
                let dw = std::slice::from_raw_parts_mut(dw.get().add(target as usize * c), c);
                for (dw, x) in dw.iter_mut().zip(&self.inputs.x[row * c..][..c]) {
                    *dw += own * x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Precision;
    use crate::cpu::simd::Kernels;
    use crate::ops;

    /// Numbers of about one, which bf16 holds exactly.
    fn numbers(len: usize, seed: u32, scale: f32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as f32 / 128.0 - 1.0) * scale
        };
        (0..len).map(|_| next()).collect()
    }

    /// Losses, dx, dw.
    fn run(cpu: &Cpu, s: &HeadLoss, weights: Option<&[f32]>) -> [Vec<f32>; 3] {
        let (x, w) = (numbers(s.n * s.c, 1, 1.0), numbers(s.v * s.c, 2, 0.25));
        let target = |i: usize| if i % 5 == 4 { IGNORE } else { (i * i * 7 % s.v) as i32 };
        let targets: Vec<i32> = (0..s.n).map(target).collect();
        let (mut losses, mut dx) = (vec![f32::NAN; s.n], vec![f32::NAN; s.n * s.c]);
        let (mut dw, mut scratch) = (numbers(s.v * s.c, 3, 0.5), vec![f32::NAN; s.scratch_len()]);
        let grads = Some((&mut dx[..], &mut dw[..]));
        if cpu.kernels.simd() == Simd::Amx {
            assert!(is_for(cpu, s), "{s:?}");
            super::super::loss::head_loss(
                cpu,
                &mut losses,
                grads,
                &mut scratch,
                &x,
                &w,
                &targets,
                weights,
                s,
            );
        } else {
            ops::loss::head_loss(&mut losses, grads, &mut scratch, &x, &w, &targets, weights, s);
        }
        [losses, dx, dw]
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_reference_on_any_number_of_threads() {
        let Some(kernels) = Kernels::new(Simd::Amx) else {
            eprintln!("skipped: no tile registers");
            return;
        };
        let plain = Cpu::with(Kernels::new(Simd::Portable).expect("everywhere"), 1, Precision::F32);
        let of = |threads| Cpu::with(kernels, threads, Precision::Bf16);
        // One and several blocks of the sums over C and over V, chunks, tasks; sizes that fill no tile.
        for (n, c, v) in [(64, 32, 96), (70, 33, 900), (1100, 40, 1700), (96, 800, 200)] {
            let s = HeadLoss { n, c, v, softcap: 15.0, grad_scale: 0.5 };
            let weights: Vec<f32> = (0..n).map(|i| (i % 3) as f32 - 0.5).collect();
            for weights in [None, Some(&weights[..])] {
                let (want, got) = (run(&plain, &s, weights), run(&of(2), &s, weights));
                for (loss, want) in got[0].iter().zip(&want[0]) {
                    assert!((loss - want).abs() < 1e-4, "{s:?}: {loss}, not {want}");
                }
                for (name, got, want) in [("dx", &got[1], &want[1]), ("dw", &got[2], &want[2])] {
                    let norm =
                        |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
                    let apart = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
                    let all = norm(&mut want.iter().copied());
                    assert!(apart < 3e-3 * all, "{s:?}: {name} is {apart} of {all} off");
                }
                for threads in [1, 5] {
                    let again = run(&of(threads), &s, weights);
                    assert!(again == got, "{s:?}: {threads} threads make other bits");
                }
            }
        }
    }

    #[test]
    fn what_it_takes_is_what_it_says() {
        let s = HeadLoss { n: 4096, c: 384, v: 32_768, softcap: 15.0, grad_scale: 1.0 };
        let sizes = Sizes::of(2, &s);
        assert_eq!((sizes.rows, sizes.panels, sizes.chunk), (256, 12, 1024));
        assert_eq!(sizes.v_panels * sizes.chunk * LANES, s.scratch_len());
        assert_eq!(Sizes::of(2, &HeadLoss { v: 32_769, ..s }).chunk, 992);
        assert_eq!(Sizes::of(2, &HeadLoss { n: 1, v: 3, ..s }).chunk, 0);
        assert_eq!(workspace_bytes(2, &s), 4 * (2 * (1 << 18) + (1 << 18)));
    }
}
