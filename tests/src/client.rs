//! The REST client in a process of its own, for everything that it takes from its environment: proxies, CA certificates,
//! credentials. A test's own environment is shared by all tests of its process and cannot be changed.

use std::process::{Command, Stdio};

use crate::{double, programs};

/// A call of the program `store-client`, with nothing in its environment but what it is given.
#[derive(Debug)]
pub struct StoreClient(Command);

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Whether all went well.
    pub success: bool,
    /// What it printed: the bytes of the object it read.
    pub stdout: Vec<u8>,
    /// The error, on one line. Empty on success.
    pub error: String,
    /// Everything else that it and the libraries in it said, at the most talkative level.
    pub log: String,
}

impl StoreClient {
    /// A client of `oss://` and `s3://` at `endpoint`, with the double's default key and region.
    pub fn new(endpoint: &str) -> Self {
        let mut command = Command::new(programs::path("store-client"));
        command.env_clear().stdin(Stdio::null());
        command.envs(double::environment(endpoint));
        Self(command)
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Takes a variable out of its environment.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.0.env_remove(name);
        self
    }

    /// Runs the conformance suite on a location, such as `oss://test-bucket/`.
    pub fn conform(self, location: &str) -> Ended {
        self.run(&["conform", location])
    }

    /// Reads an object.
    pub fn read(self, location: &str) -> Ended {
        self.run(&["read", location])
    }

    /// Writes `size` bytes that [`sample`](oss::conformance::sample) makes of the seed 1; in parts of `part` bytes if there is a size for them.
    pub fn write(self, location: &str, size: usize, part: Option<usize>) -> Ended {
        let (size, part) = (size.to_string(), part.map(|part| part.to_string()));
        let mut arguments = vec!["write", location, &size];
        arguments.extend(part.as_deref());
        self.run(&arguments)
    }

    fn run(mut self, arguments: &[&str]) -> Ended {
        let output = self.0.args(arguments).output().expect("store-client starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let (mut error, mut log) = (String::new(), String::new());
        for line in stderr.lines() {
            match line.strip_prefix(ERROR) {
                Some(text) => error.push_str(text),
                None => {
                    log.push_str(line);
                    log.push('\n');
                }
            }
        }
        Ended { success: output.status.success(), stdout: output.stdout, error, log }
    }
}

/// What the program's error begins with, which nothing in its log does.
pub const ERROR: &str = "store-client: ";

impl Ended {
    /// Fails unless all went well.
    ///
    /// # Panics
    /// When it did not; with what it said.
    #[track_caller]
    pub fn assert_success(self) -> Self {
        let tail: Vec<&str> = self.log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        assert!(self.success, "{}\n{}", self.error, tail.join("\n"));
        self
    }
}
