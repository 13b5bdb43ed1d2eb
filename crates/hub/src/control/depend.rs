//! What a workload needs goes along with it: ConfigMaps, Secrets and so on (`propagateDeps`, karmada.md 14), and in a mesh
//! the Services that lead to it, wherever it may be called.

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_cluster::objects;
use stolos_k8s::meta;

use super::Hub;
use super::bind::links;
use super::detect::kind_in;
use super::interpret::unanswered;
use super::template::TemplateKey;
use crate::interpret::Dependency;
use crate::mirror::Key;
use crate::queue::{Again, Trouble};
use crate::{label, name};

/// Who says it.
const FROM: &str = "dependencies-distributor";

/// Looks at one binding: what its workload needs has a binding too, which says for whom.
pub(super) async fn look(hub: Arc<Hub>, key: Key) -> Result<Again, Trouble> {
    let Some((mirror, binding)) = hub.binding(&key) else { return Ok(None) };
    let finalizers = meta::finalizers(&binding);
    let ours = finalizers.contains(&label::DEPENDENCIES_FINALIZER);
    let going = meta::deletion_timestamp(&binding).is_some();
    let template = hub.template(&TemplateKey::of_binding(&binding)).map(|(_, template)| template);
    if template.is_none() && !going {
        // Until its template is seen nothing is taken away.
        return Ok(None);
    }
    let depends = binding["spec"]["propagateDeps"] == true && !going;
    // In a mesh, who calls it elsewhere has to know its name there.
    let (services, company) =
        template.as_deref().filter(|_| !going).map(|template| hub.company(&binding, template)).unwrap_or_default();
    let brings = depends || !services.is_empty();
    if !brings && !ours {
        return Ok(None);
    }
    let needs = match template.as_deref().filter(|_| depends) {
        Some(object) => match hub.interpret(object, |known| known.dependencies(object)).await {
            Ok(needs) => needs,
            Err(error) => {
                let text = unanswered("Get dependencies of", object, &error);
                hub.events.warning(object, FROM, "GetDependenciesFailed", text);
                return Err(error.into());
            }
        },
        None => Vec::new(),
    };
    let mut complete = Value::clone(&binding);
    if brings {
        if depends {
            meta::set_annotation(&mut complete, label::DEPENDENCIES, &serde_json::to_string(&needs)?);
        }
        if !ours {
            complete["metadata"]["finalizers"] =
                json!(finalizers.iter().copied().chain([label::DEPENDENCIES_FINALIZER]).collect::<Vec<_>>());
        }
        if complete != *binding {
            hub.change(&mirror, &binding, &complete).await?;
        }
    }
    let led = |object: &Value| services.iter().any(|service| meta::uid(service) == meta::uid(object));
    let needed = needs.iter().flat_map(|need| hub.needed(need)).filter(|object| !led(object));
    let all: Vec<_> = (needed.map(|object| (object, &binding["spec"]["clusters"])))
        .chain(services.iter().map(|service| (Arc::clone(service), &company)))
        .collect();
    let about = template.as_deref().unwrap_or(&binding);
    match take_along(&hub, &binding, &all).await {
        Ok(false) => {}
        Ok(true) => hub.events.normal(
            about,
            FROM,
            "SyncScheduleResultToDependenciesSucceed",
            "Sync schedule result to dependencies succeed.",
        ),
        Err(error) => {
            // Somebody else has written one of them since: it is looked at again.
            let again = error.downcast_ref::<stolos_cluster::Error>().is_some_and(stolos_cluster::Error::is_conflict);
            if !again {
                let text = format!("Sync schedule result to dependencies failed: {error}");
                hub.events.warning(about, FROM, "SyncScheduleResultToDependenciesFailed", text);
            }
            return Err(error);
        }
    }
    if !brings {
        complete["metadata"]["finalizers"] =
            json!(finalizers.into_iter().filter(|known| *known != label::DEPENDENCIES_FINALIZER).collect::<Vec<_>>());
        if let Some(annotations) = complete["metadata"]["annotations"].as_object_mut() {
            annotations.remove(label::DEPENDENCIES);
        }
        hub.change_if_there(&mirror, &binding, &complete).await?;
    }
    Ok(None)
}

