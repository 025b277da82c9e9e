//! The node's service manager, as far as there is one: readiness, the watchdog, targets, the unit of the object mounts, and the end.
//!
//! On a machine without systemd, or when the agent was not started by it, all of this does nothing but log.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use fuse_oss::ServeSettings;
use fuse_oss::client::Client;
use fuse_oss::runtime::RuntimePaths;
use sd_notify::NotifyState;
use tracing::{debug, info, warn};

use super::phase::Broken;
use crate::durable;
use crate::exit;
use crate::node::Node;
use crate::outcome::{Cause, Failure};
use crate::programs::Programs;

/// How long `systemctl` may take. Starting the server of object mounts is quick; a manager that is shutting down is not.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(60);

/// The agent's own unit.
const AGENT_UNIT: &str = "batch-agent.service";

/// The unit of the node's object mounts.
const FUSE_OSS_UNIT: &str = "fuse-oss.service";

/// What has volumes trimmed every day.
const TRIM_TIMER: &str = "nvme-setup-trim.timer";

/// What others wait for; see `batch-agent wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// Disks and mounts are there.
    Mounts,
    /// The start-up script is done as well.
    Ready,
    /// The task is over.
    Ended,
}

impl Milestone {
    fn words(self) -> &'static str {
        match self {
            Self::Mounts => "disks and mounts are ready",
            Self::Ready => "the node is ready",
            Self::Ended => "the node has done its work",
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager cannot be told");
    }
}

/// Tells the service manager, and the log, how far the node is. The agent is ready as a service when the node is.
pub async fn reached(milestone: Milestone, _programs: &Programs) {
    info!("{}", milestone.words());
    match milestone {
        Milestone::Mounts => notify(&[NotifyState::Status(milestone.words())]),
        Milestone::Ready | Milestone::Ended => notify(&[NotifyState::Ready, NotifyState::Status(milestone.words())]),
    }
}

/// Tells why the node is of no use.
pub async fn failed(broken: &Broken, _programs: &Programs) {
    notify(&[NotifyState::Status(&format!("{} failed: {}", broken.phase.name(), broken.failure.message))]);
}

/// Keeps the service manager from giving up on a boot that takes its time, and feeds its watchdog. It touches no mount, so it says
/// that the agent lives, and nothing about storage.
pub async fn pulse(is_booting: impl Fn() -> bool) {
    /// How often.
    const BEAT: Duration = Duration::from_secs(5);
    let watchdog = sd_notify::watchdog_enabled();
    let beat = watchdog.map_or(BEAT, |limit| (limit / 3).min(BEAT));
    loop {
        let mut states = Vec::new();
        if watchdog.is_some() {
            states.push(NotifyState::Watchdog);
        }
        if is_booting() {
            // From now on, not in addition.
            let micros = u32::try_from((BEAT * 6).as_micros()).unwrap_or(u32::MAX);
            states.push(NotifyState::ExtendTimeoutUsec(micros));
        }
        if !states.is_empty() {
            notify(&states);
        }
        tokio::time::sleep(beat).await;
    }
}

/// Whether systemd runs this machine and has that unit.
fn has_unit(unit: &str) -> bool {
    let directories = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
    sd_notify::booted().unwrap_or(false) && directories.iter().any(|directory| Path::new(directory).join(unit).exists())
}

/// Makes sure that the node's one server of object mounts runs: as a unit of its own where there is systemd, so that it lives and
/// dies apart from the agent, else started by us.
pub async fn start_fuse_oss(serve: &ServeSettings, node: &Node, programs: &Programs) -> Result<(), Failure> {
    let is_there = {
        let serve = serve.clone();
        let look = move || {
            let paths = RuntimePaths::new(&serve.runtime_dir, &serve.cache_dir).ok();
            paths.is_some_and(|paths| matches!(Client::connect(&paths.socket), Ok(Some(_))))
        };
        tokio::task::spawn_blocking(look).await.map_err(Failure::platform)?
    };
    if is_there || !has_unit(FUSE_OSS_UNIT) {
        return Ok(());
    }
    durable::private_directory(&node.runtime)?;
    write_environment(serve, &node.runtime.join("fuse-oss.env"))?;
    systemctl(programs, &["start", FUSE_OSS_UNIT]).await.map_err(|why| {
        Failure::new(
            Cause::Mount,
            exit::OS,
            format!("the server of object mounts cannot be started: {why}; see: journalctl -u {FUSE_OSS_UNIT}"),
        )
    })
}

