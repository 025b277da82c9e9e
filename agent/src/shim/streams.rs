//! The program's two streams, on their way into its log files.
//!
//! A task's program writes into pipes, and the shim moves what comes out of them into the files. It does not write into the files itself:
//! `echo oops > /dev/stderr`, which many scripts do, opens whatever the stream is once more, and of a file that empties it. What was in it
//! and had not been sent would be lost, and nobody could say how much that was. A pipe is not emptied by being opened.
//!
//! The program waits for nothing but that: a pipe takes [`CAPACITY`], the shim does nothing else meanwhile, and it waits for no disk that is
//! full. What cannot be written there is dropped and counted, and the log says how much as soon as it can be written to again. A shim that is
//! killed ends its task in any case.
//!
//! A start-up script gets the files: what it has started goes on after its shim, and would be killed by a pipe that nobody reads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::account::Account;
use crate::instance::open_log;

/// How much a program can be ahead of the shim, in bytes. What a machine gives to root without being asked for more.
const CAPACITY: i32 = 1 << 20;

/// How much is moved at once, in bytes.
const PIECE: usize = 64 << 10;

/// So many pieces are moved before something else has its turn.
const TURN: usize = 32;

/// Whatever processes are left that cannot be killed: so many pieces are moved at the end.
const LAST: usize = 1024;

/// Both streams.
pub(super) struct Streams {
    both: Vec<Stream>,
    piece: Vec<u8>,
}

/// One stream.
struct Stream {
    pipe: File,
    log: File,
    /// How many bytes could not be written since the last that could.
    dropped: u64,
    /// Whether anybody can still write to it.
    is_open: bool,
}

impl Streams {
    /// Makes both, and answers with the program's ends of them.
    pub(super) fn new(logs: [&Path; 2], account: Option<&Account>) -> io::Result<(Self, [OwnedFd; 2])> {
        let make = |log| Stream::new(log, account);
        let [(stdout, its_stdout), (stderr, its_stderr)] = [make(logs[0])?, make(logs[1])?];
        Ok((Self { both: vec![stdout, stderr], piece: vec![0; PIECE] }, [its_stdout, its_stderr]))
    }

    /// What becomes readable when there is something to be moved.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.both.iter().filter(|stream| stream.is_open).map(|stream| stream.pipe.as_fd())
    }

    /// Moves what there is, if that is not very much.
    pub(super) fn pump(&mut self) {
        for stream in &mut self.both {
            stream.pump(&mut self.piece, TURN);
        }
    }

    /// Moves what there is, when nobody writes any more.
    pub(super) fn finish(mut self) {
        for stream in &mut self.both {
            stream.pump(&mut self.piece, LAST);
            stream.explain();
        }
    }
}

impl Stream {
    fn new(log: &Path, account: Option<&Account>) -> io::Result<(Self, OwnedFd)> {
        let log = open_log(log)?;
        let (ours, its) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Of our end only: the program's is one that waits, as it expects.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // A smaller one serves as well.
        let _ = fcntl(&ours, FcntlArg::F_SETPIPE_SZ(CAPACITY));
        if let Some(account) = account {
            // Programs open /dev/stdout, too.
            std::os::unix::fs::fchown(&its, Some(account.uid), Some(account.gid))?;
        }
        Ok((Self { pipe: ours.into(), log, dropped: 0, is_open: true }, its))
    }

    fn pump(&mut self, piece: &mut [u8], most: usize) {
        for _ in 0..most {
            match self.pipe.read(piece) {
                Ok(0) => {
                    self.is_open = false;
                    return;
                }
                Ok(length) => self.keep(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn keep(&mut self, mut bytes: &[u8]) {
        self.explain();
        while self.dropped == 0 && !bytes.is_empty() {
            match self.log.write(bytes) {
                Ok(written) if written > 0 => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        self.dropped += bytes.len() as u64;
    }

    /// Says in the log what could not be written there.
    fn explain(&mut self) {
        if self.dropped == 0 {
            return;
        }
        let dropped = self.dropped;
        let text =
            format!("\n[batch-agent: {dropped} bytes of this log are missing here: the disk could not take them]\n");
        if self.log.write_all(text.as_bytes()).is_ok() {
            self.dropped = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs a script with these streams, and answers with both logs.
    fn logs(script: &str, before: &str) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let (stdout, stderr) = (directory.path().join("stdout"), directory.path().join("stderr"));
        std::fs::write(&stderr, before).unwrap();
        let (mut streams, [out, err]) = Streams::new([&stdout, &stderr], None).unwrap();
        let mut command = Command::new("bash");
        command.args(["-c", script]).stdout(out).stderr(err);
        let mut child = command.spawn().unwrap();
        drop(command);
        while streams.descriptors().next().is_some() {
            streams.pump();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.wait().unwrap();
        streams.finish();
        (std::fs::read_to_string(stdout).unwrap(), std::fs::read_to_string(stderr).unwrap())
    }

    #[test]
    fn a_stream_that_is_opened_once_more_loses_nothing() {
        let script = "echo a >&2; echo b > /dev/stderr; echo c >&2; echo d > /proc/self/fd/1; echo e >> /dev/stdout; \
                      echo f > /dev/fd/2; : > /dev/stderr";
        assert_eq!(logs(script, "before\n"), ("d\ne\n".to_owned(), "before\na\nb\nc\nf\n".to_owned()));
    }

    #[test]
    fn much_is_moved_whole() {
        let (stdout, stderr) = logs("seq 400000; seq 3 >&2", "");
        let expected: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
        assert!(stdout == expected, "{} bytes", stdout.len());
        assert_eq!(stderr, "1\n2\n3\n");
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_nobody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let (mut stream, its) = Stream::new(&directory.path().join("log"), None).unwrap();
        stream.log = File::options().write(true).open("/dev/full").unwrap();
        let mut its = File::from(its);
        its.write_all(b"lost").unwrap();
        let mut piece = vec![0; PIECE];
        stream.pump(&mut piece, TURN);
        assert_eq!((stream.dropped, stream.is_open), (4, true));
        stream.log = open_log(&directory.path().join("log")).unwrap();
        its.write_all(b"kept\n").unwrap();
        drop(its);
        stream.pump(&mut piece, TURN);
        assert_eq!((stream.dropped, stream.is_open), (0, false));
        let text = std::fs::read_to_string(directory.path().join("log")).unwrap();
        let expected = "\n[batch-agent: 4 bytes of this log are missing here: the disk could not take them]\nkept\n";
        assert_eq!(text, expected);
    }
}