/// Says on the bindings of all that goes along with a binding where to, and takes that word from what does not any more;
/// whether anything is another than it was.
async fn take_along(hub: &Hub, by: &Value, all: &[(Arc<Value>, &Value)]) -> Result<bool, Trouble> {
    let (mut wanted, mut changed) = (Vec::new(), false);
    for (object, clusters) in all {
        let (key, other) = attach(hub, by, object, clusters).await?;
        wanted.push(key);
        changed |= other;
    }
    Ok(release(hub, by, &wanted).await? || changed)
}

/// Whether an entry of `requiredBy` is this binding's.
fn is_of(entry: &Value, binding: &Value) -> bool {
    entry["name"] == meta::name(binding) && entry["namespace"].as_str().unwrap_or_default() == meta::namespace(binding)
}

/// Says on the binding of what is needed that it is, and where; the key of that binding, and whether it is another now.
async fn attach(hub: &Hub, by: &Value, object: &Value, clusters: &Value) -> Result<(Key, bool), Trouble> {
    let namespace = meta::namespace(object);
    let key = (namespace.to_owned(), name::binding(meta::kind(object), meta::name(object)));
    let bindings = hub.bindings_of(namespace);
    let mut clusters = clusters.as_array().cloned().unwrap_or_default();
    // What is needed stays with a copy that is still there.
    for cluster in hub.still_in(by) {
        if !clusters.iter().any(|known| known["name"] == cluster) {
            clusters.push(json!({"name": cluster}));
        }
    }
    let mut entry = json!({"name": meta::name(by), "clusters": clusters});
    if !meta::namespace(by).is_empty() {
        entry["namespace"] = meta::namespace(by).into();
    }
    let mut resource = json!({"apiVersion": meta::api_version(object), "kind": meta::kind(object),
        "name": meta::name(object), "uid": meta::uid(object), "resourceVersion": meta::resource_version(object)});
    if !namespace.is_empty() {
        resource["namespace"] = namespace.into();
    }
    let stays = by["spec"]["preserveResourcesOnDeletion"] == true;
    let Some(before) = bindings.get(&key.0, &key.1) else {
        let (kind, finalizer, id) = kind_in(namespace);
        let mut binding = json!({"apiVersion": "work.karmada.io/v1alpha2", "kind": kind,
            "metadata": {"name": key.1, "finalizers": [finalizer], "labels": {id: uuid::Uuid::new_v4().to_string()},
                "ownerReferences": [{"apiVersion": meta::api_version(object), "kind": meta::kind(object),
                    "name": meta::name(object), "uid": meta::uid(object), "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"resource": resource, "requiredBy": [entry],
                "conflictResolution": by["spec"]["conflictResolution"].as_str().unwrap_or("Abort")}});
        if !namespace.is_empty() {
            binding["metadata"]["namespace"] = namespace.into();
        }
        if stays {
            binding["spec"]["preserveResourcesOnDeletion"] = true.into();
        }
        hub.create(bindings, &binding).await?;
        return Ok((key, true));
    };
    if meta::deletion_timestamp(&before).is_some() {
        return Err(format!("the binding {}/{} is still on its way out", key.0, key.1).into());
    }
    let mut after = Value::clone(&before);
    let mut all: Vec<Value> = before["spec"]["requiredBy"].as_array().cloned().unwrap_or_default();
    let is_new = !all.is_empty() && !all.iter().any(|known| is_of(known, by));
    match all.iter_mut().find(|known| is_of(known, by)) {
        Some(known) => *known = entry,
        None => all.push(entry),
    }
    after["spec"]["requiredBy"] = all.into();
    if before["spec"]["placement"].is_null() {
        after["spec"]["resource"] = resource;
        // Any owner that overwrites wins, and any that leaves its own behind (karmada.md 14).
        if stays {
            after["spec"]["preserveResourcesOnDeletion"] = true.into();
        }
        if by["spec"]["conflictResolution"] == "Overwrite" {
            after["spec"]["conflictResolution"] = "Overwrite".into();
        }
    }
    let changed = after != *before;
    if changed {
        hub.change(bindings, &before, &after).await?;
    }
    let words = |of: &Value| {
        let spec = &of["spec"];
        (spec["conflictResolution"] == "Overwrite", spec["preserveResourcesOnDeletion"] == true)
    };
    if is_new && before["spec"]["placement"].is_null() && words(by) != words(&before) {
        let text = format!(
            "{} says otherwise about conflictResolution or preserveResourcesOnDeletion than others that need it: \
             Overwrite and true win.",
            meta::name(by)
        );
        hub.events.warning(&before, FROM, "DependencyPolicyConflict", text);
    }
    Ok((key, changed))
}

/// Takes this binding's word from all that it does not need; what nobody needs and no policy places goes. Whether there was
/// any such word.
async fn release(hub: &Hub, by: &Value, wanted: &[Key]) -> Result<bool, Trouble> {
    let mut changed = false;
    let bindings = hub.bindings_of(meta::namespace(by));
    for binding in bindings.of_namespace(meta::namespace(by)) {
        let mut left: Vec<Value> = binding["spec"]["requiredBy"].as_array().cloned().unwrap_or_default();
        let before = left.len();
        left.retain(|entry| !is_of(entry, by));
        let key = crate::mirror::key(&binding);
        if left.len() == before || wanted.contains(&key) || meta::deletion_timestamp(&binding).is_some() {
            continue;
        }
        changed = true;
        if left.is_empty() && binding["spec"]["placement"].is_null() {
            // Somebody may have begun to need it since it was read.
            objects::delete_unchanged(&hub.client, &bindings.resource, &binding).await?;
            continue;
        }
        let mut after = Value::clone(&binding);
        after["spec"]["requiredBy"] = left.into();
        hub.change(bindings, &binding, &after).await?;
    }
    Ok(changed)
}

impl Hub {
    /// The members that a binding has a Work for.
    fn still_in(&self, binding: &Value) -> Vec<String> {
        let template = TemplateKey::of_binding(binding);
        let work = name::work(&template.kind, &template.name, &template.namespace);
        let (id, _) = links(binding);
        let clusters = self.own.clusters.list();
        let names = clusters.iter().map(|cluster| meta::name(cluster).to_owned());
        let has = |cluster: &String| {
            let work = self.own.works.get(&name::execution_namespace(cluster), &work);
            work.is_some_and(|work| meta::label(&work, id) == meta::label(binding, id))
        };
        names.filter(has).collect()
    }

    /// The templates that a dependency means: one by name, or several by labels.
    fn needed(&self, need: &Dependency) -> Vec<Arc<Value>> {
        let Some(mirror) = self.mirror_of(&need.api_version, &need.kind) else { return Vec::new() };
        let found: Vec<_> = match &need.label_selector {
            None => mirror.get(&need.namespace, &need.name).into_iter().collect(),
            Some(labels) => {
                let all = mirror.of_namespace(&need.namespace).into_iter();
                all.filter(|object| labels.matches(&meta::labels(object))).collect()
            }
        };
        found.into_iter().filter(|object| meta::deletion_timestamp(object).is_none()).collect()
    }

    /// A template that no policy selects has changed: who may need it is looked at. Whether somebody does already.
    pub(super) fn tell_needing(&self, template: &Value) -> bool {
        let namespace = meta::namespace(template);
        let may_be_needed =
            ["ConfigMap", "Secret", "ServiceAccount", "PersistentVolumeClaim", "Service", "EndpointSlice"];
        if !may_be_needed.contains(&meta::kind(template)) && !self.scripts_name_dependencies() {
            return false;
        }
        let bindings = self.bindings_of(namespace);
        for binding in self.queues.needing(namespace) {
            self.queues.depend.add(binding);
        }
        let own = bindings.get(namespace, &name::binding(meta::kind(template), meta::name(template)));
        if meta::kind(template) == "Service" {
            self.tell_led_to(template, own.as_deref());
        }
        own.is_some_and(|own| own["spec"]["requiredBy"].as_array().is_some_and(|by| !by.is_empty()))
    }
}
