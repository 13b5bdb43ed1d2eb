//! Karmada's placement policies, as the list of a mesh's clusters: what they say of replicas is for whoever places
//! workloads.

use crate::draft::{self, Member};
use crate::file::{Told, what_is};
use crate::mesh::{Mesh, Origin};
use crate::problem::{At, Notes, quoted};
use crate::shared;
use crate::yaml::Node;
use crate::{ClusterName, NetworkName};

/// Whether a document is a policy.
pub(crate) fn is_one(node: &Node) -> bool {
    let text = |key: &str| node.get(key).and_then(Node::text).unwrap_or_default();
    text("apiVersion").starts_with("policy.karmada.io/")
        && matches!(text("kind"), "PropagationPolicy" | "ClusterPropagationPolicy")
}

/// Reads the documents of all files as one mesh of the clusters that the policies name, each on a network of its own.
pub(crate) fn read(common: &mut Notes<'_>, files: &mut [(Notes<'_>, Vec<Node>)], told: &Told) -> Option<Mesh> {
    let name = shared::mesh_name(common, told);
    let mut members: Vec<Member> = Vec::new();
    for (notes, documents) in files {
        for document in documents.iter() {
            if !is_one(document) {
                beside(notes, document);
                continue;
            }
            for (cluster, at) in clusters(notes, document) {
                if members.iter().any(|member| member.context == cluster) {
                    continue;
                }
                let name = ClusterName::from_context(&cluster);
                draft::warn_of_context(notes, at, &cluster, &name);
                let network: String = format!("network-{name}").chars().take(63).collect();
                let Some(network) = draft::name(notes, at, NetworkName::parse(network.trim_end_matches('-'))) else {
                    continue;
                };
                // Places of several files are no places of one.
                members.push(Member::new(At::default(), &cluster, network));
            }
        }
    }
    if members.len() > 1 {
        common.warn(
            None,
            "a policy does not say which clusters can dial each other's pods",
            "each is on a network of its own, with a gateway; `stolos init CONTEXT=NETWORK…` writes a mesh file that says it",
        );
    }
    let mut mesh = draft::mesh(name?, Origin::Karmada);
    mesh.clusters = draft::clusters(common, members);
    Some(mesh)
}

/// The clusters that a policy names, and what else it says.
fn clusters(notes: &mut Notes<'_>, node: &Node) -> Vec<(String, At)> {
    let placement = node.get("spec").and_then(|spec| spec.get("placement"));
    let one = placement.and_then(|p| p.get("clusterAffinity"));
    let several = placement.and_then(|p| p.get("clusterAffinities")).map(Node::items).unwrap_or_default();
    let mut found: Vec<(String, At)> = Vec::new();
    for affinity in one.into_iter().chain(several) {
        let list = |key: &str| affinity.get(key).map(Node::items).unwrap_or_default();
        let excluded: Vec<_> = list("exclude").iter().filter_map(Node::text).collect();
        for item in list("clusterNames") {
            if let Some(name) = item.text().filter(|name| !excluded.contains(name)) {
                found.push((name.to_owned(), item.at));
            }
        }
        for key in ["labelSelector", "fieldSelector"] {
            if let Some(selector) = affinity.get(key) {
                notes.warn(
                    selector.at,
                    format!("`{key}` chooses among the clusters that a Karmada control plane knows"),
                    "only the clusters that `clusterNames` lists are taken into the mesh",
                );
            }
        }
    }
    if found.is_empty() {
        let at = placement.map_or(node.at, |placement| placement.at);
        notes
            .problem(at, "this policy names no clusters")
            .expected("`placement.clusterAffinity.clusterNames`: the kubeconfig contexts of the mesh's clusters")
            .hint("write\nclusterAffinity:\n  clusterNames: [eu, ap, us]");
    }
    if let Some(scheduling) = placement.and_then(|p| p.get("replicaScheduling")) {
        let weights = scheduling.get("weightPreference").and_then(|w| w.get("staticWeightList"));
        let rules = weights.map(Node::items).unwrap_or_default();
        let shares: Vec<_> = rules.iter().filter_map(share).collect();
        let what = match shares.as_slice() {
            [] => "`replicaScheduling` says how many replicas each cluster gets, not how much traffic".to_owned(),
            some => format!("the weights ({}) divide replicas, not traffic", some.join(", ")),
        };
        notes.warn(
            weights.unwrap_or(scheduling).at,
            what,
            "requests go to whatever replica is ready and near, in any of the clusters; nothing is placed by this file",
        );
    }
    found
}

/// A rule such as `us 2`.
fn share(rule: &Node) -> Option<String> {
    let clusters = rule.get("targetCluster")?.get("clusterNames").map(Node::items).unwrap_or_default();
    let clusters: Vec<_> = clusters.iter().filter_map(Node::text).collect();
    Some(format!("{} {}", clusters.join(" and "), rule.get("weight")?.text()?))
}

/// What stands beside the policies: workloads, and the objects that were once written by hand.
fn beside(notes: &mut Notes<'_>, node: &Node) {
    let text = |node: Option<&Node>| node.and_then(Node::text).unwrap_or_default().to_owned();
    let (kind, api) = (text(node.get("kind")), text(node.get("apiVersion")));
    let name = text(node.get("metadata").and_then(|m| m.get("name")));
    let at = node.get("kind").map_or(node.at, |kind| kind.at);
    if shared::is_remote_secret(node) {
        shared::remote_secret(notes, node);
        notes.warn(
            at,
            format!("{} was written by hand into every other cluster", quoted(&format!("Secret {name}"))),
            "it is not applied: each control plane gets a credential of its own for each other cluster",
        );
    } else if kind == "Gateway" && api.starts_with("networking.istio.io/") && name == "cross-network-gateway" {
        notes.warn(
            at,
            "`cross-network-gateway` was written by hand into every cluster",
            "Stolos writes it, and keeps it true",
        );
    } else {
        let what = what_is(node).unwrap_or_else(|| "something else".to_owned());
        notes.warn(
            at,
            format!(
                "{} is {what}, not a part of a mesh",
                if name.is_empty() { "this".to_owned() } else { quoted(&name) }
            ),
            "it is left alone: Stolos places no workloads yet; `kubectl apply` brings it into a cluster",
        );
    }
}
