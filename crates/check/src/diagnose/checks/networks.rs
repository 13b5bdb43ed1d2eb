//! Which cluster is which, and which pods can dial which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;
use stolos_k8s::{istio, meta};

use crate::diagnose::Severity;
use crate::diagnose::scene::{Judgement, Member, Scene, is_system, some, yaml};
use crate::diagnose::snapshot::{Touch, is_over, path, proxy, since, variable};
use crate::verify::gateway_addresses;

/// D-28
pub(crate) fn same_cluster(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut seen: BTreeMap<&str, &Member<'_>> = BTreeMap::new();
    for member in &scene.members {
        if member.seen.uid.is_empty() {
            judgement.gap(member, "the UID of kube-system could not be read");
            continue;
        }
        judgement.looked();
        if let Some(first) = seen.get(member.seen.uid.as_str()) {
            let text = format!(
                "context {} leads to the same cluster as {} ({})",
                member.seen.context,
                first.name(),
                member.seen.uid
            );
            judgement
                .found(member, text, "give the cluster one entry in the mesh file; `kubectl config get-contexts` shows what a context leads to")
                .object("Namespace kube-system");
        } else {
            seen.insert(&member.seen.uid, member);
        }
    }
}

/// D-07
pub(crate) fn label(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["Namespace", "Pod"]) {
            continue;
        }
        let Some(namespace) = member.seen.system_namespace() else {
            continue;
        };
        judgement.looked();
        let wanted = member.network();
        let labelled = meta::label(namespace, istio::NETWORK_LABEL);
        if labelled != Some(wanted) {
            // With one network only, an absent label means the same to everybody.
            let severity =
                if labelled.is_none() && !scene.mesh.needs_gateways() { Severity::Warning } else { Severity::Error };
            let seen = match labelled {
                None => format!("the label {} is missing, it should be {wanted}", istio::NETWORK_LABEL),
                Some(other) => format!("it is labelled {other}, the mesh file says {wanted}"),
            };
            let command =
                member.kubectl(&format!("label namespace istio-system {}={wanted} --overwrite", istio::NETWORK_LABEL));
            judgement
                .found(member, seen, format!("{} (or {command})", scene.apply))
                .object("Namespace istio-system")
                .since(since(namespace))
                .severity(severity);
        }
        let values = member.values();
        if let Some(told) = values["global"]["network"].as_str().filter(|n| !n.is_empty() && *n != wanted) {
            judgement
                .found(
                    member,
                    format!("the injector tells proxies {told}, the mesh file says {wanted}"),
                    scene.apply.clone(),
                )
                .object("ConfigMap istio-system/istio-sidecar-injector");
        }
        let told = |(pod, proxy): (&Value, &Value)| {
            let network = variable(proxy, istio::NETWORK_ENV)?;
            (network != wanted && !network.is_empty()).then(|| (path(pod), network.to_owned()))
        };
        let wrong: Vec<_> = member.proxied().filter_map(told).collect();
        if let Some((_, network)) = wrong.first() {
            let pods = wrong.iter().map(|(pod, _)| pod);
            let seen = format!("proxies were told network {network}, the mesh file says {wanted}: {}", some(pods));
            let mend = format!("restart them: {}", member.kubectl("-n NAMESPACE rollout restart deployment"));
            judgement.found(member, seen, mend).object(format!("Pod {}", wrong[0].0));
        }
    }
}

/// D-08
pub(crate) fn not_routable(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        let peers =
            scene.mesh.clusters.iter().filter(|c| c.name != member.wanted.name && c.network == member.wanted.network);
        for peer in peers {
            let Some(probe) = member.seen.paths.iter().find(|p| p.cluster == peer.name.as_str()) else {
                judgement.gap(
                    member,
                    format!("no pod could be dialled from: is there a control plane here and in {}?", peer.name),
                );
                continue;
            };
            match probe.touch.value() {
                None => judgement.gap(member, probe.touch.why().unwrap_or_default()),
                Some(Touch::Reached | Touch::Stalled) => judgement.looked(),
                Some(touch) => {
                    judgement.looked();
                    let seen = format!(
                        "{} and {} are both on {}, but pod {} ({}) of {} cannot be dialled from pod {}: {touch}",
                        member.name(),
                        peer.name,
                        member.network(),
                        probe.pod,
                        probe.address,
                        peer.name,
                        probe.from
                    );
                    let mend = format!(
                        "give {} a network of its own in the mesh file, then {}; or make the pod networks route to each other",
                        peer.name, scene.apply
                    );
                    judgement.found(member, seen, mend).object(format!("Pod istio-system/{}", probe.pod));
                }
            }
        }
    }
}

