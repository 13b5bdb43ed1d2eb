//! From an HTTP request to a verb on a resource, and back.
//!
//! # Flow
//!
//! 1. Who is it ([`auth`](crate::auth)), what do they want ([`Target::parse`]), may they ([`auth`](crate::auth)).
//! 2. Paths that are no resources are answered by [`discovery`](crate::discovery); the rest goes to
//!    [`verb`](crate::verb), [`stream`](crate::stream) or [`review`](crate::auth).
//! 3. Every failure becomes a `metav1.Status`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Value, json};
use stolos_k8s::selector::FieldSelector;

use crate::api::{Among, Api};
use crate::auth::{Caller, User};
use crate::failure::{Cause, Failure, Result};
use crate::metrics::Series;
use crate::registry::Resource;
use crate::table::Include;
use crate::watch::Object;
use crate::{auth, convert, discovery, extension, health, protobuf, stream, table, usage, verb, warning};

/// Why a response body broke off.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every response.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// Marks a response whose body is the events of a watch, each a line of JSON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Events;

/// How long a request that is no watch or stream may take, and at most may ask to take.
const TIME: std::time::Duration = std::time::Duration::from_secs(60);
/// The largest request body.
pub(crate) const MAX_BODY: usize = 3 << 20;
/// How long a request body may take to arrive: it holds one of the places for requests meanwhile.
const BODY_TIME: std::time::Duration = std::time::Duration::from_secs(30);

/// What a request is aimed at, as its path and query say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    /// The group, empty for core.
    pub(crate) group: String,
    /// The version.
    pub(crate) version: String,
    /// The namespace, empty for none or all.
    pub(crate) namespace: String,
    /// The plural.
    pub(crate) plural: String,
    /// The object, empty for the collection.
    pub(crate) name: String,
    /// The subresource, empty for the object itself.
    pub(crate) sub: String,
}

impl Target {
    /// The target of a path, or `None` when it is not a resource's.
    #[must_use]
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => (String::new(), parts.next()?),
            "apis" => (parts.next()?.to_owned(), parts.next()?),
            _ => return None,
        };
        let rest: Vec<String> = parts.map(decode).collect();
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        let mut target = Self { group, version: version.to_owned(), ..Self::default() };
        let (namespace, rest) = match rest.as_slice() {
            // The resource `namespaces` itself, and what is below it.
            ["namespaces"] | ["namespaces", _] => ("", rest.as_slice()),
            ["namespaces", _, "status" | "finalize"] if target.group.is_empty() => ("", rest.as_slice()),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        namespace.clone_into(&mut target.namespace);
        let (plural, name, sub) = match rest {
            [plural] => (*plural, "", String::new()),
            [plural, name] => (*plural, *name, String::new()),
            [plural, name, sub @ ..] => (*plural, *name, sub.join("/")),
            [] => return None,
        };
        plural.clone_into(&mut target.plural);
        name.clone_into(&mut target.name);
        target.sub = sub;
        // A namespace is in its own namespace, as far as permissions go.
        if target.plural == "namespaces" && target.group.is_empty() {
            target.namespace.clone_from(&target.name);
        }
        Some(target)
    }
}

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(HashMap<String, Vec<String>>);

impl Query {
    /// Reads a query string.
    #[must_use]
    pub(crate) fn parse(query: &str) -> Self {
        let mut map: HashMap<String, Vec<String>> = HashMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decode(key)).or_default().push(decode(value));
        }
        Self(map)
    }

    /// A parameter that is there and not empty.
    #[must_use]
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|values| values.first()).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    #[must_use]
    pub(crate) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether a parameter is there and true.
    #[must_use]
    pub(crate) fn is(&self, key: &str) -> bool {
        self.0.get(key).and_then(|v| v.first()).is_some_and(|v| matches!(v.as_str(), "true" | "1" | "True" | "t" | "T"))
    }

    /// A parameter that is a number.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let parsed = text.parse().map_err(|_| Failure::bad_request(format!("invalid {key} {text:?}: not a number")));
        parsed.map(Some)
    }
}

