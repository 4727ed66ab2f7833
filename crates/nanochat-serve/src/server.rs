//! Sockets, signals, draining.
//!
//! Each connection is HTTP/1.1 on a task of its own, with limits on its head, on the time that the
//! head takes, and on how long its reader may take nothing. Stopping has two stages: first new
//! requests get 503 while those under way finish, then what is left is cut off.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nanochat_engine::batch::Generator;
use nanochat_tokenizer::Tokenizer;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use crate::app::App;
use crate::config::{MOST_CONNECTIONS, MOST_HEAD, MOST_HEADERS};
use crate::router::router;
use crate::{Config, Error, Result};

/// A server that listens.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    /// Set: no connection is held any longer than its request.
    stop: watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
    signals: Option<Signals>,
    runtime: Runtime,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Requests that the drain timeout cut off.
    pub cut_off: usize,
}

impl Server {
    /// Listens at the configured address (port 0: any free one) and answers from threads of its own.
    ///
    /// Errors: [`Error::NoKey`], [`Error::Flag`], [`Error::Bind`], [`Error::History`], [`Error::Io`].
    pub fn start(
        config: Config,
        generator: Arc<dyn Generator>,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        config.check()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(bind(config.address))?;
        let address = listener.local_addr()?;
        let app = Arc::new(App::new(config, generator, tokenizer)?);
        let (stop, stopped) = watch::channel(false);
        let routes = router(Arc::clone(&app));
        let accepting = runtime.spawn(accept(listener, routes, Arc::clone(&app), stopped));
        Ok(Self { app, address, stop, accepting, signals: None, runtime })
    }

    /// From here on SIGTERM and Ctrl-C wait for [`Server::run_until_signal`], which tells of them.
    ///
    /// Errors: [`Error::Io`] if signals cannot be heard.
    pub fn hear_signals(mut self) -> Result<Self> {
        let signals = {
            let _inside = self.runtime.enter();
            Signals::hear()?
        };
        self.signals = Some(signals);
        Ok(self)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for SIGTERM or Ctrl-C, then drains. `on_signal` hears how many requests are under way; a
    /// second signal ends the process with code 130.
    ///
    /// Errors: [`Error::Io`] if signals cannot be heard.
    pub fn run_until_signal(self, on_signal: impl FnOnce(usize)) -> Result<Ended> {
        let mut server = if self.signals.is_some() { self } else { self.hear_signals()? };
        if let Some(mut signals) = server.signals.take() {
            server.runtime.block_on(signals.next());
            on_signal(server.app.traffic.under_way());
            server.runtime.spawn(async move {
                signals.next().await;
                std::process::exit(130);
            });
        }
        Ok(server.drain())
    }

    /// From here on requests get 503; true once those under way are over, false after the timeout.
    fn wait_quiet(&self) -> bool {
        self.app.traffic.drain();
        let limit = self.app.config.timeouts.drain;
        let quiet = async { tokio::time::timeout(limit, self.app.traffic.wait_quiet()).await };
        self.runtime.block_on(quiet).is_ok()
    }

    /// Takes no more requests, finishes those under way, and ends.
    pub fn drain(self) -> Ended {
        let cut_off = if self.wait_quiet() { 0 } else { self.app.traffic.under_way() };
        self.app.generator.close();
        self.stop.send_replace(true);
        let accepting = self.accepting;
        let last = async { tokio::time::timeout(Duration::from_secs(1), accepting).await };
        // Connections that do not close by then are cut off with the runtime.
        let _ = self.runtime.block_on(last);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        Ended { cut_off }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|source| {
        let hint = match source.kind() {
            std::io::ErrorKind::AddrInUse => "another program has this port: give another --port",
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 are the system's: give another --port"
            }
            _ => "give an address of this machine with --host",
        };
        Error::Bind { address, source, hint }
    })
}

/// Takes connections until told to stop, then waits for those that are open.
async fn accept(
    listener: TcpListener,
    routes: Router,
    app: Arc<App>,
    stopped: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut open = JoinSet::new();
    let mut stop = stopped.clone();
    loop {
        // A connection that finds no slot waits in the system's queue.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or the client was quick to leave: neither ends the server.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while open.try_join_next().is_some() {}
        let (routes, app, stopped) = (routes.clone(), Arc::clone(&app), stopped.clone());
        open.spawn(async move {
            connection(stream, routes, &app, stopped).await;
            drop(slot);
        });
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    routes: Router,
    app: &App,
    mut stopped: watch::Receiver<bool>,
) {
    let timeouts = app.config.timeouts;
    // Each event is a packet of its own: waiting for more would hold it back.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(timeouts.write));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(routes));
    tokio::pin!(connection);
    // Errors are the client's: it broke off, sent no HTTP, or was too slow.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// What ends a server from outside; nothing that comes after [`Signals::hear`] is missed.
#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// To be called inside a runtime.
    fn hear() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn hear() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        // Where Ctrl-C cannot be heard, nothing ends the server but the system.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
