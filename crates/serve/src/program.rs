//! Programs of others that a container runs beside its own process: started as children, ended with it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::task::AbortOnDropHandle;

use crate::Output;

/// The door to programs that are not ours: a container runs them, and whoever runs the container decides which there
/// are, and where they may listen. Their sockets are their own, not a [`Net`](crate::Net)'s.
pub trait Programs: Send + Sync + 'static {
    /// Where a program listens. In a real container everywhere, since the container is alone; in the lab at an address
    /// that only the lab dials, and what may come in to the container's address is brought there.
    fn address(&self) -> IpAddr;

    /// Starts `program` in `directory`; what it prints are the container's log lines.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] with what to do about it when there is no such program.
    fn start(&self, program: &str, arguments: &[String], directory: &Path, output: Output) -> io::Result<Program>;

    /// Says on which ports the programs of the container listen now, all of them.
    ///
    /// # Errors
    ///
    /// When one of them cannot be brought to the container's address.
    fn listens(&self, ports: BTreeSet<u16>) -> BoxFuture<'_, io::Result<()>>;
}

/// The programs of the machine, in a real container: found in `PATH`, with the container's own sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostPrograms;

impl Programs for HostPrograms {
    fn address(&self) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
    }

    fn start(&self, program: &str, arguments: &[String], directory: &Path, output: Output) -> io::Result<Program> {
        Program::start(Path::new(program), arguments, directory, output)
    }

    fn listens(&self, _: BTreeSet<u16>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// Starts a program and waits for it, in a process group with a guard that kills it when standard input ends: that is
/// when this process dies, even by SIGKILL. (`PR_SET_PDEATHSIG` would need code between `fork` and `exec`, and goes by
/// the thread that forked, not by the process.) `wait` is asked again because a trapped signal ends it early.
const GUARDED: &str = r#"exec 3<&0 </dev/null
"$0" "$@" 3<&- & program=$!
(trap '' TERM; read -r _ <&3; kill -KILL "$program") >/dev/null 2>&1 & guard=$!
exec 3<&-
trap : TERM
wait "$program"; code=$?
while kill -0 "$program" 2>/dev/null; do wait "$program"; code=$?; done
kill -KILL "$guard" 2>/dev/null
exit "$code""#;

/// The longest log line; longer ones are cut, so that a program that prints no newline costs no memory.
const LONGEST_LINE: usize = 64 << 10;

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    child: Child,
    /// Its group, until its end was seen: afterwards the number may be somebody else's.
    group: Option<Pid>,
    _guard: Option<ChildStdin>,
    readers: Vec<AbortOnDropHandle<()>>,
}

impl Program {
    /// Starts the program at `path` (a name without `/` is looked for in `PATH`) in `directory`.
    ///
    /// # Errors
    ///
    /// When it is not there, or cannot be started.
    pub fn start(path: &Path, arguments: &[String], directory: &Path, output: Output) -> io::Result<Self> {
        // The shell would say it in its own words, later.
        let path = find(path)?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", GUARDED])
            .arg(&path)
            .args(arguments)
            .current_dir(directory)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", path.display())))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let mut readers = Vec::new();
        let mut read = |stream: Option<Box<dyn AsyncRead + Send + Unpin>>| {
            let task = stream.map(|stream| AbortOnDropHandle::new(tokio::spawn(lines(stream, output.clone()))));
            readers.extend(task);
        };
        read(child.stdout.take().map(|stream| Box::new(stream) as _));
        read(child.stderr.take().map(|stream| Box::new(stream) as _));
        let guard = child.stdin.take();
        Ok(Self { child, group, _guard: guard, readers })
    }

    /// Waits for its end, and for the last it has to say.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.group = None;
        for reader in &mut self.readers {
            // What it printed is in the pipe; whoever inherited the pipe is not waited for.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), reader).await;
        }
        self.readers.clear();
        Ok(status)
    }

    /// Asks it to end, as the kubelet asks a container: SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Where a program is.
fn find(path: &Path) -> io::Result<PathBuf> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no program {}", path.display()));
    if path.components().count() > 1 {
        return if path.is_file() { path.canonicalize() } else { Err(missing()) };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(path)).find(|path| path.is_file()).ok_or_else(missing)
}

async fn lines(mut stream: impl AsyncRead + Unpin, output: Output) {
    let (mut line, mut bytes) = (Vec::new(), vec![0; 8 << 10]);
    while let Ok(count) = stream.read(&mut bytes).await {
        if count == 0 {
            break;
        }
        for part in bytes[..count].split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            line.extend_from_slice(&text[..text.len().min(LONGEST_LINE - line.len())]);
            if ends {
                output.line(String::from_utf8_lossy(&line));
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        output.line(String::from_utf8_lossy(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    fn shell(script: &str) -> (Program, Arc<Mutex<Vec<String>>>) {
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        let output = Output::new(move |line| lines.lock().unwrap().push(line.to_owned()));
        let arguments = ["-c".to_owned(), script.to_owned()];
        (Program::start(Path::new("sh"), &arguments, Path::new("/"), output).unwrap(), said)
    }

    async fn soon<T>(wait: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time")
    }

    /// The number a program printed first.
    async fn pid(said: &Mutex<Vec<String>>) -> Pid {
        soon(async {
            loop {
                if let Some(pid) = said.lock().unwrap().first() {
                    return Pid::from_raw(pid.parse().unwrap()).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    async fn is_gone(pid: Pid) {
        let gone = async {
            while rustix::process::test_kill_process(pid).is_ok() && !is_zombie(pid) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(gone).await;
    }

    /// Killed, and whoever inherited it has not looked yet.
    fn is_zombie(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    }

    #[tokio::test]
    async fn what_it_says_and_its_exit_code_come_back() {
        let (mut program, said) = shell("echo out; echo err >&2; printf unfinished; exit 7");
        assert_eq!(soon(program.ended()).await.unwrap().code(), Some(7));
        let mut said = said.lock().unwrap().clone();
        said.sort();
        assert_eq!(said, ["err", "out", "unfinished"]);
    }

    #[tokio::test]
    async fn it_is_asked_to_end_and_may_say_goodbye() {
        let (mut program, said) = shell("trap 'echo bye; exit 3' TERM; echo $$; while :; do sleep 0.01; done");
        pid(&said).await;
        program.terminate();
        assert_eq!(soon(program.ended()).await.unwrap().code(), Some(3));
        assert_eq!(said.lock().unwrap().last().unwrap(), "bye");
    }

    #[tokio::test]
    async fn it_dies_with_whoever_started_it() {
        // By drop.
        let (program, said) = shell("trap '' TERM; echo $$; while :; do sleep 0.01; done");
        let one = pid(&said).await;
        drop(program);
        is_gone(one).await;
        // By the end of the pipe alone, which is all that a SIGKILL leaves.
        let (mut program, said) = shell("trap '' TERM; echo $$; while :; do sleep 0.01; done");
        let other = pid(&said).await;
        drop(program._guard.take());
        is_gone(other).await;
        assert_eq!(soon(program.ended()).await.unwrap().code(), Some(137));
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let start = |path| Program::start(Path::new(path), &[], Path::new("/"), Output::discard()).unwrap_err();
        assert_eq!(start("/nowhere/envoy").to_string(), "there is no program /nowhere/envoy");
        assert_eq!(start("no-such-program-here").kind(), io::ErrorKind::NotFound);
    }
}
