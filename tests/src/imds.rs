//! Doubles of the instance metadata services of Alibaba Cloud and AWS, in the mode that wants a token.
//!
//! They are as strict as the real ones and a little more: the token comes from a PUT with a time to live, everything
//! else is a GET with that token, a request that came through a proxy is refused, and every request is logged, so that
//! a test can see that a client asked no more than it should.
//!
//! ```
//! use tests::double::AccessKey;
//! use tests::imds::Imds;
//!
//! let imds = Imds::aliyun();
//! imds.set_role("worker", &AccessKey::new("STS.id", "secret").with_token("token", std::time::Duration::from_secs(3600)));
//! imds.set("instance/spot/termination-time", Some("2026-11-20T10:00:00Z"));
//! // ... a client at work with imds.endpoint() as the service's address ...
//! assert_eq!(imds.requests().len(), 0);
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response};
use jiff::Timestamp;

use crate::double::AccessKey;
use crate::http_server::Server;

/// Whose metadata service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Alibaba Cloud, whose real address is `http://100.100.100.200`.
    Aliyun,
    /// AWS, whose real address is `http://169.254.169.254`.
    Aws,
}

/// Where most of it is, below the version.
const METADATA: &str = "meta-data/";

impl Cloud {
    fn ttl_header(self) -> &'static str {
        match self {
            Self::Aliyun => "x-aliyun-ecs-metadata-token-ttl-seconds",
            Self::Aws => "x-aws-ec2-metadata-token-ttl-seconds",
        }
    }

    fn token_header(self) -> &'static str {
        match self {
            Self::Aliyun => "x-aliyun-ecs-metadata-token",
            Self::Aws => "x-aws-ec2-metadata-token",
        }
    }

    fn role_folder(self) -> &'static str {
        match self {
            Self::Aliyun => "meta-data/ram/security-credentials/",
            Self::Aws => "meta-data/iam/security-credentials/",
        }
    }

    /// What is answered to a GET without any token.
    fn without_token(self) -> u16 {
        match self {
            Self::Aliyun => 403,
            Self::Aws => 401,
        }
    }
}

/// One request as it came in, and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImdsRequest {
    /// Its HTTP method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The status it was answered with.
    pub status: u16,
}

#[derive(Debug)]
struct State {
    cloud: Cloud,
    /// Below `/latest/`: `meta-data/...`, `dynamic/...`.
    values: BTreeMap<String, String>,
    /// What `/latest/user-data` is.
    user_data: Option<String>,
    /// Tokens that were given out, and until when they count.
    tokens: BTreeMap<String, Instant>,
    tokens_given: u64,
    requests: Vec<ImdsRequest>,
    failing: Option<u16>,
    without_token: bool,
}

/// A running metadata service. It is gone when this is dropped.
#[derive(Debug)]
pub struct Imds {
    state: Arc<Mutex<State>>,
    server: Server,
}

impl Imds {
    /// Alibaba Cloud's, for the instance `i-double` in zone `cn-test-a` of region `cn-test`.
    pub fn aliyun() -> Self {
        Self::start(
            Cloud::Aliyun,
            &[
                ("instance-id", "i-double"),
                ("region-id", "cn-test"),
                ("zone-id", "cn-test-a"),
                ("private-ipv4", "192.168.0.2"),
                ("instance/instance-type", "ecs.g7.large"),
            ],
        )
    }

    /// AWS's, for the instance `i-0double` in zone `xx-test-1a` of region `xx-test-1`.
    pub fn aws() -> Self {
        let imds = Self::start(
            Cloud::Aws,
            &[
                ("instance-id", "i-0double"),
                ("placement/region", "xx-test-1"),
                ("placement/availability-zone", "xx-test-1a"),
                ("local-ipv4", "192.168.0.2"),
                ("instance-type", "m7.large"),
            ],
        );
        let document =
            serde_json::json!({"instanceId": "i-0double", "region": "xx-test-1", "availabilityZone": "xx-test-1a"});
        let document = ("dynamic/instance-identity/document".to_owned(), document.to_string());
        lock(&imds.state).values.extend([document]);
        imds
    }

