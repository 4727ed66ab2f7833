//! One new query a row against pages of bf16 that are read where they lie, on AMX.
//!
//! In: queries, pages, places. Out: the bits of [`super::forward`], which packs every block before it
//! multiplies. Here a block of keys is the left operand of the tiles (rows along k need no turning)
//! and the queries of a group the right one: the sums of a product are the same from both sides.
//! Values are multiplied in vector registers, in the order in which a tile sums.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;

use super::softmax::{BLOCK, Scores, seen, softmax};
use crate::cpu::Cpu;
use crate::cpu::gemm::kernel::A_ROW;
use crate::cpu::gemm::{Multiply, Shared, SharedConst};
use crate::cpu::simd::{Kernels, Simd};
use crate::ops::attention::CachedAttention;

/// Query heads of a key/value head at most: each multiplies the values by itself, which costs more
/// than packing them once for many.
const GROUP: usize = 4;
/// Channels of a head at most: four registers of sums for each 32 channels of values.
const MAX_D: usize = 128;
/// Elements along k of a row of a tile register.
const LINE: usize = 32;
/// Rows of a tile register.
const SIDE: usize = 16;

/// Whether [`decode`] is for this machine and shape.
pub(super) fn takes(cpu: &Cpu, c: &CachedAttention) -> bool {
    let amx = cpu.kernels.simd() == Simd::Amx && cpu.multiply == Multiply::Bf16;
    let shape = c.d.is_multiple_of(LINE) && c.d <= MAX_D && c.h <= GROUP * c.hkv;
    amx && c.t == 1 && shape
}

/// What every task reads and writes.
struct All<'a> {
    out: Shared<f32>,
    q: SharedConst<f32>,
    k: SharedConst<u16>,
    v: SharedConst<u16>,
    places: &'a [i32],
    c: CachedAttention,
    kernels: Kernels,
}

/// Equals [`crate::ops::attention::attention_cached`] for what it [`takes`]; the pages that a query
/// sees exist. A task is a row and some of its key/value heads, whose parts of a page follow each
/// other.
pub(super) fn decode(
    cpu: &Cpu,
    out: &mut [f32],
    q: &[f32],
    k: &[u16],
    v: &[u16],
    places: &[i32],
    c: &CachedAttention,
) {
    assert!(takes(cpu, c) && q.len() == c.rows * c.h * c.d && out.len() == q.len());
    assert!(places.len() == c.rows * c.place_len() && k.len() == v.len());
    let all = All {
        out: Shared(out.as_mut_ptr()),
        q: SharedConst(q.as_ptr()),
        k: SharedConst(k.as_ptr()),
        v: SharedConst(v.as_ptr()),
        places,
        c: *c,
        kernels: cpu.kernels,
    };
    let parts = (4 * cpu.threads()).div_ceil(c.rows).clamp(1, c.hkv);
    let each = c.hkv.div_ceil(parts);
    let parts = c.hkv.div_ceil(each);
    cpu.pool.run(c.rows * parts, |task| {
        let (row, part) = (task / parts, task % parts);
        let heads = part * each..c.hkv.min((part + 1) * each);
        // SAFETY: rows and heads exist, their queries and outputs too (asserted above), and the pages
        // that they see (asserted by the caller); a task writes the outputs of its own heads; the
        // family of the kernels is AMX (`takes`).
        unsafe {
            match c.d / LINE {
                1 => all.run::<1>(row, heads),
                2 => all.run::<2>(row, heads),
                3 => all.run::<3>(row, heads),
                _ => all.run::<4>(row, heads),
            }
        }
    });
}

/// Workspace of a task, `N` lines of channels to a head.
#[repr(C, align(64))]
struct Work<const N: usize> {
    /// (N, SIDE, group) words: element k of query g, pairs along k.
    queries: [u32; MAX_D / 2 * GROUP],
    /// (BLOCK, group)
    products: [f32; BLOCK * GROUP],
    /// (group, BLOCK), A_ROW apart, as [`softmax`] takes them.
    scores: [f32; GROUP * A_ROW],
    /// Weights of a query, rounded to bf16.
    weights: [f32; BLOCK],
    /// (group, N, 2, SIDE): the even channels of each line, then the odd ones.
    out: [[[[f32; SIDE]; 2]; N]; GROUP],
    max: [f32; GROUP],
    sum: [f32; GROUP],
}

