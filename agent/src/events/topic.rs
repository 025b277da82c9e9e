//! Telling a topic of Alibaba Cloud's message service (MNS), which a job's `Notification` names.
//!
//! A message is `POST /topics/<name>/messages` with the event's JSON as `MessageBody`, as it stands and not in base64, as the job
//! service sends it. It is signed with the access key that object storage is reached with: `MNS <id>:<base64 of HMAC-SHA1>` over
//! method, checksum, media type, date, the `x-mns-` headers and the path.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use oss::credentials::{AccessKey, AccessKeys};
use oss::web::{Answer, WebClient, WebError};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::Refusal;
use super::log::Line;

/// How long the service may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The version of the protocol.
const VERSION: &str = "2015-06-06";

const MEDIA_TYPE: &str = "text/xml;charset=UTF-8";

/// The longest name of a topic.
const LONGEST_NAME: usize = 256;

/// Why a topic cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Its name.
    #[error("is no name of a topic: use letters, digits and '-'")]
    Name,
    /// The address of the service.
    #[error("is no address of the message service; write one like http://1234567890.mns.cn-hangzhou.aliyuncs.com/")]
    Endpoint,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Topic {
    /// `http://<account>.mns.<region>.aliyuncs.com`, without a slash at the end.
    endpoint: String,
    name: String,
    /// The names of the events that it wants; all when empty.
    pub events: Vec<String>,
}

impl Topic {
    /// The topic `name` of the service at `endpoint`.
    ///
    /// # Errors
    /// When either cannot be one.
    pub fn new(endpoint: &str, name: &str) -> Result<Self, TopicError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_name) {
            return Err(TopicError::Name);
        }
        let with_scheme = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
        let whole = with_scheme.trim_end_matches('/');
        let host = whole.strip_prefix("https://").or_else(|| whole.strip_prefix("http://"));
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
        if !host.is_some_and(|host| !host.is_empty() && !host.starts_with(':') && host.chars().all(is_host)) {
            return Err(TopicError::Endpoint);
        }
        Ok(Self { endpoint: whole.to_owned(), name: name.to_owned(), events: Vec::new() })
    }

    /// For people.
    pub fn shown(&self) -> String {
        format!("topic {} at {}", self.name, self.endpoint)
    }

    /// What it is called on disk.
    pub(super) fn file_name(&self) -> String {
        let digest = Sha256::digest(format!("{}/{}", self.endpoint, self.name).as_bytes());
        format!("topic-{}", hex::encode(&digest[..8]))
    }

    /// Sends an event.
    pub(super) async fn deliver(&self, client: &WebClient, keys: &AccessKeys, line: &Line) -> Result<(), Refusal> {
        let refused = |why: String, of_this| Refusal { why: format!("{}: {why}", self.shown()), of_this, after: None };
        let key = keys.get().await.map_err(|error| refused(error.to_string(), false))?;
        let body = body(&line.text);
        let path = format!("/topics/{}/messages", self.name);
        let date = httpdate::fmt_http_date(SystemTime::now());
        let headers = headers(&key, &path, &date, &body);
        match client.post(&format!("{}{path}", self.endpoint), &headers, body, LIMIT).await {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
            Ok(answer) => {
                let (code, why) = explained(&answer);
                let of_this = matches!(code.as_str(), "InvalidArgument" | "MalformedXML" | "MessageTooLarge");
                Err(refused(why, of_this))
            }
            Err(error @ WebError::Unusable(_)) => Err(refused(error.to_string(), true)),
            Err(error) => Err(refused(error.to_string(), false)),
        }
    }
}

/// The message as the service takes it.
fn body(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Message xmlns=\"http://mns.aliyuncs.com/doc/v1/\"><MessageBody>{escaped}</MessageBody></Message>"
    )
}

