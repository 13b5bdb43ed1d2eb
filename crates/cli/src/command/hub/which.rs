//! Which hub is meant: its folder or its kubeconfig, and what serves its members.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use stolos_cluster::{Kubeconfig, connect};
use stolos_hub::{everywhere, front};
use stolos_serve::HostNet;

use crate::failure::Failure;
use crate::input::StateArgs;

/// The kubeconfig in a hub's folder.
pub(super) const KUBECONFIG: &str = "kubeconfig";

/// Where a hub keeps what it has.
#[derive(Args, Clone, Debug)]
pub(crate) struct DataArgs {
    /// The hub's folder: its objects, its authority, its kubeconfig [default: ~/.local/state/stolos/hub]
    #[arg(long, value_name = "DIR", env = "STOLOS_HUB_DATA")]
    data: Option<PathBuf>,
}

impl DataArgs {
    pub(super) fn folder(&self) -> Result<PathBuf, Failure> {
        StateArgs { state: self.data.clone() }.folder("hub")
    }

    /// The flag that names the same folder again.
    pub(super) fn flag(&self) -> String {
        self.data
            .as_ref()
            .map(|data| format!(" --data {}", stolos_plan::quoted(&data.to_string_lossy())))
            .unwrap_or_default()
    }
}

/// Which hub.
#[derive(Args, Clone, Debug)]
pub(crate) struct WhichArgs {
    #[command(flatten)]
    data: DataArgs,

    /// The hub's kubeconfig, where it is not in a folder of this machine
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    hub_kubeconfig: Option<PathBuf>,

    /// The context in it [default: its current one]
    #[arg(long, value_name = "CONTEXT", requires = "hub_kubeconfig")]
    hub_context: Option<String>,
}

impl WhichArgs {
    /// The hub's kubeconfig, and the context in it where it is not the current one.
    pub(super) fn kubeconfig(&self) -> Result<(PathBuf, Option<String>), Failure> {
        if let Some(file) = &self.hub_kubeconfig {
            return Ok((file.clone(), self.hub_context.clone()));
        }
        let file = self.data.folder()?.join(KUBECONFIG);
        if !file.is_file() {
            return Err(Failure::new(format!("no hub was ever up in {}", file.parent().unwrap_or(&file).display()))
                .hint("`stolos hub up --detach` starts one; `--data DIR` or `--hub-kubeconfig FILE` name another"));
        }
        Ok((file, None))
    }

    pub(crate) async fn client(&self) -> Result<kube::Client, Failure> {
        let (file, context) = self.kubeconfig()?;
        existing(Some(&file), context.as_deref()).await
    }

    /// What serves the members of the hub whose client `hub` is, if that is not the hub's own API.
    pub(crate) async fn notice(&self, hub: &kube::Client) -> Result<Option<front::Notice>, Failure> {
        // One in a folder of this machine has an API of its own.
        if self.hub_kubeconfig.is_none() {
            return Ok(None);
        }
        match front::notice(hub).await {
            // Beside somebody else's API everybody who is known may read it; a hub's own gives nobody that right.
            Err(stolos_hub::Error::Cluster(error)) if error.is_forbidden() => Ok(None),
            notice => Ok(notice?),
        }
    }

    /// A client of what serves members, with `below` behind its address.
    async fn serving(&self, below: &str) -> Result<kube::Client, Failure> {
        let (file, context) = self.kubeconfig()?;
        let kubeconfig = Kubeconfig::find(Some(&file), None)?;
        let Some(context) = context.as_deref().or(kubeconfig.current_context()) else {
            return Err(Failure::new("the kubeconfig has no current context").hint("name one with `--hub-context`"));
        };
        let mut config = kubeconfig.context(context).await?;
        let net = Arc::new(HostNet::default());
        let mut hub = config.cluster_url.to_string();
        let api = stolos_cluster::client(config.clone(), net.clone())?;
        if let Some(front::Notice { address, authority }) = self.notice(&api).await? {
            hub = format!("https://{address}");
            let authority = stolos_pki::Roots::from_pem(&authority).map_err(|error| {
                Failure::caused(&error).while_doing("could not use what the hub says of its address")
            })?;
            config.root_cert = Some(authority.certificates().iter().map(|one| one.der().to_vec()).collect());
            config.tls_server_name = None;
            config.accept_invalid_certs = false;
            config.proxy_url = None;
        }
        let server = format!("{}{below}", hub.trim_end_matches('/'));
        config.cluster_url = server.parse().map_err(|_| Failure::new(format!("`{server}` is no URL")))?;
        Ok(stolos_cluster::client(config, net)?)
    }

    /// A client of a member, as the hub serves it.
    pub(crate) async fn member(&self, name: &str) -> Result<kube::Client, Failure> {
        self.serving(&everywhere::proxy(name)).await
    }

    /// A client of all members, as the hub serves them below `clusters/NAME/proxy`.
    pub(crate) async fn members(&self) -> Result<kube::Client, Failure> {
        self.serving("").await
    }
}

/// A client of an API that is somebody else's.
pub(super) async fn existing(file: Option<&Path>, context: Option<&str>) -> Result<kube::Client, Failure> {
    let kubeconfig = Kubeconfig::find(file, None)?;
    let context = match context.or(kubeconfig.current_context()) {
        Some(context) => context.to_owned(),
        None => return Err(Failure::new("the kubeconfig has no current context").hint("name one with `--context`")),
    };
    Ok(connect(&kubeconfig, &context, &context).await?.client)
}
