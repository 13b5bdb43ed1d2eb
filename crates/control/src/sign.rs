//! Who somebody is, and certificates for them.
//!
//! A workload shows its service account's token; the API server of the cluster that it claims to be in says whose it is
//! (TokenReview, audience `istio-ca`; Istio's `authenticate/kubeauth`, contract B.6). What it gets is a certificate for
//! that identity, whatever its request says.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use stolos_k8s::istio;
use stolos_pki::tls::{self, ClientAuth};
use stolos_pki::{Authority, CaCerts, Certificate, Secret, SpiffeId};
use stolos_serve::{Container, Stop};
use stolos_xds::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use stolos_xds::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::metrics::Metrics;
use crate::state::{Clients, State};
use crate::{Config, Error};

/// How long the API server's word about a token is believed.
const BELIEVED: Duration = Duration::from_secs(30);
/// How many tokens are remembered at most.
const REMEMBERED: usize = 8192;
/// How long the API server may take to say whose a token is.
const REVIEW: Duration = Duration::from_secs(5);
/// How long the serving certificate lives.
const SERVING: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the files of the authority are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) account: String,
}

/// Says who shows a token.
pub(crate) struct Authenticator {
    client: kube::Client,
    cluster: String,
    /// Clusters of which remote secrets are held: their workloads may be served here, too.
    remotes: watch::Receiver<Arc<Clients>>,
    /// By cluster and token.
    believed: Mutex<HashMap<String, (Identity, Instant)>>,
}

impl Authenticator {
    /// One that asks this API server, or that of a remote cluster.
    #[must_use]
    pub(crate) fn new(client: kube::Client, cluster: &str, remotes: watch::Receiver<Arc<Clients>>) -> Self {
        Self { client, cluster: cluster.to_owned(), remotes, believed: Mutex::default() }
    }

    /// Whose token a request carries.
    ///
    /// # Errors
    ///
    /// `Unauthenticated` when it carries none, a wrong one, or one of a cluster that is not served here; `Unavailable`
    /// when the API server cannot be asked.
    pub(crate) async fn authenticate(&self, metadata: &MetadataMap) -> Result<Identity, Status> {
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let claimed = text(istio::CLUSTER_ID_METADATA);
        let client = self.client_of(claimed)?;
        let Some(token) = text("authorization").strip_prefix("Bearer ").map(str::trim).filter(|t| !t.is_empty()) else {
            return Err(Status::unauthenticated("no bearer token"));
        };
        let key = format!("{claimed} {token}");
        if let Some((identity, at)) = self.lock().get(&key)
            && at.elapsed() < BELIEVED
        {
            return Ok(identity.clone());
        }
        let identity = review(client, token).await?;
        let mut believed = self.lock();
        if believed.len() >= REMEMBERED {
            believed.retain(|_, (_, at)| at.elapsed() < BELIEVED);
            if believed.len() >= REMEMBERED {
                believed.clear();
            }
        }
        believed.insert(key, (identity.clone(), Instant::now()));
        Ok(identity)
    }

