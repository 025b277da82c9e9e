//! The instance's metadata service, of either cloud: credentials of the instance's role, and the region.
//!
//! Both speak the same protocol under different names: a token by `PUT`, then everything by `GET` with the token. It is never
//! asked through a proxy, and a machine that is in no cloud is told so within two seconds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::{CredentialError, Identity};
use crate::http::{HttpClient, SendError, collect};
use crate::location::Scheme;
use crate::secret::Secret;

/// For the first contact. The service is on this host: it answers in milliseconds or is not there.
const CONTACT: Duration = Duration::from_millis(1900);

/// For the connection within that.
const CONNECT: Duration = Duration::from_secs(1);

/// For each further answer; a service that is there may have to fetch a role's credentials first.
const ANSWER: Duration = Duration::from_secs(5);

/// How often a question is asked that the service failed to answer.
const TRIES: u32 = 3;

/// How long we ask the token to live, and after which part of that we get another.
const TOKEN_LIFE: &str = "21600";
const TOKEN_USE: Duration = Duration::from_secs(21_600 - 600);

/// The longest answer.
const LIMIT: usize = 64 << 10;

/// One cloud's names.
struct Names {
    base: &'static str,
    ttl: &'static str,
    token: &'static str,
    roles: &'static str,
    region: &'static str,
}

const ALIBABA: Names = Names {
    base: "http://100.100.100.200",
    ttl: "x-aliyun-ecs-metadata-token-ttl-seconds",
    token: "x-aliyun-ecs-metadata-token",
    roles: "/latest/meta-data/ram/security-credentials/",
    region: "/latest/meta-data/region-id",
};

const AWS: Names = Names {
    base: "http://169.254.169.254",
    ttl: "x-aws-ec2-metadata-token-ttl-seconds",
    token: "x-aws-ec2-metadata-token",
    roles: "/latest/meta-data/iam/security-credentials/",
    region: "/latest/meta-data/placement/region",
};

