//! Lists and watches: selection, pages, revisions, bookmarks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::api::{Among, Api};
use crate::failure::{Cause, Failure, Result};
use crate::registry::Resource;
use crate::route::{self, Ask, Body, BoxError, Form};
use crate::rules::Selection;
use crate::table;
use crate::watch::{Event, Object, Place, Watcher};

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

/// Checks what a list or watch says of revisions, in the words of Kubernetes' own check (`ValidateListOptions`).
fn check_options(ask: &Ask, watching: bool) -> Result<()> {
    let forbidden = |field: &str, why: &str| Cause::forbidden(field, why);
    let (matching, version) = (ask.query.get("resourceVersionMatch"), ask.query.get("resourceVersion"));
    let initial = ask.query.get("sendInitialEvents").is_some();
    let mut causes = Vec::new();
    let mut say = |wrong: bool, field: &str, why: &str| {
        if wrong {
            causes.push(forbidden(field, why));
        }
    };
    const MATCH: &str = "resourceVersionMatch";
    let mut supported: &[&str] = &["Exact", "NotOlderThan", ""];
    if watching {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        say(initial && matching != Some("NotOlderThan"), MATCH, why);
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        say(!initial && matching.is_some(), MATCH, why);
        supported = &["NotOlderThan"];
    } else {
        let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
        say(matching.is_some() && version.is_none(), MATCH, why);
        let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
        say(matching == Some("Exact") && version == Some("0"), MATCH, why);
        say(initial, "sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    let why = "resourceVersionMatch is forbidden when continue is provided";
    say(matching.is_some() && ask.query.get("continue").is_some(), MATCH, why);
    if let Some(matching) = matching.filter(|matching| !supported.contains(matching)) {
        let list: Vec<_> = supported.iter().map(|one| format!("{one:?}")).collect();
        causes.push(Cause {
            field: MATCH.into(),
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {matching:?}: supported values: {}", list.join(", ")),
        });
    }
    if causes.is_empty() { Ok(()) } else { Err(Failure::invalid("ListOptions", "meta.k8s.io", "", &causes)) }
}

/// Which state of the past a list shows.
#[derive(Debug, PartialEq, Eq)]
enum At {
    /// The newest.
    Now,
    /// The one at this revision, and no other.
    Exactly(u64),
}

/// Answers a list.
///
/// # Errors
///
/// When the revision asked for is gone or the selectors cannot be read.
pub(crate) async fn list(api: &Arc<Api>, ask: &Ask) -> Result<Response<Body>> {
    let selection = selection(ask)?;
    let form = ask.form()?;
    check_options(ask, false)?;
    let limit = ask.query.number::<i64>("limit")?.and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.filter(|limit| *limit > 0);
    let cache = api.state.cache(&ask.resource.storage);
    let namespace = &ask.target.namespace;
    let (from, at) = match ask.query.get("continue") {
        Some(token) => {
            if ask.query.get("resourceVersion").is_some_and(|version| version != "0") {
                let message = "specifying resource version is not allowed when using continue";
                return Err(Failure::bad_request(message));
            }
            let (revision, place) = read_token(token)?;
            (Some(place), revision.map_or(At::Now, At::Exactly))
        }
        None => (None, wanted_revision(api, ask, limit.is_some()).await?),
    };
    // Where all are meant, no more is looked at than is shown.
    let everything = selection.is_everything();
    let most = limit.filter(|_| everything).unwrap_or(usize::MAX);
    let (page, revision) = match at {
        At::Exactly(revision) => {
            let page = cache.page_at(namespace, revision, from.as_ref(), most);
            (page.map_err(|_| expired(from.as_ref()))?, revision)
        }
        // The revision is read first: it may be older than the objects, never newer.
        At::Now => cache.page(namespace, api.state.revision(), from.as_ref(), most),
    };
    let (mut chosen, mut left) = (page.objects, page.left);
    if !everything {
        chosen.retain(|object| selection.matches(&object.glance()));
        left = limit.map_or(0, |limit| chosen.len().saturating_sub(limit));
        chosen.truncate(limit.unwrap_or(usize::MAX));
    }
    let more = chosen.last().filter(|_| left > 0).map(|last| {
        // As on Kubernetes: of a selection nobody knows how much is left.
        (write_token(Some(revision), &last.place()), everything.then_some(left))
    });
    Ok(respond(form, &ask.resource, chosen, revision, more))
}

/// A list as an answer: a long one is put together while it is sent, not held in one piece.
fn respond(
    form: Form,
    resource: &Resource,
    objects: Vec<Arc<Object>>,
    revision: u64,
    more: Option<(String, Option<usize>)>,
) -> Response<Body> {
    let size: usize = objects.iter().map(|object| object.json.len() + 1).sum();
    if size <= PIECE || !is_verbatim(form, resource) {
        return route::json_bytes(200, encode(form, resource, &objects, revision, more));
    }
    let begin = begin(form, resource, &list_metadata(revision, more));
    // Each object but the last is followed by a comma.
    let left = begin.len() + size - 1 + END.len();
    let pieces = Pieces { begin, objects: objects.into_iter(), left };
    route::json_body(200, pieces.boxed_unsync())
}

const END: &[u8] = b"]}";
/// As many bytes are put together at once.
const PIECE: usize = 64 << 10;

/// The body of a long list.
struct Pieces {
    begin: Vec<u8>,
    objects: std::vec::IntoIter<Arc<Object>>,
    /// The bytes to come.
    left: usize,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return std::task::Poll::Ready(None);
        }
        let mut piece = Vec::with_capacity(this.left.min(PIECE + (4 << 10)));
        piece.append(&mut this.begin);
        while piece.len() < PIECE
            && let Some(object) = this.objects.next()
        {
            piece.extend_from_slice(&object.json);
            piece.extend_from_slice(if this.objects.len() > 0 { b"," } else { END });
        }
        this.left = this.left.saturating_sub(piece.len());
        std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left as u64)
    }
}

