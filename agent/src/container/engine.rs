//! A container engine by its HTTP interface, which Docker made and Podman speaks, too.
//!
//! Not by its command line: credentials and variables would have to go through arguments and files, every answer would be text to
//! be guessed at, the engine's failures and the program's would share one exit status, and a Go program of some 50 MB would stand
//! beside each task. Not by `bollard` either: it is asynchronous, which the shim is not, and brings generated types for all of the
//! interface, of which a dozen calls are used here.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::EngineError;
use super::http::{self, Answer, Body, Hangup, Request};

/// Where engines listen.
pub const SOCKETS: [&str; 3] = ["/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"];

/// The newest version of the interface that this code was written for; engines speak older ones on request.
const NEWEST: (u32, u32) = (1, 47);

/// How long an engine may be silent over a small question.
const SILENCE: Duration = Duration::from_secs(60);

/// How long it may be silent over making, starting or removing a container: a loaded machine's disk does that.
const LONG_SILENCE: Duration = Duration::from_secs(300);

/// Whose engine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Maker {
    /// Docker, or whatever else speaks its interface.
    Docker,
    /// Podman.
    Podman,
}

/// A container engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Where it listens.
    pub socket: PathBuf,
    /// Whose it is.
    pub maker: Maker,
    /// The version of the interface that is spoken with it: `1.41`.
    version: String,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.maker {
            Maker::Docker => "Docker",
            Maker::Podman => "Podman",
        };
        write!(f, "{name} at {}", self.socket.display())
    }
}

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id, which no other image ever has.
    pub id: String,
    /// Its own environment, `NAME=value`.
    pub environment: Vec<String>,
}

impl Image {
    /// The value of a variable of its own.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
    }
}

/// How a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct State {
    /// `created`, `running`, `exited`, ...
    pub status: String,
    pub running: bool,
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Its main process on the host; 0 when there is none.
    pub pid: i32,
    pub exit_code: i32,
    /// Why it could not be started.
    pub error: String,
    /// When it was started and when it ended, as the engine's clock has it; long ago when it was not.
    pub started_at: String,
    pub finished_at: String,
}

impl State {
    /// Whether it has not been started.
    pub(super) fn is_new(&self) -> bool {
        !self.running && matches!(self.status.as_str(), "created" | "configured" | "initialized")
    }

    /// Whether it ran and runs no more.
    pub(super) fn is_over(&self) -> bool {
        !self.running
            && !matches!(self.status.as_str(), "created" | "configured" | "initialized" | "restarting" | "stopping")
    }
}

/// What is at a path in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Directory,
    /// Where it leads, as the engine says it.
    Link(PathBuf),
    Other,
}

/// Takes in what an engine says while it works: each a JSON object.
pub(super) type Progress<'a> = &'a mut dyn FnMut(&Value);

impl Engine {
    /// The engine that listens on `socket`, or on the first of the usual ones that answers.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(socket: Option<&Path>) -> Result<Self, EngineError> {
        let looked: Vec<PathBuf> = match socket {
            Some(socket) => vec![socket.to_owned()],
            None => SOCKETS.map(PathBuf::from).to_vec(),
        };
        let mut problem = None;
        for socket in looked.iter().filter(|socket| socket.exists()) {
            match Self::at(socket) {
                Ok(engine) => return Ok(engine),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or(EngineError::Missing { looked }))
    }

    fn at(socket: &Path) -> Result<Self, EngineError> {
        let mut engine = Self { socket: socket.to_owned(), maker: Maker::Docker, version: String::new() };
        let answer = engine.call("answer", "GET", "/_ping", Body::None, SILENCE)?;
        if answer.header("libpod-api-version").is_some() {
            engine.maker = Maker::Podman;
        }
        let theirs = answer.header("api-version").and_then(version).unwrap_or(NEWEST);
        let (major, minor) = theirs.min(NEWEST);
        engine.version = format!("/v{major}.{minor}");
        Ok(engine)
    }

