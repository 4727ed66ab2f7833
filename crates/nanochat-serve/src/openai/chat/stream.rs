//! A chat's answer in chunks.

use std::collections::VecDeque;

use nanochat_engine::Piece;
use nanochat_engine::batch::{Update, Usage};
use nanochat_tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::{Head, Shape, Tally, finish_reason, times, usage};
use crate::openai::logprobs;
use crate::openai::tools::{self, Tools};
use crate::sse::Voice;

/// Chunks of one request; samples are told apart by `choices[0].index`.
pub(crate) struct Chunks {
    head: Head,
    shape: Shape,
    tokenizer: Tokenizer,
    tally: Tally,
    done: Option<Usage>,
    /// Which samples have ended for the client.
    ended: Vec<bool>,
}

impl Chunks {
    pub fn new(head: Head, shape: Shape, tokenizer: Tokenizer) -> Self {
        let ended = vec![false; shape.n];
        Self { head, shape, tokenizer, tally: Tally::default(), done: None, ended }
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.head.id, "object": "chat.completion.chunk", "created": self.head.created,
            "model": self.head.model, "choices": choices,
        });
        if self.shape.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, row: usize, delta: Value, logprobs: Value) -> String {
        let choice =
            json!({"index": row, "delta": delta, "logprobs": logprobs, "finish_reason": null});
        self.chunk(json!([choice])).to_string()
    }

    fn finish(&mut self, row: usize, reason: &str, out: &mut VecDeque<String>) {
        self.ended[row] = true;
        let choice = json!({"index": row, "delta": {}, "logprobs": null, "finish_reason": reason});
        out.push_back(self.chunk(json!([choice])).to_string());
    }

    /// Pieces in order, with the log probabilities at the first chunk.
    fn pieces(
        &mut self,
        row: usize,
        pieces: Vec<Piece>,
        logprobs: Value,
        out: &mut VecDeque<String>,
    ) {
        let mut logprobs = logprobs;
        if pieces.is_empty() && !logprobs.is_null() {
            out.push_back(self.delta(row, json!({"content": ""}), logprobs.take()));
        }
        for piece in pieces {
            let delta = match (piece, self.shape.tools) {
                (Piece::Text(text), _) => json!({"content": text}),
                (Piece::ToolCall(call), Tools::Client | Tools::Required) => {
                    let id = format!("call_{}", uuid::Uuid::new_v4().simple());
                    let delta = json!({"tool_calls": [tools::call(0, &id, &call)]});
                    out.push_back(self.delta(row, delta, logprobs.take()));
                    self.finish(row, "tool_calls", out);
                    return;
                }
                (_, Tools::Off | Tools::Client | Tools::Required) => continue,
                (Piece::ToolCall(text), Tools::Server) => json!({"nanochat": {"tool_call": text}}),
                (Piece::ToolOutput(text), Tools::Server) => {
                    json!({"nanochat": {"tool_output": text}})
                }
            };
            out.push_back(self.delta(row, delta, logprobs.take()));
        }
    }
}

impl Voice for Chunks {
    fn say(&mut self, _: usize, update: Update, out: &mut VecDeque<String>) {
        match update {
            Update::Began { prompt_tokens, reused_tokens, queued_s } => {
                self.tally.began(prompt_tokens, reused_tokens, queued_s);
                for row in 0..self.shape.n {
                    let delta = json!({"role": "assistant", "content": ""});
                    out.push_back(self.delta(row, delta, Value::Null));
                }
            }
            Update::Token { row, pieces, logprobs, .. } if !self.is_ended(row) => {
                self.tally.token(row);
                let wanted = self.shape.logprobs.and(logprobs.as_ref());
                let logprobs = wanted.map_or(Value::Null, |one| {
                    json!({"content": [logprobs::chat(&self.tokenizer, one)], "refusal": null})
                });
                self.pieces(row, pieces, logprobs, out);
            }
            Update::Ended { row, finish, pieces, .. } if !self.is_ended(row) => {
                self.pieces(row, pieces, Value::Null, out);
                if !self.is_ended(row) {
                    self.finish(row, finish_reason(finish), out);
                }
            }
            Update::Done(usage) => self.done = Some(usage),
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        self.done.is_none()
            && matches!(self.shape.tools, Tools::Client | Tools::Required)
            && self.ended.iter().all(|e| *e)
    }

    fn end(&mut self, out: &mut VecDeque<String>) {
        if self.shape.include_usage {
            let counts = self.done.unwrap_or_else(|| self.tally.usage());
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(&counts);
            chunk["nanochat"] = times(&counts, self.shape, self.head.context);
            out.push_back(chunk.to_string());
        }
        out.push_back("[DONE]".into());
    }
}

impl Chunks {
    /// True also for a row that does not exist: whatever the engine says of it is not passed on.
    fn is_ended(&self, row: usize) -> bool {
        self.ended.get(row).copied().unwrap_or(true)
    }
}

/// The parts of a message that has more than text.
pub(super) fn vendor_parts(pieces: &[Piece]) -> Option<Value> {
    let named = |kind: &str, text: &str| json!({"type": kind, "text": text});
    let parts = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => named("text", text),
        Piece::ToolCall(text) => named("tool_call", text),
        Piece::ToolOutput(text) => named("tool_output", text),
    });
    let only_text = pieces.iter().all(|p| matches!(p, Piece::Text(_)));
    let map: Map<_, _> =
        [("parts".to_owned(), Value::Array(parts.collect()))].into_iter().collect();
    (!only_text).then_some(Value::Object(map))
}
