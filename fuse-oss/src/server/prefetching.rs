//! Bringing in what will be wanted, while nobody wants it yet: all names of a mount, and then all content.
//!
//! It runs in the background from the moment the mount answers until it is done or the mount is gone. What fails is logged and shown
//! by `status`, and harms nobody: the mount fetches what it is asked for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::fault::Fault;
use crate::filesystem::Inner;
use crate::namespace::{Node, ROOT};
use crate::options::{Prefetch, PrefetchStatus};

/// Files taken from the names at a time.
const FILES_AT_ONCE: usize = 256;

/// Files fetched at the same time.
const AT_ONCE: usize = 16;

/// What is being brought into one mount; ends when dropped.
#[derive(Debug)]
pub struct Prefetching {
    kind: Prefetch,
    inner: Arc<Inner>,
    content: Arc<Content>,
    task: Option<AbortHandle>,
}

/// How far the content is.
#[derive(Debug, Default)]
pub struct Content {
    objects: AtomicU64,
    bytes: AtomicU64,
    finished: AtomicBool,
    error: Mutex<Option<String>>,
}

impl Prefetching {
    /// What is to be brought into a mount; none when nothing is. Nothing is done before [`Prefetching::start`].
    pub fn new(kind: Prefetch, inner: &Arc<Inner>) -> Option<Self> {
        let wanted = kind != Prefetch::None;
        wanted.then(|| Self { kind, inner: Arc::clone(inner), content: Arc::default(), task: None })
    }

    /// Begins.
    pub fn start(&mut self, runtime: &Handle) {
        let (kind, inner, content) = (self.kind, Arc::clone(&self.inner), Arc::clone(&self.content));
        let task = async move {
            if inner.namespace().prefetch().await.is_err() || kind != Prefetch::All {
                return;
            }
            let outcome = fetch_content(&inner, &content).await;
            let objects = content.objects.load(Ordering::Relaxed);
            match &outcome {
                Ok(()) => info!(objects, "all content has been fetched ahead"),
                Err(fault) => {
                    warn!(objects, %fault, "fetching content ahead was given up; what is read is fetched then")
                }
            }
            *content.error.lock().unwrap_or_else(PoisonError::into_inner) =
                outcome.err().map(|fault| fault.to_string());
            content.finished.store(true, Ordering::Release);
        };
        self.task = Some(runtime.spawn(task).abort_handle());
    }

    /// How far it is.
    pub fn status(&self) -> PrefetchStatus {
        let names = self.inner.namespace().prefetched().unwrap_or_default();
        let (objects_total, bytes_total) = self.inner.namespace().totals();
        let finished = match self.kind {
            Prefetch::All => self.content.finished.load(Ordering::Acquire) || names.error.is_some(),
            _ => names.finished,
        };
        let error = self.content.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        PrefetchStatus {
            kind: self.kind,
            names: self.inner.namespace().len(),
            objects_total,
            bytes_total,
            objects_done: self.content.objects.load(Ordering::Relaxed),
            bytes_done: self.content.bytes.load(Ordering::Relaxed),
            finished,
            error: names.error.or(error),
        }
    }
}

impl Drop for Prefetching {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Fetches every file that is known, in the order of names. Called when all names are known. Files in an archive are passed over.
async fn fetch_content(inner: &Inner, progress: &Content) -> Result<(), Fault> {
    // More than the cache holds would put out what was fetched first.
    let room = inner.cache_limit() / 10 * 9;
    let (_, total) = inner.namespace().totals();
    if total > room {
        warn!(
            bytes = total,
            cache = inner.cache_limit(),
            "the content is more than the cache holds (--cache-size); the first part is fetched ahead"
        );
    }
    let files = stream::repeat(()).scan(ROOT, |from, ()| {
        let files = inner.namespace().files_in_order(*from, FILES_AT_ONCE);
        *from = files.last().map_or(*from, |last| last.ino + 1);
        std::future::ready((!files.is_empty()).then(|| stream::iter(files)))
    });
    let mut planned = 0;
    let files = files.flatten().take_while(move |node| {
        planned += node.size;
        std::future::ready(planned <= room)
    });
    let fetch = |node: Node| async move {
        let Some(file) = inner.namespace().file(node.ino).filter(|file| !file.archived) else { return Ok(()) };
        inner.warm(&file).await?;
        progress.objects.fetch_add(1, Ordering::Relaxed);
        progress.bytes.fetch_add(file.size, Ordering::Relaxed);
        Ok(())
    };
    files.map(Ok).try_for_each_concurrent(AT_ONCE, fetch).await
}
