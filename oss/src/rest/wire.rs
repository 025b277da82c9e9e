//! Tests on the wire: servers that answer what no well-behaved store would.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::RestStore;
use crate::error::ErrorKind;
use crate::location::Key;
use crate::secret::Secret;
use crate::settings::{CredentialSource, StoreSettings, Timeouts};
use crate::store::{Checksum, ETag, GetOptions, ListRequest, PutMode, Store};

/// What a canned server does with a connection's next request, given its head.
enum Act {
    /// Answers and goes on.
    Say(String),
    /// Answers and closes.
    Last(String),
    /// Closes.
    Hang,
}

/// A server that handles requests in order of arrival by `script(number, head)`, without reading bodies when `deaf`.
struct Canned {
    endpoint: String,
    server: JoinHandle<()>,
    heads: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Canned {
    async fn start(deaf: bool, script: impl Fn(usize, &str) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let server = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                while let Some(head) = read_request(&mut socket, deaf).await {
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(head.clone());
                        seen.len() - 1
                    };
                    match script(number, &head) {
                        Act::Say(text) => socket.write_all(text.as_bytes()).await.unwrap(),
                        Act::Last(text) => {
                            socket.write_all(text.as_bytes()).await.unwrap();
                            break;
                        }
                        Act::Hang => break,
                    }
                }
            }
        });
        Self { endpoint, server, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    fn store(&self, scheme: &str) -> RestStore {
        self.store_with(scheme, Duration::from_secs(4))
    }

    fn store_with(&self, scheme: &str, total: Duration) -> RestStore {
        let settings = StoreSettings {
            endpoint: Some(self.endpoint.clone()),
            region: Some("r".into()),
            credentials: CredentialSource::Static {
                access_key_id: "id".into(),
                access_key_secret: Secret::new("hunter2"),
                security_token: None,
            },
            timeouts: Timeouts { connect: Duration::from_secs(2), read: Duration::from_millis(500), total },
            ..StoreSettings::default()
        };
        RestStore::open(&format!("{scheme}://bucket").parse().unwrap(), &settings).unwrap()
    }
}

