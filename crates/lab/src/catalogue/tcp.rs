//! Servers of bytes: how a connection is accepted and owned, and Istio's `tcp-echo`.

use std::future::Future;
use std::sync::Arc;

use stolos_serve::Stream;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::Launch;

/// How many connections one server has open; more wait to be accepted.
const MOST: usize = 1024;
/// The longest line that is read before it counts as one.
pub(super) const LONGEST_LINE: u64 = 64 * 1024;

/// Accepts on `ports` until the container is stopped and has `serve` talk to every client; returns the exit code.
pub(super) async fn serve<F>(launch: &Launch, ports: &[u16], serve: impl Fn(Stream) -> F + Send + Sync + 'static) -> i32
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let serve = Arc::new(serve);
    let open = Arc::new(Semaphore::new(MOST));
    let tasks = TaskTracker::new();
    for port in ports {
        let listener = match launch.container.net.bind(*port).await {
            Ok(listener) => listener,
            Err(error) => {
                launch.container.output.line(format!("cannot listen on port {port}: {error}"));
                launch.stop.ask();
                break;
            }
        };
        launch.container.output.line(format!("listening on port {port}"));
        let (serve, stop, all, open) = (Arc::clone(&serve), launch.stop.clone(), tasks.clone(), Arc::clone(&open));
        tasks.spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return };
                let client = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((client, _)) => client,
                        Err(error) => return tracing::warn!(%error, "cannot accept any more"),
                    },
                    () = stop.asked() => return,
                };
                let (talking, stop) = (serve(client), stop.clone());
                all.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        ended = talking => if let Err(error) = ended {
                            tracing::debug!(%error, "client gone");
                        },
                        () = stop.asked() => {}
                    }
                });
            }
        });
    }
    let failed = tasks.len() < ports.len();
    launch.stop.asked().await;
    tasks.close();
    tasks.wait().await;
    i32::from(failed)
}

/// `istio/tcp-echo-server 9000,9001 hello`: every line comes back behind the prefix. It speaks second.
pub(super) async fn echo(launch: Launch) -> i32 {
    let words: Vec<&String> =
        launch.command.iter().filter(|w| !w.ends_with("tcp-echo")).chain(&launch.container.args).collect();
    let ports: Option<Vec<u16>> = words.first().map_or_else(
        || Some(vec![9000, 9001, 9002]),
        |list| list.split(',').map(|port| port.trim().parse().ok()).collect(),
    );
    let Some(ports) = ports else {
        launch.container.output.line("usage: tcp-echo PORT[,PORT…] PREFIX");
        return 2;
    };
    let prefix: Arc<str> = words.get(1).map_or("hello", |word| word.as_str()).into();
    launch.container.output.line("built-in stand-in for istio/tcp-echo-server");
    serve(&launch, &ports, move |mut client| {
        let prefix = Arc::clone(&prefix);
        async move {
            let (read, mut write) = tokio::io::split(&mut client);
            let mut read = BufReader::new(read);
            loop {
                let mut line = Vec::new();
                if (&mut read).take(LONGEST_LINE).read_until(b'\n', &mut line).await? == 0 {
                    return write.shutdown().await;
                }
                write.write_all(&[prefix.as_bytes(), b" ", &line].concat()).await?;
            }
        }
    })
    .await
}
