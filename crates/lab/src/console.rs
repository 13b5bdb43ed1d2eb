//! What a container's main process reads and shows, for those who attach to it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use stolos_serve::Output;
use tokio::io::{AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::broadcast;

use crate::userland::Screen;

/// Pieces of output that somebody who attached may be behind; whoever is further behind misses some.
const BEHIND: usize = 256;
/// Input that the process has not read.
const UNREAD: usize = 64 << 10;
/// Longer lines are cut in the log, so that a stream without newlines stays bounded.
const LONGEST: usize = 16 << 10;

/// Which output a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// The standard streams of one life of a container.
pub struct Console {
    /// Where those who attach write to, until it is closed. Nothing where the container has no stdin.
    keys: tokio::sync::Mutex<Option<DuplexStream>>,
    stdin: Mutex<Option<DuplexStream>>,
    /// Whether stdin ends with the first who attached.
    once: bool,
    tty: bool,
    shown: broadcast::Sender<(Stream, Bytes)>,
    /// Whether the process writes here at all; built-in servers write lines to their log only.
    live: AtomicBool,
    screen: Screen,
}

impl Console {
    /// A console as the container's `stdin`, `stdinOnce` and `tty` say.
    pub(crate) fn new(stdin: bool, once: bool, tty: bool) -> Arc<Self> {
        let (keys, end) = stdin.then(|| tokio::io::duplex(UNREAD)).unzip();
        Arc::new(Self {
            keys: tokio::sync::Mutex::new(keys),
            stdin: Mutex::new(end),
            once,
            tty,
            shown: broadcast::Sender::new(BEHIND),
            live: AtomicBool::new(false),
            screen: Screen::default(),
        })
    }

    /// What those who attach write; only the first who asks has it.
    pub(crate) fn take_stdin(&self) -> Option<DuplexStream> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the process has a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.tty
    }

    /// The size of whoever attached last.
    pub(crate) fn screen(&self) -> &Screen {
        &self.screen
    }

    /// One of the process's outputs: shown to those who attached, and in the log line by line.
    pub(crate) fn writer(self: &Arc<Self>, stream: Stream, log: Output) -> ConsoleWriter {
        self.live.store(true, Ordering::Release);
        ConsoleWriter { console: Arc::clone(self), stream, log, line: Vec::new() }
    }

    /// What is shown from now on; `None` where there are only lines in a log.
    pub(crate) fn watch(&self) -> Option<broadcast::Receiver<(Stream, Bytes)>> {
        self.live.load(Ordering::Acquire).then(|| self.shown.subscribe())
    }

    /// Types `bytes`, waiting until the process reads.
    pub(crate) async fn type_in(&self, bytes: &[u8]) -> io::Result<()> {
        match self.keys.lock().await.as_mut() {
            Some(keys) => keys.write_all(bytes).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Whoever typed has ended their input.
    pub(crate) async fn end_input(&self) {
        if self.once {
            *self.keys.lock().await = None;
        }
    }
}

/// Shows what is written, and makes log lines of it.
pub(crate) struct ConsoleWriter {
    console: Arc<Console>,
    stream: Stream,
    log: Output,
    line: Vec<u8>,
}

impl ConsoleWriter {
    fn flush_line(&mut self) {
        self.log.line(String::from_utf8_lossy(&self.line));
        self.line.clear();
    }
}

impl AsyncWrite for ConsoleWriter {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        for byte in bytes {
            if *byte == b'\n' || self.line.len() >= LONGEST {
                self.flush_line();
            }
            // A terminal's lines end with a carriage return too, which is nothing for a log.
            if *byte != b'\n' && *byte != b'\r' {
                self.line.push(*byte);
            }
        }
        if self.console.shown.receiver_count() > 0 {
            let _ = self.console.shown.send((self.stream, Bytes::copy_from_slice(bytes)));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for ConsoleWriter {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.flush_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn what_is_written_is_shown_and_logged_by_lines() {
        let console = Console::new(true, true, false);
        assert!(console.watch().is_none(), "nobody writes yet");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        let log = Output::new(move |line| into.lock().unwrap().push(line.to_owned()));
        let mut out = console.writer(Stream::Out, log);
        out.write_all(b"before\n").await.unwrap();
        let mut shown = console.watch().unwrap();
        out.write_all(b"a prompt: ").await.unwrap();
        out.write_all(b"x\r\ny").await.unwrap();
        assert_eq!(shown.try_recv().unwrap(), (Stream::Out, Bytes::from("a prompt: ")));
        drop(out);
        assert_eq!(*lines.lock().unwrap(), ["before", "a prompt: x", "y"]);
    }

    #[tokio::test]
    async fn stdin_ends_with_the_first_if_it_is_once() {
        for once in [true, false] {
            let console = Console::new(true, once, false);
            let mut stdin = console.take_stdin().unwrap();
            console.type_in(b"abc").await.unwrap();
            console.end_input().await;
            assert_eq!(console.type_in(b"def").await.is_ok(), !once);
            let mut read = vec![0; 16];
            assert_eq!(stdin.read(&mut read).await.unwrap(), if once { 3 } else { 6 });
        }
        assert!(Console::new(false, false, false).type_in(b"x").await.is_err());
    }
}
