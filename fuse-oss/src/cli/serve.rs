//! `fuse-oss serve` and `fuse-oss mount --foreground`: being the server, which is a keeper and its worker.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::Duration;

use fuse_oss::client::{Client, replace};
use fuse_oss::daemon::{Side, Starter, detach};
use fuse_oss::keeper::link::Link;
use fuse_oss::keeper::message::ToKeeper;
use fuse_oss::keeper::replace::understood;
use fuse_oss::keeper::{Errand, Keeper, ServerSettings};
use fuse_oss::runtime::{CacheLock, RuntimePaths, private_dir};
use fuse_oss::server::keeping::{Keeping, Shared, duplicate};
use fuse_oss::server::{Ending, Listeners, Means, Server};
use fuse_oss::{ErrorKind, MountError};
use tokio::runtime::{Builder, Runtime};

use super::arguments::{
    CacheArguments, KeeperArguments, LogArguments, MountArguments, STOP_TIMEOUT, ServeArguments, WorkerArguments,
};
use super::{fstab, log_to_stderr};

/// Threads that wait for stores and answer misses. Blocking work (the disk) has its own.
fn runtime() -> Result<Runtime, MountError> {
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8));
    Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(16)
        .thread_name("fuse-oss")
        .enable_all()
        .build()
        .map_err(|error| MountError::new(ErrorKind::System, format_args!("cannot start threads: {error}")))
}

/// What a server needs of the command line, for one that ends with its only mount or when it is told to.
pub fn server_settings(cache: &CacheArguments, log_arguments: Vec<String>) -> ServerSettings {
    ServerSettings {
        cache_dir: cache.cache_dir.clone(),
        cache_size: cache.cache_size,
        memory_limit: cache.memory_limit,
        runtime_dir: cache.runtime_dir.clone(),
        idle_exit: None,
        patience: Duration::from_secs(STOP_TIMEOUT),
        without_resend: false,
        log_arguments,
    }
}

fn exit_code(outcome: Result<(), MountError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&error),
    }
}

/// Serves until told to end, or has the server that runs go on with this program.
pub fn serve(arguments: &ServeArguments, log: &LogArguments) -> ExitCode {
    if arguments.replace {
        log_to_stderr(log);
        return exit_code(replace(&arguments.cache.cache_dir, &arguments.cache.runtime_dir));
    }
    let settings = ServerSettings {
        idle_exit: arguments.idle_exit.map(Duration::from_secs),
        patience: Duration::from_secs(arguments.stop_timeout),
        without_resend: arguments.without_resend,
        ..server_settings(&arguments.cache, log.as_arguments())
    };
    if !arguments.detach {
        log_to_stderr(log);
        return exit_code(keep(settings, None));
    }
    match into_background(&settings) {
        Ok(Side::Parent(Ok(()))) => ExitCode::SUCCESS,
        Ok(Side::Parent(Err(error))) | Err(error) => {
            // For the program that started us, which reads it from our standard output.
            println!("{}", serde_json::to_string(&error).unwrap_or_default());
            super::fail(&error)
        }
        Ok(Side::Child(starter)) => {
            log_to_stderr(log);
            exit_code(keep(settings, Some(starter)))
        }
    }
}

fn into_background(settings: &ServerSettings) -> Result<Side, MountError> {
    private_dir(&settings.cache_dir, "cache directory")?;
    let runtime_dir = private_dir(&settings.runtime_dir, "runtime directory")?;
    detach(&RuntimePaths::new(&runtime_dir, &settings.cache_dir)?.log)
}

fn keep(settings: ServerSettings, starter: Option<Starter>) -> Result<(), MountError> {
    let tell = |outcome: &Result<(), MountError>| {
        if let Some(starter) = starter {
            starter.tell(outcome);
        }
    };
    match Keeper::new(settings) {
        Ok(keeper) => keeper.run(tell, None),
        Err(error) => {
            tell(&Err(error.clone()));
            Err(error)
        }
    }
}

