//! What can be done with objects: create, get, list, watch, update, patch, delete.
//!
//! [`answer`] reads a request and calls one of [`create`], [`change`], [`delete`], which controllers use as well.
//! A write is an optimistic loop: read the newest state, compute the whole new object (patch, defaults, admission,
//! validation), commit if nobody was faster, else begin again.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::admit;
use crate::api::Api;
use crate::auth::{self, User};
use crate::convert;
use crate::defaults;
use crate::failure::{self, Cause, Failure, Result};
use crate::list;
use crate::naming;
use crate::quota;
use crate::registry::{CRDS, Resource};
use crate::route::{self, Ask, Body};
use crate::rules::{self, PatchKind};
use crate::state::{Expect, Refused, Write};
use crate::store::Key;
use crate::validate;
use crate::warning;
use crate::watch::Object;

/// How a write is made: on whose behalf, and whether really.
#[derive(Debug, Clone)]
pub(crate) struct How {
    /// Who asks.
    pub(crate) user: User,
    /// The field manager.
    pub(crate) manager: String,
    /// Compute everything, write nothing.
    pub(crate) dry_run: bool,
    /// What becomes of fields that are unknown or there twice.
    pub(crate) fields: FieldValidation,
    /// What is wrong with the body as it was sent: `duplicate field "spec.replicas"`.
    pub(crate) doubts: Vec<String>,
    /// Whether the body is a patch: what is wrong is then said of the patch.
    pub(crate) patching: bool,
    /// Server-side apply has kept the books already.
    pub(crate) applied: bool,
    /// Whether what is created keeps the status that it comes with; others write that with another request.
    pub(crate) with_status: bool,
}

impl How {
    /// The server's own controllers.
    #[must_use]
    pub(crate) fn internal() -> Self {
        Self {
            user: User::internal(),
            manager: "apiserver".into(),
            dry_run: false,
            fields: FieldValidation::Ignore,
            doubts: Vec::new(),
            patching: false,
            applied: false,
            with_status: false,
        }
    }

    fn of(ask: &Ask) -> Result<Self> {
        check_options(ask)?;
        Ok(Self {
            user: ask.user.clone(),
            manager: ask.manager(),
            dry_run: ask.dry_run()?,
            fields: FieldValidation::of(ask)?,
            doubts: Vec::new(),
            patching: false,
            applied: false,
            with_status: false,
        })
    }

    /// The same for a request with a body in which something may be doubtful.
    fn with(ask: &Ask, doubts: Vec<String>) -> Result<Self> {
        Ok(Self { doubts, ..Self::of(ask)? })
    }
}

/// Options of a write that cannot be.
fn check_options(ask: &Ask) -> Result<()> {
    let mut causes = Vec::new();
    if let Some(manager) = ask.query.get("fieldManager") {
        if manager.len() > 128 {
            let message = "Too long: may not be more than 128 bytes".to_owned();
            causes.push(Cause { field: "fieldManager".into(), reason: "FieldValueTooLong".into(), message });
        } else if let Some(letter) = manager.chars().find(|letter| letter.is_control()) {
            let message = format!("should only contain printable characters, found {letter:?}");
            causes.push(Cause::invalid("fieldManager", &json!(manager), &message));
        }
    }
    if ask.verb == "patch" && ask.query.get("force").is_some() && !ask.content_type().starts_with("application/apply") {
        causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
    }
    if causes.is_empty() {
        return Ok(());
    }
    let kind = match ask.verb {
        "create" => "CreateOptions",
        "patch" => "PatchOptions",
        _ => "UpdateOptions",
    };
    Err(Failure::invalid(kind, "meta.k8s.io", "", &causes))
}

/// What becomes of fields that a kind does not have, and of those that are there twice (KEP-2885).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, with a warning.
    Warn,
    /// The request is refused.
    Strict,
}

impl FieldValidation {
    fn of(ask: &Ask) -> Result<Self> {
        match ask.query.get("fieldValidation") {
            Some("Ignore") => Ok(Self::Ignore),
            None | Some("Warn") => Ok(Self::Warn),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => {
                let supported = ["Ignore", "Strict", "Warn"].map(|one| json!(one));
                let cause = stolos_k8s::FieldError::not_supported("fieldValidation", other, &supported);
                let kind = match ask.verb {
                    "create" => "CreateOptions",
                    "patch" => "PatchOptions",
                    _ => "UpdateOptions",
                };
                Err(Failure::invalid(kind, "meta.k8s.io", "", &[Cause::from(cause)]))
            }
        }
    }
}

/// Attempts at a write that others keep overtaking.
const ATTEMPTS: usize = 32;

