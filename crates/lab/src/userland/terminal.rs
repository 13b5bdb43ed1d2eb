//! A terminal between somebody who types and a program: echo, line editing, Ctrl-C, Ctrl-D.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::Notify;

use super::{Sink, Source, pipe};

/// The size of a terminal, as whoever looks at it says. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Screen(Arc<AtomicU32>);

impl Screen {
    /// From now on it has so many columns and rows.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.store(u32::from(columns) << 16 | u32::from(rows), Ordering::Release);
    }

    /// Columns and rows; 0 and 0 while nobody has said so.
    #[must_use]
    pub fn size(&self) -> (u16, u16) {
        let [a, b, c, d] = self.0.load(Ordering::Acquire).to_be_bytes();
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }
}

/// The program's side of a terminal.
pub struct Terminal {
    /// Lines, as they are finished.
    pub stdin: Source,
    /// Shown with line ends as a terminal wants them.
    pub stdout: Sink,
    /// Given at every Ctrl-C.
    pub interrupt: Arc<Notify>,
    /// Its size.
    pub screen: Screen,
}

/// A terminal over what a client types and sees, and the work that keeps it going.
pub fn open(
    keys: impl AsyncRead + Send + Unpin + 'static,
    shown: impl AsyncWrite + Send + Unpin + 'static,
    screen: Screen,
) -> (Terminal, impl Future<Output = ()> + Send) {
    let raw = Sink::new(shown);
    let (lines, stdin) = pipe();
    let interrupt = Arc::new(Notify::new());
    let terminal = Terminal { stdin, stdout: raw.cooked(), interrupt: Arc::clone(&interrupt), screen };
    (terminal, edit(keys, raw, lines, interrupt))
}

async fn edit(mut keys: impl AsyncRead + Unpin, screen: Sink, lines: Sink, interrupt: Arc<Notify>) {
    /// Longer lines are cut: nobody types so much.
    const LONGEST: usize = 4096;
    let mut lines = Some(lines);
    let mut line: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    let mut escape = 0;
    let mut after_return = false;
    loop {
        let count = match keys.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let mut echo = Vec::new();
        for &byte in &buffer[..count] {
            let returned = std::mem::replace(&mut after_return, byte == b'\r');
            // Arrow keys and their like: ESC [ … letter. There is no history to go through.
            match (escape, byte) {
                (1, b'[' | b'O') => {
                    escape = 2;
                    continue;
                }
                (2, b'0'..=b'9' | b';') => continue,
                (1 | 2, _) => {
                    escape = 0;
                    continue;
                }
                _ => {}
            }
            match byte {
                b'\n' if returned => {}
                b'\r' | b'\n' => {
                    echo.extend(b"\r\n");
                    line.push(b'\n');
                    let _ = screen.write(&std::mem::take(&mut echo)).await;
                    if let Some(lines) = &lines {
                        let _ = lines.write(&std::mem::take(&mut line)).await;
                    }
                    line.clear();
                }
                0x7f | 0x08 => {
                    // A character may be several bytes; those after the first begin with the bits 10.
                    while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                    echo.extend(b"\x08 \x08");
                }
                0x03 => {
                    line.clear();
                    echo.extend(b"^C\r\n");
                    let _ = screen.write(&std::mem::take(&mut echo)).await;
                    interrupt.notify_waiters();
                }
                0x04 if line.is_empty() => lines = None,
                0x15 => {
                    let shown = String::from_utf8_lossy(&line).chars().count();
                    line.clear();
                    echo.extend(b"\x08 \x08".repeat(shown));
                }
                0x1b => escape = 1,
                b'\t' => {}
                byte if byte < 0x20 => {}
                byte if line.len() < LONGEST => {
                    line.push(byte);
                    echo.push(byte);
                }
                _ => {}
            }
        }
        if !echo.is_empty() {
            let _ = screen.write(&echo).await;
        }
    }
    drop(lines);
    // The program may still have something to show.
    std::future::pending::<()>().await;
}
