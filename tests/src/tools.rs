//! Programs that are not ours: suites that `tests/run.sh` installs, and what Debian has.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// One of the suites that `tests/run.sh` installs beside the tests' Python.
///
/// # Panics
/// When it is not there, with the command that installs it.
pub fn suite(name: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test-env/bin");
    let beside_python = env::var_os("TEST_PYTHON").and_then(|python| Path::new(&python).parent().map(Path::to_owned));
    let found = [own].into_iter().chain(beside_python).map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("the suite {name} is not installed; run `make test-env`"))
}

/// A program of the system.
///
/// # Panics
/// When it is not there, with the package that has it.
pub fn system(name: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("there is no {name}; run `make test-env`, or install the package {package}"))
}

/// A command that is ended, with what it has started, when it is not done after `seconds`: exit status 124. It says so even when the
/// test that waits for it is no more.
pub fn limited(seconds: u64, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &seconds.to_string()]).arg(program).stdin(Stdio::null());
    // What is printed is compared, and nobody's settings are wanted.
    command.env_clear().env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    for name in ["PATH", "HOME"] {
        command.envs(env::var_os(name).map(|value| (name, value)));
    }
    command
}

/// Runs a command to its end.
///
/// # Panics
/// Unless it ends well, with what it has said.
#[track_caller]
pub fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}\n{}\n{}", output.status, said(&output));
    output
}

/// All that a command has said.
pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Runs a shell script that stops at the first failure, in `directory`, with these variables, within two minutes; what it printed.
///
/// # Panics
/// Unless it ends well, with what it has said.
#[track_caller]
pub fn shell(directory: &Path, variables: &[(&str, &OsStr)], script: &str) -> String {
    let mut command = limited(120, "/bin/bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(directory).envs(variables.iter().copied());
    let output = done(&mut command);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
