//! Reading and writing objects of any kind, as JSON values.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
    WatchParams,
};
use kube::core::{ApiResource, DynamicResourceScope, GroupVersionKind, Request, WatchEvent};
use serde_json::Value;
use stolos_k8s::meta;

use crate::{Bare, Error};

/// How long one request may take.
pub const ANSWER: Duration = Duration::from_secs(30);

/// A kind of object, and how its API is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// `apiVersion`, such as `apps/v1`.
    pub api_version: String,
    /// `kind`, such as `Deployment`.
    pub kind: String,
    /// The resource in URLs, such as `deployments`.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// The resource of an object, by its `apiVersion` and `kind`: the built-in kinds and Istio's.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownKind`] for any other.
    pub fn of(object: &Value) -> Result<Self, Error> {
        let (api_version, kind) =
            (text(object, "/apiVersion").unwrap_or_default(), text(object, "/kind").unwrap_or_default());
        Self::named(api_version, kind)
    }

    /// The resource of a kind: the built-in kinds and Istio's.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownKind`] for any other.
    pub fn named(api_version: &str, kind: &str) -> Result<Self, Error> {
        let (plural, namespaced) = match stolos_k8s::kind::find_kind(api_version, kind) {
            Some(known) => (known.plural.to_owned(), known.namespaced),
            // Istio's kinds are all namespaced, with regular plurals (istio/api 1.30).
            None if api_version.split('/').next().is_some_and(|group| group.ends_with(".istio.io")) => {
                let lower = kind.to_lowercase();
                (lower.strip_suffix('y').map_or_else(|| format!("{lower}s"), |stem| format!("{stem}ies")), true)
            }
            None => return Err(Error::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() }),
        };
        // `gateways`, but also `policies`: only a consonant before the `y` changes it.
        let plural = plural.strip_suffix("waies").map_or(plural.clone(), |stem| format!("{stem}ways"));
        Ok(Self { api_version: api_version.to_owned(), kind: kind.to_owned(), plural, namespaced })
    }

    /// The API of this kind, in one namespace or in all.
    #[must_use]
    pub fn api(&self, client: &kube::Client, namespace: Option<&str>) -> Api<DynamicObject> {
        self.api_of(client, namespace)
    }

    /// The same, of objects as [`Bare`] ones.
    #[must_use]
    pub fn bare_api(&self, client: &kube::Client, namespace: Option<&str>) -> Api<Bare> {
        self.api_of(client, namespace)
    }

    fn api_of<K>(&self, client: &kube::Client, namespace: Option<&str>) -> Api<K>
    where
        K: kube::Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
    {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &self.kind), &self.plural);
        match namespace {
            Some(namespace) if self.namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
            _ => Api::all_with(client.clone(), &resource),
        }
    }
}

