//! How much all transfers together may use.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Memory is counted in units of this many bytes, because a semaphore counts to 2³² only.
const UNIT: u64 = 64 << 10;

/// How many requests may be under way at once, and how much memory their bodies may take. Cheap to clone; all clones
/// share what there is. First come, first served.
#[derive(Debug, Clone)]
pub struct TransferBudget {
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    concurrency: usize,
    units: u32,
    /// How many uploads in parts are open, those included that are being given up.
    open: watch::Sender<usize>,
}

/// Counts an upload in parts as open until it is dropped.
#[derive(Debug)]
pub(super) struct Open(watch::Sender<usize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// A piece's share of the budget, given back on drop.
#[derive(Debug)]
pub(super) struct Lease {
    _memory: OwnedSemaphorePermit,
    _request: OwnedSemaphorePermit,
}

impl TransferBudget {
    /// At most `requests` at once (at least 1) with bodies of `memory` bytes together. A piece that is larger than all of the
    /// memory goes alone.
    pub fn new(requests: usize, memory: u64) -> Self {
        let concurrency = requests.clamp(1, Semaphore::MAX_PERMITS);
        let units = u32::try_from(memory / UNIT).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Self {
            requests: Arc::new(Semaphore::new(concurrency)),
            memory: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1 << 28))),
            concurrency,
            units,
            open: watch::Sender::new(0),
        }
    }

    /// The most requests at once.
    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Waits until no upload in parts is open any more: those whose futures were dropped have been given up, as far as the store can
    /// be reached. A program that ends before leaves their parts in the bucket.
    pub async fn settled(&self) {
        // The sender is ours, so it is there.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Counts one more.
    pub(super) fn open(&self) -> Open {
        self.open.send_modify(|open| *open += 1);
        Open(self.open.clone())
    }

    /// Waits for a request with a body of `bytes` to fit.
    pub(super) async fn lease(&self, bytes: u64) -> Lease {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        // Memory first: who holds a request's place must not wait for anything but the network.
        let memory = Arc::clone(&self.memory).acquire_many_owned(units).await;
        let request = Arc::clone(&self.requests).acquire_owned().await;
        Lease {
            _memory: memory.expect("the semaphore is never closed"),
            _request: request.expect("the semaphore is never closed"),
        }
    }
}

impl Default for TransferBudget {
    /// 16 requests, 256 MiB.
    fn default() -> Self {
        Self::new(16, 256 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn both_bounds_hold_and_a_giant_goes_alone() {
        let budget = TransferBudget::new(2, 10 << 20);
        let first = budget.lease(6 << 20).await;
        assert!(budget.lease(6 << 20).now_or_never().is_none(), "more memory than there is");
        let second = budget.lease(1 << 20).await;
        assert!(budget.lease(0).now_or_never().is_none(), "more requests than allowed");
        drop(first);
        assert!(budget.lease(1 << 40).now_or_never().is_none(), "not alone");
        drop(second);
        let giant = budget.lease(1 << 40).await;
        assert!(budget.lease(1).now_or_never().is_none());
        drop(giant);
        assert!(budget.lease(1).now_or_never().is_some());
    }
}
