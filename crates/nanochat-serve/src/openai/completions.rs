//! `POST /v1/completions`: texts or ids in, their continuations out.
//!
//! A text is a document: bos goes before it, unseen. A list of ids is taken as it is. With `echo` and
//! `logprobs` the prompt's tokens come with their probabilities, as evaluation harnesses need.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use nanochat_engine::Piece;
use nanochat_engine::batch::{TokenLogprobs, Update, Usage};
use nanochat_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::chat::{Head, finish_headers, finish_reason, usage};
use super::fields::Fields;
use super::logprobs::Lists;
use super::request::Asked;
use super::tools::Tools;
use crate::app::App;
use crate::config::MOST_PROMPTS;
use crate::error::ApiError;
use crate::job::Job;
use crate::sse::{self, Events, Voice};
use crate::{body, structured};

type Result<T> = std::result::Result<T, ApiError>;

/// Most tokens of an answer whose request does not say (as OpenAI).
const DEFAULT_MAX_TOKENS: usize = 16;

/// `POST /v1/completions`
pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(app: &Arc<App>, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let mut fields = Fields::new(body::json(app, &parts.headers, body).await?)?;
    let mut asked = Asked::read(&mut fields, app)?;
    asked.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = logprobs(&mut fields)?;
    if fields.count("best_of")?.is_some_and(|best| best != asked.n) {
        return Err(ApiError::field(
            "best_of",
            "best_of other than n is not supported: leave it out",
        ));
    }
    if let Some(suffix) = fields.take("suffix").filter(|s| s != "") {
        return Err(Fields::wrong("suffix", &suffix));
    }
    let given = fields.take("prompt");
    let tokenizer = app.tokenizer.clone();
    let read = tokio::task::spawn_blocking(move || prompts(given, &tokenizer)).await;
    let prompts = read.map_err(|e| ApiError::internal(e.to_string()))??;
    let mut asking = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        let mut request = asked.request(app, prompt.ids.clone(), "prompt")?;
        request.logprobs = logprobs;
        request.prompt_logprobs = echo && logprobs.is_some();
        request.constraint = structured::constraint(app, &asked, Tools::Off).await?;
        asking.push(request);
    }
    let head = Head::new(app, "cmpl");
    let job = Job::submit(app, asking)?;
    let said = Said::new(prompts, &asked, echo, logprobs, app.tokenizer.clone());
    let mut response = if asked.stream {
        let voice = Chunks { head: head.clone(), said, include_usage: asked.include_usage };
        sse::respond(app, Events::new(job, voice))
    } else {
        axum::Json(collect(job, &head, said).await?).into_response()
    };
    finish_headers(&mut response, &head, &fields.left());
    Ok(response)
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(value) => match value.as_u64().filter(|n| *n <= 20) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(ApiError::value("logprobs", &value, "a whole number from 0 to 20")),
        },
    }
}

/// One prompt.
struct Prompt {
    ids: Vec<u32>,
    /// Ids at the beginning that nobody gave.
    hidden: usize,
}

/// Errors: no prompt, too many, ids that do not exist.
fn prompts(given: Option<Value>, tokenizer: &Tokenizer) -> Result<Vec<Prompt>> {
    let Some(value) = given else {
        return Err(ApiError::field("prompt", "prompt is missing: give the text to continue"));
    };
    let wrong = || Fields::wrong("prompt", &value);
    let text = |text: &str| {
        let mut ids = vec![tokenizer.bos()];
        tokenizer.encode_into(text, &mut ids);
        Prompt { ids, hidden: 1 }
    };
    let vocab = tokenizer.vocab_size() as u64;
    let list = |list: &[Value]| -> Result<Prompt> {
        let id = |v: &Value| v.as_u64().filter(|id| *id < vocab).map(|id| id as u32);
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        let ids = ids.filter(|ids| !ids.is_empty());
        let ids = ids.ok_or_else(|| {
            let message =
                format!("prompt has ids that do not exist: they go from 0 to {}", vocab - 1);
            ApiError::field("prompt", message)
        })?;
        Ok(Prompt { ids, hidden: 0 })
    };
    match &value {
        Value::String(one) => Ok(vec![text(one)]),
        Value::Array(many) if many.is_empty() => Err(wrong()),
        Value::Array(many) if many[0].is_number() => Ok(vec![list(many)?]),
        Value::Array(many) if many.len() <= MOST_PROMPTS => {
            let one = |value: &Value| match value {
                Value::String(one) => Ok(text(one)),
                Value::Array(ids) => list(ids),
                _ => Err(wrong()),
            };
            many.iter().map(one).collect()
        }
        _ => Err(wrong()),
    }
}

/// One sample: what is to be told of it.
#[derive(Default)]
struct Row {
    text: String,
    lists: Lists,
    finish: Option<&'static str>,
}

