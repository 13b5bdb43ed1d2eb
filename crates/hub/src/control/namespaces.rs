//! Namespaces of the hub are in every member (karmada.md 14).

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::Hub;
use super::template::{TemplateKey, is_reserved, mark};
use crate::queue::{Again, Trouble};
use crate::{interpret, label, name};

/// Looks at one namespace.
pub(super) async fn look(hub: Arc<Hub>, name: String) -> Result<Again, Trouble> {
    let key = TemplateKey { api_version: "v1".into(), kind: "Namespace".into(), namespace: String::new(), name };
    let Some((_, namespace)) = hub.template(&key) else { return Ok(None) };
    let stays_here = key.name == "default"
        || is_reserved(&key.name)
        || meta::label(&namespace, label::SKIP_AUTO_PROPAGATION) == Some("true");
    // What is on its way out goes from members by its owner's end.
    if stays_here || meta::deletion_timestamp(&namespace).is_some() {
        return Ok(None);
    }
    let work_name = name::work("Namespace", &key.name, "");
    for cluster in hub.own.clusters.list() {
        if meta::deletion_timestamp(&cluster).is_some() || !hub.is_prepared(meta::name(&cluster)) {
            continue;
        }
        let space = name::execution_namespace(meta::name(&cluster));
        let before = hub.own.works.get(&space, &work_name);
        let bound = |work: &Value| super::bind::binding_of(work).is_some();
        if before.as_ref().is_some_and(|work| bound(work) || meta::deletion_timestamp(work).is_some()) {
            continue;
        }
        let mut manifest = interpret::manifest(&namespace);
        if let Some(fields) = manifest.as_object_mut() {
            fields.remove("spec");
        }
        let overridden = hub.overridden(&mut manifest, &cluster)?;
        let generation = meta::generation(&namespace).to_string();
        let annotations = [
            (label::TEMPLATE_UID, meta::uid(&namespace)),
            (label::TEMPLATE_GENERATION, generation.as_str()),
            (label::WORK_NAMESPACE, space.as_str()),
            (label::WORK_NAME, work_name.as_str()),
        ];
        mark(&mut manifest, &[(label::MANAGED, "true")], &annotations);
        let mut wanted = match &before {
            Some(before) => Value::clone(before),
            None => json!({"apiVersion": "work.karmada.io/v1alpha1", "kind": "Work",
                "metadata": {"name": work_name, "namespace": space, "finalizers": [label::WORK_FINALIZER],
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": key.name,
                        "uid": meta::uid(&namespace), "controller": true, "blockOwnerDeletion": true}]}}),
        };
        super::bind::say_overridden(&mut wanted, &overridden);
        wanted["spec"] = json!({"workload": {"manifests": [manifest]}});
        super::bind::put(&hub, before.as_deref(), &wanted).await?;
    }
    Ok(None)
}
