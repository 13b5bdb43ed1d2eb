//! How control planes read each other's clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use serde_json::Value;
use stolos_k8s::{istio, meta};

use crate::diagnose::Severity;
use crate::diagnose::kubeconfig;
use crate::diagnose::scene::{Judgement, Member, Scene, is_system, secret_keys, secret_text, some};
use crate::diagnose::snapshot::{CredentialAnswer, CredentialProbe, LABELLED_SECRETS, Touch, named, path, since};

fn peers<'a>(scene: &Scene<'a>, member: &Member<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    let own = member.name();
    scene.mesh.clusters.iter().map(|c| c.name.as_str()).filter(move |name| *name != own)
}

/// Every kubeconfig that a cluster holds for a member, by Secret and key. What is wrong with somebody else's is not for
/// this mesh to mend: D-55 names the Secret itself, and D-60 one of a cluster that left.
fn kubeconfigs<'a>(scene: &Scene<'a>, member: &Member<'a>) -> Vec<(&'a Value, &'a str, Option<String>)> {
    member
        .remote_secrets()
        .flat_map(|secret| secret_keys(secret).into_iter().map(move |key| (secret, key)))
        .filter(|(_, key)| scene.is_member(key))
        .map(|(secret, key)| (secret, key, secret_text(secret, key)))
        .collect()
}

/// D-18
pub(crate) fn missing(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        // Istio 1.30 may read kubeconfigs from a folder instead.
        if member.istiod_env("PILOT_MULTICLUSTER_KUBECONFIG_PATH").is_some() {
            judgement.gap(member, "its control plane reads kubeconfigs from a folder, not from Secrets");
            continue;
        }
        if !judgement.can_read(member, &["Secret"]) {
            continue;
        }
        let held: BTreeSet<&str> = member.remote_secrets().flat_map(secret_keys).collect();
        for peer in peers(scene, member) {
            judgement.looked();
            // One that is drained is not to be read, until `cluster undrain`.
            let drained = scene.member(peer).and_then(|peer| peer.namespace(istio::SYSTEM_NAMESPACE));
            if drained.is_some_and(|namespace| meta::annotation(namespace, istio::DRAINED_ANNOTATION).is_some()) {
                continue;
            }
            if !held.contains(peer) {
                judgement
                    .found(member, format!("no Secret holds a credential for {peer}"), scene.apply.clone())
                    .object(format!("Secret istio-system/{}", istio::remote_secret_name(peer)));
            }
        }
    }
}

