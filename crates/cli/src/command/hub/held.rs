//! A hub's folder: who holds it, and where its sockets were.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use stolos_serve::Listener;

use crate::failure::Failure;
use crate::file::{self, Eyes};

/// The file that the process of a hub holds, with its id.
pub(super) const LOCK: &str = "hub.lock";
/// Where the hub listened last.
pub(super) const LISTEN: &str = "listen";
/// Where it last took agents in.
pub(super) const AGENTS: &str = "agents";

/// A hub's folder, held by this process.
pub(super) struct Held {
    pub(super) folder: PathBuf,
    _lock: std::fs::File,
}

impl Held {
    pub(super) fn take(folder: PathBuf) -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let failed = |error: std::io::Error| {
            Failure::caused(&error).while_doing(format!("could not use the folder {}", folder.display()))
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let options = &mut std::fs::OpenOptions::new();
        let mut lock =
            options.create(true).truncate(false).write(true).read(true).open(folder.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Failure::new(format!("a hub runs in {} already", folder.display()))
                    .hint("`stolos hub down` ends it; `--data DIR` is another"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where a socket was the last time.
    pub(super) fn remembered(&self, file: &str) -> Option<SocketAddr> {
        std::fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// A socket where the hub is to listen, which it will find again in `file`.
    pub(super) async fn listen(&self, file: &str, flag: &str, address: SocketAddr) -> Result<Listener, Failure> {
        let failed = |error: std::io::Error| {
            Failure::caused(&error)
                .while_doing(format!("could not listen on {address}"))
                .hint(format!("name another address with `{flag} ADDRESS`; who uses the old one then needs it, too"))
        };
        let socket = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        let bound = socket.local_addr().map_err(failed)?;
        file::replace(&self.folder.join(file), &format!("{bound}\n"), Eyes::Owner)?;
        Ok(Listener::from(socket))
    }
}
