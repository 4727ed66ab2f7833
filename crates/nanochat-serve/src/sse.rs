//! Server-sent events: what an engine says, put in words by a [`Voice`], as bytes on the wire.
//!
//! An event is `data: JSON`, an empty line; JSON has no line breaks, so no text can break a frame. A quiet
//! stream says `: ping`. Dropping the body drops the job: the engine cancels.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use nanochat_engine::batch::Update;

use crate::app::App;
use crate::error::ApiError;
use crate::job::Job;

/// Puts updates in the words of one API.
pub(crate) trait Voice: Send + 'static {
    /// Adds the events of an update of request `index` of the job.
    fn say(&mut self, index: usize, update: Update, out: &mut VecDeque<String>);
    /// True when all that the client asked for was said, though the engine may go on.
    fn is_over(&self) -> bool {
        false
    }
    /// Adds the last events.
    fn end(&mut self, out: &mut VecDeque<String>);
    /// What stands for an error in the middle.
    fn broken(&self, error: &ApiError) -> String {
        error.json().to_string()
    }
}

/// The events of one answer, one by one.
pub(crate) struct Events {
    job: Job,
    voice: Box<dyn Voice>,
    ready: VecDeque<String>,
    over: bool,
}

impl Events {
    pub fn new(job: Job, voice: impl Voice) -> Self {
        Self { job, voice: Box::new(voice), ready: VecDeque::new(), over: false }
    }

    /// The next event's data; None after the last. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            match self.job.next().await {
                Some(Ok((index, update))) => {
                    self.voice.say(index, update, &mut self.ready);
                    if !self.voice.is_over() {
                        continue;
                    }
                    self.voice.end(&mut self.ready);
                }
                Some(Err(error)) => self.ready.push_back(self.voice.broken(&error)),
                None => self.voice.end(&mut self.ready),
            }
            self.over = true;
        }
    }
}

/// One event's bytes.
pub(crate) fn frame(data: &str) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// One event's bytes, with its number.
pub(crate) fn numbered_frame(number: usize, data: &str) -> Bytes {
    Bytes::from(format!("id: {number}\ndata: {data}\n\n"))
}

/// A stream's sign of life.
pub(crate) const PING: &[u8] = b": ping\n\n";

/// An answer in events.
pub(crate) fn respond(app: &Arc<App>, events: Events) -> Response {
    let every = app.config.timeouts.ping;
    let frames = stream::unfold(events, move |mut events| async move {
        let bytes = match tokio::time::timeout(every, events.next()).await {
            Ok(Some(data)) => frame(&data),
            Ok(None) => return None,
            Err(_) => Bytes::from_static(PING),
        };
        Some((Ok::<_, std::convert::Infallible>(bytes), events))
    });
    response(Body::from_stream(frames))
}

/// The head of an answer in events.
pub(crate) fn response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would turn a stream into a lump.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
