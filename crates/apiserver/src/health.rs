//! `/healthz`, `/livez`, `/readyz`: each check apart, and all together.

use http::{HeaderName, HeaderValue, Response};

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::metrics;
use crate::route::{self, Body, Query};

/// A check: its name and whether it is well.
type Check = (&'static str, fn(&Api) -> bool);

/// Storage has been loaded before anybody could ask, so what is left is whether it still takes writes. `etcd` is what
/// storage is called on Kubernetes, and what scripts ask for.
const CHECKS: [Check; 3] = [("ping", |_| true), ("log", |_| true), ("etcd", |api| api.state.is_well())];
/// Only whether to send more requests.
const SHUTDOWN: Check = ("shutdown", |api| !api.stop.is_asked());

/// Answers what is asked here of the server's own state, or nothing when it is something else.
pub(crate) fn answer(api: &Api, path: &str, query: &Query) -> Option<Result<Response<Body>>> {
    let mut parts = path.trim_matches('/').split('/');
    let (endpoint, check, more) = (parts.next()?, parts.next(), parts.next());
    if endpoint == "metrics" && check.is_none() {
        return Some(Ok(route::respond(200, "text/plain; version=0.0.4; charset=utf-8", metrics::text(api))));
    }
    if !matches!(endpoint, "healthz" | "livez" | "readyz") || more.is_some() {
        return None;
    }
    let checks = CHECKS.iter().chain((endpoint == "readyz").then_some(&SHUTDOWN));
    Some(match check {
        Some(name) => one(api, checks, name),
        None => Ok(all(api, endpoint, checks, query)),
    })
}

fn one<'a>(api: &Api, mut checks: impl Iterator<Item = &'a Check>, name: &str) -> Result<Response<Body>> {
    let (_, check) = checks.find(|(known, _)| *known == name).ok_or_else(Failure::no_such_path)?;
    let (code, text) = if check(api) { (200, "ok") } else { (500, "internal server error: not well") };
    Ok(plain(code, text.to_owned()))
}

fn all<'a>(api: &Api, endpoint: &str, checks: impl Iterator<Item = &'a Check>, query: &Query) -> Response<Body> {
    let mut text = String::new();
    let mut well = true;
    let mut left_out: Vec<&String> = query.all("exclude").iter().collect();
    for (name, check) in checks {
        if let Some(at) = left_out.iter().position(|out| *out == name) {
            left_out.remove(at);
            text += &format!("[+]{name} excluded: ok\n");
        } else if check(api) {
            text += &format!("[+]{name} ok\n");
        } else {
            well = false;
            text += &format!("[-]{name} failed: reason withheld\n");
        }
    }
    if !left_out.is_empty() {
        let names: Vec<String> = left_out.iter().map(|name| format!("{name:?}")).collect();
        text += &format!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(", "));
    }
    match (well, query.all("verbose").is_empty()) {
        (true, true) => plain(200, "ok".into()),
        (true, false) => plain(200, format!("{text}{endpoint} check passed\n")),
        (false, _) => plain(500, format!("{text}{endpoint} check failed\n")),
    }
}

fn plain(code: u16, text: String) -> Response<Body> {
    let mut response = route::respond(code, "text/plain; charset=utf-8", text);
    let sniff = HeaderName::from_static("x-content-type-options");
    response.headers_mut().insert(sniff, HeaderValue::from_static("nosniff"));
    response
}
