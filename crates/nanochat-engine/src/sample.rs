//! Logits in, one id out.
//!
//! The order is fixed: repetition penalty, top-k, temperature, softmax, top-p, min-p, draw. The
//! first three of upstream (top-k, divide by T, softmax) keep upstream's order. All scratch memory
//! is kept, so a draw allocates nothing after the first; nothing ever sorts the whole vocabulary.

use std::cmp::Ordering;

use crate::rng::uniform;
use crate::{Error, Result};

/// How an id is drawn; whoever holds one holds valid values.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: Vec<(u32, f32)>,
    seed: u64,
}

impl SampleOptions {
    /// Temperature in 0..=2 (0: the most likely id, the lowest one of equals), `top_k >= 1`.
    ///
    /// Errors: [`Error::Option`].
    pub fn new(temperature: f32, top_k: Option<usize>, seed: u64) -> Result<Self> {
        if !(0.0..=2.0).contains(&temperature) {
            return Err(refuse("temperature", temperature, "a number from 0 to 2"));
        }
        if top_k == Some(0) {
            return Err(refuse("top_k", 0, "1 or more, or leave it out to keep every id"));
        }
        Ok(Self { temperature, top_k, seed, ..Self::greedy() })
    }

    /// Always the most likely id.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// Keeps the fewest most likely ids whose probabilities reach `p`, in (0, 1].
    ///
    /// Source: nucleus sampling, arXiv:1904.09751. Errors: [`Error::Option`].
    pub fn with_top_p(mut self, p: Option<f32>) -> Result<Self> {
        if let Some(p) = p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(refuse("top_p", p, "a number above 0 and up to 1"));
        }
        self.top_p = p.filter(|p| *p < 1.0);
        Ok(self)
    }

    /// Keeps the ids with at least `p` (in [0, 1)) of the most likely id's probability.
    ///
    /// Source: arXiv:2407.01082. Errors: [`Error::Option`].
    pub fn with_min_p(mut self, p: Option<f32>) -> Result<Self> {
        if let Some(p) = p.filter(|p| !(0.0..1.0).contains(p)) {
            return Err(refuse("min_p", p, "a number from 0 to below 1"));
        }
        self.min_p = p.filter(|p| *p > 0.0);
        Ok(self)
    }

    /// Divides positive logits of ids seen before (prompt included) by `penalty`, multiplies
    /// negative ones; 1 changes nothing.
    ///
    /// Source: CTRL, arXiv:1909.05858, section 4.1. Errors: [`Error::Option`] outside 0.1..=10.
    pub fn with_repetition_penalty(mut self, penalty: f32) -> Result<Self> {
        if !(0.1..=10.0).contains(&penalty) {
            return Err(refuse("repetition_penalty", penalty, "a number from 0.1 to 10"));
        }
        self.repetition_penalty = penalty;
        Ok(self)
    }

    /// Lowers the logits of ids that were said. Errors: [`Error::Option`] outside -2..=2.
    pub fn with_presence_penalty(mut self, penalty: f32) -> Result<Self> {
        if !(-2.0..=2.0).contains(&penalty) {
            return Err(refuse("presence_penalty", penalty, "a number from -2 to 2"));
        }
        self.presence_penalty = penalty;
        Ok(self)
    }

    /// Lowers logits each time that an id was said. Errors: [`Error::Option`] outside -2..=2.
    pub fn with_frequency_penalty(mut self, penalty: f32) -> Result<Self> {
        if !(-2.0..=2.0).contains(&penalty) {
            return Err(refuse("frequency_penalty", penalty, "a number from -2 to 2"));
        }
        self.frequency_penalty = penalty;
        Ok(self)
    }

    /// Adds to the logits of some ids. Errors: [`Error::Option`] outside -100..=100.
    pub fn with_logit_bias(mut self, bias: Vec<(u32, f32)>) -> Result<Self> {
        if let Some((_, b)) = bias.iter().find(|(_, b)| !(-100.0..=100.0).contains(b)) {
            return Err(refuse("logit_bias", b, "numbers from -100 to 100"));
        }
        self.logit_bias = bias;
        Ok(self)
    }

    /// The same options with another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// 0 means greedy.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// How many most likely ids stay.
    pub fn top_k(&self) -> Option<usize> {
        self.top_k
    }

    /// What every draw derives from.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

fn refuse(name: &'static str, value: impl ToString, allowed: &'static str) -> Error {
    Error::Option { name, value: value.to_string(), allowed }
}

