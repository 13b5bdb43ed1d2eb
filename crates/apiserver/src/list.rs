//! Lists and watches: selection, pages, revisions, bookmarks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::StreamExt as _;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::route::{self, Ask, Body, BoxError, Form};
use crate::rules::Selection;
use crate::table;
use crate::watch::{Event, Object, Watcher, place_of};

/// The selection a request asks for.
///
/// # Errors
///
/// When a selector cannot be read, or selects by a field that is not indexed.
pub(crate) fn selection(ask: &Ask) -> Result<Selection> {
    let labels = ask.query.get("labelSelector").unwrap_or_default();
    let mut fields = ask.query.get("fieldSelector").unwrap_or_default().to_owned();
    if !ask.target.name.is_empty() {
        let separator = if fields.is_empty() { "" } else { "," };
        fields = format!("metadata.name={}{separator}{fields}", ask.target.name);
    }
    Selection::parse(&ask.resource, labels, &fields)
}

/// Answers a list.
///
/// # Errors
///
/// When the revision asked for is gone or the selectors cannot be read.
pub(crate) async fn list(api: &Arc<Api>, ask: &Ask) -> Result<Response<Body>> {
    let selection = selection(ask)?;
    let form = ask.form()?;
    let limit = ask.query.number::<usize>("limit")?.filter(|limit| *limit > 0);
    let cache = api.state.cache(&ask.resource.storage);
    let namespace = &ask.target.namespace;
    let expired = |_| {
        Failure::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter.",
        )
    };
    let (from, at) = match ask.query.get("continue") {
        Some(token) => {
            let (revision, place) = read_token(token)?;
            (Some(place), Some(revision))
        }
        None => (None, exact_revision(api, ask).await?),
    };
    let (objects, revision): (Vec<Arc<Object>>, u64) = match at {
        Some(revision) => {
            let past = cache.list_at(namespace, revision).map_err(expired)?;
            let rest = past.into_iter().filter(|(place, _)| from.as_ref().is_none_or(|from| place > from));
            (rest.map(|(_, object)| object).collect(), revision)
        }
        None => {
            // The revision is read first: it may be older than the objects, never newer.
            let revision = api.state.revision();
            cache.snapshot(namespace, revision)
        }
    };
    let mut chosen: Vec<Arc<Object>> = if selection.is_everything() {
        objects
    } else {
        objects.into_iter().filter(|object| selection.matches(&object.value)).collect()
    };
    let mut more = None;
    if let Some(limit) = limit
        && chosen.len() > limit
    {
        let remaining = chosen.len() - limit;
        chosen.truncate(limit);
        if let Some(last) = chosen.last() {
            more = Some((write_token(revision, &place_of(&last.value)), remaining));
        }
    }
    Ok(route::json_bytes(200, encode(form, &ask.resource, &chosen, revision, more)))
}

/// The revision that a list must be at exactly, if it must; waits for one that is about to come.
async fn exact_revision(api: &Api, ask: &Ask) -> Result<Option<u64>> {
    let matching = ask.query.get("resourceVersionMatch");
    let Some(wanted) = ask.query.get("resourceVersion") else {
        return match matching {
            None => Ok(None),
            Some(_) => {
                Err(Failure::bad_request("resourceVersionMatch is forbidden unless resourceVersion is provided"))
            }
        };
    };
    let wanted: u64 =
        wanted.parse().map_err(|_| Failure::bad_request(format!("invalid resourceVersion {wanted:?}")))?;
    let mut changed = api.state.subscribe();
    let reached = async {
        while api.state.revision() < wanted {
            let _ = changed.changed().await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(3), reached).await.is_err() {
        let message = format!("Too large resource version: {wanted}, current: {}", api.state.revision());
        let details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1});
        return Err(Failure::timeout(message).with_details(details));
    }
    match matching {
        Some("Exact") if wanted > 0 => Ok(Some(wanted)),
        Some("Exact") => Err(Failure::bad_request("resourceVersionMatch Exact is forbidden for resourceVersion 0")),
        None | Some("NotOlderThan") => Ok(None),
        Some(other) => Err(Failure::bad_request(format!("resourceVersionMatch {other:?} is not supported"))),
    }
}

