//! How ranks find each other: rank 0 listens at `MASTER_ADDR:MASTER_PORT`, the others come there.
//!
//! ```text
//! hello    magic | token | rank | world | version | command | port    every other rank -> rank 0
//! answer   addresses of all ranks, or why not                         rank 0 -> every other rank
//! ```
//! All that could make ranks drift apart later is compared before the first step: the size of the world,
//! who is who, the version of the program, the command line. What is wrong is told on every rank, within
//! [`Terms::patience`]; nobody waits for ever. Numbers are little-endian, texts carry their length.
//!
//! The connections stay: [`super::heartbeat`] uses them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::identity::Identity;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"NCRV\x01\0\0\0";
/// Longest text that is read: a command line.
const LONGEST: usize = 1 << 20;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// A greeting takes no longer: who opens a connection and says nothing is no rank.
const GREETING: Duration = Duration::from_secs(2);

/// What ranks must have in common.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Version of the program.
    pub version: String,
    /// The command line.
    pub command: String,
    /// A secret of this run; empty: none. It keeps strangers and other runs out, it is not encryption.
    pub token: String,
    /// How long to wait for the others.
    pub patience: Duration,
}

/// Ranks that have found each other.
#[derive(Debug)]
pub struct Met {
    /// This process.
    pub me: Identity,
    /// Rank 0: a connection to each other rank, by rank, none to itself. Others: one, to rank 0.
    pub control: Vec<Option<TcpStream>>,
    /// Where each rank takes connections from the others.
    pub addresses: Vec<SocketAddr>,
    /// Where this rank takes them.
    pub listener: TcpListener,
    /// As in [`Terms`].
    pub token: String,
}

struct Hello {
    rank: usize,
    world: usize,
    version: String,
    command: String,
    port: u16,
}

/// Meets the other ranks. A world of one meets nobody.
///
/// Errors: [`Error::Rank`] and [`Error::Device`] saying who is missing or differs, on every rank that can
/// be reached.
pub fn meet(me: &Identity, terms: &Terms) -> Result<Met> {
    let until = Instant::now() + terms.patience;
    if me.rank == 0 { host(me, terms, until) } else { join(me, terms, until) }
}

fn failed(detail: String) -> Error {
    Error::Device { what: "ranks", detail }
}

