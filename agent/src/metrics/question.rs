//! Questions that may take long, or for ever, asked beside whoever wants to know.
//!
//! `statvfs` on a dead mount never comes back, a driver's tool can hang with its driver. So each question is asked by a thread of its
//! own, and whoever samples looks at the last answer. A question that has not been answered is not asked again: there is one thread per
//! question at most, and it ends with the answer.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// An answer that takes longer is taken for none.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Asked<T> {
    answer: Option<T>,
    /// When it was asked, while it is not answered.
    since: Option<Instant>,
    /// When it was last asked.
    last: Option<Instant>,
}

type Ask<T> = Arc<dyn Fn() -> T + Send + Sync>;

/// A question.
pub(super) struct Question<T> {
    ask: Ask<T>,
    every: Duration,
    state: Arc<(Mutex<Asked<T>>, Condvar)>,
}

impl<T> std::fmt::Debug for Question<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Question").field("every", &self.every).finish_non_exhaustive()
    }
}

impl<T: Clone + Send + 'static> Question<T> {
    /// One that is asked at most every so often.
    pub(super) fn new(every: Duration, ask: impl Fn() -> T + Send + Sync + 'static) -> Self {
        let asked = Asked { answer: None, since: None, last: None };
        Self { ask: Arc::new(ask), every, state: Arc::new((Mutex::new(asked), Condvar::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, Asked<T>> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, if it is time and nobody waits for an answer already. Does not wait.
    pub(super) fn ask(&self) {
        let mut state = self.lock();
        let is_time = state.last.is_none_or(|last| last.elapsed() >= self.every);
        if state.since.is_some() || !is_time {
            return;
        }
        (state.since, state.last) = (Some(Instant::now()), Some(Instant::now()));
        drop(state);
        let (ask, shared) = (Arc::clone(&self.ask), Arc::clone(&self.state));
        let asking = thread::Builder::new().name("metrics-ask".to_owned()).stack_size(256 << 10).spawn(move || {
            let answer = ask();
            let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            (state.answer, state.since) = (Some(answer), None);
            shared.1.notify_all();
        });
        if asking.is_err() {
            // No thread to be had now; perhaps the next time.
            self.lock().since = None;
        }
    }

    /// The last answer, and whether the question has not been answered for longer than [`LIMIT`].
    pub(super) fn answer(&self) -> (Option<T>, bool) {
        let state = self.lock();
        (state.answer.clone(), state.since.is_some_and(|since| since.elapsed() > LIMIT))
    }

    /// Waits until there is an answer, at most until `end`.
    pub(super) fn wait(&self, end: Instant) {
        let mut state = self.lock();
        while state.answer.is_none() && state.since.is_some() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.state.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    #[test]
    fn who_asks_never_waits_and_asks_once() {
        let (release, wait) = mpsc::channel::<()>();
        let (wait, asked) = (Mutex::new(wait), Arc::new(AtomicU32::new(0)));
        let question = Question::new(Duration::ZERO, {
            let asked = Arc::clone(&asked);
            move || {
                asked.fetch_add(1, Ordering::SeqCst);
                wait.lock().unwrap().recv().is_ok()
            }
        });
        for _ in 0..10 {
            question.ask();
            assert_eq!(question.answer(), (None, false));
        }
        release.send(()).unwrap();
        question.wait(Instant::now() + Duration::from_secs(60));
        assert_eq!(question.answer().0, Some(true));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // Asked again, and the last answer stands meanwhile.
        question.ask();
        assert_eq!(question.answer().0, Some(true));
        drop(release);
    }

    #[test]
    fn it_is_not_asked_more_often_than_is_wanted() {
        let asked = Arc::new(AtomicU32::new(0));
        let question = Question::new(Duration::from_secs(3600), {
            let asked = Arc::clone(&asked);
            move || asked.fetch_add(1, Ordering::SeqCst)
        });
        for _ in 0..3 {
            question.ask();
            question.wait(Instant::now() + Duration::from_secs(60));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}
