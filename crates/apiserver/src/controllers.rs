//! The controllers without which an API server is not whole: namespaces, service accounts and their tokens, garbage
//! collection, quotas, CustomResourceDefinitions that wait for a name or are on their way out.
//!
//! One task looks at everything that changes ([`Feed`]), decides what is to be done ([`Graph::work`]) and does it
//! ([`Work`]); what fails is tried again. A task that falls behind the window looks at everything anew.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::api::Api;
use crate::auth;
use crate::defaults;
use crate::failure::{Failure, Result};
use crate::naming;
use crate::quota::{self, QUOTAS};
use crate::registry::{CRDS, Resource};
use crate::state::{Expect, Write};
use crate::store::Key;
use crate::verb::{self, DeleteOptions, How};
use crate::watch::{Event, Expired, Object, place_of};

const ROOT_CA: &str = "kube-root-ca.crt";
const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What every namespace has from its first moment: an account and the authority's certificate.
#[must_use]
pub(crate) fn namespace_content(api: &Api, namespace: &str) -> Vec<(&'static str, Value)> {
    let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such \
                 as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
                 distributions of Kubernetes clusters.";
    let metadata = |name: &str| json!({"name": name, "namespace": namespace});
    let mut bundle = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(ROOT_CA),
        "data": {"ca.crt": api.keys.ca}});
    bundle["metadata"]["annotations"] = json!({"kubernetes.io/description": about});
    vec![
        ("serviceaccounts", json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("default")})),
        ("configmaps", bundle),
    ]
}

/// How many things are done at once.
const AT_ONCE: usize = 32;

/// Runs them until the server stops.
///
/// What is slow (a deletion that a webhook is asked about) holds up nothing else; the same thing is never done twice
/// at once.
pub(crate) async fn run(api: Arc<Api>) {
    let mut feed = Feed::new(&api);
    let mut graph = Graph::default();
    let mut changed = api.state.subscribe();
    let mut todo = feed.look_at_everything(&mut graph);
    let mut again: HashSet<Work> = HashSet::new();
    let mut under_way: HashSet<Work> = HashSet::new();
    let mut running = FuturesUnordered::new();
    let mut retry = tokio::time::interval(Duration::from_millis(200));
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next: Vec<Work> = todo.iter().filter(|work| !under_way.contains(*work)).cloned().collect();
        for work in next.into_iter().take(AT_ONCE.saturating_sub(running.len())) {
            todo.remove(&work);
            under_way.insert(work.clone());
            let api = Arc::clone(&api);
            running.push(async move {
                let result = work.run(&api).await;
                (work, result)
            });
        }
        tokio::select! {
            () = api.stop.asked() => return,
            Some((work, result)) = running.next() => {
                under_way.remove(&work);
                if let Err(failure) = result {
                    tracing::debug!(?work, %failure, "trying again");
                    again.insert(work);
                }
            }
            _ = changed.changed() => todo.extend(feed.look(&mut graph)),
            _ = sweep.tick() => forget_events(&api).await,
            _ = retry.tick(), if !again.is_empty() => todo.extend(again.drain()),
        }
    }
}

/// How long an event is kept after its last change (as `--event-ttl` is by default), how many are kept at the most, and
/// how often that is looked after.
const EVENT_LIFE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
const MOST_EVENTS: usize = 20_000;
const SWEEP: Duration = Duration::from_secs(30);

/// When an event was written last.
fn last_written(event: &Value) -> Option<jiff::Timestamp> {
    let books = event["metadata"]["managedFields"].as_array().into_iter().flatten().map(|entry| &entry["time"]);
    let times = books.chain([&event["metadata"]["creationTimestamp"]]);
    times.filter_map(|time| time.as_str()?.parse().ok()).max()
}

