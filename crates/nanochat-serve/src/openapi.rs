//! `GET /openapi.json`: the routes for programs; the fields come from the table that requests are held to.

use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::openai::fields::{Place, schema};

/// A route: path, method, what it does.
pub(crate) type Route = (&'static str, &'static str, &'static str);

/// All routes that are for others than the page.
pub(crate) const ROUTES: &[Route] = &[
    ("/v1/chat/completions", "post", "Answers a conversation, whole or in events."),
    ("/v1/completions", "post", "Continues texts or ids, whole or in events."),
    ("/v1/models", "get", "The model that is served, in a list."),
    ("/v1/models/{id}", "get", "The model that is served."),
    ("/tokenize", "post", "Text or messages to ids."),
    ("/detokenize", "post", "Ids to text."),
    ("/chat/completions", "post", "The event stream of upstream's web server."),
    ("/health", "get", "The process answers; needs no key."),
    ("/ready", "get", "Requests are taken."),
    ("/metrics", "get", "Counters in Prometheus' text format."),
    ("/openapi.json", "get", "This document."),
    ("/api/info", "get", "The model, its limits and defaults."),
    ("/api/streams/{id}", "get", "A resumable answer, from any event on."),
    ("/api/streams/{id}", "delete", "Stops a resumable answer."),
    ("/api/conversations", "get", "Kept conversations, newest first."),
    ("/api/conversations/{id}", "get", "A kept conversation."),
    ("/api/conversations/{id}", "put", "Keeps a conversation."),
    ("/api/conversations/{id}", "patch", "Renames a kept conversation."),
    ("/api/conversations/{id}", "delete", "Forgets a conversation."),
    ("/api/runs", "get", "Training runs."),
    ("/api/runs/{name}", "get", "Settings and results of a run."),
    ("/api/runs/{name}/metrics", "get", "Rows of a run's metrics."),
];

/// `GET /openapi.json`
pub(crate) async fn handle() -> Response {
    axum::Json(document()).into_response()
}

pub(crate) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for (path, method, summary) in ROUTES {
        let mut operation = json!({
            "summary": summary,
            "responses": {
                "200": {"description": "As asked."},
                "default": {
                    "description": "What is wrong.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
        });
        if let Some(name) = path.split(['{', '}']).nth(1) {
            let parameter = json!({
                "name": name, "in": "path", "required": true, "schema": {"type": "string"},
            });
            operation["parameters"] = json!([parameter]);
        }
        if matches!(*method, "post" | "put" | "patch") {
            let schema = match *path {
                "/v1/chat/completions" => json!({"$ref": "#/components/schemas/Chat"}),
                "/v1/completions" => json!({"$ref": "#/components/schemas/Completion"}),
                _ => json!({"type": "object"}),
            };
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        if *path == "/health" {
            operation["security"] = json!([]);
        }
        paths.entry(*path).or_insert_with(|| json!({}))[*method] = operation;
    }
    let (mut chat, mut text) = (schema(Place::Chat), schema(Place::Text));
    chat["required"] = json!(["messages"]);
    text["required"] = json!(["prompt"]);
    let error = json!({"type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["message", "type"],
        "properties": {
            "message": {"type": "string"}, "type": {"type": "string"},
            "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
        },
    }}});
    json!({
        "openapi": "3.1.0",
        "info": {"title": "nanochat", "version": env!("CARGO_PKG_VERSION")},
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Chat": chat, "Completion": text, "Error": error},
        },
    })
}
