//! What a speedrun measures after each of its stages, and the stage that learns from reward.

use std::time::Instant;

use anyhow::Result;
use nanochat_gpt::checkpoint;
use nanochat_tokenizer::Tokenizer;
use nanochat_train::answers::{OneByOne, ROWS, Together, Writer};
use nanochat_train::eval::held_out::Score;

use super::Pipeline;
use crate::cli::{Global, Weights};
use crate::cmd::eval::items::Subject;
use crate::cmd::eval::{ModelArgs, chat, core, held_out};
use crate::cmd::train::rl::{self, Reinforced};
use crate::pipeline;
use crate::screen::Screen;

impl Pipeline<'_> {
    /// Questions to the model of a stage: held-out ones of the starter corpus, and the tasks of the data
    /// folder if one was given.
    pub(super) fn evaluate(
        &mut self,
        stage: &'static str,
        tokenizer: &Tokenizer,
        global: &Global,
    ) -> Result<Vec<Score>> {
        let start = Instant::now();
        let scores = match self.plan.sft_data.is_empty() {
            true => self.held_out(stage, tokenizer)?,
            false => {
                let said =
                    "held-out questions are skipped: they belong to the starter conversations";
                Screen::open_log(&self.run)?.say(said);
                Vec::new()
            }
        };
        if self.plan.data_dir.is_some() {
            self.tasks(stage, global)?;
        }
        self.done("eval", start, None)?;
        Ok(scores)
    }

    fn held_out(&mut self, stage: &'static str, tokenizer: &Tokenizer) -> Result<Vec<Score>> {
        let (dir, _) = checkpoint::latest_once(&self.run.join(stage))?;
        let (model, meta) = checkpoint::open(self.be, &dir)?;
        let max_len = 2 * model.config().sequence_len;
        let asked = (self.plan.seed, self.plan.eval_items);
        let subject = Subject { run: &self.run, stage, step: meta.step, eval: "held_out" };
        let mut together;
        let (mut decoder, mut alone);
        let writer: &mut dyn Writer = if self.plan.baseline {
            decoder = pipeline::decoder(self.be, &model, max_len, false, Weights::Auto)?;
            alone = OneByOne(decoder.as_mut());
            &mut alone
        } else {
            let (be, format) = (self.be, Weights::Auto.format());
            together = Together { be, model: &model, format, rows: ROWS, max_len };
            &mut together
        };
        let (scores, _) = held_out::measure(subject, writer, tokenizer, asked)?;
        if stage == self.plan.last_stage() {
            self.run.write_json("scores.json", &scores)?;
        }
        Ok(scores)
    }

    /// CORE for the base model, chat tasks for the others.
    fn tasks(&self, stage: &str, global: &Global) -> Result<()> {
        let model = ModelArgs {
            model: Some(self.run.root().to_path_buf()),
            source: Some(stage.into()),
            weights: Weights::Auto,
        };
        let (data_dir, items) = (self.plan.data_dir.clone(), self.plan.eval_items);
        if stage == "base" {
            core::measure(&core::CoreArgs::of(model, data_dir, items), global)?;
        } else {
            chat::measure(&chat::ChatArgs::of(model, data_dir, items), global)?;
        }
        Ok(())
    }

    /// Reinforces the finetuned model.
    pub(super) fn rl(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let Some(plan) = &self.plan.rl else { return Ok(()) };
        let start = Instant::now();
        let data = self.plan.data_dir.as_deref();
        let questions = rl::questions(plan.task, data, (self.plan.seed, plan.eval_examples))?;
        let recipe = plan.recipe(self.plan.seed, self.plan.cadence.keep);
        let from = checkpoint::latest(&self.run.join("sft"))?.0;
        let of = Reinforced { recipe: &recipe, questions: &questions, rows: ROWS };
        let out = rl::train(self.be, &self.run, tokenizer, &from, of, &self.options())?;
        self.done("rl", start, Some(&out))
    }
}
