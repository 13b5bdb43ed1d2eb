//! The sixty causes: what each is, how it shows, why it breaks a mesh and how it is mended. The numbers are stable.

use serde::Serialize;

use super::Severity::{self, Error, Info, Warning};
use super::checks::{control, exposure, gateways, links, networks, policy, trust, workloads};
use super::scene::{Judgement, Scene};

/// What a cause is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Group {
    /// Who is in the mesh, and what runs there.
    Clusters,
    /// Roots, intermediates, trust domains, clocks.
    Trust,
    /// Which pods can dial which.
    Networks,
    /// The ways between networks.
    Gateways,
    /// How control planes read each other's clusters.
    RemoteSecrets,
    /// Control planes that serve clusters other than their own.
    PrimaryRemote,
    /// Services that are the same everywhere.
    Services,
    /// Rules about traffic.
    Policies,
    /// Proxies of workloads.
    Workloads,
}

impl Group {
    /// All, in the order in which one depends on the one before.
    pub const ALL: [Self; 9] = [
        Self::Clusters,
        Self::Trust,
        Self::Networks,
        Self::Gateways,
        Self::RemoteSecrets,
        Self::PrimaryRemote,
        Self::Services,
        Self::Policies,
        Self::Workloads,
    ];

    /// As a heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Clusters => "clusters and control planes",
            Self::Trust => "trust",
            Self::Networks => "networks",
            Self::Gateways => "east-west gateways",
            Self::RemoteSecrets => "remote secrets",
            Self::PrimaryRemote => "primary and remote",
            Self::Services => "services",
            Self::Policies => "policies",
            Self::Workloads => "workloads",
        }
    }
}

/// A cause of failure.
pub struct Cause {
    /// `D-01` to `D-60`.
    pub id: &'static str,
    /// What it is about.
    pub group: Group,
    /// How bad it mostly is.
    pub severity: Severity,
    /// Whether it can be told before anything is installed.
    pub before: bool,
    /// Whether it comes and goes by itself, so that it is looked at twice.
    pub volatile: bool,
    /// The cause, in a few words.
    pub title: &'static str,
    /// What holds where it is absent.
    pub healthy: &'static str,
    /// How it shows.
    pub shows: &'static str,
    /// Why it breaks the mesh.
    pub why: &'static str,
    /// How it is mended.
    pub mend: &'static str,
    /// Looks for it.
    pub(crate) check: fn(&Scene<'_>, &mut Judgement),
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cause").field("id", &self.id).field("title", &self.title).finish_non_exhaustive()
    }
}

/// The cause with this id, in upper or lower case.
#[must_use]
pub fn cause(id: &str) -> Option<&'static Cause> {
    CAUSES.iter().find(|c| c.id.eq_ignore_ascii_case(id))
}

/// Which cause is said first where several are found: the one that explains the others. Who is in the mesh, then trust,
/// networks, gateways, credentials, what is exposed, workloads, traffic.
const ORDER: [&str; 60] = [
    "D-28", "D-06", "D-59", "D-49", "D-48", "D-03", "D-04", "D-05", "D-02", "D-01", "D-30", "D-29", "D-07", "D-58",
    "D-27", "D-09", "D-08", "D-54", "D-10", "D-15", "D-11", "D-12", "D-53", "D-50", "D-16", "D-44", "D-13", "D-14",
    "D-52", "D-51", "D-19", "D-18", "D-20", "D-21", "D-22", "D-23", "D-24", "D-57", "D-55", "D-60", "D-45", "D-47",
    "D-46", "D-40", "D-25", "D-26", "D-33", "D-35", "D-34", "D-38", "D-56", "D-36", "D-37", "D-42", "D-39", "D-43",
    "D-31", "D-32", "D-17", "D-41",
];

/// The place of a cause in that order.
pub(crate) fn rank(id: &str) -> usize {
    ORDER.iter().position(|known| *known == id).unwrap_or(ORDER.len())
}

