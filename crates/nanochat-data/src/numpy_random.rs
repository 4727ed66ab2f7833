//! numpy's `default_rng(seed).permutation(n)`: the same order from the same seed.
//!
//! nanochat shuffles its question sets with it (Hugging Face's `Dataset.shuffle` does the same), so
//! the first 100 questions are the same 100 only with equal bits. PCG64 (XSL-RR 128/64) seeded by
//! SeedSequence; a shuffle draws 32-bit halves, low half first, and rejects what is too large.
//! Source: numpy `random/bit_generator.pyx`, `src/pcg64`, `_generator.pyx` (2.4.6); O'Neill, "PCG", 2014.

/// numpy's default generator.
struct Pcg64 {
    state: u128,
    increment: u128,
    /// The upper half of the last word, not yet used.
    half: Option<u32>,
}

const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

impl Pcg64 {
    fn new(seed: u32) -> Self {
        let words = seed_state(seed);
        let wide = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        let increment = (wide(words[2], words[3]) << 1) | 1;
        let mut rng = Pcg64 { state: 0, increment, half: None };
        rng.step();
        rng.state = rng.state.wrapping_add(wide(words[0], words[1]));
        rng.step();
        rng
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        let word = folded.rotate_right((self.state >> 122) as u32);
        self.half = Some((word >> 32) as u32);
        word as u32
    }

    /// Uniform in `0..=last`: words cut to as many bits as `last` has, until one is not above it.
    fn up_to(&mut self, last: u32) -> u32 {
        let mask = u32::MAX.checked_shr(last.leading_zeros()).unwrap_or(0);
        loop {
            let drawn = self.next_u32() & mask;
            if drawn <= last {
                return drawn;
            }
        }
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_state(seed: u32) -> [u64; 4] {
    const POOL: usize = 4;
    const SHIFT: u32 = 16;
    let mut factor = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ factor;
        factor = factor.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(factor);
        value ^ (value >> SHIFT)
    };
    let mix = |x: u32, y: u32| {
        let mixed = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ (mixed >> SHIFT)
    };
    let mut pool = [0u32; POOL];
    for (i, word) in pool.iter_mut().enumerate() {
        *word = hash(if i == 0 { seed } else { 0 });
    }
    for from in 0..POOL {
        for to in (0..POOL).filter(|to| *to != from) {
            pool[to] = mix(pool[to], hash(pool[from]));
        }
    }
    let mut factor = 0x8b51_f9dd_u32;
    let mut words = [0u32; 2 * POOL];
    for (i, word) in words.iter_mut().enumerate() {
        let value = pool[i % POOL] ^ factor;
        factor = factor.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(factor);
        *word = value ^ (value >> SHIFT);
    }
    std::array::from_fn(|i| u64::from(words[2 * i]) | (u64::from(words[2 * i + 1]) << 32))
}

/// `numpy.random.default_rng(seed).permutation(n)`.
///
/// Panics: for 2^32 elements or more.
///
/// ```
/// use nanochat_data::numpy_random::permutation;
/// assert_eq!(permutation(42, 10), [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]);
/// ```
pub fn permutation(seed: u32, n: usize) -> Vec<usize> {
    assert!(n < u32::MAX as usize, "a permutation of {n} elements");
    let mut rng = Pcg64::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.up_to(i as u32) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    // Golden values: numpy 2.4.6, `default_rng(seed).permutation(n)`.
    #[test]
    fn permutations_equal_numpy() {
        assert_eq!(permutation(42, 0), Vec::<usize>::new());
        assert_eq!(permutation(42, 1), [0]);
        assert_eq!(permutation(42, 2), [1, 0]);
        assert_eq!(
            permutation(42, 37),
            [
                27, 18, 26, 5, 4, 23, 36, 7, 25, 32, 10, 22, 20, 34, 16, 6, 24, 29, 28, 9, 30, 19,
                3, 0, 15, 17, 31, 12, 21, 11, 14, 35, 2, 33, 1, 13, 8
            ]
        );
        assert_eq!(
            permutation(0, 20),
            [4, 19, 6, 2, 13, 16, 3, 11, 10, 8, 0, 12, 7, 5, 18, 17, 14, 9, 1, 15]
        );
    }

    #[test]
    fn the_orders_of_mmlu_and_gsm8k_equal_numpy() {
        // Folded: sum over h = (h * 1000003 + v) mod 2^61 - 1.
        let fold = |h: u128, &v: &usize| (h * 1_000_003 + v as u128) % ((1 << 61) - 1);
        let mmlu = permutation(42, 14_042);
        assert_eq!(&mmlu[..6], [1469, 122, 5555, 7550, 10165, 13363]);
        assert_eq!(mmlu.iter().fold(0, fold), 1_816_719_064_643_249_313);
        let gsm8k = permutation(42, 1_319);
        assert_eq!(&gsm8k[..6], [30, 754, 429, 1010, 1284, 953]);
        assert_eq!(gsm8k.iter().fold(0, fold), 1_067_895_076_757_940_700);
    }
}
