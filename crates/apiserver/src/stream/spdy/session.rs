//! One connection: its streams, their windows, and the ends of both.
//!
//! # Back-pressure
//!
//! What comes is bounded by a pipe for each stream; when one is full, nothing more is read from the connection until
//! somebody reads from it, so that TCP slows the sender. A sender that keeps to its windows (64 KiB, given back as
//! bytes are read) never fills a pipe; Go's spdystream, which every kubectl is built on, keeps to none and gives none.
//! Therefore windows bind us from the moment in which the other side shows that it knows them.
//!
//! # Ends
//!
//! [`run`] owns everything; it returns when its server is done (after telling the client), when the client is gone, or
//! when nothing was said for too long. Nothing goes on after it.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::SpdyError;
use super::frame::{Decoder, Encoder, Frame, INITIAL_WINDOW_SIZE, reset};
use super::header::Headers;

/// SPDY's window of a new stream, and of all together.
const WINDOW: i64 = 64 << 10;
/// The most data of one frame that is sent.
const PIECE: usize = 16 << 10;
/// Frames that wait to be written.
const QUEUE: usize = 16;
/// How long a client may take to read the last words, and then to hang up.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Streams at once.
    pub(crate) streams: usize,
    /// Time without anything but pings.
    pub(crate) idle: Duration,
    /// How often the client is asked whether it is still there: only writing shows that a connection is dead while
    /// nothing is read from it.
    pub(crate) ping: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 512, idle: super::super::IDLE, ping: super::super::PING }
    }
}

/// A stream that the client opened.
pub(crate) struct Opened {
    /// Its number.
    pub(crate) id: u32,
    headers: Headers,
    /// What the client sends.
    pub(crate) incoming: Incoming,
    /// What the client is sent.
    pub(crate) outgoing: Outgoing,
}

impl Opened {
    /// A header of the stream; names are in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What all parts of a connection know.
struct Shared {
    state: Mutex<State>,
    /// Windows grew, or streams went.
    windows: Notify,
    /// Somebody read, or left a stream.
    credit: Notify,
}

struct State {
    streams: HashMap<u32, Stream>,
    /// Whether the client keeps to windows.
    keeps_windows: bool,
    initial: i64,
    session: i64,
    /// Bytes read of all streams and not yet given back.
    credit: u32,
    /// Streams whose owner left before their end.
    left: Vec<u32>,
    /// The last stream that was taken.
    taken: u32,
    last: Instant,
    over: bool,
}

struct Stream {
    /// What may still be sent.
    window: i64,
    /// Bytes read and not yet given back.
    credit: u32,
    /// The client has said everything.
    heard: bool,
    /// We have said everything.
    said: bool,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of `want` may be sent on a stream, as soon as that is anything; `None` when the stream is gone.
    async fn reserve(&self, stream: u32, want: usize) -> Option<usize> {
        let want = i64::try_from(want).unwrap_or(i64::MAX);
        loop {
            let changed = self.windows.notified();
            {
                let mut state = self.state();
                if state.over {
                    return None;
                }
                let keeps = state.keeps_windows;
                let all = state.session;
                let known = state.streams.get_mut(&stream)?;
                let may = if keeps { want.min(all).min(known.window) } else { want };
                if may > 0 {
                    known.window -= may;
                    state.session -= may;
                    return usize::try_from(may).ok();
                }
            }
            changed.await;
        }
    }

    fn read(&self, stream: u32, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let mut state = self.state();
        state.credit = state.credit.saturating_add(count);
        let mut due = i64::from(state.credit) >= WINDOW / 2;
        if let Some(known) = state.streams.get_mut(&stream) {
            known.credit = known.credit.saturating_add(count);
            due |= i64::from(known.credit) >= WINDOW / 2;
        }
        drop(state);
        if due {
            self.credit.notify_one();
        }
    }

    /// Marks one side of a stream as ended; a stream with two ended sides is forgotten.
    fn end(&self, stream: u32, side: impl FnOnce(&mut Stream)) {
        let mut state = self.state();
        if let Some(known) = state.streams.get_mut(&stream) {
            side(known);
            if known.heard && known.said {
                state.streams.remove(&stream);
            }
        }
    }

    /// A stream is gone for both sides.
    fn remove(&self, stream: u32) -> bool {
        let known = self.state().streams.remove(&stream).is_some();
        self.windows.notify_waiters();
        known
    }

    fn leave(&self, stream: u32) {
        let mut state = self.state();
        if state.streams.contains_key(&stream) {
            state.left.push(stream);
            drop(state);
            self.credit.notify_one();
        }
    }

