//! Rules about traffic.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stolos_k8s::{istio, meta};

use crate::diagnose::scene::{Judgement, Member, Scene, is_system, selects, some};
use crate::diagnose::snapshot::{is_over, named, path, since};

/// A host as it is written in an object of a namespace, in full.
fn full(host: &str, namespace: &str) -> String {
    let domain = istio::DEFAULT_DOMAIN;
    match host.matches('.').count() {
        _ if host.starts_with('*') => host.to_owned(),
        0 => format!("{host}.{namespace}.svc.{domain}"),
        1 => format!("{host}.svc.{domain}"),
        _ if host.ends_with(".svc") => format!("{host}.{domain}"),
        _ => host.to_owned(),
    }
}

fn is_in_mesh(host: &str) -> bool {
    host.ends_with(&format!(".svc.{}", istio::DEFAULT_DOMAIN)) || host == "*.local" || host == "*"
}

/// D-37
pub(crate) fn plaintext(scene: &Scene<'_>, judgement: &mut Judgement) {
    // Inside one network plaintext is a matter of taste; a gateway passes mutual TLS only.
    if !scene.mesh.needs_gateways() {
        return;
    }
    let shared = scene.shared();
    for member in &scene.members {
        if !judgement.can_read(member, &["PeerAuthentication", "DestinationRule", "Pod"]) {
            continue;
        }
        judgement.looked();
        for policy in member.seen.all("PeerAuthentication") {
            let ports = policy["spec"]["portLevelMtls"].as_object().into_iter().flatten();
            let port = ports.filter(|(_, p)| p["mode"] == "DISABLE").map(|(port, _)| port).next();
            if policy["spec"]["mtls"]["mode"] == "DISABLE" || port.is_some() {
                let what = port.map_or("mutual TLS".to_owned(), |p| format!("mutual TLS on port {p}"));
                let mend = format!(
                    "{}; then {}",
                    member.kubectl(&format!(
                        "-n {} delete peerauthentication {}",
                        meta::namespace(policy),
                        meta::name(policy)
                    )),
                    scene.apply
                );
                judgement
                    .found(member, format!("it turns {what} off"), mend)
                    .object(named("PeerAuthentication", policy))
                    .since(since(policy));
            }
        }
        for rule in member.seen.all("DestinationRule") {
            let host = full(rule["spec"]["host"].as_str().unwrap_or_default(), meta::namespace(rule));
            let subsets = rule["spec"]["subsets"].as_array().into_iter().flatten().map(|s| &s["trafficPolicy"]);
            let mut modes = std::iter::once(&rule["spec"]["trafficPolicy"])
                .chain(subsets)
                .filter_map(|p| p["tls"]["mode"].as_str());
            let Some(mode) = modes.find(|m| ["DISABLE", "SIMPLE"].contains(m)) else { continue };
            if is_in_mesh(&host) {
                let mend =
                    member.kubectl(&format!("-n {} edit destinationrule {}", meta::namespace(rule), meta::name(rule)));
                judgement
                    .found(
                        member,
                        format!("clients of {host} are told to use tls mode {mode}, which no gateway passes"),
                        mend,
                    )
                    .object(named("DestinationRule", rule))
                    .since(since(rule));
            }
        }
        for ((_, _), places) in &shared {
            for (_, service) in places.iter().filter(|(m, _)| m.name() == member.name()) {
                let bare: Vec<_> = member
                    .seen
                    .pods_of(service)
                    .into_iter()
                    .filter(|p| !is_over(p) && crate::diagnose::snapshot::proxy(p).is_some())
                    .filter(|p| meta::label(p, istio::TLS_MODE_LABEL) != Some(istio::TLS_MODE_ISTIO))
                    .collect();
                if let Some(pod) = bare.first() {
                    let seen = format!(
                        "pods of {} have a sidecar but not the label {}=istio: {}",
                        path(service),
                        istio::TLS_MODE_LABEL,
                        some(bare.iter().map(|p| meta::name(p)))
                    );
                    let mend = member.kubectl(&format!("-n {} rollout restart deployment", meta::namespace(pod)));
                    judgement.found(member, seen, mend).object(named("Pod", pod)).since(since(pod));
                }
            }
        }
    }
}