/// D-19
pub(crate) fn malformed(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["Secret", LABELLED_SECRETS]) {
            continue;
        }
        judgement.looked();
        let delete = |secret: &Value| {
            member.kubectl(&format!("-n {} delete secret {}", meta::namespace(secret), meta::name(secret)))
        };
        let renewed = |secret: &Value| format!("{}; {}", delete(secret), scene.apply);
        for secret in member.seen.all(LABELLED_SECRETS) {
            if meta::namespace(secret) != istio::SYSTEM_NAMESPACE {
                judgement
                    .found(
                        member,
                        format!(
                            "it is in namespace {}; control planes look in istio-system only",
                            meta::namespace(secret)
                        ),
                        renewed(secret),
                    )
                    .object(named("Secret", secret))
                    .since(since(secret));
            }
        }
        for secret in
            member.seen.all("Secret").iter().filter(|s| meta::name(s).starts_with(istio::REMOTE_SECRET_PREFIX))
        {
            let label = meta::label(secret, istio::MULTI_CLUSTER_LABEL);
            if label != Some(istio::TRUE) {
                let seen = label.map_or(format!("the label {} is missing", istio::MULTI_CLUSTER_LABEL), |l| {
                    format!("the label {} is \"{l}\", not \"true\"", istio::MULTI_CLUSTER_LABEL)
                });
                judgement.found(member, seen, scene.apply.clone()).object(named("Secret", secret)).since(since(secret));
            }
        }
        let mut owners: BTreeMap<&str, &Value> = BTreeMap::new();
        for secret in member.remote_secrets() {
            let keys = secret_keys(secret);
            if keys.is_empty() {
                judgement
                    .found(member, "it holds nothing", renewed(secret))
                    .object(named("Secret", secret))
                    .since(since(secret));
            }
            let meant =
                meta::name(secret).strip_prefix(istio::REMOTE_SECRET_PREFIX).filter(|name| scene.is_member(name));
            for key in keys {
                let mut found = |seen: String, mend: String, severity| {
                    judgement
                        .found(member, seen, mend)
                        .object(named("Secret", secret))
                        .since(since(secret))
                        .severity(severity);
                };
                if key == member.name() {
                    found(format!("its key {key} is this cluster itself"), delete(secret), Severity::Warning);
                    continue;
                }
                if let Some(meant) = meant.filter(|meant| *meant != key && !scene.is_member(key)) {
                    found(
                        format!("its key is {key}, which is no cluster of the mesh; it should be {meant}"),
                        renewed(secret),
                        Severity::Error,
                    );
                }
                let read = secret_text(secret, key)
                    .ok_or_else(|| "it is no text".to_owned())
                    .and_then(|t| kubeconfig::read(&t).map(|_| ()));
                if let Err(why) = read {
                    found(format!("what it holds for {key} is no kubeconfig: {why}"), renewed(secret), Severity::Error);
                }
                if let Some(first) = owners.insert(key, secret) {
                    let seen = format!("{key} is also in Secret {}: which of the two counts is chance", path(first));
                    // The one that is not by the usual name goes.
                    let odd = if meta::name(secret) == istio::remote_secret_name(key) { first } else { secret };
                    judgement
                        .found(member, seen, delete(odd))
                        .object(named("Secret", odd))
                        .since(since(odd))
                        .severity(Severity::Warning);
                }
            }
        }
    }
}

/// D-20
pub(crate) fn refused_auth(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["Secret"]) {
            continue;
        }
        let allowed = member.istiod_env("PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS").unwrap_or_default();
        for (secret, key, text) in kubeconfigs(scene, member) {
            let Some(read) = text.and_then(|t| kubeconfig::read(&t).ok()) else { continue };
            judgement.looked();
            let refused: Vec<_> =
                read.refused.iter().filter(|way| allowed.split(',').all(|a| a.trim() != **way)).collect();
            if !refused.is_empty() {
                judgement
                    .found(member, format!("the kubeconfig for {key} uses {}", some(refused)), scene.apply.clone())
                    .object(named("Secret", secret))
                    .since(since(secret));
            }
        }
    }
}

/// D-21
pub(crate) fn server(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["Secret"]) {
            continue;
        }
        for (secret, key, text) in kubeconfigs(scene, member) {
            let Some(read) = text.and_then(|t| kubeconfig::read(&t).ok()) else { continue };
            let peer = scene.member(key);
            // A lab's clusters have addresses of their own inside 127.0.0.0/8, which are theirs for everybody there, and so
            // has what is beside the lab (a hub); 127.0.0.1 is whoever reads it.
            let in_lab = member.seen.is_lab && peer.is_none_or(|p| p.seen.is_lab);
            let host = kubeconfig::host(&read.server);
            let loopback = match host.parse::<std::net::IpAddr>() {
                Ok(std::net::IpAddr::V4(v4)) if in_lab => v4 == Ipv4Addr::LOCALHOST || v4.is_unspecified(),
                Ok(address) => address.is_loopback() || address.is_unspecified(),
                Err(_) => host == "localhost" || host.ends_with(".localhost"),
            };
            let probe = member.seen.credentials.iter().find(|p| p.key == key && p.secret == path(secret));
            let inside = probe.and_then(|p| p.inside.as_ref());
            let seen = if loopback {
                judgement.looked();
                format!("the server for {key} is {}: that is whoever reads it", read.server)
            } else {
                match inside.map(|i| (i.value(), i.why())) {
                    // The hub answers, and the cluster behind it does not.
                    Some((Some(Touch::Reached), _)) if cut(probe).is_some() => {
                        judgement.looked();
                        let why = cut(probe).unwrap_or_default();
                        let mend =
                            format!("see that an agent runs in {key} and reaches the hub (`stolos agent {key}`)");
                        judgement
                            .found(member, format!("the hub does not reach {key}: {why}"), mend)
                            .object(named("Secret", secret))
                            .since(since(secret));
                        continue;
                    }
                    Some((Some(Touch::Reached | Touch::Stalled), _)) => {
                        judgement.looked();
                        continue;
                    }
                    Some((Some(touch), _)) => {
                        judgement.looked();
                        format!("the server for {key} ({}) cannot be reached from here: {touch}", read.server)
                    }
                    Some((None, why)) => {
                        judgement.gap(member, format!("{}: {}", read.server, why.unwrap_or_default()));
                        continue;
                    }
                    None => {
                        judgement.gap(
                            member,
                            format!("{} was not dialled from here: no control plane's pod is ready", read.server),
                        );
                        continue;
                    }
                }
            };
            judgement
                .found(
                    member,
                    seen,
                    format!(
                        "set `api.server` of {key} in the mesh file, if its kubeconfig has the wrong one; then {}",
                        scene.apply
                    ),
                )
                .object(named("Secret", secret))
                .since(since(secret));
        }
    }
}