/// The oldest of too many events, and those whose time is over.
fn past_events(mut events: Vec<Arc<Object>>, now: jiff::Timestamp, most: usize) -> Vec<Arc<Object>> {
    // Revisions are in the order of the last writes, so that only the past is looked into.
    events.sort_by_key(|event| event.revision);
    let surplus = events.len().saturating_sub(most);
    let is_past = |event: &Arc<Object>| {
        let read: Value = serde_json::from_slice(&event.json).unwrap_or_default();
        last_written(&read).is_some_and(|time| now.duration_since(time) > EVENT_LIFE)
    };
    let past = surplus + events[surplus..].iter().take_while(|event| is_past(event)).count();
    events.truncate(past);
    events
}

/// How many old events go in one durable step.
const FORGOTTEN_AT_ONCE: usize = 512;

/// Lets old events go. No admission is asked: in Kubernetes it is storage itself that forgets them.
async fn forget_events(api: &Arc<Api>) {
    let past = past_events(api.state.cache("events").list(""), jiff::Timestamp::now(), MOST_EVENTS);
    for some in past.chunks(FORGOTTEN_AT_ONCE) {
        let gone = |event: &Arc<Object>| {
            let (namespace, name) = event.place();
            let key = Key { resource: "events".into(), namespace, name };
            Write { key, expect: Expect::Revision(event.revision), value: None }
        };
        // All of them or none: where one has been changed in between, which gives it another hour, each goes by itself.
        if api.state.commit_all(some.iter().map(gone).collect()).await.is_err() {
            for event in some {
                let _ = api.state.commit(gone(event)).await;
            }
        }
    }
}

/// Everything that changes, resource by resource.
struct Feed {
    api: Arc<Api>,
    seen: HashMap<Arc<str>, u64>,
}

impl Feed {
    fn new(api: &Arc<Api>) -> Self {
        Self { api: Arc::clone(api), seen: HashMap::new() }
    }

    /// What has changed since the last look, as work.
    fn look(&mut self, graph: &mut Graph) -> HashSet<Work> {
        let mut events: Vec<(Arc<str>, Arc<Event>)> = Vec::new();
        for resource in self.api.state.resources() {
            let seen = self.seen.get(&resource).copied().unwrap_or(self.api.state.loaded());
            match self.api.state.cache(&resource).events_after(seen, usize::MAX) {
                Ok(new) => {
                    if let Some(last) = new.last() {
                        self.seen.insert(Arc::clone(&resource), last.revision);
                    }
                    events.extend(new.into_iter().map(|event| (Arc::clone(&resource), event)));
                }
                // It ran away from us.
                Err(Expired { .. }) => return self.look_at_everything(graph),
            }
        }
        events.sort_by_key(|(_, event)| event.revision);
        // Much of it is history already, which is text: read once here, and not kept.
        let seen: Vec<_> = events
            .iter()
            .map(|(resource, event)| {
                let before = event.before.as_ref().map(|before| seen_of(resource, before));
                (resource, before, seen_of(resource, &event.object), event.deleted)
            })
            .collect();
        for (resource, before, object, deleted) in &seen {
            graph.take(resource, before.as_deref(), (!deleted).then_some(&**object));
        }
        let mut work = HashSet::new();
        for (resource, before, object, deleted) in &seen {
            if &***resource == "services"
                && let Some(before) = before
            {
                defaults::forget(&self.api, before, (!deleted).then_some(&**object));
            }
            graph.work(&self.api, resource, object, *deleted, &mut work);
        }
        work
    }

    /// Everything there is, as work.
    fn look_at_everything(&mut self, graph: &mut Graph) -> HashSet<Work> {
        *graph = Graph::default();
        let mut all = Vec::new();
        for resource in self.api.state.resources() {
            let (objects, revision) = self.api.state.cache(&resource).snapshot("", self.api.state.revision());
            self.seen.insert(Arc::clone(&resource), revision);
            for object in objects {
                graph.add(&resource, &object.head());
                all.push((Arc::clone(&resource), object));
            }
        }
        let mut work = HashSet::new();
        for (resource, object) in all {
            graph.work(&self.api, &resource, &object.head(), false, &mut work);
        }
        work
    }
}

/// What of an object is looked at: of a Service the addresses as well.
fn seen_of<'a>(resource: &str, object: &'a Object) -> Cow<'a, Value> {
    if resource == "services" { object.glance() } else { object.head() }
}

