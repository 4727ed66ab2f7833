//! `/api/conversations`: the page's conversations, kept on the server if it was started with `--history`.

pub(crate) mod store;

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::body;
use crate::error::ApiError;
use store::{Expected, Put, Store, StoreError};

type Result<T> = std::result::Result<T, ApiError>;

/// Conversations of one page of the list, unless asked otherwise, and at most.
const PAGE: usize = 50;
const MOST_PAGE: usize = 500;

/// What the list is asked for.
#[derive(Deserialize)]
pub(crate) struct Asked {
    q: Option<String>,
    limit: Option<usize>,
    /// `updated` of the last conversation of the page before.
    before: Option<String>,
}

/// `GET /api/conversations?q=TEXT&limit=N&before=UPDATED`
pub(crate) async fn list(State(app): State<Arc<App>>, Query(asked): Query<Asked>) -> Response {
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, MOST_PAGE);
    let answer = with(&app, move |store| {
        let q = asked.q.as_deref().map(str::trim).filter(|q| !q.is_empty());
        store.list(q, limit, asked.before.as_deref())
    });
    reply(answer.await)
}

/// `GET /api/conversations/{id}`
pub(crate) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match with(&app, move |store| store.get(&id)).await {
        Ok(Some(document)) => axum::Json(document).into_response(),
        Ok(None) => unknown().into_response(),
        Err(error) => error.into_response(),
    }
}

/// `PUT /api/conversations/{id}`: the whole document; `If-Match: REV` or `If-None-Match: *`.
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let answer = async {
        let (parts, body) = request.into_parts();
        let expected = expected(&parts.headers)?;
        let document = body::json(&app, &parts.headers, body).await?;
        check(&id, &document)?;
        with(&app, move |store| store.put(&id, document, expected)).await
    };
    match answer.await {
        Ok(Put::Kept { rev }) => axum::Json(json!({"rev": rev})).into_response(),
        Ok(Put::Other(Some(current))) => {
            (StatusCode::CONFLICT, axum::Json(current)).into_response()
        }
        Ok(Put::Other(None)) => unknown().into_response(),
        Err(error) => error.into_response(),
    }
}

/// `PATCH /api/conversations/{id}`: `{"title": ...}`.
pub(crate) async fn rename(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let answer = async {
        let (parts, body) = request.into_parts();
        let body = body::json(&app, &parts.headers, body).await?;
        let title = body["title"].as_str().filter(|t| t.len() <= 1000).map(str::to_owned);
        let title = title.ok_or_else(|| ApiError::value("title", &body["title"], "a string"))?;
        with(&app, move |store| store.rename(&id, &title)).await
    };
    match answer.await {
        Ok(Some(rev)) => axum::Json(json!({"rev": rev})).into_response(),
        Ok(None) => unknown().into_response(),
        Err(error) => error.into_response(),
    }
}

/// `DELETE /api/conversations/{id}`: also if it was not there.
pub(crate) async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match with(&app, move |store| store.delete(&id)).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => error.into_response(),
    }
}

/// Runs `ask` on a thread that may wait for the disk.
async fn with<T: Send + 'static>(
    app: &Arc<App>,
    ask: impl FnOnce(&Store) -> std::result::Result<T, StoreError> + Send + 'static,
) -> Result<T> {
    let Some(store) = app.history.clone() else {
        return Err(ApiError::not_found("this server keeps no history: start it with --history"));
    };
    let asked = tokio::task::spawn_blocking(move || ask(&store)).await;
    asked
        .map_err(|e| ApiError::internal(e.to_string()))?
        .map_err(|e| ApiError::internal(format!("the history: {e}")))
}

fn unknown() -> ApiError {
    ApiError::not_found("there is no such conversation")
}

fn expected(headers: &HeaderMap) -> Result<Expected> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, Some("*")) => Ok(Expected::None),
        (Some(rev), None) => match rev.trim_matches('"').parse() {
            Ok(rev) => Ok(Expected::Rev(rev)),
            Err(_) => Err(ApiError::field(
                "If-Match",
                "If-Match is no number: give the rev that you have",
            )),
        },
        _ => {
            let message =
                "say what you expect: If-Match: REV for a change, If-None-Match: * for the first";
            Err(ApiError::new(StatusCode::PRECONDITION_REQUIRED, message))
        }
    }
}

/// Whether a document is a conversation: what the list and the search read must be there.
fn check(id: &str, document: &Value) -> Result<()> {
    let sane = |id: &str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !sane(id) || document["id"].as_str() != Some(id) {
        return Err(ApiError::field(
            "id",
            "id differs from the path's, or has other signs than a UUID",
        ));
    }
    if document["title"].as_str().is_none_or(|t| t.len() > 1000) {
        return Err(ApiError::value("title", &document["title"], "a string of up to 1000 bytes"));
    }
    let iso = |t: &str| (10..=40).contains(&t.len()) && t.is_ascii();
    if !document["updated"].as_str().is_some_and(iso) {
        return Err(ApiError::value(
            "updated",
            &document["updated"],
            "a time, as 2026-11-26T12:00:00Z",
        ));
    }
    if !document["nodes"].is_array() {
        return Err(ApiError::value("nodes", &document["nodes"], "a list"));
    }
    Ok(())
}

fn reply(answer: Result<Value>) -> Response {
    match answer {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}
