//! Parts of a resource that the embedder serves itself, below the path of the object: `…/clusters/eu/proxy/api/v1/pods`.
//!
//! The server finds out who asks, and says whether they may; what is asked and answered goes through as it is, bodies
//! streamed, upgrades included. (Kubernetes has these as "connect" subresources of aggregated API servers.)

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;

use crate::api::Api;
use crate::auth::{self, Caller, User};
use crate::failure::Result;
use crate::metrics::Series;
use crate::registry::Resource;
use crate::route::{self, BoxError, Target};

pub use crate::route::Body;

/// An answer.
pub type Answer = Response<Body>;

/// Which part of which resource. Only of resources that are not in namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The plural.
    pub plural: String,
    /// The subresource.
    pub sub: String,
    /// The kind that discovery says it has.
    pub kind: String,
}

/// Serves a part of a resource.
pub trait Extension: Send + Sync + 'static {
    /// Answers. Nobody has looked yet whether the caller may: see [`Rights::allow`].
    ///
    /// The future is dropped when the client leaves. A request that asks for an upgrade carries hyper's `OnUpgrade`.
    fn answer(&self, asked: Asked) -> BoxFuture<'_, Answer>;
}

/// A request below a [`Place`], by somebody who is known.
pub struct Asked {
    /// Who asks.
    pub user: User,
    /// Who that really is, where they act for somebody else (`Impersonate-*`).
    pub by: Option<User>,
    /// The object's name.
    pub name: String,
    /// The path up to and with the subresource, as it came.
    pub base: String,
    /// The path below, as it came: empty, or with a slash first.
    pub rest: String,
    /// The request, untouched: with the headers by which the caller showed who they are.
    pub request: Request<Body>,
    /// What they may.
    pub rights: Rights,
}

/// What a caller may do to a part of an object.
pub struct Rights {
    api: Arc<Api>,
    user: User,
    target: Target,
}

impl Rights {
    /// Whether the caller may do `verb` to this part of the object, by the server's own roles.
    ///
    /// # Errors
    ///
    /// The answer that says that they may not.
    pub fn allow(&self, verb: &str) -> Result<(), Box<Answer>> {
        auth::authorize(&self.api, &self.user, verb, &self.target).map_err(|failure| Box::new(route::failed(&failure)))
    }
}

impl Place {
    /// What discovery says can be done here: as of Kubernetes' own subresources that connect (v1.34, `pods/proxy`).
    pub(crate) const VERBS: [&'static str; 5] = ["create", "delete", "get", "patch", "update"];

    /// Whether it is a part of this resource.
    pub(crate) fn is_of(&self, resource: &Resource) -> bool {
        (&self.group, &self.version, &self.plural) == (&resource.group, &resource.version, &resource.plural)
    }

    /// The object's name, the path up to and with the subresource, and the rest of `path`, if it is here.
    fn find<'a>(&self, path: &'a str) -> Option<(String, &'a str, &'a str)> {
        let below = path.strip_prefix("/apis/")?.strip_prefix(self.group.as_str())?.strip_prefix('/')?;
        let below = below.strip_prefix(self.version.as_str())?.strip_prefix('/')?;
        let below = below.strip_prefix(self.plural.as_str())?.strip_prefix('/')?;
        let (name, below) = below.split_once('/')?;
        let rest = below.strip_prefix(self.sub.as_str())?;
        if name.is_empty() || !(rest.is_empty() || rest.starts_with('/')) {
            return None;
        }
        Some((route::decode(name), &path[..path.len() - rest.len()], rest))
    }
}

/// A path that an extension serves.
pub(crate) struct Found {
    extension: Arc<dyn Extension>,
    place: Place,
    name: String,
    base: String,
    rest: String,
}

/// The extension that serves `path`, if one does.
pub(crate) fn find(api: &Api, path: &str) -> Option<Found> {
    let extensions = api.extensions();
    let (place, extension, (name, base, rest)) = extensions
        .iter()
        .find_map(|(place, extension)| Some((place.clone(), Arc::clone(extension), place.find(path)?)))?;
    Some(Found { extension, place, name, base: base.to_owned(), rest: rest.to_owned() })
}

/// Has an extension answer.
pub(crate) async fn answer<B>(api: Arc<Api>, caller: &Caller, request: Request<B>, found: Found) -> Response<Body>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Found { extension, place, name, base, rest } = found;
    let series = Series {
        verb: if request.method() == http::Method::GET { "GET" } else { "CONNECT" },
        group: place.group.clone(),
        version: place.version.clone(),
        resource: place.plural.clone(),
        sub: place.sub.clone(),
        scope: "resource",
    };
    let response = match auth::acting(&api, caller, request.headers()) {
        Ok((user, by)) => {
            let Place { group, version, plural, sub, kind: _ } = place;
            let target = Target { group, version, plural, sub, name: name.clone(), namespace: String::new() };
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            let api = Arc::clone(&api);
            let rights = Rights { api, user: user.clone(), target };
            extension.answer(Asked { user, by, name, base, rest, request, rights }).await
        }
        Err(failure) => route::failed(&failure),
    };
    api.metrics.count(series, response.status().as_u16(), None);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_place_is_found_as_it_came() {
        let place = Place {
            group: "cluster.karmada.io".into(),
            version: "v1alpha1".into(),
            plural: "clusters".into(),
            sub: "proxy".into(),
            kind: "ClusterProxyOptions".into(),
        };
        let root = "/apis/cluster.karmada.io/v1alpha1/clusters";
        for (path, expected) in [
            ("/eu/proxy", Some(("eu", "/eu/proxy", ""))),
            ("/eu/proxy/", Some(("eu", "/eu/proxy", "/"))),
            ("/eu/proxy/api/v1/pods%2Fa", Some(("eu", "/eu/proxy", "/api/v1/pods%2Fa"))),
            ("/e%75/proxy/version", Some(("eu", "/e%75/proxy", "/version"))),
            ("/eu/proxying", None),
            ("/eu/status", None),
            ("/eu", None),
            ("//proxy/api", None),
        ] {
            let path = format!("{root}{path}");
            let found = place.find(&path);
            let found = found.map(|(name, base, rest)| (name, base.strip_prefix(root).unwrap(), rest));
            let expected = expected.map(|(name, base, rest)| (name.to_owned(), base, rest));
            assert_eq!(found, expected, "{path}");
        }
        assert!(place.find("/apis/cluster.karmada.io.example.com/v1alpha1/clusters/eu/proxy").is_none());
    }
}
