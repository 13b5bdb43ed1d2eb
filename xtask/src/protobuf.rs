//! Writes what the API server knows of Kubernetes' protobuf, from Kubernetes' own Go types.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const FILES: [&str; 2] = ["types.txt", "samples.txt"];

/// Generates into the crate's sources.
pub(crate) fn write() -> Result<()> {
    generate(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/apiserver/src/protobuf"))
}

/// Fails when what is there is not what would be generated.
pub(crate) fn check() -> Result<()> {
    let (there, fresh) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/apiserver/src/protobuf"), tempfile::tempdir()?);
    generate(fresh.path())?;
    for file in FILES {
        let same = std::fs::read(there.join(file))? == std::fs::read(fresh.path().join(file))?;
        ensure!(same, "{file} is stale: run `cargo xtask protobuf`");
    }
    Ok(())
}

fn generate(into: &Path) -> Result<()> {
    let files: Vec<PathBuf> = FILES.iter().map(|file| into.join(file)).collect();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("protobuf");
    let status = Command::new("go").args(["run", "."]).args(&files).current_dir(program).status();
    ensure!(status.context("cannot run `go`")?.success(), "the generator failed");
    Ok(())
}
