//! `GET /api/info`: what the page shows of the server.

use std::sync::Arc;

use axum::extract::State;
use serde_json::{Value, json};

use crate::app::App;
use crate::config::{MOST_MESSAGES, MOST_SAMPLES};

/// `GET /api/info`
pub(crate) async fn handle(State(app): State<Arc<App>>) -> axum::Json<Value> {
    let config = &app.config;
    let limits = app.generator.limits();
    axum::Json(json!({
        "version": config.version,
        "model": {
            "id": config.model.id, "parameters": config.model.parameters,
            "n_layer": config.model.n_layer, "n_embd": config.model.n_embd,
            "vocab_size": limits.vocab_size, "context": limits.context,
        },
        "device": config.device,
        "history": config.history.is_some(),
        "runs": config.runs.is_some(),
        "defaults": {
            "temperature": (f64::from(config.defaults.temperature) * 1e4).round() / 1e4, "top_k": config.defaults.top_k.unwrap_or(0),
            "top_p": 1.0, "max_tokens": config.defaults.max_tokens.min(limits.context),
        },
        "limits": {"n": MOST_SAMPLES, "max_tokens": limits.context, "messages": MOST_MESSAGES},
    }))
}
