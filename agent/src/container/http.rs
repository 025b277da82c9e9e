//! HTTP/1.1 over a Unix socket, as far as a container engine's API needs it: one request per connection, blocking.
//!
//! The shim has one thread and no async runtime, and must be able to wait for an answer, a stream of output and a signal at
//! once: so a connection is a plain descriptor that it can poll, and reading from it is reading from a descriptor.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The most that the head of an answer may have, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// The most header lines in an answer.
const MAX_HEADERS: usize = 64;

/// The longest line that says how long a chunk is, in bytes.
const MAX_CHUNK_LINE: u64 = 4096;

/// The most of an answer that is read as a whole, in bytes. Nothing that an engine says in one piece is as long.
pub(super) const MAX_ANSWER: u64 = 16 << 20;

/// What is sent after the head of a request.
pub(super) enum Body<'a> {
    None,
    Json(&'a serde_json::Value),
    /// A tar archive of unknown length.
    Tar(&'a mut dyn Read),
}

/// A request.
pub(super) struct Request<'a> {
    pub method: &'a str,
    /// Path and query, encoded.
    pub path: &'a str,
    /// Further header lines.
    pub headers: &'a [(&'a str, &'a str)],
}

/// The beginning of an answer; the rest is read from it.
pub(super) struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    framing: Framing,
    stream: BufReader<UnixStream>,
}

enum Framing {
    /// So many bytes are to come.
    Length(u64),
    /// So many of the current chunk are to come; `None` before the first one.
    Chunked(Option<u64>),
    /// Whatever comes until the end of the connection.
    UntilClose,
}

/// Opens a connection whose reads and writes each may take so long.
pub(super) fn connect(socket: &Path, silence: Option<Duration>) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(silence)?;
    stream.set_write_timeout(silence)?;
    Ok(stream)
}

/// Sends a request, without waiting for the answer.
///
/// # Errors
/// When it cannot be sent. An engine that refuses a body before it has read it hangs up: then [`answer`] may still have its reason.
pub(super) fn send(stream: &mut UnixStream, request: Request<'_>, body: Body<'_>) -> io::Result<()> {
    let Request { method, path, headers } = request;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
        head.push_str("Connection: close\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match body {
        Body::None => {
            let length = if method == "GET" || method == "HEAD" { "" } else { "Content-Length: 0\r\n" };
            stream.write_all(format!("{head}{length}\r\n").as_bytes())
        }
        Body::Json(value) => {
            let text = value.to_string();
            let more = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", text.len());
            stream.write_all(format!("{head}{more}{text}").as_bytes())
        }
        Body::Tar(source) => {
            stream.write_all(
                format!("{head}Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes(),
            )?;
            send_chunks(stream, source)
        }
    }
}

/// Asks for something that comes bit by bit and for as long as it takes. In the protocol's first version an answer is not cut into chunks,
/// whose beginnings could not be waited for without being read.
pub(super) fn ask_for_stream(stream: &mut UnixStream, path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
}

fn send_chunks(stream: &mut UnixStream, source: &mut dyn Read) -> io::Result<()> {
    const PIECE: usize = 256 << 10;
    let mut piece = vec![0; PIECE];
    loop {
        let count = match source.read(&mut piece) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            return stream.write_all(b"0\r\n\r\n");
        }
        stream.write_all(format!("{count:x}\r\n").as_bytes())?;
        stream.write_all(&piece[..count])?;
        stream.write_all(b"\r\n")?;
    }
}

/// Waits for the beginning of the answer.
///
/// # Errors
/// When the connection ends before it, or what comes is not HTTP.
pub(super) fn answer(stream: UnixStream, is_head: bool) -> io::Result<Answer> {
    let mut stream = BufReader::new(stream);
    loop {
        let (status, headers) = head(&mut stream)?;
        // 101 is an answer; the other 1xx announce one.
        if status != 101 && (100..200).contains(&status) {
            continue;
        }
        let framing = framing(status, &headers, is_head)?;
        return Ok(Answer { status, headers, framing, stream });
    }
}

type Headers = Vec<(String, String)>;

fn head(stream: &mut BufReader<UnixStream>) -> io::Result<(u16, Headers)> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let before = text.len();
        let left = u64::try_from(MAX_HEAD - before).unwrap_or(0);
        if stream.by_ref().take(left).read_until(b'\n', &mut text)? == 0 {
            return Err(match before {
                0 => io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up without an answer"),
                MAX_HEAD => io::Error::new(io::ErrorKind::InvalidData, "the head of its answer has no end"),
                _ => io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up in the middle of its answer"),
            });
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let invalid = |error: httparse::Error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("what it answered is not HTTP ({error})"))
    };
    parsed.parse(&text).map_err(invalid)?;
    let shown =
        |header: &httparse::Header<'_>| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned());
    Ok((parsed.code.unwrap_or(0), parsed.headers.iter().map(shown).collect()))
}

