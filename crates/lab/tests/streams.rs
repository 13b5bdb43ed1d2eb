//! Into pods and out of them with a real client library: exec, attach, port-forward, and `tar` through exec.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, PostParams, TerminalSize};
use serde_json::{Value, json};
use stolos_lab::{Lab, LabCluster, LabConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HELLO: &str = "docker.io/istio/examples-helloworld-v1:1.0";

fn config(state: &Path) -> LabConfig {
    let mut config = LabConfig::new("test", state);
    config.clusters = vec![LabCluster {
        name: "c1".into(),
        context: "context-c1".into(),
        network: "east".into(),
        region: None,
        zone: None,
    }];
    config
}

async fn start(pods: &Api<Pod>, name: &str, spec: Value) {
    let mut pod = json!({"metadata": {"name": name}, "spec": spec});
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = pods.get(name).await.unwrap().status.unwrap_or_default();
        let statuses = status.container_statuses.unwrap_or_default();
        if !statuses.is_empty() && statuses.iter().all(|one| one.state.as_ref().is_some_and(|s| s.running.is_some())) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} never runs: {statuses:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Reads until `text` has come.
async fn until(text: &str, from: &mut (impl AsyncReadExt + Unpin), so_far: &mut String) {
    let reading = async {
        let mut buffer = [0; 1024];
        while !so_far.contains(text) {
            let count = from.read(&mut buffer).await.unwrap();
            assert!(count > 0, "ended before {text:?}: {so_far:?}");
            so_far.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), reading).await.is_err() {
        panic!("{text:?} never comes: {so_far:?}");
    }
}

async fn exit_code(process: &mut AttachedProcess) -> i32 {
    let status = soon("an exit code", process.take_status().unwrap()).await.unwrap();
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes.into_iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match code {
        Some(code) => code.message.as_ref().unwrap().parse().unwrap(),
        None => {
            assert_eq!(status.status.as_deref(), Some("Success"), "{status:?}");
            0
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_entered_and_left() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(state.path())).await.unwrap();
    let client = lab.client("c1").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let sleeping = json!({"containers": [{"name": "c", "image": "busybox", "command": ["sleep", "infinity"]}]});
    start(&pods, "box", sleeping).await;

    // Standard input ends, and so does who reads it.
    let params = AttachParams::default().stdin(true);
    let mut process = pods.exec("box", ["sh", "-c", "wc -c; echo bad >&2; exit 7"], &params).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    let large = vec![b'x'; 300_000];
    soon("a process reads", async {
        stdin.write_all(&large).await.unwrap();
        stdin.shutdown().await.unwrap();
    })
    .await;
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    soon("the end of output", process.stdout().unwrap().read_to_string(&mut out)).await.unwrap();
    soon("the end of errors", process.stderr().unwrap().read_to_string(&mut err)).await.unwrap();
    assert_eq!((out.trim(), err.trim(), exit_code(&mut process).await), ("300000", "bad", 7));

    // A terminal: prompt, echo, size, Ctrl-C, exit code.
    let params = AttachParams::interactive_tty();
    let mut process = pods.exec("box", ["sh"], &params).await.unwrap();
    let (mut keys, mut screen) = (process.stdin().unwrap(), process.stdout().unwrap());
    let mut sizes = process.terminal_size().unwrap();
    let mut seen = String::new();
    until("# ", &mut screen, &mut seen).await;
    futures::SinkExt::send(&mut sizes, TerminalSize { width: 132, height: 43 }).await.unwrap();
    keys.write_all(b"while [ \"$(stty size)\" != '43 132' ]; do sleep 0.01; done; echo si''zed\r").await.unwrap();
    until("sized\r\n", &mut screen, &mut seen).await;
    keys.write_all(b"echo be''gun; sleep 1000\r").await.unwrap();
    until("begun\r\n", &mut screen, &mut seen).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    keys.write_all(b"\x03").await.unwrap();
    until("^C\r\n", &mut screen, &mut seen).await;
    keys.write_all(b"exit 9\r").await.unwrap();
    assert_eq!(exit_code(&mut process).await, 9, "{seen}");

    // What `kubectl cp` does, both ways.
    let params = AttachParams::default().stdin(true).stderr(false);
    let mut process = pods.exec("box", ["sh", "-c", "cat > /tmp/a; tar cf - -C /tmp a"], &params).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    soon("a file is written", async {
        stdin.write_all(&large).await.unwrap();
        stdin.shutdown().await.unwrap();
    })
    .await;
    drop(stdin);
    let mut archive = Vec::new();
    soon("an archive", process.stdout().unwrap().read_to_end(&mut archive)).await.unwrap();
    assert_eq!(exit_code(&mut process).await, 0);
    assert_eq!(archive.len(), 512 + 300_000_usize.next_multiple_of(512) + 1024);
    let unpack = "tar -xmf - -C /tmp/sub; wc -c < /tmp/sub/a";
    let mut process = pods.exec("box", ["sh", "-c", unpack], &params).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    soon("an archive is taken", async {
        stdin.write_all(&archive).await.unwrap();
        stdin.shutdown().await.unwrap();
    })
    .await;
    drop(stdin);
    let mut out = String::new();
    soon("its size", process.stdout().unwrap().read_to_string(&mut out)).await.unwrap();
    assert_eq!(out.trim(), "300000");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn main_processes_are_attached_to() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(state.path())).await.unwrap();
    let client = lab.client("c1").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let reader = "while read line; do echo \"got $line\"; echo \"not $line\" >&2; done; echo over; exit 4";
    let container = json!({"name": "c", "image": "busybox", "command": ["sh", "-c", reader],
        "stdin": true, "stdinOnce": true});
    start(&pods, "reader", json!({"restartPolicy": "Never", "containers": [container]})).await;
    let params = AttachParams::default().stdin(true);
    let mut process = pods.attach("reader", &params).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let (mut seen, mut errors) = (String::new(), String::new());
    stdin.write_all(b"one\n").await.unwrap();
    until("got one\n", &mut stdout, &mut seen).await;
    until("not one\n", &mut process.stderr().unwrap(), &mut errors).await;
    // The input is there once: with it ends the process, and with the process who is attached.
    stdin.shutdown().await.unwrap();
    drop(stdin);
    until("over\n", &mut stdout, &mut seen).await;
    assert_eq!(exit_code(&mut process).await, 0, "how a process ended is in its pod's status");
    let deadline = Instant::now() + Duration::from_secs(10);
    while pods.get("reader").await.unwrap().status.unwrap().phase.as_deref() != Some("Failed") {
        assert!(Instant::now() < deadline, "the pod ends with its process");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A terminal of the container's own, as `kubectl run -it` asks for.
    let container = json!({"name": "c", "image": "busybox", "args": ["sh"], "stdin": true, "tty": true});
    start(&pods, "shell", json!({"restartPolicy": "Never", "containers": [container]})).await;
    let mut process = pods.attach("shell", &AttachParams::interactive_tty()).await.unwrap();
    let (mut keys, mut screen) = (process.stdin().unwrap(), process.stdout().unwrap());
    let mut seen = String::new();
    keys.write_all(b"echo $((40 + 2))\r").await.unwrap();
    until("42\r\n", &mut screen, &mut seen).await;
    keys.write_all(b"exit\r").await.unwrap();
    assert_eq!(exit_code(&mut process).await, 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_past_the_sidecar() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(state.path())).await.unwrap();
    let client = lab.client("c1").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    // A sidecar that takes no connections: who goes through it gets no answer.
    let sidecar = json!({"name": "istio-proxy", "image": "busybox", "command": ["sh", "-c", "sleep infinity"],
        "args": ["proxy", "sidecar"]});
    let hello = json!({"name": "hello", "image": HELLO});
    start(&pods, "hello", json!({"containers": [hello, sidecar]})).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    let answer = loop {
        let mut forward = pods.portforward("hello", &[5000, 9]).await.unwrap();
        let mut stream = forward.take_stream(5000).unwrap();
        let request = b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        let refused = forward.take_error(9).unwrap();
        let refused = soon("a refusal", refused).await.unwrap();
        assert!(refused.starts_with("error forwarding port 9 to pod hello, uid "), "{refused}");
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await;
        // The server may have begun to run, but not to listen.
        if !answer.is_empty() || Instant::now() > deadline {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("instance: hello"), "{answer:?}");
    lab.stop().await;
}
