//! One seed for each cause, and the causes that a lab cannot have, with the reason.

use std::time::Duration;

use serde_json::{Value, json};
use stolos_k8s::istio;
use stolos_pki::Authority;

use super::super::snapshot::*;
use super::healthy::{Shape, World, YEAR, kubeconfig, pod, secret, token};

type Seed = (&'static str, fn() -> Shape, fn(&mut World));

pub(super) fn seed(id: &str) -> fn(&mut World) {
    SEEDS.iter().find(|(known, ..)| *known == id).unwrap().2
}

/// Causes that the lab cannot have, and why.
pub(super) const NOT_IN_A_LAB: &[(&str, &str)] = &[
    ("D-06", "all lab clusters share this machine's clock"),
    ("D-09", "a lab gives every cluster pod addresses of its own, and its nodes have no pod CIDR"),
    ("D-12", "a lab's load balancers have addresses, never names"),
    ("D-13", "a lab's addresses are loopback addresses, none of which is private"),
    ("D-17", "in a lab this only ever follows from another cause (D-01, D-07, D-16), and is seen to"),
    (
        "D-25",
        "what keeps a lab's control plane from taking a cluster in is another cause (D-18, D-19), and it is seen to follow",
    ),
    ("D-26", "the lab's control plane follows endpoints without the fault of Istio 1.30"),
    ("D-51", "a lab is one process on one machine, so one gateway is as good as two"),
    ("D-53", "a lab has IPv4 addresses only"),
    ("D-54", "a lab's links carry TCP streams, not packets of a size"),
    ("D-56", "the small engine has no ambient mode"),
];

fn three() -> Shape {
    Shape::default()
}

fn remote() -> Shape {
    Shape { networks: vec![0, 1, 1], remote: true, ..Shape::default() }
}

fn hostnames() -> Shape {
    Shape { hostnames: true, ..Shape::default() }
}

fn private() -> Shape {
    Shape { private_gateways: true, ..Shape::default() }
}

fn lab() -> Shape {
    Shape { lab: true, ..Shape::default() }
}

/// The probes that other clusters' pods made of the gateway of c3.
fn touch(world: &mut World, touch: &Touch) {
    for cluster in ["c1", "c2"] {
        for probe in world.seen(cluster).gateways.iter_mut().filter(|p| p.cluster == "c3") {
            probe.touch = Datum::now(touch.clone());
            probe.handshake = None;
        }
    }
}

fn mesh_config(world: &mut World, cluster: &str, change: impl FnOnce(&mut Value)) {
    let map = world.object(cluster, "ConfigMap", "istio");
    let mut config: Value = serde_json::from_str(map["data"]["mesh"].as_str().unwrap()).unwrap();
    change(&mut config);
    map["data"]["mesh"] = config.to_string().into();
}

fn values(world: &mut World, cluster: &str, pointer: &str, value: Value) {
    let map = world.object(cluster, "ConfigMap", "istio-sidecar-injector");
    let mut values: Value = serde_json::from_str(map["data"]["values"].as_str().unwrap()).unwrap();
    *values.pointer_mut(pointer).unwrap() = value;
    map["data"]["values"] = values.to_string().into();
}

/// The remote secret for c2 in c1 holds another kubeconfig.
fn credential(world: &mut World, server: &str, user: &str) {
    let config = kubeconfig("c2", server, user);
    let data = secret("x", json!({}), &[("c2", &config)])["data"].clone();
    world.object("c1", "Secret", "istio-remote-secret-c2")["data"] = data;
}

fn answer(world: &mut World, answer: CredentialAnswer) {
    let probe = world.seen("c1").credentials.iter_mut().find(|p| p.key == "c2").unwrap();
    probe.answer = Datum::now(answer);
}

fn destination_rule(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn publish(world: &mut World, cluster: &str, pem: &str) {
    world.object(cluster, "ConfigMap", "istio-ca-root-cert")["data"]["root-cert.pem"] = pem.into();
}

pub(super) const SEEDS: &[Seed] = &[
    ("D-01", three, |w| {
        let other = Authority::new_root("other", YEAR, w.now).unwrap();
        let certs = other.issue_intermediate("c3", "other", "cluster.local", YEAR, w.now).unwrap();
        w.cacerts("c3", &certs);
        publish(w, "c3", &certs.root_cert);
    }),
    ("D-01", three, |w| {
        // Without cacerts it signs for itself.
        let own = Authority::new_root("cluster.local", YEAR, w.now).unwrap();
        w.remove("c2", "Secret", "cacerts");
        publish(w, "c2", own.roots_pem());
    }),
    ("D-02", three, |w| {
        let own = Authority::new_root("cluster.local", YEAR, w.now).unwrap();
        let ours = secret("istio-ca-secret", json!({}), &[("ca-cert.pem", own.roots_pem())]);
        w.list("c2", "Secret").push(ours);
        publish(w, "c2", own.roots_pem());
    }),
    ("D-03", three, |w| {
        let data = &mut w.object("c1", "Secret", "cacerts")["data"];
        let certificate = data["ca-cert.pem"].take();
        *data = json!({"cert.pem": certificate, "ca-key.pem": data["ca-key.pem"], "cert-chain.pem": data["cert-chain.pem"], "root-cert.pem": data["root-cert.pem"]});
    }),
    ("D-04", three, |w| {
        let mut certs = World::root().issue_intermediate("c1", "mesh", "cluster.local", YEAR, w.now).unwrap();
        certs.ca_key = World::root().issue_intermediate("c1", "mesh", "cluster.local", YEAR, w.now).unwrap().ca_key;
        w.cacerts("c1", &certs);
    }),
    ("D-04", three, |w| {
        let mut certs = World::root().issue_intermediate("c1", "mesh", "cluster.local", YEAR, w.now).unwrap();
        certs.cert_chain = certs.root_cert.clone();
        w.cacerts("c1", &certs);
    }),
    ("D-05", three, |w| {
        let then = w.now - 3 * YEAR;
        let old = Authority::new_root("mesh", 10 * YEAR, then).unwrap();
        let certs = old.issue_intermediate("c1", "mesh", "cluster.local", YEAR, then).unwrap();
        for cluster in ["c1", "c2", "c3"] {
            let certs = if cluster == "c1" {
                certs.clone()
            } else {
                old.issue_intermediate(cluster, "mesh", "cluster.local", 5 * YEAR, then).unwrap()
            };
            w.cacerts(cluster, &certs);
            publish(w, cluster, &certs.root_cert);
        }
        // Whoever shows the old chain at the gateways is refused: that follows.
    }),
    ("D-05", three, |w| {
        let certs = World::root()
            .issue_intermediate("c1", "mesh", "cluster.local", YEAR, w.now - YEAR + Duration::from_secs(5 * 86_400))
            .unwrap();
        w.cacerts("c1", &certs);
    }),
    ("D-06", three, |w| {
        let clock = w.seen("c2").clock.as_mut().unwrap();
        clock.api += Duration::from_secs(3600);
    }),
    ("D-06", three, |w| w.object("c1", "Lease", "n1")["spec"]["renewTime"] = "2099-01-01T00:00:00Z".into()),
    ("D-07", three, |w| w.object("c3", "Namespace", "istio-system")["metadata"]["labels"] = json!({})),
    ("D-07", three, |w| {
        w.object("c3", "Namespace", "istio-system")["metadata"]["labels"]["topology.istio.io/network"] =
            "default".into()
    }),
    ("D-07", three, |w| values(w, "c1", "/global/network", "net1".into())),
    ("D-07", three, |w| {
        for e in w.object("c1", "Pod", "web0-1")["spec"]["containers"][1]["env"].as_array_mut().unwrap() {
            if e["name"] == "ISTIO_META_NETWORK" {
                e["value"] = "elsewhere".into();
            }
        }
    }),
    ("D-08", three, |w| w.seen("c1").paths[0].touch = Datum::now(Touch::Silent)),
    ("D-09", three, |w| w.object("c2", "Node", "n1")["spec"]["podCIDRs"] = json!(["10.1.0.0/24"])),
    ("D-09", three, |w| w.object("c2", "Pod", "web0-1")["status"]["podIP"] = "10.1.1.40".into()),
    ("D-10", three, |w| {
        w.remove("c3", "Service", "istio-eastwestgateway");
        touch(w, &Touch::Refused);
    }),
    ("D-10", three, |w| {
        w.object("c3", "Service", "istio-eastwestgateway")["metadata"]["labels"] = json!({"istio": "eastwestgateway"});
    }),
    ("D-11", three, |w| {
        w.object("c3", "Service", "istio-eastwestgateway")["status"] = json!({});
        touch(w, &Touch::Refused);
    }),
    ("D-11", three, |w| {
        let service = w.object("c3", "Service", "istio-eastwestgateway");
        service["spec"]["type"] = "NodePort".into();
        service["status"] = json!({});
    }),
    ("D-12", hostnames, |w| {
        for found in w.seen("c3").names.values_mut() {
            *found = Datum::now(vec![]);
        }
    }),
    ("D-12", remote, |w| {
        w.object("c3", "Service", "istiod")["spec"] =
            json!({"type": "ExternalName", "externalName": "gw.elb.example.com"});
        w.seen("c3").injection = Some(Datum::now(Err("unsupported service type \"ExternalName\"".to_owned())));
        w.remove("c3", "MutatingWebhookConfiguration", "istio-sidecar-injector");
    }),
    ("D-13", private, |w| touch(w, &Touch::Silent)),
    ("D-14", three, |w| touch(w, &Touch::Silent)),
    ("D-14", lab, |w| touch(w, &Touch::Refused)),
    ("D-15", three, |w| {
        w.object("c3", "Service", "istio-eastwestgateway")["spec"]["ports"] = json!([{"name": "https", "port": 443}]);
        touch(w, &Touch::Refused);
    }),
    ("D-16", three, |w| {
        w.remove("c3", "Gateway", "cross-network-gateway");
        touch(w, &Touch::Refused);
    }),
    ("D-16", three, |w| {
        w.object("c3", "Gateway", "cross-network-gateway")["spec"]["servers"][0]["tls"]["mode"] = "PASSTHROUGH".into()
    }),
    ("D-16", three, |w| {
        w.object("c3", "Gateway", "cross-network-gateway")["spec"]["selector"] = json!({"istio": "ingressgateway"})
    }),
    ("D-16", three, |w| {
        w.object("c3", "Gateway", "cross-network-gateway")["spec"]["servers"][0]["hosts"] = json!(["*.global"])
    }),
    ("D-17", three, |w| {
        for probe in w.seen("c1").gateways.iter_mut().filter(|p| p.cluster == "c3") {
            if let Some(handshake) = &mut probe.handshake {
                handshake.chain = Err("tls handshake eof".to_owned());
            }
        }
    }),
    ("D-18", three, |w| {
        w.remove("c1", "Secret", "istio-remote-secret-c3");
        w.remove("c1", LABELLED_SECRETS, "istio-remote-secret-c3");
        w.seen("c1").istiods[0].clusterz =
            Datum::now(json!([{"id": "c1", "syncStatus": "synced"}, {"id": "c2", "syncStatus": "synced"}]));
    }),
    ("D-19", three, |w| {
        w.remove("c1", "Secret", "istio-remote-secret-c3");
        w.object("c1", LABELLED_SECRETS, "istio-remote-secret-c3")["metadata"]["namespace"] = "default".into();
    }),
    ("D-19", three, |w| {
        w.object("c1", "Secret", "istio-remote-secret-c3")["metadata"]["labels"]["istio/multiCluster"] = "yes".into();
    }),
    ("D-19", three, |w| {
        let data = &mut w.object("c1", "Secret", "istio-remote-secret-c3")["data"];
        *data = json!({"context-c3": data["c3"]});
    }),
    ("D-19", three, |w| w.object("c1", "Secret", "istio-remote-secret-c3")["data"] = json!({})),
    ("D-19", three, |w| {
        let mut copy = w.object("c1", "Secret", "istio-remote-secret-c3").clone();
        copy["metadata"]["name"] = "another".into();
        w.list("c1", "Secret").push(copy);
    }),
    ("D-19", three, |w| {
        let own = secret(
            "myself",
            json!({"istio/multiCluster": "true"}),
            &[("c1", &kubeconfig("c1", "https://198.51.100.1:6443", "{token: x}"))],
        );
        w.list("c1", "Secret").push(own);
    }),
    ("D-20", three, |w| {
        credential(
            w,
            "https://198.51.100.2:6443",
            "{exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}}",
        )
    }),
    ("D-21", three, |w| credential(w, "https://127.0.0.1:6443", "{token: x}")),
    ("D-21", lab, |w| credential(w, "https://127.0.0.1:6443", "{token: x}")),
    ("D-21", three, |w| w.seen("c1").credentials[0].inside = Some(Datum::now(Touch::Unresolved))),
    ("D-21", three, |w| answer(w, CredentialAnswer::NotReached("no agent of cluster \"c2\" is connected".to_owned()))),
    ("D-22", three, |w| answer(w, CredentialAnswer::Untrusted("UnknownIssuer".to_owned()))),
    ("D-23", three, |w| answer(w, CredentialAnswer::Unauthorized("Unauthorized".to_owned()))),
    ("D-23", three, |w| {
        let old = format!("{{token: {}}}", token(w.now - YEAR));
        credential(w, "https://198.51.100.2:6443", &old);
        answer(w, CredentialAnswer::Unauthorized("Unauthorized".to_owned()));
    }),
    ("D-24", three, |w| {
        answer(w, CredentialAnswer::Accepted { missing: vec!["list pods".to_owned()], anything: false, uid: None })
    }),
    ("D-25", three, |w| {
        w.seen("c1").istiods[0].clusterz =
            Datum::now(json!([{"id": "c2", "syncStatus": "timeout"}, {"id": "c3", "syncStatus": "synced"}]));
    }),
    ("D-26", three, |w| {
        let shard = json!({"web0.shop.svc.cluster.local": {"shop": {"Shards": {"Kubernetes/c2": [{"Addresses": ["10.2.1.99"]}]}}}});
        w.seen("c1").istiods[0].shards = Datum::now(shard);
    }),
    ("D-27", three, |w| {
        w.object("c2", "Deployment", "istiod")["spec"]["template"]["spec"]["containers"][0]["env"] = json!([])
    }),
    ("D-28", three, |w| {
        let first = w.seen("c1").clone();
        let second = w.seen("c2");
        second.uid = first.uid;
    }),
    ("D-29", three, |w| values(w, "c3", "/global/meshID", "other".into())),
    ("D-30", three, |w| mesh_config(w, "c3", |c| c["trustDomain"] = "west.example".into())),
    ("D-31", three, |w| {
        w.object("c3", "Deployment", "istiod")["spec"]["template"]["spec"]["containers"][0]["image"] =
            "docker.io/istio/pilot:1.25.1".into()
    }),
    ("D-31", three, |w| {
        w.object("c1", "Pod", "web0-1")["spec"]["containers"][1]["image"] =
            "docker.io/istio/proxyv2:1.24.0-distroless".into()
    }),
    ("D-32", three, |w| mesh_config(w, "c3", |c| c["outboundTrafficPolicy"] = json!({"mode": "REGISTRY_ONLY"}))),
    ("D-33", three, |w| w.object("c3", "Namespace", "shop")["metadata"]["labels"] = json!({})),
    ("D-34", three, |w| {
        w.remove("c3", "Service", "web1");
        for e in w.object("c3", "Pod", "web0-1")["spec"]["containers"][1]["env"].as_array_mut().unwrap() {
            if e["name"] == "ISTIO_META_DNS_CAPTURE" {
                e["value"] = "false".into();
            }
        }
    }),
    ("D-35", three, |w| w.object("c3", "Service", "web0")["spec"]["ports"][0]["name"] = "tcp".into()),
    ("D-35", three, |w| w.object("c3", "Service", "web0")["spec"]["clusterIP"] = "None".into()),
    ("D-36", three, |w| {
        let bare = pod("shop", "bare", "10.1.1.77", json!({"app": "bare"}), json!([{"name": "app", "image": "app:1"}]));
        w.list("c1", "Pod").push(bare);
    }),
    ("D-37", three, |w| {
        let off = json!({"metadata": {"name": "off", "namespace": "shop"}, "spec": {"mtls": {"mode": "DISABLE"}}});
        w.list("c3", "PeerAuthentication").push(off);
    }),
    ("D-37", three, |w| {
        let plain = destination_rule("plain", json!({"host": "web0", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}));
        w.list("c1", "DestinationRule").push(plain);
    }),
    ("D-37", three, |w| w.object("c3", "Pod", "web0-1")["metadata"]["labels"] = json!({"app": "web0"})),
    ("D-38", three, |w| {
        w.object("c3", "Service", "web0")["metadata"]["annotations"] = json!({"networking.istio.io/exportTo": "."})
    }),
    ("D-39", three, |w| {
        let narrow = json!({"metadata": {"name": "default", "namespace": "shop"}, "spec": {"egress": [{"hosts": ["istio-system/*"]}]}});
        w.list("c1", "Sidecar").push(narrow);
    }),
    ("D-40", three, |w| {
        for cluster in ["c1", "c2"] {
            w.object(cluster, "Namespace", "shop")["metadata"]["labels"]["mesh"] = "yes".into();
        }
        mesh_config(w, "c1", |c| c["discoverySelectors"] = json!([{"matchLabels": {"mesh": "yes"}}]));
    }),
    ("D-41", three, |w| {
        let outliers = destination_rule(
            "outliers",
            json!({"host": "web0", "trafficPolicy": {"outlierDetection": {"consecutive5xxErrors": 3}}}),
        );
        w.list("c1", "DestinationRule").push(outliers);
    }),
    ("D-42", three, |w| {
        let subset = destination_rule(
            "web0",
            json!({"host": "web0.shop.svc.cluster.local", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}),
        );
        w.list("c1", "DestinationRule").push(subset);
    }),
    ("D-43", three, |w| {
        let policy = json!({"metadata": {"name": "only", "namespace": "shop"}, "spec": {"rules": [{"from": [{"source": {"principals": ["old.example/ns/shop/sa/web"]}}]}]}});
        w.list("c3", "AuthorizationPolicy").push(policy);
    }),
    ("D-44", three, |w| {
        let deny = json!({"metadata": {"name": "deny", "namespace": "istio-system"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        w.list("c3", "NetworkPolicy").push(deny);
        touch(w, &Touch::Silent);
    }),
    ("D-44", three, |w| {
        let deny = json!({"metadata": {"name": "inside", "namespace": "istio-system"}, "spec": {"podSelector": {"matchLabels": {"app": "istiod"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {}}]}]}});
        w.list("c1", "NetworkPolicy").push(deny);
    }),
    ("D-45", remote, |w| w.object("c3", "Namespace", "istio-system")["metadata"]["annotations"] = json!({})),
    ("D-46", remote, |w| w.seen("c3").injection = Some(Datum::now(Err("failed calling webhook".to_owned())))),
    ("D-47", remote, |w| {
        for probe in w.seen("c3").gateways.iter_mut().filter(|p| p.port == 15012) {
            if let Some(handshake) = &mut probe.handshake {
                handshake.chain = Err("connection reset".to_owned());
            }
        }
    }),
    ("D-48", three, |w| {
        let mut tag = w.object("c1", "MutatingWebhookConfiguration", "istio-sidecar-injector").clone();
        tag["metadata"]["name"] = "istio-revision-tag-default".into();
        w.list("c1", "MutatingWebhookConfiguration").push(tag);
    }),
    ("D-48", three, |w| {
        w.object("c1", "Namespace", "shop")["metadata"]["labels"] =
            json!({"istio-injection": "enabled", "istio.io/rev": "default"})
    }),
    ("D-49", three, |w| {
        let gone = json!({"metadata": {"name": "istio-sidecar-injector-old", "labels": {"app": "sidecar-injector", "istio.io/rev": "old"}},
            "webhooks": [{"name": "old.sidecar-injector.istio.io", "namespaceSelector": {"matchLabels": {"istio.io/rev": "old"}},
                "clientConfig": {"service": {"name": "istiod-old", "namespace": "istio-system"}}}]});
        w.list("c1", "MutatingWebhookConfiguration").push(gone);
    }),
    ("D-50", three, |w| {
        w.object("c3", "Pod", "istio-eastwestgateway-1")["spec"]["containers"][0]["image"] = "auto".into()
    }),
    ("D-51", three, |w| {
        w.remove("c3", "Pod", "istio-eastwestgateway-2");
    }),
    ("D-51", three, |w| {
        w.remove("c3", "PodDisruptionBudget", "gateway");
    }),
    ("D-52", three, |w| {
        w.object("c3", "Service", "istio-eastwestgateway")["metadata"]["annotations"] =
            json!({"service.beta.kubernetes.io/aws-load-balancer-proxy-protocol": "*"});
    }),
    ("D-53", three, |w| {
        w.object("c3", "Service", "istio-eastwestgateway")["status"]["loadBalancer"]["ingress"] =
            json!([{"ip": "2001:db8::7"}])
    }),
    ("D-54", three, |w| w.seen("c1").paths[0].touch = Datum::now(Touch::Stalled)),
    ("D-55", three, |w| {
        foreign(w, "{token: x}", CredentialAnswer::Accepted { missing: vec![], anything: true, uid: None })
    }),
    // What is wrong with somebody else's credential is not the mesh's fault.
    ("D-55", three, |w| {
        foreign(w, "{exec: {command: aws}}", CredentialAnswer::Unauthorized("Unauthorized".to_owned()))
    }),
    ("D-56", three, |w| {
        for cluster in ["c1", "c2", "c3"] {
            w.list(cluster, "DaemonSet").push(json!({"metadata": {"name": "ztunnel", "namespace": "istio-system"}}));
            w.object(cluster, "Deployment", "istiod")["spec"]["template"]["spec"]["containers"][0]["env"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "AMBIENT_ENABLE_MULTI_NETWORK", "value": "true"}));
        }
        w.object("c1", "Service", "web0")["metadata"]["labels"] = json!({"istio.io/global": "true"});
    }),
    ("D-57", three, |w| answer(w, CredentialAnswer::Accepted { missing: vec![], anything: true, uid: None })),
    ("D-58", three, |w| {
        let networks = json!({"networks": {"net1": {"endpoints": [{"fromRegistry": "c9"}], "gateways": [{"address": "192.0.2.1", "port": 443}]}}});
        w.object("c1", "ConfigMap", "istio")["data"]["meshNetworks"] = networks.to_string().into();
    }),
    ("D-59", three, |w| {
        w.remove("c1", "CustomResourceDefinition", "gateways.networking.istio.io");
        w.list("c1", "Gateway").clear();
    }),
    ("D-59", three, |w| {
        w.object("c1", "ValidatingWebhookConfiguration", "istio-validator")["webhooks"][0]["clientConfig"]["service"]
            ["name"] = "istiod-old".into();
    }),
    ("D-60", three, |w| {
        let members = json!([{"name": "c1"}, {"name": "c2"}, {"name": "c3"}, {"name": "c4"}]).to_string();
        let map = json!({"metadata": {"name": "stolos-mesh", "namespace": "istio-system", "labels": {istio::MESH_LABEL: "mesh"}}, "data": {"members": members}});
        w.list("c1", "ConfigMap").push(map);
    }),
];

/// A Secret of Rancher's for a cluster that is no member.
fn foreign(w: &mut World, user: &str, answer: CredentialAnswer) {
    let server = "https://198.51.100.9:6443";
    let labels = json!({"istio/multiCluster": "true"});
    let foreign = secret("rancher-c9", labels, &[("c9", &kubeconfig("c9", server, user))]);
    w.list("c1", "Secret").push(foreign.clone());
    w.list("c1", LABELLED_SECRETS).push(foreign);
    w.seen("c1").credentials.push(CredentialProbe {
        secret: "istio-system/rancher-c9".to_owned(),
        key: "c9".to_owned(),
        server: server.to_owned(),
        inside: Some(Datum::now(Touch::Reached)),
        answer: Datum::now(answer),
    });
}
