//! Whatever a client writes, the proxy and the application see the same requests, in a form that can be read in one
//! way only.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::sidecar::{CLUSTER, SERVICE, VIP, of_port, routes, service, virtual_outbound};
use super::world::{Running, SOON, endpoints, original};

/// What an application was sent.
#[derive(Default)]
struct Seen {
    paths: Vec<String>,
    /// What could be read in two ways.
    doubtful: Vec<String>,
}

/// An application that reads strictly and keeps what it reads.
async fn application(seen: Arc<Mutex<Seen>>) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            tokio::spawn(converse(stream, Arc::clone(&seen)));
        }
    });
    address
}

async fn converse(mut stream: TcpStream, seen: Arc<Mutex<Seen>>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let _ = buffer.drain(..end + 4);
        let framing = judge(&head, &seen);
        match framing {
            Framing::Length(length) => {
                while buffer.len() < length {
                    if stream.read_buf(&mut buffer).await.ok()? == 0 {
                        return None;
                    }
                }
                let _ = buffer.drain(..length);
            }
            Framing::Chunked => loop {
                let line = loop {
                    if let Some(end) = buffer.windows(2).position(|two| two == b"\r\n") {
                        break buffer.drain(..end + 2).collect::<Vec<_>>();
                    }
                    if stream.read_buf(&mut buffer).await.ok()? == 0 {
                        return None;
                    }
                };
                let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
                while buffer.len() < size + 2 {
                    if stream.read_buf(&mut buffer).await.ok()? == 0 {
                        return None;
                    }
                }
                let _ = buffer.drain(..size + 2);
                if size == 0 {
                    break;
                }
            },
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok()?;
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

fn judge(head: &str, seen: &Mutex<Seen>) -> Framing {
    let mut seen = seen.lock().unwrap();
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let words: Vec<_> = first.split(' ').collect();
    seen.paths.push(words.get(1).copied().unwrap_or_default().to_owned());
    let mut doubt = |what: &str| seen.doubtful.push(format!("{what}: {head:?}"));
    if words.len() != 3 || words[2] != "HTTP/1.1" {
        doubt("request line");
    }
    let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
    for line in lines {
        if line.contains(['\n', '\r']) || line.starts_with([' ', '\t']) {
            doubt("line ends");
        }
        let Some((name, value)) = line.split_once(':') else {
            doubt("no colon");
            continue;
        };
        if name.is_empty() || name.contains([' ', '\t']) {
            doubt("name");
        }
        match name.to_ascii_lowercase().as_str() {
            "content-length" => lengths.push(value.trim().to_owned()),
            "transfer-encoding" => codings.push(value.trim().to_owned()),
            "host" => hosts += 1,
            _ => {}
        }
    }
    if hosts != 1 {
        doubt("hosts");
    }
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Framing::Length(0),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => Framing::Length(length.parse().unwrap_or(0)),
        ([], [coding]) if coding == "chunked" => Framing::Chunked,
        _ => {
            doubt("framing");
            Framing::Length(0)
        }
    }
}

fn proxy(address: SocketAddr) -> Running {
    let mut proxy = Running::start();
    proxy.put(CLUSTER, &service("spiffe://cluster.local/ns/sample/sa/helloworld"));
    proxy.put(CLUSTER, &endpoints(CLUSTER, &[address], false));
    proxy.put("PassthroughCluster", &original("PassthroughCluster"));
    proxy.put("virtualOutbound", &virtual_outbound());
    proxy.put("0.0.0.0_5000", &of_port(5000));
    proxy.put("5000", &routes("5000", CLUSTER));
    proxy
}

/// Says all of it, and nothing more; what comes back.
async fn say(proxy: &Running, text: &str) -> String {
    let mut stream = proxy.redirected(VIP).await;
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("nothing may hang");
    String::from_utf8_lossy(&answer).into_owned()
}

impl Running {
    /// The paths of the requests that were sent to a host.
    fn forwarded(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let sent = lines.filter(|line| line["host"].as_str().is_some_and(|host| host != "-"));
        sent.filter_map(|line| line["path"].as_str().map(str::to_owned)).collect()
    }
}

/// Whether all that was seen was sent, as often as it was seen.
fn covers(sent: &[String], seen: &[String]) -> bool {
    let count = |all: &[String], path: &String| all.iter().filter(|one| *one == path).count();
    seen.iter().all(|path| count(seen, path) <= count(sent, path))
}

const HEADERS: [&str; 22] = [
    "Content-Length: 5",
    "Content-Length: 5, 5",
    "Content-Length: 5, 6",
    "Content-Length: +5",
    "Content-Length: 0x5",
    "Content-Length : 5",
    "Content-Length: 0",
    "content-length: 44",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: \u{b}chunked",
    "X: a\r\n Transfer-Encoding: chunked",
    "X: a\nTransfer-Encoding: chunked",
    "X: a\rContent-Length: 5",
    "Connection: content-length",
    "Connection: close, transfer-encoding",
    "Host: somebody.else",
    "Expect: 100-continue",
];
const BODIES: [&str; 5] = [
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: helloworld.sample\r\n\r\n",
    "GET /smuggled HTTP/1.1\r\nHost: helloworld.sample\r\n\r\n",
];

#[test]
fn proxy_and_application_see_the_same_requests() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let proxy = runtime.block_on(async { proxy(application(Arc::clone(&seen)).await) });
    let strategy = (
        proptest::collection::vec(proptest::sample::select(&HEADERS[..]), 0..4),
        proptest::sample::select(&BODIES[..]),
        proptest::sample::select(&["/a", "http://helloworld.sample.svc.cluster.local/b", "/c d", "*"][..]),
        proptest::sample::select(&["1.1", "1.0"][..]),
    );
    let mut runner = TestRunner::new(Config::with_cases(200));
    let result = runner.run(&strategy, |(headers, body, target, version)| {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let text = format!("POST {target} HTTP/{version}\r\nHost: {SERVICE}\r\n{lines}\r\n{body}");
        runtime.block_on(async {
            say(&proxy, &text).await;
            // The log is written when a request has ended.
            let mut patience = 200;
            while !covers(&proxy.forwarded(), &seen.lock().unwrap().paths) && patience > 0 {
                patience -= 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let seen = seen.lock().unwrap();
        // Some it gives up before they are sent, when the client has gone; none comes out of another's body.
        prop_assert!(covers(&proxy.forwarded(), &seen.paths), "{:?} after {:?}", seen.paths, text);
        prop_assert!(seen.doubtful.is_empty(), "{:?} of {:?}", seen.doubtful, text);
        Ok(())
    });
    result.unwrap();
    assert!(!seen.lock().unwrap().paths.is_empty());
}

#[tokio::test]
async fn a_request_of_two_lengths_reaches_nobody_in_two_ways() {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let proxy = proxy(application(Arc::clone(&seen)).await);
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: helloworld.sample\r\n\r\n";
    let post = format!("POST /a HTTP/1.1\r\nHost: {SERVICE}\r\n");
    let length = smuggled.len();
    let both = [
        format!("{post}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
    ];
    for text in both {
        let answer = say(&proxy, &text).await;
        // One answer, and the connection is over: what follows is nobody's.
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    for headers in [
        "Content-Length: 3\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "X: a\r\n b\r\n",
        "Host: b\r\n",
    ] {
        let answer = say(&proxy, &format!("{post}{headers}\r\nhello")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{headers}: {answer}");
    }
    let answer = say(&proxy, "GET /a HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "no host: {answer}");
    let seen = seen.lock().unwrap();
    assert!(seen.doubtful.is_empty(), "{:?}", seen.doubtful);
    assert!(seen.paths.iter().all(|path| path == "/a"), "{:?}", seen.paths);
}

/// What becomes of a request.
enum Fate {
    /// Nobody but the proxy sees it: 400, and the connection is over.
    Refused,
    /// The application sees it, in a form with one meaning, and what follows is a request of its own.
    Passed,
    /// It goes on and then breaks off: no success, and nothing after it is heard.
    Broken,
}

/// Every way that is known of writing a request so that two readers could find different ends of it (RFC 9112, sections
/// 2.2, 5.1, 5.2, 6 and 7.1). `$GET` is a request that nobody may make of a body, `$LAST` one that is really there.
const WAYS: [(&str, &str, Fate); 40] = [
    // Lengths.
    ("a length", "Content-Length: 5\r\n\r\nhello$LAST", Fate::Passed),
    ("leading zeros", "Content-Length: 005\r\n\r\nhello$LAST", Fate::Passed),
    ("two lengths", "Content-Length: 0\r\nContent-Length: 5\r\n\r\n$GET", Fate::Refused),
    ("two lengths, the other way round", "Content-Length: 5\r\nContent-Length: 0\r\n\r\n$GET", Fate::Refused),
    ("the same length twice", "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello$LAST", Fate::Passed),
    ("the same length in a list", "Content-Length: 5, 5\r\n\r\nhello$GET", Fate::Refused),
    ("two lengths in a list", "Content-Length: 5, 0\r\n\r\n$GET", Fate::Refused),
    ("a signed length", "Content-Length: +5\r\n\r\n$GET", Fate::Refused),
    ("a negative length", "Content-Length: -5\r\n\r\n$GET", Fate::Refused),
    ("a hexadecimal length", "Content-Length: 0x5\r\n\r\n$GET", Fate::Refused),
    ("a length of two numbers", "Content-Length: 5 0\r\n\r\n$GET", Fate::Refused),
    ("no length in the length", "Content-Length:\r\n\r\n$GET", Fate::Refused),
    ("a length too large to count", "Content-Length: 18446744073709551621\r\n\r\n$GET", Fate::Refused),
    // Codings.
    ("chunks", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n$LAST", Fate::Passed),
    ("chunks in capitals", "Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n$LAST", Fate::Passed),
    ("a coding that is not chunked", "Transfer-Encoding: xchunked\r\n\r\n$GET", Fate::Refused),
    ("chunked, but not at last", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n$GET", Fate::Refused),
    ("two codings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n$GET", Fate::Refused),
    ("quoted", "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n$GET", Fate::Refused),
    ("no coding in the coding", "Transfer-Encoding:\r\n\r\n0\r\n\r\n$GET", Fate::Refused),
    // Names and line ends.
    ("a space before the colon", "Content-Length : 5\r\n\r\nhello$GET", Fate::Refused),
    ("a tab before the colon", "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n$GET", Fate::Refused),
    ("a folded line", "X: a\r\n Content-Length: 5\r\n\r\n$GET", Fate::Refused),
    ("a folded length", "Content-Length:\r\n 5\r\n\r\nhello$GET", Fate::Refused),
    ("a line that begins with a space", " Content-Length: 5\r\n\r\nhello$GET", Fate::Refused),
    ("a line without a colon", "Content-Length 5\r\n\r\nhello$GET", Fate::Refused),
    ("a name with a zero byte", "Content-Length\0: 5\r\n\r\nhello$GET", Fate::Refused),
    ("a value with a zero byte", "X: a\0b\r\n\r\n$GET", Fate::Refused),
    ("a bare CR", "X: a\rContent-Length: 5\r\n\r\n$GET", Fate::Refused),
    // A bare LF ends a line (a recipient may take it so); what goes on has both.
    ("a bare LF", "X: a\nContent-Length: 5\n\nhello$LAST", Fate::Passed),
    // Chunks.
    ("an extension", "Transfer-Encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n$LAST", Fate::Passed),
    ("an LF in an extension", "Transfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n$GET", Fate::Broken),
    ("a size that ends in LF", "Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n$GET", Fate::Broken),
    ("a signed size", "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n$GET", Fate::Broken),
    ("a size with 0x", "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n$GET", Fate::Broken),
    ("a size too large to count", "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n$GET", Fate::Broken),
    ("a chunk longer than it says", "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n$GET", Fate::Broken),
    ("no size", "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n$GET", Fate::Broken),
    (
        "a length in the trailers",
        "Transfer-Encoding: chunked\r\nTrailer: content-length\r\n\r\n0\r\nContent-Length: 5\r\n\r\n$LAST",
        Fate::Passed,
    ),
    (
        "a hop's headers named by another",
        "Connection: content-length\r\nContent-Length: 5\r\n\r\nhello$LAST",
        Fate::Passed,
    ),
];

#[tokio::test]
async fn every_known_way_of_two_readings_is_refused_or_made_plain() {
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {SERVICE}\r\nConnection: close\r\n\r\n");
    let mut wrong = Vec::new();
    for (what, text, fate) in WAYS {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let proxy = proxy(application(Arc::clone(&seen)).await);
        let text = text.replace("$GET", &request("/smuggled")).replace("$LAST", &request("/last"));
        let mut stream = proxy.redirected(VIP).await;
        // Whoever is refused hears so although not everything was read.
        let post = format!("POST /a HTTP/1.1\r\nHost: {SERVICE}\r\n{text}");
        let _ = stream.write_all(post.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect(what);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let codes: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)).collect();
        let seen = seen.lock().unwrap();
        let paths: Vec<&str> = seen.paths.iter().map(String::as_str).collect();
        assert!(seen.doubtful.is_empty(), "{what}: {:?}", seen.doubtful);
        let holds = match fate {
            Fate::Refused => codes == ["400"] && paths.is_empty(),
            Fate::Passed => codes == ["200", "200"] && paths == ["/a", "/last"],
            Fate::Broken => codes.len() <= 1 && !codes.contains(&"200") && (paths.is_empty() || paths == ["/a"]),
        };
        if !holds {
            wrong.push(format!("{what}: answered {codes:?}, seen {paths:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A length or coding of two meanings in HTTP/1.0, which knows no chunks (RFC 9112, section 6.1).
#[tokio::test]
async fn chunks_in_an_old_request_are_refused() {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let proxy = proxy(application(Arc::clone(&seen)).await);
    let text = format!("POST /a HTTP/1.0\r\nHost: {SERVICE}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let answer = say(&proxy, &text).await;
    assert!(answer.contains(" 400 "), "{answer}");
    assert!(seen.lock().unwrap().paths.is_empty());
}
