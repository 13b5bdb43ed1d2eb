//! Mesh files that cannot be used, and clusters that cannot be found.

use crate::Desk;

#[test]
fn a_broken_file_is_shown_with_all_its_problems() {
    let desk = Desk::new();
    desk.write(
        "mesh.yaml",
        "kind: Mesh\nmetadata: {name: m}\nspec:\n  clusters:\n    - {name: a, netwrok: x}\n  mtls: strikt\n",
    );
    insta::assert_snapshot!(desk.run(["status"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: `netwrok` is not a field of `spec.clusters[0]`
     --> mesh.yaml:5:17
      |
    5 |     - {name: a, netwrok: x}
      |                 ^^^^^^^
      = expected: `name`, `context`, `kubeconfig`, `network`, `region`, `zone`, `controlPlane`, `api` or `gateway`
    hint: write `network`

    error: `strikt` is not a known mode of mTLS
     --> mesh.yaml:6:9
      |
    6 |   mtls: strikt
      |         ^^^^^^
      = expected: `strict` or `permissive`
    hint: write `strict`

    2 problems; nothing was touched
    "#);
}

#[test]
fn a_file_that_is_not_there_says_what_to_do() {
    let desk = Desk::new();
    insta::assert_snapshot!(desk.run(["status"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: no mesh file is named, and there is no mesh.yaml or topology.yaml here
    hint: name one with `-f FILE`
    hint: `stolos init CONTEXT=NETWORK…` writes one; `stolos demo` needs none
    "#);
    insta::assert_snapshot!(desk.run(["status", "-f", "none.yaml"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: could not read none.yaml
      No such file or directory (os error 2)
    hint: name a mesh file with `-f FILE`
    "#);
}

#[test]
fn a_missing_context_says_which_files_were_read() {
    let desk = Desk::new();
    desk.write("mesh.yaml", "[a, b]");
    insta::assert_snapshot!(desk.run(["verify"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: no kubeconfig found
    hint: looked at `[FOLDER]/.kube/config`; name one with `--kubeconfig FILE` or `export KUBECONFIG=FILE`
    hint: no clusters at hand? `stolos lab up -f FILE` makes those a mesh file names
    "#);
    desk.write("config", "apiVersion: v1\nkind: Config\ncontexts:\n- name: other\n  context: {cluster: c, user: u}\n");
    insta::assert_snapshot!(desk.run(["verify", "--kubeconfig", "config"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: no context `a` in config
    hint: there is `other`
    "#);
}

#[test]
fn warnings_go_to_standard_error_and_colours_only_where_asked_for() {
    let desk = Desk::new();
    desk.write("topology.yaml", "mesh_id: m\ncontexts:\n    a:\n        network: n\n");
    let run = desk.run(["graph"]);
    assert!(run.out.is_empty() && run.err.starts_with("warning: `setup-mesh.sh`"), "{}", run.shown());
    let run = desk.run(["graph", "--color", "always"]);
    assert!(run.err.starts_with("\u{1b}[33mwarning:\u{1b}[0m"), "{}", run.shown());
    let run = desk.finish(desk.command().args(["graph"]).env("NO_COLOR", "1"));
    assert!(!run.err.contains('\u{1b}'), "{}", run.shown());
}

#[test]
fn clusters_that_do_not_answer_are_left_alone() {
    let desk = Desk::new();
    desk.write("mesh.yaml", "[a, b]");
    // Port 1 of this machine: nobody listens.
    let cluster = |name| format!("- name: {name}\n  cluster: {{server: 'https://127.0.0.1:1'}}\n");
    let context = |name| format!("- name: {name}\n  context: {{cluster: {name}, user: u}}\n");
    desk.write(
        "config",
        &format!(
            "apiVersion: v1\nkind: Config\nclusters:\n{}{}contexts:\n{}{}users:\n- name: u\n  user: {{token: t}}\n",
            cluster("a"),
            cluster("b"),
            context("a"),
            context("b")
        ),
    );
    let run = desk.run(["plan", "--kubeconfig", "config"]);
    insta::assert_snapshot!(run.shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    Looking at 2 clusters
    error: nothing can be changed as things stand
      no cluster answers (a: Connection refused (os error 111); b: Connection refused (os error 111)) [no-cluster]
    hint: `stolos explain no-cluster` says more
    "#);
    for command in ["apply", "teardown"] {
        assert_eq!(desk.run([command, "--kubeconfig", "config"]).code, Some(1), "{command}");
    }
    let run = desk.run(["status", "--kubeconfig", "config"]);
    insta::with_settings!({filters => vec![(r"\d+ ms", "[MS]"), ("could not [^:]*:", "could not [ASK]:")]}, {
        insta::assert_snapshot!(run.shown(), @r#"
        exit 1
        --- stdout
        Mesh mesh

        CLUSTER  NETWORK  CONTROL PLANE  GATEWAYS  PEERS  EXPIRES  AGE
        a        network  unreachable    -         -      -        [MS]
        b        network  unreachable    -         -      -        [MS]

        ! a: could not [ASK]: Connection refused (os error 111)
        ! b: could not [ASK]: Connection refused (os error 111)
        --- stderr
        Asking 2 clusters
        "#);
    });
    // A cluster that did not answer could have anything, and that is said once.
    let run = desk.run(["check", "--only", "D-01,D-18", "--kubeconfig", "config"]);
    insta::with_settings!({filters => vec![(r"\d+\.\d s\b", "[TIME]")]}, {
        insta::assert_snapshot!(run.shown(), @r#"
        exit 1
        --- stdout
        × a did not answer: Connection refused (os error 111)
        × b did not answer: Connection refused (os error 111)

        trust
        -----
        ? D-01 not measured: every cluster trusts the root that the others' certificates come from

        remote secrets
        --------------
        ? D-18 not measured: every control plane holds a credential for every other cluster

        no cause of failure found: 0 excluded; 2 causes not measured; [TIME]
        --- stderr
        Asking 2 clusters
        "#);
    });
    assert!(!desk.path().join(".local").exists(), "looking leaves nothing");
}
