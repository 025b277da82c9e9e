//! The programs under test, as cargo has built them beside the tests.

use std::path::PathBuf;

/// The program `name` of this workspace.
///
/// # Panics
/// When it has not been built, with the command that builds it: cargo does not build the programs of other crates for a test.
pub fn path(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    // target/PROFILE/deps/TEST-HASH
    let directory = test.ancestors().nth(2).expect("tests lie two levels below the profile's directory");
    let path = directory.join(name);
    assert!(path.exists(), "{} is missing; run: cargo build --workspace --bins", path.display());
    path
}
