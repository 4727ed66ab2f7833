//! Matrix kernels for AMX: tiles of 32 x 32 sums in four of the eight tile registers, products of
//! pairs of bf16 (`tdpbf16ps`).
//!
//! A tile register holds 16 rows of 16 words. One instruction adds 16 words along k to 256 sums, in
//! an order of its own: even k and odd k separately from zero, then their sum to the total, all f32
//! with subnormals as zero. The lanes of [`Amx`] do the same step by step, so that few rows have the
//! bits of many. Packed panels are zero up to a multiple of 16 words. The instructions are written
//! as assembly: their intrinsics are not stable. Source: Intel SDM vol. 2, TDPBF16PS.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::{
    Avx512Pairs, floats_of_int8, masked_pairs_across, masked_pairs_along, store_turned,
};
use super::kernel::{A_ROW, Kernel, Lanes, Piece, Tile};
use super::matvec::{self, Dots};
use super::walk::{self, Format, Walk};

/// Products of pairs of bf16 in tile registers. Subnormals count as zero.
#[derive(Clone, Copy)]
pub(crate) struct Amx;

/// Sums of one register of columns: what is complete, and even and odd k of the current 16 words.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    total: __m512,
    even: __m512,
    odd: __m512,
}

impl Lanes for Amx {
    const N: usize = 16;
    const STEP: usize = 2;
    const RAW: bool = false;
    type Sums = Sums;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Sums {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        let zero = unsafe { _mm512_setzero_ps() };
        Sums { total: zero, even: zero, odd: zero }
    }
    #[inline(always)]
    unsafe fn load(src: *const f32) -> Sums {
        // SAFETY: the conditions of this function.
        unsafe { Sums { total: _mm512_loadu_ps(src), ..Self::zero() } }
    }
    #[inline(always)]
    unsafe fn store(dst: *mut f32, sums: Sums) {
        // SAFETY: AVX-512 and 16 floats at dst are conditions of `Lanes`.
        unsafe { _mm512_storeu_ps(dst, sums.total) }
    }
    #[inline(always)]
    unsafe fn scale_add(factor: f32, x: Sums, sums: Sums) -> Sums {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        let total = unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), x.total, sums.total) };
        Sums { total, ..sums }
    }
    #[inline(always)]
    unsafe fn words(src: *const u32) -> __m512i {
        // SAFETY: the conditions of this function.
        unsafe { Avx512Pairs::words(src) }
    }
    #[inline(always)]
    unsafe fn splat(src: *const u32) -> __m512i {
        // SAFETY: the conditions of this function.
        unsafe { Avx512Pairs::splat(src) }
    }
    #[inline(always)]
    unsafe fn mul_add(sums: Sums, a: __m512i, b: __m512i) -> Sums {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        unsafe {
            let even = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let odd = |x| _mm512_castsi512_ps(_mm512_and_si512(x, upper));
            Sums {
                total: sums.total,
                even: _mm512_fmadd_ps(even(a), even(b), sums.even),
                odd: _mm512_fmadd_ps(odd(a), odd(b), sums.odd),
            }
        }
    }
    #[inline(always)]
    unsafe fn words_of_int8(src: *const u8) -> __m512i {
        // SAFETY: the conditions of this function.
        unsafe { Avx512Pairs::words_of_int8(src) }
    }
    /// Even and odd k are multiplied apart, so they need not be made pairs first.
    #[inline(always)]
    unsafe fn mul_add_int8(sums: Sums, a: __m512i, src: *const u8) -> Sums {
        // SAFETY: AVX-512 and 32 bytes at src are conditions of `Lanes`.
        unsafe {
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(a));
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let odd = _mm512_castsi512_ps(_mm512_and_si512(a, upper));
            Sums {
                total: sums.total,
                even: _mm512_fmadd_ps(even, floats_of_int8(src), sums.even),
                odd: _mm512_fmadd_ps(odd, floats_of_int8(src.add(16)), sums.odd),
            }
        }
    }
    #[inline(always)]
    unsafe fn words_of_bf16(src: *const u8) -> __m512i {
        // SAFETY: the conditions of this function.
        unsafe { Avx512Pairs::words_of_bf16(src) }
    }
    #[inline(always)]
    unsafe fn line_end(sums: Sums) -> Sums {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        unsafe {
            let line = _mm512_add_ps(sums.even, sums.odd);
            Sums { total: _mm512_add_ps(sums.total, line), ..Self::zero() }
        }
    }
    #[inline(always)]
    fn word(x0: f32, x1: f32) -> u32 {
        Avx512Pairs::word(x0, x1)
    }
    #[inline(always)]
    unsafe fn pack_along(src: *const f32, dst: *mut u32) {
        // SAFETY: the conditions of this function.
        unsafe { Avx512Pairs::pack_along(src, dst) }
    }
    #[inline(always)]
    unsafe fn pack_across(src: *const f32, ld: usize, dst: *mut u32) {
        // SAFETY: the conditions of this function.
        unsafe { Avx512Pairs::pack_across(src, ld, dst) }
    }
    #[inline(always)]
    unsafe fn pack_turned(src: *const f32, ld: usize, dst: *mut u32, dst_ld: usize) {
        // SAFETY: the conditions of this function.
        unsafe { Avx512Pairs::pack_turned(src, ld, dst, dst_ld) }
    }
}

