//! Services that are the same everywhere, and known where they are called.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stolos_k8s::{istio, meta};

use crate::diagnose::scene::{Engine, Judgement, Member, Scene, is_system, some};
use crate::diagnose::snapshot::{KUBERNETES_GATEWAYS, named, since, variable};

/// What a namespace asks for.
fn asks(namespace: &Value) -> &'static str {
    match (meta::label(namespace, istio::INJECTION_LABEL), meta::label(namespace, istio::REVISION_LABEL)) {
        (Some(istio::INJECTION_ENABLED), _) | (None, Some(_)) => "a sidecar",
        _ if meta::label(namespace, istio::DATAPLANE_MODE_LABEL) == Some("ambient") => "ambient",
        _ => "no sidecar",
    }
}

/// D-33
pub(crate) fn namespaces(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        judgement.can_read(member, &["Namespace", "Service"]);
    }
    let shared: BTreeSet<&str> = scene.shared().keys().map(|(namespace, _)| *namespace).collect();
    for namespace in shared {
        let known: Vec<_> = scene.members.iter().filter_map(|m| Some((m, m.namespace(namespace)?))).collect();
        judgement.looked();
        let injected = known.iter().find(|(_, n)| asks(n) != "no sidecar");
        let Some((other, theirs)) = injected else { continue };
        for (member, here) in &known {
            if asks(here) != asks(theirs) {
                let seen = format!("it asks for {} here and for {} in {}", asks(here), asks(theirs), other.name());
                let label = meta::label(theirs, istio::REVISION_LABEL)
                    .filter(|_| meta::label(theirs, istio::INJECTION_LABEL).is_none());
                let label = label.map_or(format!("{}={}", istio::INJECTION_LABEL, istio::INJECTION_ENABLED), |r| {
                    format!("{}={r}", istio::REVISION_LABEL)
                });
                let mend = member.kubectl(&format!("label namespace {namespace} {label} --overwrite"));
                judgement.found(member, seen, mend).object(format!("Namespace {namespace}")).since(since(here));
            }
        }
    }
}

/// D-34
pub(crate) fn unknown_here(scene: &Scene<'_>, judgement: &mut Judgement) {
    let shared: BTreeSet<&str> = scene.shared().keys().map(|(namespace, _)| *namespace).collect();
    for member in &scene.members {
        if !judgement.can_read(member, &["Service", "Pod", "ServiceEntry"]) {
            continue;
        }
        let dns = member.mesh_config()["defaultConfig"]["proxyMetadata"]["ISTIO_META_DNS_CAPTURE"] == "true";
        // Who could call it and has to ask the cluster's own DNS.
        let callers: BTreeMap<&str, &Value> = member
            .proxied()
            .filter(|(_, proxy)| match variable(proxy, "ISTIO_META_DNS_CAPTURE") {
                Some(value) => value != "true",
                None => !dns,
            })
            .map(|(pod, _)| (meta::namespace(pod), pod))
            .filter(|(namespace, _)| !is_system(namespace))
            .collect();
        for peer in scene.members.iter().filter(|p| p.name() != member.name()) {
            for service in peer.services() {
                let (namespace, name) = (meta::namespace(service), meta::name(service));
                let Some(caller) = callers.get(namespace).filter(|_| shared.contains(namespace)) else { continue };
                judgement.looked();
                let host = format!("{name}.{namespace}.svc.{}", istio::DEFAULT_DOMAIN);
                let entry = member
                    .seen
                    .all("ServiceEntry")
                    .iter()
                    .any(|e| e["spec"]["hosts"].as_array().is_some_and(|h| h.iter().any(|h| h == host.as_str())));
                if member.seen.get("Service", namespace, name).is_none() && !entry && !is_local(member, &host) {
                    let seen = format!(
                        "{namespace}/{name} exists in {} only; pod {} asks the cluster's DNS, which does not know it",
                        peer.name(),
                        meta::name(caller)
                    );
                    let mend = format!(
                        "kubectl --context {} -n {namespace} get service {name} -o yaml | {}",
                        peer.seen.context,
                        member.kubectl("apply -f -")
                    );
                    judgement.found(member, seen, mend).object(format!("Service {namespace}/{name}"));
                }
            }
        }
    }
}

/// Whether a host is meant to stay in its cluster.
fn is_local(member: &Member<'_>, host: &str) -> bool {
    let config = member.mesh_config();
    config["serviceSettings"].as_array().into_iter().flatten().any(|s| {
        s["settings"]["clusterLocal"] == true
            && s["hosts"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|pattern| {
                match pattern.strip_prefix('*') {
                    Some(suffix) => host.ends_with(suffix),
                    None => pattern == host,
                }
            })
    })
}

/// D-35
pub(crate) fn inconsistent(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        judgement.can_read(member, &["Service"]);
    }
    for ((namespace, name), places) in scene.shared() {
        let Some((first, theirs)) = places.first() else { continue };
        for (member, service) in &places[1..] {
            judgement.looked();
            if is_local(member, &format!("{name}.{namespace}.svc.{}", istio::DEFAULT_DOMAIN)) {
                continue;
            }
            if let Some(difference) = difference(service, theirs) {
                let mend = format!(
                    "make it as in {}: kubectl --context {} -n {namespace} get service {name} -o yaml",
                    first.name(),
                    first.seen.context
                );
                judgement
                    .found(member, format!("{difference} (compared with {})", first.name()), mend)
                    .object(named("Service", service))
                    .since(since(service));
            }
        }
    }
}