/// Why a hub does not reach the cluster that a credential is for, if it says so.
fn cut(probe: Option<&CredentialProbe>) -> Option<&str> {
    match probe?.answer.value()? {
        CredentialAnswer::NotReached(why) => Some(why),
        _ => None,
    }
}

/// What the server said to every credential for a member; what could not be asked is a gap.
fn answers<'a>(
    scene: &Scene<'a>,
    member: &Member<'a>,
    judgement: &mut Judgement,
) -> Vec<(&'a str, &'a str, &'a str, &'a CredentialAnswer)> {
    let mut all = Vec::new();
    for probe in member.seen.credentials.iter().filter(|p| scene.is_member(&p.key)) {
        match probe.answer.value() {
            Some(answer) => {
                judgement.looked();
                all.push((probe.secret.as_str(), probe.key.as_str(), probe.server.as_str(), answer));
            }
            None => judgement.gap(
                member,
                format!("the credential for {} was not tried: {}", probe.key, probe.answer.why().unwrap_or_default()),
            ),
        }
    }
    all
}

/// D-22
pub(crate) fn certificate(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        for (secret, key, server, answer) in answers(scene, member, judgement) {
            if let CredentialAnswer::Untrusted(why) = answer {
                judgement
                    .found(
                        member,
                        format!("{server} of {key} shows a certificate that the kubeconfig does not trust: {why}"),
                        scene.apply.clone(),
                    )
                    .object(format!("Secret {secret}"));
            }
        }
    }
}

/// D-23
pub(crate) fn token(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        let mut said = BTreeSet::new();
        for (secret, key, text) in kubeconfigs(scene, member) {
            let Some(token) = text.and_then(|t| kubeconfig::read(&t).ok()).and_then(|k| k.token) else { continue };
            let Some(end) = expiry(&token) else { continue };
            judgement.looked();
            // Tokens are judged by the clock of the cluster that gave them.
            let now = scene.member(key).map_or(scene.snapshot.now, |m| scene.clock(m));
            let mut found = |seen: String, severity, since| {
                said.insert((path(secret), key.to_owned()));
                judgement
                    .found(member, seen, scene.apply.clone())
                    .object(named("Secret", secret))
                    .since(since)
                    .severity(severity);
            };
            match end.duration_since(now) {
                Err(_) => found(format!("the token for {key} has expired"), Severity::Error, Some(end)),
                Ok(left) if left < Duration::from_secs(24 * 3600) => {
                    found(
                        format!("the token for {key} ends in {} hours", left.as_secs() / 3600),
                        Severity::Warning,
                        None,
                    );
                }
                Ok(_) => {}
            }
        }
        for (secret, key, server, answer) in answers(scene, member, judgement) {
            if let CredentialAnswer::Unauthorized(why) = answer
                && !said.contains(&(secret.to_owned(), key.to_owned()))
            {
                judgement
                    .found(member, format!("{server} of {key} does not accept the token: {why}"), scene.apply.clone())
                    .object(format!("Secret {secret}"));
            }
        }
    }
}

