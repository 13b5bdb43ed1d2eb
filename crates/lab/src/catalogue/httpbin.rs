//! httpbin, as `mccutchen/go-httpbin` and `kong/httpbin` serve it: the parts with which people try out a mesh.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::{Launch, web, websocket};

/// Images, and how each says things.
pub(super) const IMAGES: [(&str, Style); 4] = [
    ("mccutchen/go-httpbin", Style::Go),
    ("ghcr.io/mccutchen/go-httpbin", Style::Go),
    ("kong/httpbin", Style::Python),
    ("kennethreitz/httpbin", Style::Python),
];

/// Which httpbin it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// On port 8080; headers and arguments are lists.
    Go,
    /// On port 80; they are texts.
    Python,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

const LARGEST: usize = 1 << 20;

pub(super) async fn run(launch: Launch, style: Style) -> i32 {
    let port = launch.container.var("PORT").and_then(|port| port.parse().ok());
    let port = port.unwrap_or(if style == Style::Go { 8080 } else { 80 });
    let name = if style == Style::Go { "mccutchen/go-httpbin" } else { "kong/httpbin" };
    launch.container.output.line(format!("built-in stand-in for {name}, listening on port {port}"));
    let (tasks, stop, hostname) = (TaskTracker::new(), launch.stop.clone(), launch.hostname.clone());
    let sockets = tasks.clone();
    let code = web::serve(&launch, port, move |request| {
        let (tasks, stop, hostname) = (sockets.clone(), stop.clone(), hostname.clone());
        async move {
            if request.uri().path() == "/websocket/echo" && websocket::is_asked(&request) {
                return websocket::echo::<Full<Bytes>>(request, None, &tasks, &stop).map(BodyExt::boxed_unsync);
            }
            answer(request, style, &hostname).await
        }
    })
    .await;
    launch.stop.ask();
    tasks.close();
    tasks.wait().await;
    code
}

async fn answer(request: Request<Incoming>, style: Style, hostname: &str) -> Answer {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let number = || parts.get(1).and_then(|number| number.parse::<u64>().ok());
    match (parts[0], number()) {
        ("get" | "post" | "put" | "patch" | "delete" | "anything" | "stream", _) => described(request, style).await,
        ("headers", _) => whole(web::json(&json!({"headers": headers(request.headers(), style)}))),
        ("hostname", _) => whole(web::json(&json!({"hostname": hostname}))),
        ("uuid", _) => whole(web::json(&json!({"uuid": format!("{:032x}", rand::random::<u128>())}))),
        ("status", Some(code)) => {
            let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
            whole(web::reply(code.unwrap_or(StatusCode::BAD_REQUEST), "text/plain", Bytes::new()))
        }
        ("delay", Some(seconds)) => {
            tokio::time::sleep(Duration::from_secs(seconds.min(10))).await;
            described(request, style).await
        }
        ("bytes", Some(count)) => {
            let count = usize::try_from(count).unwrap_or(LARGEST).min(LARGEST);
            whole(web::reply(StatusCode::OK, "application/octet-stream", vec![b'*'; count]))
        }
        ("trailers", _) => trailers(&request),
        _ => whole(web::missing()),
    }
}

fn whole(reply: web::Reply) -> Answer {
    reply.map(BodyExt::boxed_unsync)
}

fn arguments(request: &Request<Incoming>) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for pair in request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    all
}

fn headers(headers: &HeaderMap, style: Style) -> Value {
    let one = |name: &HeaderName| {
        let values: Vec<String> =
            headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
        (titled(name.as_str()), if style == Style::Go { json!(values) } else { json!(values.join(",")) })
    };
    headers.keys().map(one).collect::<serde_json::Map<_, _>>().into()
}

/// `x-request-id` → `X-Request-Id`.
fn titled(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

/// What a request was; `/stream/N` says it N times, line by line.
async fn described(request: Request<Incoming>, style: Style) -> Answer {
    let args: Value = arguments(&request)
        .into_iter()
        .map(|(name, values)| (name, if style == Style::Go { json!(values) } else { json!(values.join(",")) }))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let host = request.uri().authority().map(ToString::to_string);
    let host = host.or_else(|| Some(request.headers().get("host")?.to_str().ok()?.to_owned())).unwrap_or_default();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let mut said = json!({
        "args": args,
        "headers": headers(request.headers(), style),
        "method": method,
        "url": format!("http://{host}{}", request.uri().path_and_query().map_or("/", |path| path.as_str())),
    });
    if let Some(lines) = path.strip_prefix("/stream/") {
        let lines = lines.parse::<u64>().unwrap_or(1).clamp(1, 100);
        let line = move |id: u64| {
            said["id"] = json!(id);
            Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{said}\n"))))
        };
        let body = StreamBody::new(futures::stream::iter((0..lines).map(line)));
        return Response::new(BodyExt::boxed_unsync(body));
    }
    match Limited::new(request.into_body(), LARGEST).collect().await {
        Ok(body) => {
            said["data"] = json!(String::from_utf8_lossy(&body.to_bytes()));
            whole(web::json(&said))
        }
        Err(_) => whole(web::reply(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too large\n")),
    }
}

/// `/trailers?name=value`: they come behind the body.
fn trailers(request: &Request<Incoming>) -> Answer {
    let mut map = HeaderMap::new();
    for (name, values) in arguments(request) {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        for value in values.iter().filter_map(|value| HeaderValue::from_str(value).ok()) {
            map.append(name.clone(), value);
        }
    }
    let names = map.keys().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"{\"ok\":true}\n"))), Ok(Frame::trailers(map))];
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(futures::stream::iter(frames))));
    // HTTP/1.1 needs them announced.
    if let Ok(names) = HeaderValue::from_str(&names) {
        response.headers_mut().insert(http::header::TRAILER, names);
    }
    response
}