/// D-54
pub(crate) fn mtu(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        for probe in &member.seen.paths {
            match probe.touch.value() {
                None => judgement.gap(member, probe.touch.why().unwrap_or_default()),
                Some(Touch::Stalled) => {
                    judgement.looked();
                    let seen = format!(
                        "an answer of some kilobytes from pod {} ({}) of {} began and stood still",
                        probe.pod, probe.address, probe.cluster
                    );
                    judgement
                        .found(member, seen, "lower the pods' MTU, or clamp TCP MSS where the clusters are connected")
                        .object(format!("Pod istio-system/{}", probe.pod));
                }
                Some(Touch::Reached) => judgement.looked(),
                Some(_) => {}
            }
        }
    }
}

/// A range of addresses, as bits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cidr {
    bits: u128,
    prefix: u32,
    v6: bool,
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u32>().ok()?);
        let (bits, prefix, v6) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, prefix.min(32), false),
            IpAddr::V6(v6) => (u128::from(v6), prefix.min(128), true),
        };
        Some(Self { bits, prefix, v6 })
    }

    fn overlaps(self, other: Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        let mask = if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) };
        self.v6 == other.v6 && self.bits & mask == other.bits & mask
    }
}

/// A range as it is written, read, and the object that says so.
type Range = (String, Cidr, String);

/// D-09
pub(crate) fn overlap(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut known: Vec<(&Member<'_>, Vec<Range>, BTreeMap<&str, String>)> = Vec::new();
    for member in &scene.members {
        if !judgement.can_read(member, &["Node", "Pod"]) {
            continue;
        }
        let cidrs = member.seen.all("Node").iter().flat_map(|node| {
            let many = node["spec"]["podCIDRs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let all: Vec<_> = many.chain(node["spec"]["podCIDR"].as_str()).collect();
            let unique: BTreeSet<_> = all.into_iter().collect();
            unique
                .into_iter()
                .filter_map(|c| Some((c.to_owned(), Cidr::parse(c)?, format!("Node {}", meta::name(node)))))
                .collect::<Vec<_>>()
        });
        let pods = member.seen.all("Pod").iter().filter(|p| p["spec"]["hostNetwork"] != true && !is_over(p));
        let addresses = pods.filter_map(|p| Some((p["status"]["podIP"].as_str()?, path(p)))).collect();
        let services = member.seen.all("ServiceCIDR").iter().flat_map(|s| {
            let cidrs = s["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            cidrs
                .filter_map(|c| {
                    Some((format!("services' {c}"), Cidr::parse(c)?, format!("ServiceCIDR {}", meta::name(s))))
                })
                .collect::<Vec<_>>()
        });
        let all: Vec<_> = cidrs.chain(services).collect();
        for (earlier, theirs, pods) in &known {
            if earlier.network() != member.network() || earlier.seen.uid == member.seen.uid {
                continue;
            }
            judgement.looked();
            // Two clusters' Services may share a range: their addresses never leave the cluster. A range of pods may
            // overlap neither pods nor Services of its network.
            let of_services = |what: &str| what.starts_with("services'");
            let clash = all.iter().find_map(|(text, cidr, object)| {
                let (other, ..) =
                    theirs.iter().find(|(t, c, _)| cidr.overlaps(*c) && !(of_services(t) && of_services(text)))?;
                Some((
                    format!("{text} here and {other} in {} overlap, both on {}", earlier.name(), member.network()),
                    object.clone(),
                ))
            });
            let twice = || {
                let addresses: &BTreeMap<&str, String> = &addresses_of(member);
                let (address, pod) =
                    addresses.iter().find(|(a, _)| pods.contains_key(*a)).map(|(a, p)| (*a, p.clone()))?;
                Some((
                    format!(
                        "{address} is pod {pod} here and pod {} in {}, both on {}",
                        pods[address],
                        earlier.name(),
                        member.network()
                    ),
                    format!("Pod {pod}"),
                ))
            };
            if let Some((seen, object)) = clash.or_else(twice) {
                let mend = format!(
                    "give {} another pod CIDR, or a network of its own in the mesh file, then {}",
                    member.name(),
                    scene.apply
                );
                judgement.found(member, seen, mend).object(object);
            }
        }
        known.push((member, all, addresses));
    }
}

fn addresses_of<'a>(member: &Member<'a>) -> BTreeMap<&'a str, String> {
    let pods = member.seen.all("Pod").iter().filter(|p| p["spec"]["hostNetwork"] != true && !is_over(p));
    pods.filter_map(|p| Some((p["status"]["podIP"].as_str()?, path(p)))).collect()
}

/// D-27
pub(crate) fn cluster_name(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["Deployment", "Pod"]) {
            continue;
        }
        let wanted = member.name();
        if member.is_primary() && member.has_istiod() {
            judgement.looked();
            let own = member.istiod_env("CLUSTER_ID").unwrap_or(istio::DEFAULT_CLUSTER_ID);
            if own != wanted {
                let seen =
                    format!("the control plane calls its cluster {own}; the others hold its credential as {wanted}");
                judgement
                    .found(member, seen, scene.apply.clone())
                    .object("Deployment istio-system/istiod")
                    .since(member.seen.istiod_deployments().next().and_then(since));
                continue;
            }
        }
        let wrong: Vec<_> = member
            .proxied()
            .filter(|(pod, _)| !is_system(meta::namespace(pod)) || proxy(pod).is_some())
            .filter_map(|(pod, proxy)| {
                Some((path(pod), variable(proxy, istio::CLUSTER_ID_ENV).filter(|id| *id != wanted)?))
            })
            .collect();
        judgement.looked();
        if let Some((pod, id)) = wrong.first() {
            let seen =
                format!("proxies call their cluster {id} instead of {wanted}: {}", some(wrong.iter().map(|(p, _)| p)));
            let mend = format!("restart them: {}", member.kubectl("-n NAMESPACE rollout restart deployment"));
            judgement.found(member, seen, mend).object(format!("Pod {pod}")).severity(Severity::Warning);
        }
    }
}

