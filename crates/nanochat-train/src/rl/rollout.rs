//! Questions to graded samples, and samples to rows that a train step takes.

use nanochat_compute::Backend;
use nanochat_compute::ops::WeightFormat;
use nanochat_data::{Batch, IGNORE};
use nanochat_engine::generate::Row;
use nanochat_engine::rng::uniform;
use nanochat_engine::sample::SampleOptions;
use nanochat_gpt::Nano;
use nanochat_tokenizer::{Special, Tokenizer, chat};
use serde::{Deserialize, Serialize};

use super::questions::{Part, Question, Questions};
use crate::Result;
use crate::answers::{Asked, Together, Writer, Writing};

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Samples of a question; they share its pages.
    pub num_samples: usize,
    /// Most ids of an answer.
    pub max_new_tokens: usize,
    /// Temperature.
    pub temperature: f32,
    /// Ids that may be drawn; none: all.
    pub top_k: Option<usize>,
    /// The calculator answers.
    pub tools: bool,
    /// The id that ends the turn is trained too; upstream leaves it out.
    pub train_end_of_turn: bool,
}

/// One graded answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Prompt and answer, and the id that ended the turn if it is trained.
    pub ids: Vec<u32>,
    /// For each of `ids`: it was drawn, and is trained.
    pub drawn: Vec<bool>,
    /// The answer's text.
    pub text: String,
    /// What it is worth.
    pub reward: f64,
    /// Ids of the answer.
    pub answer_tokens: usize,
}

/// A seed for question `i` of a step: a function of these alone, so that a resumed run draws the same.
pub fn seed_of(seed: u64, step: u64, i: usize) -> u64 {
    (uniform(seed, i as u64, step) * (1u64 << 53) as f64) as u64
}

impl Sampling {
    /// What the engine is told, but for the seed.
    pub fn writing(&self) -> Writing {
        Writing {
            num_samples: self.num_samples,
            max_tokens: self.max_new_tokens,
            tools: self.tools,
        }
    }
}

/// Questions to ask, each with its seed.
pub type Draw = (Part, usize, u64);

/// Draws the samples of every question and grades them, `rows` rows at once; none for a question whose
/// prompt and an id the model cannot hold.
///
/// Errors: those of the questions and the engine.
pub fn roll(
    (be, model): (&dyn Backend, &Nano),
    tokenizer: &Tokenizer,
    questions: &dyn Questions,
    draws: &[Draw],
    (sampling, rows): (&Sampling, usize),
) -> Result<Vec<Vec<Sample>>> {
    let max_len = model.config().sequence_len;
    let (mut asked, mut whose) = (Vec::new(), Vec::new());
    for (i, (part, at, seed)) in draws.iter().enumerate() {
        let question = questions.get(*part, *at)?;
        let prompt = chat::render_for_completion(tokenizer, &question.conversation)
            .map_err(nanochat_engine::Error::from)?;
        if prompt.len() < max_len {
            let sample = SampleOptions::new(sampling.temperature, sampling.top_k, *seed)?;
            asked.push(Asked { prompt, sample });
            whose.push((i, question));
        }
    }
    let mut all = vec![Vec::new(); draws.len()];
    let mut writer = Together { be, model, format: WeightFormat::Auto, rows, max_len };
    writer.write(tokenizer, &asked, &sampling.writing(), &mut |at, rows| {
        let (i, question) = &whose[at];
        let sample = |row| graded(&asked[at].prompt, row, question, sampling.train_end_of_turn);
        all[*i] = rows.into_iter().map(sample).collect();
        Ok(())
    })?;
    Ok(all)
}

/// An answer as it is learned from.
fn graded(prompt: &[u32], row: Row, question: &Question, train_end_of_turn: bool) -> Sample {
    let text = row.text();
    let answer_tokens = row.ids.len();
    let (mut ids, mut drawn) = (prompt.to_vec(), vec![false; prompt.len()]);
    drawn.extend(row.mask.iter().map(|&m| m == 1));
    ids.extend(&row.ids);
    if let Some(end) = row.terminal.filter(|_| train_end_of_turn) {
        ids.push(end);
        drawn.push(true);
    }
    let reward = (question.grade)(&text);
    Sample { ids, drawn, text, reward, answer_tokens }
}

/// Lengths of rows are rounded up to a multiple of this many tokens, so that steps are of few shapes.
const ROUND: usize = 32;

/// Rows of B, T <= `most` tokens, of samples and the factors of their ids; forced and prompt ids are not
/// trained.
pub fn batch(
    samples: &[&Sample],
    factors: &[Vec<f32>],
    tokenizer: &Tokenizer,
    most: usize,
) -> Batch {
    let longest = samples.iter().map(|s| s.ids.len()).max().unwrap_or(0);
    let t = longest.saturating_sub(1).max(1).next_multiple_of(ROUND).min(most.max(1));
    let b = samples.len();
    let fill = tokenizer.special(Special::AssistantEnd) as i32;
    let (mut x, mut y, mut w) = (vec![fill; b * t], vec![IGNORE; b * t], vec![0.0; b * t]);
    let mut padding_tokens = 0;
    for (row, (sample, factors)) in samples.iter().zip(factors).enumerate() {
        let len = sample.ids.len().saturating_sub(1).min(t);
        padding_tokens += t - len;
        for i in 0..len {
            let at = row * t + i;
            x[at] = sample.ids[i] as i32;
            if sample.drawn[i + 1] {
                (y[at], w[at]) = (sample.ids[i + 1] as i32, factors[i + 1]);
            }
        }
    }
    let trained_tokens = y.iter().filter(|y| **y != IGNORE).count();
    let name = "samples of a question".into();
    Batch { b, t, x, y, w: Some(w), epoch: 1, name, trained_tokens, padding_tokens }
}
