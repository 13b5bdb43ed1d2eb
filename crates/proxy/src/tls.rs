//! TLS as filter chains and clusters ask for it, made from the workload's own identity.
//!
//! What is asked for is compiled with the configuration; the rustls configuration is made when first used and again
//! when the identity has been renewed.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use stolos_pki::tls::{ClientAuth, Peers};
use tokio::io::{AsyncRead, AsyncWrite};

/// Who this workload is, and whom it trusts.
pub(crate) struct Identity {
    pub(crate) of: Arc<crate::agent::Identity>,
    /// Its own URI.
    pub(crate) uri: Arc<str>,
    /// Grows with every renewal.
    pub(crate) generation: u64,
}

/// What made TLS impossible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no certificate yet")]
    NoIdentity,
    #[error(transparent)]
    Pki(#[from] stolos_pki::Error),
    #[error("handshake failed: {0}")]
    Handshake(#[source] io::Error),
}

/// What is sent over a connection; decides which application protocols are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// A connection as a whole.
    Tcp,
    /// HTTP/1.1 requests.
    Http1,
    /// HTTP/2 requests.
    Http2,
}

/// TLS towards a cluster's hosts.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Sent, never checked.
    pub(crate) sni: ServerName<'static>,
    pub(crate) peers: Peers,
    /// Whether this is Istio's mutual TLS, in which the protocol is announced as `istio…`.
    pub(crate) istio: bool,
    pub(crate) alpn: Vec<String>,
    /// Whether our certificate is shown.
    pub(crate) own: bool,
    made: Mutex<HashMap<Use, (u64, Arc<ClientConfig>)>>,
}

impl Upstream {
    pub(crate) fn new(sni: ServerName<'static>, peers: Peers, alpn: Vec<String>, own: bool) -> Self {
        let istio = alpn.iter().any(|protocol| protocol == "istio");
        Self { sni, peers, istio, alpn, own, made: Mutex::default() }
    }

    /// Shakes hands over `io`.
    pub(crate) async fn connect<I>(
        &self,
        io: I,
        usage: Use,
        identity: Option<&Identity>,
    ) -> Result<tokio_rustls::client::TlsStream<I>, Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config(usage, identity.ok_or(Error::NoIdentity)?)?;
        let connector = tokio_rustls::TlsConnector::from(config);
        connector.connect(self.sni.clone(), io).await.map_err(Error::Handshake)
    }

    fn config(&self, usage: Use, identity: &Identity) -> Result<Arc<ClientConfig>, Error> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((generation, config)) = made.get(&usage)
            && *generation == identity.generation
        {
            return Ok(Arc::clone(config));
        }
        let offered: Vec<&[u8]> = match usage {
            // As Istio's own proxy does, so that the receiver can tell HTTP from the rest.
            Use::Http1 if self.istio => vec![b"istio-http/1.1", b"istio", b"http/1.1"],
            Use::Http2 if self.istio => vec![b"istio-h2", b"istio", b"h2"],
            // `istio-peer-exchange` promises a preamble that is not spoken here.
            Use::Tcp => {
                let spoken = self.alpn.iter().filter(|protocol| *protocol != "istio-peer-exchange");
                spoken.map(String::as_bytes).collect()
            }
            Use::Http1 | Use::Http2 => self.alpn.iter().map(String::as_bytes).collect(),
        };
        let own = self.own.then_some(&identity.of.credentials);
        let config = stolos_pki::tls::client(own, &identity.of.roots, self.peers.clone(), &offered)?;
        made.insert(usage, (identity.generation, Arc::clone(&config)));
        Ok(config)
    }
}

/// TLS towards clients.
#[derive(Debug)]
pub(crate) struct Downstream {
    pub(crate) peers: Peers,
    pub(crate) clients: Clients,
    pub(crate) alpn: Vec<String>,
    /// Without and with a common application protocol.
    made: Mutex<[Option<Made>; 2]>,
}

/// A configuration, and the generation of the identity it was made of.
type Made = (u64, Arc<ServerConfig>);

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clients {
    /// They are not asked.
    Unasked,
    /// They may.
    May,
    /// They must.
    Must,
}

impl Downstream {
    pub(crate) fn new(peers: Peers, clients: Clients, alpn: Vec<String>) -> Self {
        Self { peers, clients, alpn, made: Mutex::default() }
    }

    /// Shakes hands over `io` with a client that offered these application protocols.
    pub(crate) async fn accept<I>(
        &self,
        io: I,
        offered: &[String],
        identity: Option<&Identity>,
    ) -> Result<tokio_rustls::server::TlsStream<I>, Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config(offered, identity.ok_or(Error::NoIdentity)?)?;
        tokio_rustls::TlsAcceptor::from(config).accept(io).await.map_err(Error::Handshake)
    }

    fn config(&self, offered: &[String], identity: &Identity) -> Result<Arc<ServerConfig>, Error> {
        // Without a common protocol rustls would refuse; Envoy goes on without one, and so does Istio's contract.
        let common = offered.iter().any(|protocol| self.alpn.contains(protocol));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut made[usize::from(common)];
        if let Some((generation, config)) = slot
            && *generation == identity.generation
        {
            return Ok(Arc::clone(config));
        }
        let (roots, peers) = (identity.of.roots.clone(), self.peers.clone());
        let clients = match self.clients {
            Clients::Unasked => ClientAuth::None,
            Clients::May => ClientAuth::Optional(roots, peers),
            Clients::Must => ClientAuth::Required(roots, peers),
        };
        let alpn: Vec<&[u8]> = match common {
            true => self.alpn.iter().map(String::as_bytes).collect(),
            false => Vec::new(),
        };
        let config = stolos_pki::tls::server(&identity.of.credentials, clients, &alpn)?;
        *slot = Some((identity.generation, Arc::clone(&config)));
        Ok(config)
    }
}

/// What is told of a verified peer in `x-forwarded-client-cert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uri: Arc<str>,
    /// SHA-256 of the certificate, in hex.
    pub(crate) hash: String,
    pub(crate) subject: String,
}

impl Peer {
    /// Reads the certificates a peer showed, leaf first.
    pub(crate) fn of(certificates: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> Option<Self> {
        let certificates = certificates?;
        let leaf = stolos_pki::Certificate::from_der(certificates.first()?.clone().into_owned()).ok()?;
        let uri = stolos_pki::tls::peer_uri(certificates).unwrap_or_default();
        Some(Self { uri: uri.into(), hash: leaf.fingerprint(), subject: leaf.subject().to_owned() })
    }
}