/// Answers a request for a resource.
///
/// # Errors
///
/// Whatever the client is to be told.
pub(crate) async fn answer(api: &Arc<Api>, ask: Ask, body: Bytes) -> Result<Response<Body>> {
    let resource = &ask.resource;
    if !resource.is_stored() {
        if ask.verb != "create" {
            return Err(Failure::method_not_allowed());
        }
        return auth::review(api, &ask, &decode_for(&ask, &body)?.0);
    }
    if !ask.target.sub.is_empty() && resource.subresource(&ask.target.sub).is_none() {
        return Err(Failure::no_such_path());
    }
    match (ask.target.sub.as_str(), ask.verb) {
        ("" | "status", "get") => get(api, &ask),
        ("", "list") => list::list(api, &ask).await,
        ("", "watch") => list::watch(api, &ask).await,
        ("", "create") => {
            if !ask.target.name.is_empty() {
                return Err(Failure::method_not_allowed());
            }
            let (object, doubts) = decode_for(&ask, &body)?;
            let how = How::with(&ask, doubts)?;
            let made = create(api, resource, &ask.target.namespace, object, &how).await?;
            Ok(route::json_bytes(201, route::render(ask.form()?, resource, &made)))
        }
        ("" | "status" | "finalize" | "ephemeralcontainers" | "resize", "update") => update(api, &ask, &body).await,
        ("" | "status" | "ephemeralcontainers" | "resize", "patch") => patch(api, &ask, &body).await,
        ("", "delete") => {
            let options = DeleteOptions::read(&ask, &body)?;
            delete_one(api, &ask, &options).await
        }
        ("", "deletecollection") => {
            let options = DeleteOptions::read(&ask, &body)?;
            delete_collection(api, &ask, &options).await
        }
        ("scale", _) => scale(api, &ask, &body).await,
        ("token", "create") => auth::token_request(api, &ask, decode_for(&ask, &body)?.0),
        ("binding", "create") => bind(api, &ask, &decode_for(&ask, &body)?.0).await,
        ("eviction", "create") => evict(api, &ask, &decode_for(&ask, &body)?.0).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Answers a GET of an object, or of its status, which is the whole object too.
///
/// # Errors
///
/// When it, or such a subresource, is not there.
pub(crate) fn get(api: &Arc<Api>, ask: &Ask) -> Result<Response<Body>> {
    let target = &ask.target;
    if !ask.resource.is_stored() {
        return Err(Failure::method_not_allowed());
    }
    if !target.sub.is_empty() && ask.resource.subresource(&target.sub).is_none() {
        return Err(Failure::no_such_path());
    }
    let found = api.state.get(&ask.resource.storage, &target.namespace, &target.name);
    let object = found.ok_or_else(|| Failure::not_found(&ask.resource.storage, &target.name))?;
    Ok(route::json_bytes(200, route::render(ask.form()?, &ask.resource, &object)))
}

/// A body, and which fields are there twice in it.
fn decode(body: &Bytes) -> Result<(Value, Vec<String>)> {
    if body.starts_with(b"k8s\0") {
        return Err(Failure::unsupported_media_type("application/vnd.kubernetes.protobuf", "application/json"));
    }
    if body.is_empty() {
        return Err(Failure::bad_request("the body of the request is empty"));
    }
    validate::read_json(body).map_err(|error| Failure::bad_request(format!("cannot read the body as JSON: {error}")))
}

/// What is applied may be YAML (of which JSON is a part); kubectl sends JSON, people with curl do not.
fn decode_yaml(body: &Bytes) -> Result<(Value, Vec<String>)> {
    if body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        return decode(body);
    }
    let read = std::str::from_utf8(body).map_err(|error| error.to_string());
    let read = read.and_then(|text| serde_saphyr::from_str(text).map_err(|error| error.to_string()));
    let read = read.map_err(|error| Failure::bad_request(format!("error decoding YAML: {error}")))?;
    Ok((read, Vec::new()))
}

fn decode_for(ask: &Ask, body: &Bytes) -> Result<(Value, Vec<String>)> {
    match ask.content_type() {
        "" | "application/json" => decode(body),
        other => Err(Failure::unsupported_media_type(other, "application/json")),
    }
}

/// Creates an object in `namespace`.
///
/// # Errors
///
/// When it exists, cannot be, is not admitted, or storage fails.
pub(crate) async fn create(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    namespace: &str,
    object: Value,
    how: &How,
) -> Result<Arc<Object>> {
    let mut object = object;
    check_type(resource, &mut object, how)?;
    let group = &resource.group;
    let metadata = meta::metadata_mut(&mut object);
    if resource.namespaced {
        let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
        let wanted = if namespace.is_empty() { given.to_owned() } else { namespace.to_owned() };
        if !given.is_empty() && given != wanted {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if wanted.is_empty() {
            return Err(Failure::bad_request("an empty namespace may not be set during creation"));
        }
        metadata.insert("namespace".into(), json!(wanted));
    } else {
        metadata.remove("namespace");
    }
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty() && v != "0") {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let generate = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    let named = metadata.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    for field in
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
    {
        metadata.remove(field);
    }
    if !how.applied {
        metadata.remove("managedFields");
    }
    if !named && generate.is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(Failure::invalid(&resource.kind, group, "", &[cause]));
    }
    let now = api.now();
    metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".into(), json!(now));
    if resource.has_generation {
        metadata.insert("generation".into(), json!(1));
    }
    if &*resource.storage == "jobs.batch" {
        defaults::job_selector(&mut object);
    }
    let namespace = meta::namespace(&object).to_owned();
    check_namespace(api, resource, &namespace, meta::name(&object))?;
    let with_status = how.with_status && object.get("status").is_some();
    if resource.has_status && !with_status && !defaults::keeps_status_at_creation(resource) {
        remove(&mut object, "status");
    }

    let mut template = Some(object);
    for _ in 0..ATTEMPTS {
        // Only with a name that is drawn may there be another attempt.
        let object = if named { template.take() } else { template.clone() };
        let Some(mut object) = object else { break };
        if !named {
            let metadata = meta::metadata_mut(&mut object);
            metadata.insert("name".into(), json!(meta::generated_name(&generate, rand::random())));
        }
        let name = meta::name(&object).to_owned();
        let key = Key { resource: Arc::clone(&resource.storage), namespace: namespace.clone(), name: name.clone() };
        if api.state.newest(&key).is_some() {
            if named {
                return Err(Failure::already_exists(&resource.storage, &name));
            }
            continue;
        }
        shape(resource, &mut object);
        if admit::mutate(api, resource, admit::Operation::Create, "", None, &mut object, how).await? {
            shape(resource, &mut object);
        }
        let _claimed = (&*resource.storage == CRDS).then(|| naming::settle(api, &mut object));
        let causes = validate::check(api, resource, None, &object);
        if !causes.is_empty() {
            return Err(Failure::invalid(&resource.kind, group, &name, &causes));
        }
        admit::validate(api, resource, admit::Operation::Create, "", None, Some(&object), how).await?;
        auth::check_escalation(api, resource, &how.user, None, &object)?;
        // Until it is stored, or not.
        let _charged = quota::charge(api, resource, (admit::Operation::Create, ""), None, &object, how).await?;
        let allocated = defaults::allocate(api, resource, None, &mut object, how.dry_run)?;
        if !how.applied {
            let by = |sub| rules::Writer { manager: &how.manager, force: false, sub, now: &now };
            rules::track_update(resource, None, &mut object, by(""));
            if with_status {
                // As if it had been written on its own.
                let mut before = json!({"metadata": object["metadata"]});
                shape(resource, &mut before);
                rules::track_update(resource, Some(&before), &mut object, by("status"));
            }
        }
        convert::to_stored(resource, &mut object);
        if how.dry_run {
            return Ok(uncommitted(object));
        }
        match api.state.commit(Write { key, expect: Expect::Absent, value: Some(object) }).await {
            Ok(made) => return Ok(made),
            Err(refused) => {
                defaults::release(api, &allocated);
                match refused {
                    Refused::Exists if !named => {}
                    Refused::Exists => return Err(Failure::already_exists(&resource.storage, &name)),
                    refused => return Err(storage_failure(resource, &name, &refused)),
                }
            }
        }
    }
    Err(Failure::already_exists(&resource.storage, &generate))
}

/// Changes an object by computing the new one from the newest one, as often as needed.
///
/// `sub` is empty, or the subresource written through: then only its part of the new object counts.
///
/// # Errors
///
/// When the object is not there, cannot be changed like this, or others were faster.
pub(crate) async fn change(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    (namespace, name, sub): (&str, &str, &str),
    how: &How,
    compute: impl Fn(&Value) -> Result<Value>,
) -> Result<Arc<Object>> {
    let key = Key { resource: Arc::clone(&resource.storage), namespace: namespace.to_owned(), name: name.to_owned() };
    for attempt in 0..ATTEMPTS {
        if attempt > 3 {
            // Somebody writes this object without a break: step aside for a moment.
            tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(1..10))).await;
        }
        let old = api.state.newest(&key).ok_or_else(|| Failure::not_found(&resource.storage, name))?;
        let before = convert::shown(resource, &old.value);
        let before: &Value = &before;
        let mut new = compute(before)?;
        check_type(resource, &mut new, how)?;
        keep_metadata(resource, before, &mut new, name, namespace)?;
        let mut new = merge_part(resource, sub, before, new)?;
        shape(resource, &mut new);
        if admit::mutate(api, resource, admit::Operation::Update, sub, Some(before), &mut new, how).await? {
            shape(resource, &mut new);
        }
        let _claimed = (&*resource.storage == CRDS).then(|| naming::settle(api, &mut new));
        if resource.has_generation && !rules::same_but_metadata_and_status(before, &new) {
            meta::metadata_mut(&mut new).insert("generation".into(), json!(meta::generation(before) + 1));
        }
        let causes = validate::check(api, resource, Some(before), &new);
        if !causes.is_empty() {
            return Err(Failure::invalid(&resource.kind, &resource.group, name, &causes));
        }
        admit::validate(api, resource, admit::Operation::Update, sub, Some(before), Some(&new), how).await?;
        auth::check_escalation(api, resource, &how.user, Some(before), &new)?;
        let _charged = quota::charge(api, resource, (admit::Operation::Update, sub), Some(before), &new, how).await?;
        let allocated = defaults::allocate(api, resource, Some(before), &mut new, how.dry_run)?;
        if !how.applied {
            let by = rules::Writer { manager: &how.manager, force: false, sub, now: &api.now() };
            rules::track_update(resource, Some(before), &mut new, by);
        }
        if rules::same(before, &new) {
            return Ok(old);
        }
        convert::to_stored(resource, &mut new);
        if how.dry_run {
            return Ok(uncommitted(new));
        }
        let finished = is_finished(resource, &new);
        let write = Write { key: key.clone(), expect: Expect::Revision(old.revision), value: Some(new) };
        // An object that only waited for its last finalizer goes with it; its last state is the answer.
        let write = if finished { Write { value: None, ..write } } else { write };
        match api.state.commit(write).await {
            Ok(made) => return Ok(made),
            Err(Refused::Conflict) => defaults::release(api, &allocated),
            Err(Refused::Missing) => return Err(Failure::not_found(&resource.storage, name)),
            Err(refused) => return Err(storage_failure(resource, name, &refused)),
        }
    }
    Err(Failure::modified(&resource.storage, name))
}

