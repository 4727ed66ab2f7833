//! `POST /chat/completions`: the event stream of upstream's last web server, for pages made for it.
//!
//! In: `messages`, and perhaps `temperature`, `max_tokens`, `top_k`. Out: `data: {"token": "...", "gpu": 0}`
//! for each text, then `data: {"done": true}`. Its limits are kept; calls and their answers stand in
//! the text between their special tokens, as there.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nanochat_engine::batch::Update;
use nanochat_engine::{Piece, SampleOptions};
use nanochat_tokenizer::Special;
use serde_json::{Value, json};

use crate::app::App;
use crate::body;
use crate::error::ApiError;
use crate::job::Job;
use crate::openai::messages::Dialog;
use crate::sse::{self, Events, Voice};

/// `POST /chat/completions`
pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request).await.unwrap_or_else(|error| {
        let mut response =
            (error.status, axum::Json(json!({"detail": error.message}))).into_response();
        if let Some(seconds) = error.retry_after_s {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        response
    })
}

async fn answer(app: &Arc<App>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = body::json(app, &parts.headers, body).await?;
    check(&body)?;
    let number = |name: &str, default: f64, min: f64, max: f64| match &body[name] {
        Value::Null => Ok(default),
        value => value
            .as_f64()
            .filter(|x| (min..=max).contains(x))
            .ok_or_else(|| ApiError::value(name, value, &format!("a number from {min} to {max}"))),
    };
    let temperature = number("temperature", 0.8, 0.0, 2.0)?;
    let top_k = number("top_k", 50.0, 0.0, 200.0)? as usize;
    let max_tokens = number("max_tokens", 512.0, 1.0, 4096.0)? as usize;
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    let sample = SampleOptions::new(temperature as f32, (top_k > 0).then_some(top_k), seed)?;
    let prompt = Dialog::read(body.get("messages").cloned())?.ids(&app.tokenizer)?;
    let context = app.generator.limits().context;
    let room = context.saturating_sub(prompt.len());
    if room == 0 {
        let message =
            format!("the conversation has {} tokens, the context {context}", prompt.len());
        return Err(ApiError::field("messages", message));
    }
    let asking = nanochat_engine::batch::Request {
        prompt,
        n: 1,
        max_tokens: max_tokens.min(room),
        sample,
        stop: Vec::new(),
        stop_at_eot: true,
        tools: true,
        logprobs: None,
        prompt_logprobs: false,
        constraint: None,
    };
    let job = Job::submit(app, vec![asking])?;
    Ok(sse::respond(app, Events::new(job, Tokens)))
}

/// Upstream's limits on messages, with upstream's roles.
fn check(body: &Value) -> Result<(), ApiError> {
    let refuse = |message: &str| Err(ApiError::new(StatusCode::BAD_REQUEST, message));
    let Some(messages) = body["messages"].as_array() else {
        return refuse("messages is no list: give 1 to 500 messages");
    };
    let mut total = 0;
    for (i, message) in messages.iter().enumerate() {
        let Some(content) = message["content"].as_str().filter(|c| !c.is_empty()) else {
            return refuse(&format!("message {i} has no content: give a string"));
        };
        let characters = content.chars().count();
        total += characters;
        if characters > 8_000 || total > 32_000 {
            return refuse("at most 8,000 characters a message and 32,000 in all");
        }
        if !matches!(message["role"].as_str(), Some("user" | "assistant")) {
            return refuse(&format!("message {i} has another role than user or assistant"));
        }
    }
    Ok(())
}

struct Tokens;

impl Voice for Tokens {
    fn say(&mut self, _: usize, update: Update, out: &mut VecDeque<String>) {
        let (Update::Token { pieces, .. } | Update::Ended { pieces, .. }) = update else { return };
        for piece in pieces {
            let framed = |a: Special, text, b: Special| format!("{}{text}{}", a.text(), b.text());
            let text = match piece {
                Piece::Text(text) => text,
                Piece::ToolCall(text) => framed(Special::PythonStart, text, Special::PythonEnd),
                Piece::ToolOutput(text) => framed(Special::OutputStart, text, Special::OutputEnd),
            };
            out.push_back(json!({"token": text, "gpu": 0}).to_string());
        }
    }

    fn end(&mut self, out: &mut VecDeque<String>) {
        out.push_back(json!({"done": true}).to_string());
    }
}
