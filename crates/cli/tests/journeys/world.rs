//! A lab of a journey's own, and the binary run beside it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use stolos_cluster::{Cluster, Kubeconfig, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

/// No command of a journey takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(180);

/// A folder, an environment without anything of the caller's, and the labs started in it.
pub(crate) struct World {
    folder: tempfile::TempDir,
    /// Mesh files that a lab was started from.
    labs: Vec<PathBuf>,
}

/// What a run printed, and its end.
#[derive(Debug)]
pub(crate) struct Run {
    what: String,
    /// None when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), labs: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the world and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The state folder of a mesh.
    pub(crate) fn state(&self, mesh: &str) -> PathBuf {
        self.path("state").join("stolos").join(mesh)
    }

    /// The binary, in this world.
    pub(crate) fn stolos<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        // Another one than was built along: the release binary, where a journey is to be fast.
        let other = std::env::var_os("STOLOS_BIN").filter(|path| !path.is_empty());
        self.program(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_stolos").into()), args)
    }

    /// A program, in this world: its folder, its kubeconfig, and nothing of whoever runs the tests.
    pub(crate) fn program<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", std::env::temp_dir())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("KUBECONFIG", self.path("kubeconfig"))
            .envs(std::env::var_os("STOLOS_HELM").map(|helm| ("STOLOS_HELM", helm)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs the binary to its end, whatever that is.
    pub(crate) async fn run(&self, args: &[&str]) -> Run {
        finish(self.stolos(args)).await
    }

    /// Runs the binary, which must succeed.
    pub(crate) async fn good(&self, args: &[&str]) -> Run {
        self.run(args).await.ends_with(0)
    }

    /// Starts the lab of a mesh file in the background; it ends with the world.
    pub(crate) async fn up(&mut self, file: &Path) -> Run {
        self.up_with(file, &[]).await
    }

    /// The same with more flags.
    pub(crate) async fn up_with(&mut self, file: &Path, flags: &[&str]) -> Run {
        if !self.labs.iter().any(|lab| lab == file) {
            self.labs.push(file.to_owned());
        }
        self.good(&[&["lab", "up", "-f", text(file), "--detach"], flags].concat()).await
    }

    /// Remembers a mesh file whose lab somebody else may start, so that it ends with the world.
    pub(crate) fn ends_lab_of(&mut self, file: &Path) {
        self.labs.push(file.to_owned());
    }

    /// What `lab status` says of a mesh file's lab.
    pub(crate) async fn lab(&self, file: &Path) -> Value {
        self.good(&["lab", "status", "-f", text(file), "-o", "json"]).await.document()
    }

    /// Proves the mesh and returns the report, whatever it says.
    pub(crate) async fn verify(&self, file: &Path) -> (Run, Value) {
        let run = self.run(&["verify", "-f", text(file), "-o", "json"]).await;
        let report = run.document();
        (run, report)
    }

    /// Proves the mesh: all `pairs` ordered pairs must pass, and every refusal.
    pub(crate) async fn proven(&self, file: &Path, pairs: usize) -> Value {
        let (run, report) = self.verify(file).await;
        let report = {
            run.ends_with(0);
            report
        };
        assert_eq!(report["verdict"], "pass", "{report:#}");
        assert_eq!(report["pairs"].as_array().map(Vec::len), Some(pairs), "{report:#}");
        report
    }

    /// A client of the cluster behind a context.
    pub(crate) async fn cluster(&self, context: &str) -> Cluster {
        let kubeconfig = Kubeconfig::find(Some(&self.path("kubeconfig")), None).unwrap();
        connect(&kubeconfig, context, context).await.unwrap()
    }

    /// Clients of several.
    pub(crate) async fn clusters(&self, contexts: &[&str]) -> Vec<Cluster> {
        futures::future::join_all(contexts.iter().map(|context| self.cluster(context))).await
    }
}

impl World {
    /// The last words of every lab.
    fn say_logs(&self) {
        for state in std::fs::read_dir(self.path("state").join("stolos")).into_iter().flatten().flatten() {
            let log = std::fs::read_to_string(state.path().join("lab.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(40)..].join("\n");
            say(&format!("--- the end of {}/lab.log\n{last}", state.path().display()));
        }
    }
}

impl Drop for World {
    /// No lab outlives its journey, also when that fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.say_logs();
        }
        for file in &self.labs {
            let mut down = self.stolos(["lab", "down", "--timeout", "20", "-f", text(file)]);
            let down = down.as_std_mut().stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !down.is_ok_and(|status| status.success()) {
                kill_holders(&self.path("state").join("stolos"));
            }
        }
        // Labs without a file of their own.
        kill_holders(&self.path("state").join("stolos"));
    }
}

/// Kills every lab and hub whose folder is below `folder`.
fn kill_holders(folder: &Path) {
    let states: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
    for lock in states.iter().flat_map(|state| ["lab.lock", "hub.lock"].map(|lock| state.path().join(lock))) {
        let held = |lock: &Path| {
            let file = std::fs::File::open(lock).ok()?;
            matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)).then_some(())
        };
        let pid = std::fs::read_to_string(&lock).ok().and_then(|text| text.trim().parse().ok());
        if held(&lock).is_some()
            && let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Runs a command to its end.
pub(crate) async fn finish(mut command: Command) -> Run {
    let what = format!("{:?}", command.as_std().get_args().collect::<Vec<_>>());
    let began = Instant::now();
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{what} has not ended after {} s", PATIENCE.as_secs())).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let run = Run { what, code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    if std::env::var_os("STOLOS_JOURNEYS_TRACE").is_some() {
        say(&format!("{} ended with {:?} after {:.1?}", run.what, run.code, began.elapsed()));
    }
    run
}

impl Run {
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n--- stdout\n{}\n--- stderr\n{}", self.what, self.out, self.err);
        self
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub(crate) fn document(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| {
            panic!("{} printed no document ({error})\n--- stdout\n{}\n--- stderr\n{}", self.what, self.out, self.err)
        })
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Status and body of a page.
pub(crate) async fn page(address: &str, path: &str) -> Result<(u16, String), String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let answer = asking.await.map_err(|error: std::io::Error| error.to_string())?;
    let status = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// Prints a figure that people want to see with `--nocapture` or when a journey fails.
#[expect(clippy::print_stdout, reason = "what a test prints is for people")]
pub(crate) fn say(what: &str) {
    println!("{what}");
}

/// Asks again until there is an answer. What is still missing is said when there is none in time.
pub(crate) async fn eventually<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(missing) if began.elapsed() > patience => {
                panic!("{what}: not after {} s: {missing}", patience.as_secs())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
