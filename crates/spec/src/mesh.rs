//! The mesh, understood.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::gateway::ClusterGateway;
use crate::{ClusterName, MeshName, NetworkName};

/// One mesh over many clusters.
///
/// What a reader of this value may rely on: cluster names are unique, no two clusters share a context of the same
/// kubeconfig, every remote's primary is a cluster of this mesh and itself a primary, and there is at least one cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// The mesh ID.
    pub name: MeshName,
    /// Who vouches for identities.
    pub trust: Trust,
    /// What runs in each cluster.
    pub control_plane: ControlPlane,
    /// In the order of the file.
    pub clusters: Vec<Cluster>,
    /// Whether plaintext is accepted inside the mesh.
    pub mtls: Mtls,
    /// Host patterns that east-west gateways serve, such as `*.local`.
    pub expose: Vec<String>,
    /// Workloads that `apply` installs along.
    pub samples: BTreeSet<Sample>,
    /// The hub that leads to clusters which cannot be dialled, if one is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<Hub>,
    /// Which kind of file this came from.
    pub origin: Origin,
}

impl Mesh {
    /// The cluster called `name`.
    #[must_use]
    pub fn cluster(&self, name: &ClusterName) -> Option<&Cluster> {
        self.clusters.iter().find(|c| c.name == *name)
    }

    /// The value of the file that says that workloads' certificates come from somebody else than istiod, if one does: then
    /// there is no `cacerts`, by intent. (`global.caAddress` is where agents send their requests; a
    /// `global.pilotCertProvider` other than `istiod` is who signs for istiod itself: Istio 1.30, `manifests/charts`.)
    #[must_use]
    pub fn authority_elsewhere(&self) -> Option<String> {
        let global = &self.control_plane.values["global"];
        let said = |key: &str| global[key].as_str().map(str::trim).filter(|text| !text.is_empty());
        let address = said("caAddress").filter(|address| !address.starts_with("istiod"));
        let provider = said("pilotCertProvider").filter(|provider| *provider != "istiod");
        address
            .map(|address| format!("global.caAddress: {address}"))
            .or_else(|| provider.map(|provider| format!("global.pilotCertProvider: {provider}")))
    }

    /// Whether anything of the mesh is, or is to be, in a hub.
    #[must_use]
    pub fn needs_hub(&self) -> bool {
        self.uses_tunnel() || self.hub.as_ref().is_some_and(|hub| hub.join.is_some())
    }

    /// Whether any cluster's API server is reached through the hub.
    #[must_use]
    pub fn uses_tunnel(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.api == Some(Api::Tunnel))
    }

    /// The networks, each once, in name order.
    #[must_use]
    pub fn networks(&self) -> BTreeSet<&NetworkName> {
        self.clusters.iter().map(|c| &c.network).collect()
    }

    /// Whether any two clusters cannot dial each other's pods, so that east-west gateways are needed.
    #[must_use]
    pub fn needs_gateways(&self) -> bool {
        self.networks().len() > 1
    }

    /// Whether other clusters use the control plane of this one.
    #[must_use]
    pub fn serves_remotes(&self, primary: &ClusterName) -> bool {
        self.clusters.iter().any(|c| c.primary() == Some(primary))
    }

    /// Whether this cluster needs an east-west gateway: between networks, and, on one network as well, for remotes to
    /// reach its control plane through.
    #[must_use]
    pub fn needs_gateway(&self, cluster: &Cluster) -> bool {
        self.needs_gateways() || self.serves_remotes(&cluster.name)
    }

    /// Every ordered pair of different clusters.
    pub fn ordered_pairs(&self) -> impl Iterator<Item = (&Cluster, &Cluster)> {
        self.clusters
            .iter()
            .flat_map(move |from| self.clusters.iter().filter(move |to| to.name != from.name).map(move |to| (from, to)))
    }
}

/// A hub (`stolos hub up`), as a mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hub {
    /// The kubeconfig context to reach its API by.
    pub context: String,
    /// The kubeconfig file that the context is in, if the mesh file names one (joined with the mesh file's folder).
    pub kubeconfig: Option<PathBuf>,
    /// The URL under which control planes reach it, if it is not the kubeconfig's.
    pub address: Option<String>,
    /// How `apply` makes clusters members of it, if it does.
    pub join: Option<Join>,
}

/// How a cluster becomes a member of a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Join {
    /// The hub dials it: only those that can be dialled.
    Dialled,
    /// An agent in it dials the hub.
    Agent,
}

impl Hub {
    /// How `apply` makes `cluster` a member, if it does.
    #[must_use]
    pub fn joins(&self, cluster: &Cluster) -> Option<Join> {
        self.join.filter(|join| *join == Join::Agent || cluster.api != Some(Api::Tunnel))
    }
}

/// A cluster of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Its name in the mesh.
    pub name: ClusterName,
    /// The kubeconfig context to reach it by, as written.
    pub context: String,
    /// The kubeconfig file this cluster's own entry names, if any, as written (relative to the mesh file's folder
    /// for a `Mesh`, to the working directory for a ristioctl file: the reader of the file has already joined it).
    pub kubeconfig: Option<PathBuf>,
    /// Its network.
    pub network: NetworkName,
    /// Region of its nodes, where the file says so.
    pub region: Option<String>,
    /// Zone of its nodes, where the file says so.
    pub zone: Option<String>,
    /// Whether it runs its own control plane.
    pub role: Role,
    /// How other clusters reach its API server, if not by the address in the kubeconfig.
    pub api: Option<Api>,
    /// What is said of its east-west gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<ClusterGateway>,
}

