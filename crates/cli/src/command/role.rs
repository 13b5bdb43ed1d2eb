//! The roles that Stolos' own images run, in real containers.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use stolos_serve::{Container, HostNet, HostPrograms, Output, Stop};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `stolos proxy`
#[derive(Args, Debug)]
pub(crate) struct ProxyArgs {
    /// `sidecar` or `router`, and what Istio's proxy takes besides
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// `stolos control`
#[derive(Args, Debug)]
pub(crate) struct ControlArgs {
    /// What Istio's control plane takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl ProxyArgs {
    /// How many threads the proxy is to have.
    pub(crate) fn threads(&self) -> usize {
        let config = std::env::var("PROXY_CONFIG").unwrap_or_default();
        stolos_proxy::threads(self.arguments.first().map(String::as_str).unwrap_or_default(), &config)
    }
}

/// The sidecar or the gateway.
pub(crate) async fn proxy(args: ProxyArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let arguments = std::iter::once("proxy".to_owned()).chain(args.arguments).collect();
    // A line for every request: not a system call for each.
    let (output, _gathered) = Output::gathered(screen.stdout());
    let container = Container { output, ..container(arguments, screen) };
    stolos_proxy::run(container, stop.clone()).await.map_err(|error| Failure::caused(&error))?;
    Ok(Exit::Good)
}

/// The control plane of one cluster.
pub(crate) async fn control(args: ControlArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let arguments = std::iter::once("control".to_owned()).chain(args.arguments).collect();
    stolos_control::run(container(arguments, screen), stop.clone()).await.map_err(|error| Failure::caused(&error))?;
    Ok(Exit::Good)
}

/// This process as the container it is.
pub(crate) fn container(args: Vec<String>, screen: &Screen) -> Container {
    let env: std::collections::BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let address = env.get("INSTANCE_IP").and_then(|ip| ip.parse().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let lines = screen.lines();
    Container {
        net: Arc::new(HostNet::new(address)),
        // Tokens, roots and labels of a machine that is no container lie elsewhere.
        root: env.get("STOLOS_ROOT").map_or_else(|| PathBuf::from("/"), PathBuf::from),
        env,
        args,
        output: Output::new(move |line| lines.data(line)),
        programs: Some(Arc::new(HostPrograms)),
    }
}