/// Words of a row of a tile register, and its rows.
const SIDE: usize = 16;
/// Rows and columns of C that the four registers of sums cover.
const TILE: usize = 2 * SIDE;
/// Elements along k of a row of a register.
const LINE: usize = 2 * SIDE;

impl Kernel for Amx {
    const MR: usize = TILE;
    const NR: usize = TILE;
    const WORDS: usize = SIDE;
    const A_BY_K: bool = false;

    #[inline]
    unsafe fn begin() {
        /// Palette 1, and for each register 16 rows of 64 bytes. Source: Intel SDM vol. 1, 18.2.
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        const CONFIG: Config = {
            let mut bytes = [0; 64];
            bytes[0] = 1;
            let mut register = 0;
            while register < 8 {
                bytes[16 + 2 * register] = 64;
                bytes[48 + register] = 16;
                register += 1;
            }
            Config(bytes)
        };
        // SAFETY: 64 bytes of a palette that every AMX has; the system has given the process its
        // tile registers, or this family would not have been chosen.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &CONFIG,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack, preserves_flags));
        }
    }

    #[inline]
    unsafe fn end() {
        // SAFETY: AMX is a condition of `Kernel`. Idle registers slow the core and context switches.
        unsafe {
            asm!("tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack, preserves_flags));
        }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile(t: &Tile) {
        // SAFETY: the conditions of this function; a panel has TILE rows or columns of storage,
        // zero or not, so whole registers are read; C is written for `rows` and `cols` only.
        unsafe {
            let whole = t.rows == TILE && t.cols == TILE;
            let mut buffer = MaybeUninit::<Buffer>::uninit();
            let sums: *mut f32 = buffer.as_mut_ptr().cast();
            let direct = whole && t.beta == 0.0;
            let (dst, ld) = if direct { (t.c, t.ldc) } else { (sums, TILE) };
            match (t.rows > SIDE, t.cols > SIDE) {
                (true, true) => multiply_2_by_2(t, dst, ld),
                (true, false) => multiply_2_by_1(t, dst, ld),
                (false, true) => multiply_1_by_2(t, dst, ld),
                (false, false) => multiply_1_by_1(t, dst, ld),
            }
            if !direct {
                for r in 0..t.rows {
                    add_row(t.c.add(r * t.ldc), sums.add(r * TILE), t.cols, t.beta);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn pack_a(p: &Piece, dst: *mut u32) {
        let words = p.k.div_ceil(2);
        // SAFETY: masks keep reads inside `count` rows and `k` elements; the panels of `dst` have
        // A_ROW >= words rounded up to SIDE for each of `count` rows rounded up to TILE.
        unsafe {
            if p.k_contiguous {
                for i in 0..p.count {
                    let (src, dst) = (p.src.add(i * p.ld), dst.add(i * A_ROW));
                    for w in (0..words).step_by(SIDE) {
                        let pairs = masked_pairs_along(src.wrapping_add(2 * w), p.k - 2 * w);
                        _mm512_storeu_si512(dst.add(w).cast(), pairs);
                    }
                }
                return;
            }
            for w0 in (0..words).step_by(SIDE) {
                for i in (0..p.count).step_by(SIDE) {
                    let mut rows = [_mm512_setzero_si512(); SIDE];
                    for (w, row) in rows.iter_mut().enumerate().take(words - w0) {
                        let k = 2 * (w0 + w);
                        let src = p.src.wrapping_add(k * p.ld + i);
                        *row = masked_pairs_across(src, p.ld, p.count - i, p.k - k);
                    }
                    store_turned(rows, dst.add(i * A_ROW + w0), A_ROW);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn pack_b(p: &Piece, dst: *mut u32) {
        let words = p.k.div_ceil(2);
        // SAFETY: masks keep reads inside `count` columns and `k` elements; `dst` has TILE words for
        // each word step, rounded up to SIDE.
        unsafe {
            for w0 in (0..words).step_by(SIDE) {
                for j in [0, SIDE] {
                    let dst = dst.add(w0 * TILE + j);
                    let mut rows = [_mm512_setzero_si512(); SIDE];
                    if p.k_contiguous {
                        for (c, row) in rows.iter_mut().enumerate().take(p.count.max(j) - j) {
                            let src = p.src.wrapping_add((j + c) * p.ld + 2 * w0);
                            *row = masked_pairs_along(src, p.k - 2 * w0);
                        }
                        store_turned(rows, dst, TILE);
                        continue;
                    }
                    for w in 0..SIDE {
                        let k = 2 * (w0 + w);
                        let (cols, left) = (p.count.max(j) - j, p.k.max(k) - k);
                        let src = p.src.wrapping_add(k * p.ld + j);
                        let pairs = masked_pairs_across(src, p.ld, cols, left);
                        _mm512_storeu_si512(dst.add(w * TILE).cast(), pairs);
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn dots(d: &Dots) {
        // SAFETY: the conditions of this function.
        unsafe { matvec::dots::<Amx>(d) }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn walk(w: &Walk) {
        // SAFETY: the conditions of this function.
        unsafe { walk::walk::<Amx, 2, 4>(w) }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn widen(src: *const u8, words: usize, format: Format, dst: *mut u32) {
        // SAFETY: the conditions of this function.
        unsafe { walk::widen::<Amx, 2>(src, words, format, dst) }
    }
}

/// A product of 32 rows and 32 columns whose sums stay together: `sums (+)= a b`.
pub(crate) struct Strip {
    /// Rows of 16 words, `a_ld` words apart; rows 16 to 31 begin `lower` words on, the next 16 words along k
    /// `a_line` words on.
    pub a: *const u32,
    pub a_ld: usize,
    pub lower: usize,
    pub a_line: usize,
    /// TILE words for each word step.
    pub b: *const u32,
    /// Word steps by 16: at least 1.
    pub lines: usize,
    /// TILE rows of TILE floats.
    pub sums: *mut f32,
    /// Whether the sums begin with what is there, or with zero.
    pub adds: bool,
}

impl Amx {
    /// One [`Strip`].
    ///
    /// # Safety
    /// The machine has this family and the thread holds `Tiles` of it; the pointers hold what the fields say.
    #[inline]
    pub(crate) unsafe fn multiply(s: &Strip) {
        // SAFETY: the conditions of this function: the registers are configured, and every load and store
        // lies in what the fields name.
        unsafe {
            asm!(
                "test {adds}, {adds}",
                "jz 3f",
                "tileloadd tmm0, [{c} + {b_ld}]",
                "tileloadd tmm1, [{c} + {b_ld} + 64]",
                "tileloadd tmm2, [{c} + {b_ld} + 2048]",
                "tileloadd tmm3, [{c} + {b_ld} + 2112]",
                "jmp 2f",
                "3:",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm6, [{b} + {b_ld}]", "tileloadd tmm4, [{a} + {a_ld}]",
                "tileloadd tmm7, [{b} + {b_ld} + 64]", "tileloadd tmm5, [{a1} + {a_ld}]",
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, {a_line}",
                "add {a1}, {a_line}",
                "add {b}, 2048",
                "dec {lines}",
                "jnz 2b",
                "tilestored [{c} + {b_ld}], tmm0",
                "tilestored [{c} + {b_ld} + 64], tmm1",
                "tilestored [{c} + {b_ld} + 2048], tmm2",
                "tilestored [{c} + {b_ld} + 2112], tmm3",
                adds = in(reg) usize::from(s.adds),
                lines = inout(reg) s.lines => _,
                a = inout(reg) s.a => _,
                a1 = inout(reg) s.a.wrapping_add(s.lower) => _,
                a_ld = in(reg) s.a_ld * 4,
                a_line = in(reg) s.a_line * 4,
                b = inout(reg) s.b => _,
                b_ld = in(reg) TILE * 4,
                c = in(reg) s.sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

#[repr(C, align(64))]
struct Buffer([f32; TILE * TILE]);

/// `c = beta * c + sums` for the first `cols` columns.
#[inline(always)]
unsafe fn add_row(c: *mut f32, sums: *const f32, cols: usize, beta: f32) {
    for j in (0..cols).step_by(SIDE) {
        let mask = ((1u32 << SIDE.min(cols - j)) - 1) as __mmask16;
        // SAFETY: the mask keeps C inside `cols` columns, which the caller has, and whole registers
        // of sums are stored.
        unsafe {
            let c = c.add(j);
            let mut sums = _mm512_load_ps(sums.add(j));
            if beta != 0.0 {
                sums = _mm512_fmadd_ps(_mm512_set1_ps(beta), _mm512_maskz_loadu_ps(mask, c), sums);
            }
            _mm512_mask_storeu_ps(c, mask, sums);
        }
    }
}

/// A function that multiplies all words of a tile and stores the sums at `dst`, rows `ld` apart:
/// registers 0 to 3 are sums, 4 and 5 rows of A, 6 and 7 columns of B.
macro_rules! multiply {
    ($name:ident, $($zero:literal)*; $($load:literal)*; $($dot:literal)*; $($store:literal)*) => {
        #[inline(always)]
        unsafe fn $name(t: &Tile, dst: *mut f32, ld: usize) {
            // SAFETY: `words` is a multiple of SIDE; A has that many words in each of its rows,
            // A_ROW apart, B in each of its TILE columns; `dst` has the rows that are stored; the
            // registers are configured: every caller of `tile` has called `begin`.
            unsafe {
                asm!(
                    $($zero,)*
                    "test {steps}, {steps}",
                    "jz 3f",
                    "2:",
                    $($load,)*
                    $($dot,)*
                    "add {a}, 64",
                    "add {a1}, 64",
                    "add {b}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "3:",
                    $($store,)*
                    "/* {c1} is not used by all */",
                    steps = inout(reg) t.words / SIDE => _,
                    a = inout(reg) t.a => _,
                    a1 = inout(reg) t.a.wrapping_add(SIDE * A_ROW) => _,
                    b = inout(reg) t.b => _,
                    a_ld = in(reg) A_ROW * 4,
                    b_ld = in(reg) TILE * 4,
                    c = in(reg) dst,
                    c1 = in(reg) dst.wrapping_add(SIDE * ld),
                    c_ld = in(reg) ld * 4,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

multiply!(multiply_2_by_2,
    "tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3";
    "tileloadd tmm6, [{b} + {b_ld}]" "tileloadd tmm4, [{a} + {a_ld}]"
    "tileloadd tmm7, [{b} + {b_ld} + 64]" "tileloadd tmm5, [{a1} + {a_ld}]";
    "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
    "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7";
    "tilestored [{c} + {c_ld}], tmm0" "tilestored [{c} + {c_ld} + 64], tmm1"
    "tilestored [{c1} + {c_ld}], tmm2" "tilestored [{c1} + {c_ld} + 64], tmm3");
multiply!(multiply_2_by_1,
    "tilezero tmm0" "tilezero tmm2";
    "tileloadd tmm6, [{b} + {b_ld}]" "tileloadd tmm4, [{a} + {a_ld}]"
    "tileloadd tmm5, [{a1} + {a_ld}]";
    "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm2, tmm5, tmm6";
    "tilestored [{c} + {c_ld}], tmm0" "tilestored [{c1} + {c_ld}], tmm2");
multiply!(multiply_1_by_2,
    "tilezero tmm0" "tilezero tmm1";
    "tileloadd tmm6, [{b} + {b_ld}]" "tileloadd tmm4, [{a} + {a_ld}]"
    "tileloadd tmm7, [{b} + {b_ld} + 64]";
    "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7";
    "tilestored [{c} + {c_ld}], tmm0" "tilestored [{c} + {c_ld} + 64], tmm1");
multiply!(multiply_1_by_1,
    "tilezero tmm0";
    "tileloadd tmm6, [{b} + {b_ld}]" "tileloadd tmm4, [{a} + {a_ld}]";
    "tdpbf16ps tmm0, tmm4, tmm6";
    "tilestored [{c} + {c_ld}], tmm0");

/// `n` rounds of products on tile registers, for the peak; returns the FLOP done.
///
/// # Safety
/// The machine has this family.
pub(crate) unsafe fn rounds(n: usize) -> f64 {
    // SAFETY: the condition of this function; registers alone are touched.
    unsafe {
        Amx::begin();
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) n.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack),
        );
        Amx::end();
    }
    (n.max(1) * 4 * SIDE * SIDE * LINE * 2) as f64
}

/// Whether the CPU has AMX with bf16 and the system lets this process use it.
///
/// Linux gives the tile registers to a process that asks (`ARCH_REQ_XCOMP_PERM`), for all its
/// threads; asking again is harmless.
#[cfg(target_os = "linux")]
pub(crate) fn is_available() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE
    {
        return false;
    }
    let mut result = ARCH_PRCTL;
    // SAFETY: this call takes two numbers and touches no memory of the process.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_available() -> bool {
    false
}
