//! Bodies on their way through: counted, and where a request may have to be repeated, remembered up to a limit.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http::exchange::Exchange;

/// How much of a request is remembered for another try.
const REMEMBERED: usize = 64 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body, readable once more as long as it is short.
pub(crate) struct Tee {
    state: Mutex<State>,
    hint: SizeHint,
    received: AtomicU64,
}

struct State {
    source: Incoming,
    frames: Vec<Bytes>,
    size: usize,
    /// Whether everything read so far is in `frames`.
    whole: bool,
    ended: bool,
    trailers: Option<HeaderMap>,
    /// Only the newest reader may read on.
    reader: u32,
}

impl Tee {
    /// `remember` says whether it may be read again.
    pub(crate) fn new(source: Incoming, remember: bool) -> Arc<Self> {
        let hint = source.size_hint();
        let state =
            State { source, frames: Vec::new(), size: 0, whole: remember, ended: false, trailers: None, reader: 0 };
        Arc::new(Self { state: Mutex::new(state), hint, received: AtomicU64::new(0) })
    }

    /// A body from the beginning; earlier ones end in an error. `None` when the beginning is gone.
    pub(crate) fn read(self: &Arc<Self>) -> Option<RequestBody> {
        let mut state = self.lock();
        if state.reader > 0 && !state.whole {
            return None;
        }
        state.reader += 1;
        let reader = state.reader;
        drop(state);
        Some(RequestBody(Some(Reading { tee: Arc::clone(self), reader, at: 0, trailers_sent: false })))
    }

    /// Whether it could be read once more.
    pub(crate) fn is_whole(&self) -> bool {
        self.lock().whole
    }

    /// How much the client has sent.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is sent to a host.
pub(crate) struct RequestBody(Option<Reading>);

struct Reading {
    tee: Arc<Tee>,
    reader: u32,
    at: usize,
    trailers_sent: bool,
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self(None)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(reading) = &mut self.0 else { return Poll::Ready(None) };
        let tee = Arc::clone(&reading.tee);
        let mut state = tee.lock();
        if state.reader != reading.reader {
            return Poll::Ready(Some(Err("the request is being sent elsewhere".into())));
        }
        if let Some(frame) = state.frames.get(reading.at).filter(|_| state.whole) {
            reading.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if state.ended {
            let trailers = state.trailers.clone().filter(|_| !reading.trailers_sent);
            reading.trailers_sent = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match ready!(Pin::new(&mut state.source).poll_frame(cx)) {
            None => {
                state.ended = true;
                return Poll::Ready(None);
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) => {
                tee.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                if state.whole {
                    state.size += data.len();
                    if state.size > REMEMBERED {
                        state.whole = false;
                        state.frames = Vec::new();
                    } else {
                        state.frames.push(data.clone());
                        reading.at += 1;
                    }
                }
                Frame::data(data)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    state.ended = true;
                    state.trailers = Some(trailers.clone());
                    reading.trailers_sent = true;
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            },
        })))
    }

    fn is_end_stream(&self) -> bool {
        let Some(reading) = &self.0 else { return true };
        let state = reading.tee.lock();
        let replayed = !state.whole || reading.at >= state.frames.len();
        let no_trailers = state.trailers.is_none() || reading.trailers_sent;
        replayed && no_trailers && (state.ended || state.source.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), |reading| reading.tee.hint)
    }
}

/// What is sent to a client. Finishes its exchange when it has ended, or is dropped before.
pub(crate) struct ResponseBody {
    from: From,
    sent: u64,
    exchange: Option<Box<Exchange>>,
}

enum From {
    Here(Option<Bytes>),
    Host(Incoming),
}

impl ResponseBody {
    pub(crate) fn here(bytes: Bytes, exchange: Box<Exchange>) -> Self {
        Self { from: From::Here(Some(bytes).filter(|b| !b.is_empty())), sent: 0, exchange: Some(exchange) }
    }

    pub(crate) fn host(body: Incoming, exchange: Box<Exchange>) -> Self {
        Self { from: From::Host(body), sent: 0, exchange: Some(exchange) }
    }

    /// The answer to an upgrade: what follows is told by somebody else.
    pub(crate) fn upgraded() -> Self {
        Self { from: From::Here(None), sent: 0, exchange: None }
    }

    fn finish(&mut self, complete: bool) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish(self.sent, complete);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match &mut self.from {
            From::Here(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            From::Host(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        match &frame {
            None => self.finish(true),
            Some(Err(_)) => {
                if let Some(exchange) = &mut self.exchange {
                    exchange.upstream_broke();
                }
                self.finish(false);
            }
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.sent += length;
                if let (Some(trailers), Some(exchange)) = (frame.trailers_ref(), &mut self.exchange) {
                    exchange.keep_grpc_status(trailers);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Here(bytes) => bytes.is_none(),
            From::Host(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Here(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            From::Host(body) => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let complete = self.is_end_stream();
        self.finish(complete);
    }
}