/// What a deletion is asked to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    /// The object must have this UID.
    pub(crate) uid: Option<String>,
    /// The object must be at this revision.
    pub(crate) resource_version: Option<String>,
    /// What becomes of dependents: `Foreground`, `Background`, `Orphan`.
    pub(crate) propagation: Option<String>,
    /// Seconds that a pod may take.
    pub(crate) grace: Option<i64>,
    /// Compute everything, write nothing.
    pub(crate) dry_run: bool,
}

/// Whether options ask for a dry run.
fn dry_run_of(options: &Value) -> Result<bool> {
    let values = options["dryRun"].as_array().into_iter().flatten();
    route::is_dry_run("DeleteOptions", values.filter_map(Value::as_str))
}

impl DeleteOptions {
    fn read(ask: &Ask, body: &Bytes) -> Result<Self> {
        let given = if body.is_empty() { json!({}) } else { decode(body)?.0 };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let orphan =
            given["orphanDependents"].as_bool().or_else(|| ask.query.get("orphanDependents").map(|v| v == "true"));
        let both = given["orphanDependents"].is_boolean() && given["propagationPolicy"].is_string();
        if both {
            let message = "orphanDependents and deletionPropagation cannot be both set";
            let cause = Cause::invalid("propagationPolicy", &given["propagationPolicy"], message);
            return Err(Failure::invalid("DeleteOptions", "meta.k8s.io", "", &[cause]));
        }
        let from_orphan = orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned());
        let propagation = text(&given["propagationPolicy"])
            .or_else(|| ask.query.get("propagationPolicy").map(str::to_owned))
            .or(from_orphan);
        if let Some(policy) = &propagation
            && !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan")
        {
            let cause = Cause::invalid("propagationPolicy", &json!(policy), "must be Foreground, Background or Orphan");
            return Err(Failure::invalid("DeleteOptions", "meta.k8s.io", "", &[cause]));
        }
        let grace = given["gracePeriodSeconds"].as_i64();
        Ok(Self {
            uid: text(&given["preconditions"]["uid"]),
            resource_version: text(&given["preconditions"]["resourceVersion"]),
            propagation,
            grace: if grace.is_some() { grace } else { ask.query.number("gracePeriodSeconds")? },
            dry_run: ask.dry_run()? || dry_run_of(&given)?,
        })
    }
}