/// `%41` and `+` as what they stand for.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A request for a resource that passed authentication and authorisation.
pub(crate) struct Ask {
    /// Who asks.
    pub(crate) user: User,
    /// The verb: get, list, watch, create, update, patch, delete, deletecollection.
    pub(crate) verb: &'static str,
    /// What it is aimed at.
    pub(crate) target: Target,
    /// The resource there.
    pub(crate) resource: Arc<Resource>,
    /// The query.
    pub(crate) query: Query,
    /// The headers.
    pub(crate) headers: HeaderMap,
}

impl Ask {
    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// `Content-Type` without parameters.
    #[must_use]
    pub(crate) fn content_type(&self) -> &str {
        self.header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim()
    }

    /// The field manager: named by the query, else by the client's name.
    #[must_use]
    pub(crate) fn manager(&self) -> String {
        if let Some(manager) = self.query.get("fieldManager") {
            return manager.to_owned();
        }
        let agent = self.header(header::USER_AGENT).split('/').next().unwrap_or_default();
        if agent.is_empty() { "unknown".into() } else { agent.to_owned() }
    }

    /// In which form the client wants its answer.
    ///
    /// # Errors
    ///
    /// When it accepts none that is spoken here.
    pub(crate) fn form(&self) -> Result<Form> {
        let form = Form::of(self.header(header::ACCEPT))?;
        let Form::Table(_) = form else { return Ok(form) };
        match self.query.get("includeObject") {
            None | Some("Metadata") => Ok(form),
            Some("None") => Ok(Form::Table(Include::None)),
            Some("Object") => Ok(Form::Table(Include::Object)),
            Some(other) => Err(Failure::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }

    /// Whether nothing shall be written.
    ///
    /// # Errors
    ///
    /// When `dryRun` is anything but `All`.
    pub(crate) fn dry_run(&self) -> Result<bool> {
        let kind = match self.verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            _ => "DeleteOptions",
        };
        is_dry_run(kind, self.query.all("dryRun").iter().map(String::as_str))
    }
}

/// Whether nothing shall be written, as the values of `dryRun` in options of that kind say.
///
/// # Errors
///
/// When one is anything but `All`: a client that means something else must not have its objects written.
pub(crate) fn is_dry_run<'a>(kind: &str, values: impl Iterator<Item = &'a str>) -> Result<bool> {
    let values: Vec<&str> = values.collect();
    if values.iter().all(|value| *value == "All") {
        return Ok(!values.is_empty());
    }
    let cause = Cause {
        field: "dryRun".into(),
        reason: "FieldValueNotSupported".into(),
        message: format!("Unsupported value: {}: supported values: \"All\"", json!(values)),
    };
    Err(Failure::invalid(kind, "meta.k8s.io", "", &[cause]))
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The object.
    Plain,
    /// `meta.k8s.io/v1 Table`, for people.
    Table(Include),
    /// Only its metadata.
    Metadata,
}

impl Form {
    fn of(accept: &str) -> Result<Self> {
        if accept.is_empty() {
            return Ok(Self::Plain);
        }
        for offer in accept.split(',') {
            let mut parts = offer.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(media, "application/json" | "application/*" | "*/*") {
                continue;
            }
            let named = parts.find_map(|p| p.strip_prefix("as="));
            match named {
                None => return Ok(Self::Plain),
                Some("Table") => return Ok(Self::Table(Include::default())),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Self::Metadata),
                Some(_) => {}
            }
        }
        Err(Failure::not_acceptable())
    }
}

