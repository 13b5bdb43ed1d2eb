//! A client that costs little, so that what is measured is the server: requests are bytes made beforehand, answers are
//! read and thrown away but for their beginning. TLS 1.3, HTTP/1.1 kept alive, or HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Of an answer's body as much is kept.
const KEPT: usize = 4 << 10;
const BUFFER: usize = 64 << 10;

/// Who asks, and where.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    config: rustls::ClientConfig,
    token: Option<String>,
}

impl Client {
    /// Asks at `address`, by a client certificate or a bearer token.
    pub(super) fn new(address: &str, ca: &str, certificate: Option<(&str, &str)>, token: Option<&str>) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots);
        let config = match certificate {
            Some((certificate, key)) => config.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(key.as_bytes())?,
            )?,
            None => config.with_no_client_auth(),
        };
        Ok(Self { address: address.parse()?, config, token: token.map(str::to_owned) })
    }

    async fn dial(&self, protocol: &str) -> Result<TlsStream<TcpStream>> {
        let mut config = self.config.clone();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        Ok(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
    }

    /// A connection that speaks HTTP/1.1.
    pub(super) async fn connect(&self) -> Result<Connection> {
        Ok(Connection { io: self.dial("http/1.1").await?, buffer: BytesMut::with_capacity(BUFFER) })
    }

    /// A connection that speaks HTTP/2, as Go's clients use one for everything.
    pub(super) async fn multiplex(&self) -> Result<h2::client::SendRequest<Bytes>> {
        let io = self.dial("h2").await?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20);
        let (sender, connection) = builder.handshake(io).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// The head of a request over HTTP/2.
    pub(super) fn head(&self, path: &str) -> Result<http::Request<()>> {
        let mut request = http::Request::get(format!("https://{}{path}", self.address)).header("user-agent", "bench");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        Ok(request.header("accept", "application/json").body(())?)
    }

    /// The bytes of a request.
    pub(super) fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: bench\r\naccept: application/json\r\n",
            self.address
        );
        if let Some(token) = &self.token {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        if !content_type.is_empty() {
            head.push_str(&format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        request
    }
}

/// One HTTP/1.1 connection.
pub(super) struct Connection {
    io: TlsStream<TcpStream>,
    buffer: BytesMut,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The first bytes of the body.
    pub(super) begin: BytesMut,
    /// How long the body was.
    pub(super) length: usize,
}

impl Connection {
    /// Sends a request and reads its whole answer.
    pub(super) async fn call(&mut self, request: &[u8]) -> Result<Answer> {
        let (status, length) = self.begin(request).await?;
        let length = length.context("an answer without a length")?;
        let mut begin = self.buffer.split_to(length.min(self.buffer.len()));
        let mut left = length - begin.len();
        begin.truncate(KEPT);
        while left > 0 {
            self.read().await?;
            let piece = self.buffer.len().min(left);
            if begin.len() < KEPT {
                begin.extend_from_slice(&self.buffer[..piece.min(KEPT - begin.len())]);
            }
            self.buffer.advance(piece);
            left -= piece;
        }
        Ok(Answer { status, begin, length })
    }

    /// Sends a request and reads its answer for as long as it goes on.
    pub(super) async fn watch(mut self, request: &[u8]) -> Result<Lines> {
        let (status, length) = self.begin(request).await?;
        ensure!(status == 200 && length.is_none(), "a watch was answered {status}");
        Ok(Lines { connection: self, left: 0 })
    }

    async fn begin(&mut self, request: &[u8]) -> Result<(u16, Option<usize>)> {
        self.io.write_all(request).await?;
        self.io.flush().await?;
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.buffer.split_to(end + 4);
                let head = std::str::from_utf8(&head)?;
                let status = head.get(9..12).context("no status")?.parse()?;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                return Ok((status, length.map(str::parse).transpose()?));
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<()> {
        self.buffer.reserve(BUFFER / 2);
        ensure!(self.io.read_buf(&mut self.buffer).await? > 0, "the server closed the connection");
        Ok(())
    }
}

/// A body in chunks (RFC 9112, 7.1), each event of a watch a line in it.
pub(super) struct Lines {
    connection: Connection,
    left: usize,
}

impl Lines {
    /// Calls `each` with the pieces of the body that are there, in order; waits for one if there is none.
    pub(super) async fn pieces(&mut self, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut some = false;
        loop {
            let buffer = &mut self.connection.buffer;
            if self.left > 0 && !buffer.is_empty() {
                let piece = buffer.len().min(self.left);
                each(&buffer[..piece]);
                buffer.advance(piece);
                self.left -= piece;
                some = true;
                continue;
            }
            // Between two chunks: the end of the last one, the size of the next one.
            let start = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
            if self.left == 0
                && let Some(end) = buffer[start..].windows(2).position(|two| two == b"\r\n")
            {
                self.left = usize::from_str_radix(std::str::from_utf8(&buffer[start..start + end])?, 16)?;
                if self.left == 0 {
                    bail!("the watch ended");
                }
                buffer.advance(start + end + 2);
                continue;
            }
            if some {
                return Ok(());
            }
            self.connection.read().await?;
        }
    }
}
