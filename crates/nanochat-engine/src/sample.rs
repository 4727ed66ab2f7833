//! Logits in, one id out.
//!
//! The order is fixed: bias, repetition penalty, frequency and presence penalties, forbidden ids,
//! top-k, temperature, softmax, top-p, min-p, draw. Those of upstream (top-k, divide by T, softmax) keep upstream's order. All scratch memory
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
    frequency_penalty: f32,
    presence_penalty: f32,
    /// Added to the logits of single ids.
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
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
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

    /// Takes `penalty` times the number of times that the answer has an id from the id's logit;
    /// the prompt does not count.
    ///
    /// `logit[i] -= count[i] * frequency + (count[i] > 0) * presence`. Source: OpenAI's API reference,
    /// "Advanced usage". Errors: [`Error::Option`] outside -2..=2.
    pub fn with_frequency_penalty(mut self, penalty: f32) -> Result<Self> {
        if !(-2.0..=2.0).contains(&penalty) {
            return Err(refuse("frequency_penalty", penalty, "a number from -2 to 2"));
        }
        self.frequency_penalty = penalty;
        Ok(self)
    }

    /// Takes `penalty` from the logit of each id that the answer has: see
    /// [`SampleOptions::with_frequency_penalty`].
    ///
    /// Errors: [`Error::Option`] outside -2..=2.
    pub fn with_presence_penalty(mut self, penalty: f32) -> Result<Self> {
        if !(-2.0..=2.0).contains(&penalty) {
            return Err(refuse("presence_penalty", penalty, "a number from -2 to 2"));
        }
        self.presence_penalty = penalty;
        Ok(self)
    }

    /// Adds to the logits of these ids before anything else; -100 all but forbids an id, 100 all but
    /// forces it. Ids outside the vocabulary are passed over; an id that comes twice is added to twice.
    ///
    /// Source: OpenAI's `logit_bias`. Errors: [`Error::Option`] outside -100..=100.
    pub fn with_logit_bias(mut self, bias: Vec<(u32, f32)>) -> Result<Self> {
        if let Some((_, bias)) = bias.iter().find(|(_, x)| !(-100.0..=100.0).contains(x)) {
            return Err(refuse("logit_bias", bias, "numbers from -100 to 100"));
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

impl SampleOptions {
    fn changes_logits(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || !self.logit_bias.is_empty()
    }
}

fn refuse(name: &'static str, value: impl ToString, allowed: &'static str) -> Error {
    Error::Option { name, value: value.to_string(), allowed }
}

/// What a row has been, and what it may become.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// Ids of the prompt.
    pub prompt: &'a [u32],
    /// Ids of the answer so far.
    pub said: &'a [u32],
    /// Which ids may come: bit `id % 64` of word `id / 64`; all of them without.
    pub allowed: Option<&'a [u64]>,
}

/// Draws ids by one set of options; holds the scratch memory.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SampleOptions,
    /// Logits after bias, penalties and forbidden ids, used only when there are any. (V)
    changed: Vec<f32>,
    /// One bit for each id already penalised. (V / 64)
    marks: Vec<u64>,
    /// Ids of the answer, sorted.
    counted: Vec<u32>,
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
            changed: Vec::new(),
            marks: Vec::new(),
            counted: Vec::new(),
            best: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// Draws an id from `logits` (V) for `row` at `step`: a function of these, of the row's `context` and
    /// of the options, of nothing else.
    ///
    /// Errors: [`Error::Logit`] if one is NaN or infinite, [`Error::LogitCount`] if there is none,
    /// [`Error::NothingAllowed`].
    pub fn draw(
        &mut self,
        logits: &[f32],
        context: Context<'_>,
        row: u64,
        step: u64,
    ) -> Result<u32> {
        if logits.is_empty() {
            return Err(Error::LogitCount { found: 0, expected: 1 });
        }
        // A fold without early exit compiles to vector code; the search runs only on failure.
        if !logits.iter().fold(true, |all, x| all & x.is_finite()) {
            let id = logits.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(Error::Logit { row, step, id, value: logits[id] });
        }
        if !self.options.changes_logits() && context.allowed.is_none() {
            return Ok(self.choose(logits, row, step));
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        changed.extend_from_slice(logits);
        self.penalise(&mut changed, context);
        let any = context.allowed.is_none_or(|allowed| forbid(&mut changed, allowed));
        let id = any.then(|| self.choose(&changed, row, step));
        self.changed = changed;
        id.ok_or(Error::NothingAllowed { row, step })
    }

    /// Bias and penalties, in place.
    fn penalise(&mut self, out: &mut [f32], context: Context<'_>) {
        let SampleOptions { repetition_penalty, frequency_penalty, presence_penalty, .. } =
            self.options;
        for &(id, bias) in &self.options.logit_bias {
            if let Some(x) = out.get_mut(id as usize) {
                *x = (*x + bias).clamp(f32::MIN, f32::MAX);
            }
        }
        if repetition_penalty != 1.0 {
            self.marks.clear();
            self.marks.resize(out.len().div_ceil(64), 0);
            for &id in context.prompt.iter().chain(context.said) {
                let i = id as usize;
                let Some(x) = out.get_mut(i) else { continue };
                if self.marks[i / 64] >> (i % 64) & 1 == 0 {
                    self.marks[i / 64] |= 1 << (i % 64);
                    let y =
                        if *x > 0.0 { *x / repetition_penalty } else { *x * repetition_penalty };
                    *x = y.clamp(f32::MIN, f32::MAX);
                }
            }
        }
        if frequency_penalty != 0.0 || presence_penalty != 0.0 {
            self.counted.clear();
            self.counted.extend_from_slice(context.said);
            self.counted.sort_unstable();
            for same in self.counted.chunk_by(|a, b| a == b) {
                if let Some(x) = out.get_mut(same[0] as usize) {
                    let penalty = same.len() as f32 * frequency_penalty + presence_penalty;
                    *x = (*x - penalty).clamp(f32::MIN, f32::MAX);
                }
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

/// Makes ids whose bit is not set as unlikely as can be: their weight is 0. False if no id is left.
fn forbid(logits: &mut [f32], allowed: &[u64]) -> bool {
    let mut any = false;
    for (i, logits) in logits.chunks_mut(64).enumerate() {
        let word = allowed.get(i).copied().unwrap_or(0);
        for (bit, x) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *x = f32::MIN;
            } else {
                any = true;
            }
        }
    }
    any
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
mod tests;
