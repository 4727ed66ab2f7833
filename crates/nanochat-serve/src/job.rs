//! One request to the engine and what it says back.
//!
//! The engine calls an [`Ear`] from its own thread; what it hears waits in a channel, never more than the
//! request may generate. Dropping the [`Job`] closes the channel: the ear is gone, the engine cancels.

use std::sync::Arc;
use std::time::Instant;

use nanochat_engine::batch::{Listener, Request, Update};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use crate::app::App;
use crate::error::ApiError;
use crate::metrics::{Metrics, Timer};

/// Requests under way for one client, and their updates in the order in which they come.
pub(crate) struct Job {
    heard: mpsc::UnboundedReceiver<(usize, Update)>,
    /// Requests that are not over.
    open: usize,
    deadline: tokio::time::Instant,
}

impl Job {
    /// Puts all of `requests` in the queue, or none.
    ///
    /// Errors: the first refusal; requests before it are cancelled.
    pub fn submit(app: &App, requests: Vec<Request>) -> Result<Self, ApiError> {
        let (to, heard) = mpsc::unbounded_channel();
        let open = requests.len();
        for (index, request) in requests.into_iter().enumerate() {
            let timer = Timer::new(request.n);
            let ear = Ear { index, to: to.clone(), metrics: Arc::clone(&app.metrics), timer };
            app.generator.submit(request, Box::new(ear)).map_err(|refused| {
                app.metrics.rejected(&refused);
                ApiError::from(refused)
            })?;
        }
        let deadline = tokio::time::Instant::now() + app.config.timeouts.answer;
        Ok(Self { heard, open, deadline })
    }

    /// The next update and the request that it belongs to; None when all requests are done.
    ///
    /// Errors: a request failed, took too long, or the engine went away.
    pub async fn next(&mut self) -> Option<Result<(usize, Update), ApiError>> {
        if self.open == 0 {
            return None;
        }
        let next = match timeout_at(self.deadline, self.heard.recv()).await {
            Ok(Some((_, Update::Failed(why)))) => {
                Err(ApiError::internal(why).code("engine_failed"))
            }
            Ok(Some(update)) => Ok(update),
            Ok(None) => {
                Err(ApiError::internal("the engine gave this request up").code("engine_failed"))
            }
            Err(_) => {
                let status = axum::http::StatusCode::GATEWAY_TIMEOUT;
                Err(ApiError::new(status, "the answer took too long: ask for fewer tokens")
                    .code("timeout"))
            }
        };
        match &next {
            Ok((_, Update::Done(_))) => self.open -= 1,
            Ok(_) => {}
            Err(_) => self.open = 0,
        }
        Some(next)
    }
}

struct Ear {
    index: usize,
    to: mpsc::UnboundedSender<(usize, Update)>,
    metrics: Arc<Metrics>,
    timer: Timer,
}

impl Listener for Ear {
    fn hear(&mut self, update: Update) {
        self.metrics.update(&update, &mut self.timer, Instant::now());
        // Nobody listens any more: `is_gone` says so before the next step.
        let _ = self.to.send((self.index, update));
    }

    fn is_gone(&self) -> bool {
        self.to.is_closed()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.metrics.dropped(&self.timer);
    }
}
