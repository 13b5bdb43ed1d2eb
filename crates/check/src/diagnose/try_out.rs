//! Trying things without changing any: connections from a pod, handshakes from here, credentials of others.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::{Value, json};
use stolos_k8s::istio;
use stolos_serve::handshake::shown;
use stolos_serve::{HostNet, Net, because};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::scene::Engine;
use super::snapshot::{CredentialAnswer, Datum, Handshake, Touch};
use crate::exec;

/// How long one connection may take. A busy machine is no fault of the mesh.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long an API server may take to judge a credential.
const JUDGEMENT: Duration = Duration::from_secs(12);
/// What ends the output of [`touch_from`]'s command.
const END: &str = "~~";

/// Dials `url` with the `curl` of a control plane's pod, and reads how far that got from its exit code.
pub(crate) async fn touch_from(client: &kube::Client, pod: &str, url: &str) -> Datum<Touch> {
    // One script, so that both a message and the code come back on one stream.
    let script = format!("curl -sS -k -o /dev/null --connect-timeout 5 -m 8 '{url}' 2>&1; echo \"{END}$?\"");
    let command = ["sh", "-c", &script];
    let patience = PATIENCE + Duration::from_secs(5);
    match exec::output(client, istio::SYSTEM_NAMESPACE, pod, "discovery", &command, patience).await {
        Ok(output) => match output.rsplit_once(END).map(|(said, code)| (said.trim(), code.trim().parse::<u8>())) {
            Some((said, Ok(code))) => {
                touch_of(code, said).map_or_else(|| Datum::Unread { why: format!("pod {pod} has no curl") }, Datum::now)
            }
            _ => Datum::Unread { why: format!("pod {pod} has no shell to dial from") },
        },
        Err(error) => Datum::Unread { why: format!("pod {pod}: {}", because(&error)) },
    }
}

/// curl's exit codes (its manual, EXIT CODES). Whoever answers with anything at all was reached.
fn touch_of(code: u8, said: &str) -> Option<Touch> {
    Some(match code {
        126 | 127 => return None,
        6 => Touch::Unresolved,
        7 if said.contains("imed out") => Touch::Silent,
        7 if said.contains("refused") || said.contains("Could not connect") || said.contains("Failed to connect") => {
            Touch::Refused
        }
        7 => Touch::Other(said.to_owned()),
        // Both a connection that was never made and an answer that never ended.
        28 if said.contains("Connection timed out") || said.contains("Connection timeout") => Touch::Silent,
        28 if said.contains(" 0 bytes received") || !said.contains("bytes") => Touch::Silent,
        28 => Touch::Stalled,
        // TLS that broke off, an empty or an odd answer: somebody was there.
        _ => Touch::Reached,
    })
}

/// Connects from this machine and, where there is a name to ask for, shakes hands as a client's proxy would.
pub(crate) async fn handshake(address: &str, port: u16, sni: Option<String>) -> (Touch, Option<Handshake>) {
    let stream = match dial(address, port).await {
        Ok(stream) => stream,
        // Taken, and ended before this machine looked: no other than one that ends while hands are shaken.
        Err(Touch::Reached) => {
            let chain = Err("the connection was reset".to_owned());
            return (Touch::Reached, sni.map(|sni| Handshake { sni, chain }));
        }
        Err(touch) => return (touch, None),
    };
    let Some(sni) = sni else { return (Touch::Reached, None) };
    // Without Istio's ALPN no filter chain of a healthy gateway matches (contract E.1).
    let protocols: &[&str] = if sni.starts_with("outbound_") { &["istio"] } else { &[] };
    let chain = tokio::time::timeout(PATIENCE, shown(stream, &sni, protocols)).await;
    let chain = chain.unwrap_or_else(|_| Err("silence".to_owned()));
    (Touch::Reached, Some(Handshake { sni, chain }))
}

async fn dial(address: &str, port: u16) -> Result<stolos_serve::Stream, Touch> {
    let addresses = match resolve(address).await {
        Datum::Read { value, .. } if !value.is_empty() => value,
        _ => return Err(Touch::Unresolved),
    };
    let mut last = Touch::Unresolved;
    for address in addresses {
        let net = HostNet::default();
        let dialled = tokio::time::timeout(PATIENCE, net.dial(SocketAddr::new(address, port))).await;
        match dialled {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => last = Touch::Refused,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => last = Touch::Silent,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => last = Touch::Reached,
            Ok(Err(error)) => last = Touch::Other(error.to_string()),
            Err(_) => last = Touch::Silent,
        }
    }
    Err(last)
}

