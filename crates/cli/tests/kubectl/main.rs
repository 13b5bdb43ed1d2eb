//! kubectl, current and old, against a lab cluster: every verb people use, as `script.txt` tells it.
//!
//! The programs are found by `STOLOS_KUBECTL` and `STOLOS_KUBECTL_OLD` (`eval "$(bash .ci/programs)"` sets both). Without
//! them a test says that it did not run; where `STOLOS_REQUIRE_PROGRAMS=1` it fails instead.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regex::Regex;

#[path = "../../../../tests/programs.rs"]
mod programs;

const SCRIPT: &str = include_str!("script.txt");
/// The longest that one command may take, in seconds.
const LIMIT: &str = "120";

/// Commands that belong together, in a namespace of their own.
struct Part {
    title: &'static str,
    steps: Vec<Step>,
}

/// A command, and what it must do.
struct Step {
    line: usize,
    command: &'static str,
    input: String,
    /// Patterns, and whether each must match or must not.
    prints: Vec<(bool, Regex)>,
    exit: &'static str,
}

fn parts() -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let pattern = |text: &str| Regex::new(&format!("(?m){text}")).unwrap_or_else(|e| panic!("{text}: {e}"));
    for (number, line) in SCRIPT.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        if mark == "==" {
            parts.push(Part { title: rest, steps: Vec::new() });
            continue;
        }
        let part = parts.last_mut().expect("the script begins with a part");
        if mark == "$" {
            let (input, prints) = (String::new(), Vec::new());
            part.steps.push(Step { line: number + 1, command: rest, input, prints, exit: "0" });
            continue;
        }
        let step = part.steps.last_mut().expect("a part begins with a command");
        match mark {
            "<" => step.input += &format!("{rest}\n"),
            "~" => step.prints.push((true, pattern(rest))),
            "!~" => step.prints.push((false, pattern(rest))),
            "exit" => step.exit = rest,
            _ => panic!("script.txt, line {}: {line}", number + 1),
        }
    }
    parts
}

/// A lab in the background, which goes down with this value.
struct Lab(tempfile::TempDir);

impl Lab {
    fn up() -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        let output = lab.stolos(&["lab", "up", "--clusters", "1", "--detach"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        lab
    }

    fn stolos(&self, args: &[&str]) -> std::process::Output {
        let folder = self.0.path();
        Command::new(env!("CARGO_BIN_EXE_stolos"))
            .args(args)
            .env_clear()
            .env("HOME", folder)
            .env("STOLOS_STATE", folder.join("state"))
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.0.path().join("state/kubeconfig")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.stolos(&["lab", "down"]);
    }
}

/// A folder where `kubectl` is the one under test, its kubeconfig names `namespace`, and commands run.
struct Desk {
    folder: tempfile::TempDir,
    namespace: String,
}

impl Desk {
    fn new(kubectl: &Path, kubeconfig: &Path, namespace: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        std::os::unix::fs::symlink(kubectl, folder.path().join("bin/kubectl")).unwrap();
        std::fs::copy(kubeconfig, folder.path().join("kubeconfig")).unwrap();
        let desk = Self { folder, namespace };
        let setup = "kubectl create namespace $NS && kubectl config set-context --current --namespace=$NS";
        let (code, text) = desk.run(setup, "");
        assert_eq!(code, "0", "{text}");
        desk
    }

    /// Exit code, and everything that was printed.
    fn run(&self, command: &str, input: &str) -> (String, String) {
        let folder = self.folder.path();
        let mut path = folder.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut child = Command::new("timeout")
            .args([LIMIT, "sh", "-c"])
            // One stream, in the order in which people see it.
            .arg(format!("exec 2>&1\n{command}"))
            .current_dir(folder)
            .env_clear()
            .env("PATH", path)
            .env("HOME", folder)
            .env("TMPDIR", folder)
            .env("KUBECONFIG", folder.join("kubeconfig"))
            .env("NS", &self.namespace)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read is free not to.
        let _ = stdin.write_all(input.replace("$NS", &self.namespace).as_bytes());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let code = output.status.code().map_or("killed".to_owned(), |code| code.to_string());
        let colours = Regex::new("\x1b\\[[0-9;]*m").unwrap();
        (code, colours.replace_all(&String::from_utf8_lossy(&output.stdout), "").into_owned())
    }
}

fn play(variable: &str, is_old: bool) {
    let Some(kubectl) = programs::program(variable) else { return };
    let lab = Lab::up();
    let only = std::env::var("STOLOS_KUBECTL_ONLY").unwrap_or_default();
    let mut problems = String::new();
    let mut count = 0;
    for (number, part) in parts().into_iter().enumerate() {
        if is_old && part.title.ends_with("[new]") || !part.title.contains(&only) {
            continue;
        }
        let desk = Desk::new(&kubectl, &lab.kubeconfig(), format!("part-{number}"));
        for step in part.steps {
            count += 1;
            let (code, text) = desk.run(step.command, &step.input);
            let mut wrong = String::new();
            if !step.exit.split('|').any(|exit| exit == code) {
                let _ = writeln!(wrong, "  exit {code}, not {}", step.exit);
            }
            for (must, pattern) in &step.prints {
                if pattern.is_match(&text) != *must {
                    let _ = writeln!(wrong, "  {} {pattern}", if *must { "~" } else { "!~" });
                }
            }
            if !wrong.is_empty() {
                let shown = text.lines().take(60).fold(String::new(), |all, line| all + "  | " + line + "\n");
                let _ =
                    writeln!(problems, "script.txt:{} [{}] $ {}\n{wrong}{shown}", step.line, part.title, step.command);
            }
        }
        desk.run("kubectl delete namespace $NS --wait=false", "");
    }
    assert!(problems.is_empty(), "{}\n{count} commands", problems);
    assert!(count > 0, "no part is called {only:?}");
}

#[test]
fn a_current_kubectl_finds_a_cluster() {
    play("STOLOS_KUBECTL", false);
}

#[test]
fn an_old_kubectl_finds_a_cluster() {
    play("STOLOS_KUBECTL_OLD", true);
}
