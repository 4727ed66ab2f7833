//! `POST /v1/chat/completions`: a conversation in, the assistant's message out.

mod answer;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use nanochat_engine::Finish;
use nanochat_engine::batch::{Request as Asking, Usage};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::messages::Dialog;
use super::request::Asked;
use super::tools::Tools;
use crate::app::App;
use crate::error::ApiError;
use crate::job::Job;
use crate::{body, sse};

type Result<T> = std::result::Result<T, ApiError>;

/// The head that all answers to one request share.
#[derive(Clone)]
pub(crate) struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
    /// Most tokens of prompt and answer.
    pub context: usize,
}

impl Head {
    pub fn new(app: &App, prefix: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: now,
            model: app.config.model.id.clone(),
            context: app.generator.limits().context,
        }
    }

    /// The request's id as a header.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.id).unwrap_or(HeaderValue::from_static("?"))
    }
}

/// What a chat asks beside the prompt.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub n: usize,
    pub tools: Tools,
    pub logprobs: Option<usize>,
    pub include_usage: bool,
    /// Questions that were forgotten to make room.
    pub forgot: usize,
}

/// `POST /v1/chat/completions`
pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    match answer(&app, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(app: &Arc<App>, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let mut fields = Fields::new(body::json(app, &parts.headers, body).await?)?;
    let asked = Asked::read(&mut fields, app)?;
    let (asking, shape) = read(&mut fields, app, &asked).await?;
    let unknown = fields.left();
    let head = Head::new(app, "chatcmpl");
    let job = Job::submit(app, vec![asking])?;
    let mut response = if asked.stream {
        let voice = stream::Chunks::new(head.clone(), shape, app.tokenizer.clone());
        let events = sse::Events::new(job, voice);
        match parts.headers.get("x-nanochat-resumable") {
            Some(yes) if yes == "1" => crate::streams::respond(app, &head.id, events),
            _ => sse::respond(app, events),
        }
    } else {
        let whole = answer::collect(job, &head, shape, &app.tokenizer).await?;
        axum::Json(whole).into_response()
    };
    finish_headers(&mut response, &head, &unknown);
    Ok(response)
}

/// The request's id, and a warning for fields that mean nothing here.
pub(crate) fn finish_headers(response: &mut Response<Body>, head: &Head, unknown: &[String]) {
    response.headers_mut().insert("x-request-id", head.header());
    if !unknown.is_empty() {
        let names: Vec<_> =
            unknown.iter().take(20).map(|n| n.escape_default().to_string()).collect();
        let mut text = format!("ignored unknown fields: {}", names.join(", "));
        text.truncate(1000);
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert("warnings", value);
        }
    }
}

async fn read(fields: &mut Fields, app: &Arc<App>, asked: &Asked) -> Result<(Asking, Shape)> {
    let vendor = vendor(fields)?;
    let tools = Tools::read(fields, &vendor)?;
    let logprobs = logprobs(fields)?;
    let constraint = crate::structured::constraint(app, asked, tools).await?;
    let mut dialog = Dialog::read(fields.take("messages"))?;
    let truncate = flag(&vendor, "truncate")?;
    let (dialog_ids, forgot) = {
        let tokenizer = app.tokenizer.clone();
        let room = app.generator.limits().context;
        let reserve = asked.max_tokens.unwrap_or(app.config.defaults.max_tokens).min(room / 2);
        let ids = move || -> Result<_> {
            let mut forgot = 0;
            let mut ids = dialog.ids(&tokenizer)?;
            while truncate && ids.len() + reserve > room && dialog.forget() {
                forgot += 1;
                ids = dialog.ids(&tokenizer)?;
            }
            Ok((ids, forgot))
        };
        // Up to 2 MiB of text are encoded: not on a thread that answers others.
        tokio::task::spawn_blocking(ids).await.map_err(|e| ApiError::internal(e.to_string()))??
    };
    let mut asking = asked.request(app, dialog_ids, "messages")?;
    asking.logprobs = logprobs;
    asking.tools = tools == Tools::Server && asked.format_is_text();
    asking.constraint = constraint;
    let shape = Shape { n: asked.n, tools, logprobs, include_usage: asked.include_usage, forgot };
    Ok((asking, shape))
}

fn vendor(fields: &mut Fields) -> Result<Map<String, Value>> {
    match fields.take("nanochat") {
        None => Ok(Map::new()),
        Some(Value::Object(map)) if map.keys().all(|k| k == "tools" || k == "truncate") => Ok(map),
        Some(other) => Err(Fields::wrong("nanochat", &other)),
    }
}

fn flag(vendor: &Map<String, Value>, name: &str) -> Result<bool> {
    match vendor.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(yes)) => Ok(*yes),
        Some(other) => Err(ApiError::value(&format!("nanochat.{name}"), other, "true or false")),
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let wanted = match fields.take("logprobs") {
        None => false,
        Some(Value::Bool(yes)) => yes,
        Some(other) => return Err(ApiError::value("logprobs", &other, "true or false")),
    };
    match fields.count("top_logprobs")? {
        Some(top) if !wanted && top > 0 => {
            Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: set it to true"))
        }
        top => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

/// Why an answer ended, in OpenAI's words.
pub(crate) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::MaxTokens | Finish::ContextFull => "length",
        Finish::Eot | Finish::StopString | Finish::Cancelled => "stop",
    }
}

/// Counts, in OpenAI's words.
pub(crate) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    })
}

/// Times, in this server's.
fn times(usage: &Usage, shape: Shape, context: usize) -> Value {
    let decode_s = usage.total_s - usage.first_token_s;
    let after_first = usage.generated_tokens.saturating_sub(shape.n) as f64;
    let speed = if decode_s > 0.0 { after_first / decode_s } else { 0.0 };
    let ms = |s: f64| (s * 1e5).round() / 100.0;
    json!({
        "tokens_per_sec": (speed * 10.0).round() / 10.0, "first_token_ms": ms(usage.first_token_s),
        "queued_ms": ms(usage.queued_s), "context": context, "forgot": shape.forgot,
    })
}

/// Counts of a request that the client ends before the engine does.
#[derive(Default)]
pub(crate) struct Tally {
    usage: Usage,
    rows: BTreeMap<usize, usize>,
    began: Option<std::time::Instant>,
}

impl Tally {
    pub fn began(&mut self, prompt_tokens: usize, reused_tokens: usize, queued_s: f64) {
        self.usage = Usage { prompt_tokens, reused_tokens, queued_s, ..Usage::default() };
        self.began = Some(std::time::Instant::now());
    }

    pub fn token(&mut self, row: usize) {
        if self.rows.is_empty() {
            self.usage.first_token_s = self.usage.queued_s + self.seconds();
        }
        *self.rows.entry(row).or_default() += 1;
    }

    fn seconds(&self) -> f64 {
        self.began.map_or(0.0, |b| b.elapsed().as_secs_f64())
    }

    pub fn usage(&self) -> Usage {
        Usage {
            generated_tokens: self.rows.values().sum(),
            total_s: self.usage.queued_s + self.seconds(),
            ..self.usage
        }
    }
}
