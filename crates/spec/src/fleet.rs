//! `asmcli create-mesh FLEET_ID KUBECONFIG…`: a mesh of a fleet's id and of the kubeconfigs of its clusters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::draft::{self, Member};
use crate::eastwest::{self, Gateway};
use crate::mesh::{Mesh, Origin};
use crate::problem::{At, Notes, Problems, SourceText, finish_all, quoted};
use crate::{ClusterName, MeshName, NetworkName, Reading};

/// A cluster of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetMember {
    /// Its kubeconfig: an absolute path, since the mesh file may come to stand anywhere.
    pub kubeconfig: PathBuf,
    /// That kubeconfig's current context.
    pub context: String,
    /// The network that was asked for, if any was.
    pub network: Option<String>,
    /// The network that its namespace `istio-system` is labelled with, if it is.
    pub labelled: Option<String>,
}

/// The mesh of a fleet. `gateways` are what `gen-eastwest-gateway.sh` printed: one for all clusters, or one for each.
///
/// A cluster's network is the one asked for, else its gateway's, else the one it is labelled with, else one of its
/// own: a gateway too many costs a hop, one too few costs the connection.
///
/// # Errors
///
/// When the fleet's id is no name of a mesh, clusters cannot be told apart, or a gateway's file is none.
pub fn from_fleet(id: &str, members: &[FleetMember], gateways: &[SourceText]) -> Result<Reading, Problems> {
    let none = SourceText::new("", "");
    let mut notes = Notes::on(&none);
    let mut beside: Vec<Notes<'_>> = gateways.iter().map(Notes::on).collect();
    let mesh = understand(&mut notes, &mut beside, id, members);
    let all = std::iter::once(notes).chain(beside).collect();
    let (mesh, warnings) = finish_all(mesh, all)?;
    Ok(Reading { mesh, warnings })
}

fn understand(notes: &mut Notes<'_>, files: &mut [Notes<'_>], id: &str, members: &[FleetMember]) -> Option<Mesh> {
    let at = At::default();
    let name = draft::name(notes, at, MeshName::parse(id));
    if !matches!(files.len(), 0 | 1) && files.len() != members.len() {
        notes
            .problem(None, format!("there are {} gateways for {} clusters", files.len(), members.len()))
            .expected("one for all clusters, or one for each, in their order");
        return None;
    }
    let gateways: Vec<Option<Gateway>> = files.iter_mut().map(eastwest::read).collect();
    let gateway = |index: usize| if gateways.len() == 1 { gateways[0].as_ref() } else { gateways.get(index)?.as_ref() };

    let mut own = Vec::new();
    let mut understood = Vec::new();
    let names = names(notes, members);
    for (index, (member, cluster)) in members.iter().zip(names).enumerate() {
        let told = gateway(index).and_then(|gateway| gateway.network.clone());
        let network = member.network.clone().or(told).or(member.labelled.clone()).filter(|n| !n.is_empty());
        let network = network.unwrap_or_else(|| {
            own.push(cluster.to_string());
            format!("network-{cluster}").chars().take(63).collect::<String>().trim_end_matches('-').to_owned()
        });
        if let Some(labelled) = member.labelled.as_ref().filter(|labelled| **labelled != network) {
            notes.warn(
                at,
                format!("`{cluster}` is labelled with the network {}", quoted(labelled)),
                format!("it becomes part of the network {}, as was asked for", quoted(&network)),
            );
        }
        let Some(network) = draft::name(notes, at, NetworkName::parse(&network)) else { continue };
        let kubeconfig = Some(member.kubeconfig.clone());
        understood.push(Member { name: cluster, kubeconfig, ..Member::new(at, &member.context, network) });
    }
    if !own.is_empty() {
        notes.warn(
            at,
            format!("nothing says which network {} on", are(&own)),
            "each of them gets a network of its own, with a gateway; where pods can dial each other, name one network \
             for them: `--network CONTEXT=NETWORK`",
        );
    }
    shared(notes, &understood);
    let mut mesh = draft::mesh(name?, Origin::Fleet);
    mesh.clusters = draft::clusters(notes, understood);
    for gateway in gateways.into_iter().flatten() {
        crate::base::merge(&mut mesh.control_plane.gateways.eastwest, gateway.values);
    }
    Some(mesh)
}

/// A name for each: its context's, or its file's where several kubeconfigs call their context the same.
fn names(notes: &mut Notes<'_>, members: &[FleetMember]) -> Vec<ClusterName> {
    let mut contexts: BTreeMap<&str, usize> = BTreeMap::new();
    for member in members {
        *contexts.entry(&member.context).or_default() += 1;
    }
    let mut names = Vec::new();
    for member in members {
        let context = member.context.as_str();
        let several = contexts.get(context).is_some_and(|count| *count > 1);
        let name = match stem(&member.kubeconfig).filter(|_| several) {
            Some(stem) => {
                let name = ClusterName::from_context(&stem);
                notes.warn(
                    None,
                    format!("the context {} stands in more than one kubeconfig", quoted(context)),
                    format!("the cluster of {} is called `{name}`", member.kubeconfig.display()),
                );
                name
            }
            None => {
                let name = ClusterName::from_context(context);
                draft::warn_of_context(notes, At::default(), context, &name);
                name
            }
        };
        names.push(name);
    }
    names
}