/// D-39
pub(crate) fn sidecar(scene: &Scene<'_>, judgement: &mut Judgement) {
    let shared: BTreeSet<(&str, &str)> = scene.shared().into_keys().collect();
    let mut known = Vec::new();
    for member in scene.primaries() {
        if judgement.can_read(member, &["Sidecar"]) {
            judgement.looked();
            known.push(member);
        }
    }
    for member in &known {
        for sidecar in member.seen.all("Sidecar") {
            let egress: Vec<&str> = sidecar["spec"]["egress"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|e| e["hosts"].as_array().into_iter().flatten())
                .filter_map(Value::as_str)
                .collect();
            if egress.is_empty() {
                continue;
            }
            let own = meta::namespace(sidecar);
            // One in the root namespace speaks for every namespace without its own.
            let of: Vec<&str> = match own == istio::SYSTEM_NAMESPACE {
                true => shared.iter().map(|(namespace, _)| *namespace).collect(),
                false => vec![own],
            };
            let shows = |namespace: &str, name: &str| {
                let host = format!("{name}.{namespace}.svc.{}", istio::DEFAULT_DOMAIN);
                egress.iter().filter_map(|h| h.split_once('/')).any(|(ns, pattern)| {
                    (ns == "*" || ns == namespace || (ns == "." && of.contains(&namespace)))
                        && pattern.strip_prefix('*').map_or(pattern == host, |suffix| host.ends_with(suffix))
                })
            };
            let hidden: Vec<_> = shared
                .iter()
                .filter(|(namespace, name)| of.contains(namespace) && !shows(namespace, name))
                .map(|(ns, n)| format!("{ns}/{n}"))
                .collect();
            if !hidden.is_empty() {
                let mend = member.kubectl(&format!("-n {own} edit sidecar {}", meta::name(sidecar)));
                judgement
                    .found(
                        member,
                        format!("its egress hosts ({}) hide {} from their own namespace", some(&egress), some(&hidden)),
                        mend,
                    )
                    .object(named("Sidecar", sidecar))
                    .since(since(sidecar));
                continue;
            }
            let elsewhere = known.iter().filter(|m| m.name() != member.name()).find(|m| {
                !own.is_empty()
                    && m.namespace(own).is_some()
                    && m.seen
                        .get("Sidecar", own, meta::name(sidecar))
                        .is_some_and(|s| s["spec"]["egress"] != sidecar["spec"]["egress"])
            });
            if let Some(other) = elsewhere.filter(|o| o.name() > member.name()) {
                let mend = member.kubectl(&format!("-n {own} get sidecar {} -o yaml", meta::name(sidecar)));
                judgement
                    .found(member, format!("its egress hosts are others in {}", other.name()), mend)
                    .object(named("Sidecar", sidecar))
                    .since(since(sidecar));
            }
        }
    }
}

/// Whether a rule about a host speaks of a service that two clusters have.
fn rules_by_host<'a>(member: &Member<'a>) -> BTreeMap<String, (&'a Value, BTreeMap<&'a str, &'a Value>)> {
    let mut all: BTreeMap<String, (&Value, BTreeMap<&str, &Value>)> = BTreeMap::new();
    for rule in member.seen.all("DestinationRule") {
        let host = full(rule["spec"]["host"].as_str().unwrap_or_default(), meta::namespace(rule));
        let entry = all.entry(host).or_insert((rule, BTreeMap::new()));
        for subset in rule["spec"]["subsets"].as_array().into_iter().flatten() {
            if let Some(name) = subset["name"].as_str() {
                entry.1.insert(name, &subset["labels"]);
            }
        }
    }
    all
}

/// D-42
pub(crate) fn subsets(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut known = Vec::new();
    for member in scene.primaries() {
        if judgement.can_read(member, &["DestinationRule", "Service"]) {
            judgement.looked();
            known.push((member, rules_by_host(member)));
        }
    }
    for (member, rules) in &known {
        for (host, (rule, subsets)) in rules {
            for (peer, theirs) in known.iter().filter(|(p, _)| p.name() != member.name()) {
                let parts: Vec<_> = host.split('.').collect();
                let [name, namespace, "svc", ..] = parts[..] else { continue };
                // Who has no such service is never asked for one of its subsets.
                if peer.seen.get("Service", namespace, name).is_none() {
                    continue;
                }
                judgement.looked();
                let empty = BTreeMap::new();
                let their = theirs.get(host).map_or(&empty, |(_, s)| s);
                let missing: Vec<_> = subsets.keys().filter(|s| !their.contains_key(*s)).collect();
                if !missing.is_empty() {
                    let seen =
                        format!("subset {} of {host} is defined in {} and not here", some(&missing), member.name());
                    let mend = format!(
                        "kubectl --context {} -n {} get destinationrule {} -o yaml | {}",
                        member.seen.context,
                        meta::namespace(rule),
                        meta::name(rule),
                        peer.kubectl("apply -f -")
                    );
                    judgement.found(peer, seen, mend).object(named("DestinationRule", rule)).since(since(rule));
                }
            }
        }
    }
}

