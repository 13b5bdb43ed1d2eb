//! Everything that is in a cluster, and how two moments differ.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use serde_json::Value;
use stolos_cluster::Cluster;

use crate::world::eventually;

/// Every object of every listable kind but events and Leases, by `kind.group namespace/name`.
pub(crate) type Everything = BTreeMap<String, Value>;

/// Lists all there is. A kind that goes away while it is listed is not there.
pub(crate) async fn everything(client: &Client) -> Result<Everything, kube::Error> {
    let mut kinds: Vec<ApiResource> = Vec::new();
    let mut lists = vec![client.list_core_api_resources("v1").await?];
    for group in client.list_api_groups().await?.groups {
        let Some(version) = group.preferred_version.or_else(|| group.versions.first().cloned()) else { continue };
        match client.list_api_group_resources(&version.group_version).await {
            Ok(list) => lists.push(list),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    for list in lists {
        let (group, version) = list.group_version.split_once('/').unwrap_or(("", &list.group_version));
        for resource in list.resources {
            let listable = resource.verbs.iter().any(|verb| verb == "list") && !resource.name.contains('/');
            // What is measured is another each time.
            let listable = listable && group != "metrics.k8s.io";
            if listable && !matches!(resource.kind.as_str(), "Event" | "Lease") {
                let kind = GroupVersionKind::gvk(group, version, &resource.kind);
                kinds.push(ApiResource::from_gvk_with_plural(&kind, &resource.name));
            }
        }
    }
    let listed = kinds.into_iter().map(|kind| async move {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok((kind, list.items)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok((kind, Vec::new())),
            Err(error) => Err(error),
        }
    });
    let listed: Vec<_> = futures::stream::iter(listed).buffer_unordered(8).try_collect().await?;
    let mut all = Everything::new();
    for (kind, items) in listed {
        for item in items {
            let metadata = &item.metadata;
            let (namespace, name) = (metadata.namespace.as_deref().unwrap_or("-"), metadata.name.as_deref());
            let key = format!("{}.{} {namespace}/{}", kind.kind, kind.group, name.unwrap_or_default());
            all.insert(key, serde_json::to_value(&item).unwrap());
        }
    }
    Ok(all)
}

/// Everything, once what a cluster makes by itself for a new namespace is there.
pub(crate) async fn at_rest(client: &Client) -> Everything {
    eventually("a cluster at rest", Duration::from_secs(60), || async {
        let all = everything(client).await.map_err(|e| e.to_string())?;
        let names = all.keys().filter_map(|key| key.strip_prefix("Namespace. -/"));
        for name in names {
            for made in [format!("ServiceAccount. {name}/default"), format!("ConfigMap. {name}/kube-root-ca.crt")] {
                if !all.contains_key(&made) {
                    return Err(format!("there is no {made}"));
                }
            }
        }
        Ok(all)
    })
    .await
}

/// The lists of each cluster, once it is at rest: names and UIDs.
pub(crate) async fn lists_at_rest(clusters: &[Cluster]) -> Vec<BTreeSet<String>> {
    let mut all = Vec::new();
    for cluster in clusters {
        all.push(identities(&at_rest(&cluster.client).await));
    }
    all
}

/// The lists of each cluster are what they were.
pub(crate) async fn all_equal_lists(clusters: &[Cluster], before: &[BTreeSet<String>]) {
    for (cluster, before) in clusters.iter().zip(before) {
        equal_lists(cluster, before).await;
    }
}

/// The lists of a cluster are what they were: names and UIDs. Garbage collection may take a moment.
pub(crate) async fn equal_lists(cluster: &Cluster, before: &BTreeSet<String>) {
    eventually(&format!("equal lists in {}", cluster.name), Duration::from_secs(30), || async {
        let now = identities(&everything(&cluster.client).await.map_err(|e| e.to_string())?);
        let difference = difference(before, &now);
        if difference.is_empty() { Ok(()) } else { Err(format!("\n{difference}")) }
    })
    .await;
}

/// Names and UIDs.
pub(crate) fn identities(all: &Everything) -> BTreeSet<String> {
    all.iter().map(|(key, object)| format!("{key} {}", text(object, "/metadata/uid"))).collect()
}

/// Names and resource versions.
pub(crate) fn versions(all: &Everything) -> BTreeSet<String> {
    all.iter().map(|(key, object)| format!("{key} {}", text(object, "/metadata/resourceVersion"))).collect()
}

/// What is only in one of the two, one line each.
pub(crate) fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let gone = before.difference(after).map(|line| format!("- {line}\n"));
    gone.chain(after.difference(before).map(|line| format!("+ {line}\n"))).collect()
}

/// What somebody wrote, as it was meant: without what every cluster makes by itself and what is made anew each time
/// (addresses, keys, tokens, times).
pub(crate) fn meant(all: &Everything) -> BTreeSet<String> {
    all.iter().filter_map(|(key, object)| Some(format!("{key} {}", essence(object)?))).collect()
}

fn essence(object: &Value) -> Option<Value> {
    // What a controller made for somebody else's object follows from that.
    if object.pointer("/metadata/ownerReferences").is_some() || object["kind"] == "Endpoints" {
        return None;
    }
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut()?;
    for generated in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"] {
        metadata.remove(generated);
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        let generated =
            |key: &str| key.contains("expir") || key.ends_with("/service-account.uid") || key.ends_with("last-seen");
        annotations.retain(|key, _| !generated(key));
    }
    let fields = object.as_object_mut()?;
    fields.remove("status");
    if fields["kind"] == "Secret"
        && let Some(data) = fields.get_mut("data").and_then(Value::as_object_mut)
    {
        data.values_mut().for_each(|value| *value = "(secret)".into());
    }
    // Certificates of the cluster's own root, and of the mesh's where it is made anew.
    if fields["kind"] == "ConfigMap"
        && let Some(data) = fields.get_mut("data").and_then(Value::as_object_mut)
    {
        data.iter_mut().filter(|(key, _)| [".pem", ".crt", ".sha256"].iter().any(|end| key.ends_with(end))).for_each(
            |(_, value)| {
                *value = "(certificate)".into();
            },
        );
    }
    if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
        for generated in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
            spec.remove(generated);
        }
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
    for webhook in fields.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(config) = webhook["clientConfig"].as_object_mut() {
            config.remove("caBundle");
        }
    }
    Some(object)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
