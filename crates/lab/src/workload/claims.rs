//! PersistentVolumeClaims: bound at once, to folders of their cluster.
//!
//! The class [`CLASS`] is the default of every cluster; its volumes are folders below the cluster's own, which stay over
//! restarts of pods and of the lab. A volume that somebody made by hand is bound as Kubernetes binds it (class, modes,
//! room, selector; the smallest that fits), and is such a folder too: a lab mounts nothing of its host.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};
use stolos_k8s::quantity::Quantity;

use super::{Later, Trouble, each, gone, is_code, put_status};
use crate::cluster::Shared;

/// The default class of a cluster.
pub(super) const CLASS: &str = "standard";
/// Who makes its volumes.
const PROVISIONER: &str = "stolos.dev/folder";

/// Makes the default class, if it is not there: it comes again with every start.
pub(super) async fn make_class(shared: &Shared) -> Result<(), Trouble> {
    let api: Api<StorageClass> = Api::all(shared.client.clone());
    let class = serde_json::from_value(json!({
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
    }))?;
    match api.create(&PostParams::default(), &class).await {
        Err(error) if !is_code(&error, 409) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Where a volume's content lies.
pub(crate) fn folder(shared: &Shared, volume: &str) -> PathBuf {
    shared.folder.join("claims").join(volume)
}

/// The claims that a pod mounts.
pub(crate) fn of_pod(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).map(|source| source.claim_name.as_str())
}

/// Whether a claim has its volume.
pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// Why a pod cannot start for want of a volume, in the scheduler's words.
pub(super) fn refusal(shared: &Shared, pod: &Pod) -> Option<String> {
    let namespace = pod.namespace().unwrap_or_default();
    of_pod(pod).find_map(|name| match shared.caches.claims.get(&namespace, name) {
        None => Some(format!("0/1 nodes are available: persistentvolumeclaim \"{name}\" not found.")),
        Some(claim) if !is_bound(&claim) => {
            Some("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.".to_owned())
        }
        Some(_) => None,
    })
}

/// What claims that wait were told last, by their UIDs: news once, not with every look.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Mutex<HashMap<String, String>>>);

impl Told {
    /// Whether this is news.
    fn news(&self, claim: &PersistentVolumeClaim, message: &str) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(claim.uid().unwrap_or_default(), message.to_owned()).as_deref() != Some(message)
    }

    fn forget_all_but(&self, claims: &[&Arc<PersistentVolumeClaim>]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|uid, _| claims.iter().any(|claim| claim.metadata.uid.as_ref() == Some(uid)));
    }
}

pub(super) async fn reconcile(shared: Arc<Shared>, told: Told) -> Result<(), Trouble> {
    let (claims, volumes) = (shared.caches.claims.list(), shared.caches.volumes.list());
    let waiting: Vec<_> =
        claims.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none() && !is_bound(claim)).collect();
    told.forget_all_but(&waiting);
    let mut again = false;
    if !waiting.is_empty() {
        let classes: Api<StorageClass> = Api::all(shared.client.clone());
        let classes = classes.list(&ListParams::default()).await?.items;
        let mut free = volumes.clone();
        for claim in waiting {
            let used = shared.caches.pods.list().iter().any(|pod| mounts(pod, claim));
            match decide(claim, &free, &classes, used) {
                Decision::Bind(name) => {
                    let at = free.iter().position(|volume| volume.name_any() == name);
                    if let Some(volume) = at.map(|at| free.swap_remove(at)) {
                        bind(&shared, claim, &volume).await?;
                    }
                }
                Decision::Make(class) => {
                    let made = provision(&shared, claim, &class).await?;
                    bind(&shared, claim, &made).await?;
                }
                Decision::Wait(reason, message) => {
                    // Nobody says when a class comes.
                    again |= reason == "ProvisioningFailed";
                    let failed = matches!(reason, "ProvisioningFailed" | "FailedBinding");
                    if !told.news(claim, &message) {
                        continue;
                    }
                    match failed {
                        true => shared.events.warning(claim.as_ref(), reason, message),
                        false => shared.events.normal(claim.as_ref(), reason, message),
                    }
                }
            }
        }
    }
    // As they are now: what was bound above is no longer free.
    each(shared.caches.volumes.list().into_iter().map(|volume| keep_or_let_go(&shared, volume))).await?;
    if again { Err(Later::seconds(5)) } else { Ok(()) }
}

fn mounts(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    !super::is_over(pod) && pod.namespace() == claim.namespace() && of_pod(pod).any(|name| name == claim.name_any())
}

