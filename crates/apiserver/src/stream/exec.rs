//! Exec and attach: a process's streams and a client's, connected.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::frame::reset;
use super::spdy::session::{Incoming, Opened, Outgoing};
use super::websocket::{self, Channels, Socket};
use super::{Activity, IDLE, PING};
use crate::failure::{Failure, Result};
use crate::route::Ask;
use crate::runtime::{ContainerRef, Exit, PodRuntime, Reader, RuntimeError, Size, Streams, Writer};

/// The subprotocols over SPDY, newest first; the last is version 1.
pub(crate) const PROTOCOLS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In v5: the stream named by the next byte ends.
const CLOSE: u8 = 255;
/// What is buffered between a process and its client.
const BUFFER: usize = 64 << 10;
/// How long a client may take to open its streams.
const STREAMS_TIME: Duration = Duration::from_secs(30);
/// Whoever keeps an output open after a process's end does not keep the client for longer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a client asked for.
pub(crate) struct Plan {
    runtime: Arc<dyn PodRuntime>,
    container: ContainerRef,
    /// `None` for attach.
    command: Option<Vec<String>>,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Plan {
    /// Reads the query.
    ///
    /// # Errors
    ///
    /// When there is nothing to run, or nothing to see of it.
    pub(crate) fn of(ask: &Ask, runtime: Arc<dyn PodRuntime>, container: ContainerRef) -> Result<Self> {
        let command = (ask.target.sub == "exec").then(|| ask.query.all("command").to_vec());
        if command.as_ref().is_some_and(Vec::is_empty) {
            return Err(Failure::bad_request("you must specify at least 1 command for the container"));
        }
        let tty = ask.query.is("tty");
        let (stdin, stdout) = (ask.query.is("stdin"), ask.query.is("stdout"));
        let stderr = ask.query.is("stderr") && !tty;
        if !stdin && !stdout && !stderr {
            return Err(Failure::bad_request("you must specify at least one of stdin, stdout, stderr"));
        }
        Ok(Self { runtime, container, command, tty, stdin, stdout, stderr })
    }

    fn start(self, streams: Streams) -> BoxFuture<'static, std::result::Result<Exit, RuntimeError>> {
        let Self { runtime, container, command, .. } = self;
        Box::pin(async move {
            match command {
                Some(command) => runtime.exec(container, command, streams).await,
                None => runtime.attach(container, streams).await,
            }
        })
    }

    /// Runs the process to its end and all its output to the client.
    async fn play(self, stdin: Option<Reader>, resize: mpsc::Receiver<Size>, out: [Option<Outlet>; 2]) -> Ended {
        let [stdout, stderr] = out;
        let (to_stdout, from_stdout) = stdout.is_some().then(|| tokio::io::duplex(BUFFER)).unzip();
        let (to_stderr, from_stderr) = stderr.is_some().then(|| tokio::io::duplex(BUFFER)).unzip();
        let tty = self.tty;
        let process = self.start(Streams {
            stdin,
            stdout: to_stdout.map(|half| Box::new(half) as Writer),
            stderr: to_stderr.map(|half| Box::new(half) as Writer),
            tty,
            resize,
        });
        let pumps = async { tokio::join!(pump(from_stdout, stdout), pump(from_stderr, stderr)) };
        tokio::pin!(pumps, process);
        tokio::select! {
            ended = &mut process => {
                let _ = tokio::time::timeout(LAST_WORDS, &mut pumps).await;
                ended
            }
            _ = &mut pumps => process.await,
        }
    }
}

type Ended = std::result::Result<Exit, RuntimeError>;

/// Where an output of a process goes.
enum Outlet {
    Channel { channels: Channels, channel: u8, messages: mpsc::Sender<Message>, activity: Arc<Activity> },
    Stream(Outgoing),
}

impl Outlet {
    /// Whether somebody took it.
    async fn send(&self, data: Bytes) -> bool {
        match self {
            Self::Channel { channels, channel, messages, activity } => {
                activity.touch();
                messages.send(channels.message(*channel, &data)).await.is_ok()
            }
            Self::Stream(stream) => stream.send(data).await.is_ok(),
        }
    }

    async fn finish(self) {
        if let Self::Stream(stream) = self {
            let _ = stream.finish().await;
        }
    }
}

async fn pump(from: Option<DuplexStream>, to: Option<Outlet>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(16 << 10);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) if !to.send(buffer.split().freeze()).await => break,
            Ok(_) => {}
        }
    }
    to.finish().await;
}

