//! Into a pod of a member: its log, and commands in it.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use futures::channel::mpsc::Sender;
use futures::{AsyncReadExt as _, SinkExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams, LogParams, TerminalSize};
use stolos_cluster::objects::{self, Resource};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::command::hub::WhichArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::terminal::Raw;

/// Which pod.
#[derive(Args, Debug)]
pub(crate) struct PodArgs {
    /// The pod, or a workload one of whose pods is meant: `hello-7d4b`, `pod/hello-7d4b`, `deployment/hello`
    #[arg(value_name = "POD|KIND/NAME")]
    pod: String,

    /// The member it is in
    #[arg(long, value_name = "NAME")]
    cluster: String,

    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,

    /// The container [default: the first]
    #[arg(short, long, value_name = "CONTAINER")]
    container: Option<String>,

    #[command(flatten)]
    which: WhichArgs,
}

/// `stolos logs`
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stolos logs deployment/hello --cluster eu -f --tail 20")]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    of: PodArgs,

    /// Stay, and print what is written later
    #[arg(short, long)]
    follow: bool,

    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    tail: Option<i64>,

    /// Only what is younger, in seconds
    #[arg(long, value_name = "SECONDS")]
    since: Option<i64>,

    /// The container's last life instead of this one
    #[arg(short, long)]
    previous: bool,

    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
}

/// `stolos exec`
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stolos exec deployment/hello --cluster eu -- env
  stolos exec deployment/hello --cluster eu -it -- sh
  tar cf - page | stolos exec hello-7d4b --cluster eu -i -- tar xf - -C /srv")]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    of: PodArgs,

    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,

    /// Give it a terminal: this one, with what is typed, Ctrl-C included, and with its size
    #[arg(short = 't', long, requires = "stdin")]
    tty: bool,

    /// The command with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl PodArgs {
    /// The pods of its namespace in its member, and which of them.
    async fn find(&self) -> Result<(Api<Pod>, String), Failure> {
        let client = self.which.member(&self.cluster).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let (kind, name) = match self.pod.split_once('/') {
            None | Some(("pod" | "pods" | "po", _)) => {
                return Ok((pods, self.pod.rsplit('/').next().unwrap_or_default().to_owned()));
            }
            Some((kind, name)) => (kind, name),
        };
        let (version, kind) = match kind.to_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" | "deployment.apps" | "deployments.apps" => {
                ("apps/v1", "Deployment")
            }
            "statefulset" | "statefulsets" | "sts" => ("apps/v1", "StatefulSet"),
            "daemonset" | "daemonsets" | "ds" => ("apps/v1", "DaemonSet"),
            "replicaset" | "replicasets" | "rs" => ("apps/v1", "ReplicaSet"),
            "job" | "jobs" => ("batch/v1", "Job"),
            "service" | "services" | "svc" => ("v1", "Service"),
            _ => {
                return Err(Failure::new(format!("nobody knows the pods of a {kind}"))
                    .hint("name the pod, or its deployment, statefulset, daemonset, replicaset, job or service"));
            }
        };
        let resource = Resource::named(version, kind)?;
        let owner = objects::get(&client, &resource, Some(&self.namespace), name).await?;
        let place = || format!("{kind} {name} in namespace {} of {}", self.namespace, self.cluster);
        let owner = owner.ok_or_else(|| Failure::new(format!("there is no {}", place())))?;
        let labels =
            if kind == "Service" { &owner["spec"]["selector"] } else { &owner["spec"]["selector"]["matchLabels"] };
        let labels: Vec<_> = labels
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
            .collect();
        if labels.is_empty() {
            return Err(Failure::new(format!("the {} selects no pods by labels", place())));
        }
        let found = pods.list(&ListParams::default().labels(&labels.join(","))).await;
        let found = found.map_err(|error| failed(&error, "find a pod", &self.cluster))?;
        let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let pod = found.items.iter().find(runs).or(found.items.first());
        let pod = pod.and_then(|pod| pod.metadata.name.clone());
        Ok((pods, pod.ok_or_else(|| Failure::new(format!("the {} has no pods", place())))?))
    }
}