/// Draws ids by one set of options; holds the scratch memory.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SampleOptions,
    /// Logits after the penalty, used only when there is one. (V)
    penalised: Vec<f32>,
    /// One bit for each id already penalised. (V / 64)
    marks: Vec<u64>,
    /// Most likely ids, best first.
    best: Vec<Candidate>,
    /// exp((logit - max) / T) of `best` or of all ids.
    weights: Vec<f32>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    /// Larger logits first, then lower ids; every logit is finite here.
    fn order(a: &Self, b: &Self) -> Ordering {
        b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
    }
}

impl Sampler {
    /// A sampler that draws by `options`.
    pub fn new(options: SampleOptions) -> Self {
        Self {
            options,
            penalised: Vec::new(),
            marks: Vec::new(),
            best: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// Draws an id from `logits` (V) for `row` at `step`: a function of these, of `seen` (the row's
    /// ids so far, read only for the repetition penalty) and of the options, of nothing else.
    ///
    /// Errors: [`Error::Logit`] if one is NaN or infinite, [`Error::LogitCount`] if there is none.
    pub fn draw(&mut self, logits: &[f32], seen: &[u32], row: u64, step: u64) -> Result<u32> {
        if logits.is_empty() {
            return Err(Error::LogitCount { found: 0, expected: 1 });
        }
        // A fold without early exit compiles to vector code; the search runs only on failure.
        if !logits.iter().fold(true, |all, x| all & x.is_finite()) {
            let id = logits.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(Error::Logit { row, step, id, value: logits[id] });
        }
        if self.options.repetition_penalty == 1.0 {
            return Ok(self.choose(logits, row, step));
        }
        let mut penalised = std::mem::take(&mut self.penalised);
        self.penalise(&mut penalised, logits, seen);
        let id = self.choose(&penalised, row, step);
        self.penalised = penalised;
        Ok(id)
    }

    fn penalise(&mut self, out: &mut Vec<f32>, logits: &[f32], seen: &[u32]) {
        let penalty = self.options.repetition_penalty;
        out.clear();
        out.extend_from_slice(logits);
        self.marks.clear();
        self.marks.resize(logits.len().div_ceil(64), 0);
        for &id in seen {
            let i = id as usize;
            let Some(x) = out.get_mut(i) else { continue };
            if self.marks[i / 64] >> (i % 64) & 1 == 0 {
                self.marks[i / 64] |= 1 << (i % 64);
                let y = if *x > 0.0 { *x / penalty } else { *x * penalty };
                *x = y.clamp(f32::MIN, f32::MAX);
            }
        }
    }

    fn choose(&mut self, logits: &[f32], row: u64, step: u64) -> u32 {
        if self.options.temperature == 0.0 {
            self.gather(logits, 1);
            return self.best[0].id;
        }
        let u = uniform(self.options.seed, row, step);
        let Some(k) = self.options.top_k.filter(|k| *k < logits.len()) else {
            self.weigh_all(logits);
            if let Some(p) = self.options.top_p {
                self.keep_nucleus(logits, f64::from(p) * sum(&self.weights));
            }
            // The largest weight is 1, so min-p is a threshold on weights.
            if let Some(p) = self.options.min_p {
                self.weights.iter_mut().filter(|w| **w < p).for_each(|w| *w = 0.0);
            }
            return pick(&self.weights, u) as u32;
        };
        self.gather(logits, k);
        self.weigh_best();
        if let Some(p) = self.options.top_p {
            let kept = nucleus_len(self.weights.iter().copied(), f64::from(p) * sum(&self.weights));
            self.weights.truncate(kept);
        }
        if let Some(p) = self.options.min_p {
            self.weights.truncate(self.weights.partition_point(|w| *w >= p));
        }
        self.best[pick(&self.weights, u)].id
    }

    /// Leaves the `k` most likely ids in `best`, best first: one pass with a rising threshold.
    fn gather(&mut self, logits: &[f32], k: usize) {
        /// Long enough for vector compares, short enough that a hit costs little.
        const LANE: usize = 32;
        let k = k.min(logits.len());
        let room = (2 * k).max(64);
        let best = &mut self.best;
        best.clear();
        let mut threshold = f32::NEG_INFINITY;
        for (lane, chunk) in logits.chunks(LANE).enumerate() {
            if !chunk.iter().fold(false, |any, x| any | (*x > threshold)) {
                continue;
            }
            for (i, &logit) in chunk.iter().enumerate() {
                if logit <= threshold {
                    continue;
                }
                best.push(Candidate { logit, id: (lane * LANE + i) as u32 });
                if best.len() == room {
                    // Later ids lose ties, so only larger logits can enter from here on.
                    best.select_nth_unstable_by(k - 1, Candidate::order);
                    best.truncate(k);
                    threshold = best[k - 1].logit;
                }
            }
        }
        if best.len() > k {
            best.select_nth_unstable_by(k - 1, Candidate::order);
            best.truncate(k);
        }
        best.sort_unstable_by(Candidate::order);
    }

    fn weigh_best(&mut self) {
        let (t, max) = (self.options.temperature, self.best[0].logit);
        self.weights.clear();
        self.weights.extend(self.best.iter().map(|c| ((c.logit - max) / t).exp()));
    }

    /// Weights of all ids, in id order.
    fn weigh_all(&mut self, logits: &[f32]) {
        let (t, max) = (self.options.temperature, largest(logits));
        self.weights.clear();
        self.weights.extend(logits.iter().map(|x| ((x - max) / t).exp()));
    }

    /// Zeroes the weights outside the nucleus: the fewest most likely ids that reach `mass`.
    ///
    /// A histogram over logits finds the bin in which `mass` is reached; only that bin is sorted.
    fn keep_nucleus(&mut self, logits: &[f32], mass: f64) {
        const BINS: usize = 1024;
        /// Weights under e^-20 share the last bin.
        const SPAN: f32 = 20.0;
        let (t, max) = (self.options.temperature, largest(logits));
        let bin = |x: f32| (((max - x) / t * (BINS as f32 / SPAN)) as usize).min(BINS - 1);
        let mut bins = [0.0_f64; BINS];
        for (x, w) in logits.iter().zip(&self.weights) {
            bins[bin(*x)] += f64::from(*w);
        }
        let mut before = 0.0;
        let mut last = 0;
        while last < BINS - 1 && before + bins[last] < mass {
            before += bins[last];
            last += 1;
        }
        self.best.clear();
        for (id, (&logit, w)) in logits.iter().zip(&mut self.weights).enumerate() {
            match bin(logit).cmp(&last) {
                Ordering::Less => {}
                Ordering::Equal => self.best.push(Candidate { logit, id: id as u32 }),
                Ordering::Greater => *w = 0.0,
            }
        }
        self.best.sort_unstable_by(Candidate::order);
        let weights = self.best.iter().map(|c| self.weights[c.id as usize]);
        let kept = nucleus_len(weights, mass - before);
        for c in &self.best[kept..] {
            self.weights[c.id as usize] = 0.0;
        }
    }
}

fn largest(logits: &[f32]) -> f32 {
    logits.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m })
}

