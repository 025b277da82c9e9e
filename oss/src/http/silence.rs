//! How long nothing has come.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Measures waiting, with one timer for all the times that one waits: it is left running when something comes, and where it
/// fires too early for the present wait it is set anew.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    /// To be called while there is nothing. Ready when that has been so for `limit`, which must never become shorter.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let end = *self.since.get_or_insert_with(Instant::now) + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// Something came, or it is given up. Tells how long there was nothing.
    pub(crate) fn end(&mut self) -> Duration {
        self.since.take().map_or(Duration::ZERO, |since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn each_silence_counts_from_its_own_beginning() {
        let mut silence = Silence::default();
        assert_eq!(silence.end(), Duration::ZERO);
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(3600));
        let begun = Instant::now();
        poll_fn(|cx| silence.poll(cx, short)).await;
        assert!(begun.elapsed() >= short && silence.end() >= short);
        // The timer has fired, and the next silence has not lasted.
        poll_fn(|cx| {
            assert!(silence.poll(cx, long).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(silence.end() < long);
    }
}