async fn read_request(socket: &mut TcpStream, deaf: bool) -> Option<String> {
    let mut seen = Vec::new();
    let end = loop {
        if let Some(at) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let mut chunk = [0; 4096];
        let n = socket.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        seen.extend_from_slice(&chunk[..n]);
    };
    let head = String::from_utf8_lossy(&seen[..end]).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut left = length.parse::<usize>().unwrap().saturating_sub(seen.len() - end);
    let mut sink = vec![0; 64 << 10];
    while !deaf && left > 0 {
        let n = socket.read(&mut sink).await.ok().filter(|n| *n > 0)?;
        left = left.saturating_sub(n);
    }
    Some(head)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

const DENIED: &str = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";

#[tokio::test]
async fn a_refusal_before_the_body_was_read_is_heard() {
    for scheme in ["oss", "s3"] {
        let server =
            Canned::start(true, |_, _| Act::Last(answer("403 Forbidden", "connection: close\r\n", DENIED))).await;
        let body = Bytes::from(vec![1; 8 << 20]);
        let error = server.store(scheme).put(&Key::from("k"), body, PutMode::Overwrite).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_gives_the_right_bytes_all_the_same() {
    let server = Canned::start(false, |_, _| Act::Say(answer("200 OK", "etag: \"e\"\r\n", "0123456789"))).await;
    for scheme in ["oss", "s3"] {
        let options = GetOptions { range: Some(3..6), if_match: None };
        let got = server.store(scheme).get(&Key::from("k"), options).await.unwrap();
        assert_eq!((got.range.clone(), got.meta.size), (3..6, 10));
        assert_eq!(got.bytes().await.unwrap(), "345");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Canned::start(false, |_, _| {
        Act::Say(answer(
            "307 Temporary Redirect",
            "location: http://evil.example/\r\nx-amz-bucket-region: eu-west-1\r\n",
            "",
        ))
    })
    .await;
    let error = server.store("s3").head(&Key::from("k")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::WrongRegion { region: Some("eu-west-1".into()) });
    assert_eq!(server.heads().len(), 1);
}

#[tokio::test]
async fn a_listing_that_makes_no_sense_is_asked_for_again_and_never_loops() {
    let good = "<ListBucketResult><Contents><Key>a</Key><Size>1</Size></Contents></ListBucketResult>";
    let server = Canned::start(false, move |number, _| match number {
        0 => Act::Say(answer("200 OK", "", &good[..40])),
        1 => Act::Say(answer("200 OK", "", "<html>welcome to the hotel</html")),
        2 => Act::Hang,
        _ => Act::Say(answer("200 OK", "", good)),
    })
    .await;
    let page = server.store("s3").list(ListRequest::default()).await.unwrap();
    assert_eq!(page.objects.len(), 1);
    assert_eq!(server.heads().len(), 4);

    let endless = "<ListBucketResult><IsTruncated>true</IsTruncated>\
                   <NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
    let server = Canned::start(false, move |_, _| Act::Say(answer("200 OK", "", endless))).await;
    let request = ListRequest { continuation: Some("t".into()), ..ListRequest::default() };
    let error = server.store("oss").list(request).await.unwrap_err();
    assert!(error.to_string().contains("more and not where"), "{error}");
}

#[tokio::test]
async fn an_object_without_a_tag_is_not_taken_up_again() {
    let body = "x".repeat(2 << 20);
    let server = Canned::start(false, move |_, _| {
        let mut text = answer("200 OK", "", &body);
        text.truncate(1 << 20);
        Act::Last(text)
    })
    .await;
    let got = server.store("oss").get(&Key::from("k"), GetOptions::default()).await.unwrap();
    let mut body = got.body;
    let mut last = None;
    while let Some(item) = body.next().await {
        last = Some(item);
    }
    let error = last.unwrap().unwrap_err();
    assert!(error.to_string().contains("without an entity tag"), "{error}");
    assert_eq!(server.heads().len(), 1);
}

#[tokio::test]
async fn a_condition_that_cannot_be_sent_is_refused_and_not_left_out() {
    let server = Canned::start(false, |_, _| Act::Hang).await;
    let options = GetOptions { range: None, if_match: Some(ETag("line\nbreak".into())) };
    let error = server.store("s3").get(&Key::from("k"), options).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Invalid);
    assert!(server.heads().is_empty());
}

#[tokio::test]
async fn secrets_and_hostile_text_stay_out_of_messages() {
    let evil = "<Error><Code>Access\u{1b}[31mDenied</Code><Message>a\nb\u{7}</Message></Error>";
    let server = Canned::start(false, move |_, _| Act::Say(answer("403 Forbidden", "", evil))).await;
    let error = server.store("oss").get(&Key::from("k\n2"), GetOptions::default()).await.unwrap_err();
    let text = format!("{error} {error:?} {:?}", server.store("oss"));
    assert!(!text.contains("hunter2") && !text.contains('\u{1b}') && !text.contains('\n'), "{text}");
    let heads = server.heads().join("");
    assert!(heads.contains("GET /bucket/k%0A2 HTTP/1.1") && !heads.contains("hunter2"), "{heads}");
}

#[tokio::test]
async fn a_reader_may_take_its_time_between_bytes() {
    let body = "y".repeat(4 << 20);
    let server = Canned::start(false, move |number, _| match number {
        0 => {
            let mut text = answer("200 OK", "etag: \"e\"\r\n", &body);
            text.truncate(3 << 20);
            Act::Last(text)
        }
        _ => Act::Say(answer("200 OK", "etag: \"e\"\r\n", &body)),
    })
    .await;
    let store = server.store_with("oss", Duration::from_millis(800));
    let mut body = store.get(&Key::from("k"), GetOptions::default()).await.unwrap().body;
    let mut got = body.next().await.unwrap().unwrap().len();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.unwrap();
        assert!(chunk.iter().all(|byte| *byte == b'y'));
        got += chunk.len();
    }
    assert_eq!((got, server.heads().len()), (4 << 20, 2));
    assert!(server.heads()[1].contains("if-match: \"e\"\r\n"), "{:?}", server.heads());
}

#[tokio::test]
async fn a_body_in_clear_is_signed_and_sent_with_its_md5() {
    let server = Canned::start(false, |_, _| Act::Say(answer("200 OK", "etag: \"x\"\r\n", ""))).await;
    // Large enough to be hashed on a thread of its own.
    let body = Bytes::from(vec![7; 600 << 10]);
    let put = |store: RestStore| {
        let body = body.clone();
        async move { store.put(&Key::from("k"), body, PutMode::Overwrite).await.unwrap() }
    };
    put(server.store("s3")).await;
    let settings = StoreSettings {
        endpoint: Some(server.endpoint.clone()),
        credentials: CredentialSource::Anonymous,
        ..StoreSettings::default()
    };
    put(RestStore::open(&"s3://bucket".parse().unwrap(), &settings).unwrap()).await;
    let heads = server.heads();
    let sha256 = format!("x-amz-content-sha256: {}\r\n", crate::sign::sha256_hex(&body));
    assert!(heads[0].contains(&sha256) && heads[0].contains("content-md5: "), "{}", heads[0]);
    assert!(!heads[1].contains("x-amz-content-sha256") && heads[1].contains("content-md5: "), "{}", heads[1]);
}

#[tokio::test]
async fn answers_and_broken_bodies_name_their_request() {
    for (scheme, header) in [("oss", "x-oss-request-id"), ("s3", "x-amz-request-id")] {
        let body = "z".repeat(2 << 20);
        let server = Canned::start(false, move |number, head| {
            if number == 2 {
                return Act::Say(answer("412 Precondition Failed", &format!("{header}: three\r\n"), ""));
            }
            let id = ["one", "two", "", "four"].get(number).copied().unwrap_or("more");
            let text = answer("200 OK", &format!("etag: \"e\"\r\n{header}: {id}\r\n"), &body);
            let cut = if head.starts_with("GET /bucket/short ") { 1 << 20 } else { text.len() };
            Act::Last(text[..cut].to_owned())
        })
        .await;
        let store = server.store(scheme);
        let got = store.get(&Key::from("good"), GetOptions::default()).await.unwrap();
        assert_eq!(got.request_id.as_deref(), Some("one"));
        assert!(format!("{got:?}").contains("one"));
        assert_eq!(got.bytes().await.unwrap().len(), 2 << 20);
        // Broken off, and then the object was another one.
        let got = store.get(&Key::from("short"), GetOptions::default()).await.unwrap();
        assert_eq!(got.request_id.as_deref(), Some("two"));
        let error = got.bytes().await.unwrap_err();
        assert!(*error.kind() == ErrorKind::Changed && error.to_string().contains("[request id three]"), "{error}");
    }
}

#[tokio::test]
async fn bodies_that_fail_for_good_name_their_request() {
    let body = "z".repeat(2 << 20);
    let tag = "etag: \"e\"\r\nx-oss-request-id: seven\r\n";
    // A body of the wrong bytes; one that nobody can take up again; one whose store has gone away.
    let server = Canned::start(false, move |number, head| {
        let key = head.split(' ').nth(1).unwrap_or_default();
        match key {
            "/bucket/wrong" => Act::Say(answer("200 OK", &format!("{tag}x-oss-hash-crc64ecma: 1\r\n"), &body)),
            "/bucket/untagged" => {
                let text = answer("200 OK", "x-oss-request-id: seven\r\n", &body);
                Act::Last(text[..1 << 20].to_owned())
            }
            _ if number == 2 => Act::Last(answer("200 OK", tag, &body)[..1 << 19].to_owned()),
            _ => Act::Hang,
        }
    })
    .await;
    let store = server.store_with("oss", Duration::from_secs(1));
    for (key, kind) in
        [("wrong", ErrorKind::Corrupt), ("untagged", ErrorKind::Unavailable), ("gone", ErrorKind::Unavailable)]
    {
        let got = store.get(&Key::from(key), GetOptions::default()).await.unwrap();
        let error = got.bytes().await.unwrap_err();
        assert_eq!(*error.kind(), kind, "{error}");
        assert!(error.to_string().contains("[request id seven]"), "{key}: {error}");
    }
    let error = store.list(ListRequest::default()).await.unwrap_err();
    assert_eq!(error.request_id(), None);
}

#[tokio::test]
async fn a_head_tells_the_checksum_or_at_least_the_rest() {
    let nvme = "x-amz-checksum-crc64nvme: rosUhgp5mIg=\r\nx-amz-checksum-type: FULL_OBJECT\r\n";
    let answers = move |_, head: &str| {
        let asked = head.contains("x-amz-checksum-mode: ENABLED\r\n");
        match head.split(' ').nth(1).unwrap_or_default() {
            "/bucket/kms" if asked => Act::Say("HTTP/1.1 403 Forbidden\r\n\r\n".to_owned()),
            "/bucket/denied" => Act::Say("HTTP/1.1 403 Forbidden\r\n\r\n".to_owned()),
            "/bucket/oss" => {
                Act::Say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\nx-oss-hash-crc64ecma: 7\r\n\r\n".to_owned())
            }
            _ => Act::Say(format!("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n{}\r\n", if asked { nvme } else { "" })),
        }
    };
    // One each: such a server has time for one connection.
    let (amazon, alibaba) = (Canned::start(false, answers).await, Canned::start(false, answers).await);
    let (s3, oss) = (amazon.store("s3"), alibaba.store("oss"));
    let sum = |meta: crate::store::ObjectMeta| {
        assert_eq!(meta.size, 9);
        meta.checksum
    };
    assert_eq!(sum(oss.head(&Key::from("oss")).await.unwrap()), Some(Checksum::Crc64(7)));
    assert_eq!(sum(s3.head(&Key::from("k")).await.unwrap()), Some(Checksum::Crc64Nvme(0xae8b_1486_0a79_9888)));
    assert_eq!(sum(s3.head(&Key::from("kms")).await.unwrap()), None);
    assert_eq!(*s3.head(&Key::from("denied")).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!((amazon.heads().len(), alibaba.heads().len()), (5, 1));
}
