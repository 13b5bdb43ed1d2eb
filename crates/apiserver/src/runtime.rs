//! The door to whoever runs pods: logs, exec, attach and port-forward go through it.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// The container; the API server has chosen one if the client did not.
    pub container: String,
}

/// Which lines of a log are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Stay and send what is written later, until the container ends or the client leaves.
    pub follow: bool,
    /// The container's last life instead of this one.
    pub previous: bool,
    /// Begin each line with its time (RFC 3339).
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<usize>,
    /// Only lines younger than this.
    pub since: Option<Duration>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<usize>,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A reader that can be sent to a task.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// A writer that can be sent to a task.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What a process is connected to. What the client did not ask for is `None`.
pub struct Streams {
    /// Its input; ends when the client closes it.
    pub stdin: Option<Reader>,
    /// Its output.
    pub stdout: Option<Writer>,
    /// Its error output; `None` with a terminal.
    pub stderr: Option<Writer>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// The terminal's size, as it changes.
    pub resize: mpsc::Receiver<Size>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; 0 is success.
    pub code: i32,
}

/// What something uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of CPU, in billionths of a core, over the window.
    pub cpu_nanocores: u64,
    /// Of memory, in bytes; `None` where it is not measured.
    pub memory_bytes: Option<u64>,
}

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its containers, as far as they are measured.
    pub containers: Vec<(String, Usage)>,
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    /// When.
    pub at: jiff::Timestamp,
    /// Over which time.
    pub window: Duration,
    /// Nodes by name.
    pub nodes: Vec<(String, Usage)>,
    /// Pods.
    pub pods: Vec<PodUsage>,
}

/// Why a pod could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The pod, the container or its previous life is not there.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot be (container not started yet, no such program).
    #[error("{0}")]
    BadRequest(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// A byte stream to a port of a pod.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Runs pods. Futures are dropped when the client leaves; the process is to end then.
pub trait PodRuntime: Send + Sync + 'static {
    /// The log of a container, in pieces of any size.
    fn logs(
        &self,
        container: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, RuntimeError>>;

    /// Runs `command` in a container until it ends.
    fn exec(
        &self,
        container: ContainerRef,
        command: Vec<String>,
        streams: Streams,
    ) -> BoxFuture<'_, Result<Exit, RuntimeError>>;

    /// Connects to the container's main process until it ends.
    fn attach(&self, container: ContainerRef, streams: Streams) -> BoxFuture<'_, Result<Exit, RuntimeError>>;

    /// What nodes and pods use. With `None`, as it is unless overridden, `metrics.k8s.io` is not served; whether it is
    /// is asked when the runtime is set.
    fn usage(&self) -> Option<Measured> {
        None
    }

    /// Opens a connection to the application's own address in the pod, past a sidecar.
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;
}

/// Finds the way to a Service, for webhooks: the API server has no network of its own.
pub trait ServiceResolver: Send + Sync + 'static {
    /// Opens a connection to a ready endpoint behind a Service's port.
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        service: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<stolos_serve::Stream>>;

    /// Opens a connection to a host that a webhook names by URL. Refused unless overridden.
    fn dial_host<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<stolos_serve::Stream>> {
        let _ = (host, port);
        Box::pin(async { Err(io::Error::new(io::ErrorKind::Unsupported, "webhooks by URL are not enabled here")) })
    }

    /// Answers a review itself whose webhook is in this process, by the webhook's URL. Nothing for all others, which are
    /// dialled.
    fn review(&self, url: &str, review: &Value) -> Option<io::Result<Value>> {
        let _ = (url, review);
        None
    }
}

/// The container that is meant when none is named: the annotation's, else the first.
pub(crate) fn default_container(pod: &Value) -> Option<String> {
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    annotated.or_else(|| pod["spec"]["containers"][0]["name"].as_str()).map(str::to_owned)
}
