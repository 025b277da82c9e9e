//! An S3 server that is not ours: `moto` from PyPI, on a free port of 127.0.0.1.
//!
//! It does not check signatures, but its conditional PUT, multipart and listing are somebody else's reading of the
//! protocol, and that is what it is here for.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

/// A running server. Dropping it kills it; if the test process dies without dropping it, the server notices that the
/// pipe to its standard input is gone, and ends by itself.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    endpoint: String,
}

impl Moto {
    /// Starts a server without buckets.
    ///
    /// # Panics
    /// When there is no Python environment (see [`python`](crate::python)) or the server does not come up.
    pub fn start() -> Self {
        let mut child = crate::python::script("moto_server.py")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("moto cannot be started: {error}"));
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            // An error leaves the line empty, which is reported below.
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let moto = Self { child, endpoint: line.trim().to_owned() };
        assert!(moto.endpoint.starts_with("http://127.0.0.1:"), "moto did not say where it listens, but {line:?}");
        moto
    }

    /// `http://127.0.0.1:PORT`. Any credentials will do, with the region `us-east-1`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It fails only if the process is gone already; `wait` then takes its exit status.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
