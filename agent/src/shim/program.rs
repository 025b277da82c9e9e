//! Starting the task's program, and saying exactly why it could not be started.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::streams::Streams;
use super::{Place, Spec, StartFailure};
use crate::account::Account;
use crate::cgroup::TaskGroup;
use crate::instance::open_log;

const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// A program that was started, and its streams if it has not the log files themselves.
pub(super) type Started = (Child, Option<Streams>);

/// Starts the program of `spec` in a process group of its own and in `group`, with nothing of ours but its two streams.
pub(super) fn start(spec: &Spec, group: Option<&TaskGroup>) -> Result<Started, StartFailure> {
    let Some((name, arguments)) = spec.command.split_first() else {
        return Err(StartFailure {
            exit_code: NOT_FOUND,
            message: "the command line is empty".to_owned(),
            by_platform: false,
        });
    };
    let path = spec.environment.get("PATH").map_or("", String::as_str);
    let program = find(name, path, &spec.workdir)?;
    match spawn(&program, arguments, spec, group) {
        // Neither a binary nor a script with an interpreter line: what execvp() and every shell do with it.
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
            let mut with_program = vec![program.to_string_lossy().into_owned()];
            with_program.extend_from_slice(arguments);
            spawn(Path::new("/bin/sh"), &with_program, spec, group)
        }
        other => other,
    }
    .map_err(|error| explain(name, &program, &error))
}

fn spawn(program: &Path, arguments: &[String], spec: &Spec, group: Option<&TaskGroup>) -> io::Result<Started> {
    let logs = [&*spec.stdout, &*spec.stderr];
    let (streams, [stdout, stderr]) = match spec.place {
        Place::Own => {
            let (streams, its) = Streams::new(logs, spec.account.as_ref())?;
            (Some(streams), its.map(Stdio::from))
        }
        Place::Machine => (None, [open_log(logs[0])?.into(), open_log(logs[1])?.into()]),
    };
    let newborn = Newborn::new(spec, group)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&spec.environment)
        .current_dir(&spec.workdir)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0);
    // SAFETY: the function calls nothing between fork and exec that is not async-signal-safe, and takes no memory.
    unsafe { command.pre_exec(move || newborn.prepare()) };
    if spec.command.first().is_some_and(|name| !name.contains('/')) && program.file_name().is_some() {
        command.arg0(program.file_name().unwrap_or_default());
    }
    // With the command go our copies of the program's ends.
    Ok((command.spawn()?, streams))
}

/// How many files a task may have open, unless it asks for more and may have them. Enough for tools that open hundreds at once; more than
/// that slows down programs that close every number there may be.
const OPEN_FILES: u64 = 65_536;

/// What others may do with what a task makes, unless it says so itself: as after a login.
const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// What is done between fork and exec, with everything for it at hand: nothing may be allocated there.
struct Newborn {
    doors: Vec<File>,
    account: Option<(Account, Vec<Gid>)>,
    open_files: Option<(u64, u64)>,
    is_task: bool,
}

impl Newborn {
    fn new(spec: &Spec, group: Option<&TaskGroup>) -> io::Result<Self> {
        let doors = group.map_or_else(|| Ok(Vec::new()), TaskGroup::doors)?;
        let account = spec.account.clone().map(|account| {
            let groups = account.groups.iter().copied().map(Gid::from_raw).collect();
            (account, groups)
        });
        let open_files = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| (hard.min(OPEN_FILES), hard));
        Ok(Self { doors, account, open_files, is_task: spec.place == Place::Own })
    }

    /// Undoes what a child would inherit from us, and makes it what it is to be. Rights are given up last.
    fn prepare(&self) -> io::Result<()> {
        hear_every_signal()?;
        for door in &self.doors {
            nix::unistd::write(door, b"0")?;
        }
        if self.is_task {
            umask(UMASK);
            // Cores of a batch of failing programs fill the disk. Who wants them asks for them (ulimit -c).
            let cores = getrlimit(Resource::RLIMIT_CORE)?;
            setrlimit(Resource::RLIMIT_CORE, 0, cores.1)?;
            if let Some((soft, hard)) = self.open_files {
                setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
            }
        }
        if let Some((account, groups)) = &self.account {
            let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
            setgroups(groups)?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
            if account.uid != 0 {
                // Nothing that it starts gets rights back: no set-user-ID, no file capabilities.
                nix::sys::prctl::set_no_new_privs()?;
            }
        }
        Ok(())
    }
}