fn difference(here: &Value, there: &Value) -> Option<String> {
    let kind = |s: &Value| match (s["spec"]["type"].as_str().unwrap_or("ClusterIP"), s["spec"]["clusterIP"].as_str()) {
        ("ExternalName", _) => "an ExternalName",
        (_, Some("None")) => "headless",
        _ => "a ClusterIP",
    };
    if kind(here) != kind(there) {
        return Some(format!("it is {} here and {} there", kind(here), kind(there)));
    }
    let ports = |s: &Value| -> BTreeMap<u64, (String, String, String)> {
        let text = |p: &Value, key: &str, or: &str| p[key].as_str().unwrap_or(or).to_owned();
        let all = s["spec"]["ports"].as_array().into_iter().flatten();
        all.filter_map(|p| {
            Some((p["port"].as_u64()?, (text(p, "name", ""), text(p, "protocol", "TCP"), text(p, "appProtocol", ""))))
        })
        .collect()
    };
    let (ours, theirs) = (ports(here), ports(there));
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (ours.keys().collect(), theirs.keys().collect());
    if a != b {
        return Some(format!("its ports are {} here and {} there", some(a), some(b)));
    }
    ours.iter().find_map(|(port, mine)| {
        let other = theirs.get(port).filter(|other| *other != mine)?;
        let words = |(name, protocol, app): &(String, String, String)| {
            format!("`{name}` {protocol}{}{app}", if app.is_empty() { "" } else { " " })
        };
        Some(format!("port {port} is {} here and {} there", words(mine), words(other)))
    })
}

/// D-38
pub(crate) fn not_exported(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["ConfigMap"]) {
            continue;
        }
        judgement.looked();
        let config = member.mesh_config();
        let default: Vec<&str> =
            config["defaultServiceExportTo"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !default.is_empty() && !default.contains(&"*") && !default.contains(&istio::SYSTEM_NAMESPACE) {
            judgement
                .found(
                    member,
                    format!("defaultServiceExportTo is {}: gateways get to know of no service", some(default)),
                    scene.apply.clone(),
                )
                .object("ConfigMap istio-system/istio")
                .since(member.mesh_config_map().and_then(since));
        }
    }
    for ((namespace, _), places) in scene.shared() {
        for (member, service) in &places {
            judgement.looked();
            let Some(export) = meta::annotation(service, istio::EXPORT_TO_ANNOTATION) else { continue };
            let to: Vec<&str> = export.split(',').map(str::trim).collect();
            // The gateway's proxy is in istio-system; callers elsewhere may be meant to be left out.
            let reaches = to.contains(&"*")
                || (to.contains(&istio::SYSTEM_NAMESPACE) && (to.contains(&".") || to.contains(&namespace)));
            if !reaches {
                let seen = format!("it is exported to {} only, not to the gateway in istio-system", some(to));
                let mend = member.kubectl(&format!(
                    "-n {namespace} annotate service {} {}-",
                    meta::name(service),
                    istio::EXPORT_TO_ANNOTATION
                ));
                judgement.found(member, seen, mend).object(named("Service", service)).since(since(service));
            }
        }
    }
}

/// D-56
pub(crate) fn ambient(scene: &Scene<'_>, judgement: &mut Judgement) {
    let is_ambient = |m: &&Member<'_>| {
        m.seen.all("DaemonSet").iter().any(|d| meta::name(d) == "ztunnel")
            || m.seen.all("Namespace").iter().any(|n| meta::label(n, istio::DATAPLANE_MODE_LABEL) == Some("ambient"))
    };
    let members: Vec<_> = scene.members.iter().filter(is_ambient).collect();
    for member in &members {
        if !judgement.can_read(member, &["Service", "Deployment"]) {
            continue;
        }
        judgement.looked();
        if scene.mesh.needs_gateways()
            && member.engine() == Engine::Istio
            && member.has_istiod()
            && member.istiod_env("AMBIENT_ENABLE_MULTI_NETWORK") != Some(istio::TRUE)
        {
            judgement
                .found(member, "the control plane has no AMBIENT_ENABLE_MULTI_NETWORK=true", scene.apply.clone())
                .object("Deployment istio-system/istiod");
        }
        for gateway in
            member.seen.all(KUBERNETES_GATEWAYS).iter().filter(|g| meta::label(g, istio::NETWORK_LABEL).is_some())
        {
            let class = gateway["spec"]["gatewayClassName"].as_str().unwrap_or_default();
            let hbone = gateway["spec"]["listeners"].as_array().into_iter().flatten().any(|l| l["protocol"] == "HBONE");
            if hbone && class != "istio-east-west" {
                judgement
                    .found(
                        member,
                        format!("its class is {class}; ambient takes istio-east-west only"),
                        "set gatewayClassName: istio-east-west",
                    )
                    .object(named("Gateway", gateway))
                    .since(since(gateway));
            }
        }
    }
    for ((namespace, name), places) in scene.shared() {
        let places: Vec<_> = places.iter().filter(|(m, _)| members.iter().any(|a| a.name() == m.name())).collect();
        let global = |s: &Value| meta::label(s, istio::GLOBAL_LABEL) == Some(istio::TRUE);
        let Some((other, _)) = places.iter().find(|(_, s)| global(s)) else { continue };
        for (member, service) in &places {
            judgement.looked();
            if !global(service) {
                let seen = format!("it is global in {} and not here", other.name());
                let mend = member.kubectl(&format!("-n {namespace} label service {name} {}=true", istio::GLOBAL_LABEL));
                judgement.found(member, seen, mend).object(named("Service", service)).since(since(service));
            }
        }
    }
}
