//! Random draws that are the same on every machine: a seed, a stream and an index in, choices out.

/// Stretches one counter into well mixed bits (the SplitMix64 finaliser).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The step of SplitMix64: the golden ratio in 64 bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Independent sequences under one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Choices made once, for the whole world.
    World = 1,
    /// Pretraining documents.
    Document = 2,
    /// Documents for validation loss.
    Validation = 3,
    /// SFT conversations.
    Conversation = 4,
    /// Test items.
    Test = 5,
    /// Questions to learn from by reward.
    Practice = 6,
}

/// A SplitMix64 generator.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// The generator of item `i` of `stream` under `seed`; no state is shared between items.
    pub(super) fn new(seed: u64, stream: Stream, i: u64) -> Rng {
        // Nested, not one sum: a sum would give (seed 7, item 42) and (seed 42, item 7) one state.
        let under_seed = mix(seed.wrapping_add(STEP)).wrapping_add(stream as u64);
        Rng(mix(mix(under_seed).wrapping_add(i)))
    }

    /// The next 64 bits.
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Uniform in `0..n`; the bias of the multiply is below `n / 2^64`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a draw needs at least one choice");
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Uniform in `lo..=hi`.
    pub(super) fn range(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.below((hi - lo + 1) as usize) as u64
    }

    /// True in `percent` of 100 draws.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One element.
    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// One element of a weighted table.
    pub(super) fn weighted<T: Copy>(&mut self, table: &[(T, usize)]) -> T {
        let mut left = self.below(table.iter().map(|e| e.1).sum());
        for &(kind, weight) in table {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        unreachable!("the draw is below the sum of the weights")
    }

    /// Fisher-Yates, in place.
    pub(super) fn shuffle<T>(&mut self, v: &mut [T]) {
        for i in (1..v.len()).rev() {
            v.swap(i, self.below(i + 1));
        }
    }

    /// `k` different elements (all of them if there are fewer), in random order.
    pub(super) fn sample<'a, T>(&mut self, from: &'a [T], k: usize) -> Vec<&'a T> {
        let mut index: Vec<usize> = (0..from.len()).collect();
        let k = k.min(from.len());
        for i in 0..k {
            let j = i + self.below(index.len() - i);
            index.swap(i, j);
        }
        index[..k].iter().map(|&i| &from[i]).collect()
    }
}

/// A hash of `text` under `seed` and `tag`, uniform in `0..n`: decides what is held out.
pub(super) fn bucket(seed: u64, tag: &str, text: &str, n: usize) -> usize {
    let mut h = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
    for b in tag.bytes().chain([0]).chain(text.bytes()) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    ((u128::from(mix(h ^ mix(seed.wrapping_add(STEP)))) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_stream_and_index_are_not_interchangeable() {
        let first = |seed, stream, i| Rng::new(seed, stream, i).bits();
        let mut all: Vec<u64> = Vec::new();
        for a in 0..20 {
            for b in 0..20 {
                all.push(first(a, Stream::Document, b));
                all.push(first(a, Stream::Conversation, b));
            }
        }
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
    }

    #[test]
    fn weights_and_ranges_are_kept() {
        let rng = &mut Rng::new(42, Stream::Test, 0);
        let mut count = [0_usize; 3];
        for _ in 0..10_000 {
            count[rng.weighted(&[(0, 1), (1, 2), (2, 7)])] += 1;
        }
        // Standard deviations are 30, 40 and 46; five of them are allowed.
        for (got, want, most) in
            [(count[0], 1_000, 150), (count[1], 2_000, 200), (count[2], 7_000, 230)]
        {
            assert!(got.abs_diff(want) < most, "{count:?}");
        }
        assert!((0..1_000).all(|_| (3..=5).contains(&rng.range(3, 5))));
    }

    #[test]
    fn a_sample_has_no_element_twice() {
        let rng = &mut Rng::new(42, Stream::Test, 1);
        let from: Vec<usize> = (0..30).collect();
        let mut drawn = rng.sample(&from, 10);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 10);
        assert_eq!(rng.sample(&from, 99).len(), 30);
    }

    #[test]
    fn one_bucket_in_ten_is_a_tenth_and_depends_on_the_seed() {
        let in_first = |seed| -> Vec<u32> {
            (0..10_000).filter(|i| bucket(seed, "x", &i.to_string(), 10) == 0).collect()
        };
        let (a, b) = (in_first(1), in_first(2));
        assert!(a.len().abs_diff(1_000) < 150, "{}", a.len());
        let both = a.iter().filter(|i| b.contains(i)).count();
        assert!(both.abs_diff(100) < 50, "{both}");
    }
}