/// A list in the form asked for.
#[must_use]
pub(crate) fn encode(
    form: Form,
    resource: &Resource,
    objects: &[Arc<Object>],
    revision: u64,
    more: Option<(String, usize)>,
) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some((token, remaining)) = more {
        metadata["continue"] = json!(token);
        metadata["remainingItemCount"] = json!(remaining);
    }
    if form == Form::Table {
        let values: Vec<&Value> = objects.iter().map(|object| &object.value).collect();
        let mut table = table::render(resource, &values, true);
        table["metadata"] = metadata;
        return Bytes::from(serde_json::to_vec(&table).unwrap_or_default());
    }
    let (kind, api_version) = match form {
        Form::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
        _ => (resource.list_kind.as_str(), resource.api_version()),
    };
    let size: usize = objects.iter().map(|object| object.json.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    out.extend(
        format!("{{\"kind\":{kind:?},\"apiVersion\":{api_version:?},\"metadata\":{metadata},\"items\":[").bytes(),
    );
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if form == Form::Plain && resource.custom.is_none() && resource.group == resource.stored_group {
            out.extend_from_slice(&object.json);
        } else {
            out.extend_from_slice(&route::render(form, resource, object));
        }
    }
    out.extend_from_slice(b"]}");
    Bytes::from(out)
}

fn write_token(revision: u64, (namespace, name): &(String, String)) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "stolos/v1", "rv": revision, "start": [namespace, name]}).to_string())
}

fn read_token(token: &str) -> Result<(u64, (String, String))> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let token: Value = serde_json::from_slice(&bytes).ok()?;
        let text = |i: usize| token["start"][i].as_str().map(str::to_owned);
        Some((token["rv"].as_u64()?, (text(0)?, text(1)?)))
    };
    read().ok_or_else(|| Failure::bad_request("invalid continue token"))
}

/// Answers a watch: one JSON document per line, for as long as both sides like.
///
/// # Errors
///
/// When the request makes no sense; a revision that is gone is an event in the stream.
pub(crate) fn watch(api: &Arc<Api>, ask: &Ask) -> Result<Response<Body>> {
    let selection = selection(ask)?;
    let form = ask.form()?;
    let seconds = ask.query.number::<u64>("timeoutSeconds")?.filter(|s| *s > 0);
    let seconds = seconds.unwrap_or_else(|| rand::random_range(1800..3600));
    let initial = ask.query.is("sendInitialEvents");
    if initial && ask.query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(Failure::bad_request("sendInitialEvents is only allowed with resourceVersionMatch NotOlderThan"));
    }
    let from: u64 = ask.query.number("resourceVersion")?.unwrap_or(0);
    let cache = api.state.cache(&ask.resource.storage);
    let committed = api.state.revision();
    let mut pending = VecDeque::new();
    let mut over = false;
    let mut after = from;
    if from > committed {
        pending.push_back(gone(&format!("Too large resource version: {from}, current: {committed}")));
        over = true;
    } else if initial || from == 0 {
        let (objects, revision) = cache.snapshot(&ask.target.namespace, committed);
        let chosen = objects.iter().filter(|object| selection.matches(&object.value));
        pending.extend(chosen.map(|object| line("ADDED", form, &ask.resource, object)));
        if initial {
            pending.push_back(bookmark(&ask.resource, form, revision, true));
        }
        after = revision;
    }
    let follow = Follow {
        api: Arc::clone(api),
        watcher: Watcher::new(cache, after),
        resource: Arc::clone(&ask.resource),
        namespace: ask.target.namespace.clone(),
        selection,
        form,
        pending,
        over,
        bookmarks: ask.query.is("allowWatchBookmarks"),
        deadline: tokio::time::Instant::now() + Duration::from_secs(seconds),
        next_bookmark: tokio::time::Instant::now() + api.settings.bookmark_every,
    };
    let lines = futures::stream::unfold(follow, |mut follow| async move {
        let bytes = follow.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(bytes)), follow))
    });
    let mut response = Response::new(StreamBody::new(lines.boxed()).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, private"));
    response.extensions_mut().insert(route::Events);
    Ok(response)
}