    /// What is to be given back, and which streams are to be reset.
    fn dues(&self) -> Vec<Frame> {
        let mut state = self.state();
        let mut frames = Vec::new();
        for stream in std::mem::take(&mut state.left) {
            if state.streams.remove(&stream).is_some() {
                frames.push(Frame::Rst { stream, status: reset::CANCEL });
            }
        }
        for (stream, known) in &mut state.streams {
            if i64::from(known.credit) >= WINDOW / 2 && !known.heard {
                frames.push(Frame::WindowUpdate { stream: *stream, delta: std::mem::take(&mut known.credit) });
            }
        }
        if i64::from(state.credit) >= WINDOW / 2 {
            frames.push(Frame::WindowUpdate { stream: 0, delta: std::mem::take(&mut state.credit) });
        }
        frames
    }

    fn touch(&self) {
        self.state().last = Instant::now();
    }
}

/// What a client sends on a stream. Ends where the client ends it, or with the connection.
pub(crate) struct Incoming {
    stream: u32,
    pipe: DuplexStream,
    /// Bytes in the pipe.
    unread: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.pipe).poll_read(cx, buffer);
        let count = buffer.filled().len() - before;
        if count > 0 {
            self.unread.fetch_sub(count, Ordering::AcqRel);
            self.shared.read(self.stream, count);
        }
        result
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // What nobody will read does not take room from other streams.
        self.shared.read(self.stream, self.unread.swap(0, Ordering::AcqRel));
    }
}

/// What a client is sent on a stream. Dropped before [`finish`](Self::finish), it resets the stream.
pub(crate) struct Outgoing {
    stream: u32,
    frames: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
    finished: bool,
}

/// The stream or its connection is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Outgoing {
    /// Tells the client that the stream is taken: nothing may be sent before.
    pub(crate) async fn accept(&self) -> Result<(), Gone> {
        self.put(Frame::SynReply { stream: self.stream, headers: Headers::new(), fin: false }).await
    }

    /// Sends bytes, waiting until the client takes them.
    pub(crate) async fn send(&self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let count = self.shared.reserve(self.stream, data.len().min(PIECE)).await.ok_or(Gone)?;
            self.put(Frame::Data { stream: self.stream, data: data.split_to(count), fin: false }).await?;
        }
        Ok(())
    }

    /// Nothing more will be sent.
    pub(crate) async fn finish(mut self) -> Result<(), Gone> {
        self.finished = true;
        if !self.shared.state().streams.contains_key(&self.stream) {
            return Err(Gone);
        }
        self.put(Frame::Data { stream: self.stream, data: Bytes::new(), fin: true }).await?;
        self.shared.end(self.stream, |known| known.said = true);
        Ok(())
    }

    /// Ends the stream at once.
    pub(crate) async fn reset(mut self, status: u32) {
        self.finished = true;
        if self.shared.remove(self.stream) {
            let _ = self.put(Frame::Rst { stream: self.stream, status }).await;
        }
    }

    /// Waits until the client resets the stream or leaves.
    pub(crate) async fn gone(&self) {
        loop {
            let changed = self.shared.windows.notified();
            {
                let state = self.shared.state();
                if state.over || !state.streams.contains_key(&self.stream) {
                    return;
                }
            }
            changed.await;
        }
    }

    async fn put(&self, frame: Frame) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.leave(self.stream);
        }
    }
}

