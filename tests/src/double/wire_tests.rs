//! The double over raw sockets, for what no SDK would send: every check of the signatures is shown able to fail, every
//! limit to hold, every fault to happen. Here is the client; the tests are below.

mod faults;
mod rules;
mod signatures;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use super::auth::{Scope, hmac_sha256, sha256_hex};
use super::time::basic;
use super::*;

/// What came back. `whole` says whether the body was as long as announced; `end` how the connection ended if it did.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    whole: bool,
    end: Option<ErrorKind>,
}

impl Answer {
    fn code(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.split_once("<Code>")
            .and_then(|(_, rest)| rest.split_once("</Code>"))
            .map_or(String::new(), |(code, _)| code.to_owned())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request before it is signed.
#[derive(Clone)]
struct Draft {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Leaves the length of the body unsaid.
    bare: bool,
}

impl Draft {
    fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            headers: vec![("host".into(), "127.0.0.1".into())],
            body: Vec::new(),
            bare: false,
        }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.into(), value.into()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn query(&self) -> String {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        pairs.sort_unstable();
        pairs.join("&")
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or("")
    }

    fn value(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// Signs as OSS wants it. The bucket is put before the path of a virtual-hosted request.
    fn oss(self, how: &Signer) -> Self {
        let mut draft = self.header("x-oss-date", &basic(how.time)).header("x-oss-content-sha256", "UNSIGNED-PAYLOAD");
        if let Some(token) = &how.token {
            draft = draft.header("x-oss-security-token", token);
        }
        let mut signed: Vec<&(String, String)> = draft
            .headers
            .iter()
            .filter(|(name, _)| {
                name.starts_with("x-oss-")
                    || name == "content-type"
                    || name == "content-md5"
                    || how.additional.split(';').any(|a| a == name)
            })
            .collect();
        signed.sort();
        let headers: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let bucket = if how.bucket_in_host { "/test-bucket" } else { "" };
        let canonical = format!(
            "{}\n{bucket}{}\n{}\n{headers}\n{}\nUNSIGNED-PAYLOAD",
            draft.method,
            draft.path(),
            draft.query(),
            how.additional
        );
        let scope = how.scope("oss", "aliyun_v4_request");
        let to_sign =
            format!("OSS4-HMAC-SHA256\n{}\n{}\n{}", basic(how.time), scope.text(), sha256_hex(canonical.as_bytes()));
        let signature = hex::encode(hmac_sha256(&scope.signing_key("aliyun_v4", &how.secret), to_sign.as_bytes()));
        let additional =
            if how.additional.is_empty() { String::new() } else { format!(",AdditionalHeaders={}", how.additional) };
        let text = format!("OSS4-HMAC-SHA256 Credential={}/{}{additional},Signature={signature}", how.id, scope.text());
        draft.header("authorization", &text)
    }

    /// Signs as S3 wants it: every header there is.
    fn s3(self, how: &Signer) -> Self {
        let hash = sha256_hex(&self.body);
        let mut draft = self.header("x-amz-date", &basic(how.time));
        if draft.value("x-amz-content-sha256").is_empty() {
            draft = draft.header("x-amz-content-sha256", &hash);
        }
        if let Some(token) = &how.token {
            draft = draft.header("x-amz-security-token", token);
        }
        let mut signed: Vec<(String, String)> = draft.headers.clone();
        signed.sort();
        let headers: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
        let query: Vec<String> = draft
            .query()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
            .collect();
        let canonical = format!(
            "{}\n{}\n{}\n{headers}\n{}\n{}",
            draft.method,
            draft.path(),
            query.join("&"),
            names.join(";"),
            draft.value("x-amz-content-sha256")
        );
        let scope = how.scope("s3", "aws4_request");
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{}\n{}\n{}", basic(how.time), scope.text(), sha256_hex(canonical.as_bytes()));
        let signature = hex::encode(hmac_sha256(&scope.signing_key("AWS4", &how.secret), to_sign.as_bytes()));
        let text = format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={signature}",
            how.id,
            scope.text(),
            names.join(";")
        );
        draft.header("authorization", &text)
    }
}

/// How to sign.
#[derive(Clone)]
struct Signer {
    id: String,
    secret: String,
    token: Option<String>,
    region: String,
    product: Option<String>,
    terminator: Option<String>,
    date: String,
    time: SystemTime,
    additional: String,
    bucket_in_host: bool,
}

impl Default for Signer {
    fn default() -> Self {
        Self::at(SystemTime::now())
    }
}

impl Signer {
    fn at(time: SystemTime) -> Self {
        Self {
            id: "test-key".into(),
            secret: "test-secret".into(),
            token: None,
            region: "cn-test".into(),
            product: None,
            terminator: None,
            date: basic(time)[..8].to_owned(),
            time,
            additional: String::new(),
            bucket_in_host: false,
        }
    }

    fn scope<'a>(&'a self, service: &'a str, terminator: &'a str) -> Scope<'a> {
        Scope {
            key_id: &self.id,
            date: &self.date,
            region: &self.region,
            service: self.product.as_deref().unwrap_or(service),
            terminator: self.terminator.as_deref().unwrap_or(terminator),
        }
    }
}

/// Sends a request and reads until the answer is whole or nothing more comes for `patience`.
fn send_patiently(double: &Double, draft: &Draft, patience: Duration) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", double.port())).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    // A server that does not read blocks whoever writes.
    stream.set_write_timeout(Some(patience)).unwrap();
    let mut text = format!("{} {} HTTP/1.1\r\n", draft.method, draft.target);
    for (name, value) in &draft.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let chunked = !draft.value("transfer-encoding").is_empty();
    if !draft.bare && !chunked && (!draft.body.is_empty() || draft.method != "GET") {
        text.push_str(&format!("content-length: {}\r\n", draft.body.len()));
    }
    let mut bytes = format!("{text}\r\n").into_bytes();
    bytes.extend_from_slice(&draft.body);
    // A reset may come before all is written.
    let _ = stream.write_all(&bytes);
    read_answer(&mut stream, draft.method == "HEAD")
}

fn read_answer(stream: &mut TcpStream, is_head: bool) -> Answer {
    let (mut received, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    let mut answer = Answer { status: 0, headers: BTreeMap::new(), body: Vec::new(), whole: false, end: None };
    loop {
        let end = received.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            let mut lines = head.lines();
            answer.status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            answer.headers = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect();
            answer.body = received[end + 4..].to_vec();
            let length = answer.headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            if is_head || answer.body.len() >= length {
                answer.whole = true;
                return answer;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => {
                answer.end = Some(ErrorKind::UnexpectedEof);
                return answer;
            }
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            // A read with a timeout is interrupted when a child of some other test ends.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                answer.end = Some(error.kind());
                return answer;
            }
        }
    }
}

fn send(double: &Double, draft: &Draft) -> Answer {
    send_patiently(double, draft, Duration::from_secs(10))
}

fn oss(double: &Double, method: &str, target: &str) -> Answer {
    send(double, &Draft::new(method, target).oss(&Signer::default()))
}

fn s3(double: &Double, method: &str, target: &str) -> Answer {
    send(double, &Draft::new(method, target).s3(&Signer::default()))
}

fn started() -> Double {
    let double = Double::start(DoubleConfig::default());
    double.put("test-bucket", "a b", "hello");
    double
}

const TARGET: &str = "/test-bucket/a%20b";
