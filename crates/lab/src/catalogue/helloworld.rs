//! Istio's HelloWorld: says its version and its name.

use super::{Launch, web};

pub(super) async fn run(launch: Launch, version: &'static str) -> i32 {
    let output = &launch.container.output;
    output.line(format!("built-in stand-in for istio/examples-helloworld-{version}, listening on port 5000"));
    let version = launch.container.var("SERVICE_VERSION").unwrap_or(version).to_owned();
    let instance = launch.hostname.clone();
    web::serve(&launch, 5000, move |request| {
        let reply = match request.uri().path() {
            "/hello" => web::text(format!("Hello version: {version}, instance: {instance}\n")),
            "/health" => web::text("Helloworld is healthy"),
            _ => web::missing(),
        };
        std::future::ready(reply)
    })
    .await
}
