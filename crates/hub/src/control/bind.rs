//! Bindings become Works: one for each cluster of the schedule, and none for any other.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::clusters::{condition, set_condition};
use super::copies::{Moving, Part};
use super::template::{TemplateKey, mark};
use super::{Hub, execute};
use crate::evict::guard::{self, Action, Parting, Step, Wait};
use crate::evict::state;
use crate::label::SETTLED;
use crate::mirror::{Key, Mirror};
use crate::queue::{Again, Trouble};
use crate::{interpret, label, name};

/// Who says it.
const FROM: &str = "binding-controller";
/// Who says it of what has no namespace.
const FROM_CLUSTER: &str = "cluster-resource-binding-controller";
/// How often what is waited for is looked after, besides every time that something is said of it.
const LOOKED_AFTER: Duration = Duration::from_secs(5);

/// Looks at one binding.
pub(super) async fn look(hub: Arc<Hub>, key: Key) -> Result<Again, Trouble> {
    let Some((mirror, binding)) = hub.binding(&key) else { return Ok(None) };
    let template = TemplateKey::of_binding(&binding);
    let work_name = name::work(&template.kind, &template.name, &template.namespace);
    if meta::deletion_timestamp(&binding).is_some() {
        return end(&hub, &mirror, &binding, &work_name).await;
    }
    // Before the first schedule there is nothing to say, and a scheduler that is late must not empty members.
    if binding["spec"]["clusters"].is_null() && binding["spec"]["requiredBy"].is_null() && !was_scheduled(&binding) {
        return Ok(None);
    }
    let Some((_, object)) = hub.template(&template) else { return Ok(None) };
    if meta::uid(&object) != binding["spec"]["resource"]["uid"] {
        // Another of the same name: its binding follows.
        return Ok(None);
    }
    let (from, of) = match key.0.as_str() {
        "" => (FROM_CLUSTER, format!("ClusterResourceBinding({})", key.1)),
        namespace => (FROM, format!("ResourceBinding({namespace}/{})", key.1)),
    };
    let Done { waits, leaving, .. } = match works(&hub, &binding, &object, &work_name).await {
        Ok(done) if !done.changed => done,
        Ok(done) => {
            let text = format!("Sync work of {of} successful.");
            hub.events.normal(&binding, from, "SyncWorkSucceed", text.as_str());
            hub.events.normal(&object, from, "SyncWorkSucceed", text);
            done
        }
        Err(error) => {
            hub.events.warning(&binding, from, "SyncWorkFailed", error.to_string());
            hub.events.warning(&object, from, "SyncWorkFailed", error.to_string());
            return Err(error);
        }
    };
    hub.forget_left_behind(&key).await?;
    hub.queues.aggregate.add_soon(key.clone());
    let waiting = leaving || !waits.is_empty();
    hub.wait_for(&key, waiting);
    if let Some((mirror, now)) = hub.binding(&key) {
        settle(&hub, &mirror, &now, &waits).await?;
    }
    Ok(waiting.then_some(LOOKED_AFTER))
}

fn was_scheduled(binding: &Value) -> bool {
    meta::annotation(binding, label::APPLIED_PLACEMENT).is_some()
}

/// The clusters that a binding is for: its own, and those of what needs it.
pub(super) fn targets(binding: &Value) -> Vec<(String, i64)> {
    let list = |clusters: &Value| -> Vec<(String, i64)> {
        let clusters = clusters.as_array().into_iter().flatten();
        clusters
            .filter_map(|target| Some((target["name"].as_str()?.to_owned(), target["replicas"].as_i64().unwrap_or(0))))
            .collect()
    };
    let mut all = list(&binding["spec"]["clusters"]);
    for needs in binding["spec"]["requiredBy"].as_array().into_iter().flatten() {
        for target in list(&needs["clusters"]) {
            if !all.iter().any(|(name, _)| *name == target.0) {
                all.push((target.0, 0));
            }
        }
    }
    all
}

