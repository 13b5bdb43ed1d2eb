//! The ways between networks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use stolos_k8s::{istio, meta};
use stolos_pki::{Certificate, SpiffeId, verify_chain};

use crate::diagnose::Severity;
use crate::diagnose::scene::{Judgement, Member, Scene, Version, some};
use crate::diagnose::snapshot::{
    Datum, From, GatewayProbe, KUBERNETES_GATEWAYS, Touch, instant, is_over, is_ready, named, path, since,
};
use crate::verify::gateway_addresses;

/// A load balancer gets its address within this time, or something is wrong with it.
const PROVISIONING: Duration = Duration::from_secs(120);

/// Gateways that lead into a network of this mesh, where there is more than one.
fn services<'a>(scene: &Scene<'a>, member: &Member<'a>) -> Vec<(&'a Value, &'a str)> {
    if !scene.mesh.needs_gateways() {
        return vec![];
    }
    member.seen.gateway_services().collect()
}

fn service_name(service: &Value) -> String {
    named("Service", service)
}

/// The port that proxies of other networks dial.
fn port_of(service: &Value) -> u64 {
    meta::label(service, istio::GATEWAY_PORT_LABEL)
        .and_then(|p| p.parse().ok())
        .unwrap_or(u64::from(istio::CROSS_NETWORK_PORT))
}

/// D-10
pub(crate) fn missing(scene: &Scene<'_>, judgement: &mut Judgement) {
    if !scene.mesh.needs_gateways() {
        return;
    }
    for network in scene.mesh.networks() {
        let members: Vec<_> = scene.members.iter().filter(|m| m.network() == network.as_str()).collect();
        let readable: Vec<_> = scene.members.iter().filter(|m| judgement.can_read(m, &["Service"])).collect();
        if members.is_empty() || readable.is_empty() {
            continue;
        }
        judgement.looked();
        let labelled = readable.iter().any(|m| m.seen.gateway_services().any(|(_, n)| n == network.as_str()));
        let by_hand = scene.primaries().any(|m| {
            let networks = m
                .mesh_config_map()
                .and_then(|map| crate::diagnose::scene::yaml(&map["data"][istio::MESH_NETWORKS_KEY]));
            let gateways = networks.map(|n| n["networks"][network.as_str()]["gateways"].clone()).unwrap_or_default();
            gateways.as_array().is_some_and(|g| !g.is_empty())
        });
        let of_kubernetes = scene
            .members
            .iter()
            .flat_map(|m| m.seen.all(KUBERNETES_GATEWAYS))
            .any(|g| meta::label(g, istio::NETWORK_LABEL) == Some(network.as_str()));
        if labelled || by_hand || of_kubernetes {
            continue;
        }
        for member in members {
            let near = member.seen.all("Service").iter().find(|s| {
                meta::name(s).contains("eastwest") || meta::label(s, "istio") == Some(istio::EAST_WEST_GATEWAY_SELECTOR)
            });
            let (seen, object, since) = match near {
                Some(service) => {
                    let labelled = meta::label(service, istio::NETWORK_LABEL);
                    let what = labelled.map_or("carries no network's label".to_owned(), |l| format!("is labelled {l}"));
                    (format!("it {what}, so nothing leads into {network}"), service_name(service), since(service))
                }
                None => (
                    format!("no Service carries {}={network}", istio::NETWORK_LABEL),
                    "Service istio-system/istio-eastwestgateway".to_owned(),
                    None,
                ),
            };
            judgement.found(member, seen, scene.apply.clone()).object(object).since(since);
        }
    }
}

/// D-15
pub(crate) fn no_port(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["Service"]) {
            continue;
        }
        for (service, _) in services(scene, member) {
            judgement.looked();
            let wanted = port_of(service);
            let ports: Vec<u64> =
                service["spec"]["ports"].as_array().into_iter().flatten().filter_map(|p| p["port"].as_u64()).collect();
            if !ports.contains(&wanted) && !ports.contains(&u64::from(istio::HBONE_PORT)) {
                let seen = format!("it has {}, and port {wanted} is what other networks dial", some(&ports));
                judgement.found(member, seen, scene.apply.clone()).object(service_name(service)).since(since(service));
            }
        }
    }
}

