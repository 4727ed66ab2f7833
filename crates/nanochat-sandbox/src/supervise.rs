//! The parent's watch over one launcher: what it writes, capped, and the clock.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{self, TOKEN_BYTES};
use crate::limits::Limits;
use crate::program::Program;
use crate::python::Interpreter;
use crate::spawn;
use crate::spec::{ARGUMENT, Spec, Status};
use crate::verdict::{Outcome, Unavailable, Verdict};

/// What a launcher gets, beyond its program's time, to clean up after being told to end.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of a status, and of a token or the name of an exception.
const SMALL: usize = 4096;

/// Runs `program` in a launcher of its own, `/proc/self/exe` or `launcher`.
pub fn run(
    launcher: &Path,
    python: &Interpreter,
    limits: &Limits,
    program: &Program,
) -> io::Result<Outcome> {
    let start = Instant::now();
    let token = harness::token()?;
    let judged = program.tests.as_deref();
    let message = harness::message(&token, judged.unwrap_or(&program.source));
    let message = spawn::file_of(&message)?;
    let source = spawn::file_of(judged.map_or(b"", |_| program.source.as_bytes()))?;
    let nothing: OwnedFd = File::open("/dev/null")?.into();
    let mut streams = Vec::new();
    let mut ends = Vec::new();
    for most in [limits.output_bytes, limits.output_bytes, TOKEN_BYTES, SMALL] {
        let (read, write) = spawn::pipe()?;
        streams.push(Stream { file: Some(read), bytes: Vec::new(), most, over: false });
        ends.push(write);
    }
    let cpu_seconds = program.timeout.as_secs() + 1 + u64::from(program.timeout.subsec_nanos() > 0);
    let spec = Spec {
        python: python.clone(),
        limits: limits.clone(),
        judged: judged.is_some(),
        cpu_seconds,
    };
    let spec = serde_json::to_string(&spec)?;
    let files = [&nothing, &ends[0], &ends[1], &message, &ends[2], &ends[3], &source];
    let mut child = spawn::spawn(launcher, &[ARGUMENT, &spec], &files)?;
    drop((ends, message, source, nothing));
    let stop = watch(&mut streams, &child, start + program.timeout)?;
    child.wait();
    let [stdout, stderr, result, status] =
        <[Stream; 4]>::try_from(streams).unwrap_or_else(|_| unreachable!("four were made"));
    let status = Status::parse(&status.text());
    let exit = if let Some(Status::Exit(code)) = status { Some(code) } else { None };
    let verdict = match (stop, status) {
        (_, Some(Status::Missing(layer, why))) => {
            Verdict::Unavailable(Unavailable::new(&layer, why))
        }
        (Some(Stop::Time), _) | (_, Some(Status::Signal(libc::SIGXCPU))) => Verdict::Timeout,
        (Some(Stop::Output), _) => Verdict::OutputLimit,
        (_, Some(Status::Signal(signal))) => Verdict::Killed(signal),
        (_, Some(Status::Exit(0))) if !result.over && result.bytes == token => Verdict::Passed,
        (_, Some(Status::Exit(_))) if result.bytes == b"MemoryError" => Verdict::Memory,
        (_, Some(Status::Exit(code))) => Verdict::Failed(reason(code, &stderr)),
        (_, None) => Verdict::Unavailable(Unavailable::new(
            "launcher",
            format!("{} said nothing", launcher.display()),
        )),
    };
    let (stdout, stderr) = (stdout.text(), stderr.text());
    Ok(Outcome { verdict, exit, stdout, stderr, wall: start.elapsed() })
}

/// Why a program failed, in a line: what its traceback ends with.
fn reason(code: i32, stderr: &Stream) -> String {
    let text = stderr.text();
    match text.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) if code != 0 || line.starts_with("sandbox: ") => {
            line.chars().take(300).collect()
        }
        _ => format!("it left before its end, with exit code {code}"),
    }
}

/// Why a run was cut short.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Time,
    Output,
}

/// One pipe from the child.
struct Stream {
    /// None once all writers are gone.
    file: Option<File>,
    bytes: Vec<u8>,
    most: usize,
    /// More than `most` came.
    over: bool,
}

impl Stream {
    /// Takes what is there; bytes beyond `most` are thrown away.
    fn read(&mut self) -> io::Result<()> {
        let mut block = [0; 16 << 10];
        while let Some(file) = &mut self.file {
            match file.read(&mut block) {
                Ok(0) => self.file = None,
                Ok(n) => {
                    let room = self.most - self.bytes.len();
                    self.bytes.extend_from_slice(&block[..n.min(room)]);
                    self.over |= n > room;
                    if self.over {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Reads all streams until every writer is gone. When time or a cap is exceeded, the launcher is told
/// to end; when it does not in [`GRACE`], it is ended.
fn watch(
    streams: &mut [Stream],
    child: &spawn::Child,
    deadline: Instant,
) -> io::Result<Option<Stop>> {
    let mut stop = None;
    let mut deadline = deadline;
    while streams.iter().any(|s| s.file.is_some()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if stop.is_some() {
                child.signal(libc::SIGKILL);
                return Ok(stop);
            }
            stop = Some(Stop::Time);
        } else {
            wait_for_input(streams, left)?;
            streams.iter_mut().try_for_each(Stream::read)?;
            // The program's two streams; the result is just no token when it is too long.
            if stop.is_none() && streams[..2].iter().any(|s| s.over) {
                stop = Some(Stop::Output);
            } else {
                continue;
            }
        }
        child.signal(libc::SIGTERM);
        deadline = Instant::now() + GRACE;
    }
    Ok(stop)
}

/// Returns when a stream has something, or after `time`.
fn wait_for_input(streams: &[Stream], time: Duration) -> io::Result<()> {
    let mut waits: Vec<libc::pollfd> = streams
        .iter()
        .filter_map(|s| s.file.as_ref())
        .map(|f| libc::pollfd { fd: f.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let time_ms = i32::try_from(time.as_millis() + 1).unwrap_or(i32::MAX);
    // SAFETY: pointer and count are of one live vector, whose files the streams keep open.
    let rc = unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, time_ms) };
    let error = io::Error::last_os_error();
    if rc < 0 && error.kind() != io::ErrorKind::Interrupted { Err(error) } else { Ok(()) }
}