/// Writes the Works of a binding and takes away those that are too many, as far as [`guard`] lets it now; whether there was
/// anything to do, and what is waited for.
async fn works(hub: &Hub, binding: &Value, template: &Value, work_name: &str) -> Result<Done, Trouble> {
    let Moving { copies, floor, mut parts, trouble } = hub.moving(binding, template).await?;
    if let Some(trouble) = trouble {
        hub.events.warning(template, FROM, "ReadMinAvailableFailed", trouble);
    }
    let (mut changed, mut waits) = (false, Vec::new());
    for Step { cluster, action, wait } in guard::plan(&copies, &floor) {
        waits.extend(wait);
        match action {
            Action::Leave => {}
            Action::Remove => changed |= remove(hub, binding, &cluster, work_name).await?,
            Action::Put(replicas) => {
                let part = match parts.iter().position(|part| part.cluster == cluster) {
                    Some(at) => parts.swap_remove(at),
                    // It is to leave, and has become smaller.
                    None => {
                        let Some(of) = hub.own.clusters.get("", &cluster) else { continue };
                        let mut manifest = interpret::manifest(template);
                        let overridden = hub.overridden(&mut manifest, &of)?;
                        Part { cluster, manifest, overridden }
                    }
                };
                let Part { cluster, mut manifest, overridden } = part;
                if guard::asked(&manifest) != replicas {
                    interpret::revise(&mut manifest, replicas);
                }
                changed |= work(hub, binding, template, (&cluster, work_name), manifest, overridden).await?;
            }
        }
    }
    Ok(Done { changed, waits, leaving: copies.iter().any(|copy| copy.leaving) })
}

/// What was done about a binding's Works.
struct Done {
    changed: bool,
    /// What is waited for before a copy becomes smaller.
    waits: Vec<Wait>,
    /// Whether a copy is to leave when its time has come.
    leaving: bool,
}

/// Says at a binding what it waits for, as condition `Settled`; one that never waited has none.
async fn settle(hub: &Hub, mirror: &Mirror, binding: &Value, waits: &[Wait]) -> Result<(), Trouble> {
    let mut status = binding["status"].clone();
    let known = condition(&status, SETTLED).cloned();
    match waits.first() {
        None if known.is_none() => return Ok(()),
        None => set_condition(&mut status, SETTLED, "True", "Settled", "every copy is as it was decided"),
        Some(first) => {
            let all: Vec<String> = waits.iter().map(Wait::to_string).collect();
            set_condition(&mut status, SETTLED, "False", first.reason(), &all.join("; "));
        }
    }
    if hub.put_status(mirror, binding, &status).await? && known.is_none_or(|known| known["status"] == "True") {
        for wait in waits {
            hub.events.normal(binding, FROM, "WaitForReplacement", wait.to_string());
        }
    }
    Ok(())
}

/// The label that links a binding with its Works, and its annotations.
pub(super) fn links(binding: &Value) -> (&'static str, Vec<(&'static str, &str)>) {
    match meta::namespace(binding) {
        "" => (label::CLUSTER_BINDING_ID, vec![(label::CLUSTER_BINDING_NAME, meta::name(binding))]),
        namespace => {
            let annotations = vec![(label::BINDING_NAMESPACE, namespace), (label::BINDING_NAME, meta::name(binding))];
            (label::BINDING_ID, annotations)
        }
    }
}

