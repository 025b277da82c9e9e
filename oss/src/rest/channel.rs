//! Signed requests to one bucket, tried again for as long as that makes sense.
//!
//! The part that every operation shares: find the endpoint, get credentials, sign, send, understand a refusal, and decide
//! what to do about it. An attempt that failed *ambiguously* (the request went out and no clear answer came back) is
//! remembered, because a later refusal may then be the echo of our own success: the operations know how to tell.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, StatusCode, Uri};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::call::{Call, Dialect, Expect, Replay, Reply};
use super::clock::Clock;
use super::digest;
use super::endpoint::{Endpoint, Unresolved, resolve};
use super::fault::{Failure, Fault};
use super::meter::Meter;
use super::refusal::{Refusal, request_id};
use super::retry::{Deadline, FEW, Remedy, pause};
use super::xml;
use crate::credentials::{Credentials, Identity, Metadata};
use crate::error::{Error, ErrorKind, Result};
use crate::http::{HttpClient, SendError, collect};
use crate::location::{Key, Location, Scheme};
use crate::settings::{CredentialSource, StoreSettings, Timeouts};
use crate::sign::{self, EmptyValue, KeyCache, Scope, UNSIGNED_PAYLOAD, Unsigned};

/// SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// After the store said "denied", which fresh credentials cure only when a role was just changed, how often we ask for them.
const DENIED_REFRESH: Duration = Duration::from_secs(60);

/// After the store said that it does not know the credentials, how often we ask for others.
const REJECTED_REFRESH: Duration = Duration::from_secs(2);

/// Once an operation has been failing this long, a log line says what it waits for.
const SAY_SO: Duration = Duration::from_secs(5);

/// The longest error document that is read, in bytes.
const ERROR_LIMIT: usize = 64 << 10;

/// What is done to a success before it counts, such as comparing checksums.
pub(crate) type Check<'c> = &'c (dyn Fn(&Reply) -> Result<(), Fault> + Send + Sync);

