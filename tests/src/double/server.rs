//! The wire: accepts connections, turns requests into calls and replies into bytes, and makes things go wrong.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Method, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};

use super::answer::{Answer, Body, damaged, injected};
use super::fault::{Fault, Faults};
use super::log::{Request, request_id};
use super::operation::{Operation, lock, perform};
use super::request::{Call, Head, parse};
use super::spill::spill;
use super::world::World;

/// How the server is unreachable during an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Connections are reset and new ones refused, as when the machine is up and the service is not.
    Refuse,
    /// Connections hang and new ones are never served, as when packets are lost.
    Silent,
}

/// What the owner tells the server's thread; each comes with a channel on which it says that it is done.
#[derive(Debug)]
pub(crate) enum Command {
    Outage(Option<Outage>, std::sync::mpsc::Sender<io::Result<()>>),
    Stop,
}

/// What the server's thread and the owner share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) world: Mutex<World>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) log: Mutex<Vec<Request>>,
    pub(crate) connections: AtomicU64,
    /// Where bodies are kept that are not small.
    pub(crate) spill: Option<PathBuf>,
}

impl Shared {
    /// Changes the log; a test that panicked meanwhile does not matter.
    pub(crate) fn log<T>(&self, change: impl FnOnce(&mut Vec<Request>) -> T) -> T {
        change(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn faults<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes an entry of the log, unless the log was cleared meanwhile.
    fn note(&self, number: usize, change: impl FnOnce(&mut Request)) {
        self.log(|log| log.iter_mut().rev().find(|entry| entry.number == number).map(change));
    }
}

/// How many connections may wait to be accepted.
pub(crate) const BACKLOG: u32 = 1024;

/// Binds a socket to the port. It must listen before it accepts; until then it only keeps others off the port.
pub(crate) fn bind(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}

/// Serves until told to stop. `port` stays ours through outages because somebody holds a bound socket.
pub(crate) async fn run(
    shared: Arc<Shared>,
    listener: TcpListener,
    port: u16,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut listener = Some(listener);
    let (link, _) = watch::channel(None::<Outage>);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None | Some(Command::Stop) => return,
                Some(Command::Outage(outage, done)) => {
                    link.send_replace(outage);
                    let mut result = Ok(());
                    if outage == Some(Outage::Refuse) {
                        listener = None;
                    } else if listener.is_none() {
                        match bind(port).and_then(|socket| socket.listen(BACKLOG)) {
                            Ok(again) => listener = Some(again),
                            Err(error) => result = Err(error),
                        }
                    }
                    // The owner may have gone.
                    let _ = done.send(result);
                }
            },
            stream = accept(listener.as_ref()), if *link.borrow() != Some(Outage::Silent) => {
                if let Ok(stream) = stream {
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(connection(Arc::clone(&shared), stream, link.subscribe()));
                }
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => pending().await,
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, mut link: watch::Receiver<Option<Outage>>) {
    let reset = Arc::new(AtomicBool::new(false));
    // Small answers must not wait for a full packet. If it cannot be set, tests are slower and still right.
    let _ = stream.set_nodelay(true);
    let wire = Wire { stream, reset: Arc::clone(&reset) };
    let service = service_fn(|request| answer(Arc::clone(&shared), Arc::clone(&reset), request));
    let served = http1::Builder::new().serve_connection(TokioIo::new(wire), service);
    tokio::pin!(served);
    loop {
        let outage = *link.borrow_and_update();
        match outage {
            Some(Outage::Refuse) => {
                reset.store(true, Ordering::Relaxed);
                return;
            }
            // A connection that nobody polls is one whose packets are lost.
            Some(Outage::Silent) => {
                if link.changed().await.is_err() {
                    return;
                }
            }
            // The link first: once an outage has been asked for, nothing more is answered.
            None => tokio::select! {
                biased;
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = &mut served => return,
            },
        }
    }
}

/// A TCP stream that ends with a reset instead of a goodbye if it is told to.
struct Wire {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // If it fails, the client sees an early end instead of a reset, which it has to survive as well.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Ends the connection with a reset.
fn reset_now(reset: &AtomicBool) -> io::Error {
    reset.store(true, Ordering::Relaxed);
    io::Error::from(io::ErrorKind::ConnectionReset)
}

/// One request from its head to its answer. An error ends the connection.
async fn answer(
    shared: Arc<Shared>,
    reset: Arc<AtomicBool>,
    request: http::Request<Incoming>,
) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let (head, well_formed) = {
        let world = lock(&shared.world);
        parse(&parts, &|name| world.buckets.contains_key(name), world.config.dialect)
    };
    let number = shared.log(|log| {
        let number = log.last().map_or(0, |last| last.number + 1);
        log.push(entry(number, &head));
        number
    });
    let logged = entry(number, &head);
    let plan = shared.faults(|faults| faults.plan(&logged));
    let delay = (!plan.delay.is_zero()).then_some(Fault::Latency(plan.delay));
    shared.note(number, |entry| entry.fault = plan.fault.clone().or(delay));
    if !plan.delay.is_zero() {
        tokio::time::sleep(plan.delay).await;
    }
    match plan.fault {
        Some(Fault::ResetEarly) => return Err(reset_now(&reset)),
        Some(Fault::StallUpload) => pending().await,
        _ => {}
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    shared.note(number, |entry| entry.received = body.len() as u64);
    match plan.fault {
        Some(Fault::ResetLate) => return Err(reset_now(&reset)),
        Some(Fault::Stall) => pending().await,
        _ => {}
    }

    let body = if plan.fault == Some(Fault::WrongUpload) { damaged(&body) } else { body };
    let body = match &shared.spill {
        Some(directory) => spill(body, directory)?,
        None => body,
    };
    let answer = Answer {
        dialect: head.dialect,
        host: head.host.clone(),
        is_head: head.method == Method::HEAD,
        request_id: request_id(number),
        now: lock(&shared.world).now(),
    };
    let outcome = match injected(plan.fault.as_ref()) {
        Some(refusal) => Err(refusal),
        None => well_formed.and_then(|()| perform(&shared.world, Call { head, body })),
    };
    if plan.fault == Some(Fault::LoseReply) {
        return Err(reset_now(&reset));
    }
    let code = outcome.as_ref().err().map(|refusal| refusal.code.to_owned());
    let reply = answer.reply(outcome, plan.fault == Some(Fault::ErrorInside200));
    shared.note(number, |entry| {
        entry.status = Some(reply.status);
        entry.answered = Some(Instant::now());
        entry.code = code;
        entry.sent = if answer.is_head { 0 } else { reply.content.len() };
    });
    Ok(answer.response(reply, plan.fault.as_ref()))
}

/// The log's entry for a request that has just come.
fn entry(number: usize, head: &Head) -> Request {
    Request {
        number,
        dialect: head.dialect,
        operation: Operation::of(head),
        arrived: Instant::now(),
        answered: None,
        method: head.method.to_string(),
        bucket: head.bucket.clone().unwrap_or_default(),
        key: head.key.clone(),
        query: head.query.0.clone(),
        range: head.header("range"),
        received: 0,
        status: None,
        code: None,
        sent: 0,
        fault: None,
    }
}