/// Answers one request. Never fails: whatever goes wrong becomes an answer.
pub(crate) async fn handle<B>(
    api: Arc<Api>,
    caller: Arc<Caller>,
    mut request: Request<B>,
) -> Result<Response<Body>, Infallible>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if let Some(found) = extension::find(&api, request.uri().path()) {
        return Ok(Box::pin(extension::answer(api, &caller, request, found)).await);
    }
    let in_protobuf = protobuf::answer::instead_of_json(request.headers_mut());
    let begun = std::time::Instant::now();
    let mut seen = Seen::default();
    let answered = async { answer(&api, &caller, request, &mut seen).await.unwrap_or_else(told) };
    let response = warning::collect(answered).await;
    let took = (!seen.goes_on).then(|| begun.elapsed());
    api.metrics.count(seen.series, response.status().as_u16(), took);
    Ok(if in_protobuf { protobuf::answer::translate(response).await } else { response })
}

/// What of a request is counted.
#[derive(Default)]
struct Seen {
    series: Series,
    /// Whether it goes on for as long as both sides like.
    goes_on: bool,
}

impl Seen {
    fn resource(ask: &Ask) -> Series {
        let target = &ask.target;
        let known = ask.resource.subresource(&target.sub).is_some();
        Series {
            verb: match ask.verb {
                "create" => "POST",
                "update" => "PUT",
                "patch" if ask.content_type().starts_with("application/apply-patch") => "APPLY",
                "patch" => "PATCH",
                "delete" => "DELETE",
                "deletecollection" => "DELETECOLLECTION",
                "list" => "LIST",
                "watch" => "WATCH",
                _ => "GET",
            },
            group: target.group.clone(),
            version: target.version.clone(),
            resource: target.plural.clone(),
            // Only what is there: names come from outside.
            sub: if known { target.sub.clone() } else { String::new() },
            scope: match (target.name.is_empty(), target.namespace.is_empty()) {
                (false, _) => "resource",
                (true, false) => "namespace",
                (true, true) => "cluster",
            },
        }
    }

    fn path(method: &Method, path: &str) -> Series {
        const KNOWN: [&str; 9] =
            ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
        let known = KNOWN.iter().find(|known| path == **known).copied().unwrap_or_default();
        let verb = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            _ => "OTHER",
        };
        Series { verb, sub: known.to_owned(), ..Series::default() }
    }
}

/// The answer that says what went wrong.
fn told(failure: Failure) -> Response<Body> {
    if failure.code >= 500 {
        tracing::warn!(code = failure.code, message = failure.message, "request failed");
    }
    failed(&failure)
}

/// How long a request may take: as long as its `timeout` says, within bounds.
fn time_of(query: &Query) -> Result<std::time::Duration> {
    let Some(text) = query.get("timeout") else { return Ok(TIME) };
    let nanos = protobuf::special::nanoseconds(text).and_then(|nanos| u64::try_from(nanos).ok());
    let nanos = nanos.ok_or_else(|| {
        let why = format!("invalid timeout specified in the request URL - time: invalid duration {text:?}");
        Failure::bad_request(why)
    })?;
    Ok(if nanos == 0 { TIME } else { std::time::Duration::from_nanos(nanos).min(TIME) })
}

