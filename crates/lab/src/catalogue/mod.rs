//! The images a lab has: built-in stand-ins for workloads people know, and Stolos' own parts.

mod bookinfo;
mod echo;
mod grpcbin;
mod helloworld;
mod httpbin;
mod mailhog;
mod podinfo;
mod tcp;
mod web;
mod websocket;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use stolos_serve::{Container, Stop};

use crate::config::EnvoyFor;
use crate::console::{Console, Stream};
use crate::userland::{self, Process, Sink, Source};

/// What a container's main process is given.
pub struct Launch {
    /// Network, files, environment, arguments, log.
    pub container: Container,
    /// The pod's `command`, if it has one; its first word is the program.
    pub command: Vec<String>,
    /// What it reads and shows, for those who attach.
    pub console: Arc<Console>,
    /// The pod's name.
    pub hostname: String,
    /// Asked when the process is to end.
    pub stop: Stop,
}

/// Runs a container's main process to its exit code.
pub type Run = Arc<dyn Fn(Launch) -> BoxFuture<'static, i32> + Send + Sync>;

/// An image of the catalogue.
#[derive(Clone)]
pub struct Image {
    /// What it stands for, such as `helloworld`.
    pub name: &'static str,
    run: Run,
}

impl Image {
    /// An image called `name` whose process is `run`.
    pub fn new(name: &'static str, run: impl Fn(Launch) -> BoxFuture<'static, i32> + Send + Sync + 'static) -> Self {
        Self { name, run: Arc::new(run) }
    }

    /// Whether the time that its tasks take is counted: Stolos' own parts must not pay for that.
    pub(crate) fn is_metered(&self) -> bool {
        !matches!(self.name, "control" | "proxy")
    }

    /// Runs the container: what its command says where that is a program of the userland, else the image itself.
    pub fn run(&self, launch: Launch) -> BoxFuture<'static, i32> {
        match launch.command.first() {
            Some(program) if userland::knows(program) => Box::pin(typed(launch)),
            _ => (self.run)(launch),
        }
    }
}

/// The images by their normalised names.
#[derive(Clone)]
pub struct Catalogue {
    images: BTreeMap<&'static str, Image>,
    envoy: Option<Envoy>,
}

/// A real Envoy, for pods whose proxy is to be one.
#[derive(Clone, Debug)]
pub struct Envoy {
    /// The program.
    pub program: PathBuf,
    /// Which pods run it.
    pub of: EnvoyFor,
}

impl Default for Catalogue {
    fn default() -> Self {
        let mut images = BTreeMap::new();
        let v = |version| Image::new("helloworld", move |launch| Box::pin(helloworld::run(launch, version)));
        images.insert("istio/examples-helloworld-v1", v("v1"));
        images.insert("istio/examples-helloworld-v2", v("v2"));
        for name in ["curlimages/curl", "curl", "alpine/curl"] {
            images.insert(name, Image::new("curl", |launch| Box::pin(tools(launch, "curlimages/curl", "curl"))));
        }
        images.insert("busybox", Image::new("busybox", |launch| Box::pin(tools(launch, "busybox", "sh"))));
        images.insert("alpine", Image::new("alpine", |launch| Box::pin(tools(launch, "alpine", "sh"))));
        images.insert("stefanprodan/podinfo", Image::new("podinfo", |launch| Box::pin(podinfo::run(launch))));
        images.insert("stolos/control", Image::new("control", |launch| Box::pin(control(launch))));
        images.insert("stolos/proxy", Image::new("proxy", |launch| Box::pin(proxy(launch))));
        images.insert("istio/tcp-echo-server", Image::new("tcp-echo", |launch| Box::pin(tcp::echo(launch))));
        images.insert("moul/grpcbin", Image::new("grpcbin", |launch| Box::pin(grpcbin::run(launch))));
        images.insert("jmalloc/echo-server", Image::new("echo-server", |launch| Box::pin(echo::run(launch))));
        images.insert("mailhog/mailhog", Image::new("mailhog", |launch| Box::pin(mailhog::run(launch))));
        for (image, style) in httpbin::IMAGES {
            images.insert(image, Image::new("httpbin", move |launch| Box::pin(httpbin::run(launch, style))));
        }
        for (image, kind) in bookinfo::IMAGES {
            images.insert(image, Image::new("bookinfo", move |launch| Box::pin(bookinfo::run(launch, kind))));
        }
        Self { images, envoy: None }
    }
}

impl Catalogue {
    /// Adds an image, or puts another in its place. `name` is normalised: no registry `docker.io`, no tag.
    pub fn add(&mut self, name: &'static str, image: Image) {
        self.images.insert(name, image);
    }

    /// Gives pods an Envoy.
    pub fn set_envoy(&mut self, envoy: Envoy) {
        self.envoy = Some(envoy);
    }