impl DeleteOptions {
    /// How it is done: a dry run may be asked for in the options, and webhooks are to know of it.
    fn how(&self, ask: &Ask) -> Result<How> {
        let how = How::of(ask)?;
        Ok(How { dry_run: self.dry_run || how.dry_run, ..how })
    }
}

/// What became of an object that was to be deleted.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// It is gone; this was its last state.
    Gone(Arc<Object>),
    /// It is on its way out.
    Going(Arc<Object>),
}

/// Deletes an object, or begins to.
///
/// # Errors
///
/// When it is not there, a precondition does not hold, or it may not be deleted.
pub(crate) async fn delete(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    (namespace, name): (&str, &str),
    options: &DeleteOptions,
    how: &How,
) -> Result<Deleted> {
    let key = Key { resource: Arc::clone(&resource.storage), namespace: namespace.to_owned(), name: name.to_owned() };
    if &*resource.storage == "namespaces" && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(Failure::forbidden("namespaces", name, "this namespace may not be deleted"));
    }
    for _ in 0..ATTEMPTS {
        let old = api.state.newest(&key).ok_or_else(|| Failure::not_found(&resource.storage, name))?;
        check_preconditions(resource, name, &old.value, options)?;
        admit::delete(api, resource, &convert::shown(resource, &old.value), how).await?;
        let next = next_on_delete(resource, &old.value, options, &api.now(), api.now_plus(0));
        let value = match next {
            OnDelete::Keep => return Ok(Deleted::Going(old)),
            OnDelete::Remove => None,
            OnDelete::Mark(value) => Some(value),
        };
        if how.dry_run || options.dry_run {
            return Ok(
                value.map_or_else(|| Deleted::Gone(Arc::clone(&old)), |value| Deleted::Going(uncommitted(value)))
            );
        }
        let gone = value.is_none();
        match api.state.commit(Write { key: key.clone(), expect: Expect::Revision(old.revision), value }).await {
            Ok(object) => {
                return Ok(if gone { Deleted::Gone(object) } else { Deleted::Going(object) });
            }
            Err(Refused::Conflict) => {}
            Err(Refused::Missing) => return Err(Failure::not_found(&resource.storage, name)),
            Err(refused) => return Err(storage_failure(resource, name, &refused)),
        }
    }
    Err(Failure::modified(&resource.storage, name))
}

enum OnDelete {
    /// Nothing new: it is going already.
    Keep,
    /// It goes now.
    Remove,
    /// It stays for a while, marked like this.
    Mark(Value),
}

/// Kinds whose dependents stay when nothing is said of them: they did so before there was garbage collection.
fn orphans_by_default(resource: &Resource) -> bool {
    matches!(&*resource.storage, "jobs.batch" | "replicationcontrollers")
}

