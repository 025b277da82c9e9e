//! The least HTTP client there can be, for measuring what the wire and the server give: blocking, one reused buffer, no
//! decoding.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail};

use crate::content::{Object, World};
use crate::server::BUCKET;

/// One connection, kept alive.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    port: u16,
}

impl Connection {
    /// Connects to 127.0.0.1.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect to the object server")?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        Ok(Self { reader: BufReader::with_capacity(16 << 10, stream), port })
    }

    /// Gets an object or a listing (`key` is a URL's rest, encoded) into `body`, replacing what is there. Returns the status.
    ///
    /// # Errors
    /// When the connection breaks or the answer cannot be understood.
    pub fn get(&mut self, key: &str, range: Option<Range<u64>>, body: &mut Vec<u8>) -> anyhow::Result<u16> {
        let mut request = format!("GET /{BUCKET}/{key} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", self.port);
        if let Some(range) = range {
            request.push_str(&format!("Range: bytes={}-{}\r\n", range.start, range.end.saturating_sub(1)));
        }
        request.push_str("\r\n");
        self.reader.get_mut().write_all(request.as_bytes()).context("the object server hung up")?;
        self.answer(body)
    }

    /// Puts the first `length` bytes of an object made up here at `key`.
    ///
    /// # Errors
    /// When the connection breaks, and for any answer but success.
    pub fn put(&mut self, key: &str, world: &World, object: Object, length: u64) -> anyhow::Result<()> {
        let port = self.port;
        let head =
            format!("PUT /{BUCKET}/{key} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n\r\n");
        let stream = self.reader.get_mut();
        stream.write_all(head.as_bytes()).context("the object server hung up")?;
        let mut offset = 0;
        while offset < length {
            let piece = world.bytes(object, offset, length - offset);
            stream.write_all(piece).context("the object server hung up")?;
            offset += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        }
        match self.answer(&mut Vec::new())? {
            200 => Ok(()),
            status => bail!("the object server answered {status} to a PUT of {key}"),
        }
    }

    /// Reads an answer and its body.
    fn answer(&mut self, body: &mut Vec<u8>) -> anyhow::Result<u16> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("the object server did not answer")?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("the object server answered {line:?}"))?;
        let mut length = None;
        loop {
            line.clear();
            self.reader.read_line(&mut line).context("an answer broke off in its head")?;
            let header = line.trim_end();
            if header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<usize>().ok();
            }
        }
        // Only grows, and is not cleared first: filling it with zeros again would be measured too.
        body.resize(length.context("an answer did not say how long it is")?, 0);
        self.reader.read_exact(body).context("an answer broke off")?;
        Ok(status)
    }

    /// The same, where anything but success is an error.
    ///
    /// # Errors
    /// As above, and for any status but 200 and 206.
    pub fn fetch(&mut self, key: &str, range: Option<Range<u64>>, body: &mut Vec<u8>) -> anyhow::Result<()> {
        match self.get(key, range, body)? {
            200 | 206 => Ok(()),
            status => bail!("the object server answered {status} to a GET of {key}"),
        }
    }
}

/// Does `count` pieces of work with this many connections, each taking the next piece when it is done with one.
///
/// # Errors
/// The first error of any.
pub fn share_out(
    port: u16,
    connections: usize,
    count: usize,
    work: impl Fn(usize, &mut Connection, &mut Vec<u8>) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    crate::threads::together(connections, |_| {
        let mut connection = Connection::open(port)?;
        let mut body = Vec::new();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= count {
                return Ok(());
            }
            work(piece, &mut connection, &mut body)?;
        }
    })
}
