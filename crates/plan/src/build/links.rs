//! Who may read whom: a reader in each cluster, a revocable credential for each peer, and the remote secrets.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stolos_spec::{Api, Cluster, HUB};

use super::control::INJECTOR;
use super::hub::{self, Way};
use super::{Scene, Sketch, id};
use crate::adopt::{remote_entries, server_in};
use crate::compare::differences;
use crate::graph::Work;
use crate::object::{
    READER_SERVICE_ACCOUNT, ROOT_CONFIG_MAP, SYSTEM_NAMESPACE, claims, drained, link_kubeconfig, mesh_of, ours,
    peer_secret, remote_secret_name, secret_text, token_in,
};
use crate::{Account, Action, Change, ClusterState, ObjectDiff, ObjectKey};

/// The role of whoever reads a cluster.
pub(super) const ROLE: &str = "istio-reader-clusterrole-istio-system";

/// Decision 23: the life of a token in a lab. It is renewed when less than half of it is left.
const TOKEN_SECONDS: u64 = 30 * 24 * 3600;
/// Decision 23: the same for real Istio, which may lose endpoints for a moment whenever a token changes (contract
/// B.5). It is renewed when less than a third of it is left.
const ISTIO_TOKEN_SECONDS: u64 = 90 * 24 * 3600;
/// Below Istio 1.31 a token is never renewed oftener than this.
const SHORTEST_LIFE: i64 = 24 * 3600;

const READS_SECRETS: &str =
    "the reader of Istio's charts may read every Secret of its cluster: whoever holds a remote secret can, too";

/// What the objects of one cluster say of whom it reads. Every pair of clusters asks, so it is looked for once: a mesh of
/// a hundred has 9,900 pairs, and each cluster a hundred secrets.
struct Holder<'a> {
    /// Remote secrets that were not made for this mesh, and the kubeconfigs in them, by the clusters they are for.
    foreign: BTreeMap<String, (&'a Value, String)>,
    /// Whether any control plane runs there, of whatever revision.
    running: bool,
}

type Holders<'a> = BTreeMap<&'a str, Holder<'a>>;

impl<'a> Holder<'a> {
    fn of(scene: &Scene<'_>, state: &'a ClusterState) -> Self {
        let mut foreign = BTreeMap::new();
        for (read, secret, kubeconfig) in remote_entries(state, |secret| mesh_of(secret) != Some(scene.mesh_name())) {
            foreign.entry(read).or_insert((secret, kubeconfig));
        }
        Self { foreign, running: is_running(state) }
    }
}

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    let holders: Holders<'_> =
        scene.live.iter().map(|(cluster, state)| (cluster.name.as_str(), Holder::of(scene, state))).collect();
    for (read, state) in &scene.live {
        reader(scene, sketch, &holders, (read, state));
        if let Some(since) = drained(state) {
            let text = format!(
                "drained since {since}, so the others do not send to it: `stolos cluster undrain {}`",
                read.name
            );
            sketch.note(Some(read.name.as_str()), text);
        }
    }
    let mut before = Vec::new();
    // Only a control plane reads others, its own remotes and those of others among them (C.4).
    for (into, state) in scene.live.iter().filter(|(into, _)| into.primary().is_none()) {
        let mut changed = Vec::new();
        for read in scene.mesh.clusters.iter().filter(|read| read.name != into.name) {
            // What is known of a cluster that does not answer stays.
            sketch.want(into.name.as_str(), remote_key(read));
            if is_drained(scene, into, read) {
                let owned = state.objects.get(&remote_key(read)).filter(|o| mesh_of(o) == Some(scene.mesh_name()));
                let step = id("links", into.name.as_str(), &format!("drain-{}", read.name));
                let because = format!("{} is drained", read.name);
                sketch.remove(into.name.as_str(), step, vec![], owned.into_iter().collect(), because);
                continue;
            }
            let holder = &holders[into.name.as_str()];
            if let Some(read_state) = scene.observed.cluster(read.name.as_str()) {
                changed.extend(link(scene, sketch, (into, state, holder), (read, read_state), &before));
            }
        }
        // Real Istio drops and takes up a cluster anew when its secret changes: one holder at a time (contract C.7).
        if scene.istio && !changed.is_empty() {
            before = changed;
        }
    }
}

/// Whether nobody but itself is to send to `read`: its namespace says so until `cluster undrain`. A remote's own primary
/// goes on reading it, or its proxies would have no configuration.
fn is_drained(scene: &Scene<'_>, into: &Cluster, read: &Cluster) -> bool {
    let since = scene.observed.cluster(read.name.as_str()).and_then(drained);
    read.primary() != Some(&into.name) && since.is_some()
}

