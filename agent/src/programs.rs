//! Where the system's programs are.
//!
//! A privileged agent never asks `PATH`: it runs what the system has installed, by absolute path. The list of directories is a
//! value so that a system that keeps them elsewhere can say so, and so that tests can put doubles in their place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nvme_setup::command::Command;

/// Directories in which programs are looked for, the first hit counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    directories: Vec<PathBuf>,
}

impl Programs {
    /// The directories of every Linux system.
    pub const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

    /// Programs in these directories. One that is not absolute is left out: what it means would depend on where the agent was
    /// started.
    pub fn new(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { directories: directories.into_iter().filter(|directory| directory.is_absolute()).collect() }
    }

    /// Where the program `name` is, if anywhere.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file())
    }

    /// The program `name` as a command that may take so long.
    pub fn command(&self, name: &str, limit: Duration) -> Option<Command> {
        self.find(name).map(|path| Command::at(path, limit))
    }

    /// The directories, for messages.
    pub fn shown(&self) -> String {
        let shown: Vec<String> = self.directories.iter().map(|path: &PathBuf| path.display().to_string()).collect();
        shown.join(", ")
    }
}

impl Default for Programs {
    fn default() -> Self {
        Self::new(Self::DIRECTORIES.map(|directory| Path::new(directory).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_that_has_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("a"), root.path().join("b"));
        for (directory, name) in [(&first, "only-first"), (&first, "both"), (&second, "both"), (&second, "last")] {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join(name), "").unwrap();
        }
        std::fs::create_dir(first.join("last")).unwrap();
        let programs = Programs::new([first.clone(), second.clone(), "relative".into()]);
        assert_eq!(programs.find("both"), Some(first.join("both")));
        assert_eq!(programs.find("last"), Some(second.join("last")), "a directory is no program");
        assert_eq!(programs.find("none"), None);
        assert!(!programs.shown().contains("relative"));
        assert!(Programs::default().find("sh").is_some());
    }
}
