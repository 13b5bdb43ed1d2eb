//! What must not get through, tried.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::ServerName;
use stolos_pki::tls::Peers;
use stolos_pki::{Authority, Certificate, Credentials, Roots, SpiffeId, WorkloadRequest, tls};
use stolos_serve::{HostNet, Net, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Refusal, Verdict};

/// How long a refusal may take. Silence is a refusal too.
const PATIENCE: Duration = Duration::from_secs(2);

/// A client that speaks plain HTTP to a gateway.
pub(crate) async fn plaintext(cluster: &str, gateway: &str) -> Refusal {
    let saw = match dial(gateway).await {
        Ok(stream) => ask(stream).await,
        Err(error) => Err(format!("could not connect: {error}")),
    };
    refusal("plaintext client", cluster, gateway, saw)
}

/// A client whose certificate comes from a root of its own, and who names a real service.
pub(crate) async fn foreign_root(cluster: &str, gateway: &str, sni: &str, identity: &str, roots: &Roots) -> Refusal {
    let saw = match foreign_handshake(gateway, sni, identity, roots).await {
        Ok(stream) => ask(stream).await,
        Err(why) => Err(why),
    };
    refusal("client of a foreign root", cluster, gateway, saw)
}

async fn foreign_handshake(
    gateway: &str,
    sni: &str,
    identity: &str,
    roots: &Roots,
) -> Result<tokio_rustls::client::TlsStream<Stream>, String> {
    let config = foreign_client(identity, roots).map_err(|e| format!("could not make a foreign certificate: {e}"))?;
    let name = ServerName::try_from(sni.to_owned()).map_err(|e| e.to_string())?;
    let stream = dial(gateway).await.map_err(|e| format!("could not connect: {e}"))?;
    match tokio::time::timeout(PATIENCE, tokio_rustls::TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("the handshake failed: {error}")),
        Err(_) => Err("silence".to_owned()),
    }
}

/// A certificate that says the right name, signed by somebody nobody here knows.
fn foreign_client(identity: &str, roots: &Roots) -> Result<Arc<rustls::ClientConfig>, stolos_pki::Error> {
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let root = Authority::new_root("a foreign root", hour, now)?;
    let id = SpiffeId::parse(identity).unwrap_or_else(|_| SpiffeId::new("cluster.local", "default", "default"));
    let request = WorkloadRequest::new(&id)?;
    let chain = root.sign_workload(&request.csr_pem, &id, hour, now)?;
    let leaf = Certificate::from_pem(&chain[0])?;
    let credentials = Credentials::from_pem(&leaf.pem(), request.key.to_pem().expose())?;
    tls::client(Some(&credentials), roots, Peers::Any, &[b"istio", b"istio-http/1.1"])
}

/// Sends a request and says what came back: `Ok` with the first line when it was answered.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<String, String> {
    let exchange = async {
        stream.write_all(b"GET /hello HTTP/1.1\r\nHost: helloworld\r\nConnection: close\r\n\r\n").await?;
        let mut answer = vec![0; 512];
        let read = stream.read(&mut answer).await?;
        answer.truncate(read);
        Ok::<_, std::io::Error>(answer)
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Err(_) => Err("silence".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(answer)) if answer.is_empty() => Err("the connection was closed".to_owned()),
        Ok(Ok(answer)) => {
            let text = String::from_utf8_lossy(&answer);
            Ok(text.lines().next().unwrap_or_default().to_owned())
        }
    }
}

async fn dial(to: &str) -> std::io::Result<Stream> {
    let to: SocketAddr = match to.parse() {
        Ok(address) => address,
        // A load balancer with a name instead of an address.
        Err(_) => tokio::net::lookup_host(to)
            .await?
            .next()
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "no address"))?,
    };
    match tokio::time::timeout(PATIENCE, HostNet::default().dial(to)).await {
        Ok(dialled) => dialled,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

fn refusal(what: &str, cluster: &str, gateway: &str, saw: Result<String, String>) -> Refusal {
    match saw {
        // Nobody there is no proof of a refusal: the gateway must be up and say no.
        Err(why) if why.starts_with("could not") => Refusal {
            what: what.into(),
            cluster: cluster.into(),
            verdict: Verdict::Fail,
            saw: format!("{gateway}: {why}"),
        },
        Err(why) => Refusal {
            what: what.into(),
            cluster: cluster.into(),
            verdict: Verdict::Pass,
            saw: format!("{gateway}: {why}"),
        },
        Ok(answer) => Refusal {
            what: what.into(),
            cluster: cluster.into(),
            verdict: Verdict::Fail,
            saw: format!("{gateway} answered `{answer}`"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn server(answer: &'static [u8]) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 16];
            let _ = client.read(&mut bytes).await;
            let _ = client.write_all(answer).await;
        });
        address
    }

    #[tokio::test]
    async fn an_answer_is_a_failure_and_a_closed_connection_is_not() {
        let closing = server(b"").await;
        assert_eq!(plaintext("c", &closing).await.verdict, Verdict::Pass);
        let answering = server(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let seen = plaintext("c", &answering).await;
        assert_eq!(seen.verdict, Verdict::Fail);
        assert_eq!(seen.saw, format!("{answering} answered `HTTP/1.1 200 OK`"));
        assert_eq!(plaintext("c", "127.0.0.1:1").await.verdict, Verdict::Fail, "nobody there proves nothing");
    }
}