/// Keeps a connection going until `serve`, which is given the streams that the client opens, is done.
///
/// # Errors
///
/// When the connection breaks or its client breaks the protocol; `serve` is dropped then.
pub(crate) async fn run<F>(
    io: impl AsyncRead + AsyncWrite + Send + Unpin,
    limits: Limits,
    serve: impl FnOnce(mpsc::Receiver<Opened>) -> F,
) -> Result<(), SpdyError>
where
    F: Future<Output = ()>,
{
    let (source, mut sink) = tokio::io::split(io);
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            streams: HashMap::new(),
            keeps_windows: false,
            initial: WINDOW,
            session: WINDOW,
            credit: 0,
            left: Vec::new(),
            taken: 0,
            last: Instant::now(),
            over: false,
        }),
        windows: Notify::new(),
        credit: Notify::new(),
    });
    let (frames, queue) = mpsc::channel(QUEUE);
    let (opened, streams) = mpsc::channel(QUEUE);
    let mut hearing = Hearing {
        shared: Arc::clone(&shared),
        limits,
        opened: Some(opened),
        frames: frames.clone(),
        pipes: HashMap::new(),
        last: 0,
    };
    let done = Notify::new();
    let ended = {
        let talking = write(&mut sink, queue, &shared, limits, &done);
        let listening = hearing.run(source);
        let idle = idle(&shared, limits.idle);
        let serving = serve(streams);
        tokio::pin!(talking, listening, idle, serving);
        let ended = tokio::select! {
            () = &mut serving => None,
            ended = &mut listening => Some(ended),
            ended = &mut talking => Some(ended.and(Err(io::Error::from(io::ErrorKind::BrokenPipe).into()))),
            () = &mut idle => Some(Err(SpdyError::Idle)),
        };
        match ended {
            None => {
                // Said everything: the client is told, and hangs up when it has read it. Until then its bytes are
                // taken, as a connection closed with bytes unread takes the last words with it.
                done.notify_one();
                let goodbye = async {
                    let said = tokio::select! {
                        said = &mut talking => said,
                        _ = &mut listening => return,
                    };
                    if said.is_ok() {
                        let _ = listening.await;
                    }
                };
                let _ = tokio::time::timeout(GOODBYE, goodbye).await;
                Ok(())
            }
            Some(Err(error @ (SpdyError::Protocol(_) | SpdyError::Idle))) => {
                // GOAWAY says PROTOCOL_ERROR; whoever does not listen is not waited for.
                let last = matches!(error, SpdyError::Protocol(_));
                shared.state().over = last;
                done.notify_one();
                let _ = tokio::time::timeout(Duration::from_secs(1), talking).await;
                Err(error)
            }
            Some(ended) => ended,
        }
    };
    drop(frames);
    shared.state().over = true;
    shared.windows.notify_waiters();
    let _ = tokio::time::timeout(Duration::from_secs(1), sink.shutdown()).await;
    ended
}

