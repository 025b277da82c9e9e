//! The files that settings are in: which ones, and whether they can be trusted.
//!
//! What they say is done as root, so nobody else may be able to say it: each file, and each directory on the way to it,
//! belongs to root (or to whoever runs this) and is not writable by others. A sticky directory such as `/tmp` is fine,
//! because others cannot replace what is in it. A file that holds storage keys must not be readable by others either.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SettingsError;
use crate::job::MAX_BYTES;

/// Write permission for group or others.
const OTHERS_WRITE: u32 = 0o022;

/// Read permission for group or others.
const OTHERS_READ: u32 = 0o044;

/// Others cannot remove or rename what is not theirs.
const STICKY: u32 = 0o1000;

/// One file, read.
pub(super) struct SettingsFile {
    /// Its path, for messages.
    pub name: Arc<str>,
    pub text: String,
    /// Whether group or others can read it.
    pub is_open: bool,
}

/// The files of a directory such as `/etc/batch-agent`, in the order in which they are merged: `node.yaml`, then
/// `node.yaml.d/*.yaml` by their names, byte by byte. Also what in there looks like settings and is none.
pub(super) fn find(directory: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), SettingsError> {
    let main = directory.join("node.yaml");
    let mut files = Vec::new();
    match fs::symlink_metadata(&main) {
        Ok(_) => files.push(main),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(cause) => return Err(SettingsError::File { path: main, cause }),
    }
    let more = directory.join("node.yaml.d");
    let failed = |cause| SettingsError::File { path: more.clone(), cause };
    let entries = match fs::read_dir(&more) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((files, Vec::new())),
        Err(cause) => return Err(failed(cause)),
    };
    let (mut used, mut ignored) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        // What begins with a dot is an editor's.
        if name.starts_with(b".") {
            continue;
        }
        match path.extension() {
            Some(extension) if extension == "yaml" => used.push(path),
            Some(extension) if extension == "yml" || extension == "json" => ignored.push(path),
            _ => {}
        }
    }
    used.sort();
    ignored.sort();
    files.append(&mut used);
    Ok((files, ignored))
}

/// Reads a file that can be trusted.
pub(super) fn read(path: &Path) -> Result<SettingsFile, SettingsError> {
    let failed = |cause| SettingsError::File { path: path.to_owned(), cause };
    // Not waiting for somebody to write into it, should it be a pipe.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file")));
    }
    check(path, &metadata)?;
    let real = fs::canonicalize(path).map_err(failed)?;
    // The way that was written, too: a symbolic link in it leads wherever its owner likes.
    let written = std::path::absolute(path).map_err(failed)?;
    for directory in real.ancestors().skip(1).chain(written.ancestors().skip(1)) {
        let metadata =
            fs::metadata(directory).map_err(|cause| SettingsError::File { path: directory.to_owned(), cause })?;
        if metadata.mode() & STICKY == 0 {
            check(directory, &metadata)?;
        }
    }
    let text = text(file).map_err(failed)?;
    Ok(SettingsFile { name: path.to_string_lossy().into(), text, is_open: metadata.mode() & OTHERS_READ != 0 })
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), SettingsError> {
    let us = nix::unistd::geteuid().as_raw();
    match refusal(metadata.uid(), metadata.mode(), us) {
        None => Ok(()),
        Some((cause, command)) => Err(SettingsError::Unsafe { path: path.to_owned(), cause, command }),
    }
}

/// Why a file or directory of that owner and mode cannot be trusted by `us`, and what to do about it.
fn refusal(owner: u32, mode: u32, us: u32) -> Option<(String, &'static str)> {
    if owner != 0 && owner != us {
        return Some((format!("belongs to the user {owner}, who could change it at any time"), "chown root"));
    }
    (mode & OTHERS_WRITE != 0).then(|| (format!("can be changed by others (mode {:04o})", mode & 0o7777), "chmod go-w"))
}

fn text(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    // One byte more than allowed shows that there is more.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {} MiB", MAX_BYTES >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not UTF-8: byte {at} is not; save it as UTF-8 text"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_root_and_we_may_have_a_say() {
        for (owner, mode, us, refused) in [
            (0, 0o100_644, 0, false),
            (0, 0o100_600, 1000, false),
            (1000, 0o100_600, 1000, false),
            (1000, 0o100_600, 0, true),
            (1001, 0o100_600, 1000, true),
            (0, 0o100_664, 0, true),
            (0, 0o100_602, 0, true),
            (0, 0o040_755, 0, false),
        ] {
            assert_eq!(refusal(owner, mode, us).is_some(), refused, "{owner} {mode:o} {us}");
        }
    }

    #[test]
    fn files_are_merged_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(find(directory.path()).unwrap(), (vec![], vec![]));
        fs::create_dir(at("node.yaml.d")).unwrap();
        for name in
            ["node.yaml.d/9.yaml", "node.yaml.d/10.yaml", "node.yaml.d/x.yml", "node.yaml.d/.#a.yaml", "node.yaml"]
        {
            fs::write(at(name), "").unwrap();
        }
        let expected = [at("node.yaml"), at("node.yaml.d/10.yaml"), at("node.yaml.d/9.yaml")];
        assert_eq!(find(directory.path()).unwrap(), (expected.to_vec(), vec![at("node.yaml.d/x.yml")]));
    }

    #[test]
    fn what_others_can_change_is_refused_with_the_command_that_helps() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.yaml");
        fs::write(&path, "\u{feff}a: 1").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let shown = path.display().to_string();

        mode(&path, 0o644);
        let file = read(&path).unwrap();
        assert_eq!((file.text.as_str(), file.is_open), ("a: 1", true));
        mode(&path, 0o600);
        assert!(!read(&path).unwrap().is_open);

        mode(&path, 0o666);
        let error = read(&path).err().unwrap().to_string();
        assert_eq!(error, format!("{shown} can be changed by others (mode 0666); run: chmod go-w {shown}"));
        mode(&path, 0o600);
        mode(directory.path(), 0o777);
        let error = read(&path).err().unwrap().to_string();
        assert!(error.contains("can be changed by others (mode 0777); run: chmod go-w"), "{error}");
        mode(directory.path(), 0o1777);
        assert!(read(&path).is_ok(), "in a sticky directory nobody can replace it");

        let error = read(directory.path()).err().unwrap().to_string();
        assert!(error.ends_with("it is no ordinary file"), "{error}");
        let error = read(&directory.path().join("other")).err().unwrap().to_string();
        assert!(error.contains("No such file"), "{error}");
        fs::write(&path, b"a: \xff").unwrap();
        assert!(read(&path).err().unwrap().to_string().contains("byte 3"));
    }
}
