//! `POST /tokenize` and `/detokenize`: text to ids and back, without a model.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::messages::Dialog;
use crate::app::App;
use crate::body;
use crate::error::ApiError;

/// `POST /tokenize`: `{"prompt": TEXT}` (or `content`, or `text`), with bos unless `add_special_tokens` is
/// false; or `{"messages": [...]}`, as a chat sees them.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    let answer = async {
        let (parts, body) = request.into_parts();
        let mut body = body::json(&app, &parts.headers, body).await?;
        let worker = Arc::clone(&app);
        let ids = tokio::task::spawn_blocking(move || ids(&worker, &mut body)).await;
        let ids = ids.map_err(|e| ApiError::internal(e.to_string()))??;
        let context = app.generator.limits().context;
        Ok::<_, ApiError>(json!({"count": ids.len(), "max_model_len": context, "tokens": ids}))
    };
    reply(answer.await)
}

fn ids(app: &App, body: &mut Value) -> Result<Vec<u32>, ApiError> {
    let Some(fields) = body.as_object_mut() else {
        return Err(ApiError::field("body", "the body is no JSON object: give {\"prompt\": ...}"));
    };
    if let Some(messages) = fields.remove("messages") {
        return Dialog::read(Some(messages))?.ids(&app.tokenizer);
    }
    let text = ["prompt", "content", "text"].iter().find_map(|name| fields.remove(*name));
    let text = match &text {
        Some(Value::String(text)) => text,
        other => {
            let value = other.as_ref().unwrap_or(&Value::Null);
            return Err(ApiError::value("prompt", value, "a string"));
        }
    };
    let special = match fields.get("add_special_tokens") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(yes)) => *yes,
        Some(other) => return Err(ApiError::value("add_special_tokens", other, "true or false")),
    };
    let mut ids = if special { vec![app.tokenizer.bos()] } else { Vec::new() };
    app.tokenizer.encode_into(text, &mut ids);
    Ok(ids)
}

/// `POST /detokenize`: `{"tokens": [ids]}`; special tokens come as their text form.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    let answer = async {
        let (parts, body) = request.into_parts();
        let body = body::json(&app, &parts.headers, body).await?;
        let tokens = &body["tokens"];
        let last = app.tokenizer.vocab_size() as u64 - 1;
        let id = |v: &Value| v.as_u64().filter(|id| *id <= last).map(|id| id as u32);
        let ids: Option<Vec<u32>> = tokens.as_array().and_then(|t| t.iter().map(id).collect());
        let Some(ids) = ids else {
            let allowed = format!("a list of ids from 0 to {last}");
            return Err(ApiError::value("tokens", tokens, &allowed));
        };
        let text =
            app.tokenizer.decode(&ids).map_err(|e| ApiError::field("tokens", e.to_string()))?;
        Ok(json!({"prompt": text, "content": text}))
    };
    reply(answer.await)
}

fn reply(answer: Result<Value, ApiError>) -> Response {
    match answer {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}