    /// Whom to ask about a workload that claims to be in this cluster.
    fn client_of(&self, claimed: &str) -> Result<kube::Client, Status> {
        if claimed.is_empty() || claimed == self.cluster {
            return Ok(self.client.clone());
        }
        let remotes = self.remotes.borrow();
        remotes.get(claimed).map(|(_, client)| client.clone()).ok_or_else(|| {
            let known: Vec<_> = remotes.keys().map(|id| &**id).collect();
            Status::unauthenticated(format!(
                "client claims to be in cluster {claimed:?}, but we only know about local cluster {:?} and remote \
                 clusters [{}]",
                self.cluster,
                known.join(" ")
            ))
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Identity, Instant)>> {
        self.believed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn review(client: kube::Client, token: &str) -> Result<Identity, Status> {
    let reviews = Api::<TokenReview>::all(client);
    let review = TokenReview {
        spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![istio::TOKEN_AUDIENCE.to_owned()]) },
        ..TokenReview::default()
    };
    let params = PostParams::default();
    let answer = match tokio::time::timeout(REVIEW, reviews.create(&params, &review)).await {
        Ok(Ok(answer)) => answer.status.unwrap_or_default(),
        Ok(Err(error)) => return Err(Status::unavailable(format!("the API server cannot review tokens: {error}"))),
        Err(_) => return Err(Status::unavailable("the API server does not answer")),
    };
    if answer.authenticated != Some(true) {
        let why = answer.error.unwrap_or_else(|| "the token is not valid".to_owned());
        return Err(Status::unauthenticated(why));
    }
    // A server that knows no audiences would accept any token.
    if !answer.audiences.unwrap_or_default().iter().any(|audience| audience == istio::TOKEN_AUDIENCE) {
        return Err(Status::unauthenticated("the token is not for this audience"));
    }
    let user = answer.user.and_then(|user| user.username).unwrap_or_default();
    identity_of(&user).ok_or_else(|| Status::unauthenticated(format!("{user} is no service account")))
}

fn identity_of(user: &str) -> Option<Identity> {
    let (namespace, account) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !account.is_empty())
        .then(|| Identity { namespace: namespace.to_owned(), account: account.to_owned() })
}

/// The authority of this cluster, as its files say.
pub(crate) struct Trust {
    loaded: ArcSwap<Loaded>,
    serving: ArcSwap<rustls::ServerConfig>,
}

struct Loaded {
    files: CaCerts,
    authority: Authority,
}

impl Trust {
    /// Loads the files of Secret `cacerts`.
    ///
    /// # Errors
    ///
    /// When they are missing, or are no authority.
    pub(crate) fn load(container: &Container, config: &Config, now: SystemTime) -> Result<Arc<Self>, Error> {
        let files = read(container).ok_or(Error::NoAuthority)?;
        let authority = files.authority(now).map_err(|source| Error::Authority(source.to_string()))?;
        let serving = serving(&authority, config, now)?;
        let loaded = ArcSwap::from_pointee(Loaded { files, authority });
        Ok(Arc::new(Self { loaded, serving: ArcSwap::new(serving) }))
    }

    /// The roots, in PEM.
    #[must_use]
    pub(crate) fn roots_pem(&self) -> String {
        self.loaded.load().authority.roots_pem().to_owned()
    }

    /// The roots in PEM, and SHA-256 of the signing certificate, both of one moment.
    #[must_use]
    pub(crate) fn published(&self) -> (String, String) {
        let loaded = self.loaded.load();
        (loaded.authority.roots_pem().to_owned(), loaded.authority.certificate().fingerprint())
    }

    /// The configuration to serve with now.
    #[must_use]
    pub(crate) fn serving(&self) -> Arc<rustls::ServerConfig> {
        self.serving.load_full()
    }

    /// Follows the files and renews the serving certificate, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, container: Container, config: Config, stop: Stop) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.asked() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let container = container.clone();
            // Half of the files may have been written: whatever cannot be read is looked at again.
            let read = tokio::task::spawn_blocking(move || read(&container)).await.ok().flatten();
            let changed = read.is_some_and(|files| self.take(files, SystemTime::now()));
            if changed || renewed.elapsed() > SERVING / 2 {
                match serving(&self.loaded.load().authority, &config, SystemTime::now()) {
                    Ok(serving) => {
                        self.serving.store(serving);
                        renewed = Instant::now();
                    }
                    Err(error) => tracing::error!(%error, "cannot renew the serving certificate"),
                }
            }
        }
    }

    /// Takes new files if they are an authority under the roots of the old one. Says whether it did.
    fn take(&self, files: CaCerts, now: SystemTime) -> bool {
        let before = self.loaded.load();
        if files == before.files {
            return false;
        }
        let authority = match files.authority(now) {
            Ok(authority) => authority,
            Err(error) => {
                tracing::warn!(%error, "the new cacerts are refused; the old ones stay");
                return false;
            }
        };
        let roots = |authority: &Authority| -> BTreeSet<String> {
            authority.roots().iter().map(Certificate::fingerprint).collect()
        };
        let (old, new) = (roots(&before.authority), roots(&authority));
        if !(new.is_superset(&old) || new.is_subset(&old)) {
            tracing::error!("the new cacerts have another root, and not both; the old ones stay");
            return false;
        }
        tracing::info!("cacerts have changed and are taken");
        self.loaded.store(Arc::new(Loaded { files, authority }));
        true
    }
}