impl Cluster {
    /// The cluster whose control plane it uses, if it has none of its own.
    #[must_use]
    pub fn primary(&self) -> Option<&ClusterName> {
        match &self.role {
            Role::Primary => None,
            Role::Remote { primary } => Some(primary),
        }
    }

    /// Its east-west gateway, where the file says by hand how that is reached.
    #[must_use]
    pub fn gateway_by_hand(&self) -> Option<&ClusterGateway> {
        self.gateway.as_ref().filter(|gateway| !gateway.addresses.is_empty())
    }
}

/// Whether a cluster runs its own control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// It does.
    Primary,
    /// It uses that of `primary`.
    Remote {
        /// The cluster whose control plane it uses.
        primary: ClusterName,
    },
}

/// How other clusters reach an API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Api {
    /// At this URL.
    Server(String),
    /// Through the hub's tunnel.
    Tunnel,
}

/// Who vouches for identities.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// The SPIFFE trust domain; also the DNS suffix of services unless said otherwise.
    pub domain: String,
    /// `O=` of the certificates that Stolos makes.
    pub organization: String,
    /// Where the root comes from.
    pub root: Root,
    /// The per-cluster signing certificates.
    pub intermediates: IntermediateTrust,
}

/// Where the root certificate comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Root {
    /// Stolos makes it.
    SelfSigned {
        /// From its making to its end.
        #[serde(serialize_with = "as_hours")]
        validity: Duration,
    },
    /// The user's own, as PEM files.
    Files {
        /// The root certificate.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// A program that takes a CSR on stdin and answers a chain on stdout.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
    },
}

/// The per-cluster signing certificates.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IntermediateTrust {
    /// From issue to end.
    #[serde(serialize_with = "as_hours")]
    pub validity: Duration,
    /// How long before its end an intermediate is issued anew.
    #[serde(serialize_with = "as_hours")]
    pub renew_before: Duration,
}

/// What runs in each cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Which engine.
    pub engine: Engine,
    /// The Istio version the file asks for, as written; a foreign file's is only a wish.
    pub version: Option<String>,
    /// Helm values overlaid on what Stolos computes; Stolos' own always win.
    pub values: serde_json::Value,
    /// Which program installs Istio. The small engine needs none.
    pub installer: Installer,
    /// Where Istio's charts come from.
    pub charts: Charts,
    /// The revision of Istio's control plane; none is the one it calls `default`.
    pub revision: Option<String>,
    /// What stands under `gateways`.
    pub gateways: Gateways,
}

impl ControlPlane {
    /// As a file has it that says nothing about it.
    #[must_use]
    pub fn of(engine: Engine) -> Self {
        Self {
            engine,
            version: None,
            values: serde_json::Value::Object(serde_json::Map::new()),
            installer: Installer::Helm,
            charts: Charts::Repository(ISTIO_CHARTS.to_owned()),
            revision: None,
            gateways: Gateways::default(),
        }
    }
}

/// Where Istio publishes its charts.
pub const ISTIO_CHARTS: &str = "https://istio-release.storage.googleapis.com/charts";

/// Which program installs Istio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Installer {
    /// `helm`, version 3 or 4, with Istio's charts.
    Helm,
    /// `istioctl` of the version that is to be installed.
    Istioctl,
    /// Nobody: Istio is there, and whoever installed it goes on looking after it. What the clusters need of each other is
    /// Stolos' part.
    None,
}

/// Where Istio's charts come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Charts {
    /// A chart repository.
    Repository(String),
    /// An OCI registry: what stands before `/base`, `/istiod` and `/gateway`.
    Registry(String),
    /// A folder with the charts, unpacked or as archives: nothing is fetched.
    Folder(PathBuf),
}

/// Values of Istio's chart `gateway`; what the mesh needs of them always wins.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateways {
    /// For the east-west gateway of each cluster.
    pub eastwest: serde_json::Map<String, serde_json::Value>,
    /// For an ingress gateway in each cluster; none, and there is none.
    pub ingress: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Which control plane and proxies a mesh is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Engine {
    /// `Stolos` where every cluster is a lab cluster, `Istio` where none is.
    Auto,
    /// The small one, the lab's own.
    Stolos,
    /// Real Istio.
    Istio,
}

/// Whether plaintext is accepted inside the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mtls {
    /// It is not.
    Strict,
    /// It is.
    Permissive,
}

/// A workload that `apply` installs along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sample {
    /// Service everywhere, v1 in the first cluster, v2 in the second, alternating.
    Helloworld,
    /// A client in every cluster.
    Sleep,
    /// Istio's book shop.
    Bookinfo,
}

/// Which kind of file a mesh came from. A foreign file's version is a wish, and its unknown fields are warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// `kind: Mesh`.
    Mesh,
    /// `topology.yaml` of Istio's `setup-mesh.sh`.
    Topology,
    /// Rafay's `ristioctl`.
    Ristioctl,
    /// The arguments of `asmcli create-mesh`.
    Fleet,
    /// The files of a shared control plane: kubeconfigs, remote secrets, values of the chart `istio-remote`.
    SharedControlPlane,
    /// Placement policies of Karmada's.
    Karmada,
}

fn as_hours<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{}h", duration.as_secs() / 3600))
}
