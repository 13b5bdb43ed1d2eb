//! A slow way to an API server, for benches: every chunk a client sends arrives later, none is reordered.

use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use stolos_serve::{Listener, Stop, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

/// Chunks on their way; a client that sends more waits.
const ON_THE_WAY: usize = 256;

/// Takes what comes to `listener` to `to`, `delay` later, until `stop`.
pub(crate) async fn run(listener: Listener, to: SocketAddrV4, delay: Duration, tasks: TaskTracker, stop: Stop) {
    loop {
        let (client, _) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => return,
            },
            () = stop.asked() => return,
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                result = carry(client, to, delay) => if let Err(error) = result {
                    tracing::debug!(%error, "delayed connection ended");
                },
                () = stop.asked() => {}
            }
        });
    }
}

async fn carry(client: Stream, to: SocketAddrV4, delay: Duration) -> std::io::Result<()> {
    // From the API server's own subnet, which may dial it.
    let socket = crate::network::bound(*to.ip())?;
    let server: TcpStream = socket.connect(SocketAddr::V4(to)).await?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.into_split();
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(ON_THE_WAY);
    let reading = async {
        loop {
            let mut chunk = Vec::with_capacity(16 * 1024);
            if from_client.read_buf(&mut chunk).await? == 0 {
                break;
            }
            if sender.send((tokio::time::Instant::now() + delay, chunk)).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok::<_, std::io::Error>(())
    };
    let writing = async {
        while let Some((due, chunk)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            to_server.write_all(&chunk).await?;
        }
        to_server.shutdown().await
    };
    let answering = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(reading, writing, answering).map(|_| ())
}
