//! The programs of others that a step needs: found, asked for their version, run with a bounded wait.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use stolos_cluster::Cluster;
use stolos_plan::{Change, Plan};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use crate::Error;
use crate::change::Cause;

/// The oldest Helm that labels a release when it installs it by `upgrade --install`.
const OLDEST_HELM: (u32, u32) = (3, 14);
/// How long a program may take to say its version.
const ANSWER: Duration = Duration::from_secs(20);
/// How much longer than it was told a program may take before it is ended.
const GRACE: Duration = Duration::from_secs(15);
/// How long it may take to end when it is asked to.
const FAREWELL: Duration = Duration::from_secs(5);
/// How many of a program's last lines are kept for when it fails.
const LAST_WORDS: usize = 12;
/// The longest line that is kept whole.
const LONGEST_LINE: usize = 4096;

/// A program, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    name: &'static str,
    path: PathBuf,
    major: u32,
}

/// The programs that a plan needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Programs {
    pub(crate) helm: Option<Program>,
    pub(crate) istioctl: Option<Program>,
}

/// Finds what `plan` needs.
///
/// # Errors
///
/// When it needs a program that is not there, or is of another version than would do.
pub(crate) async fn needed(plan: &Plan) -> Result<Programs, Error> {
    let mut programs = Programs::default();
    let changes = || plan.steps.iter().map(|step| step.change.inner());
    if changes()
        .any(|change| matches!(change, Change::Install { .. } | Change::Uninstall { .. } | Change::Rollback { .. }))
    {
        programs.helm = Some(helm().await?);
    }
    // Any can take away what another installed; to install Istio takes the one of its version.
    let wanted = changes().find_map(|change| match change {
        Change::Operate { operator, .. } => Some(operator.version.as_str()),
        _ => None,
    });
    if wanted.is_some() || changes().any(|change| matches!(change, Change::Withdraw { .. })) {
        programs.istioctl = Some(istioctl(wanted).await?);
    }
    Ok(programs)
}

/// `$STOLOS_HELM`, else `helm` in `$PATH`.
async fn helm() -> Result<Program, Error> {
    let needed = "Helm 3.14 or newer, or Helm 4";
    let path = find("helm", "STOLOS_HELM", needed)?;
    let (text, found) = version_of(&path, &["version", "--template", "{{.Version}}"]).await?;
    if found < OLDEST_HELM {
        return Err(Error::OldProgram { path, found: text, needed: needed.to_owned() });
    }
    Ok(Program { name: "helm", path, major: found.0 })
}

/// `$STOLOS_ISTIOCTL`, else `istioctl` in `$PATH`, of this version (all of it, or its minor).
async fn istioctl(wanted: Option<&str>) -> Result<Program, Error> {
    let needed = wanted.map_or_else(|| "any version".to_owned(), |wanted| format!("istioctl {wanted}"));
    let path = find("istioctl", "STOLOS_ISTIOCTL", &needed)?;
    let (text, (major, minor)) = version_of(&path, &["version", "--remote=false", "--short"]).await?;
    let fits = wanted.is_none_or(|wanted| match wanted.split('.').count() {
        0..=2 => wanted == format!("{major}.{minor}"),
        _ => text == wanted.trim_start_matches('v'),
    });
    match fits {
        true => Ok(Program { name: "istioctl", path, major }),
        false => Err(Error::OldProgram { path, found: text, needed }),
    }
}

fn find(name: &'static str, variable: &str, needed: &str) -> Result<PathBuf, Error> {
    let named = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    named.or_else(|| in_path(name)).ok_or_else(|| Error::NoProgram { name, needed: needed.to_owned() })
}

/// What a program says of itself, whole and as major and minor.
async fn version_of(path: &Path, arguments: &[&str]) -> Result<(String, (u32, u32)), Error> {
    let failed = |why: String| Error::Program { path: path.to_owned(), why };
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER, command.output()).await;
    let output = output.map_err(|_| failed(format!("it did not say its version in {} s", ANSWER.as_secs())))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    version(&said).ok_or_else(|| {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        failed(format!("it did not say its version ({}): {} {}", output.status, said.trim(), words.trim()))
    })
}