/// The object called `name`, or `None` when there is none.
///
/// # Errors
///
/// When the API server cannot be asked or refuses.
pub async fn get(
    client: &kube::Client,
    resource: &Resource,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<Value>, Error> {
    let what = || format!("get {}", describe(resource, namespace, name));
    let found = bounded(what, resource.api(client, namespace).get_opt(name)).await?;
    Ok(found.map(to_value))
}

/// Every object of a kind, in one namespace or in all. A kind that the cluster does not know has none.
///
/// # Errors
///
/// When the API server cannot be asked or refuses.
pub async fn list(
    client: &kube::Client,
    resource: &Resource,
    namespace: Option<&str>,
    labels: Option<&str>,
) -> Result<Vec<Value>, Error> {
    let what = || format!("list {}", resource.plural);
    let api = resource.api(client, namespace);
    let mut params = ListParams::default().limit(500);
    if let Some(labels) = labels {
        params = params.labels(labels);
    }
    let mut all = Vec::new();
    loop {
        let page = match bounded(what, api.list(&params)).await {
            Ok(page) => page,
            Err(error) if error.is_not_found() => return Ok(all),
            Err(error) => return Err(error),
        };
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        // Lists leave the kind of their items out; an object without it cannot be written back.
        all.extend(page.items.into_iter().map(|mut item| {
            item.types.get_or_insert_with(|| kube::core::TypeMeta {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
            });
            to_value(item)
        }));
        match next {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// What became of an object that is watched.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It is like this now.
    Is(Value),
    /// It is gone; this is what it was.
    Gone(Value),
}

/// Follows the objects of a kind in one namespace or in all, by name, by labels or both: first those that are there, then
/// every change. Ends when the API server ends it, which it does every few minutes.
///
/// # Errors
///
/// When the API server cannot be asked or refuses.
pub async fn watch(
    client: &kube::Client,
    resource: &Resource,
    namespace: Option<&str>,
    name: Option<&str>,
    labels: Option<&str>,
) -> Result<impl Stream<Item = Result<Event, Error>> + Send + use<>, Error> {
    let what = format!("watch {}", resource.plural);
    let mut params = WatchParams { bookmarks: false, ..WatchParams::default() };
    params.field_selector = name.map(|name| format!("metadata.name={name}"));
    params.label_selector = labels.map(str::to_owned);
    let changes = bounded(|| what.clone(), resource.api(client, namespace).watch(&params, "")).await?;
    Ok(changes.filter_map(move |event| {
        let failed = |source| Error::Request { what: what.clone(), source: Box::new(source) };
        std::future::ready(match event {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => Some(Ok(Event::Is(to_value(object)))),
            Ok(WatchEvent::Deleted(object)) => Some(Ok(Event::Gone(to_value(object)))),
            Ok(WatchEvent::Bookmark(_)) => None,
            Ok(WatchEvent::Error(status)) => Some(Err(failed(kube::Error::Api(status)))),
            Err(source) => Some(Err(failed(source))),
        })
    }))
}

/// Server-side apply of `object` as `manager`, taking over fields that others own when `force` is set.
///
/// # Errors
///
/// When the API server cannot be asked or refuses.
pub async fn apply(
    client: &kube::Client,
    resource: &Resource,
    object: &Value,
    manager: &str,
    force: bool,
) -> Result<Value, Error> {
    let (namespace, name) = place(object);
    let what = || format!("apply {}", describe(resource, namespace, name));
    let mut params = PatchParams::apply(manager);
    params.force = force;
    bounded(what, resource.api(client, namespace).patch(name, &params, &Patch::Apply(object))).await.map(to_value)
}

/// Creates `object` as `manager`; what it is then, without `managedFields`.
///
/// # Errors
///
/// When the API server cannot be asked or refuses, such as with 409 where there is one of its name.
pub async fn create(client: &kube::Client, resource: &Resource, object: &Value, manager: &str) -> Result<Value, Error> {
    let (namespace, name) = place(object);
    let what = || format!("create {}", describe(resource, namespace, name));
    let params = PostParams { dry_run: false, field_manager: Some(manager.to_owned()) };
    let url = Request::new(resource.bare_api(client, namespace).resource_url());
    write(client, what, url.create(&params, object.to_string().into_bytes())).await
}

/// Puts `object` in the place of the one of its name, as `manager`; of that very revision where the object names one. What
/// it is then, without `managedFields`.
///
/// # Errors
///
/// When the API server cannot be asked or refuses, such as with 409 where somebody was faster.
pub async fn replace(
    client: &kube::Client,
    resource: &Resource,
    object: &Value,
    manager: &str,
) -> Result<Value, Error> {
    let (namespace, name) = place(object);
    let what = || format!("replace {}", describe(resource, namespace, name));
    let params = PostParams { dry_run: false, field_manager: Some(manager.to_owned()) };
    let url = Request::new(resource.bare_api(client, namespace).resource_url());
    write(client, what, url.replace(name, &params, object.to_string().into_bytes())).await
}

/// Merges `patch` (RFC 7386) into the object called `name`, as `manager`: into its status where `status` is set, into
/// everything else where it is not. What it is then, without `managedFields`.
///
/// # Errors
///
/// When the API server cannot be asked or refuses.
pub async fn merge(
    client: &kube::Client,
    resource: &Resource,
    (namespace, name): (Option<&str>, &str),
    patch: &Value,
    status: bool,
    manager: &str,
) -> Result<Value, Error> {
    let what = || {
        let of = if status { "the status of " } else { "" };
        format!("change {of}{}", describe(resource, namespace, name))
    };
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    let url = Request::new(resource.bare_api(client, namespace).resource_url());
    let patch = Patch::Merge(patch);
    let request = match status {
        true => url.patch_subresource("status", name, &params, &patch),
        false => url.patch(name, &params, &patch),
    };
    write(client, what, request).await
}

async fn write(
    client: &kube::Client,
    what: impl Fn() -> String,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Value, Error> {
    let written = async { client.request::<Bare>(request.map_err(kube::Error::BuildRequest)?).await };
    Ok(bounded(what, written).await?.value)
}

/// Asks for the deletion of the object called `name`, and of what is its own after it; only of the very object with `uid` if
/// given. `false` when there was none.
///
/// # Errors
///
/// When the API server cannot be asked or refuses.
pub async fn delete(
    client: &kube::Client,
    resource: &Resource,
    namespace: Option<&str>,
    name: &str,
    uid: Option<&str>,
) -> Result<bool, Error> {
    let only = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    delete_if(client, resource, (namespace, name), only).await
}

/// Deletes an object if it is still as it was read (`preconditions.resourceVersion`); whether it was there.
///
/// # Errors
///
/// When the API server says no, which it does where somebody has changed the object, or does not answer.
pub async fn delete_unchanged(client: &kube::Client, resource: &Resource, object: &Value) -> Result<bool, Error> {
    let (namespace, name) =
        (Some(meta::namespace(object)).filter(|namespace| !namespace.is_empty()), meta::name(object));
    let (uid, version) = (meta::uid(object).to_owned(), meta::resource_version(object).to_owned());
    let only = Preconditions { uid: Some(uid), resource_version: Some(version) };
    delete_if(client, resource, (namespace, name), Some(only)).await
}

async fn delete_if(
    client: &kube::Client,
    resource: &Resource,
    (namespace, name): (Option<&str>, &str),
    preconditions: Option<Preconditions>,
) -> Result<bool, Error> {
    let what = || format!("delete {}", describe(resource, namespace, name));
    let propagation_policy = Some(PropagationPolicy::Background);
    let params = DeleteParams { propagation_policy, preconditions, ..DeleteParams::default() };
    match bounded(what, resource.api(client, namespace).delete(name, &params)).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) async fn bounded<T>(
    what: impl Fn() -> String,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Request { what: what(), source: Box::new(source) }),
        Err(_) => Err(Error::NoAnswer { what: what(), after: ANSWER }),
    }
}

fn describe(resource: &Resource, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) if resource.namespaced => format!("{} {namespace}/{name}", resource.kind),
        _ => format!("{} {name}", resource.kind),
    }
}

