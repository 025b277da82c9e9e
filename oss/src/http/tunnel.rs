//! Tunnels through proxies, by `CONNECT`.
//!
//! hyper-util has one, too; it keeps to itself what the proxy answered, which is what a person needs who has to find out why.

use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest head of an answer, in bytes.
const HEAD_LIMIT: usize = 8 << 10;

/// The longest reason that is quoted, in characters.
const REASON_LIMIT: usize = 80;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    #[error(
        "wants a user name and password, or others: write them into the proxy's URL, http://USER:PASSWORD@HOST:PORT"
    )]
    Credentials,
    #[error("refused a tunnel to {target}: {} {reason}", .status.as_u16())]
    Refused { target: String, status: StatusCode, reason: String },
    #[error("broke off: {0}")]
    Io(#[from] std::io::Error),
    #[error("does not speak HTTP")]
    NotHttp,
}

impl TunnelError {
    /// Whether it will be the same the next time.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::Credentials | Self::NotHttp => true,
            // 5xx is about the server behind it, which may come back; 429 and 408 are about the moment.
            Self::Refused { status, .. } => !status.is_server_error() && !matches!(status.as_u16(), 408 | 429),
            Self::Io(_) => false,
        }
    }
}

/// Asks for a tunnel to `target`, a host and port, over a connection to a proxy. What goes over the connection afterwards goes
/// to the target.
pub(super) async fn open<S>(proxy: &mut S, target: &str, auth: Option<&HeaderValue>) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(auth) = auth {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(auth.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    proxy.write_all(&request).await?;
    proxy.flush().await?;

    let mut head = Vec::new();
    // A byte at a time costs nothing for one short head, and what follows it is not ours to take.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_LIMIT {
            return Err(TunnelError::NotHttp);
        }
        match proxy.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && head.is_empty() => {
                let why = "the proxy closed the connection without an answer";
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (status, reason) = status_line(&head).ok_or(TunnelError::NotHttp)?;
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(TunnelError::Credentials),
        status => Err(TunnelError::Refused { target: target.to_owned(), status, reason }),
    }
}

/// The status of an answer, and what the proxy says in words.
fn status_line(head: &[u8]) -> Option<(StatusCode, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = String::from_utf8_lossy(line);
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let status = (code.len() == 3).then(|| code.parse().ok())??;
    Some((status, reason.trim().chars().take(REASON_LIMIT).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(answer: &'static [u8]) -> (Result<(), TunnelError>, String, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(16 << 10);
        let proxy = tokio::spawn(async move {
            let mut request = vec![0; 4096];
            let n = theirs.read(&mut request).await.unwrap();
            request.truncate(n);
            theirs.write_all(answer).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let auth = HeaderValue::from_static("Basic eDp5");
        let outcome = open(&mut ours, "b.example.com:443", Some(&auth)).await;
        let request = proxy.await.unwrap();
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        (outcome, request, rest)
    }

    #[tokio::test]
    async fn a_tunnel_begins_right_after_the_head() {
        for answer in [&b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello"[..], b"HTTP/1.0 204\r\n\r\nhello"]
        {
            let (outcome, request, rest) = ask(answer).await;
            outcome.unwrap();
            assert_eq!(
                request,
                "CONNECT b.example.com:443 HTTP/1.1\r\nHost: b.example.com:443\r\nProxy-Authorization: Basic eDp5\r\n\r\n"
            );
            assert_eq!(rest, b"hello");
        }
    }

    #[tokio::test]
    async fn refusals_say_what_the_proxy_said_and_whether_that_lasts() {
        for (answer, says, lasts) in [
            (&b"HTTP/1.1 403 Blocked by policy\r\n\r\n"[..], "b.example.com:443: 403 Blocked by policy", true),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "USER:PASSWORD", true),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502 Bad Gateway", false),
            (b"HTTP/1.1 429 \r\n\r\n", "429", false),
            (b"", "without an answer", false),
            (b"HTTP/1.1 200 OK\r\n", "broke off", false),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP", true),
            (b"HTTP/1.1 99999 Odd\r\n\r\n", "does not speak HTTP", true),
        ] {
            let error = ask(answer).await.0.unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.is_permanent(), lasts, "{error}");
        }
    }
}