impl All<'_> {
    /// # Safety
    /// AMX; `row` and `heads` exist, and so do the pages that the row sees; d is `N` lines; no other
    /// thread touches the outputs of these heads.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run<const N: usize>(&self, row: usize, heads: std::ops::Range<usize>) {
        let CachedAttention { h, hkv, d, window, scale, .. } = self.c;
        let group = h / hkv;
        let place = &self.places[row * self.c.place_len()..][..self.c.place_len()];
        let (position, pages) = (place[0] as usize, &place[1..]);
        let blocks = position.saturating_sub(window) / BLOCK..position / BLOCK + 1;
        let mut work = Work::<N> {
            queries: [0; MAX_D / 2 * GROUP],
            products: [0.0; BLOCK * GROUP],
            scores: [0.0; GROUP * A_ROW],
            weights: [0.0; BLOCK],
            out: [[[[0.0; SIDE]; 2]; N]; GROUP],
            max: [0.0; GROUP],
            sum: [0.0; GROUP],
        };
        // SAFETY: page `pages[b]` of every block that is seen exists and holds (hkv, BLOCK, d); the
        // tile registers are configured for this group until `tilerelease`.
        unsafe {
            let at = |head: usize, block: usize| (pages[block] as usize * hkv + head) * BLOCK * d;
            configure(group);
            for head in heads.clone() {
                let first = (row * h + head * group) * d;
                work.pack_queries(self.q.get().add(first), group);
                (work.max, work.sum) = ([f32::NEG_INFINITY; GROUP], [0.0; GROUP]);
                for block in blocks.clone() {
                    // What is read after this block: the next one, or the first one of the next head.
                    let next = match (block + 1 < blocks.end, head + 1 < heads.end) {
                        (true, _) => at(head, block + 1),
                        (false, true) => at(head + 1, blocks.start),
                        (false, false) => at(head, block),
                    };
                    let here = at(head, block);
                    work.multiply_keys(self.k.get().add(here), group);
                    softmax(
                        self.kernels,
                        &Scores {
                            scores: work.scores.as_mut_ptr(),
                            rows: group,
                            key0: block * BLOCK,
                            first: position,
                            step: 0,
                            window,
                            scale,
                            max: work.max.as_mut_ptr(),
                            sum: work.sum.as_mut_ptr(),
                            out: work.out.as_mut_ptr().cast(),
                            out_ld: d,
                            d,
                            fresh: block == blocks.start,
                        },
                    );
                    let (lo, hi) = seen(position, window, block * BLOCK);
                    let (v, next) =
                        (self.v.get().add(here), [self.k, self.v].map(|x| x.get().add(next)));
                    for g in 0..group {
                        work.round_weights(g);
                        work.multiply_values(v, next, (lo, hi), g, block == blocks.start);
                    }
                }
                for g in 0..group {
                    work.store(g, self.out.get().add(first + g * d));
                }
            }
            release();
        }
    }
}

impl<const N: usize> Work<N> {
    /// # Safety
    /// AVX512-BF16; `group` queries of `N` lines at `q`.
    #[inline(always)]
    unsafe fn pack_queries(&mut self, q: *const f32, group: usize) {
        for g in 0..group {
            for line in 0..N {
                let mut words = [0u32; SIDE];
                // SAFETY: 32 floats of line < N of query g < group.
                unsafe {
                    let q = q.add((g * N + line) * LINE);
                    let pairs =
                        _mm512_cvtne2ps_pbh(_mm512_loadu_ps(q.add(SIDE)), _mm512_loadu_ps(q));
                    let pairs = transmute::<__m512bh, __m512i>(pairs);
                    _mm512_storeu_si512(words.as_mut_ptr().cast(), pairs);
                }
                for (w, word) in words.into_iter().enumerate() {
                    self.queries[(line * SIDE + w) * group + g] = word;
                }
            }
        }
    }

