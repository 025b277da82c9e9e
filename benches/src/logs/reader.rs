//! Somebody who follows the log with `batch-agent logs -f`.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, anyhow, ensure};
use tests::double::Double;

use super::row::Seen;
use super::{LOOK, PATIENCE, command_of, writer};

/// What it has printed, and when.
pub struct Followed {
    pub name: &'static str,
    pub seen: Vec<Seen>,
}

/// The program, and who notes what it prints.
pub struct Reader {
    name: &'static str,
    child: Child,
    noting: JoinHandle<std::io::Result<Vec<Seen>>>,
}

impl Reader {
    /// Begins to follow the log of the node whose directories are there, by its URL if there is one.
    pub fn start(
        name: &'static str,
        agent: &Path,
        double: &Double,
        node: &Path,
        url: Option<String>,
    ) -> anyhow::Result<Self> {
        let book = node.join("state/log-book");
        let until = Instant::now() + PATIENCE;
        while !std::fs::read_dir(&book).is_ok_and(|mut entries| entries.next().is_some()) {
            ensure!(Instant::now() < until, "the agent knows of no log");
            std::thread::sleep(LOOK);
        }
        let mut command = command_of(agent, double);
        command.args(["logs", "-f", "--state-dir"]).arg(node.join("state")).args(url).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the agent")?;
        let mut output = child.stdout.take().context("it has a standard output")?;
        let noting = std::thread::spawn(move || {
            let (mut seen, mut length, mut buffer) = (Vec::new(), 0, vec![0; 1 << 20]);
            loop {
                match output.read(&mut buffer)? {
                    0 => return Ok(seen),
                    more => length += more as u64,
                }
                seen.push(Seen { length, at: writer::now(), cpu: 0.0 });
            }
        });
        Ok(Self { name, child, noting })
    }

    /// Waits for the end of the log.
    pub fn finish(mut self) -> anyhow::Result<Followed> {
        let status = self.child.wait()?;
        ensure!(status.success(), "batch-agent logs {}: {status}", self.name);
        let seen = self.noting.join().map_err(|_| anyhow!("nobody has noted what it printed"))??;
        Ok(Followed { name: self.name, seen })
    }
}