/// What each cause brings about, if it is there.
const EXPLAINS: &[(&str, &[&str])] = &[
    ("D-28", &["D-09", "D-18", "D-19", "D-25", "D-26", "D-27", "D-07"]),
    ("D-06", &["D-05", "D-23", "D-25", "D-17"]),
    ("D-59", &["D-10", "D-16", "D-37", "D-42"]),
    ("D-49", &["D-36", "D-46", "D-50"]),
    ("D-48", &["D-36", "D-50"]),
    ("D-03", &["D-01", "D-02", "D-04", "D-05", "D-17"]),
    ("D-04", &["D-01", "D-02", "D-17"]),
    ("D-05", &["D-01", "D-02", "D-17"]),
    ("D-02", &["D-01", "D-17"]),
    ("D-01", &["D-17"]),
    ("D-30", &["D-17", "D-43"]),
    ("D-07", &["D-08", "D-10", "D-13", "D-14", "D-17"]),
    ("D-58", &["D-17"]),
    ("D-27", &["D-25", "D-26", "D-36"]),
    ("D-09", &["D-08", "D-26"]),
    ("D-08", &["D-13", "D-14", "D-21", "D-25", "D-26", "D-54"]),
    ("D-10", &["D-11", "D-13", "D-14", "D-15", "D-16", "D-17"]),
    ("D-15", &["D-13", "D-14", "D-17"]),
    ("D-11", &["D-13", "D-14", "D-17"]),
    ("D-12", &["D-13", "D-14", "D-17", "D-46"]),
    ("D-53", &["D-13", "D-14", "D-17"]),
    ("D-50", &["D-13", "D-14", "D-16", "D-17"]),
    ("D-16", &["D-13", "D-14", "D-17"]),
    ("D-44", &["D-13", "D-14", "D-17", "D-21", "D-25", "D-26"]),
    ("D-13", &["D-14", "D-17"]),
    ("D-14", &["D-17", "D-21", "D-25", "D-47"]),
    ("D-52", &["D-17"]),
    ("D-19", &["D-18", "D-25", "D-26", "D-55"]),
    // A primary that does not read its remote has nothing to tell the remote's gateway.
    ("D-18", &["D-17", "D-25", "D-26"]),
    ("D-20", &["D-25", "D-26"]),
    ("D-21", &["D-22", "D-23", "D-25", "D-26"]),
    ("D-22", &["D-23", "D-25", "D-26"]),
    ("D-23", &["D-24", "D-25", "D-26"]),
    ("D-24", &["D-25", "D-26"]),
    ("D-45", &["D-46"]),
    ("D-47", &["D-46", "D-36"]),
    ("D-40", &["D-26"]),
    ("D-25", &["D-26"]),
    ("D-33", &["D-36", "D-37", "D-17"]),
    ("D-38", &["D-17"]),
    ("D-36", &["D-37", "D-17"]),
    ("D-37", &["D-17"]),
    ("D-43", &["D-17"]),
];

/// Whether the one brings the other about.
pub(crate) fn explains(cause: &str, other: &str) -> bool {
    EXPLAINS.iter().any(|(id, others)| *id == cause && others.contains(&other))
}

/// Whether a cause in one cluster shows in others, too.
pub(crate) fn reaches_far(id: &str) -> bool {
    !matches!(id, "D-36" | "D-37" | "D-48" | "D-49" | "D-50")
}

/// Writes one cause.
macro_rules! cause {
    ($id:literal $group:ident $severity:ident [$($flag:ident)*] $check:path,
     $title:literal, $healthy:literal, shows $shows:literal, why $why:literal, mend $mend:literal) => {
        Cause {
            id: $id, group: Group::$group, severity: $severity,
            before: false $(|| cause!(@before $flag))*, volatile: false $(|| cause!(@volatile $flag))*,
            title: $title, healthy: $healthy, shows: $shows, why: $why, mend: $mend, check: $check,
        }
    };
    (@before before) => { true }; (@before $other:ident) => { false };
    (@volatile volatile) => { true }; (@volatile $other:ident) => { false };
}

