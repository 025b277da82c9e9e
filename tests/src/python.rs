//! The Python environment of the tests: other people's SDKs and servers, pinned in `tests/requirements.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder with the scripts that tests run.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

const REMEDY: &str =
    "run `make test-env`, or set TEST_PYTHON to an interpreter that has what tests/requirements.txt lists";

/// The interpreter: `TEST_PYTHON`, else the virtual environment that `make test-env` makes.
///
/// # Panics
/// When it is not there or does not have the packages, with the command that puts that right: a test that needs
/// it must fail and not be skipped quietly.
pub fn interpreter() -> &'static Path {
    static CHECKED: OnceLock<PathBuf> = OnceLock::new();
    CHECKED.get_or_init(|| {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test-env/bin/python");
        let python = std::env::var_os("TEST_PYTHON").map_or(made, PathBuf::from);
        match check(&python) {
            Ok(()) => python,
            Err(message) => panic!("{message}"),
        }
    })
}

/// Looks whether an interpreter can be started and has the packages, without the seconds that importing them takes.
fn check(python: &Path) -> Result<(), String> {
    let probe = "import importlib.util, sys
names = ['oss2', 'alibabacloud_oss_v2', 'boto3', 'moto', 'flask', 'mns', 'standardwebhooks']
missing = [name for name in names if importlib.util.find_spec(name) is None]
sys.exit('no ' + ', '.join(missing) if missing else 0)";
    let output = Command::new(python)
        .args(["-c", probe])
        .output()
        .map_err(|error| format!("the tests' Python at {} cannot be started: {error}; {REMEDY}", python.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or("it says nothing");
    Err(format!("the tests' Python at {} lacks packages: {said}; {REMEDY}", python.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_interpreter_is_named_with_the_remedy() {
        for (python, why) in [("/nonexistent/python", "cannot be started"), ("/bin/false", "lacks packages")] {
            let message = check(Path::new(python)).unwrap_err();
            assert!(
                message.contains(python) && message.contains(why) && message.contains("make test-env"),
                "{message}"
            );
        }
    }
}
