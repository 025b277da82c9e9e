//! The shim's work when its task runs in a container: make it, start it, keep what it prints, and know how it ended.
//!
//! The engine holds the container's processes, and the shim holds a connection to the engine. Neither is the agent's child, so an
//! agent that is killed loses nothing: the shim goes on writing the log files and leaves the exit record. An engine that is started anew
//! breaks the connection; the shim asks again until there is an answer, and time limits hold meanwhile, because the processes
//! are found by their cgroup and signalled without it.
//!
//! Stopping. A program that is process 1 of a container is shielded by the kernel: a SIGTERM that it has no handler for does
//! nothing. So all of the container's processes are told, as those of a plain task are, and process 1 is killed as soon as it is the
//! only one left, if SIGTERM would have ended it anywhere else.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::accounts::Accounts;
use super::ending;
use super::engine::State;
use super::error::EngineError;
use super::http::Answer;
use super::output::Output;
use super::spec::{ContainerSpec, body};
use crate::shim::{Clock, ExitRecord, KILL, STOP, Signals, Spec, StartFailure, Stopped};

/// How often things are looked at that nobody tells of: an engine that is away, a container that is being ended.
const LOOK: Duration = Duration::from_millis(200);

/// How long an engine may be away while nothing of the container runs.
const ENGINE_AWAY: Duration = Duration::from_secs(120);

/// How long what a container has printed may take to arrive after its end.
const DRAIN: Duration = Duration::from_secs(10);

/// How often the container's control group is looked for while it is started, in milliseconds.
const UNSEEN: u8 = 3;

/// The same when it has been seen, and may not be in all hierarchies yet.
const SEEN: u8 = 20;

/// Where the container is on its way out.
enum Phase {
    Running,
    Terminating { kill_at: Instant },
    Killed,
}

/// A container being looked after.
struct Watched<'a> {
    spec: &'a ContainerSpec,
    output: Output,
    accounts: Accounts,
    /// What it prints; none while the engine is away.
    attached: Option<Answer>,
    /// Becomes readable when it has ended, and when the engine goes away.
    end: Option<UnixStream>,
    /// The engine's id of it, by which its processes are known.
    id: String,
    /// Whether something has happened after which the engine has to be asked how the container is.
    ask: bool,
    /// Since when the engine has not answered.
    away_since: Option<Instant>,
}

/// Makes and starts the container of `spec` and stays with it to its end.
pub(crate) fn supervise(spec: &Spec, container: &ContainerSpec, signals: &Signals, begun: Clock) -> ExitRecord {
    let (mut watched, started) = match begin(spec, container) {
        Ok(begun) => begun,
        Err(failure) => return ExitRecord::not_started(failure, begun),
    };
    let grace = Duration::from_millis(spec.grace_ms);
    let timeout = spec.timeout_ms.map(|ms| started.monotonic + Duration::from_millis(ms));
    let (mut phase, mut stopped) = (Phase::Running, None);
    let ended = loop {
        let until = match phase {
            Phase::Running if watched.away_since.is_none() => timeout,
            _ => Some(Instant::now() + LOOK),
        };
        watched.wait(signals, until);
        if let Some(ended) = watched.has_ended() {
            break ended;
        }
        let now = Instant::now();
        while let Some(signal) = signals.next() {
            match signal {
                KILL => {
                    stopped = stopped.or(Some(Stopped::Request));
                    phase = Phase::Killed;
                }
                STOP | Signal::SIGINT | Signal::SIGHUP if matches!(phase, Phase::Running) => {
                    stopped = Some(Stopped::Request);
                    watched.terminate();
                    phase = Phase::Terminating { kill_at: now + grace };
                }
                _ => {}
            }
        }
        match phase {
            Phase::Running if timeout.is_some_and(|timeout| now >= timeout) => {
                stopped = Some(Stopped::Timeout);
                watched.terminate();
                phase = Phase::Terminating { kill_at: now + grace };
            }
            Phase::Terminating { kill_at } if now >= kill_at || watched.is_only_deaf() => phase = Phase::Killed,
            _ => {}
        }
        if matches!(phase, Phase::Killed) {
            watched.kill();
        }
    };
    let mut record = ExitRecord::ended(started);
    watched.drain();
    record.stopped = stopped;
    let mut engine_says_oom = false;
    match ended {
        Ended::State(state) => {
            record.exit_code = Some(state.exit_code);
            engine_says_oom = state.oom_killed;
        }
        Ended::Lost(why) => record.lost = Some(why),
    }
    record.usage = watched.accounts.close(engine_says_oom);
    record
}

