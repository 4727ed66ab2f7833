//! `GET /v1/models`: the one model.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;

/// `GET /v1/models`
pub(crate) async fn list(State(app): State<Arc<App>>) -> axum::Json<Value> {
    axum::Json(json!({"object": "list", "data": [model(&app)]}))
}

/// `GET /v1/models/{id}`
pub(crate) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    if id == app.config.model.id || id == "nanochat" {
        return axum::Json(model(&app)).into_response();
    }
    let message = format!("there is no model {id:?}: this server has {:?}", app.config.model.id);
    ApiError::not_found(message).code("model_not_found").into_response()
}

fn model(app: &App) -> Value {
    let model = &app.config.model;
    json!({
        "id": model.id, "object": "model", "created": model.created, "owned_by": "nanochat",
        "max_model_len": app.generator.limits().context,
    })
}