/// Whether objects are shown as they are stored.
fn is_verbatim(form: Form, resource: &Resource) -> bool {
    form == Form::Plain && resource.custom.is_none() && resource.group == resource.stored_group
}

/// The answer to a list at a revision that is gone. Whoever was in the middle of one may go on from the same place in
/// the newest state, knowing that it is another.
fn expired(from: Option<&Place>) -> Failure {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                   list without the continue parameter, or use the continue token in this response to retrieve the \
                   remainder of the results. Continuing with the provided token results in an inconsistent list - \
                   objects that were created, modified, or deleted between the time the first chunk was returned and \
                   now may show up in the list.";
    match from {
        Some(from) => Failure { resume: Some(write_token(None, from)), ..Failure::expired(message) },
        None => Failure::expired("The resourceVersion for the provided list is too old."),
    }
}

/// The revision a list is to be at; waits for one that is about to come.
async fn wanted_revision(api: &Api, ask: &Ask, limited: bool) -> Result<At> {
    let Some(wanted) = ask.query.get("resourceVersion") else { return Ok(At::Now) };
    let wanted: u64 = wanted.parse().map_err(|_| {
        let cause = Cause::invalid("resourceVersion", &json!(wanted), "must be a number");
        Failure::invalid("ListOptions", "meta.k8s.io", "", &[cause])
    })?;
    wait_for(api, wanted).await?;
    Ok(match ask.query.get("resourceVersionMatch") {
        Some("Exact") => At::Exactly(wanted),
        // Without a word for it, the first page at a revision is of exactly that one.
        None if limited && wanted > 0 => At::Exactly(wanted),
        _ => At::Now,
    })
}

/// Waits until everybody can see a revision that somebody has seen already.
async fn wait_for(api: &Api, wanted: u64) -> Result<()> {
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
    Ok(())
}

/// A list in the form asked for.
#[must_use]
pub(crate) fn encode(
    form: Form,
    resource: &Resource,
    objects: &[Arc<Object>],
    revision: u64,
    more: Option<(String, Option<usize>)>,
) -> Bytes {
    let metadata = list_metadata(revision, more);
    if let Form::Table(include) = form {
        let values: Vec<&Value> = objects.iter().map(|object| &*object.value).collect();
        let mut table = table::render(resource, &values, include, true);
        table["metadata"] = metadata;
        return Bytes::from(serde_json::to_vec(&table).unwrap_or_default());
    }
    let size: usize = objects.iter().map(|object| object.json.len() + 1).sum();
    let mut out = begin(form, resource, &metadata);
    out.reserve(size + END.len());
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if is_verbatim(form, resource) {
            out.extend_from_slice(&object.json);
        } else {
            out.extend_from_slice(&route::render(form, resource, object));
        }
    }
    out.extend_from_slice(END);
    Bytes::from(out)
}

fn list_metadata(revision: u64, more: Option<(String, Option<usize>)>) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some((token, remaining)) = more {
        metadata["continue"] = json!(token);
        if let Some(remaining) = remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    metadata
}

/// A list up to its first object.
fn begin(form: Form, resource: &Resource, metadata: &Value) -> Vec<u8> {
    let (kind, api_version) = match form {
        Form::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
        _ => (resource.list_kind.as_str(), resource.api_version()),
    };
    format!("{{\"kind\":{kind:?},\"apiVersion\":{api_version:?},\"metadata\":{metadata},\"items\":[").into_bytes()
}

/// Where a list goes on: after a place, at a revision or in the newest state.
fn write_token(revision: Option<u64>, (namespace, name): &Place) -> String {
    let revision = revision.map_or(json!(-1), |revision| json!(revision));
    URL_SAFE_NO_PAD.encode(json!({"v": "stolos/v1", "rv": revision, "start": [namespace, name]}).to_string())
}

