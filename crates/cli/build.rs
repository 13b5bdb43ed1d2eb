//! What `stolos --version` says of the build.

use std::path::Path;
use std::process::Command;

fn main() {
    let fact = |name: &str, value: &str| println!("cargo::rustc-env=STOLOS_BUILD_{name}={value}");
    let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    println!("cargo::rerun-if-env-changed=STOLOS_COMMIT");
    let release = given("PROFILE").is_some_and(|profile| profile == "release");
    // A packager who builds from an archive says it; while developing, a commit is no reason to build again.
    let commit = given("STOLOS_COMMIT").or_else(|| release.then(commit).flatten());
    fact("COMMIT", commit.as_deref().unwrap_or("unknown"));
    fact("TARGET", given("TARGET").as_deref().unwrap_or("unknown"));
    fact("PROFILE", if release { "release" } else { "not optimised" });
    let rustc = Command::new(given("RUSTC").unwrap_or_else(|| "rustc".to_owned())).arg("--version").output();
    let rustc = rustc.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    fact("RUSTC", rustc.as_deref().unwrap_or("unknown").trim());
}

/// The commit that is checked out, and its day; `None` outside a checkout.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() { "" } else { ", changed" };
    Some(format!("{}{changed}", git(&["log", "-1", "--format=%h %cs"])?))
}