/// Serves a client whose messages name their channels.
pub(crate) async fn over_websocket(plan: Plan, channels: Channels, socket: Socket) {
    let (sink, mut source) = futures::StreamExt::split(socket);
    let (messages, outgoing) = mpsc::channel::<Message>(16);
    let (to_process, stdin) = plan.stdin.then(|| tokio::io::duplex(BUFFER)).unzip();
    let (sizes, resize) = mpsc::channel(8);
    let activity = Arc::new(Activity::new());
    let outlet = |wanted: bool, channel| {
        let (messages, activity) = (messages.clone(), Arc::clone(&activity));
        wanted.then_some(Outlet::Channel { channels, channel, messages, activity })
    };
    let outlets = [outlet(plan.stdout, STDOUT), outlet(plan.stderr, STDERR)];
    let receiving = async {
        let mut to_process = to_process;
        while let Some(Ok(message)) = source.next().await {
            if message.is_close() {
                return;
            }
            let Some((channel, data)) = channels.read(message) else { continue };
            activity.touch();
            match channel {
                STDIN => {
                    if let Some(pipe) = &mut to_process
                        && pipe.write_all(&data).await.is_err()
                    {
                        to_process = None;
                    }
                }
                RESIZE => {
                    if let Some((size, _)) = read_size(&data) {
                        let _ = sizes.try_send(size);
                    }
                }
                CLOSE if channels.version >= 5 && data[..] == [STDIN] => to_process = None,
                _ => {}
            }
        }
    };
    let running = async {
        let ended = plan.play(stdin.map(|half| Box::new(half) as Reader), resize, outlets).await;
        if let Some(text) = last_word(channels.version, ended) {
            let _ = messages.send(channels.message(ERROR, text.as_bytes())).await;
        }
        drop(messages);
    };
    // Ends with the process once its end is sent, or when the client leaves; with everything said, the client gets a
    // moment to say goodbye.
    let saying = async {
        tokio::join!(running, websocket::send(sink, outgoing, PING));
    };
    tokio::pin!(receiving);
    tokio::select! {
        () = saying => {
            let _ = tokio::time::timeout(LAST_WORDS, receiving).await;
        }
        () = &mut receiving => {}
        () = activity.silent(IDLE) => {}
    }
}

/// Serves a client that opens a stream for each of the process's.
pub(crate) async fn over_spdy(plan: Plan, version: usize, mut streams: mpsc::Receiver<Opened>) {
    let mut open = Open::default();
    let gathering = async {
        while !open.suffices(&plan, version) {
            let Some(stream) = streams.recv().await else { return false };
            open.take(stream).await;
        }
        true
    };
    if !matches!(tokio::time::timeout(STREAMS_TIME, gathering).await, Ok(true)) {
        tracing::debug!("a client did not open its streams in time");
        return;
    }
    let Open { error, stdin, stdout, stderr, resize } = open;
    // More are not wanted: they are reset as they come.
    drop(streams);
    let (sizes, resized) = mpsc::channel(8);
    let (resize, resize_back) = resize.unzip();
    let (stdin, stdin_back) = stdin.filter(|_| plan.stdin).unzip();
    let outlet = |stream: Option<Ends>| stream.map(|(_, outgoing)| Outlet::Stream(outgoing));
    let outlets = [outlet(stdout.filter(|_| plan.stdout)), outlet(stderr.filter(|_| plan.stderr))];
    let resizing = async {
        if let Some(resize) = resize {
            read_sizes(resize, &sizes).await;
        }
        // The process goes on, with the size it has.
        std::future::pending::<()>().await;
    };
    let playing = plan.play(stdin.map(|half| Box::new(half) as Reader), resized, outlets);
    let ended = tokio::select! {
        ended = playing => ended,
        () = resizing => return,
    };
    if let Some((_, error)) = error {
        if let Some(text) = last_word(u8::try_from(version).unwrap_or(1), ended) {
            let _ = error.send(Bytes::from(text)).await;
        }
        let _ = error.finish().await;
    }
    for stream in [stdin_back, resize_back].into_iter().flatten() {
        let _ = stream.finish().await;
    }
}

type Ends = (Incoming, Outgoing);

/// The streams a client has opened.
#[derive(Default)]
struct Open {
    error: Option<Ends>,
    stdin: Option<Ends>,
    stdout: Option<Ends>,
    stderr: Option<Ends>,
    resize: Option<Ends>,
}

