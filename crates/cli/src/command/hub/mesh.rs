//! `stolos hub measured`: what `stolos verify` found out about distances, for placement.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use stolos_cluster::objects;
use stolos_hub::kinds::clusters;
use stolos_hub::{MANAGER, mesh};
use stolos_k8s::meta;

use super::WhichArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Screen, count};

/// `stolos hub measured`
#[derive(Args, Debug)]
pub(crate) struct MeasuredArgs {
    /// What `stolos verify -o json` printed; `-` is standard input
    report: PathBuf,

    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn measured(args: &MeasuredArgs, screen: &Screen) -> Result<Exit, Failure> {
    let path = &args.report;
    let text = match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    let wrong = || format!("could not read {}", path.display());
    let text = text.map_err(|error| Failure::caused(&error).while_doing(wrong()))?;
    let report: Value = serde_json::from_str(&text).map_err(|error| Failure::caused(&error).while_doing(wrong()))?;
    let measured = mesh::measured(&report).map_err(|why| Failure::new(why).while_doing(wrong()))?;
    let hub = args.which.client().await?;
    let members = objects::list(&hub, &clusters(), None, None).await?;
    let is_member = |name: &str| members.iter().any(|member| meta::name(member) == name);
    let mut told = 0;
    for (from, to) in &measured {
        if !is_member(from) {
            screen.line(format!("the hub has no member called {from}: what was measured from there is left out"));
            continue;
        }
        let to: serde_json::Map<String, Value> =
            to.iter().filter(|(name, _)| is_member(name)).map(|(name, far)| (name.clone(), (*far).into())).collect();
        let far: Vec<String> = to.iter().map(|(name, far)| format!("{name} {far} ms")).collect();
        let patch = json!({"metadata": {"annotations": mesh::told(&Value::Object(to))}});
        objects::merge(&hub, &clusters(), (None, from), &patch, false, MANAGER).await?;
        screen.data(&format!("{from}: {}", far.join(", ")));
        told += 1;
    }
    screen.line(format!("the hub knows the distances of {}", count(told, "member")));
    Ok(Exit::Good)
}