fn host(me: &Identity, terms: &Terms, until: Instant) -> Result<Met> {
    let place = (me.host.as_str(), me.port);
    let listener = TcpListener::bind(place).map_err(|e| {
        failed(format!(
            "rank 0 cannot listen at {}:{} ({e}): MASTER_ADDR must be an address of rank 0's machine and \
             MASTER_PORT free there",
            me.host, me.port
        ))
    })?;
    listener.set_nonblocking(true).map_err(|e| failed(format!("cannot listen ({e})")))?;
    let own = listener.local_addr().map_err(|e| failed(format!("cannot listen ({e})")))?;
    let mesh = TcpListener::bind((own.ip(), 0)).map_err(|e| failed(format!("no port ({e})")))?;
    let mesh_address = mesh.local_addr().map_err(|e| failed(format!("no port ({e})")))?;
    let mut control: Vec<Option<TcpStream>> = (0..me.world).map(|_| None).collect();
    let mut addresses = vec![mesh_address; me.world];
    let result = loop {
        let missing: Vec<usize> = (1..me.world).filter(|&r| control[r].is_none()).collect();
        if missing.is_empty() {
            break Ok(());
        }
        if Instant::now() >= until {
            break Err(format!(
                "rank{} {} of {} did not come to {}:{} within {:.0}s: look at what they say and whether \
                 they were started",
                if missing.len() > 1 { "s" } else { "" },
                missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
                me.world,
                me.host,
                me.port,
                terms.patience.as_secs_f64()
            ));
        }
        let Ok((mut stream, from)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        // Who does not know the token or speak the language is turned away, and not waited for.
        let Some(hello) = greeted(&mut stream, &terms.token) else { continue };
        if let Some(why) = refusal(&hello, me, terms, &control) {
            // The newcomer may be of no place in the list: it is told first.
            let _ = answer(&mut stream, &Err(why.clone()));
            break Err(why);
        }
        addresses[hello.rank] = SocketAddr::new(from.ip(), hello.port);
        control[hello.rank] = Some(stream);
    };
    let word = result.map(|()| addresses.clone());
    for stream in control.iter_mut().flatten() {
        // One that is gone already is found by its heartbeat.
        let _ = answer(stream, &word);
    }
    match word {
        Ok(_) => {
            let token = terms.token.clone();
            Ok(Met { me: me.clone(), control, addresses, listener: mesh, token })
        }
        Err(why) => {
            // Time for the answer to arrive before the connection goes.
            std::thread::sleep(10 * LOOK);
            Err(failed(why))
        }
    }
}

/// Why this rank cannot be one of ours.
fn refusal(
    hello: &Hello,
    me: &Identity,
    terms: &Terms,
    control: &[Option<TcpStream>],
) -> Option<String> {
    let rank = hello.rank;
    if hello.world != me.world {
        return Some(format!(
            "rank {rank} was started for {} ranks, rank 0 for {}: start all with the same number",
            hello.world, me.world
        ));
    }
    if rank == 0 || rank >= me.world || control[rank].is_some() {
        return Some(format!(
            "there are two processes that call themselves rank {rank} of {}: look for one that was left \
             over, or choose another MASTER_PORT",
            me.world
        ));
    }
    if hello.version != terms.version {
        return Some(format!(
            "rank {rank} runs version {}, rank 0 version {}: install the same on all machines",
            hello.version, terms.version
        ));
    }
    if hello.command != terms.command {
        return Some(format!(
            "rank {rank} was started with other flags: {}",
            difference(&hello.command, &terms.command)
        ));
    }
    None
}

/// The first words that two command lines do not share.
fn difference(theirs: &str, ours: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (theirs.split('\0').collect(), ours.split('\0').collect());
    let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    let tail = |words: &[&str]| {
        let words = words.get(at.saturating_sub(1)..).unwrap_or(&[]);
        words.iter().take(3).copied().collect::<Vec<_>>().join(" ")
    };
    format!("\"{} ...\", rank 0 with \"{} ...\"", tail(&a), tail(&b))
}

fn join(me: &Identity, terms: &Terms, until: Instant) -> Result<Met> {
    let mut stream = loop {
        match reach(me, until) {
            Ok(stream) => break stream,
            Err(e) if Instant::now() >= until => {
                return Err(failed(format!(
                    "rank {} cannot reach rank 0 at {}:{} within {:.0}s ({e}): is rank 0 there, and is \
                     MASTER_ADDR its address?",
                    me.rank,
                    me.host,
                    me.port,
                    terms.patience.as_secs_f64()
                )));
            }
            Err(_) => std::thread::sleep(5 * LOOK),
        }
    };
    let lost = |e: std::io::Error| Error::Rank {
        rank: 0,
        detail: format!("went away while the ranks met ({e}): see what it says"),
    };
    let ip: IpAddr = stream.local_addr().map_err(lost)?.ip();
    let listener = TcpListener::bind((ip, 0)).map_err(lost)?;
    let port = listener.local_addr().map_err(lost)?.port();
    let mut out = MAGIC.to_vec();
    put_text(&mut out, &terms.token);
    for number in [me.rank, me.world] {
        out.extend((number as u64).to_le_bytes());
    }
    put_text(&mut out, &terms.version);
    put_text(&mut out, &terms.command);
    out.extend(port.to_le_bytes());
    stream.write_all(&out).map_err(lost)?;
    // Rank 0 answers when all have come or its patience is over; ours may have begun earlier.
    let rest = until.saturating_duration_since(Instant::now()) + GREETING;
    stream.set_read_timeout(Some(rest)).map_err(lost)?;
    let addresses = match read_answer(&mut stream).map_err(lost)? {
        Ok(addresses) if addresses.len() == me.world => addresses,
        Ok(_) => return Err(failed("rank 0 gave a list of another length".into())),
        Err(why) => return Err(failed(why)),
    };
    let token = terms.token.clone();
    Ok(Met { me: me.clone(), control: vec![Some(stream)], addresses, listener, token })
}

fn reach(me: &Identity, until: Instant) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other("no address of that name");
    for address in (me.host.as_str(), me.port).to_socket_addrs()? {
        let rest = until.saturating_duration_since(Instant::now()).max(LOOK);
        match TcpStream::connect_timeout(&address, rest) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn greeted(stream: &mut TcpStream, token: &str) -> Option<Hello> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(GREETING)).ok()?;
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).ok()?;
    if &magic != MAGIC || text(stream).ok()? != token {
        return None;
    }
    let (rank, world) = (size(stream).ok()?, size(stream).ok()?);
    let (version, command) = (text(stream).ok()?, text(stream).ok()?);
    let mut port = [0; 2];
    stream.read_exact(&mut port).ok()?;
    Some(Hello { rank, world, version, command, port: u16::from_le_bytes(port) })
}

fn answer(
    stream: &mut TcpStream,
    word: &std::result::Result<Vec<SocketAddr>, String>,
) -> std::io::Result<()> {
    let (tag, text) = match word {
        Ok(all) => (1, all.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ")),
        Err(why) => (0, why.clone()),
    };
    let mut out = vec![tag];
    put_text(&mut out, &text);
    stream.write_all(&out)
}

fn read_answer(
    stream: &mut TcpStream,
) -> std::io::Result<std::result::Result<Vec<SocketAddr>, String>> {
    let mut tag = [0];
    stream.read_exact(&mut tag)?;
    let text = text(stream)?;
    if tag[0] != 1 {
        return Ok(Err(text));
    }
    let all = text.split(' ').map(|a| a.parse().map_err(std::io::Error::other));
    Ok(Ok(all.collect::<std::io::Result<_>>()?))
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn size(from: &mut impl Read) -> std::io::Result<usize> {
    let mut word = [0; 8];
    from.read_exact(&mut word)?;
    usize::try_from(u64::from_le_bytes(word)).map_err(std::io::Error::other)
}

/// A text with its length before it. Errors: a length that no text of ours has.
pub(super) fn text(from: &mut impl Read) -> std::io::Result<String> {
    let len = size(from)?;
    if len > LONGEST {
        return Err(std::io::Error::other(format!("a text of {len} bytes")));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
