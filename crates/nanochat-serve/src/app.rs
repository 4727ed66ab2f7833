//! What every handler can reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nanochat_engine::batch::Generator;
use nanochat_tokenizer::Tokenizer;
use tokio::sync::Notify;

use crate::Result;
use crate::config::Config;
use crate::history::store::Store;
use crate::metrics::Metrics;
use crate::streams::Streams;
use crate::structured::Compiler;

/// One server's state.
pub(crate) struct App {
    pub config: Config,
    pub generator: Arc<dyn Generator>,
    pub tokenizer: Tokenizer,
    pub metrics: Arc<Metrics>,
    pub traffic: Traffic,
    pub streams: Streams,
    pub compiler: Compiler,
    /// None: the page's conversations stay in the browser.
    pub history: Option<Arc<Store>>,
}

impl App {
    pub fn new(
        config: Config,
        generator: Arc<dyn Generator>,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        let history = config.history.as_deref().map(Store::open).transpose()?.map(Arc::new);
        let metrics = Arc::new(Metrics::new());
        Ok(Self {
            config,
            generator,
            tokenizer,
            metrics,
            traffic: Traffic::default(),
            streams: Streams::default(),
            compiler: Compiler::default(),
            history,
        })
    }
}

/// Requests under way, and whether more are taken.
#[derive(Default)]
pub(crate) struct Traffic {
    draining: AtomicBool,
    under_way: AtomicUsize,
    quiet: Notify,
}

impl Traffic {
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    pub fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
    }

    pub fn end(&self) {
        if self.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.quiet.notify_waiters();
        }
    }

    /// Returns when nothing is under way.
    pub async fn wait_quiet(&self) {
        loop {
            let quiet = self.quiet.notified();
            if self.under_way() == 0 {
                return;
            }
            quiet.await;
        }
    }
}
