//! The finetuning step: planned once, filled with conversations, and learning what the eager one learns.

use anyhow::{Result, ensure};
use nanochat_compute::Backend;
use nanochat_compute::eager::Eager;
use nanochat_data::Batching;
use nanochat_gpt::{GptConfig, Nano};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::Rates;
use nanochat_train::step::{StepMode, Trainer};

use super::Finding;
use crate::cli::Global;
use crate::cmd::bench::sft::{Talk, WAYS, Way, name};

const T: usize = 256;
const B: usize = 4;
/// Steps of each way.
const STEPS: u64 = 3;
/// Padding of packed rows at most.
const MOST_PADDING: f64 = 0.05;

/// What a way did.
struct Ran {
    losses: Vec<f64>,
    plans: u64,
    padding: f64,
    trained_tokens_per_sec: f64,
}

fn run(global: &Global, talk: &Talk, (step, batching): Way) -> Result<Ran> {
    let (cpu, eager);
    let be: &dyn Backend = match step {
        StepMode::Compiled => {
            cpu = global.cpu()?;
            &cpu
        }
        StepMode::Eager => {
            eager = Eager::new(global.cpu()?);
            &eager
        }
    };
    let vocab_size = talk.tokenizer.vocab_size();
    let model = Nano::zeros(be, GptConfig::from_depth(2, 64, 64, T, vocab_size, "L")?)?;
    model.init(3)?;
    let rates = LearningRates::default().scaled(0.2);
    let optim = Optimizer::new(be, &model, rates)?;
    let mut trainer = Trainer::new(be, &model, optim, B, T)?.with_mode(step);
    let mut batches = talk.batches(B, T, batching)?;
    let (mut losses, mut padding, mut tokens, mut trained, mut seconds) = (vec![], 0, 0, 0, 0.0);
    for n in 0..STEPS {
        let rates = Rates { lr_multiplier: 1.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
        let report = trainer.step(n, &mut batches, 2, &rates)?;
        losses.push(report.loss);
        padding += report.padding_tokens;
        tokens += report.tokens;
        trained += report.trained_tokens;
        seconds += report.dt_s;
    }
    let padding = padding as f64 / tokens as f64;
    let trained_tokens_per_sec = trained as f64 / seconds;
    Ok(Ran { losses, plans: trainer.plans(), padding, trained_tokens_per_sec })
}

/// Checks the default way, or the baseline in its place.
pub fn check(global: &Global, is_out: bool) -> Finding {
    let talk = Talk::open(&[], None, 512, global.seed)?;
    let (baseline, default) = (WAYS[0], WAYS[4]);
    let checked = if is_out { baseline } else { default };
    let packed = run(global, &talk, checked)?;
    ensure!(
        packed.plans == 1,
        "{} planned {} times in {} micro batches, not once",
        name(checked),
        packed.plans,
        2 * STEPS
    );
    ensure!(
        packed.padding <= MOST_PADDING,
        "{} pads {:.1} % of its tokens",
        name(checked),
        100.0 * packed.padding
    );
    // The same rows in both kinds of step: the same losses, step by step.
    let fixed = (checked.0, Batching::Fixed);
    let (one, other) =
        (run(global, &talk, fixed)?, run(global, &talk, (StepMode::Eager, fixed.1))?);
    let apart = |(a, b): (&f64, &f64)| (a - b).abs() / b;
    let worst = one.losses.iter().zip(&other.losses).map(apart).fold(0.0, f64::max);
    ensure!(worst < 0.01, "compiled and eager losses are {:.2} % apart", 100.0 * worst);
    let slow = run(global, &talk, baseline)?;
    Ok(format!(
        "1 plan for {} micro batches, padding {:.1} % ({:.0} % without packing), losses within {:.3} %; \
         {:.1}x the trained tokens/sec of {}, both on the CPU",
        2 * STEPS,
        100.0 * packed.padding,
        100.0 * slow.padding,
        100.0 * worst,
        packed.trained_tokens_per_sec / slow.trained_tokens_per_sec,
        name(baseline)
    ))
}
