//! Runs a command in a container and reads what it prints.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use tokio::io::AsyncReadExt;

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("the command could not be started")]
    Start(#[source] Box<kube::Error>),
    #[error("its output could not be read")]
    Read(#[source] std::io::Error),
    #[error("no end after {} s", .0.as_secs())]
    NoEnd(Duration),
}

/// What `command` prints to standard output in `container` of `pod`.
pub(crate) async fn output(
    client: &kube::Client,
    namespace: &str,
    pod: &str,
    container: &str,
    command: &[&str],
    patience: Duration,
) -> Result<String, Failed> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = AttachParams::default().container(container).stdin(false).stdout(true).stderr(false);
    let run = async {
        let started = pods.exec(pod, command.iter().copied(), &params).await;
        let mut process = started.map_err(|e| Failed::Start(Box::new(e)))?;
        let mut output = String::new();
        if let Some(mut stdout) = process.stdout() {
            stdout.read_to_string(&mut output).await.map_err(Failed::Read)?;
        }
        Ok(output)
    };
    tokio::time::timeout(patience, run).await.unwrap_or(Err(Failed::NoEnd(patience)))
}
