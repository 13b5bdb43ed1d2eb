//! `stolos hub config`: the kubeconfig of a hub's folder, for who is to reach it by another address.

use clap::Args;

use super::which::{DataArgs, KUBECONFIG};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `stolos hub config`
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    data: DataArgs,

    /// The URL that its reader reaches the hub by [default: where it listens]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

pub(super) fn run(args: &ConfigArgs, screen: &Screen) -> Result<Exit, Failure> {
    let path = args.data.folder()?.join(KUBECONFIG);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::caused(&error)
            .while_doing(format!("could not read {}", path.display()))
            .hint("`stolos hub up` writes it; `--data DIR` names another hub's folder")
    })?;
    let Some(server) = &args.server else {
        screen.data(text.trim_end());
        return Ok(Exit::Good);
    };
    let host = server.strip_prefix("https://").unwrap_or_default();
    if host.is_empty() || host.starts_with(['/', ':']) || host.contains(char::is_whitespace) {
        return Err(Failure::new(format!("`{server}` is no address of a hub"))
            .hint("write `https://HOST[:PORT]`, with a name that the hub was told (`hub up --san NAME`)"));
    }
    let mut config: serde_json::Value = serde_saphyr::from_str(&text).map_err(|error| Failure::caused(&error))?;
    for cluster in config["clusters"].as_array_mut().into_iter().flatten() {
        cluster["cluster"]["server"] = server.as_str().into();
    }
    screen.data(serde_saphyr::to_string(&config).map_err(|error| Failure::caused(&error))?.trim_end());
    Ok(Exit::Good)
}
