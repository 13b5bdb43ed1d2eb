//! A client, frame by frame, against a connection.

use super::*;

/// The other side, frame by frame.
pub(crate) struct Client {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
}

impl Client {
    pub(crate) fn pair() -> (Self, DuplexStream) {
        let (io, server) = tokio::io::duplex(4096);
        let client = Self { io, encoder: Encoder::default(), decoder: Decoder::default(), buffer: BytesMut::new() };
        (client, server)
    }

    pub(crate) async fn say(&mut self, frame: Frame) {
        let mut wire = BytesMut::new();
        self.encoder.encode(&frame, &mut wire);
        self.io.write_all(&wire).await.unwrap();
    }

    async fn open(&mut self, stream: u32) {
        self.open_for(stream, &[("streamtype", &format!("s{stream}"))]).await;
    }

    /// Opens a stream with headers.
    pub(crate) async fn open_for(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (associated, priority, fin, unidirectional) = (0, 0, false, false);
        self.say(Frame::SynStream { stream, associated, priority, headers, fin, unidirectional }).await;
    }

    /// Everything until the other side says that it goes away: each stream's data, `!` where it ended.
    pub(crate) async fn hear_all(&mut self) -> std::collections::BTreeMap<u32, String> {
        let mut all = std::collections::BTreeMap::<u32, String>::new();
        while let Some(frame) = self.hear().await {
            match frame {
                Frame::Data { stream, data, fin } => {
                    let said = all.entry(stream).or_default();
                    said.push_str(&String::from_utf8_lossy(&data));
                    if fin {
                        said.push('!');
                    }
                }
                Frame::Rst { stream, status } => all.entry(stream).or_default().push_str(&format!("reset {status}")),
                Frame::GoAway { .. } => break,
                _ => {}
            }
        }
        all
    }

    pub(crate) async fn data(&mut self, stream: u32, data: impl Into<Bytes>, fin: bool) {
        self.say(Frame::Data { stream, data: data.into(), fin }).await;
    }

    pub(crate) async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// The next data of a stream; what else comes is passed over.
    async fn hear_data(&mut self) -> (u32, Bytes, bool) {
        loop {
            if let Some(Frame::Data { stream, data, fin }) = self.hear().await {
                return (stream, data, fin);
            }
        }
    }
}

async fn echo(mut streams: mpsc::Receiver<Opened>) {
    let mut all = Vec::new();
    while let Some(mut stream) = streams.recv().await {
        all.push(tokio::spawn(async move {
            stream.outgoing.accept().await.unwrap();
            let mut buffer = BytesMut::new();
            while stream.incoming.read_buf(&mut buffer).await.unwrap() > 0 {
                stream.outgoing.send(buffer.split().freeze()).await.unwrap();
            }
            let _ = stream.outgoing.finish().await;
        }));
    }
    for one in all {
        let _ = one.await;
    }
}

