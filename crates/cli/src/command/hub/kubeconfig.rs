//! A kubeconfig whose servers are members, as the hub serves them.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use serde_json::{Value, json};
use stolos_hub::everywhere;
use stolos_hub::front::Notice;

use super::WhichArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::file::{self, Eyes};
use crate::screen::Screen;

/// The first line of what is written.
const WRITTEN: &str = "# Written by stolos hub kubeconfig";

/// `stolos hub kubeconfig`
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stolos hub kubeconfig eu > eu.kubeconfig
  stolos hub kubeconfig --out members.kubeconfig
  kubectl --kubeconfig members.kubeconfig --context eu exec -it deploy/hello -- sh")]
pub(crate) struct KubeconfigArgs {
    /// Members; each becomes a context of its name [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Write it to this file (mode 0600) instead of printing it; never over one that is somebody else's
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn run(args: KubeconfigArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let members = everywhere::members(&hub, &args.names).await?;
    if members.is_empty() {
        return Err(Failure::new("the hub has no members").hint("`stolos hub join NAME --context CTX` makes one"));
    }
    let (path, context) = args.which.kubeconfig()?;
    let failed = |why: &(dyn std::error::Error + 'static)| {
        Failure::caused(why).while_doing(format!("could not read the kubeconfig {}", path.display()))
    };
    let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
    let config: Value = serde_saphyr::from_str(&text).map_err(|error| failed(&error))?;
    let folder = std::path::absolute(&path).map_err(|error| failed(&error))?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let notice = args.which.notice(&hub).await?;
    let config = of_members(&config, context.as_deref(), folder, notice.as_ref(), &members)
        .map_err(|why| Failure::new(format!("{} cannot be used: {why}", path.display())))?;
    let text = serde_saphyr::to_string(&config).map_err(|error| Failure::caused(&error))?;
    let text = format!("{WRITTEN}\n{text}");
    let Some(out) = args.out else {
        screen.data(&text);
        return Ok(Exit::Good);
    };
    let ours = match std::fs::read_to_string(&out) {
        Ok(text) => text.starts_with(WRITTEN),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if !ours {
        return Err(Failure::new(format!("{} is left alone, as it is somebody else's", out.display()))
            .hint("name another file with `--out FILE`"));
    }
    file::replace(&out, &text, Eyes::Owner)?;
    screen.line(format!("wrote {}; its contexts are {}", out.display(), members.join(", ")));
    Ok(Exit::Good)
}

/// The same person's kubeconfig, with a context for each member.
fn of_members(
    hub: &Value,
    context: Option<&str>,
    folder: &Path,
    notice: Option<&Notice>,
    members: &[String],
) -> Result<Value, String> {
    let named = |list: &str, name: &str| {
        let found = hub[list].as_array().into_iter().flatten().find(|entry| entry["name"] == name);
        found.cloned().ok_or_else(|| format!("it has no {} `{name}`", list.trim_end_matches('s')))
    };
    let context = context.or(hub["current-context"].as_str()).ok_or("it has no current context")?;
    let context = named("contexts", context)?["context"].clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut cluster = named("clusters", &text(&context["cluster"]))?["cluster"].clone();
    let mut user = named("users", &text(&context["user"]))?;
    for (part, fields) in [
        (&mut cluster, &["certificate-authority"][..]),
        (&mut user["user"], &["client-certificate", "client-key", "tokenFile"]),
    ] {
        for field in fields {
            if let Some(path) = part[*field].as_str().filter(|path| !path.is_empty()) {
                part[*field] = folder.join(path).to_string_lossy().into();
            }
        }
    }
    if let Some(Notice { address, authority }) = notice {
        // A hub beside somebody else's API, with an authority of its own.
        let authority = BASE64_STANDARD.encode(authority);
        cluster = json!({"server": format!("https://{address}"), "certificate-authority-data": authority});
    }
    let server = text(&cluster["server"]);
    let entry = |name: &String| {
        let mut cluster = cluster.clone();
        cluster["server"] = format!("{}{}", server.trim_end_matches('/'), everywhere::proxy(name)).into();
        json!({"name": name, "cluster": cluster})
    };
    let contexts = members.iter().map(|name| json!({"name": name, "context": {"cluster": name, "user": user["name"]}}));
    Ok(json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": members.first(),
        "clusters": members.iter().map(entry).collect::<Vec<_>>(),
        "users": [user.clone()],
        "contexts": contexts.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_is_a_context_behind_the_hub() {
        let hub = json!({"current-context": "hub",
            "contexts": [{"name": "hub", "context": {"cluster": "c", "user": "me"}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://hub:1/", "certificate-authority": "ca.crt"}}],
            "users": [{"name": "me", "user": {"token": "secret", "client-key": "/k.pem"}},
                {"name": "other", "user": {"token": "not this"}}]});
        let config = of_members(&hub, None, Path::new("/home"), None, &["eu".into(), "ap".into()]).unwrap();
        let servers: Vec<_> = config["clusters"].as_array().unwrap().iter().map(|c| &c["cluster"]["server"]).collect();
        let root = "https://hub:1/apis/cluster.karmada.io/v1alpha1/clusters";
        assert_eq!(servers, [&json!(format!("{root}/eu/proxy")), &json!(format!("{root}/ap/proxy"))]);
        assert_eq!(config["clusters"][1]["cluster"]["certificate-authority"], "/home/ca.crt");
        assert_eq!(config["users"], json!([{"name": "me", "user": {"token": "secret", "client-key": "/k.pem"}}]));
        assert_eq!(config["contexts"][1], json!({"name": "ap", "context": {"cluster": "ap", "user": "me"}}));
        assert_eq!(config["current-context"], "eu");
        // Beside somebody else's API a hub has an address and an authority of its own.
        let notice = Notice { address: "front:2".into(), authority: "PEM".into() };
        let config = of_members(&hub, None, Path::new("/home"), Some(&notice), &["eu".into()]).unwrap();
        let server = "https://front:2/apis/cluster.karmada.io/v1alpha1/clusters/eu/proxy";
        assert_eq!(config["clusters"][0]["cluster"], json!({"server": server, "certificate-authority-data": "UEVN"}));
        assert_eq!(of_members(&hub, Some("x"), Path::new("/"), None, &[]).unwrap_err(), "it has no context `x`");
        assert_eq!(of_members(&json!({}), None, Path::new("/"), None, &[]).unwrap_err(), "it has no current context");
    }
}
