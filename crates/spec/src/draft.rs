//! From what a file's reader understood to a [`Mesh`]: the rules that hold for every kind of file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::gateway::ClusterGateway;
use crate::mesh::{
    Api, Cluster, ControlPlane, Engine, IntermediateTrust, Mesh, Mtls, Origin, Role, Root, Sample, Trust,
};
use crate::name::like;
use crate::problem::{At, Notes, quoted};
use crate::{ClusterName, MeshName, NameError, NetworkName};

/// The network of a cluster whose file names none.
pub const DEFAULT_NETWORK: &str = "network";
/// The trust domain of a file that names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A cluster as a reader understood it, with the places to point at.
pub(crate) struct Member {
    pub(crate) at: At,
    pub(crate) name: ClusterName,
    pub(crate) context: String,
    pub(crate) context_at: At,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) network: NetworkName,
    pub(crate) region: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) primary: Option<(String, At)>,
    pub(crate) api: Option<Api>,
    /// Where it says that its API server is reached through the hub.
    pub(crate) tunnel_at: Option<At>,
    pub(crate) gateway: Option<ClusterGateway>,
}

impl Member {
    /// A primary with nothing said but its context and network.
    pub(crate) fn new(at: At, context: &str, network: NetworkName) -> Self {
        Self {
            at,
            name: ClusterName::from_context(context),
            context: context.to_owned(),
            context_at: at,
            kubeconfig: None,
            network,
            region: None,
            zone: None,
            primary: None,
            api: None,
            tunnel_at: None,
            gateway: None,
        }
    }
}

/// A mesh of which only the name and the clusters are certain.
pub(crate) fn mesh(name: MeshName, origin: Origin) -> Mesh {
    Mesh {
        trust: Trust {
            domain: DEFAULT_TRUST_DOMAIN.to_owned(),
            organization: name.to_string(),
            root: Root::SelfSigned { validity: DAY * 3650 },
            intermediates: IntermediateTrust { validity: DAY * 730, renew_before: DAY * 30 },
        },
        name,
        control_plane: ControlPlane::of(Engine::Auto),
        clusters: Vec::new(),
        mtls: Mtls::Strict,
        expose: vec!["*.local".to_owned()],
        samples: BTreeSet::<Sample>::new(),
        hub: None,
        origin,
    }
}

/// The clusters, once it is certain that they can stand in one mesh.
pub(crate) fn clusters(notes: &mut Notes<'_>, members: Vec<Member>) -> Vec<Cluster> {
    let mut names: BTreeMap<&ClusterName, &Member> = BTreeMap::new();
    let mut targets: BTreeMap<(&Option<PathBuf>, &str), &Member> = BTreeMap::new();
    for member in &members {
        if let Some(first) = names.get(&member.name) {
            notes
                .problem(member.at, format!("two clusters are called `{}`", member.name))
                .expected(format!("a name for each{}", first_stands(first.at)))
                .hint("a cluster's name is how its certificates and its peers know it: choose another for one of them");
        } else if let Some(first) = targets.get(&(&member.kubeconfig, member.context.as_str())) {
            let what = format!(
                "`{}` and `{}` are the same cluster: context {}",
                first.name,
                member.name,
                quoted(&member.context)
            );
            notes
                .problem(member.context_at, what)
                .expected(format!("a context for each{}", first_stands(first.context_at)));
        }
        names.entry(&member.name).or_insert(member);
        targets.entry((&member.kubeconfig, &member.context)).or_insert(member);
    }
    for member in &members {
        let Some((primary, at)) = &member.primary else { continue };
        match members.iter().find(|m| m.name.as_str() == primary) {
            Some(other) if other.name == member.name => {
                notes
                    .problem(*at, format!("`{primary}` is to be a remote of itself"))
                    .hint("leave `controlPlane` away where a cluster runs its own control plane");
            }
            Some(other) if other.primary.is_some() => {
                notes
                    .problem(*at, format!("`{primary}`, the primary of `{}`, is itself a remote", member.name))
                    .expected("a cluster that runs its own control plane");
            }
            Some(_) => {}
            None => {
                let primaries: BTreeSet<_> =
                    members.iter().filter(|m| m.primary.is_none()).map(|m| m.name.as_str()).collect();
                let primaries: Vec<_> = primaries.into_iter().collect();
                let what = format!("`{}` is a remote of {}, which is not in this mesh", member.name, quoted(primary));
                let near = crate::problem::nearest(primary, &primaries).map(|near| format!("write `{near}`"));
                let problem = notes.problem(*at, what);
                problem.expected(match primaries.as_slice() {
                    [] => "at least one cluster that runs its own control plane".to_owned(),
                    some => crate::problem::one_of(some),
                });
                if let Some(near) = near {
                    problem.hint(near);
                }
            }
        }
    }
    if !notes.is_clean() {
        return Vec::new();
    }
    let understood = |member: Member| Cluster {
        // Its being a name of this mesh was checked above.
        role: match member.primary.and_then(|(primary, _)| ClusterName::parse(&primary).ok()) {
            Some(primary) => Role::Remote { primary },
            None => Role::Primary,
        },
        name: member.name,
        context: member.context,
        kubeconfig: member.kubeconfig,
        network: member.network,
        region: member.region,
        zone: member.zone,
        api: member.api,
        gateway: member.gateway,
    };
    members.into_iter().map(understood).collect()
}

