//! What goes wrong: [`Error`] keeps a server from starting, [`ApiError`] is answered to a client.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nanochat_engine::batch::Refused;
use serde_json::{Value, json};

/// Errors of starting and stopping a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is taken or not this machine's.
    #[error("cannot listen on {address}: {source}; {hint}")]
    Bind {
        /// Where it should listen.
        address: std::net::SocketAddr,
        /// What the system says.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Everybody could use the server.
    #[error(
        "{address} can be reached from other machines and there is no key: give --api-key-file FILE, or \
         listen on 127.0.0.1"
    )]
    NoKey {
        /// Where it should listen.
        address: std::net::SocketAddr,
    },
    /// A flag that cannot be used.
    #[error("{flag} is {value:?}: {hint}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What to do.
        hint: &'static str,
    },
    /// The file of conversations.
    #[error("the history {file}: {what}")]
    History {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// The runtime or the signals.
    #[error("cannot start the server: {0}")]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An answer that says what is wrong, in OpenAI's shape.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For programs: `context_length_exceeded`, `model_not_found`.
    pub code: Option<&'static str>,
    /// Seconds after which it may go better.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// 400 because of a field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// 400 because of a field's value: what it is, what it may be.
    pub fn value(param: &str, value: &Value, allowed: &str) -> Self {
        Self::field(param, format!("{param} is {}: give {allowed}", short(value)))
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 503: the server drains.
    pub fn stopping() -> Self {
        let mut error =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping: ask another");
        error.retry_after_s = Some(5);
        error
    }

    /// The body: also what a stream says when it breaks.
    pub fn json(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        }})
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        }
    }
}

/// At most 60 characters of a value, for messages.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::Full { retry_after_s, .. } => Self {
                retry_after_s: Some(retry_after_s.max(1)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, message).code("queue_full")
            },
            Refused::TooLong { .. } => {
                Self::field("messages", message).code("context_length_exceeded")
            }
            Refused::Option { name, .. } => Self::field(name, message),
            Refused::Closed => Self::stopping(),
        }
    }
}

impl From<nanochat_engine::Error> for ApiError {
    fn from(error: nanochat_engine::Error) -> Self {
        match &error {
            nanochat_engine::Error::Option { name, .. } => Self::field(*name, error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