    fn start(cloud: Cloud, values: &[(&str, &str)]) -> Self {
        let state = Arc::new(Mutex::new(State {
            cloud,
            values: values.iter().map(|(path, value)| (format!("{METADATA}{path}"), (*value).to_owned())).collect(),
            user_data: None,
            tokens: BTreeMap::new(),
            tokens_given: 0,
            requests: Vec::new(),
            failing: None,
            without_token: false,
        }));
        let served = Arc::clone(&state);
        let server = Server::start(move |request| lock(&served).answer(request));
        Self { state, server }
    }

    /// `http://127.0.0.1:PORT`, in place of the real address.
    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Sets or removes what is at `path`, which is relative to `/latest/meta-data/`.
    pub fn set(&self, path: &str, value: Option<&str>) {
        let values = &mut lock(&self.state).values;
        match value {
            Some(value) => values.insert(format!("{METADATA}{path}"), value.to_owned()),
            None => values.remove(&format!("{METADATA}{path}")),
        };
    }

    /// Sets what whoever started the instance has given it, for cloud-init.
    pub fn set_user_data(&self, text: &str) {
        lock(&self.state).user_data = Some(text.to_owned());
    }

    /// Gives the instance a role with these temporary credentials, in place of the role it has.
    pub fn set_role(&self, name: &str, key: &AccessKey) {
        let mut state = lock(&self.state);
        let folder = state.cloud.role_folder();
        state.values.retain(|path, _| !path.starts_with(folder));
        let document = credentials(state.cloud, key).to_string();
        state.values.insert(format!("{folder}{name}"), document);
    }

    /// Takes the role away.
    pub fn remove_role(&self) {
        let mut state = lock(&self.state);
        let folder = state.cloud.role_folder();
        state.values.retain(|path, _| !path.starts_with(folder));
    }

    /// Forgets all tokens, as if their time had come.
    pub fn expire_tokens(&self) {
        lock(&self.state).tokens.clear();
    }

    /// Answers everything with this status, or normally again.
    pub fn fail_with(&self, status: Option<u16>) {
        lock(&self.state).failing = status;
    }