/// We block the signals we listen to, and whoever started the agent may have had some ignored (nohup does); a task must hear them all.
fn hear_every_signal() -> io::Result<()> {
    for signal in Signal::iterator() {
        // SAFETY: signal(2) to its default is async-signal-safe and installs no handler. SIGKILL and SIGSTOP refuse, which is
        // as good.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// The file that `name` stands for: searched on PATH when it has no slash, else taken relative to the working directory.
fn find(name: &str, path: &str, workdir: &Path) -> Result<PathBuf, StartFailure> {
    if name.contains('/') {
        let program = workdir.join(name);
        return check(&program).map(|()| program.clone()).map_err(|problem| match problem {
            Problem::Missing => StartFailure {
                exit_code: NOT_FOUND,
                by_platform: false,
                message: format!(
                    "program {name:?} was not found (looked for {}); is it in the package, or mapped to that path?",
                    program.display()
                ),
            },
            problem => not_executable(name, &program, problem),
        });
    }
    let mut found_but = None;
    for directory in path.split(':').filter(|directory| !directory.is_empty()) {
        let program = Path::new(directory).join(name);
        match check(&program) {
            Ok(()) => return Ok(program),
            Err(Problem::Missing) => {}
            Err(problem) => found_but = found_but.or(Some((program, problem))),
        }
    }
    Err(match found_but {
        Some((program, problem)) => not_executable(name, &program, problem),
        None => StartFailure {
            exit_code: NOT_FOUND,
            by_platform: false,
            message: format!(
                "program {name:?} was not found on PATH ({path}); install it in the image, or name it with its path \
                 (./{name} for one in the package)"
            ),
        },
    })
}

enum Problem {
    Missing,
    Directory,
    NoExecuteBit,
}

fn check(program: &Path) -> Result<(), Problem> {
    match fs::metadata(program) {
        Err(_) => Err(Problem::Missing),
        Ok(found) if found.is_dir() => Err(Problem::Directory),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Err(Problem::NoExecuteBit),
        Ok(_) => Ok(()),
    }
}

fn not_executable(name: &str, program: &Path, problem: Problem) -> StartFailure {
    let why = match problem {
        Problem::Directory => "is a directory",
        _ => "is not executable; chmod +x it before packing, or start its interpreter instead",
    };
    let message = format!("program {name:?}: {} {why}", program.display());
    StartFailure { exit_code: NOT_EXECUTABLE, message, by_platform: false }
}

/// What an error of exec means for a file that [`check`] has found.
fn explain(name: &str, program: &Path, error: &io::Error) -> StartFailure {
    let shown = program.display();
    let (exit_code, why) = match error.raw_os_error() {
        Some(libc::ENOENT) => (
            NOT_FOUND,
            match interpreter(program) {
                Some(interpreter) => {
                    format!("{shown} wants the interpreter {interpreter:?}, which this machine does not have")
                }
                None => format!(
                    "{shown}, its interpreter or the working directory is missing (a binary for another C library?)"
                ),
            },
        ),
        Some(libc::EACCES) => {
            (NOT_EXECUTABLE, format!("{shown} may not be executed: no permission, or a file system mounted noexec"))
        }
        Some(libc::ENOEXEC) => (NOT_EXECUTABLE, format!("{shown} is not a program for this machine")),
        Some(libc::E2BIG) => (NOT_EXECUTABLE, "its arguments and environment are too long together".to_owned()),
        _ => (NOT_EXECUTABLE, format!("{shown}: {error}")),
    };
    let message = format!("program {name:?} could not be started: {why}");
    StartFailure { exit_code, message, by_platform: false }
}

/// The interpreter that a script's first line names.
fn interpreter(program: &Path) -> Option<String> {
    use std::io::{BufRead, BufReader, Read};
    let mut line = Vec::new();
    // The kernel itself reads no more than 256 bytes of the line.
    BufReader::new(File::open(program).ok()?.take(256)).read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8_lossy(line.strip_prefix(b"#!")?).into_owned();
    line.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(directory: &Path, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn programs_are_found_as_a_shell_would() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let tool = script(root, "tool", "", 0o755);
        script(root, "data", "", 0o644);
        let path = format!("/nonexistent::{}", root.display());
        assert_eq!(find("tool", &path, Path::new("/")).unwrap(), tool);
        assert_eq!(find("./tool", "", root).unwrap(), root.join("./tool"));
        let missing = find("nope", &path, root).unwrap_err();
        assert_eq!(missing.exit_code, 127);
        assert!(missing.message.contains("not found on PATH") && missing.message.contains("./nope"));
        let plain = find("data", &path, root).unwrap_err();
        assert_eq!(plain.exit_code, 126);
        assert!(plain.message.contains("chmod +x"), "{}", plain.message);
        assert_eq!(find("./gone", "", root).unwrap_err().exit_code, 127);
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let tool = script(directory.path(), "tool", "#!/opt/nope/python9 -u\n", 0o755);
        let failure = explain("tool", &tool, &io::Error::from_raw_os_error(libc::ENOENT));
        assert!(failure.message.contains("\"/opt/nope/python9\""), "{}", failure.message);
    }
}
