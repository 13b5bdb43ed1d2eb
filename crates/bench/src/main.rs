//! Times Stolos as its users run it, beside real peers. Prints Markdown tables; what stands in `docs/benchmarks.md` is
//! copied from here by hand, with the machine it was measured on. `cargo xtask bench` builds and runs it.

mod apiserver;
mod control;
mod endure;
mod gateway;
mod hub;
mod labs;
mod load;
mod peer;
mod process;
mod sidecar;
mod stream;
mod table;
mod tls;
mod tunnel;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The sections, in the order in which they run when none is named.
const SECTIONS: [&str; 13] = [
    "demo",
    "apply",
    "plan",
    "verify",
    "lab",
    "apiserver",
    "gateway",
    "sidecar",
    "control",
    "decisions",
    "hub",
    "distribution",
    "tunnel",
];

/// As in the binary itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The servers under test that no shipped command starts alone: children of the bench itself.
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve-apiserver", dir] => return apiserver::serve(dir.as_ref()),
        ["serve-control", setup] => return control::serve::run(setup),
        ["simulate-proxies", setup] => return control::proxies::run(setup),
        ["control", ref arguments @ ..] => return control::once(arguments),
        ["serve-gateway", ref arguments @ ..] => return gateway::serve_gateway(arguments),
        ["serve-relay", ref arguments @ ..] => return gateway::serve_relay(arguments),
        ["tunnel-agent"] => return tunnel::agent(),
        ["sidecar", ref role @ ..] => return sidecar::role(role),
        _ => {}
    }
    let stolos = std::env::var_os("STOLOS_BIN").context("STOLOS_BIN names the binary that is measured")?;
    let stolos = PathBuf::from(stolos).canonicalize().context("STOLOS_BIN")?;
    let sections = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["endure", ref arguments @ ..] => return endure::endure(&stolos, arguments),
        ["bench", ref sections @ ..] => sections.to_vec(),
        _ => bail!("usage: stolos-bench bench [{}]… | endure [--minutes N] [--rounds N]", SECTIONS.join("|")),
    };
    if let Some(unknown) = sections.iter().find(|section| !SECTIONS.contains(section)) {
        bail!("`{unknown}` is no section; there are {}", SECTIONS.join(", "));
    }
    let mut out = std::io::stdout();
    table::head(&mut out)?;
    for section in SECTIONS.into_iter().filter(|section| sections.is_empty() || sections.contains(section)) {
        match section {
            "demo" => labs::demo(&stolos, &mut out)?,
            "apply" => labs::apply(&stolos, &mut out)?,
            "plan" => labs::plan(&stolos, &mut out)?,
            "apiserver" => apiserver::apiserver(&mut out)?,
            "control" => control::control(&mut out)?,
            "decisions" => hub::decisions(&mut out)?,
            "hub" => hub::hub(&stolos, &mut out)?,
            "distribution" => hub::distributions(&stolos, &mut out)?,
            "tunnel" => tunnel::tunnel(&mut out)?,
            "gateway" => gateway::gateway(&mut out)?,
            "sidecar" => sidecar::bench(&stolos, &mut out)?,
            "verify" => labs::verify(&stolos, &mut out)?,
            _ => labs::lab(&stolos, &mut out)?,
        }
    }
    Ok(())
}