#[tokio::test]
async fn streams_are_told_apart_and_end_one_by_one() {
    let (mut client, server) = Client::pair();
    let serving = tokio::spawn(run(server, Limits::default(), echo));
    for stream in [1, 3] {
        client.open(stream).await;
        let reply = Frame::SynReply { stream, headers: Headers::new(), fin: false };
        assert_eq!(client.hear().await, Some(reply));
    }
    client.say(Frame::Ping(9)).await;
    assert_eq!(client.hear().await, Some(Frame::Ping(9)));
    client.data(3, "three", false).await;
    assert_eq!(client.hear_data().await, (3, "three".into(), false));
    client.data(1, "one", true).await;
    assert_eq!(client.hear_data().await, (1, "one".into(), false));
    assert_eq!(client.hear_data().await, (1, "".into(), true));
    client.data(3, "", true).await;
    assert_eq!(client.hear_data().await, (3, "".into(), true));
    client.say(Frame::GoAway { last: 0, status: 0 }).await;
    assert_eq!(client.hear().await, None);
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_end_is_told_after_everything_else() {
    let (mut client, server) = Client::pair();
    let serving = tokio::spawn(run(server, Limits::default(), async |mut streams| {
        let stream = streams.recv().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("s1"));
        stream.outgoing.accept().await.unwrap();
        stream.outgoing.send(Bytes::from(vec![7; 100_000])).await.unwrap();
        stream.outgoing.finish().await.unwrap();
        let left = streams.recv().await.unwrap();
        drop(left);
    }));
    client.open(1).await;
    client.open(3).await;
    let (mut count, mut frames, mut was_reset) = (0, Vec::new(), false);
    while let Some(frame) = client.hear().await {
        match frame {
            Frame::Data { data, fin: false, .. } => count += data.len(),
            // What is left unfinished is reset, before or after what is queued.
            Frame::Rst { stream: 3, status: reset::CANCEL } => was_reset = true,
            frame => frames.push(frame),
        }
        if matches!(frames.last(), Some(Frame::GoAway { .. })) {
            break;
        }
    }
    assert!(was_reset);
    assert_eq!(count, 100_000, "a client that knows no windows is not held by them");
    assert_eq!(
        frames,
        [
            Frame::SynReply { stream: 1, headers: Headers::new(), fin: false },
            Frame::Data { stream: 1, data: Bytes::new(), fin: true },
            Frame::GoAway { last: 3, status: 0 },
        ]
    );
    drop(client);
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn windows_bind_once_the_client_shows_that_it_keeps_them() {
    let (mut client, server) = Client::pair();
    let serving = tokio::spawn(run(server, Limits::default(), async |mut streams| {
        let stream = streams.recv().await.unwrap();
        stream.outgoing.accept().await.unwrap();
        stream.outgoing.send(Bytes::from(vec![7; 200_000])).await.unwrap();
        stream.outgoing.finish().await.unwrap();
    }));
    client.say(Frame::Settings(vec![(INITIAL_WINDOW_SIZE, 1000)])).await;
    client.open(1).await;
    let mut count = 0;
    while count < 1000 {
        count += client.hear_data().await.1.len();
    }
    assert_eq!(count, 1000);
    let more = tokio::time::timeout(Duration::from_millis(50), client.hear_data()).await;
    assert!(more.is_err(), "the window is used up");
    // The stream's window is large now, that of all streams is the next.
    client.say(Frame::WindowUpdate { stream: 1, delta: 1_000_000 }).await;
    while count < 64 << 10 {
        count += client.hear_data().await.1.len();
    }
    assert_eq!(count, 64 << 10);
    client.say(Frame::WindowUpdate { stream: 0, delta: 1_000_000 }).await;
    loop {
        let (_, data, fin) = client.hear_data().await;
        count += data.len();
        if fin {
            break;
        }
    }
    assert_eq!(count, 200_000);
    drop(client);
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_is_drowned() {
    let (mut client, server) = Client::pair();
    let serving = tokio::spawn(run(server, Limits::default(), async |mut streams| {
        let _unread = streams.recv().await.unwrap();
        std::future::pending::<()>().await;
    }));
    client.open(1).await;
    let mut sent = 0;
    let piece = || Bytes::from(vec![1; 4096]);
    let slow = Duration::from_millis(500);
    while tokio::time::timeout(slow, client.data(1, piece(), false)).await.is_ok() {
        sent += 1;
        assert!(sent < 50, "nothing holds the sender");
    }
    assert!(sent >= 16, "a whole window has room: {sent} pieces");
    serving.abort();
}

#[tokio::test]
async fn what_was_read_is_given_back() {
    let (mut client, server) = Client::pair();
    let serving = tokio::spawn(run(server, Limits::default(), async |mut streams| {
        let mut stream = streams.recv().await.unwrap();
        stream.outgoing.accept().await.unwrap();
        let mut all = vec![0; 20 << 10];
        stream.incoming.read_exact(&mut all).await.unwrap();
        drop(stream.incoming);
        std::future::pending::<()>().await;
    }));
    client.open(1).await;
    client.data(1, vec![1; 60 << 10], false).await;
    // Less than half a window was read, but what nobody will read any more is given back for others.
    let mut all = 0;
    while all < 32 << 10 {
        if let Some(Frame::WindowUpdate { stream: 0, delta }) = client.hear().await {
            all += delta;
        }
    }
    drop(client);
    let ended = serving.await.unwrap();
    assert!(matches!(ended, Ok(()) | Err(SpdyError::Io(_))), "{ended:?}");
}

#[tokio::test]
async fn too_many_streams_are_refused_and_breaches_end_everything() {
    let (mut client, server) = Client::pair();
    let limits = Limits { streams: 2, ..Limits::default() };
    let serving = tokio::spawn(run(server, limits, async |mut streams| {
        let mut all = Vec::new();
        while let Some(stream) = streams.recv().await {
            all.push(stream);
        }
        std::future::pending().await
    }));
    for stream in [1, 3, 5] {
        client.open(stream).await;
    }
    assert_eq!(client.hear().await, Some(Frame::Rst { stream: 5, status: reset::REFUSED_STREAM }));
    client.data(7, "to nobody", false).await;
    assert_eq!(client.hear().await, Some(Frame::Rst { stream: 7, status: reset::INVALID_STREAM }));
    client.open(2).await;
    assert_eq!(client.hear().await, Some(Frame::GoAway { last: 3, status: 1 }));
    assert!(matches!(serving.await.unwrap(), Err(SpdyError::Protocol("a stream out of order"))));
}

#[tokio::test]
async fn silence_ends_a_connection_whatever_is_pinged() {
    let (mut client, server) = Client::pair();
    let limits = Limits { idle: Duration::from_millis(350), ping: Duration::from_millis(100), ..Limits::default() };
    let began = Instant::now();
    let serving = tokio::spawn(run(server, limits, echo));
    client.open(1).await;
    // How many come is the machine's affair; each is answered, and none keeps the connection open.
    let mut pings = 0;
    loop {
        match client.hear().await.unwrap() {
            Frame::Ping(asked) => {
                pings += 1;
                assert_eq!(asked, 2 * pings);
                let mut pong = BytesMut::new();
                client.encoder.encode(&Frame::Ping(asked), &mut pong);
                // The server may have hung up meanwhile; what it said before is still to be heard.
                let _ = client.io.write_all(&pong).await;
            }
            Frame::GoAway { last, status } => {
                assert_eq!((last, status), (1, 0));
                break;
            }
            _ => {}
        }
    }
    assert!(pings >= 1);
    assert!(matches!(serving.await.unwrap(), Err(SpdyError::Idle)));
    assert!(began.elapsed() >= Duration::from_millis(350));
}
