//! Works become objects in members, stay as they are written, and say how they are.

use std::borrow::Cow;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;

use super::Hub;
use super::clusters::{condition, is_ready, set_condition};
use super::interpret::unanswered;
use super::members::Member;
use super::template::{TemplateKey, essence};
use super::write::difference;
use crate::evict::guard::{Ending, REPLACEMENT_NOT_READY, asked, ending};
use crate::interpret::ScriptError;
use crate::mirror::{Changed, Key, Mirror};
use crate::model::Health;
use crate::name::execution_namespace;
use crate::queue::{Again, Queue, Trouble};
use crate::{MANAGER, interpret, label};

/// Who says it.
const FROM: &str = "execution-controller";
/// Who says how things are in members.
const FROM_STATUS: &str = "work-status-controller";
/// How often a write is tried where the member's own controllers are faster.
const ATTEMPTS: usize = 5;
/// What the hub brought is found by this label.
const MANAGED: &str = "karmada.io/managed=true";

/// Looks at one Work.
pub(super) async fn look(hub: Arc<Hub>, key: Key) -> Result<Again, Trouble> {
    let Some(work) = hub.own.works.get(&key.0, &key.1) else { return Ok(None) };
    let Some(name) = key.0.strip_prefix("karmada-es-") else { return Ok(None) };
    let cluster = hub.own.clusters.get("", name);
    let ready = cluster.as_deref().is_some_and(is_ready);
    if meta::deletion_timestamp(&work).is_some() {
        return end(&hub, name, cluster.as_deref(), &work).await;
    }
    if work["spec"]["suspendDispatching"] == true {
        let text = "Work dispatching is in a suspended state.";
        let mut status = work["status"].clone();
        set_condition(&mut status, "Dispatching", "False", "SuspendDispatching", text);
        hub.put_status(&hub.own.works, &work, &status).await?;
        return Ok(None);
    }
    if cluster.is_none() {
        return Ok(None);
    }
    let member = hub.member(name);
    let Some(member) = member.filter(|_| ready) else {
        // That it is ready again brings us here again.
        return Ok(None);
    };
    let manifests: Vec<&Value> = work["spec"]["workload"]["manifests"].as_array().into_iter().flatten().collect();
    let mut status = work["status"].clone();
    if condition(&status, "Dispatching").is_some() {
        set_condition(
            &mut status,
            "Dispatching",
            "True",
            "Dispatching",
            "Work is being dispatched to member clusters.",
        );
    }
    let (mut failures, mut created_again, mut changed) = (Vec::new(), false, false);
    let (mut statuses, mut unread, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    let was_applied = condition(&status, "Applied").is_some_and(|applied| applied["status"] == "True");
    for (ordinal, manifest) in manifests.iter().enumerate() {
        let outcome = apply(&hub, name, &member, &work, &for_member(&work, manifest)).await;
        let about = hub.about_template(manifest);
        let place = format!("{}/{}", meta::namespace(manifest), meta::name(manifest));
        match outcome {
            Ok(Outcome { object, mirror, did, waits: held }) => {
                waits.extend(held);
                if did != Did::Nothing {
                    changed = true;
                    created_again |= did == Did::Created && was_applied;
                    let text = format!("Successfully applied resource({place}) to cluster {name}");
                    hub.events.normal(&about, FROM, "SyncSucceed", text);
                }
                let mut now = identified(ordinal, manifest, &mirror);
                let before = &work["status"]["manifestStatuses"][ordinal];
                if let Err(error) = reflect(&hub, &work, &object, before, &mut now).await {
                    unread.push(error.to_string());
                }
                statuses.push(now);
            }
            Err(error) => {
                let text = said(&*error);
                let told = format!("Failed to create or update resource({place}) in member cluster({name}): {text}");
                hub.events.warning(&about, FROM, "SyncFailed", told);
                failures.push(text);
            }
        }
    }
    if failures.is_empty() && !waits.is_empty() {
        // What `Applied` said of the manifest before is true as ever.
        set_condition(&mut status, label::SETTLED, "False", REPLACEMENT_NOT_READY, &waits.join(", "));
        of_generation(&mut status, label::SETTLED, &work);
        status["manifestStatuses"] = statuses.into();
        hub.put_status(&hub.own.works, &work, &status).await?;
        return Err(waits.join(", ").into());
    }
    if failures.is_empty() {
        let (reason, message) = match (created_again, condition(&status, "Applied")) {
            (true, _) => ("ReCreateSuccessful", "Manifest has been successfully applied"),
            (false, Some(known)) if known["status"] == "True" && !changed => (
                if known["reason"] == "ReCreateSuccessful" { "ReCreateSuccessful" } else { "AppliedSuccessful" },
                "Manifest has been successfully applied",
            ),
            _ => ("AppliedSuccessful", "Manifest has been successfully applied"),
        };
        set_condition(&mut status, "Applied", "True", reason, message);
        if condition(&status, label::SETTLED).is_some() {
            set_condition(&mut status, label::SETTLED, "True", "Settled", "what is in the member is as it was decided");
        }
        if changed {
            let text = format!("Sync work({}/{}) to cluster({name}) successful.", key.0, key.1);
            hub.events.normal(&work, FROM, "SyncSucceed", text);
        }
    } else {
        let done = manifests.len() - failures.len();
        let text = format!("Failed to apply all manifests ({done}/{}): {}", manifests.len(), failures.join(", "));
        set_condition(&mut status, "Applied", "False", "AppliedFailed", &text);
        let told = format!("Failed to sync work({}/{}) to cluster({name}), err: {}", key.0, key.1, failures.join(", "));
        hub.events.warning(&work, FROM, "SyncFailed", told);
    }
    status["manifestStatuses"] = statuses.into();
    of_generation(&mut status, "Applied", &work);
    hub.put_status(&hub.own.works, &work, &status).await?;
    failures.extend(unread);
    match failures.is_empty() {
        true => Ok(None),
        false => Err(failures.join(", ").into()),
    }
}

/// Says of a condition which manifest it is about: of an older one the members' words say nothing.
fn of_generation(status: &mut Value, kind: &str, work: &Value) {
    for condition in status["conditions"].as_array_mut().into_iter().flatten().filter(|it| it["type"] == kind) {
        condition["observedGeneration"] = meta::generation(work).into();
    }
}

/// A manifest as it goes to the member. What has replicas bears the generation of its Work, so that the first write for a
/// manifest changes the object's revision even where nothing else is different: a write for an older manifest that nobody
/// waits for any more, but that is still on its way, then finds another revision than it was made for.
fn for_member<'a>(work: &Value, manifest: &'a Value) -> Cow<'a, Value> {
    if interpret::count(manifest).is_none() {
        return Cow::Borrowed(manifest);
    }
    let mut marked = manifest.clone();
    meta::set_annotation(&mut marked, label::WORK_GENERATION, &meta::generation(work).to_string());
    Cow::Owned(marked)
}