fn framing(status: u16, headers: &Headers, is_head: bool) -> io::Result<Framing> {
    if is_head || matches!(status, 204 | 304) {
        return Ok(Framing::Length(0));
    }
    if status == 101 {
        return Ok(Framing::UntilClose);
    }
    let value =
        |wanted: &str| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value);
    if value("transfer-encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked")) {
        return Ok(Framing::Chunked(None));
    }
    match value("content-length").map(|length| length.trim().parse()) {
        Some(Ok(length)) => Ok(Framing::Length(length)),
        Some(Err(_)) => Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no valid length")),
        None => Ok(Framing::UntilClose),
    }
}

impl Answer {
    /// The value of a header line.
    pub(super) fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
    }

    /// The connection, to say more on.
    pub(super) fn connection(&self) -> io::Result<UnixStream> {
        self.stream.get_ref().try_clone()
    }

    /// All of the body, which must not be longer than [`MAX_ANSWER`].
    pub(super) fn whole(mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        self.by_ref().take(MAX_ANSWER + 1).read_to_end(&mut body)?;
        if body.len() as u64 > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
        }
        Ok(body)
    }

    /// Whether something has been received that nobody has read yet: polling the descriptor does not show that.
    pub(super) fn has_more(&self) -> bool {
        !self.stream.buffer().is_empty()
    }

    /// The number of the next chunk's bytes; 0 at the end.
    fn next_chunk(&mut self, is_first: bool) -> io::Result<u64> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "its answer is cut into invalid chunks");
        let mut line = Vec::new();
        if !is_first {
            self.stream.by_ref().take(2).read_until(b'\n', &mut line)?;
            if line != b"\r\n" {
                return Err(invalid());
            }
            line.clear();
        }
        self.stream.by_ref().take(MAX_CHUNK_LINE).read_until(b'\n', &mut line)?;
        let text = std::str::from_utf8(&line).map_err(|_| invalid())?.trim_end();
        let length = text.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(length, 16).map_err(|_| invalid())
    }
}

impl AsFd for Answer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

impl Read for Answer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if let Framing::Chunked(left @ (None | Some(0))) = self.framing {
            let next = self.next_chunk(left.is_none())?;
            // Nobody cares for trailers: the connection is not used again.
            self.framing = if next == 0 { Framing::Length(0) } else { Framing::Chunked(Some(next)) };
        }
        let left = match self.framing {
            Framing::Length(left) | Framing::Chunked(Some(left)) => left,
            Framing::Chunked(None) => 0,
            Framing::UntilClose => u64::MAX,
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.stream.read(&mut into[..most])?;
        let rest = left.saturating_sub(count as u64);
        match &mut self.framing {
            Framing::UntilClose => {}
            _ if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Framing::Length(left) => *left = rest,
            Framing::Chunked(left) => *left = Some(rest),
        }
        Ok(count)
    }
}

/// Ends whatever is being sent or received on a connection, from another thread.
#[derive(Debug)]
pub(super) struct Hangup(UnixStream);

impl Hangup {
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        stream.try_clone().map(Self)
    }

    pub(super) fn hang_up(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is read when the other end says this and hangs up.
    fn received(said: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let said = said.to_vec();
        let writer = std::thread::spawn(move || theirs.write_all(&said));
        let result = answer(ours, false).and_then(|answer| Ok((answer.status, answer.whole()?)));
        let _ = writer.join();
        result
    }

    #[test]
    fn bodies_end_where_they_end() {
        for (said, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabcd", 200, "ab"),
            ("HTTP/1.1 200 OK\r\n\r\nabcd", 200, "abcd"),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx", 404, "x"),
            ("HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nraw", 101, "raw"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                200,
                "abc0123456789",
            ),
        ] {
            let (got, content) = received(said.as_bytes()).unwrap();
            assert_eq!((got, String::from_utf8(content).unwrap().as_str()), (status, body), "{said}");
        }
    }

    #[test]
    fn what_is_cut_short_or_nonsense_is_an_error() {
        for said in [
            "",
            "HTTP/1.1 200 OK\r\nContent-",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ] {
            assert!(received(said.as_bytes()).is_err(), "{said}");
        }
        assert!(received(&vec![b'x'; MAX_HEAD + 10]).is_err());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_survived(said in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = received(&said);
            let mut chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            chunks.extend(said);
            let _ = received(&chunks);
        }

        #[test]
        fn what_is_sent_in_chunks_arrives(content in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let sent = content.clone();
            let writer = std::thread::spawn(move || {
                ours.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                send_chunks(&mut ours, &mut &sent[..]).unwrap();
            });
            let (_, body) = answer(theirs, false).and_then(|answer| Ok((answer.status, answer.whole()?))).unwrap();
            writer.join().unwrap();
            prop_assert_eq!(body, content);
        }
    }
}