/// The addresses of a name, as this machine resolves it.
pub(crate) async fn resolve(name: &str) -> Datum<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Datum::now(vec![address]);
    }
    match tokio::time::timeout(PATIENCE, HostNet::default().resolve(name)).await {
        Ok(Ok(addresses)) => Datum::now(addresses),
        // A resolver says "no such name" as an error.
        Ok(Err(_)) => Datum::now(vec![]),
        Err(_) => Datum::Unread { why: format!("resolving {name} took too long") },
    }
}

/// Asks a server what a credential may do, with nothing but what the kubeconfig holds.
pub(crate) async fn credential(kubeconfig: &str, engine: Engine) -> Datum<CredentialAnswer> {
    match tokio::time::timeout(JUDGEMENT, judged(kubeconfig, engine)).await {
        Ok(answer) => answer,
        Err(_) => Datum::Unread { why: format!("no answer in {} s", JUDGEMENT.as_secs()) },
    }
}

async fn judged(kubeconfig: &str, engine: Engine) -> Datum<CredentialAnswer> {
    let unread = |why: String| Datum::Unread { why };
    let client = async {
        let config = stolos_cluster::from_kubeconfig_text(kubeconfig).await?;
        stolos_cluster::client(config, Arc::new(HostNet::default()))
    };
    let client = match client.await {
        Ok(client) => client,
        Err(error) => return unread(because(&error)),
    };
    let may = |verb: &'static str, group: &'static str, resource: &'static str| {
        let client = client.clone();
        async move {
            let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource}}});
            let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(body.to_string().into_bytes())
                .map_err(kube::Error::HttpError)?;
            let answer = client.request::<Value>(request).await?;
            Ok::<bool, kube::Error>(answer["status"]["allowed"] == true)
        }
    };
    // A hub passes on what reads, and not the question what may be read.
    let mut asks = true;
    let anything = match may("*", "*", "*").await {
        Ok(anything) => anything,
        Err(kube::Error::Api(status)) if status.code == 403 => {
            asks = false;
            false
        }
        Err(error) => return refused(&error, kubeconfig),
    };
    let mut missing = Vec::new();
    for (group, resource) in engine.reads() {
        let allowed = match asks {
            true => may("list", group, resource).await,
            false => read(&client, group, resource).await,
        };
        match allowed {
            Ok(true) => {}
            Ok(false) if group.is_empty() => missing.push(format!("list {resource}")),
            Ok(false) => missing.push(format!("list {resource}.{group}")),
            Err(error) => return refused(&error, kubeconfig),
        }
    }
    let uid = async {
        let request = http::Request::get("/api/v1/namespaces/kube-system").body(vec![]).ok()?;
        let namespace = client.request::<Value>(request).await.ok()?;
        Some(stolos_k8s::meta::uid(&namespace).to_owned())
    };
    Datum::now(CredentialAnswer::Accepted { missing, anything, uid: uid.await })
}

/// Whether a resource may be listed, by listing it.
async fn read(client: &kube::Client, group: &str, resource: &str) -> Result<bool, kube::Error> {
    let version = match group {
        "" => "/api/v1".to_owned(),
        group => format!("/apis/{group}/v1"),
    };
    let request = http::Request::get(format!("{version}/{resource}?limit=1")).body(vec![]);
    match client.request::<Value>(request.map_err(kube::Error::HttpError)?).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
        // Who is allowed to ask is told that it is not served.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
        Err(error) => Err(error),
    }
}

fn refused(error: &kube::Error, kubeconfig: &str) -> Datum<CredentialAnswer> {
    let why = because(error);
    match error {
        kube::Error::Api(status) if (502..=504).contains(&status.code) && through_hub(kubeconfig) => {
            Datum::now(CredentialAnswer::NotReached(status.message.clone()))
        }
        kube::Error::Api(status) if status.code == 401 => {
            Datum::now(CredentialAnswer::Unauthorized(status.message.clone()))
        }
        _ if why.contains("certificate") || why.contains("UnknownIssuer") => {
            let end = why.rsplit(": ").take(2).collect::<Vec<_>>();
            Datum::now(CredentialAnswer::Untrusted(end.into_iter().rev().collect::<Vec<_>>().join(": ")))
        }
        _ => Datum::Unread { why },
    }
}

