//! What stands between a proxy and its control plane: identity and configuration.
//!
//! The agent reads its container's environment and files, obtains a certificate for the workload and renews it,
//! follows discovery, and says when the proxy may take traffic. Nothing that goes wrong later ends it: the proxy goes
//! on with the certificate and the configuration it has, and the agent tries again.
//!
//! ```text
//!   environment, files ─► Settings ─┬─► certificate ─► Identity  ─┐
//!                                   │                             ├─► AgentHandle ─► the proxy
//!                                   └─► discovery  ─► resources  ─┘
//! ```
//!
//! An [`AgentHandle`] is all that our own proxy sees. For an Envoy the same certificate is served on a unix socket
//! (`sockets`), another relays discovery, `bootstrap` is what Envoy starts from, and `envoy` runs it.

mod bootstrap;
mod certificate;
pub(crate) mod envoy;
mod settings;
mod sockets;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use stolos_pki::{Credentials, Roots, tls};
use stolos_serve::{Container, Stop};
use stolos_xds::client::{self, Client, Link, Target};
use stolos_xds::envoy::config::core::v3::Node;
use stolos_xds::message::{self, CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE};
use stolos_xds::{Snapshot, unpack};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::metadata::{MetadataMap, MetadataValue};

pub use client::Check;
pub use settings::{Kind, Place, Settings, Unusable};

/// How long one attempt to reach the control plane may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The waits between attempts, the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Who the workload is, and whom it trusts. Always from one answer of the authority.
#[derive(Debug)]
pub struct Identity {
    /// Its certificate, chain and key.
    pub credentials: Credentials,
    /// The roots of its mesh.
    pub roots: Roots,
}

/// Starts an agent, which ends at `stop`. `check` is [`decodes`], or what the proxy thinks of a resource.
///
/// # Errors
///
/// [`Unusable`], when the container does not say what every agent must know. Whatever may yet come right (files,
/// names, the control plane) is waited for instead.
pub fn start(container: &Container, check: Check, stop: Stop) -> Result<AgentHandle, Unusable> {
    let settings = Arc::new(Settings::read(container)?);
    let node = settings.node(container);
    let (identity, failure, tasks) = identify(container, &settings, &stop);

    let mut client = Client::new(target(container, &settings.discovery), node.clone());
    let (place, known) = (container.clone(), Arc::clone(&settings));
    client.node = Arc::new(move || known.node(&place));
    let (place, known) = (container.clone(), Arc::clone(&settings));
    client.metadata = Arc::new(move || {
        let (container, settings) = (place.clone(), Arc::clone(&known));
        Box::pin(async move { credentials_of_call(&container, &settings).await })
    });
    if settings.wants_names {
        client.wildcards.push(NAME_TABLE.to_owned());
    }
    client.check = check;
    client.backoff = BACKOFF;
    let names = stop.child();
    let discovery = client.start(stop);
    if settings.wants_names {
        // A node's id ends in its DNS domain.
        let domain = settings.id.rsplit('~').next().unwrap_or_default().to_owned();
        tasks.spawn(crate::dns::run(Arc::clone(&container.net), domain, discovery.snapshots(), names));
    }
    tasks.close();
    Ok(AgentHandle { identity, failure, discovery, node: Arc::new(node), settings, tasks })
}

/// The workload's identity once there is one, and why there is none.
type Known = (watch::Receiver<Option<Arc<Identity>>>, watch::Receiver<Option<String>>, TaskTracker);

/// Obtains and renews the workload's certificate until `stop`.
fn identify(container: &Container, settings: &Arc<Settings>, stop: &Stop) -> Known {
    let (identities, identity) = watch::channel(None);
    let (failures, failure) = watch::channel(None);
    let tasks = TaskTracker::new();
    let renewal = certificate::Renewal::new(container.clone(), Arc::clone(settings), identities, failures);
    let until = stop.child();
    tasks.spawn(async move {
        tokio::select! {
            () = until.asked() => {}
            () = renewal.run() => {}
        }
    });
    (identity, failure, tasks)
}

/// A started agent.
#[derive(Clone)]
pub struct AgentHandle {
    identity: watch::Receiver<Option<Arc<Identity>>>,
    failure: watch::Receiver<Option<String>>,
    discovery: client::Handle,
    node: Arc<Node>,
    settings: Arc<Settings>,
    tasks: TaskTracker,
}

impl AgentHandle {
    /// The workload's identity, once it has one; replaced at every renewal.
    #[must_use]
    pub fn identity(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.identity.clone()
    }

    /// The configuration that the proxy should act on. A type is there from its first answer on; what has not
    /// changed is the same `Arc` as before.
    #[must_use]
    pub fn resources(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.discovery.snapshots()
    }