fn read(container: &Container) -> Option<CaCerts> {
    let file = |name: &str| {
        let path = container.path(istio::CACERTS_MOUNT).join(name);
        std::fs::read_to_string(path).ok()
    };
    Some(CaCerts {
        ca_cert: file(istio::CA_CERT_KEY)?,
        ca_key: Secret::new(file(istio::CA_KEY_KEY)?),
        cert_chain: file(istio::CERT_CHAIN_KEY)?,
        root_cert: file(istio::ROOT_CERT_KEY)?,
    })
}

fn serving(authority: &Authority, config: &Config, now: SystemTime) -> Result<Arc<rustls::ServerConfig>, Error> {
    let name = istio::with_revision(istio::ISTIOD, &config.revision);
    let namespace = &config.namespace;
    let mut names = BTreeSet::new();
    for name in [name.as_str(), istio::ISTIOD] {
        names.insert(format!("{name}.{namespace}"));
        names.insert(format!("{name}.{namespace}.svc"));
        names.insert(format!("{name}.{namespace}.svc.cluster.local"));
    }
    let names: Vec<_> = names.into_iter().collect();
    let made = authority.sign_server(&names, &[], None, SERVING, now).map_err(|e| Error::Authority(e.to_string()))?;
    tls::server(&made, ClientAuth::None, &[b"h2", b"http/1.1"]).map_err(|e| Error::Authority(e.to_string()))
}

/// `istio.v1.auth.IstioCertificateService`.
pub(crate) struct CertificateService {
    /// Who may ask.
    pub(crate) authenticator: Arc<Authenticator>,
    /// Who signs.
    pub(crate) trust: Arc<Trust>,
    /// For the trust domain.
    pub(crate) state: State,
    /// Counts.
    pub(crate) metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csr();
        let who = self.authenticator.authenticate(request.metadata()).await?;
        let asked = request.into_inner();
        if asked.metadata.as_ref().is_some_and(|fields| fields.fields.contains_key("ImpersonatedIdentity")) {
            return Err(Status::unauthenticated("nobody may ask in another's name here"));
        }
        let domain = self.state.worlds.borrow().settings.trust_domain.clone();
        let id = SpiffeId { trust_domain: domain, namespace: who.namespace, service_account: who.account };
        let ttl = Duration::from_secs(u64::try_from(asked.validity_duration).unwrap_or_default());
        let signed = self.trust.loaded.load().authority.sign_workload(&asked.csr, &id, ttl, SystemTime::now());
        match signed {
            Ok(cert_chain) => {
                self.metrics.issued();
                tracing::debug!(identity = %id, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(error @ stolos_pki::Error::Request(_)) => Err(Status::invalid_argument(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_service_accounts_are_somebody() {
        let identity = identity_of("system:serviceaccount:sample:sleep").unwrap();
        assert_eq!((&*identity.namespace, &*identity.account), ("sample", "sleep"));
        for nobody in ["system:admin", "system:serviceaccount:sample", "system:serviceaccount::x", ""] {
            assert_eq!(identity_of(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn a_new_intermediate_is_taken_and_a_foreign_root_is_not() {
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let config = Config { cluster: "east".into(), ..Config::default() };
        let (root, foreign) =
            (Authority::new_root("a", day * 365, now).unwrap(), Authority::new_root("b", day * 365, now).unwrap());
        let files = |root: &Authority| root.issue_intermediate("east", "a", "cluster.local", day * 90, now).unwrap();
        let first = files(&root);
        let authority = first.authority(now).unwrap();
        let trust = Trust {
            serving: ArcSwap::new(serving(&authority, &config, now).unwrap()),
            loaded: ArcSwap::from_pointee(Loaded { files: first.clone(), authority }),
        };
        assert!(!trust.take(first.clone(), now), "the same files");
        assert!(trust.take(files(&root), now), "a new intermediate");
        assert!(!trust.take(files(&foreign), now), "a foreign root");
        let both = CaCerts { root_cert: format!("{}{}", root.roots_pem(), foreign.roots_pem()), ..files(&root) };
        assert!(trust.take(both, now), "both roots");
        assert!(trust.take(files(&foreign), now), "then the other one alone");
        assert!(!trust.take(CaCerts { ca_cert: String::new(), ..files(&foreign) }, now), "nonsense");
        assert_eq!(trust.roots_pem(), foreign.roots_pem());
    }
}