enum Decision {
    /// To the volume of this name.
    Bind(String),
    /// To a new one of this class.
    Make(Box<StorageClass>),
    /// Not yet: reason and message of an event.
    Wait(&'static str, String),
}

fn amount(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> i128 {
    quantity.and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(0, |quantity| quantity.nano())
}

fn decide(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[StorageClass],
    used: bool,
) -> Decision {
    let spec = claim.spec.clone().unwrap_or_default();
    let wanted = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let class = spec.storage_class_name.clone().unwrap_or_default();
    let is_ours = |volume: &PersistentVolume| {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        reference.is_some_and(|r| {
            r.name == claim.metadata.name
                && r.namespace == claim.metadata.namespace
                && r.uid.as_ref().is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
        })
    };
    let fits = |volume: &PersistentVolume| {
        let Some(has) = &volume.spec else { return false };
        let modes = has.access_modes.clone().unwrap_or_default();
        let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
        let selected = spec.selector.clone().is_none_or(|selector| {
            Selector::try_from(selector).is_ok_and(|selector| selector.matches(volume.labels()))
        });
        has.storage_class_name.clone().unwrap_or_default() == class
            && spec.access_modes.iter().flatten().all(|mode| modes.contains(mode))
            && amount(has.capacity.as_ref().and_then(|c| c.get("storage"))) >= amount(wanted)
            && mode(&has.volume_mode) == mode(&spec.volume_mode)
            && selected
    };
    if let Some(volume) = volumes.iter().find(|volume| is_ours(volume)) {
        return Decision::Bind(volume.name_any());
    }
    let is_free = |volume: &&Arc<PersistentVolume>| volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none());
    let named = spec.volume_name.as_deref().filter(|name| !name.is_empty());
    let mut candidates: Vec<_> = volumes.iter().filter(is_free).collect();
    if let Some(named) = named {
        candidates.retain(|volume| volume.name_any() == named);
        return match candidates.first() {
            Some(volume) => Decision::Bind(volume.name_any()),
            None => {
                Decision::Wait("FailedBinding", format!("volume \"{named}\" is not there or bound to another claim"))
            }
        };
    }
    candidates.retain(|volume| fits(volume));
    let size = |volume: &&Arc<PersistentVolume>| {
        amount(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage")))
    };
    let found = classes.iter().find(|known| known.name_any() == class);
    let waits = found.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if waits && !used {
        let message = "waiting for first consumer to be created before binding".to_owned();
        return Decision::Wait("WaitForFirstConsumer", message);
    }
    if let Some(smallest) = candidates.into_iter().min_by_key(size) {
        return Decision::Bind(smallest.name_any());
    }
    match found {
        _ if class.is_empty() => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            Decision::Wait("FailedBinding", message.to_owned())
        }
        None => Decision::Wait("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{class}\" not found")),
        Some(found) if found.provisioner == PROVISIONER => Decision::Make(Box::new(found.clone())),
        Some(found) => {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system \
                 administrator.",
                found.provisioner
            );
            Decision::Wait("ExternalProvisioning", message)
        }
    }
}

fn reference(claim: &PersistentVolumeClaim) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name_any(),
        "namespace": claim.namespace(), "uid": claim.uid(), "resourceVersion": claim.resource_version()})
}

async fn provision(
    shared: &Shared,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
) -> Result<PersistentVolume, Trouble> {
    let name = format!("pvc-{}", claim.uid().unwrap_or_default());
    let spec = claim.spec.clone().unwrap_or_default();
    let wanted = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "capacity": {"storage": wanted}, "accessModes": spec.access_modes, "volumeMode": spec.volume_mode,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name_any(), "claimRef": reference(claim),
            "hostPath": {"path": folder(shared, &name), "type": ""},
        },
    }))?;
    let api: Api<PersistentVolume> = Api::all(shared.client.clone());
    match api.create(&PostParams::default(), &volume).await {
        Ok(made) => {
            shared.caches.volumes.wrote(made.clone());
            let text = format!("Successfully provisioned volume {name}");
            shared.events.normal(claim, "ProvisioningSucceeded", text);
            Ok(made)
        }
        Err(error) if is_code(&error, 409) => Ok(api.get(&name).await?),
        Err(error) => Err(error.into()),
    }
}

async fn bind(shared: &Shared, claim: &Arc<PersistentVolumeClaim>, volume: &PersistentVolume) -> Result<(), Trouble> {
    let name = volume.name_any();
    let at = folder(shared, &name);
    tokio::task::spawn_blocking(move || std::fs::create_dir_all(at)).await??;
    let volumes: Api<PersistentVolume> = Api::all(shared.client.clone());
    let params = PatchParams::default();
    let ours = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|r| r.uid == claim.metadata.uid);
    if !ours {
        // Only if nobody else has it by now.
        let patch =
            json!({"metadata": {"resourceVersion": volume.resource_version()}, "spec": {"claimRef": reference(claim)}});
        shared.caches.volumes.wrote(volumes.patch(&name, &params, &Patch::Merge(patch)).await?);
    }
    phase(shared, volume, "Bound").await?;
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(shared.client.clone(), &claim.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"uid": claim.uid(), "annotations": {"pv.kubernetes.io/bind-completed": "yes",
        "pv.kubernetes.io/bound-by-controller": "yes"}}, "spec": {"volumeName": name}});
    match claims.patch(&claim.name_any(), &params, &Patch::Merge(patch)).await {
        // It went meanwhile; its volume is let go in the next round.
        Err(error) if is_code(&error, 404) || is_code(&error, 409) => return Ok(()),
        other => drop(other?),
    }
    let spec = volume.spec.clone().unwrap_or_default();
    let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
    put_status(shared, &shared.caches.claims, claim.as_ref(), &claim.status, status).await
}