/// What a deletion makes of an object. Pure.
fn next_on_delete(
    resource: &Resource,
    old: &Value,
    options: &DeleteOptions,
    now: &str,
    now_time: jiff::Timestamp,
) -> OnDelete {
    let mut finalizers: Vec<String> = meta::finalizers(old).into_iter().map(str::to_owned).collect();
    let waiting = ["orphan", "foregroundDeletion"];
    match options.propagation.as_deref() {
        Some("Orphan") => {
            finalizers.retain(|f| f != "foregroundDeletion");
            if !finalizers.iter().any(|f| f == "orphan") {
                finalizers.push("orphan".into());
            }
        }
        Some("Foreground") => {
            finalizers.retain(|f| f != "orphan");
            if !finalizers.iter().any(|f| f == "foregroundDeletion") {
                finalizers.push("foregroundDeletion".into());
            }
        }
        Some(_) => finalizers.retain(|f| !waiting.contains(&f.as_str())),
        None if orphans_by_default(resource) && !finalizers.iter().any(|f| waiting.contains(&f.as_str())) => {
            finalizers.push("orphan".into());
        }
        None => {}
    }
    let going = meta::deletion_timestamp(old).is_some();
    let is_pod = &*resource.storage == "pods";
    let mut grace = 0;
    if is_pod {
        let spec_grace = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        grace = options.grace.unwrap_or(spec_grace).max(0);
        let idle = old["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
        let over = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if idle || over {
            grace = 0;
        }
    }
    let namespace_content =
        &*resource.storage == "namespaces" && old["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    if finalizers.is_empty() && grace == 0 && !namespace_content {
        return OnDelete::Remove;
    }
    let mut new = old.clone();
    let metadata = meta::metadata_mut(&mut new);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
    let old_grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if !going || (is_pod && grace < old_grace) {
        let at = now_time + jiff::SignedDuration::from_secs(grace);
        let at = if grace == 0 { now.to_owned() } else { seconds(at) };
        metadata.insert("deletionTimestamp".into(), json!(at));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
        if resource.has_generation && !going {
            metadata.insert("generation".into(), json!(meta::generation(old) + 1));
        }
    }
    if namespace_content {
        new["status"]["phase"] = json!("Terminating");
    }
    if rules::same(old, &new) { OnDelete::Keep } else { OnDelete::Mark(new) }
}

/// A time as Kubernetes writes it.
#[must_use]
pub(crate) fn seconds(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn check_preconditions(resource: &Resource, name: &str, old: &Value, options: &DeleteOptions) -> Result<()> {
    let checks = [
        ("UID", options.uid.as_deref(), meta::uid(old)),
        ("ResourceVersion", options.resource_version.as_deref(), meta::resource_version(old)),
    ];
    for (what, wanted, found) in checks {
        if let Some(wanted) = wanted
            && wanted != found
        {
            let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
            return Err(Failure::conflict(&resource.storage, name, &why));
        }
    }
    Ok(())
}

async fn delete_one(api: &Arc<Api>, ask: &Ask, options: &DeleteOptions) -> Result<Response<Body>> {
    let (resource, target) = (&ask.resource, &ask.target);
    let how = options.how(ask)?;
    Ok(match delete(api, resource, (&target.namespace, &target.name), options, &how).await? {
        Deleted::Gone(object) if &*resource.storage != "pods" => {
            let status = failure::success(&resource.storage, &target.name, meta::uid(&object.value));
            route::json_value(200, &status)
        }
        Deleted::Gone(object) | Deleted::Going(object) => {
            route::json_bytes(200, route::render(ask.form()?, resource, &object))
        }
    })
}

async fn delete_collection(api: &Arc<Api>, ask: &Ask, options: &DeleteOptions) -> Result<Response<Body>> {
    use futures::{StreamExt as _, TryStreamExt as _};
    let how = options.how(ask)?;
    let selection = list::selection(ask)?;
    let (objects, revision) =
        api.state.cache(&ask.resource.storage).snapshot(&ask.target.namespace, api.state.revision());
    let chosen: Vec<_> = objects.into_iter().filter(|object| selection.matches(&object.value)).collect();
    let deletions = chosen.iter().cloned().map(|object| {
        let how = &how;
        async move {
            let place = (meta::namespace(&object.value), meta::name(&object.value));
            match delete(api, &ask.resource, place, options, how).await {
                Err(failure) if failure.code == 404 => Ok(()),
                other => other.map(|_| ()),
            }
        }
    });
    futures::stream::iter(deletions).buffer_unordered(64).try_collect::<Vec<()>>().await?;
    Ok(route::json_bytes(200, list::encode(ask.form()?, &ask.resource, &chosen, revision, None)))
}

async fn update(api: &Arc<Api>, ask: &Ask, body: &Bytes) -> Result<Response<Body>> {
    let (resource, target) = (&ask.resource, &ask.target);
    let (given, doubts) = decode_for(ask, body)?;
    let name = meta::name(&given);
    if !name.is_empty() && name != target.name {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({})", target.name);
        return Err(Failure::bad_request(message));
    }
    let namespace = meta::namespace(&given);
    if resource.namespaced && !namespace.is_empty() && namespace != target.namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if resource.custom.is_some() && meta::resource_version(&given).is_empty() {
        let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        return Err(Failure::invalid(&resource.kind, &resource.group, &target.name, &[cause]));
    }
    let place = (target.namespace.as_str(), target.name.as_str(), target.sub.as_str());
    let how = How::with(ask, doubts)?;
    let made = change(api, resource, place, &how, |_| Ok(given.clone())).await?;
    Ok(route::json_bytes(200, route::render(ask.form()?, resource, &made)))
}

async fn patch(api: &Arc<Api>, ask: &Ask, body: &Bytes) -> Result<Response<Body>> {
    let (resource, target) = (&ask.resource, &ask.target);
    let accepted = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                    application/apply-patch+yaml";
    let kind = match ask.content_type() {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" if resource.custom.is_none() => PatchKind::Strategic,
        "application/apply-patch+yaml" | "application/apply-patch+json" => return apply(api, ask, body).await,
        other => return Err(Failure::unsupported_media_type(other, accepted)),
    };
    let (patch, doubts) = decode(body)?;
    let place = (target.namespace.as_str(), target.name.as_str(), target.sub.as_str());
    let how = How { patching: true, ..How::with(ask, doubts)? };
    let made = change(api, resource, place, &how, |now| rules::patch(kind, resource, now, &patch)).await?;
    Ok(route::json_bytes(200, route::render(ask.form()?, resource, &made)))
}

/// The manager of an apply: who owns fields has to have a name.
fn applier(ask: &Ask) -> Result<&str> {
    ask.query.get("fieldManager").filter(|manager| !manager.is_empty()).ok_or_else(|| {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        Failure::invalid("PatchOptions", "meta.k8s.io", "", &[cause])
    })
}

async fn apply(api: &Arc<Api>, ask: &Ask, body: &Bytes) -> Result<Response<Body>> {
    let (resource, target) = (&ask.resource, &ask.target);
    let manager = applier(ask)?;
    let (mut applied, doubts) = decode_yaml(body)?;
    let how = How::with(ask, doubts)?;
    report(resource, &applied, &how, &how.doubts)?;
    let unknown = identify(resource, &mut applied)?;
    if !unknown.is_empty() {
        // Whatever `fieldValidation` says: nobody can own a field that no schema declares.
        let (object, kind) = (format!("{}/{}", target.namespace, target.name), &resource.kind);
        let unknown: Vec<_> = unknown.iter().map(|path| format!(".{path}: field not declared in schema")).collect();
        let message = format!(
            "failed to create typed patch object ({}; {}, Kind={kind}): {}",
            object.trim_start_matches('/'),
            resource.api_version(),
            unknown.join("\n"),
        );
        return Err(Failure::other(500, "", message));
    }
    if applied["metadata"]["managedFields"].as_array().is_some_and(|list| !list.is_empty()) {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    let name = meta::name(&applied);
    if !name.is_empty() && name != target.name {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({})", target.name);
        return Err(Failure::bad_request(message));
    }
    let metadata = meta::metadata_mut(&mut applied);
    metadata.insert("name".into(), json!(target.name));
    if resource.namespaced {
        metadata.insert("namespace".into(), json!(target.namespace));
    }
    let (force, now) = (ask.query.is("force"), api.now());
    let how = How { applied: true, manager: manager.to_owned(), doubts: Vec::new(), ..how };
    let place = (target.namespace.as_str(), target.name.as_str(), target.sub.as_str());
    let (wanted_uid, wanted_version) = (meta::uid(&applied).to_owned(), meta::resource_version(&applied).to_owned());
    let by = |current: Option<&Value>| {
        let found = current.map(|current| (meta::uid(current), meta::resource_version(current))).unwrap_or_default();
        if !wanted_uid.is_empty() && wanted_uid != found.0 {
            let why =
                format!("Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {}", found.0);
            return Err(Failure::conflict(&resource.storage, &target.name, &why));
        }
        if !wanted_version.is_empty() && wanted_version != found.1 {
            return Err(Failure::modified(&resource.storage, &target.name));
        }
        let writer = rules::Writer { manager, force, sub: &target.sub, now: &now };
        rules::apply(resource, current, &applied, writer).map_err(|failure| match failure.code {
            // What has no place in the kind's schema fails as in Kubernetes, where it is no object at all.
            400 => {
                let object = format!("{}/{}", target.namespace, target.name);
                let message = format!(
                    "failed to create typed patch object ({}; {}, Kind={}): {}",
                    object.trim_start_matches('/'),
                    resource.api_version(),
                    resource.kind,
                    failure.message
                );
                Failure::other(500, "", message)
            }
            _ => failure,
        })
    };
    for _ in 0..ATTEMPTS {
        match change(api, resource, place, &how, |current| by(Some(current))).await {
            Err(failure) if failure.code == 404 && target.sub.is_empty() => {}
            Ok(made) => return Ok(route::json_bytes(200, route::render(ask.form()?, resource, &made))),
            Err(failure) => return Err(failure),
        }
        auth::authorize(api, &ask.user, "create", &crate::route::Target { name: String::new(), ..target.clone() })?;
        match create(api, resource, &target.namespace, by(None)?, &how).await {
            // Somebody created it in between: apply to theirs.
            Err(failure) if failure.reason == "AlreadyExists" => {}
            Ok(made) => return Ok(route::json_bytes(201, route::render(ask.form()?, resource, &made))),
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::modified(&resource.storage, &target.name))
}

async fn scale(api: &Arc<Api>, ask: &Ask, body: &Bytes) -> Result<Response<Body>> {
    let (resource, target) = (&ask.resource, &ask.target);
    let current = api.state.get(&resource.storage, &target.namespace, &target.name);
    let current = current.ok_or_else(|| Failure::not_found(&resource.storage, &target.name))?;
    let path = scale_path(resource, "specReplicasPath", "/spec/replicas");
    let place = (target.namespace.as_str(), target.name.as_str(), "scale");
    let invalid = |cause: Cause| Failure::invalid("Scale", "autoscaling", &target.name, &[cause]);
    let replicas = |given: &Value| match &given["spec"]["replicas"] {
        Value::Null => Ok(0),
        value => match value.as_i64() {
            Some(count) if count >= 0 => Ok(count),
            Some(count) => {
                let cause = Cause::invalid("spec.replicas", &json!(count), "must be greater than or equal to 0");
                Err(invalid(cause))
            }
            None => Err(Failure::bad_request("Scale in version \"v1\" cannot be handled as a Scale: spec.replicas")),
        },
    };
    let made = match (ask.verb, ask.content_type()) {
        ("get", _) => return Ok(route::json_value(200, &scale_of(resource, &current.value))),
        ("patch", "application/apply-patch+yaml" | "application/apply-patch+json") => {
            let manager = applier(ask)?;
            let (given, _) = decode_yaml(body)?;
            if given["kind"].as_str().is_some_and(|kind| kind != "Scale") {
                return Err(Failure::bad_request("the applied configuration is no Scale"));
            }
            let mut wanted = json!({"apiVersion": resource.api_version(), "kind": resource.kind,
                "metadata": {"name": target.name}});
            if resource.namespaced {
                wanted["metadata"]["namespace"] = json!(target.namespace);
            }
            if !given["spec"]["replicas"].is_null() {
                rules::set(&mut wanted, &path, json!(replicas(&given)?));
            }
            let (force, now) = (ask.query.is("force"), api.now());
            let how = How { applied: true, manager: manager.to_owned(), ..How::of(ask)? };
            let by = rules::Writer { manager, force, sub: "scale", now: &now };
            change(api, resource, place, &how, |now| rules::apply(resource, Some(now), &wanted, by)).await?
        }
        ("update" | "patch", kind) => {
            let (body, _) = decode(body)?;
            let kind = if kind == "application/json-patch+json" { PatchKind::Json } else { PatchKind::Merge };
            change(api, resource, place, &How::of(ask)?, |now| {
                let given = match ask.verb {
                    "update" => body.clone(),
                    _ => rules::patch(kind, resource, &scale_of(resource, now), &body)?,
                };
                let seen = meta::resource_version(&given);
                if !seen.is_empty() && seen != meta::resource_version(now) {
                    return Err(Failure::modified(&resource.storage, &target.name));
                }
                let mut new = now.clone();
                rules::set(&mut new, &path, json!(replicas(&given)?));
                Ok(new)
            })
            .await?
        }
        _ => return Err(Failure::method_not_allowed()),
    };
    Ok(route::json_value(200, &scale_of(resource, &made.value)))
}

fn scale_path(resource: &Resource, field: &str, default: &str) -> String {
    let custom = resource.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    custom.and_then(|scale| scale[field].as_str()).map_or_else(|| default.to_owned(), |path| path.replace('.', "/"))
}

fn scale_of(resource: &Resource, object: &Value) -> Value {
    let number = |path: String| object.pointer(&path).and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({"replicas": number(scale_path(resource, "statusReplicasPath", "/status/replicas"))});
    if resource.custom.is_some() {
        let selector = object.pointer(&scale_path(resource, "labelSelectorPath", "/-")).and_then(Value::as_str);
        if let Some(selector) = selector {
            status["selector"] = json!(selector);
        }
    } else {
        status["selector"] = json!(rules::selector_text(&object["spec"]["selector"]));
    }
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": number(scale_path(resource, "specReplicasPath", "/spec/replicas"))},
        "status": status,
    })
}

async fn bind(api: &Arc<Api>, ask: &Ask, binding: &Value) -> Result<Response<Body>> {
    let (resource, target) = (&ask.resource, &ask.target);
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        let cause = Cause::required("target.name", "");
        return Err(Failure::invalid("Binding", "", &target.name, &[cause]));
    }
    let now = api.now();
    let place = (target.namespace.as_str(), target.name.as_str(), "binding");
    change(api, resource, place, &How::of(ask)?, |pod| {
        let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if !bound.is_empty() {
            let why = format!("pod {} is already assigned to node {bound:?}", target.name);
            return Err(Failure::conflict("pods/binding", &target.name, &why));
        }
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = json!(node);
        rules::set_condition(&mut pod, &json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now}));
        Ok(pod)
    })
    .await?;
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(route::json_value(201, &done))
}

