//! The way in for the process that the server lives in, where thousands of objects are written and followed: the same
//! verbs, rules and admission as over HTTP ([`verb`]), but what is written comes as a tree, and what is stored goes out as
//! the very text that the server holds.
//!
//! A [`Server::client`](crate::Server::client) does the same for whoever wants an ordinary client; there each write becomes
//! text and is read again twice on its way.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;
use stolos_k8s::Status;
use stolos_k8s::kind::split_api_version;

use crate::api::Api;
use crate::convert;
use crate::failure::{Failure, Result};
use crate::metrics::Series;
use crate::registry::Resource;
use crate::rules::{self, PatchKind};
use crate::verb::{self, DeleteOptions, How};
use crate::watch::{Event, Expired, Object, Watcher, place_of};

/// A kind at one of its versions, as paths name it.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// `apps/v1`.
    pub api_version: &'a str,
    /// `deployments`.
    pub plural: &'a str,
}

/// All objects of a server, with all rights.
#[derive(Clone)]
pub struct Near {
    api: Arc<Api>,
}

impl std::fmt::Debug for Near {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Near").finish_non_exhaustive()
    }
}

/// An object as it was stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its namespace, empty where it has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// It, as JSON; shared with the server.
    pub json: Bytes,
    /// The revision of its last change: its `resourceVersion`.
    pub revision: u64,
}

/// What became of an object.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it is, or was last.
    pub object: Stored,
    /// Whether it is gone.
    pub gone: bool,
}

/// What who follows a kind is told.
#[derive(Debug, Clone)]
pub enum News {
    /// All objects that there are, and as of which revision: at first, and where too much has happened meanwhile to be
    /// told one by one.
    All(Vec<Stored>, u64),
    /// What has changed since, in its order.
    Changed(Vec<Seen>),
}

impl Near {
    pub(crate) fn new(api: Arc<Api>) -> Self {
        Self { api }
    }

    /// Creates an object, as `manager`, with its status: one write where a client needs two, between which nobody sees it.
    ///
    /// # Errors
    ///
    /// What a client is told: 409 `AlreadyExists`, 422 `Invalid`, ….
    pub async fn create(&self, kind: Kind<'_>, object: Value, manager: &str) -> Result<Stored, Status> {
        self.counted("POST", kind, "", async |api, resource| {
            // In whose namespace it says itself.
            let how = How { with_status: true, ..how(manager) };
            let made = verb::create(api, resource, "", object, &how).await?;
            Ok(stored(resource, &made))
        })
        .await
    }

    /// Puts an object in the place of the one of its name, as `manager`; of that very revision where it names one.
    ///
    /// # Errors
    ///
    /// What a client is told: 404 `NotFound`, 409 `Conflict`, ….
    pub async fn replace(&self, kind: Kind<'_>, object: &Value, manager: &str) -> Result<Stored, Status> {
        let place = place_of(object);
        self.counted("PUT", kind, "", async |api, resource| {
            let place = (place.0.as_str(), place.1.as_str(), "");
            let made = verb::change(api, resource, place, &how(manager), |_| Ok(object.clone())).await?;
            Ok(stored(resource, &made))
        })
        .await
    }

    /// Merges a patch (RFC 7386) into an object, as `manager`: into its subresource `sub` where that is not empty.
    ///
    /// # Errors
    ///
    /// What a client is told: 404 `NotFound`, 409 `Conflict` where the patch names another revision, ….
    pub async fn merge(
        &self,
        kind: Kind<'_>,
        (namespace, name, sub): (&str, &str, &str),
        patch: &Value,
        manager: &str,
    ) -> Result<Stored, Status> {
        self.counted("PATCH", kind, sub, async |api, resource| {
            if !sub.is_empty() && resource.subresource(sub).is_none() {
                return Err(Failure::no_such_path());
            }
            let merged = |now: &Value| rules::patch(PatchKind::Merge, resource, now, patch);
            let how = How { patching: true, ..how(manager) };
            let made = verb::change(api, resource, (namespace, name, sub), &how, merged).await?;
            Ok(stored(resource, &made))
        })
        .await
    }

