//! The binary: commands, the screen, exit codes, and the wiring of every role.
//!
//! [`command`] has a file for each command; [`screen`] is the only place that prints.

mod background;
mod command;
mod exit;
mod failure;
mod file;
mod folder;
mod input;
mod lab;
mod root;
mod screen;
mod terminal;
mod view;
mod view_check;

use std::process::ExitCode;

use clap::Parser as _;
use stolos_serve::Stop;
use tokio::signal::unix::{SignalKind, signal};

use crate::command::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // First of all, so that no library makes its own choice.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Not clap's 2: here that means findings.
        Err(usage) => {
            let _ = usage.print();
            return if usage.use_stderr() { Exit::Error.into() } else { Exit::Good.into() };
        }
    };
    let screen = Screen::new(cli.color, cli.quiet);
    log_to(&screen, cli.verbose.saturating_add(u8::from(cli.command.is_role())));
    raise_open_files();
    let patience = cli.command.patience();
    let mut runtime = match cli.command.threads() {
        // Nothing has to be woken on another thread.
        Some(1) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if let Some(threads) = cli.command.threads() {
        runtime.worker_threads(threads);
    }
    let exit = match runtime.enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(perform(cli.command, &screen));
            // What is still running has been asked to stop; nobody waits for a thread that does not listen.
            runtime.shutdown_timeout(patience);
            exit
        }
        Err(error) => Err(Failure::caused(&error).while_doing("could not start")),
    };
    match exit {
        Ok(exit) => exit.into(),
        Err(failure) => {
            screen.failure(&failure);
            failure.exit().into()
        }
    }
}

/// Does what was asked; the first Ctrl-C asks it to stop and clean up, the second ends it.
async fn perform(command: command::Command, screen: &Screen) -> Result<Exit, Failure> {
    let stop = Stop::new();
    let asked = stop.clone();
    let signals = async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            asked.ask();
        }
    };
    tokio::select! {
        biased;
        exit = command.run(screen, &stop) => exit,
        () = signals => Err(Failure::interrupted()),
    }
}

/// Stolos' own words by `-v`, everything by `RUST_LOG`; nothing where neither is given, since what matters is said
/// on the screen.
fn log_to(screen: &Screen, verbose: u8) {
    let level = match verbose {
        0 => "off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = std::env::var("RUST_LOG").ok().filter(|f| !f.is_empty()).unwrap_or_else(|| level.to_owned());
    let writer = screen.log_writer();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .try_init();
}

/// A lab has a socket for every hop of every pod.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
