use crate::Desk;

#[test]
fn contexts_become_a_mesh_file() {
    let desk = Desk::new();
    let run = desk.run(["init", "--mesh-id", "my", "east=net-1", "arn:aws:eks:1:cluster/Prod=net-2"]);
    insta::assert_snapshot!(run.shown(), @r#"
    exit 0
    --- stdout
    --- stderr
    warning: the context `arn:aws:eks:1:cluster/Prod` is no name that a Kubernetes object can bear
       = instead: the cluster is called `arn-aws-eks-1-cluster-prod-50919b70`, and the context is kept in its annotation `stolos.dev/context`
    wrote mesh.yaml: 2 clusters on 2 networks
    next: stolos plan -f mesh.yaml
    "#);
    insta::assert_snapshot!(desk.read("mesh.yaml"), @r#"
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
    "#);
    insta::assert_snapshot!(desk.run(["init", "east"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: mesh.yaml is there already
    hint: `--force` replaces it; `-o FILE` writes another
    "#);
    assert_eq!(desk.run(["init", "east", "--force"]).code, Some(0));
    assert_eq!(desk.run(["init", "east", "-o", "other.yaml", "--dry-run"]).code, Some(2));
    assert!(!desk.path().join("other.yaml").exists());
    insta::assert_snapshot!(desk.run(["init", "east=bad name", "-o", "-"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: `bad name` is not a network name: only letters, digits, `-`, `_` and `.` may be in it
    hint: write `bad-name`
    "#);
}

#[test]
fn all_contexts_of_a_kubeconfig_are_taken_where_none_is_named() {
    let desk = Desk::new();
    desk.write("config", "apiVersion: v1\nkind: Config\ncontexts:\n- {name: a, context: {cluster: c, user: u}}\n- {name: b, context: {cluster: c, user: u}}\n");
    let run = desk.run(["init", "--kubeconfig", "config", "-o", "-"]);
    insta::assert_snapshot!(run.shown(), @r#"
    exit 0
    --- stdout
    apiVersion: stolos.dev/v1alpha1
    kind: Mesh
    metadata:
      name: mesh
    spec:
      clusters:
        - name: a
          network: network
        - name: b
          network: network
    --- stderr
    "#);
}

#[test]
fn setup_mesh_is_prepared_once_and_kept() {
    let desk = Desk::new();
    let state = ["--state", "state"];
    let first = desk.run(
        ["init", "--from", "setup-mesh", "work", "--mesh-id", "mymeshname", "--org", "Example"].iter().chain(&state),
    );
    insta::assert_snapshot!(first.shown(), @r#"
    exit 0
    --- stdout
    --- stderr
    wrote work/topology.yaml
    wrote work/base.yaml
    made  [FOLDER]/state/root-cert.pem (the root, with its key beside it)
    next: name your clusters' contexts in work/topology.yaml, then stolos plan -f work/topology.yaml
    "#);
    insta::assert_snapshot!(desk.read("work/topology.yaml"), @r#"
    # The clusters of the mesh, by their kubeconfig contexts. Clusters on one network reach each other's pods
    # directly; between networks traffic goes through gateways. For example:
    #
    # contexts:
    #   context-east-1:
    #     network: network-east
    #   context-west-1:
    #     network: network-west
    mesh_id: mymeshname
    contexts:
    "#);
    insta::assert_snapshot!(desk.read("work/base.yaml"), @r#"
    apiVersion: install.istio.io/v1alpha1
    kind: IstioOperator
    spec:
      values:
        security:
          selfSigned: false
        global:
          mtls:
            enabled: true
    "#);
    let edited = desk.read("work/topology.yaml") + "  a:\n    network: n\n";
    desk.write("work/topology.yaml", &edited);
    // The environment that the script demanded does as well.
    let again = desk.finish(
        desk.command()
            .args(["init", "--from", "setup-mesh"])
            .args(state)
            .env("WORKDIR", "work")
            .env("MESH_ID", "mymeshname")
            .env("ORG_NAME", "Example"),
    );
    insta::assert_snapshot!(again.shown(), @r#"
    exit 0
    --- stdout
    --- stderr
    kept  work/topology.yaml
    kept  work/base.yaml
    kept  [FOLDER]/state/root-cert.pem (the root, with its key beside it)
    next: name your clusters' contexts in work/topology.yaml, then stolos plan -f work/topology.yaml
    "#);
    assert_eq!(desk.read("work/topology.yaml"), edited);
    let other = desk.run(["init", "--from", "setup-mesh", "work", "--mesh-id", "another"].iter().chain(&state));
    insta::assert_snapshot!(other.shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: work/topology.yaml is for the mesh `mymeshname`, not `another`
    hint: prepare another folder, or leave `--mesh-id` (and `MESH_ID`) away
    "#);
}