/// What became of a container.
enum Ended {
    State(State),
    Lost(String),
}

fn begin<'a>(spec: &Spec, container: &'a ContainerSpec) -> Result<(Watched<'a>, Clock), StartFailure> {
    let engine_failed = |error: EngineError| ending::engine_failure(error.to_string());
    let log = |path: &Path| {
        let opened = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        opened.map_err(|error| ending::engine_failure(format!("cannot open {}: {error}", path.display())))
    };
    let output = Output::new(log(&spec.stdout)?, log(&spec.stderr)?);
    let engine = &container.engine;
    // What an earlier shim of this attempt has left half made, before it was killed.
    engine.remove(&container.name).map_err(engine_failed)?;
    let body = body(container, &spec.command, &spec.environment, &spec.workdir);
    let id = engine.create(&container.name, &body).map_err(engine_failed)?;
    let start_failed = |error: EngineError| match &error {
        EngineError::Refused { message, .. } => {
            let program = spec.command.first().map_or("", String::as_str);
            ending::start_failure(program, &container.image_name, message)
        }
        _ => engine_failed(error),
    };
    // Podman makes everything ready for the program as soon as somebody wants to hear it.
    let attached = engine.attach(&id).map_err(start_failed)?;
    let mut accounts = Accounts::of(&id);
    let starting = engine.start(&id).map_err(start_failed)?;
    let started = loop {
        // Before the engine lets the program begin, its group is there.
        accounts.look();
        let pause = PollTimeout::from(if accounts.is_found() { SEEN } else { UNSEEN });
        if poll(&mut [PollFd::new(starting.as_fd(), PollFlags::POLLIN)], pause).is_ok_and(|count| count > 0) {
            break Clock::now();
        }
    };
    engine.started(starting).map_err(start_failed)?;
    accounts.look();
    accounts.publish(&container.counted);
    let end = engine.wait(&id).ok();
    let attached = Some(attached);
    let watched = Watched { spec: container, output, accounts, attached, end, id, ask: true, away_since: None };
    Ok((watched, started))
}

