//! CORE: 22 tasks by likelihood, in nanochat's procedure. Prompts in, accuracies out.
//!
//! Source: nanochat's core_eval.py; Li et al., "DataComp-LM", arXiv:2406.11794.

use std::time::Instant;

use nanochat_data::tasks::core::{CoreTask, Item, centered, shots};
use nanochat_tokenizer::Tokenizer;

use super::likelihood::{Candidate, EvalModel, Span};
use super::{Graded, Progress, TaskScore};
use crate::Result;

/// Items whose prompts are held together: enough that items of one length meet in a batch.
const CHUNK: usize = 256;

/// What the model is asked for one item.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// One row for each choice or context; one alone for language modeling.
    pub candidates: Vec<Candidate>,
    /// Which is right; none where the continuation must be the likeliest.
    pub gold: Option<usize>,
}

/// Texts of an item with its examples: for each candidate; for language modeling the prompt without
/// its continuation, then with it.
///
/// Examples are followed by a blank line. Contexts of language modeling are trimmed, and so is the
/// prompt without continuation: its last blank belongs to the continuation's first token.
pub fn texts(item: &Item, examples: &[&Item], delimiter: &str) -> Vec<String> {
    let mut before = String::new();
    for example in examples {
        let (context, continuation) = match example {
            Item::MultipleChoice { query, choices, gold } => (query.as_str(), &choices[*gold]),
            Item::Schema { contexts, continuation, gold } => {
                (contexts[*gold].as_str(), continuation)
            }
            Item::LanguageModeling { context, continuation } => (context.trim(), continuation),
        };
        before += &format!("{context}{delimiter}{continuation}\n\n");
    }
    let whole = |context: &str, end: &str| format!("{before}{context}{delimiter}{end}");
    match item {
        Item::MultipleChoice { query, choices, .. } => {
            choices.iter().map(|choice| whole(query, choice)).collect()
        }
        Item::Schema { contexts, continuation, .. } => {
            contexts.iter().map(|context| whole(context, continuation)).collect()
        }
        Item::LanguageModeling { context, continuation } => {
            let context = context.trim();
            vec![whole(context, "").trim().to_owned(), whole(context, continuation)]
        }
    }
}

/// The ids of an item, and where what is scored begins: after the common beginning of the choices;
/// at the common end of the contexts; after the prompt without continuation.
pub fn prompt(item: &Item, examples: &[&Item], delimiter: &str, tokenizer: &Tokenizer) -> Prompt {
    let row = |text: &String| {
        let mut ids = vec![tokenizer.bos()];
        tokenizer.encode_into(text, &mut ids);
        ids
    };
    let mut rows: Vec<Vec<u32>> = texts(item, examples, delimiter).iter().map(row).collect();
    match item {
        Item::MultipleChoice { gold, .. } => {
            let from = common(&rows, |ids, i| ids[i]);
            let candidates = rows.into_iter().map(|ids| Candidate { ids, from }).collect();
            Prompt { candidates, gold: Some(*gold) }
        }
        Item::Schema { gold, .. } => {
            let end = common(&rows, |ids, i| ids[ids.len() - 1 - i]);
            let candidate = |ids: Vec<u32>| Candidate { from: (ids.len() - end).max(1), ids };
            Prompt { candidates: rows.into_iter().map(candidate).collect(), gold: Some(*gold) }
        }
        Item::LanguageModeling { .. } => {
            // Upstream refuses a tokenizer that joins the two; here what is joined is asked for.
            let from = common(&rows, |ids, i| ids[i]);
            let ids = rows.pop().unwrap_or_default();
            Prompt { candidates: vec![Candidate { ids, from }], gold: None }
        }
    }
}

/// How many ids, read by `at`, all rows have in common. At least 1: all begin with bos.
fn common(rows: &[Vec<u32>], at: impl Fn(&[u32], usize) -> u32) -> usize {
    let shortest = rows.iter().map(Vec::len).min().unwrap_or(0);
    (0..shortest).take_while(|&i| rows.iter().all(|r| at(r, i) == at(&rows[0], i))).count()
}

/// What a model says to a prompt: the choice with the lowest mean loss, the first of equals.
fn choose(spans: &[Span]) -> usize {
    // As Python's min: a mean that is not a number (a choice that is the beginning of another) wins
    // only where it comes first.
    let means: Vec<f64> = spans.iter().map(Span::mean).collect();
    (1..means.len()).fold(0, |best, i| if means[i] < means[best] { i } else { best })
}