impl Open {
    async fn take(&mut self, stream: Opened) {
        let place = match stream.header("streamtype").unwrap_or_default() {
            "error" => &mut self.error,
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "resize" => &mut self.resize,
            unknown => {
                tracing::debug!(unknown, "a client opened a stream of no known kind");
                return stream.outgoing.reset(reset::REFUSED_STREAM).await;
            }
        };
        if place.is_some() {
            return stream.outgoing.reset(reset::REFUSED_STREAM).await;
        }
        if stream.outgoing.accept().await.is_ok() {
            *place = Some((stream.incoming, stream.outgoing));
        }
    }

    /// Whether everything is there that the client asked for. Terminals are resized since v3.
    fn suffices(&self, plan: &Plan, version: usize) -> bool {
        let missing = [
            (true, &self.error),
            (plan.stdin, &self.stdin),
            (plan.stdout, &self.stdout),
            (plan.stderr, &self.stderr),
            (plan.tty && version >= 3, &self.resize),
        ];
        missing.into_iter().all(|(wanted, stream)| !wanted || stream.is_some())
    }
}

/// Sizes, one JSON object after another.
async fn read_sizes(mut from: impl AsyncRead + Unpin, sizes: &mpsc::Sender<Size>) {
    /// More is no size.
    const LONGEST: usize = 1024;
    let mut buffer = BytesMut::new();
    while buffer.len() < LONGEST {
        if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
        while let Some((size, length)) = read_size(&buffer) {
            let _ = buffer.split_to(length);
            let _ = sizes.try_send(size);
        }
    }
}

/// A size and how long its text is.
fn read_size(data: &[u8]) -> Option<(Size, usize)> {
    let mut values = serde_json::Deserializer::from_slice(data).into_iter::<Value>();
    let size = values.next()?.ok()?;
    let number = |field: &str| size[field].as_u64().and_then(|n| u16::try_from(n).ok());
    Some((Size { width: number("Width")?, height: number("Height")? }, values.byte_offset()))
}

/// What the error channel says at the end: a Status since v4, before that words, and those only of failures.
fn last_word(version: u8, ended: Ended) -> Option<String> {
    let status = end_status(ended);
    if version >= 4 {
        return Some(status.to_string());
    }
    (status["status"] != "Success").then(|| status["message"].as_str().unwrap_or_default().to_owned())
}