async fn evict(api: &Arc<Api>, ask: &Ask, eviction: &Value) -> Result<Response<Body>> {
    let (resource, target) = (&ask.resource, &ask.target);
    let place = (target.namespace.as_str(), target.name.as_str());
    let pod = api.state.get("pods", place.0, place.1).ok_or_else(|| Failure::not_found("pods", place.1))?;
    for budget in api.state.cache("poddisruptionbudgets.policy").list(place.0) {
        let budget = &budget.value;
        if rules::label_selector_matches(&budget["spec"]["selector"], &pod.value["metadata"]["labels"])
            && budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) <= 0
        {
            let message = "Cannot evict pod as it would violate the pod's disruption budget.";
            return Err(Failure::too_many_requests(message));
        }
    }
    let options = &eviction["deleteOptions"];
    let options = DeleteOptions {
        grace: options["gracePeriodSeconds"].as_i64(),
        uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
        dry_run: dry_run_of(options)? || ask.dry_run()?,
        ..DeleteOptions::default()
    };
    delete(api, resource, place, &options, &options.how(ask)?).await?;
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(route::json_value(201, &done))
}

/// The object says what it is, and it is what it was sent as.
fn check_type(resource: &Resource, object: &mut Value, how: &How) -> Result<()> {
    let unknown = identify(resource, object)?;
    let unknown = unknown.into_iter().map(|path| format!("unknown field {path:?}"));
    let doubts: Vec<String> = how.doubts.iter().cloned().chain(unknown).collect();
    report(resource, object, how, &doubts)
}

