//! One connection, driven by whoever uses it.
//!
//! hyper splits a connection in two: what sends requests, and a future that does the reading and writing. That future is
//! usually spawned, and then each request costs four wake-ups between two tasks, often on two threads. Here both halves travel
//! together as a value: from the pool to the exchange of a request, on to the [`Body`](super::Body), and back. Whoever holds it
//! polls it. Nothing runs on its own, so a request that is given up leaves nothing behind: its connection is closed with it.
//!
//! What follows from that: only polls of the wire make the answer and its body come, so those two are polled with a waker
//! that does nothing, right after the wire was polled with the real one.

use std::future::Future as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use tokio::task::coop::unconstrained;

use super::SendError;
use super::connect::Socket;
use super::upload::Upload;

/// The most that is read at once, in bytes, and with it the longest chunk of a body. hyper begins with 8 KiB and doubles while
/// reads fill what it offers, so that only connections that carry much have buffers of this size. Twice as much is slower: it does
/// not fit the processor's cache.
const BUFFER: usize = 256 << 10;

/// A connection on which nothing is under way, or the one request of whoever holds it.
pub(super) struct Line {
    sender: SendRequest<Upload>,
    wire: Connection<Socket, Upload>,
    /// It has been in the pool, where the server may have closed it.
    pub(super) kept: bool,
}

/// Why a request got no answer over a line.
pub(super) enum Lost {
    /// The line was closed before anything of the request was written.
    Unsent(Box<Request<Upload>>),
    /// The request may have arrived.
    Broken(SendError),
}

impl Line {
    /// HTTP over a new connection.
    pub(super) async fn open(socket: Socket) -> hyper::Result<Box<Self>> {
        let (sender, wire) = Builder::new().max_buf_size(BUFFER).handshake(socket).await?;
        Ok(Box::new(Self { sender, wire, kept: false }))
    }

    /// Sends a request and waits for the head of the answer. The line comes back unless the server has closed it behind a complete
    /// answer. Dropping the future closes the connection.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: Request<Upload>,
    ) -> Result<(Response<Incoming>, Option<Box<Self>>), Lost> {
        // Unconstrained, because a budget that is used up would be told to a waker that does nothing.
        let mut answer = pin!(unconstrained(self.sender.try_send_request(request)));
        let mut line = Some(self);
        let answer = std::future::poll_fn(|cx| {
            if line.as_mut().is_some_and(|line| line.poll_wire(cx).is_ready()) {
                // With the wire goes what it owes: an answer that has not come becomes an error.
                line = None;
            }
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        });
        match answer.await {
            Ok(answer) => Ok((answer, line)),
            Err(mut error) => Err(match error.take_message() {
                Some(request) => Lost::Unsent(Box::new(request)),
                None => Lost::Broken(super::describe(&error.into_error())),
            }),
        }
    }

    /// Reads and writes what can be. Ready when the connection has come to its end, after which it must not be polled again.
    pub(super) fn poll_wire(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Errors reach whoever waits for the answer or its body.
        Pin::new(&mut self.wire).poll(cx).map(|_| ())
    }

    /// Whether another request can be sent: all of the last one was written, all of its answer read, and both sides keep the
    /// connection. Forgets who was to be woken.
    pub(super) fn is_free(&mut self) -> bool {
        self.poll_wire(&mut Context::from_waker(Waker::noop())).is_pending() && self.sender.is_ready()
    }
}
