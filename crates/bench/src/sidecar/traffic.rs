//! Requests of 1 KB and the application that answers them, each in a process of its own on a core of its own: as little
//! HTTP as will do, so that most of the work measured is the proxies'.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes in the body of a request, and of a response.
const BODY: usize = 1024;
/// How long what was begun may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked of a load process.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Order {
    /// Whom to dial.
    pub(super) to: SocketAddr,
    /// Where the connection means to go, told by a PROXY v2 header; nowhere else when unset.
    pub(super) meant: Option<SocketAddr>,
    pub(super) connections: usize,
    /// Requests a second over all connections; as many as come back when unset.
    pub(super) rate: Option<f64>,
    pub(super) seconds: f64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Outcome {
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) seconds: f64,
    /// Milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// Answers requests at `application`, and brings what arrives at `redirected` to `inbound` as the kubelet does: with a
/// header that says where it meant to go.
pub(super) async fn serve(application: SocketAddr, redirected: SocketAddr, inbound: SocketAddr) -> Result<()> {
    let (answering, redirecting) = (TcpListener::bind(application).await?, TcpListener::bind(redirected).await?);
    let response = response();
    loop {
        tokio::select! {
            Ok((stream, _)) = answering.accept() => {
                let response = response.clone();
                tokio::spawn(async move { answer(stream, &response).await });
            }
            Ok((mut stream, from)) = redirecting.accept() => {
                tokio::spawn(async move {
                    stream.set_nodelay(true)?;
                    let mut inner = TcpStream::connect(inbound).await?;
                    inner.set_nodelay(true)?;
                    // Straight to the application where there is no sidecar.
                    if inbound != application {
                        inner.write_all(&header(from, application)).await?;
                    }
                    tokio::io::copy_bidirectional(&mut stream, &mut inner).await
                });
            }
        }
    }
}

/// Passes bytes from `from` to `to` and back, and does nothing else: what any process in the middle costs.
pub(super) async fn relay(from: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(from).await?;
    loop {
        let (mut near, _) = listener.accept().await?;
        tokio::spawn(async move {
            near.set_nodelay(true)?;
            let mut far = TcpStream::connect(to).await?;
            far.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}

async fn answer(mut stream: TcpStream, response: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(8192);
    while read(&mut stream, &mut buffer).await? {
        stream.write_all(response).await?;
    }
    Ok(())
}

fn response() -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nserver: bench\r\n\
         date: Sat, 21 Nov 2026 12:00:00 GMT\r\ncontent-length: {BODY}\r\n\r\n"
    )
    .into_bytes();
    response.extend_from_slice(&[b'r'; BODY]);
    response
}

fn request(authority: &str) -> Vec<u8> {
    let mut request = format!(
        "POST /echo HTTP/1.1\r\nhost: {authority}\r\nuser-agent: stolos-bench\r\naccept: */*\r\n\
         content-type: application/octet-stream\r\ncontent-length: {BODY}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(&[b'q'; BODY]);
    request
}

/// Reads one message whole and takes it from `buffer`; false at the end.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        if let Some(length) = length(buffer)? {
            buffer.drain(..length);
            return Ok(true);
        }
        if stream.read_buf(buffer).await? == 0 {
            return match buffer.is_empty() {
                true => Ok(false),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
}

/// How long the message at the beginning of `bytes` is, once all of it is there.
fn length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(io::Error::other)?;
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    if first.starts_with("HTTP/") && !first.contains(" 200 ") {
        return Err(io::Error::other(first.to_owned()));
    }
    let said = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = end + 4 + said.ok_or_else(|| io::Error::other("a message that does not say its length"))?;
    Ok((bytes.len() >= whole).then_some(whole))
}

/// PROXY v2: where a connection comes from and means to go.
fn header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { return Vec::new() };
    header.extend(from.ip().octets());
    header.extend(to.ip().octets());
    header.extend(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}

/// Sends what the order says. `begun` is called when all connections are made and the measured time begins.
pub(super) async fn load(order: &Order, begun: impl FnOnce()) -> Result<Outcome> {
    let request: std::sync::Arc<[u8]> = request(super::mesh::HOST).into();
    let mut connections = Vec::new();
    for _ in 0..order.connections {
        let mut stream = TcpStream::connect(order.to).await.with_context(|| format!("dialling {}", order.to))?;
        stream.set_nodelay(true)?;
        if let Some(meant) = order.meant {
            stream.write_all(&header(stream.local_addr()?, meant)).await?;
        }
        let mut buffer = Vec::with_capacity(8192);
        // The first request opens what lies behind.
        once(&mut stream, &request, &mut buffer).await.context("the first request")?;
        connections.push((stream, buffer));
    }
    begun();
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(order.seconds);
    let every = order.rate.map(|rate| Duration::from_secs_f64(order.connections as f64 / rate));
    let tasks: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(at, (mut stream, mut buffer))| {
            let request = std::sync::Arc::clone(&request);
            let offset = every.map(|every| every.mul_f64(at as f64 / order.connections as f64));
            tokio::spawn(async move {
                let mut took = Vec::with_capacity(1 << 12);
                let mut due = start + offset.unwrap_or_default();
                while Instant::now() < end {
                    let mut from = Instant::now();
                    if let Some(every) = every {
                        if due > from {
                            // The timer's own grain is not the proxy's fault.
                            tokio::time::sleep_until(due.into()).await;
                            from = Instant::now();
                        } else {
                            // The answer before was late, and this request has waited for it.
                            from = due;
                        }
                        due += every;
                    }
                    match tokio::time::timeout(PATIENCE, once(&mut stream, &request, &mut buffer)).await {
                        Ok(Ok(())) => took.push(from.elapsed()),
                        _ => return (took, 1),
                    }
                }
                (took, 0)
            })
        })
        .collect();
    let (mut all, mut failed) = (Vec::new(), 0);
    for task in tasks {
        let (took, lost) = task.await?;
        all.extend(took);
        failed += lost;
    }
    let seconds = start.elapsed().as_secs_f64();
    if all.is_empty() {
        bail!("not one request was answered");
    }
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    Ok(Outcome { answered: all.len() as u64, failed, seconds, p50: at(0.5), p99: at(0.99) })
}

async fn once(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(request).await?;
    match read(stream, buffer).await? {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_long_as_it_says() {
        let message = response();
        assert_eq!(length(&message).unwrap(), Some(message.len()));
        assert_eq!(length(&message[..message.len() - 1]).unwrap(), None);
        assert_eq!(length(b"HTTP/1.1 200").unwrap(), None);
        assert!(length(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        let asked = [request("a"), request("a")].concat();
        assert_eq!(length(&asked).unwrap(), Some(asked.len() / 2));
    }

    #[tokio::test]
    async fn load_goes_by_the_redirection_and_is_counted() {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (application, redirected) = (free(), free());
        let serving = tokio::spawn(serve(application, redirected, application));
        let order = Order { to: redirected, meant: None, connections: 4, rate: Some(400.0), seconds: 0.1 };
        let asked = async {
            loop {
                if let Ok(outcome) = load(&order, || {}).await {
                    return outcome;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap();
        assert_eq!(outcome.failed, 0);
        assert!(outcome.answered > 0 && outcome.p50 <= outcome.p99);
        serving.abort();
    }
}
