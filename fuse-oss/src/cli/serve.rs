//! `fuse-oss serve` and `fuse-oss mount --foreground`: being the server.

use std::process::ExitCode;
use std::time::Duration;

use fuse_oss::daemon::{Side, Starter, detach};
use fuse_oss::runtime::{RuntimePaths, private_dir};
use fuse_oss::server::{Server, ServerSettings};
use fuse_oss::{ErrorKind, MountError};
use tokio::runtime::{Builder, Runtime};

use super::arguments::{CacheArguments, LogArguments, MountArguments, ServeArguments};
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

/// What a server needs of the command line.
pub fn server_settings(cache: &CacheArguments, idle_exit: Option<Duration>) -> ServerSettings {
    ServerSettings {
        cache_dir: cache.cache_dir.clone(),
        cache_size: cache.cache_size,
        memory_limit: cache.memory_limit,
        runtime_dir: cache.runtime_dir.clone(),
        idle_exit,
    }
}

/// Serves until told to end.
pub fn serve(arguments: &ServeArguments, log: &LogArguments) -> ExitCode {
    let settings = server_settings(&arguments.cache, arguments.idle_exit.map(Duration::from_secs));
    if !arguments.detach {
        log_to_stderr(log);
        return match serve_here(&settings, None) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => super::fail(&error),
        };
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
            match serve_here(&settings, Some(starter)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => super::fail(&error),
            }
        }
    }
}

fn into_background(settings: &ServerSettings) -> Result<Side, MountError> {
    private_dir(&settings.cache_dir, "cache directory")?;
    let runtime_dir = private_dir(&settings.runtime_dir, "runtime directory")?;
    detach(&RuntimePaths::new(&runtime_dir, &settings.cache_dir)?.log)
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

fn serve_here(settings: &ServerSettings, starter: Option<Starter>) -> Result<(), MountError> {
    tame_allocator();
    let ready = || {
        let runtime = runtime()?;
        let server = Server::new(settings, runtime.handle().clone())?;
        let listener = server.listen()?;
        Ok((runtime, server, listener))
    };
    let ready = ready();
    if let Some(starter) = starter {
        starter.tell(&ready.as_ref().map(drop).map_err(Clone::clone));
    }
    let (runtime, server, listener) = ready?;
    let outcome = runtime.block_on(server.run(listener, settings.idle_exit));
    // Fetches under way are not waited for: nobody is there to read them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Mounts and serves in this process until the mount has gone or a signal comes.
pub fn mount_in_foreground(arguments: &MountArguments) -> Result<(), MountError> {
    let request = super::request(arguments)?;
    let settings = fstab::apply(arguments)?.server_settings();
    tame_allocator();
    let runtime = runtime()?;
    let server = Server::new(&settings, runtime.handle().clone())?;
    let listener = server.listen()?;
    let outcome = runtime.block_on(async {
        let serving = std::sync::Arc::clone(&server);
        let serving = tokio::spawn(async move { serving.run(listener, None).await });
        let reply = server.mount(request).await;
        match reply {
            Err(error) => {
                server.shut_down().await;
                Err(error)
            }
            Ok(reply) => {
                tokio::select! {
                    ended = serving => ended.unwrap_or_else(|error| Err(MountError::new(ErrorKind::Internal, error))),
                    () = server.gone(&reply.target) => {
                        server.shut_down().await;
                        Ok(())
                    }
                }
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}