/// D-11
pub(crate) fn no_address(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["Service"]) {
            continue;
        }
        for (service, _) in services(scene, member) {
            if !gateway_addresses(service).is_empty() {
                judgement.looked();
                continue;
            }
            let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
            let annotated = meta::annotation(service, istio::NODE_SELECTOR_ANNOTATION).is_some();
            let seen = match kind {
                "NodePort" if annotated => {
                    judgement.looked();
                    continue;
                }
                "NodePort" => {
                    format!("it is of type NodePort without the annotation {}", istio::NODE_SELECTOR_ANNOTATION)
                }
                "LoadBalancer" => {
                    let born = instant(meta::creation_timestamp(service)).unwrap_or(SystemTime::UNIX_EPOCH);
                    let age = scene.clock(member).duration_since(born).unwrap_or_default();
                    if age < PROVISIONING {
                        judgement.gap(
                            member,
                            format!("{} is {} s old and has no address yet", service_name(service), age.as_secs()),
                        );
                        continue;
                    }
                    format!("it has waited for an address for {} s", age.as_secs())
                }
                other => format!("it is of type {other}, which has no address outside the cluster"),
            };
            judgement.looked();
            let mend = match kind {
                "LoadBalancer" => {
                    member.kubectl(&format!("-n {} describe service {}", meta::namespace(service), meta::name(service)))
                }
                _ => scene.apply.clone(),
            };
            judgement.found(member, seen, mend).object(service_name(service)).since(since(service));
        }
    }
}

/// D-12
pub(crate) fn hostname(scene: &Scene<'_>, judgement: &mut Judgement) {
    const RESOLVES_AGAIN: Version = Version { major: 1, minor: 18 };
    for member in &scene.members {
        if !judgement.can_read(member, &["Service"]) {
            continue;
        }
        for (service, _) in services(scene, member) {
            for entry in service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten() {
                let (None, Some(name)) = (entry["ip"].as_str(), entry["hostname"].as_str()) else { continue };
                judgement.looked();
                let object = service_name(service);
                match member.seen.names.get(name) {
                    Some(Datum::Read { value, .. }) if value.is_empty() => {
                        judgement
                            .found(
                                member,
                                format!("its address is the name {name}, which has no address"),
                                format!("mend the DNS record; `dig {name}` shows what it is"),
                            )
                            .object(object);
                    }
                    Some(Datum::Read { .. }) => {
                        let old = scene.primaries().find(|m| {
                            m.istiod_version().is_some_and(|v| v < RESOLVES_AGAIN)
                                && m.engine() == crate::diagnose::scene::Engine::Istio
                        });
                        if let Some(old) = old {
                            judgement
                                .found(member, format!("its address is the name {name}, and the control plane of {} resolves it only once", old.name()), "upgrade to Istio 1.18 or later, or give the load balancer fixed addresses")
                                .object(object)
                                .severity(Severity::Warning);
                        }
                    }
                    Some(Datum::Unread { why }) => judgement.gap(member, why.clone()),
                    None => judgement.gap(member, format!("{name} was not resolved")),
                }
            }
        }
        // A remote cluster whose control plane is a name: its API server refuses to call it.
        let istiod = member.seen.all("Service").iter().find(|s| {
            meta::namespace(s) == istio::SYSTEM_NAMESPACE
                && meta::name(s).starts_with(istio::ISTIOD)
                && s["spec"]["type"] == "ExternalName"
        });
        if let (false, Some(service)) = (member.is_primary(), istiod) {
            judgement.looked();
            let name = service["spec"]["externalName"].as_str().unwrap_or_default();
            judgement
                .found(member, format!("it is of type ExternalName ({name}): API servers call no webhook through one"), "give the primary's gateway a fixed address and use that as `global.remotePilotAddress`, or set `injectionURL`")
                .object(service_name(service));
        }
    }
}