    /// Deletes an object, and what is its own after it; only the very one with that UID, where it is given.
    ///
    /// # Errors
    ///
    /// What a client is told: 404 `NotFound`, 409 `Conflict` where it is another one, ….
    pub async fn delete(
        &self,
        kind: Kind<'_>,
        (namespace, name): (&str, &str),
        uid: Option<&str>,
    ) -> Result<(), Status> {
        let options = DeleteOptions {
            uid: uid.map(str::to_owned),
            propagation: Some("Background".to_owned()),
            ..DeleteOptions::default()
        };
        self.counted("DELETE", kind, "", async |api, resource| {
            verb::delete(api, resource, (namespace, name), &options, &How::internal()).await.map(drop)
        })
        .await
    }

    /// Follows all objects of a kind.
    #[must_use]
    pub fn follow(&self, kind: Kind<'_>) -> Follow {
        let (api_version, plural) = (kind.api_version.to_owned(), kind.plural.to_owned());
        Follow { near: self.clone(), api_version, plural, watcher: None }
    }

    async fn counted<T>(
        &self,
        verb: &'static str,
        kind: Kind<'_>,
        sub: &str,
        write: impl AsyncFnOnce(&Arc<Api>, &Arc<Resource>) -> Result<T>,
    ) -> Result<T, Status> {
        let begun = Instant::now();
        let written = match self.resource(kind) {
            Ok(resource) => write(&self.api, &resource).await,
            Err(failure) => Err(failure),
        };
        let code = match &written {
            Ok(_) if verb == "POST" => 201,
            Ok(_) => 200,
            Err(failure) => failure.code,
        };
        let (group, version) = split_api_version(kind.api_version);
        let series = Series {
            verb,
            group: group.to_owned(),
            version: version.to_owned(),
            resource: kind.plural.to_owned(),
            sub: sub.to_owned(),
            scope: "resource",
        };
        self.api.metrics.count(series, code, Some(begun.elapsed()));
        written.map_err(Status::from)
    }

    fn resource(&self, kind: Kind<'_>) -> Result<Arc<Resource>> {
        let (group, version) = split_api_version(kind.api_version);
        let table = self.api.registry.table();
        table.find(group, version, kind.plural).cloned().ok_or_else(Failure::no_such_path)
    }
}

/// Follows the objects of one kind.
pub struct Follow {
    near: Near,
    api_version: String,
    plural: String,
    watcher: Option<Watcher>,
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("plural", &self.plural).finish_non_exhaustive()
    }
}

impl Follow {
    /// What is news. Cancel safe.
    ///
    /// # Errors
    ///
    /// 404 where the kind is not served (any more): it may be again later, and all objects are told then.
    pub async fn next(&mut self) -> Result<News, Status> {
        let kind = Kind { api_version: &self.api_version, plural: &self.plural };
        let resource = self.near.resource(kind).map_err(|failure| {
            self.watcher = None;
            Status::from(failure)
        })?;
        if let Some(watcher) = &mut self.watcher {
            match watcher.next().await {
                Ok(events) => return Ok(News::Changed(events.iter().map(|event| seen(&resource, event)).collect())),
                Err(Expired { oldest }) => tracing::debug!(self.plural, oldest, "fell behind, and looks at all anew"),
            }
        }
        let state = &self.near.api.state;
        let cache = state.cache(&resource.storage);
        let (objects, revision) = cache.snapshot("", state.revision());
        self.watcher = Some(Watcher::new(cache, revision));
        Ok(News::All(objects.iter().map(|object| stored(&resource, object)).collect(), revision))
    }
}

fn how(manager: &str) -> How {
    How { manager: manager.to_owned(), ..How::internal() }
}

fn stored(resource: &Resource, object: &Object) -> Stored {
    let (namespace, name) = object.place();
    Stored { namespace, name, json: convert::json_of(resource, object), revision: object.revision }
}

fn seen(resource: &Resource, event: &Event) -> Seen {
    Seen { object: stored(resource, &event.object), gone: event.deleted }
}
