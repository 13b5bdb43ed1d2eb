//! Servers that are measured, ours and others': started on a core of their own, dead when the bench is.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// The core that servers under test have for themselves; who loads them, and what they lead to, has the other.
pub(crate) const SERVER_CORE: usize = 0;
/// The core of the load generator and of the backends.
pub(crate) const LOAD_CORE: usize = 1;

/// A running server.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts `program` on the servers' core. It ends with this value, and with the bench whatever ends that.
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        // setpriv(1), taskset(1): util-linux. Each replaces itself, so that the child is the server.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "--cpu-list", &SERVER_CORE.to_string()])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run setpriv")?;
        Ok(Self { child })
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// CPU-seconds it has used.
    pub(crate) fn busy(&self) -> f64 {
        process::busy(self.process()).unwrap_or_default()
    }

    /// Waits until it listens at `address`.
    pub(crate) fn listening(&mut self, address: SocketAddr) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status} instead of listening at {address}");
            }
            ensure!(Instant::now() < until, "nobody listens at {address}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The real Envoy: `$STOLOS_ENVOY`, else `envoy` in `PATH`.
pub(crate) fn envoy() -> Option<PathBuf> {
    std::env::var_os("STOLOS_ENVOY").map(PathBuf::from).filter(|path| path.is_file()).or_else(|| in_path("envoy"))
}

/// A program in `PATH`, or where Debian puts servers.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")]);
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// What a program says of its version, in one line.
pub(crate) fn version(program: &Path, argument: &str) -> String {
    let said = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let text = said.map(|said| [said.stdout, said.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("of unknown version").to_owned()
}

/// Writes a configuration with every `NAME` of `values` replaced.
pub(crate) fn configure(file: &Path, template: &str, values: &[(&str, String)]) -> Result<()> {
    let text = values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value));
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

/// A port on which nobody listens at 127.0.0.1 now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
