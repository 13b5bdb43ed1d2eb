//! The same command again, in the background.

use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use stolos_serve::Stop;
use tokio::io::AsyncBufReadExt as _;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::elapsed;

/// What the process in the background says when it is up.
pub(crate) const READY: &str = "ready";

/// Starts this command again with `--detached` in the place of `--detach`, waits until it says that it is up, and
/// returns its process number. What it has to say goes to `<what>.log` in its folder.
pub(crate) async fn start(what: &str, folder: &Path, patience: Duration, stop: &Stop) -> Result<u32, Failure> {
    let wanted =
        |e: std::io::Error| Failure::caused(&e).while_doing(format!("could not start a {what} in the background"));
    std::fs::create_dir_all(folder).map_err(wanted)?;
    let log_path = folder.join(format!("{what}.log"));
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path).map_err(wanted)?;
    let before = log.metadata().map_err(wanted)?.len();
    let arguments = std::env::args_os().skip(1).map(|a| if a == "--detach" { "--detached".into() } else { a });
    let mut child = tokio::process::Command::new(std::env::current_exe().map_err(wanted)?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(wanted)?;
    let mut lines = child.stdout.take().map(|out| tokio::io::BufReader::new(out).lines());
    let ready = async {
        match &mut lines {
            Some(lines) => lines.next_line().await.ok().flatten().is_some_and(|line| line == READY),
            None => false,
        }
    };
    let failure = tokio::select! {
        ready = ready => match ready {
            true => None,
            false => Some(Failure::new(format!("the {what} did not start"))),
        },
        () = tokio::time::sleep(patience) => {
            Some(Failure::new(format!("the {what} is not up after {}", elapsed(patience))).exit_with(Exit::TimedOut))
        }
        () = stop.asked() => Some(Failure::interrupted()),
    };
    let Some(failure) = failure else { return Ok(child.id().unwrap_or_default()) };
    let _ = child.start_kill();
    let _ = child.wait().await;
    Err(match said_since(&log_path, before) {
        said if said.is_empty() => failure,
        said => failure.because(said),
    }
    .hint(format!("its log is {}", log_path.display())))
}

/// The last words of the process in the background.
fn said_since(log: &Path, before: u64) -> String {
    let mut text = String::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        file.seek(std::io::SeekFrom::Start(before))?;
        file.take(64 * 1024).read_to_string(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    let from = text.find("error:").unwrap_or_default();
    text[from..].trim().trim_start_matches("error:").trim_start().to_owned()
}

/// Whether a process holds a lock file.
pub(crate) fn is_held(lock: &Path) -> bool {
    let Ok(lock) = std::fs::File::open(lock) else { return false };
    matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}