/// Writes one Work; whether it was another one before.
async fn work(
    hub: &Hub,
    binding: &Value,
    template: &Value,
    (cluster, work_name): (&str, &str),
    mut manifest: Value,
    overridden: Vec<(&'static str, String)>,
) -> Result<bool, Trouble> {
    let space = name::execution_namespace(cluster);
    let before = hub.own.works.get(&space, work_name);
    let (id_key, link) = links(binding);
    let binding_id = meta::label(binding, id_key).unwrap_or_default();
    if let Some(before) = &before {
        if meta::deletion_timestamp(before).is_some() {
            return Err(format!("Work {space}/{work_name} is still on its way out").into());
        }
        if meta::label(before, id_key).is_some_and(|known| known != binding_id) && still_there(hub, before) {
            return Err(format!("Work {space}/{work_name} is another binding's").into());
        }
    }
    // What it has from the copy before it, it keeps for as long as it is there.
    let preserved = match &before {
        Some(before) => meta::annotation(before, label::PRESERVED).map(str::to_owned),
        None => {
            let inherited = state::inherited(&binding["spec"], cluster, targets(binding).len());
            (!inherited.is_empty()).then(|| json!(inherited).to_string())
        }
    };
    let inherited = preserved.as_deref().and_then(|kept| serde_json::from_str::<BTreeMap<String, String>>(kept).ok());
    for (key, value) in inherited.iter().flatten() {
        meta::set_label(&mut manifest, key, value);
    }
    let known = before.as_ref().and_then(|before| meta::label(before, label::WORK_ID)).map(str::to_owned);
    let work_id = known.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let overwrite = match meta::annotation(template, label::CONFLICT) {
        Some(said) => said == "overwrite",
        None => binding["spec"]["conflictResolution"] == "Overwrite",
    };
    let conflict = if overwrite { "overwrite" } else { "abort" };
    let generation = meta::generation(template).to_string();
    let mut annotations = link;
    annotations.extend([
        (label::TEMPLATE_UID, meta::uid(template)),
        (label::TEMPLATE_GENERATION, generation.as_str()),
        (label::CONFLICT, conflict),
    ]);
    let of_member: Vec<_> = annotations
        .iter()
        .copied()
        .chain([(label::WORK_NAMESPACE, space.as_str()), (label::WORK_NAME, work_name)])
        .collect();
    mark(&mut manifest, &[(label::MANAGED, "true"), (id_key, binding_id), (label::WORK_ID, &work_id)], &of_member);

    let suspension = &binding["spec"]["suspension"];
    let mut held = suspension["dispatchingOnClusters"]["clusterNames"].as_array().into_iter().flatten();
    let suspended = suspension["dispatching"] == true || held.any(|name| name == cluster);
    let mut wanted = match &before {
        Some(before) => Value::clone(before),
        None => json!({"apiVersion": "work.karmada.io/v1alpha1", "kind": "Work",
            "metadata": {"name": work_name, "namespace": space, "finalizers": [label::WORK_FINALIZER]}}),
    };
    for (key, value) in [(id_key, binding_id), (label::WORK_ID, &work_id)] {
        meta::set_label(&mut wanted, key, value);
    }
    for (key, value) in annotations {
        meta::set_annotation(&mut wanted, key, value);
    }
    say_overridden(&mut wanted, &overridden);
    if let Some(preserved) = &preserved {
        meta::set_annotation(&mut wanted, label::PRESERVED, preserved);
    }
    let asked = guard::asked(&manifest);
    if before.as_ref().is_none_or(|it| guard::asked(&it["spec"]["workload"]["manifests"][0]) != asked) {
        meta::set_annotation(
            &mut wanted,
            label::LEAST_ASKED,
            &guard::least_asked(before.as_deref(), asked).to_string(),
        );
    }
    let mut spec = json!({"workload": {"manifests": [manifest]}});
    if suspended {
        spec["suspendDispatching"] = true.into();
    }
    if binding["spec"]["preserveResourcesOnDeletion"] == true {
        spec["preserveResourcesOnDeletion"] = true.into();
    }
    wanted["spec"] = spec;
    put(hub, before.as_deref(), &wanted).await
}

/// Whether the binding of a Work is still there, and not another one of that name: what was sent for one that has gone may
/// arrive later, and is taken over.
fn still_there(hub: &Hub, work: &Value) -> bool {
    let found = binding_of(work).and_then(|key| hub.binding(&key));
    found.is_some_and(|(_, binding)| {
        let (id, _) = links(&binding);
        meta::label(&binding, id) == meta::label(work, id)
    })
}

/// The binding that a Work says it is of.
pub(crate) fn binding_of(work: &Value) -> Option<Key> {
    if let Some(name) = meta::annotation(work, label::BINDING_NAME) {
        return Some((
            meta::annotation(work, label::BINDING_NAMESPACE).unwrap_or_default().to_owned(),
            name.to_owned(),
        ));
    }
    meta::annotation(work, label::CLUSTER_BINDING_NAME).map(|name| (String::new(), name.to_owned()))
}

/// Says on a Work which override policies have changed what it brings, and no others.
pub(super) fn say_overridden(work: &mut Value, overridden: &[(&'static str, String)]) {
    if let Some(known) = work["metadata"]["annotations"].as_object_mut() {
        known.retain(|key, _| key != label::APPLIED_OVERRIDES && key != label::APPLIED_CLUSTER_OVERRIDES);
    }
    for (key, value) in overridden {
        meta::set_annotation(work, key, value);
    }
}

/// Creates a Work, or replaces it where it differs; whether it did.
pub(super) async fn put(hub: &Hub, before: Option<&Value>, wanted: &Value) -> Result<bool, Trouble> {
    let works = &hub.own.works;
    match before {
        None => hub.create(works, wanted).await?,
        Some(before) if before == wanted => return Ok(false),
        Some(_) => hub.replace(works, wanted).await?,
    };
    Ok(true)
}

/// Asks for the end of a binding's Work for a cluster; whether there was one.
async fn remove(hub: &Hub, binding: &Value, cluster: &str, work_name: &str) -> Result<bool, Trouble> {
    let space = name::execution_namespace(cluster);
    let Some(work) = hub.own.works.get(&space, work_name) else { return Ok(false) };
    let (id, _) = links(binding);
    if meta::label(&work, id) != meta::label(binding, id) || meta::deletion_timestamp(&work).is_some() {
        return Ok(false);
    }
    let place = (space.as_str(), work_name);
    hub.keeper.delete(&hub.own.works.resource, place, Some(meta::uid(&work))).await?;
    Ok(true)
}

/// A binding goes when its Works are gone, and what they have let go of.
async fn end(hub: &Arc<Hub>, mirror: &Mirror, binding: &Value, work_name: &str) -> Result<Again, Trouble> {
    let finalizer = match meta::namespace(binding) {
        "" => label::CLUSTER_BINDING_FINALIZER,
        _ => label::BINDING_FINALIZER,
    };
    if !meta::finalizers(binding).contains(&finalizer) {
        return Ok(None);
    }
    let mut has_works = false;
    let (id, _) = links(binding);
    for cluster in hub.own.clusters.list() {
        let cluster = meta::name(&cluster);
        remove(hub, binding, cluster, work_name).await?;
        let work = hub.own.works.get(&name::execution_namespace(cluster), work_name);
        has_works |= work.is_some_and(|work| meta::label(&work, id) == meta::label(binding, id));
    }
    match guard::parting(has_works, &guard::left_behind(meta::annotation(binding, label::LEFT_BEHIND))) {
        // The end of each brings us here again.
        Parting::Works => return Ok(None),
        Parting::LeftBehind(clusters) => {
            for cluster in &clusters {
                execute::take_left_behind(hub, binding, cluster).await?;
            }
        }
        Parting::Nothing => {}
    }
    hub.let_go(mirror, binding, finalizer).await?;
    Ok(None)
}

impl Hub {
    /// Whether a copy of a binding waits to become smaller.
    fn wait_for(&self, binding: &Key, waits: bool) {
        let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        match waits {
            true => moving.insert(binding.clone()),
            false => moving.remove(binding),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::nobodys;

    #[tokio::test]
    async fn a_work_of_a_binding_that_has_gone_is_nobodys() {
        let hub = Hub::at_rest(nobodys());
        let binding = json!({"kind": "ResourceBinding", "metadata": {"namespace": "shop", "name": "web-deployment",
            "resourceVersion": "1", "labels": {label::BINDING_ID: "now"}}});
        hub.own.bindings.wrote(&Arc::new(binding));
        let work = |name: &str, id: &str| {
            json!({"metadata": {"labels": {label::BINDING_ID: id},
                "annotations": {label::BINDING_NAMESPACE: "shop", label::BINDING_NAME: name}}})
        };
        assert!(still_there(&hub, &work("web-deployment", "now")));
        assert!(!still_there(&hub, &work("web-deployment", "before")));
        assert!(!still_there(&hub, &work("api-deployment", "now")));
    }
}
