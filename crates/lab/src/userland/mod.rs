//! What runs inside containers of the catalogue when somebody types: a small POSIX shell, `curl`, and a few tools.
//!
//! There are no processes and no file descriptors of the machine here: a [`Process`] has the pod's network, a folder
//! for a file system, and streams. Dropping the future of [`run`] ends whatever runs.

mod curl;
mod glob;
mod shell;
mod tar;
mod terminal;
mod tools;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use stolos_serve::Net;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{Mutex, Notify};

pub use terminal::{Screen, Terminal, open as open_terminal};

/// Exit code of a command nobody has.
pub const NOT_FOUND: i32 = 127;
/// Exit code of a program whose reader went away (128 + SIGPIPE).
const BROKEN_PIPE: i32 = 141;
/// The most a `$(…)` or a variable holds.
const MAX_TEXT: u64 = 16 * 1024 * 1024;

/// What a program of the userland is given.
#[derive(Clone)]
pub struct Process {
    /// The pod's network.
    pub net: Arc<dyn Net>,
    /// Where its file system starts.
    pub root: PathBuf,
    /// Its working directory inside the root, absolute.
    pub directory: PathBuf,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Name of its pod.
    pub hostname: String,
    /// Standard input.
    pub stdin: Source,
    /// Standard output.
    pub stdout: Sink,
    /// Standard error.
    pub stderr: Sink,
    /// Given at every Ctrl-C, where there is a terminal.
    pub interrupt: Option<Arc<Notify>>,
    /// The size of the terminal, where there is one.
    pub screen: Option<Screen>,
}

impl Process {
    /// The place of `path` on the machine. `..` never leads out of the root.
    fn place(&self, path: &str) -> PathBuf {
        let mut inside = PathBuf::new();
        for part in self.directory.join(path).components() {
            match part {
                std::path::Component::ParentDir => {
                    inside.pop();
                }
                std::path::Component::Normal(name) => inside.push(name),
                _ => {}
            }
        }
        self.root.join(inside)
    }

    async fn complain(&self, text: impl AsRef<str>) {
        let _ = self.stderr.write(format!("{}\n", text.as_ref()).as_bytes()).await;
    }
}

/// Where a program reads from. Clones share the stream.
#[derive(Clone)]
pub struct Source(Arc<Mutex<Box<dyn AsyncRead + Send + Unpin>>>);

impl Source {
    /// Reads from `stream`.
    pub fn new(stream: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(stream))))
    }

    /// Nothing to read.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(tokio::io::empty())
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().await.read(buffer).await
    }

    async fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut stream = self.0.lock().await;
        (&mut *stream).take(MAX_TEXT).read_to_end(&mut all).await?;
        Ok(all)
    }

    /// One line without its end; `None` at the end of input. Byte by byte, so that nothing is taken from whoever
    /// reads next.
    async fn read_line(&self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let mut stream = self.0.lock().await;
        let mut byte = [0];
        while stream.read(&mut byte).await? == 1 {
            if byte[0] == b'\n' {
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            line.push(byte[0]);
            if line.len() as u64 > MAX_TEXT {
                break;
            }
        }
        Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
    }
}

/// Where a program writes to. Clones share the stream, which ends when the last is gone.
#[derive(Clone)]
pub struct Sink {
    stream: Arc<Mutex<Box<dyn AsyncWrite + Send + Unpin>>>,
    /// Whether it is a terminal, where a line ends with a carriage return too.
    cooked: bool,
}

impl Sink {
    /// Writes to `stream`.
    pub fn new(stream: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Arc::new(Mutex::new(Box::new(stream))), cooked: false }
    }

    /// Forgets what is written.
    #[must_use]
    pub fn null() -> Self {
        Self::new(tokio::io::sink())
    }

    /// The same stream as a terminal.
    fn cooked(&self) -> Self {
        Self { stream: Arc::clone(&self.stream), cooked: true }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// When the reader is gone.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.lock().await;
        if self.cooked {
            let lines = bytes.split_inclusive(|byte| *byte == b'\n');
            let text = lines.flat_map(|line| match line.strip_suffix(b"\n") {
                Some(line) => [line, b"\r\n"],
                None => [line, b""],
            });
            stream.write_all(&text.collect::<Vec<_>>().concat()).await?;
        } else {
            stream.write_all(bytes).await?;
        }
        stream.flush().await
    }
}

fn pipe() -> (Sink, Source) {
    let (read, write): (DuplexStream, DuplexStream) = tokio::io::duplex(64 * 1024);
    (Sink::new(write), Source::new(read))
}

/// Whether there is a program of this name (or path).
#[must_use]
pub fn knows(program: &str) -> bool {
    let name = name(program);
    matches!(name, "sh" | "ash" | "bash" | "curl") || tools::find(name).is_some()
}

/// Runs `arguments` (the program first) to its end and returns its exit code.
pub fn run(arguments: Vec<String>, process: Process) -> BoxFuture<'static, i32> {
    Box::pin(async move {
        let Some(program) = arguments.first() else { return NOT_FOUND };
        match name(program) {
            "sh" | "ash" | "bash" => shell::main(&arguments[1..], process).await,
            "curl" => curl::main(&arguments[1..], process).await,
            tool => match tools::find(tool) {
                Some(tool) => tool(arguments[1..].to_vec(), process).await,
                None => {
                    process.complain(format!("exec: \"{program}\": executable file not found in $PATH")).await;
                    NOT_FOUND
                }
            },
        }
    })
}

/// Ends with the exit code of a program that Ctrl-C ends. A shell that somebody types into handles it itself.
pub fn interrupted(arguments: &[String], interrupt: Option<Arc<Notify>>) -> impl Future<Output = i32> + Send + 'static {
    let shell = matches!(arguments, [program] if matches!(name(program), "sh" | "ash" | "bash"));
    let interrupt = interrupt.filter(|_| !shell);
    async move {
        match interrupt {
            Some(interrupt) => interrupt.notified().await,
            None => std::future::pending().await,
        }
        // 128 + SIGINT.
        130
    }
}

/// The name a program is known by; it may be called by a usual path.
fn name(program: &str) -> &str {
    let path = Path::new(program);
    let usual = ["/bin", "/usr/bin", "/usr/local/bin", "/sbin", "/usr/sbin"];
    match (path.parent(), path.file_name().and_then(|n| n.to_str())) {
        (Some(folder), Some(name)) if usual.iter().any(|u| Path::new(u) == folder) => name,
        _ => program,
    }
}

#[cfg(test)]
mod tests;