impl Watched<'_> {
    /// Waits until something happens, at most until `until`, and takes in what was printed.
    fn wait(&mut self, signals: &Signals, until: Option<Instant>) {
        let has_more = self.attached.as_ref().is_some_and(Answer::has_more);
        let until = [until, self.accounts.next()].into_iter().flatten().min();
        let timeout = match until {
            _ if has_more => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let attached = self.attached.as_ref().map(|attached| PollFd::new(attached.as_fd(), PollFlags::POLLIN));
        let end = self.end.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        let [process, memory] = self.accounts.polled();
        let all = [Some(PollFd::new(signals.as_fd(), PollFlags::POLLIN)), process, memory, attached, end];
        let there = all.each_ref().map(Option::is_some);
        let mut polled: Vec<PollFd<'_>> = all.into_iter().flatten().collect();
        // Interrupted or failed, it is as if nothing had happened.
        let _ = poll(&mut polled, timeout);
        let mut happened = polled.iter().map(|polled| polled.any().unwrap_or(false));
        let [_, process, memory, printed, told] = there.map(|is_there| is_there && happened.next().unwrap_or(false));
        drop(happened);
        drop(polled);
        // Before anything else: its group will be gone in a moment.
        self.ask |= self.accounts.follow(process, memory);
        if printed || has_more {
            self.take_output();
        }
        if told {
            self.hear();
        }
    }

    /// Writes down what the container has printed. The end of it is no end of the container: a program may close its output.
    fn take_output(&mut self) {
        const PIECE: usize = 64 << 10;
        let Some(attached) = &mut self.attached else { return };
        let mut piece = vec![0; PIECE];
        let is_over = match attached.read(&mut piece) {
            Ok(0) => true,
            Ok(count) => self.output.take(&piece[..count]).is_err(),
            Err(error) => error.kind() != io::ErrorKind::Interrupted,
        };
        if is_over {
            self.attached = None;
            self.ask = true;
        }
    }

    /// Takes in what comes on the connection that waits for the end. What is said there does not matter: the engine is asked then.
    fn hear(&mut self) {
        let mut words = [0; 4096];
        let Some(end) = &mut self.end else { return };
        if !matches!(end.read(&mut words), Ok(1..)) {
            self.end = None;
        }
        self.ask = true;
    }

    /// Asks the engine how the container is, if there is a reason to.
    fn has_ended(&mut self) -> Option<Ended> {
        if !self.ask && self.away_since.is_none() && self.end.is_some() {
            return None;
        }
        match self.spec.engine.state(&self.id) {
            Ok(Some(state)) if state.is_over() => Some(Ended::State(state)),
            Ok(Some(_)) => {
                self.ask = false;
                self.away_since = None;
                if self.end.is_none() {
                    self.reconnect();
                }
                None
            }
            Ok(None) => Some(Ended::Lost(format!(
                "the container {} is gone: somebody has removed it while its program ran; leave containers named batch-agent-... alone",
                self.spec.name
            ))),
            Err(error) => {
                let since = *self.away_since.get_or_insert_with(Instant::now);
                let is_lost = since.elapsed() >= ENGINE_AWAY && processes(&self.id).is_empty();
                is_lost.then(|| Ended::Lost(format!("the container was lost: {error}")))
            }
        }
    }

    /// After the engine was away: what was printed meanwhile, it may have kept or not.
    fn reconnect(&mut self) {
        let engine = &self.spec.engine;
        if self.attached.is_none()
            && let Ok(attached) = engine.attach(&self.id)
        {
            self.output.reconnected();
            self.attached = Some(attached);
            let _ = self.output.remark(
                "the container engine was started anew; what the program printed meanwhile may be missing here",
            );
        }
        self.end = engine.wait(&self.id).ok();
    }

    /// Asks all of the container's processes to end. Stopped ones are woken, or they would never hear of it.
    fn terminate(&self) {
        let found = processes(&self.id);
        for pid in &found {
            let _ = kill(*pid, Signal::SIGTERM);
        }
        for pid in &found {
            let _ = kill(*pid, Signal::SIGCONT);
        }
        if found.is_empty() {
            // Its cgroup cannot be seen from here.
            let _ = self.spec.engine.kill(&self.id, "SIGTERM");
        }
    }

    fn kill(&mut self) {
        let found = processes(&self.id);
        for pid in &found {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        if found.is_empty() {
            let _ = self.spec.engine.kill(&self.id, "SIGKILL");
        }
        self.ask = true;
    }

    /// Whether nothing is left but a process 1 that SIGTERM would end if it were not process 1.
    fn is_only_deaf(&self) -> bool {
        matches!(processes(&self.id)[..], [only] if shields_from_term(only))
    }

    /// Takes in the rest of what was printed.
    fn drain(&mut self) {
        let mut until = Instant::now() + DRAIN;
        while let Some(attached) = &self.attached {
            let left =
                PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
            let is_there = attached.has_more()
                || poll(&mut [PollFd::new(attached.as_fd(), PollFlags::POLLIN)], left).is_ok_and(|count| count > 0);
            if is_there {
                self.take_output();
                until = Instant::now() + DRAIN;
            } else if Instant::now() >= until {
                let _ = self.output.remark("the container engine has not sent the end of what the program printed");
                return;
            }
        }
    }
}

/// The processes of the container with this id. Their cgroup is named after it, whatever cgroups the machine has, and no process of a
/// container can leave it; nothing else on a machine has 64 such digits in its cgroup's name.
fn processes(id: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let is_alive =
            |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| !is_zombie(&status));
        if fs::read_to_string(process.path().join("cgroup")).is_ok_and(|cgroup| cgroup.contains(id)) && is_alive(pid) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

fn is_zombie(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("State:").is_some_and(|state| state.trim_start().starts_with('Z')))
}

/// Whether the process leaves SIGTERM to the kernel, which for process 1 of a container does nothing.
fn shields_from_term(pid: Pid) -> bool {
    const TERM: u64 = 1 << (libc::SIGTERM - 1);
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    matches!((mask("SigIgn:"), mask("SigCgt:")), (Some(ignored), Some(caught)) if (ignored | caught) & TERM == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_end_of_it_is_deaf_to_a_signal() {
        for (script, deaf) in [("exec sleep 100", true), ("trap '' TERM; exec sleep 100", false)] {
            let mut child = std::process::Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            while name().trim() != "sleep" {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(shields_from_term(pid), deaf, "{script}");
            child.kill().unwrap();
            assert!(child.wait().is_ok());
        }
    }
}
