//! The Python environment of the tests: other people's SDKs and servers, pinned in `tests/requirements.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with the scripts that tests run.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

/// The interpreter: `TEST_PYTHON`, else the virtual environment that `make test-env` makes.
///
/// # Panics
/// When it is not there or does not have the packages, with the command that puts that right: a test that needs
/// it must fail and not be skipped quietly.
pub fn interpreter() -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test-env/bin/python");
    let python = std::env::var_os("TEST_PYTHON").map_or(made, PathBuf::from);
    let remedy = "run `make test-env`, or set TEST_PYTHON to an interpreter that has what tests/requirements.txt lists";
    let probe = Command::new(&python).args(["-c", "import oss2, alibabacloud_oss_v2, boto3, moto.server"]).output();
    match probe {
        Err(error) => panic!("the tests' Python at {} cannot be started: {error}; {remedy}", python.display()),
        Ok(output) if !output.status.success() => panic!(
            "the tests' Python at {} lacks packages: {}; {remedy}",
            python.display(),
            String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default()
        ),
        Ok(_) => python,
    }
}

/// A command that runs one of the scripts, writes no byte code beside it and takes no proxy for the doubles.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(interpreter());
    command.arg("-B").arg(scripts().join(name));
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    // The SDKs must take only what the test gives them.
    for name in std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
        if ["AWS_", "OSS_", "ALIBABA_CLOUD_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}