async fn answer<B>(api: &Arc<Api>, caller: &Caller, request: Request<B>, seen: &mut Seen) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (mut request, body) = request.into_parts();
    let path = request.uri.path();
    seen.series = Seen::path(&request.method, path);
    let user = auth::authenticate(api, caller, &request.headers)?;
    let query = Query::parse(request.uri.query().unwrap_or_default());
    let Some(target) = Target::parse(path) else {
        let method = request.method.as_str().to_lowercase();
        auth::authorize_path(api, &user, &method, path)?;
        // Whether it is well can be asked however much there is to do.
        if let Some(answer) = health::answer(api, path, &query) {
            return answer;
        }
        let _slot = api.slot(Among::Reading)?;
        return discovery::answer(api, path, &query, &request.headers);
    };
    let Some(verb) = verb_of(&request.method, &target, &query) else { return Err(Failure::method_not_allowed()) };
    match one_name(verb, &target, &query) {
        Some(name) => auth::authorize(api, &user, verb, &Target { name, ..target.clone() })?,
        None => auth::authorize(api, &user, verb, &target)?,
    }
    let table = api.registry.table();
    let Some(resource) = table.find(&target.group, &target.version, &target.plural) else {
        return Err(Failure::no_such_path());
    };
    if !resource.namespaced && !target.namespace.is_empty() && &*resource.storage != "namespaces" {
        return Err(Failure::no_such_path());
    }
    let mut target = target;
    if &*resource.storage == "namespaces" {
        target.namespace.clear();
    }
    let resource = Arc::clone(resource);
    let mut ask = Ask { user, verb, target, resource, query, headers: request.headers };
    seen.series = Seen::resource(&ask);
    // What is big and seldom is kept in a box: the future of every GET would be as big, and be moved about.
    if stream::is_stream(&ask) {
        seen.goes_on = true;
        let upgrade = request.extensions.remove::<hyper::upgrade::OnUpgrade>();
        return Box::pin(stream::answer(api, ask, upgrade)).await;
    }
    if ask.resource.group == usage::GROUP {
        return usage::answer(api, &ask);
    }
    let time = time_of(&ask.query)?;
    let late = |_| Failure::timeout("request did not complete within requested timeout - context deadline exceeded");
    match ask.verb {
        "watch" => {
            seen.goes_on = true;
            Box::pin(verb::answer(api, ask, Bytes::new())).await
        }
        "get" | "list" => {
            let _slot = api.slot(Among::Reading)?;
            if ask.verb == "get" && matches!(ask.target.sub.as_str(), "" | "status") {
                return verb::get(api, &ask);
            }
            tokio::time::timeout(time, Box::pin(verb::answer(api, ask, Bytes::new()))).await.map_err(late)?
        }
        _ => {
            let slot = api.slot(Among::Writing)?;
            let body = read_body(body).await?;
            let body = protobuf::body(&mut ask, body)?;
            // A write is carried through, whether or not the client is still there to hear of it: what belongs to a
            // commit must not be lost with the connection.
            let owner = Arc::clone(api);
            let writing = tokio::spawn(async move {
                let _slot = slot;
                let answered = async { verb::answer(&owner, ask, body).await.unwrap_or_else(told) };
                warning::collect(answered).await
            });
            let written = tokio::time::timeout(time, writing).await.map_err(late)?;
            written.map_err(|error| Failure::internal(format!("the request could not be carried through: {error}")))
        }
    }
}

/// The one object that a list or watch can show by its field selector: who may see that one may ask like this.
fn one_name(verb: &str, target: &Target, query: &Query) -> Option<String> {
    if !matches!(verb, "list" | "watch") || !target.name.is_empty() {
        return None;
    }
    let fields = FieldSelector::parse(query.get("fieldSelector")?).ok()?;
    let name = fields.terms().iter().find(|term| term.field == "metadata.name" && term.equal)?;
    Some(name.value.clone()).filter(|name| !name.is_empty())
}

async fn read_body<B>(body: B) -> Result<Bytes>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let reading = Limited::new(body, MAX_BODY).collect();
    let read = tokio::time::timeout(BODY_TIME, reading).await;
    match read.map_err(|_| Failure::timeout("the body of the request did not arrive in time"))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Failure::too_large(MAX_BODY)),
        Err(error) => Err(Failure::bad_request(format!("cannot read the body: {error}"))),
    }
}

fn verb_of(method: &Method, target: &Target, query: &Query) -> Option<&'static str> {
    let collection = target.name.is_empty();
    Some(match *method {
        Method::GET | Method::HEAD if collection && query.is("watch") => "watch",
        Method::GET | Method::HEAD if collection => "list",
        Method::GET | Method::HEAD if query.is("watch") && target.sub.is_empty() => "watch",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT if !collection => "update",
        Method::PATCH if !collection => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => return None,
    })
}

