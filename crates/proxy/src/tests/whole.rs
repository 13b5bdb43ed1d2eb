//! The proxy as a container runs it: agent, control plane over TLS, configuration over the wire.

use std::sync::Arc;
use std::time::Duration;

use stolos_serve::Stop;
use stolos_xds::message::{CLUSTER as CLUSTERS, ENDPOINT, LISTENER, ROUTE};
use stolos_xds::{Resources, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::sidecar::{CLUSTER, SERVICE, of_port, routes, service, virtual_outbound};
use super::world::{Ports, SOON, endpoints, eventually, original};
use crate::agent::tests::{ControlPlane, container};
use crate::inspect::tests::proxy_bytes;

async fn ready(net: &Ports) -> String {
    let mut stream = TcpStream::connect(net.at(15021).await).await.unwrap();
    stream.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_container_becomes_ready_follows_and_drains() {
    let (server, root) = (Stop::new(), tempfile::tempdir().unwrap());
    let control = ControlPlane::new(Duration::from_secs(3600));
    let port = control.serve(&server).await;
    let net = Arc::new(Ports::default());
    let mut container = container(root.path(), port, "");
    container.net = net.clone();
    let stop = Stop::new();
    let running = tokio::spawn(crate::run(container, stop.clone()));
    let text = ready(&net).await;
    assert!(text.starts_with("HTTP/1.0 503") && text.contains("no certificate yet"), "{text}");

    // The mesh's roots arrive, and with them everything else.
    let roots = root.path().join("var/run/secrets/istio/root-cert.pem");
    std::fs::write(roots, control.authority.roots_pem()).unwrap();
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = application.local_addr().unwrap();
    let snapshot = |version: &str, to: &[std::net::SocketAddr]| {
        Snapshot::new(version)
            .with(CLUSTERS, Resources::of(&[service("spiffe://nobody"), original("PassthroughCluster")]))
            .with(ENDPOINT, Resources::of(&[endpoints(CLUSTER, to, false)]))
            .with(LISTENER, Resources::of(&[virtual_outbound(), of_port(5000)]))
            .with(ROUTE, Resources::of(&[routes("5000", CLUSTER)]))
    };
    control.snapshots.send_replace(Arc::new(snapshot("2", &[])));
    let waiting = async {
        while !ready(&net).await.starts_with("HTTP/1.0 200") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap();

    // An endpoint appears.
    control.snapshots.send_replace(Arc::new(snapshot("3", &[address])));
    let outbound = net.at(15001).await;
    let asking = tokio::spawn(async move {
        loop {
            let mut stream = TcpStream::connect(outbound).await.unwrap();
            stream.write_all(&proxy_bytes("10.1.0.9:4000", "10.96.0.7:5000")).await.unwrap();
            let request = format!("GET / HTTP/1.1\r\nhost: {SERVICE}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            if answer.contains("200 OK") {
                return answer;
            }
        }
    });
    let (mut inner, _) = tokio::time::timeout(SOON, application.accept()).await.unwrap().unwrap();
    let mut head = [0; 2048];
    let _ = inner.read(&mut head).await.unwrap();
    stop.ask();
    inner.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlast").await.unwrap();
    let answer = tokio::time::timeout(SOON, asking).await.unwrap().unwrap();
    assert!(answer.ends_with("last"), "{answer}");
    tokio::time::timeout(SOON, running).await.unwrap().unwrap().unwrap();
    eventually(|| std::net::TcpStream::connect(outbound).is_err().then_some(())).await;
    server.ask();
}