/// D-58
pub(crate) fn mesh_networks(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["ConfigMap", "Service"]) {
            continue;
        }
        let Some(map) = member.mesh_config_map() else { continue };
        judgement.looked();
        let networks = yaml(&map["data"][istio::MESH_NETWORKS_KEY]).unwrap_or_default();
        let mut against = Vec::new();
        for (network, entry) in networks["networks"].as_object().into_iter().flatten() {
            for registry in
                entry["endpoints"].as_array().into_iter().flatten().filter_map(|e| e["fromRegistry"].as_str())
            {
                match scene.mesh.clusters.iter().find(|c| c.name.as_str() == registry) {
                    None if registry == istio::DEFAULT_CLUSTER_ID => {}
                    None => {
                        against.push(format!("{network} names the cluster {registry}, which the mesh does not have"))
                    }
                    Some(c) if c.network.as_str() != network => {
                        against.push(format!("{registry} is on {network} there and on {} in the mesh file", c.network));
                    }
                    Some(_) => {}
                }
            }
            let live: BTreeSet<String> = scene
                .members
                .iter()
                .flat_map(|m| m.seen.gateway_services())
                .filter(|(_, n)| n == network)
                .flat_map(|(s, _)| gateway_addresses(s))
                .filter_map(|a| Some(a.rsplit_once(':')?.0.to_owned()))
                .collect();
            for address in entry["gateways"].as_array().into_iter().flatten().filter_map(|g| g["address"].as_str()) {
                // Where no gateway is known by label, a hand-written address is all there is; and what the mesh file
                // says is meant.
                let meant = scene.mesh.clusters.iter().filter_map(|cluster| cluster.gateway_by_hand());
                let is_meant = meant.flat_map(|gateway| &gateway.addresses).any(|written| written == address);
                if !live.is_empty() && !live.contains(address) && !is_meant {
                    against.push(format!("{network} has gateway {address}; those that are there have {}", some(&live)));
                }
            }
        }
        if !against.is_empty() {
            let mend = member.kubectl(&format!("-n istio-system patch configmap {} --type=json -p '[{{\"op\":\"remove\",\"path\":\"/data/meshNetworks\"}}]'", meta::name(map)));
            judgement
                .found(member, against.join("; "), mend)
                .object(format!("ConfigMap istio-system/{}", meta::name(map)))
                .since(since(map));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cidr;

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        let overlap = |a: &str, b: &str| Cidr::parse(a).unwrap().overlaps(Cidr::parse(b).unwrap());
        assert!(overlap("10.0.0.0/8", "10.1.2.0/24") && overlap("10.1.2.0/24", "10.0.0.0/8"));
        assert!(!overlap("10.1.0.0/16", "10.2.0.0/16") && !overlap("fd00::/48", "0.0.0.0/0"));
        assert!(overlap("fd00::/48", "fd00:0:0:1::/64") && overlap("0.0.0.0/0", "192.168.0.0/16"));
        assert!(Cidr::parse("10.0.0.0").is_none());
    }
}
