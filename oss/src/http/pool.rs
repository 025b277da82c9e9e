//! Connections that wait for their next request.
//!
//! Whoever finds none has one made and waits for whichever comes first: the new one, or one that somebody else is done with. So a
//! burst makes at most as many connections as it has requests, and all of them are kept for the next (up to a limit). A connection
//! in the making is not abandoned when its asker goes away: making it was the costly part.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower_service::Service as _;

use super::connect::{ConnectError, Connector};
use super::line::Line;

/// How long an idle connection is kept. Servers close theirs after 15 to 60 s; one that we close first cannot be closed
/// under a request that is just being written.
const IDLE: Duration = Duration::from_secs(14);

/// Idle connections kept per host: as many as a busy mount has requests in flight.
const IDLE_PER_HOST: usize = 64;

/// The connections of a client.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Connector,
    /// One for every host that was ever asked; a client knows a handful.
    places: Mutex<Vec<Arc<Place>>>,
}

/// The connections to one host.
pub(super) struct Place {
    scheme: Scheme,
    authority: Authority,
    state: Mutex<State>,
}

type Waiter = oneshot::Sender<Result<Box<Line>, ConnectError>>;

#[derive(Default)]
struct State {
    /// With when they came here, the oldest first.
    idle: Vec<(Box<Line>, Instant)>,
    waiting: VecDeque<Waiter>,
    /// Somebody sees to it that idle connections are closed in time.
    watched: bool,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl Pool {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, places: Mutex::default() }
    }

    /// The connections to the host of an absolute URI.
    ///
    /// # Errors
    /// When the URI names no host.
    pub(super) fn place(&self, uri: &Uri) -> Result<Arc<Place>, ConnectError> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(ConnectError::other("the request says no host".to_owned()));
        };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = places.iter().find(|place| place.authority == *authority && place.scheme == *scheme) {
            return Ok(Arc::clone(known));
        }
        let (scheme, authority) = (scheme.clone(), authority.clone());
        let place = Arc::new(Place { scheme, authority, state: Mutex::default() });
        places.push(Arc::clone(&place));
        Ok(place)
    }

    /// A connection that nobody uses, made for this if there is none.
    ///
    /// # Errors
    /// When none can be made.
    pub(super) async fn line(&self, place: &Arc<Place>, uri: &Uri) -> Result<Box<Line>, ConnectError> {
        let waiter = {
            let mut state = place.state();
            match state.idle.pop() {
                Some((line, since)) if since.elapsed() < IDLE => return Ok(line),
                // The others have been here longer.
                Some(_) => state.idle.clear(),
                None => {}
            }
            let (sender, waiter) = oneshot::channel();
            state.waiting.push_back(sender);
            waiter
        };
        let (mut connector, place, uri) = (self.connector.clone(), Arc::clone(place), uri.clone());
        tokio::spawn(async move {
            let made = match connector.call(uri).await {
                Ok(socket) => Line::open(socket).await.map_err(|error| ConnectError::other(error.to_string())),
                Err(error) => Err(error),
            };
            match made {
                Ok(line) => place.keep(line),
                Err(error) => place.fail(error),
            }
        });
        waiter.await.unwrap_or_else(|_| Err(ConnectError::other("the program is ending".to_owned())))
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a connection that is free: for who waits for one, else for later.
    pub(super) fn keep(self: &Arc<Self>, mut line: Box<Line>) {
        let mut state = self.state();
        while let Some(waiter) = state.waiting.pop_front() {
            match waiter.send(Ok(line)) {
                Err(Ok(back)) => line = back,
                Ok(()) | Err(Err(_)) => return,
            }
        }
        if state.idle.len() >= IDLE_PER_HOST {
            drop(state);
            return;
        }
        if !state.watched
            && let Ok(runtime) = Handle::try_current()
        {
            state.watched = true;
            runtime.spawn(watch(Watch(Arc::downgrade(self))));
        }
        state.idle.push((line, Instant::now()));
    }

    /// Tells one of those who wait that no connection could be made.
    fn fail(&self, mut error: ConnectError) {
        let mut state = self.state();
        while let Some(waiter) = state.waiting.pop_front() {
            match waiter.send(Err(error)) {
                Err(Err(back)) => error = back,
                Ok(()) | Err(Ok(_)) => return,
            }
        }
    }

    /// Closes what has been idle for too long. Whether that was all, which ends the watch.
    fn expire(&self) -> bool {
        let mut state = self.state();
        let young = state.idle.iter().position(|(_, since)| since.elapsed() < IDLE).unwrap_or(state.idle.len());
        let old: Vec<_> = state.idle.drain(..young).collect();
        let empty = state.idle.is_empty();
        state.watched = !empty;
        drop(state);
        drop(old);
        empty
    }
}

/// Says that nobody watches any more when the runtime ends under the watch.
struct Watch(Weak<Place>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(place) = self.0.upgrade() {
            place.state().watched = false;
        }
    }
}

/// Closes idle connections when their time has come; ends with the last of them, or with the pool.
async fn watch(mut watch: Watch) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        match watch.0.upgrade() {
            Some(place) if !place.expire() => {}
            Some(_) => {
                // Another may have begun since: this one must not speak for it.
                watch.0 = Weak::new();
                return;
            }
            None => return,
        }
    }
}
