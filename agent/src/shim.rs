//! The shim: one small process per attempt, between the agent and the task.
//!
//! It is a mode of the agent's own binary. It holds the task's mount namespace, starts the program, outlives the agent,
//! and writes down how the program ended. It knows nothing of object storage: it reads one file that says what to
//! do ([`Spec`]) and writes one that says what happened ([`ExitRecord`]).
//!
//! It has one thread and no async runtime, because it becomes the reaper of everything the task leaves behind, and
//! because a new mount namespace is a property of a thread.

mod control;
mod descendants;
mod namespace;
mod pin;
mod program;
mod record;
mod spec;
mod streams;
mod supervise;

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

pub(crate) use control::open_process;
pub use control::{Shim, ShimError, StopMode, find_by_spec, stop_shim};
pub use descendants::{ProcessId, kill_descendants};
pub(crate) use record::Clock;
pub use record::{ExitRecord, StartFailure, Stopped, Usage};
pub use spec::{Place, Spec, VERSION as SPEC_VERSION};
pub(crate) use supervise::{KILL, STOP, Signals};

use crate::cgroup::TaskGroup;
use crate::durable;

/// What the shim tells the agent on its standard output, once, as a line of JSON.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Hello {
    /// The namespace stands and the program has been started (or could not be, which the exit record says).
    Started,
    /// The task's view could not be built.
    Failed(String),
}

/// Runs the shim described by the file at `spec`: what `batch-agent shim` does.
///
/// Must be called before any thread is started.
pub fn main(spec: &Path) -> ExitCode {
    match run(spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say(&Hello::Failed(message));
            ExitCode::from(crate::exit::OS)
        }
    }
}

fn run(spec: &Path) -> Result<(), String> {
    close_inherited();
    let spec: Spec = durable::read_json(spec)
        .map_err(|error| error.to_string())?
        .ok_or_else(|| format!("{} is missing or damaged", spec.display()))?;
    // A session of its own: no terminal's Ctrl-C and no hang-up reaches the task but through us.
    nix::unistd::setsid().map_err(|errno| format!("setsid: {errno}"))?;
    stay_without_agent()?;
    let signals = Signals::block().map_err(|errno| format!("cannot block signals: {errno}"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(|errno| format!("cannot become a subreaper: {errno}"))?;
    if spec.container.is_some() {
        // An engine sees the host's mounts, and none of ours. Those that a shim before us has made are there.
        if !spec.takes_over {
            namespace::build(&spec)?;
        }
    } else if spec.place == Place::Own {
        let host = pin::host();
        namespace::enter(&spec)?;
        if let Some(at) = &spec.pin {
            // The agent looks whether it is there when it is needed, and says so when it is not.
            let pinned = host.and_then(|host| pin::pin(at, &host).map_err(Into::into));
            if let Err(error) = pinned {
                tracing::debug!(%error, "the namespace cannot be held");
            }
        }
    }

    let made = spec.group.as_ref().map(TaskGroup::make).transpose().map_err(|error| error.to_string())?;
    let (group, notes) = made.map_or_else(Default::default, |(group, notes)| (Some(group), notes));

    let started = Clock::now();
    if let Some(container) = &spec.container {
        spare_this_process();
        say(&Hello::Started);
        let mut record = crate::container::supervise(&spec, container, &signals, started);
        record.notes = notes;
        return durable::replace_json(&spec.exit_record, &record).map_err(|error| error.to_string());
    }
    let mut record = match program::start(&spec, group.as_ref()) {
        Ok((child, streams)) => {
            spare_this_process();
            say(&Hello::Started);
            supervise::supervise((child, streams), &spec, group.as_ref(), &signals, started)
        }
        Err(failure) => {
            say(&Hello::Started);
            ExitRecord::not_started(failure, started)
        }
    };
    record.notes = notes;
    if let Some(group) = &group {
        group.remove_task();
    }
    durable::replace_json(&spec.exit_record, &record).map_err(|error| error.to_string())
}

/// Goes on when the agent ends. Until here its end is ours as well (see [`Shim::start`]): from now on, whoever comes after it finds us by our
/// command line.
fn stay_without_agent() -> Result<(), String> {
    nix::sys::prctl::set_pdeathsig(None).map_err(|errno| format!("cannot outlive the agent: {errno}"))
}

/// Has the kernel, when the whole machine is out of memory, choose anybody but us: we are small, and have to tell what has happened.
/// Called when the program has been started, which is not to inherit it.
fn spare_this_process() {
    const LAST_BUT_ONE: &str = "-999";
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", LAST_BUT_ONE) {
        tracing::debug!(%error, "the shim is not spared when memory runs out");
    }
}

/// Keeps whatever descriptors the agent itself was started with from reaching the task. They are marked and not closed: a
/// descriptor that something in this process owns must not disappear under it.
fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: close_range takes three plain numbers and, with this flag, changes nothing but the close-on-exec mark.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked == -1 {
        // Before Linux 5.11. Rust opens nothing without the mark; only what our own parent left open is not covered.
        tracing::debug!("inherited descriptors cannot be kept from the task: {}", std::io::Error::last_os_error());
    }
}

/// Writes the one line and lets go of the pipe, so that the agent's read ends.
fn say(hello: &Hello) {
    if let Ok(mut line) = serde_json::to_vec(hello) {
        line.push(b'\n');
        let mut stdout = std::io::stdout();
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdout(null.as_fd());
        }
    }
}