/// The first word that is a version: `v3.19.0`, `v4.0.1+g1234`, `client version: 1.28.0`.
fn version(said: &str) -> Option<(String, (u32, u32))> {
    said.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches('v');
        let mut parts = word.split(['.', '+', '-']);
        Some((word.to_owned(), (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?)))
    })
}

fn in_path(name: &str) -> Option<PathBuf> {
    let found = |folder: PathBuf| Some(folder.join(name)).filter(|path| path.is_file());
    std::env::split_paths(&std::env::var_os("PATH")?).find_map(found)
}

impl Program {
    /// Runs it against `cluster` with `arguments`. `said` hears every line that it writes to standard error, as it comes;
    /// of `istioctl`, what it writes to standard output as well.
    pub(crate) async fn run(
        &self,
        cluster: &Cluster,
        mut arguments: Vec<String>,
        patience: Duration,
        said: &(dyn Fn(&str) + Sync),
    ) -> Result<(), Cause> {
        let helm = self.name == "helm";
        let what = format!("{} {}", self.name, arguments.iter().take(2).cloned().collect::<Vec<_>>().join(" "));
        // Istio's control plane writes into the webhooks that its chart makes. Helm 4 would apply on the server's side
        // and then argue with it about those fields; the three-way merge that Helm 3 knows leaves them alone.
        if helm && self.major >= 4 && arguments.first().is_some_and(|verb| ["upgrade", "rollback"].contains(&&**verb)) {
            arguments.push("--server-side=false".to_owned());
        }
        let mut command = Command::new(&self.path);
        command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // By a group of its own, Ctrl-C does not reach it: a write under way is finished.
        command.process_group(0).kill_on_drop(true);
        for (name, _) in std::env::vars_os().filter(|(name, _)| leads_astray(name)) {
            command.env_remove(name);
        }
        let files = std::env::join_paths(&cluster.kubeconfigs).map_err(|error| Cause::Error(error.to_string()))?;
        command.env("KUBECONFIG", files).env("HELM_DRIVER", "secret");
        let mut child = command.spawn().map_err(|error| format!("could not run {}: {error}", self.path.display()))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let limit = patience + GRACE;
        let ended = tokio::time::timeout(limit, async {
            let tell = |line: &str| telling(line).map_or((), said);
            // What Helm prints when all is well is a page about the chart.
            let quiet = |line: &str| {
                if !helm {
                    tell(line);
                }
            };
            let (out, err) = tokio::join!(follow(out, &quiet), follow(err, &tell));
            (child.wait().await, if err.is_empty() { out } else { err })
        });
        match ended.await {
            Ok((Ok(status), _)) if status.success() => Ok(()),
            Ok((Ok(status), words)) => Err(Cause::Error(failure(&what, &status.to_string(), &words))),
            Ok((Err(error), _)) => Err(Cause::Error(format!("{what}: {error}"))),
            Err(_) => {
                end(&mut child).await;
                Err(Cause::TimedOut(format!("{what} had not ended after {} s, and was stopped", limit.as_secs())))
            }
        }
    }
}

/// Whether a variable would lead Helm to another cluster, namespace or memory than the plan is about.
fn leads_astray(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("HELM_KUBE") || ["HELM_NAMESPACE", "HELM_DRIVER", "HELM_DEBUG", "KUBECONFIG"].contains(&&*name)
}

/// A line that says something about what is going on.
fn telling(line: &str) -> Option<&str> {
    let line = line.trim();
    // About the user's kubeconfig, at every run.
    let noise = line.is_empty() || line.starts_with("WARNING: Kubernetes configuration file");
    (!noise).then_some(line)
}

fn failure(what: &str, status: &str, words: &VecDeque<String>) -> String {
    let words: Vec<_> = words.iter().filter_map(|line| telling(line)).collect();
    match words.is_empty() {
        true => format!("{what} ended with {status} and said nothing"),
        false => format!("{what} ended with {status}: {}", words.join("\n")),
    }
}

