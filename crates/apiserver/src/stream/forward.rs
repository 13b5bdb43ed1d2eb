//! Port-forward: connections to a pod's ports, past its sidecar.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::frame::reset;
use super::spdy::session::Opened;
use super::websocket::{self, Channels, Socket};
use super::{Activity, IDLE, PING};
use crate::failure::{Failure, Result};
use crate::route::Ask;
use crate::runtime::{Connection, PodRuntime};

/// The one subprotocol over SPDY.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";

/// The most ports of one WebSocket: each takes two of its 256 channels.
const MAX_PORTS: usize = 100;
/// How long a pod may take to answer a dial.
const DIAL_TIME: Duration = Duration::from_secs(10);
/// How long the second stream of a connection may come after its first.
const PAIR_TIME: Duration = Duration::from_secs(30);
/// In the channel protocols: the stream named by the next byte ends.
const CLOSE: u8 = 255;

/// The way to a pod.
pub(crate) struct Door {
    pub(crate) runtime: Arc<dyn PodRuntime>,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
}

impl Door {
    async fn dial(&self, port: u16) -> io::Result<Box<dyn Connection>> {
        let dialled = tokio::time::timeout(DIAL_TIME, self.runtime.dial(&self.namespace, &self.pod, port)).await;
        dialled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// As a kubelet words it.
    fn complaint(&self, port: u16, error: &io::Error) -> Bytes {
        format!("error forwarding port {port} to pod {}, uid {}: {error}", self.pod, self.uid).into()
    }
}

/// The ports that the query names.
///
/// # Errors
///
/// When it names none, too many, or something else.
pub(crate) fn ports(ask: &Ask) -> Result<Vec<u16>> {
    let ports = ask.query.all("ports").iter().flat_map(|ports| ports.split(','));
    let ports: Vec<u16> = ports
        .map(|port| {
            let port: Option<u16> = port.parse().ok().filter(|port| *port > 0);
            port.ok_or_else(|| Failure::bad_request("query parameter \"ports\" is not a list of ports"))
        })
        .collect::<Result<_>>()?;
    match ports.len() {
        0 => Err(Failure::bad_request("query parameter \"ports\" is required")),
        1..=MAX_PORTS => Ok(ports),
        _ => Err(Failure::bad_request(format!("more than {MAX_PORTS} ports at once"))),
    }
}

/// Serves kubectl: for each connection an error stream and a data stream, which have a request's number in common.
pub(crate) async fn over_spdy(door: Door, mut streams: mpsc::Receiver<Opened>) {
    let mut waiting: HashMap<String, Half> = HashMap::new();
    let mut work: FuturesUnordered<BoxFuture<'_, Option<Half>>> = FuturesUnordered::new();
    let mut open = true;
    while open || !work.is_empty() {
        let oldest = waiting.values().map(|half| half.since + PAIR_TIME).min();
        let expiry = async {
            match oldest {
                Some(oldest) => tokio::time::sleep_until(oldest).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = streams.recv(), if open => match stream {
                Some(stream) => work.push(Box::pin(Half::of(stream))),
                None => open = false,
            },
            Some(done) = work.next(), if !work.is_empty() => {
                let Some(half) = done else { continue };
                match waiting.remove(&half.request) {
                    None => {
                        waiting.insert(half.request.clone(), half);
                    }
                    Some(other) => match half.pair(other) {
                        Ok((data, error)) => work.push(Box::pin(async {
                            connect(&door, data, error).await;
                            None
                        })),
                        Err(both) => {
                            // Twice the same: neither is to be trusted.
                            for half in *both {
                                half.stream.outgoing.reset(reset::CANCEL).await;
                            }
                        }
                    },
                }
            }
            // Dropped, they are reset.
            () = expiry => waiting.retain(|_, half| half.since.elapsed() < PAIR_TIME),
        }
    }
}

/// One of the two streams of a connection.
struct Half {
    stream: Opened,
    request: String,
    is_data: bool,
    port: u16,
    since: Instant,
}

impl Half {
    /// Takes a stream, unless it says nothing of use.
    async fn of(stream: Opened) -> Option<Self> {
        let port = stream.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
        let is_data = match stream.header("streamtype") {
            Some("data") => Some(true),
            Some("error") => Some(false),
            _ => None,
        };
        let (Some(port), Some(is_data)) = (port, is_data) else {
            stream.outgoing.reset(reset::REFUSED_STREAM).await;
            return None;
        };
        // Clients before Kubernetes 1.1 do not number requests: their data stream follows its error stream.
        let request = stream.header("requestid").map_or_else(
            || format!("stream {}", if is_data { stream.id.saturating_sub(2) } else { stream.id }),
            str::to_owned,
        );
        stream.outgoing.accept().await.ok()?;
        Some(Self { stream, request, is_data, port, since: Instant::now() })
    }

    /// The data stream and the error stream.
    fn pair(self, other: Self) -> std::result::Result<(Self, Self), Box<[Self; 2]>> {
        match (self.is_data, other.is_data) {
            (true, false) => Ok((self, other)),
            (false, true) => Ok((other, self)),
            _ => Err(Box::new([self, other])),
        }
    }
}

async fn connect(door: &Door, data: Half, error: Half) {
    let port = data.port;
    let Opened { mut incoming, outgoing, .. } = data.stream;
    let carried = async {
        let (mut from_pod, mut to_pod) = tokio::io::split(door.dial(port).await?);
        let reading = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(16 << 10);
                if from_pod.read_buf(&mut buffer).await? == 0 || outgoing.send(buffer.split().freeze()).await.is_err() {
                    return Ok(());
                }
            }
        };
        let writing = async {
            tokio::io::copy(&mut incoming, &mut to_pod).await?;
            to_pod.shutdown().await?;
            // The pod may still have much to say.
            std::future::pending().await
        };
        tokio::select! {
            done = reading => done,
            failed = writing => failed,
            // The client wants no more of it, and says so by a reset.
            () = outgoing.gone() => Ok(()),
        }
    };
    let carried: io::Result<()> = carried.await;
    if let Err(why) = carried {
        let _ = error.stream.outgoing.send(door.complaint(port, &why)).await;
    }
    let _ = outgoing.finish().await;
    let _ = error.stream.outgoing.finish().await;
}

