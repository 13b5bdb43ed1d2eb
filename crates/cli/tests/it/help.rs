use crate::Desk;

#[test]
fn help_names_every_command_that_is_built() {
    let run = Desk::new().run(["--help"]);
    insta::assert_snapshot!(run.shown(), @r#"
    exit 0
    --- stdout
    One service mesh over many Kubernetes clusters, from one file, and proven

    Usage: stolos [OPTIONS] <COMMAND>

    Commands:
      demo          Build a mesh over three clusters in this process, and prove it
      lab           Run whole clusters in one process
      init          Write a mesh file from kubeconfig contexts, or from what the clusters are already
      create-mesh   Make the clusters of several kubeconfigs one mesh, as `asmcli create-mesh` did
      plan          Say what would change in which cluster, and what that would touch
      apply         Make the clusters one mesh
      teardown      Take the mesh out of the clusters
      status        Say what is there: clusters, control planes, gateways, peers, services, certificates
      proxy-status  Say what every proxy has of its configuration
      check         Name the cause of what is wrong, and the command that mends it
      bundle        Pack what is known of the mesh into one archive, without its secrets
      verify        Prove the mesh with real requests between every two clusters
      graph         Draw the mesh
      cert          Look at certificates, and replace them
      credential    Hand out credentials that read a cluster and end, and take them back
      export        Write what apply would do as files of a Git repository
      cluster       Add a cluster, remove one, shift traffic away from one and back
      hub           Place workloads on clusters by Karmada's policies
      why           Say why a workload of the hub is where it is, and what would change it
      get           List objects of all members of a hub at once
      logs          Print the log of a pod in a member of a hub
      exec          Run a command in a pod in a member of a hub
      upgrade       Replace the control planes of a running mesh by revision, step by step, and back
      agent         Connect a cluster that cannot be dialled to a hub, for ever
      operator      Keep the clusters as the mesh file says, for ever
      explain       Explain a finding or a cause by its id
      completions   Print completions for a shell
      man           Write the manual pages
      help          Print this message or the help of the given subcommand(s)

    Options:
      -v, --verbose...    Say more about what is going on; twice for even more
      -q, --quiet         Print no progress
          --color <WHEN>  Whether to colour [default: auto]
      -h, --help          Print help
      -V, --version       Print version
    --- stderr
    "#);
}

#[test]
fn wrong_usage_is_an_error_and_not_a_finding() {
    let run = Desk::new().run(["stauts"]);
    insta::assert_snapshot!(run.shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: unrecognized subcommand 'stauts'

      tip: a similar subcommand exists: 'status'

    Usage: stolos [OPTIONS] <COMMAND>

    For more information, try '--help'.
    "#);
    assert_eq!(Desk::new().run::<&str>([]).code, Some(1));
    assert_eq!(Desk::new().run(["-V"]).shown(), "exit 0\n--- stdout\nstolos [VERSION]\n--- stderr\n");
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = Desk::new().run(["completions", shell]);
        assert!(run.code == Some(0) && run.out.contains("verify") && run.err.is_empty(), "{shell}: {}", run.shown());
    }
}

#[test]
fn findings_are_explained_by_id() {
    let desk = Desk::new();
    let all = desk.run(["explain"]).shown();
    let (causes, findings): (Vec<_>, Vec<_>) = all.lines().partition(|line| line.starts_with("D-"));
    assert_eq!(causes.len(), 60);
    assert!(causes[7].starts_with("D-08 ") && causes[7].contains("no way between the pods"), "{}", causes[7]);
    insta::assert_snapshot!(findings.join("\n"), @r#"
    exit 0
    --- stdout
    ID              MEANING
    charts          The mesh file names a folder with Istio's charts (`controlPlane.charts`), and a chart that is needed is not in it, or is there in another version than the file asks for
    engine-changed  The mesh in the cluster was built with the small engine, and the file now asks for real Istio (or the other way round)
    engine-mixed    Some clusters of the mesh are lab clusters and some are not
    istio-version   The mesh file asks for an Istio that is older than 1.20
    no-cluster      None of the mesh's clusters answered, so nothing is known and nothing may be changed
    no-member       A cluster is to be reached through the hub, and the hub does not have it, or has another one under its name
    no-root         Clusters of this mesh are built already, but the state folder has no root to issue certificates from
    other-mesh      A cluster carries objects of another mesh of Stolos'
    other-root      A cluster's signing certificate (Secret `cacerts`) comes from another root than the state folder's
    revision        The mesh file names a revision of the control plane, which only Istio has; the small engine has one control plane in each cluster
    root-key        A new certificate is needed, and the root's key cannot be used
    root-refused    The root certificate that the mesh file names cannot be used
    root-rotation   The mesh's root is being replaced from another state folder, and a cluster needs a signing certificate
    same-cluster    Two entries of the mesh file lead to one cluster
    unreachable     A cluster did not answer in time
    --- stderr
    "#);
    insta::assert_snapshot!(desk.run(["explain", "other-root"]).shown(), @r#"
    exit 0
    --- stdout
    other-root

    A cluster's signing certificate (Secret `cacerts`) comes from another root than the state folder's. Workloads of the two would refuse each other.

    What to do: Name the folder the mesh was built with (`--state DIR` or `STOLOS_STATE`), or give that root as `spec.trust.root.files`.
    --- stderr
    "#);
    insta::assert_snapshot!(desk.run(["explain", "d-20"]).shown(), @r#"
    exit 0
    --- stdout
    D-20  a kubeconfig authenticates in a way that is refused

    In a healthy mesh no remote kubeconfig runs programs or points to files.

    How it shows: The control plane logs that the kubeconfig is refused; the cluster stays unknown.

    Why it breaks the mesh: Control planes do not run programs (`exec`) or read files that a Secret names. A copied user's kubeconfig (EKS, GKE, AKS) mostly does both.

    What to do: Use a service account's token (`stolos apply` does), never a person's kubeconfig.

    Group: remote secrets (error: traffic is broken)
    Look for it alone: stolos check --only D-20
    --- stderr
    "#);
    insta::assert_snapshot!(desk.run(["explain", "root"]).shown(), @r#"
    exit 1
    --- stdout
    --- stderr
    error: there is no finding `root`
    hint: `stolos explain no-root`
    "#);
}

#[test]
fn every_flag_of_apply_and_lab_up_says_what_it_does() {
    let desk = Desk::new();
    insta::assert_snapshot!(desk.run(["apply", "--help"]).out, @r#"
    Make the clusters one mesh

    Usage: stolos apply [OPTIONS]

    Options:
      -f, --file <FILE>
              The mesh: a `Mesh`, a topology.yaml (with its base.yaml beside it), a ristioctl file,
              Karmada's policies, or the files of a shared control plane; `-` is standard input
              
              [env: STOLOS_FILE=]

      -v, --verbose...
              Say more about what is going on; twice for even more

          --base <FILE>
              Helm values to lay over what Stolos computes, or the gateway that
              `gen-eastwest-gateway.sh` printed

      -q, --quiet
              Print no progress

          --color <WHEN>
              Whether to colour
              
              [default: auto]

          --state <DIR>
              The state folder: root key and journal [default: ~/.local/state/stolos/MESH]
              
              [env: STOLOS_STATE=]

          --kubeconfig <FILE>
              The kubeconfig to find the contexts in [default: the mesh file's own, $KUBECONFIG,
              ~/.kube/config]

          --passphrase-file <FILE>
              A file whose first line is the passphrase of the root's key [default: $STOLOS_PASSPHRASE]

          --samples[=<NAMES>]
              Install samples along: `helloworld,sleep` where no names are given

              Possible values:
              - helloworld: A service in every cluster that says which version answered
              - sleep:      A client in every cluster
              - bookinfo:   Istio's book shop

          --dry-run
              Only say what would be done; exits with 2 if there is anything

      -y, --yes
              Do not ask before something is removed

          --timeout <SECONDS>
              How long one wait may take, in seconds
              
              [default: 120]

      -o, --output <FORMAT>
              How data is printed

              Possible values:
              - table: For people
              - wide:  For people with wide screens
              - json:  One JSON document
              - yaml:  One YAML document
              
              [default: table]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    What other systems' files leave out:
          --primary <CONTEXT[=NETWORK]>
              The cluster whose control plane the others share

          --remote <CONTEXT[=NETWORK]>
              A cluster that shares it

          --mesh-id <ID>
              The mesh's name, where no file says it
              
              [env: MESH_ID]
    "#);
    insta::assert_snapshot!(desk.run(["lab", "up", "--help"]).out, @r#"
    Start clusters in one process: those a mesh file names, or so many

    Usage: stolos lab up [OPTIONS]

    Options:
      -f, --file <FILE>        The mesh: a `Mesh`, a topology.yaml (with its base.yaml beside it), a
                               ristioctl file, Karmada's policies, or the files of a shared control
                               plane; `-` is standard input [env: STOLOS_FILE=]
      -v, --verbose...         Say more about what is going on; twice for even more
          --base <FILE>        Helm values to lay over what Stolos computes, or the gateway that
                               `gen-eastwest-gateway.sh` printed
      -q, --quiet              Print no progress
          --color <WHEN>       Whether to colour [default: auto]
          --state <DIR>        The state folder: root key and journal [default:
                               ~/.local/state/stolos/MESH] [env: STOLOS_STATE=]
          --clusters <N>       So many clusters, instead of those of a mesh file
          --networks <N>       On so many networks [default: 1]
          --detach             Let it go on in the background once it is up
          --kubeconfig <FILE>  A kubeconfig to write besides the lab's own; never one that is somebody
                               else's
          --renumber           Take new addresses where another lab holds the old ones
          --api-delay <MS>     Added to every API call, in milliseconds: how distant clusters feel
                               [default: 0]
          --envoy <PROGRAM>    A real Envoy, for pods annotated `stolos.dev/proxy: envoy` [env:
                               STOLOS_ENVOY]
          --envoy-for <PODS>   Which other pods it is the proxy of [default: annotated] [possible
                               values: annotated, all, gateways, sidecars, half]
      -h, --help               Print help
      -V, --version            Print version

    What other systems' files leave out:
          --primary <CONTEXT[=NETWORK]>  The cluster whose control plane the others share
          --remote <CONTEXT[=NETWORK]>   A cluster that shares it
          --mesh-id <ID>                 The mesh's name, where no file says it [env: MESH_ID]
    "#);
}

#[test]
fn the_long_version_says_how_it_was_built() {
    let run = Desk::new().run(["--version"]);
    let facts: Vec<_> = run.out.lines().filter_map(|line| line.split_once(':').map(|(fact, _)| fact)).collect();
    assert_eq!((run.code, facts), (Some(0), vec!["commit", "built for", "compiler"]), "{}", run.out);
    assert!(run.out.contains("compiler:  rustc 1."), "{}", run.out);
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let desk = Desk::new();
    let first = desk.run(["man"]);
    assert!(first.out.contains(".TH stolos 1") && first.out.contains("stolos\\-verify(1)"), "{}", first.shown());
    assert_eq!(desk.run(["man", "pages/man1"]).code, Some(0));
    for page in ["stolos.1", "stolos-plan.1", "stolos-lab-fault-partition.1"] {
        assert!(desk.read(&format!("pages/man1/{page}")).contains(".SH OPTIONS"), "{page}");
    }
    desk.write("file", "");
    let refused = desk.run(["man", "file"]);
    assert_eq!(refused.code, Some(1), "{}", refused.shown());
}