    /// Scores of a block of keys, not scaled.
    ///
    /// # Safety
    /// AMX, configured for `group`; the queries are packed; BLOCK rows of `N` lines at `k`.
    #[inline(always)]
    unsafe fn multiply_keys(&mut self, k: *const u16, group: usize) {
        // A single query's scores are a row as they come.
        let to = if group == 1 { &mut self.scores[..] } else { &mut self.products[..] };
        // SAFETY: BLOCK keys, packed queries, and room for BLOCK rows of `group` sums in both.
        unsafe { scores(k, self.queries.as_ptr(), to.as_mut_ptr(), N, group) };
        if group > 1 {
            for g in 0..group {
                for i in 0..BLOCK {
                    self.scores[g * A_ROW + i] = self.products[i * group + g];
                }
            }
        }
    }

    /// # Safety
    /// AVX512-BF16.
    #[inline(always)]
    unsafe fn round_weights(&mut self, g: usize) {
        for i in (0..BLOCK).step_by(SIDE) {
            // SAFETY: 16 weights from i < BLOCK on, of row g < GROUP.
            unsafe {
                let x = _mm512_loadu_ps(self.scores.as_ptr().add(g * A_ROW + i));
                let x = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                let x = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x));
                _mm512_storeu_si512(self.weights.as_mut_ptr().add(i).cast(), x);
            }
        }
    }

    /// Adds the weighted values of a block to output g: of each 32 keys the even and the odd ones by
    /// themselves, then both to the block's sum. Asks for what lies at `next` meanwhile.
    ///
    /// # Safety
    /// AVX-512; BLOCK rows of `N` lines at `v`, of which rows lo .. hi count.
    #[inline(always)]
    unsafe fn multiply_values(
        &mut self,
        v: *const u16,
        next: [*const u16; 2],
        (lo, hi): (usize, usize),
        g: usize,
        fresh: bool,
    ) {
        // SAFETY: rows below hi <= BLOCK of N lines; weights of BLOCK keys; outputs of N lines.
        unsafe {
            let zero = [[_mm512_setzero_ps(); 2]; N];
            let mut total = zero;
            for line in (0..BLOCK).step_by(LINE) {
                let (start, end) = (lo.max(line), hi.min(line + LINE));
                let mut sums = [zero; 2];
                let mut key = start;
                let row = |key: usize| v.wrapping_add(key * N * LINE);
                let [even, odd] = &mut sums;
                if key < end && key % 2 == 1 {
                    add_value(odd, self.weights[key], row(key));
                    key += 1;
                }
                while key + 1 < end {
                    add_value(even, self.weights[key], row(key));
                    add_value(odd, self.weights[key + 1], row(key + 1));
                    if g == 0 {
                        prefetch::<N>(next, key);
                    }
                    key += 2;
                }
                if key < end {
                    add_value(even, self.weights[key], row(key));
                }
                for j in 0..N {
                    for side in 0..2 {
                        let line = _mm512_add_ps(sums[0][j][side], sums[1][j][side]);
                        total[j][side] = _mm512_add_ps(total[j][side], line);
                    }
                }
            }
            for (out, total) in self.out[g].iter_mut().zip(total) {
                for (out, total) in out.iter_mut().zip(total) {
                    let out = out.as_mut_ptr();
                    let total =
                        if fresh { total } else { _mm512_add_ps(_mm512_loadu_ps(out), total) };
                    _mm512_storeu_ps(out, total);
                }
            }
        }
    }

    /// Writes output g, divided by the sum of its weights.
    ///
    /// # Safety
    /// `N` lines of floats at `out`.
    #[inline(always)]
    unsafe fn store(&self, g: usize, out: *mut f32) {
        let share = 1.0 / self.sum[g];
        for (line, [even, odd]) in self.out[g].iter().enumerate() {
            for i in 0..SIDE {
                // SAFETY: channels 2 i and 2 i + 1 of line < N.
                unsafe {
                    *out.add(line * LINE + 2 * i) = even[i] * share;
                    *out.add(line * LINE + 2 * i + 1) = odd[i] * share;
                }
            }
        }
    }
}

