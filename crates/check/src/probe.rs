//! What `verify` brings along: a namespace with a server, a client, and a client outside the mesh. No I/O.

use serde_json::{Value, json};

/// Label on everything that `verify` brings.
pub(crate) const LABEL: &str = "stolos.dev/verify";

/// The server's image: Istio's own sample, which says which pod answered.
const SERVER_IMAGE: &str = "docker.io/istio/examples-helloworld-v1:1.0";
/// The client's image.
const CLIENT_IMAGE: &str = "docker.io/curlimages/curl:8.16.0";

/// Port of the server and its Service.
pub(crate) const PORT: u16 = 5000;
/// The server's Service, Deployment and service account.
pub(crate) const SERVER: &str = "helloworld";
/// The client inside the mesh.
pub(crate) const CLIENT: &str = "client";
/// The client without a proxy.
pub(crate) const OUTSIDER: &str = "outsider";

/// The namespace itself.
pub(crate) fn namespace(name: &str, mesh: &str, revision: Option<&str>) -> Value {
    // A control plane that has a revision answers to its name only; the older label would win over it (E.18).
    let (label, value) = revision.map_or(("istio-injection", "enabled"), |revision| ("istio.io/rev", revision));
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {
            label: value, LABEL: "true",
            "app.kubernetes.io/managed-by": "stolos", "stolos.dev/mesh": mesh,
        }},
    })
}

/// Everything inside it, in an order that can be applied.
pub(crate) fn objects(namespace: &str) -> Vec<Value> {
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
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
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
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
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
                    "name": SERVER, "image": SERVER_IMAGE, "ports": [{"containerPort": PORT}],
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                }],
            }),
        ),
        client(namespace, CLIENT, json!({"app": CLIENT})),
        client(namespace, OUTSIDER, json!({"app": OUTSIDER, "sidecar.istio.io/inject": "false"})),
    ]
}

fn client(namespace: &str, name: &str, labels: Value) -> Value {
    deployment(
        namespace,
        name,
        labels,
        json!({
            "serviceAccountName": CLIENT,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "curl", "image": CLIENT_IMAGE, "command": ["/bin/sleep", "infinity"]}],
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
