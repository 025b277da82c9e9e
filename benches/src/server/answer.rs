//! From the text of one request to what is answered. Pure.

use std::io::Write as _;
use std::ops::Range;

use percent_encoding::percent_decode_str;

use super::BUCKET;
use super::listing::Query;
use crate::content::{Object, World};

/// When every object was written, as HTTP says it.
const WRITTEN: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// The answer to `?location`: the oldest region, which has no name.
const LOCATION: &str = "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>";

/// What is read of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// HEAD: the answer has no body.
    pub head: bool,
    /// The connection ends after it.
    pub close: bool,
    /// GET or HEAD.
    reads: bool,
    path: &'a str,
    query: &'a str,
    range: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// Reads a request's head, up to and with its empty line. None when it is no HTTP/1.
    pub fn parse(head: &'a [u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target, version) = (first.next()?, first.next()?, first.next()?);
        if first.next().is_some() || !version.starts_with("HTTP/1.") || !target.starts_with('/') {
            return None;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let reads = method == "GET" || method == "HEAD";
        // What comes after another method may be a body, which nobody here wants to read.
        let mut request = Self { head: method == "HEAD", close: !reads, reads, path, query, range: None };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            if name.eq_ignore_ascii_case("range") {
                request.range = Some(value);
            } else if name.eq_ignore_ascii_case("connection") {
                request.close |= value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("transfer-encoding")
                || (name.eq_ignore_ascii_case("content-length") && value != "0")
            {
                request.close = true;
            }
        }
        Some(request)
    }

    /// Whether it is about an object of the bucket, and not about the bucket.
    pub fn names_object(&self) -> bool {
        self.split().is_some_and(|(_, key)| !key.is_empty())
    }

    /// Bucket and key, both still encoded.
    fn split(&self) -> Option<(&'a str, &'a str)> {
        let path = self.path.strip_prefix('/')?;
        Some(path.split_once('/').unwrap_or((path, "")))
    }
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// XML.
    Text { status: &'static str, body: String },
    /// Bytes of an object, all of it when `partial` is not set.
    Object { object: Object, range: Range<u64>, partial: bool },
}

/// Answers. Nothing is ever written, and signatures are not looked at.
pub fn respond(world: &World, request: &Request) -> Answer {
    if !request.reads {
        return refusal("405 Method Not Allowed", "MethodNotAllowed");
    }
    let Some((bucket, key)) = request.split() else { return refusal("400 Bad Request", "InvalidURI") };
    if bucket != BUCKET {
        return refusal("404 Not Found", "NoSuchBucket");
    }
    if key.is_empty() {
        let query = Query::parse(request.query);
        return xml("200 OK", if query.location { LOCATION.to_owned() } else { query.listing(world.objects()) });
    }
    let Ok(key) = percent_decode_str(key).decode_utf8() else { return refusal("400 Bad Request", "InvalidURI") };
    let Some(object) = world.get(&key) else { return refusal("404 Not Found", "NoSuchKey") };
    match request.range {
        None => Answer::Object { object, range: 0..object.size, partial: false },
        Some(text) => match parse_range(text, object.size) {
            Some(range) => Answer::Object { object, range, partial: true },
            None => refusal("416 Range Not Satisfiable", "InvalidRange"),
        },
    }
}

impl Answer {
    /// Appends the status line, the headers and the empty line.
    pub fn write_head(&self, date: &str, close: bool, out: &mut Vec<u8>) {
        let connection = if close { "connection: close\r\n" } else { "" };
        // Writing to memory cannot fail.
        let _ = match self {
            Self::Text { status, body } => write!(
                out,
                "HTTP/1.1 {status}\r\ndate: {date}\r\ncontent-length: {}\r\ncontent-type: application/xml\r\n\
                 x-amz-bucket-region: us-east-1\r\n{connection}\r\n",
                body.len()
            ),
            Self::Object { object, range, partial } => {
                let _ = write!(
                    out,
                    "HTTP/1.1 {}\r\ndate: {date}\r\ncontent-length: {}\r\ncontent-type: application/octet-stream\r\n\
                     accept-ranges: bytes\r\nlast-modified: {WRITTEN}\r\netag: {}\r\n",
                    if *partial { "206 Partial Content" } else { "200 OK" },
                    range.end - range.start,
                    object.etag()
                );
                if *partial {
                    let last = range.end.saturating_sub(1);
                    let _ = write!(out, "content-range: bytes {}-{last}/{}\r\n", range.start, object.size);
                }
                write!(out, "{connection}\r\n")
            }
        };
    }
}

/// The bytes that a `Range` header asks for: `bytes=A-B`, `bytes=A-` or `bytes=-N`. None when there are no such bytes or
/// it is written otherwise.
fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(last)) if first.is_empty() => size.saturating_sub(last)..size,
        _ => return None,
    };
    (range.start < range.end).then_some(range)
}

fn refusal(status: &'static str, code: &str) -> Answer {
    xml(status, format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"))
}

fn xml(status: &'static str, text: String) -> Answer {
    Answer::Text { status, body: format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, range) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=3-", Some(3..10)),
            ("bytes=-4", Some(6..10)),
            ("bytes=-40", Some(0..10)),
            ("bytes=8-99", Some(8..10)),
            ("bytes=10-", None),
            ("bytes=5-4", None),
            ("bytes=-", None),
            ("bytes=1-2,4-5", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(parse_range(text, 10), range, "{text}");
        }
    }

    #[test]
    fn requests_are_read_and_answered() {
        let mut world = World::new();
        world.add("a b", 10);
        let head = |text: &str| {
            let text = format!("{text}\r\n\r\n");
            let request = Request::parse(text.as_bytes()).unwrap();
            let mut out = Vec::new();
            respond(&world, &request).write_head("today", request.close, &mut out);
            (request.names_object(), request.close, String::from_utf8(out).unwrap())
        };
        let (object, close, said) = head("GET /bench/a%20b?x=y HTTP/1.1\r\nHost: h\r\nrAnge:  bytes=2-3 ");
        assert!(object && !close && said.starts_with("HTTP/1.1 206 Partial Content\r\ndate: today\r\n"), "{said}");
        assert!(
            said.contains("content-length: 2\r\n") && said.ends_with("content-range: bytes 2-3/10\r\n\r\n"),
            "{said}"
        );
        let (object, close, said) = head("HEAD /bench?list-type=2 HTTP/1.1\r\nConnection: Close");
        assert!(!object && close && said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("connection: close\r\n"));
        assert!(head("GET /bench/a HTTP/1.1").2.starts_with("HTTP/1.1 404 "));
        assert!(head("GET /other/a HTTP/1.1").2.starts_with("HTTP/1.1 404 "));
        assert!(head("GET /bench/a%20b HTTP/1.1\r\nRange: bytes=10-").2.starts_with("HTTP/1.1 416 "));
        let (_, close, said) = head("PUT /bench/a%20b HTTP/1.1\r\nContent-Length: 5");
        assert!(close && said.starts_with("HTTP/1.1 405 "));
        for wrong in ["GET", "GET /x SMTP/1", "GET x HTTP/1.1", "GET / HTTP/1.1 more"] {
            assert_eq!(Request::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
