//! The same files in three places: on the local disk, in a mount, and in a writable view; and what comes out there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use tests::bucket::Bucket;
use tests::mounts::Sandbox;
use tests::tools;
use tests::view::View;

/// Files by name and what is in them.
pub type Files = BTreeMap<String, Bytes>;

/// The places. Mount and view are of one bucket, because a file's time is that of its object.
#[derive(Debug)]
pub struct Places {
    view: View,
}

impl Places {
    /// Puts the files there and mounts them.
    pub fn with(files: &Files) -> Self {
        let places = Self { view: View::of(Bucket::new()) };
        for (name, bytes) in files {
            places.view.bucket.put(name, bytes.clone());
        }
        places.view.mount();
        places.view.mount_read_only();
        let local = places.local();
        for (name, bytes) in files {
            let path = local.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            // As a mount shows it, so that an archive of it is the same.
            let file = File::open(&path).unwrap();
            let modified = fs::metadata(places.view.read_only().join(name)).unwrap().modified().unwrap();
            file.set_times(FileTimes::new().set_modified(modified)).unwrap();
            file.set_permissions(Permissions::from_mode(0o555)).unwrap();
        }
        places
    }

    fn sandbox(&self) -> &Sandbox {
        &self.view.bucket.sandbox
    }

    fn local(&self) -> PathBuf {
        self.sandbox().path("local")
    }

    /// Runs a script in a new directory in each place, with the files in `$IN`, and compares what it has printed and made with what
    /// came of it on the local disk; that is given back. In the view the new directory is in the view too.
    pub fn same(&self, name: &str, variables: &[(&str, &OsStr)], script: &str) -> (String, Files) {
        let beside = |place: &str| self.sandbox().path(&format!("{name}.{place}"));
        let runs = [
            ("local disk", self.local(), beside("local")),
            ("mount", self.view.read_only(), beside("mount")),
            ("view", self.view.root(), self.view.path(format!("{name}.out"))),
        ];
        let mut expected: Option<(String, Files)> = None;
        for (place, input, output) in runs {
            fs::create_dir(&output).unwrap();
            // Each has to fetch what it reads.
            self.sandbox().run(["cache", "clear"]).succeeded();
            let mut variables = variables.to_vec();
            variables.push(("IN", input.as_os_str()));
            let printed = tools::shell(&output, &variables, script);
            let made = tree(&output);
            match &expected {
                None => expected = Some((printed, made)),
                Some((wanted, files)) => {
                    assert_eq!(&printed, wanted, "{name} on the {place} prints something else");
                    assert_eq!(differences(files, &made), [""; 0], "{name} on the {place} makes other files");
                }
            }
        }
        expected.unwrap()
    }

    /// A copy of the files that may be changed, with their times.
    pub fn copy(&self) -> PathBuf {
        let copy = self.sandbox().path("copy");
        tools::done(Command::new("cp").arg("-a").arg(self.local()).arg(&copy));
        copy
    }

    /// The view, for what is done there only.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Unmounts everything; nothing may be in use or uploaded.
    pub fn end(self) {
        self.view.unmount();
    }
}

/// All files below a directory, those in `__pycache__` left out: byte code holds the place of its source.
pub fn tree(root: &Path) -> Files {
    let mut files = Files::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                if !path.ends_with("__pycache__") {
                    directories.push(path);
                }
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let bytes = if kind.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            files.insert(name, bytes.into());
        }
    }
    files
}

/// The names of what is not the same in both.
pub fn differences(one: &Files, other: &Files) -> Vec<String> {
    let mut names: Vec<&String> = one.keys().chain(other.keys()).collect();
    names.sort();
    names.dedup();
    names.into_iter().filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}
