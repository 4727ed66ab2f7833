//! Events kept for a reader that comes back: a page that was closed in the middle of an answer.
//!
//! A resumable answer is heard by a task of the server, not by the connection. It goes on for a
//! minute with nobody listening, and is kept for two after its end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::app::App;
use crate::error::ApiError;
use crate::sse::{self, Events};

/// Streams kept at once; the oldest ended ones are forgotten first.
const MOST: usize = 256;

/// All resumable streams of a server.
#[derive(Default)]
pub(crate) struct Streams {
    by_id: Mutex<HashMap<String, Arc<Kept>>>,
}

/// One stream: what was said, and whether it is over.
struct Kept {
    said: Mutex<Vec<Bytes>>,
    /// How many events there are, and if no more come.
    news: watch::Sender<(usize, bool)>,
    listeners: AtomicUsize,
    stop: watch::Sender<bool>,
    began: Instant,
}

impl Streams {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Arc<Kept>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Option<Arc<Kept>> {
        self.map().get(id).cloned()
    }

    fn keep(&self, id: &str, kept: Arc<Kept>) {
        let mut map = self.map();
        if map.len() >= MOST {
            let ended = map.iter().filter(|(_, k)| k.news.borrow().1);
            if let Some(oldest) = ended.min_by_key(|(_, k)| k.began).map(|(id, _)| id.clone()) {
                map.remove(&oldest);
            }
        }
        map.insert(id.to_owned(), kept);
    }
}

impl Kept {
    fn push(&self, frame: Bytes) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push(frame);
        self.news.send_replace((said.len(), false));
    }

    fn get(&self, at: usize) -> Option<Bytes> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).get(at).cloned()
    }
}

/// Answers with a stream that outlives its connection.
pub(crate) fn respond(app: &Arc<App>, id: &str, events: Events) -> Response {
    let kept = Arc::new(Kept {
        said: Mutex::default(),
        news: watch::channel((0, false)).0,
        listeners: AtomicUsize::new(0),
        stop: watch::channel(false).0,
        began: Instant::now(),
    });
    app.streams.keep(id, Arc::clone(&kept));
    let response = listen(app, Arc::clone(&kept), 0);
    tokio::spawn(hear(Arc::clone(app), id.to_owned(), kept, events));
    response
}

/// Hears an answer to its end, then keeps it for a while.
async fn hear(app: Arc<App>, id: String, kept: Arc<Kept>, mut events: Events) {
    app.traffic.begin();
    let mut stop = kept.stop.subscribe();
    let mut alone_since = Instant::now();
    loop {
        let until = alone_since + app.config.timeouts.alone;
        tokio::select! {
            event = events.next() => match event {
                Some(data) => {
                    let number = kept.news.borrow().0 + 1;
                    kept.push(sse::numbered_frame(number, &data));
                }
                None => break,
            },
            _ = stop.changed() => break,
            () = sleep_until(until) => {}
        }
        let now = Instant::now();
        if kept.listeners.load(Ordering::SeqCst) > 0 {
            alone_since = now;
        } else if now >= until {
            break;
        }
    }
    // The engine is told first that nobody listens, then the readers that no more comes.
    drop(events);
    kept.news.send_modify(|(_, over)| *over = true);
    app.traffic.end();
    tokio::time::sleep(app.config.timeouts.kept).await;
    app.streams.map().remove(&id);
}

/// The events after number `after`, then those to come.
fn listen(app: &Arc<App>, kept: Arc<Kept>, after: usize) -> Response {
    let every = app.config.timeouts.ping;
    let news = kept.news.subscribe();
    let reader = Reader::new(kept);
    let frames = stream::unfold((reader, news, after), move |(reader, mut news, at)| async move {
        loop {
            if let Some(frame) = reader.0.get(at) {
                return Some((Ok::<_, std::convert::Infallible>(frame), (reader, news, at + 1)));
            }
            if news.borrow_and_update().1 {
                // It may have been said between the two looks.
                let frame = reader.0.get(at)?;
                return Some((Ok(frame), (reader, news, at + 1)));
            }
            match timeout(every, news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some((Ok(Bytes::from_static(sse::PING)), (reader, news, at))),
            }
        }
    });
    sse::response(Body::from_stream(frames))
}

/// Somebody who listens.
struct Reader(Arc<Kept>);

impl Reader {
    fn new(kept: Arc<Kept>) -> Self {
        kept.listeners.fetch_add(1, Ordering::SeqCst);
        Self(kept)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where a reader was.
#[derive(Deserialize)]
pub(crate) struct After {
    #[serde(default)]
    after: usize,
}

fn unknown() -> Response {
    ApiError::not_found("there is no such stream, or it is forgotten").into_response()
}

/// `GET /api/streams/{id}?after=K`
pub(crate) async fn replay(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(After { after }): Query<After>,
) -> Response {
    match app.streams.find(&id) {
        Some(kept) => listen(&app, kept, after),
        None => unknown(),
    }
}

/// `DELETE /api/streams/{id}`
pub(crate) async fn stop(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match app.streams.find(&id) {
        Some(kept) => {
            kept.stop.send_replace(true);
            StatusCode::NO_CONTENT.into_response()
        }
        None => unknown(),
    }
}