/// One watch under way.
struct Follow {
    api: Arc<Api>,
    watcher: Watcher,
    resource: Arc<Resource>,
    namespace: String,
    selection: Selection,
    form: Form,
    pending: VecDeque<Bytes>,
    over: bool,
    bookmarks: bool,
    deadline: tokio::time::Instant,
    next_bookmark: tokio::time::Instant,
}

impl Follow {
    /// The next lines to send, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.pending.is_empty() {
                return Some(self.drain());
            }
            if self.over {
                return None;
            }
            let stop = self.api.stop.clone();
            tokio::select! {
                biased;
                () = stop.asked() => return None,
                () = tokio::time::sleep_until(self.deadline) => {
                    self.over = true;
                    if self.bookmarks {
                        self.push_bookmark();
                    }
                }
                events = self.watcher.next() => match events {
                    Ok(events) => {
                        for event in events {
                            if let Some(line) = self.line(&event) {
                                self.pending.push_back(line);
                            }
                        }
                    }
                    Err(expired) => {
                        self.pending.push_back(gone(&format!("too old resource version; the oldest is {}", expired.oldest)));
                        self.over = true;
                    }
                },
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = tokio::time::Instant::now() + self.api.settings.bookmark_every;
                    self.push_bookmark();
                }
            }
        }
    }

    /// Everything up to the revision read first has been seen once the window holds nothing newer for us.
    fn push_bookmark(&mut self) {
        let revision = self.api.state.revision();
        match self.watcher.ready() {
            Ok(events) => {
                for event in events {
                    if let Some(line) = self.line(&event) {
                        self.pending.push_back(line);
                    }
                }
                let revision = self.watcher.seen(revision);
                self.pending.push_back(bookmark(&self.resource, self.form, revision, false));
            }
            Err(expired) => {
                self.pending.push_back(gone(&format!("too old resource version; the oldest is {}", expired.oldest)));
                self.over = true;
            }
        }
    }

    fn line(&self, event: &Event) -> Option<Bytes> {
        if !self.namespace.is_empty() && event.object.value["metadata"]["namespace"] != self.namespace.as_str() {
            return None;
        }
        let before = event.before.as_ref().is_some_and(|before| self.selection.matches(&before.value));
        let after = !event.deleted && self.selection.matches(&event.object.value);
        let kind = match (before, after) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(line(kind, self.form, &self.resource, &event.object))
    }

    fn drain(&mut self) -> Bytes {
        if self.pending.len() == 1 {
            return self.pending.pop_front().unwrap_or_default();
        }
        let mut out = Vec::new();
        while let Some(line) = self.pending.pop_front() {
            out.extend_from_slice(&line);
            if out.len() > 64 << 10 {
                break;
            }
        }
        Bytes::from(out)
    }
}

fn line(kind: &str, form: Form, resource: &Resource, object: &Object) -> Bytes {
    let body = if form == Form::Table {
        let table = table::render(resource, &[&object.value], true);
        Bytes::from(serde_json::to_vec(&table).unwrap_or_default())
    } else {
        route::render(form, resource, object)
    };
    let mut out = Vec::with_capacity(body.len() + 32);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(&body);
    out.extend_from_slice(b"}\n");
    Bytes::from(out)
}

fn bookmark(resource: &Resource, form: Form, revision: u64, initial: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = match form {
        Form::Plain => json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata}),
        Form::Metadata => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
        }
        Form::Table => json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": [],
            "metadata": metadata, "rows": []}),
    };
    Bytes::from(format!("{}\n", json!({"type": "BOOKMARK", "object": object})))
}

fn gone(message: &str) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": Failure::expired(message).status()})))
}