/// Ends when nothing was said for too long.
async fn idle(shared: &Shared, most: Duration) {
    loop {
        let last = shared.state().last;
        let until = last + most;
        if Instant::now() >= until {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

/// Writes what is queued, gives back what was read, and asks now and then whether somebody is there.
async fn write(
    sink: &mut (impl AsyncWrite + Unpin),
    mut queue: mpsc::Receiver<Frame>,
    shared: &Shared,
    limits: Limits,
    done: &Notify,
) -> Result<(), SpdyError> {
    let mut encoder = Encoder::default();
    let mut buffer = BytesMut::new();
    let mut pings = tokio::time::interval_at(Instant::now() + limits.ping, limits.ping);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The server's pings are even.
    let mut ping = 2_u32;
    let mut last = false;
    while !last {
        tokio::select! {
            biased;
            frame = queue.recv() => match frame {
                Some(frame) => {
                    encoder.encode(&frame, &mut buffer);
                    if matches!(frame, Frame::Data { .. }) {
                        shared.touch();
                    }
                }
                None => last = true,
            },
            () = shared.credit.notified() => {}
            () = done.notified() => {
                last = true;
                while let Ok(frame) = queue.try_recv() {
                    encoder.encode(&frame, &mut buffer);
                }
            }
            _ = pings.tick() => {
                encoder.encode(&Frame::Ping(ping), &mut buffer);
                ping = ping.wrapping_add(2).max(2);
            }
        }
        for frame in shared.dues() {
            encoder.encode(&frame, &mut buffer);
        }
        // What is there already goes out together.
        while !last && buffer.len() < PIECE {
            let Ok(frame) = queue.try_recv() else { break };
            encoder.encode(&frame, &mut buffer);
        }
        if last {
            let (last, over) = {
                let state = shared.state();
                (state.taken, state.over)
            };
            encoder.encode(&Frame::GoAway { last, status: u32::from(over) }, &mut buffer);
        }
        sink.write_all(&buffer).await?;
        sink.flush().await?;
        buffer.clear();
        if buffer.capacity() > 4 * PIECE {
            buffer = BytesMut::new();
        }
    }
    Ok(())
}

/// The reading half.
struct Hearing {
    shared: Arc<Shared>,
    limits: Limits,
    /// Where new streams go, until the client says that there will be none.
    opened: Option<mpsc::Sender<Opened>>,
    frames: mpsc::Sender<Frame>,
    /// Where the bytes of each stream go.
    pipes: HashMap<u32, (DuplexStream, Arc<AtomicUsize>)>,
    last: u32,
}

impl Hearing {
    async fn run(&mut self, mut source: impl AsyncRead + Unpin) -> Result<(), SpdyError> {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::with_capacity(8 << 10);
        loop {
            while let Some(frame) = decoder.decode(&mut buffer)? {
                if !matches!(frame, Frame::Ping(_)) {
                    self.shared.touch();
                }
                self.take(frame).await?;
            }
            if self.opened.is_none() && self.shared.state().streams.is_empty() {
                return Ok(());
            }
            buffer.reserve(8 << 10);
            if source.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream { stream, headers, fin, .. } => self.open(stream, headers, fin).await?,
            Frame::Data { stream, data, fin } => self.data(stream, &data, fin).await,
            Frame::Headers { stream, fin: true, .. } => self.heard(stream),
            Frame::Rst { stream, .. } => {
                self.pipes.remove(&stream);
                self.shared.remove(stream);
            }
            // Ours come back with even numbers.
            Frame::Ping(id) if id % 2 == 1 => self.answer(Frame::Ping(id)).await,
            Frame::Settings(settings) => {
                for (_, size) in settings.into_iter().filter(|(id, _)| *id == INITIAL_WINDOW_SIZE) {
                    let size = i64::from(size.min(i32::MAX as u32));
                    let mut state = self.shared.state();
                    state.keeps_windows = true;
                    let difference = size - std::mem::replace(&mut state.initial, size);
                    state.streams.values_mut().for_each(|known| known.window += difference);
                }
                self.shared.windows.notify_waiters();
            }
            Frame::WindowUpdate { stream, delta } => {
                let mut state = self.shared.state();
                state.keeps_windows = true;
                let window = match stream {
                    0 => Some(&mut state.session),
                    stream => state.streams.get_mut(&stream).map(|known| &mut known.window),
                };
                if let Some(window) = window {
                    *window += i64::from(delta);
                    if *window > i64::from(i32::MAX) {
                        return Err(SpdyError::Protocol("a window beyond its limit"));
                    }
                }
                drop(state);
                self.shared.windows.notify_waiters();
            }
            Frame::GoAway { .. } => self.opened = None,
            Frame::SynReply { .. } | Frame::Headers { .. } | Frame::Ping(_) => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) -> Result<(), SpdyError> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(SpdyError::Protocol("a stream out of order"));
        }
        self.last = id;
        let room = {
            let mut state = self.shared.state();
            let room = self.opened.is_some() && state.streams.len() < self.limits.streams;
            if room {
                let window = state.initial;
                state.taken = id;
                state.streams.insert(id, Stream { window, credit: 0, heard: fin, said: false });
            }
            room
        };
        let Some(opened) = self.opened.as_ref().filter(|_| room) else {
            self.answer(Frame::Rst { stream: id, status: reset::REFUSED_STREAM }).await;
            return Ok(());
        };
        let (near, far) = tokio::io::duplex(usize::try_from(WINDOW).unwrap_or_default());
        let unread = Arc::new(AtomicUsize::new(0));
        if !fin {
            self.pipes.insert(id, (near, Arc::clone(&unread)));
        }
        let shared = || Arc::clone(&self.shared);
        let stream = Opened {
            id,
            headers,
            incoming: Incoming { stream: id, pipe: far, unread, shared: shared() },
            outgoing: Outgoing { stream: id, frames: self.frames.clone(), shared: shared(), finished: false },
        };
        if opened.send(stream).await.is_err() {
            // Nobody wants more streams; the one that came is reset as it is dropped.
            tracing::trace!(id, "a stream came too late");
        }
        Ok(())
    }

    async fn data(&mut self, stream: u32, data: &[u8], fin: bool) {
        if stream > self.last || stream.is_multiple_of(2) {
            return self.answer(Frame::Rst { stream, status: reset::INVALID_STREAM }).await;
        }
        // Whoever is not interested any more, or never was, still gives the bytes back to all.
        let lost = match self.pipes.get_mut(&stream) {
            Some((pipe, unread)) => {
                unread.fetch_add(data.len(), Ordering::AcqRel);
                match pipe.write_all(data).await {
                    Ok(()) => 0,
                    Err(_) => unread.swap(0, Ordering::AcqRel),
                }
            }
            None => data.len(),
        };
        if lost > 0 {
            self.pipes.remove(&stream);
            self.shared.read(stream, lost);
        }
        if fin {
            self.heard(stream);
        }
    }

    fn heard(&mut self, stream: u32) {
        self.pipes.remove(&stream);
        self.shared.end(stream, |known| known.heard = true);
    }

    async fn answer(&self, frame: Frame) {
        let _ = self.frames.send(frame).await;
    }
}

#[cfg(test)]
pub(crate) mod tests;
