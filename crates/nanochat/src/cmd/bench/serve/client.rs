//! One client of a server: a connection, a question, and when each event of the answer came.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Where requests go.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub host: String,
    pub key: Option<String>,
}

/// What is asked, again and again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// Tokens of each answer.
    pub max_tokens: usize,
    /// Words of each question.
    pub words: usize,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    /// Seconds, where the server says when to come back.
    pub retry_after: Option<u64>,
    pub body: String,
    /// From before the connection was made to the last byte.
    pub ms: f64,
}

impl Target {
    pub fn parse(url: &str, key: Option<String>) -> Result<Self> {
        let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        match host.filter(|h| !h.is_empty() && !h.contains('/')) {
            Some(host) if host.contains(':') => Ok(Self { host: host.into(), key }),
            Some(host) => Ok(Self { host: format!("{host}:80"), key }),
            None => bail!("--url is {url:?}: give http://HOST:PORT, without a path"),
        }
    }

    /// The bytes of a request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, body: &str) -> String {
        let key = self.key.as_ref();
        let key = key.map_or(String::new(), |k| format!("Authorization: Bearer {k}\r\n"));
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{key}\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        )
    }

    /// Opens a connection and sends one request on it.
    ///
    /// Errors: no connection, or it breaks.
    pub fn send(&self, method: &str, path: &str, body: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.host)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(600)))?;
        stream.write_all(self.request(method, path, body).as_bytes())?;
        Ok(stream)
    }

    /// Sends a request and reads its whole answer.
    ///
    /// Errors: no connection, it breaks, or what comes is no HTTP.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let began = Instant::now();
        let mut stream = BufReader::new(self.send(method, path, body)?);
        let head = Head::read(&mut stream)?;
        head.whole(stream, began)
    }
}

/// What of an answer's head is looked at.
struct Head {
    status: u16,
    retry_after: Option<u64>,
    is_chunked: bool,
}

impl Head {
    fn read(stream: &mut impl BufRead) -> Result<Self> {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let Some(status) = status else { bail!("the server answers {:?}", line.trim()) };
        let mut head = Self { status, retry_after: None, is_chunked: false };
        loop {
            line.clear();
            if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
                return Ok(head);
            }
            let lower = line.to_ascii_lowercase();
            head.is_chunked |= lower.starts_with("transfer-encoding: chunked");
            if let Some(seconds) = lower.strip_prefix("retry-after:") {
                head.retry_after = seconds.trim().parse().ok();
            }
        }
    }

    fn body<'s>(&self, stream: impl BufRead + 's) -> Box<dyn BufRead + 's> {
        match self.is_chunked {
            true => Box::new(BufReader::new(Chunked { stream, left: 0 })),
            false => Box::new(stream),
        }
    }

    fn whole(&self, stream: impl BufRead, began: Instant) -> Result<Answer> {
        let mut body = String::new();
        self.body(stream).read_to_string(&mut body)?;
        let ms = began.elapsed().as_secs_f64() * 1e3;
        Ok(Answer { status: self.status, retry_after: self.retry_after, body, ms })
    }
}

/// What came of one streamed question.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The whole answer.
    Whole(Heard),
    /// The queue was full.
    Full(Answer),
}

/// When what came of one answer.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// None: nothing of the answer could be shown.
    pub ttft_ms: Option<f64>,
    pub gaps_ms: Vec<f64>,
    pub tokens: usize,
    pub text: String,
}

/// The body of question `number`, streamed.
pub(super) fn question(ask: Ask, number: usize) -> String {
    // Each question differs from its first words on: no cache of prompts answers for the model.
    let words: String = (0..ask.words).map(|i| format!(" {}", (number + 1) * (i + 7))).collect();
    json!({
        "messages": [{"role": "user", "content": format!("{number}:{words}. Tell me a story.")}],
        "max_tokens": ask.max_tokens, "ignore_eos": true, "temperature": 1, "seed": number,
        "nanochat": {"tools": false}, "stream": true, "stream_options": {"include_usage": true},
    })
    .to_string()
}

/// Asks once and hears the answer to its end.
///
/// Errors: what is no whole answer, a full queue included.
pub(super) fn one(target: &Target, ask: Ask, number: usize) -> Result<Heard> {
    match attempt(target, ask, number)? {
        Outcome::Whole(heard) => Ok(heard),
        Outcome::Full(answer) => bail!("the server answers {}: {}", answer.status, answer.body),
    }
}

