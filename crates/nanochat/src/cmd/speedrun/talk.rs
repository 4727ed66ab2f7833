//! The end of a speedrun: a short conversation, and how different samples of one prompt are.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use nanochat_engine::session::{ChatOptions, Event, Session};
use nanochat_engine::{Diversity, Engine, GenerateOptions, SampleOptions};
use nanochat_gpt::checkpoint;
use nanochat_gpt::model::Decoder;
use nanochat_tokenizer::Tokenizer;
use nanochat_tokenizer::chat::{Content, Conversation, Message, Role, render_for_completion};
use serde_json::{Value, json};

use super::Pipeline;
use crate::cli::Weights;
use crate::pipeline;
use crate::screen::Screen;

/// Samples whose diversity is measured, and their length at most.
const SAMPLES: usize = 16;
const SAMPLE_TOKENS: usize = 24;

impl Pipeline<'_> {
    /// A short conversation, as a person would have it.
    pub(super) fn chat(&mut self, tokenizer: &Tokenizer) -> Result<Vec<Value>> {
        let start = Instant::now();
        let (step, _) = checkpoint::latest_once(&self.run.join(self.plan.last_stage()))?;
        let (model, _) = checkpoint::open(self.be, &step)?;
        let max_len = 2 * model.config().sequence_len;
        let kv_cache = !self.plan.baseline;
        let mut decoder = pipeline::decoder(self.be, &model, max_len, kv_cache, Weights::Auto)?;
        let mut session = Session::new(tokenizer.clone(), None);
        let options = ChatOptions::default();
        let (mut turns, mut tokens, mut seconds) = (Vec::new(), 0, 0.0);
        println!("\nA short conversation with the new model:\n");
        for question in [
            "Hello! Who are you?",
            "What is 37 * 24?",
            "What is the capital of Italy?",
            "Spell the word garden.",
            "Tell me a story about a brave fox.",
        ] {
            let (mut answer, mut tools) = (String::new(), Vec::new());
            session.say(decoder.as_mut(), question, &options, |event| {
                match event {
                    Event::Text(text) => answer.push_str(&text),
                    Event::ToolCall(call) => tools.push(json!({"call": call, "output": null})),
                    Event::ToolOutput(output) => {
                        if let Some(tool) = tools.last_mut() {
                            tool["output"] = json!(output);
                        }
                    }
                    Event::Done(_, stats) => {
                        tokens += stats.decoded_tokens;
                        seconds += stats.decode_s;
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            })?;
            println!("You: {question}");
            for tool in &tools {
                let part = |k: &str| tool[k].as_str().unwrap_or("?").to_owned();
                println!("     [{} = {}]", part("call"), part("output"));
            }
            println!("nanochat: {}\n", answer.trim());
            turns.push(json!({"user": question, "assistant": answer.trim(), "tools": tools}));
        }
        let rate = (seconds > 0.0).then(|| tokens as f64 / seconds);
        self.state.decode_tokens_per_sec = rate;
        if let Some(rate) = rate {
            Screen::open_log(&self.run)?.say(&format!("decode {rate:.0} tokens/sec"));
        }
        self.state.diversity = Some(self.diversity(decoder.as_mut(), tokenizer)?);
        self.state.optimizations.generation(kv_cache, self.plan.first_token().name());
        self.run.write_json("samples.json", &turns)?;
        self.done("chat", start, None)?;
        Ok(turns)
    }

    /// How different samples of one prompt are, at temperature 1.
    fn diversity(&self, decoder: &mut dyn Decoder, tokenizer: &Tokenizer) -> Result<Diversity> {
        let content = Content::Text("Tell me a story.".into());
        let asked = Conversation { messages: vec![Message { role: Role::User, content }] };
        let prompt = render_for_completion(tokenizer, &asked)?;
        let options = GenerateOptions {
            n: SAMPLES,
            first_token: self.plan.first_token(),
            ..GenerateOptions::new(SampleOptions::new(1.0, None, self.plan.seed)?, SAMPLE_TOKENS)
        };
        decoder.reset();
        let generation = Engine::new(decoder, tokenizer)?
            .generate(&prompt, &options, |_| ControlFlow::Continue(()))?;
        Ok(Diversity::of(generation.rows.iter().map(|r| r.ids.as_slice())))
    }
}