/// D-53
pub(crate) fn family(scene: &Scene<'_>, judgement: &mut Judgement) {
    const FILTERS: Version = Version { major: 1, minor: 30 };
    let families = |addresses: &mut dyn Iterator<Item = String>| -> (bool, bool) {
        addresses
            .filter_map(|a| a.parse::<IpAddr>().ok())
            .fold((false, false), |(v4, v6), a| (v4 || a.is_ipv4(), v6 || a.is_ipv6()))
    };
    for member in &scene.members {
        for (service, network) in services(scene, member) {
            let hosts: Vec<String> =
                gateway_addresses(service).iter().filter_map(|a| Some(a.rsplit_once(':')?.0.to_owned())).collect();
            let gateway = families(&mut hosts.iter().cloned());
            if gateway == (false, false) {
                continue;
            }
            for client in scene.members.iter().filter(|m| m.network() != network) {
                let pods = client.seen.all("Pod").iter().flat_map(|p| {
                    let many = p["status"]["podIPs"].as_array().into_iter().flatten().filter_map(|i| i["ip"].as_str());
                    many.chain(p["status"]["podIP"].as_str()).map(str::to_owned).collect::<Vec<_>>()
                });
                let clients = families(&mut pods.into_iter());
                if clients == (false, false) {
                    continue;
                }
                judgement.looked();
                let none = !(gateway.0 && clients.0 || gateway.1 && clients.1);
                // With both kinds of addresses, older control planes give out both and half of the dials fail.
                let unfiltered = gateway == (true, true)
                    && clients != (true, true)
                    && scene
                        .config_of(client)
                        .and_then(Member::istiod_version)
                        .is_some_and(|v| v.major == 1 && v < FILTERS);
                if none || unfiltered {
                    let family = |(v4, v6)| match (v4, v6) {
                        (true, true) => "IPv4 and IPv6",
                        (true, false) => "IPv4",
                        _ => "IPv6",
                    };
                    let seen = format!(
                        "its addresses are {} ({}), pods of {} have {}",
                        family(gateway),
                        some(&hosts),
                        client.name(),
                        family(clients)
                    );
                    judgement
                        .found(member, seen, "give the load balancer an address of the clients' family")
                        .object(service_name(service));
                }
            }
        }
    }
}

/// D-50
pub(crate) fn not_injected(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["Service", "Pod"]) {
            continue;
        }
        for (service, _) in services(scene, member) {
            for pod in member.seen.pods_of(service).into_iter().filter(|p| !is_over(p)) {
                judgement.looked();
                let auto =
                    pod["spec"]["containers"].as_array().into_iter().flatten().any(|c| c["image"] == istio::AUTO_IMAGE);
                if !auto {
                    continue;
                }
                let revision = meta::label(pod, istio::REVISION_LABEL);
                let seen = match revision {
                    Some(revision) => {
                        format!("its image is still `auto`: nothing injected it (it asks for revision {revision})")
                    }
                    None => "its image is still `auto`: nothing injected it".to_owned(),
                };
                let mend = member.kubectl(&format!("-n {} delete pod {}", meta::namespace(pod), meta::name(pod)));
                judgement
                    .found(member, seen, format!("{}; then {mend}", scene.apply))
                    .object(named("Pod", pod))
                    .since(since(pod));
            }
        }
    }
}

/// Whether a Gateway's host pattern covers services of the mesh.
fn covers(hosts: &Value) -> bool {
    let domain = istio::DEFAULT_DOMAIN;
    hosts.as_array().into_iter().flatten().filter_map(Value::as_str).any(|host| {
        let host = host.rsplit_once('/').map_or(host, |(_, h)| h);
        match host.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => format!(".svc.{domain}").ends_with(suffix) || suffix.ends_with(&format!(".svc.{domain}")),
            None => host.ends_with(domain),
        }
    })
}

