//! One connection: requests come in, answers go out, each thread for itself.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::answer::{Answer, Request, respond};
use super::upload::{Body, Taken};
use super::{Conditions, Shared};
use crate::content::Object;

/// The longest head of a request. Nobody here sends more.
const LONGEST_HEAD: usize = 64 << 10;

/// A piece of at most this many bytes is copied behind what is in front of it: cheaper than a vector.
const SMALL: usize = 16 << 10;

/// The most that is read of a body at once, in bytes.
const READ: usize = 256 << 10;

/// Bytes sent at once on a line of limited bandwidth.
const PACED_PIECE: u64 = 256 << 10;

/// Answers until the client hangs up.
///
/// # Errors
/// When it does so in the middle, or sends what is no request.
pub fn serve(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut input = Vec::new();
    let mut output = Vec::new();
    let mut date = Date::default();
    let mut chunk = [0; 8 << 10];
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let read = stream.read(&mut chunk)?;
            if read == 0 {
                return Ok(());
            }
            input.extend_from_slice(&chunk[..read]);
            if input.len() > LONGEST_HEAD {
                return Err(io::Error::other("the request has no end"));
            }
        };
        let arrived = Instant::now();
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let conditions = shared.conditions();
        let request = Request::parse(&input[..end]);
        let request = request.ok_or_else(|| io::Error::other("this is no request"))?;
        if request.names_object() {
            shared.objects.fetch_add(1, Ordering::Relaxed);
        }
        let begun = &input[end..];
        let (taken, text) = take_body(stream, shared, &request, begun, &mut body, conditions)?;
        // A body that comes slowly makes the answer as late.
        let complete = if request.length > 0 { Instant::now() } else { arrived };
        let answer = respond(&shared.world, &shared.uploads, &request, (taken, &text));
        sleep_until(complete + conditions.latency);
        output.clear();
        answer.write_head(date.now(), request.close, &mut output);
        let body_expected = !request.head;
        match answer {
            Answer::Text { body, .. } => {
                if body_expected {
                    output.extend_from_slice(body.as_bytes());
                }
                stream.write_all(&output)?;
            }
            Answer::Object { object, range, .. } if body_expected => {
                send_object(stream, shared, &mut output, object, range, conditions)?;
            }
            Answer::Object { .. } | Answer::Bare { .. } => stream.write_all(&output)?,
        }
        if request.close {
            return Ok(());
        }
        let of_body = usize::try_from(request.length).unwrap_or(usize::MAX);
        let used = end + of_body.min(input.len() - end);
        input.drain(..used);
    }
}

/// Takes what comes behind a request, of which `begun` has come, at the pace that conditions ask for.
fn take_body(
    mut stream: &TcpStream,
    shared: &Shared,
    request: &Request,
    begun: &[u8],
    buffer: &mut Vec<u8>,
    conditions: Conditions,
) -> io::Result<(Taken, String)> {
    let since = Instant::now();
    let mut body = Body::new(request.framed, request.brings_text());
    let mut add = |piece: &[u8], came: u64| {
        if !body.add(piece) {
            return Err(io::Error::other("this is no body"));
        }
        shared.taken.fetch_add(u64::try_from(piece.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(micros) = came.saturating_mul(1_000_000).checked_div(conditions.bandwidth) {
            sleep_until(since + Duration::from_micros(micros));
        }
        Ok(())
    };
    let first = begun.len().min(usize::try_from(request.length).unwrap_or(usize::MAX));
    let mut came = u64::try_from(first).unwrap_or(u64::MAX);
    if came < request.length {
        if request.expects && came == 0 {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        buffer.resize(READ, 0);
    }
    if first > 0 {
        add(&begun[..first], came)?;
    }
    while came < request.length {
        let most = usize::try_from(request.length - came).unwrap_or(usize::MAX).min(READ);
        let read = stream.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        came += u64::try_from(read).unwrap_or(u64::MAX);
        add(&buffer[..read], came)?;
    }
    Ok(body.finish())
}

/// Sends head and body, at the pace that conditions ask for: a piece leaves when all of it can have come through the line.
fn send_object(
    mut stream: &TcpStream,
    shared: &Shared,
    head: &mut Vec<u8>,
    object: Object,
    mut range: Range<u64>,
    conditions: Conditions,
) -> io::Result<()> {
    let begun = Instant::now();
    let most = if conditions.bandwidth > 0 { PACED_PIECE } else { u64::MAX };
    let mut sent = 0;
    while !range.is_empty() {
        let piece = shared.world.bytes(object, range.start, most.min(range.end - range.start));
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        sent += length;
        if let Some(micros) = sent.saturating_mul(1_000_000).checked_div(conditions.bandwidth) {
            sleep_until(begun + Duration::from_micros(micros));
        }
        shared.bytes.fetch_add(length, Ordering::Relaxed);
        range.start += length;
        if piece.len() <= SMALL {
            head.extend_from_slice(piece);
            stream.write_all(head)?;
        } else {
            write_both(stream, head, piece)?;
        }
        head.clear();
    }
    stream.write_all(head)
}

/// Writes two buffers with as few calls as the kernel needs.
fn write_both(mut stream: &TcpStream, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    while !first.is_empty() {
        match stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                second = &second[written.saturating_sub(first.len()).min(second.len())..];
                first = &first[written.min(first.len())..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.write_all(second)
}

fn sleep_until(due: Instant) {
    let now = Instant::now();
    if due > now {
        std::thread::sleep(due - now);
    }
}

/// The `Date` header's text, made once a second.
#[derive(Debug, Default)]
struct Date {
    second: u64,
    text: String,
}

impl Date {
    fn now(&mut self) -> &str {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second {
            self.second = second;
            self.text = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        }
        &self.text
    }
}