/// D-41
pub(crate) fn locality(scene: &Scene<'_>, judgement: &mut Judgement) {
    let shared = scene.shared();
    for member in scene.primaries() {
        if !judgement.can_read(member, &["DestinationRule", "ConfigMap"]) {
            continue;
        }
        judgement.looked();
        let setting = member.mesh_config()["localityLbSetting"].clone();
        for (host, (rule, _)) in rules_by_host(member) {
            let policy = &rule["spec"]["trafficPolicy"];
            let own = &policy["loadBalancer"]["localityLbSetting"];
            let off = own["enabled"] == false || (own.is_null() && setting["enabled"] == false);
            let parts: Vec<_> = host.split('.').collect();
            let is_shared =
                matches!(parts[..], [name, namespace, "svc", ..] if shared.contains_key(&(namespace, name)));
            if policy["outlierDetection"].is_object() && !off && is_shared {
                judgement
                    .found(
                        member,
                        format!(
                            "{host} has outlier detection, so the nearest healthy endpoints get all of its traffic"
                        ),
                        "nothing, if that is meant; else `localityLbSetting: {enabled: false}`",
                    )
                    .object(named("DestinationRule", rule))
                    .since(since(rule));
            }
        }
    }
}

/// D-43
pub(crate) fn denies_remote(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["AuthorizationPolicy", "ConfigMap"]) {
            continue;
        }
        let config = member.mesh_config();
        let own = config["trustDomain"].as_str().unwrap_or(&scene.mesh.trust.domain);
        let aliases = config["trustDomainAliases"].as_array().into_iter().flatten().filter_map(Value::as_str);
        // `cluster.local` always stands for the own trust domain.
        let domains: BTreeSet<&str> = aliases.chain([own, istio::DEFAULT_DOMAIN]).collect();
        judgement.looked();
        for policy in member.seen.all("AuthorizationPolicy") {
            let action = policy["spec"]["action"].as_str().unwrap_or("ALLOW");
            let sources = policy["spec"]["rules"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|r| r["from"].as_array().into_iter().flatten())
                .map(|f| &f["source"]);
            let field = match action {
                "ALLOW" => "principals",
                "DENY" => "notPrincipals",
                _ => continue,
            };
            let strange: BTreeSet<&str> = sources
                .flat_map(|s| s[field].as_array().into_iter().flatten())
                .filter_map(Value::as_str)
                .filter_map(|p| p.trim_start_matches("spiffe://").split_once('/').map(|(domain, _)| domain))
                .filter(|d| !d.contains('*') && !domains.contains(d))
                .collect();
            if !strange.is_empty() {
                let seen =
                    format!("its {field} are of {}, which is no trust domain of this mesh ({own})", some(strange));
                let mend = member.kubectl(&format!(
                    "-n {} edit authorizationpolicy {}",
                    meta::namespace(policy),
                    meta::name(policy)
                ));
                judgement.found(member, seen, mend).object(named("AuthorizationPolicy", policy)).since(since(policy));
            }
        }
    }
}

/// Whether a peer list of a NetworkPolicy rule is open to addresses outside the cluster.
fn is_open(peers: &Value) -> bool {
    match peers.as_array() {
        None => true,
        Some(all) => all.is_empty() || all.iter().any(|p| p["ipBlock"].is_object()),
    }
}

fn has_port(rule: &Value, wanted: u64, name: &str) -> bool {
    match rule["ports"].as_array() {
        None => true,
        Some(all) => {
            all.is_empty()
                || all.iter().any(|p| {
                    let end = p["endPort"].as_u64();
                    match (p["port"].as_u64(), end) {
                        (Some(from), Some(to)) => (from..=to).contains(&wanted),
                        (Some(port), None) => port == wanted,
                        (None, _) => p["port"].is_null() || p["port"] == name,
                    }
                })
        }
    }
}