    /// The Envoy, if there is one.
    #[must_use]
    pub fn envoy(&self) -> Option<&Envoy> {
        self.envoy.as_ref()
    }

    /// The image called `reference`.
    #[must_use]
    pub fn find(&self, reference: &str) -> Option<&Image> {
        self.images.get(normalised(reference).as_str())
    }

    /// The names of all images.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.images.keys().copied()
    }

    /// What there is, for whoever asked for something else.
    #[must_use]
    pub fn list(&self) -> String {
        self.images.keys().copied().collect::<Vec<_>>().join(", ")
    }
}

/// `docker.io/istio/examples-helloworld-v1:1.0@sha256:…` → `istio/examples-helloworld-v1`.
#[must_use]
pub fn normalised(reference: &str) -> String {
    let name = reference.split('@').next().unwrap_or("");
    let name = match name.rsplit_once('/') {
        Some((path, last)) => format!("{path}/{}", last.split(':').next().unwrap_or("")),
        None => name.split(':').next().unwrap_or("").to_owned(),
    };
    let mut name = name.as_str();
    for registry in ["docker.io/", "index.docker.io/", "registry-1.docker.io/", "library/"] {
        name = name.strip_prefix(registry).unwrap_or(name);
    }
    name.to_owned()
}

async fn control(launch: Launch) -> i32 {
    let output = launch.container.output.clone();
    ended(stolos_control::run(launch.container, launch.stop).await, &output)
}

async fn proxy(launch: Launch) -> i32 {
    let output = launch.container.output.clone();
    ended(stolos_proxy::run(launch.container, launch.stop).await, &output)
}

/// The exit code of one of Stolos' own roles; why it failed goes to its log, cause by cause.
fn ended<E: std::error::Error>(result: Result<(), E>, output: &stolos_serve::Output) -> i32 {
    let Err(error) = result else { return 0 };
    output.line(format!("error: {}", stolos_serve::because(&error)));
    1
}

/// A command that somebody wrote: `sleep infinity`, `sh -c '…'`.
async fn typed(launch: Launch) -> i32 {
    let Launch { container, mut command, console, hostname, stop } = launch;
    command.extend(container.args.iter().cloned());
    let output = |stream| Sink::new(console.writer(stream, container.output.clone()));
    let mut process = Process {
        net: Arc::clone(&container.net),
        root: container.root.clone(),
        directory: "/".into(),
        env: container.env.clone(),
        hostname,
        stdin: Source::empty(),
        stdout: Sink::null(),
        stderr: Sink::null(),
        interrupt: None,
        screen: None,
    };
    let mut editing: BoxFuture<'static, ()> = Box::pin(std::future::pending());
    match console.take_stdin() {
        Some(keys) if console.is_terminal() => {
            let seen = console.writer(Stream::Out, container.output.clone());
            let (terminal, work) = userland::open_terminal(keys, seen, console.screen().clone());
            editing = Box::pin(work);
            process.stdin = terminal.stdin;
            process.stdout = terminal.stdout.clone();
            process.stderr = terminal.stdout;
            process.interrupt = Some(terminal.interrupt);
            process.screen = Some(terminal.screen);
        }
        keys => {
            process.stdin = keys.map_or_else(Source::empty, Source::new);
            process.stdout = output(Stream::Out);
            process.stderr = output(Stream::Err);
        }
    }
    let interrupted = userland::interrupted(&command, process.interrupt.clone());
    tokio::select! {
        code = userland::run(command, process) => code,
        code = interrupted => code,
        () = editing => 129,
        // As if killed by SIGTERM.
        () = stop.asked() => 143,
    }
}

/// An image of tools without a command: its arguments are a program, or those of the image's own.
async fn tools(mut launch: Launch, name: &str, own: &str) -> i32 {
    launch.container.output.line(format!("built-in stand-in for {name}"));
    launch.command = match launch.container.args.first() {
        Some(first) if userland::knows(first) => Vec::new(),
        _ => vec![own.to_owned()],
    };
    launch.command.append(&mut launch.container.args);
    typed(launch).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names() {
        let table = [
            ("docker.io/istio/examples-helloworld-v1:1.0", "istio/examples-helloworld-v1"),
            ("istio/examples-helloworld-v2", "istio/examples-helloworld-v2"),
            ("curlimages/curl@sha256:abc", "curlimages/curl"),
            ("curlimages/curl:8.1@sha256:abc", "curlimages/curl"),
            ("docker.io/library/busybox:1", "busybox"),
            ("localhost:5000/mine/app:2", "localhost:5000/mine/app"),
        ];
        for (written, name) in table {
            assert_eq!(normalised(written), name, "{written}");
        }
    }
}