/// The least that a peer's control plane needs. No Secret is among it.
fn reader(scene: &Scene<'_>, sketch: &mut Sketch, holders: &Holders<'_>, (read, state): (&Cluster, &ClusterState)) {
    let name = read.name.as_str();
    let after = || vec![id("trust", name, "namespace")];
    let own = |object| ours(scene.mesh_name(), object);
    const READ: [&str; 3] = ["get", "list", "watch"];
    if scene.istio {
        // The reader is in Istio's charts: the account in `base`, its role in `istiod` (contract B.5). Helm takes no
        // object for a release's that somebody else made.
        sketch.note(None, READS_SECRETS);
        let after = vec![id("control", name, "istiod")];
        sketch.draft(id("links", name, "reader"), Some(name), after, Work::Nothing);
        return peers(scene, sketch, holders, (read, state));
    }
    let mut rules = vec![
        json!({"apiGroups": [""], "resources": ["namespaces", "services", "pods", "nodes"], "verbs": READ}),
        json!({"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ}),
    ];
    if read.primary().is_some() {
        rules.extend(leads());
    }
    let objects = vec![
        own(json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": READER_SERVICE_ACCOUNT, "namespace": SYSTEM_NAMESPACE, "labels": {"app": "istio-reader"}}})),
        own(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": ROLE, "labels": {"app": "istio-reader"}}, "rules": rules})),
        own(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": ROLE, "labels": {"app": "istio-reader"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
            "subjects": [{"kind": "ServiceAccount", "name": READER_SERVICE_ACCOUNT, "namespace": SYSTEM_NAMESPACE}]})),
    ];
    sketch.write(name, state, id("links", name, "reader"), after(), objects);
    peers(scene, sketch, holders, (read, state));
}

/// What a primary needs besides in a remote (B.5, B.7): to ask whose a token is, to publish the root, and to have the
/// webhook trust it. As in its own cluster, only changing can be bound to a name.
fn leads() -> [Value; 5] {
    let webhooks = ["admissionregistration.k8s.io"];
    [
        json!({"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}),
        json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get", "list", "watch"]}),
        json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["update", "patch"],
            "resourceNames": [ROOT_CONFIG_MAP]}),
        json!({"apiGroups": webhooks, "resources": ["mutatingwebhookconfigurations"], "verbs": ["get", "list", "watch"]}),
        json!({"apiGroups": webhooks, "resources": ["mutatingwebhookconfigurations"], "verbs": ["update", "patch"],
            "resourceNames": [INJECTOR]}),
    ]
}

fn peers(scene: &Scene<'_>, sketch: &mut Sketch, holders: &Holders<'_>, (read, state): (&Cluster, &ClusterState)) {
    let name = read.name.as_str();
    let after = vec![id("trust", name, "namespace")];
    let own = |object| ours(scene.mesh_name(), object);
    // One for each peer, reachable or not: deleting it revokes that peer's tokens and nobody else's.
    let peers =
        scene.mesh.clusters.iter().filter(|peer| peer.name != read.name && peer.primary().is_none()).filter(|peer| {
            let key = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), &peer_secret(peer.name.as_str()));
            // Whoever comes through the hub has its credential there, once it can be given one.
            if read.api == Some(Api::Tunnel) {
                let given = scene.hub.is_some() && scene.observed.cluster(peer.name.as_str()).is_some();
                return !given && state.objects.get(&key).is_some();
            }
            // Whoever holds a credential of somebody else's needs none of ours.
            let holder = holders.get(peer.name.as_str());
            let served = holder.is_some_and(|holder| matches!(held_by_others(scene, holder, read), Some(Ok(_))));
            !served || state.objects.get(&key).is_some()
        });
    let objects: Vec<_> = peers
        .map(|peer| {
            own(json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": {"name": peer_secret(peer.name.as_str()), "namespace": SYSTEM_NAMESPACE, "labels": {},
                    "annotations": {"stolos.dev/peer": peer.name.as_str()}}}))
        })
        .collect();
    sketch.write(name, state, id("links", name, "peers"), after, objects);
}