/// When a token ends, by its own claim (RFC 7519, 4.1.4).
fn expiry(token: &str) -> Option<std::time::SystemTime> {
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(claims["exp"].as_u64()?))
}

/// D-24
pub(crate) fn rights(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        for (secret, key, _, answer) in answers(scene, member, judgement) {
            if let CredentialAnswer::Accepted { missing, .. } = answer
                && !missing.is_empty()
            {
                judgement
                    .found(member, format!("in {key} the credential may not {}", some(missing)), scene.apply.clone())
                    .object(format!("Secret {secret}"));
            }
        }
    }
}

/// D-57
pub(crate) fn too_much(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        for (secret, key, _, answer) in answers(scene, member, judgement) {
            if matches!(answer, CredentialAnswer::Accepted { anything: true, .. }) {
                let account = format!(
                    "kubectl --context {} get clusterrolebindings -o wide",
                    scene.member(key).map_or(key, |m| m.seen.context.as_str())
                );
                judgement
                    .found(
                        member,
                        format!("in {key} the credential may do anything"),
                        format!("{} writes a reader's; `{account}` shows who else is admin", scene.apply),
                    )
                    .object(format!("Secret {secret}"));
            }
        }
    }
}

/// D-25
pub(crate) fn not_synced(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if member.seen.istiods.is_empty() {
            judgement.gap(member, "no pod of a control plane is ready");
        }
        for istiod in &member.seen.istiods {
            let Some(clusters) = istiod.clusterz.value().and_then(Value::as_array) else {
                judgement.gap(member, istiod.clusterz.why().unwrap_or("its page clusterz is of another form"));
                continue;
            };
            for peer in peers(scene, member) {
                judgement.looked();
                let known = clusters.iter().find(|c| c["id"] == peer);
                let status = known.map(|c| c["syncStatus"].as_str().unwrap_or("unknown"));
                if status == Some("synced") {
                    continue;
                }
                let why = known.and_then(|c| c["error"].as_str()).map_or(String::new(), |e| format!(" ({e})"));
                let seen = status.map_or(format!("it does not know {peer}"), |s| format!("it says {s} of {peer}{why}"));
                let mend = member.kubectl(&format!("-n istio-system logs {} --tail=50", istiod.pod));
                judgement.found(member, seen, mend).object(format!("Pod istio-system/{}", istiod.pod));
            }
        }
    }
}

/// D-26
pub(crate) fn stale(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        for istiod in &member.seen.istiods {
            let Some(shards) = istiod.shards.value().and_then(Value::as_object) else {
                judgement.gap(member, istiod.shards.why().unwrap_or("its page endpointShardz is of another form"));
                continue;
            };
            for peer in scene.members.iter().filter(|p| p.name() != member.name()) {
                if !judgement.can_read(peer, &["Pod", "EndpointSlice"]) {
                    continue;
                }
                judgement.looked();
                // Pods that are on their way in or out are neither held against it.
                let alive: BTreeSet<&str> =
                    peer.seen.all("Pod").iter().filter_map(|p| p["status"]["podIP"].as_str()).collect();
                let slices =
                    peer.seen.all("EndpointSlice").iter().flat_map(|s| s["endpoints"].as_array().into_iter().flatten());
                let endpoints: BTreeSet<&str> = slices
                    .flat_map(|e| e["addresses"].as_array().into_iter().flatten())
                    .filter_map(Value::as_str)
                    .collect();
                let mut gone = BTreeSet::new();
                for (host, namespaces) in shards {
                    for (namespace, entry) in namespaces.as_object().into_iter().flatten() {
                        if is_system(namespace) || !host.contains(".svc.") {
                            continue;
                        }
                        let shard = &entry["Shards"][format!("Kubernetes/{}", peer.name())];
                        for address in shard
                            .as_array()
                            .into_iter()
                            .flatten()
                            .flat_map(|e| e["Addresses"].as_array().into_iter().flatten())
                            .filter_map(Value::as_str)
                        {
                            if !alive.contains(address) && !endpoints.contains(address) {
                                gone.insert(format!("{address} of {host}"));
                            }
                        }
                    }
                }
                if !gone.is_empty() {
                    let seen = format!("it has endpoints of {} that are no more: {}", peer.name(), some(&gone));
                    let mend = member.kubectl("-n istio-system rollout restart deployment/istiod");
                    judgement.found(member, seen, mend).object(format!("Pod istio-system/{}", istiod.pod));
                }
            }
        }
    }
}