/// A body from bytes that are there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer in JSON.
#[must_use]
pub(crate) fn json_bytes(code: u16, bytes: Bytes) -> Response<Body> {
    json_body(code, full(bytes))
}

/// An answer in JSON.
#[must_use]
pub(crate) fn json_body(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// An answer in JSON.
#[must_use]
pub(crate) fn json_value(code: u16, value: &Value) -> Response<Body> {
    json_bytes(code, Bytes::from(serde_json::to_vec(value).unwrap_or_default()))
}

/// An answer of any kind.
#[must_use]
pub(crate) fn respond(code: u16, media: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(media) = http::HeaderValue::from_str(media) {
        response.headers_mut().insert(header::CONTENT_TYPE, media);
    }
    response
}

/// The answer to a request that failed.
#[must_use]
pub(crate) fn failed(failure: &Failure) -> Response<Body> {
    let mut response = json_value(failure.code, &failure.status());
    if failure.code == 429 {
        response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    }
    if failure.code == 401 {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    }
    response
}

/// One object in the form and version it was asked for in.
#[must_use]
pub(crate) fn render(form: Form, resource: &Resource, object: &Object) -> Bytes {
    match form {
        Form::Plain => convert::json_of(resource, object),
        Form::Metadata => Bytes::from(serde_json::to_vec(&metadata_of(&object.value)).unwrap_or_default()),
        Form::Table(include) => {
            let table = table::render(resource, std::slice::from_ref(&&*object.value), include, true);
            Bytes::from(serde_json::to_vec(&table).unwrap_or_default())
        }
    }
}

/// The `PartialObjectMetadata` of an object.
#[must_use]
pub(crate) fn metadata_of(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Option<(String, String, String, String, String, String)> {
        Target::parse(path).map(|t| (t.group, t.version, t.namespace, t.plural, t.name, t.sub))
    }

    #[test]
    fn paths_are_read_as_kubernetes_reads_them() {
        let cases = [
            ("/api/v1/pods", ["", "v1", "", "pods", "", ""]),
            ("/api/v1/namespaces", ["", "v1", "", "namespaces", "", ""]),
            ("/api/v1/namespaces/a", ["", "v1", "a", "namespaces", "a", ""]),
            ("/api/v1/namespaces/a/status", ["", "v1", "a", "namespaces", "a", "status"]),
            ("/api/v1/namespaces/a/finalize", ["", "v1", "a", "namespaces", "a", "finalize"]),
            ("/api/v1/namespaces/a/pods", ["", "v1", "a", "pods", "", ""]),
            ("/api/v1/namespaces/a/pods/b", ["", "v1", "a", "pods", "b", ""]),
            ("/api/v1/namespaces/a/pods/b/log", ["", "v1", "a", "pods", "b", "log"]),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", ["apps", "v1", "a", "deployments", "b", "scale"]),
            ("/apis/g.io/v1/things/system%3Aa", ["g.io", "v1", "", "things", "system:a", ""]),
        ];
        for (path, [group, version, namespace, plural, name, sub]) in cases {
            let expected = (group, version, namespace, plural, name, sub);
            let found = target(path).unwrap();
            let found = (&*found.0, &*found.1, &*found.2, &*found.3, &*found.4, &*found.5);
            assert_eq!(found, expected, "{path}");
        }
        for path in ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version", "/healthz/ping"] {
            assert_eq!(target(path), None, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=1&command=sh&command=-c&x=a+b&empty=");
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.is("watch"));
        assert_eq!(query.all("command"), ["sh", "-c"]);
        assert_eq!(query.get("x"), Some("a b"));
        assert_eq!(query.get("empty"), None);
        assert!(query.number::<u64>("x").is_err());
    }

    #[test]
    fn the_form_follows_accept() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(Form::of(table).unwrap(), Form::Table(Include::Metadata));
        assert_eq!(Form::of("application/vnd.kubernetes.protobuf,application/json").unwrap(), Form::Plain);
        assert_eq!(Form::of("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
    }
}
