//! The machine's own limits, measured beside the kernels: multiply-adds that never leave the
//! registers, and reading memory.
//!
//! In: a number of threads. Out: FLOP/s or bytes/s, the best of a few runs.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::chunks::{CHUNK, each};
use super::gemm::Shelf;
use super::math::simd_fn;
use super::pool::Pool;
use super::simd::{Kernels, Simd};

/// The arithmetic whose peak is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Multiply-add in f32.
    F32,
    /// Products of bf16 pairs, sums in f32; only [`Simd::Amx`] and [`Simd::Avx512Bf16`] have it.
    Bf16,
}

/// Multiply-adds in registers, in FLOP/s (two a multiply-add), all threads together.
///
/// None if these kernels have no instruction for it. Takes about `5 * time`.
pub fn flops(
    kernels: &Kernels,
    arithmetic: Arithmetic,
    threads: usize,
    time: Duration,
) -> Option<f64> {
    let rounds: fn(usize) -> f64 = match (kernels.simd(), arithmetic) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `kernels` proves that the machine has the instructions, here and below.
        (Simd::Amx, Arithmetic::Bf16) => |n| unsafe { super::gemm::amx::rounds(n) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Simd::Avx512Bf16, Arithmetic::Bf16) => |n| unsafe { x86::bf16(n) },
        #[cfg(target_arch = "x86_64")]
        (Simd::Amx | Simd::Avx512Bf16 | Simd::Avx512, Arithmetic::F32) => {
            // SAFETY: as above.
            |n| unsafe { x86::avx512(n) }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Simd::Avx2, Arithmetic::F32) => |n| unsafe { x86::avx2(n) },
        (_, Arithmetic::F32) => portable,
        (_, Arithmetic::Bf16) => return None,
    };
    let start = Instant::now();
    let flops_of_1000 = rounds(1000);
    let seconds = start.elapsed().as_secs_f64().max(1e-7);
    let n = (1000.0 * time.as_secs_f64() / seconds).max(1000.0) as usize;
    let each = move || flops_of_1000 / 1000.0 * n as f64 + 0.0 * rounds(n);
    Some((0..5).map(|_| together(threads, &each)).fold(0.0, f64::max))
}

/// Reading `bytes` of memory (choose several times the last-level cache), in bytes/s, all threads
/// together, each its own part in four streams, on large pages where the system has them: as packed
/// weights are read.
pub fn read_bandwidth(threads: usize, bytes: usize) -> f64 {
    const STREAMS: usize = 4;
    /// Bytes of a stream at a time.
    const STEP: usize = 256;
    let mut data = Shelf::default().take(bytes / 4);
    let data: &[u8] = {
        let data = data.bytes_mut();
        data.fill(1);
        data
    };
    let part = data.len() / threads.max(1);
    let parts: Vec<&[u8]> = data.chunks(part.max(1)).take(threads.max(1)).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let each = || {
        let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % parts.len();
        let stream = parts[index].len() / STREAMS / STEP * STEP;
        let mut sums = [0u8; 64];
        for at in (0..stream).step_by(STEP) {
            for first in (0..STREAMS).map(|s| s * stream) {
                for line in parts[index][first + at..][..STEP].chunks_exact(64) {
                    for (sum, x) in sums.iter_mut().zip(line) {
                        *sum = sum.wrapping_add(*x);
                    }
                }
            }
        }
        black_box(sums);
        (STREAMS * stream) as f64
    };
    (0..5).map(|_| together(threads, &each)).fold(0.0, f64::max)
}

/// What memory gives to plain passes, in bytes/s, all threads together; lines that are fetched in order to
/// be overwritten do not count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Streams {
    /// `a[i] = b[i]`: 8 bytes an element.
    pub copy: f64,
    /// `a[i] = b[i] + s c[i]`: 12 bytes an element. Source: McCalpin's STREAM.
    pub triad: f64,
}

type Pass<'a> = &'a (dyn Fn(&mut [f32], &[f32], &[f32]) + Sync);

/// Passes over arrays of `len` floats in all, cut like those of the operations. At the size of what an
/// operation moves they show the caches that it meets; at several times the last one, memory.
pub fn streams(kernels: &Kernels, threads: usize, len: usize) -> Streams {
    let pool = Pool::new(threads);
    let (b, c) = (vec![1f32; len], vec![2f32; len]);
    let mut a = vec![0f32; len];
    let mut best = |bytes: usize, pass: Pass<'_>| {
        let seconds = (0..7).map(|_| {
            let start = Instant::now();
            each(&pool, [(a.as_mut_slice(), CHUNK)], |i, [a]| {
                let range = i * CHUNK..i * CHUNK + a.len();
                pass(a, &b[range.clone()], &c[range]);
            });
            start.elapsed().as_secs_f64()
        });
        (bytes * len) as f64 / seconds.fold(f64::INFINITY, f64::min).max(1e-9)
    };
    let copy = best(8, &|a, b, _| copy_chunk(kernels, a, b));
    let triad = best(12, &|a, b, c| triad_chunk(kernels, a, b, c, 3.0));
    black_box(&a);
    Streams { copy, triad }
}

simd_fn! {
    fn copy_chunk(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a = *b;
        }
    }
}

simd_fn! {
    fn triad_chunk(a: &mut [f32], b: &[f32], c: &[f32], s: f32) {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = b + s * c;
        }
    }
}

/// Runs `each` on every thread at once; the sum of what they return by the time of the slowest.
fn together(threads: usize, each: &(impl Fn() -> f64 + Sync)) -> f64 {
    let barrier = Barrier::new(threads.max(1));
    let work = || {
        barrier.wait();
        let start = Instant::now();
        let amount = each();
        (amount, start.elapsed().as_secs_f64())
    };
    let results: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| t.join().expect("no panic in here");
        std::iter::once(mine).chain(others.into_iter().map(join)).collect()
    });
    let slowest = results.iter().map(|r| r.1).fold(1e-9, f64::max);
    results.iter().map(|r| r.0).sum::<f64>() / slowest
}

/// `n` rounds of multiply-adds on eight registers of eight sums; returns the FLOP done.
fn portable(n: usize) -> f64 {
    let (x, y) = (black_box([0.5f32; 8]), black_box([0.25f32; 8]));
    let mut sums = black_box([[0.0f32; 8]; 8]);
    for _ in 0..n {
        for sums in &mut sums {
            for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                *sum = *sum * x + y;
            }
        }
    }
    black_box(sums);
    (n * 8 * 8 * 2) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(n: usize) -> f64 {
        let (x, y) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
        let mut sums = [_mm256_setzero_ps(); 12];
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
        (n * 12 * 8 * 2) as f64
    }

    #[target_feature(enable = "avx512f")]
    pub fn avx512(n: usize) -> f64 {
        let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
        (n * 24 * 16 * 2) as f64
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16(n: usize) -> f64 {
        let bits = black_box(_mm512_set1_epi32(0x3f00_3f00));
        // SAFETY: both types are 512 bits without meaning of their own.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) };
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
        (n * 24 * 32 * 2) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_a_peak_and_memory_can_be_read() {
        for kernels in Kernels::available() {
            let peak = flops(&kernels, Arithmetic::F32, 2, Duration::from_millis(1));
            assert!(peak.is_some_and(|peak| peak > 1e7), "{}", kernels.simd());
        }
        assert!(read_bandwidth(2, 1 << 20) > 1e6);
        let streams = streams(&Kernels::detect(), 2, 100_000);
        assert!(streams.copy > 1e6 && streams.triad > 1e6, "{streams:?}");
    }
}
