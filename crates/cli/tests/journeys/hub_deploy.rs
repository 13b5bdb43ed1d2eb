//! A hub as a pod runs it: its chart by the real Helm, its arguments by the binary, and what it says of itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use stolos_cluster::objects::{self, Resource};

use crate::hub::PATIENCE;
use crate::world::{World, eventually, finish, page, text};

const LAB: &str = "- {context: east, network: east}\n";

fn free() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The chart in all its ways, by the real Helm: every object is one that an API server takes, and the hub starts with
/// exactly these arguments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chart_starts_a_hub() {
    let Some(helm) = crate::programs::program("STOLOS_HELM") else { return };
    let mut world = World::new();
    let lab = world.write("lab.yaml", LAB);
    world.up(&lab).await;
    let east = world.cluster("east").await;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/charts/stolos-hub");
    let helm = |args: &[&str]| finish(world.program(&helm, args));
    helm(&["lint", text(&chart), "--strict"]).await.ends_with(0);
    let install = async |name: &str, values: &[&str]| {
        let to = ["--kube-context", "east", "--namespace", "hub", "--create-namespace"];
        helm(&[&["install", name, text(&chart)], &to[..], values].concat()).await
    };
    let get = |version: &str, kind: &str, name: &str| {
        let (resource, client, name) = (Resource::named(version, kind).unwrap(), east.client.clone(), name.to_owned());
        async move { objects::get(&client, &resource, Some("hub"), &name).await.unwrap() }
    };
    let arguments = |set: &Value| -> Vec<String> {
        let args = set["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
        args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
    };

    // An API of its own.
    let notes = install("own", &["--set", "names={hub.example.com},verbosity=2"]).await.ends_with(0).out;
    assert!(notes.contains("stolos hub config --server https://hub.example.com:443"), "{notes}");
    let set = get("apps/v1", "StatefulSet", "own-stolos-hub").await.unwrap();
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(set["spec"]["replicas"], 1);
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
    let service = get("v1", "Service", "own-stolos-hub").await.unwrap();
    let ports: Vec<_> = service["spec"]["ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect();
    assert_eq!(ports, [443, 8443, 8080]);
    let args = arguments(&set);
    insta::assert_snapshot!(args.join("\n"), @r"
    hub
    up
    --listen=0.0.0.0:6443
    --agents=0.0.0.0:8443
    --metrics=0.0.0.0:8080
    --san=hub.example.com
    --san=own-stolos-hub.hub.svc
    -v
    -v
    ");

    // The same arguments, but for where it listens: only here may it be reached.
    let metrics = free();
    let here = |arg: &String| match arg.as_str() {
        "--listen=0.0.0.0:6443" | "--agents=0.0.0.0:8443" => arg.split('=').next().unwrap().to_owned() + "=127.0.0.1:0",
        "--metrics=0.0.0.0:8080" => format!("--metrics={metrics}"),
        _ => arg.clone(),
    };
    let mut command = world.stolos(args.iter().map(here));
    command.env("STOLOS_HUB_DATA", world.path("hub")).env("POD_NAME", "own-stolos-hub-0");
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let ready = async || match page(&metrics, "/readyz").await? {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the hub is ready", PATIENCE, ready).await;
    assert_eq!(page(&metrics, "/healthz").await.unwrap().0, 200);

    // Its figures follow what it does; what it is asked for is what it exports.
    world.good(&["hub", "join", "east", "--data", "hub"]).await;
    eventually("figures of a member", PATIENCE, async || {
        let (_, figures) = page(&metrics, "/metrics").await?;
        let wanted = [
            "stolos_hub_leader 1",
            "stolos_hub_member_ready{cluster=\"east\",mode=\"Push\"} 1",
            "stolos_hub_looks_total{queue=\"clusters\",result=\"done\"}",
            "stolos_hub_queue_length{queue=\"works\",when=\"now\"} 0",
            "stolos_hub_bindings{state=\"unscheduled\"} 0",
        ];
        let missing: Vec<_> = wanted.iter().filter(|line| !figures.contains(**line)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} is not in\n{figures}")) }
    })
    .await;
    let exported = page(&metrics, "/metrics").await.unwrap().1;
    let rules = std::fs::read_to_string(chart.join("../../prometheus/rules.yaml")).unwrap();
    let asked = regex::Regex::new(r"\bstolos_hub_[a-z_]+\b").unwrap();
    let asked: BTreeSet<&str> = asked.find_iter(&rules).map(|found| found.as_str()).collect();
    assert!(
        asked.len() > 3 && asked.iter().all(|name| exported.contains(name)),
        "{asked:?} are not all in\n{exported}"
    );

    // Its kubeconfig for somebody elsewhere; an address that cannot be one is refused.
    let elsewhere = ["hub", "config", "--data", "hub", "--server"];
    let config = world.good(&[&elsewhere[..], &["https://hub.example.com:443"]].concat()).await.out;
    assert!(config.contains("server: https://hub.example.com:443"), "no server");
    let refused = world.run(&[&elsewhere[..], &["hub.example.com"]].concat()).await.ends_with(1);
    assert!(refused.err.contains("write `https://HOST[:PORT]`"), "{}", refused.err);
    world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(process.wait().await.unwrap().success());

    // The API of this very cluster, and another one: several, of which one acts.
    install("here", &["--set", "existing.inCluster=true"]).await.ends_with(0);
    let set = get("apps/v1", "StatefulSet", "here-stolos-hub").await.unwrap();
    assert_eq!(set["spec"]["replicas"], 2);
    assert_eq!(set["spec"]["template"]["spec"]["automountServiceAccountToken"], true);
    insta::assert_snapshot!(arguments(&set).join("\n"), @r"
    hub
    up
    --kubeconfig=/etc/stolos/kubeconfig/kubeconfig
    --listen=0.0.0.0:6443
    --service=hub/here-stolos-hub:6443
    --agents=0.0.0.0:8443
    --metrics=0.0.0.0:8080
    --san=here-stolos-hub.hub.svc
    -v
    ");
    let service = get("v1", "Service", "here-stolos-hub").await.unwrap();
    assert_eq!(service["spec"]["ports"][0]["name"], "https-members");
    let kubeconfig = get("v1", "ConfigMap", "here-stolos-hub").await.unwrap();
    assert!(kubeconfig["data"]["kubeconfig"].as_str().unwrap().contains("tokenFile"));
    install("there", &["--set", "existing.kubeconfigSecret=control,existing.context=main"]).await.ends_with(0);
    let set = get("apps/v1", "StatefulSet", "there-stolos-hub").await.unwrap();
    let args = arguments(&set);
    // Nobody has said by which name that API could ask it.
    assert!(!args.iter().any(|arg| arg.starts_with("--listen")), "{args:?}");
    let args: Vec<String> = args.iter().map(here).collect();
    let understood = world.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).await.ends_with(1);
    assert!(understood.err.contains("/etc/stolos/kubeconfig/kubeconfig"), "{}", understood.err);
    let both =
        install("both", &["--set", "existing.kubeconfigSecret=control,existing.inCluster=true"]).await.ends_with(1);
    assert!(both.err.contains("name two APIs: keep one"), "{}", both.err);
}