/// D-16
pub(crate) fn not_exposed(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        let Some(config) = scene.config_of(member) else { continue };
        if !judgement.can_read(member, &["Service", "Pod"]) || !judgement.can_read(config, &["Gateway"]) {
            continue;
        }
        for (service, _) in services(scene, member) {
            let port = port_of(service);
            let listed = service["spec"]["ports"].as_array().into_iter().flatten().any(|p| p["port"] == port);
            // Kubernetes' own Gateway objects bring Service and listener together.
            let managed = meta::label(service, "gateway.networking.k8s.io/gateway-name").is_some();
            if !listed || managed {
                continue;
            }
            judgement.looked();
            let pods: Vec<_> = member.seen.pods_of(service).into_iter().filter(|p| is_ready(p)).collect();
            let mut near: Option<(String, &Value)> = None;
            let mut good = false;
            for gateway in config.seen.all("Gateway") {
                for server in gateway["spec"]["servers"].as_array().into_iter().flatten() {
                    if server["port"]["number"] != port {
                        continue;
                    }
                    let selector = gateway["spec"]["selector"].as_object();
                    let selects =
                        |pod: &Value| selector.is_none_or(|s| s.iter().all(|(k, v)| meta::label(pod, k) == v.as_str()));
                    let why = if server["tls"]["mode"] != "AUTO_PASSTHROUGH" {
                        let mode = server["tls"]["mode"].as_str().unwrap_or("none");
                        format!("its tls mode is {mode} instead of AUTO_PASSTHROUGH")
                    } else if !pods.is_empty() && !pods.iter().any(|p| selects(p)) {
                        let wanted = selector
                            .map(|s| some(s.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))));
                        format!("its selector ({}) matches no pod behind {}", wanted.unwrap_or_default(), path(service))
                    } else if !covers(&server["hosts"]) {
                        let hosts = server["hosts"].as_array().into_iter().flatten().filter_map(Value::as_str);
                        format!("its hosts ({}) cover no service of {}", some(hosts), istio::DEFAULT_DOMAIN)
                    } else {
                        good = true;
                        continue;
                    };
                    near.get_or_insert((why, gateway));
                }
            }
            if good {
                continue;
            }
            match near {
                Some((why, gateway)) => judgement
                    .found(member, why, scene.apply.clone())
                    .object(named("Gateway", gateway))
                    .since(since(gateway)),
                None => judgement
                    .found(
                        member,
                        format!(
                            "no Gateway has a server on port {port}, so the pods behind {} do not listen",
                            path(service)
                        ),
                        scene.apply.clone(),
                    )
                    .object(format!("Gateway istio-system/{}", istio::CROSS_NETWORK_GATEWAY)),
            };
            if pods.is_empty() {
                judgement.gap(member, format!("no pod behind {} is ready", path(service)));
            }
        }
    }
}

fn is_private(address: &str) -> bool {
    match address.parse::<IpAddr>() {
        // RFC 1918, RFC 6598 (CGNAT), link-local.
        Ok(IpAddr::V4(v4)) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (a == 100 && (64..128).contains(&b))
        }
        Ok(IpAddr::V6(v6)) => v6.is_unique_local() || v6.is_unicast_link_local(),
        Err(_) => false,
    }
}

/// Probes that did not arrive, from the best place there is: a pod of the peer; this machine's failure alone says
/// nothing about others.
fn unreached<'a>(member: &Member<'a>, judgement: &mut Judgement) -> Vec<&'a GatewayProbe> {
    let mut failed = Vec::new();
    let mut told: BTreeSet<(&str, &str, u16)> = BTreeSet::new();
    for probe in &member.seen.gateways {
        let which = (probe.cluster.as_str(), probe.address.as_str(), probe.port);
        let Some(touch) = probe.touch.value() else { continue };
        match (&probe.from, touch) {
            (From::Inside(_), Touch::Reached | Touch::Stalled) => {
                judgement.looked();
                told.insert(which);
            }
            (From::Inside(_), _) => {
                judgement.looked();
                told.insert(which);
                failed.push(probe);
            }
            (From::Here, _) => {}
        }
    }
    for probe in member.seen.gateways.iter().filter(|p| p.from == From::Here) {
        if told.insert((&probe.cluster, &probe.address, probe.port)) {
            let inside = member.seen.gateways.iter().find(|p| {
                (&p.cluster, &p.address, p.port) == (&probe.cluster, &probe.address, probe.port) && p.from != From::Here
            });
            let why = inside.and_then(|p| p.touch.why()).unwrap_or("no control plane's pod to dial from").to_owned();
            let here = probe.touch.value().map_or(String::new(), |t| format!("; from this machine: {t}"));
            judgement.gap(member, format!("{}:{} of {}: {why}{here}", probe.address, probe.port, probe.cluster));
        }
    }
    failed
}