    /// Whether the control plane is there.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.discovery.link()
    }

    /// What the proxy says of itself.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What the container said.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Wants resources beside those that clusters and listeners refer to.
    pub fn want(&self, type_url: &str, names: impl IntoIterator<Item = impl Into<String>>) {
        self.discovery.want(type_url, names);
    }

    /// Whether the proxy may take traffic: it has a certificate, clusters and listeners, and what these refer to.
    ///
    /// # Errors
    ///
    /// What is missing, and why as far as is known.
    pub fn readiness(&self) -> Result<(), String> {
        let mut missing = Vec::new();
        if self.identity.borrow().is_none() {
            let why = self.failure.borrow().clone().unwrap_or_else(|| "asked for".into());
            missing.push(format!("no certificate yet ({why})"));
        }
        let unsent = unsent(&self.discovery.snapshots().borrow());
        if !unsent.is_empty() {
            let link = match &*self.discovery.link().borrow() {
                Link::Up => "connected".to_owned(),
                Link::Down { why, .. } => format!("not connected: {why}"),
            };
            missing.push(format!("no {} yet ({link})", unsent.join(", ")));
        }
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }

    /// Waits until [`readiness`](Self::readiness) is given. The caller bounds it.
    pub async fn ready(&self) {
        let (mut identity, mut resources) = (self.identity(), self.resources());
        // A watch ends only with the agent; then the caller's own stop is near.
        if identity.wait_for(Option::is_some).await.is_err()
            || resources.wait_for(|snapshot| unsent(snapshot).is_empty()).await.is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the agent has ended.
    pub async fn ended(&self) {
        self.tasks.wait().await;
        self.discovery.ended().await;
    }
}

/// A check that refuses what is not the message that its type says.
#[must_use]
pub fn decodes() -> Check {
    use stolos_xds::envoy::config::{cluster, endpoint, listener, route};
    Arc::new(|type_url, resource| {
        let decoded = match type_url {
            CLUSTER => unpack::<cluster::v3::Cluster>(&resource.body).map(drop),
            ENDPOINT => unpack::<endpoint::v3::ClusterLoadAssignment>(&resource.body).map(drop),
            LISTENER => unpack::<listener::v3::Listener>(&resource.body).map(drop),
            ROUTE => unpack::<route::v3::RouteConfiguration>(&resource.body).map(drop),
            _ => Ok(()),
        };
        decoded.map_err(|error| error.to_string())
    })
}

/// What a proxy that takes traffic must have been answered, and was not.
fn unsent(snapshot: &Snapshot) -> Vec<&'static str> {
    let needed = [(CLUSTER, "clusters"), (LISTENER, "listeners")];
    let mut unsent: Vec<_> =
        needed.iter().filter(|(of, _)| snapshot.get(of).is_none()).map(|(_, name)| *name).collect();
    if unsent.is_empty() {
        let references = client::references(snapshot);
        for (of, name) in [(ENDPOINT, "endpoints"), (ROUTE, "routes")] {
            if references.get(of).is_some_and(|names| !names.is_empty()) && snapshot.get(of).is_none() {
                unsent.push(name);
            }
        }
    }
    unsent
}

/// How to reach a part of the control plane: over TLS, its name checked against the mounted roots as they are then.
fn target(container: &Container, place: &Place) -> Target {
    let files = container.clone();
    Target {
        net: Arc::clone(&container.net),
        host: place.host.clone(),
        port: place.port,
        tls: Some(Arc::new(move || {
            let roots = settings::mounted_roots(&files)?;
            tls::client_by_name(None, &roots, &[b"h2"]).map_err(io::Error::other)
        })),
        timeout: ATTEMPT,
    }
}

/// The gRPC metadata that says who calls: the token as it is now, and the cluster it is a token of.
async fn credentials_of_call(container: &Container, settings: &Settings) -> io::Result<MetadataMap> {
    let path = container.path(settings::TOKEN);
    let token = tokio::fs::read_to_string(&path)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read the token {}: {error}", path.display())))?;
    let mut metadata = MetadataMap::new();
    let mut bearer: MetadataValue<_> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the token has bytes that no token has"))?;
    bearer.set_sensitive(true);
    metadata.insert("authorization", bearer);
    if let Ok(cluster) = settings.cluster.parse() {
        metadata.insert("clusterid", cluster);
    }
    Ok(metadata)
}

/// A text of the node's metadata.
#[must_use]
pub fn node_text<'a>(node: &'a Node, path: &[&str]) -> Option<&'a str> {
    message::text_at(node.metadata.as_ref()?, path)
}

#[cfg(test)]
pub(crate) mod tests;
