//! What a failed look or read means to the program that made it.

use std::sync::Arc;

use oss::ErrorKind;

/// Why the file system could not answer. Cheap to clone: everybody who waits for one block gets the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The store refused or failed.
    #[error("{0}")]
    Store(Arc<oss::Error>),
    /// The object is not the one that was shown any more.
    #[error("{0}")]
    Replaced(String),
    /// The mount would take too much memory.
    #[error(
        "this mount has shown {0} names, which is the most it may remember; mount narrower prefixes instead of whole buckets"
    )]
    TooManyNames(usize),
    /// One directory would take most of what the mount may take.
    #[error("the directory has more than {0} names, which is the most one may have here; see --max-names")]
    DirectoryTooLarge(usize),
    /// What a process before this one showed cannot be shown again.
    #[error("the record of what this mount has shown cannot be used: {0}; it has to be mounted anew")]
    Unrecoverable(String),
    /// A mistake of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<oss::Error> for Fault {
    fn from(error: oss::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl Fault {
    /// The error number for a lookup, a listing or an open.
    pub fn errno_at_open(&self) -> i32 {
        match self {
            Self::Store(error) => match error.kind() {
                ErrorKind::NotFound => libc::ENOENT,
                ErrorKind::Denied | ErrorKind::BadCredentials => libc::EACCES,
                ErrorKind::Changed => libc::ESTALE,
                _ => libc::EIO,
            },
            Self::Replaced(_) => libc::ESTALE,
            Self::TooManyNames(_) | Self::DirectoryTooLarge(_) => libc::ENOMEM,
            Self::Unrecoverable(_) | Self::Internal(_) => libc::EIO,
        }
    }

    /// The error number for a read: what was there when the file was opened and is gone now has been changed.
    pub fn errno_at_read(&self) -> i32 {
        match self.errno_at_open() {
            libc::ENOENT => libc::ESTALE,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_the_error_number_of_the_cause() {
        let fault = |kind| Fault::from(oss::Error::new(kind, "GET", "oss://b/k", "no"));
        for (kind, open, read) in [
            (ErrorKind::NotFound, libc::ENOENT, libc::ESTALE),
            (ErrorKind::Changed, libc::ESTALE, libc::ESTALE),
            (ErrorKind::Denied, libc::EACCES, libc::EACCES),
            (ErrorKind::Unavailable, libc::EIO, libc::EIO),
            (ErrorKind::Archived, libc::EIO, libc::EIO),
        ] {
            assert_eq!((fault(kind.clone()).errno_at_open(), fault(kind).errno_at_read()), (open, read));
        }
    }
}
