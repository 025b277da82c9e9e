//! Telling a server of the user's, by HTTP.
//!
//! A request is one event: `POST`, with the event's JSON as its body and, as the Standard Webhooks specification has it, `webhook-id` (the
//! event's id; twice the same is twice the same event), `webhook-timestamp` (seconds since 1970, when it was sent) and
//! `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`. Libraries that check it exist for most
//! languages. Any 2xx is a receipt.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use oss::Secret;
use oss::web::{WebClient, WebError};
use sha2::{Digest as _, Sha256};

use super::Refusal;
use super::log::Line;

/// How long the receiver may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What a secret begins with that is written in base64, as the specification has it.
const PREFIX: &str = "whsec_";

/// Why an address or secret cannot be used. The text follows the name of what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The address.
    #[error("is no http:// or https:// address with a host and without a user")]
    Address,
    /// The secret.
    #[error("begins with whsec_ and is not base64 after that")]
    Secret,
    /// It is so short that it can be guessed.
    #[error("is shorter than 16 bytes and could be guessed")]
    Guessable,
}

/// A receiver of events.
///
/// Its address can hold a token: neither `Debug` nor any message shows more of it than the server.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    pub(super) url: String,
    pub(super) key: Option<Secret>,
    /// The names of the events that it wants; all when empty.
    pub events: Vec<String>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("server", &self.server())
            .field("signed", &self.key.is_some())
            .field("events", &self.events)
            .finish()
    }
}

impl Webhook {
    /// A receiver at `url`. `secret` is what requests are signed with: `whsec_` and base64, or any text.
    ///
    /// # Errors
    /// When the address is none, or the secret is none.
    pub fn new(url: &str, secret: Option<&Secret>) -> Result<Self, WebhookError> {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).ok_or(WebhookError::Address)?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let is_text = url.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || authority.starts_with(':') || authority.contains('@') || !is_text {
            return Err(WebhookError::Address);
        }
        if let Some(secret) = secret {
            let key = key(secret).ok_or(WebhookError::Secret)?;
            if key.len() < 16 {
                return Err(WebhookError::Guessable);
            }
        }
        Ok(Self { url: url.to_owned(), key: secret.cloned(), events: Vec::new() })
    }

    /// The same, signed with `secret`.
    ///
    /// # Errors
    /// When the secret is none.
    pub fn signed_with(&self, secret: &Secret) -> Result<Self, WebhookError> {
        Ok(Self { events: self.events.clone(), ..Self::new(&self.url, Some(secret))? })
    }

    /// `https://` and the server's name.
    pub fn server(&self) -> &str {
        let begin = self.url.find("://").map_or(0, |at| at + 3);
        let end = self.url[begin..].find(['/', '?', '#']).map_or(self.url.len(), |end| begin + end);
        &self.url[..end]
    }

    /// Whether requests are signed.
    pub fn is_signed(&self) -> bool {
        self.key.is_some()
    }

    /// What it is called on disk: one name for one address, which does not tell the address.
    pub(super) fn name(&self) -> String {
        format!("webhook-{}", hex::encode(&Sha256::digest(self.url.as_bytes())[..8]))
    }

    /// The request's headers.
    fn headers(&self, line: &Line, now: u64) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("content-type", "application/json".to_owned()),
            ("webhook-id", line.id.clone()),
            ("webhook-timestamp", now.to_string()),
        ];
        if let Some(key) = self.key.as_ref().and_then(key) {
            headers.push(("webhook-signature", signature(&key, &line.id, now, &line.text)));
        }
        headers
    }

    /// Sends an event.
    pub(super) async fn deliver(&self, client: &WebClient, line: &Line) -> Result<(), Refusal> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let headers = self.headers(line, now);
        match client.post(&self.url, &headers, line.text.clone(), LIMIT).await {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
            Ok(answer) => Err(Refusal {
                why: format!("{} answers with status {}", self.server(), answer.status),
                // It has understood the request and does not like what is in it: it will not the next time either.
                of_this: matches!(answer.status, 400 | 413 | 415 | 422),
                after: answer.retry_after.map(Duration::from_secs),
            }),
            Err(error @ WebError::Unusable(_)) => Err(Refusal { why: error.to_string(), of_this: true, after: None }),
            Err(error) => Err(Refusal { why: error.to_string(), of_this: false, after: None }),
        }
    }
}

/// The bytes of a secret.
fn key(secret: &Secret) -> Option<Vec<u8>> {
    match secret.expose().strip_prefix(PREFIX) {
        Some(encoded) => STANDARD.decode(encoded).ok(),
        None => Some(secret.expose().as_bytes().to_vec()),
    }
}

fn signature(key: &[u8], id: &str, timestamp: u64, body: &str) -> String {
    // A key of any length is one.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_specifications() {
        // The example of the specification.
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(
            signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}"),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn addresses_are_checked_and_not_told() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let hook = Webhook::new("https://hooks.example.com:8443/T0/token?x=hidden", Some(&secret)).unwrap();
        assert_eq!(hook.server(), "https://hooks.example.com:8443");
        let shown = format!("{hook:?} {}", hook.name());
        assert!(!shown.contains("token") && !shown.contains("hidden") && !shown.contains("MfKQ"), "{shown}");
        for bad in ["", "hooks.example.com", "ftp://x/", "https://", "https://a:b@c/", "http://a/\n", "http://:80/"] {
            assert_eq!(Webhook::new(bad, None).unwrap_err(), WebhookError::Address, "{bad:?}");
        }
        let refused = |secret: &str| Webhook::new("http://a/", Some(&Secret::new(secret))).unwrap_err();
        assert_eq!(refused("whsec_no base64"), WebhookError::Secret);
        assert_eq!(refused("short"), WebhookError::Guessable);
    }
}
