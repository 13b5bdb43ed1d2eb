//! kubectl in members through the hub: one that the hub dials and one whose agents dial it, by whom and how far.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::Value;
use stolos_cluster::{Kubeconfig, connect};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::hub::{Invitation, connected};
use crate::programs;
use crate::world::{Run, World, eventually, finish, text};

const LAB: &str = include_str!("../../../spec/tests/inputs/karmada/policy-1-even.yaml");
const PATIENCE: Duration = Duration::from_secs(60);

/// What is put into both members: one that talks and can be talked to, and one that serves.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: talker
    image: busybox
    command: [sh, -c, 'for i in 1 2 3; do echo line $i; done; while true; do sleep 0.2; echo tick; done']
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: server, image: stefanprodan/podinfo, ports: [{containerPort: 9898}]}]}
";

/// A lab, a hub beside it with `ap` pushed and `eu` by an agent.
struct Hub {
    world: World,
    kubectl: PathBuf,
    process: Child,
    /// Where agents come in, and the flags of the first.
    door: String,
}

impl Hub {
    async fn start() -> Option<(Self, Child)> {
        let kubectl = programs::program("STOLOS_KUBECTL")?;
        let mut world = World::new();
        let file = world.write("lab.yaml", LAB);
        world.up(&file).await;
        let mut command = world.stolos(["hub", "up", "--data", "hub", "--audit-log", "audit.jsonl"]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it is not up").unwrap();
        assert!(said.is_some_and(|line| line.starts_with("export KUBECONFIG=")), "it did not start");
        world.good(&["hub", "join", "ap", "--data", "hub"]).await;
        let invited = Invitation::of(&world.good(&["hub", "token", "create", "eu", "--data", "hub"]).await.out);
        let hub = Self { world, kubectl, process, door: invited.address.clone() };
        let agent = hub.agent(&invited.flags(&["--context", "eu"])).await;
        eventually("both members", PATIENCE, async || {
            let clusters = hub.kubectl(&["get", "clusters"]).await.out;
            let ready = |name: &str, mode: &str| {
                let line = clusters.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                line.split_whitespace().skip(2).take(2).eq([mode, "True"])
            };
            if ready("ap", "Push") && ready("eu", "Pull") { Ok(()) } else { Err(clusters) }
        })
        .await;
        hub.hide().await;
        Some((hub, agent))
    }

    /// Where the hub believes that eu's API server is, nobody listens from now on: only its agents know the way.
    async fn hide(&self) {
        let endpoint = ["get", "cluster", "eu", "-o", "jsonpath={.spec.apiEndpoint}"];
        let endpoint = self.kubectl(&endpoint).await.ends_with(0).out;
        let (host, _) = endpoint.trim_end_matches('/').rsplit_once(':').unwrap();
        let nowhere = serde_json::json!({"spec": {"apiEndpoint": format!("{host}:1")}}).to_string();
        self.kubectl(&["patch", "cluster", "eu", "--type=merge", "-p", &nowhere]).await.ends_with(0);
    }

    /// Starts an agent of `eu`, which ends with its handle, and waits until it is connected.
    async fn agent(&self, more: &[&str]) -> Child {
        let mut command = self.world.stolos(["agent", "eu", "--hub", &self.door]);
        if !more.contains(&"--data") {
            command.args(["--data", "agent-eu"]);
        }
        command.args(more);
        connected(command).await
    }

    /// Puts the pods into both members, and waits until they are ready.
    async fn pods(&mut self) {
        let pods = self.world.write("pods.yaml", PODS);
        for member in ["ap", "eu"] {
            self.run(member, &["apply", "-f", text(&pods)]).await.ends_with(0);
            self.run(member, &["wait", "--for=condition=Ready", "pod/talker", "pod/server", "--timeout=60s"])
                .await
                .ends_with(0);
        }
    }

    fn command(&self, which: &[&str], args: &[&str]) -> Command {
        self.world.program(&self.kubectl, which.iter().chain(args))
    }

    /// Runs kubectl against the hub.
    async fn kubectl(&self, args: &[&str]) -> Run {
        finish(self.command(&["--kubeconfig", "hub/kubeconfig"], args)).await
    }

    /// Runs kubectl against a member, past the hub.
    async fn past(&self, member: &str, args: &[&str]) -> Run {
        finish(self.command(&["--kubeconfig", "kubeconfig", "--context", member], args)).await
    }

    /// Where a member is in the hub.
    fn server(&self, member: &str) -> String {
        let address = std::fs::read_to_string(self.world.path("hub/listen")).unwrap();
        format!("https://{}{}", address.trim(), proxy(member))
    }

    /// kubectl in a member, through the hub.
    fn through(&self, member: &str, args: &[&str]) -> Command {
        let server = self.server(member);
        self.command(&["--kubeconfig", "hub/kubeconfig", "--server", &server], args)
    }

    /// Runs it to its end.
    async fn run(&self, member: &str, args: &[&str]) -> Run {
        finish(self.through(member, args)).await
    }

    /// The lines of the audit log.
    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.world.path("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }
}

/// Where a member is in the hub's API.
fn proxy(member: &str) -> String {
    format!("/apis/cluster.karmada.io/v1alpha1/clusters/{member}/proxy")
}

/// A program that goes on, and what it prints.
struct Follows {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _err: ChildStderr,
}

impl Follows {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { lines, _err: process.stderr.take().unwrap(), process }
    }

    /// Waits for a line with this in it.
    async fn says(&mut self, what: &str) -> String {
        let mut all = Vec::new();
        let reading = async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                all.push(line);
                if all.last().is_some_and(|line| line.contains(what)) {
                    return all.pop();
                }
            }
            None
        };
        let found = tokio::time::timeout(PATIENCE, reading).await;
        found.unwrap_or_default().unwrap_or_else(|| panic!("no `{what}` in {all:?}"))
    }

    async fn ends_at_the_first_interrupt(mut self) {
        let pid = rustix::process::Pid::from_raw(self.process.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("it goes on").unwrap();
    }
}