fn failed(error: &kube::Error, what: &str, cluster: &str) -> Failure {
    Failure::caused(error).while_doing(format!("could not {what} in {cluster}"))
}

pub(crate) async fn logs(args: LogsArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (pods, pod) = args.of.find().await?;
    let wanted = LogParams {
        container: args.of.container.clone(),
        follow: args.follow,
        previous: args.previous,
        since_seconds: args.since,
        tail_lines: args.tail,
        timestamps: args.timestamps,
        ..LogParams::default()
    };
    let cluster = &args.of.cluster;
    let log = pods.log_stream(&pod, &wanted).await;
    let mut log = Box::pin(log.map_err(|error| failed(&error, &format!("read the log of {pod}"), cluster))?);
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = log.read(&mut buffer).await;
        let count =
            count.map_err(|error| Failure::caused(&error).while_doing(format!("the log of {pod} broke off")))?;
        // Who reads no further has seen enough.
        if count == 0 || screen.bytes(&buffer[..count]).is_err() {
            return Ok(Exit::Good);
        }
    }
}

pub(crate) async fn exec(args: ExecArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (pods, pod) = args.of.find().await?;
    let tty = args.tty && std::io::stdin().is_terminal();
    if args.tty && !tty {
        // In kubectl's words.
        screen.line("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let wanted = AttachParams {
        container: args.of.container.clone(),
        stdin: args.stdin,
        stdout: true,
        // A terminal has one output.
        stderr: !tty,
        tty,
        ..AttachParams::default()
    };
    let cluster = &args.of.cluster;
    let started = pods.exec(&pod, args.command, &wanted).await;
    let mut process = started.map_err(|error| failed(&error, &format!("run a command in {pod}"), cluster))?;
    let (status, stdin) = (process.take_status(), process.stdin());
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let terminal = if tty { Raw::take() } else { Ok(None) };
    let terminal = terminal.map_err(|error| Failure::caused(&error).while_doing("could not use this terminal"))?;
    let sizes = process.terminal_size().filter(|_| tty);
    // What is typed may go on for longer than the command.
    let typing = stdin.map(|mut into| {
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut into).await;
            let _ = into.shutdown().await;
        })
    });
    let out = carry(stdout, |bytes| screen.bytes(bytes));
    let err = carry(stderr, |bytes| std::io::stderr().write_all(bytes));
    let ended = async {
        tokio::join!(out, err);
        match status {
            Some(status) => status.await,
            None => None,
        }
    };
    let status = tokio::select! {
        status = ended => status,
        never = resized(terminal.as_ref(), sizes) => match never {},
    };
    if let Some(typing) = typing {
        typing.abort();
    }
    drop(terminal);
    let Some(status) = status else {
        return Err(Failure::new(format!("the session with {pod} in {cluster} broke off")));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(Exit::Good);
    }
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes.into_iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match code.and_then(|cause| cause.message.as_ref()?.parse::<u8>().ok()) {
        Some(code) => Ok(Exit::Program(code)),
        None => Err(Failure::new(format!("could not run a command in {pod} in {cluster}"))
            .because(status.message.unwrap_or_else(|| "it did not say why".to_owned()))),
    }
}

/// Tells the other end how large the terminal is, now and whenever that changes. Never ends.
async fn resized(terminal: Option<&Raw>, sizes: Option<Sender<TerminalSize>>) -> std::convert::Infallible {
    let changed = signal(SignalKind::window_change());
    if let (Some(terminal), Some(mut sizes), Ok(mut changed)) = (terminal, sizes, changed) {
        loop {
            if let Some((width, height)) = terminal.size()
                && sizes.send(TerminalSize { width, height }).await.is_err()
            {
                break;
            }
            if changed.recv().await.is_none() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// Passes on what comes, until it ends or nobody wants it.
async fn carry(from: Option<impl AsyncRead + Unpin>, into: impl Fn(&[u8]) -> std::io::Result<()>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || into(&buffer[..count]).is_err() {
            return;
        }
    }
}