    /// The directory in which it keeps images and containers.
    pub(super) fn root(&self) -> Result<PathBuf, EngineError> {
        let info = self.ask("say where its files are", "GET", "/info", Body::None)?;
        Ok(info["DockerRootDir"].as_str().unwrap_or("/").into())
    }

    /// The image of that name, if the engine has it.
    pub(super) fn image(&self, name: &str) -> Result<Option<Image>, EngineError> {
        let action = format!("look for the image {name}");
        match self.ask(&action, "GET", &format!("/images/{name}/json"), Body::None) {
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
            Ok(image) => {
                let nonsense = || EngineError::Nonsense { action, problem: "no id in it".to_owned() };
                let id = image["Id"].as_str().ok_or_else(nonsense)?.to_owned();
                let variables = image["Config"]["Env"].as_array().into_iter().flatten();
                let environment = variables.filter_map(|text| text.as_str().map(str::to_owned)).collect();
                Ok(Some(Image { id, environment }))
            }
        }
    }

    /// Has it pull an image; `tag` may be a digest. The `login` is a header's value. What it says on the way goes to `progress`;
    /// failures are among it.
    pub(super) fn pull(
        &self,
        (name, tag): (&str, &str),
        login: Option<&str>,
        silence: Duration,
        abort: &dyn Fn(Hangup),
        progress: Progress<'_>,
    ) -> Result<(), EngineError> {
        let path = format!("/images/create?fromImage={}&tag={}", encoded(name), encoded(tag));
        let login = login.map(|login| ("X-Registry-Auth", login));
        let request = Request { method: "POST", path: &path, headers: login.as_slice() };
        let action = format!("pull the image {name}");
        let mut stream = self.connect(Some(silence))?;
        abort(self.io(Hangup::of(&stream))?);
        self.io(self.send(&mut stream, request, Body::None))?;
        self.listen(&action, stream, progress)
    }

    /// Gives it images as an archive in Docker's own form.
    pub(super) fn load(
        &self,
        archive: &mut dyn Read,
        abort: &dyn Fn(Hangup),
        progress: Progress<'_>,
    ) -> Result<(), EngineError> {
        let request = Request { method: "POST", path: "/images/load?quiet=1", headers: &[] };
        let mut stream = self.connect(Some(LONG_SILENCE))?;
        abort(self.io(Hangup::of(&stream))?);
        let sent = self.send(&mut stream, request, Body::Tar(archive));
        // An engine that finds the archive bad hangs up in the middle of it; its reason is more than our broken pipe.
        match (sent, self.listen("load the image", stream, progress)) {
            (Ok(()), listened) => listened,
            (Err(_), Err(refused @ EngineError::Refused { .. })) => Err(refused),
            (Err(error), _) => self.io(Err(error)),
        }
    }

    /// Gives an image another name.
    pub(super) fn tag(&self, id: &str, (name, tag): (&str, &str)) -> Result<(), EngineError> {
        let path = format!("/images/{id}/tag?repo={}&tag={}", encoded(name), encoded(tag));
        self.call(&format!("name an image {name}:{tag}"), "POST", &path, Body::None, SILENCE).map(drop)
    }

    /// Makes a container and answers with its id.
    pub(super) fn create(&self, name: &str, container: &Value) -> Result<String, EngineError> {
        self.made("make the container", &format!("/containers/create?name={name}"), container)
    }

    /// Asks for something to be made and answers with its id.
    pub(super) fn made(&self, action: &str, path: &str, wanted: &Value) -> Result<String, EngineError> {
        let answer = self.call(action, "POST", path, Body::Json(wanted), LONG_SILENCE)?;
        let made = self.parsed(action, answer)?;
        made["Id"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| EngineError::Nonsense { action: action.to_owned(), problem: "no id in it".to_owned() })
    }