/// All samples of all prompts; sample r of prompt p is choice `p n + r`.
struct Said {
    rows: Vec<Row>,
    n: usize,
    prompts: Vec<Prompt>,
    echo: bool,
    logprobs: Option<usize>,
    tokenizer: Tokenizer,
    usage: Usage,
}

impl Said {
    fn new(
        prompts: Vec<Prompt>,
        asked: &Asked,
        echo: bool,
        logprobs: Option<usize>,
        tokenizer: Tokenizer,
    ) -> Self {
        let rows = (0..prompts.len() * asked.n).map(|_| Row::default()).collect();
        Self { rows, n: asked.n, prompts, echo, logprobs, tokenizer, usage: Usage::default() }
    }

    /// Takes in an update of prompt `index`; the choices that have something to tell.
    fn take(&mut self, index: usize, update: Update) -> std::ops::Range<usize> {
        let first = index * self.n;
        match update {
            Update::Began { .. } if self.echo && self.logprobs.is_none() => {
                self.echo_prompt(index, &[]);
                first..first + self.n
            }
            Update::Prompt(probabilities) => {
                self.echo_prompt(index, &probabilities);
                first..first + self.n
            }
            Update::Token { row, id, pieces, logprobs, .. } if row < self.n => {
                let state = &mut self.rows[first + row];
                if self.logprobs.is_some() {
                    state.lists.push(&self.tokenizer, id, logprobs.as_ref());
                }
                state.add(pieces);
                first + row..first + row + 1
            }
            Update::Ended { row, finish, pieces, .. } if row < self.n => {
                let state = &mut self.rows[first + row];
                state.add(pieces);
                state.finish = Some(finish_reason(finish));
                first + row..first + row + 1
            }
            Update::Done(usage) => {
                self.usage.prompt_tokens += usage.prompt_tokens;
                self.usage.reused_tokens += usage.reused_tokens;
                self.usage.generated_tokens += usage.generated_tokens;
                0..0
            }
            _ => 0..0,
        }
    }

    fn echo_prompt(&mut self, index: usize, probabilities: &[Option<TokenLogprobs>]) {
        let Prompt { ids, hidden } = &self.prompts[index];
        let text = self.tokenizer.decode(&ids[*hidden..]).unwrap_or_default();
        for row in &mut self.rows[index * self.n..(index + 1) * self.n] {
            row.text.push_str(&text);
            if self.logprobs.is_none() {
                continue;
            }
            for (i, id) in ids.iter().enumerate().skip(*hidden) {
                let one = probabilities.get(i).and_then(Option::as_ref);
                row.lists.push(&self.tokenizer, *id, one);
            }
        }
    }

    /// A choice with what there is to tell since the last time.
    fn choice(&mut self, index: usize) -> Value {
        let row = &mut self.rows[index];
        let logprobs = match self.logprobs {
            Some(_) => row.lists.take().json(),
            None => Value::Null,
        };
        json!({
            "index": index, "text": std::mem::take(&mut row.text), "logprobs": logprobs,
            "finish_reason": row.finish,
        })
    }
}

impl Row {
    fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            if let Piece::Text(text) = piece {
                self.text.push_str(&text);
            }
        }
    }

    fn has_news(&self) -> bool {
        !self.text.is_empty() || !self.lists.is_empty() || self.finish.is_some()
    }
}

fn whole(head: &Head, choices: Vec<Value>) -> Value {
    json!({
        "id": head.id, "object": "text_completion", "created": head.created, "model": head.model,
        "choices": choices,
    })
}

async fn collect(mut job: Job, head: &Head, mut said: Said) -> Result<Value> {
    while let Some(update) = job.next().await {
        let (index, update) = update?;
        said.take(index, update);
    }
    let choices = (0..said.rows.len()).map(|i| said.choice(i)).collect();
    let mut answer = whole(head, choices);
    answer["usage"] = usage(&said.usage);
    Ok(answer)
}

/// The answer in chunks.
struct Chunks {
    head: Head,
    said: Said,
    include_usage: bool,
}

impl Chunks {
    fn chunk(&self, choices: Vec<Value>, counts: Value) -> String {
        let mut chunk = whole(&self.head, choices);
        if self.include_usage {
            chunk["usage"] = counts;
        }
        chunk.to_string()
    }
}

impl Voice for Chunks {
    fn say(&mut self, index: usize, update: Update, out: &mut VecDeque<String>) {
        for choice in self.said.take(index, update) {
            if self.said.rows[choice].has_news() {
                let choice = self.said.choice(choice);
                out.push_back(self.chunk(vec![choice], Value::Null));
            }
        }
    }

    fn end(&mut self, out: &mut VecDeque<String>) {
        if self.include_usage {
            out.push_back(self.chunk(Vec::new(), usage(&self.said.usage)));
        }
        out.push_back("[DONE]".into());
    }
}
