//! What is said of a cluster that becomes a member, however it does.

use clap::Args;
use stolos_hub::member::Joining;

/// What policies can choose a cluster by.
#[derive(Args, Clone, Debug)]
pub(crate) struct JoiningArgs {
    /// The region it is in, for policies
    #[arg(long, value_name = "REGION")]
    region: Option<String>,

    /// A zone it is in, for policies
    #[arg(long, value_name = "ZONE")]
    zone: Vec<String>,

    /// Who provides it, for policies
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<String>,

    /// Labels of the cluster, for policies
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,
}

impl JoiningArgs {
    /// The same of the cluster that the hub calls `name`.
    pub(crate) fn of(self, name: &str) -> Joining {
        Joining {
            name: name.to_owned(),
            provider: self.provider,
            region: self.region,
            zones: self.zone,
            labels: self.labels.into_iter().collect(),
        }
    }
}

/// A label, as flags have it.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write `key=value`")?;
    Ok((key.to_owned(), value.to_owned()))
}
