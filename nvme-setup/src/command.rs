//! Runs the programs of the system: by absolute path, with a deadline, their output captured.
//!
//! A program gets no standard input, a group of its own, and an environment of three variables: nothing that a caller's
//! environment could hold (`BLKID_CONF`, `LD_PRELOAD`, a locale) changes what it does or prints. When its time is up the
//! whole group is killed. A program that hangs in the kernel, on a disk that does not answer, cannot be killed: it is left
//! behind and the error says so.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::text::printable;

/// Where the programs of a Linux system are. `PATH` is not asked: a privileged program runs what the system has.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How much of each stream is kept. No program we run prints as much; one that does is read to its end all the same.
const KEPT: usize = 1 << 20;

/// How many of its last lines an error shows.
const SHOWN_LINES: usize = 5;

/// How long a killed program, or what holds its output open after its end, is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// Why a program has no result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The system does not have it.
    #[error("{program} is not installed (looked in {}); install the package {package}", DIRECTORIES.join(", "))]
    Missing {
        /// Its name.
        program: String,
        /// The package that has it, by the name that Debian, Alibaba Cloud Linux and Amazon Linux share.
        package: &'static str,
    },
    /// It could not be started.
    #[error("cannot start `{command}`: {source}; check that the file is a program and that processes can be started")]
    Start {
        /// The command line.
        command: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took longer than it may.
    #[error(
        "`{command}` did not end within {limit:?} and was {}{}; the device may not answer: see the kernel's log (dmesg)",
        if *.gone { "killed" } else { "sent a kill signal that has no effect yet" },
        last_lines(.output)
    )]
    Deadline {
        /// The command line.
        command: String,
        /// The time it had.
        limit: Duration,
        /// What it printed.
        output: String,
        /// Whether it could be killed.
        gone: bool,
    },
    /// Its caller no longer wants it.
    #[error("`{command}` was given up and {}", if *.gone { "killed" } else { "sent a kill signal that has no effect yet" })]
    Cancelled {
        /// The command line.
        command: String,
        /// Whether it could be killed.
        gone: bool,
    },
    /// It ended with a status that means failure.
    #[error("`{command}` failed: {status}{}", last_lines(.output))]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
}

/// The last lines as a part of a message: nothing, or `: line / line`.
fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return String::new();
    }
    let from = lines.len().saturating_sub(SHOWN_LINES);
    format!(": {}", lines[from..].iter().map(|line| printable(line)).collect::<Vec<_>>().join(" / "))
}

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Command {
    program: PathBuf,
    arguments: Vec<OsString>,
    limit: Duration,
    cancelled: Option<Arc<AtomicBool>>,
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Output {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// The first MiB of its standard output.
    pub stdout: Vec<u8>,
    /// The first MiB of its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The exit status, or `None` for a program that a signal ended.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The error for a status that means failure to the caller.
    pub fn failed(self) -> CommandError {
        let output = if self.stderr.iter().all(u8::is_ascii_whitespace) { &self.stdout } else { &self.stderr };
        let output = String::from_utf8_lossy(output).into_owned();
        CommandError::Failed { command: self.command, status: self.status, output }
    }
}

impl Command {
    /// A program of the system, found by its name.
    ///
    /// # Errors
    /// [`CommandError::Missing`], with the `package` to install.
    pub fn find(program: &str, package: &'static str, limit: Duration) -> Result<Self, CommandError> {
        DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(program))
            .find(|path| path.is_file())
            .map(|path| Self::at(path, limit))
            .ok_or_else(|| CommandError::Missing { program: program.to_owned(), package })
    }

    /// A program at a path, which must be absolute, with the time that it may take.
    pub fn at(program: impl Into<PathBuf>, limit: Duration) -> Self {
        Self { program: program.into(), arguments: Vec::new(), limit, cancelled: None }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Lets whoever sets `flag` end it, in the way in which its deadline would.
    #[must_use]
    pub fn cancelled_by(mut self, flag: &Arc<AtomicBool>) -> Self {
        self.cancelled = Some(Arc::clone(flag));
        self
    }

    /// The command line as a person would type it.
    fn line(&self) -> String {
        let words = std::iter::once(self.program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        words.map(crate::text::printable_os).collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end. Any exit status is a result: what it means is the caller's to know.
    ///
    /// # Errors
    /// [`CommandError::Start`], [`CommandError::Deadline`], and [`CommandError::Cancelled`] when that was arranged for.
    pub fn run(&self) -> Result<Output, CommandError> {
        let mut child = std::process::Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| CommandError::Start { command: self.line(), source })?;
        let captured =
            Captured::start(child.stdout.take()).and_then(|stdout| Ok((stdout, Captured::start(child.stderr.take())?)));
        let (stdout, stderr) = match captured {
            Ok(captured) => captured,
            Err(source) => {
                kill(child);
                return Err(CommandError::Start { command: self.line(), source });
            }
        };
        match wait(&mut child, self.limit, self.cancelled.as_deref()) {
            Some(status) => {
                let (stdout, stderr) = (stdout.finish(), stderr.finish());
                Ok(Output { command: self.line(), status, stdout, stderr })
            }
            None => {
                let gone = kill(child);
                if self.cancelled.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                    return Err(CommandError::Cancelled { command: self.line(), gone });
                }
                let output = [stdout.finish(), stderr.finish()].concat();
                let output = String::from_utf8_lossy(&output).into_owned();
                Err(CommandError::Deadline { command: self.line(), limit: self.limit, output, gone })
            }
        }
    }
}

/// Waits for the end of a program, at most `limit` and not once `cancelled` is set. `None`: it still runs.
fn wait(child: &mut Child, limit: Duration, cancelled: Option<&AtomicBool>) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            // Only if something else has waited for our child. Its status is lost; that is never a success.
            Err(_) => return Some(ExitStatus::from_raw(libc::SIGKILL)),
        }
        if cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return None;
        }
        let left = limit.checked_sub(start.elapsed())?;
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Kills a program and all it has started. Says whether it is gone; if not, a thread waits for it, so that it does not stay
/// a zombie when it goes.
fn kill(mut child: Child) -> bool {
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // The group is the child's own and exists as long as the child has not been waited for.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let gone = wait(&mut child, GRACE, None).is_some();
    if !gone {
        // Without the thread it is a zombie until we end, no more.
        let _ = thread::Builder::new().spawn(move || child.wait());
    }
    gone
}

