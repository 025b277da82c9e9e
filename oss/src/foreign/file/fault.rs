//! What an error of the file system means.

use std::io;

use nix::libc;

use super::name::NameError;
use crate::error::{Error, ErrorKind};
use crate::location::Location;

/// The store's error for what the file system answered to `operation` on `target`.
pub(super) fn from_io(operation: &'static str, target: &Location, error: io::Error) -> Error {
    let (kind, message) = match error.raw_os_error() {
        Some(libc::ENOENT) => (ErrorKind::NotFound, "there is no such file".to_owned()),
        Some(libc::EACCES | libc::EPERM) => {
            (ErrorKind::Denied, format!("the file system does not allow it to this user ({error})"))
        }
        Some(libc::EROFS) => (ErrorKind::Denied, "the file system is mounted read-only".to_owned()),
        Some(libc::ENOSPC) => {
            (ErrorKind::Unavailable, "the file system is full: free space or inodes on it".to_owned())
        }
        Some(libc::EDQUOT) => (ErrorKind::Unavailable, "the disk quota is used up: free space or raise it".to_owned()),
        Some(libc::EFBIG) => (ErrorKind::Invalid, "the file system holds no file of that size".to_owned()),
        Some(libc::EEXIST) => (ErrorKind::AlreadyExists, "there is a file of that name already".to_owned()),
        Some(libc::ENOTDIR) => {
            (ErrorKind::Invalid, "a part of the path is a file; a local file cannot lie below another".to_owned())
        }
        Some(libc::EISDIR) => {
            (ErrorKind::Invalid, "there is a directory of that name; an object cannot replace it".to_owned())
        }
        Some(libc::ELOOP) => {
            (ErrorKind::Invalid, "it is a symbolic link, which is not followed: name the file itself".to_owned())
        }
        Some(libc::ENAMETOOLONG) => (ErrorKind::Invalid, "the name is too long for the file system".to_owned()),
        Some(libc::EILSEQ | libc::EINVAL) => {
            (ErrorKind::Invalid, format!("the file system does not accept the name ({error})"))
        }
        Some(libc::ESTALE) => (ErrorKind::Changed, "the file was replaced on the file server meanwhile".to_owned()),
        Some(libc::EMFILE | libc::ENFILE) => {
            (ErrorKind::Unavailable, format!("out of file descriptors ({error}): raise the limit (LimitNOFILE)"))
        }
        _ => (ErrorKind::Unavailable, format!("the file system failed: {error}")),
    };
    Error::new(kind, operation, target, message).with_source(error)
}

/// As [`from_io`] for reading: below a file there is nothing.
pub(super) fn from_read(operation: &'static str, target: &Location, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOTDIR) => {
            Error::new(ErrorKind::NotFound, operation, target, "there is no such file").with_source(error)
        }
        _ => from_io(operation, target, error),
    }
}

/// The store's error for a key that cannot be a path.
pub(super) fn from_name(operation: &'static str, target: &Location, error: NameError) -> Error {
    Error::new(ErrorKind::Invalid, operation, target, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::Scheme;

    #[test]
    fn what_the_kernel_says_is_what_the_caller_must_know() {
        let location = Location::new(Scheme::File, "", "a/b").unwrap();
        for (number, kind, text) in [
            (libc::ENOENT, ErrorKind::NotFound, "no such file"),
            (libc::EACCES, ErrorKind::Denied, "does not allow"),
            (libc::EROFS, ErrorKind::Denied, "read-only"),
            (libc::ENOSPC, ErrorKind::Unavailable, "the file system is full"),
            (libc::EDQUOT, ErrorKind::Unavailable, "quota"),
            (libc::EEXIST, ErrorKind::AlreadyExists, "already"),
            (libc::ENOTDIR, ErrorKind::Invalid, "a part of the path is a file"),
            (libc::ELOOP, ErrorKind::Invalid, "symbolic link"),
            (libc::ESTALE, ErrorKind::Changed, "replaced"),
            (libc::EIO, ErrorKind::Unavailable, "the file system failed"),
        ] {
            let error = from_io("PUT", &location, io::Error::from_raw_os_error(number));
            assert_eq!(*error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with("PUT file:///a/b: ") && error.to_string().contains(text), "{error}");
        }
        let below_a_file = from_read("GET", &location, io::Error::from_raw_os_error(libc::ENOTDIR));
        assert_eq!(*below_a_file.kind(), ErrorKind::NotFound);
    }
}
