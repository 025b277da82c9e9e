//! Whether the scratch disk ran full.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

/// A disk with less than this free is full: a program that got ENOSPC leaves a few blocks that its next file did not fit in.
const FULL: u64 = 2 << 20;
/// A program that fills a disk often removes what it wrote when it gives up, so the lowest point has to be seen in passing.
const INTERVAL: Duration = Duration::from_millis(200);

/// Watches the free space of a disk while it exists.
#[derive(Debug)]
pub struct DiskWatch {
    path: std::path::PathBuf,
    lowest: Arc<AtomicU64>,
    watcher: JoinHandle<()>,
}

impl DiskWatch {
    /// Watches the disk that holds `path`.
    pub fn start(path: &Path) -> Self {
        let lowest = Arc::new(AtomicU64::new(u64::MAX));
        let watcher = tokio::spawn({
            let (path, lowest) = (path.to_owned(), Arc::clone(&lowest));
            async move {
                let mut interval = tokio::time::interval(INTERVAL);
                loop {
                    interval.tick().await;
                    lowest.fetch_min(free(&path), Ordering::Relaxed);
                }
            }
        });
        Self { path: path.to_owned(), lowest, watcher }
    }

    /// Whether the disk has been full since the watch began.
    pub fn was_full(&self) -> bool {
        self.lowest.load(Ordering::Relaxed).min(free(&self.path)) < FULL
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// What root could still write, in bytes. The scratch disk is local, so asking does not hang.
fn free(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(u64::MAX, |stat| stat.blocks_free() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_with_room_is_not_full() {
        assert!(!DiskWatch::start(Path::new("/")).was_full());
    }
}