/// All sixty, by number.
pub const CAUSES: &[Cause] = &[
    cause!("D-01" Trust Error [] trust::different_roots,
        "different root certificates", "every cluster trusts the root that the others' certificates come from",
        shows "Requests to the other cluster end in 503 with `CERTIFICATE_VERIFY_FAILED` or `unknown ca`; within a cluster all is well.",
        why "A proxy accepts a peer only when the peer's certificate leads to a root that it trusts, so nothing passes between clusters of different roots.",
        mend "Give every cluster an intermediate of one root (`stolos apply` does), restart the control plane, then the workloads. To change a root without an outage, trust both first."),
    cause!("D-02" Trust Error [volatile] trust::not_in_effect,
        "the Secret cacerts is there but not in effect", "the root that each control plane publishes is the one of its cacerts",
        shows "`cacerts` holds the shared root, yet the ConfigMap `istio-ca-root-cert` shows another: the control plane signs with what it had when it started, or for itself.",
        why "Workloads get certificates of a root that the other clusters do not expect, whatever the Secret says.",
        mend "Restart the control plane so that it loads the Secret; if `istio-ca-secret` exists, it has signed for itself before, and workloads need a restart as well."),
    cause!("D-03" Trust Error [before] trust::incomplete,
        "the Secret cacerts lacks keys, or has them under other names", "every cacerts has all its keys",
        shows "Istio 1.26.1 and later does not start (`incomplete signing CA bundle`); earlier ones sign for themselves without a word.",
        why "The control plane needs the certificate, its key, the chain and the root under exactly these names; without one of them the shared root is not used.",
        mend "Write all of `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem` (or `tls.crt`, `tls.key`, `ca.crt` in a Secret of type kubernetes.io/tls)."),
    cause!("D-04" Trust Error [before] trust::unusable,
        "the signing certificate cannot be used", "every signing certificate can sign and leads to its root",
        shows "The control plane does not start or refuses the new files: the key belongs to another certificate, it is no CA, the chain does not lead to the root or begins with another certificate, it is signed with SHA-1, or the key is encrypted.",
        why "A control plane that cannot sign gives nobody an identity; one with a wrong chain gives identities that only its own cluster can verify.",
        mend "Issue the intermediate anew from the shared root; `cert-chain.pem` begins with the signing certificate, and the key is not encrypted."),
    cause!("D-05" Trust Error [before] trust::expired,
        "a certificate of the authority has expired or soon will", "every root and intermediate is valid for long enough",
        shows "New and renewed workloads get no certificate; connections fail one after the other as certificates run out, at the latest a day later.",
        why "Workload certificates never outlive the authority above them, and proxies refuse a chain with an expired link.",
        mend "Renew the intermediate (`stolos apply`); an expired root must be replaced in every cluster."),
    cause!("D-06" Trust Error [before] trust::clocks,
        "clocks differ, or a certificate is not valid yet", "clocks agree, and no certificate begins in the future",
        shows "`certificate is not yet valid` right after something was issued; tokens are refused although they are new.",
        why "Certificates and tokens are judged by the clock of whoever reads them.",
        mend "Let every node follow one time source (chrony, systemd-timesyncd); then issue again what begins in the future."),
    cause!("D-07" Networks Error [] networks::label,
        "the network's label is missing, wrong, or not what proxies were told", "each cluster's namespace, injector and proxies name its network",
        shows "Requests to the other network time out (they are sent to pod addresses directly), or traffic inside a network takes the gateway.",
        why "The label `topology.istio.io/network` on istio-system says where endpoints are. Without it they count as directly reachable from everywhere.",
        mend "Label the namespace (`stolos apply` does), set `global.network` alike, and restart pods that were injected before."),
    cause!("D-08" Networks Error [volatile] networks::not_routable,
        "one network's name, but no way between the pods", "pods of clusters on one network reach each other",
        shows "Requests to the other cluster hang until they time out, although every object looks right; gateways are never used.",
        why "Equal network names say that pods can be dialled directly. Where they cannot be, every endpoint of the other cluster is a black hole.",
        mend "Give the clusters different networks (and east-west gateways), or make the pod networks route to each other."),
    cause!("D-09" Networks Error [before] networks::overlap,
        "pod networks overlap on one network", "clusters on one network have pod addresses of their own",
        shows "Some requests reach a wrong pod or none at all; identities do not match what was expected.",
        why "On a flat network an address must mean one pod. Where two clusters use the same addresses, packets go to whichever is nearer.",
        mend "Give one cluster another pod CIDR, or make it a network of its own behind an east-west gateway."),
    cause!("D-10" Gateways Error [volatile] gateways::missing,
        "no east-west gateway for a network", "every network has a gateway that control planes can find",
        shows "Requests into the network time out: without a gateway proxies are given the pods' own addresses.",
        why "A gateway is found by the label `topology.istio.io/network` on its Service. Without one the other networks do not know the way in and try to dial pods.",
        mend "Install an east-west gateway, or label its Service with the network's name (`stolos apply` does both)."),
    cause!("D-11" Gateways Error [volatile] gateways::no_address,
        "a gateway's Service has no outside address", "every gateway's Service has an address",
        shows "`kubectl get service` shows `<pending>` or no address that leads in from outside; requests into the network time out.",
        why "The control planes hand the gateway's outside address to their proxies. No address is no gateway.",
        mend "Look at the Service's events (no load balancer controller? a quota?), or set `externalIPs`, or NodePort with the annotation `traffic.istio.io/nodeSelector`."),
    cause!("D-12" Gateways Error [volatile] gateways::hostname,
        "a gateway's host name leads nowhere, or cannot be used", "every gateway's host name resolves",
        shows "Clouds that give host names (AWS): the control plane logs that the name does not resolve and drops the gateway; a remote cluster's webhook says `unsupported service type \"ExternalName\"`.",
        why "Control planes resolve the name themselves, before 1.18 only once; and API servers refuse webhooks behind a host name.",
        mend "Mend the DNS record, or give the load balancer fixed addresses; a remote cluster needs an address (or `injectionURL`)."),
    cause!("D-13" Gateways Error [volatile] gateways::private,
        "a gateway's private address is not reachable from its peers", "private gateway addresses are reachable from the other clusters",
        shows "Requests into the network time out; from inside its own network the gateway answers.",
        why "An internal load balancer's address means something only inside its own network.",
        mend "Make the load balancer external, or connect the networks (peering, VPN) so that the address is reachable."),
    cause!("D-14" Gateways Error [volatile] gateways::filtered,
        "a gateway's port cannot be reached", "the gateways' ports are reachable from the other clusters",
        shows "Connections to port 15443 (15012 and 15017 for remotes) are refused or get no answer.",
        why "All traffic between networks passes this one port. Refused means that nothing listens; silence means a firewall or no route.",
        mend "Open the port from the other clusters (security groups, firewall rules); if it is refused, look at the gateway's pods and at Gateway `cross-network-gateway`."),
    cause!("D-15" Gateways Error [] gateways::no_port,
        "a gateway's Service lacks the port", "every gateway's Service has its port",
        shows "The gateway is ignored with a warning, or proxies dial a port that leads nowhere.",
        why "Control planes give out port 15443, or the one that the label `networking.istio.io/gatewayPort` names; the Service must list it.",
        mend "Add port 15443 to the Service (`stolos apply` does)."),
    cause!("D-16" Gateways Error [volatile] gateways::not_exposed,
        "nothing exposes services on the gateway", "a Gateway with AUTO_PASSTHROUGH selects the gateway's pods and covers the services",
        shows "The gateway's port is open in the Service, but connections are closed at once.",
        why "The pods only listen on 15443 once a Gateway object selects them, with mode AUTO_PASSTHROUGH and hosts that cover the services' names.",
        mend "Apply Gateway `cross-network-gateway` in istio-system: selector of the gateway's pods, port 15443, AUTO_PASSTHROUGH, hosts `*.local` (`stolos apply` does)."),
    cause!("D-17" Gateways Error [volatile] gateways::broken_path,
        "the way through a gateway is broken", "a handshake through each gateway ends at a workload of the mesh",
        shows "The port answers, but a proxy's handshake (the service's name as SNI, ALPN `istio`) fails or ends at somebody of another trust domain or root.",
        why "Everything up to the gateway is right and the last step is not: no endpoints behind it, a wrong name, or a load balancer that ends TLS itself.",
        mend "Look whether the load balancer passes TCP through untouched, and whether the service has ready pods with proxies behind the gateway."),
    cause!("D-18" RemoteSecrets Error [] links::missing,
        "a remote secret is missing", "every control plane holds a credential for every other cluster",
        shows "The control plane does not know the cluster at all: its endpoints are absent, with no error anywhere.",
        why "A control plane learns of another cluster's endpoints only through a Secret with a kubeconfig for it.",
        mend "`stolos apply` writes it (or `istioctl create-remote-secret`)."),
    cause!("D-19" RemoteSecrets Error [] links::malformed,
        "a remote secret is malformed", "every remote secret can be read as one",
        shows "The Secret is there and the cluster is still unknown: wrong namespace, label not the text \"true\", a key that is no cluster's name, no content, or two Secrets for one cluster.",
        why "Only Secrets in the control plane's own namespace with the label `istio/multiCluster: \"true\"` count, the data's key is the cluster's name, and the first Secret for a cluster wins.",
        mend "Write it anew with `stolos apply`, and delete the wrong one."),
    cause!("D-20" RemoteSecrets Error [] links::refused_auth,
        "a kubeconfig authenticates in a way that is refused", "no remote kubeconfig runs programs or points to files",
        shows "The control plane logs that the kubeconfig is refused; the cluster stays unknown.",
        why "Control planes do not run programs (`exec`) or read files that a Secret names. A copied user's kubeconfig (EKS, GKE, AKS) mostly does both.",
        mend "Use a service account's token (`stolos apply` does), never a person's kubeconfig."),
    cause!("D-21" RemoteSecrets Error [volatile] links::server,
        "a kubeconfig's server cannot be reached from its reader", "every remote API server can be reached from where it is read",
        shows "The control plane waits 30 s for the cluster and goes on without it.",
        why "127.0.0.1 and names that only a laptop knows mean something else, or nothing, in another cluster.",
        mend "Name an address that the reader can reach: `api.server` of the cluster in the mesh file, then `stolos apply`."),
    cause!("D-22" RemoteSecrets Error [] links::certificate,
        "an API server's certificate does not fit the kubeconfig", "every API server shows a certificate that its readers' kubeconfigs trust",
        shows "`x509: certificate is valid for …, not …`, or `signed by unknown authority` after the cluster's CA was renewed.",
        why "The reader trusts only the CA in the kubeconfig, and only for the host that it names.",
        mend "Write the credential anew (`stolos apply`), with the server's current CA and a host that its certificate names."),
    cause!("D-23" RemoteSecrets Error [] links::token,
        "a token has expired or was revoked", "every remote credential is accepted",
        shows "The control plane logs 401 Unauthorized; endpoints of the cluster stay as they were and grow stale.",
        why "A token is good until it expires or until what it is bound to is deleted (the account, its Secret).",
        mend "`stolos apply` writes a new one; do not delete the old one before."),
    cause!("D-24" RemoteSecrets Error [] links::rights,
        "a remote credential may not read what is needed", "every remote credential may read what control planes read",
        shows "The control plane logs `forbidden` and never finishes its first look at the cluster.",
        why "The reader's role belongs to the cluster that is read; a newer control plane may need more than an old role allows.",
        mend "Bring the reader's ClusterRole in the cluster that is read up to date (`stolos apply` does)."),
    cause!("D-25" RemoteSecrets Error [volatile] links::not_synced,
        "a control plane has not taken in another cluster", "every replica of every control plane is in sync with every cluster",
        shows "`clusterz` says `syncing` or `timeout`, on one replica or on all; half of the proxies may see the cluster and half not.",
        why "Each replica reads every cluster by itself. One that has not finished gives its proxies no endpoints there, and is Ready all the same.",
        mend "Look at that replica's log; restart it when the credential is right and it does not come back."),
    cause!("D-26" RemoteSecrets Error [volatile] links::stale,
        "a control plane's endpoints of another cluster are stale", "every control plane has the endpoints that the clusters have",
        shows "Requests go to pods that are gone, or never to ones that are there, mostly after a credential was renewed (Istio 1.30.0 to 1.30.2).",
        why "Proxies use what the control plane remembers of the other cluster.",
        mend "Restart the control plane; move on to Istio 1.30.3 or later."),
    cause!("D-27" Clusters Error [] networks::cluster_name,
        "a control plane calls its cluster otherwise than the mesh does", "every control plane and proxy knows its cluster by the mesh's name",
        shows "Proxies of remote clusters do not start (`client claims to be in cluster …`); locality, metrics and clusterLocal are wrong everywhere.",
        why "The name in `CLUSTER_ID` (`Kubernetes` if unset) must be the key under which the others hold the cluster's credential.",
        mend "Set `global.multiCluster.clusterName` to the name in the mesh file (`stolos apply` does), then restart injected pods."),
    cause!("D-28" Clusters Error [before] networks::same_cluster,
        "two entries are one cluster", "every entry of the mesh file is a cluster of its own",
        shows "Endpoints appear twice, or one entry's changes undo the other's.",
        why "A cluster is what its kube-system's UID says, whatever it is called; as two members it would read itself as a stranger.",
        mend "Give each cluster one entry in the mesh file, and look at the kubeconfig's contexts."),
    cause!("D-29" Clusters Warning [] control::mesh_id,
        "mesh IDs differ", "every cluster has the same mesh ID",
        shows "Metrics and access logs are split by mesh; some integrations treat the clusters as strangers.",
        why "`global.meshID` says that clusters belong together.",
        mend "Set one mesh ID everywhere (`stolos apply` does), then restart injected pods."),
    cause!("D-30" Trust Error [] trust::domains,
        "trust domains differ and are no aliases of each other", "every cluster accepts the others' trust domain",
        shows "Handshakes between clusters fail with a mismatch of names although the root is shared.",
        why "The expected identity begins with the trust domain; one that is neither the own nor an alias is refused.",
        mend "Use one trust domain, or list the others under `meshConfig.trustDomainAliases` everywhere."),
    cause!("D-31" Clusters Warning [] control::versions,
        "versions are too far apart", "versions of control planes and proxies are close to each other",
        shows "Features work in one cluster and not in another; proxies refuse configuration.",
        why "Control planes of a mesh are tested within one minor version of each other, proxies within two of their control plane.",
        mend "Upgrade the older clusters, one minor version at a time; restart old workloads."),
    cause!("D-32" Clusters Warning [] control::flags,
        "mesh-wide settings differ", "mesh-wide settings are the same in every cluster",
        shows "A service resolves or balances in one cluster and not in another.",
        why "DNS capture, clusterLocal, locality settings and several roots are each cluster's own setting, but decide about traffic between clusters.",
        mend "Make the settings equal in the mesh's overlay and `stolos apply`."),
    cause!("D-33" Services Error [] exposure::namespaces,
        "a namespace does not mean the same everywhere", "namespaces with shared services ask for sidecars alike",
        shows "The same service has a sidecar in one cluster and none in the other: half of the requests fail.",
        why "A namespace is one thing across the mesh; endpoints without a proxy cannot be reached from other networks.",
        mend "Label the namespace in every cluster alike, then restart its pods."),
    cause!("D-34" Services Error [] exposure::unknown_here,
        "a service is unknown where it is called", "callers can resolve the services of their namespaces",
        shows "`Could not resolve host` in one cluster, for a service that runs in another.",
        why "A name is resolved by the caller's own cluster, unless the proxy answers DNS (`ISTIO_META_DNS_CAPTURE`).",
        mend "Create the Service in the caller's cluster as well (without pods), or turn DNS capture on."),
    cause!("D-35" Services Error [] exposure::inconsistent,
        "a service is defined differently in two clusters", "shared services are defined alike",
        shows "Requests to one cluster's pods fail or are treated as another protocol.",
        why "Control planes merge Services of one name; ports, port names, protocols and kinds that differ cannot both be right.",
        mend "Make the definitions equal: ports, port names or appProtocol, headless or not, type."),
    cause!("D-36" Workloads Error [volatile] workloads::not_injected,
        "pods without a sidecar, or with an old one, where there should be one", "pods of injected namespaces have their sidecar",
        shows "The pod has one container; its requests are plaintext and are refused, and other networks do not see it.",
        why "A sidecar comes only when the pod is created; a pod that is older than the label, or was made while the webhook was away, has none.",
        mend "Restart the workload: `kubectl rollout restart`."),
    cause!("D-37" Workloads Error [] policy::plaintext,
        "a destination takes no mutual TLS", "destinations that other networks call take mutual TLS",
        shows "The endpoints are absent in other networks, or the connection is refused there, while it works inside its own.",
        why "A gateway passes mutual TLS only. Endpoints that do not take it are left out, and a client told to speak plaintext is not let in.",
        mend "Remove PeerAuthentication DISABLE and DestinationRule tls DISABLE or SIMPLE for the service; keep the label `security.istio.io/tlsMode: istio` on its pods."),
    cause!("D-38" Services Error [] exposure::not_exported,
        "a service is not exported to its callers or to the gateway", "shared services are exported",
        shows "The service exists and is unknown to callers or to the gateway (the connection is closed).",
        why "`exportTo` limits who gets to know of a service, the gateway's namespace included.",
        mend "Export it to `*`, or to the callers' namespaces and istio-system."),
    cause!("D-39" Policies Error [] policy::sidecar,
        "a Sidecar object hides a service", "Sidecar objects do not hide shared services",
        shows "The caller's proxy does not know the service (404 or 502), in one cluster or in one namespace.",
        why "A Sidecar's egress hosts are all that its workloads get to know.",
        mend "Add the service's namespace to `egress.hosts`, and keep Sidecar objects alike in every cluster."),
    cause!("D-40" Services Error [] control::selectors,
        "discoverySelectors hide a namespace in one cluster", "discoverySelectors select a namespace in every cluster or in none",
        shows "Endpoints of one cluster are missing for every service of a namespace.",
        why "The reading control plane applies its selectors to the namespaces of every cluster that it reads.",
        mend "Label the namespace alike in every cluster."),
    cause!("D-41" Policies Info [] policy::locality,
        "locality keeps traffic where it is", "no locality setting keeps traffic local",
        shows "Every request is answered in the caller's own region although others have endpoints too.",
        why "With outlier detection, locality load balancing prefers the nearest healthy endpoints. That is no fault, but looks like one.",
        mend "Nothing, if that is meant; otherwise turn `localityLbSetting` off."),
    cause!("D-42" Policies Error [] policy::subsets,
        "a subset is defined in one cluster only", "subsets are the same in every cluster",
        shows "Requests to the subset are reset when they arrive in the other cluster.",
        why "The subset is part of the name that the client asks the gateway for; a gateway whose control plane does not know it closes the connection.",
        mend "Apply the DestinationRule in every cluster that has a control plane."),
    cause!("D-43" Policies Error [] policy::denies_remote,
        "an AuthorizationPolicy shuts out other clusters", "policies name identities of this mesh",
        shows "403 `RBAC: access denied` for callers of another cluster.",
        why "A principal begins with a trust domain; one that the mesh does not have never matches.",
        mend "Write principals with the mesh's trust domain, or with `*/ns/…`."),
    cause!("D-44" Gateways Error [] policy::network_policy,
        "a NetworkPolicy blocks the mesh", "no NetworkPolicy blocks gateways, control planes or shared services",
        shows "Connections to the gateway, or from the control plane to the other API servers, get no answer.",
        why "A policy that selects a pod forbids everything that it does not allow.",
        mend "Allow ingress to the gateway's ports from everywhere, and egress of the control plane to the API servers."),
    cause!("D-45" PrimaryRemote Error [volatile] control::attached,
        "a remote cluster is not attached to its primary", "every remote cluster is attached to its primary",
        shows "The remote cluster's namespaces have no `istio-ca-root-cert`, its webhook has no CA; pods there do not start.",
        why "A primary serves a remote only if `EXTERNAL_ISTIOD` is on and the remote's namespace names it in `topology.istio.io/controlPlaneClusters`.",
        mend "Annotate istio-system of the remote cluster, and install the primary with `global.externalIstiod=true`."),
    cause!("D-46" PrimaryRemote Error [volatile] control::injector,
        "a remote cluster's injector cannot be reached", "every remote cluster's injector answers",
        shows "Pods of injected namespaces cannot be created: `failed calling webhook`.",
        why "The remote's API server calls the injector of its primary over the east-west gateway, at an address, never at a host name.",
        mend "Mend the Service and EndpointSlice of istiod in the remote cluster (`global.remotePilotAddress`), and port 15017 of the primary's gateway."),
    cause!("D-47" PrimaryRemote Error [volatile] control::exposed_istiod,
        "a primary's control plane is not exposed", "every primary with remotes exposes its control plane",
        shows "The remote's proxies cannot connect to port 15012; TLS fails or shows a certificate of another name.",
        why "Remote proxies ask for `istiod[-revision].istio-system.svc` at the gateway; Gateway and VirtualService must route that name.",
        mend "Apply Gateway `istiod-gateway` and VirtualService `istiod-vs` (one for each revision) on the primary."),
    cause!("D-48" Clusters Warning [before] control::two_defaults,
        "two webhooks inject the same pods", "no pod is injected by two webhooks",
        shows "Pods get the sidecar of the wrong revision, or it changes with the order of webhooks.",
        why "With two default revisions, or a namespace with both labels, it is chance which control plane a proxy belongs to (`istio-injection` wins over `istio.io/rev`).",
        mend "Keep one of the labels, and one webhook for the default revision."),
    cause!("D-49" Clusters Error [before] control::dead_webhook,
        "a webhook calls a control plane that is not there", "every injecting webhook has somebody who answers",
        shows "Pods cannot be created: `failed calling webhook … no endpoints available for service`.",
        why "With failurePolicy Fail nothing is created while nobody answers; it mostly is the webhook of a revision that was removed.",
        mend "Delete the webhook of the removed revision, or bring its control plane back."),
    cause!("D-50" Gateways Error [volatile] gateways::not_injected,
        "a gateway's pods were not injected", "the gateways' pods have their proxies",
        shows "`ImagePullBackOff` for the image `auto`, on the gateway's pods.",
        why "The gateway's container is filled in by the injector. A pod made while the injector was away, or for a revision that is not there, keeps the image `auto`.",
        mend "Bring the control plane up (or set `istio.io/rev` right), then restart the gateway."),
    cause!("D-51" Gateways Warning [] gateways::single,
        "a gateway that stands on one leg", "every gateway survives the loss of a pod, a node and a zone",
        shows "Every restart or drained node cuts the network off for a while.",
        why "All traffic into a network passes its gateway.",
        mend "Run two replicas or more, with a PodDisruptionBudget, spread over nodes and zones."),
    cause!("D-52" Gateways Warning [] gateways::balancer,
        "a load balancer that does more than pass TCP", "the gateways' load balancers pass TCP and look at the right port",
        shows "Handshakes fail at once (PROXY header), or the balancer takes every pod out as unhealthy, or idle connections die.",
        why "A gateway expects the client's TLS as the first bytes; health is answered on 15021.",
        mend "Turn the PROXY protocol off, point health checks at 15021, and set the idle timeout above the proxies' keepalive."),
    cause!("D-53" Gateways Error [] gateways::family,
        "a gateway's address family is not its clients'", "clients have an address of the family of the gateways",
        shows "`network unreachable` from clients in the other cluster.",
        why "A pod without an IPv6 address cannot dial one, and the other way round; before 1.30 control planes do not filter by family.",
        mend "Give the load balancer an address of both families, or upgrade to Istio 1.30."),
    cause!("D-54" Networks Warning [volatile] networks::mtu,
        "large packets are lost between clusters", "large answers pass between pods of one network",
        shows "Connections open and then stand still; small answers arrive and large ones do not.",
        why "A VPN or overlay with a smaller MTU, where the message that says so is filtered.",
        mend "Lower the pods' MTU, or clamp TCP MSS on the link."),
    cause!("D-55" RemoteSecrets Warning [before] links::foreign,
        "remote secrets of somebody else", "every remote secret belongs to the mesh",
        shows "The control plane reads clusters that the mesh file does not have; tools that prune by label delete each other's secrets.",
        why "Every Secret with the label is taken for a member, whoever made it.",
        mend "Add the cluster to the mesh file, or remove the Secret with the tool that made it. Stolos never deletes it."),
    cause!("D-56" Services Error [] exposure::ambient,
        "ambient: a service is not global, or its way is not built", "ambient services are global everywhere or nowhere",
        shows "The service is answered only inside its own cluster.",
        why "In ambient mode only services labelled `istio.io/global` are shared, in every cluster; gateways must be of class `istio-east-west`, and the feature is behind a flag.",
        mend "Label the service in every cluster, use class `istio-east-west`, and set `AMBIENT_ENABLE_MULTI_NETWORK=true`."),
    cause!("D-57" RemoteSecrets Warning [] links::too_much,
        "a remote credential may do anything", "remote credentials can only read",
        shows "Nothing, until somebody takes a Secret out of one cluster and owns all the others.",
        why "Who may do anything in one cluster may do anything in all; a control plane only needs to read.",
        mend "Replace the credential with a reader's (`stolos apply` does) and revoke the old one."),
    cause!("D-58" Networks Warning [] networks::mesh_networks,
        "meshNetworks says something else than the labels", "no meshNetworks contradicts the labels",
        shows "Some requests into a network go to an address that no longer exists.",
        why "Static gateways of `meshNetworks` are used beside those found by label, however old they are.",
        mend "Remove `meshNetworks` from the ConfigMap `istio`; labels say it all."),
    cause!("D-59" Clusters Error [before volatile] control::definitions,
        "Istio's kinds or their validation are not there", "Istio's kinds are served and their validation answers",
        shows "`no matches for kind Gateway`, or `failed calling webhook validation.istio.io`; objects that were applied are absent.",
        why "Without the definitions, or with a validating webhook that nobody answers, configuration is refused, and scripts that ignore errors go on.",
        mend "Install the CRDs (chart `base`, `stolos apply`), or delete the validating webhook of a removed revision, then apply again."),
    cause!("D-60" RemoteSecrets Warning [] links::leftover,
        "a cluster that left still has access", "clusters that left the mesh have no access any more",
        shows "The mesh still remembers the cluster, or holds credentials for it, although the file no longer names it.",
        why "What it was given (tokens that read the other clusters, an intermediate of the root) goes on working until it is revoked.",
        mend "`stolos apply` removes its secrets and revokes its tokens; if it cannot be reached, delete its `stolos-peer-…` Secrets in the others."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_causes_in_order_and_each_has_its_rank() {
        assert_eq!(CAUSES.len(), 60);
        for (index, cause) in CAUSES.iter().enumerate() {
            assert_eq!(cause.id, format!("D-{:02}", index + 1));
            assert!(rank(cause.id) < 60, "{}", cause.id);
            for text in [cause.title, cause.healthy, cause.shows, cause.why, cause.mend] {
                assert!(text.len() > 8, "{}", cause.id);
            }
        }
        for (id, others) in EXPLAINS {
            for other in *others {
                assert!(super::cause(other).is_some() && rank(id) < rank(other), "{id} is said before {other}");
            }
        }
    }
}
