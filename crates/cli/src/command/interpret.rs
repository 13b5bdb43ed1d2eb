use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};
use stolos_hub::interpret::{Interpreters, Operation, check};
use stolos_hub::model::{AggregatedStatusItem, Customization, read};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

const EXAMPLES: &str = "\
Examples:
  stolos hub interpret -f customization.yaml --check
  stolos hub interpret -f customization.yaml --operation InterpretReplica --desired cache.yaml
  stolos hub interpret -f customization.yaml --operation ReviseReplica --desired cache.yaml --desired-replica 2
  stolos hub interpret -f customization.yaml --operation Retain --desired cache.yaml --observed member.yaml
  kubectl get cache fast -o yaml | stolos hub interpret -f customization.yaml --operation InterpretHealth --observed -
  stolos hub interpret -f customization.yaml --operation AggregateStatus --desired cache.yaml --status-file items.yaml";

/// `stolos hub interpret`
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InterpretArgs {
    /// A file with ResourceInterpreterCustomizations; several times for several; `-` reads from standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,

    /// What to ask the script, in Karmada's words
    #[arg(long, value_parser = operation(), ignore_case = true, value_name = "OPERATION", required_unless_present = "check")]
    operation: Option<Operation>,

    /// Say which scripts there are, and whether they can be read
    #[arg(long, conflicts_with = "operation")]
    check: bool,

    /// The object as it is in the hub
    #[arg(long = "desired-file", visible_alias = "desired", value_name = "FILE")]
    desired: Option<PathBuf>,

    /// The object as it is in a member
    #[arg(long = "observed-file", visible_alias = "observed", value_name = "FILE")]
    observed: Option<PathBuf>,

    /// What members say, for AggregateStatus: a list, or one document each, as in `aggregatedStatus` of a ResourceBinding
    #[arg(long, value_name = "FILE")]
    status_file: Option<PathBuf>,

    /// A member's share, for ReviseReplica
    #[arg(long, value_name = "N", default_value_t = 0)]
    desired_replica: u32,
}

/// An operation by Karmada's name of it.
fn operation() -> impl TypedValueParser<Value = Operation> {
    let named = |name: String| Operation::ALL.into_iter().find(|it| it.name().eq_ignore_ascii_case(&name));
    PossibleValuesParser::new(Operation::ALL.map(Operation::name))
        .try_map(move |name| named(name).ok_or("no such operation"))
}

/// The documents of a file.
fn documents(path: &Path) -> Result<Vec<Value>, Failure> {
    let mut text = String::new();
    let got = match path == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(drop),
        false => std::fs::read_to_string(path).map(|found| text = found),
    };
    let doing = || format!("could not read {}", path.display());
    got.map_err(|error| Failure::caused(&error).while_doing(doing()))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|error| Failure::caused(&error).while_doing(doing()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The one object of a file.
fn object(path: Option<&PathBuf>) -> Result<Option<Value>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let mut found = documents(path)?;
    match (found.pop(), found.len()) {
        (Some(object), 0) => Ok(Some(object)),
        (None, _) => Err(Failure::new(format!("{} has no object", path.display()))),
        (Some(_), more) => {
            Err(Failure::new(format!("{} has {} objects", path.display(), more + 1))
                .hint("name a file with one of them"))
        }
    }
}

fn customizations(paths: &[PathBuf]) -> Result<Vec<Customization>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        for document in documents(path)? {
            let kind = document["kind"].as_str().unwrap_or_default();
            if kind != "ResourceInterpreterCustomization" {
                let what = format!("{}: not a ResourceInterpreterCustomization, got {kind:?}", path.display());
                return Err(Failure::new(what));
            }
            let refuse = |problem: &dyn std::fmt::Display| Failure::new(format!("{}: {problem}", path.display()));
            let (customization, unknown) = read::<Customization>(&document).map_err(|problem| refuse(&problem))?;
            if let Some(problem) = unknown.first() {
                return Err(refuse(problem));
            }
            all.push(customization);
        }
    }
    Ok(all)
}

pub(crate) fn run(args: &InterpretArgs, screen: &Screen) -> Result<Exit, Failure> {
    let customizations = customizations(&args.filename)?;
    let Some(operation) = args.operation else { return Ok(checked(&customizations, screen)) };
    let results = answer(args, operation, &Interpreters::new(&customizations))?;
    for (at, (name, value)) in results.iter().enumerate() {
        let text = serde_saphyr::to_string(value).map_err(|error| Failure::caused(&error))?;
        screen.data(&format!("---\n# [{}/{}] {name}:\n{}", at + 1, results.len(), text.trim_end()));
    }
    Ok(Exit::Good)
}

