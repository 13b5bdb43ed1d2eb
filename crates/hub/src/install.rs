//! What an API server must have before the hub can work with it: the kinds, and the namespaces of its own.

use std::time::Duration;

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;

use crate::member::CREDENTIALS;
use crate::{Error, MANAGER, label};

/// The definitions of Karmada's kinds that the hub works with (fields of Karmada v1.18.2).
const DEFINITIONS: [&str; 11] = [
    include_str!("../crds/cluster.yaml"),
    include_str!("../crds/propagationpolicy.yaml"),
    include_str!("../crds/clusterpropagationpolicy.yaml"),
    include_str!("../crds/overridepolicy.yaml"),
    include_str!("../crds/clusteroverridepolicy.yaml"),
    include_str!("../crds/clustertaintpolicy.yaml"),
    include_str!("../crds/resourcebinding.yaml"),
    include_str!("../crds/clusterresourcebinding.yaml"),
    include_str!("../crds/work.yaml"),
    include_str!("../crds/resourceinterpretercustomization.yaml"),
    include_str!("../crds/workloadrebalancer.yaml"),
];

/// The namespace of what the hub itself keeps.
pub(crate) const NAMESPACE: &str = "karmada-system";
/// How long definitions may take until their kinds are served.
const SERVED: Duration = Duration::from_secs(30);

/// Karmada's kinds, as CustomResourceDefinitions.
///
/// # Errors
///
/// Never with the files as they are, which a test holds.
pub fn definitions() -> Result<Vec<Value>, Error> {
    DEFINITIONS.iter().map(|text| serde_saphyr::from_str(text).map_err(|e| Error::Definition(e.to_string()))).collect()
}

/// Brings the kinds and namespaces to an API server, as far as they are not there, and waits until they are served.
///
/// # Errors
///
/// When the API server refuses or does not answer, or the kinds are not served in time.
pub async fn install(client: &kube::Client) -> Result<(), Error> {
    let kind = Resource::named("apiextensions.k8s.io/v1", "CustomResourceDefinition")?;
    let definitions = definitions()?;
    for definition in &definitions {
        objects::apply(client, &kind, definition, MANAGER, true).await?;
    }
    namespaces(client).await?;
    let served = async {
        for definition in &definitions {
            let name = meta::name(definition);
            loop {
                if objects::get(client, &kind, None, name).await?.as_ref().is_some_and(is_established) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    };
    tokio::time::timeout(SERVED, served).await.unwrap_or(Err(Error::NotServed(SERVED)))
}

fn is_established(definition: &Value) -> bool {
    let mut conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

/// Brings the namespaces alone.
pub(crate) async fn namespaces(client: &kube::Client) -> Result<(), Error> {
    let namespaces = Resource::named("v1", "Namespace")?;
    for name in [NAMESPACE, CREDENTIALS] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {label::SYSTEM: "true"}}});
        objects::apply(client, &namespaces, &namespace, MANAGER, true).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_is_one_that_an_api_server_takes() {
        let definitions = definitions().unwrap();
        let mut names: Vec<_> = definitions.iter().map(|d| d["metadata"]["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        for definition in &definitions {
            let problems = stolos_k8s::schema::validate_crd(definition);
            assert!(problems.is_empty(), "{}: {problems:?}", definition["metadata"]["name"]);
        }
        insta::assert_snapshot!(names.join("\n"), @r"
        clusteroverridepolicies.policy.karmada.io
        clusterpropagationpolicies.policy.karmada.io
        clusterresourcebindings.work.karmada.io
        clusters.cluster.karmada.io
        clustertaintpolicies.policy.karmada.io
        overridepolicies.policy.karmada.io
        propagationpolicies.policy.karmada.io
        resourcebindings.work.karmada.io
        resourceinterpretercustomizations.config.karmada.io
        workloadrebalancers.apps.karmada.io
        works.work.karmada.io
        ");
    }
}
