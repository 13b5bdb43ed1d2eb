//! Logs, exec and port-forward through a runtime that echoes.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, LogParams, PostParams};
use serde_json::json;
use stolos_apiserver::runtime::{Connection, ContainerRef, Exit, LogOptions, PodRuntime, RuntimeError, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{https, server};

struct Echo;

impl PodRuntime for Echo {
    fn logs(
        &self,
        container: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, RuntimeError>> {
        Box::pin(async move {
            if options.previous {
                return Err(RuntimeError::BadRequest("previous terminated container not found".into()));
            }
            let lines = [format!("{} says\n", container.container), format!("{:?}\n", options.tail_lines)];
            Ok(futures::stream::iter(lines.map(Bytes::from)).boxed())
        })
    }

    fn exec(
        &self,
        _: ContainerRef,
        command: Vec<String>,
        mut streams: Streams,
    ) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        Box::pin(async move {
            if command[0] == "missing" {
                return Err(RuntimeError::BadRequest("executable file not found in $PATH".into()));
            }
            let mut out = streams.stdout.take().unwrap();
            out.write_all(command.join(" ").as_bytes()).await.unwrap();
            if let Some(mut stdin) = streams.stdin.take() {
                tokio::io::copy(&mut stdin, &mut out).await.unwrap();
            }
            if let Some(mut stderr) = streams.stderr.take() {
                stderr.write_all(b"done").await.unwrap();
            }
            Ok(Exit { code: i32::try_from(command.len()).unwrap() - 1 })
        })
    }

    fn attach(&self, _: ContainerRef, _: Streams) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        Box::pin(async { Ok(Exit { code: 0 }) })
    }

    fn dial<'a>(&'a self, _: &'a str, _: &'a str, _: u16) -> BoxFuture<'a, std::io::Result<Box<dyn Connection>>> {
        Box::pin(async {
            let (near, mut far) = tokio::io::duplex(1024);
            tokio::spawn(async move {
                let mut buffer = [0; 5];
                far.read_exact(&mut buffer).await.unwrap();
                far.write_all(b"hello ").await.unwrap();
                far.write_all(&buffer).await.unwrap();
            });
            Ok(Box::new(near) as Box<dyn Connection>)
        })
    }
}

#[tokio::test]
async fn pods_are_heard_and_told() {
    let server = server().await;
    server.set_pod_runtime(Arc::new(Echo));
    for client in [https(&server).await, server.client()] {
        let pods: Api<Pod> = Api::namespaced(client, "default");
        let pod = json!({"metadata": {"generateName": "p-"}, "spec": {"nodeName": "n",
            "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}]}});
        let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let name = pod.metadata.name.unwrap();
        let params = LogParams { container: Some("b".into()), tail_lines: Some(3), ..Default::default() };
        assert_eq!(pods.logs(&name, &params).await.unwrap(), "b says\nSome(3)\n");
        let lines: Vec<_> = pods.log_stream(&name, &params).await.unwrap().lines().try_collect().await.unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(crate::code(pods.logs(&name, &LogParams::default()).await), 400, "which container?");

        let params = AttachParams::default().container("a").stdin(true);
        let mut process = pods.exec(&name, ["say", "this", ""], &params).await.unwrap();
        let mut stdin = process.stdin().unwrap();
        stdin.write_all(b"and that").await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        let (mut stdout, mut stderr) = (process.stdout().unwrap(), process.stderr().unwrap());
        let status = process.take_status().unwrap();
        stdout.read_to_string(&mut out).await.unwrap();
        stderr.read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("say this and that", "done"));
        let status = status.await.unwrap();
        assert_eq!(status.status.as_deref(), Some("Failure"));
        assert_eq!(status.details.unwrap().causes.unwrap()[0].message.as_deref(), Some("2"));

        let mut forward = pods.portforward(&name, &[80]).await.unwrap();
        let mut stream = forward.take_stream(80).unwrap();
        stream.write_all(b"world").await.unwrap();
        let mut said = vec![0; 11];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(said, b"hello world");
    }
}

#[tokio::test]
async fn upgrades_are_agreed_upon_or_refused() {
    let server = server().await;
    server.set_pod_runtime(Arc::new(Echo));
    let client = server.client();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "a", "image": "i:1"}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let ask = async |what: &str, upgrade: &str, name: &'static str, protocols: &[&str]| {
        let mut request = http::Request::post(format!("/api/v1/namespaces/default/pods/p/{what}"));
        if !upgrade.is_empty() {
            request = request.header("connection", "Upgrade").header("upgrade", upgrade);
        }
        for protocol in protocols {
            request = request.header(name, *protocol);
        }
        let response = client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
        let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        (response.status().as_u16(), header(name))
    };
    let spdy = "x-stream-protocol-version";
    let agreed = |name: &str| (101, name.to_owned());
    let exec = "exec?command=true&stdout=1";
    assert_eq!(
        ask(exec, "SPDY/3.1", spdy, &["v4.channel.k8s.io", "channel.k8s.io"]).await,
        agreed("v4.channel.k8s.io")
    );
    assert_eq!(ask(exec, "SPDY/3.1", spdy, &["v3.channel.k8s.io"]).await, agreed("v3.channel.k8s.io"));
    assert_eq!(ask(exec, "SPDY/3.1", spdy, &[]).await, agreed(""));
    assert_eq!(ask(exec, "SPDY/3.1", spdy, &["v9.channel.k8s.io"]).await.0, 403);
    assert_eq!(ask("attach?stdout=1", "SPDY/3.1", spdy, &["v2.channel.k8s.io"]).await, agreed("v2.channel.k8s.io"));
    assert_eq!(ask("portforward", "SPDY/3.1", spdy, &["portforward.k8s.io"]).await, agreed("portforward.k8s.io"));
    let socket = "sec-websocket-protocol";
    let tunnel = "SPDY/3.1+portforward.k8s.io";
    assert_eq!(ask("portforward", "websocket", socket, &[tunnel]).await, agreed(tunnel));
    assert_eq!(ask("portforward", "websocket", socket, &["v4.channel.k8s.io"]).await.0, 400, "which ports?");
    let base64 = "base64.channel.k8s.io";
    assert_eq!(ask(exec, "websocket", socket, &[base64]).await, agreed(base64));
    assert_eq!(ask(exec, "websocket", socket, &["v9.channel.k8s.io"]).await.0, 400);
    for (what, upgrade) in [(exec, ""), (exec, "h2c"), ("exec?stdout=1", "SPDY/3.1"), ("exec?command=x", "SPDY/3.1")] {
        assert_eq!(ask(what, upgrade, spdy, &["v4.channel.k8s.io"]).await.0, 400, "{what} {upgrade}");
    }
    // Connections that are open end with the server.
    tokio::time::timeout(std::time::Duration::from_secs(10), server.stop()).await.expect("the server stops");
}
