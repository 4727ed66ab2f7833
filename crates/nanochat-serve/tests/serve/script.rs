//! A [`Generator`] that plays a script, each request on a thread of its own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use nanochat_engine::batch::{
    ConstraintState, Generator, Limits, Listener, Load, Refused, Request, TokenLogprobs, Update,
    Usage,
};
use nanochat_engine::{Finish, Piece};
use nanochat_tokenizer::{DEFAULT_PATTERN, Special, Tokenizer, Utf8Stream};

/// Bytes and specials: the id of a byte is the byte.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_merges(DEFAULT_PATTERN, Vec::new()).unwrap()
}

/// What each request hears.
#[derive(Clone)]
pub enum Play {
    /// This text, byte by byte.
    Text(&'static str),
    /// These pieces, one a token.
    Pieces(Vec<Piece>),
    /// One letter, then nothing until the listener is gone or the gate opens.
    Hang,
    /// One letter, then failure.
    Fail,
    /// One letter, then the listener is dropped.
    Vanish,
    /// The prompt's last byte, again and again, up to max_tokens.
    Echo,
    /// Ids that the constraint allows: the end if it may come, else `}`, else the lowest.
    Constrained,
    /// Nobody is taken.
    Full,
    /// A fault of the server itself.
    Panic,
}

/// A script, and what became of its requests.
pub struct Script {
    play: Play,
    pub context: usize,
    /// Prompts as they came.
    pub prompts: Mutex<Vec<Vec<u32>>>,
    /// max_tokens as they came.
    pub max_tokens: Mutex<Vec<usize>>,
    /// Listeners that were gone before the end.
    pub gone: AtomicUsize,
    running: AtomicUsize,
    closed: AtomicBool,
    gate: (Mutex<bool>, Condvar),
    /// Most requests at once.
    slots: usize,
}

impl Script {
    pub fn new(play: Play) -> Arc<Self> {
        Self::with_slots(play, usize::MAX)
    }

    pub fn with_slots(play: Play, slots: usize) -> Arc<Self> {
        Arc::new(Self {
            play,
            context: 256,
            prompts: Mutex::default(),
            max_tokens: Mutex::default(),
            gone: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            gate: (Mutex::new(false), Condvar::new()),
            slots,
        })
    }

    /// Lets those that hang go on.
    pub fn open_gate(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }

    fn gate_is_open(&self) -> bool {
        *self.gate.0.lock().unwrap()
    }
}

/// What the server is given; the test keeps the script.
pub struct Handle(pub Arc<Script>);

impl Generator for Handle {
    fn submit(&self, request: Request, listener: Box<dyn Listener>) -> Result<(), Refused> {
        let script = Arc::clone(&self.0);
        match script.play {
            Play::Panic => panic!("the script says so"),
            Play::Full => return Err(Refused::Full { waiting: 9, limit: 9, retry_after_s: 7 }),
            _ => {}
        }
        if script.closed.load(Ordering::SeqCst) {
            return Err(Refused::Closed);
        }
        if script.running.fetch_add(1, Ordering::SeqCst) >= script.slots {
            script.running.fetch_sub(1, Ordering::SeqCst);
            return Err(Refused::Full {
                waiting: script.slots,
                limit: script.slots,
                retry_after_s: 1,
            });
        }
        script.prompts.lock().unwrap().push(request.prompt.clone());
        script.max_tokens.lock().unwrap().push(request.max_tokens);
        std::thread::spawn(move || {
            play(&script, &request, listener);
            script.running.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(())
    }

    fn load(&self) -> Load {
        Load { running: self.0.running.load(Ordering::SeqCst), pages_total: 10, ..Load::default() }
    }

    fn limits(&self) -> Limits {
        let vocab_size = tokenizer().vocab_size();
        Limits { context: self.0.context, vocab_size, rows: 8, queue: self.0.slots }
    }

    fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }
}

fn probability(request: &Request, id: u32) -> Option<TokenLogprobs> {
    let top = request.logprobs?;
    let top = [(id, -0.5), (b'z' as u32, -1.5)].into_iter().take(top).collect();
    Some(TokenLogprobs { id, logprob: -0.5, top })
}

fn play(script: &Script, request: &Request, mut listener: Box<dyn Listener>) {
    let prompt_tokens = request.prompt.len();
    listener.hear(Update::Began { prompt_tokens, reused_tokens: 3, queued_s: 0.25 });
    if request.prompt_logprobs {
        let one = |(i, id): (usize, &u32)| if i == 0 { None } else { probability(request, *id) };
        listener.hear(Update::Prompt(request.prompt.iter().enumerate().map(one).collect()));
    }
    let mut generated_tokens = 0;
    for row in 0..request.n {
        let mut row = Row { listener: &mut *listener, request, row, said: 0 };
        let finish = match &script.play {
            Play::Text(text) => row.say(text.as_bytes()),
            Play::Echo => {
                let last = *request.prompt.iter().rev().find(|id| **id < 256).unwrap_or(&120) as u8;
                row.say(&vec![last; request.max_tokens])
            }
            Play::Pieces(pieces) => {
                pieces.iter().for_each(|piece| row.token(b'.'.into(), vec![piece.clone()]));
                Finish::Eot
            }
            Play::Constrained => row.constrained(),
            Play::Hang | Play::Fail | Play::Vanish => {
                row.token(b'h'.into(), vec![Piece::Text("h".into())]);
                Finish::Eot
            }
            Play::Full | Play::Panic => unreachable!("submit refuses"),
        };
        generated_tokens += row.said;
        let row = row.row;
        match script.play {
            Play::Vanish => return,
            Play::Fail => return listener.hear(Update::Failed("the script fails".into())),
            Play::Hang => {
                while !script.gate_is_open() {
                    if listener.is_gone() {
                        script.gone.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            _ => {}
        }
        listener.hear(Update::Ended { row, finish, terminal: None, pieces: Vec::new() });
    }
    listener.hear(Update::Done(Usage {
        prompt_tokens,
        reused_tokens: 3,
        generated_tokens,
        queued_s: 0.25,
        first_token_s: 0.5,
        total_s: 1.5,
    }));
}

struct Row<'a> {
    listener: &'a mut dyn Listener,
    request: &'a Request,
    row: usize,
    said: usize,
}

impl Row<'_> {
    fn token(&mut self, id: u32, pieces: Vec<Piece>) {
        self.said += 1;
        let logprobs = probability(self.request, id);
        self.listener.hear(Update::Token { row: self.row, id, forced: false, pieces, logprobs });
    }

    fn say(&mut self, bytes: &[u8]) -> Finish {
        let mut utf8 = Utf8Stream::new(&tokenizer());
        for byte in bytes.iter().take(self.request.max_tokens) {
            let text = utf8.push(u32::from(*byte)).unwrap();
            let pieces = if text.is_empty() { vec![] } else { vec![Piece::Text(text)] };
            self.token(u32::from(*byte), pieces);
        }
        let cut = bytes.len() > self.request.max_tokens;
        if cut || self.request.max_tokens == 0 { Finish::MaxTokens } else { Finish::Eot }
    }

    fn constrained(&mut self) -> Finish {
        let vocab = tokenizer().vocab_size();
        let end = tokenizer().special(Special::AssistantEnd);
        let mut form: Box<dyn ConstraintState> = self.request.constraint.as_ref().unwrap().begin();
        for _ in 0..self.request.max_tokens {
            let mut words = vec![u64::MAX; vocab.div_ceil(64)];
            form.mask(&mut words).unwrap();
            let may = |id: u32| words[id as usize / 64] >> (id % 64) & 1 == 1;
            let id = [end, u32::from(b'}')].into_iter().chain(0..vocab as u32).find(|id| may(*id));
            let id = id.expect("a form never ends in a corner");
            form.accept(id).unwrap();
            if id == end {
                return Finish::Eot;
            }
            let text = tokenizer().decode(&[id]).unwrap();
            let piece = if id < 256 { Piece::Text(text) } else { Piece::ToolCall("1+1".into()) };
            self.token(id, vec![piece]);
        }
        Finish::MaxTokens
    }
}