/// Says what has become of a volume.
async fn phase(shared: &Shared, volume: &PersistentVolume, phase: &str) -> Result<(), Trouble> {
    if volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase) {
        return Ok(());
    }
    let volumes: Api<PersistentVolume> = Api::all(shared.client.clone());
    let patch = Patch::Merge(json!({"status": {"phase": phase}}));
    match volumes.patch_status(&volume.name_any(), &PatchParams::default(), &patch).await {
        Ok(volume) => shared.caches.volumes.wrote(volume),
        Err(error) if is_code(&error, 404) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Says that a volume waits for a claim; lets one go whose claim is gone, once no pod has it any more.
async fn keep_or_let_go(shared: &Shared, volume: Arc<PersistentVolume>) -> Result<(), Trouble> {
    if volume.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return phase(shared, &volume, "Available").await;
    };
    let (Some(namespace), Some(name), Some(uid)) = (&reference.namespace, &reference.name, &reference.uid) else {
        return Ok(());
    };
    let lives = |claim: &PersistentVolumeClaim| claim.metadata.uid.as_ref() == Some(uid);
    if shared.caches.claims.get(namespace, name).is_some_and(|claim| lives(&claim)) {
        return Ok(());
    }
    let mounted = |pod: &Arc<Pod>| {
        pod.namespace().as_ref() == Some(namespace) && of_pod(pod).any(|claim| claim == name) && !super::is_over(pod)
    };
    if shared.caches.pods.list().iter().any(mounted) {
        return Ok(());
    }
    // Sure is sure: the cache may be late.
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(shared.client.clone(), namespace);
    if claims.get_opt(name).await?.is_some_and(|claim| lives(&claim)) {
        return Ok(());
    }
    let name = volume.name_any();
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let ours = volume.annotations().get("pv.kubernetes.io/provisioned-by").map(String::as_str) == Some(PROVISIONER);
    if policy != Some("Delete") || !ours {
        return phase(shared, &volume, "Released").await;
    }
    // The folder first: nobody would look for it once the volume is gone.
    let at = folder(shared, &name);
    match tokio::task::spawn_blocking(move || std::fs::remove_dir_all(at)).await? {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let volumes: Api<PersistentVolume> = Api::all(shared.client.clone());
    Ok(gone(volumes.delete(&name, &DeleteParams::default()).await)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "x", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": name, "labels": {"n": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]}});
        for (field, more) in more.as_object().unwrap() {
            value["spec"][field] = more.clone();
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn class(name: &str, provisioner: &str, mode: &str) -> StorageClass {
        serde_json::from_value(
            json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode}),
        )
        .unwrap()
    }

    #[test]
    fn claims_find_the_smallest_volume_that_fits_or_get_a_new_one() {
        let volumes = [
            volume("large", "10Gi", json!({})),
            volume("small", "2Gi", json!({})),
            volume("tiny", "1Mi", json!({})),
            volume("taken", "2Gi", json!({"claimRef": {"name": "other", "namespace": "x", "uid": "v"}})),
            volume("kept", "5Gi", json!({"storageClassName": "slow", "claimRef": {"name": "c", "namespace": "x"}})),
            volume("classy", "5Gi", json!({"storageClassName": "elsewhere"})),
        ];
        let classes = [
            class(CLASS, PROVISIONER, "Immediate"),
            class("late", PROVISIONER, "WaitForFirstConsumer"),
            class("foreign", "x.io/y", "Immediate"),
        ];
        let said = |spec: Value, volumes: &[Arc<PersistentVolume>], used: bool| {
            let mut spec = spec;
            spec["resources"] = json!({"requests": {"storage": "1Gi"}});
            spec["accessModes"] = json!(["ReadWriteOnce"]);
            match decide(&claim(spec), volumes, &classes, used) {
                Decision::Bind(name) => format!("bind {name}"),
                Decision::Make(class) => format!("make {}", class.name_any()),
                Decision::Wait(reason, _) => reason.to_owned(),
            }
        };
        let without = &volumes[..4];
        let rows = [
            (said(json!({}), &volumes, false), "bind kept"),
            (said(json!({}), without, false), "bind small"),
            (said(json!({"selector": {"matchLabels": {"n": "large"}}}), without, false), "bind large"),
            (said(json!({"volumeName": "large"}), without, false), "bind large"),
            (said(json!({"volumeName": "taken"}), without, false), "FailedBinding"),
            (said(json!({"storageClassName": CLASS}), without, false), "make standard"),
            (said(json!({"storageClassName": "late"}), without, false), "WaitForFirstConsumer"),
            (said(json!({"storageClassName": "late"}), without, true), "make late"),
            (said(json!({"storageClassName": "foreign"}), without, false), "ExternalProvisioning"),
            (said(json!({"storageClassName": "none"}), without, false), "ProvisioningFailed"),
            (said(json!({"storageClassName": "elsewhere"}), &volumes[5..], false), "bind classy"),
            (said(json!({}), &[], false), "FailedBinding"),
        ];
        for (found, expected) in rows {
            assert_eq!(found, expected);
        }
    }
}
