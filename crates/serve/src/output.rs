use std::fmt;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Where a container's log lines go: standard output in a real container, the kubelet's log in the lab.
#[derive(Clone)]
pub struct Output(Arc<dyn Fn(&str) + Send + Sync>);

impl Output {
    /// An output that hands every line to `write`. The line carries no newline.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// An output that forgets.
    #[must_use]
    pub fn discard() -> Self {
        Self::new(|_| {})
    }

    /// An output that gathers lines and writes many at once, 50 ms after the first at the latest: a proxy under
    /// load would otherwise make a system call for every request. Envoy does the same (`--file-flush-interval-msec`).
    ///
    /// What has been gathered is written before the [`Gathered`] is gone. Where whoever reads is slower than lines
    /// come, [`Self::line`] waits for it.
    pub fn gathered(to: impl Write + Send + 'static) -> (Self, Gathered) {
        let lines = Arc::new(Lines { state: Mutex::default(), some: Condvar::new(), to: Mutex::new(Box::new(to)) });
        let (of_output, of_thread) = (Arc::clone(&lines), Arc::clone(&lines));
        // A thread of its own: standard output may be a pipe whose reader takes its time.
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || of_thread.run()).ok();
        (Self::new(move |line| of_output.push(line)), Gathered { lines, thread })
    }

    /// Writes one line.
    pub fn line(&self, line: impl AsRef<str>) {
        (self.0)(line.as_ref());
    }
}

/// How long a gathered line waits at most.
const LATEST: Duration = Duration::from_millis(50);
/// So much is written without waiting for the time.
const ENOUGH: usize = 64 << 10;
/// So much is waiting at most; beyond it whoever writes a line writes all of it.
const MOST: usize = 1 << 20;

/// Writes what [`Output::gathered`] has gathered when it goes out of scope.
#[derive(Debug)]
pub struct Gathered {
    lines: Arc<Lines>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.lines.lock().ended = true;
        self.lines.some.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.lines.write();
    }
}

struct Lines {
    state: Mutex<State>,
    some: Condvar,
    to: Mutex<Box<dyn Write + Send>>,
}

#[derive(Default)]
struct State {
    text: Vec<u8>,
    ended: bool,
}

impl Lines {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &str) {
        let mut state = self.lock();
        let before = state.text.len();
        state.text.extend_from_slice(line.as_bytes());
        state.text.push(b'\n');
        let (now, ended) = (state.text.len(), state.ended);
        drop(state);
        if now >= MOST || ended {
            self.write();
        } else if before == 0 || (before < ENOUGH && now >= ENOUGH) {
            self.some.notify_one();
        }
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            while state.text.is_empty() && !state.ended {
                state = self.some.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !state.ended && state.text.len() < ENOUGH {
                let waiting = |state: &mut State| !state.ended && state.text.len() < ENOUGH;
                let waited = self.some.wait_timeout_while(state, LATEST, waiting);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let ended = state.ended;
            drop(state);
            self.write();
            if ended {
                return;
            }
        }
    }

    /// Writes all there is. In order: whoever has the writer takes the text.
    fn write(&self) {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        let text = std::mem::take(&mut self.lock().text);
        // Nobody is there to be told that the log cannot be written.
        let _ = to.write_all(&text).and_then(|()| to.flush());
        // The room is used again, unless it was a burst's.
        if text.capacity() <= 2 * ENOUGH {
            let mut state = self.lock();
            if state.text.is_empty() && state.text.capacity() == 0 {
                state.text = text;
                state.text.clear();
            }
        }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::mpsc;

    /// Hands on every write.
    struct Writes(mpsc::Sender<String>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn gathered_lines_are_written_soon_in_order_and_all_of_them() {
        let (sender, written) = mpsc::channel();
        let (output, gathered) = Output::gathered(Writes(sender));
        output.line("first");
        assert_eq!(written.recv_timeout(Duration::from_secs(10)).unwrap(), "first\n", "without more, in time");
        for at in 0..5000 {
            output.line(format!("{at} {}", "x".repeat(100)));
        }
        drop(gathered);
        output.line("last");
        let all: Vec<String> = written.try_iter().collect();
        assert!(all.len() < 1000, "{} writes of 5,001 lines", all.len());
        let text = all.concat();
        let numbers: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        let expected: Vec<String> = (0..5000).map(|at| at.to_string()).chain(["last".into()]).collect();
        assert_eq!(numbers, expected);
    }
}
