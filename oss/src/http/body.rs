//! An answer's body, which brings its connection along and gives it back at the end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use super::line::Line;
use super::pool::Place;

/// The body of an answer. When its last byte was taken the connection goes back to the pool; dropped before, it is closed.
pub(crate) struct Body {
    incoming: Incoming,
    line: Option<Box<Line>>,
    place: Arc<Place>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("place", &self.place).field("at_end", &self.incoming.is_end_stream()).finish()
    }
}

impl Body {
    /// `line` is what the body comes over, if it has not all come.
    pub(super) fn new(incoming: Incoming, line: Option<Box<Line>>, place: Arc<Place>) -> Self {
        let mut body = Self { incoming, line, place };
        body.release_at_end();
        body
    }

    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(mut line) = self.line.take()
            && line.is_free()
        {
            self.place.keep(line);
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        // What the wire has read already; only polling the wire makes more of it.
        let mut quiet = Context::from_waker(Waker::noop());
        let mut frame = Pin::new(&mut this.incoming).poll_frame(&mut quiet);
        if frame.is_pending()
            && let Some(line) = &mut this.line
        {
            if line.poll_wire(cx).is_ready() {
                // With the wire goes what it owes: a body that has not all come ends in an error.
                this.line = None;
            }
            frame = Pin::new(&mut this.incoming).poll_frame(&mut quiet);
        }
        match &frame {
            Poll::Ready(Some(Ok(_))) => this.release_at_end(),
            Poll::Ready(Some(Err(_))) => this.line = None,
            Poll::Ready(None) => this.release(),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
