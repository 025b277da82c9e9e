//! From the text of one request to what is answered. Pure.

use std::io::Write as _;
use std::ops::Range;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use super::BUCKET;
use super::listing::Query;
use super::upload::{Taken, Uploads};
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
    /// The length of what comes behind it, in bytes.
    pub length: u64,
    /// What comes behind it is framed as `aws-chunked`.
    pub framed: bool,
    /// The client waits to be told that it may send what comes behind it.
    pub expects: bool,
    method: &'a str,
    /// Checksums are asked for.
    summed: bool,
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
        let mut request = Self {
            head: method == "HEAD",
            close: false,
            length: 0,
            framed: false,
            expects: false,
            method,
            summed: false,
            path,
            query,
            range: None,
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            if name.eq_ignore_ascii_case("range") {
                request.range = Some(value);
            } else if name.eq_ignore_ascii_case("connection") {
                request.close |= value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("content-length") {
                request.length = value.parse().ok()?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                // Nobody here sends a body of unknown length.
                return None;
            } else if name.eq_ignore_ascii_case("x-amz-content-sha256") {
                request.framed = value.starts_with("STREAMING-");
            } else if name.eq_ignore_ascii_case("expect") {
                request.expects = value.eq_ignore_ascii_case("100-continue");
            } else if name.eq_ignore_ascii_case("x-amz-checksum-mode") {
                request.summed = true;
            }
        }
        Some(request)
    }

    /// Whether it is about an object of the bucket, and not about the bucket.
    pub fn names_object(&self) -> bool {
        self.split().is_some_and(|(_, key)| !key.is_empty())
    }

    /// Whether what comes behind it is a text that has to be understood.
    pub fn brings_text(&self) -> bool {
        self.method == "POST"
    }

    /// The value of a parameter of the query, still encoded.
    fn parameter(&self, name: &str) -> Option<&'a str> {
        let mut pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
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
    /// Bytes of an object, all of it when `partial` is not set, and its CRC-64/NVME where it is known and asked for.
    Object { object: Object, range: Range<u64>, partial: bool, sum: Option<u64> },
    /// A head and no more. The tag is no MD5 sum, so that nobody takes it for one.
    Bare { status: &'static str, length: u64, tag: bool },
}

/// Answers, with what came behind the request. Signatures and checksums are not looked at.
pub fn respond(world: &World, uploads: &Uploads, request: &Request, (taken, text): (Taken, &str)) -> Answer {
    let Some((bucket, key)) = request.split() else { return refusal("400 Bad Request", "InvalidURI") };
    if bucket != BUCKET {
        return refusal("404 Not Found", "NoSuchBucket");
    }
    let Ok(key) = percent_decode_str(key).decode_utf8() else { return refusal("400 Bad Request", "InvalidURI") };
    match (request.method, key.is_empty()) {
        ("GET" | "HEAD", true) => {
            let query = Query::parse(request.query);
            xml("200 OK", if query.location { LOCATION.to_owned() } else { query.listing(world.objects()) })
        }
        ("GET" | "HEAD", false) => read(world, uploads, request, &key),
        ("PUT" | "POST" | "DELETE", false) => write(uploads, request, &key, taken, text),
        _ => refusal("405 Method Not Allowed", "MethodNotAllowed"),
    }
}

fn read(world: &World, uploads: &Uploads, request: &Request, key: &str) -> Answer {
    let Some(object) = world.get(key) else {
        return match uploads.size(key).filter(|_| request.head) {
            Some(length) => Answer::Bare { status: "200 OK", length, tag: true },
            None => refusal("404 Not Found", "NoSuchKey"),
        };
    };
    match request.range {
        None => {
            let sum = if request.summed { world.sum(key) } else { None };
            Answer::Object { object, range: 0..object.size, partial: false, sum }
        }
        Some(text) => match parse_range(text, object.size) {
            Some(range) => Answer::Object { object, range, partial: true, sum: None },
            None => refusal("416 Range Not Satisfiable", "InvalidRange"),
        },
    }
}

