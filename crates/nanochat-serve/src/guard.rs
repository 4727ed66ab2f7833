//! Who may ask, before any handler runs; what every answer carries.
//!
//! In order: draining, Host, Origin, preflight, key. A web page of somebody else reaches a server on
//! this machine in two ways, and neither works: a name that it points here has another Host header,
//! and a request from its own address has another Origin.

use std::io::Write;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::error::ApiError;

/// Nothing from elsewhere, nothing inline.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
    connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; \
    frame-ancestors 'none'";

/// The outermost layer.
pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    app.traffic.begin();
    let ticket = Ticket { app: Arc::clone(&app) };
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let origin = cross_origin(&app, request.headers());
    let mut response = match admit(&app, &request) {
        Ok(()) if method == Method::OPTIONS && origin.is_some() => preflight(),
        Ok(()) => next.run(request).await,
        Err(response) => *response,
    };
    dress(&app, &mut response, origin);
    let route = route.as_deref().unwrap_or("unmatched");
    app.metrics.answered(route, method.as_str(), response.status().as_u16());
    if app.config.log_requests {
        let id =
            response.headers().get("x-request-id").and_then(|v| v.to_str().ok()).unwrap_or("-");
        // A path is data from outside: no line breaks, no escape sequences.
        let path: String = path.escape_default().take(200).collect();
        let (ms, status) = (began.elapsed().as_millis(), response.status().as_u16());
        // Standard error may be closed: that is no reason to fail a request.
        let _ = writeln!(std::io::stderr(), "{method} {path} {status} {ms} ms {id}");
    }
    response.map(|body| Body::new(Counted { body, _ticket: ticket }))
}

/// Whether a request is let in.
fn admit(app: &App, request: &Request) -> Result<(), Box<Response>> {
    let headers = request.headers();
    let path = request.uri().path();
    let refuse = |error: ApiError| Box::new(error.into_response());
    check_host(app, request).map_err(refuse)?;
    check_origin(app, headers).map_err(refuse)?;
    if request.method() == Method::OPTIONS || path == "/health" {
        return Ok(());
    }
    if app.traffic.is_draining() && path != "/metrics" && path != "/ready" {
        let mut response = refuse(ApiError::stopping());
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return Err(response);
    }
    let keys = &app.config.keys;
    if keys.is_empty() || path == "/login" || keys.accept_headers(headers) {
        return Ok(());
    }
    let browser = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|a| a.contains("text/html"));
    if browser && request.method() == Method::GET {
        return Err(Box::new(crate::page::login(StatusCode::UNAUTHORIZED, "")));
    }
    let message = "this server asks for a key: send \"Authorization: Bearer KEY\"";
    let error = ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key");
    Err(refuse(error))
}

/// A name that is not ours is a page's name that points here (DNS rebinding). Plain addresses cannot
/// be that.
fn check_host(app: &App, request: &Request) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "a request has one Host header"));
    };
    let host = host.to_str().unwrap_or("");
    let authority = request.uri().authority().map_or(host, |a| a.as_str());
    for given in [host, authority] {
        let name = host_name(given);
        let known = name.eq_ignore_ascii_case("localhost")
            || name.to_ascii_lowercase().ends_with(".localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || app.config.hosts.iter().any(|h| h.eq_ignore_ascii_case(name));
        if !known {
            let name: String = name.escape_default().take(80).collect();
            let message =
                format!("the Host {name:?} is not this server's: start it with --allow-host NAME");
            return Err(ApiError::new(StatusCode::FORBIDDEN, message).code("host_not_allowed"));
        }
    }
    Ok(())
}

/// `name:port` or `[v6]:port` without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("null");
    if is_own(origin, headers) || app.config.cors_origins.iter().any(|o| o == origin) {
        return Ok(());
    }
    let message =
        "a page from another origin may not ask here: start the server with --cors-origin ORIGIN";
    Err(ApiError::new(StatusCode::FORBIDDEN, message).code("origin_not_allowed"))
}

/// Whether an origin is the address that was asked.
fn is_own(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("");
    let after = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
    after.is_some_and(|o| !host.is_empty() && o.eq_ignore_ascii_case(host))
}

/// The origin of another site that was allowed.
fn cross_origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    app.config.cors_origins.iter().any(|o| origin == o.as_str()).then(|| origin.clone())
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let set = |headers: &mut HeaderMap, name, value| {
        headers.insert(name, HeaderValue::from_static(value))
    };
    set(headers, header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST");
    set(
        headers,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "authorization, content-type, x-api-key, x-nanochat-resumable, x-stainless-arch, \
         x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-retry-count, \
         x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout",
    );
    set(headers, header::ACCESS_CONTROL_MAX_AGE, "600");
    response
}

/// What every answer carries.
fn dress(app: &App, response: &mut Response, origin: Option<HeaderValue>) {
    let headers = response.headers_mut();
    if !headers.contains_key("x-request-id") {
        let id = format!("req-{}", uuid::Uuid::new_v4().simple());
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert("x-request-id", id);
        }
    }
    let always = [
        ("content-security-policy", CSP),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
    ];
    for (name, value) in always {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static("x-request-id, warnings, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    if !app.config.cors_origins.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}

/// A request is under way until its ticket is gone.
struct Ticket {
    app: Arc<App>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.app.traffic.end();
    }
}

/// A body whose request is under way until it was sent or given up.
struct Counted {
    body: Body,
    _ticket: Ticket,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::host_name;

    #[test]
    fn a_port_is_no_part_of_the_name() {
        for (host, name) in [
            ("localhost:8000", "localhost"),
            ("localhost", "localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:8000", "[::1]"),
            ("[::1]", "[::1]"),
            ("evil.com:80:80", "evil.com:80"),
        ] {
            assert_eq!(host_name(host), name);
        }
    }
}
