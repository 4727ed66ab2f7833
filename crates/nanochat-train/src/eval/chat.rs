//! Questions in chat format: the likeliest letter, or an answer that is generated and graded.
//!
//! Source: nanochat's chat_eval.py.

use std::time::Instant;

use nanochat_data::tasks::{Answer, ChatTask, Question, Runner};
use nanochat_engine::generate::Row;
use nanochat_engine::rng::uniform;
use nanochat_engine::sample::SampleOptions;
use nanochat_tokenizer::{Tokenizer, chat};

use super::likelihood::EvalModel;
use super::{Graded, Progress, TaskScore};
use crate::answers::{Asked, Writing};
use crate::{Error, Result};

/// Categorical questions whose prompts are held together.
const CHUNK: usize = 256;

/// How answers are generated.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Independent samples of each question; right if any of them is.
    pub num_samples: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// How they are drawn; every question has a seed of its own, from this one's and its number.
    pub sample: SampleOptions,
}

/// Evaluates a task on its first `most` questions.
///
/// Errors: [`Error::Letter`] for a letter that is no single token; those of the model, the runner and
/// `progress`.
pub fn evaluate(
    model: &mut dyn EvalModel,
    tokenizer: &Tokenizer,
    task: &ChatTask,
    most: Option<usize>,
    options: &ChatOptions,
    runner: &dyn Runner,
    progress: &mut dyn Progress,
) -> Result<TaskScore> {
    let start = Instant::now();
    let n = task.questions.len().min(most.unwrap_or(usize::MAX));
    let questions = &task.questions[..n];
    let (mut right, mut done) = (0.0, 0);
    let mut take = |graded: Graded| {
        right += f64::from(u8::from(graded.right > 0.0));
        done += 1;
        progress.item(graded, done, n)
    };
    let (letters, written): (Vec<_>, Vec<_>) =
        questions.iter().enumerate().partition(|(_, q)| q.answer.is_categorical());
    for some in letters.chunks(CHUNK) {
        choose(model, tokenizer, &task.name, some, &mut take)?;
    }
    write(model, tokenizer, &task.name, &written, (options, runner), &mut take)?;
    let score = right / n.max(1) as f64;
    let centered = (score - task.baseline) / (1.0 - task.baseline);
    let seconds = start.elapsed().as_secs_f64();
    Ok(TaskScore { task: task.name.clone(), score, centered, baseline: task.baseline, n, seconds })
}

fn prompt(tokenizer: &Tokenizer, question: &Question, most: usize) -> Result<Vec<u32>> {
    let ids = chat::render_for_completion(tokenizer, &question.conversation)
        .map_err(nanochat_engine::Error::from)?;
    if ids.len() > most {
        return Err(Error::LongPrompt { id: question.id.clone(), tokens: ids.len(), most });
    }
    Ok(ids)
}

/// Lets the model choose among the letters of each question: the largest of their logits after the
/// prompt, the first of equals.
fn choose(
    model: &mut dyn EvalModel,
    tokenizer: &Tokenizer,
    task: &str,
    questions: &[(usize, &Question)],
    take: &mut dyn FnMut(Graded) -> Result<()>,
) -> Result<()> {
    let most = model.decoder().max_len();
    let prompts =
        questions.iter().map(|(_, q)| prompt(tokenizer, q, most)).collect::<Result<Vec<_>>>()?;
    for ((_, question), logits) in questions.iter().zip(model.next_logits(&prompts)?) {
        let Answer::Letter { letters, gold } = &question.answer else { continue };
        let ids = letters.iter().map(|letter| match tokenizer.encode(letter)[..] {
            [id] => Ok(id),
            _ => Err(Error::Letter { letter: letter.clone() }),
        });
        let ids = ids.collect::<Result<Vec<u32>>>()?;
        let logit = |i: usize| logits[ids[i] as usize];
        let best = (1..ids.len()).fold(0, |best, i| if logit(i) > logit(best) { i } else { best });
        take(Graded {
            task: task.into(),
            id: question.id.clone(),
            prompt: question.text().into(),
            shots: Vec::new(),
            answers: vec![letters[best].clone()],
            gold: letters[*gold].clone(),
            right: f64::from(u8::from(best == *gold)),
            why: format!("logits {:.3?}", (0..ids.len()).map(logit).collect::<Vec<_>>()),
            losses: Vec::new(),
        })?;
    }
    Ok(())
}

/// Generates answers, with tools, and grades them as they stand, special tokens written out.
fn write(
    model: &mut dyn EvalModel,
    tokenizer: &Tokenizer,
    task: &str,
    questions: &[(usize, &Question)],
    (options, runner): (&ChatOptions, &dyn Runner),
    take: &mut dyn FnMut(Graded) -> Result<()>,
) -> Result<()> {
    let most = model.decoder().max_len();
    let asked = questions.iter().map(|(i, question)| {
        let seed = uniform(options.sample.seed(), *i as u64, 0) * (1u64 << 53) as f64;
        let sample = options.sample.clone().with_seed(seed as u64);
        Ok(Asked { prompt: prompt(tokenizer, question, most)?, sample })
    });
    let asked = asked.collect::<Result<Vec<_>>>()?;
    let writing = Writing {
        num_samples: options.num_samples,
        max_tokens: options.max_new_tokens,
        tools: true,
    };
    model.write(tokenizer, &asked, &writing, &mut |at, rows| {
        take(grade(tokenizer, task, questions[at].1, &rows, runner)?)
    })
}

fn grade(
    tokenizer: &Tokenizer,
    task: &str,
    question: &Question,
    rows: &[Row],
    runner: &dyn Runner,
) -> Result<Graded> {
    let (mut answers, mut right, mut why) = (Vec::new(), 0, String::new());
    for row in rows {
        let answer = tokenizer.decode(&row.ids).map_err(nanochat_engine::Error::from)?;
        // Words are looked for in words alone; the rest is graded as upstream grades it.
        let verdict = match &question.answer {
            Answer::Words(_) => question.answer.grade(&row.text(), runner)?,
            _ => question.answer.grade(&answer, runner)?,
        };
        if right == 0 {
            why = verdict.why;
        }
        right += usize::from(verdict.right);
        answers.push(answer);
    }
    Ok(Graded {
        task: task.into(),
        id: question.id.clone(),
        prompt: question.text().into(),
        shots: Vec::new(),
        gold: question.reference(),
        right: right as f64 / answers.len().max(1) as f64,
        answers,
        why,
        losses: Vec::new(),
    })
}

/// `1 - C(n - c, k) / C(n, k)`: the chance that one of k samples is right, from c right ones of n.
///
/// Source: Chen et al., arXiv:2107.03374, equation 1, as a product that does not overflow.
///
/// ```
/// use nanochat_train::eval::chat::pass_at;
/// assert_eq!(pass_at(4, 1, 1), 0.25);
/// assert_eq!(pass_at(4, 1, 4), 1.0);
/// assert_eq!(pass_at(4, 0, 2), 0.0);
/// ```
pub fn pass_at(n: usize, c: usize, k: usize) -> f64 {
    if n - c < k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// ChatCORE: the mean of what the tasks reach above guessing; none of no tasks.
pub fn metric(scores: &[TaskScore]) -> Option<f64> {
    super::core::metric(scores)
}
