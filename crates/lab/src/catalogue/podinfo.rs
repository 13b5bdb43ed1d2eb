//! podinfo: says everything about itself.

use http_body_util::BodyExt;
use serde_json::json;

use super::{Launch, web};

pub(super) async fn run(launch: Launch) -> i32 {
    let arguments = launch.command.iter().chain(&launch.container.args);
    let port = arguments.filter_map(|a| a.strip_prefix("--port=")).find_map(|p| p.parse().ok()).unwrap_or(9898);
    launch.container.output.line(format!("built-in stand-in for stefanprodan/podinfo, listening on port {port}"));
    let env = launch.container.env.clone();
    let hostname = launch.hostname.clone();
    web::serve(&launch, port, move |request| {
        let (env, hostname) = (env.clone(), hostname.clone());
        async move {
            let value = |name: &str, default: &str| env.get(name).cloned().unwrap_or_else(|| default.to_owned());
            match request.uri().path() {
                "/" | "/api/info" => web::json(&json!({
                    "hostname": hostname,
                    "version": "6.7.1",
                    "revision": "stolos-lab",
                    "color": value("PODINFO_UI_COLOR", "#34577c"),
                    "message": value("PODINFO_UI_MESSAGE", "greetings from podinfo (built-in stand-in)"),
                    "goos": "linux",
                    "goarch": std::env::consts::ARCH,
                    "runtime": "stolos-lab",
                    "REGION": value("REGION", ""),
                    "CLUSTER": value("CLUSTER", ""),
                })),
                "/version" => web::json(&json!({"version": "6.7.1", "commit": "stolos-lab"})),
                "/healthz" | "/readyz" => web::json(&json!({"status": "OK"})),
                "/env" | "/api/env" => {
                    web::json(&json!(env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()))
                }
                "/headers" => {
                    let headers = request.headers().iter();
                    let headers = headers.map(|(k, v)| (k.to_string(), json!([String::from_utf8_lossy(v.as_bytes())])));
                    web::json(&headers.collect::<serde_json::Map<_, _>>().into())
                }
                "/echo" | "/api/echo" => {
                    const MOST: usize = 1 << 20;
                    let body = http_body_util::Limited::new(request.into_body(), MOST).collect().await;
                    match body {
                        Ok(body) => web::reply(http::StatusCode::ACCEPTED, "application/json", body.to_bytes()),
                        Err(_) => web::reply(http::StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too large\n"),
                    }
                }
                path => match path.strip_prefix("/status/").and_then(|code| code.parse::<u16>().ok()) {
                    Some(code) if (200..600).contains(&code) => web::reply(
                        http::StatusCode::from_u16(code).unwrap_or_default(),
                        "application/json",
                        json!({"status": code}).to_string(),
                    ),
                    _ => web::missing(),
                },
            }
        }
    })
    .await
}
