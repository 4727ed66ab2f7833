//! Ranks that are processes: a connection between every two of them, opened at the rendezvous.
//!
//! For CPU ranks where there is no MPI, on one machine or on a few. Nothing is encrypted: keep it inside
//! a network that you trust. Messages are `length u64 LE | bytes`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::rendezvous::{Met, put_text, text};
use super::wire::{OverWire, Wire};
use crate::{Error, Result};

/// To be connected to everybody takes no longer.
const PATIENCE: Duration = Duration::from_secs(8);
/// A collective that waits longer is stuck, though all hearts beat: longer than any save takes.
const STUCK: Duration = Duration::from_secs(1800);

/// One rank's connections to the others.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    /// By rank; none to itself.
    peers: Vec<Option<Peer>>,
}

/// One connection. Writing is a thread's: two ranks that send each other more than the system holds
/// would wait for each other for ever.
#[derive(Debug)]
struct Peer {
    read: TcpStream,
    /// None: it is going.
    write: Option<Sender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl Tcp {
    /// Connects to everybody: to lower ranks it goes, from higher ones it is come to.
    ///
    /// Errors: [`Error::Rank`] naming who cannot be reached.
    pub fn connect(met: &Met) -> Result<OverWire<Self>> {
        let (me, world) = (met.me.rank, met.me.world);
        let until = Instant::now() + PATIENCE;
        let mut peers: Vec<Option<Peer>> = (0..world).map(|_| None).collect();
        for (rank, peer) in peers.iter_mut().enumerate().take(me) {
            let lost = |e: std::io::Error| unreachable(rank, &e);
            let rest =
                until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let mut stream =
                TcpStream::connect_timeout(&met.addresses[rank], rest).map_err(lost)?;
            let mut out = Vec::new();
            put_text(&mut out, &met.token);
            out.extend((me as u64).to_le_bytes());
            stream.write_all(&out).map_err(lost)?;
            *peer = Some(Peer::new(stream).map_err(lost)?);
        }
        met.listener.set_nonblocking(true).map_err(|e| unreachable(me, &e))?;
        while let Some(missing) = (me + 1..world).find(|&rank| peers[rank].is_none()) {
            match met.listener.accept() {
                Ok((stream, _)) => {
                    // Who is no rank of this run is turned away.
                    if let Ok((rank, peer)) = came(stream, &met.token)
                        && rank > me
                        && rank < world
                    {
                        peers[rank] = Some(peer);
                    }
                }
                Err(e) if Instant::now() >= until => return Err(unreachable(missing, &e)),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        Ok(OverWire(Self { rank: me, peers }))
    }
}

fn unreachable(rank: usize, e: &std::io::Error) -> Error {
    let detail = format!(
        "cannot be connected to ({e}): every two machines must reach each other, not only rank 0's"
    );
    Error::Rank { rank, detail }
}

fn came(mut stream: TcpStream, token: &str) -> std::io::Result<(usize, Peer)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    if text(&mut stream)? != token {
        return Err(std::io::Error::other("another token"));
    }
    let mut rank = [0; 8];
    stream.read_exact(&mut rank)?;
    let rank = usize::try_from(u64::from_le_bytes(rank)).map_err(std::io::Error::other)?;
    Ok((rank, Peer::new(stream)?))
}

impl Peer {
    fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STUCK))?;
        let mut to = stream.try_clone()?;
        let (write, messages) = channel::<Vec<u8>>();
        let writer = std::thread::spawn(move || {
            for message in messages {
                let length = (message.len() as u64).to_le_bytes();
                // Who does not get it is found by who reads.
                if to.write_all(&length).and_then(|()| to.write_all(&message)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { read: stream, write: Some(write), writer: Some(writer) })
    }

    fn receive(&self) -> std::io::Result<Vec<u8>> {
        let mut from = &self.read;
        let mut length = [0; 8];
        from.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        // Memory is taken as bytes come, not as a length claims.
        let mut bytes = Vec::new();
        from.take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Peer {
    /// What was sent arrives before the connection goes.
    fn drop(&mut self) {
        drop(self.write.take());
        if let Some(writer) = self.writer.take() {
            // It never panics.
            let _ = writer.join();
        }
    }
}

impl Wire for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn exchange(&self, send: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let lost = |rank| {
            move |e: std::io::Error| {
                let detail = format!("is gone from a collective ({e}): see what it says");
                Error::Rank { rank, detail }
            }
        };
        let mut own = Vec::new();
        for (rank, (peer, bytes)) in self.peers.iter().zip(send).enumerate() {
            match peer {
                None => own = bytes,
                Some(peer) => {
                    let sent = peer.write.as_ref().map(|write| write.send(bytes).is_ok());
                    if sent != Some(true) {
                        return Err(lost(rank)(std::io::ErrorKind::BrokenPipe.into()));
                    }
                }
            }
        }
        let mut all = Vec::with_capacity(self.peers.len());
        for (rank, peer) in self.peers.iter().enumerate() {
            all.push(match peer {
                None => std::mem::take(&mut own),
                Some(peer) => peer.receive().map_err(lost(rank))?,
            });
        }
        Ok(all)
    }
}