/// What the unit reads its settings from. There are no secrets in it: they go over the server's socket.
fn write_environment(serve: &ServeSettings, path: &Path) -> Result<(), Failure> {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // systemd reads the value as a shell would.
        let value =
            value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$").replace('`', "\\`");
        text.push_str(&format!("{name}=\"{value}\"\n"));
    };
    line("FUSE_OSS_CACHE_DIR", &serve.cache_dir.display());
    line("FUSE_OSS_RUNTIME_DIR", &serve.runtime_dir.display());
    if let Some(size) = serve.cache_size {
        line("FUSE_OSS_CACHE_SIZE", &size);
    }
    if let Some(limit) = serve.memory_limit {
        line("FUSE_OSS_MEMORY_LIMIT", &limit);
    }
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|error: std::io::Error| Failure::platform(format!("cannot write {}: {error}", path.display())))
}

/// Has volumes trimmed as long as the machine is up. Without systemd, that is for whoever runs it.
pub async fn start_trimming(programs: &Programs) {
    if !has_unit(TRIM_TIMER) {
        return warn!(
            "nobody runs `nvme-setup trim` here, which trim: periodic asks for: {TRIM_TIMER} is not installed"
        );
    }
    // Not waited for: the timer may be ordered after what waits for us.
    if let Err(why) = systemctl(programs, &["--no-block", "start", TRIM_TIMER]).await {
        warn!("{TRIM_TIMER} cannot be started, and nothing is trimmed: {why}");
    }
}

async fn systemctl(programs: &Programs, arguments: &[&str]) -> Result<(), String> {
    let Some(command) = programs.command("systemctl", SYSTEMCTL_LIMIT) else {
        return Err(format!("systemctl is not in {}", programs.shown()));
    };
    let command = command.args(arguments);
    let ran = tokio::task::spawn_blocking(move || command.run()).await.map_err(|error| error.to_string())?;
    let output = ran.map_err(|error| error.to_string())?;
    if output.code() == Some(0) { Ok(()) } else { Err(output.failed().to_string()) }
}

/// Whether the service manager is about to have an agent where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coming {
    /// It is being started, or will be started again.
    Yes,
    /// It has ended for good, or was never wanted.
    No,
    /// There is no service manager that knows of it.
    Unknown,
}

/// Asks the service manager.
pub fn is_agent_coming(programs: &Programs) -> Coming {
    if !has_unit(AGENT_UNIT) {
        return Coming::Unknown;
    }
    let Some(command) = programs.command("systemctl", Duration::from_secs(10)) else { return Coming::Unknown };
    match command.args(["show", "--property=LoadState,ActiveState,Job", AGENT_UNIT]).run() {
        Ok(output) if output.code() == Some(0) => coming(&String::from_utf8_lossy(&output.stdout)),
        _ => Coming::Unknown,
    }
}

/// What `systemctl show` says. A unit that waits for its turn has a job and is still inactive.
fn coming(properties: &str) -> Coming {
    let value = |name: &str| {
        let mut lines = properties.lines().filter_map(|line| line.split_once('='));
        lines.find(|(property, _)| *property == name).map_or("", |(_, value)| value)
    };
    let has_job = !matches!(value("Job"), "" | "0");
    match (value("LoadState"), value("ActiveState")) {
        ("loaded", "active" | "activating" | "reloading") => Coming::Yes,
        ("loaded", _) if has_job => Coming::Yes,
        ("loaded" | "masked", "inactive" | "failed" | "deactivating") => Coming::No,
        _ => Coming::Unknown,
    }
}

/// Whether the machine is on its way down. Then the task ends with it; else the agent is only being restarted.
pub async fn is_shutting_down(programs: &Programs) -> bool {
    if !sd_notify::booted().unwrap_or(false) {
        return false;
    }
    let Some(command) = programs.command("systemctl", Duration::from_secs(5)) else { return false };
    let command = command.args(["is-system-running"]);
    let ran = tokio::task::spawn_blocking(move || command.run()).await;
    matches!(ran, Ok(Ok(output)) if String::from_utf8_lossy(&output.stdout).trim() == "stopping")
}

/// Powers the machine off, through systemd.
pub async fn power_off(programs: &Programs) {
    info!("powering off");
    if let Err(why) = systemctl(programs, &["poweroff"]).await {
        warn!("the machine cannot be powered off: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_waits_for_its_turn_is_coming() {
        for (properties, expected) in [
            ("Job=0\nLoadState=loaded\nActiveState=activating\n", Coming::Yes),
            ("LoadState=loaded\nActiveState=inactive\nJob=217\n", Coming::Yes),
            ("LoadState=loaded\nActiveState=inactive\n", Coming::No),
            ("LoadState=loaded\nActiveState=failed\nJob=0\n", Coming::No),
            ("LoadState=masked\nActiveState=inactive\n", Coming::No),
            ("LoadState=not-found\nActiveState=inactive\n", Coming::Unknown),
            ("", Coming::Unknown),
        ] {
            assert_eq!(coming(properties), expected, "{properties}");
        }
    }

    #[test]
    fn the_units_settings_cannot_be_broken_out_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        let serve = ServeSettings {
            cache_dir: "/data/a b\"$HOME`x`\\".into(),
            cache_size: Some("10GiB".parse().unwrap()),
            ..ServeSettings::new("/usr/bin/fuse-oss")
        };
        write_environment(&serve, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("FUSE_OSS_CACHE_DIR=\"/data/a b\\\"\\$HOME\\`x\\`\\\\\"\n"), "{text}");
        assert!(text.contains("FUSE_OSS_CACHE_SIZE=\"10"), "{text}");
    }
}
