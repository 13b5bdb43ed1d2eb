//! Repository chores, run as `cargo xtask <chore>`.

mod bench;
mod ci;
mod openapi;
mod protobuf;
mod xds;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["xds"] => xds::write(),
        ["xds", "--check"] => xds::check(),
        ["protobuf"] => protobuf::write(),
        ["protobuf", "--check"] => protobuf::check(),
        ref arguments @ ["bench" | "endure", ..] => bench::run(arguments),
        ["openapi"] => openapi::write(),
        ["openapi", "--check"] => openapi::check(),
        ["judge-demo", report] => ci::judge_demo(report.as_ref()),
        ["test-programs"] => ci::test_programs(),
        _ => bail!(
            "usage: cargo xtask bench [SECTION]… | endure [--minutes N] [--rounds N] | xds [--check] | protobuf [--check] | openapi [--check] | judge-demo REPORT | test-programs"
        ),
    }
}
