use serde::Serialize;

/// What `verify` found. Fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// `stolos.dev/v1alpha1`.
    pub api_version: &'static str,
    /// `VerifyReport`.
    pub kind: &'static str,
    /// The mesh's name.
    pub mesh: String,
    /// `pass` when every pair and every refusal passes.
    pub verdict: Verdict,
    /// One per ordered pair of clusters, each cluster with itself included, in the order of the mesh file.
    pub pairs: Vec<Pair>,
    /// What must not get through, and whether it did.
    pub refusals: Vec<Refusal>,
    /// When the run began, RFC 3339.
    pub started_at: String,
    /// How long it took, setting up and tearing down included.
    pub duration_ms: u64,
}

impl VerifyReport {
    /// Pairs that pass.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.pairs.iter().filter(|p| p.verdict == Verdict::Pass).count()
    }
}

/// Whether something is as planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Pass,
    /// It is not.
    Fail,
    /// The mesh does not ask for it: plaintext inside a permissive mesh. Not a failure.
    Permissive,
}

/// What one cluster's requests to the shared service say about another.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pair {
    /// Where the requests came from.
    pub from: String,
    /// The cluster this line is about.
    pub to: String,
    /// Requests that `from` sent to the shared service in this run, whoever answered.
    pub requests: usize,
    /// Of those, the ones that `to` answered.
    pub answered: usize,
    /// Of those, the ones that nobody answered with a 2xx.
    pub failed: usize,
    /// The URI SAN that the client's proxy verified (or refused) on the requests to `to`; null where none was seen.
    pub identity: Option<String>,
    /// The gateway that the client's proxy dialled; null where the path is direct.
    pub gateway: Option<String>,
    /// What the client's proxy itself says it has for `to`.
    pub endpoints: Endpoints,
    /// Of the answered requests.
    pub latency_ms: Option<Latency>,
    /// Whether this is as planned.
    pub verdict: Verdict,
    /// Why not, in words; empty when it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

impl Pair {
    /// Whether the client's proxy says that it cannot reach `to`.
    #[must_use]
    pub fn lacks_endpoints(&self) -> bool {
        matches!(self.endpoints.state, EndpointState::Missing | EndpointState::Unhealthy)
    }
}

/// The endpoints that a client's proxy has of the shared service in another cluster, by its own words (`/clusters` of
/// its administration, what `istioctl proxy-config endpoints` reads).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// Whether it has what is planned.
    pub state: EndpointState,
    /// `address:port` of those that lead to the cluster: its server where the path is direct, else gateways of its
    /// network. Healthy or not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Why the proxy's own view could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a proxy has the endpoints that it should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointState {
    /// A healthy one at least.
    Held,
    /// None at all. The pair fails.
    Missing,
    /// Some, and none of them is healthy. The pair fails.
    Unhealthy,
    /// The proxy could not be asked. Neither proven nor a failure.
    #[default]
    NotMeasured,
}

/// Milliseconds, as the client saw them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// Something that must not get through.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// What was tried.
    pub what: String,
    /// The cluster it was tried at.
    pub cluster: String,
    /// `pass` when it was refused.
    pub verdict: Verdict,
    /// What happened.
    pub saw: String,
}