/// Says of each script whether it can be read.
fn checked(customizations: &[Customization], screen: &Screen) -> Exit {
    let mut exit = Exit::Good;
    for customization in customizations {
        let target = &customization.spec.target;
        screen.data("-----------------------------------");
        screen.data(&format!("SOURCE: {}", customization.metadata.name));
        screen.data(&format!("TARGET: {} {}", target.api_version, target.kind));
        screen.data("RULERS:");
        for operation in Operation::ALL {
            let verdict = match operation.script(&customization.spec.customizations).map(check) {
                None => "UNSET".to_owned(),
                Some(Ok(())) => "PASS".to_owned(),
                Some(Err(error)) => {
                    exit = Exit::Error;
                    format!("ERROR: {error}")
                }
            };
            screen.data(&format!("    {:<21}{verdict}", format!("{}:", operation.name())));
        }
    }
    exit
}

/// What a script answers, by name.
fn answer(
    args: &InterpretArgs,
    operation: Operation,
    known: &Interpreters,
) -> Result<Vec<(&'static str, Value)>, Failure> {
    let desired = object(args.desired.as_ref())?;
    let observed = object(args.observed.as_ref())?;
    let absent = |what: &str| {
        Failure::new(format!("{} is asked about {what}, and there is none", operation.name()))
            .hint("`--desired-file FILE` names the object of the hub, `--observed-file FILE` that of a member")
    };
    let about = match operation {
        Operation::Retain => desired.as_ref().ok_or_else(|| absent("the hub's object"))?,
        _ => match (&desired, &observed) {
            (Some(_), Some(_)) => {
                let what = format!("{} is asked about one object, and there are two", operation.name());
                return Err(Failure::new(what).hint("leave out `--desired-file` or `--observed-file`"));
            }
            (one, other) => one.as_ref().or(other.as_ref()).ok_or_else(|| absent("an object"))?,
        },
    };
    if !known.has(about, operation) {
        let text = |field: &str| about[field].as_str().unwrap_or_default().to_owned();
        let kind = format!("{} {}", text("apiVersion"), text("kind"));
        return Err(Failure::new(format!("no script answers {} for {kind}", operation.name()))
            .hint(format!("write one in spec.customizations.{}.luaScript, with that target", operation.field())));
    }
    let failed = |error: stolos_hub::interpret::ScriptError| {
        Failure::caused(&error).while_doing(format!("could not execute {}", operation.name()))
    };
    Ok(match operation {
        Operation::Retain => {
            let observed = observed.as_ref().ok_or_else(|| absent("the member's object"))?;
            vec![("retained", known.merge(about, observed).map_err(failed)?)]
        }
        Operation::InterpretReplica => {
            let needs = known.replicas(about).map_err(failed)?;
            let (count, requirements) = needs.map_or((0, None), |needs| (needs.count, needs.requirements));
            vec![("replica", json!(count)), ("requires", json!(requirements))]
        }
        Operation::InterpretComponent => vec![("components", json!(known.components(about).map_err(failed)?))],
        Operation::ReviseReplica => {
            let mut revised = about.clone();
            known.revise(&mut revised, i64::from(args.desired_replica)).map_err(failed)?;
            vec![("revised", revised)]
        }
        Operation::InterpretStatus => vec![("status", known.reflect(about).map_err(failed)?.unwrap_or_default())],
        Operation::AggregateStatus => {
            let items = items(args.status_file.as_deref())?;
            let mut whole = about.clone();
            whole["status"] = known.aggregate(about, &items).map_err(failed)?.unwrap_or_default();
            vec![("aggregatedStatus", whole)]
        }
        Operation::InterpretHealth => {
            let health = known.health(about).map_err(failed)?;
            vec![("healthy", json!(health == stolos_hub::model::Health::Healthy))]
        }
        Operation::InterpretDependency => {
            vec![("dependencies", json!(known.dependencies(about).map_err(failed)?))]
        }
    })
}

/// What members say: a list of items, or one document each.
fn items(path: Option<&Path>) -> Result<Vec<AggregatedStatusItem>, Failure> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for document in documents(path)? {
        let found = match document {
            Value::Array(items) => items,
            one => vec![one],
        };
        for item in found {
            let (item, _) = read(&item).map_err(|problem| Failure::new(format!("{}: {problem}", path.display())))?;
            all.push(item);
        }
    }
    Ok(all)
}
