use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;
use futures::future::join_all;
use serde_json::json;
use stolos_apply::credential::{self, CredentialRequest};
use stolos_cluster::Cluster;
use stolos_plan::{SYSTEM_NAMESPACE, link_kubeconfig, remote_secret_name};
use stolos_spec::{Api, ClusterName, Mesh};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::file::{self, Eyes};
use crate::input::{BuiltArgs, OutputArgs};
use crate::screen::Screen;
use crate::view;

/// `stolos credential`
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// Make a credential that may read a cluster as another control plane does, and that ends
    Create(CreateArgs),
    /// List the credentials that were made
    List(ListArgs),
    /// Take one back: it is worth nothing from then on
    Revoke(RevokeArgs),
}

/// `stolos credential create`
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The cluster of the mesh that it is for
    cluster: String,

    /// As what it is printed
    #[arg(short, long, value_name = "FORM", default_value = "kubeconfig")]
    output: Form,

    /// What it is called; the same again renews it
    #[arg(long, value_name = "NAME", default_value = "reader")]
    name: String,

    /// How long it is good for, such as `12h` or `30d`
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = lifetime)]
    expires: u64,

    /// The API server's address to put into it [default: the mesh file's `api.server`, else your kubeconfig's]
    #[arg(long, value_name = "URL")]
    server: Option<String>,

    /// Let it read every Secret of the cluster, as the reader of Istio's own charts does
    #[arg(long)]
    read_secrets: bool,

    /// The file to write, for its owner's eyes only (0600) [default: standard output]
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Replace that file if it is there
    #[arg(long, requires = "write")]
    force: bool,

    #[command(flatten)]
    built: BuiltArgs,
}

/// The shapes of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A kubeconfig
    Kubeconfig,
    /// A remote secret, for the control plane of another cluster
    Secret,
}

/// `stolos credential list`
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    built: BuiltArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `stolos credential revoke`
#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    /// The cluster of the mesh that it is for
    cluster: String,

    /// What it is called
    name: String,

    #[command(flatten)]
    built: BuiltArgs,
}

pub(crate) async fn run(command: CredentialCommand, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        CredentialCommand::Create(args) => create(args, screen).await,
        CredentialCommand::List(args) => list(args, screen).await,
        CredentialCommand::Revoke(args) => revoke(args, screen).await,
    }
}

async fn create(args: CreateArgs, screen: &Screen) -> Result<Exit, Failure> {
    let name = called(&args.name)?;
    if let Some(path) = args.write.as_ref().filter(|path| path.exists() && !args.force) {
        return Err(Failure::new(format!("{} is there already", path.display()))
            .hint("`--force` replaces it; `--write FILE` writes another"));
    }
    let (mesh, clusters) = args.built.connect(screen).await?;
    let (cluster, of_mesh) = one(&mesh, &clusters, &args.cluster)?;
    let server = match (&args.server, &of_mesh.api) {
        (Some(server), _) if !server.starts_with("https://") => {
            return Err(Failure::new(format!("`{server}` is not the address of an API server"))
                .hint("write a URL such as `https://10.0.0.1:6443`"));
        }
        (Some(server), _) | (None, Some(Api::Server(server))) => server.clone(),
        (None, Some(Api::Tunnel)) => {
            let why = format!("{} is reached through the hub, and this would lead to its own API server", args.cluster);
            return Err(Failure::new(why).hint("`--server URL` names an address at which whoever gets it reaches that"));
        }
        (None, _) => cluster.server.clone(),
    };
    let asked = CredentialRequest { name: name.as_str(), seconds: args.expires, secrets: args.read_secrets };
    let issued = credential::create(mesh.name.as_str(), cluster, asked).await?;
    let kubeconfig = link_kubeconfig(&args.cluster, &server, &issued.authority, issued.token.expose());
    let text = match args.output {
        Form::Kubeconfig => kubeconfig,
        Form::Secret => remote_secret(&args.cluster, &kubeconfig),
    };
    match &args.write {
        None => screen.data(&text),
        Some(path) => {
            file::replace(path, &text, Eyes::Owner)?;
            screen.line(format!("wrote {}", path.display()));
        }
    }
    let secrets = if args.read_secrets { ", every Secret included" } else { "" };
    screen.line(format!("`{name}` may read {}{secrets}, until {}", args.cluster, issued.expires));
    if let Some(granted) = issued.granted.filter(|granted| granted + 60 < args.expires) {
        screen.say(&format!(
            "warning: {} grants tokens of {} h where {} h were asked for: it ends by what was granted",
            args.cluster,
            granted / 3600,
            args.expires / 3600
        ));
    }
    if ["127.0.0.1", "localhost", "0.0.0.0"].iter().any(|own| server.contains(&format!("//{own}"))) {
        screen.say(&format!(
            "warning: {server} means another machine to everybody else (`stolos explain D-21`): `--server URL`"
        ));
    }
    screen.line(format!("`{} {} {name}` takes it back", args.built.other("credential revoke"), args.cluster));
    Ok(Exit::Good)
}

