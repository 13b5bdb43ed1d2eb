//! Real mutual TLS through a gateway that only looks at the server name: clients and workloads in one thread.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::SERVER_NAME;
use crate::load::{Clock, Measured};
use crate::tls::Trust;

/// What a sidecar offers to the sidecar behind a gateway, for HTTP/1.1.
const OFFERED: [&[u8]; 3] = [b"istio-http/1.1", b"istio", b"http/1.1"];

/// Both ends' TLS.
pub(super) struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Ends {
    pub(super) fn new() -> Result<Self> {
        let trust = Trust::new()?;
        let mut client = ClientConfig::clone(&*trust.client("sleep", &OFFERED)?);
        // Every handshake a whole one.
        client.resumption = Resumption::disabled();
        Ok(Self { client: Arc::new(client), server: trust.server("helloworld", &OFFERED)? })
    }

    /// The ClientHello a sidecar sends, as it lies on the wire.
    pub(super) fn hello(&self) -> Result<Vec<u8>> {
        let name = ServerName::try_from(SERVER_NAME)?;
        let mut hello = Vec::new();
        ClientConnection::new(Arc::clone(&self.client), name)?.write_tls(&mut hello)?;
        Ok(hello)
    }

    /// Connections with a handshake, one small request and its answer, `at_once` at a time.
    pub(super) fn connections(
        &self,
        backends: Vec<TcpListener>,
        target: SocketAddr,
        at_once: usize,
        mut clock: Clock<'_>,
    ) -> Result<Measured> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counted = runtime.block_on(async {
            for listener in backends {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let acceptor = TlsAcceptor::from(Arc::clone(&self.server));
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(answer(acceptor.clone(), stream));
                    }
                });
            }
            let (done, mut finished) = tokio::sync::mpsc::channel(at_once);
            for _ in 0..at_once {
                let (connector, done) = (TlsConnector::from(Arc::clone(&self.client)), done.clone());
                tokio::spawn(async move { while done.send(ask(&connector, target).await).await.is_ok() {} });
            }
            let mut measured = Measured::default();
            while clock.tick(&mut measured).is_some() {
                let one = tokio::time::timeout(Duration::from_secs(5), finished.recv()).await;
                one.context("no handshake comes through any more")?.context("nobody shakes hands")??;
                measured.units += 1.0;
            }
            Ok(measured)
        });
        runtime.shutdown_background();
        counted
    }
}

async fn ask(connector: &TlsConnector, target: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let mut stream = connector.connect(ServerName::try_from(SERVER_NAME)?, stream).await?;
    stream.write_all(&[1; 100]).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer.len() == 100, "{} bytes instead of 100", answer.len());
    Ok(())
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    stream.read_exact(&mut [0; 100]).await?;
    stream.write_all(&[2; 100]).await?;
    stream.shutdown().await?;
    Ok(())
}