/// Who owns whom.
#[derive(Default)]
struct Graph {
    live: HashMap<String, Key>,
    dependents: HashMap<String, HashSet<Key>>,
}

impl Graph {
    fn add(&mut self, resource: &Arc<str>, object: &Value) {
        let key = key_of(resource, object);
        for owner in meta::owner_references(object) {
            self.dependents.entry(owner.uid.to_owned()).or_default().insert(key.clone());
        }
        self.live.insert(meta::uid(object).to_owned(), key);
    }

    fn remove(&mut self, resource: &Arc<str>, object: &Value) {
        let key = key_of(resource, object);
        for owner in meta::owner_references(object) {
            if let Some(known) = self.dependents.get_mut(owner.uid) {
                known.remove(&key);
                if known.is_empty() {
                    self.dependents.remove(owner.uid);
                }
            }
        }
        self.live.remove(meta::uid(object));
    }

    fn take(&mut self, resource: &Arc<str>, before: Option<&Value>, now: Option<&Value>) {
        if let Some(before) = before {
            self.remove(resource, before);
        }
        if let Some(now) = now {
            self.add(resource, now);
        }
    }

    /// What a change of an object asks for.
    fn work(&self, api: &Api, resource: &Arc<str>, object: &Value, deleted: bool, work: &mut HashSet<Work>) {
        let (namespace, name) = place_of(object);
        let uid = meta::uid(object);
        match (&**resource, deleted) {
            ("namespaces", false) => {
                work.insert(Work::Namespace(name.clone()));
            }
            ("serviceaccounts", _) => {
                if deleted && name == "default" {
                    work.insert(Work::Namespace(namespace.clone()));
                }
                for secret in api.state.cache("secrets").list(&namespace) {
                    let annotations = &secret.value["metadata"]["annotations"];
                    if annotations["kubernetes.io/service-account.name"] == name.as_str() {
                        work.insert(Work::Token(namespace.clone(), meta::name(&secret.value).to_owned()));
                    }
                }
            }
            ("configmaps", _) if name == ROOT_CA => {
                work.insert(Work::Namespace(namespace.clone()));
            }
            ("secrets", false) if object["type"] == TOKEN_TYPE => {
                work.insert(Work::Token(namespace.clone(), name.clone()));
            }
            (CRDS, false) if meta::deletion_timestamp(object).is_some() => {
                work.insert(Work::Definition(name.clone()));
            }
            _ => {}
        }
        if &**resource == CRDS {
            // Names may have become free.
            let waiting = api.state.cache(CRDS).list("").into_iter();
            let waiting = waiting.filter(|other| naming::waits(&other.value));
            work.extend(waiting.map(|other| Work::Names(meta::name(&other.value).to_owned())));
        }
        let quotas = api.state.cache(QUOTAS);
        if !quotas.is_empty() && !namespace.is_empty() && !quotas.list(&namespace).is_empty() {
            work.insert(Work::Quota(namespace.clone()));
        }
        let going = meta::deletion_timestamp(object).is_some();
        if deleted {
            for dependent in self.dependents.get(uid).into_iter().flatten() {
                work.insert(Work::Owners(dependent.clone()));
            }
            for owner in meta::owner_references(object) {
                if let Some(owner) = self.live.get(owner.uid) {
                    work.insert(Work::Owned(owner.clone()));
                }
            }
            let home = api.state.get("namespaces", "", &namespace);
            if home.is_some_and(|home| meta::deletion_timestamp(&home.value).is_some()) {
                work.insert(Work::Namespace(namespace));
            }
            if let Some((_, group)) = resource.split_once('.')
                && group.contains('.')
                && api.state.get(CRDS, "", resource).is_some_and(|crd| meta::deletion_timestamp(&crd.value).is_some())
            {
                work.insert(Work::Definition(resource.to_string()));
            }
            return;
        }
        if !namespace.is_empty() {
            let home = api.state.get("namespaces", "", &namespace);
            if home.is_none_or(|home| meta::deletion_timestamp(&home.value).is_some()) {
                work.insert(Work::Namespace(namespace.clone()));
            }
        }
        // An owner in another namespace is as good as none.
        let reachable = |owner: &Key| owner.namespace.is_empty() || owner.namespace == namespace;
        if meta::owner_references(object).iter().any(|owner| !self.live.get(owner.uid).is_some_and(reachable)) {
            work.insert(Work::Owners(key_of(resource, object)));
        }
        let waits = meta::finalizers(object).iter().any(|f| matches!(*f, "orphan" | "foregroundDeletion"));
        if going && waits {
            work.insert(Work::Owned(key_of(resource, object)));
        }
    }
}

