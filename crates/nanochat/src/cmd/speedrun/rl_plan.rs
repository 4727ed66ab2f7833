//! What a speedrun reinforces by, settled before it starts.

use nanochat_train::optim::LearningRates;
use nanochat_train::rl::RlRecipe;
use nanochat_train::rl::objective::Objective;
use nanochat_train::rl::rollout::Sampling;
use serde::{Deserialize, Serialize};

use crate::cmd::train::rl::{TaskFlag, begin_at};

/// Sizes of reinforcement. What was tried stands in docs/LOG.md.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RlPlan {
    /// What is asked.
    pub task: TaskFlag,
    /// Steps.
    pub iterations: u64,
    /// Questions of a step.
    pub examples_per_step: usize,
    /// Answers drawn to a question.
    pub num_samples: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Share of upstream's rates at the beginning.
    pub init_lr_frac: f64,
    /// Advantages divided by their question's deviation.
    pub normalize_advantage: bool,
    /// The id that ends an answer is trained as well.
    pub train_end_of_turn: bool,
    /// Steps between tests.
    pub eval_every: u64,
    /// Questions of a test.
    pub eval_examples: usize,
}

/// Upstream's rates of the base stage, of which reinforcement takes a share.
const RATES: LearningRates =
    LearningRates { embedding: 0.2, unembedding: 0.004, matrix: 0.02, scalar: 0.5, smear: 0.2 };

impl RlPlan {
    /// For a task. Answers of the built-in world are a sentence; those of GSM8K are a paragraph, and one
    /// pass over its questions takes 467 steps.
    pub fn new(task: TaskFlag, iterations: Option<u64>, tiny: bool) -> Self {
        let school = task == TaskFlag::Gsm8k;
        let steps = match (tiny, school) {
            (true, _) => 2,
            (false, true) => 467,
            (false, false) => 300,
        };
        Self {
            task,
            iterations: iterations.unwrap_or(steps),
            examples_per_step: match (tiny, school) {
                (true, _) => 2,
                (false, true) => 16,
                (false, false) => 32,
            },
            num_samples: if tiny { 4 } else { 16 },
            max_new_tokens: if school { 256 } else { 24 },
            init_lr_frac: if school { 0.05 } else { 0.03 },
            normalize_advantage: !school,
            train_end_of_turn: !school,
            eval_every: if tiny { 0 } else { 30 },
            eval_examples: if tiny { 4 } else { 100 },
        }
    }

    /// Every value of the stage.
    pub fn recipe(&self, seed: u64, keep: usize) -> RlRecipe {
        RlRecipe {
            num_iterations: self.iterations,
            examples_per_step: self.examples_per_step,
            device_batch_size: self.num_samples.min(16),
            sampling: Sampling {
                num_samples: self.num_samples,
                max_new_tokens: self.max_new_tokens,
                temperature: 1.0,
                top_k: Some(50),
                tools: self.task != TaskFlag::Mental,
                train_end_of_turn: self.train_end_of_turn,
            },
            objective: Objective {
                normalize_advantage: self.normalize_advantage,
                ..Objective::default()
            },
            passes: 1,
            rates: begin_at(RATES, self.init_lr_frac),
            weight_decay: 0.0,
            seed,
            eval_every: self.eval_every,
            eval_examples: self.eval_examples,
            save_every: 100,
            keep,
        }
    }
}
