//! Paths to handlers; everything is below the guard.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::{chat, completions, models, tokens};
use crate::{guard, history, info, legacy, openapi, page, runs, streams};

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::one))
        .route("/v1/completions", post(completions::handle))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/openapi.json", get(openapi::handle))
        .route("/chat/completions", post(legacy::handle))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/login", post(page::log_in))
        .route("/", get(page::index))
        .route("/train", get(page::train))
        .route("/assets/{file}", get(page::asset))
        .route("/favicon.ico", get(page::favicon))
        .route("/api/info", get(info::handle))
        .route("/api/streams/{id}", get(streams::replay).delete(streams::stop))
        .route("/api/conversations", get(history::list))
        .route(
            "/api/conversations/{id}",
            get(history::one).put(history::put).patch(history::rename).delete(history::delete),
        )
        .route("/api/runs", get(runs::list))
        .route("/api/runs/{name}", get(runs::one))
        .route("/api/runs/{name}/metrics", get(runs::metrics));
    routes
        .fallback(|| async { ApiError::not_found("there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has another method")
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// A handler panicked: a fault of ours, told to standard error by the panic itself.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::internal("the server met a fault of its own; others are not concerned")
        .into_response()
}

/// `GET /health`: the process answers. For everybody, without a key.
async fn health() -> Response {
    axum::Json(json!({"status": "ok"})).into_response()
}

/// `GET /ready`: the model is loaded and requests are taken.
async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.traffic.is_draining() {
        return ApiError::stopping().into_response();
    }
    axum::Json(json!({"status": "ready"})).into_response()
}

/// `GET /metrics`
async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, app.metrics.text(&*app.generator, app.traffic.under_way())).into_response()
}