/// Mounts and serves until the mount has gone or a signal comes.
pub fn mount_in_foreground(arguments: &MountArguments, log: &LogArguments) -> Result<(), MountError> {
    let request = super::request(arguments)?;
    let settings = fstab::apply(arguments)?.server_settings(log.as_arguments());
    let keeper = Keeper::new(settings)?;
    let socket = keeper.paths().socket.clone();
    let errand: Errand = Box::new(move || {
        let gone = || MountError::new(ErrorKind::NoServer, "the server ended while it was mounting");
        Client::connect(&socket)?.ok_or_else(gone)?.mount(&request).map(drop)
    });
    keeper.run(|_| {}, Some(errand))
}

/// Goes on as the keeper where another program was, or says whether this one could.
pub fn keeper(arguments: &KeeperArguments, log: &LogArguments) -> ExitCode {
    let Some(number) = arguments.state_fd.filter(|_| !arguments.understands) else {
        println!("{}", understood());
        return ExitCode::SUCCESS;
    };
    log_to_stderr(log);
    let keep = || Keeper::resume(inherited(number)?)?.run(|_| {}, None);
    exit_code(keep())
}

/// A descriptor that this process was started with.
fn inherited(number: RawFd) -> Result<OwnedFd, MountError> {
    // SAFETY: asks only; a number that is not open is an error.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(MountError::new(
            ErrorKind::Usage,
            format_args!("descriptor {number} is not open; only fuse-oss serve starts this command"),
        ));
    }
    // SAFETY: the keeper has made it for this process alone, and it is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has the C library give memory back. Left alone it keeps a heap per thread, and what was once used in each.
fn tame_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator, before there are threads that use it.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        // Fixed, so that a large buffer that is freed is the system's again at once.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 512 << 10);
    }
}

/// Does the server's work, for the keeper that has started this process.
pub fn worker(arguments: &WorkerArguments, log: &LogArguments) -> ExitCode {
    log_to_stderr(log);
    exit_code(work(arguments))
}

fn work(arguments: &WorkerArguments) -> Result<(), MountError> {
    tame_allocator();
    // The keeper has blocked those it waits for, and that is inherited.
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
    let settings: ServerSettings = serde_json::from_str(&arguments.settings)
        .map_err(|error| MountError::new(ErrorKind::Usage, format_args!("unreadable settings: {error}")))?;
    let link = Link::from(inherited(arguments.link_fd)?);
    let control = inherited(arguments.control_fd)?;
    let metrics = arguments.metrics_fd.map(inherited).transpose()?;
    // Held as long as one of keeper and worker lives.
    let lock = CacheLock::inherited(inherited(arguments.lock_fd)?)?;
    let shared = Shared {
        lock: duplicate(&lock)?,
        control: duplicate(&control)?,
        metrics: metrics.as_ref().map(duplicate).transpose()?,
    };
    let listeners = Listeners { control: control.into(), metrics: metrics.map(Into::into) };
    let no_keeper = |error: std::io::Error| MountError::new(ErrorKind::Internal, format_args!("the keeper: {error}"));
    let (keeping, inheritance) = Keeping::begin(link, shared).map_err(no_keeper)?;
    let orders = keeping.orders().map_err(no_keeper)?;
    let runtime = runtime()?;
    let means = match Means::new(&settings, runtime.handle()) {
        Ok(means) => means,
        Err(error) => {
            keeping.say(&ToKeeper::Failed(error));
            // The keeper says it.
            return Ok(());
        }
    };
    let server = Server::new(&settings, runtime.handle().clone(), means, keeping, &inheritance);
    let ending = runtime.block_on(async {
        server.begin(inheritance).await;
        server.run(listeners, orders, settings.idle_exit).await
    })?;
    if ending == Ending::HandedOver {
        // At once: dropping things would close what the successor goes on with.
        std::process::exit(0);
    }
    // Fetches under way are not waited for: nobody is there to read them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}