/// How one manifest is in the member. A status that no script can read stays as it was said before.
async fn reflect(hub: &Hub, work: &Value, object: &Value, before: &Value, now: &mut Value) -> Result<(), ScriptError> {
    let (health, status) = hub.interpret(object, |known| (known.health(object), known.reflect(object))).await;
    let health = match health {
        Ok(health) => health,
        Err(error) => {
            let text = unanswered("Interpret health of", object, &error);
            hub.events.warning(work, FROM_STATUS, "InterpretHealthFailed", text);
            Health::Unknown
        }
    };
    now["health"] = json!(health);
    match status {
        Ok(None) => Ok(()),
        Ok(Some(status)) => {
            now["status"] = status;
            Ok(())
        }
        Err(error) => {
            let text = unanswered("Reflect status for", object, &error);
            hub.events.warning(work, FROM_STATUS, "ReflectStatusFailed", text);
            if !before["status"].is_null() {
                now["status"] = before["status"].clone();
            }
            Err(error)
        }
    }
}

/// Which manifest it is.
fn identified(ordinal: usize, manifest: &Value, mirror: &Mirror) -> Value {
    let (group, version) = mirror.resource.api_version.split_once('/').unwrap_or(("", &mirror.resource.api_version));
    let mut identifier = json!({"ordinal": ordinal, "version": version, "kind": mirror.resource.kind,
        "resource": mirror.resource.plural, "name": meta::name(manifest)});
    for (field, value) in [("group", group), ("namespace", meta::namespace(manifest))] {
        if !value.is_empty() {
            identifier[field] = value.into();
        }
    }
    json!({"identifier": identifier})
}

/// What was done to one object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Did {
    Nothing,
    Created,
    Changed,
}

struct Outcome {
    object: Arc<Value>,
    mirror: Arc<Mirror>,
    did: Did,
    /// Why it still has more replicas than its manifest says.
    waits: Option<String>,
}

