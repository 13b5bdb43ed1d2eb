//! What StatefulSets and DaemonSets have in common: they own pods and revisions, which are what `kubectl rollout history`
//! shows and `undo` goes back to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::{Trouble, by_controller, each, gone, is_code, orphans, owned_by, short_hash};
use crate::cluster::Shared;

/// The label by which a pod says which revision it is of.
pub(super) const HASH: &str = "controller-revision-hash";

/// A set, and what there is of it.
pub(super) struct Owner<K> {
    pub(super) set: Arc<K>,
    /// The pods that it owns.
    pub(super) pods: Vec<Arc<Pod>>,
    /// The revisions that it owns.
    pub(super) revisions: Vec<Arc<ControllerRevision>>,
    /// The pods that nobody owns.
    pub(super) orphans: Arc<Vec<Arc<Pod>>>,
}

/// Carries out every set that is to stay.
pub(super) async fn reconcile<K: ResourceExt, F>(
    shared: &Shared,
    sets: Vec<Arc<K>>,
    carry_out: impl Fn(Owner<K>) -> F,
) -> Result<(), Trouble>
where
    F: Future<Output = Result<(), Trouble>>,
{
    if sets.is_empty() {
        return Ok(());
    }
    let pods = shared.caches.pods.list();
    let orphans = Arc::new(orphans(&pods));
    let mut pods = by_controller(pods);
    let mut revisions = by_controller(shared.caches.revisions.list());
    let stay = sets.into_iter().filter(|set| set.meta().deletion_timestamp.is_none());
    let work = stay.map(|set| {
        let uid = set.uid().unwrap_or_default();
        carry_out(Owner {
            set,
            pods: pods.remove(&uid).unwrap_or_default(),
            revisions: revisions.remove(&uid).unwrap_or_default(),
            orphans: Arc::clone(&orphans),
        })
    });
    each(work).await
}

/// The revision of an owner's present template, and all that there are.
pub(super) struct History {
    /// Of the present template.
    pub(super) update: Arc<ControllerRevision>,
    /// All of the owner, oldest first.
    pub(super) all: Vec<Arc<ControllerRevision>>,
}

/// Finds the revision of a template, or makes it; one that was there before becomes the newest again.
pub(super) async fn of<K: Resource<DynamicType = ()>>(
    shared: &Shared,
    owner: &K,
    template: &PodTemplateSpec,
    selector: &LabelSelector,
    mut all: Vec<Arc<ControllerRevision>>,
) -> Result<History, Trouble> {
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<ControllerRevision> = Api::namespaced(shared.client.clone(), &namespace);
    all.sort_by_key(|revision| revision.revision);
    let hash = short_hash(&serde_json::to_value(template)?, 10);
    let newest = all.last().and_then(|revision| revision.revision).unwrap_or(0);
    let known = all.iter().find(|revision| revision.labels().get(HASH) == Some(&hash)).cloned();
    let update = match known {
        Some(known) if known.revision == Some(newest) => known,
        Some(known) => {
            let patch = Patch::Merge(json!({"revision": newest + 1}));
            Arc::new(api.patch(&known.name_any(), &PatchParams::default(), &patch).await?)
        }
        None => {
            let made =
                api.create(&PostParams::default(), &revision(owner, template, selector, &hash, newest + 1)?).await;
            match made {
                Ok(made) => Arc::new(made),
                Err(error) if is_code(&error, 409) => Arc::new(api.get(&format!("{}-{hash}", owner.name_any())).await?),
                Err(error) => return Err(error.into()),
            }
        }
    };
    shared.caches.revisions.wrote(update.as_ref().clone());
    all.retain(|revision| revision.uid() != update.uid());
    all.push(Arc::clone(&update));
    Ok(History { update, all })
}

/// Removes the oldest revisions beyond the limit that no pod is of.
pub(super) async fn forget(
    shared: &Shared,
    history: &History,
    limit: Option<i32>,
    used: &BTreeSet<String>,
) -> Result<(), Trouble> {
    let idle: Vec<_> = history
        .all
        .iter()
        .filter(|r| r.uid() != history.update.uid() && !used.contains(&r.name_any()))
        .filter(|r| r.labels().get(HASH).is_none_or(|hash| !used.contains(hash)))
        .collect();
    let excess = idle.len().saturating_sub(limit.unwrap_or(10).max(0) as usize);
    for revision in &idle[..excess] {
        let namespace = revision.namespace().unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(shared.client.clone(), &namespace);
        gone(api.delete(&revision.name_any(), &DeleteParams::default()).await)?;
    }
    Ok(())
}

fn revision<K: Resource<DynamicType = ()>>(
    owner: &K,
    template: &PodTemplateSpec,
    selector: &LabelSelector,
    hash: &str,
    number: i64,
) -> Result<ControllerRevision, Trouble> {
    let mut data = serde_json::to_value(template)?;
    // A patch that puts exactly this template in place of the one that is there.
    data["$patch"] = json!("replace");
    let mut labels: BTreeMap<_, _> = selector.match_labels.clone().unwrap_or_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let mut annotations = owner.annotations().clone();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let revision = json!({
        "metadata": {"name": format!("{}-{hash}", owner.name_any()), "namespace": owner.namespace(), "labels": labels,
            "annotations": annotations, "ownerReferences": [owned_by(&K::api_version(&()), &K::kind(&()), owner)]},
        "data": {"spec": {"template": data}},
        "revision": number,
    });
    Ok(serde_json::from_value(revision)?)
}

/// The template that a revision keeps.
pub(super) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let data = serde_json::to_value(&revision.data).ok()?;
    let mut template: Value = data["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}