/// Serves clients of the older form, such as kube-rs: two channels for each port, the second for errors, both opened
/// by the port's number.
pub(crate) async fn over_websocket(door: Door, ports: Vec<u16>, channels: Channels, socket: Socket) {
    let (sink, mut source) = futures::StreamExt::split(socket);
    let (messages, outgoing) = mpsc::channel::<Message>(16);
    let activity = Activity::new();
    let mut writers: Vec<Option<mpsc::Sender<Bytes>>> = Vec::new();
    let mut connections = Vec::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let data = u8::try_from(index * 2).unwrap_or(CLOSE - 1);
        let (to_pod, incoming) = mpsc::channel(16);
        writers.push(Some(to_pod));
        let teller = Teller { channels, messages: messages.clone(), activity: &activity };
        let door = &door;
        connections.push(async move {
            for channel in [data, data + 1] {
                teller.say(channel, &port.to_le_bytes()).await;
            }
            if let Err(why) = carry(door, port, incoming, (data, &teller)).await {
                teller.say(data + 1, &door.complaint(port, &why)).await;
            }
        });
    }
    drop(messages);
    let receiving = async {
        while let Some(Ok(message)) = source.next().await {
            if message.is_close() {
                return;
            }
            let Some((channel, bytes)) = channels.read(message) else { continue };
            activity.touch();
            if channel == CLOSE {
                if let Some(writer) = bytes.first().and_then(|c| writers.get_mut(usize::from(c / 2))) {
                    *writer = None;
                }
            } else if channel % 2 == 0
                && let Some(Some(writer)) = writers.get(usize::from(channel / 2))
            {
                let _ = writer.send(bytes).await;
            }
        }
    };
    let saying = async {
        tokio::join!(futures::future::join_all(connections), websocket::send(sink, outgoing, PING));
    };
    tokio::pin!(receiving);
    tokio::select! {
        () = saying => {
            let _ = tokio::time::timeout(Duration::from_secs(2), receiving).await;
        }
        () = &mut receiving => {}
        () = activity.silent(IDLE) => {}
    }
}

/// What is said to a client in messages.
struct Teller<'a> {
    channels: Channels,
    messages: mpsc::Sender<Message>,
    activity: &'a Activity,
}

impl Teller<'_> {
    /// Whether somebody took it.
    async fn say(&self, channel: u8, bytes: &[u8]) -> bool {
        self.activity.touch();
        self.messages.send(self.channels.message(channel, bytes)).await.is_ok()
    }
}