/// Whether a kubeconfig leads through a hub (Karmada's `clusters/proxy`).
fn through_hub(kubeconfig: &str) -> bool {
    let server = super::kubeconfig::read(kubeconfig).map(|read| read.server).unwrap_or_default();
    server.contains("/apis/cluster.karmada.io/") && server.trim_end_matches('/').ends_with("/proxy")
}

/// A debug page through a port-forward, for a control plane whose image has no `curl`.
pub(crate) async fn page(client: &kube::Client, pod: &str, name: &str) -> Datum<Value> {
    let ask = async {
        let pods: Api<Pod> = Api::namespaced(client.clone(), istio::SYSTEM_NAMESPACE);
        let port = istio::DEBUG_PORT;
        let mut forward = pods.portforward(pod, &[port]).await.map_err(|e| because(&e))?;
        let mut stream = forward.take_stream(port).ok_or("the port was not forwarded")?;
        let request = format!("GET /debug/{name} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").ok_or("it closed without an answer")?;
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if status != "200" {
            return Err(format!("its page {name} answers {status}"));
        }
        serde_json::from_str(body).map_err(|e| format!("its page {name} is not JSON: {e}"))
    };
    match tokio::time::timeout(Duration::from_secs(6), ask).await {
        Ok(answer) => Datum::of(answer.map_err(|why: String| format!("control plane {pod}: {why}"))),
        Err(_) => Datum::Unread { why: format!("control plane {pod}: no answer in 6 s") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_say_how_far_it_got() {
        for (code, said, touch) in [
            (0, "", Some(Touch::Reached)),
            (35, "curl: (35) TLS connect error", Some(Touch::Reached)),
            (6, "curl: (6) Could not resolve host: x", Some(Touch::Unresolved)),
            (7, "curl: (7) Failed to connect to 10.0.0.1 port 15443: Connection refused", Some(Touch::Refused)),
            (28, "curl: (28) Connection timed out after 2001 milliseconds", Some(Touch::Silent)),
            (
                28,
                "curl: (28) Operation timed out after 3001 milliseconds with 1400 bytes received",
                Some(Touch::Stalled),
            ),
            (127, "sh: curl: not found", None),
        ] {
            assert_eq!(touch_of(code, said), touch, "{code} {said}");
        }
    }

    #[tokio::test]
    async fn a_handshake_ends_with_what_the_server_shows() {
        let now = std::time::SystemTime::now();
        let hour = Duration::from_secs(3600);
        let root = stolos_pki::Authority::new_root("mesh", hour, now).unwrap();
        let id = stolos_pki::SpiffeId::new("cluster.local", "sample", "helloworld");
        let request = stolos_pki::WorkloadRequest::new(&id).unwrap();
        let chain = root.sign_workload(&request.csr_pem, &id, hour, now).unwrap();
        let credentials = stolos_pki::Credentials::from_pem(&chain.concat(), request.key.to_pem().expose()).unwrap();
        let clients = stolos_pki::tls::ClientAuth::None;
        let config = stolos_pki::tls::server(&credentials, clients, &[b"istio"]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
        });
        let sni = "outbound_.80_._.helloworld.sample.svc.cluster.local".to_owned();
        let (touch, shown) = handshake("127.0.0.1", address.port(), Some(sni)).await;
        assert_eq!(touch, Touch::Reached);
        let shown = shown.unwrap().chain.unwrap();
        let leaf = stolos_pki::Certificate::from_der(shown[0].clone().into()).unwrap();
        assert_eq!(leaf.uris(), [id.to_string()]);
    }

    /// A gateway without a server for the port: whether the reset is seen by who connects or by who shakes hands is chance.
    #[tokio::test]
    async fn what_is_taken_and_reset_at_once_was_reached() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let resets = std::thread::spawn(move || {
            for _ in 0..50 {
                let (stream, _) = listener.accept().unwrap();
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        });
        for _ in 0..50 {
            let (touch, shown) = handshake("127.0.0.1", port, Some("istiod.istio-system.svc".to_owned())).await;
            assert_eq!(touch, Touch::Reached);
            assert!(shown.unwrap().chain.is_err());
        }
        resets.join().unwrap();
    }
}