/// Length of the shortest prefix that reaches `mass`; all of them if rounding keeps it from that.
fn nucleus_len(weights: impl ExactSizeIterator<Item = f32>, mass: f64) -> usize {
    let all = weights.len();
    let mut sum = 0.0;
    let reached = weights.into_iter().position(|w| {
        sum += f64::from(w);
        sum >= mass
    });
    reached.map_or(all, |i| i + 1)
}

/// Sum in f64, in eight lanes: one chain of additions would wait for itself V times.
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    for chunk in weights.chunks(8) {
        for (lane, w) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*w);
        }
    }
    lanes.iter().sum()
}

/// Index drawn with probability proportional to its weight; `u` in [0, 1).
fn pick(weights: &[f32], u: f64) -> usize {
    let mut left = u * sum(weights);
    let mut last = 0;
    for (i, w) in weights.iter().enumerate() {
        if *w > 0.0 {
            left -= f64::from(*w);
            last = i;
            if left < 0.0 {
                break;
            }
        }
    }
    // Rounding can leave a crumb above 0 at the end: the last id that weighs anything takes it.
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOGITS: [f32; 6] = [0.5, 2.0, -1.0, 2.0, 0.0, 1.0];

    fn options(temperature: f32, top_k: Option<usize>) -> SampleOptions {
        SampleOptions::new(temperature, top_k, 42).unwrap()
    }

    /// Counts of 20,000 draws: 20 rows, 1,000 steps each.
    fn counts(options: SampleOptions, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(options);
        let mut counts = vec![0; logits.len()];
        for row in 0..20 {
            for step in 0..1000 {
                counts[sampler.draw(logits, &[], row, step).unwrap() as usize] += 1;
            }
        }
        counts
    }

    /// Asserts that 20,000 draws follow the softmax of `kept` ids at `temperature`.
    fn assert_distribution(options: SampleOptions, temperature: f64, kept: &[usize]) {
        let counts = counts(options, &LOGITS);
        let weight = |i: usize| (f64::from(LOGITS[i]) / temperature).exp();
        let total: f64 = kept.iter().map(|i| weight(*i)).sum();
        let mut chi2 = 0.0;
        for (i, count) in counts.iter().enumerate() {
            if kept.contains(&i) {
                let expected = 20_000.0 * weight(i) / total;
                chi2 += (*count as f64 - expected).powi(2) / expected;
            } else {
                assert_eq!(*count, 0, "id {i} must never be drawn");
            }
        }
        // 99.9% quantiles of chi-square with 0..=5 degrees of freedom.
        let limit = [1e-9, 10.83, 13.82, 16.27, 18.47, 20.52][kept.len() - 1];
        assert!(chi2 < limit, "chi2 {chi2} of {counts:?}");
    }

    #[test]
    fn draws_follow_the_softmax() {
        assert_distribution(options(1.0, None), 1.0, &[0, 1, 2, 3, 4, 5]);
        assert_distribution(options(0.7, None), 0.7, &[0, 1, 2, 3, 4, 5]);
        assert_distribution(options(2.0, Some(100)), 2.0, &[0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn top_k_keeps_the_softmax_of_the_best_k() {
        assert_distribution(options(1.0, Some(1)), 1.0, &[1]);
        assert_distribution(options(1.5, Some(4)), 1.5, &[0, 1, 3, 5]);
    }

    #[test]
    fn top_p_keeps_the_id_that_reaches_p() {
        // Probabilities at T = 1: .360 .360 .133 .080 .049 .018.
        let with = |p| options(1.0, None).with_top_p(Some(p)).unwrap();
        assert_distribution(with(0.01), 1.0, &[1]);
        assert_distribution(with(0.7), 1.0, &[1, 3]);
        assert_distribution(with(0.74), 1.0, &[1, 3, 5]);
        assert_distribution(with(1.0), 1.0, &[0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn top_p_counts_within_top_k() {
        // The best three alone: .422 .422 .155.
        let with = |p| options(1.0, Some(3)).with_top_p(Some(p)).unwrap();
        assert_distribution(with(0.83), 1.0, &[1, 3]);
        assert_distribution(with(0.86), 1.0, &[1, 3, 5]);
    }

    #[test]
    fn min_p_is_a_share_of_the_best() {
        // exp(-1) = .368 and exp(-1.5) = .223 of the best.
        let with = |k, p| options(1.0, k).with_min_p(Some(p)).unwrap();
        assert_distribution(with(None, 0.3), 1.0, &[1, 3, 5]);
        assert_distribution(with(Some(5), 0.2), 1.0, &[0, 1, 3, 5]);
        let both = with(None, 0.3).with_top_p(Some(0.99)).unwrap();
        assert_distribution(both, 1.0, &[1, 3, 5]);
    }

    #[test]
    fn top_p_over_a_flat_vocabulary_keeps_its_share() {
        let logits: Vec<f32> = (0..5000).map(|i| (i % 7) as f32 * 1e-6).collect();
        let mut sampler = Sampler::new(options(1.0, None).with_top_p(Some(0.5)).unwrap());
        sampler.draw(&logits, &[], 0, 0).unwrap();
        let kept = sampler.weights.iter().filter(|w| **w > 0.0).count();
        assert!((2499..=2501).contains(&kept), "{kept}");
    }

    #[test]
    fn temperature_zero_takes_the_lowest_of_equals() {
        let mut sampler = Sampler::new(SampleOptions::greedy());
        assert_eq!(sampler.draw(&LOGITS, &[], 0, 0).unwrap(), 1);
        assert_eq!(sampler.draw(&[0.0; 100], &[], 3, 9).unwrap(), 0);
        assert_eq!(sampler.draw(&[-0.0, 0.0], &[], 0, 0).unwrap(), 0);
    }

    #[test]
    fn the_penalty_counts_an_id_once() {
        let greedy = SampleOptions::greedy().with_repetition_penalty(1.5).unwrap();
        let mut sampler = Sampler::new(greedy);
        assert_eq!(sampler.draw(&[1.0, 1.4, -3.0], &[], 0, 0).unwrap(), 1);
        assert_eq!(sampler.draw(&[1.0, 1.4, -3.0], &[1], 0, 0).unwrap(), 0);
        // Twice penalised, 1.6 would fall under 1.0; ids outside the logits are passed over.
        assert_eq!(sampler.draw(&[1.0, 1.6, -3.0], &[1, 1, 9], 0, 0).unwrap(), 1);
        assert_eq!(sampler.draw(&[-1.4, -1.0], &[1], 0, 0).unwrap(), 0);
    }

    #[test]
    fn a_damaged_logit_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for temperature in [0.0, 1.0] {
                let mut sampler = Sampler::new(options(temperature, Some(2)));
                let error = sampler.draw(&[0.0, 1.0, bad, 0.0], &[], 5, 6).unwrap_err();
                assert!(matches!(error, Error::Logit { row: 5, step: 6, id: 2, .. }), "{error}");
            }
        }
        let mut sampler = Sampler::new(options(1.0, None));
        assert!(matches!(sampler.draw(&[], &[], 0, 0), Err(Error::LogitCount { .. })));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        assert!(SampleOptions::new(2.1, None, 0).is_err());
        assert!(SampleOptions::new(-0.1, None, 0).is_err());
        assert!(SampleOptions::new(f32::NAN, None, 0).is_err());
        assert!(SampleOptions::new(1.0, Some(0), 0).is_err());
        for p in [0.0, 1.1, f32::NAN] {
            assert!(SampleOptions::greedy().with_top_p(Some(p)).is_err());
        }
        for p in [-0.1, 1.0, f32::NAN] {
            assert!(SampleOptions::greedy().with_min_p(Some(p)).is_err());
        }
        assert!(SampleOptions::greedy().with_repetition_penalty(0.0).is_err());
        let message = SampleOptions::new(3.0, None, 0).unwrap_err().to_string();
        assert_eq!(message, "temperature is 3: choose a number from 0 to 2");
    }

    proptest! {
        #[test]
        fn gather_equals_a_full_sort(
            levels in prop::collection::vec(-20_i32..20, 1..700),
            k in 1_usize..800,
        ) {
            let logits: Vec<f32> = levels.iter().map(|x| *x as f32 / 4.0).collect();
            let mut sampler = Sampler::new(SampleOptions::greedy());
            sampler.gather(&logits, k);
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by_key(|i| (-levels[*i as usize], *i));
            order.truncate(k);
            let ids: Vec<u32> = sampler.best.iter().map(|c| c.id).collect();
            prop_assert_eq!(ids, order);
        }

        #[test]
        fn the_nucleus_is_a_prefix_of_the_sorted_ids(
            levels in prop::collection::vec(-90_i32..20, 1..300),
            (temperature, p) in (0.1_f32..2.0, 0.01_f32..0.99),
        ) {
            let logits: Vec<f32> = levels.iter().map(|x| *x as f32 / 8.0).collect();
            let mut sampler = Sampler::new(options(temperature, None));
            sampler.weigh_all(&logits);
            let all = sampler.weights.clone();
            let mass = f64::from(p) * sum(&all);
            sampler.keep_nucleus(&logits, mass);
            let mut order: Vec<usize> = (0..all.len()).collect();
            order.sort_by_key(|i| (-levels[*i], *i));
            let kept = order.iter().take_while(|i| sampler.weights[**i] > 0.0).count();
            prop_assert!(order[kept..].iter().all(|i| sampler.weights[*i] == 0.0));
            let upto = |n: usize| order[..n].iter().map(|i| f64::from(all[*i])).sum::<f64>();
            // 1e-9: the order in which at most 300 f64 are added.
            prop_assert!(upto(kept) >= mass * (1.0 - 1e-9));
            prop_assert!(upto(kept - 1) < mass * (1.0 + 1e-9));
        }

        #[test]
        fn any_finite_logits_give_an_id(
            logits in prop::collection::vec(-3.4e38_f32..3.4e38, 1..50),
            (temperature, k, p, m) in (0.0_f32..2.0, 1_usize..60, 0.001_f32..1.0, 0.0_f32..0.99),
            (penalty, seed, step) in (0.1_f32..10.0, any::<u64>(), any::<u64>()),
        ) {
            let options = SampleOptions::new(temperature, Some(k), seed).unwrap();
            let options = options.with_top_p(Some(p)).unwrap().with_min_p(Some(m)).unwrap();
            let options = options.with_repetition_penalty(penalty).unwrap();
            let id = Sampler::new(options).draw(&logits, &[0, 3], seed, step).unwrap();
            prop_assert!((id as usize) < logits.len());
        }
    }
}
