//! A chat's answer in one piece.

use nanochat_engine::Piece;
use nanochat_engine::batch::{Update, Usage};
use nanochat_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::stream::vendor_parts;
use super::{Head, Shape, Tally, finish_reason, times, usage};
use crate::error::ApiError;
use crate::job::Job;
use crate::openai::logprobs;
use crate::openai::tools::{self, Tools};

/// One sample so far.
#[derive(Default)]
struct Row {
    pieces: Vec<Piece>,
    logprobs: Vec<Value>,
    finish: Option<&'static str>,
}

/// Hears the job to its end.
pub(crate) async fn collect(
    mut job: Job,
    head: &Head,
    shape: Shape,
    tokenizer: &Tokenizer,
) -> Result<Value, ApiError> {
    let mut rows: Vec<Row> = (0..shape.n).map(|_| Row::default()).collect();
    let mut tally = Tally::default();
    let mut done: Option<Usage> = None;
    let client = matches!(shape.tools, Tools::Client | Tools::Required);
    while let Some(update) = job.next().await {
        match update?.1 {
            Update::Began { prompt_tokens, reused_tokens, queued_s } => {
                tally.began(prompt_tokens, reused_tokens, queued_s);
            }
            Update::Token { row, pieces, logprobs: one, .. } => {
                let Some(state) = rows.get_mut(row).filter(|r| r.finish.is_none()) else {
                    continue;
                };
                tally.token(row);
                let one = shape.logprobs.and(one);
                state.logprobs.extend(one.map(|one| logprobs::chat(tokenizer, &one)));
                state.take(pieces, client);
            }
            Update::Ended { row, finish, pieces, .. } => {
                let Some(state) = rows.get_mut(row).filter(|r| r.finish.is_none()) else {
                    continue;
                };
                state.take(pieces, client);
                state.finish.get_or_insert(finish_reason(finish));
            }
            Update::Done(usage) => done = Some(usage),
            Update::Prompt(_) | Update::Failed(_) => {}
        }
        if client && done.is_none() && rows.iter().all(|r| r.finish.is_some()) {
            break;
        }
    }
    let counts = done.unwrap_or_else(|| tally.usage());
    let choices: Vec<_> = rows.iter().enumerate().map(|(i, row)| row.choice(i, shape)).collect();
    Ok(json!({
        "id": head.id, "object": "chat.completion", "created": head.created, "model": head.model,
        "choices": choices, "usage": usage(&counts), "nanochat": times(&counts, shape, head.context),
    }))
}

impl Row {
    /// Adds pieces; the client's own call ends the row.
    fn take(&mut self, pieces: Vec<Piece>, client: bool) {
        for piece in pieces {
            Piece::append(&mut self.pieces, &piece);
            if client && matches!(piece, Piece::ToolCall(_)) {
                self.finish = Some("tool_calls");
                return;
            }
        }
    }

    fn choice(&self, index: usize, shape: Shape) -> Value {
        let words = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            _ => None,
        });
        let text: String = words.collect();
        let mut message = json!({"role": "assistant", "content": text, "refusal": null});
        match (shape.tools, self.pieces.last()) {
            (Tools::Client | Tools::Required, Some(Piece::ToolCall(call))) => {
                let id = format!("call_{}", uuid::Uuid::new_v4().simple());
                let mut call = tools::call(0, &id, call);
                if let Some(call) = call.as_object_mut() {
                    call.remove("index");
                }
                message["tool_calls"] = json!([call]);
                if text.is_empty() {
                    message["content"] = Value::Null;
                }
            }
            (Tools::Server, _) => {
                if let Some(parts) = vendor_parts(&self.pieces) {
                    message["nanochat"] = parts;
                }
            }
            _ => {}
        }
        let logprobs = match shape.logprobs {
            Some(_) => json!({"content": self.logprobs, "refusal": null}),
            None => Value::Null,
        };
        json!({
            "index": index, "message": message, "logprobs": logprobs,
            "finish_reason": self.finish.unwrap_or("stop"),
        })
    }
}
