//! TLS as the mesh speaks it: one trust root, a client and a server with SPIFFE identities.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use rustls::{ClientConfig, ServerConfig};
use serde_json::{Value, json};
use stolos_pki::tls::{ClientAuth, Peers};
use stolos_pki::{Authority, Credentials, Roots, Secret, SpiffeId, WorkloadRequest};

/// A root, one cluster's intermediate, and who was signed by it.
pub(crate) struct Trust {
    authority: Authority,
    roots: Roots,
}

impl Trust {
    /// A new one, as `apply` makes it.
    pub(crate) fn new() -> Result<Self> {
        let (now, year) = (SystemTime::now(), Duration::from_secs(365 * 86_400));
        let root = Authority::new_root("bench", 10 * year, now)?;
        let cluster = root.issue_intermediate("east", "bench", "cluster.local", year, now)?;
        let roots = Roots::from_pem(&cluster.root_cert)?;
        let authority = cluster.authority(now).map_err(|refused| anyhow!("{refused:?}"))?;
        Ok(Self { authority, roots })
    }

    /// Key and chain of a workload in namespace `sample`.
    pub(crate) fn workload(&self, account: &str) -> Result<Credentials> {
        let (chain, key) = self.signed(account)?;
        Ok(Credentials::from_pem(&chain, key.expose())?)
    }

    /// The same for another process: `chain`, `key` and `roots`, to be told to nobody else.
    pub(crate) fn told(&self, account: &str) -> Result<Value> {
        let (chain, key) = self.signed(account)?;
        Ok(json!({"chain": chain, "key": key.expose(), "roots": self.authority.roots_pem()}))
    }

    fn signed(&self, account: &str) -> Result<(String, Secret)> {
        let id = SpiffeId::new("cluster.local", "sample", account);
        let request = WorkloadRequest::new(&id)?;
        let day = Duration::from_secs(86_400);
        let chain = self
            .authority
            .sign_workload(&request.csr_pem, &id, day, SystemTime::now())
            .map_err(|refused| anyhow!("{refused:?}"))?;
        Ok((chain.concat(), request.key.to_pem()))
    }

    /// TLS of a client with this identity that takes any workload of the mesh for a server.
    pub(crate) fn client(&self, account: &str, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>> {
        Ok(stolos_pki::tls::client(Some(&self.workload(account)?), &self.roots, Peers::Any, alpn)?)
    }

    /// TLS of a server with this identity that asks clients for theirs.
    pub(crate) fn server(&self, account: &str, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
        let clients = ClientAuth::Required(self.roots.clone(), Peers::Any);
        Ok(stolos_pki::tls::server(&self.workload(account)?, clients, alpn)?)
    }
}
