//! Questions that may never be answered.
//!
//! A call on a dead NFS, Lustre or FUSE mount blocks in the kernel for as long as the server is away, and nothing can end it.
//! So each such question is asked by a thread of its own, and when it takes too long the thread is left behind: it ends
//! when the server answers or the mount is taken away. A mount that has swallowed one thread is not asked again before it has
//! given that one back, so the number of threads stays that of stuck mounts, however often they are asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

/// How long a mount may take to say how much space it has before it counts as stuck.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// How a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Answers,
    /// It answers with an error, such as ESTALE, or ENOTCONN from a FUSE mount whose process has died.
    Fails(Errno),
    /// It does not answer.
    Stuck,
}

/// The paths that have not answered yet.
static ASKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A path in [`ASKED`], until the answer is there.
struct Asking(PathBuf);

impl Drop for Asking {
    fn drop(&mut self) {
        ASKED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Asks what is mounted at `path` how it is, and waits at most `limit` for the answer.
pub async fn probe(path: &Path, limit: Duration) -> Health {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || probe_here(&path, limit)).await.unwrap_or(Health::Stuck)
}

/// [`probe`] for a thread that may wait.
pub fn probe_here(path: &Path, limit: Duration) -> Health {
    let asked = || ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if !asked().insert(path.to_owned()) {
        // Somebody is asking right now, or has been asking for too long.
        let end = std::time::Instant::now() + limit;
        while asked().contains(path) {
            if std::time::Instant::now() >= end {
                return Health::Stuck;
            }
            thread::sleep(Duration::from_millis(10));
        }
        return probe_here(path, limit);
    }
    let asking = Asking(path.to_owned());
    // The size of the file system: unlike attributes, no client keeps that, so the server itself has to answer.
    let answer = within(limit, move || statvfs(&asking.0).map(drop));
    match answer {
        Some(Ok(())) => Health::Answers,
        Some(Err(errno)) => Health::Fails(errno),
        None => Health::Stuck,
    }
}

/// Does `work` in a thread that is left behind when it takes longer than `limit`.
pub(super) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let asking = thread::Builder::new().name("probe".to_owned()).spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = sender.send(work());
    });
    // Without a thread there is no answer.
    asking.ok()?;
    receiver.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_answers_answers() {
        assert_eq!(probe(Path::new("/"), PROBE_LIMIT).await, Health::Answers);
        assert_eq!(probe(Path::new("/nowhere"), PROBE_LIMIT).await, Health::Fails(Errno::ENOENT));
        assert!(!ASKED.lock().unwrap().contains(Path::new("/nowhere")));
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let (release, wait) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || wait.recv().is_err()), None);
        drop(release);
        assert_eq!(within(PROBE_LIMIT, || 7), Some(7));
    }
}
