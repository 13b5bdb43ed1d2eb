//! What `verify` brings along: a namespace with a server, a client, and a client outside the mesh. No I/O.

use serde_json::{Value, json};

/// Label on everything that `verify` brings.
pub(crate) const LABEL: &str = "stolos.dev/verify";

/// What `verify` brings along, as far as a user has a say in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The server's image: Istio's own sample, which says which pod answered (port 5000, path `/hello`).
    pub server: String,
    /// The clients' image: a shell with `curl`, `seq` and `sleep`.
    pub client: String,
    /// The namespace, instead of `stolos-verify-<random>`. It must not be there yet.
    pub namespace: Option<String>,
    /// The label that gets pods of the namespace a proxy, instead of the one that the mesh's control plane answers to.
    pub injection: Option<(String, String)>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            server: "docker.io/istio/examples-helloworld-v1:1.0".to_owned(),
            client: "docker.io/curlimages/curl:8.16.0".to_owned(),
            namespace: None,
            injection: None,
        }
    }
}

impl Workload {
    /// The images as they are called in a registry that mirrors Docker Hub, such as `registry.example.com/mirror`.
    #[must_use]
    pub fn mirrored(self, registry: &str) -> Self {
        let there = |image: &str| {
            let path = image.strip_prefix("docker.io/").unwrap_or(image);
            format!("{}/{path}", registry.trim_end_matches('/'))
        };
        Self { server: there(&self.server), client: there(&self.client), ..self }
    }
}

/// The version that every Istio serves, from 1.20 (which has no `v1` yet) to the newest.
const ISTIO_API: &str = "networking.istio.io/v1beta1";

/// Port of the server and its Service.
pub(crate) const PORT: u16 = 5000;
/// The server's Service, Deployment and service account.
pub(crate) const SERVER: &str = "helloworld";
/// The client inside the mesh.
pub(crate) const CLIENT: &str = "client";
/// The client without a proxy.
pub(crate) const OUTSIDER: &str = "outsider";

/// The namespace itself.
pub(crate) fn namespace(name: &str, mesh: &str, revision: Option<&str>, workload: &Workload) -> Value {
    // A control plane that has a revision answers to its name only; the older label would win over it (E.18).
    let own = || revision.map_or(("istio-injection", "enabled"), |revision| ("istio.io/rev", revision));
    let given = workload.injection.as_ref().map(|(label, value)| (label.as_str(), value.as_str()));
    let (label, value) = given.unwrap_or_else(own);
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {
            label: value, LABEL: "true",
            "app.kubernetes.io/managed-by": "stolos", "stolos.dev/mesh": mesh,
        }},
    })
}

/// Everything inside it, in an order that can be applied.
pub(crate) fn objects(namespace: &str, workload: &Workload) -> Vec<Value> {
    let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}});
    vec![
        account(SERVER),
        account(CLIENT),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": SERVER, "namespace": namespace, "labels": {"app": SERVER}},
            "spec": {"selector": {"app": SERVER}, "ports": [{"name": "http", "port": PORT, "targetPort": PORT}]},
        }),
        // Every endpoint gets its share: no ejection, no preference for what is near.
        json!({
            "apiVersion": ISTIO_API, "kind": "DestinationRule",
            "metadata": {"name": SERVER, "namespace": namespace},
            "spec": {
                "host": format!("{SERVER}.{namespace}.svc.cluster.local"),
                "trafficPolicy": {
                    "loadBalancer": {"simple": "RANDOM", "localityLbSetting": {"enabled": false}},
                    // A gateway chooses a pod for each connection, not for each request: kept ones would show the
                    // same few pods again and again. What is proven is who answers, not how fast: a machine that is busy
                    // has longer than the engine's 500 ms to accept a connection.
                    "connectionPool": {"tcp": {"connectTimeout": "2s"}, "http": {"maxRequestsPerConnection": 1}},
                    "outlierDetection": {"consecutiveGatewayErrors": 0, "consecutive5xxErrors": 0},
                },
            },
        }),
        // A second try elsewhere would hide that the first one failed, and why.
        json!({
            "apiVersion": ISTIO_API, "kind": "VirtualService",
            "metadata": {"name": SERVER, "namespace": namespace},
            "spec": {
                "hosts": [format!("{SERVER}.{namespace}.svc.cluster.local")],
                "http": [{
                    "route": [{"destination": {"host": format!("{SERVER}.{namespace}.svc.cluster.local")}}],
                    "retries": {"attempts": 0},
                }],
            },
        }),
        deployment(
            namespace,
            SERVER,
            json!({"app": SERVER, "version": "v1"}),
            json!({
                "serviceAccountName": SERVER,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": SERVER, "image": workload.server, "ports": [{"containerPort": PORT}],
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                }],
            }),
        ),
        client(namespace, workload, CLIENT, json!({"app": CLIENT})),
        client(namespace, workload, OUTSIDER, json!({"app": OUTSIDER, "sidecar.istio.io/inject": "false"})),
    ]
}

