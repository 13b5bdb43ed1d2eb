//! The files of other systems, read unmodified, and what people are told about them.

use stolos_spec::{Charts, Installer, Mesh, Mtls, Origin, Reading, Sample, SourceText, read};

fn text(path: &str) -> SourceText {
    let whole = format!("{}/tests/inputs/{path}", env!("CARGO_MANIFEST_DIR"));
    SourceText::new(path.rsplit('/').next().unwrap(), std::fs::read_to_string(whole).unwrap())
}

fn understood(text: &str) -> Reading {
    read(&SourceText::new("mesh.yaml", text), None).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(text: &str) -> String {
    read(&SourceText::new("mesh.yaml", text), None).expect_err("should be refused").to_string()
}

fn topology_problems(text: &str) -> String {
    read(&SourceText::new("topology.yaml", text), None).expect_err("should be refused").to_string()
}

fn warnings(reading: &Reading) -> String {
    reading.warnings.iter().map(|w| w.to_string()).collect::<Vec<_>>().join("\n\n")
}

fn clusters(reading: &Reading) -> String {
    let line = |c: &stolos_spec::Cluster| format!("{} {} {} {:?}", c.name, c.context, c.network, c.role);
    reading.mesh.clusters.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_reference_topology_with_its_base_is_a_mesh_without_a_word() {
    let reading = read(&text("setup-mesh/topology.yaml"), Some(&text("setup-mesh/base.yaml"))).unwrap();
    assert_eq!((reading.mesh.origin, reading.mesh.mtls), (Origin::Topology, Mtls::Strict));
    assert_eq!(reading.mesh.name.as_str(), "mymeshname");
    insta::assert_snapshot!(clusters(&reading), @r#"
    context-east-1 context-east-1 network-east Primary
    context-east-2 context-east-2 network-east Primary
    context-west-1 context-west-1 network-west Primary
    "#);
    insta::assert_snapshot!(warnings(&reading), @r#"
    warning: `IstioControlPlane` is how Istio 1.4 was configured; today's Istio does not read it
     --> base.yaml:2:7
      |
    2 | kind: IstioControlPlane
      |       ^^^^^^^^^^^^^^^^^
      = instead: its values are laid over those that Stolos computes
    "#);
}

#[test]
fn a_topology_that_lost_its_indentation_is_shown_as_it_was_meant() {
    let refused = read(&text("setup-mesh/topology-as-printed.txt"), None).unwrap_err().to_string();
    insta::assert_snapshot!(refused, @r#"
    error: `contexts` is empty, and what belongs below it stands beside it: the indentation is lost
     --> topology-as-printed.txt:2:1
      |
    2 | contexts:
      | ^^^^^^^^
      = expected: each context indented by two spaces, its fields by four
    hint: write
      mesh_id: mymeshname
      contexts:
        context-east-1:
          network: network-east
        context-east-2:
          network: network-east
        context-west-1:
          network: network-west
    "#);
}

#[test]
fn the_protected_keys_of_a_base_name_what_was_found_and_what_is_used() {
    let base = "apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  profile: demo
  meshConfig:
    accessLogFile: /dev/stdout
  components:
    citadel: {enabled: true}
    pilot: {k8s: {replicaCount: 2}}
  values:
    security: {selfSigned: true}
    pilot:
      traceSampling: 10
    global:
      meshID: other
      multiCluster: {clusterName: east}
      network: net
      controlPlaneSecurityEnabled: false
      meshNetworks: {net: {gateways: []}}
      mtls: {enabled: false}
      proxy: {logLevel: info}
    gateways: {istio-ingressgateway: {env: {ISTIO_MESH_NETWORK: net}}}
";
    let reading = read(&text("setup-mesh/topology.yaml"), Some(&SourceText::new("base.yaml", base))).unwrap();
    assert_eq!(reading.mesh.mtls, Mtls::Permissive);
    insta::assert_snapshot!(reading.mesh.control_plane.values, @r#"{"global":{"proxy":{"logLevel":"info"}},"meshConfig":{"accessLogFile":"/dev/stdout"},"pilot":{"traceSampling":10}}"#);
    insta::assert_snapshot!(warnings(&reading), @r#"
    warning: `spec.components.citadel` configures a part that Istio no longer has
     --> base.yaml:8:5
      |
    8 |     citadel: {enabled: true}
      |     ^^^^^^^
      = instead: it is ignored

    warning: `spec.values.security.selfSigned` is `true`
      --> base.yaml:11:28
       |
    11 |     security: {selfSigned: true}
       |                            ^^^^
       = instead: Stolos uses `false`: clusters that sign for themselves do not trust each other, so each gets an intermediate of one common root

    warning: `spec.values.global.meshID` is `other`
      --> base.yaml:15:15
       |
    15 |       meshID: other
       |               ^^^^^
       = instead: Stolos always decides this itself: `mymeshname`

    warning: `spec.values.global.multiCluster.clusterName` is `east`
      --> base.yaml:16:35
       |
    16 |       multiCluster: {clusterName: east}
       |                                   ^^^^
       = instead: Stolos always decides this itself: each cluster's own (`context-east-1`, `context-east-2`, `context-west-1`)

    warning: `spec.values.global.network` is `net`
      --> base.yaml:17:16
       |
    17 |       network: net
       |                ^^^
       = instead: Stolos always decides this itself: each cluster's own (`network-east`, `network-west`)

    warning: `spec.values.global.controlPlaneSecurityEnabled` is `false`
      --> base.yaml:18:36
       |
    18 |       controlPlaneSecurityEnabled: false
       |                                    ^^^^^
       = instead: Stolos always decides this itself: `true`: nothing else is possible today

    warning: `spec.values.global.meshNetworks` is `{"net":{"gateways":[]}}`
      --> base.yaml:19:21
       |
    19 |       meshNetworks: {net: {gateways: []}}
       |                     ^
       = instead: Stolos always decides this itself: computed from the clusters' networks (`network-east`, `network-west`)

    warning: `spec.values.global.mtls.enabled` is `false`
      --> base.yaml:20:23
       |
    20 |       mtls: {enabled: false}
       |                       ^^^^^
       = instead: plaintext is accepted beside mTLS inside the mesh (`mtls: permissive`); the gateways between networks never accept it

    warning: `spec.values.gateways.istio-ingressgateway.env.ISTIO_MESH_NETWORK` is `net`
      --> base.yaml:22:65
       |
    22 |     gateways: {istio-ingressgateway: {env: {ISTIO_MESH_NETWORK: net}}}
       |                                                                 ^^^
       = instead: Stolos always decides this itself: each cluster's own (`network-east`, `network-west`)

    warning: keys that the engine `stolos` does not act on: `spec.profile`, `spec.meshConfig.accessLogFile`, `spec.components.pilot.k8s.replicaCount`, `spec.values.pilot.traceSampling`, `spec.values.global.proxy.logLevel`
      --> base.yaml
       = instead: Stolos' own small control plane keeps to its defaults; only the engine `istio` is given them
    "#);
}

#[test]
fn an_overlay_that_is_no_map_is_refused_in_its_own_file() {
    let base = SourceText::new("base.yaml", "kind: IstioOperator\nspec:\n  values: [1, 2]\n");
    let refused = read(&text("setup-mesh/topology.yaml"), Some(&base)).unwrap_err().to_string();
    insta::assert_snapshot!(refused, @r#"
    error: `spec.values` is a list
     --> base.yaml:3:11
      |
    3 |   values: [1, 2]
      |           ^
      = expected: a map of Helm values, such as `{global: {proxy: {logLevel: info}}}`
    "#);
}

#[test]
fn what_the_old_script_would_have_missed_is_part_of_the_mesh() {
    let reading = understood(
        "mesh_id: m
contexts:
    four-spaces:
        network: a
        namespace: mesh-system
    \"quoted\":
        network: a
        disableRegistryJoin: true
    trailing: # a comment
        network: b
        serviceAccountReader: reader
        netwrok: c
    arn:aws:eks:eu-west-1:1234:cluster/Prod:
        network: b
    none: {}
",
    );
    insta::assert_snapshot!(clusters(&reading), @r#"
    four-spaces four-spaces a Primary
    quoted quoted a Primary
    trailing trailing b Primary
    arn-aws-eks-eu-west-1-1234-cluster-prod-05fbb7d8 arn:aws:eks:eu-west-1:1234:cluster/Prod b Primary
    none none network Primary
    "#);
    insta::assert_snapshot!(warnings(&reading), @r#"
    warning: `setup-mesh.sh` would have passed over `four-spaces`: it is not indented by exactly two spaces
     --> mesh.yaml:3:5
      |
    3 |     four-spaces:
      |     ^^^^^^^^^^^
      = instead: Stolos reads YAML: the cluster is part of the mesh

    warning: the control plane's namespace is `mesh-system`
     --> mesh.yaml:5:20
      |
    5 |         namespace: mesh-system
      |                    ^^^^^^^^^^^
      = instead: Stolos uses `istio-system`, as `setup-mesh.sh` always did

    warning: `setup-mesh.sh` would have passed over `quoted`: it is quoted
     --> mesh.yaml:6:5
      |
    6 |     "quoted":
      |     ^^^^^^^^
      = instead: Stolos reads YAML: the cluster is part of the mesh

    warning: `contexts.quoted.disableRegistryJoin` keeps the cluster out of the others' registries
     --> mesh.yaml:8:30
      |
    8 |         disableRegistryJoin: true
      |                              ^^^^
      = instead: Stolos joins every cluster that the file names; take it out of the file to keep it apart

    warning: `setup-mesh.sh` would have passed over `trailing`: it is not indented by exactly two spaces
     --> mesh.yaml:9:5
      |
    9 |     trailing: # a comment
      |     ^^^^^^^^
      = instead: Stolos reads YAML: the cluster is part of the mesh

    warning: the service account `reader` is to lend its token to the other clusters
      --> mesh.yaml:11:31
       |
    11 |         serviceAccountReader: reader
       |                               ^^^^^^
       = instead: Stolos makes a reader account of its own with the least rights that do, and a token that expires

    warning: `netwrok` is not a field of `contexts.trailing`
      --> mesh.yaml:12:9
       |
    12 |         netwrok: c
       |         ^^^^^^^
       = instead: it is ignored; was `network` meant?

    warning: `setup-mesh.sh` would have passed over `arn:aws:eks:eu-west-1:1234:cluster/Prod`: it is not indented by exactly two spaces
      --> mesh.yaml:13:5
       |
    13 |     arn:aws:eks:eu-west-1:1234:cluster/Prod:
       |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       = instead: Stolos reads YAML: the cluster is part of the mesh

    warning: the context `arn:aws:eks:eu-west-1:1234:cluster/Prod` is no name that a Kubernetes object can bear
      --> mesh.yaml:13:5
       |
    13 |     arn:aws:eks:eu-west-1:1234:cluster/Prod:
       |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       = instead: the cluster is called `arn-aws-eks-eu-west-1-1234-cluster-prod-05fbb7d8`, and the context is kept in its annotation `stolos.dev/context`

    warning: `setup-mesh.sh` would have passed over `none`: it is not indented by exactly two spaces
      --> mesh.yaml:15:5
       |
    15 |     none: {}
       |     ^^^^
       = instead: Stolos reads YAML: the cluster is part of the mesh

    warning: the context `none` has no network
      --> mesh.yaml:15:5
       |
    15 |     none: {}
       |     ^^^^
       = instead: it is taken to be on the network `network`, together with all others that have none
    "#);
}

#[test]
fn a_topology_without_clusters_or_name_says_how_to_write_them() {
    insta::assert_snapshot!(topology_problems("mesh_id:\ncontexts:\n"), @r#"
    error: the mesh has no `mesh_id`
     --> topology.yaml:1:1
      |
    1 | mesh_id:
      | ^^^^^^^
    hint: write `mesh_id: mymesh`

    error: the file names no clusters
     --> topology.yaml:2:1
      |
    2 | contexts:
      | ^^^^^^^^
      = expected: the kubeconfig contexts of the mesh's clusters below `contexts`
    hint: write
      contexts:
        context-1:
          network: network-1
    "#);
    insta::assert_snapshot!(topology_problems("mesh_id: My_Mesh\ncontexts: [a, b]\n"), @r#"
    error: `My_Mesh` is not a mesh name: only lower-case letters, digits and `-` may be in it
     --> topology.yaml:1:10
      |
    1 | mesh_id: My_Mesh
      |          ^^^^^^^
    hint: write `my-mesh`

    error: `contexts` is a list
     --> topology.yaml:2:11
      |
    2 | contexts: [a, b]
      |           ^
      = expected: a map from kubeconfig contexts to their networks
    hint: write
      contexts:
        context-1:
          network: network-1
    "#);
}

#[test]
fn ristioctls_file_is_a_mesh_on_different_networks() {
    let reading = read(&text("ristioctl/mesh.yaml"), None).unwrap();
    assert_eq!(reading.mesh.origin, Origin::Ristioctl);
    assert_eq!(reading.mesh.name.as_str(), "uswestmesh");
    assert_eq!(reading.mesh.samples.iter().copied().collect::<Vec<_>>(), [Sample::Helloworld, Sample::Sleep]);
    assert_eq!(reading.mesh.control_plane.version.as_deref(), Some("1.18.0"));
    assert_eq!(reading.mesh.clusters[0].kubeconfig.as_deref().unwrap().to_str(), Some("kubeconfig-istio-demo.yaml"));
    insta::assert_snapshot!(clusters(&reading), @r#"
    cluster1 cluster1 network-cluster1 Primary
    cluster2 cluster2 network-cluster2 Primary
    "#);
    insta::assert_debug_snapshot!(reading.mesh.trust, @r#"
    Trust {
        domain: "cluster.local",
        organization: "istio.io",
        root: SelfSigned {
            validity: 7884000s,
        },
        intermediates: IntermediateTrust {
            validity: 7884000s,
            renew_before: 2592000s,
        },
    }
    "#);
    insta::assert_snapshot!(warnings(&reading), @r#"
    warning: `password` is `false`; `ristioctl` never encrypted a key, whatever it said
     --> mesh.yaml:7:13
      |
    7 |   password: false
      |             ^^^^^
      = instead: the root key is encrypted when `STOLOS_PASSPHRASE` or a file gives a passphrase, and 0600 in any case

    warning: `sanSuffix` is `istio.io`: `ristioctl` made it part of each certificate's name
     --> mesh.yaml:8:14
      |
    8 |   sanSuffix: istio.io # Subject Alternative Name Suffix
      |              ^^^^^^^^
      = instead: it becomes the certificates' organization; identities are SPIFFE URIs in the trust domain `cluster.local`
    "#);
}

#[test]
fn ristioctls_traps_are_named() {
    let reading = understood(
        "kind: Certificate
spec: {meshID: m, validityHours: 24, folderPath: /tmp/certs, password: true, installHelloWorld: true}
---
kind: Certificate
spec: {meshID: other}
---
kind: Cluster
metadata: {name: one}
spec: {meshID: m, version: 1.20, installHelloWorld: yes}
---
kind: Cluster
metadata: {name: two}
spec: {meshID: m, version: 1.21, installHelloWorld: \"true\"}
---
kind: Clutser
",
    );
    insta::assert_snapshot!(clusters(&reading), @r#"
    one one network-one Primary
    two two network-two Primary
    "#);
    insta::assert_snapshot!(warnings(&reading), @r#"
    warning: `password` is `true`; `ristioctl` never encrypted a key, whatever it said
     --> mesh.yaml:2:72
      |
    2 | spec: {meshID: m, validityHours: 24, folderPath: /tmp/certs, password: true, installHelloWorld: true}
      |                                                                        ^^^^
      = instead: the root key is encrypted when `STOLOS_PASSPHRASE` or a file gives a passphrase; set one

    warning: `folderPath` is `/tmp/certs`, which `ristioctl` never read
     --> mesh.yaml:2:50
      |
    2 | spec: {meshID: m, validityHours: 24, folderPath: /tmp/certs, password: true, installHelloWorld: true}
      |                                                  ^^^^^^^^^^
      = instead: the root lives in the mesh's own state folder (`--state DIR` or `STOLOS_STATE` chooses another)

    warning: `installHelloWorld` means nothing in a `Certificate`
     --> mesh.yaml:2:97
      |
    2 | spec: {meshID: m, validityHours: 24, folderPath: /tmp/certs, password: true, installHelloWorld: true}
      |                                                                                                 ^^^^
      = instead: only a `Cluster`'s is looked at

    warning: this `Certificate` is for `other`, of which no cluster is here
     --> mesh.yaml:4:7
      |
    4 | kind: Certificate
      |       ^^^^^^^^^^^
      = instead: it is ignored

    warning: `one` does not ask for HelloWorld, but another cluster does
     --> mesh.yaml:8:18
      |
    8 | metadata: {name: one}
      |                  ^^^
      = instead: samples are installed in all clusters of the mesh: the service must be known wherever it is called

    warning: `installHelloWorld` is `yes`, and only the literal `true` turns it on
     --> mesh.yaml:9:53
      |
    9 | spec: {meshID: m, version: 1.20, installHelloWorld: yes}
      |                                                     ^^^
      = instead: HelloWorld is not installed because of this line

    warning: the clusters ask for different versions, such as `1.20` and `1.21`
     --> mesh.yaml:9:28
      |
    9 | spec: {meshID: m, version: 1.20, installHelloWorld: yes}
      |                            ^^^^
      = instead: 1.20 counts: a mesh has one version, but for the time of an upgrade

    warning: `Clutser` is not a kind that `ristioctl` reads
      --> mesh.yaml:15:7
       |
    15 | kind: Clutser
       |       ^^^^^^^
       = instead: the document is ignored; was `Cluster` meant?
    "#);
}

#[test]
fn ristioctl_clusters_of_two_meshes_are_refused() {
    let refused = problems(
        "kind: Cluster\nmetadata: {name: one}\nspec: {meshID: a}\n---\nkind: Cluster\nmetadata: {name: two}\nspec: {meshID: b}\n",
    );
    insta::assert_snapshot!(refused, @r#"
    error: the clusters belong to 2 meshes: `a` (one) and `b` (two)
     --> mesh.yaml:7:16
      |
    7 | spec: {meshID: b}
      |                ^
      = expected: one `meshID` in all clusters of a file; `ristioctl` would have joined them all regardless
    hint: write one file for each mesh
    "#);
    let refused = problems(
        "kind: Certificate\nspec: {meshID: b, validityHours: 2y}\n---\nkind: Cluster\nmetadata: {name: Two}\nspec: {}\n---\nkind: Cluster\nmetadata: {name: two}\nspec: {meshID: a}\n",
    );
    insta::assert_snapshot!(refused, @r#"
    error: `validityHours` is `2y`
     --> mesh.yaml:2:34
      |
    2 | spec: {meshID: b, validityHours: 2y}
      |                                  ^^
      = expected: a number of hours from 1 to 876000
    hint: write `validityHours: 2190` for a quarter of a year

    error: no `Certificate` has the clusters' `meshID`; found `b`
     --> mesh.yaml:2:16
      |
    2 | spec: {meshID: b, validityHours: 2y}
      |                ^
      = expected: `a`
    hint: write `meshID: a`

    error: `Two` is not a cluster name: only lower-case letters, digits and `-` may be in it
     --> mesh.yaml:5:18
      |
    5 | metadata: {name: Two}
      |                  ^^^
    hint: write `two`
    "#);
}

#[test]
fn the_native_file_says_everything() {
    let reading = understood(
        "apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata:
  name: mymesh
spec:
  trust:
    domain: cluster.local
    organization: mymesh.example.com
    root: {selfSigned: {validity: 3650d}}
    intermediates: {validity: 730d, renewBefore: 30d}
  controlPlane:
    engine: auto
    version: 1.28.0
    values: {}
  clusters:
    - {name: cluster-east-1, context: context-east-1, network: network-east, region: us-east}
    - {name: cluster-east-2, context: context-east-2, network: network-east, region: us-east}
    - name: cluster-west-1
      context: context-west-1
      network: network-west
      region: us-west
      controlPlane: {primary: cluster-east-1}
      api: {server: https://10.0.0.1:6443}
  mtls: strict
  expose: [\"*.local\"]
  samples: [helloworld]
",
    );
    insta::assert_snapshot!(serde_json::to_string_pretty(&reading.mesh).unwrap(), @r#"
    {
      "name": "mymesh",
      "trust": {
        "domain": "cluster.local",
        "organization": "mymesh.example.com",
        "root": {
          "selfSigned": {
            "validity": "87600h"
          }
        },
        "intermediates": {
          "validity": "17520h",
          "renewBefore": "720h"
        }
      },
      "controlPlane": {
        "engine": "auto",
        "version": "1.28.0",
        "values": {},
        "installer": "helm",
        "charts": {
          "repository": "https://istio-release.storage.googleapis.com/charts"
        },
        "revision": null,
        "gateways": {
          "eastwest": {},
          "ingress": null
        }
      },
      "clusters": [
        {
          "name": "cluster-east-1",
          "context": "context-east-1",
          "kubeconfig": null,
          "network": "network-east",
          "region": "us-east",
          "zone": null,
          "role": "primary",
          "api": null
        },
        {
          "name": "cluster-east-2",
          "context": "context-east-2",
          "kubeconfig": null,
          "network": "network-east",
          "region": "us-east",
          "zone": null,
          "role": "primary",
          "api": null
        },
        {
          "name": "cluster-west-1",
          "context": "context-west-1",
          "kubeconfig": null,
          "network": "network-west",
          "region": "us-west",
          "zone": null,
          "role": {
            "remote": {
              "primary": "cluster-east-1"
            }
          },
          "api": {
            "server": "https://10.0.0.1:6443"
          }
        }
      ],
      "mtls": "strict",
      "expose": [
        "*.local"
      ],
      "samples": [
        "helloworld"
      ],
      "origin": "mesh"
    }
    "#);
    assert!(reading.warnings.is_empty());
}

#[test]
fn short_forms_are_whole_meshes() {
    for text in [
        "- a: net-1\n- b: net-2\n",
        "clusters: {a: net-1, b: net-2}\n",
        "kind: Mesh\nmetadata: {name: mesh}\nspec: {clusters: [{context: a, network: net-1}, {name: b, network: net-2}]}\n",
        "name: mesh\nclusters:\n  a: {network: net-1}\n  b: {network: net-2}\n",
    ] {
        assert_eq!(clusters(&understood(text)), "a a net-1 Primary\nb b net-2 Primary", "{text}");
    }
    assert_eq!(clusters(&understood("clusters: [a, b]")), "a a network Primary\nb b network Primary");
}

#[test]
fn every_problem_is_told_at_once_with_its_place_and_the_right_spelling() {
    let refused = problems(
        "apiVersion: stolos.dev/v1beta1
kind: Mesh
metadata: {name: My Mesh}
spec:
  mtls: strickt
  trust:
    domain: Cluster.Local
    root: {selfSigned: {validity: 730}}
    intermediates: {validity: 24h, renewBefore: 30d}
  controlplane: {engine: istio}
  clusters:
    - {name: east, netwrok: a}
    - {name: East-2, network: a b}
    - {name: east, context: other}
    - {name: west, context: east}
    - {name: r1, controlPlane: {primary: weast}}
    - {name: r2, controlPlane: {primary: r1}}
    - {region: x}
    - [a]
  samples: [hello-world]
  expose: ['*.lo cal']
",
    );
    insta::assert_snapshot!(refused, @r#"
    error: the version of this file is `stolos.dev/v1beta1`
     --> mesh.yaml:1:13
      |
    1 | apiVersion: stolos.dev/v1beta1
      |             ^^^^^^^^^^^^^^^^^^
      = expected: `stolos.dev/v1alpha1`

    error: `My Mesh` is not a mesh name: only lower-case letters, digits and `-` may be in it
     --> mesh.yaml:3:18
      |
    3 | metadata: {name: My Mesh}
      |                  ^^^^^^^
    hint: write `my-mesh`

    error: `strickt` is not a known mode of mTLS
     --> mesh.yaml:5:9
      |
    5 |   mtls: strickt
      |         ^^^^^^^
      = expected: `strict` or `permissive`
    hint: write `strict`

    error: `Cluster.Local` is not a trust domain
     --> mesh.yaml:7:13
      |
    7 |     domain: Cluster.Local
      |             ^^^^^^^^^^^^^
      = expected: lower-case letters, digits, `.`, `-` and `_`, such as `cluster.local`
    hint: write `cluster.local`

    error: `spec.trust.root.selfSigned.validity` is `730`: the unit is missing
     --> mesh.yaml:8:35
      |
    8 |     root: {selfSigned: {validity: 730}}
      |                                   ^^^
      = expected: a time such as `730d`, `24h` or `90m`
    hint: write `730d` for days, or `730h` for hours

    error: `spec.trust.intermediates.renewBefore` is not shorter than the validity
     --> mesh.yaml:9:49
      |
    9 |     intermediates: {validity: 24h, renewBefore: 30d}
      |                                                 ^^^
      = expected: less, or an intermediate is renewed as soon as it is issued

    error: `controlplane` is not a field of `spec`
      --> mesh.yaml:10:3
       |
    10 |   controlplane: {engine: istio}
       |   ^^^^^^^^^^^^
       = expected: `trust`, `controlPlane`, `clusters`, `mtls`, `expose`, `samples` or `hub`
    hint: write `controlPlane`

    error: `netwrok` is not a field of `spec.clusters[0]`
      --> mesh.yaml:12:20
       |
    12 |     - {name: east, netwrok: a}
       |                    ^^^^^^^
       = expected: `name`, `context`, `kubeconfig`, `network`, `region`, `zone`, `controlPlane`, `api` or `gateway`
    hint: write `network`

    error: `East-2` is not a cluster name: only lower-case letters, digits and `-` may be in it
      --> mesh.yaml:13:14
       |
    13 |     - {name: East-2, network: a b}
       |              ^^^^^^
    hint: write `east-2`

    error: `a b` is not a network name: only letters, digits, `-`, `_` and `.` may be in it
      --> mesh.yaml:13:31
       |
    13 |     - {name: East-2, network: a b}
       |                               ^^^
    hint: write `a-b`

    error: two clusters are called `east`
      --> mesh.yaml:14:14
       |
    14 |     - {name: east, context: other}
       |              ^^^^
       = expected: a name for each; the first stands in line 12
    hint: a cluster's name is how its certificates and its peers know it: choose another for one of them

    error: `east` and `west` are the same cluster: context `east`
      --> mesh.yaml:15:29
       |
    15 |     - {name: west, context: east}
       |                             ^^^^
       = expected: a context for each; the first stands in line 12

    error: `r1` is a remote of `weast`, which is not in this mesh
      --> mesh.yaml:16:42
       |
    16 |     - {name: r1, controlPlane: {primary: weast}}
       |                                          ^^^^^
       = expected: `east` or `west`
    hint: write `east`

    error: `r1`, the primary of `r2`, is itself a remote
      --> mesh.yaml:17:42
       |
    17 |     - {name: r2, controlPlane: {primary: r1}}
       |                                          ^^
       = expected: a cluster that runs its own control plane

    error: `spec.clusters[6]` has neither a name nor a context
      --> mesh.yaml:18:8
       |
    18 |     - {region: x}
       |        ^^^^^^
    hint: write `{name: cluster-1, context: context-1, network: network-1}`; one of the first two is enough

    error: `spec.clusters[7]` is a list
      --> mesh.yaml:19:7
       |
    19 |     - [a]
       |       ^
       = expected: a context, `context: network`, or a map of the cluster's fields

    error: `hello-world` is not a known sample
      --> mesh.yaml:20:13
       |
    20 |   samples: [hello-world]
       |             ^^^^^^^^^^^
       = expected: `helloworld`, `sleep` or `bookinfo`
    hint: write `helloworld`

    error: `*.lo cal` is not a host that a gateway can serve
      --> mesh.yaml:21:12
       |
    21 |   expose: ['*.lo cal']
       |            ^^^^^^^^^^
       = expected: a DNS name, or a pattern such as `*.local`
    "#);
}

#[test]
fn other_peoples_files_are_called_by_their_names() {
    let told = |path: &str| read(&text(path), None).unwrap_err().to_string();
    insta::assert_snapshot!(told("setup-mesh/base.yaml"), @r#"
    error: this is an overlay of Istio's values, not a mesh
     --> base.yaml:2:7
      |
    2 | kind: IstioControlPlane
      |       ^^^^^^^^^^^^^^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    hint: name it `base.yaml` beside a topology.yaml, or give it below `spec.controlPlane.values` of a `Mesh`
    "#);
    insta::assert_snapshot!(told("setup-mesh/kubeconfig-shape.yaml"), @r#"
    error: this is a kubeconfig, not a mesh
     --> kubeconfig-shape.yaml:1:7
      |
    1 | kind: Config
      |       ^^^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    hint: `stolos init CONTEXT…` writes a mesh file from its contexts; of a cluster that shares another's control plane, say whose: `--primary CONTEXT`
    "#);
    insta::assert_snapshot!(told("karmada/remote-secret-as-printed.yaml"), @r#"
    error: this is a remote secret of Istio's, not a mesh
     --> remote-secret-as-printed.yaml:2:7
      |
    2 | kind: Secret
      |       ^^^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    hint: Stolos makes the remote secrets of a mesh itself; of a cluster that shares another's control plane, say whose: `--primary CONTEXT`

    error: the label `istio/multiCluster` is the boolean `true`
     --> remote-secret-as-printed.yaml:5:25
      |
    5 |     istio/multiCluster: true
      |                         ^^^^
      = expected: a text: Kubernetes refuses anything else as a label's value
    hint: write `istio/multiCluster: "true"`
    "#);
    insta::assert_snapshot!(told("karmada/hello.yaml"), @r#"
    error: this is a Kubernetes object of kind `Deployment`, not a mesh
     --> hello.yaml:2:7
      |
    2 | kind: Deployment
      |       ^^^^^^^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    "#);
    insta::assert_snapshot!(told("istio-remote/values.yaml"), @r#"
    error: this is the values of an `istio-remote` chart, not a mesh
     --> values.yaml:1:1
      |
    1 | envoyStatsd:
      | ^^^^^^^^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    hint: say whose control plane is shared, and with whom: `--primary CONTEXT --remote CONTEXT`
    "#);
    insta::assert_snapshot!(problems(""), @r#"
    error: the file is empty
      --> mesh.yaml
    hint: `stolos init` writes a mesh file from the contexts of your kubeconfig
    "#);
    insta::assert_snapshot!(problems("kind: Mseh\n"), @r#"
    error: this is a Kubernetes object of kind `Mseh`, not a mesh
     --> mesh.yaml:1:7
      |
    1 | kind: Mseh
      |       ^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    hint: was `kind: Mesh` meant?
    "#);
    insta::assert_snapshot!(problems("mesh-id: a\n"), @r#"
    error: this is not a mesh file
     --> mesh.yaml:1:1
      |
    1 | mesh-id: a
      | ^^^^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    hint: was `mesh-id` meant to be `mesh_id`?
    "#);
    insta::assert_snapshot!(problems("just words"), @r#"
    error: the file is `just words`
     --> mesh.yaml:1:1
      |
    1 | just words
      | ^^^^^^^^^^
      = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
    "#);
}

#[test]
fn broken_yaml_points_at_its_place() {
    insta::assert_snapshot!(problems("kind: Mesh\nspec:\n  clusters: [a, b\n"), @r#"
    error: this is not YAML: unclosed bracket '['
     --> mesh.yaml:3:13
      |
    3 |   clusters: [a, b
      |             ^
    "#);
    insta::assert_snapshot!(problems("kind: Mesh\nspec:\n\tclusters: a\n"), @r#"
    error: this is not YAML: tabs disallowed within this context (block indentation)
     --> mesh.yaml:3:2
      |
    3 |  clusters: a
      |  ^
    hint: indent with spaces: YAML takes no tabs there
    "#);
    insta::assert_snapshot!(problems("kind: Mesh\nkind: Mesh\nmetadata: {name: a}\nspec: {clusters: [a]}\n---\nkind: Mesh\n"), @r#"
    error: a second document starts here: a mesh
     --> mesh.yaml:6:1
      |
    6 | kind: Mesh
      | ^^^^
      = expected: one mesh in one document
    hint: move it to a file of its own
    "#);
}

#[test]
fn what_init_writes_is_read_back() {
    use stolos_spec::{MeshName, base_yaml, from_contexts, mesh_yaml, topology_yaml};
    let contexts = vec![
        ("east".to_owned(), Some("net-1".to_owned())),
        ("arn:aws:eks:1:cluster/Prod".to_owned(), Some("net-2".to_owned())),
        ("yes".to_owned(), None),
    ];
    let name = MeshName::parse("my").unwrap();
    let made = from_contexts(&name, &contexts).unwrap();
    let native = mesh_yaml(&made.mesh);
    insta::assert_snapshot!(native, @r#"
    apiVersion: stolos.dev/v1alpha1
    kind: Mesh
    metadata:
      name: my
    spec:
      clusters:
        - name: east
          network: net-1
        - name: arn-aws-eks-1-cluster-prod-50919b70
          context: "arn:aws:eks:1:cluster/Prod"
          network: net-2
        - name: "yes"
          network: network
    "#);
    let again = understood(&native);
    assert_eq!(again.mesh, made.mesh);
    let base = SourceText::new("base.yaml", base_yaml());
    let topology = read(&SourceText::new("topology.yaml", topology_yaml(&name, &contexts)), Some(&base)).unwrap();
    assert_eq!(topology.mesh.clusters, made.mesh.clusters);
    assert!(from_contexts(&name, &[]).is_err());
    let twice = from_contexts(&name, &[contexts[0].clone(), contexts[0].clone()]).unwrap_err();
    assert!(twice.to_string().contains("given twice"), "{twice}");
}

mod laws {
    use proptest::prelude::*;
    use stolos_spec::{ClusterName, SourceText, read, recognise};

    fn never_panics(text: String) {
        let source = SourceText::new("x/mesh.yaml", text);
        let _ = recognise(&source);
        for base in [None, Some(&source)] {
            if let Err(problems) = read(&source, base) {
                assert!(!problems.is_empty());
                let told = problems.to_string();
                assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
            }
        }
    }

    /// Words that mean something to one of the readers, put together without sense.
    fn yaml() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "kind",
            "Mesh",
            "spec",
            "clusters",
            "mesh_id",
            "contexts",
            "network",
            "Certificate",
            "Cluster",
            "metadata",
            "name",
            "values",
            "global",
            "mtls",
            "enabled",
            "controlPlane",
            "primary",
            "trust",
            "root",
            "selfSigned",
            "validity",
            "99999999999999999999d",
            "1d",
            "true",
            "~",
            "&a",
            "*a",
            "<<",
            "\"",
            "'",
            "- ",
            ": ",
            "\n",
            "\n  ",
            "\n    ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "---\n",
            "#",
            "!!str ",
            "|\n",
            "é",
            "\t",
            "apiVersion: ristioctl.k8smgmt.io/v3\n",
        ]);
        prop::collection::vec(word, 0..60).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            never_panics(text);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            never_panics(String::from_utf8_lossy(&bytes).into_owned());
        }

        #[test]
        fn almost_yaml_never_panics(text in yaml()) {
            never_panics(text);
        }

        #[test]
        fn every_context_has_a_name_of_its_own(a in any::<String>(), b in any::<String>()) {
            let (x, y) = (ClusterName::from_context(&a), ClusterName::from_context(&b));
            prop_assert!(ClusterName::parse(x.as_str()).is_ok());
            prop_assert!(a == b || x != y);
        }
    }

    #[test]
    fn nesting_and_aliases_have_an_end() {
        never_panics("[".repeat(10_000));
        never_panics("- ".repeat(10_000));
        never_panics("{a: ".repeat(10_000));
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let all = vec![format!("*a{}", n - 1); 9].join(", ");
            laughs.push_str(&format!("a{n}: &a{n} [{all}]\n"));
        }
        never_panics(laughs);
        never_panics(format!("kind: Mesh{}\n", "x".repeat(1_000_000)));
        never_panics("a: &a [*a]".to_owned());
    }
}

/// What engine `istio` is told besides a version.
#[test]
fn where_istio_comes_from_and_what_it_is_told() {
    let file = |control: &str| {
        let text = format!(
            "kind: Mesh\napiVersion: stolos.dev/v1alpha1\nmetadata: {{name: m}}\nspec:\n  clusters: [a]\n  controlPlane: {control}\n"
        );
        read(&SourceText::new("/meshes/mesh.yaml", &text), None)
    };
    let charts = |text: &str| file(&format!("{{charts: '{text}'}}")).unwrap().mesh.control_plane.charts;
    assert_eq!(charts("https://charts.example.com/"), Charts::Repository("https://charts.example.com".into()));
    assert_eq!(charts("oci://registry.example.com/istio"), Charts::Registry("oci://registry.example.com/istio".into()));
    assert_eq!(charts("charts/1.28"), Charts::Folder("/meshes/charts/1.28".into()));
    assert_eq!(charts("/opt/charts"), Charts::Folder("/opt/charts".into()));

    let told = file(
        "{engine: istio, installer: istioctl, revision: 1-28-0, gateways: {eastwest: {replicaCount: 2}, ingress: true}}",
    );
    let told = told.unwrap().mesh.control_plane;
    assert_eq!((told.installer, told.revision.as_deref()), (Installer::Istioctl, Some("1-28-0")));
    assert_eq!(told.gateways.eastwest["replicaCount"], 2);
    assert_eq!(told.gateways.ingress, Some(serde_json::Map::new()));

    for (control, says) in [
        ("{charts: 'ftp://x'}", "is no place for charts"),
        ("{installer: kustomize}", "is not a known installer"),
        ("{revision: 1.28.0}", "is not a revision"),
        ("{gateways: {ingress: 7}}", "`spec.controlPlane.gateways.ingress` is"),
    ] {
        let problems = file(control).unwrap_err().to_string();
        assert!(problems.contains(says), "{problems}");
    }
}

/// An IstioOperator's own words become the charts' values; what the charts have no place for is named.
#[test]
fn an_operator_is_read_as_values_where_the_engine_is_istio() {
    let text = "kind: Mesh
apiVersion: stolos.dev/v1alpha1
metadata: {name: m}
spec:
  clusters: [a]
  controlPlane:
    engine: istio
    values:
      apiVersion: install.istio.io/v1alpha1
      kind: IstioOperator
      spec:
        profile: demo
        hub: registry.example.com/istio
        tag: 1.28.0
        meshConfig: {accessLogFile: /dev/stdout, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
        values: {pilot: {traceSampling: 10}, meshConfig: {accessLogFile: /dev/stderr}}
";
    let reading = read(&SourceText::new("mesh.yaml", text), None).unwrap();
    insta::assert_snapshot!(reading.mesh.control_plane.values, @r#"{"global":{"hub":"registry.example.com/istio","tag":"1.28.0"},"meshConfig":{"accessLogFile":"/dev/stderr","outboundTrafficPolicy":{"mode":"REGISTRY_ONLY"}},"pilot":{"traceSampling":10}}"#);
    let warnings: Vec<_> = reading.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("`spec.controlPlane.values.spec.profile`"), "{}", warnings[0]);
}

mod of_other_systems {
    use super::*;
    use stolos_spec::{Role, Told, read_all};

    fn file(path: &str) -> SourceText {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inputs"));
        let text = std::fs::read_to_string(folder.join(path)).unwrap();
        SourceText::new(path.rsplit('/').next().unwrap_or_default(), text)
    }

    fn shared(remotes: &[&str]) -> Told {
        Told {
            name: None,
            primary: Some(("istio-control-plane".to_owned(), None)),
            remotes: remotes.iter().map(|remote| ((*remote).to_owned(), None)).collect(),
        }
    }

    fn shown(files: &[SourceText], told: &Told) -> String {
        match read_all(files, None, told) {
            Ok(reading) => {
                let warnings = reading.warnings.iter().map(|warning| format!("{warning}\n")).collect::<String>();
                format!("{warnings}{}", stolos_spec::mesh_yaml(&reading.mesh))
            }
            Err(problems) => problems.to_string(),
        }
    }

    #[test]
    fn values_of_istio_remote_are_a_mesh_once_its_clusters_are_named() {
        insta::assert_snapshot!(shown(&[file("istio-remote/values.yaml")], &shared(&["istio-remote1"])), @r#"
        warning: Mixer and its statsd bridge are no more: `envoyStatsd`, `remotePolicyAddress`, `remoteTelemetryAddress`
         --> values.yaml:1:1
          |
        1 | envoyStatsd:
          | ^^^^^^^^^^^
          = instead: they are dropped
        warning: the control plane was at `172.16.1.11`: a pod's address, which was another after every restart
         --> values.yaml:6:21
          |
        6 | remotePilotAddress: "172.16.1.11"
          |                     ^^^^^^^^^^^^^
          = instead: a remote finds its primary through the primary's gateway, whose address is read from the cluster
        warning: spans went to `172.16.1.15`
         --> values.yaml:9:22
          |
        9 | remoteZipkinAddress: "172.16.1.15"
          |                      ^^^^^^^^^^^^^
          = instead: tracing is left as it is; with the engine `istio`, `controlPlane.values.meshConfig.defaultConfig.tracing` of a `Mesh` says where they go
        apiVersion: stolos.dev/v1alpha1
        kind: Mesh
        metadata:
          name: mesh
        spec:
          clusters:
            - name: istio-control-plane
              network: network
            - name: istio-remote1
              network: network
              controlPlane: {primary: istio-control-plane}
        "#);
        insta::assert_snapshot!(shown(&[file("istio-remote/values.yaml")], &shared(&[])), @r#"
        error: nothing names a cluster that shares the control plane
           = expected: a kubeconfig or a remote secret of each, or its context
        hint: `--remote CONTEXT`, once for each
        "#);
    }

    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\nclusters:\n- name: istio-remote1\n  cluster: {server: 'https://10.0.0.1:6443', certificate-authority-data: QQ==}\n\
        users:\n- name: istio-remote1\n  user:\n    USER\ncontexts:\n- name: istio-remote1\n  context: {cluster: istio-remote1, user: istio-remote1}\ncurrent-context: istio-remote1\n";

    #[test]
    fn a_bare_kubeconfig_is_a_remote_and_its_credential_is_named() {
        use base64::Engine as _;
        let claims = br#"{"sub":"system:serviceaccount:istio-system:istio-multi"}"#;
        let token = format!("token: e30.{}.x", base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(claims));
        let of = |user: &str| SourceText::new("istio-remote1", KUBECONFIG.replace("USER", user));
        insta::assert_snapshot!(shown(&[of(&token)], &shared(&[])), @r#"
        warning: the credential is the service account `istio-system/istio-multi`'s, which can do as much as that may
         --> istio-remote1:2:7
          |
        2 | kind: Config
          |       ^^^^^^
          = instead: it is used to it is used to reach the cluster; where it may only read, name a context that may write: `--remote CONTEXT`
        apiVersion: stolos.dev/v1alpha1
        kind: Mesh
        metadata:
          name: mesh
        spec:
          clusters:
            - name: istio-control-plane
              network: network
            - name: istio-remote1
              kubeconfig: istio-remote1
              network: network
              controlPlane: {primary: istio-control-plane}
        "#);
        let warned = |user: &str| shown(&[of(user)], &shared(&[])).lines().next().unwrap().to_owned();
        insta::assert_snapshot!(warned("exec: {command: aws}"), @r#"
        warning: the credential runs a program (`exec`): a control plane that is handed it refuses it
        "#);
        insta::assert_snapshot!(warned("client-certificate-data: QQ=="), @r#"
        warning: the credential is a client certificate, an administrator's more often than not: whoever holds it holds the cluster, and it cannot be revoked
        "#);
        let json = serde_json::json!({"kind": "Config", "contexts": [], "users": [{"user": {"token": "sesame"}}]});
        let whole = shown(&[SourceText::new("k", json.to_string())], &shared(&[]));
        assert!(!whole.contains("sesame"), "{whole}");
        // With a flag for the same cluster, the flag says how it is reached.
        let reading = read_all(&[of(&token)], None, &shared(&["istio-remote1"])).unwrap();
        assert_eq!(reading.mesh.clusters.len(), 2);
        assert_eq!(reading.mesh.clusters[1].kubeconfig, None);
        assert!(
            matches!(&reading.mesh.clusters[1].role, Role::Remote { primary } if primary.as_str() == "istio-control-plane")
        );
        insta::assert_snapshot!(shown(&[of(&token)], &Told::default()), @r#"
        error: this is a kubeconfig, not a mesh
         --> istio-remote1:2:7
          |
        2 | kind: Config
          |       ^^^^^^
          = expected: `kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`
        hint: `stolos init CONTEXT…` writes a mesh file from its contexts; of a cluster that shares another's control plane, say whose: `--primary CONTEXT`
        "#);
    }

    #[test]
    fn a_remote_secret_is_a_remote_whose_credential_is_not_used() {
        let inner = KUBECONFIG
            .replace("USER", "exec: {command: aws}")
            .lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>();
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: istio-remote1\n  labels: {{istio/multiCluster: \"true\"}}\nstringData:\n  istio-remote1: |\n{inner}"
        );
        insta::assert_snapshot!(shown(&[SourceText::new("secret.yaml", secret)], &shared(&[])), @r#"
        warning: the credential runs a program (`exec`): a control plane that is handed it refuses it
         --> secret.yaml:2:7
          |
        2 | kind: Secret
          |       ^^^^^^
          = instead: it is not used, and copied nowhere; the clusters get a reader account's token of their own, which expires
        apiVersion: stolos.dev/v1alpha1
        kind: Mesh
        metadata:
          name: mesh
        spec:
          clusters:
            - name: istio-control-plane
              network: network
            - name: istio-remote1
              network: network
              controlPlane: {primary: istio-control-plane}
        "#);
    }

    #[test]
    fn a_karmada_policy_names_the_clusters_of_a_mesh() {
        let every = ["policy-2-weighted", "hello", "sleep", "expose", "remote-secret-as-printed", "policy-1-even"];
        let files: Vec<_> = every.iter().map(|name| file(&format!("karmada/{name}.yaml"))).collect();
        insta::assert_snapshot!(shown(&files, &Told { name: Some("mesh1".to_owned()), ..Told::default() }), @r#"
        warning: a policy does not say which clusters can dial each other's pods
           = instead: each is on a network of its own, with a gateway; `stolos init CONTEXT=NETWORK…` writes a mesh file that says it
        warning: the weights (us 2, ap 1, eu 2) divide replicas, not traffic
          --> policy-2-weighted.yaml:24:11
           |
        24 |         - targetCluster:
           |           ^
           = instead: requests go to whatever replica is ready and near, in any of the clusters; nothing is placed by this file
        warning: `hello` is a Kubernetes object of kind `Deployment`, not a part of a mesh
         --> hello.yaml:2:7
          |
        2 | kind: Deployment
          |       ^^^^^^^^^^
          = instead: it is left alone: Stolos places no workloads yet; `kubectl apply` brings it into a cluster
        warning: `hello` is a Kubernetes object of kind `Service`, not a part of a mesh
          --> hello.yaml:20:7
           |
        20 | kind: Service
           |       ^^^^^^^
           = instead: it is left alone: Stolos places no workloads yet; `kubectl apply` brings it into a cluster
        warning: `sleep` is a Kubernetes object of kind `Deployment`, not a part of a mesh
         --> sleep.yaml:2:7
          |
        2 | kind: Deployment
          |       ^^^^^^^^^^
          = instead: it is left alone: Stolos places no workloads yet; `kubectl apply` brings it into a cluster
        warning: `cross-network-gateway` was written by hand into every cluster
         --> expose.yaml:2:7
          |
        2 | kind: Gateway
          |       ^^^^^^^
          = instead: Stolos writes it, and keeps it true
        warning: there is no usable kubeconfig in `data.us`
         --> remote-secret-as-printed.yaml:2:7
          |
        2 | kind: Secret
          |       ^^^^^^
          = instead: none is needed: Stolos makes a credential of its own
        warning: `Secret istio-remote-secret-us` was written by hand into every other cluster
         --> remote-secret-as-printed.yaml:2:7
          |
        2 | kind: Secret
          |       ^^^^^^
          = instead: it is not applied: each control plane gets a credential of its own for each other cluster
        warning: the label `istio/multiCluster` is the boolean `true`: the API server would have refused this object
         --> remote-secret-as-printed.yaml:5:25
          |
        5 |     istio/multiCluster: true
          |                         ^^^^
          = instead: were it to be used, it would say `istio/multiCluster: "true"`
        warning: the weights (us 1, ap 1, eu 1) divide replicas, not traffic
          --> policy-1-even.yaml:24:11
           |
        24 |         - targetCluster:
           |           ^
           = instead: requests go to whatever replica is ready and near, in any of the clusters; nothing is placed by this file
        apiVersion: stolos.dev/v1alpha1
        kind: Mesh
        metadata:
          name: mesh1
        spec:
          clusters:
            - name: eu
              network: network-eu
            - name: ap
              network: network-ap
            - name: us
              network: network-us
        "#);
        let policy = "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {name: p}\nspec:\n  placement:\n    clusterAffinity:\n      labelSelector: {matchLabels: {a: b}}\n";
        insta::assert_snapshot!(shown(&[SourceText::new("p.yaml", policy)], &Told::default()), @r#"
        error: this policy names no clusters
         --> p.yaml:6:5
          |
        6 |     clusterAffinity:
          |     ^
          = expected: `placement.clusterAffinity.clusterNames`: the kubeconfig contexts of the mesh's clusters
        hint: write
          clusterAffinity:
            clusterNames: [eu, ap, us]
        "#);
    }

    #[test]
    fn meshes_are_not_mixed() {
        let files = [file("setup-mesh/topology.yaml"), file("karmada/policy-1-even.yaml")];
        insta::assert_snapshot!(shown(&files, &Told::default()), @r#"
        error: this is a mesh of its own
         --> topology.yaml:1:1
          |
        1 | mesh_id: mymeshname
          | ^^^^^^^
          = expected: one mesh, in one file
        "#);
        insta::assert_snapshot!(shown(&[file("setup-mesh/topology.yaml")], &shared(&[])), @r#"
        error: topology.yaml says itself which clusters there are
        hint: leave `--primary` and `--remote` away
        "#);
    }
}

#[test]
fn a_gateways_address_is_written_by_hand_and_written_back() {
    let text = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata:\n  name: my\nspec:\n  clusters:\n    - name: a\n      network: x\n      \
                gateway: {addresses: [\"192.0.2.1\", gw.example.com, \"2001:db8::1\"], port: 443}\n    - name: b\n      network: w\n      \
                gateway: {addresses: [\"192.0.2.2\"]}\n    - name: c\n      network: z\n      \
                gateway: {values: {\"service\":{\"annotations\":{\"traffic.istio.io/nodeSelector\":\"{}\"},\"type\":\"NodePort\"}}}\n";
    let reading = understood(text);
    assert_eq!(stolos_spec::mesh_yaml(&reading.mesh), text);
    let gateway = reading.mesh.clusters[0].gateway_by_hand().unwrap();
    assert_eq!((gateway.addresses.len(), gateway.port), (3, 443));
    assert_eq!(reading.mesh.clusters[1].gateway_by_hand().unwrap().port, 15443);
    assert!(reading.mesh.clusters[2].gateway_by_hand().is_none(), "values are no addresses");
}

#[test]
fn an_address_that_is_none_says_how_to_write_one() {
    let of = |gateway: &str| problems(&format!("clusters:\n  - name: a\n    network: x\n    gateway: {gateway}\n"));
    insta::assert_snapshot!(
        [
            "{addresses: ['192.0.2.1:15443']}",
            "{addresses: [https://gw.example.com]}",
            "{addresses: [192.0.2.300]}",
            "{addresses: [192.0.2.1], port: 0}",
            "{port: 443}",
            "{values: NodePort}",
            "{address: 192.0.2.1}",
        ]
        .map(of)
        .join("\n\n"),
        @r"
        error: `192.0.2.1:15443` is not an address of a gateway
         --> mesh.yaml:4:27
          |
        4 |     gateway: {addresses: ['192.0.2.1:15443']}
          |                           ^^^^^^^^^^^^^^^^^
          = expected: an IP address or a host name in lower case, such as `192.0.2.10` or `gateway.example.com`
        hint: write the port beside it: `{addresses: [192.0.2.1], port: 15443}`

        error: `https://gw.example.com` is not an address of a gateway
         --> mesh.yaml:4:27
          |
        4 |     gateway: {addresses: [https://gw.example.com]}
          |                           ^^^^^^^^^^^^^^^^^^^^^^
          = expected: an IP address or a host name in lower case, such as `192.0.2.10` or `gateway.example.com`

        error: `192.0.2.300` is not an address of a gateway
         --> mesh.yaml:4:27
          |
        4 |     gateway: {addresses: [192.0.2.300]}
          |                           ^^^^^^^^^^^
          = expected: an IP address or a host name in lower case, such as `192.0.2.10` or `gateway.example.com`

        error: `0` is not a port
         --> mesh.yaml:4:45
          |
        4 |     gateway: {addresses: [192.0.2.1], port: 0}
          |                                             ^
          = expected: a number from 1 to 65535, such as `15443`

        error: `clusters[0].gateway.port` is the port of addresses, and there are none
         --> mesh.yaml:4:21
          |
        4 |     gateway: {port: 443}
          |                     ^^^
        hint: write `gateway: {addresses: [192.0.2.10], port: 15443}`

        error: `clusters[0].gateway.values` is `NodePort`
         --> mesh.yaml:4:23
          |
        4 |     gateway: {values: NodePort}
          |                       ^^^^^^^^
          = expected: a map of values of Istio's chart `gateway`, such as `{service: {type: NodePort}}`

        error: `address` is not a field of `clusters[0].gateway`
         --> mesh.yaml:4:15
          |
        4 |     gateway: {address: 192.0.2.1}
          |               ^^^^^^^
          = expected: `addresses`, `port` or `values`
        hint: write `addresses`
        "
    );
}

#[test]
fn a_hub_leads_to_clusters_that_cannot_be_dialled() {
    let text = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata:\n  name: my\nspec:\n  clusters:\n    - name: a\n      network: x\n      \
                api: {via: tunnel}\n    - name: b\n      network: w\n  hub:\n    context: over-there\n    kubeconfig: hub.yaml\n    \
                address: \"https://hub.example.com:5443\"\n    join: true\n";
    let reading = understood(text);
    assert_eq!(stolos_spec::mesh_yaml(&reading.mesh), text);
    assert!(reading.mesh.uses_tunnel());
    let joins = |mesh: &Mesh| mesh.clusters.iter().map(|c| mesh.hub.as_ref()?.joins(c)).collect::<Vec<_>>();
    assert_eq!(joins(&reading.mesh), [None, Some(stolos_spec::Join::Dialled)]);
    let agents = text.replace("join: true", "join: agent");
    let reading = understood(&agents);
    assert_eq!(stolos_spec::mesh_yaml(&reading.mesh), agents);
    assert_eq!(joins(&reading.mesh), [Some(stolos_spec::Join::Agent); 2]);
    let wrong = text.replace("join: true", "join: maybe");
    assert!(problems(&wrong).contains("`true`, `agent` or `false`"), "{}", problems(&wrong));
    let short = understood("hub: over-there\nclusters: [{a: x}]\n").mesh;
    assert_eq!(
        short.hub.map(|hub| (hub.context, hub.kubeconfig, hub.address)),
        Some(("over-there".into(), None, None))
    );
    assert!(understood("clusters: [{a: x}]\n").mesh.hub.is_none());
}

#[test]
fn a_hub_that_cannot_be_says_why() {
    let long = "m".repeat(52);
    insta::assert_snapshot!(
        [
            "clusters:\n  - {name: a, api: {via: tunnel}}\n",
            "hub: {address: https://hub:5443}\nclusters: [{a: x}]\n",
            "hub: {context: h, address: hub:5443}\nclusters: [{a: x}]\n",
            "hub: a\nclusters: [{a: x}, {hub: x}]\n",
            &format!("name: {long}\nhub: h\nclusters: [{{a: x}}]\n"),
        ]
        .map(problems)
        .join("\n\n"),
        @"
        error: `a` is reached through the tunnel of a hub, and the file names none
         --> mesh.yaml:2:20
          |
        2 |   - {name: a, api: {via: tunnel}}
          |                    ^
        hint: write `hub: {context: hub}` beside `clusters`, with the kubeconfig context of the hub's API

        error: `hub` names no context
         --> mesh.yaml:1:6
          |
        1 | hub: {address: https://hub:5443}
          |      ^
        hint: write `hub: {context: hub}`, with the kubeconfig context of the hub's API

        error: `hub:5443` is not the address of a hub
         --> mesh.yaml:1:28
          |
        1 | hub: {context: h, address: hub:5443}
          |                            ^^^^^^^^
          = expected: a URL such as `https://10.0.0.1:6443`

        error: the hub is the cluster `a`: context `a`
         --> mesh.yaml:1:6
          |
        1 | hub: a
          |      ^
          = expected: a context of its own for the hub

        error: a cluster is called `hub`, which is what a mesh with a hub calls that
         --> mesh.yaml:2:21
          |
        2 | clusters: [{a: x}, {hub: x}]
          |                     ^^^
        hint: choose another name for the cluster

        error: the name of the mesh, `mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm`, is too long for one with a hub
         --> mesh.yaml:2:6
          |
        2 | hub: h
          |      ^
          = expected: at most 51 characters
        "
    );
}
