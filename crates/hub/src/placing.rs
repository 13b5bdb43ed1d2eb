//! Whose algorithms a hub decides with, written down for those who explain what it decides.

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};

use crate::install::NAMESPACE;
use crate::place::Settings;
use crate::{Error, MANAGER, label};

/// The ConfigMap that it is written down in.
const NAME: &str = "stolos-hub-placing";

/// Writes down how a hub decides.
pub(crate) async fn record(client: &kube::Client, settings: Settings) -> Result<(), Error> {
    let kind = Resource::named("v1", "ConfigMap")?;
    let written = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {label::SYSTEM: "true"}},
        "data": {"division": settings.algorithm}});
    objects::apply(client, &kind, &written, MANAGER, true).await?;
    Ok(())
}

/// How the hub of an API decides, by what it has written down; one that has not is not asked for anything special.
///
/// # Errors
///
/// When the API does not answer.
pub async fn recorded(client: &kube::Client) -> Result<Settings, Error> {
    let kind = Resource::named("v1", "ConfigMap")?;
    let written = objects::get(client, &kind, Some(NAMESPACE), NAME).await?;
    Ok(written.as_ref().map(read).unwrap_or_default())
}

fn read(written: &Value) -> Settings {
    let algorithm = serde_json::from_value(written["data"]["division"].clone()).unwrap_or_default();
    Settings { algorithm, ..Settings::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divide::Algorithm;

    #[test]
    fn what_is_written_down_is_read() {
        for algorithm in [Algorithm::Newest, Algorithm::V1_2] {
            assert_eq!(read(&json!({"data": {"division": algorithm}})).algorithm, algorithm);
        }
        assert_eq!(read(&json!({"data": {"division": "v7"}})), Settings::default());
        assert_eq!(read(&json!({})), Settings::default());
    }
}