async fn carry(
    door: &Door,
    port: u16,
    mut incoming: mpsc::Receiver<Bytes>,
    (channel, teller): (u8, &Teller<'_>),
) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(door.dial(port).await?);
    let reading = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match from.read(&mut buffer).await? {
                0 => return Ok(()),
                n if !teller.say(channel, &buffer[..n]).await => return Ok(()),
                _ => {}
            }
        }
    };
    let writing = async {
        while let Some(bytes) = incoming.recv().await {
            to.write_all(&bytes).await?;
        }
        to.shutdown().await?;
        // The pod may still have much to say.
        std::future::pending().await
    };
    tokio::select! {
        done = reading => done,
        failed = writing => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::spdy::frame::Frame;
    use super::super::spdy::session::{self, Limits, tests::Client};
    use super::*;
    use crate::runtime::{ContainerRef, Exit, LogOptions, RuntimeError, Streams};
    use futures::stream::BoxStream;

    /// Port 80 says what it hears, in brackets; port 81 keeps silent for ever; there is no other.
    struct Pod(Arc<tokio::sync::Semaphore>);

    type Answer<'a, T> = BoxFuture<'a, std::result::Result<T, RuntimeError>>;

    impl PodRuntime for Pod {
        fn logs(&self, _: ContainerRef, _: LogOptions) -> Answer<'_, BoxStream<'static, Bytes>> {
            Box::pin(async { Err(RuntimeError::NotFound("no logs".into())) })
        }

        fn exec(&self, _: ContainerRef, _: Vec<String>, _: Streams) -> Answer<'_, Exit> {
            Box::pin(async { Err(RuntimeError::NotFound("nothing runs".into())) })
        }

        fn attach(&self, _: ContainerRef, _: Streams) -> Answer<'_, Exit> {
            Box::pin(async { Err(RuntimeError::NotFound("nothing runs".into())) })
        }

        fn dial<'a>(&'a self, _: &'a str, _: &'a str, port: u16) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
            Box::pin(async move {
                if !matches!(port, 80 | 81) {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (near, mut far) = tokio::io::duplex(1024);
                let hung_up = Arc::clone(&self.0);
                tokio::spawn(async move {
                    let mut heard = String::new();
                    far.read_to_string(&mut heard).await.unwrap();
                    if port == 80 {
                        far.write_all(format!("[{heard}]").as_bytes()).await.unwrap();
                    } else {
                        // Whoever hangs up on it closes both ways.
                        while far.write_all(b".").await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        hung_up.add_permits(1);
                    }
                });
                Ok(Box::new(near) as Box<dyn Connection>)
            })
        }
    }

    #[tokio::test]
    async fn connections_are_paired_by_request_and_end_one_by_one() {
        let hung_up = Arc::new(tokio::sync::Semaphore::new(0));
        let runtime = Arc::new(Pod(Arc::clone(&hung_up)));
        let door = Door { runtime, namespace: "n".into(), pod: "p".into(), uid: "u".into() };
        let (mut client, server) = Client::pair();
        let serve = move |streams| over_spdy(door, streams);
        let serving = tokio::spawn(session::run(server, Limits::default(), serve));
        let pair = |port: &'static str, id: &'static str| {
            ["error", "data"].map(|kind| vec![("streamtype", kind), ("port", port), ("requestid", id)])
        };
        let ([error_80, data_80], [error_99, data_99]) = (pair("80", "0"), pair("99", "1"));
        let [error_81, data_81] = pair("81", "2");
        client.open_for(1, &error_80).await;
        client.open_for(3, &error_99).await;
        client.open_for(5, &data_99).await;
        client.open_for(7, &data_80).await;
        client.open_for(9, &error_81).await;
        client.open_for(11, &data_81).await;
        // Refused at once: no port, no kind.
        client.open_for(13, &[("streamtype", "data"), ("requestid", "7")]).await;
        client.open_for(15, &[("streamtype", "more"), ("port", "80"), ("requestid", "7")]).await;
        // Old clients: the data stream follows its error stream, without numbers.
        client.open_for(17, &[("streamtype", "error"), ("port", "80")]).await;
        client.open_for(19, &[("streamtype", "data"), ("port", "80")]).await;
        client.data(19, "old", true).await;
        client.data(7, "hello", true).await;
        client.say(Frame::Rst { stream: 11, status: reset::CANCEL }).await;
        let freed = tokio::time::timeout(Duration::from_secs(5), hung_up.acquire()).await;
        freed.expect("a connection that its client resets is hung up").unwrap().forget();
        client.say(Frame::GoAway { last: 0, status: 0 }).await;
        let said = client.hear_all().await;
        let refused = "error forwarding port 99 to pod p, uid u: connection refused!";
        assert_eq!((said[&1].as_str(), said[&7].as_str()), ("!", "[hello]!"));
        assert_eq!((said[&3].as_str(), said[&5].as_str()), (refused, "!"));
        assert_eq!((said[&13].as_str(), said[&15].as_str()), ("reset 3", "reset 3"));
        assert_eq!((said[&17].as_str(), said[&19].as_str()), ("!", "[old]!"));
        drop(client);
        serving.await.unwrap().unwrap();
    }
}
