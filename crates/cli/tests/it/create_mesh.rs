//! `create-mesh` before any cluster is asked.

use crate::Desk;

#[test]
fn what_is_no_kubeconfig_is_explained() {
    let desk = Desk::new();
    insta::assert_snapshot!(desk.run(["create-mesh", "fleet", "my-project/us-central1/prod"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: `my-project/us-central1/prod` is no file; asmcli would have fetched a kubeconfig for it
      Stolos calls no cloud's programs
    hint: KUBECONFIG=prod.yaml gcloud container clusters get-credentials prod --project my-project --location us-central1
      then give `prod.yaml`
    "#);
    insta::assert_snapshot!(desk.run(["create-mesh", "fleet", "east.yaml"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: there is no kubeconfig `east.yaml`
    hint: `stolos create-mesh FLEET_ID KUBECONFIG…`: the fleet's id comes first, then a file for each cluster
    "#);
    desk.write("two.yaml", "apiVersion: v1\nkind: Config\ncontexts:\n- {name: a, context: {cluster: c, user: u}}\n- {name: b, context: {cluster: c, user: u}}\n");
    insta::assert_snapshot!(desk.run(["create-mesh", "fleet", "two.yaml"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: two.yaml has no current context
      it has a, b
    hint: kubectl --kubeconfig two.yaml config use-context CONTEXT
    "#);
    desk.write("one.yaml", "apiVersion: v1\nkind: Config\nclusters:\n- {name: c, cluster: {server: 'https://127.0.0.1:1'}}\ncontexts:\n- {name: a, context: {cluster: c, user: u}}\nusers:\n- {name: u, user: {token: t}}\n");
    insta::assert_snapshot!(desk.run(["create-mesh", "fleet", "one.yaml", "--network", "b=net"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: `--network b=net` names no cluster of this mesh
    hint: there is `a`
    "#);
    let offline = ["create-mesh", "fleet", "one.yaml", "--offline", "--ignore_workload_identity_mismatch"];
    insta::assert_snapshot!(desk.run(offline).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    warning: `--ignore_workload_identity_mismatch` is ignored: identities come from the mesh's own root, and no fleet is asked
    `--offline`: Stolos downloads no tools; charts of real Istio come from where the mesh file says
    Asking 1 cluster
    error: could not ask `a` which network it is on
      could not get Namespace istio-system
      client error (Connect)
      Connection refused (os error 111)
    "#);
}