fn headers(key: &AccessKey, path: &str, date: &str, body: &str) -> Vec<(&'static str, String)> {
    // The service's own way: the base64 of the hexadecimal digits.
    let checksum = STANDARD.encode(hex::encode(Md5::digest(body.as_bytes())));
    let text = format!("POST\n{checksum}\n{MEDIA_TYPE}\n{date}\nx-mns-version:{VERSION}\n{path}");
    let mut headers = vec![
        ("content-md5", checksum),
        ("content-type", MEDIA_TYPE.to_owned()),
        ("date", date.to_owned()),
        ("x-mns-version", VERSION.to_owned()),
        ("authorization", format!("MNS {}:{}", key.id, signature(key, &text))),
    ];
    if let Some(token) = &key.token {
        headers.push(("security-token", token.expose().to_owned()));
    }
    headers
}

fn signature(key: &AccessKey, text: &str) -> String {
    // A key of any length is one.
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(key.secret.expose().as_bytes()) else { return String::new() };
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// The service's own code and words for a refusal.
fn explained(answer: &Answer) -> (String, String) {
    let text = String::from_utf8_lossy(&answer.body);
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.chars().take(200).collect::<String>())
    };
    let code = element("Code").unwrap_or_default();
    let words = [Some(code.clone()), element("Message")].into_iter().flatten().filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(|word| word.escape_debug().to_string()).collect();
    let remedy = match code.as_str() {
        "TopicNotExist" => "; make the topic, or correct its name",
        "AccessDenied" | "InvalidAccessKeyId" => "; allow the node's role or key to publish to it (mns:PublishMessage)",
        _ => "",
    };
    (code, format!("status {} {}{remedy}", answer.status, words.join(": ")).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oss::Secret;

    #[test]
    fn names_and_addresses_are_checked() {
        let topic = Topic::new("http://123.mns.cn-beijing.aliyuncs.com/", "test-topic").unwrap();
        assert_eq!(topic.shown(), "topic test-topic at http://123.mns.cn-beijing.aliyuncs.com");
        assert_eq!(Topic::new("123.mns.cn-beijing.aliyuncs.com", "test-topic"), Ok(topic));
        for name in ["", "a/b", "a b", "../x", "é"] {
            assert_eq!(Topic::new("http://a", name), Err(TopicError::Name), "{name:?}");
        }
        for endpoint in ["", "ftp://a", "http://", "http://a/b", "http://u:p@a", "http://a\n"] {
            assert_eq!(Topic::new(endpoint, "t"), Err(TopicError::Endpoint), "{endpoint:?}");
        }
    }

    #[test]
    fn a_message_is_signed_and_escaped() {
        let key = AccessKey { id: "id".to_owned(), secret: Secret::new("secret"), token: Some(Secret::new("token")) };
        let body = body("{\"a\":\"<&>\"}");
        assert!(body.ends_with("<MessageBody>{&quot;a&quot;:&quot;&lt;&amp;&gt;&quot;}</MessageBody></Message>"));
        let headers = headers(&key, "/topics/t/messages", "Thu, 17 Mar 2012 18:49:58 GMT", &body);
        let value = |name: &str| &headers.iter().find(|(found, _)| *found == name).unwrap().1;
        assert!(value("authorization").starts_with("MNS id:") && !value("authorization").contains("secret"));
        assert_eq!(STANDARD.decode(value("content-md5")).unwrap().len(), 32);
        assert_eq!(value("security-token"), "token");
    }

    #[test]
    fn refusals_are_explained() {
        let answer = |status, body: &str| Answer { status, retry_after: None, body: body.as_bytes().to_vec().into() };
        let (code, why) = explained(&answer(
            404,
            "<Error><Code>TopicNotExist</Code><Message>The topic\nis not there.</Message></Error>",
        ));
        assert_eq!(code, "TopicNotExist");
        assert_eq!(why, "status 404 TopicNotExist: The topic\\nis not there.; make the topic, or correct its name");
        assert_eq!(explained(&answer(502, "")), (String::new(), "status 502".to_owned()));
    }
}
