//! The shim's work when its task runs in a container: make it, start it, keep what it prints, and know how it ended.
//!
//! The engine holds the container's processes, and the shim holds a connection to the engine. Neither is the agent's child, so an
//! agent that is killed loses nothing: the shim goes on writing the log files and leaves the exit record. Nor does a shim that is killed: the
//! agent starts another one, which goes on with the container ([`take_over`]) and hears from the engine what it has missed. An engine that is
//! started anew breaks the connection; the shim asks again until there is an answer, and time limits hold meanwhile, because the processes
//! are found by their cgroup and signalled without it. If the engine has taken the container with it, that is not the program's end.
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

use super::accounts::{self, Accounts};
use super::ending;
use super::engine::{Maker, State};
use super::error::EngineError;
use super::http::Answer;
use super::output::Output;
use super::spec::{ContainerSpec, body};
use crate::durable;
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
    /// Since when it is ours, if another shim had it before.
    since: Option<Instant>,
    /// Whether the engine was away before it said that the container had ended.
    lost_engine: bool,
}

/// Makes and starts the container of `spec`, or takes it over from a shim that was killed, and stays with it to its end.
pub(crate) fn supervise(spec: &Spec, container: &ContainerSpec, signals: &Signals, begun: Clock) -> ExitRecord {
    accounts::hurry();
    let beginning = match made_before(spec, container) {
        Some(id) => take_over(spec, container, id),
        None => begin(spec, container),
    };
    let (mut watched, started) = match beginning {
        Ok(Beginning::Runs(watched, started)) => (watched, started),
        Ok(Beginning::Lost(why)) => return ExitRecord { lost: Some(why), ..ExitRecord::ended(begun) },
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
            engine_says_oom = state.oom_killed;
            if let Some(ended) = watched.ended_before_us(&state) {
                record = ExitRecord { stopped, ..ExitRecord::ended_at(started, ended) };
                // It was on its way out when the shim before us was killed.
                let ran_out_of_time = spec.timeout_ms.is_some_and(|limit| record.elapsed_ms >= limit);
                record.stopped = stopped.or(ran_out_of_time.then_some(Stopped::Timeout));
            }
            let asked = record.stopped.is_some() || engine_says_oom;
            match if asked { None } else { watched.ended_from_outside(&state) } {
                Some(why) => record.lost = Some(why),
                None => record.exit_code = Some(state.exit_code),
            }
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

/// What there is to look after.
enum Beginning<'a> {
    Runs(Box<Watched<'a>>, Clock),
    /// It ran, and nobody knows how it ended.
    Lost(String),
}

/// The container that a shim before this one has made, if it has come that far.
fn made_before(spec: &Spec, container: &ContainerSpec) -> Option<String> {
    if !spec.takes_over {
        return None;
    }
    // One that cannot be read was not written to the end, and then nothing was started.
    durable::read_json(&container.made).ok().flatten()
}

fn output(spec: &Spec) -> Result<Output, StartFailure> {
    let log = |path: &Path| {
        let opened = fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        opened.map_err(|error| ending::engine_failure(format!("cannot open {}: {error}", path.display())))
    };
    Ok(Output::new(log(&spec.stdout)?, log(&spec.stderr)?))
}

fn begin<'a>(spec: &Spec, container: &'a ContainerSpec) -> Result<Beginning<'a>, StartFailure> {
    let output = output(spec)?;
    let engine = &container.engine;
    // What an earlier shim of this attempt has left half made, before it was killed.
    engine.remove(&container.name).map_err(engine_failed)?;
    let body = body(container, &spec.command, &spec.environment, &spec.workdir);
    let id = engine.create(&container.name, &body).map_err(engine_failed)?;
    durable::replace_json(&container.made, &id).map_err(|error| ending::engine_failure(error.to_string()))?;
    let start_failed = |error| start_failed(spec, container, error);
    // Podman makes everything ready for the program as soon as somebody wants to hear it.
    let attached = engine.attach(&id).map_err(start_failed)?;
    let mut watched = Watched::new(container, output, id);
    watched.attached = Some(attached);
    watched.start().map_err(start_failed)?;
    watched.end = engine.wait(&watched.id).ok();
    Ok(Beginning::Runs(Box::new(watched), Clock::now()))
}

/// Goes on with a container that may have been started, and may have ended since.
fn take_over<'a>(spec: &Spec, container: &'a ContainerSpec, id: String) -> Result<Beginning<'a>, StartFailure> {
    let engine = &container.engine;
    let mut watched = Watched::new(container, output(spec)?, id);
    let since = Instant::now();
    let mut state = loop {
        match engine.state(&watched.id) {
            Ok(Some(state)) => break state,
            Ok(None) => return Ok(Beginning::Lost(watched.is_gone())),
            Err(_) if since.elapsed() < ENGINE_AWAY || !processes(&watched.id).is_empty() => {
                watched.lost_engine = true;
                std::thread::sleep(LOOK);
            }
            Err(error) => return Ok(Beginning::Lost(format!("the container was lost: {error}"))),
        }
    };
    if state.is_new() {
        watched.start().map_err(|error| start_failed(spec, container, error))?;
        state.started_at = jiff::Timestamp::now().to_string();
    }
    watched.since = Some(since);
    watched.accounts.look();
    watched.accounts.publish(&container.counted);
    watched.listen_again();
    watched.end = engine.wait(&watched.id).ok();
    let started = state.started_at.parse().map_or_else(|_| Clock::now(), Clock::at);
    Ok(Beginning::Runs(Box::new(watched), started))
}

