//! Who may do what to a workload, asked from the other cluster on the other network: with our proxy and with Envoy.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};

use crate::world::{World, eventually, say, text};

fn mesh(name: &str) -> String {
    format!(
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: {name}}}\nspec:\n  samples: [sleep]\n  clusters:\n\
         \x20 - {{name: a, context: {name}-a, network: east}}\n\
         \x20 - {{name: b, context: {name}-b, network: west}}\n"
    )
}

async fn write(cluster: &Cluster, object: &Value) {
    objects::apply(&cluster.client, &Resource::of(object).unwrap(), object, "journey", true).await.unwrap();
}

/// A workload that answers, and its Service, whose port is of this name.
fn workload(name: &str, port: &str, envoy: bool) -> [Value; 2] {
    let annotations = if envoy { json!({"stolos.dev/proxy": "envoy"}) } else { json!({}) };
    let labels = json!({"app": name});
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "sample"},
            "spec": {"selector": labels, "ports": [{"name": port, "port": 5000}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "sample"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels, "annotations": annotations},
                "spec": {"terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "helloworld", "image": "istio/examples-helloworld-v2"}]}}}}),
    ]
}

async fn obeys(name: &str, envoy: Option<PathBuf>) {
    let mut world = World::new();
    let file = world.write("mesh.yaml", &mesh(name));
    let flags: Vec<&str> = envoy.iter().flat_map(|envoy| ["--envoy", text(envoy)]).collect();
    world.up_with(&file, &flags).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let clusters = world.clusters(&[&format!("{name}-a"), &format!("{name}-b")]).await;
    let workloads = [("far", "http"), ("raw", "tcp")];
    for object in workloads.iter().flat_map(|(name, port)| workload(name, port, envoy.is_some())) {
        write(&clusters[1], &object).await;
    }
    let sleep = crate::setup_mesh::ready_pods(&clusters[0].client, "sample", "sleep").await.remove(0);
    // The status of the answer, or 000 where there is none.
    let ask = |what: &'static str| {
        let (cluster, pod) = (&clusters[0], sleep.clone());
        async move {
            let script = format!(
                "curl -s -m 5 -o /tmp/answer -w '%{{http_code}}' {what}; echo; cat /tmp/answer; rm -f /tmp/answer"
            );
            let said = crate::envoy::inside(cluster, "sample", &pod, "sleep", &["sh", "-c", &script]).await;
            let (status, body) = said.split_once('\n').unwrap_or((&said, ""));
            (status.trim().to_owned(), body.to_owned())
        }
    };
    let answered = |what: &'static str, expected: &'static str| {
        let ask = &ask;
        async move {
            eventually(&format!("{what}: {expected}"), Duration::from_secs(30), || async {
                let (status, body) = ask(what).await;
                if expected == "403" && status == "403" && body != "RBAC: access denied" {
                    return Err(format!("403: {body}"));
                }
                if status == expected { Ok(()) } else { Err(format!("{status}: {body}")) }
            })
            .await;
        }
    };
    const HELLO: &str = "far.sample:5000/hello";
    const POST: &str = "-X POST far.sample:5000/hello";
    const HEALTH: &str = "far.sample:5000/health";
    const RAW: &str = "raw.sample:5000/hello";
    for what in [HELLO, RAW] {
        answered(what, "200").await;
    }

    let sleeper = "cluster.local/ns/sample/sa/sleep";
    let only_get = json!({"rules": [{"from": [{"source": {"principals": [sleeper]}}],
        "to": [{"operation": {"methods": ["GET"], "paths": ["/hello*"]}}]}]});
    /// What is tried, the policy, and each request with its status.
    type Step<'a> = (&'a str, Value, &'a [(&'a str, &'a str)]);
    let steps: [Step<'_>; 8] = [
        ("an empty policy lets nobody in", json!({}), &[(HELLO, "403"), (RAW, "000")]),
        ("some requests of some", only_get, &[(HELLO, "200"), (POST, "403"), (HEALTH, "403"), (RAW, "000")]),
        (
            "others alone",
            json!({"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/sample/sa/other"]}}]}]}),
            &[(HELLO, "403"), (RAW, "000")],
        ),
        (
            "a namespace",
            json!({"rules": [{"from": [{"source": {"namespaces": ["sample"]}}]}]}),
            &[(HELLO, "200"), (POST, "200"), (RAW, "200")],
        ),
        (
            "denied is denied, and what is not is as before",
            json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/health"], "ports": ["5000"]}}],
                "from": [{"source": {"notPrincipals": ["cluster.local/ns/sample/sa/other"]}}]}]}),
            // Of a connection nothing is known of paths: Istio denies too much there rather than too little.
            &[(HELLO, "200"), (HEALTH, "403"), (RAW, "000")],
        ),
        (
            "everybody but some addresses",
            json!({"rules": [{"from": [{"source": {"notIpBlocks": ["192.0.2.0/24"]}}]}]}),
            &[(HELLO, "200"), (RAW, "200")],
        ),
        (
            "some addresses",
            json!({"rules": [{"from": [{"source": {"ipBlocks": ["192.0.2.0/24"]}}]}]}),
            &[(HELLO, "403"), (RAW, "000")],
        ),
        // What cannot be obeyed closes the workload: the connection, not the request.
        (
            "what is not understood",
            json!({"rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]}),
            &[(HELLO, "503"), (RAW, "000")],
        ),
    ];
    for (what, spec, expected) in steps {
        let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "journey", "namespace": "sample"}, "spec": spec});
        // Whole, so that nothing of the policy before it stays.
        let resource = Resource::of(&policy).unwrap();
        objects::delete(&clusters[1].client, &resource, Some("sample"), "journey", None).await.unwrap();
        write(&clusters[1], &policy).await;
        for (request, status) in expected {
            answered(request, status).await;
        }
        say(&format!("{name}: {what}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_obeyed_across_clusters() {
    obeys("may", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_obeyed_across_clusters_by_envoy() {
    let Some(envoy) = crate::programs::program("STOLOS_ENVOY") else { return };
    obeys("may-envoy", Some(envoy)).await;
}