/// Everything that kubectl does with an API server, with both kinds of member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_in_members_through_the_hub() {
    let Some((mut hub, _agent)) = Hub::start().await else { return };
    hub.pods().await;
    for member in ["ap", "eu"] {
        let names = ["get", "pods", "-o", "name"];
        assert_eq!(hub.run(member, &names).await.ends_with(0).out, "pod/server\npod/talker\n", "{member}");
        assert_eq!(hub.past(member, &names).await.ends_with(0).out, "pod/server\npod/talker\n", "{member}");
        let gone = hub.run(member, &["get", "pod", "nobody"]).await.ends_with(1);
        assert!(gone.err.contains(r#"pods "nobody" not found"#), "{}", gone.err);

        // A watch shows what happens, as it happens.
        let mut watching = Follows::start(hub.through(member, &["get", "configmaps", "-w", "-o", "name"]));
        watching.says("configmap/kube-root-ca.crt").await;
        hub.past(member, &["create", "configmap", "seen"]).await.ends_with(0);
        watching.says("configmap/seen").await;

        // Sessions: what goes in, what comes out, and how it ended; by both protocols that kubectl speaks.
        for websockets in ["true", "false"] {
            let mut command =
                hub.through(member, &["exec", "-i", "talker", "--", "sh", "-c", "cat; echo done >&2; exit 3"]);
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets).stdin(Stdio::piped());
            let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut stdin = process.stdin.take().unwrap();
            stdin.write_all(b"over there").await.unwrap();
            drop(stdin);
            let ended = tokio::time::timeout(PATIENCE, process.wait_with_output()).await.expect("it goes on").unwrap();
            let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
            assert_eq!((&*out, ended.status.code()), ("over there", Some(3)), "{member} {websockets}: {err}");
            assert!(err.contains("done"), "{member} {websockets}: {err}");
        }
        let logs = hub.run(member, &["logs", "talker"]).await.ends_with(0).out;
        assert!(logs.starts_with("line 1\nline 2\nline 3\n"), "{logs}");
        let mut following = Follows::start(hub.through(member, &["logs", "-f", "--tail=1", "talker"]));
        following.says("tick").await;
        following.says("tick").await;

        // A port of a pod, here.
        let mut forwarding = Follows::start(hub.through(member, &["port-forward", "pod/server", ":9898"]));
        let line = forwarding.says("Forwarding from 127.0.0.1:").await;
        let port: u16 = line.split_whitespace().nth(2).unwrap().rsplit(':').next().unwrap().parse().unwrap();
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("no answer");
        assert!(read.is_ok() && answer.starts_with("HTTP/1.1 200"), "{member}: {answer}");
    }
    // The hub says that it has such a part, and kubectl takes it for no kind.
    let known = hub.kubectl(&["get", "--raw", "/apis/cluster.karmada.io/v1alpha1"]).await.ends_with(0).document();
    let known = known["resources"].as_array().unwrap().iter().find(|known| known["name"] == "clusters/proxy").cloned();
    assert_eq!(known.map(|known| known["kind"].clone()), Some("ClusterProxyOptions".into()));
    let kinds = hub.kubectl(&["api-resources", "--api-group=cluster.karmada.io", "-o", "name"]).await.ends_with(0).out;
    assert_eq!(kinds, "clusters.cluster.karmada.io\n");
    assert_eq!(hub.kubectl(&["auth", "can-i", "get", "clusters/proxy"]).await.ends_with(0).out, "yes\n");
    let nowhere = hub.kubectl(&["get", "--raw", &format!("{}/version", proxy("nowhere"))]).await.ends_with(1);
    assert!(nowhere.err.contains(r#"clusters.cluster.karmada.io "nowhere" not found"#), "{}", nowhere.err);
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// Rights in the hub and in a member, for somebody with a token.
const READER: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: ap-reader}
rules:
- {apiGroups: [cluster.karmada.io], resources: [clusters/proxy], resourceNames: [ap], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: ap-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ap-reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: everywhere}
rules: [{apiGroups: [cluster.karmada.io], resources: [clusters/proxy], verbs: ['*']}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: dev-everywhere}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: everywhere}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: dev}]
";
const IN_AP: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: viewers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: 'system:serviceaccount:default:reader'}
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: dev}
";

