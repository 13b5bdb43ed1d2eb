//! The binary as people use it: what it prints, where, and how it ends.

mod action;
mod create_mesh;
mod demo;
mod files;
mod help;
mod init;
mod interpret;
mod lab;
mod plan;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// A folder of its own, and the binary run in it without any of the caller's environment that would matter.
struct Desk {
    folder: tempfile::TempDir,
}

/// What a run printed, and its end.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stolos"));
        command
            .current_dir(self.path())
            .env_clear()
            .env("HOME", self.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null());
        command
    }

    fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        self.finish(self.command().args(args))
    }

    fn finish(&self, command: &mut Command) -> Run {
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(self.path().to_str().unwrap(), "[FOLDER]").replace(env!("CARGO_PKG_VERSION"), "[VERSION]")
        };
        Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Run {
    /// All there is to see, in one text.
    fn shown(&self) -> String {
        let code = self.code.map_or("killed".to_owned(), |code| code.to_string());
        format!("exit {code}\n--- stdout\n{}--- stderr\n{}", self.out, self.err)
    }
}
