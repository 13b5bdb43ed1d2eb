//! Repository chores, run as `cargo xtask <chore>`.

mod xds;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["xds"] => xds::write(),
        ["xds", "--check"] => xds::check(),
        _ => bail!("usage: cargo xtask xds [--check]"),
    }
}