/// Evaluates a task on its items, already shuffled and cut ([`CoreTask::items`]).
///
/// Rows longer than the model can hold lose their beginning. Errors: those of the model and of
/// `progress`.
pub fn evaluate(
    model: &mut dyn EvalModel,
    tokenizer: &Tokenizer,
    task: &CoreTask,
    items: &[(usize, Item)],
    progress: &mut dyn Progress,
) -> Result<TaskScore> {
    let start = Instant::now();
    let most = model.decoder().max_len();
    let (mut right, mut done) = (0.0, 0);
    for first in (0..items.len()).step_by(CHUNK) {
        let chunk = first..items.len().min(first + CHUNK);
        let examples: Vec<Vec<usize>> =
            chunk.clone().map(|i| shots(items.len(), i, task.shots)).collect();
        let prompts: Vec<Prompt> = chunk
            .clone()
            .zip(&examples)
            .map(|(i, examples)| {
                let examples: Vec<&Item> = examples.iter().map(|&j| &items[j].1).collect();
                prompt(&items[i].1, &examples, &task.delimiter, tokenizer)
            })
            .collect();
        let golds: Vec<Option<usize>> = prompts.iter().map(|p| p.gold).collect();
        let rows: Vec<Vec<Candidate>> = prompts
            .into_iter()
            .map(|p| p.candidates.into_iter().map(|c| c.crop(most)).collect())
            .collect();
        model.score(&rows, &mut |i, spans| {
            let (number, item) = &items[first + i];
            let shots = examples[i].iter().map(|&j| items[j].0).collect();
            let id = number.to_string();
            let graded = graded(&task.label, id, item, golds[i], &spans, shots);
            right += graded.right;
            done += 1;
            progress.item(graded, done, items.len())
        })?;
    }
    let n = items.len();
    let score = right / n.max(1) as f64;
    Ok(TaskScore {
        task: task.label.clone(),
        score,
        centered: centered(score, task.baseline_percent),
        baseline: 0.01 * task.baseline_percent,
        n,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn graded(
    task: &str,
    id: String,
    item: &Item,
    gold: Option<usize>,
    spans: &[Span],
    shots: Vec<usize>,
) -> Graded {
    let losses: Vec<f64> = spans.iter().map(Span::mean).filter(|x| x.is_finite()).collect();
    let chosen = choose(spans);
    let (prompt, answer, gold_text) = match item {
        Item::MultipleChoice { query, choices, gold } => {
            (query.clone(), choices[chosen].clone(), choices[*gold].clone())
        }
        Item::Schema { contexts, continuation, gold } => {
            (continuation.clone(), contexts[chosen].clone(), contexts[*gold].clone())
        }
        Item::LanguageModeling { context, continuation } => {
            (context.clone(), String::new(), continuation.clone())
        }
    };
    let right = gold.map_or(spans[0].greedy, |gold| gold == chosen);
    let why = match (gold, right) {
        (Some(_), true) => "has the lowest mean loss".to_owned(),
        (Some(gold), false) => format!(
            "{:.4} nats a token, the right one {:.4}",
            spans[chosen].mean(),
            spans[gold].mean()
        ),
        (None, true) => "every token is the likeliest".to_owned(),
        (None, false) => "some token is not the likeliest".to_owned(),
    };
    let answers = if answer.is_empty() { Vec::new() } else { vec![answer] };
    let right = f64::from(u8::from(right));
    Graded { task: task.into(), id, prompt, shots, answers, gold: gold_text, right, why, losses }
}

/// The metric: the mean of what the tasks reach above guessing; none of no tasks.
pub fn metric(scores: &[TaskScore]) -> Option<f64> {
    let sum: f64 = scores.iter().map(|s| s.centered).sum();
    (!scores.is_empty()).then(|| sum / scores.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_the_first_lowest_mean() {
        let span = |losses: &[f32]| Span { losses: losses.to_vec(), greedy: false };
        assert_eq!(choose(&[span(&[2.0]), span(&[1.0, 1.0]), span(&[1.0])]), 1);
        assert_eq!(choose(&[span(&[2.0]), span(&[]), span(&[1.0])]), 2);
        assert_eq!(choose(&[span(&[]), span(&[1.0])]), 0);
    }

    #[test]
    fn the_metric_is_the_mean_above_guessing() {
        let score = |score: f64, percent: f64| TaskScore {
            task: "t".into(),
            score,
            centered: centered(score, percent),
            baseline: 0.01 * percent,
            n: 1,
            seconds: 0.0,
        };
        let two = [score(0.25, 25.0), score(0.75, 50.0)];
        assert!((metric(&two).expect("two tasks") - 0.25).abs() < 1e-12);
        assert_eq!(metric(&[]), None);
    }
}
