//! The wire: accepts connections, turns requests into calls and replies into bytes, and makes things go wrong.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};

use super::config::Dialect;
use super::error::Refusal;
use super::fault::{Fault, Faults};
use super::log::Request;
use super::operation::{Operation, Reply, lock, perform};
use super::request::{Call, Head, parse};
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
    Outage(Option<Outage>, std::sync::mpsc::Sender<()>),
    Stop,
}

/// What the server's thread and the owner share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) world: Mutex<World>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) log: Mutex<Vec<Request>>,
    pub(crate) connections: AtomicU64,
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
                    if outage == Some(Outage::Refuse) {
                        listener = None;
                    } else if listener.is_none() {
                        listener = bind(port).and_then(|socket| socket.listen(1024)).ok();
                    }
                    // The owner may have gone.
                    let _ = done.send(());
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
            None => tokio::select! {
                _ = &mut served => return,
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
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

type Body = UnsyncBoxBody<Bytes, io::Error>;

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
    shared.note(number, |entry| entry.fault.clone_from(&plan.fault));
    if !plan.delay.is_zero() {
        tokio::time::sleep(plan.delay).await;
    }
    if plan.fault == Some(Fault::ResetEarly) {
        return Err(reset_now(&reset));
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    shared.note(number, |entry| entry.received = body.len() as u64);
    match plan.fault {
        Some(Fault::ResetLate) => return Err(reset_now(&reset)),
        Some(Fault::Stall) => pending().await,
        _ => {}
    }

    let body = if plan.fault == Some(Fault::WrongUpload) { damaged(&body) } else { body };
    let answer = Answer {
        dialect: head.dialect,
        host: head.host.clone(),
        is_head: head.method == Method::HEAD,
        request_id: format!("5F{:022X}", number + 1),
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

/// The refusal that a fault makes up.
fn injected(fault: Option<&Fault>) -> Option<Refusal> {
    let internal = || Refusal::new(500, "InternalError", "We encountered an internal error. Please try again.");
    match fault? {
        Fault::InternalError | Fault::ErrorInside200 => Some(internal()),
        Fault::SlowDown { retry_after } => {
            let refusal = Refusal::new(503, "SlowDown", "Please reduce your request rate.");
            Some(match retry_after {
                Some(time) => refusal.header("retry-after", time.as_secs().to_string()),
                None => refusal,
            })
        }
        _ => None,
    }
}

/// The same bytes with one bit of the one in the middle flipped.
fn damaged(bytes: &Bytes) -> Bytes {
    let mut copy = bytes.to_vec();
    let middle = copy.len() / 2;
    if let Some(byte) = copy.get_mut(middle) {
        *byte ^= 1;
    }
    copy.into()
}

/// What an answer needs to know about its request.
struct Answer {
    dialect: Dialect,
    host: String,
    is_head: bool,
    request_id: String,
    now: SystemTime,
}

impl Answer {
    /// The reply, whatever the outcome.
    fn reply(&self, outcome: Result<Reply, Refusal>, hide_status: bool) -> Reply {
        let refusal = match outcome {
            Ok(reply) => return reply,
            Err(refusal) => refusal,
        };
        let status = if hide_status { 200 } else { refusal.status };
        let mut reply =
            refusal.headers.iter().fold(Reply::empty(status), |reply, (name, value)| reply.header(name, value));
        if status == 304 {
            return reply;
        }
        let document = refusal.document(self.dialect, &self.host, &self.request_id);
        if let Some(ec) = refusal.ec_code().filter(|_| self.dialect == Dialect::Oss) {
            reply = reply.header("x-oss-ec", ec);
        }
        if self.is_head && self.dialect == Dialect::Oss {
            // There is no body to say it in.
            reply = reply.header("x-oss-err", STANDARD.encode(&document));
        }
        reply.content = document.into();
        reply.header("content-type", "application/xml")
    }

    fn response(&self, reply: Reply, fault: Option<&Fault>) -> Response<Body> {
        let mut response = Response::new(StreamBody::new(stream::empty()).boxed_unsync());
        *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut header = |name: &str, value: &[u8]| {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(value)) {
                response.headers_mut().append(name, value);
            }
        };
        header("date", httpdate::fmt_http_date(self.now).as_bytes());
        header("server", if self.dialect == Dialect::Oss { b"AliyunOSS" } else { b"AmazonS3" });
        header(self.dialect.request_id_header(), self.request_id.as_bytes());
        for (name, value) in &reply.headers {
            header(name, value.as_bytes());
        }
        let has_body = !matches!(reply.status, 204 | 304);
        // S3 says nothing about the length of an error that a HEAD does not carry.
        if has_body && !(self.is_head && reply.status >= 300) {
            header("content-length", reply.content.len().to_string().as_bytes());
        }
        if has_body && !self.is_head {
            *response.body_mut() = body(reply, fault);
        }
        response
    }
}

/// How a body goes out.
struct Pace {
    chunks: VecDeque<Bytes>,
    /// Before each chunk but the first.
    pause: Duration,
    end: End,
}

/// What comes after the last chunk.
enum End {
    Good,
    Cut,
    Hang,
}

fn body(reply: Reply, fault: Option<&Fault>) -> Body {
    let len = reply.content.len();
    let all = 0..len;
    let pace = match fault {
        Some(Fault::Truncate) => {
            Pace { chunks: reply.content.chunks(0..len / 2).into(), pause: Duration::ZERO, end: End::Cut }
        }
        Some(Fault::StallBody { after }) => {
            Pace { chunks: reply.content.chunks(0..(*after).min(len)).into(), pause: Duration::ZERO, end: End::Hang }
        }
        Some(Fault::Slow { bytes_per_second }) => {
            // Ten times a second, and at least a byte.
            let step = (bytes_per_second / 10).max(1);
            let starts = (0..len).step_by(usize::try_from(step).unwrap_or(usize::MAX));
            Pace {
                chunks: starts.flat_map(|start| reply.content.chunks(start..(start + step).min(len))).collect(),
                pause: Duration::from_secs(1) * u32::try_from(step).unwrap_or(u32::MAX)
                    / u32::try_from(*bytes_per_second).unwrap_or(u32::MAX).max(1),
                end: End::Good,
            }
        }
        Some(Fault::WrongByte) if reply.is_object && len > 0 => {
            let middle = len / 2;
            let mut chunks: VecDeque<Bytes> = reply.content.chunks(0..middle).into();
            chunks.extend(reply.content.chunks(middle..middle + 1).iter().map(damaged));
            chunks.extend(reply.content.chunks(middle + 1..len));
            Pace { chunks, pause: Duration::ZERO, end: End::Good }
        }
        _ => Pace { chunks: reply.content.chunks(all).into(), pause: Duration::ZERO, end: End::Good },
    };
    let frames = stream::unfold((pace, true), |(mut pace, first)| async move {
        if let Some(chunk) = pace.chunks.pop_front() {
            if !first && !pace.pause.is_zero() {
                tokio::time::sleep(pace.pause).await;
            }
            return Some((Ok(Frame::data(chunk)), (pace, false)));
        }
        match pace.end {
            End::Good => None,
            End::Hang => pending().await,
            End::Cut => {
                // What was written before must reach the client, or this would be another fault.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err(io::Error::from(io::ErrorKind::ConnectionAborted)), (pace, false)))
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