/// Checks that an object is of the kind it was sent as, takes out what that kind does not have, and says what it was.
fn identify(resource: &Resource, object: &mut Value) -> Result<Vec<String>> {
    if !object.is_object() {
        return Err(Failure::bad_request("the body of the request is not an object"));
    }
    let (api_version, kind) = (meta::api_version(object), meta::kind(object));
    if !kind.is_empty() && kind != resource.kind {
        let message = format!("{kind} in version {:?} cannot be handled as a {}", resource.version, resource.kind);
        return Err(Failure::bad_request(message));
    }
    if !api_version.is_empty() && api_version != resource.api_version() {
        let message = format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            resource.api_version()
        );
        return Err(Failure::bad_request(message));
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind);
    if object["metadata"].is_null() {
        object["metadata"] = json!({});
    }
    let mut unknown = validate::read(resource, object)?;
    if let Some(schema) = resource.custom.as_ref().and_then(|custom| custom.schema.as_ref()) {
        unknown.extend(schema.prune(object));
    }
    Ok(unknown)
}

/// Tells the client of fields that are not known or there twice, in the way it asked for.
fn report(resource: &Resource, object: &Value, how: &How, doubts: &[String]) -> Result<()> {
    if doubts.is_empty() {
        return Ok(());
    }
    match how.fields {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            doubts.iter().for_each(|doubt| warning::add(doubt.as_str()));
            Ok(())
        }
        FieldValidation::Strict => {
            let said = format!("strict decoding error: {}", doubts.join(", "));
            if how.patching {
                let cause = Cause::invalid("patch", &json!(object.to_string()), &said);
                return Err(Failure::invalid("", "", "", &[cause]));
            }
            let (kind, version) = (&resource.kind, &resource.version);
            Err(Failure::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {said}")))
        }
    }
}

