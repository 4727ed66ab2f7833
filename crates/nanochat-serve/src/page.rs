//! The files of the page, in the program; and the login in front of them.
//!
//! Everything in `web/` is embedded: `index.html` is `/`, `train.html` is `/train`, the files of
//! `web/assets/` are below `/assets/`. A debug build reads them from the folder at each request.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::app::App;
use crate::auth::{COOKIE, Keys};
use crate::body;
use crate::error::ApiError;

#[derive(RustEmbed)]
#[folder = "web/"]
struct Web;

/// `GET /`
pub(crate) async fn index(headers: HeaderMap) -> Response {
    file(&headers, "index.html")
}

/// `GET /train`
pub(crate) async fn train(headers: HeaderMap) -> Response {
    file(&headers, "train.html")
}

/// `GET /assets/{file}`: one flat folder, looked up by name; there is no path to climb.
pub(crate) async fn asset(headers: HeaderMap, Path(name): Path<String>) -> Response {
    if name.contains(['/', '\\', '\0']) || name.starts_with('.') {
        return missing();
    }
    file(&headers, &format!("assets/{name}"))
}

/// `GET /favicon.ico`
pub(crate) async fn favicon(headers: HeaderMap) -> Response {
    file(&headers, "assets/favicon.ico")
}

fn missing() -> Response {
    ApiError::not_found("there is no such file in the page").into_response()
}

fn file(headers: &HeaderMap, name: &str) -> Response {
    let Some(EmbeddedFile { data, metadata }) = Web::get(name) else { return missing() };
    let hash: String = metadata.sha256_hash()[..16].iter().map(|b| format!("{b:02x}")).collect();
    let tag = format!("\"{hash}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let mut response = if known.is_some_and(|k| k.split(',').any(|k| k.trim() == tag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Response::new(Body::from(data.into_owned()))
    };
    let headers = response.headers_mut();
    let kind = HeaderValue::from_str(&kind(name, metadata.mimetype()));
    headers.insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("text/plain")));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    // Always asked again, answered with 304: a newer program never meets an older page.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn kind(name: &str, guessed: &str) -> String {
    let text = guessed.starts_with("text/") || name.ends_with(".js") || name.ends_with(".svg");
    if text && !guessed.contains("charset") {
        format!("{guessed}; charset=utf-8")
    } else {
        guessed.to_owned()
    }
}

/// The form that asks a browser for the key.
pub(crate) fn login(status: StatusCode, says: &str) -> Response {
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>nanochat</title>\n\
         <h1>nanochat</h1>\n<p>This server asks for its key.</p>\n<p role=\"alert\">{says}</p>\n\
         <form method=\"post\" action=\"/login\"><label>Key <input type=\"password\" name=\"key\" \
         autocomplete=\"current-password\" required autofocus></label> <button>Enter</button></form>\n</html>\n"
    );
    let mut response = (status, Html(page)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// `POST /login`: the form's `key`; the right one sets a cookie that no script can read.
pub(crate) async fn log_in(State(app): State<Arc<App>>, request: Request) -> Response {
    let bytes = match body::bytes(&app, request.into_body()).await {
        Ok(bytes) => bytes,
        Err(error) => return error.into_response(),
    };
    let pairs = bytes.split(|b| *b == b'&').filter_map(|p| p.strip_prefix(b"key="));
    let key = pairs.map(unescape).next().unwrap_or_default();
    if !app.config.keys.is_empty() && !app.config.keys.accept(&key) {
        return login(StatusCode::UNAUTHORIZED, "That is not the key.");
    }
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, "/")]).into_response();
    let cookie = format!("{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/", Keys::ticket(&key));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// A form's value: `+` and `%41`.
fn unescape(value: &[u8]) -> String {
    let hex = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [first, after @ ..] = rest {
        let code = |a: &u8, b: &u8| Some(hex(*a)? << 4 | hex(*b)?);
        match (first, after) {
            (b'%', [a, b, tail @ ..]) if code(a, b).is_some() => {
                out.extend(code(a, b));
                rest = tail;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(*other),
        }
        rest = after;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn a_forms_value_is_unescaped() {
        assert_eq!(unescape(b"a+b%2Bc%zz%4"), "a b+c%zz%4");
        assert_eq!(unescape(b"%ff"), "\u{fffd}");
    }
}
