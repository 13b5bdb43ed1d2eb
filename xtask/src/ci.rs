//! What `.ci/run` asks of the demo's report and of cargo's messages.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Checks that the report of `stolos demo --once -o json` says what the demo promises: nine pairs, east to east
/// directly, everything to and from west through a gateway, every request answered, every intruder refused.
pub(crate) fn judge_demo(report: &Path) -> Result<()> {
    let text = std::fs::read_to_string(report).with_context(|| report.display().to_string())?;
    let report: Value = serde_json::from_str(&text).context("the report is no single JSON document")?;
    ensure!(report["apiVersion"] == "stolos.dev/v1alpha1" && report["kind"] == "VerifyReport", "no VerifyReport");
    ensure!(report["verdict"] == "pass", "the verdict is {}", report["verdict"]);
    let pairs = report["pairs"].as_array().context("no pairs")?;
    ensure!(pairs.len() == 9, "{} pairs instead of 9", pairs.len());
    for pair in pairs {
        let (from, to) = (pair["from"].as_str().context("from")?, pair["to"].as_str().context("to")?);
        ensure!(pair["verdict"] == "pass" && pair["failed"] == 0, "{from} → {to}: {pair}");
        ensure!(pair["answered"].as_u64() > Some(0), "{from} → {to}: nobody answered");
        ensure!(pair["identity"].as_str().is_some_and(|i| i.starts_with("spiffe://cluster.local/ns/")), "{pair}");
        let crosses = from.contains("west") != to.contains("west");
        ensure!(pair["gateway"].is_string() == crosses, "{from} → {to}: gateway is {}", pair["gateway"]);
    }
    let refusals = report["refusals"].as_array().context("no refusals")?;
    ensure!(refusals.len() >= 9, "only {} refusals were tried", refusals.len());
    ensure!(refusals.iter().all(|r| r["verdict"] == "pass"), "something got through: {refusals:?}");
    writeln!(std::io::stdout(), "9 of 9 pairs, {} of {0} refusals", refusals.len())?;
    Ok(())
}

/// Reads cargo's JSON messages and writes `folder <tab> program` for every test program.
pub(crate) fn test_programs() -> Result<()> {
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let Ok(message) = serde_json::from_str::<Value>(&line?) else { continue };
        let is_test = message["profile"]["test"] == true;
        if let (true, Some(program), Some(manifest)) =
            (is_test, message["executable"].as_str(), message["manifest_path"].as_str())
        {
            let folder = Path::new(manifest).parent().context("a manifest without a folder")?;
            writeln!(out, "{}\t{program}", folder.display())?;
        }
    }
    Ok(())
}