fn unreachable(scene: &Scene<'_>, judgement: &mut Judgement, private: bool) {
    for member in &scene.members {
        for probe in unreached(member, judgement) {
            let Some(touch) = probe.touch.value() else { continue };
            if is_private(&probe.address) != private {
                continue;
            }
            let seen = format!(
                "{}:{} of {} {}, dialled {}: {touch}",
                probe.address,
                probe.port,
                probe.cluster,
                if private { "is a private address" } else { "cannot be reached" },
                probe.from
            );
            let mend = if private {
                format!("make the load balancer of {} external, or connect the networks", probe.cluster)
            } else if *touch == Touch::Refused {
                format!(
                    "kubectl --context {} -n istio-system get pods -l istio=eastwestgateway",
                    scene.member(&probe.cluster).map_or("", |m| m.seen.context.as_str())
                )
            } else {
                format!(
                    "open port {} of {} to {} (firewall, security group, route)",
                    probe.port,
                    probe.cluster,
                    member.name()
                )
            };
            judgement.found(member, seen, mend).object(format!("Service {}", probe.service));
        }
    }
}

/// D-13
pub(crate) fn private(scene: &Scene<'_>, judgement: &mut Judgement) {
    unreachable(scene, judgement, true);
}

/// D-14
pub(crate) fn filtered(scene: &Scene<'_>, judgement: &mut Judgement) {
    unreachable(scene, judgement, false);
}

/// D-17
pub(crate) fn broken_path(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut said = BTreeSet::new();
    for member in &scene.members {
        for probe in member
            .seen
            .gateways
            .iter()
            .filter(|p| p.from == From::Here && ![istio::XDS_PORT, istio::WEBHOOK_PORT].contains(&p.port))
        {
            if !said.insert((&probe.cluster, &probe.address, probe.port)) {
                continue;
            }
            let Some(behind) = scene.member(&probe.cluster) else { continue };
            let Some(handshake) = &probe.handshake else {
                let why = match probe.touch.value() {
                    Some(Touch::Reached) => "no service with a ready pod and a proxy to ask for".to_owned(),
                    Some(touch) => format!("from this machine: {touch}"),
                    None => "it was not dialled".to_owned(),
                };
                judgement.gap(behind, format!("no handshake through {}:{}: {why}", probe.address, probe.port));
                continue;
            };
            judgement.looked();
            if let Some(seen) = wrong_handshake(scene, member, &handshake.chain) {
                let seen = format!("a handshake through {}:{} for {} {seen}", probe.address, probe.port, handshake.sni);
                let mend = behind.kubectl("-n istio-system logs -l istio=eastwestgateway --tail=20");
                judgement.found(behind, seen, mend).object(format!("Service {}", probe.service));
            }
        }
    }
}