fn link(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    (into, state, holder): (&Cluster, &ClusterState, &Holder<'_>),
    (read, read_state): (&Cluster, &ClusterState),
    others: &[String],
) -> Option<String> {
    let source = match &read.api {
        None => Source::direct(into, read_state, read_state.server.clone()),
        Some(Api::Server(url)) => Source::direct(into, read_state, url.clone()),
        // What is known through a hub that does not answer stays.
        Some(Api::Tunnel) => Source::through(Way::of(scene, into, read)?),
    };
    let server = source.server.clone();
    let key = remote_key(read);
    let mut secret = ours(
        scene.mesh_name(),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": key.name, "namespace": SYSTEM_NAMESPACE, "labels": {"istio/multiCluster": "true"},
                "annotations": {"networking.istio.io/cluster": read.name.as_str()}}}),
    );
    let live = state.objects.get(&key);
    match held_by_others(scene, holder, read) {
        Some(Ok(secret)) => {
            let text = format!(
                "{secret} with the credential for {} is somebody else's: it is used as it is, and nobody renews it",
                read.name
            );
            sketch.note(Some(into.name.as_str()), text);
            let step = id("links", into.name.as_str(), read.name.as_str());
            sketch.draft(step, Some(into.name.as_str()), vec![], Work::Nothing);
            return None;
        }
        Some(Err(why)) => {
            let ways = ["renew it where it came from, or delete it to have Stolos write its own"];
            sketch.problem("foreign", Some(into.name.as_str()), why, &ways);
            return None;
        }
        None => {}
    }
    if let Some(live) = live
        && mesh_of(live) != Some(scene.mesh_name())
    {
        let text = format!("{key} exists and was not made for this mesh");
        sketch.problem("foreign", Some(into.name.as_str()), text, &["remove it, or use another cluster"]);
        return None;
    }
    let asked = if scene.istio { ISTIO_TOKEN_SECONDS } else { TOKEN_SECONDS };
    let claims = live.and_then(|live| claims(&token_in(&secret_text(live, read.name.as_str())?)?));
    let granted = claims.and_then(|claims| u64::try_from(claims.expires - claims.issued).ok());
    if let Some(granted) = granted.filter(|granted| granted + 60 < asked) {
        let text = format!(
            "it grants tokens of {} h where {} h were asked for; they are renewed by what it grants",
            granted / 3600,
            asked / 3600
        );
        sketch.note(Some(read.name.as_str()), text);
    }
    let step = id("links", into.name.as_str(), read.name.as_str());
    let mut fields = vec![];
    let because = match live {
        None => Some(format!("{} cannot read {} yet", into.name, read.name)),
        Some(live) => outdated(scene, live, read, &source).or_else(|| {
            secret["data"] = live["data"].clone();
            fields = differences(&secret, live);
            if let Some(object) = secret.as_object_mut() {
                object.remove("data");
            }
            fields.first().map(|field| format!("{key}: {} is not as it should be", field.path))
        }),
    };
    let action = if live.is_none() { Action::Add } else { Action::Change };
    let mut after = vec![
        id("trust", into.name.as_str(), "namespace"),
        id("links", read.name.as_str(), "reader"),
        id("links", read.name.as_str(), "peers"),
    ];
    after.extend(source.steps.iter().cloned());
    if source.account.is_some() {
        after.push(hub::readers_step(read.name.as_str()));
    }
    // A running control plane must not hear of endpoints whose gateway has no address: it would send to them directly.
    if read.primary() == Some(&into.name) {
        // The primary is what makes its remote ready; it comes when the webhook leads to it and not before.
        after.extend(["istiod", "injector"].map(|what| id("control", read.name.as_str(), what)));
        after.push(id("gateways", read.name.as_str(), "addressed"));
    } else if holder.running {
        let ready = if scene.mesh.needs_gateways() { "gateways" } else { "control" };
        after.push(id(ready, read.name.as_str(), "ready"));
    }
    let changes = because.is_some() && action == Action::Change;
    if changes {
        after.extend(others.iter().cloned());
    }
    let work = match because {
        None => Work::Nothing,
        Some(because) => Work::Do {
            action,
            change: Change::Link {
                read: read.name.to_string(),
                server,
                authority: source.state.authority.clone(),
                token_seconds: asked,
                account: source.account,
                secret,
            },
            because,
            diff: vec![ObjectDiff { object: key, action, fields }],
        },
    };
    sketch.draft(step.clone(), Some(into.name.as_str()), after, work);
    changes.then_some(step)
}

