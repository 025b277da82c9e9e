//! The HTTP client that `object_store` uses: ours, so that proxies, certificates and stalls are treated as everywhere
//! else, and no second client is linked in.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use hyper::body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient as ObjectStoreClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use tokio::time::{Instant, Sleep};

use crate::http::{HttpClient, SendError};

/// How long nothing may move.
const READ: Duration = Duration::from_secs(30);

/// Where instances ask for credentials. A proxy would answer for its own machine.
const METADATA_HOSTS: [&str; 3] = ["169.254.169.254", "metadata.google.internal", "metadata"];

/// Hands out our client.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    client: HttpClient,
    direct: HttpClient,
}

impl Transport {
    /// Its own pools of connections, which may take as long as this to be made.
    pub(super) fn new(connect: Duration) -> Self {
        Self { client: HttpClient::new(connect), direct: HttpClient::direct(connect) }
    }
}

impl HttpConnector for Transport {
    /// The options hold nothing that we would do otherwise than for all other stores.
    fn connect(&self, _: &ClientOptions) -> object_store::Result<ObjectStoreClient> {
        Ok(ObjectStoreClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = match body.as_bytes() {
            Some(bytes) => bytes.clone(),
            None => collect(body).await?,
        };
        let direct = head.uri.host().is_some_and(|host| METADATA_HOSTS.contains(&host));
        let client = if direct { &self.direct } else { &self.client };
        let answer = client.send(Request::from_parts(head, body), READ, None).await.map_err(failure)?;
        Ok(answer.map(|body| HttpResponseBody::new(Watched { body, silent: None })))
    }
}

/// A body that was put together of several pieces, as one.
async fn collect(mut body: object_store::client::HttpRequestBody) -> Result<Bytes, HttpError> {
    let mut all = Vec::with_capacity(body.content_length());
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(bytes) = frame?.into_data() {
            all.extend_from_slice(&bytes);
        }
    }
    Ok(all.into())
}

fn failure(error: SendError) -> HttpError {
    let kind = match &error {
        SendError::Connect(_) => HttpErrorKind::Connect,
        SendError::Timeout(_) | SendError::Late => HttpErrorKind::Timeout,
        SendError::Broken(_) | SendError::NotHttp(_) => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error)
}

/// An answer's body, given up when nothing comes.
struct Watched {
    body: crate::http::Body,
    /// When it will have been silent for too long; set while we wait.
    silent: Option<Pin<Box<Sleep>>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.silent = None;
                Poll::Ready(frame.map(|frame| frame.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e))))
            }
            Poll::Pending => {
                let silent =
                    self.silent.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + READ)));
                match silent.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => Poll::Ready(Some(Err(failure(SendError::Timeout(READ))))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use object_store::PutPayload;
    use object_store::client::HttpRequestBody;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn requests_go_out_whole_and_answers_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"onetwo") {
                assert!(socket.read_buf(&mut seen).await.unwrap() > 0);
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nx-tag: 7\r\n\r\nanswer").await.unwrap();
            String::from_utf8(seen).unwrap()
        });
        let body = HttpRequestBody::from(PutPayload::from_iter([Bytes::from("one"), Bytes::from("two")]));
        let request = Request::put(format!("http://{address}/a%2Fb?c=d")).body(body).unwrap();
        let transport = Transport::new(Duration::from_secs(5));
        let answer = transport.call(request).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["x-tag"].as_bytes()), (200, &b"7"[..]));
        assert_eq!(answer.into_body().bytes().await.unwrap(), "answer");
        let seen = server.await.unwrap();
        assert!(seen.starts_with("PUT /a%2Fb?c=d HTTP/1.1\r\n") && seen.contains("content-length: 6\r\n"), "{seen}");

        // Nobody listens any more.
        let request = Request::get(format!("http://{address}/")).body(HttpRequestBody::empty()).unwrap();
        assert_eq!(transport.call(request).await.unwrap_err().kind(), HttpErrorKind::Connect);
    }
}
