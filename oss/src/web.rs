//! Small requests to servers that keep no objects: receivers of events.
//!
//! The client is the one that stores are reached by, with its certificate authorities, proxies and time limits. It follows no
//! redirects and tries nothing again: both are the caller's to decide.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};

use crate::http::{HttpClient, collect};

/// How long a connection may take, TLS and proxy included.
const CONNECT: Duration = Duration::from_secs(10);

/// The most bytes of an answer that are read.
const ANSWER: usize = 64 << 10;

/// Why a request got no answer. The message holds neither path and query of the address nor any header, which may be secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebError {
    /// The address or a header cannot be sent.
    #[error("{0}")]
    Unusable(String),
    /// Nobody answered.
    #[error("{host}{via}: {cause}")]
    Unanswered {
        /// The server, as the address names it.
        host: String,
        /// The proxy on the way to it, if there is one.
        via: String,
        /// What happened.
        cause: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The seconds after which the server wants to be asked again, when it says so.
    pub retry_after: Option<u64>,
    /// The body, up to 64 KiB.
    pub body: Bytes,
}

/// A client for such requests. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct WebClient(HttpClient);

impl WebClient {
    /// A client that uses the proxies of the environment.
    pub fn new() -> Self {
        Self(HttpClient::new(CONNECT))
    }

    /// Sends `body` by POST and reads the answer. `limit` is for all of it.
    ///
    /// # Errors
    /// When there was no answer, or the address cannot be one. Any status is an answer.
    pub async fn post(
        &self,
        url: &str,
        headers: &[(&str, String)],
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Result<Answer, WebError> {
        let unusable = |what: &str| WebError::Unusable(what.to_owned());
        let uri: Uri = url.parse().map_err(|_| unusable("the address is no URL"))?;
        let host = uri.authority().map(|authority| match authority.as_str().rsplit_once('@') {
            Some((_, host)) => host.to_owned(),
            None => authority.as_str().to_owned(),
        });
        let host = host.ok_or_else(|| unusable("the address has no host"))?;
        let mut request =
            Request::post(uri.clone()).body(body.into()).map_err(|_| unusable("the address is no URL"))?;
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).map_err(|_| unusable("a header has no name"))?;
            let mut value = HeaderValue::try_from(value.as_str())
                .map_err(|_| WebError::Unusable(format!("the value of header {name} cannot be sent")))?;
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
        let via = self.0.via(&uri);
        let unanswered = |cause: String| WebError::Unanswered { host: host.clone(), via: via.clone(), cause };
        let exchange = async {
            let response = self.0.send(request, limit, None).await?;
            let retry_after = response.headers().get(http::header::RETRY_AFTER);
            let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let status = response.status().as_u16();
            // What it says beyond the limit is of no use to anybody.
            let body = collect(response.into_body(), ANSWER, limit).await.unwrap_or_default();
            Ok(Answer { status, retry_after, body })
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let error: crate::http::SendError = error;
                Err(unanswered(error.to_string()))
            }
            Err(_) => Err(unanswered(format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

impl Default for WebClient {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn it_posts_and_reads_the_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=secret", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"hello") {
                let mut chunk = [0; 1024];
                let n = socket.read(&mut chunk).await.unwrap();
                assert!(n > 0, "the client hung up");
                seen.extend_from_slice(&chunk[..n]);
            }
            let answer = b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nbusy";
            socket.write_all(answer).await.unwrap();
            String::from_utf8(seen).unwrap()
        });
        let client = WebClient::new();
        let headers = [("content-type", "text/plain".to_owned())];
        let answer = client.post(&url, &headers, "hello", Duration::from_secs(20)).await.unwrap();
        assert_eq!((answer.status, answer.retry_after, &answer.body[..]), (503, Some(7), &b"busy"[..]));
        let seen = server.await.unwrap();
        assert!(seen.starts_with("POST /hook?token=secret HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("content-type: text/plain\r\n") && seen.contains("content-length: 5\r\n"), "{seen}");
        // Nobody listens any more, and what may be secret is not told.
        let error = client.post(&url, &[], "hello", Duration::from_secs(20)).await.unwrap_err();
        assert!(!error.to_string().contains("secret") && error.to_string().contains("127.0.0.1"), "{error}");
        let error = client.post("/no-host", &[], "", Duration::from_secs(20)).await.unwrap_err();
        assert!(matches!(error, WebError::Unusable(_)), "{error}");
    }
}