    /// What it says of something.
    pub(super) fn look(&self, path: &str) -> Result<Value, EngineError> {
        self.ask("say what there is", "GET", path, Body::None)
    }

    /// Has it do something of which there is nothing to be said.
    pub(super) fn tell(&self, action: &str, path: &str) -> Result<(), EngineError> {
        self.call(action, "POST", path, Body::None, SILENCE).map(drop)
    }

    /// Removes an image, unless it is not there. What others use of it stays.
    pub(super) fn remove_image(&self, image: &str) -> Result<(), EngineError> {
        match self.call("remove the image", "DELETE", &format!("/images/{image}?force=1"), Body::None, LONG_SILENCE) {
            Err(error) if error.is_missing() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Begins to start it: what is answered says [`started`](Self::started). Meanwhile it can be looked at.
    pub(super) fn start(&self, container: &str) -> Result<UnixStream, EngineError> {
        let path = format!("/containers/{container}/start");
        let mut stream = self.connect(Some(LONG_SILENCE))?;
        self.io(self.send(&mut stream, Request { method: "POST", path: &path, headers: &[] }, Body::None))?;
        Ok(stream)
    }

    /// Waits until it is started. The words of a refusal say whether the program is to blame.
    pub(super) fn started(&self, starting: UnixStream) -> Result<(), EngineError> {
        let answer = self.io(http::answer(starting, false))?;
        match self.checked("start the container", answer) {
            // Running already.
            Err(EngineError::Refused { status: 304, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// How the container is; `None` when there is none of that name.
    pub(super) fn state(&self, container: &str) -> Result<Option<State>, EngineError> {
        let action = "look at the container";
        let mut answer = match self.ask(action, "GET", &format!("/containers/{container}/json"), Body::None) {
            Err(error) if error.is_missing() => return Ok(None),
            other => other?,
        };
        serde_json::from_value(answer["State"].take())
            .map(Some)
            .map_err(|error| EngineError::Nonsense { action: action.to_owned(), problem: error.to_string() })
    }

    /// What the container prints from now on, as frames; see [`Output`](super::output::Output).
    pub(super) fn attach(&self, container: &str) -> Result<Answer, EngineError> {
        let path = format!("/containers/{container}/attach?stream=1&stdout=1&stderr=1");
        self.talk("show what the container prints", &path, None)
    }

    /// Turns a request into a conversation with a program.
    pub(super) fn talk(&self, action: &str, path: &str, wanted: Option<&Value>) -> Result<Answer, EngineError> {
        let headers = [("Connection", "Upgrade"), ("Upgrade", "tcp")];
        let request = Request { method: "POST", path, headers: &headers };
        // A program may be silent for days; reading is preceded by polling.
        let mut stream = self.connect(None)?;
        self.io(self.send(&mut stream, request, wanted.map_or(Body::None, Body::Json)))?;
        self.io(stream.set_read_timeout(Some(SILENCE)))?;
        self.checked(action, self.io(http::answer(stream, false))?)
    }

    /// What the engine has kept of what the container has printed, as frames; with what it prints from then on, if that `follows`.
    pub(super) fn kept(&self, container: &str, follows: bool) -> Result<Answer, EngineError> {
        let follow = u8::from(follows);
        let path = format!("{}/containers/{container}/logs?stdout=1&stderr=1&follow={follow}", self.version);
        let mut stream = self.connect(Some(LONG_SILENCE))?;
        self.io(http::ask_for_stream(&mut stream, &path))?;
        self.checked("show what the container has printed", self.io(http::answer(stream, false))?)
    }

    /// Whether its containers go on while it is started anew.
    pub(super) fn spares_containers(&self) -> bool {
        let lives_on =
            || self.ask("say how it is set up", "GET", "/info", Body::None).ok()?["LiveRestoreEnabled"].as_bool();
        lives_on().unwrap_or(false)
    }

    /// Whether the container was sent a signal through the engine, by somebody or by the engine itself.
    pub(super) fn has_signalled(&self, container: &str) -> Result<bool, EngineError> {
        let filter = json!({ "container": [container], "event": ["kill"] }).to_string();
        let now = jiff::Timestamp::now();
        let until = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
        let path = format!("/events?since=1&until={until}&filters={}", encoded(&filter));
        let answer = self.call("say what has happened to the container", "GET", &path, Body::None, SILENCE)?;
        Ok(!self.io(answer.whole())?.trim_ascii().is_empty())
    }

    /// Asks to be told when the container has ended: the answer comes then.
    pub(super) fn wait(&self, container: &str) -> Result<UnixStream, EngineError> {
        let path = format!("/containers/{container}/wait?condition=not-running");
        let request = Request { method: "POST", path: &path, headers: &[] };
        let mut stream = self.connect(Some(SILENCE))?;
        self.io(self.send(&mut stream, request, Body::None))?;
        Ok(stream)
    }

    /// Sends a signal to the container's main process. One that has ended, or is not there, needs none.
    pub(super) fn kill(&self, container: &str, signal: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{container}/kill?signal={signal}");
        match self.call("signal the container", "POST", &path, Body::None, SILENCE) {
            Err(EngineError::Refused { status: 404 | 409, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends the container, if it runs, and removes it with all that was its own. One that is not there is a success.
    ///
    /// # Errors
    /// When it stays.
    pub fn remove(&self, container: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{container}?force=1&v=1");
        match self.call("remove the container", "DELETE", &path, Body::None, LONG_SILENCE) {
            Err(error) if error.is_missing() => Ok(()),
            other => other.map(drop),
        }
    }

    /// What is at a path in the container's own files. Links on the way are followed, the last one is not.
    pub(super) fn entry(&self, container: &str, path: &Path) -> Result<Option<Entry>, EngineError> {
        use base64::Engine as _;
        let action = format!("look at {} in the image", path.display());
        let url = format!("/containers/{container}/archive?path={}", encoded(&path.to_string_lossy()));
        let answer = match self.call(&action, "HEAD", &url, Body::None, SILENCE) {
            Err(error) if error.is_missing() => return Ok(None),
            other => other?,
        };
        let nonsense = |problem: String| EngineError::Nonsense { action: action.clone(), problem };
        let header = answer.header("x-docker-container-path-stat");
        let header = header.ok_or_else(|| nonsense("no description of the file".to_owned()))?;
        let text = base64::engine::general_purpose::STANDARD.decode(header);
        let text = text.map_err(|error| nonsense(error.to_string()))?;
        let stat: PathStat = serde_json::from_slice(&text).map_err(|error| nonsense(error.to_string()))?;
        Ok(Some(if stat.mode & PathStat::LINK != 0 {
            Entry::Link(stat.link_target)
        } else if stat.mode & PathStat::DIRECTORY != 0 {
            Entry::Directory
        } else {
            Entry::Other
        }))
    }

    /// A tar archive of what is at a path in the container's own files.
    pub(super) fn fetch(&self, container: &str, path: &Path) -> Result<Option<Answer>, EngineError> {
        let url = format!("/containers/{container}/archive?path={}", encoded(&path.to_string_lossy()));
        let action = format!("read {} in the container", path.display());
        match self.call(&action, "GET", &url, Body::None, LONG_SILENCE) {
            Err(error) if error.is_missing() => Ok(None),
            other => other.map(Some),
        }
    }

    fn connect(&self, silence: Option<Duration>) -> Result<UnixStream, EngineError> {
        self.io(http::connect(&self.socket, silence))
    }

    fn io<T>(&self, result: io::Result<T>) -> Result<T, EngineError> {
        result.map_err(|source| EngineError::Unreachable { socket: self.socket.clone(), source })
    }

    fn send(&self, stream: &mut UnixStream, request: Request<'_>, body: Body<'_>) -> io::Result<()> {
        let path = format!("{}{}", self.version, request.path);
        http::send(stream, Request { path: &path, ..request }, body)
    }

    /// Asks a question whose answer is one JSON document.
    fn ask(&self, action: &str, method: &str, path: &str, body: Body<'_>) -> Result<Value, EngineError> {
        let answer = self.call(action, method, path, body, SILENCE)?;
        self.parsed(action, answer)
    }

    fn parsed(&self, action: &str, answer: Answer) -> Result<Value, EngineError> {
        let body = self.io(answer.whole())?;
        serde_json::from_slice(&body)
            .map_err(|error| EngineError::Nonsense { action: action.to_owned(), problem: error.to_string() })
    }

    fn call(
        &self,
        action: &str,
        method: &str,
        path: &str,
        body: Body<'_>,
        silence: Duration,
    ) -> Result<Answer, EngineError> {
        let mut stream = self.connect(Some(silence))?;
        self.io(self.send(&mut stream, Request { method, path, headers: &[] }, body))?;
        let answer = self.io(http::answer(stream, method == "HEAD"))?;
        self.checked(action, answer)
    }

    /// The answer, if it is not a refusal.
    fn checked(&self, action: &str, answer: Answer) -> Result<Answer, EngineError> {
        if answer.status == 101 || (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let status = answer.status;
        let body = answer.whole().unwrap_or_default();
        let message = match serde_json::from_slice::<Value>(&body) {
            Ok(Value::Object(said)) => said.get("message").and_then(Value::as_str).unwrap_or_default().to_owned(),
            _ => String::from_utf8_lossy(&body).into_owned(),
        };
        let message = if message.trim().is_empty() { format!("HTTP status {status}") } else { one_line(&message) };
        Err(EngineError::Refused { action: action.to_owned(), status, message })
    }

    /// Hears what it says while it works, object by object, to the end.
    fn listen(&self, action: &str, stream: UnixStream, progress: Progress<'_>) -> Result<(), EngineError> {
        let answer = self.checked(action, self.io(http::answer(stream, false))?)?;
        for said in serde_json::Deserializer::from_reader(answer).into_iter::<Value>() {
            let said = match said {
                Ok(said) => said,
                Err(error) if error.is_io() => return self.io(Err(error.into())),
                Err(error) => {
                    return Err(EngineError::Nonsense { action: action.to_owned(), problem: error.to_string() });
                }
            };
            if let Some(problem) = said["error"].as_str() {
                let (action, message) = (action.to_owned(), one_line(problem));
                return Err(EngineError::Refused { action, status: 500, message });
            }
            progress(&said);
        }
        Ok(())
    }
}

/// As the engine describes a file, by Go's idea of a mode.
#[derive(Deserialize)]
struct PathStat {
    mode: u32,
    #[serde(default, rename = "linkTarget")]
    link_target: PathBuf,
}

impl PathStat {
    const DIRECTORY: u32 = 1 << 31;
    const LINK: u32 = 1 << 27;
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Text for a query, every byte that could mean something there encoded.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b'~');
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// An engine's words on one line, safe for a terminal and of bounded length.
fn one_line(text: &str) -> String {
    const MOST: usize = 2000;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown: String = words.chars().map(|c| if c.is_control() { '?' } else { c }).take(MOST).collect();
    if shown.len() < words.len() {
        shown.push_str("...");
    }
    shown
}

/// A container that is only looked into and never started.
pub(super) fn to_look_into(image: &str) -> Value {
    json!({ "Image": image, "Entrypoint": ["/"], "NetworkDisabled": true, "Labels": { super::LABEL: "" } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_queries() {
        assert_eq!((version("1.41"), version("1.9"), version("x")), (Some((1, 41)), Some((1, 9)), None));
        assert_eq!(encoded("localhost:5000/a b&c=ü"), "localhost%3A5000/a%20b%26c%3D%C3%BC");
        assert_eq!(one_line("a\n\tb\u{1b}[31m"), "a b?[31m");
    }
}