/// A stream that is being read by a thread of its own, so that a program never waits for us.
struct Captured {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Captured {
    fn start(stream: Option<impl Read + Send + 'static>) -> std::io::Result<Self> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&kept);
        let reader = stream.map(|mut stream| {
            thread::Builder::new().spawn(move || {
                let mut buffer = [0; 8192];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let room = KEPT.saturating_sub(kept.len()).min(read);
                    kept.extend_from_slice(&buffer[..room]);
                }
            })
        });
        Ok(Self { kept, reader: reader.transpose()? })
    }

    /// What was read. The program has ended; something it left behind may hold the stream open, and is not waited for.
    fn finish(self) -> Vec<u8> {
        let start = Instant::now();
        if let Some(reader) = self.reader {
            while !reader.is_finished() && start.elapsed() < GRACE {
                thread::sleep(Duration::from_micros(200));
            }
        }
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Command {
        Command::at("/bin/sh", limit).args(["-c", script])
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn any_status_is_a_result_with_both_streams() {
        let output = shell("echo out; echo err >&2; exit 8", LONG).run().unwrap();
        assert_eq!((output.code(), &*output.stdout, &*output.stderr), (Some(8), &b"out\n"[..], &b"err\n"[..]));
        let message = output.failed().to_string();
        assert!(message.contains("/bin/sh -c"), "{message}");
        assert!(message.contains("exit status: 8: err"), "{message}");
    }

    #[test]
    fn a_signal_is_no_exit_status() {
        let output = shell("kill -9 $$", LONG).run().unwrap();
        assert_eq!(output.code(), None);
        assert!(output.failed().to_string().contains("signal: 9"));
    }

    #[test]
    fn nothing_of_the_environment_and_no_input_is_passed_on() {
        // PWD, SHLVL and _ are the shell's own.
        let output = shell("/usr/bin/env; cat", LONG).run().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        assert!(names.contains(&"LC_ALL") && names.contains(&"PATH"), "{names:?}");
        assert!(names.iter().all(|name| ["LC_ALL", "PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)), "{names:?}");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_all_it_started() {
        let error = shell("echo started; sleep 1000 & echo $!; wait", Duration::from_millis(300)).run().unwrap_err();
        let CommandError::Deadline { output, gone: true, .. } = &error else { panic!("{error}") };
        let message = error.to_string();
        assert!(message.contains("did not end within 300ms and was killed: started / "), "{message}");
        let sleeper: i32 = output.lines().nth(1).unwrap().parse().unwrap();
        // Killed; it may not have got so far as to die, and whoever reaps orphans here may not have done so yet.
        let status = || std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        let dead = |status: &str| status.is_empty() || status.contains(") Z ") || status.contains(") X ");
        for _ in 0..500 {
            if dead(&status()) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        assert!(dead(&status()), "{}", status());
    }

    #[test]
    fn a_program_that_is_no_longer_wanted_is_killed() {
        let flag = Arc::new(AtomicBool::new(false));
        let command = shell("sleep 1000", LONG).cancelled_by(&flag);
        let running = thread::spawn(move || command.run());
        thread::sleep(Duration::from_millis(50));
        assert!(!running.is_finished());
        flag.store(true, Ordering::Relaxed);
        let error = running.join().unwrap().unwrap_err();
        assert!(matches!(error, CommandError::Cancelled { gone: true, .. }), "{error}");
        assert!(error.to_string().contains("sleep 1000` was given up and killed"), "{error}");
    }

    #[test]
    fn much_output_neither_blocks_nor_fills_memory() {
        let output = shell("head -c 3000000 /dev/zero; exit 3", LONG).run().unwrap();
        assert_eq!((output.code(), output.stdout.len()), (Some(3), KEPT));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Command::find("no-such-program", "some-package", LONG).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("install the package some-package"), "{error}");
        let error = Command::at("/nonexistent/program", LONG).run().unwrap_err().to_string();
        assert!(error.contains("cannot start `/nonexistent/program`: No such file"), "{error}");
    }

    #[test]
    fn an_error_shows_only_the_last_lines_and_no_control_characters() {
        assert_eq!(last_lines(" \n\n"), "");
        assert_eq!(last_lines("1\n2\n3\n4\n5\n6\x1b[2J\n7\n"), ": 3 / 4 / 5 / 6\\u{1b}[2J / 7");
    }
}