/// The name of a kubeconfig's file without what only says that it is one.
fn stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let ends = [".yaml", ".yml", ".kubeconfig", ".config", "-kubeconfig"];
    let mut stem = name.strip_prefix("kubeconfig-").unwrap_or(name);
    while let Some(shorter) = ends.iter().find_map(|end| stem.strip_suffix(end)) {
        stem = shorter;
    }
    Some(stem).filter(|stem| !stem.is_empty() && *stem != "kubeconfig" && *stem != "config").map(str::to_owned)
}

/// The fifth system's own example puts two separate networks on `--network default`.
fn shared(notes: &mut Notes<'_>, members: &[Member]) {
    let mut networks: BTreeMap<&NetworkName, Vec<String>> = BTreeMap::new();
    for member in members {
        networks.entry(&member.network).or_default().push(member.name.to_string());
    }
    for (network, clusters) in networks.into_iter().filter(|(_, clusters)| clusters.len() > 1) {
        notes.warn(
            None,
            format!("{} on one network, `{network}`", are(&clusters)),
            "their pods dial each other directly and never through a gateway; where they cannot, `stolos check` says \
             D-08, and each needs a network of its own: `--network CONTEXT=NETWORK`",
        );
    }
}

fn are(clusters: &[String]) -> String {
    let list: Vec<_> = clusters.iter().map(|cluster| quoted(cluster)).collect();
    match list.as_slice() {
        [one] => format!("{one} is"),
        [first @ .., last] => format!("{} and {last} are", first.join(", ")),
        [] => "none is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh_yaml;

    fn member(kubeconfig: &str, context: &str) -> FleetMember {
        FleetMember {
            kubeconfig: PathBuf::from(format!("/k/{kubeconfig}")),
            context: context.to_owned(),
            network: None,
            labelled: None,
        }
    }

    fn shown(reading: Result<Reading, Problems>) -> String {
        match reading {
            Ok(reading) => {
                let warnings = reading.warnings.iter().map(|warning| format!("{warning}\n")).collect::<String>();
                let file = mesh_yaml(&reading.mesh);
                let again = crate::read(&SourceText::new("mesh.yaml", &*file), None).unwrap().mesh;
                assert_eq!(
                    (&again.clusters, &again.control_plane),
                    (&reading.mesh.clusters, &reading.mesh.control_plane)
                );
                format!("{warnings}{file}")
            }
            Err(problems) => problems.to_string(),
        }
    }

    #[test]
    fn every_cluster_gets_a_network_of_its_own_where_nobody_says_otherwise() {
        let members = [member("one.yaml", "cluster-1"), member("two.yaml", "gke_p_europe-west1_cluster-2")];
        insta::assert_snapshot!(shown(from_fleet("my-fleet", &members, &[])), @r#"
        warning: the context `gke_p_europe-west1_cluster-2` is no name that a Kubernetes object can bear
           = instead: the cluster is called `gke-p-europe-west1-cluster-2-53bf82a0`, and the context is kept in its annotation `stolos.dev/context`
        warning: nothing says which network `cluster-1` and `gke-p-europe-west1-cluster-2-53bf82a0` are on
           = instead: each of them gets a network of its own, with a gateway; where pods can dial each other, name one network for them: `--network CONTEXT=NETWORK`
        apiVersion: stolos.dev/v1alpha1
        kind: Mesh
        metadata:
          name: my-fleet
        spec:
          clusters:
            - name: cluster-1
              kubeconfig: "/k/one.yaml"
              network: network-cluster-1
            - name: gke-p-europe-west1-cluster-2-53bf82a0
              context: gke_p_europe-west1_cluster-2
              kubeconfig: "/k/two.yaml"
              network: network-gke-p-europe-west1-cluster-2-53bf82a0
        "#);
    }

    #[test]
    fn the_systems_own_default_network_is_warned_of() {
        let gateway = SourceText::new("eastwest.yaml", include_str!("../tests/inputs/asmcli/eastwest.yaml"));
        let members = [member("kubeconfig-east", "admin@kubernetes"), member("kubeconfig-west", "admin@kubernetes")];
        insta::assert_snapshot!(shown(from_fleet("proj-1234", &members, &[gateway])), @r#"
        warning: the context `admin@kubernetes` stands in more than one kubeconfig
           = instead: the cluster of /k/kubeconfig-east is called `east`
        warning: the context `admin@kubernetes` stands in more than one kubeconfig
           = instead: the cluster of /k/kubeconfig-west is called `west`
        warning: `east` and `west` are on one network, `default`
           = instead: their pods dial each other directly and never through a gateway; where they cannot, `stolos check` says D-08, and each needs a network of its own: `--network CONTEXT=NETWORK`
        warning: `gen-eastwest-gateway.sh` takes `--mesh` and `--cluster` and ignores both: the file belongs to no cluster
         --> eastwest.yaml:4:3
          |
        4 |   name: eastwest
          |   ^
          = instead: the mesh and the clusters it is given together with decide
        warning: the gateway is to be injected by the revision `asm-11910-9`
         --> eastwest.yaml:6:13
          |
        6 |   revision: "asm-11910-9"
          |             ^^^^^^^^^^^^^
          = instead: it gets the mesh's own, which `controlPlane.revision` names
        apiVersion: stolos.dev/v1alpha1
        kind: Mesh
        metadata:
          name: proj-1234
        spec:
          clusters:
            - name: east
              context: admin@kubernetes
              kubeconfig: "/k/kubeconfig-east"
              network: default
            - name: west
              context: admin@kubernetes
              kubeconfig: "/k/kubeconfig-west"
              network: default
        "#);
    }

    #[test]
    fn what_a_gateway_says_beyond_the_scripts_own_goes_to_its_chart() {
        let text = include_str!("../tests/inputs/asmcli/eastwest.yaml")
            .replace("revision: \"asm-11910-9\"", "revision: \"\"")
            .replace("        k8s:\n", "        k8s:\n          hpaSpec: {minReplicas: 2}\n          serviceAnnotations: {a/b: c}\n          strategy: {}\n")
            .replace("port: 15017", "port: 6443");
        let members = [FleetMember { network: Some("mine".to_owned()), ..member("a", "a") }];
        let reading = from_fleet("f", &members, &[SourceText::new("g.yaml", text)]);
        insta::assert_snapshot!(shown(reading), @r#"
        warning: `gen-eastwest-gateway.sh` takes `--mesh` and `--cluster` and ignores both: the file belongs to no cluster
         --> g.yaml:4:3
          |
        4 |   name: eastwest
          |   ^
          = instead: the mesh and the clusters it is given together with decide
        warning: the gateway has a port of its own, `6443`
          --> g.yaml:35:17
           |
        35 |               - name: tls-webhook
           |                 ^
           = instead: an east-west gateway has 15021, 15443, 15012 and 15017; this one is left out
        warning: keys of the gateway that Istio's chart has no value for: `k8s.strategy`
          --> g.yaml
           = instead: they are ignored
        apiVersion: stolos.dev/v1alpha1
        kind: Mesh
        metadata:
          name: f
        spec:
          controlPlane:
            gateways: {eastwest: {"autoscaling":{"minReplicas":2},"service":{"annotations":{"a/b":"c"}}}}
          clusters:
            - name: a
              kubeconfig: "/k/a"
              network: mine
        "#);
    }

    #[test]
    fn what_asked_for_wins_over_what_stands_there() {
        let members = [
            FleetMember { network: Some("asked".to_owned()), labelled: Some("there".to_owned()), ..member("a", "a") },
            FleetMember { labelled: Some("there".to_owned()), ..member("b", "b") },
        ];
        let reading = from_fleet("fleet", &members, &[]).unwrap();
        let networks: Vec<_> = reading.mesh.clusters.iter().map(|c| c.network.as_str()).collect();
        assert_eq!(networks, ["asked", "there"]);
        assert_eq!(reading.warnings.len(), 1, "{:?}", reading.warnings);
        assert!(reading.warnings[0].what.contains("is labelled with the network `there`"));
    }

    #[test]
    fn what_is_no_fleet_is_refused() {
        insta::assert_snapshot!(shown(from_fleet("example.com:Fleet", &[member("a", "a")], &[])), @r#"
        error: `example.com:Fleet` is not a mesh name: only lower-case letters, digits and `-` may be in it
        hint: write `example-com-fleet`
        "#);
        let gateway = SourceText::new("g.yaml", "kind: Service\n");
        insta::assert_snapshot!(shown(from_fleet("f", &[member("a", "a")], &[gateway])), @r#"
        error: this is no east-west gateway
         --> g.yaml:1:7
          |
        1 | kind: Service
          |       ^^^^^^^
          = expected: what `gen-eastwest-gateway.sh` prints: an IstioOperator called `eastwest`
        "#);
        let same = [member("config", "x"), member("config", "x")];
        insta::assert_snapshot!(shown(from_fleet("f", &same, &[])), @r#"
        error: two clusters are called `x`
           = expected: a name for each
        hint: a cluster's name is how its certificates and its peers know it: choose another for one of them
        "#);
    }
}
