//! The lab's control socket: one line of JSON in, one line of JSON out.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::lab::{Inner, PATIENCE};
use crate::{Error, Fault};

/// A socket's path has 108 bytes at the most; leave some for the kernel's taste.
const LONGEST: usize = 100;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Ask {
    Status,
    Fault(Fault),
    Down,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    #[serde(default)]
    value: Value,
    #[serde(default)]
    error: Option<String>,
}

/// What the lab in `state` looks like now, as [`LabStatus`](crate::LabStatus) in JSON.
///
/// # Errors
///
/// When no lab runs there.
pub async fn status(state: &Path) -> Result<Value, Error> {
    ask(state, &Ask::Status).await
}

/// Gives a fault to the lab in `state`.
///
/// # Errors
///
/// When no lab runs there, or it does not have what the fault names.
pub async fn fault(state: &Path, fault: Fault) -> Result<(), Error> {
    ask(state, &Ask::Fault(fault)).await.map(drop)
}

/// Asks the lab in `state` to end. It has begun to when this returns; its lock is free when it has ended.
///
/// # Errors
///
/// When no lab runs there.
pub async fn down(state: &Path) -> Result<(), Error> {
    ask(state, &Ask::Down).await.map(drop)
}

async fn ask(state: &Path, question: &Ask) -> Result<Value, Error> {
    let not_running = |reason: String| Error::NotRunning { state: state.to_owned(), reason };
    let exchange = async {
        let path = place(&state.canonicalize().unwrap_or_else(|_| state.to_owned()));
        let mut stream = UnixStream::connect(path).await?;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<Answer, std::io::Error>(serde_json::from_slice(&answer)?)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await;
    let answer = answer.map_err(|_| not_running(format!("no answer within {} s", PATIENCE.as_secs())))?;
    let answer = answer.map_err(|e| not_running(e.to_string()))?;
    match answer.error {
        Some(error) => Err(Error::Config(error)),
        None => Ok(answer.value),
    }
}

/// In the folder, unless its path is too long for a socket.
fn place(state: &Path) -> PathBuf {
    let inside = state.join("lab.sock");
    if inside.as_os_str().len() < LONGEST {
        return inside;
    }
    let bytes = state.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    std::env::temp_dir().join(format!("stolos-lab-{hash:016x}.sock"))
}

pub(crate) fn listen(state: &Path) -> Result<UnixListener, Error> {
    let path = place(state);
    // The folder's lock is ours: a socket that is there was left by a lab that was killed.
    let _ = std::fs::remove_file(&path);
    let failed = |source| Error::State { attempt: "listen on", path: path.clone(), source };
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

pub(crate) fn remove(state: &Path) {
    let _ = std::fs::remove_file(place(state));
}

pub(crate) async fn serve(listener: UnixListener, lab: Arc<Inner>) {
    let mut open = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "control socket");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
            Some(_) = open.join_next() => continue,
        };
        let lab = Arc::clone(&lab);
        open.spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &lab)).await;
        });
    }
}

async fn answer(stream: UnixStream, lab: &Inner) -> std::io::Result<()> {
    const LONGEST_LINE: u64 = 64 * 1024;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LONGEST_LINE)).read_line(&mut line).await?;
    let result = match serde_json::from_str(&line) {
        Ok(Ask::Status) => serde_json::to_value(lab.status().await).map_err(|e| e.to_string()),
        Ok(Ask::Fault(fault)) => lab.fault(&fault).await.map(|()| Value::Null).map_err(|e| e.to_string()),
        Ok(Ask::Down) => {
            lab.ask_down();
            Ok(Value::Null)
        }
        Err(error) => Err(format!("not understood: {error}")),
    };
    let answer = match result {
        Ok(value) => Answer { value, error: None },
        Err(error) => Answer { value: Value::Null, error: Some(error) },
    };
    write.write_all(&serde_json::to_vec(&answer)?).await
}