fn client(namespace: &str, workload: &Workload, name: &str, labels: Value) -> Value {
    deployment(
        namespace,
        name,
        labels,
        json!({
            "serviceAccountName": CLIENT,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "curl", "image": workload.client, "command": ["/bin/sleep", "infinity"]}],
        }),
    )
}

fn deployment(namespace: &str, name: &str, labels: Value, pod: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    })
}

/// What marks the end of one answer in the client's output.
pub(crate) const END: &str = "~~ ";

/// A shell script that sends `requests` requests and prints, after each answer's body, [`END`], the HTTP status and
/// the seconds it took. The request ids are `<run>-<number>`, from 1.
pub(crate) fn script(namespace: &str, run: &str, requests: usize) -> String {
    format!(
        "for i in $(seq 1 {requests}); do curl -sS -m 10 -H \"x-request-id: {run}-$i\" \
         -w '\\n{END}%{{http_code}} %{{time_total}}\\n' http://{SERVER}.{namespace}:{PORT}/hello 2>&1; done"
    )
}

/// One answer, as [`script`] prints it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// HTTP status, 0 when there was none.
    pub(crate) status: u16,
    /// How long it took.
    pub(crate) millis: f64,
    /// The pod that says it answered.
    pub(crate) instance: Option<String>,
}

/// Reads the output of [`script`]; the n-th answer belongs to request id `<run>-<n>`.
pub(crate) fn answers(output: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut instance = None;
    for line in output.lines() {
        if let Some(end) = line.strip_prefix(END) {
            let mut words = end.split_whitespace();
            let status = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
            let seconds: f64 = words.next().and_then(|w| w.parse().ok()).unwrap_or(0.0);
            answers.push(Answer { status, millis: seconds * 1000.0, instance: instance.take() });
        } else if let Some((_, pod)) = line.split_once("instance: ") {
            instance = Some(pod.trim().to_owned());
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_a_say_in_what_is_brought_along() {
        let workload = Workload::default().mirrored("registry.example.com/hub/");
        let images: Vec<_> = objects("probe", &workload)
            .iter()
            .filter_map(|o| Some(o.pointer("/spec/template/spec/containers/0/image")?.as_str()?.to_owned()))
            .collect();
        let (server, client) = ("istio/examples-helloworld-v1:1.0", "curlimages/curl:8.16.0");
        assert_eq!(images, [server, client, client].map(|image| format!("registry.example.com/hub/{image}")));

        let label = |key: &str, value: &str| Some((key.to_owned(), value.to_owned()));
        for (revision, injection, expected) in [
            (None, None, ("istio-injection", "enabled")),
            (Some("1-28"), None, ("istio.io/rev", "1-28")),
            (Some("1-28"), label("istio.io/rev", "canary"), ("istio.io/rev", "canary")),
            (None, label("mesh.example.com/inject", "yes"), ("mesh.example.com/inject", "yes")),
        ] {
            let workload = Workload { injection, ..Workload::default() };
            let labels = namespace("probe", "mymesh", revision, &workload)["metadata"]["labels"].clone();
            assert_eq!(labels[expected.0], expected.1, "{labels}");
            let others = ["istio-injection", "istio.io/rev"].into_iter().filter(|key| *key != expected.0);
            others.for_each(|key| assert!(labels[key].is_null(), "{labels}"));
        }
    }

    #[test]
    fn answers_are_read_back() {
        let output = "Hello version: v1, instance: helloworld-v1-abc\n\n~~ 200 0.001500\n\
                      no healthy upstream\n~~ 503 0.000400\ncurl: (7) refused\n\n~~ 000 0.5\n";
        let answer = |status, millis, instance: Option<&str>| Answer {
            status,
            millis,
            instance: instance.map(ToOwned::to_owned),
        };
        assert_eq!(
            answers(output),
            [answer(200, 1.5, Some("helloworld-v1-abc")), answer(503, 0.4, None), answer(0, 500.0, None)]
        );
    }
}