/// What the policies of a namespace do to a pod in one direction: `None` when nothing selects it, or whether some rule
/// lets this through.
fn verdict<'a>(
    member: &Member<'a>,
    pod: &Value,
    direction: &str,
    lets: impl Fn(&Value) -> bool,
) -> Option<(bool, &'a Value)> {
    let (rules, kind) = if direction == "Ingress" { ("ingress", "Ingress") } else { ("egress", "Egress") };
    let selecting: Vec<_> = member
        .seen
        .all("NetworkPolicy")
        .iter()
        .filter(|p| {
            meta::namespace(p) == meta::namespace(pod) && selects(&p["spec"]["podSelector"], &meta::labels(pod))
        })
        .filter(|p| match p["spec"]["policyTypes"].as_array() {
            Some(types) => types.iter().any(|t| t == kind),
            None => kind == "Ingress" || p["spec"]["egress"].is_array(),
        })
        .collect();
    let first = *selecting.first()?;
    let open = selecting.iter().any(|p| p["spec"][rules].as_array().into_iter().flatten().any(&lets));
    Some((open, first))
}

/// D-44
pub(crate) fn network_policy(scene: &Scene<'_>, judgement: &mut Judgement) {
    let shared = scene.shared();
    for member in &scene.members {
        if !judgement.can_read(member, &["NetworkPolicy", "Pod", "Service"]) {
            continue;
        }
        judgement.looked();
        let mut found: Vec<(&Value, String)> = Vec::new();
        if scene.mesh.needs_gateways() {
            for (service, _) in member.seen.gateway_services() {
                let port = u64::from(istio::CROSS_NETWORK_PORT);
                for pod in member.seen.pods_of(service).into_iter().filter(|p| !is_over(p)) {
                    if let Some((false, policy)) =
                        verdict(member, pod, "Ingress", |r| is_open(&r["from"]) && has_port(r, port, "tls"))
                    {
                        found.push((
                            policy,
                            format!("it lets nobody outside reach port {port} of gateway pod {}", meta::name(pod)),
                        ));
                    }
                }
            }
        }
        if scene.mesh.clusters.len() > 1 {
            for pod in member.seen.all("Pod").iter().filter(|p| {
                meta::namespace(p) == istio::SYSTEM_NAMESPACE
                    && meta::label(p, istio::APP_LABEL) == Some(istio::ISTIOD)
                    && !is_over(p)
            }) {
                let lets = |r: &Value| is_open(&r["to"]) && (has_port(r, 443, "https") || has_port(r, 6443, "https"));
                if let Some((false, policy)) = verdict(member, pod, "Egress", lets) {
                    found.push((
                        policy,
                        format!("it does not let control plane pod {} reach the other API servers", meta::name(pod)),
                    ));
                }
            }
        }
        for ((namespace, name), places) in &shared {
            if is_system(namespace) {
                continue;
            }
            for (_, service) in places.iter().filter(|(m, _)| m.name() == member.name()) {
                for pod in member.seen.pods_of(service).into_iter().filter(|p| !is_over(p)) {
                    // From the gateway, or from pods of other clusters, which no selector of this one matches.
                    let gateway = scene.mesh.needs_gateways();
                    let lets = |r: &Value| {
                        is_open(&r["from"])
                            || (gateway
                                && r["from"]
                                    .as_array()
                                    .into_iter()
                                    .flatten()
                                    .any(|p| p["namespaceSelector"].is_object()))
                    };
                    if let Some((false, policy)) = verdict(member, pod, "Ingress", lets) {
                        found.push((policy, format!("it lets nobody from another cluster reach {namespace}/{name}")));
                    }
                }
            }
        }
        let mut said = BTreeSet::new();
        for (policy, seen) in found {
            if said.insert((path(policy), seen.clone())) {
                let mend = member.kubectl(&format!(
                    "-n {} edit networkpolicy {}",
                    meta::namespace(policy),
                    meta::name(policy)
                ));
                judgement.found(member, seen, mend).object(named("NetworkPolicy", policy)).since(since(policy));
            }
        }
    }
}
