//! What is shown in TLS: the hub's own certificate, and whose clients' certificates are believed.

use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use stolos_cluster::objects::{self, Resource};
use stolos_pki::tls::ClientAuth;
use stolos_pki::{Credentials, Roots};
use stolos_serve::because;

use super::{Front, Service};
use crate::Error;

/// Where API servers say by which authority their clients' certificates are good (Kubernetes 1.34).
const AUTHENTICATION: (&str, &str) = ("kube-system", "extension-apiserver-authentication");
/// How long what is shown in TLS is used before it is made anew, with the clients' authority as it is then; the certificate
/// is good for much longer.
pub(super) const SHOWN: Duration = Duration::from_secs(3_600);
const CERTIFICATE: Duration = Duration::from_secs(2 * 86_400);

impl Front {
    /// Makes anew what is shown in TLS: its own certificate, and whose clients' certificates are believed.
    pub(super) async fn show(&self) -> Result<(), Error> {
        let config_maps = Resource::named("v1", "ConfigMap")?;
        let (namespace, name) = AUTHENTICATION;
        let clients = match objects::get(&self.client, &config_maps, Some(namespace), name).await {
            Ok(found) => found.and_then(|found| Some(found["data"]["client-ca-file"].as_str()?.to_owned())),
            Err(error) if error.is_forbidden() => {
                tracing::warn!(error = because(&error), "clients' certificates are good for nothing here, tokens are");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let failed = |error: stolos_pki::Error| Error::Front(format!("could not make its certificate: {error}"));
        let mut names = self.names.clone();
        if let Some(Service { namespace, name, .. }) = &self.service {
            names.extend([format!("{name}.{namespace}.svc"), format!("{name}.{namespace}"), name.clone()]);
        }
        let addresses: Vec<IpAddr> = names.iter().filter_map(|name| name.parse().ok()).collect();
        names.retain(|name| name.parse::<IpAddr>().is_err());
        let own =
            self.authority.sign_server(&names, &addresses, None, CERTIFICATE, SystemTime::now()).map_err(failed)?;
        let own = Credentials::from_pem(&own.chain_pem(), own.key_pem().map_err(failed)?.expose()).map_err(failed)?;
        let clients = match clients {
            Some(pem) => ClientAuth::Named(Roots::from_pem(&pem).map_err(failed)?),
            None => ClientAuth::None,
        };
        let shown = stolos_pki::tls::server(&own, clients, &[b"h2", b"http/1.1"]).map_err(failed)?;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(())
    }
}