fn key_of(resource: &Arc<str>, object: &Value) -> Key {
    let (namespace, name) = place_of(object);
    Key { resource: Arc::clone(resource), namespace, name }
}

/// Something to do. Doing it twice is as good as once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    /// Give a namespace what it needs, or empty and end it.
    Namespace(String),
    /// Fill or remove a Secret that holds a token.
    Token(String, String),
    /// Remove an object whose owners are all gone.
    Owners(Key),
    /// An object that goes waits for its dependents, or leaves them behind.
    Owned(Key),
    /// Empty and end a CustomResourceDefinition.
    Definition(String),
    /// Give a CustomResourceDefinition the names that it waits for, if they are free.
    Names(String),
    /// Count what a namespace uses of its quotas.
    Quota(String),
}

impl Work {
    async fn run(&self, api: &Arc<Api>) -> Result<()> {
        let done = match self {
            Self::Namespace(name) => namespace(api, name).await,
            Self::Token(namespace, name) => token(api, namespace, name).await,
            Self::Owners(key) => owners(api, key).await,
            Self::Owned(key) => owned(api, key).await,
            Self::Definition(name) => definition(api, name).await,
            Self::Names(name) => names(api, name).await,
            Self::Quota(namespace) => quota::count(api, namespace).await,
        };
        match done {
            // Gone in the meantime is as good as done.
            Err(failure) if failure.code == 404 => Ok(()),
            other => other,
        }
    }
}

fn resource(api: &Api, storage: &str) -> Result<Arc<Resource>> {
    api.registry.table().find_stored(storage).cloned().ok_or_else(Failure::no_such_path)
}

