//! The writable view of a bucket: what a program gets that was written for a local disk.
//!
//! ```no_run
//! use tests::bucket::{Bucket, sample};
//! use tests::view::View;
//!
//! let view = View::of(Bucket::new());
//! view.bucket.put("object", sample(1, 5_000_000));
//! view.mount();
//! std::fs::write(view.path("object"), "something else").unwrap();
//! view.unmount(); // and the store still has what it had
//! ```

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bucket::Bucket;
use crate::double::Operation;
use crate::tools;

/// A writable view. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct View {
    /// What it is a view of.
    pub bucket: Bucket,
}

impl View {
    /// A view of this bucket, which is not mounted yet. Others than root may look inside and make files.
    ///
    /// # Panics
    /// When its directories cannot be made.
    pub fn of(bucket: Bucket) -> Self {
        let bucket = bucket.argument("--allow-other").argument("--dir-mode=0755");
        let upper = bucket.sandbox.path("upper");
        fs::create_dir(&upper).expect("a new sandbox has none");
        // Other users, where a test has them, must get as far as the mount.
        fs::set_permissions(bucket.sandbox.path(""), Permissions::from_mode(0o711)).expect("it is ours");
        Self { bucket }
    }

    /// Mounts it.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount(&self) {
        let sandbox = &self.bucket.sandbox;
        let lower = sandbox.path("lower");
        self.bucket.mount_at(&lower);
        for name in ["upper/upper", "upper/work"] {
            fs::create_dir_all(sandbox.path(name)).expect("ours");
        }
        fs::set_permissions(sandbox.path("upper/upper"), Permissions::from_mode(0o755)).expect("ours");
        let options = format!(
            "lowerdir={},upperdir={},workdir={},metacopy=on,redirect_dir=on,xino=on,nosuid,nodev",
            lower.display(),
            sandbox.path("upper/upper").display(),
            sandbox.path("upper/work").display()
        );
        tools::done(Command::new("mount").args(["-t", "overlay", "view", "-o", &options]).arg(self.root()));
    }

    /// Mounts the same bucket a second time, as it is, with the same server.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount_read_only(&self) {
        self.bucket.mount_with(&self.read_only(), &[]);
    }

    /// Where that is.
    pub fn read_only(&self) -> PathBuf {
        self.bucket.sandbox.path("read-only")
    }

    /// Where it is.
    pub fn root(&self) -> PathBuf {
        self.bucket.sandbox.mnt()
    }

    /// Where something in it is.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    /// The directory, on the disk below, that holds what was changed.
    pub fn upper(&self) -> PathBuf {
        self.bucket.sandbox.path("upper")
    }

    /// Unmounts it, and the mount of the bucket as it is, if there is one.
    ///
    /// # Panics
    /// When it is in use, and when anything but reads and listings has reached the store, whatever was done in the view.
    pub fn unmount(&self) {
        tools::done(Command::new("umount").arg(self.root()));
        tools::done(Command::new("umount").arg(self.bucket.sandbox.path("lower")));
        if self.read_only().exists() {
            tools::done(Command::new("umount").arg(self.read_only()));
        }
        self.nothing_was_uploaded();
    }

    /// # Panics
    /// When anything but reads and listings has reached the store.
    #[track_caller]
    pub fn nothing_was_uploaded(&self) {
        let reads = [
            Operation::GetObject,
            Operation::HeadObject,
            Operation::ListObjects,
            Operation::GetLocation,
            Operation::HeadBucket,
        ];
        let others: Vec<_> =
            self.bucket.double.requests().into_iter().filter(|request| !reads.contains(&request.operation)).collect();
        assert!(others.is_empty(), "the store was asked for more than reads and listings: {others:?}");
    }
}