/// Adds a weighted value of `N` lines: its even channels, its odd ones.
///
/// # Safety
/// AVX-512; `N` lines at `value`.
#[inline(always)]
unsafe fn add_value<const N: usize>(sums: &mut [[__m512; 2]; N], weight: f32, value: *const u16) {
    // SAFETY: the conditions of this function.
    unsafe {
        let weight = _mm512_set1_ps(weight);
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        for (j, sums) in sums.iter_mut().enumerate() {
            let x = _mm512_loadu_si512(value.add(j * LINE).cast());
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
            let odd = _mm512_castsi512_ps(_mm512_and_si512(x, upper));
            sums[0] = _mm512_fmadd_ps(weight, even, sums[0]);
            sums[1] = _mm512_fmadd_ps(weight, odd, sums[1]);
        }
    }
}

/// Asks for two rows, of keys and of values, that will be read later.
#[inline(always)]
fn prefetch<const N: usize>(next: [*const u16; 2], row: usize) {
    for x in next {
        for j in 0..2 * N {
            // SAFETY: a prefetch reads nothing, any address is allowed; SSE is part of x86-64.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add((row * N + j) * LINE).cast());
            }
        }
    }
}

/// Registers 0 to 3: sums of 16 keys and `group` queries; 4 and 5: 16 keys of 16 words; 6: 16 words of
/// the queries. Source: Intel SDM vol. 1, 18.2.
///
/// # Safety
/// AMX; to be followed by [`release`].
#[inline(always)]
unsafe fn configure(group: usize) {
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    config.0[0] = 1;
    for register in 0..8 {
        let bytes = if register == 4 || register == 5 { 64 } else { 4 * group };
        config.0[16 + 2 * register] = bytes as u8;
        config.0[48 + register] = SIDE as u8;
    }
    // SAFETY: 64 bytes of a palette that every AMX has; the system has given the process its tile
    // registers, or this family would not have been chosen.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &config,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(readonly, nostack, preserves_flags));
    }
}

/// # Safety
/// AMX.
#[inline(always)]
unsafe fn release() {
    // SAFETY: the condition of this function.
    unsafe {
        asm!("tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack, preserves_flags));
    }
}

/// Products of BLOCK keys of `lines` lines with `group` queries: (BLOCK, group) at `to`.
///
/// # Safety
/// AMX, configured for `group`; the keys follow each other at `k`; (lines, SIDE, group) words at
/// `queries`.
#[inline(always)]
unsafe fn scores(k: *const u16, queries: *const u32, to: *mut f32, lines: usize, group: usize) {
    let rows = |i: usize| k.wrapping_add(i * SIDE * lines * LINE);
    // SAFETY: the conditions of this function: 16 rows of 64 bytes from each of the four pointers on
    // in every step, 16 rows of `group` words of the queries, 64 rows of `group` sums.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{q} + {ld}]",
            "tileloadd tmm4, [{k0} + {k_ld}]", "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{k1} + {k_ld}]", "tdpbf16ps tmm1, tmm5, tmm6",
            "tileloadd tmm4, [{k2} + {k_ld}]", "tdpbf16ps tmm2, tmm4, tmm6",
            "tileloadd tmm5, [{k3} + {k_ld}]", "tdpbf16ps tmm3, tmm5, tmm6",
            "add {k0}, 64", "add {k1}, 64", "add {k2}, 64", "add {k3}, 64",
            "add {q}, {step}",
            "dec {lines}",
            "jnz 2b",
            "tilestored [{c} + {ld}], tmm0", "add {c}, {step}",
            "tilestored [{c} + {ld}], tmm1", "add {c}, {step}",
            "tilestored [{c} + {ld}], tmm2", "add {c}, {step}",
            "tilestored [{c} + {ld}], tmm3",
            lines = inout(reg) lines => _,
            q = inout(reg) queries => _,
            k0 = inout(reg) k => _,
            k1 = inout(reg) rows(1) => _,
            k2 = inout(reg) rows(2) => _,
            k3 = inout(reg) rows(3) => _,
            c = inout(reg) to => _,
            k_ld = in(reg) 2 * LINE * lines,
            ld = in(reg) 4 * group,
            step = in(reg) 4 * group * SIDE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