async fn namespace(api: &Arc<Api>, name: &str) -> Result<()> {
    let Some(found) = api.state.get("namespaces", "", name) else {
        // Something came in while the namespace went out.
        empty_namespace(api, name).await;
        return Ok(());
    };
    if meta::deletion_timestamp(&found.value).is_some() {
        return end_namespace(api, name).await;
    }
    for (storage, object) in namespace_content(api, name) {
        let resource = resource(api, storage)?;
        match api.state.get(storage, name, meta::name(&object)) {
            None => match verb::create(api, &resource, name, object, &How::internal()).await {
                Err(failure) if failure.reason == "AlreadyExists" => {}
                other => drop(other?),
            },
            Some(there) if storage == "configmaps" && there.value["data"] != object["data"] => {
                let place = (name, ROOT_CA, "");
                verb::change(api, &resource, place, &How::internal(), |now| {
                    let mut new = now.clone();
                    new["data"] = object["data"].clone();
                    Ok(new)
                })
                .await?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What is left of a namespace's content after a deletion was asked of all of it.
#[derive(Debug, Default)]
struct Left {
    /// How many of each resource, `pods.` or `deployments.apps`.
    objects: BTreeMap<String, usize>,
    /// How many wait for each finalizer.
    finalizers: BTreeMap<String, usize>,
    /// What could not be deleted, and why.
    failures: Vec<String>,
}

impl Left {
    /// The conditions of a namespace on its way out, as Kubernetes' own controller words them.
    fn conditions(&self) -> [(&'static str, bool, &'static str, String); 5] {
        let listed = |counts: &BTreeMap<String, usize>, what: &str| {
            counts.iter().map(|(name, count)| format!("{name} {what} {count} resource instances")).collect::<Vec<_>>()
        };
        let (discovered, parsed) =
            ("All resources successfully discovered", "All legacy kube types successfully parsed");
        let content = if self.failures.is_empty() {
            "All content successfully deleted, may be waiting on finalization".to_owned()
        } else {
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                self.failures.len(),
                self.failures.join(", ")
            )
        };
        let remaining = if self.objects.is_empty() {
            "All content successfully removed".to_owned()
        } else {
            format!("Some resources are remaining: {}", listed(&self.objects, "has").join(", "))
        };
        let finalizers = if self.finalizers.is_empty() {
            "All content-preserving finalizers finished".to_owned()
        } else {
            let listed = listed(&self.finalizers, "in").join(", ");
            format!("Some content in the namespace has finalizers remaining: {listed}")
        };
        let either = |is: bool, yes, no| if is { yes } else { no };
        let (failed, some) = (!self.failures.is_empty(), !self.objects.is_empty());
        let waits = !self.finalizers.is_empty();
        [
            ("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", discovered.into()),
            ("NamespaceDeletionGroupVersionParsingFailure", false, "ParsedGroupVersions", parsed.into()),
            (
                "NamespaceDeletionContentFailure",
                failed,
                either(failed, "ContentDeletionFailed", "ContentDeleted"),
                content,
            ),
            ("NamespaceContentRemaining", some, either(some, "SomeResourcesRemain", "ContentRemoved"), remaining),
            (
                "NamespaceFinalizersRemaining",
                waits,
                either(waits, "SomeFinalizersRemain", "ContentHasNoFinalizers"),
                finalizers,
            ),
        ]
    }
}

/// Asks for the deletion of all that a namespace holds.
async fn empty_namespace(api: &Arc<Api>, name: &str) -> Left {
    let mut left = Left::default();
    let options = DeleteOptions { propagation: Some("Background".into()), ..DeleteOptions::default() };
    for resource in api.registry.table().stored().into_iter().filter(|resource| resource.namespaced) {
        let objects = api.state.cache(&resource.storage).list(name);
        let how = How::internal();
        let deletions = objects.iter().map(|object| {
            let (resource, options, how) = (Arc::clone(&resource), options.clone(), how.clone());
            async move {
                if meta::deletion_timestamp(&object.value).is_some() {
                    return Ok(verb::Deleted::Going(Arc::clone(object)));
                }
                verb::delete(api, &resource, (name, meta::name(&object.value)), &options, &how).await
            }
        });
        for result in futures::future::join_all(deletions).await {
            let shown = || {
                if resource.group.is_empty() { format!("{}.", resource.plural) } else { resource.storage.to_string() }
            };
            match result {
                Ok(verb::Deleted::Gone(_)) => {}
                Ok(verb::Deleted::Going(object)) => {
                    *left.objects.entry(shown()).or_default() += 1;
                    for finalizer in meta::finalizers(&object.value) {
                        *left.finalizers.entry(finalizer.to_owned()).or_default() += 1;
                    }
                }
                Err(failure) if failure.code == 404 => {}
                Err(failure) => {
                    *left.objects.entry(shown()).or_default() += 1;
                    left.failures.push(failure.message);
                }
            }
        }
    }
    left
}

async fn end_namespace(api: &Arc<Api>, name: &str) -> Result<()> {
    let left = empty_namespace(api, name).await;
    let namespaces = resource(api, "namespaces")?;
    if left.objects.is_empty() {
        verb::change(api, &namespaces, ("", name, "finalize"), &How::internal(), |now| {
            let mut new = now.clone();
            // Finalizers of others are theirs to remove.
            if let Some(list) = new["spec"]["finalizers"].as_array_mut() {
                list.retain(|finalizer| finalizer != "kubernetes");
            }
            Ok(new)
        })
        .await?;
        return Ok(());
    }
    let now = api.now();
    verb::change(api, &namespaces, ("", name, "status"), &How::internal(), |old| {
        let mut new = old.clone();
        for (kind, holds, reason, message) in left.conditions() {
            let condition = json!({"type": kind, "status": if holds { "True" } else { "False" },
                "lastTransitionTime": now, "reason": reason, "message": message});
            set_condition(&mut new, condition);
        }
        Ok(new)
    })
    .await?;
    // Deletions of what is left bring us back here; what could not be deleted is tried again.
    match left.failures.first() {
        Some(failure) => Err(Failure::internal(failure)),
        None => Ok(()),
    }
}

/// Sets a condition by its type; its time changes only with its status.
fn set_condition(object: &mut Value, mut condition: Value) {
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(list) = object["status"]["conditions"].as_array_mut() else { return };
    match list.iter_mut().find(|known| known["type"] == condition["type"]) {
        Some(known) => {
            if known["status"] == condition["status"] {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => list.push(condition),
    }
}

async fn token(api: &Arc<Api>, namespace: &str, name: &str) -> Result<()> {
    use base64::Engine as _;
    let Some(secret) = api.state.get("secrets", namespace, name) else { return Ok(()) };
    let secret = &secret.value;
    if secret["type"] != TOKEN_TYPE || meta::deletion_timestamp(secret).is_some() {
        return Ok(());
    }
    let secrets = resource(api, "secrets")?;
    let annotation = |key: &str| meta::annotation(secret, key).unwrap_or_default();
    let account = api.state.get("serviceaccounts", namespace, annotation("kubernetes.io/service-account.name"));
    let uid = annotation("kubernetes.io/service-account.uid");
    let account = account.filter(|account| uid.is_empty() || meta::uid(&account.value) == uid);
    let Some(account) = account else {
        let options = DeleteOptions { uid: Some(meta::uid(secret).to_owned()), ..DeleteOptions::default() };
        verb::delete(api, &secrets, (namespace, name), &options, &How::internal()).await?;
        return Ok(());
    };
    let text = |text: &str| json!(base64::engine::general_purpose::STANDARD.encode(text));
    let wanted = [("ca.crt", text(&api.keys.ca)), ("namespace", text(namespace))];
    let has_token = !secret["data"]["token"].as_str().unwrap_or_default().is_empty();
    if has_token && !uid.is_empty() && wanted.iter().all(|(key, value)| secret["data"][key] == *value) {
        return Ok(());
    }
    let token = auth::secret_token(api, &account.value, secret)?;
    verb::change(api, &secrets, (namespace, name, ""), &How::internal(), |now| {
        let mut new = now.clone();
        meta::set_annotation(&mut new, "kubernetes.io/service-account.uid", meta::uid(&account.value));
        if !new["data"].is_object() {
            new["data"] = json!({});
        }
        for (key, value) in &wanted {
            new["data"][*key] = value.clone();
        }
        if new["data"]["token"].as_str().unwrap_or_default().is_empty() {
            new["data"]["token"] = text(&token);
        }
        Ok(new)
    })
    .await?;
    Ok(())
}

/// The owner that a reference means, if it is there; nothing is known of kinds that are not served. The owner of an
/// object without a namespace cannot have one: such a reference is never resolved, and nothing is removed for its sake
/// (as in Kubernetes since 1.20).
fn find_owner(api: &Api, namespace: &str, owner: &meta::OwnerReference<'_>) -> Option<Option<Arc<Object>>> {
    let table = api.registry.table();
    let resource = table.find_kind(owner.api_version, owner.kind)?;
    if resource.namespaced && namespace.is_empty() {
        return None;
    }
    let scope = if resource.namespaced { namespace } else { "" };
    let found = api.state.get(&resource.storage, scope, owner.name);
    Some(found.filter(|found| meta::uid(&found.value) == owner.uid))
}

/// Whether an owner is there and does not wait for its dependents to go: what Kubernetes calls solid.
fn is_solid(api: &Api, namespace: &str, owner: &meta::OwnerReference<'_>) -> bool {
    match find_owner(api, namespace, owner) {
        None => true,
        Some(None) => false,
        Some(Some(found)) => {
            let going = meta::deletion_timestamp(&found.value).is_some();
            !(going && meta::finalizers(&found.value).contains(&"foregroundDeletion"))
        }
    }
}

async fn owners(api: &Arc<Api>, key: &Key) -> Result<()> {
    let Some(object) = api.state.get(&key.resource, &key.namespace, &key.name) else { return Ok(()) };
    let owners = meta::owner_references(&object.value);
    let lives = |owner: &meta::OwnerReference<'_>| {
        // An owner of an unknown kind may live: nothing is removed on a guess.
        find_owner(api, &key.namespace, owner).is_none_or(|found| found.is_some())
    };
    let gone: Vec<String> = owners.iter().filter(|owner| !lives(owner)).map(|owner| owner.uid.to_owned()).collect();
    if gone.is_empty() || meta::deletion_timestamp(&object.value).is_some() && gone.len() == owners.len() {
        return Ok(());
    }
    let resource = resource(api, &key.resource)?;
    if gone.len() == owners.len() {
        let options = DeleteOptions {
            uid: Some(meta::uid(&object.value).to_owned()),
            resource_version: Some(meta::resource_version(&object.value).to_owned()),
            propagation: Some("Background".into()),
            ..DeleteOptions::default()
        };
        return match verb::delete(api, &resource, (&key.namespace, &key.name), &options, &How::internal()).await {
            // It changed while we looked: its event brings us back.
            Err(failure) if failure.code == 409 => Err(failure),
            other => other.map(drop),
        };
    }
    drop_owners(api, &resource, key, &gone).await
}

/// Takes references to owners out of an object.
async fn drop_owners(api: &Arc<Api>, resource: &Arc<Resource>, key: &Key, uids: &[String]) -> Result<()> {
    let place = (key.namespace.as_str(), key.name.as_str(), "");
    verb::change(api, resource, place, &How::internal(), |now| {
        let mut new = now.clone();
        if let Some(list) = new["metadata"]["ownerReferences"].as_array_mut() {
            list.retain(|owner| !uids.iter().any(|uid| owner["uid"] == uid.as_str()));
        }
        if new["metadata"]["ownerReferences"].as_array().is_some_and(Vec::is_empty) {
            meta::metadata_mut(&mut new).remove("ownerReferences");
        }
        Ok(new)
    })
    .await?;
    Ok(())
}

async fn owned(api: &Arc<Api>, key: &Key) -> Result<()> {
    let Some(object) = api.state.get(&key.resource, &key.namespace, &key.name) else { return Ok(()) };
    let object = &object.value;
    if meta::deletion_timestamp(object).is_none() {
        return Ok(());
    }
    let finalizers = meta::finalizers(object);
    let (orphan, foreground) = (finalizers.contains(&"orphan"), finalizers.contains(&"foregroundDeletion"));
    if !orphan && !foreground {
        return Ok(());
    }
    let uid = meta::uid(object).to_owned();
    let mut blocking = 0;
    for resource in api.registry.table().stored() {
        if !resource.namespaced && !key.namespace.is_empty() {
            continue;
        }
        for dependent in api.state.cache(&resource.storage).list(&key.namespace) {
            let dependent = &dependent.value;
            let owners = dependent["metadata"]["ownerReferences"].as_array();
            let Some(reference) = owners.into_iter().flatten().find(|owner| owner["uid"] == uid.as_str()) else {
                continue;
            };
            let place = key_of(&resource.storage, dependent);
            if orphan {
                drop_owners(api, &resource, &place, std::slice::from_ref(&uid)).await?;
                continue;
            }
            let kept = meta::owner_references(dependent)
                .iter()
                .any(|other| other.uid != uid && is_solid(api, &place.namespace, other));
            if kept {
                // It has another owner to live for.
                drop_owners(api, &resource, &place, std::slice::from_ref(&uid)).await?;
                continue;
            }
            blocking += usize::from(reference["blockOwnerDeletion"] == true);
            if meta::deletion_timestamp(dependent).is_none() {
                let options = DeleteOptions { propagation: Some("Foreground".into()), ..DeleteOptions::default() };
                let at = (place.namespace.as_str(), place.name.as_str());
                let deleted = verb::delete(api, &resource, at, &options, &How::internal()).await;
                if let Err(failure) = deleted
                    && failure.code != 404
                {
                    return Err(failure);
                }
            }
        }
    }
    if foreground && blocking > 0 {
        // Their deletions bring us back here.
        return Ok(());
    }
    let resource = resource(api, &key.resource)?;
    let done = if orphan { "orphan" } else { "foregroundDeletion" };
    let place = (key.namespace.as_str(), key.name.as_str(), "");
    drop_finalizer(api, &resource, place, done).await
}

async fn drop_finalizer(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    place: (&str, &str, &str),
    finalizer: &str,
) -> Result<()> {
    verb::change(api, resource, place, &How::internal(), |now| {
        let mut new = now.clone();
        if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
            list.retain(|known| known != finalizer);
        }
        if new["metadata"]["finalizers"].as_array().is_some_and(Vec::is_empty) {
            meta::metadata_mut(&mut new).remove("finalizers");
        }
        Ok(new)
    })
    .await?;
    Ok(())
}

/// A write that changes nothing but what [`naming`] makes of it.
async fn names(api: &Arc<Api>, name: &str) -> Result<()> {
    verb::change(api, &resource(api, CRDS)?, ("", name, "status"), &How::internal(), |now| Ok(now.clone())).await?;
    Ok(())
}

async fn definition(api: &Arc<Api>, name: &str) -> Result<()> {
    let Some(crd) = api.state.get(CRDS, "", name) else { return Ok(()) };
    if meta::deletion_timestamp(&crd.value).is_none() || !meta::finalizers(&crd.value).contains(&CLEANUP) {
        return Ok(());
    }
    let objects = api.state.cache(name).list("");
    let custom = api.registry.table().find_stored(name).cloned();
    if let Some(custom) = custom {
        for object in &objects {
            let (namespace, name) = place_of(&object.value);
            let options = DeleteOptions::default();
            match verb::delete(api, &custom, (&namespace, &name), &options, &How::internal()).await {
                Err(failure) if failure.code != 404 => return Err(failure),
                _ => {}
            }
        }
    }
    if api.state.cache(name).is_empty() {
        drop_finalizer(api, &resource(api, CRDS)?, ("", name, ""), CLEANUP).await?;
        return Ok(());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_for_an_hour_and_not_without_number() {
        let event = |revision: u64, name: &str, created: &str, changed: &str| {
            let value = json!({"metadata": {"name": name, "creationTimestamp": created,
                "managedFields": [{"time": changed}]}});
            Object::unread(value.to_string().into(), revision)
        };
        let (old, half, new) = ("2026-01-01T10:00:00Z", "2026-01-01T11:30:00Z", "2026-01-01T11:59:00Z");
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        let events = [event(3, "new", new, new), event(1, "old", old, old), event(2, "again", old, half)];
        let past = |most| -> Vec<String> {
            past_events(events.to_vec(), now, most).iter().map(|event| meta::name(&event.value).to_owned()).collect()
        };
        assert_eq!(past(10), ["old"]);
        assert_eq!(past(1), ["old", "again"]);
        assert_eq!(last_written(&json!({})), None);
    }

    #[test]
    fn what_is_left_of_a_namespace_is_said() {
        let mut left = Left::default();
        left.objects.insert("pods.".into(), 2);
        left.finalizers.insert("x.io/y".into(), 1);
        left.failures.push("no".into());
        let said: Vec<String> = left
            .conditions()
            .iter()
            .map(|(kind, holds, reason, said)| format!("{kind}={holds} {reason}: {said}"))
            .collect();
        insta::assert_snapshot!(said.join("\n"), @r"
        NamespaceDeletionDiscoveryFailure=false ResourcesDiscovered: All resources successfully discovered
        NamespaceDeletionGroupVersionParsingFailure=false ParsedGroupVersions: All legacy kube types successfully parsed
        NamespaceDeletionContentFailure=true ContentDeletionFailed: Failed to delete all resource types, 1 remaining: no
        NamespaceContentRemaining=true SomeResourcesRemain: Some resources are remaining: pods. has 2 resource instances
        NamespaceFinalizersRemaining=true SomeFinalizersRemain: Some content in the namespace has finalizers remaining: x.io/y in 1 resource instances
        ");
    }
}