/// Where the first of two stands, if it stands in this file.
fn first_stands(at: At) -> String {
    if at.line == 0 { String::new() } else { format!("; the first stands in line {}", at.line) }
}

/// Keeps a name, or notes why it is none, with one that would do.
pub(crate) fn name<T>(notes: &mut Notes<'_>, at: At, parsed: Result<T, NameError>) -> Option<T> {
    match parsed {
        Ok(name) => Some(name),
        Err(error) => {
            let suggestion = like(&error.found).filter(|like| *like != error.found);
            let problem = notes.problem(at, format!("{} is not a {}: {}", quoted(&error.found), error.what, error.why));
            if let Some(suggestion) = suggestion {
                problem.hint(format!("write `{suggestion}`"));
            }
            None
        }
    }
}

/// Says which name a cluster goes by when its context's is none.
pub(crate) fn warn_of_context(notes: &mut Notes<'_>, at: At, context: &str, name: &ClusterName) {
    if context != name.as_str() {
        notes.warn(
            at,
            format!("the context {} is no name that a Kubernetes object can bear", quoted(context)),
            format!("the cluster is called `{name}`, and the context is kept in its annotation `stolos.dev/context`"),
        );
    }
}

/// How long an intermediate of that validity may grow old before it is issued anew, where the file does not say.
pub(crate) fn renew_before(validity: Duration) -> Duration {
    (DAY * 30).min(validity / 3)
}

/// The longest a certificate is made for: what a date in it can still say.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// `730d`, `24h`, `90m`, `30s`, or several in a row.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let mut seconds: u64 = 0;
    let mut digits = String::new();
    let too_long = || "that is longer than 36500d".to_owned();
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let unit: u64 = match c {
            'd' => 86_400,
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            _ => return Err(format!("{} is no unit of time", quoted(&c.to_string()))),
        };
        if digits.is_empty() {
            return Err(format!("there is no number before `{c}`"));
        }
        let count: u64 = digits.parse().map_err(|_| too_long())?;
        seconds = count.checked_mul(unit).and_then(|s| seconds.checked_add(s)).ok_or_else(too_long)?;
        digits.clear();
    }
    match seconds {
        _ if !digits.is_empty() => Err("the unit is missing".to_owned()),
        0 => Err("that is no time at all".to_owned()),
        seconds if seconds > LONGEST.as_secs() => Err(too_long()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}