/// A remote secret that somebody else wrote for `read`, whatever it is called: two for one cluster would be one too many,
/// since istiod takes the first and ignores the other (contract B.5). Whether it can be used, as far as it says.
fn held_by_others(scene: &Scene<'_>, holder: &Holder<'_>, read: &Cluster) -> Option<Result<ObjectKey, String>> {
    let (secret, kubeconfig) = holder.foreign.get(read.name.as_str())?;
    let key = ObjectKey::of(secret);
    if server_in(kubeconfig).is_none() {
        return Some(Err(format!("{key} was not made for this mesh, and leads nowhere")));
    }
    let now = scene.observed.now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let expires = token_in(kubeconfig).and_then(|token| claims(&token)).map(|claims| claims.expires);
    match expires.and_then(|expires| u64::try_from(expires).ok()).is_some_and(|expires| expires <= now) {
        true => Some(Err(format!("{key} was not made for this mesh, and its token has expired"))),
        false => Some(Ok(key)),
    }
}

/// Where a credential for a cluster comes from, and where it leads.
struct Source<'a> {
    /// The place that issues it.
    state: &'a ClusterState,
    /// Its account.
    name: String,
    /// What it is bound to.
    secret: String,
    /// The namespace of both.
    namespace: String,
    /// The URL that it is for.
    server: String,
    /// The account, where it is not the reader of the cluster that is read.
    account: Option<Account>,
    /// What makes the account.
    steps: Vec<String>,
}

impl<'a> Source<'a> {
    fn direct(into: &Cluster, state: &'a ClusterState, server: String) -> Self {
        Self {
            state,
            name: READER_SERVICE_ACCOUNT.to_owned(),
            secret: peer_secret(into.name.as_str()),
            namespace: SYSTEM_NAMESPACE.to_owned(),
            server,
            account: None,
            steps: vec![],
        }
    }

    fn through(way: Way<'a>) -> Self {
        let account = Account {
            place: HUB.to_owned(),
            namespace: way.namespace.clone(),
            name: way.name.clone(),
            secret: way.name.clone(),
        };
        Self {
            state: way.hub,
            steps: vec![way.step(), way.member.clone()],
            secret: way.name.clone(),
            name: way.name,
            namespace: way.namespace,
            server: way.server,
            account: Some(account),
        }
    }
}

/// Why a credential must be written anew, if it must.
fn outdated(scene: &Scene<'_>, live: &serde_json::Value, read: &Cluster, source: &Source<'_>) -> Option<String> {
    let read_name = read.name.as_str();
    let Some(kubeconfig) = secret_text(live, read_name) else {
        return Some(format!("{} holds no kubeconfig for {read_name}", ObjectKey::of(live)));
    };
    let Some((claims, token)) = token_in(&kubeconfig).and_then(|token| Some((claims(&token)?, token))) else {
        return Some(format!("the credential for {read_name} is not a service account token"));
    };
    if live["data"].as_object().is_none_or(|data| data.len() != 1) {
        return Some(format!("{} holds more than {read_name}", ObjectKey::of(live)));
    }
    if kubeconfig != link_kubeconfig(read_name, &source.server, &source.state.authority, &token) {
        return Some(format!("the address or the authority of {read_name} has changed"));
    }
    let uid = |kind: &str, name: &str| {
        let object = source.state.objects.get(&ObjectKey::new("v1", kind, Some(&source.namespace), name))?;
        object["metadata"]["uid"].as_str().map(str::to_owned)
    };
    let bound = uid("Secret", &source.secret);
    if bound.is_none() || claims.bound_to.is_some_and(|there| Some(there) != bound) {
        return Some(format!("what the token for {read_name} is bound to is no more"));
    }
    let account = uid("ServiceAccount", &source.name);
    if account.is_none() || claims.account.is_some_and(|there| Some(there) != account) {
        return Some(format!("the service account behind the token for {read_name} is no more"));
    }
    let now = scene.observed.now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let left = claims.expires - i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let life = claims.expires - claims.issued;
    // Half of its life in a lab, a third with real Istio (decision 23); and there, a day at the least.
    let (share, words) = if scene.istio { (3, "a third") } else { (2, "half") };
    let young = scene.istio && left > 0 && life - left < SHORTEST_LIFE;
    (left < life / share && !young).then(|| match left {
        ..=0 => format!("the token for {read_name} has expired"),
        _ => format!(
            "less than {words} of the life of the token for {read_name} is left ({} of {} days)",
            left / 86_400,
            life / 86_400
        ),
    })
}

/// Whether any control plane runs there, of whatever revision.
fn is_running(state: &ClusterState) -> bool {
    let is_istiod = |object: &serde_json::Value| object["metadata"]["labels"]["app"] == super::control::ISTIOD;
    state
        .objects
        .kind("Deployment")
        .any(|(key, object)| key.namespace.as_deref() == Some(SYSTEM_NAMESPACE) && is_istiod(object))
}

fn remote_key(read: &Cluster) -> ObjectKey {
    ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), &remote_secret_name(read.name.as_str()))
}