/// The way to one bucket.
pub(crate) struct Channel {
    root: Location,
    dialect: Dialect,
    settings: StoreSettings,
    http: HttpClient,
    credentials: Credentials,
    metadata: Metadata,
    endpoint: OnceCell<Endpoint>,
    keys: KeyCache,
    clock: Clock,
    pub(crate) meter: Meter,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("root", &self.root)
            .field("endpoint", &self.endpoint.get())
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// A way to the bucket of `root`. Nothing is sent yet.
    pub(crate) fn open(root: Location, settings: StoreSettings, http: HttpClient) -> Result<Self> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, "OPEN", root.escaped(), why);
        let dialect = match root.scheme() {
            Scheme::Oss => Dialect::Oss,
            Scheme::S3 => Dialect::S3,
            other => return Err(invalid(format!("{other}:// is not spoken here"))),
        };
        let endpoint = OnceCell::new();
        match resolve(&root, &settings, None) {
            Ok(found) => {
                let _ = endpoint.set(found);
            }
            // The metadata service is asked with the first request.
            Err(Unresolved::NeedsRegion(_)) => {}
            Err(Unresolved::Invalid(why)) => return Err(invalid(why)),
        }
        let credentials = Credentials::new(root.scheme(), &settings)
            .map_err(|error| Error::new(ErrorKind::BadCredentials, "OPEN", root.escaped(), error.to_string()))?;
        let metadata = Metadata::new(root.scheme(), settings.metadata_endpoint.as_deref());
        let clock = Clock::default();
        let meter = Meter::default();
        Ok(Self {
            root,
            dialect,
            settings,
            http,
            credentials,
            metadata,
            endpoint,
            keys: KeyCache::default(),
            clock,
            meter,
        })
    }

    pub(crate) fn root(&self) -> &Location {
        &self.root
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.settings.timeouts
    }

    /// The end of an operation that begins now.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.settings.timeouts.total)
    }

    /// An error about an object of this bucket.
    pub(crate) fn error(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        key: Option<&Key>,
        why: impl Into<String>,
    ) -> Error {
        let target = key.map_or_else(|| self.root.escaped(), |key| self.root.with_key(key.clone()).escaped());
        Error::new(kind, operation, target, why)
    }

    /// For messages: the proxy that requests go through, if they do.
    pub(crate) fn via(&self) -> String {
        self.endpoint.get().map(|endpoint| self.http.via(&endpoint.base)).unwrap_or_default()
    }

    /// Where the bucket is.
    pub(crate) async fn endpoint(&self) -> Result<&Endpoint> {
        self.endpoint
            .get_or_try_init(|| async {
                let invalid = |why: String| self.error(ErrorKind::Invalid, "OPEN", None, why);
                match resolve(&self.root, &self.settings, None) {
                    Ok(found) => Ok(found),
                    Err(Unresolved::Invalid(why)) => Err(invalid(why)),
                    Err(Unresolved::NeedsRegion(why)) => match self.metadata.region().await {
                        Ok(region) => {
                            tracing::info!(bucket = %self.root.escaped(), region, "the region is the instance's own");
                            resolve(&self.root, &self.settings, Some(&region)).map_err(|_| invalid(why))
                        }
                        Err(error) => Err(invalid(format!("{why} ({error})"))),
                    },
                }
            })
            .await
    }

    /// Carries a call out. `check` looks at each success before it counts.
    pub(crate) async fn run(&self, call: &Call<'_>, deadline: Deadline, check: Check<'_>) -> Result<Reply, Failure> {
        if call.key.is_some_and(|key| key.as_str().is_empty()) {
            // Without a key the same request would mean the bucket: DELETE would remove it.
            let error = self.error(ErrorKind::Invalid, call.operation, None, "an object's key cannot be empty");
            return Err(Failure { error, ambiguous: false });
        }
        if let Some(name) = &call.unsendable {
            let why = format!("the value of the header {name} holds characters that cannot be sent");
            let error = self.error(ErrorKind::Invalid, call.operation, call.key, why);
            return Err(Failure { error, ambiguous: false });
        }
        let endpoint = match self.endpoint().await {
            Ok(endpoint) => endpoint,
            Err(error) => return Err(Failure { error, ambiguous: false }),
        };
        // Once for all attempts.
        let hash = self.payload_hash(call, endpoint).await;
        let started = Instant::now();
        let (mut attempts, mut hopeless) = (0, 0);
        let mut ambiguous = false;
        let mut said = false;
        let (mut clock_tried, mut credentials_tried) = (false, false);
        let mut before: Option<Fault> = None;
        loop {
            attempts += 1;
            let (mut fault, context) = match self.attempt(call, &hash, endpoint, deadline, check).await {
                Ok(mut reply) => {
                    reply.ambiguous = ambiguous;
                    if said {
                        tracing::info!(operation = call.operation, attempts, "the store answers again");
                    }
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            ambiguous |= fault.ambiguous;
            let mut remedy = fault.remedy;
            if let Some(context) = context {
                if let Some(date) = context.refusal.skewed_from(context.signed_at).filter(|_| !clock_tried) {
                    clock_tried = true;
                    self.clock.set_to(date, &self.root);
                    remedy = Remedy::Clock;
                } else if let (Some(certain), Some(identity), false) =
                    (context.refusal.wants_credentials(), &context.identity, credentials_tried)
                {
                    credentials_tried = true;
                    let hold = if certain { REJECTED_REFRESH } else { DENIED_REFRESH };
                    if self.credentials.replace(identity, hold).await {
                        remedy = Remedy::Credentials;
                    }
                }
            }
            // Counted apart: attempts that failed in other ways say nothing about it.
            hopeless += u32::from(remedy == Remedy::WaitFew);
            if hopeless >= FEW {
                remedy = Remedy::None;
            }
            let wait = pause(remedy, attempts, fastrand::f64()).filter(|wait| deadline.allows(*wait));
            let forbidden = fault.ambiguous && call.replay == Replay::UnlessAmbiguous;
            let Some(wait) = wait.filter(|_| !forbidden) else {
                // An attempt that the deadline cut short says less than the one before it.
                if let (true, Some(before)) = (fault.cut_short, before) {
                    fault = before;
                }
                let error = self
                    .error(fault.kind, call.operation, call.key, fault.message)
                    .with_attempts(attempts)
                    .lasting(fault.lasting)
                    .with_request_id(fault.request_id.as_deref());
                let error = match fault.status {
                    Some(status) => error.with_status(status.as_u16(), fault.code.as_deref()),
                    None => error,
                };
                return Err(Failure { error, ambiguous });
            };
            if !said && started.elapsed() > SAY_SO {
                said = true;
                let error = self
                    .error(fault.kind.clone(), call.operation, call.key, fault.message.as_str())
                    .with_request_id(fault.request_id.as_deref());
                tracing::warn!(%error, attempts, "still trying");
            } else {
                tracing::debug!(operation = call.operation, attempts, wait = ?wait, cause = fault.message.as_str(), "trying again");
            }
            before = Some(fault);
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        call: &Call<'_>,
        hash: &str,
        endpoint: &Endpoint,
        deadline: Deadline,
        check: Check<'_>,
    ) -> Result<Reply, (Fault, Option<Refused>)> {
        let signed_at = self.clock.now();
        let identity = match self.credentials.get(signed_at).await {
            Ok(identity) => identity,
            Err(error) => return Err((Fault::new(ErrorKind::BadCredentials, error.to_string()), None)),
        };
        let request = self
            .request(call, hash, endpoint, identity.as_deref(), signed_at)
            .map_err(|(kind, why)| (Fault::new(kind, why), None))?;

        let read = self.settings.timeouts.read;
        let exchange = async {
            let response =
                self.http.send(request, read, Some(deadline.instant())).await.map_err(|error| (error, None))?;
            let (head, body) = response.into_parts();
            let success = head.status.is_success();
            if success && call.expect == Expect::Stream {
                return Ok((head, Bytes::new(), Some(body)));
            }
            let limit = if success { xml::LIMIT } else { ERROR_LIMIT };
            let collected = tokio::time::timeout_at(deadline.instant(), collect(body, limit, read)).await;
            match collected.unwrap_or(Err(SendError::Late)) {
                Ok(bytes) => Ok((head, bytes, None)),
                // A refusal is one whatever becomes of its explanation.
                Err(_) if !success => Ok((head, Bytes::new(), None)),
                Err(error) => Err((error, request_id(&head.headers).map(str::to_owned))),
            }
        };
        let (head, bytes, stream) = match exchange.await {
            Ok(parts) => parts,
            Err((SendError::Late, id)) => {
                let total = self.settings.timeouts.total.as_secs_f32();
                let why = format!("no answer within {total} s in all{}", self.via());
                let mut fault = Fault::new(ErrorKind::Unavailable, why);
                fault.ambiguous = true;
                fault.cut_short = true;
                fault.request_id = id;
                return Err((fault, None));
            }
            Err((error, id)) => {
                let mut fault = Fault::broken(&error, &self.via());
                fault.request_id = id;
                return Err((fault, None));
            }
        };
        let refused_late = head.status.is_success() && stream.is_none() && xml::is_error(&bytes);
        if !head.status.is_success() || refused_late {
            if head.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
                return Err((Fault::proxy_wants_credentials(&self.via()), None));
            }
            let refusal = Refusal::read(head.status, &head.headers, &bytes);
            let mut fault = Fault::refused(&refusal, call.condition);
            if refusal.code.is_none() && refusal.request_id.is_none() && !endpoint.secure {
                // Without the marks of a store it may well be the proxy's own answer.
                fault.message.push_str(&self.via());
            }
            if refused_late && fault.kind == ErrorKind::Invalid {
                // InternalError and its like, inside a 200.
                let permanent =
                    matches!(fault.code.as_deref(), Some("InvalidPart" | "InvalidPartOrder" | "EntityTooSmall"));
                if !permanent {
                    fault.kind = ErrorKind::Unavailable;
                    fault.remedy = Remedy::Wait;
                }
            }
            return Err((fault, Some(Refused { refusal, signed_at, identity })));
        }
        let id = request_id(&head.headers).map(str::to_owned);
        let reply = Reply { status: head.status, headers: head.headers, bytes, stream, ambiguous: false };
        match check(&reply) {
            Ok(()) => Ok(reply),
            Err(mut fault) => {
                fault.request_id = id;
                Err((fault, None))
            }
        }
    }

    /// What the signature says of the body.
    async fn payload_hash(&self, call: &Call<'_>, endpoint: &Endpoint) -> Cow<'static, str> {
        if !self.signs_bodies(endpoint) {
            Cow::Borrowed(UNSIGNED_PAYLOAD)
        } else if call.body.is_empty() {
            Cow::Borrowed(EMPTY_SHA256)
        } else {
            Cow::Owned(digest::sha256_hex(&call.body).await)
        }
    }

    /// Whether each request's signature covers its body, by SHA-256, which the store has to check. Under TLS it does not:
    /// encryption protects the body better than a hash that costs as much as the transfer. OSS has no such signature.
    fn signs_bodies(&self, endpoint: &Endpoint) -> bool {
        let signed = self.settings.credentials != CredentialSource::Anonymous;
        self.dialect == Dialect::S3 && !endpoint.secure && signed
    }

    /// Puts a request together and signs it. `hash` is of the body, for S3.
    fn request(
        &self,
        call: &Call<'_>,
        hash: &str,
        endpoint: &Endpoint,
        identity: Option<&Identity>,
        now: SystemTime,
    ) -> Result<Request<Bytes>, (ErrorKind, String)> {
        let key = call.key.map_or("", Key::as_str);
        let empty = if self.dialect == Dialect::Oss { EmptyValue::Bare } else { EmptyValue::WithEquals };
        let pairs: Vec<(&str, &str)> = call.query.iter().map(|(name, value)| (*name, value.as_ref())).collect();
        let query = sign::encode_query(&pairs, empty);
        // The path as it is sent, and behind it in the same buffer the query.
        let mut target = String::with_capacity(endpoint.prefix.len() + key.len() * 2 + query.len() + 1);
        target.push_str(&endpoint.prefix);
        target.extend(sign::encode_path(key));
        // Room for what the signature and the client add, so that the map does not grow.
        let mut headers = HeaderMap::with_capacity(call.headers.len() + 8);
        headers.extend(call.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        if let Some(identity) = identity {
            let time = jiff::Timestamp::try_from(now)
                .map_err(|error| (ErrorKind::Invalid, format!("the clock is beyond reason: {error}")))?;
            let scope = Scope { region: &endpoint.region, time, keys: &self.keys };
            let canonical: Cow<'_, str> = if endpoint.canonical_prefix == endpoint.prefix {
                Cow::Borrowed(&target)
            } else {
                Cow::Owned(format!("{}{}", endpoint.canonical_prefix, &target[endpoint.prefix.len()..]))
            };
            let unsigned = Unsigned {
                method: &call.method,
                path: &canonical,
                query: &query,
                host: &endpoint.host,
                headers: &mut headers,
            };
            let signed = match self.dialect {
                Dialect::Oss => sign::sign_oss(unsigned, identity.signatory(), &scope),
                Dialect::S3 => sign::sign_s3(unsigned, hash, identity.signatory(), &scope),
            };
            signed.map_err(|error| (ErrorKind::BadCredentials, error.to_string()))?;
        }
        headers.insert(HOST, endpoint.host_value.clone());
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query);
        }
        let unusable = |why: String| (ErrorKind::Invalid, format!("the key makes no valid request: {why}"));
        let mut parts = endpoint.base.clone().into_parts();
        let target =
            PathAndQuery::from_maybe_shared(Bytes::from(target)).map_err(|error| unusable(error.to_string()))?;
        parts.path_and_query = Some(target);
        let uri = Uri::from_parts(parts).map_err(|error| unusable(error.to_string()))?;
        let mut request = Request::new(call.body.clone());
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// A refusal and what it was an answer to.
struct Refused {
    refusal: Refusal,
    signed_at: SystemTime,
    identity: Option<std::sync::Arc<Identity>>,
}
