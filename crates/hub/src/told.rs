//! What a hub tells of where it listens, in a ConfigMap for each of its doors.

use stolos_cluster::objects::{self, Resource};

use crate::Error;
use crate::install::NAMESPACE;

/// `host:port`, also of an IPv6 address.
pub(crate) fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The address and the authority that the ConfigMap of this name tells, if it does.
pub(crate) async fn read(api: &kube::Client, name: &str) -> Result<Option<(String, String)>, Error> {
    let found = objects::get(api, &Resource::named("v1", "ConfigMap")?, Some(NAMESPACE), name).await?;
    Ok(found.and_then(|found| {
        let text = |key: &str| found["data"][key].as_str().map(str::to_owned);
        text("address").zip(text("authority"))
    }))
}
