//! `fuse-oss`: mounts object storage, serves the mounts, and says what is mounted.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Nothing may run before this: going into the background forks.
    cli::run(std::env::args_os().collect())
}