/// As istiod takes it (multi-cluster contract B.5).
fn remote_secret(cluster: &str, kubeconfig: &str) -> String {
    let lines: String = kubeconfig.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {}\n  namespace: {SYSTEM_NAMESPACE}\n  labels:\n    \
         istio/multiCluster: \"true\"\n  annotations:\n    networking.istio.io/cluster: {cluster}\ntype: Opaque\n\
         stringData:\n  {cluster}: |\n{lines}",
        remote_secret_name(cluster)
    )
}

async fn list(args: ListArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (mesh, clusters) = args.built.ask(screen).await?;
    let asked = join_all(clusters.iter().map(|cluster| credential::list(mesh.name.as_str(), cluster))).await;
    let mut given = Vec::new();
    let mut silent = 0;
    for (cluster, answer) in clusters.iter().zip(asked) {
        match answer {
            Ok(found) => given.extend(found),
            Err(error) => {
                silent += 1;
                screen.say(&format!("{}: {}", cluster.name, Failure::from(error)));
            }
        }
    }
    if args.output.output.is_document() {
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "CredentialList", "mesh": mesh.name, "credentials": given});
        screen.document(args.output.output, &document)?;
    } else if given.is_empty() {
        screen.data("No credential was made by hand; `stolos cert list` has the tokens of the control planes.");
    } else {
        let mut table = view::table(&["cluster", "name", "made", "ends", "reads secrets"]);
        for credential in &given {
            table.add_row(vec![
                Cell::new(&credential.cluster),
                Cell::new(&credential.name),
                Cell::new(credential.created.as_deref().unwrap_or("-")),
                Cell::new(credential.expires.as_deref().unwrap_or("-")),
                Cell::new(if credential.reads_secrets { "yes" } else { "no" }),
            ]);
        }
        screen.data(&view::lines(&table));
    }
    Ok(if silent == 0 { Exit::Good } else { Exit::Partial })
}

async fn revoke(args: RevokeArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (mesh, clusters) = args.built.connect(screen).await?;
    let (cluster, _) = one(&mesh, &clusters, &args.cluster)?;
    if credential::revoke(mesh.name.as_str(), cluster, &args.name).await? {
        screen.line(format!("revoked `{}` of {}", args.name, args.cluster));
        return Ok(Exit::Good);
    }
    let have = credential::list(mesh.name.as_str(), cluster).await?;
    let have: Vec<_> = have.iter().map(|given| format!("`{}`", given.name)).collect();
    Err(Failure::new(format!("{} has no credential called `{}`", args.cluster, args.name)).hint(
        match have.as_slice() {
            [] => "there is none at all".to_owned(),
            some => format!("there is {}", some.join(", ")),
        },
    ))
}

fn one<'a>(
    mesh: &'a Mesh,
    clusters: &'a [Cluster],
    name: &str,
) -> Result<(&'a Cluster, &'a stolos_spec::Cluster), Failure> {
    let found = clusters.iter().zip(&mesh.clusters).find(|(_, of_mesh)| of_mesh.name.as_str() == name);
    found.ok_or_else(|| {
        let have: Vec<_> = mesh.clusters.iter().map(|cluster| format!("`{}`", cluster.name)).collect();
        Failure::new(format!("`{name}` is no cluster of the mesh `{}`", mesh.name))
            .hint(format!("there is {}", have.join(", ")))
    })
}

/// Names become those of objects, with something before them.
fn called(name: &str) -> Result<ClusterName, Failure> {
    match ClusterName::parse(name) {
        Ok(called) if name.len() <= 40 => Ok(called),
        Ok(_) => Err(Failure::new(format!("`{name}` is longer than 40 characters"))),
        Err(error) => Err(Failure::new(format!("`{name}` is no name of a credential: {}", error.why))),
    }
}

/// `30d`, `12h`, `90m`: what an API server takes, from ten minutes on.
fn lifetime(text: &str) -> Result<u64, String> {
    let wrong = || "write a time such as `12h` or `30d`".to_owned();
    let unit = match text.chars().last() {
        Some('d') => 86_400,
        Some('h') => 3_600,
        Some('m') => 60,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    match count.checked_mul(unit) {
        Some(seconds) if (600..=36_500 * 86_400).contains(&seconds) => Ok(seconds),
        Some(seconds) if seconds < 600 => Err("no API server grants less than ten minutes".to_owned()),
        _ => Err("that is longer than 36500d".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_number_and_a_unit() {
        assert_eq!((lifetime("12h"), lifetime("30d"), lifetime("10m")), (Ok(43_200), Ok(2_592_000), Ok(600)));
        for wrong in ["", "d", "9m", "1y", "12", "99999999999999999999d", "36501d", "ü"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
