//! Names: which ones are allowed, and what the objects are called that a job leaves behind.
//!
//! A task's name and a job's id become components of paths and of object names, and the latter may lie in a local
//! directory (`file://`). So both are checked once, where they come in, and trusted after that.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use oss::Location;

use super::description::LogFile;
use super::finding::is_deceptive;

/// The longest name of a job or task, in bytes. It leaves room for what is put around it (`manifest.<job>.<name>.<n>.json`)
/// in the 255 bytes of a file name; the service's own limit was 64 characters.
pub const MAX_NAME: usize = 128;

/// The longest job id, in bytes.
pub const MAX_JOB_ID: usize = 64;

/// Why a name cannot be used. The text says what is wrong and what is right, and follows "the name ...".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("is empty; use letters, digits, '-' and '_'")]
    Empty,
    /// It is longer than allowed.
    #[error("is longer than {0} bytes; use a shorter one")]
    TooLong(usize),
    /// It is `.` or `..`, or begins in a way that programs take for something else.
    #[error("begins with {0:?}; begin it with a letter or digit")]
    BadStart(char),
    /// It holds a character that cannot be part of a path component, or that cannot be seen.
    #[error("holds {0:?}; use letters, digits, '-' and '_'")]
    BadCharacter(char),
}

/// Checks the name of a job or task.
///
/// # Errors
/// When the name is empty, over [`MAX_NAME`], begins with `.` or `-`, or holds `/`, `\`, a control character, or a space at
/// an end.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong(MAX_NAME));
    }
    let bad = name.chars().find(|c| is_deceptive(*c) || matches!(c, '/' | '\\'));
    if let Some(bad) = bad {
        return Err(NameError::BadCharacter(bad));
    }
    match (name.chars().next(), name.chars().next_back()) {
        (Some(first @ ('.' | '-')), _) => Err(NameError::BadStart(first)),
        (Some(first), _) if first.is_whitespace() => Err(NameError::BadStart(first)),
        (_, Some(last)) if last.is_whitespace() => Err(NameError::BadCharacter(last)),
        _ => Ok(()),
    }
}

/// The id of one run of a job: 1 to 64 letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// A new id in the service's form: `job-` and 24 hexadecimal digits, 16 of the time in seconds and 8 random ones.
    pub fn new(at: SystemTime, random: u32) -> Self {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self(format!("job-{seconds:016X}{random:08X}"))
    }

    /// [`JobId::new`] for now.
    pub fn generate() -> Self {
        Self::new(SystemTime::now(), fastrand::u32(..))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let first = text.chars().next().ok_or(NameError::Empty)?;
        if text.len() > MAX_JOB_ID {
            return Err(NameError::TooLong(MAX_JOB_ID));
        }
        if let Some(bad) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-')) {
            return Err(NameError::BadCharacter(bad));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::BadStart(first));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One attempt of one instance, and the names of the objects it leaves.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The job's id.
    pub job: &'a str,
    /// The task's name.
    pub task: &'a str,
    /// The instance, from 0.
    pub instance: u32,
    /// The attempt, from 1. The first has no number in its names, so that they are the service's.
    pub number: u32,
}

impl Attempt<'_> {
    /// `stdout.<job>.<task>.<instance>`, with `.<attempt>` from the second attempt on.
    pub fn stdout(&self) -> String {
        format!("stdout.{self}")
    }

    /// The same for stderr.
    pub fn stderr(&self) -> String {
        format!("stderr.{self}")
    }

    /// `manifest.<job>.<task>.<instance>.json`, what was uploaded. It is the instance's and not the attempt's: the last
    /// attempt's outputs are the ones that count.
    pub fn manifest(&self) -> String {
        format!("manifest.{}.{}.{}.json", self.job, self.task, self.instance)
    }

    /// `metrics.<job>.<task>.<instance>.jsonl`, what was used, with the attempt as in [`Attempt::stdout`].
    pub fn metrics(&self) -> String {
        format!("metrics.{self}.jsonl")
    }

    /// `report.<job>.<task>.<instance>.html`, everything about it for a person. It is the instance's, as the manifest.
    pub fn report(&self) -> String {
        format!("report.{}.{}.{}.html", self.job, self.task, self.instance)
    }

    /// Where a log file of the program's own goes: `<directory><basename>.<job>.<task>.<instance>`, with the attempt as in
    /// [`Attempt::stdout`]; or the very object, when the mapping names one.
    pub fn log(&self, log: &LogFile) -> Location {
        if !log.target.is_directory() {
            return log.target.clone();
        }
        let base = log.source.file_name().unwrap_or_default().to_string_lossy();
        log.target.join(&format!("{base}.{self}"))
    }
}