fn check_namespace(api: &Api, resource: &Resource, namespace: &str, name: &str) -> Result<()> {
    if namespace.is_empty() {
        return Ok(());
    }
    let found = api.state.get("namespaces", "", namespace);
    let found = found.ok_or_else(|| Failure::not_found("namespaces", namespace))?;
    if meta::deletion_timestamp(&found.value).is_some() {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut failure = Failure::forbidden(&resource.storage, name, &why);
        failure.details["causes"] = json!([{"reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"), "field": "metadata.namespace"}]);
        return Err(failure);
    }
    Ok(())
}

/// Puts an object into its right shape: unknown fields cut off, defaults filled in.
fn shape(resource: &Resource, object: &mut Value) {
    if let Some(custom) = &resource.custom {
        if let Some(schema) = &custom.schema {
            schema.prune(object);
            schema.default(object);
        }
    } else {
        defaults::fill(resource, object);
    }
}

/// What a client cannot change stays as it was.
fn keep_metadata(resource: &Resource, before: &Value, new: &mut Value, name: &str, namespace: &str) -> Result<()> {
    let uid = meta::uid(new);
    if !uid.is_empty() && uid != meta::uid(before) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(before));
        return Err(Failure::conflict(&resource.storage, name, &why));
    }
    let seen = meta::resource_version(new);
    if !seen.is_empty() && seen != "0" && seen != meta::resource_version(before) {
        return Err(Failure::modified(&resource.storage, name));
    }
    let given = meta::name(new);
    if !given.is_empty() && given != name {
        let cause = Cause::invalid("metadata.name", &json!(given), "field is immutable");
        return Err(Failure::invalid(&resource.kind, &resource.group, name, &[cause]));
    }
    let old = &before["metadata"];
    let no_managers = new["metadata"]["managedFields"].is_null();
    let metadata = meta::metadata_mut(new);
    metadata.insert("name".into(), json!(name));
    if resource.namespaced {
        metadata.insert("namespace".into(), json!(namespace));
    } else {
        metadata.remove("namespace");
    }
    let fixed = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "generateName",
    ];
    for field in fixed {
        match old.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("selfLink");
    metadata.retain(|_, value| !value.is_null());
    if no_managers && let Some(managers) = old.get("managedFields") {
        metadata.insert("managedFields".into(), managers.clone());
    }
    Ok(())
}

/// The object with only the part changed that a subresource is for.
fn merge_part(resource: &Resource, sub: &str, before: &Value, mut new: Value) -> Result<Value> {
    let carry = |field: &str, from: &Value, to: &mut Value| match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => remove(to, field),
    };
    Ok(match sub {
        "status" => {
            let mut kept = before.clone();
            carry("status", &new, &mut kept);
            if let Some(managers) = new["metadata"].get("managedFields") {
                kept["metadata"]["managedFields"] = managers.clone();
            }
            kept
        }
        "finalize" => {
            let mut kept = before.clone();
            kept["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
            kept
        }
        "" => {
            if resource.has_status {
                carry("status", before, &mut new);
            }
            if &*resource.storage == "namespaces" {
                carry("spec", before, &mut new);
            }
            new
        }
        _ => new,
    })
}

/// Whether nothing keeps an object that is to go.
fn is_finished(resource: &Resource, object: &Value) -> bool {
    if meta::deletion_timestamp(object).is_none() || !meta::finalizers(object).is_empty() {
        return false;
    }
    match &*resource.storage {
        "pods" => object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0,
        "namespaces" => object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty),
        _ => true,
    }
}

fn uncommitted(value: Value) -> Arc<Object> {
    let json = Bytes::from(serde_json::to_vec(&value).unwrap_or_default());
    Object::new(value, json, 0)
}

fn storage_failure(resource: &Resource, name: &str, refused: &Refused) -> Failure {
    match refused {
        Refused::Conflict => Failure::modified(&resource.storage, name),
        Refused::Exists => Failure::already_exists(&resource.storage, name),
        Refused::Missing => Failure::not_found(&resource.storage, name),
        Refused::TooDeep => Failure::bad_request("the object, or what is said of its fields, is nested too deep"),
        Refused::Storage => Failure::unavailable("storage is not accepting writes"),
    }
}

fn remove(object: &mut Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(field);
    }
}
