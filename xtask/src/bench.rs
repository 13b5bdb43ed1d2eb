//! `cargo xtask bench` and `endure`: builds what is measured and what measures it, then runs it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

/// Runs `stolos-bench` with these arguments on the release binary, freshly built unless `$STOLOS_BIN` names one.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let given = std::env::var_os("STOLOS_BIN").map(PathBuf::from);
    build("stolos-bench")?;
    let stolos = match given {
        Some(given) => given,
        None => {
            build("stolos-cli")?;
            target.join("release/stolos")
        }
    };
    let done = Command::new(target.join("release/stolos-bench")).args(arguments).env("STOLOS_BIN", stolos).status()?;
    ensure!(done.success(), "{arguments:?} ended with {done}");
    // The half of this section that needs more clusters than one machine can keep going: over clusters in memory.
    if arguments.get(1..).is_some_and(|sections| sections.is_empty() || sections.contains(&"plan")) {
        // Beside those two so that nothing is built with other features than they were.
        let of = ["-p", "stolos-plan", "-p", "stolos-cli", "-p", "stolos-bench"];
        let test = ["--lib", "hundred_tests", "--", "--ignored", "--nocapture"];
        let done = Command::new(env!("CARGO")).args(["test", "--release"]).args(of).args(test).status()?;
        ensure!(done.success(), "the plan of clusters in memory ended with {done}");
    }
    Ok(())
}

fn build(package: &str) -> Result<()> {
    let built = Command::new(env!("CARGO")).args(["build", "--release", "--package", package]).status()?;
    ensure!(built.success(), "the release build of {package} failed");
    Ok(())
}