fn engine_failed(error: EngineError) -> StartFailure {
    ending::engine_failure(error.to_string())
}

fn start_failed(spec: &Spec, container: &ContainerSpec, error: EngineError) -> StartFailure {
    match &error {
        EngineError::Refused { message, .. } => {
            let program = spec.command.first().map_or("", String::as_str);
            ending::start_failure(program, &container.image_name, message)
        }
        _ => engine_failed(error),
    }
}

impl<'a> Watched<'a> {
    fn new(spec: &'a ContainerSpec, output: Output, id: String) -> Self {
        Self {
            accounts: Accounts::of(&id),
            spec,
            output,
            attached: None,
            end: None,
            id,
            ask: true,
            away_since: None,
            since: None,
            lost_engine: false,
        }
    }

    /// Starts it, and has its control group in view before the engine lets the program begin.
    fn start(&mut self) -> Result<(), EngineError> {
        let engine = &self.spec.engine;
        let starting = engine.start(&self.id)?;
        loop {
            self.accounts.look();
            let pause = PollTimeout::from(if self.accounts.is_found() { SEEN } else { UNSEEN });
            if poll(&mut [PollFd::new(starting.as_fd(), PollFlags::POLLIN)], pause).is_ok_and(|count| count > 0) {
                break;
            }
        }
        engine.started(starting)?;
        self.accounts.look();
        self.accounts.publish(&self.spec.counted);
        Ok(())
    }

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
            Ok(None) => Some(Ended::Lost(self.is_gone())),
            Err(error) => {
                self.lost_engine = true;
                let since = *self.away_since.get_or_insert_with(Instant::now);
                let is_lost = since.elapsed() >= ENGINE_AWAY && processes(&self.id).is_empty();
                is_lost.then(|| Ended::Lost(format!("the container was lost: {error}")))
            }
        }
    }

    /// After the engine was away.
    fn reconnect(&mut self) {
        if self.attached.is_none() {
            self.listen_again();
        }
        self.end = self.spec.engine.wait(&self.id).ok();
    }

    /// Hears what was printed while nobody listened, and what is printed from now on.
    fn listen_again(&mut self) {
        let engine = &self.spec.engine;
        let kept = || engine.kept(&self.id, false).map_err(|error| error.to_string());
        let went_on = kept().and_then(|kept| self.output.go_on(kept).map_err(|error| error.to_string()));
        match went_on.and_then(|()| engine.kept(&self.id, true).map_err(|error| error.to_string())) {
            Ok(attached) => self.attached = Some(attached),
            Err(error) => {
                self.output.remark(&format!("what the program prints may be missing from here on: {error}"));
                self.attached = engine.attach(&self.id).ok();
            }
        }
    }

    fn is_gone(&self) -> String {
        let name = &self.spec.name;
        format!(
            "the container {name} is gone: somebody has removed it while its program ran; leave containers named batch-agent-... alone"
        )
    }

    /// When it ended, if that was before it was ours.
    fn ended_before_us(&self, state: &State) -> Option<Clock> {
        let ended = Clock::at(state.finished_at.parse().ok()?);
        (ended.monotonic < self.since?).then_some(ended)
    }

    /// Why a container ended that nobody here has asked to, if it is not the program's doing. An engine that stops, or that is started anew,
    /// ends its containers, unless it is told to spare them: as `docker stop` does, by signals, or without knowing how they ended (255).
    /// Whatever a program makes of such a signal, only that it has succeeded is believed of it.
    fn ended_from_outside(&self, state: &State) -> Option<String> {
        let engine = &self.spec.engine;
        // Podman has no process that its containers depend on.
        if state.exit_code == 0 || engine.maker == Maker::Podman {
            return None;
        }
        let code = state.exit_code;
        let with_engine = || {
            format!(
                "the container engine was stopped or started anew while the program ran, and its containers ended with it (exit code \
                 {code}); live-restore in Docker's settings would spare them"
            )
        };
        if self.lost_engine && !engine.spares_containers() {
            return Some(with_engine());
        }
        match engine.has_signalled(&self.id) {
            Ok(false) => None,
            Ok(true) => Some(format!(
                "the container was stopped through its engine, and not by batch-agent: somebody has stopped it, or the engine was stopped \
                 or started anew (exit code {code}); live-restore in Docker's settings would spare containers then"
            )),
            // It goes away at the moment at which the container has ended.
            Err(_) => Some(with_engine()),
        }
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
                self.output.remark("the container engine has not sent the end of what the program printed");
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
