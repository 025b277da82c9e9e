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

/// Idle connections kept per host: as many as a busy mount, and a transfer of many small files, have requests in flight.
const IDLE_PER_HOST: usize = 128;

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
                Ok(line) => place.hand_over(line),
                Err(error) => place.fail(error),
            }
        });
        waiter.await.unwrap_or_else(|_| Err(ConnectError::other("the program is ending".to_owned())))
    }
}

impl Place {
    /// Host and port.
    pub(super) fn authority(&self) -> &str {
        self.authority.as_str()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a connection that is free: for who waits for one, else for later.
    pub(super) fn keep(self: &Arc<Self>, mut line: Box<Line>) {
        line.kept = true;
        self.hand_over(line);
    }

    fn hand_over(self: &Arc<Self>, mut line: Box<Line>) {
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
        line.kept = true;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures_util::future::join_all;
    use http::Request;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    use super::super::{HttpClient, SendError, collect, next_chunk};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// How a server answers a request, and whether it goes on with the connection.
    #[derive(Clone, Copy)]
    struct Manner {
        answer: &'static [u8],
        /// Padding of the answer, in bytes.
        more: usize,
        stays: bool,
    }

    const BRIEF: Manner = Manner { answer: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", more: 0, stays: true };

    /// A server that answers everything in one manner and counts connections.
    struct Server {
        uri: String,
        made: Arc<AtomicUsize>,
        open: Arc<AtomicUsize>,
        task: JoinHandle<()>,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Server {
        async fn start(manner: Manner) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let uri = format!("http://{}/", listener.local_addr().unwrap());
            let (made, open) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
            let (counted, still) = (Arc::clone(&made), Arc::clone(&open));
            let task = tokio::spawn(async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((socket, _)) = listener.accept().await {
                    counted.fetch_add(1, Ordering::SeqCst);
                    still.fetch_add(1, Ordering::SeqCst);
                    let still = Arc::clone(&still);
                    connections.spawn(async move {
                        let _ = serve(socket, manner).await;
                        still.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
            Self { uri, made, open, task }
        }

        fn made(&self) -> usize {
            self.made.load(Ordering::SeqCst)
        }

        /// Waits until so many connections are open.
        async fn open(&self, count: usize) {
            let open = async {
                while self.open.load(Ordering::SeqCst) != count {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, open).await.expect("the connections are as many as expected");
        }
    }

    async fn serve(mut socket: TcpStream, manner: Manner) -> std::io::Result<()> {
        let mut seen = Vec::new();
        loop {
            while !seen.ends_with(b"\r\n\r\n") {
                if manner.answer.is_empty() || socket.read_buf(&mut seen).await? == 0 {
                    return Ok(());
                }
            }
            seen.clear();
            socket.write_all(manner.answer).await?;
            for _ in 0..manner.more / 1000 {
                socket.write_all(&[b'x'; 1000]).await?;
            }
            if !manner.stays {
                return Ok(());
            }
        }
    }

    async fn get(client: &HttpClient, server: &Server) -> Result<Bytes, SendError> {
        let request = Request::get(server.uri.as_str()).body(Bytes::new()).unwrap();
        let body = client.send(request, PATIENCE, None).await?.into_body();
        collect(body, 1 << 20, PATIENCE).await
    }

    #[tokio::test]
    async fn a_burst_makes_connections_once() {
        let server = Server::start(BRIEF).await;
        let client = HttpClient::direct(PATIENCE);
        for _ in 0..3 {
            for body in join_all((0..32).map(|_| get(&client, &server))).await {
                assert_eq!(body.unwrap(), "hi");
            }
            // One may be in the making for somebody who was served by another.
            assert!(server.made() <= 32, "{}", server.made());
        }
        for _ in 0..50 {
            get(&client, &server).await.unwrap();
        }
        assert!(server.made() <= 32, "{}", server.made());
        drop(client);
        server.open(0).await;
    }

    #[tokio::test]
    async fn every_way_a_body_can_end_gives_the_connection_back() {
        for answer in [
            &b"HTTP/1.1 204 No Content\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
        ] {
            let server = Server::start(Manner { answer, ..BRIEF }).await;
            let client = HttpClient::direct(PATIENCE);
            for _ in 0..5 {
                get(&client, &server).await.unwrap();
            }
            assert_eq!(server.made(), 1, "{}", String::from_utf8_lossy(answer));
        }
    }

    #[tokio::test]
    async fn a_body_that_is_dropped_takes_its_connection_along_and_leaves_no_task() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
        let server = Server::start(Manner { answer, more: 100_000_000, stays: true }).await;
        let client = HttpClient::direct(PATIENCE);
        let tasks = || Handle::current().metrics().num_alive_tasks();
        // The server's, and one for the only connection.
        let before = tasks();
        for round in 1..=3 {
            let request = Request::get(server.uri.as_str()).body(Bytes::new()).unwrap();
            let mut body = client.send(request, PATIENCE, None).await.unwrap().into_body();
            assert!(!next_chunk(&mut body, PATIENCE).await.unwrap().unwrap().is_empty());
            assert_eq!(tasks(), before + 1, "a request has no task of its own");
            drop(body);
            server.open(0).await;
            assert_eq!(server.made(), round);
        }
        // A request that is given up before it is answered.
        let silent = Server::start(Manner { answer: b"\n", ..BRIEF }).await;
        let request = Request::get(silent.uri.as_str()).body(Bytes::new()).unwrap();
        let asking = tokio::time::timeout(Duration::from_millis(50), client.send(request, PATIENCE, None));
        assert!(asking.await.is_err());
        silent.open(0).await;
    }

    #[tokio::test]
    async fn connections_that_the_server_has_closed_cost_nothing() {
        let close = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
        for manner in [Manner { answer: close, ..BRIEF }, Manner { stays: false, ..BRIEF }] {
            let server = Server::start(manner).await;
            let client = HttpClient::direct(PATIENCE);
            for round in 1..=4 {
                assert_eq!(get(&client, &server).await.unwrap(), "hi");
                // The news has to get here.
                server.open(0).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(server.made(), round);
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_at_once_is_asked_once() {
        let server = Server::start(Manner { answer: b"", ..BRIEF }).await;
        let client = HttpClient::direct(PATIENCE);
        let error = get(&client, &server).await.unwrap_err();
        assert_eq!(server.made(), 1, "{error}");
    }

    #[tokio::test]
    async fn what_is_idle_for_too_long_is_closed() {
        let server = Server::start(BRIEF).await;
        let client = HttpClient::direct(PATIENCE);
        get(&client, &server).await.unwrap();
        let place = client.pool.place(&server.uri.parse().unwrap()).unwrap();
        assert!(!place.expire() && place.state().watched);
        for (_, since) in &mut place.state().idle {
            *since = since.checked_sub(IDLE).unwrap();
        }
        // Nobody gets it any more,
        get(&client, &server).await.unwrap();
        assert_eq!(server.made(), 2);
        server.open(1).await;
        // and it does not stay open.
        for (_, since) in &mut place.state().idle {
            *since = since.checked_sub(IDLE).unwrap();
        }
        assert!(place.expire() && !place.state().watched);
        server.open(0).await;
    }
}
