//! The server as its users see it: kube-rs over HTTPS and inside the process.
#![allow(clippy::unwrap_used)]

mod apply;
mod controllers;
mod coordination;
mod definitions;
mod durable;
mod fields;
mod limits;
mod lists;
mod near;
mod objects;
mod openapi;
mod permissions;
mod protobuf;
mod quotas;
mod streams;
mod tables;
mod webhooks;

use stolos_apiserver::{Builder, Server};

/// A server in memory.
pub async fn server() -> Server {
    Builder::new().start().await.unwrap()
}

/// A client over HTTPS with all rights.
pub async fn https(server: &Server) -> kube::Client {
    let kubeconfig: kube::config::Kubeconfig = serde_json::from_value(server.kubeconfig("test")).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// A client over HTTPS that shows a token.
pub async fn with_token(server: &Server, token: &str) -> kube::Client {
    let mut kubeconfig = server.kubeconfig("test");
    kubeconfig["users"][0]["user"] = serde_json::json!({"token": token});
    let kubeconfig: kube::config::Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// The status code of a refusal.
pub fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Waits until `check` holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    for _ in 0..500 {
        if check().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never came true: {what}");
}
