use clap::Args;
use serde::de::DeserializeOwned;
use stolos_cluster::objects::{self, Resource};
use stolos_hub::model::{Binding, Cluster, read, read_all};
use stolos_hub::{kinds, name, place, simulate, why};

use crate::command::hub::WhichArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::OutputArgs;
use crate::screen::{Output, Screen};

/// `stolos why`
#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    /// The workload, or any other object of the hub, as `deployment/hello`
    #[arg(value_name = "KIND/NAME", value_parser = object)]
    object: (String, String),

    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,

    #[command(flatten)]
    which: WhichArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// `stolos hub simulate`
#[derive(Args, Debug)]
pub(crate) struct SimulateArgs {
    /// A member, or a region with all its members; several times for several
    #[arg(long, value_name = "CLUSTER|REGION", required = true)]
    lose: Vec<String>,

    #[command(flatten)]
    which: WhichArgs,

    #[command(flatten)]
    output: OutputArgs,
}

fn object(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() => Ok((kind.to_owned(), name.to_owned())),
        _ => Err("write it as `deployment/hello`".to_owned()),
    }
}

/// All objects of one of the hub's kinds. One that cannot be read decides nothing in the hub either.
async fn all<T: DeserializeOwned>(hub: &kube::Client, resource: &Resource) -> Result<Vec<T>, Failure> {
    Ok(read_all(&objects::list(hub, resource, None, None).await?))
}

/// How the hub places, as it has written it down.
async fn placing(hub: &kube::Client) -> Result<place::Settings, Failure> {
    stolos_hub::recorded(hub).await.map_err(|error| Failure::caused(&error))
}

async fn members(hub: &kube::Client) -> Result<Vec<Cluster>, Failure> {
    all(hub, &kinds::clusters()).await
}

pub(crate) async fn run(args: &WhyArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let (kind, name) = &args.object;
    let resource = kind_called(&hub, kind).await?;
    let namespace = resource.namespaced.then_some(args.namespace.as_str());
    let template = objects::get(&hub, &resource, namespace, name).await?.ok_or_else(|| {
        let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        Failure::new(format!("the hub has no {} called {name}{place}", resource.kind))
            .hint("`-n NAMESPACE` names another namespace")
    })?;
    let binding = name::binding(&resource.kind, name);
    let bindings = if resource.namespaced { kinds::bindings() } else { kinds::cluster_bindings() };
    let binding = objects::get(&hub, &bindings, namespace, &binding).await?;
    let binding: Option<Binding> = match binding {
        Some(binding) => Some(read(&binding).map_err(|error| Failure::caused(&error))?.0),
        None => None,
    };
    let mut policies = all(&hub, &kinds::policies()).await?;
    policies.extend(all(&hub, &kinds::cluster_policies()).await?);
    let clusters = members(&hub).await?;
    let why = why::explain(&template, binding.as_ref(), &policies, &clusters, placing(&hub).await?);
    match args.output.output {
        Output::Json | Output::Yaml => screen.document(args.output.output, &why)?,
        _ => screen.data(&why.to_string()),
    }
    Ok(Exit::Good)
}

/// The kind that somebody calls by its kind, its plural, its singular or a short name, with or without its group.
async fn kind_called(hub: &kube::Client, called: &str) -> Result<Resource, Failure> {
    let lower = called.to_lowercase();
    let (word, group) = lower.split_once('.').unwrap_or((&lower, ""));
    let failed = |error: kube::Error| Failure::caused(&error).while_doing("could not ask the hub which kinds it has");
    let mut lists = vec![hub.list_core_api_resources("v1").await.map_err(failed)?];
    for found in hub.list_api_groups().await.map_err(failed)?.groups {
        let version = found.preferred_version.or_else(|| found.versions.first().cloned());
        if let Some(version) = version.filter(|_| group.is_empty() || found.name == group) {
            lists.push(hub.list_api_group_resources(&version.group_version).await.map_err(failed)?);
        }
    }
    for list in lists {
        for resource in list.resources {
            let short = resource.short_names.unwrap_or_default();
            let names = [resource.name.as_str(), &resource.singular_name, &resource.kind];
            let meant = names.iter().any(|name| name.to_lowercase() == word) || short.iter().any(|short| short == word);
            if meant && !resource.name.contains('/') {
                return Ok(Resource {
                    api_version: list.group_version,
                    kind: resource.kind,
                    plural: resource.name,
                    namespaced: resource.namespaced,
                });
            }
        }
    }
    Err(Failure::new(format!("the hub has no kind called {called}")).hint("`kubectl api-resources` lists them"))
}

pub(crate) async fn simulate(args: &SimulateArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let clusters = members(&hub).await?;
    let mut lost: Vec<&str> = Vec::new();
    for name in &args.lose {
        let meant = |cluster: &&Cluster| cluster.metadata.name == *name || cluster.spec.region == *name;
        let before = lost.len();
        lost.extend(clusters.iter().filter(meant).map(|cluster| cluster.metadata.name.as_str()));
        if lost.len() == before {
            let known: Vec<&str> = clusters.iter().map(|cluster| cluster.metadata.name.as_str()).collect();
            return Err(Failure::new(format!("the hub has no member and no region called {name}"))
                .hint(format!("its members are: {}", known.join(", "))));
        }
    }
    lost.sort_unstable();
    lost.dedup();
    let mut placed: Vec<Binding> = all(&hub, &kinds::bindings()).await?;
    placed.extend(all::<Binding>(&hub, &kinds::cluster_bindings()).await?);
    let loss = simulate::lose(&placed, &clusters, &lost, placing(&hub).await?);
    match args.output.output {
        Output::Json | Output::Yaml => screen.document(args.output.output, &loss)?,
        _ => screen.data(&loss.to_string()),
    }
    Ok(Exit::Good)
}
