//! A rank that died, hangs or was cut off ends the others, by name, within seconds.
//!
//! Every rank sends rank 0 a beat a second over the connection that the rendezvous left, and rank 0 sends
//! one back. Who closes the connection without a word is dead, who is silent for [`SILENCE`] is stopped,
//! swapped out or cut off. Rank 0 tells the others which rank that was. Threads do all of it: a rank that
//! waits in a collective, on any kind of wire, hears of it all the same.
//!
//! ```text
//! beat 1 | bye 2 | lost 3 rank u64, why (length u64, text)
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rendezvous::{Met, put_text, text};

/// Between two beats.
pub const BEAT: Duration = Duration::from_secs(1);
/// A rank that is silent for so long is lost.
pub const SILENCE: Duration = Duration::from_secs(5);

const TICK: u8 = 1;
const BYE: u8 = 2;
const LOST: u8 = 3;

/// A rank that is lost, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub rank: usize,
    /// What happened.
    pub why: String,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rank, why } = self;
        write!(f, "rank {rank} {why}: this rank stops too; go on with --resume")
    }
}

type OnLost = Arc<dyn Fn(&Lost) + Send + Sync>;

/// Listens for the others as long as it lives.
pub struct Heartbeat {
    shared: Arc<Shared>,
}

struct Shared {
    /// This rank.
    rank: usize,
    /// Rank 0: one of each other rank; others: one, to rank 0. For writing.
    to: Vec<(usize, Mutex<TcpStream>)>,
    /// This rank has said goodbye, or was told of a loss.
    over: AtomicBool,
    on_lost: OnLost,
}

impl Heartbeat {
    /// Begins to listen. `on_lost` runs on a thread of its own, at most once: it should end the process,
    /// whose own thread may wait for the lost rank for ever.
    pub fn start(met: &mut Met, on_lost: impl Fn(&Lost) + Send + Sync + 'static) -> Self {
        let rank = met.me.rank;
        let (mut to, mut from) = (Vec::new(), Vec::new());
        for (i, stream) in met.control.iter_mut().enumerate() {
            // The list of a rank that is not 0 has one, to rank 0.
            let Some(stream) = stream.take() else { continue };
            let _ = stream.set_nodelay(true);
            let _ = stream.set_write_timeout(Some(BEAT));
            let Ok(read) = stream.try_clone() else { continue };
            to.push((i, Mutex::new(stream)));
            from.push((i, read));
        }
        let shared =
            Arc::new(Shared { rank, to, over: AtomicBool::new(false), on_lost: Arc::new(on_lost) });
        let beating = Arc::clone(&shared);
        std::thread::spawn(move || {
            while !beating.over.load(Ordering::Relaxed) {
                // What cannot be written is found by who reads.
                beating.send(&[TICK]);
                std::thread::sleep(BEAT);
            }
        });
        for (peer, stream) in from {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.listen(peer, stream));
        }
        Self { shared }
    }

    /// Says goodbye: what happens to the others is no longer this rank's to know.
    pub fn bye(&self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.send(&[BYE]);
    }

    /// Tells the others why this rank ends early, so that they need not find out.
    pub fn fail(&self, why: &str) {
        let lost = Lost { rank: self.shared.rank, why: format!("failed ({why})") };
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.tell(&lost);
    }
}

impl Shared {
    fn send(&self, bytes: &[u8]) {
        for (_, stream) in &self.to {
            if let Ok(mut stream) = stream.lock() {
                let _ = stream.write_all(bytes);
            }
        }
    }

    fn tell(&self, lost: &Lost) {
        let mut out = vec![LOST];
        out.extend((lost.rank as u64).to_le_bytes());
        put_text(&mut out, &lost.why);
        self.send(&out);
    }

    /// Until the peer says goodbye or is lost.
    fn listen(&self, peer: usize, mut stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(SILENCE));
        let lost = loop {
            let mut tag = [0];
            match stream.read_exact(&mut tag) {
                Ok(()) => match tag[0] {
                    TICK => {}
                    BYE => return,
                    LOST => {
                        break told(&mut stream).unwrap_or(Lost {
                            rank: peer,
                            why: "ended in the middle of a word".into(),
                        });
                    }
                    other => {
                        let why = format!("speaks another language (byte {other})");
                        break Lost { rank: peer, why };
                    }
                },
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let seconds = SILENCE.as_secs();
                    let why = format!("is silent for {seconds}s (stopped, swapped out or cut off)");
                    break Lost { rank: peer, why };
                }
                Err(_) => {
                    break Lost { rank: peer, why: "ended without a word (killed?)".into() };
                }
            }
        };
        if self.over.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.rank == 0 {
            self.tell(&lost);
        }
        (self.on_lost)(&lost);
    }
}

fn told(stream: &mut TcpStream) -> std::io::Result<Lost> {
    let mut rank = [0; 8];
    stream.read_exact(&mut rank)?;
    let rank = usize::try_from(u64::from_le_bytes(rank)).map_err(std::io::Error::other)?;
    Ok(Lost { rank, why: text(stream)? })
}
