//! Somebody at the streams of a container's main process.

use stolos_apiserver::runtime::{Reader, Streams, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::log::Log;
use super::resized;
use crate::console::{Console, Stream};

/// Shows what the process writes from now on, and types what the client does, until the process ends or nobody looks.
pub(super) async fn run(console: &Console, log: &Log, streams: Streams) {
    let Streams { stdin, stdout, stderr, resize, .. } = streams;
    tokio::select! {
        () = show(console, log, stdout, stderr) => {}
        () = type_in(console, stdin) => {}
        () = resized(resize, console.screen().clone()) => {}
    }
}

/// Never ends: a client may end its input and look on.
async fn type_in(console: &Console, stdin: Option<Reader>) {
    if let Some(mut stdin) = stdin {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = stdin.read(&mut buffer).await {
            if console.type_in(&buffer[..count]).await.is_err() {
                break;
            }
        }
        console.end_input().await;
        // What is typed into a process that does not read is lost.
        while let Ok(1..) = stdin.read(&mut buffer).await {}
    }
    std::future::pending().await
}

async fn show(console: &Console, log: &Log, mut stdout: Option<Writer>, mut stderr: Option<Writer>) {
    let Some(mut shown) = console.watch() else { return follow(log, stdout).await };
    let mut end = log.watch();
    loop {
        let piece = tokio::select! {
            biased;
            piece = shown.recv() => match piece {
                Ok(piece) => piece,
                // Some was missed; what comes next is there.
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            },
            _ = end.wait_for(|head| *head == u64::MAX) => match shown.try_recv() {
                Ok(piece) => piece,
                Err(TryRecvError::Lagged(_)) => continue,
                Err(_) => return,
            },
        };
        let (stream, bytes) = piece;
        let to = if stream == Stream::Err { &mut stderr } else { &mut stdout };
        if let Some(writer) = to
            && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
        {
            *to = None;
        }
    }
}

/// Lines of those who write nothing but lines.
async fn follow(log: &Log, stdout: Option<Writer>) {
    let mut head = log.watch();
    let Some(mut stdout) = stdout else {
        let _ = head.wait_for(|head| *head == u64::MAX).await;
        return;
    };
    let (_, mut next, _) = log.read(0);
    loop {
        head.mark_unchanged();
        let (lines, after, ended) = log.read(next);
        next = after;
        for line in lines {
            if stdout.write_all(format!("{}\n", line.text).as_bytes()).await.is_err() {
                return;
            }
        }
        if ended || head.changed().await.is_err() {
            return;
        }
    }
}
