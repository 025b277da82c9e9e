//! The directory something is mounted at: found, or made and taken away again.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::error::Cause;
use super::probe::within;
use super::table;

/// How long a local file system may take to say what is at a path.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// How often a target is made anew when its parents go away meanwhile.
const TRIES: u32 = 5;

/// `target` as it is written, when it can be one: absolute, without `..`, not the root.
pub(super) fn check(target: &Path) -> Result<PathBuf, Cause> {
    let has_parent = target.components().any(|component| component == Component::ParentDir);
    if !target.is_absolute() || has_parent || target.parent().is_none() {
        return Err(Cause::TargetNotAbsolute);
    }
    Ok(target.components().collect())
}

/// `target` without symbolic links, as far as it exists.
pub(super) fn real(target: &Path) -> Result<PathBuf, Cause> {
    let path = target.to_owned();
    let find = move || {
        let mut missing = Vec::new();
        for ancestor in path.ancestors() {
            match ancestor.canonicalize() {
                Ok(real) => return Ok(missing.iter().rev().fold(real, |real, name| real.join(name))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // A link that leads nowhere is there, and cannot be made.
                    if ancestor.symlink_metadata().is_ok() {
                        return Err(unusable("look at", ancestor, error));
                    }
                    missing.extend(ancestor.file_name());
                }
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    missing.extend(ancestor.file_name());
                }
                Err(error) => return Err(unusable("look at", ancestor, error)),
            }
        }
        Ok(path.clone())
    };
    in_time(target, find)
}

/// Makes `target` and its parents where they are missing, and says which those were, the outermost first. What is there must
/// be an empty directory: mounting over files would hide them from whoever put them there.
pub(super) fn prepare(target: &Path) -> Result<Vec<PathBuf>, Cause> {
    let path = target.to_owned();
    in_time(target, move || {
        let mut tries = 0;
        loop {
            tries += 1;
            match make(&path) {
                // Another mount, side by side, has failed and taken the parent away that it had made.
                Err(Cause::TargetUnusable { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
                result => return result,
            }
        }
    })
}

fn make(path: &Path) -> Result<Vec<PathBuf>, Cause> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match ancestor.metadata() {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(Cause::TargetIsFile { file: ancestor.to_owned() }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                missing.push(ancestor.to_owned());
            }
            Err(error) => return Err(unusable("look at", ancestor, error)),
        }
    }
    if missing.is_empty() {
        let mut entries = fs::read_dir(path).map_err(|error| unusable("look at", path, error))?;
        if entries.next().is_some() {
            return Err(Cause::TargetNotEmpty { path: path.to_owned() });
        }
    }
    let mut made = Vec::new();
    for directory in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o755).create(&directory) {
            Ok(()) => made.push(directory),
            // Another mount, side by side, has made it first: it is that one's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => {
                remove(&made);
                return Err(unusable("create", &directory, error));
            }
        }
    }
    Ok(made)
}

/// Removes directories that were made, the innermost first, as far as they are empty and nothing is mounted there.
pub(super) fn unmake(made: &[PathBuf]) {
    let made = made.to_vec();
    if within(LIMIT, move || remove(&made)).is_none() {
        tracing::warn!("directories made for a mount are not removed: their file system does not answer");
    }
}

fn remove(made: &[PathBuf]) {
    for directory in made.iter().rev() {
        // Removing a directory also detaches what other namespaces have mounted on it; in ours it is refused.
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(path = %directory.display(), %error, "a directory made for a mount stays");
                return;
            }
            _ => {}
        }
    }
}

fn unusable(action: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::TargetUnusable { action, path: path.to_owned(), source }
}

fn in_time<T: Send + 'static>(
    target: &Path,
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    within(LIMIT, work).unwrap_or_else(|| {
        let holder = match table::holder(target) {
            Some(mount) if mount.path != Path::new("/") => {
                format!("{}, which it lies in, does not answer", table::shown(&mount))
            }
            _ => "something on the way to it does not answer".to_owned(),
        };
        Err(Cause::TargetStuck { path: target.to_owned(), holder })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_is_made_and_only_that_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("there/a/b");
        fs::create_dir(root.path().join("there")).unwrap();
        let made = prepare(&target).unwrap();
        assert_eq!(made, [root.path().join("there/a"), target.clone()]);
        assert_eq!(prepare(&target).unwrap(), Vec::<PathBuf>::new());
        unmake(&made);
        assert!(root.path().join("there").is_dir() && !root.path().join("there/a").exists());
        let made = prepare(&target).unwrap();
        fs::write(root.path().join("there/a/file"), "x").unwrap();
        unmake(&made);
        assert!(!target.exists() && root.path().join("there/a/file").exists());
    }

    #[test]
    fn files_are_neither_hidden_nor_mounted_over() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        for target in [file.clone(), file.join("below/it")] {
            let error = prepare(&real(&target).unwrap()).unwrap_err();
            assert!(matches!(&error, Cause::TargetIsFile { file: found } if *found == file), "{error}");
        }
        let error = prepare(root.path()).unwrap_err().to_string();
        assert!(error.contains("is not empty and the mount would hide"), "{error}");
    }

    #[test]
    fn links_are_followed_and_must_lead_somewhere() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().canonicalize().unwrap();
        fs::create_dir(base.join("real")).unwrap();
        symlink(base.join("real"), base.join("link")).unwrap();
        symlink(base.join("none"), base.join("dangling")).unwrap();
        assert_eq!(real(&base.join("link/new/one")).unwrap(), base.join("real/new/one"));
        assert_eq!(real(&base.join("link")).unwrap(), base.join("real"));
        assert!(matches!(real(&base.join("dangling/x")), Err(Cause::TargetUnusable { .. })));
    }

    #[test]
    fn a_target_is_absolute() {
        for bad in ["", "relative", "/a/../b", "/", "E:\\x"] {
            assert!(matches!(check(Path::new(bad)), Err(Cause::TargetNotAbsolute)), "{bad}");
        }
        assert_eq!(check(Path::new("/mnt//nas/./x/")).unwrap(), Path::new("/mnt/nas/x"));
    }
}