/// Asks a program to end, and ends it.
async fn end(child: &mut Child) {
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(FAREWELL, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Reads lines until there are no more, and returns the last ones. However much a program writes, little is kept.
async fn follow(from: Option<impl AsyncRead + Unpin>, said: &(dyn Fn(&str) + Sync)) -> VecDeque<String> {
    let mut last = VecDeque::new();
    let Some(mut from) = from else { return last };
    let mut line = Vec::new();
    let mut buffer = vec![0; 4096];
    let mut whole = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).into_owned();
        said(&text);
        if last.len() == LAST_WORDS {
            last.pop_front();
        }
        last.push_back(text);
        line.clear();
    };
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        for byte in &buffer[..count] {
            match byte {
                b'\n' => whole(&mut line),
                byte if line.len() < LONGEST_LINE => line.push(*byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        whole(&mut line);
    }
    last
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn cluster() -> Cluster {
        let config = kube::Config::new("https://127.0.0.1:1".parse().unwrap());
        let client = stolos_cluster::client(config, std::sync::Arc::new(stolos_serve::HostNet::default())).unwrap();
        let kubeconfigs = vec!["/a".into(), "/b".into()];
        Cluster {
            name: "a".into(),
            context: "a".into(),
            server: String::new(),
            authorities: vec![],
            client,
            kubeconfigs,
        }
    }

    fn script(folder: &std::path::Path, text: &str) -> Program {
        let path = folder.join("helm");
        // Written by another process: what this one has open for writing, a child that another test starts meanwhile has
        // too for a moment, and what is open for writing cannot be run (ETXTBSY).
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 755 "$0""#;
        let written = std::process::Command::new("sh").args(["-c", write]).arg(&path).arg(text).status().unwrap();
        assert!(written.success());
        Program { name: "helm", path, major: 3 }
    }

    async fn run(helm: &Program, patience: Duration) -> (Result<(), Cause>, Vec<String>) {
        let heard = Mutex::new(Vec::new());
        let said = |line: &str| heard.lock().unwrap().push(line.to_owned());
        let result = helm.run(&cluster(), vec!["upgrade".into(), "x".into()], patience, &said).await;
        (result, heard.into_inner().unwrap())
    }

    #[tokio::test]
    async fn its_words_are_heard_and_kept_when_it_fails() {
        let folder = tempfile::tempdir().unwrap();
        let helm = script(
            folder.path(),
            "echo out; echo \"$KUBECONFIG $HELM_DRIVER\" >&2; echo 'Error: UPGRADE FAILED: no' >&2; exit 3",
        );
        let (result, heard) = run(&helm, Duration::from_secs(30)).await;
        assert_eq!(heard, ["/a:/b secret", "Error: UPGRADE FAILED: no"]);
        let Err(Cause::Error(why)) = result else { panic!("{result:?}") };
        assert_eq!(why, "helm upgrade x ended with exit status: 3: /a:/b secret\nError: UPGRADE FAILED: no");
        // What it says when all is well is not asked for; Helm 4 is told to merge as Helm 3 does.
        let helm = Program { major: 4, ..script(folder.path(), "echo \"$@\" >&2; seq 1 100000") };
        let (result, heard) = run(&helm, Duration::from_secs(30)).await;
        assert!(result.is_ok());
        assert_eq!(heard, ["upgrade x --server-side=false"]);
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let helm = script(folder.path(), "exec sleep 600");
        let mut child = Command::new(&helm.path).process_group(0).spawn().unwrap();
        end(&mut child).await;
        assert!(child.try_wait().unwrap().is_some_and(|status| !status.success()));
    }

    #[test]
    fn versions_are_read_as_programs_say_them() {
        for (text, found) in [
            ("v3.19.0", Some(("3.19.0", (3, 19)))),
            ("v4.0.1+gabc", Some(("4.0.1+gabc", (4, 0)))),
            ("v3.22\n", Some(("3.22", (3, 22)))),
            ("client version: 1.28.0\n", Some(("1.28.0", (1, 28)))),
            ("1.27.1", Some(("1.27.1", (1, 27)))),
            ("no running Istio pods", None),
            ("", None),
        ] {
            let said = version(text);
            assert_eq!(said.as_ref().map(|(text, numbers)| (text.as_str(), *numbers)), found, "{text}");
        }
    }
}