/// As [`one`], but a full queue is an outcome too.
///
/// Errors: any other answer that is not whole.
pub(super) fn attempt(target: &Target, ask: Ask, number: usize) -> Result<Outcome> {
    let began = Instant::now();
    let stream = target.send("POST", "/v1/chat/completions", &question(ask, number))?;
    hear(BufReader::new(stream), began, ask.max_tokens)
}

/// Reads the events of an answer of at most so many tokens.
fn hear(mut stream: impl BufRead, began: Instant, most: usize) -> Result<Outcome> {
    let head = Head::read(&mut stream)?;
    match head.status {
        200 => {}
        429 => return Ok(Outcome::Full(head.whole(stream, began)?)),
        status => bail!("the server answers {status}: {}", head.whole(stream, began)?.body),
    }
    let mut heard = Heard::default();
    let mut last: Option<Instant> = None;
    for line in head.body(stream).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(Outcome::Whole(heard));
        }
        let event: Value = serde_json::from_str(data)?;
        if let Some(error) = event.get("error") {
            bail!("the server breaks off: {error}");
        }
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            heard.tokens = tokens as usize;
        }
        // A server that does not count: what its limit cut has as many as were asked for.
        if heard.tokens == 0 && event["choices"][0]["finish_reason"] == "length" {
            heard.tokens = most;
        }
        let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        if !text.is_empty() {
            heard.text += text;
            let now = Instant::now();
            match last.replace(now) {
                None => heard.ttft_ms = Some((now - began).as_secs_f64() * 1e3),
                Some(before) => heard.gaps_ms.push((now - before).as_secs_f64() * 1e3),
            }
        }
    }
    bail!("the answer ended before [DONE]")
}

/// The bytes of a body in chunks: `size in hex CRLF bytes CRLF`, 0 at the end.
struct Chunked<R> {
    stream: R,
    /// Bytes of the chunk that are not read.
    left: usize,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            // The line break behind the chunk before is an empty line.
            while line.trim().is_empty() {
                line.clear();
                if self.stream.read_line(&mut line)? == 0 {
                    return Ok(0);
                }
            }
            let size = line.trim().split(';').next().unwrap_or("");
            self.left = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = out.len().min(self.left);
        let read = self.stream.read(&mut out[..most])?;
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_chunks_is_read_whatever_their_borders() {
        let body = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n: ping\n\n\
                    data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n\
                    data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        for size in [1, 7, 1000] {
            let mut answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
            for part in body.as_bytes().chunks(size) {
                let text = std::str::from_utf8(part).unwrap();
                answer += &format!("{:x}\r\n{text}\r\n", part.len());
            }
            answer += "0\r\n\r\n";
            let heard = hear(answer.as_bytes(), Instant::now(), 9).unwrap();
            let Outcome::Whole(heard) = heard else { panic!("{heard:?}") };
            assert_eq!((heard.tokens, heard.gaps_ms.len(), heard.text.as_str()), (2, 1, "ab"));
        }
        let full = &b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\n\r\n{}"[..];
        let full = hear(full, Instant::now(), 9).unwrap();
        assert!(matches!(full, Outcome::Full(Answer { retry_after: Some(3), .. })), "{full:?}");
        assert!(hear(&b"HTTP/1.1 500 No\r\n\r\n"[..], Instant::now(), 9).is_err());
        assert!(hear(&b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n"[..], Instant::now(), 9).is_err());
    }

    #[test]
    fn an_answer_that_is_not_counted_has_as_many_tokens_as_its_limit() {
        let answer = "HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[{\"delta\":{},\
                      \"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";
        let heard = hear(answer.as_bytes(), Instant::now(), 9).unwrap();
        assert!(matches!(heard, Outcome::Whole(Heard { tokens: 9, .. })), "{heard:?}");
    }

    #[test]
    fn a_url_is_an_address() {
        assert_eq!(Target::parse("http://127.0.0.1:8000/", None).unwrap().host, "127.0.0.1:8000");
        assert_eq!(Target::parse("http://chat.example", None).unwrap().host, "chat.example:80");
        for url in ["127.0.0.1:8000", "https://x", "http://", "http://x/v1"] {
            assert!(Target::parse(url, None).is_err(), "{url}");
        }
    }
}
