//! Whether this kernel can mount Lustre, found out before it is tried.
//!
//! Lustre is not part of Linux: its modules are built for one kernel each, and after an update of the kernel they no longer
//! fit. The mount command then says "No such device" and nothing else, so the module is loaded first, and what `modprobe`
//! says is passed on with the name of the package to install.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nvme_setup::command::CommandError;

use super::diagnosis::said;
use super::error::Cause;
use super::packages::System;
use crate::programs::Programs;

/// How long loading a module may take. It sets up the network stack of Lustre, which takes seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Loads the module when the kernel does not know Lustre yet.
pub(super) fn load_module(programs: &Programs, left: Duration, cancelled: &Arc<AtomicBool>) -> Result<(), Cause> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("lustre")) {
        return Ok(());
    }
    // Without modprobe nothing can be loaded beforehand; the kernel is asked by mounting.
    let Some(command) = programs.command("modprobe", left.min(LIMIT)) else { return Ok(()) };
    let missing = |said: String| {
        let system = System::here();
        let install = system.lustre_client();
        Cause::ModuleMissing { module: "lustre", kernel: system.kernel, said, install }
    };
    match command.args(["lustre"]).cancelled_by(cancelled).run() {
        Ok(output) if output.code() == Some(0) => Ok(()),
        Ok(output) => Err(missing(said(&String::from_utf8_lossy(&output.stderr)))),
        Err(CommandError::Cancelled { .. }) => Err(Cause::Cancelled),
        Err(error @ CommandError::Deadline { .. }) => Err(missing(error.to_string())),
        Err(error) => Err(Cause::System(error.to_string())),
    }
}
