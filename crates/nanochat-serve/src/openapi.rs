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
        let mut operation = json!({"summary": summary, "responses": responses(path, method)});
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
                _ => other_body(path, method),
            };
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        if matches!((*path, *method), ("/api/conversations/{id}", "put")) {
            let header = |name, example| json!({"name": name, "in": "header", "schema": {"type": "string"}, "example": example});
            if let Some(parameters) = operation["parameters"].as_array_mut() {
                parameters.extend([header("If-Match", "1"), header("If-None-Match", "*")]);
            }
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
    let detail = json!({"type": "object", "required": ["detail"],
        "properties": {"detail": {"type": "string"}}});
    json!({
        "openapi": "3.1.0",
        "info": {"title": "nanochat", "version": env!("CARGO_PKG_VERSION")},
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Chat": chat, "Completion": text, "Error": error, "Detail": detail,
                "Conversation": conversation()},
        },
    })
}

/// What an operation answers, by status.
fn responses(path: &str, method: &str) -> Value {
    let is_model = path.starts_with("/v1/") || path == "/chat/completions";
    let mut all: Map<String, Value> = Map::new();
    match (path, method) {
        (_, "delete") => all.insert("204".into(), json!({"description": "Done; no body."})),
        _ => all.insert("200".into(), json!({"description": "As asked."})),
    };
    // Of every path: the guard's refusals, and a fault of the server.
    let mut statuses = vec![401, 403, 500];
    if matches!(method, "post" | "put" | "patch") {
        statuses.extend([400, 408, 413, 415]);
    }
    if path.contains('{') || path.starts_with("/api/conversations") || path.starts_with("/api/runs")
    {
        statuses.extend([400, 404]);
    }
    match (path, method) {
        ("/api/conversations/{id}", "put") => statuses.extend([409, 428]),
        ("/ready", _) => statuses.push(503),
        _ if is_model && method == "post" => statuses.extend([404, 429, 503, 504]),
        _ => {}
    }
    for status in statuses {
        let name = match (path, status) {
            // The guard stands before every route and speaks OpenAI's form.
            ("/chat/completions", 400 | 404 | 408 | 413 | 415 | 429 | 500 | 503 | 504) => "Detail",
            // The conversation as it is kept.
            (_, 409) => "Conversation",
            _ => "Error",
        };
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        let content = json!({"application/json": {"schema": schema}});
        all.insert(status.to_string(), json!({"description": meaning(status), "content": content}));
    }
    Value::Object(all)
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request cannot be meant so; `param` names the field.",
        401 => "No key, or a wrong one.",
        403 => "A Host or an Origin that is not this server's.",
        404 => "There is no such thing.",
        408 => "The body took too long to arrive.",
        409 => "It was changed elsewhere: this is how it stands.",
        413 => "The body is too large.",
        415 => "The body is no JSON.",
        428 => "The request does not say what it expects to change.",
        429 => "The queue is full: come back after Retry-After.",
        503 => "The server is stopping.",
        504 => "The answer took too long.",
        _ => "A fault of the server.",
    }
}

/// A conversation as it is kept; fields beside these are the page's.
fn conversation() -> Value {
    json!({"type": "object", "required": ["id", "title", "updated", "nodes"], "properties": {
        "id": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
        "title": {"type": "string"}, "updated": {"type": "string"}, "nodes": {"type": "array"}}})
}

/// The body of a route that is not OpenAI's.
fn other_body(path: &str, method: &str) -> Value {
    let text = json!({"type": "string"});
    let messages = json!({"type": "array", "minItems": 1, "maxItems": 500, "items": {
        "type": "object", "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"type": "string", "minLength": 1}}}});
    match path {
        "/tokenize" => json!({"type": "object", "required": ["prompt"],
            "properties": {"prompt": text, "add_special_tokens": {"type": "boolean"}}}),
        "/detokenize" => json!({"type": "object", "required": ["tokens"],
            "properties": {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}}}),
        "/chat/completions" => json!({"type": "object", "required": ["messages"], "properties": {
            "messages": messages, "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "top_k": {"type": "integer", "minimum": 0, "maximum": 200},
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": 4096}}}),
        "/api/conversations/{id}" if method == "patch" => json!({"type": "object",
            "required": ["title"], "properties": {"title": {"type": "string"}}}),
        "/api/conversations/{id}" => json!({"$ref": "#/components/schemas/Conversation"}),
        _ => json!({"type": "object"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_names_what_it_answers() {
        let document = document();
        for (path, method, _) in ROUTES {
            let responses = &document["paths"][path][method]["responses"];
            assert!(
                responses["default"].is_null(),
                "{method} {path}: anything would be documented"
            );
            let well = if *method == "delete" { "204" } else { "200" };
            assert!(responses[well].is_object() && responses["401"].is_object(), "{method} {path}");
        }
        let of = |path: &str, status: &str| {
            let path = &document["paths"][path]["post"]["responses"][status];
            path["content"]["application/json"]["schema"]["$ref"].clone()
        };
        assert_eq!(of("/chat/completions", "400"), "#/components/schemas/Detail");
        assert_eq!(of("/v1/completions", "429"), "#/components/schemas/Error");
        assert!(of("/tokenize", "429").is_null());
    }
}
