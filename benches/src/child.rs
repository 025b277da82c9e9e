//! What the benchmark does in processes of its own: the program starts itself with these arguments. Not for people.
//!
//! Small files are read by processes because that is how jobs read them; mappings are read in one because a mount that fails
//! would take the benchmark down with it; and the daemon path's ceiling is a process because a mount's program is.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

use crate::cleanup::die_with_parent;
use crate::content::Object;
use crate::files::{open, read_mapped};

/// The first argument of such a process.
pub const FLAG: &str = "--as-child";

/// What a process of the benchmark does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Reads a file through a mapping and prints the seconds that it took.
    Map(PathBuf),
    /// Opens, reads and closes some of the files `ROOT/tile-NNNNN.exr`.
    Files { root: PathBuf, share: Share },
    /// Serves one object from memory at `target`, until it is unmounted.
    Daemon { target: PathBuf, object: Object },
}

/// Every `step`th of `count` files, beginning with `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Number of the first file.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// 1 for neighbours.
    pub step: u64,
}

impl Share {
    /// The numbers of its files, in the order they are read.
    pub fn numbers(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |index| self.first + index * self.step)
    }
}

/// The name of a small file.
pub fn small_file(number: u64) -> String {
    format!("tile-{number:05}.exr")
}

/// Length of every small file in bytes.
pub const SMALL_FILE: u64 = 64 << 10;

impl Task {
    /// The task that a command line names, if it names one.
    ///
    /// # Errors
    /// When it names one and is not understood.
    pub fn of(arguments: &[OsString]) -> anyhow::Result<Option<Self>> {
        if arguments.first().is_none_or(|first| first != FLAG) {
            return Ok(None);
        }
        let path = |index: usize| arguments.get(index).map(PathBuf::from).context("an argument is missing");
        let number = |index: usize| -> anyhow::Result<u64> {
            let text = arguments.get(index).and_then(|text| text.to_str()).context("an argument is missing")?;
            text.parse().with_context(|| format!("{text:?} is no number"))
        };
        Ok(Some(match arguments.get(1).and_then(|kind| kind.to_str()) {
            Some("map") => Self::Map(path(2)?),
            Some("files") => {
                let share = Share { first: number(3)?, count: number(4)?, step: number(5)? };
                Self::Files { root: path(2)?, share }
            }
            Some("daemon") => Self::Daemon { target: path(2)?, object: Object::from_parts(number(3)?, number(4)?) },
            _ => bail!("{FLAG} is for the benchmark itself"),
        }))
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![FLAG.into()];
        match self {
            Self::Map(path) => arguments.extend(["map".into(), path.into()]),
            Self::Files { root, share } => {
                arguments.extend(["files".into(), root.into()]);
                arguments.extend([share.first, share.count, share.step].map(|number| number.to_string().into()));
            }
            Self::Daemon { target, object } => {
                arguments.extend(["daemon".into(), target.into()]);
                arguments.extend([object.size, object.seed()].map(|number| number.to_string().into()));
            }
        }
        arguments
    }

    /// Does it, in the process that was started for it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Map(path) => {
                let begun = Instant::now();
                read_mapped(&path)?;
                println!("{}", begun.elapsed().as_secs_f64());
                Ok(())
            }
            Self::Files { root, share } => {
                let mut buffer = Vec::with_capacity(usize::try_from(SMALL_FILE)? + 1);
                for number in share.numbers() {
                    buffer.clear();
                    let path = root.join(small_file(number));
                    let read = open(&path)?.read_to_end(&mut buffer);
                    let read = read.with_context(|| format!("cannot read {}", path.display()))?;
                    ensure!(u64::try_from(read)? == SMALL_FILE, "{} has {read} bytes", path.display());
                }
                Ok(())
            }
            Self::Daemon { target, object } => crate::daemon::serve(&target, object),
        }
    }

    /// The command that does it in another process, which ends with ours. To be started from the main thread.
    ///
    /// # Errors
    /// When this program does not know where it is.
    pub fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new("/proc/self/exe");
        command.args(self.arguments()).stdin(Stdio::null());
        die_with_parent(&mut command);
        Ok(command)
    }
}

/// Reads a file through a mapping, in a process of its own, and returns the seconds that it took.
///
/// # Errors
/// Those of the file system; the process dying of one.
pub fn map(path: &Path) -> anyhow::Result<f64> {
    let output = Task::Map(path.to_owned()).command()?.output().context("cannot start a reader")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "the reader of {} ended: {} {said}", path.display(), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("the reader said {text:?}"))
}

/// Reads small files by several processes at once and waits for all of them.
///
/// # Errors
/// The first error of any.
pub fn read_files(root: &Path, shares: &[Share]) -> anyhow::Result<()> {
    let mut readers = Vec::new();
    let mut outcome = Ok(());
    for &share in shares {
        let task = Task::Files { root: root.to_owned(), share };
        match task.command().and_then(|mut command| {
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start a reader")
        }) {
            Ok(reader) => readers.push(reader),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    // All are waited for, whatever one of them says.
    for reader in readers {
        let ended = reader.wait_with_output().context("cannot wait for a reader").and_then(|output| {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            ensure!(output.status.success(), "a reader ended: {} {said}", output.status);
            Ok(())
        });
        outcome = outcome.and(ended);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_come_out_of_the_command_line_as_they_went_in() {
        for task in [
            Task::Map("/a b".into()),
            Task::Files { root: "/x".into(), share: Share { first: 3, count: 4, step: 8 } },
            Task::Daemon { target: "/m".into(), object: Object::from_parts(7, 9) },
        ] {
            assert_eq!(Task::of(&task.arguments()).unwrap(), Some(task));
        }
        assert_eq!(Task::of(&["random".into()]).unwrap(), None);
        assert!(Task::of(&[FLAG.into(), "dance".into()]).is_err());
        assert!(Task::of(&[FLAG.into(), "files".into(), "/x".into(), "one".into()]).is_err());
    }

    #[test]
    fn shares_are_disjoint_and_a_short_file_is_found() {
        let in_turns: Vec<u64> = Share { first: 1, count: 3, step: 4 }.numbers().collect();
        assert_eq!(in_turns, [1, 5, 9]);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(small_file(0)), vec![0; 65536]).unwrap();
        std::fs::write(directory.path().join(small_file(1)), vec![0; 65535]).unwrap();
        let task = |count| Task::Files { root: directory.path().into(), share: Share { first: 0, count, step: 1 } };
        task(1).run().unwrap();
        assert!(task(2).run().unwrap_err().to_string().contains("has 65535 bytes"));
    }
}