/// The hub says who may ask which member for what, the member what they may there, and the log what was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_may_more_than_both_sides_allow() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some((mut hub, agent)) = Hub::start().await else { return };
    let (reader, in_ap) = (hub.world.write("reader.yaml", READER), hub.world.write("in-ap.yaml", IN_AP));
    let pods = hub.world.write("pods.yaml", PODS);
    hub.kubectl(&["apply", "-f", text(&reader)]).await.ends_with(0);
    hub.run("ap", &["apply", "-f", text(&in_ap), "-f", text(&pods)]).await.ends_with(0);
    let token = hub.kubectl(&["create", "token", "reader"]).await.ends_with(0).out.trim().to_owned();
    let config = hub.kubectl(&["config", "view", "--raw", "-o", "json"]).await.ends_with(0).document();
    let mut config = config.clone();
    config["users"][0]["user"] = serde_json::json!({"token": token});
    let as_reader = hub.world.write("reader.kubeconfig", &config.to_string());
    let reads = async |member: &str, args: &[&str]| {
        let server = hub.server(member);
        finish(hub.command(&["--kubeconfig", "reader.kubeconfig", "--server", &server], args)).await
    };

    let seen = reads("ap", &["get", "pods", "-o", "name"]).await.ends_with(0).out;
    assert_eq!(seen, "pod/server\npod/talker\n");
    let get = async |of: &[&str]| {
        hub.world.run(&[&["get", "pods", "-o", "name", "--hub-kubeconfig", text(&as_reader)], of].concat()).await
    };
    assert_eq!(get(&["--clusters", "ap"]).await.ends_with(0).out, "ap pod/server\nap pod/talker\n");
    let refused = get(&["--clusters", "eu"]).await.ends_with(1).err;
    assert!(refused.contains("eu: ") && refused.contains("forbidden"), "{refused}");
    let refused = get(&[]).await.ends_with(1).err;
    assert!(refused.contains("forbidden"), "{refused}");
    for (what, verb) in [
        (&["delete", "pod", "talker"][..], "delete"),
        (&["exec", "talker", "--", "id"], "create"),
        (&["label", "pod", "talker", "a=b"], "patch"),
    ] {
        let refused = reads("ap", what).await.ends_with(1).err;
        let words = format!(r#"User "system:serviceaccount:default:reader" cannot {verb} resource "clusters/proxy""#);
        assert!(refused.contains(&words) && refused.contains(r#""ap" is forbidden"#), "{what:?}: {refused}");
    }
    // (kubectl forgets the words of an answer to what it asks first.)
    let refused = reads("eu", &["get", "pods"]).await.ends_with(1).err;
    assert!(refused.contains("Forbidden"), "{refused}");
    let refused = reads("ap", &["get", "pods", "--as=root", "--as-group=system:masters"]).await.ends_with(1).err;
    assert!(refused.contains(r#"cannot impersonate resource "users""#), "{refused}");

    // The hub lets them, the member does not; and there they are who they are in the hub.
    let widen = r#"[{"op": "replace", "path": "/rules/0/verbs", "value": ["*"]}]"#;
    hub.kubectl(&["patch", "clusterrole", "ap-reader", "--type=json", "-p", widen]).await.ends_with(0);
    let refused = reads("ap", &["delete", "pod", "talker"]).await.ends_with(1).err;
    let words = r#"User "system:serviceaccount:default:reader" cannot delete resource "pods""#;
    assert!(refused.contains(words), "{refused}");
    let jane = ["--as=jane", "--as-group=dev", "auth", "whoami", "-o", "jsonpath={.status.userInfo}"];
    let jane: Value = serde_json::from_str(&hub.run("ap", &jane).await.ends_with(0).out).unwrap();
    assert_eq!((&jane["username"], &jane["groups"][0]), (&"jane".into(), &"dev".into()), "{jane}");
    let root = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"];
    assert_eq!(hub.run("ap", &root).await.ends_with(0).out, "system:serviceaccount:karmada-cluster:karmada-ap");

    may_be_acted_for(&hub).await;

    // A member that is away says since when, at once.
    drop(agent);
    let away = eventually("eu is away", PATIENCE, async || {
        let run = hub.kubectl(&["get", "--raw", &format!("{}/version", proxy("eu"))]).await;
        if run.code == Some(1) { Ok(run.err) } else { Err(run.out) }
    })
    .await;
    assert!(away.contains(r#"no agent of cluster "eu" has been connected since 20"#), "{away}");
    eventually("the last line of the log", PATIENCE, async || {
        let last = hub.audit().into_iter().next_back().unwrap_or_default();
        if last["code"] == 503 { Ok(()) } else { Err(last.to_string()) }
    })
    .await;

    // Who asked what, and how it ended; nothing of what was secret.
    let lines = hub.audit();
    let has = |user: &str, member: &str, verb: &str, path: &str, code: u16| {
        let found = lines.iter().any(|line| {
            let said = (&line["user"], &line["member"], &line["verb"], &line["path"], &line["code"]);
            said == (&user.into(), &member.into(), &verb.into(), &path.into(), &code.into())
                && line["stage"] == "ended"
                && line["durationMs"].is_u64()
        });
        assert!(found, "{user} {member} {verb} {path} {code} in {lines:#?}");
    };
    let reader = "system:serviceaccount:default:reader";
    has(reader, "ap", "list", "/api/v1/namespaces/default/pods", 200);
    has(reader, "ap", "create", "/api/v1/namespaces/default/pods/talker/exec", 403);
    has(reader, "ap", "delete", "/api/v1/namespaces/default/pods/talker", 403);
    has(reader, "eu", "get", "/api", 403);
    has("jane", "ap", "create", "/apis/authentication.k8s.io/v1/selfsubjectreviews", 201);
    let admin = |line: &Value| line["user"] == "kubernetes-admin" && line["member"] == "eu" && line["code"] == 503;
    assert!(lines.iter().any(|line| admin(line) && line["as"] == "hub"), "{lines:#?}");
    let log = std::fs::read_to_string(hub.world.path("audit.jsonl")).unwrap();
    assert!(!log.contains(&token) && !log.contains('?'), "{log}");
    let mode = std::fs::metadata(hub.world.path("audit.jsonl")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// One caller has so many places in a member: who wants more is told so, which is written down, and let in again when some
/// are free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_too_much_at_once_is_told_to_wait() {
    const PLACES: usize = 256;
    let Some((mut hub, _agent)) = Hub::start().await else { return };
    hub.world.good(&["hub", "kubeconfig", "eu", "--out", "members.kubeconfig", "--data", "hub"]).await;
    let kubeconfig = Kubeconfig::find(Some(&hub.world.path("members.kubeconfig")), None).unwrap();
    let maps = async || Api::<ConfigMap>::namespaced(connect(&kubeconfig, "eu", "eu").await.unwrap().client, "default");
    let others = maps().await;
    // A server lets only so many streams into one connection, too.
    let many = [maps().await, maps().await, maps().await, maps().await];
    let all = WatchParams::default();
    let mut watches = Vec::new();
    for maps in &many {
        for _ in 0..PLACES / many.len() {
            let watch = tokio::time::timeout(PATIENCE, maps.watch(&all, "0")).await;
            watches.push(Box::pin(watch.expect("no answer").unwrap()));
        }
    }
    let refused = format!("{:?}", others.list(&ListParams::default()).await.unwrap_err());
    let why = "kubernetes-admin has 256 requests under way to eu, which is all that one caller may have";
    assert!(refused.contains(why) && refused.contains("429"), "{refused}");
    // Another member is not this one's business.
    assert_eq!(
        hub.run("ap", &["get", "namespace", "default", "-o", "name"]).await.ends_with(0).out,
        "namespace/default\n"
    );
    drop(watches);
    eventually("there is room again", PATIENCE, async || {
        others.list(&ListParams::default()).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let line = hub.audit().into_iter().find(|line| line["code"] == 429).expect("no line of it");
    assert_eq!(
        (&line["user"], &line["member"], &line["verb"]),
        (&"kubernetes-admin".into(), &"eu".into(), &"list".into())
    );
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// Two agents of one member: one dies, the other serves; none is there, and that is seen; one comes back, and all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_two_agents_outlives_one_and_says_when_both_are_gone() {
    let Some((mut hub, first)) = Hub::start().await else { return };
    let standing = async |agents: u64, code: i32| {
        eventually("how eu is", PATIENCE, async || {
            let run = hub.world.run(&["hub", "status", "--data", "hub", "-o", "json"]).await;
            let report = run.document();
            let eu =
                report["members"].as_array().unwrap().iter().find(|member| member["name"] == "eu").unwrap().clone();
            if eu["agents"] == agents && run.code == Some(code) { Ok(eu) } else { Err(format!("{:?} {eu}", run.code)) }
        })
        .await
    };
    standing(1, 0).await;
    // The second has a token and a folder of its own, as in another pod.
    let invited = Invitation::of(&hub.world.good(&["hub", "token", "create", "eu", "--data", "hub"]).await.out);
    let second = hub.agent(&invited.flags(&["--context", "eu", "--data", "agent-eu-2"])).await;
    standing(2, 0).await;
    hub.hide().await;

    let mut watching = Follows::start(hub.through("eu", &["get", "configmaps", "-w", "-o", "name"]));
    watching.says("configmap/kube-root-ca.crt").await;
    drop(first);
    for round in 0..5 {
        hub.run("eu", &["create", "configmap", &format!("after-{round}")]).await.ends_with(0);
    }
    standing(1, 0).await;

    // The first is gone, the second is cut: requests are answered at once, with the time.
    drop(second);
    let cut = standing(0, 2).await;
    assert!(cut["agentsSince"].as_str().is_some_and(|since| since.starts_with("20")), "{cut}");
    let table = hub.world.run(&["hub", "status", "--data", "hub"]).await.ends_with(2).out;
    let line = table.lines().find(|line| line.starts_with("eu")).unwrap().to_owned();
    assert!(line.contains("cut ") && line.contains("s ago"), "{table}");
    let conditions =
        ["get", "cluster", "eu", "-o", "jsonpath={.status.conditions[?(@.type=='AgentConnected')].reason}"];
    assert_eq!(hub.kubectl(&conditions).await.ends_with(0).out, "NoAgent");
    let away = eventually("it is away", PATIENCE, async || {
        let run = hub.run("eu", &["get", "configmaps"]).await;
        if run.err.contains("no agent of cluster") { Ok(run.err) } else { Err(format!("{}{}", run.out, run.err)) }
    })
    .await;
    assert!(away.contains("has been connected since 20"), "{away}");

    let _again = hub.agent(&["--context", "eu"]).await;
    standing(1, 0).await;
    let names = hub.run("eu", &["get", "configmaps", "-o", "name"]).await.ends_with(0).out;
    assert_eq!(names.lines().filter(|name| name.contains("/after-")).count(), 5, "{names}");
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// All members in one table, with what one of them did not say; a log and a command in one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_are_one_view() {
    let Some((mut hub, agent)) = Hub::start().await else { return };
    hub.pods().await;
    let get = async |args: &[&str]| hub.world.run(&[&["get"], args, &["--data", "hub"]].concat()).await;
    let words = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let table = words(&get(&["pods", "--all-clusters"]).await.ends_with(0).out);
    assert_eq!(table[0], ["CLUSTER", "NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    let rows: Vec<_> = table[1..].iter().map(|row| (row[0].as_str(), row[1].as_str(), row[3].as_str())).collect();
    let all = [("ap", "server"), ("ap", "talker"), ("eu", "server"), ("eu", "talker")];
    assert_eq!(rows, all.map(|(cluster, pod)| (cluster, pod, "Running")));
    let wide = words(&get(&["po", "-A", "-l", "app=server", "-o", "wide"]).await.ends_with(0).out);
    assert_eq!(wide[0][..3], ["CLUSTER", "NAMESPACE", "NAME"]);
    assert!(wide[0].contains(&"NODE".to_owned()) && wide.len() == 3, "{wide:?}");
    let names = get(&["pods", "--clusters", "eu", "-o", "name"]).await.ends_with(0).out;
    assert_eq!(names, "eu pod/server\neu pod/talker\n");
    let list = get(&["pod/talker", "-o", "json"]).await.ends_with(0).document();
    let from =
        |index: usize| &list["items"][index]["metadata"]["annotations"]["resource.karmada.io/cached-from-cluster"];
    assert_eq!((from(0), from(1)), (&"ap".into(), &"eu".into()));
    let unknown = get(&["gadgets"]).await.ends_with(1).err;
    assert!(unknown.contains(r#"eu: it serves no kind "gadgets""#), "{unknown}");

    let log = ["logs", "pod/talker", "--cluster", "eu", "--data", "hub"];
    let log = hub.world.good(&log).await.out;
    assert!(log.starts_with("line 1\nline 2\nline 3\n"), "{log}");
    let mut following = hub.world.stolos(["logs", "talker", "--cluster", "eu", "--data", "hub", "-f", "--tail", "1"]);
    following.kill_on_drop(true);
    let mut following = Follows::start(following);
    following.says("tick").await;
    following.says("tick").await;
    following.ends_at_the_first_interrupt().await;
    let ran =
        ["exec", "talker", "--cluster", "eu", "--data", "hub", "--", "sh", "-c", "echo out; echo err >&2; exit 7"];
    let ran = hub.world.run(&ran).await.ends_with(7);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
    in_a_terminal(&hub, &["exec", "talker", "--cluster", "eu", "--data", "hub", "-it", "--", "sh"]).await;

    // A kubeconfig of it is all that plain kubectl needs.
    hub.world.good(&["hub", "kubeconfig", "--out", "members.kubeconfig", "--data", "hub"]).await;
    let member = ["--kubeconfig", "members.kubeconfig", "--context", "eu"];
    let names = finish(hub.command(&member, &["get", "pods", "-o", "name"])).await.ends_with(0).out;
    assert_eq!(names, "pod/server\npod/talker\n");
    let copied = finish(hub.command(&member, &["exec", "talker", "--", "echo", "here"])).await.ends_with(0).out;
    assert_eq!(copied, "here\n");

    // One that does not answer is named, the others are shown.
    drop(agent);
    eventually("eu is named", PATIENCE, async || {
        let run = get(&["pods", "-o", "name", "--timeout", "5"]).await;
        let named = run.err.contains("eu: ") && run.out == "ap pod/server\nap pod/talker\n";
        if named && run.code == Some(4) { Ok(()) } else { Err(format!("{:?} {}{}", run.code, run.out, run.err)) }
    })
    .await;
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// The account by which the hub passes requests on may act for those whom the hub lets through, and the member itself
/// refuses anybody else.
async fn may_be_acted_for(hub: &Hub) {
    let secret = [
        "-n",
        "karmada-cluster",
        "get",
        "secret",
        "ap-impersonator",
        "-o",
        "go-template={{.data.token | base64decode}}",
    ];
    let token = hub.kubectl(&secret).await.ends_with(0).out;
    let mut config =
        hub.past("ap", &["config", "view", "--raw", "--minify", "-o", "json"]).await.ends_with(0).document();
    config["users"][0]["user"] = serde_json::json!({"token": token});
    hub.world.write("impersonator.kubeconfig", &config.to_string());
    let by_it = async |ask: &[&str], who: &[&str]| {
        finish(hub.command(&[&["--kubeconfig", "impersonator.kubeconfig"], ask].concat(), who)).await
    };
    let whoami = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"];
    // (kubectl forgets the words of an answer to what it asks first.)
    let raw = ["get", "--raw", "/version"];
    // By name in a binding, and by a group and having come.
    let bot = "system:serviceaccount:default:reader";
    for (who, name) in [(&["--as", bot][..], bot), (&["--as=jane", "--as-group=dev"], "jane")] {
        assert_eq!(by_it(&whoami, who).await.ends_with(0).out, name);
    }
    let account = r#"User "system:serviceaccount:karmada-cluster:karmada-impersonator-ap" cannot impersonate resource"#;
    for who in [&["--as=mallory"][..], &["--as=jane", "--as-group=system:masters"], &["--as=kubernetes-admin"]] {
        let refused = by_it(&raw, who).await.ends_with(1).err;
        assert!(refused.contains(account), "{who:?}: {refused}");
    }
    // Who may not come any more may not be acted for any more.
    hub.kubectl(&["delete", "clusterrolebinding", "dev-everywhere"]).await.ends_with(0);
    eventually("jane is refused", PATIENCE, async || {
        let run = by_it(&raw, &["--as=jane"]).await;
        if run.err.contains(account) { Ok(()) } else { Err(format!("{}{}", run.out, run.err)) }
    })
    .await;
    let said = ["get", "events", "-A", "--field-selector", "reason=SyncImpersonationConfigSucceed", "-o", "name"];
    assert!(!hub.kubectl(&said).await.ends_with(0).out.is_empty());
}

/// Somebody types into a shell in a pod, at a terminal of their own.
async fn in_a_terminal(hub: &Hub, args: &[&str]) {
    let Some(python) = programs::program("STOLOS_PYTHON") else { return };
    let stolos = hub.world.stolos(args);
    let stolos = stolos.as_std();
    let mut command = Command::new(python);
    command.args(["-c", include_str!("terminal.py")]).arg(stolos.get_program()).args(stolos.get_args());
    command.envs(stolos.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(stolos.get_current_dir().unwrap()).kill_on_drop(true);
    let run = finish(command).await.ends_with(0);
    assert_eq!(run.out, "ended with 5, the terminal is as it was\n", "{}", run.err);
}

/// Follows a ConfigMap that counts, by resource version through whatever cuts the way to it, until it has counted to `last`;
/// what was seen, and how often the watch broke off.
async fn counted(client: kube::Client, mut version: String, last: Arc<AtomicU64>) -> (Vec<u64>, usize) {
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let (mut seen, mut broken) = (Vec::new(), 0);
    loop {
        let wanted = WatchParams::default().fields("metadata.name=counter");
        let Ok(events) = maps.watch(&wanted, &version).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut events = Box::pin(events);
        while let Ok(Some(event)) = events.try_next().await {
            let map = match event {
                WatchEvent::Added(map) | WatchEvent::Modified(map) => map,
                WatchEvent::Bookmark(_) => continue,
                other => panic!("{other:?}"),
            };
            version = map.metadata.resource_version.unwrap();
            let count: u64 = map.data.unwrap()["count"].parse().unwrap();
            seen.push(count);
            if count == last.load(Ordering::SeqCst) {
                return (seen, broken);
            }
        }
        broken += 1;
    }
}

/// The tunnel is cut and healed under load: who resumes a watch misses nothing. `STOLOS_CUTS` says how often. Most cuts are
/// an agent that is killed, every tenth is one that falls silent, so that nothing says that the connection is dead, and then
/// goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_cut_loses_no_event() {
    let Some((mut hub, mut agent)) = Hub::start().await else { return };
    let cuts: usize = std::env::var("STOLOS_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    hub.world.good(&["hub", "kubeconfig", "eu", "--out", "members.kubeconfig", "--data", "hub"]).await;
    let kubeconfig = Kubeconfig::find(Some(&hub.world.path("members.kubeconfig")), None).unwrap();
    let client = connect(&kubeconfig, "eu", "eu").await.unwrap().client;
    let past = hub.world.cluster("eu").await.client;
    let maps: Api<ConfigMap> = Api::namespaced(past, "default");
    let counter = |count: u64| -> ConfigMap {
        serde_json::from_value(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "counter"}, "data": {"count": count.to_string()}}))
        .unwrap()
    };
    let made = maps.create(&PostParams::default(), &counter(0)).await.unwrap();
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let version = made.metadata.resource_version.unwrap();
    let watching: Vec<_> =
        (0..3).map(|_| tokio::spawn(counted(client.clone(), version.clone(), Arc::clone(&last)))).collect();
    // Others ask in the meantime, and are answered or told that nobody is there.
    let asked = Arc::new(AtomicU64::new(0));
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let (maps, asked) = (Api::<ConfigMap>::all(client.clone()), Arc::clone(&asked));
            tokio::spawn(async move {
                loop {
                    match maps.list(&ListParams::default()).await {
                        Ok(_) => drop(asked.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        })
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let counting = {
        let (maps, stop, last) = (maps.clone(), Arc::clone(&stop), Arc::clone(&last));
        tokio::spawn(async move {
            for count in 1.. {
                let ends = stop.load(Ordering::SeqCst);
                if ends {
                    last.store(count, Ordering::SeqCst);
                }
                let patch = Patch::Merge(serde_json::json!({"data": {"count": count.to_string()}}));
                maps.patch("counter", &PatchParams::default(), &patch).await.unwrap();
                if ends {
                    return count;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            0
        })
    };
    for cut in 0..cuts {
        let before = asked.load(Ordering::Relaxed);
        eventually("answers through the tunnel", PATIENCE, async || {
            if asked.load(Ordering::Relaxed) > before + 4 { Ok(()) } else { Err(format!("none after cut {cut}")) }
        })
        .await;
        if cut % 10 == 1 {
            let pid = rustix::process::Pid::from_raw(agent.id().unwrap().cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
            eventually("it is seen to be silent", PATIENCE, async || {
                let report = hub.world.run(&["hub", "status", "--data", "hub", "-o", "json"]).await.document();
                let all = report["members"].as_array().unwrap();
                let eu = all.iter().find(|member| member["name"] == "eu").unwrap();
                if eu["agents"] == 0 { Ok(()) } else { Err(eu.to_string()) }
            })
            .await;
            rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
            continue;
        }
        agent.kill().await.unwrap();
        agent = hub.agent(&["--context", "eu"]).await;
    }
    stop.store(true, Ordering::SeqCst);
    let total = tokio::time::timeout(PATIENCE, counting).await.expect("it does not stop counting").unwrap();
    for watcher in watching {
        let (seen, broken) = tokio::time::timeout(PATIENCE, watcher).await.expect("it has not seen the end").unwrap();
        // Not each: who is not back yet when the next one comes does not feel that.
        assert!(broken * 4 > cuts, "{broken} of {cuts} cuts were felt");
        let missed: Vec<_> = (1..=total).filter(|count| seen.binary_search(count).is_err()).collect();
        assert!(
            missed.is_empty() && seen.len() as u64 == total,
            "{missed:?} of {total} were missed, {} seen",
            seen.len()
        );
    }
    asking.into_iter().for_each(|task| task.abort());
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}