/// `<job>.<task>.<instance>`, with `.<attempt>` from the second attempt on.
impl fmt::Display for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.job, self.task, self.instance)?;
        if self.number > 1 {
            write!(f, ".{}", self.number)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_real_clients_are_allowed() {
        for name in ["task", "my-task", "cromwell_38b088b2_echo", "wf.step 1", "数据", "a", &"x".repeat(128)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_are_no_path_components_are_refused() {
        for (name, message) in [
            ("", "is empty; use letters, digits, '-' and '_'"),
            ("a/b", "holds '/'; use letters, digits, '-' and '_'"),
            ("..", "begins with '.'; begin it with a letter or digit"),
            (".", "begins with '.'; begin it with a letter or digit"),
            (".hidden", "begins with '.'; begin it with a letter or digit"),
            ("-rf", "begins with '-'; begin it with a letter or digit"),
            (" a", "begins with ' '; begin it with a letter or digit"),
            ("a ", "holds ' '; use letters, digits, '-' and '_'"),
            ("a\0", "holds '\\0'; use letters, digits, '-' and '_'"),
            ("a\nb", "holds '\\n'; use letters, digits, '-' and '_'"),
            ("a\u{202e}b", "holds '\\u{202e}'; use letters, digits, '-' and '_'"),
            (&"x".repeat(129), "is longer than 128 bytes; use a shorter one"),
        ] {
            assert_eq!(check_name(name).unwrap_err().to_string(), message, "{name:?}");
        }
    }

    #[test]
    fn made_up_ids_look_like_the_services() {
        let id = JobId::new(UNIX_EPOCH + Duration::from_secs(0x5B0E_7C4A), 0x12A3);
        assert_eq!(id.as_str(), "job-000000005B0E7C4A000012A3");
        assert_ne!(JobId::generate(), JobId::generate());
        let id = JobId::generate();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert_eq!(id.as_str().len(), 28);
    }

    #[test]
    fn given_ids_are_checked() {
        assert_eq!("run-7.b".parse::<JobId>().unwrap().to_string(), "run-7.b");
        for bad in ["", "..", "-x", "a/b", "a b", "a\n", "é", &"x".repeat(65)] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn objects_are_named_as_the_service_names_them() {
        let first = Attempt { job: "job-1", task: "count", instance: 2, number: 1 };
        let second = Attempt { number: 2, ..first };
        assert_eq!(first.stdout(), "stdout.job-1.count.2");
        assert_eq!(first.stderr(), "stderr.job-1.count.2");
        assert_eq!(second.stdout(), "stdout.job-1.count.2.2");
        assert_eq!(second.manifest(), "manifest.job-1.count.2.json");
        let log = |target: &str| LogFile { source: "/home/admin/my.log".into(), target: target.parse().unwrap() };
        assert_eq!(first.log(&log("oss://b/logs/")).to_string(), "oss://b/logs/my.log.job-1.count.2");
        assert_eq!(second.log(&log("oss://b/")).to_string(), "oss://b/my.log.job-1.count.2.2");
        assert_eq!(first.log(&log("oss://b/a.log")).to_string(), "oss://b/a.log");
    }

    proptest! {
        #[test]
        fn allowed_names_are_single_path_components(name in any::<String>()) {
            if check_name(&name).is_ok() {
                let mut components = std::path::Path::new(&name).components();
                prop_assert!(matches!(components.next(), Some(std::path::Component::Normal(_))));
                prop_assert!(components.next().is_none());
                prop_assert!(name.len() + "manifest...4294967295.json".len() + MAX_JOB_ID <= 255);
            }
        }
    }
}
