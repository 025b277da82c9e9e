//! The command line.

mod arguments;
mod cache;
mod fstab;
mod serve;
mod status;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind as UsageKind;
use clap::{CommandFactory, Parser};
use fuse_oss::client::{Client, servers};
use fuse_oss::overlay::{leftovers, upper};
use fuse_oss::{ErrorKind, MountError, MountReply, MountRequest, UnmountMode, mountpoint};
use tracing_subscriber::EnvFilter;

use arguments::{Arguments, Command, LogArguments, LogFormat, MountArguments, UmountArguments};

/// Runs a command line and returns its exit status: 0, or after sysexits.h as [`ErrorKind::exit_code`] says.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match fstab::rewrite(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error),
    };
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            let helped = matches!(error.kind(), UsageKind::DisplayHelp | UsageKind::DisplayVersion);
            // A closed terminal is no reason for another error.
            let _ = error.print();
            return if helped { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Usage.exit_code()) };
        }
    };
    let outcome = match parsed.command {
        Command::Serve(arguments) => return serve::serve(&arguments, &parsed.log),
        Command::Keeper(arguments) => return serve::keeper(&arguments, &parsed.log),
        Command::Worker(arguments) => return serve::worker(&arguments, &parsed.log),
        Command::Manual { directory } => manual::write(Arguments::command(), &directory).map_err(|error| {
            MountError::new(ErrorKind::System, format_args!("cannot write below {}: {error}", directory.display()))
        }),
        Command::Mount(arguments) if arguments.foreground => {
            log_to_stderr(&parsed.log);
            serve::mount_in_foreground(&arguments, &parsed.log)
        }
        Command::Mount(arguments) => {
            log_to_stderr(&parsed.log);
            mount(&arguments)
        }
        Command::Umount(arguments) => {
            log_to_stderr(&parsed.log);
            umount(&arguments)
        }
        Command::Cache(arguments) => {
            log_to_stderr(&parsed.log);
            cache::run(&arguments)
        }
        Command::Status(arguments) => {
            log_to_stderr(&parsed.log);
            status::status(&arguments)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &MountError) -> ExitCode {
    eprintln!("fuse-oss: {error}");
    ExitCode::from(error.kind.exit_code())
}

/// Sends the log to standard error.
pub fn log_to_stderr(log: &LogArguments) {
    let level = match log.verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,fuse_oss={level},oss={level}")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // It can only be set once, and is.
    let _ = match log.log_format {
        // journald adds a time of its own.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() && !terminal => {
            builder.with_ansi(false).with_target(false).without_time().try_init()
        }
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// The request that the command line makes.
fn request(arguments: &MountArguments) -> Result<MountRequest, MountError> {
    let fstab = fstab::apply(arguments)?;
    let entries = fstab.entries()?;
    fuse_oss::check_entries(&entries)?;
    Ok(MountRequest {
        target: fstab.directory.clone(),
        stores: fstab.stores(&entries)?,
        entries,
        options: fstab.options(),
    })
}

fn mount(arguments: &MountArguments) -> Result<(), MountError> {
    let request = request(arguments)?;
    if fstab::apply(arguments)?.fake {
        return Ok(());
    }
    let settings = fstab::apply(arguments)?.serve_settings()?;
    let mut client = Client::connect_or_start(&settings)?;
    let MountReply { .. } = client.mount(&request)?;
    Ok(())
}

fn umount(arguments: &UmountArguments) -> Result<(), MountError> {
    let mode = if arguments.lazy { UnmountMode::Lazy } else { UnmountMode::WhenIdle };
    let target = resolve(&arguments.directory)?;
    for (mut client, status) in servers(&arguments.runtime_dir) {
        if status.mounts.iter().any(|mount| mount.target == target && !mount.detached) {
            return client.unmount(&target, mode);
        }
    }
    let nothing = |why: String| MountError::new(ErrorKind::NotMounted, why);
    match mountpoint::mounted_on(&target) {
        // Its server has died; nobody can use it any more, so nobody is disturbed.
        Some(mount) if mountpoint::is_dead(&mount) => {
            mountpoint::unmount(&target, UnmountMode::Lazy)?;
            if let Some(root) = upper::root_of(&mount) {
                leftovers::remove_dead(&root, None, false);
            }
            Ok(())
        }
        Some(mount) if mount.is_ours() => mountpoint::unmount(&target, mode),
        Some(mount) => Err(nothing(format!(
            "what is mounted on {} is not ours: {} ({}); use umount(8)",
            target.display(),
            mount.source.display(),
            mount.fs_type
        ))),
        None => Err(nothing(format!("nothing is mounted on {}; fuse-oss status shows what is", target.display()))),
    }
}

/// The absolute path of a mount point, found without touching what is mounted on it, which may be dead.
fn resolve(directory: &Path) -> Result<PathBuf, MountError> {
    let bad = |error: std::io::Error| {
        MountError::new(ErrorKind::TargetMissing, format_args!("cannot unmount {}: {error}", directory.display()))
    };
    let absolute = std::path::absolute(directory).map_err(bad)?;
    // path::absolute keeps a trailing slash and "..", canonicalize needs what is there to answer.
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if directory.file_name().is_some() => {
            let real = parent.canonicalize().map_err(bad)?.join(name);
            Ok(if mountpoint::mounted_on(&real).is_some() { real } else { real.canonicalize().unwrap_or(real) })
        }
        _ => absolute.canonicalize().map_err(bad),
    }
}