fn write(uploads: &Uploads, request: &Request, key: &str, taken: Taken, text: &str) -> Answer {
    let done = Answer::Bare { status: "200 OK", length: 0, tag: true };
    let lost = || refusal("404 Not Found", "NoSuchUpload");
    let number = request.parameter("partNumber").and_then(|number| number.parse().ok());
    match (request.method, request.parameter("uploadId"), number) {
        ("PUT", None, _) => {
            uploads.put(key, taken);
            done
        }
        ("PUT", Some(name), Some(number)) => {
            if uploads.part(name, number, taken) {
                done
            } else {
                lost()
            }
        }
        ("POST", None, _) if request.parameter("uploads").is_some() => {
            let name = uploads.begin(key);
            xml(
                "200 OK",
                format!("<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"),
            )
        }
        ("POST", Some(name), _) => {
            if uploads.complete(name, text) {
                xml(
                    "200 OK",
                    "<CompleteMultipartUploadResult><ETag>&quot;whole-1&quot;</ETag></CompleteMultipartUploadResult>"
                        .to_owned(),
                )
            } else {
                lost()
            }
        }
        ("DELETE", name, _) => {
            if let Some(name) = name {
                uploads.abort(name);
            }
            Answer::Bare { status: "204 No Content", length: 0, tag: false }
        }
        _ => refusal("501 Not Implemented", "NotImplemented"),
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
            Self::Bare { status, length, tag } => {
                let tag = if *tag { "etag: \"taken-1\"\r\n" } else { "" };
                write!(
                    out,
                    "HTTP/1.1 {status}\r\ndate: {date}\r\ncontent-length: {length}\r\nlast-modified: {WRITTEN}\r\n\
                     {tag}{connection}\r\n"
                )
            }
            Self::Object { object, range, partial, sum } => {
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
                if let Some(sum) = sum {
                    let sum = BASE64_STANDARD.encode(sum.to_be_bytes());
                    let _ = write!(out, "x-amz-checksum-crc64nvme: {sum}\r\nx-amz-checksum-type: FULL_OBJECT\r\n");
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
    use super::super::upload::Body;
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
        world.add_summed("a b", 10);
        let uploads = Uploads::default();
        let respond_to = |text: &str, body: &[u8]| {
            let text = format!("{text}\r\n\r\n");
            let request = Request::parse(text.as_bytes()).unwrap();
            let mut taken = Body::new(request.framed, request.brings_text());
            assert!(taken.add(body));
            let (taken, text) = taken.finish();
            let mut out = Vec::new();
            let answer = respond(&world, &uploads, &request, (taken, &text));
            answer.write_head("today", request.close, &mut out);
            if let Answer::Text { body, .. } = answer {
                out.extend_from_slice(body.as_bytes());
            }
            (request.names_object(), request.close, String::from_utf8(out).unwrap())
        };
        let head = |text: &str| respond_to(text, b"");
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
        assert!(!head("HEAD /bench/a%20b HTTP/1.1").2.contains("checksum"));
        let summed = head("HEAD /bench/a%20b HTTP/1.1\r\nx-amz-checksum-mode: ENABLED").2;
        assert!(summed.contains("x-amz-checksum-crc64nvme: ") && summed.contains("FULL_OBJECT"), "{summed}");

        // What is uploaded.
        let chunked = "content-length: 40\r\nx-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER";
        let put = format!("PUT /bench/new HTTP/1.1\r\n{chunked}\r\nExpect: 100-continue");
        let (_, close, said) = respond_to(&put, b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:x\r\n\r\n");
        assert!(!close && said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("etag: "), "{said}");
        assert!(head("HEAD /bench/new HTTP/1.1").2.contains("content-length: 5\r\n"));
        let begun = head("POST /bench/parts?uploads HTTP/1.1").2;
        let name = begun.split("<UploadId>").nth(1).unwrap().split('<').next().unwrap();
        let at = format!("/bench/parts?partNumber=1&uploadId={name} HTTP/1.1");
        assert!(respond_to(&format!("PUT {at}"), b"abc").2.starts_with("HTTP/1.1 200 "));
        let list = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>";
        let at = format!("/bench/parts?uploadId={name} HTTP/1.1");
        assert!(respond_to(&format!("POST {at}"), list).2.contains("<ETag>"));
        assert!(respond_to(&format!("POST {at}"), list).2.starts_with("HTTP/1.1 404 "));
        assert!(head(&format!("DELETE {at}")).2.starts_with("HTTP/1.1 204 "));
        assert_eq!((uploads.size("new"), uploads.size("parts")), (Some(5), Some(3)));
        for wrong in [
            "GET",
            "GET /x SMTP/1",
            "GET x HTTP/1.1",
            "GET / HTTP/1.1 more",
            "PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked",
        ] {
            assert_eq!(Request::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