/// Makes one object of a member what its manifest says.
async fn apply(
    hub: &Arc<Hub>,
    cluster: &str,
    member: &Arc<Member>,
    work: &Value,
    manifest: &Value,
) -> Result<Outcome, Trouble> {
    let mirror = mirror(hub, cluster, member, manifest).await?;
    let place = (meta::namespace(manifest), meta::name(manifest));
    let outcome = |object: Arc<Value>, did| Ok(Outcome { object, mirror: Arc::clone(&mirror), did, waits: None });
    let known = mirror.get(place.0, place.1);
    let mut live = match known {
        Some(live) => live,
        None => match objects::create(&member.client, &mirror.resource, manifest, MANAGER).await {
            Ok(object) => {
                member.applied(&mirror.resource, manifest, &object);
                let object = Arc::new(object);
                mirror.wrote(&object);
                return outcome(object, Did::Created);
            }
            // Somebody's, or ours with its label taken away.
            Err(error) if error.is_conflict() => {
                let namespace = Some(place.0).filter(|namespace| !namespace.is_empty());
                match objects::get(&member.client, &mirror.resource, namespace, place.1).await? {
                    Some(live) => Arc::new(stripped(live)),
                    None => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        },
    };
    for _ in 0..ATTEMPTS {
        if meta::deletion_timestamp(&live).is_some() {
            return Err("it is on its way out in the member; it is made anew when it is gone".into());
        }
        if !may_change(manifest, &live) {
            return Err(format!(
                "resource(kind={}, {}/{}) already exists in the cluster {cluster} and is not managed by the hub, \
                 and the conflict resolution is `abort`",
                meta::kind(manifest),
                place.0,
                place.1
            )
            .into());
        }
        if member.is_as_applied(&mirror.resource, manifest, &live) {
            return outcome(live, Did::Nothing);
        }
        let mut wanted = hub.interpret(manifest, |known| known.merge(manifest, &live)).await?;
        // All of it but what would take too much away.
        let mut waits = None;
        if asked(&wanted) < asked(&live)
            && let Err(why) = hub.may_lower(work, cluster, &live, asked(&wanted)).await
        {
            waits = Some(why.to_string());
            crate::interpret::revise(&mut wanted, asked(&live));
        }
        let object = match objects::replace(&member.client, &mirror.resource, &wanted, MANAGER).await {
            Ok(object) => object,
            // The member's own controllers write, too.
            Err(error) if error.is_conflict() => {
                let namespace = Some(place.0).filter(|namespace| !namespace.is_empty());
                let now = objects::get(&member.client, &mirror.resource, namespace, place.1).await?;
                live = Arc::new(stripped(now.ok_or(error)?));
                continue;
            }
            Err(error) => {
                // It may have been written all the same, and the mirror may not know it yet: the next look writes again.
                member.forget(&mirror.resource, manifest);
                return Err(error.into());
            }
        };
        if waits.is_none() {
            member.applied(&mirror.resource, manifest, &object);
        }
        // That nothing had to be done shows only now: the API server fills in what the manifest leaves out.
        let did = if fingerprint(&object) == fingerprint(&live) { Did::Nothing } else { Did::Changed };
        let object = Arc::new(object);
        mirror.wrote(&object);
        return Ok(Outcome { object, mirror, did, waits });
    }
    Err("somebody else in the member keeps writing it".into())
}

fn stripped(mut object: Value) -> Value {
    meta::metadata_mut(&mut object).remove("managedFields");
    object
}

/// Whether an object of a member is the hub's to change.
fn may_change(manifest: &Value, live: &Value) -> bool {
    is_managed(live)
        || meta::annotation(manifest, label::CONFLICT) == Some("overwrite")
        // Ours, though somebody has taken the label away.
        || (meta::annotation(live, label::WORK_NAME).is_some()
            && meta::annotation(live, label::WORK_NAME) == meta::annotation(manifest, label::WORK_NAME)
            && meta::annotation(live, label::WORK_NAMESPACE) == meta::annotation(manifest, label::WORK_NAMESPACE))
}

fn is_managed(object: &Value) -> bool {
    meta::label(object, label::MANAGED) == Some("true")
}

/// What of an object is its spec, its labels and so on: neither status nor books.
fn fingerprint(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    essence(object).for_each(|field| field.hash(&mut hasher));
    hasher.finish()
}

/// What was written last to an object of a member, and what it was like afterwards.
pub(super) type Applied = std::collections::HashMap<(Resource, Key), (u64, u64)>;

impl Member {
    fn applied(&self, resource: &Resource, manifest: &Value, object: &Value) {
        let key = (resource.clone(), crate::mirror::key(manifest));
        self.books().insert(key, (fingerprint(manifest), fingerprint(object)));
    }

    /// Whether the manifest is the one that was written last, and the object is as it was left.
    fn is_as_applied(&self, resource: &Resource, manifest: &Value, live: &Value) -> bool {
        let known = self.books().get(&(resource.clone(), crate::mirror::key(manifest))).copied();
        known == Some((fingerprint(manifest), fingerprint(live)))
    }

    fn forget(&self, resource: &Resource, manifest: &Value) {
        self.books().remove(&(resource.clone(), crate::mirror::key(manifest)));
    }
}

/// The mirror of what the hub brought to a member, of a manifest's kind; every change there queues the Work.
async fn mirror(hub: &Arc<Hub>, cluster: &str, member: &Arc<Member>, manifest: &Value) -> Result<Arc<Mirror>, Trouble> {
    let (version, kind) = (meta::api_version(manifest), meta::kind(manifest));
    let resource = match hub.mirror_of(version, kind) {
        Some(known) => known.resource.clone(),
        None => Resource::named(version, kind)?,
    };
    let works = Arc::clone(&hub.queues.works);
    let changed = || -> Box<Changed> { Box::new(move |before, now| queue_work(&works, before, now)) };
    let mirror = member.mirror(&resource, Some(MANAGED), changed).await;
    mirror.ok_or_else(|| format!("{cluster} does not list its {} in time", resource.plural).into())
}

/// An object of a member has changed: the Work that brought it is looked at.
fn queue_work(works: &Queue<Key>, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
    for object in before.into_iter().chain(now) {
        if let (Some(namespace), Some(name)) =
            (meta::annotation(object, label::WORK_NAMESPACE), meta::annotation(object, label::WORK_NAME))
        {
            works.add((namespace.to_owned(), name.to_owned()));
        }
    }
}

/// A Work goes: what it brought goes before it, or is left behind without the hub's marks.
async fn end(hub: &Arc<Hub>, name: &str, cluster: Option<&Value>, work: &Value) -> Result<Again, Trouble> {
    if !meta::finalizers(work).contains(&label::WORK_FINALIZER) {
        return Ok(None);
    }
    let leaving = cluster.is_none_or(|cluster| meta::deletion_timestamp(cluster).is_some());
    let member = hub.member(name).filter(|_| cluster.is_some_and(is_ready));
    match (ending(leaving, hub.is_wanted(work, name), member.is_some()), member) {
        (Ending::TakeBack, Some(member)) => {
            for manifest in work["spec"]["workload"]["manifests"].as_array().into_iter().flatten() {
                let kept = work["spec"]["preserveResourcesOnDeletion"] == true;
                take_back(hub, name, &member, manifest, Takes::Work(work), kept).await?;
            }
            hub.leave_behind(work, name, None).await?;
        }
        (Ending::LetGo, _) if leaving => {}
        // It is wanted now; should it not be any more when the next Work is to be made, that is known.
        (Ending::LetGo, _) => {
            let replicas = asked(&work["spec"]["workload"]["manifests"][0]);
            hub.leave_behind(work, name, Some(replicas)).await?;
        }
        _ => return Err(format!("{name} is not ready: what it has of this Work cannot be taken back yet").into()),
    }
    hub.let_go(&hub.own.works, work, label::WORK_FINALIZER).await?;
    Ok(None)
}

/// Takes back what a Work has let go of, of a binding that goes: no other Work will.
pub(super) async fn take_left_behind(hub: &Arc<Hub>, binding: &Value, name: &str) -> Result<(), Trouble> {
    let cluster = hub.own.clusters.get("", name);
    let leaving = cluster.as_deref().is_none_or(|cluster| meta::deletion_timestamp(cluster).is_some());
    let member = hub.member(name).filter(|_| cluster.as_deref().is_some_and(is_ready));
    match (ending(leaving, false, member.is_some()), member) {
        (Ending::TakeBack, Some(member)) => {
            let TemplateKey { api_version, kind, namespace, name: of } = TemplateKey::of_binding(binding);
            let manifest = json!({"apiVersion": api_version, "kind": kind,
                "metadata": {"namespace": namespace, "name": of}});
            let kept = binding["spec"]["preserveResourcesOnDeletion"] == true;
            take_back(hub, name, &member, &manifest, Takes::Binding, kept).await
        }
        (Ending::LetGo, _) => Ok(()),
        _ => Err(format!("{name} is not ready: what a Work has left behind there cannot be taken back yet").into()),
    }
}

/// Who takes something back.
#[derive(Clone, Copy)]
enum Takes<'a> {
    /// A Work that goes: its binding may still want enough to stay.
    Work(&'a Value),
    /// A binding that goes: nobody wants anything of it.
    Binding,
}

/// Deletes an object of a member if it is the hub's, or frees it.
async fn take_back(
    hub: &Arc<Hub>,
    name: &str,
    member: &Arc<Member>,
    manifest: &Value,
    takes: Takes<'_>,
    kept: bool,
) -> Result<(), Trouble> {
    let mirror = mirror(hub, name, member, manifest).await?;
    let namespace = Some(meta::namespace(manifest)).filter(|namespace| !namespace.is_empty());
    member.forget(&mirror.resource, manifest);
    let live = objects::get(&member.client, &mirror.resource, namespace, meta::name(manifest)).await?;
    let Some(live) = live.filter(is_managed) else { return Ok(()) };
    if meta::annotation(&live, label::WORK_NAMESPACE).is_some_and(|of| of != execution_namespace(name)) {
        // Another hub's, or another name of this cluster.
        return Ok(());
    }
    if kept {
        let free = freed(&live);
        let patch = difference(&live, &free);
        objects::merge(&member.client, &mirror.resource, (namespace, meta::name(&live)), &patch, false, MANAGER)
            .await?;
        return Ok(());
    }
    if let Takes::Work(work) = takes {
        hub.may_lower(work, name, &live, 0).await?;
    }
    // Nothing may have become of it since it was looked at.
    objects::delete_unchanged(&member.client, &mirror.resource, &live).await?;
    Ok(())
}

/// An object without anything of the hub's on it.
fn freed(live: &Value) -> Value {
    let mut free = live.clone();
    for of in ["labels", "annotations"] {
        if let Some(known) = free["metadata"][of].as_object_mut() {
            known.retain(|key, _| {
                key != label::WORK_GENERATION && !key.split('/').next().unwrap_or_default().ends_with("karmada.io")
            });
        }
    }
    free
}

/// What an API server said, or what else went wrong.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<stolos_cluster::Error>()
        && let Some(status) = error.status()
    {
        return format!("{error}: {}", status.message);
    }
    stolos_serve::because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_hubs_is_changed() {
        let manifest = |conflict: &str| json!({"metadata": {"annotations": {label::CONFLICT: conflict, label::WORK_NAME: "w", label::WORK_NAMESPACE: "n"}}});
        let live =
            |labels: Value, annotations: Value| json!({"metadata": {"labels": labels, "annotations": annotations}});
        let somebodys = live(json!({}), json!({}));
        assert!(!may_change(&manifest("abort"), &somebodys) && may_change(&manifest("overwrite"), &somebodys));
        assert!(may_change(&manifest("abort"), &live(json!({label::MANAGED: "true"}), json!({}))));
        let unlabelled = live(json!({}), json!({label::WORK_NAME: "w", label::WORK_NAMESPACE: "n"}));
        assert!(may_change(&manifest("abort"), &unlabelled));
    }

    /// Two generations of a Work never look the same in a member, so that the second is a write that is seen.
    #[test]
    fn each_generation_is_a_write_of_its_own() {
        let manifest = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 4}});
        let of = |generation: i64| for_member(&json!({"metadata": {"generation": generation}}), &manifest).into_owned();
        assert_ne!(fingerprint(&of(1)), fingerprint(&of(2)));
        assert_eq!(fingerprint(&of(2)), fingerprint(&of(2)));
        let plain = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        assert_eq!(*for_member(&json!({"metadata": {"generation": 2}}), &plain), plain);
    }

    #[test]
    fn what_is_left_behind_bears_nothing_of_the_hubs() {
        let live = json!({"metadata": {"labels": {"app": "a", label::MANAGED: "true", label::BINDING_ID: "x"},
            "annotations": {label::WORK_NAME: "w", label::WORK_GENERATION: "2", "mine": "1"}}});
        assert_eq!(freed(&live), json!({"metadata": {"labels": {"app": "a"}, "annotations": {"mine": "1"}}}));
    }
}
