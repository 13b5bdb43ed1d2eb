//! `jmalloc/echo-server`: says who served a request and what it looked like; over a WebSocket every message comes back.

use std::fmt::Write as _;

use http_body_util::{BodyExt, Full, Limited};
use tokio_util::task::TaskTracker;

use super::{Launch, web, websocket};

const LARGEST: usize = 1 << 20;

pub(super) async fn run(launch: Launch) -> i32 {
    let port = launch.container.var("PORT").and_then(|port| port.parse().ok()).unwrap_or(8080);
    launch.container.output.line(format!("built-in stand-in for jmalloc/echo-server, listening on port {port}"));
    let says_host = launch.container.var("SEND_SERVER_HOSTNAME") != Some("false");
    let (tasks, stop, hostname) = (TaskTracker::new(), launch.stop.clone(), launch.hostname.clone());
    let sockets = tasks.clone();
    let code = web::serve(&launch, port, move |request| {
        let (tasks, stop, hostname) = (sockets.clone(), stop.clone(), hostname.clone());
        async move {
            let served = format!("Request served by {hostname}");
            if websocket::is_asked(&request) {
                return websocket::echo::<Full<_>>(request, says_host.then_some(served), &tasks, &stop);
            }
            let mut text = if says_host { format!("{served}\n\n") } else { String::new() };
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let _ = write!(text, "{:?} {} {path}\n\n", request.version(), request.method());
            let host = request.uri().authority().map(|authority| authority.as_str());
            let host = host.or_else(|| request.headers().get("host").and_then(|host| host.to_str().ok()));
            let _ = writeln!(text, "Host: {}", host.unwrap_or_default());
            for (name, value) in request.headers().iter().filter(|(name, _)| *name != "host") {
                let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
            }
            match Limited::new(request.into_body(), LARGEST).collect().await {
                Ok(body) => text += &format!("\n{}", String::from_utf8_lossy(&body.to_bytes())),
                Err(_) => return web::reply(http::StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too large\n"),
            }
            web::reply(http::StatusCode::OK, "text/plain", text)
        }
    })
    .await;
    launch.stop.ask();
    tasks.close();
    tasks.wait().await;
    code
}