fn read_token(token: &str) -> Result<(Option<u64>, Place)> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let token: Value = serde_json::from_slice(&bytes).ok()?;
        let text = |i: usize| token["start"][i].as_str().map(str::to_owned);
        let revision = token["rv"].as_i64()?;
        Some((u64::try_from(revision).ok(), (text(0)?, text(1)?)))
    };
    read().ok_or_else(|| Failure::bad_request("continue key is not valid"))
}

/// Answers a watch: one JSON document per line, for as long as both sides like.
///
/// # Errors
///
/// When the request makes no sense; a revision that is gone is an event in the stream.
pub(crate) async fn watch(api: &Arc<Api>, ask: &Ask) -> Result<Response<Body>> {
    let selection = selection(ask)?;
    let form = ask.form()?;
    check_options(ask, true)?;
    let place = api.slot(Among::Watching)?;
    let seconds = ask.query.number::<u64>("timeoutSeconds")?.filter(|s| *s > 0);
    let seconds = seconds.unwrap_or_else(|| rand::random_range(1800..3600));
    // KEP-3157: asked for by name, they end with a bookmark that says so; else revision 0 and none bring them as ever.
    let initial = ask.query.get("sendInitialEvents").map(|_| ask.query.is("sendInitialEvents"));
    let bookmarks = ask.query.is("allowWatchBookmarks");
    let from: u64 = ask.query.number("resourceVersion")?.unwrap_or(0);
    let cache = api.state.cache(&ask.resource.storage);
    // Whoever has just listed may have seen a change that becomes everybody's in this moment.
    let reached = wait_for(api, from).await;
    let committed = api.state.revision();
    let mut pending = VecDeque::new();
    let mut over = false;
    let mut after = from;
    if let Err(failure) = reached {
        // A revision of another life of this server: 410 is the word on which every client lists again.
        pending.push_back(error(&Failure::expired(failure.message)));
        over = true;
    } else if initial.unwrap_or(from == 0) {
        let (objects, revision) = cache.snapshot(&ask.target.namespace, committed);
        let chosen = objects.iter().filter(|object| selection.matches(&object.glance()));
        pending.extend(chosen.map(|object| line("ADDED", form, &ask.resource, object)));
        if initial.is_some() && bookmarks {
            pending.push_back(bookmark(&ask.resource, form, revision, true));
        }
        after = revision;
    } else if from == 0 {
        after = committed;
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
        _place: place,
        bookmarks,
        stop: {
            // A signal of its own: a thousand watches that all look at one wait for each other.
            let stop = api.stop.child();
            async move { stop.asked().await }.boxed()
        },
        deadline: Box::pin(tokio::time::sleep(Duration::from_secs(seconds))),
        next_bookmark: bookmarks.then(|| Box::pin(tokio::time::sleep(api.settings.bookmark_every))),
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
    _place: OwnedSemaphorePermit,
    bookmarks: bool,
    stop: BoxFuture<'static, ()>,
    deadline: Pin<Box<tokio::time::Sleep>>,
    /// Only for those who asked for bookmarks.
    next_bookmark: Option<Pin<Box<tokio::time::Sleep>>>,
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
            let bookmark = async {
                match &mut self.next_bookmark {
                    Some(next) => next.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut self.stop => return None,
                () = &mut self.deadline => {
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
                        self.pending.push_back(gone(self.watcher.after(), expired.oldest));
                        self.over = true;
                    }
                },
                () = bookmark => {
                    if let Some(next) = &mut self.next_bookmark {
                        next.as_mut().reset(tokio::time::Instant::now() + self.api.settings.bookmark_every);
                    }
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
                self.pending.push_back(gone(self.watcher.after(), expired.oldest));
                self.over = true;
            }
        }
    }

    fn line(&self, event: &Event) -> Option<Bytes> {
        if !event.object.is_in(&self.namespace) {
            return None;
        }
        let everything = self.selection.is_everything();
        let chosen = |object: &Object| everything || self.selection.matches(&object.glance());
        let before = event.before.as_ref().is_some_and(|before| chosen(before));
        let after = !event.deleted && chosen(&event.object);
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
    let body = if let Form::Table(include) = form {
        let table = table::render(resource, &[&object.value], include, true);
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
        Form::Table(_) => json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": [],
            "metadata": metadata, "rows": []}),
    };
    Bytes::from(format!("{}\n", json!({"type": "BOOKMARK", "object": object})))
}

fn gone(wanted: u64, oldest: u64) -> Bytes {
    error(&Failure::expired(format!("too old resource version: {wanted} ({oldest})")))
}

fn error(failure: &Failure) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": failure.status()})))
}
