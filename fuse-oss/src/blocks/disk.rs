//! The cache directory: one pair of files per object, and how much all of them may take.
//!
//! ```text
//! CACHE_DIR/lock                       who owns the directory (held with flock)
//! CACHE_DIR/objects/3f/3fa9...         an object's blocks, sparse
//! CACHE_DIR/objects/3f/3fa9....index   which blocks, and their checksums
//! ```
//!
//! Names are digests, so nothing an object is called can reach outside, and only files with such names are ever removed.
//! Whole objects are evicted, the least recently opened first.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lru::LruCache;

use super::object::{CacheFiles, ObjectId};

const INDEX_SUFFIX: &str = ".index";

/// The files and how much they take.
#[derive(Debug)]
pub struct Disk {
    objects: PathBuf,
    limit: u64,
    /// The file system is never filled beyond this many free bytes.
    floor: u64,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// Bytes per object, the least recently used first.
    sizes: LruCache<ObjectId, u64>,
    used: u64,
}

impl Disk {
    /// The cache in `dir`, which exists and is ours. What it holds from earlier is counted by [`Disk::scan`].
    ///
    /// # Errors
    /// When the `objects` directory cannot be made.
    pub fn new(dir: &Path, limit: u64, floor: u64) -> io::Result<Self> {
        let objects = dir.join("objects");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&objects)?;
        let table = Mutex::new(Table { sizes: LruCache::unbounded(), used: 0 });
        Ok(Self { objects, limit, floor, table })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that cached objects take now.
    pub fn used(&self) -> u64 {
        self.table().used
    }

    /// The most they may take.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn path(&self, id: ObjectId) -> (PathBuf, PathBuf) {
        let name = hex::encode(id.0);
        let dir = self.objects.join(&name[..2]);
        (dir.join(&name), dir.join(format!("{name}{INDEX_SUFFIX}")))
    }

    /// Opens an object's files, making them where they are missing, and marks it as used now.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(&self, id: ObjectId) -> io::Result<CacheFiles> {
        let (data, index) = self.path(id);
        if let Some(dir) = data.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let open = |path: &Path| -> io::Result<File> {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(path)
        };
        let files = CacheFiles { data: open(&data)?, index: open(&index)? };
        // The order of eviction after a restart goes by this; one that cannot be written is only a worse guess.
        let _ = files.index.set_times(fs::FileTimes::new().set_modified(SystemTime::now()));
        let _ = self.table().sizes.get(&id);
        Ok(files)
    }

    /// Counts `bytes` more for an object. When that is more than there may be, returns who has to go first, and the caller
    /// evicts them with [`Disk::removed`].
    pub fn grown(&self, id: ObjectId, bytes: u64) -> Vec<ObjectId> {
        let mut table = self.table();
        table.used += bytes;
        let size = table.sizes.get(&id).copied().unwrap_or(0) + bytes;
        table.sizes.put(id, size);
        let free = self.free().unwrap_or(u64::MAX);
        let mut excess = table.used.saturating_sub(self.limit).max(self.floor.saturating_sub(free));
        let mut victims = Vec::new();
        for (victim, size) in table.sizes.iter().rev() {
            if excess == 0 {
                break;
            }
            victims.push(*victim);
            excess = excess.saturating_sub(*size);
        }
        victims
    }

    /// Whether `bytes` more may be written without going below the free space that must stay.
    pub fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.limit && self.free().is_none_or(|free| free >= bytes.saturating_add(self.floor / 2))
    }

    fn free(&self) -> Option<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.objects).ok()?;
        Some(stat.blocks_available() * stat.fragment_size())
    }

    /// Stops counting an object whose blocks were given up.
    pub fn removed(&self, id: ObjectId) {
        let mut table = self.table();
        if let Some(size) = table.sizes.pop(&id) {
            table.used = table.used.saturating_sub(size);
        }
    }

    /// Removes an object's files. Nobody has them open.
    pub fn unlink(&self, id: ObjectId) {
        let (data, index) = self.path(id);
        for path in [index, data] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a cache file");
                }
                _ => {}
            }
        }
        self.removed(id);
    }

    /// Counts what is there from earlier, so that it is evicted in the order of its last use. Files that are not the cache's
    /// are left alone. Meant for a thread of its own.
    pub fn scan(&self) -> Vec<ObjectId> {
        let mut found: Vec<(SystemTime, ObjectId, u64)> = Vec::new();
        for shard in fs::read_dir(&self.objects).into_iter().flatten().flatten() {
            for file in fs::read_dir(shard.path()).into_iter().flatten().flatten() {
                let name = file.file_name();
                let Some(id) = name.to_str().and_then(|name| name.strip_suffix(INDEX_SUFFIX)).and_then(parse_id) else {
                    continue;
                };
                let Ok(index) = file.metadata() else { continue };
                let (data, _) = self.path(id);
                let data = fs::symlink_metadata(&data).map_or(0, |data| data.blocks() * 512);
                found.push((index.modified().unwrap_or(SystemTime::UNIX_EPOCH), id, data + index.blocks() * 512));
            }
        }
        found.sort_by_key(|(time, ..)| *time);
        {
            let mut table = self.table();
            // What was opened meanwhile is newer than everything found, and is counted from now on.
            let newer: Vec<(ObjectId, u64)> = table.sizes.iter().rev().map(|(id, size)| (*id, *size)).collect();
            for (_, id, size) in found {
                if !table.sizes.contains(&id) {
                    table.sizes.put(id, size);
                    table.used += size;
                }
            }
            for (id, _) in newer {
                table.sizes.promote(&id);
            }
        }
        self.over_limit()
    }

    fn over_limit(&self) -> Vec<ObjectId> {
        let table = self.table();
        let mut excess = table.used.saturating_sub(self.limit);
        let mut victims = Vec::new();
        for (victim, size) in table.sizes.iter().rev() {
            if excess == 0 {
                break;
            }
            victims.push(*victim);
            excess = excess.saturating_sub(*size);
        }
        victims
    }
}

fn parse_id(name: &str) -> Option<ObjectId> {
    let mut id = [0; 16];
    hex::decode_to_slice(name, &mut id).ok()?;
    Some(ObjectId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 100, 0).unwrap();
        let id = |n| ObjectId([n; 16]);
        assert!(disk.grown(id(1), 40).is_empty());
        assert!(disk.grown(id(2), 40).is_empty());
        disk.open(id(1)).unwrap();
        assert_eq!(disk.grown(id(3), 40), [id(2)]);
        disk.unlink(id(2));
        assert_eq!(disk.used(), 80);
        assert_eq!(disk.grown(id(1), 200), [id(3), id(1)]);
    }

    #[test]
    fn a_scan_finds_what_was_there_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let id = ObjectId([0xab; 16]);
        {
            let disk = Disk::new(dir.path(), 1 << 20, 0).unwrap();
            let files = disk.open(id).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&files.data, &[1; 10_000], 0).unwrap();
        }
        fs::write(dir.path().join("objects/ab/somebody-elses.index"), "x").unwrap();
        let disk = Disk::new(dir.path(), 1 << 20, 0).unwrap();
        assert!(disk.scan().is_empty());
        assert!((10_000..40_000).contains(&disk.used()), "{}", disk.used());
        let disk = Disk::new(dir.path(), 5_000, 0).unwrap();
        assert_eq!(disk.scan(), [id]);
        disk.unlink(id);
        assert_eq!(disk.used(), 0);
        assert!(dir.path().join("objects/ab/somebody-elses.index").exists());
        let mode = fs::metadata(dir.path().join("objects")).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}