/// What is attempted, as errors name it.
pub(crate) fn attempt(verb: &str, resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{verb} {}", describe(resource, Some(namespace).filter(|namespace| !namespace.is_empty()), name))
}

fn place(object: &Value) -> (Option<&str>, &str) {
    (text(object, "/metadata/namespace"), text(object, "/metadata/name").unwrap_or_default())
}

fn to_value(object: DynamicObject) -> Value {
    // A DynamicObject is made of JSON, so it always becomes JSON again.
    serde_json::to_value(object).unwrap_or_default()
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_plurals() {
        for (api_version, kind, plural, namespaced) in [
            ("v1", "Namespace", "namespaces", false),
            ("apps/v1", "Deployment", "deployments", true),
            ("networking.istio.io/v1", "Gateway", "gateways", true),
            ("networking.istio.io/v1", "ServiceEntry", "serviceentries", true),
            ("security.istio.io/v1", "PeerAuthentication", "peerauthentications", true),
            ("security.istio.io/v1", "AuthorizationPolicy", "authorizationpolicies", true),
        ] {
            let resource = Resource::named(api_version, kind).unwrap();
            assert_eq!((resource.plural.as_str(), resource.namespaced), (plural, namespaced), "{kind}");
        }
        assert!(Resource::named("example.com/v1", "Thing").is_err());
    }
}