/// How a process ended, as a Status.
fn end_status(ended: Result<Exit, RuntimeError>) -> Value {
    match ended {
        Ok(Exit { code: 0 }) => json!({"metadata": {}, "status": "Success"}),
        Ok(Exit { code }) => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "code": 500,
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Err(error) => {
            let mut status = Failure::from(error).status();
            status["message"] = json!(status["message"].as_str().unwrap_or_default());
            status
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_told_as_kubernetes_tells_it() {
        assert_eq!(end_status(Ok(Exit { code: 0 }))["status"], "Success");
        let failed = end_status(Ok(Exit { code: 7 }));
        assert_eq!(failed["details"]["causes"][0]["message"], "7");
        assert_eq!(end_status(Err(RuntimeError::BadRequest("no".into())))["code"], 400);
        assert_eq!(last_word(3, Ok(Exit { code: 0 })), None);
        let old = last_word(1, Ok(Exit { code: 2 }));
        assert_eq!(old.as_deref(), Some("command terminated with non-zero exit code: exit status 2"));
    }

    #[tokio::test]
    async fn sizes_are_read_however_they_come() {
        let text = br#"{"Width":80,"Height":24}
{"Width":100,"Height":50}"#;
        for cut in 1..text.len() {
            let (mut near, far) = tokio::io::duplex(1024);
            let (sizes, mut read) = mpsc::channel(8);
            let writing = async move {
                for piece in text.chunks(cut) {
                    near.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            tokio::join!(writing, read_sizes(far, &sizes));
            drop(sizes);
            assert_eq!(read.recv().await, Some(Size { width: 80, height: 24 }), "{cut}");
            assert_eq!(read.recv().await, Some(Size { width: 100, height: 50 }), "{cut}");
        }
    }

    use super::super::spdy::frame::Frame;
    use super::super::spdy::session::{self, Limits, tests::Client};
    use crate::runtime::LogOptions;
    use futures::stream::BoxStream;

    /// Says what it reads and how large its terminal is, and fails with 3.
    struct Parrot;

    impl PodRuntime for Parrot {
        fn logs(
            &self,
            _: ContainerRef,
            _: LogOptions,
        ) -> BoxFuture<'_, std::result::Result<BoxStream<'static, Bytes>, RuntimeError>> {
            Box::pin(async { Err(RuntimeError::NotFound("no logs".into())) })
        }

        fn exec(&self, _: ContainerRef, command: Vec<String>, streams: Streams) -> BoxFuture<'_, Ended> {
            Box::pin(async move {
                let Streams { stdin, stdout, stderr, mut resize, .. } = streams;
                let (mut stdin, mut stdout) = (stdin.unwrap(), stdout.unwrap());
                tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
                if let Some(mut stderr) = stderr {
                    stderr.write_all(command.join(" ").as_bytes()).await.unwrap();
                } else {
                    let size = resize.recv().await.unwrap();
                    stdout.write_all(format!(" {}x{}", size.width, size.height).as_bytes()).await.unwrap();
                }
                Ok(Exit { code: 3 })
            })
        }

        fn attach(&self, container: ContainerRef, streams: Streams) -> BoxFuture<'_, Ended> {
            self.exec(container, vec!["attached".into()], streams)
        }

        fn dial<'a>(
            &'a self,
            _: &'a str,
            _: &'a str,
            _: u16,
        ) -> BoxFuture<'a, std::io::Result<Box<dyn crate::runtime::Connection>>> {
            Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
        }
    }

    async fn spoken(version: usize, tty: bool, command: Option<&str>) -> std::collections::BTreeMap<u32, String> {
        let container =
            ContainerRef { namespace: "n".into(), pod: "p".into(), uid: String::new(), container: "c".into() };
        let command = command.map(|command| vec![command.to_owned()]);
        let (stdin, stdout, stderr) = (true, true, !tty);
        let plan = Plan { runtime: Arc::new(Parrot), container, command, tty, stdin, stdout, stderr };
        let (mut client, server) = Client::pair();
        let serve = move |streams| over_spdy(plan, version, streams);
        let serving = tokio::spawn(session::run(server, Limits::default(), serve));
        client.open_for(1, &[("streamtype", "error")]).await;
        client.open_for(3, &[("streamtype", "stdin")]).await;
        client.open_for(5, &[("streamtype", "what")]).await;
        client.open_for(7, &[("streamtype", "stdout")]).await;
        match (tty, version) {
            (false, _) => client.open_for(9, &[("streamtype", "stderr")]).await,
            (true, _) => {
                client.open_for(9, &[("streamtype", "resize")]).await;
                client.data(9, "{\"Width\":80,\"Height\":24}\n", false).await;
            }
        }
        client.data(3, "typed", true).await;
        let said = client.hear_all().await;
        drop(client);
        serving.await.unwrap().unwrap();
        said
    }

    #[tokio::test]
    async fn exec_over_spdy() {
        let said = spoken(4, false, Some("run")).await;
        assert_eq!((said[&3].as_str(), said[&5].as_str()), ("!", "reset 3"));
        assert_eq!((said[&7].as_str(), said[&9].as_str()), ("typed!", "run!"));
        let status: Value = serde_json::from_str(said[&1].trim_end_matches('!')).unwrap();
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        // Before v4 an end was told in words.
        let said = spoken(2, false, None).await;
        assert_eq!(said[&9], "attached!");
        assert_eq!(said[&1], "command terminated with non-zero exit code: exit status 3!");
        // Terminals have a size since v3.
        assert_eq!(spoken(3, true, Some("run")).await[&7], "typed 80x24!");
    }

    #[tokio::test]
    async fn a_process_ends_with_its_client() {
        struct Alive(Arc<tokio::sync::Notify>);
        impl Drop for Alive {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let ended = Arc::new(tokio::sync::Notify::new());
        let alive = Alive(Arc::clone(&ended));
        let (mut client, server) = Client::pair();
        let serving = tokio::spawn(session::run(server, Limits::default(), async move |mut streams| {
            let _alive = alive;
            let _stream = streams.recv().await;
            std::future::pending::<()>().await;
        }));
        client.open_for(1, &[("streamtype", "error")]).await;
        client.say(Frame::Ping(1)).await;
        assert_eq!(client.hear().await, Some(Frame::Ping(1)));
        drop(client);
        tokio::time::timeout(Duration::from_secs(5), ended.notified()).await.expect("the process is dropped");
        let _ = serving.await.unwrap();
    }
}