    /// Whether it also answers who brings no token, as instances do unless their owner has forbidden it.
    pub fn answer_without_token(&self, yes: bool) {
        lock(&self.state).without_token = yes;
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<ImdsRequest> {
        lock(&self.state).requests.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `latest`, or the date that a version of the interface is called by.
fn is_version(text: &str) -> bool {
    text == "latest" || text.parse::<jiff::civil::Date>().is_ok()
}

fn iso(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn credentials(cloud: Cloud, key: &AccessKey) -> serde_json::Value {
    let token = key.token.clone().unwrap_or_default();
    let expiration = iso(key.expires.unwrap_or_else(|| SystemTime::now() + Duration::from_secs(6 * 3600)));
    let updated = iso(SystemTime::now());
    match cloud {
        Cloud::Aliyun => serde_json::json!({
            "AccessKeyId": key.id,
            "AccessKeySecret": key.secret,
            "Expiration": expiration,
            "SecurityToken": token,
            "LastUpdated": updated,
            "Code": "Success",
        }),
        Cloud::Aws => serde_json::json!({
            "Code": "Success",
            "LastUpdated": updated,
            "Type": "AWS-HMAC",
            "AccessKeyId": key.id,
            "SecretAccessKey": key.secret,
            "Token": token,
            "Expiration": expiration,
        }),
    }
}

impl State {
    fn answer(&mut self, request: &Request<Bytes>) -> Response<Bytes> {
        let (status, body) = match self.failing {
            Some(status) => (status, String::new()),
            None => match self.look_up(request) {
                Ok(body) => (200, body),
                Err(status) => (status, String::new()),
            },
        };
        self.requests.push(ImdsRequest {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            status,
        });
        let mut response = Response::new(Bytes::from(body));
        // Every status here is one of ours.
        *response.status_mut() = status.try_into().unwrap_or_default();
        response
    }

    fn look_up(&mut self, request: &Request<Bytes>) -> Result<String, u16> {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        // A proxy is asked with the whole URI, and adds a header when it passes a request on.
        if request.uri().authority().is_some() || header("x-forwarded-for").is_some() || header("via").is_some() {
            return Err(403);
        }
        let path = request.uri().path();
        if path == "/latest/api/token" {
            if request.method() != Method::PUT {
                return Err(405);
            }
            let ttl = header(self.cloud.ttl_header()).and_then(|ttl| ttl.parse().ok());
            let ttl = ttl.filter(|ttl| (1..=21_600).contains(ttl)).ok_or(400_u16)?;
            self.tokens_given += 1;
            let token = format!("TOKEN-{:016x}==", self.tokens_given.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            self.tokens.insert(token.clone(), Instant::now() + Duration::from_secs(ttl));
            return Ok(token);
        }
        if request.method() != Method::GET {
            return Err(405);
        }
        match header(self.cloud.token_header()) {
            None if self.without_token => {}
            None => return Err(self.cloud.without_token()),
            Some(token) if self.tokens.get(token).is_none_or(|until| *until < Instant::now()) => return Err(401),
            Some(_) => {}
        }
        // The versions of the interface differ in nothing that is here; `latest` is one of their names.
        let (_, path) =
            path.trim_start_matches('/').split_once('/').filter(|(version, _)| is_version(version)).ok_or(404_u16)?;
        if path == "user-data" {
            return self.user_data.clone().ok_or(404);
        }
        if let Some(value) = self.values.get(path) {
            return Ok(value.clone());
        }
        // A folder lists its names, one per line.
        let folder = if path.ends_with('/') { path.to_owned() } else { format!("{path}/") };
        let mut names: Vec<&str> = self
            .values
            .keys()
            .filter_map(|known| known.strip_prefix(&folder))
            .map(|rest| rest.split_inclusive('/').next().unwrap_or(rest))
            .collect();
        names.dedup();
        if names.is_empty() { Err(404) } else { Ok(names.join("\n")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    fn ask(imds: &Imds, text: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(imds.endpoint().strip_prefix("http://").unwrap()).unwrap();
        let (line, headers) = text.split_once('\n').unwrap_or((text, ""));
        let headers: String = headers.lines().map(|header| format!("{header}\r\n")).collect();
        write!(stream, "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[test]
    fn everything_but_the_token_wants_a_token() {
        for (imds, cloud, missing, region) in
            [(Imds::aliyun(), "aliyun-ecs", 403, "region-id"), (Imds::aws(), "aws-ec2", 401, "placement/region")]
        {
            let get = |path: &str, token: &str| {
                ask(&imds, &format!("GET /latest/meta-data/{path}\nX-{cloud}-metadata-token: {token}"))
            };
            let put =
                |ttl: &str| ask(&imds, &format!("PUT /latest/api/token\nX-{cloud}-metadata-token-ttl-seconds: {ttl}"));
            for bad in ["0", "21601", "", "x", "-1"] {
                assert_eq!(put(bad).0, 400, "{bad:?}");
            }
            assert_eq!(ask(&imds, "PUT /latest/api/token").0, 400);
            assert_eq!(ask(&imds, "GET /latest/api/token").0, 405);
            let (status, token) = put("21600");
            assert_eq!(status, 200);
            assert_eq!(ask(&imds, "GET /latest/meta-data/instance-id").0, missing);
            assert_eq!(get("instance-id", "other").0, 401);
            assert!(get("instance-id", &token).1.starts_with("i-"));
            assert!(get(region, &token).1.contains("test"));
            assert_eq!(get("spot/instance-action", &token).0, 404);
            imds.expire_tokens();
            assert_eq!(get("instance-id", &token).0, 401);
            imds.answer_without_token(true);
            assert_eq!(ask(&imds, "GET /latest/meta-data/instance-id").0, 200);
            assert_eq!(get("instance-id", &token).0, 401, "a bad token is no token");
            imds.answer_without_token(false);
            let (_, token) = put("1");
            std::thread::sleep(Duration::from_millis(1100));
            assert_eq!(get("instance-id", &token).0, 401);
        }
    }

    #[test]
    fn cloud_init_s_versions_and_user_data() {
        let imds = Imds::aws();
        let token = ask(&imds, "PUT /latest/api/token\nX-aws-ec2-metadata-token-ttl-seconds: 60").1;
        let get = |path: &str| ask(&imds, &format!("GET {path}\nX-aws-ec2-metadata-token: {token}"));
        assert_eq!(get("/latest/user-data").0, 404);
        imds.set_user_data("#!/bin/sh\n");
        assert_eq!(get("/2021-03-23/user-data"), (200, "#!/bin/sh\n".to_owned()));
        assert_eq!(get("/2021-03-23/meta-data/instance-id").0, 200);
        for path in ["/newest/user-data", "/2021-03-99/user-data", "/user-data", "/latest/", "/latest/dynamic/fws/"] {
            assert_eq!(get(path).0, 404, "{path}");
        }
        assert_eq!(get("/latest/dynamic/instance-identity"), (200, "document".to_owned()));
        assert_eq!(ask(&imds, "GET /latest/user-data").0, 401);
    }

    #[test]
    fn a_role_is_listed_and_read() {
        for (imds, cloud, folder, secret) in [
            (Imds::aliyun(), "aliyun-ecs", "ram", "AccessKeySecret"),
            (Imds::aws(), "aws-ec2", "iam", "SecretAccessKey"),
        ] {
            let token = ask(&imds, &format!("PUT /latest/api/token\nX-{cloud}-metadata-token-ttl-seconds: 60")).1;
            let get =
                |path: &str| ask(&imds, &format!("GET /latest/meta-data/{path}\nX-{cloud}-metadata-token: {token}"));
            assert_eq!(get(&format!("{folder}/security-credentials/")).0, 404);
            let key = AccessKey::new("STS.id", "hidden").with_token("t", Duration::from_secs(3600));
            imds.set_role("worker", &key);
            assert_eq!(get(&format!("{folder}/security-credentials/")), (200, "worker".to_owned()));
            let (_, document) = get(&format!("{folder}/security-credentials/worker"));
            let document: serde_json::Value = serde_json::from_str(&document).unwrap();
            assert_eq!((&document[secret], &document["Code"]), (&"hidden".into(), &"Success".into()));
            assert!(document["Expiration"].as_str().unwrap().parse::<Timestamp>().is_ok());
            imds.remove_role();
            assert_eq!(get(&format!("{folder}/security-credentials/worker")).0, 404);
            imds.fail_with(Some(503));
            assert_eq!(get("instance-id").0, 503);
            assert_eq!(imds.requests().last().unwrap().path, "/latest/meta-data/instance-id");
        }
    }

    #[test]
    fn what_came_through_a_proxy_is_refused() {
        let imds = Imds::aliyun();
        let put = "X-aliyun-ecs-metadata-token-ttl-seconds: 60";
        assert_eq!(ask(&imds, &format!("PUT http://100.100.100.200/latest/api/token\n{put}")).0, 403);
        assert_eq!(ask(&imds, &format!("PUT /latest/api/token\n{put}\nX-Forwarded-For: 10.0.0.1")).0, 403);
        assert_eq!(ask(&imds, &format!("PUT /latest/api/token\n{put}")).0, 200);
    }
}