/// What is wrong with what a server showed, for a client of `member`.
fn wrong_handshake(scene: &Scene<'_>, member: &Member<'_>, chain: &Result<Vec<Vec<u8>>, String>) -> Option<String> {
    let chain = match chain {
        Ok(chain) => chain,
        Err(why) => return Some(format!("failed: {why}")),
    };
    let certificates: Vec<_> = chain.iter().filter_map(|der| Certificate::from_der(der.clone().into()).ok()).collect();
    let Some((leaf, rest)) = certificates.split_first() else {
        return Some("showed no certificate that can be read".to_owned());
    };
    let Some(id) = leaf.uris().iter().find_map(|uri| SpiffeId::parse(uri).ok()) else {
        return Some(format!(
            "ended at `{}`, which is no workload of a mesh: something on the way ends TLS",
            leaf.subject()
        ));
    };
    let trusted = id.to_string();
    let config = member.mesh_config();
    let aliases = config["trustDomainAliases"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let domains: Vec<&str> =
        aliases.chain([config["trustDomain"].as_str().unwrap_or(&scene.mesh.trust.domain)]).collect();
    if !domains.iter().any(|d| trusted.starts_with(&format!("spiffe://{d}/"))) {
        return Some(format!("ended at {trusted}, which is of another trust domain"));
    }
    let roots = member.published_roots()?;
    // The leaf is no authority, so the path is checked from who issued it.
    let issuer = rest.iter().chain(&roots).find(|c| leaf.is_signed_by(c));
    let now = scene.snapshot.now;
    let good = leaf.check_time(now).is_ok() && issuer.is_some_and(|i| verify_chain(i, rest, &roots, now).is_ok());
    (!good).then(|| format!("ended at {trusted}, whose certificate {} does not trust", member.name()))
}

/// D-51
pub(crate) fn single(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        // A lab is one process on one machine: what survives what is no question there.
        if member.seen.is_lab || !judgement.can_read(member, &["Service", "Pod", "PodDisruptionBudget", "Node"]) {
            continue;
        }
        for (service, _) in services(scene, member) {
            let pods: Vec<_> = member.seen.pods_of(service).into_iter().filter(|p| is_ready(p)).collect();
            if pods.is_empty() {
                judgement.gap(member, format!("no pod behind {} is ready", path(service)));
                continue;
            }
            judgement.looked();
            let budget = member.seen.all("PodDisruptionBudget").iter().any(|b| {
                meta::namespace(b) == meta::namespace(service)
                    && pods.iter().any(|p| crate::diagnose::scene::selects(&b["spec"]["selector"], &meta::labels(p)))
            });
            let nodes: BTreeSet<_> = pods.iter().filter_map(|p| p["spec"]["nodeName"].as_str()).collect();
            let zone = |node: &&Value| meta::label(node, istio::ZONE_LABEL).map(str::to_owned);
            let all = member.seen.all("Node");
            let zones: BTreeSet<_> = all.iter().filter_map(|n| zone(&n)).collect();
            let used: BTreeSet<_> =
                all.iter().filter(|n| nodes.contains(meta::name(n))).filter_map(|n| zone(&n)).collect();
            let why = if pods.len() < 2 {
                "it has one ready pod"
            } else if all.len() > 1 && nodes.len() < 2 {
                "all its pods are on one node"
            } else if zones.len() > 1 && used.len() < 2 {
                "all its pods are in one zone"
            } else if !budget {
                "no PodDisruptionBudget keeps one of its pods"
            } else {
                continue;
            };
            let mend = member.kubectl(&format!(
                "-n {} scale deployment {} --replicas=2",
                meta::namespace(service),
                meta::name(service)
            ));
            judgement.found(member, why, mend).object(service_name(service));
        }
    }
}

/// D-52
pub(crate) fn balancer(scene: &Scene<'_>, judgement: &mut Judgement) {
    const PROXY_PROTOCOL: [&str; 5] = [
        "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol",
        "service.beta.kubernetes.io/do-loadbalancer-enable-proxy-protocol",
        "service.beta.kubernetes.io/linode-loadbalancer-default-proxy-protocol",
        "load-balancer.hetzner.cloud/uses-proxyprotocol",
        "service.beta.kubernetes.io/ovh-loadbalancer-proxy-protocol",
    ];
    const HEALTH_PORT: [&str; 3] = [
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-port",
        "service.beta.kubernetes.io/do-loadbalancer-healthcheck-port",
        "load-balancer.hetzner.cloud/health-check-port",
    ];
    for member in &scene.members {
        if !judgement.can_read(member, &["Service"]) {
            continue;
        }
        for (service, _) in services(scene, member) {
            judgement.looked();
            let set =
                |names: &[&'static str]| names.iter().find_map(|name| Some((*name, meta::annotation(service, name)?)));
            let proxy = set(&PROXY_PROTOCOL)
                .filter(|(_, value)| !["", "false", "none", "off"].contains(&value.to_lowercase().as_str()));
            let node_ports = |number: &str| {
                service["spec"]["ports"].as_array().into_iter().flatten().any(|p| {
                    p["port"] == u64::from(istio::HEALTH_PORT)
                        && p["nodePort"].as_u64().is_some_and(|n| n.to_string() == number)
                })
            };
            let health = set(&HEALTH_PORT).filter(|(_, value)| {
                ![istio::HEALTH_PORT.to_string().as_str(), "traffic-port", "15443"].contains(value)
                    && !node_ports(value)
            });
            let (name, seen) = match (proxy, health) {
                (Some((name, value)), _) => {
                    (name, format!("{name}: {value} puts a PROXY header before the client's TLS"))
                }
                (None, Some((name, value))) => {
                    (name, format!("{name}: {value} is not where the gateway answers ({})", istio::HEALTH_PORT))
                }
                (None, None) => continue,
            };
            let mend = member.kubectl(&format!(
                "-n {} annotate service {} {name}-",
                meta::namespace(service),
                meta::name(service)
            ));
            judgement.found(member, seen, mend).object(service_name(service)).since(since(service));
        }
    }
}