/// Why the metadata service did not say what it was asked. The message holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Nothing that could be the service answers: the machine is in another cloud or in none, or its network is not up yet.
    #[error("there is no metadata service at {base}: {cause}")]
    Absent {
        /// The service's address.
        base: String,
        /// What became of the attempt.
        cause: String,
    },
    /// It hands out no token, as something else than this cloud's service does.
    #[error("the metadata service at {base} answered {status} when asked for a token")]
    NoToken {
        /// The service's address.
        base: String,
        /// The HTTP status.
        status: StatusCode,
    },
    /// It answered otherwise than it should, also when it was asked again.
    #[error("the metadata service at {base} answered {status} to {path}")]
    Refused {
        /// The service's address.
        base: String,
        /// The HTTP status.
        status: StatusCode,
        /// What was asked for.
        path: String,
    },
    /// It stopped answering.
    #[error("the metadata service at {base}: {cause}")]
    Broken {
        /// The service's address.
        base: String,
        /// What became of the attempt.
        cause: String,
    },
    /// Its address cannot be one.
    #[error("{uri:?} is no address of a metadata service: {cause}")]
    Address {
        /// The address.
        uri: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl From<MetadataError> for CredentialError {
    fn from(error: MetadataError) -> Self {
        Self(error.to_string())
    }
}

/// A client of the instance's metadata service. Cheap to make; connections and the token are kept.
#[derive(Debug)]
pub struct Metadata {
    cloud: Scheme,
    base: String,
    http: HttpClient,
    token: Mutex<Option<(Secret, Instant)>>,
}

impl Metadata {
    /// The service of the cloud that `scheme` belongs to (`oss://` to Alibaba Cloud, any other to AWS), at `endpoint`
    /// (`http://HOST[:PORT]`) if that is given.
    pub fn new(scheme: Scheme, endpoint: Option<&str>) -> Self {
        let base = endpoint.unwrap_or(names(scheme).base).trim_end_matches('/').to_owned();
        Self { cloud: scheme, base, http: HttpClient::direct(CONNECT), token: Mutex::default() }
    }

    /// The credentials of the instance's role. `role` is its name where it is known already.
    pub(super) async fn identity(&self, role: Option<String>) -> Result<Identity, CredentialError> {
        let roles = names(self.cloud).roles;
        let role = match role {
            Some(role) => role,
            None => {
                let listed = self.need(roles).await?;
                let role = listed.lines().next().unwrap_or_default().trim().to_owned();
                if role.is_empty() {
                    return Err(CredentialError("the instance has no role".into()));
                }
                role
            }
        };
        let text = self.need(&format!("{roles}{role}")).await?;
        parse(&text)
            .map_err(|why| CredentialError(format!("the metadata service's credentials of role {role:?}: {why}")))
    }

    /// The region the instance is in.
    pub(crate) async fn region(&self) -> Result<String, CredentialError> {
        let region = self.need(names(self.cloud).region).await?.trim().to_owned();
        let plausible = !region.is_empty() && region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if plausible { Ok(region) } else { Err(CredentialError("the metadata service names no region".into())) }
    }

    async fn need(&self, path: &str) -> Result<String, CredentialError> {
        let found = self.get(path).await?;
        found.ok_or_else(|| CredentialError(format!("the metadata service at {} has no {path}", self.base)))
    }

    /// What is at `path`, such as `/latest/meta-data/instance-id`, as it is; nothing when there is nothing (404).
    ///
    /// It is asked again when the service fails. A service that is not there is noticed within two seconds, one that is
    /// there but silent within about twenty.
    ///
    /// # Errors
    /// When the service is not there, or does not answer as it should.
    pub async fn get(&self, path: &str) -> Result<Option<String>, MetadataError> {
        let base = || self.base.clone();
        let mut tries = 0;
        loop {
            tries += 1;
            let token = self.token().await?;
            let mut request = self.request(Method::GET, path)?;
            if let Some(token) = &token {
                let mut value = HeaderValue::from_str(token.expose()).map_err(|_| MetadataError::Broken {
                    base: base(),
                    cause: "its token is no header value".to_owned(),
                })?;
                value.set_sensitive(true);
                request.headers_mut().insert(HeaderName::from_static(names(self.cloud).token), value);
            }
            match self.ask(request, ANSWER).await {
                Ok((StatusCode::OK, body)) => return Ok(Some(body)),
                Ok((StatusCode::NOT_FOUND, _)) => return Ok(None),
                // The token ended early: the instance was moved or its metadata restarted.
                Ok((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) if tries < TRIES && token.is_some() => {
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Ok((status, _)) if tries >= TRIES || !(status.is_server_error() || status.as_u16() == 429) => {
                    return Err(MetadataError::Refused { base: base(), status, path: path.to_owned() });
                }
                Err(error) if tries >= TRIES => {
                    return Err(MetadataError::Broken { base: base(), cause: error.to_string() });
                }
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(100) * tries).await,
            }
        }
    }

    /// The token to ask with. None when an Alibaba instance hands out none, which is its older, open mode.
    async fn token(&self) -> Result<Option<Secret>, MetadataError> {
        let cached = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((token, _)) = cached.filter(|(_, since)| since.elapsed() < TOKEN_USE) {
            return Ok(Some(token));
        }
        let mut request = self.request(Method::PUT, "/latest/api/token")?;
        let ttl = HeaderName::from_static(names(self.cloud).ttl);
        request.headers_mut().insert(ttl, HeaderValue::from_static(TOKEN_LIFE));
        match self.ask(request, CONTACT).await {
            Ok((StatusCode::OK, body)) => {
                let token = Secret::new(body.trim());
                let now = Instant::now();
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some((token.clone(), now));
                Ok(Some(token))
            }
            Ok((StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _)) if self.cloud == Scheme::Oss => Ok(None),
            Ok((status, _)) => Err(MetadataError::NoToken { base: self.base.clone(), status }),
            Err(error) => Err(MetadataError::Absent { base: self.base.clone(), cause: error.to_string() }),
        }
    }

    fn request(&self, method: Method, path: &str) -> Result<Request<Bytes>, MetadataError> {
        let uri = format!("{}{path}", self.base);
        Request::builder()
            .method(method)
            .uri(&uri)
            .body(Bytes::new())
            .map_err(|error| MetadataError::Address { uri: uri.clone(), cause: error.to_string() })
    }

    async fn ask(&self, request: Request<Bytes>, limit: Duration) -> Result<(StatusCode, String), SendError> {
        let asking = async {
            let response = self.http.send(request, limit, None).await?;
            let status = response.status();
            let body = collect(response.into_body(), LIMIT, limit).await?;
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::time::timeout(limit, asking).await.unwrap_or(Err(SendError::Timeout(limit)))
    }
}

fn names(scheme: Scheme) -> &'static Names {
    if scheme == Scheme::Oss { &ALIBABA } else { &AWS }
}

/// The answer of both clouds; the secret and the token have two names each.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    code: String,
    #[serde(default)]
    access_key_id: String,
    #[serde(default, alias = "AccessKeySecret")]
    secret_access_key: Secret,
    #[serde(default, alias = "SecurityToken")]
    token: Secret,
    #[serde(default)]
    expiration: String,
}

fn parse(text: &str) -> Result<Identity, String> {
    // serde_json's messages quote no values of the right type, but could quote a secret that is a number, so they are not shown.
    let answer: Answer = serde_json::from_str(text).map_err(|error| {
        format!("not the JSON that was expected, at line {} column {}", error.line(), error.column())
    })?;
    if !answer.code.is_empty() && answer.code != "Success" {
        return Err(format!("code {:?}", answer.code));
    }
    if answer.access_key_id.is_empty() || answer.secret_access_key.is_empty() {
        return Err("no access key in it".to_owned());
    }
    let end: jiff::Timestamp =
        answer.expiration.parse().map_err(|_| format!("expiration {:?} is no time", answer.expiration))?;
    Ok(Identity {
        access_key_id: answer.access_key_id,
        secret: answer.secret_access_key,
        token: Some(answer.token).filter(|token| !token.is_empty()),
        expires: Some(SystemTime::from(end)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each request by the first rule whose text is in it; records what was asked.
    async fn serve(rules: Vec<(&'static str, u16, String)>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Ok(Ok((mut socket, _))) =
                tokio::time::timeout(Duration::from_millis(500), listener.accept()).await
            {
                let mut head = vec![0; 8192];
                let n = socket.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..n]).into_owned();
                let (_, status, body) = rules.iter().find(|(text, _, _)| head.contains(text)).unwrap();
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                socket.write_all(answer.as_bytes()).await.unwrap();
                seen.push(head);
            }
            seen
        });
        (base, server)
    }

    #[tokio::test]
    async fn a_ram_role_in_token_mode() {
        let end = "2037-01-02T03:04:05Z";
        let (base, server) = serve(vec![
            ("PUT /latest/api/token", 200, "the-token".into()),
            ("security-credentials/ ", 200, "my-role\n".into()),
            (
                "security-credentials/my-role",
                200,
                format!(
                    r#"{{"Code":"Success","AccessKeyId":"STS.x","AccessKeySecret":"s3cret","SecurityToken":"tok","Expiration":"{end}","LastUpdated":"x"}}"#
                ),
            ),
            ("region-id", 200, "cn-beijing".into()),
        ])
        .await;
        let metadata = Metadata::new(Scheme::Oss, Some(&base));
        let identity = metadata.identity(None).await.unwrap();
        assert_eq!((identity.access_key_id.as_str(), identity.secret.expose()), ("STS.x", "s3cret"));
        assert_eq!(identity.token.unwrap().expose(), "tok");
        assert_eq!(identity.expires.unwrap(), SystemTime::from(end.parse::<jiff::Timestamp>().unwrap()));
        assert_eq!(metadata.region().await.unwrap(), "cn-beijing");
        let seen = server.await.unwrap();
        assert_eq!(seen.len(), 4, "one token for all: {seen:?}");
        assert!(seen[0].contains("x-aliyun-ecs-metadata-token-ttl-seconds: 21600\r\n"), "{}", seen[0]);
        assert!(seen[1..].iter().all(|head| head.contains("x-aliyun-ecs-metadata-token: the-token\r\n")), "{seen:?}");
    }

    #[tokio::test]
    async fn an_iam_role_and_an_instance_without_one() {
        let (base, _server) = serve(vec![
            ("PUT /latest/api/token", 200, "t".into()),
            ("security-credentials/r", 200, r#"{"Code":"Success","AccessKeyId":"ASIA","SecretAccessKey":"s","Token":"t","Expiration":"2037-01-02T03:04:05Z"}"#.into()),
            ("security-credentials/ ", 404, String::new()),
        ])
        .await;
        let metadata = Metadata::new(Scheme::S3, Some(&base));
        assert_eq!(metadata.identity(Some("r".into())).await.unwrap().access_key_id, "ASIA");
        let error = metadata.identity(None).await.unwrap_err();
        assert!(error.0.contains("has no /latest/meta-data/iam"), "{error}");
    }

    #[tokio::test]
    async fn no_service_is_an_error_and_soon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = format!("http://{}", listener.local_addr().unwrap());
        let error = Metadata::new(Scheme::Oss, Some(&silent)).region().await.unwrap_err();
        assert!(error.0.contains("there is no metadata service"), "{error}");
    }

    #[test]
    fn bad_answers_are_named_without_their_secrets() {
        for (text, why) in [
            ("<html>", "JSON"),
            (r#"{"Code":"Failed"}"#, "Failed"),
            (r#"{"AccessKeyId":"a","SecretAccessKey":12345,"Expiration":"x"}"#, "JSON"),
            (r#"{"AccessKeyId":"a"}"#, "no access key"),
            (r#"{"AccessKeyId":"a","SecretAccessKey":"hunter2","Expiration":"x"}"#, "is no time"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("hunter2") && !error.contains("12345"), "{error}");
        }
    }
}