/// Whether Stolos made it.
fn is_ours(object: &Value) -> bool {
    meta::label(object, istio::MANAGED_BY_LABEL) == Some("stolos")
}

/// D-55
pub(crate) fn foreign(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["Secret"]) {
            continue;
        }
        judgement.looked();
        for secret in member.remote_secrets().filter(|s| !is_ours(s)) {
            let keys = secret_keys(secret);
            let unknown: Vec<_> = keys.iter().filter(|key| !scene.is_member(key)).collect();
            // One that is meant for a member and misnamed is malformed, not foreign.
            let meant =
                meta::name(secret).strip_prefix(istio::REMOTE_SECRET_PREFIX).is_some_and(|name| scene.is_member(name));
            if unknown.is_empty() || meant {
                continue;
            }
            let mut seen = format!("it makes {} known here, which the mesh file does not have", some(unknown));
            for probe in member.seen.credentials.iter().filter(|p| p.secret == path(secret)) {
                seen += match probe.answer.value() {
                    Some(CredentialAnswer::Unauthorized(_)) => "; its token is not accepted",
                    Some(CredentialAnswer::Untrusted(_)) => "; it does not trust the server's certificate",
                    Some(CredentialAnswer::Accepted { anything: true, .. }) => "; its credential may do anything there",
                    _ => "",
                };
            }
            let mend = format!(
                "add the cluster to the mesh file, or remove the Secret with the tool that made it: {}",
                member.kubectl(&format!("-n istio-system get secret {} -o yaml", meta::name(secret)))
            );
            judgement.found(member, seen, mend).object(named("Secret", secret)).since(since(secret));
        }
    }
}

/// D-60
pub(crate) fn leftover(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["ConfigMap", "Secret"]) {
            continue;
        }
        judgement.looked();
        let mut former: BTreeMap<String, String> = BTreeMap::new();
        if let Some(map) = member
            .seen
            .system("ConfigMap", "stolos-mesh")
            .filter(|m| meta::label(m, istio::MESH_LABEL) == Some(scene.mesh.name.as_str()))
        {
            let members: Value =
                map["data"]["members"].as_str().and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
            for left in members
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|m| m["name"].as_str())
                .filter(|n| !scene.is_member(n))
            {
                former.insert(left.to_owned(), "the mesh still remembers it as a member".to_owned());
            }
        }
        for secret in member.remote_secrets().filter(|s| is_ours(s)) {
            // A misnamed key in a member's own Secret is malformed, not left over.
            let meant =
                meta::name(secret).strip_prefix(istio::REMOTE_SECRET_PREFIX).is_some_and(|name| scene.is_member(name));
            if meant {
                continue;
            }
            for key in secret_keys(secret).into_iter().filter(|key| !scene.is_member(key) && *key != member.name()) {
                former.insert(key.to_owned(), format!("Secret {} still holds a credential for it", path(secret)));
            }
        }
        for (left, what) in former {
            judgement
                .found(member, format!("{left} is not in the mesh file any more, but {what}"), scene.apply.clone())
                .object("ConfigMap istio-system/stolos-mesh");
        }
    }
}
