//! A request's body: JSON within limits of size, time, type and depth.

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use crate::app::App;
use crate::config::MOST_BODY;
use crate::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// The body of a request, at most `MOST_BODY` bytes, in the time that the server grants.
///
/// Errors: 413, 408, 400 for a body that breaks off.
pub(crate) async fn bytes(app: &App, body: Body) -> Result<Bytes> {
    let too_large = || {
        let message = format!("the body has more than {MOST_BODY} bytes: send less");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    // What says that it is too large is not waited for.
    if body.size_hint().lower() > MOST_BODY as u64 {
        return Err(too_large());
    }
    let whole = Limited::new(body, MOST_BODY).collect();
    match tokio::time::timeout(app.config.timeouts.body, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(ApiError::field("body", format!("the body breaks off: {e}"))),
        Err(_) => {
            let message = "the body took too long to arrive";
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// The body as JSON.
///
/// Errors: as [`bytes`]; 415 for another type or a compressed body; 400 for what is no JSON, is deeper than
/// 128 levels, or holds numbers or characters that do not exist.
pub(crate) async fn json(app: &App, headers: &HeaderMap, body: Body) -> Result<Value> {
    let unsupported = |message: &str| ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
    let text = |name| headers.get(name).map(|v: &header::HeaderValue| v.to_str().unwrap_or("?"));
    let kind = text(header::CONTENT_TYPE).unwrap_or("");
    let mut parts = kind.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|t| t.eq_ignore_ascii_case("application/json"));
    let is_utf8 = parts.all(|p| {
        let charset = p.to_ascii_lowercase();
        !charset.starts_with("charset=") || charset.trim_matches('"').ends_with("utf-8")
    });
    if !is_json || !is_utf8 {
        return Err(unsupported("send JSON: Content-Type: application/json, in UTF-8"));
    }
    if text(header::CONTENT_ENCODING).is_some_and(|e| !e.eq_ignore_ascii_case("identity")) {
        return Err(unsupported("send the body as it is: compressed bodies are not read"));
    }
    let bytes = bytes(app, body).await?;
    serde_json::from_slice(&bytes)
        .map_err(|e| ApiError::field("body", format!("the body is no JSON: {e}")))
}
