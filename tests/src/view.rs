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

use crate::bucket::Bucket;
use crate::double::Operation;
use crate::mounts::wait_until;

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
        let upper = bucket.sandbox.path("upper");
        let bucket = ["--writable", "--allow-other", "--dir-mode=0755", &format!("--upper={}", upper.display())]
            .into_iter()
            .fold(bucket, Bucket::argument);
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
        self.bucket.mount();
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
    /// When it is in use, when something of what was written stays on the disk, and when anything but reads and listings has reached the store, whatever was done in the view.
    pub fn unmount(&self) {
        self.bucket.sandbox.umount();
        if self.read_only().exists() {
            self.bucket.sandbox.run(["umount".as_ref(), self.read_only().as_os_str()]).succeeded();
        }
        wait_until("what was written is gone", || fs::read_dir(self.upper()).expect("ours").next().is_none());
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
