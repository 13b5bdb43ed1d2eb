use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use kube::client::ConfigExt as _;

use crate::Error;
use crate::connect::{Dialer, Reach, speaking};

/// A body that is passed on as it comes.
type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Passes others' requests on to one API server, as they are: any body, streamed; watches; upgrades.
///
/// Each request has a connection to itself while it lasts (HTTP/1.1, kept for the next one). On a shared connection of
/// HTTP/2 one reader that has stopped reading would fill the window that all have together.
pub struct Passage {
    client: Client<Dialer, Body>,
    base: Uri,
    authorization: HeaderValue,
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passage").field("base", &self.base).finish_non_exhaustive()
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unpassed {
    /// Nothing was sent.
    #[error("{0}")]
    NotReached(String),
    /// The connection broke; whether the request was carried out is not known.
    #[error("{0}")]
    Broken(String),
}

impl Passage {
    /// A passage to the API server of `config`, which `reach` leads to, with `token`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// When the configuration's TLS or the token cannot be used.
    pub fn new(config: &kube::Config, reach: &Reach, token: &str) -> Result<Self, Error> {
        let failed =
            |source: kube::Error| Error::Client { server: config.cluster_url.to_string(), source: Box::new(source) };
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let tls = config.rustls_client_config().map_err(failed)?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Error::Refused("its token has characters that no header can have".to_owned()))?;
        authorization.set_sensitive(true);
        let client = speaking(&[b"http/1.1"], &tls, config.tls_server_name.as_deref(), reach);
        Ok(Self { client, base: config.cluster_url.clone(), authorization })
    }

    /// Passes a request on; its URI is a path below the API server's own, and its `Authorization` becomes the passage's.
    ///
    /// An answer of 101 can be taken over with [`hyper::upgrade::on`].
    ///
    /// # Errors
    ///
    /// When there is no answer. How long to wait for one is the caller's to say.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Unpassed> {
        let not_reached = |why: &dyn std::fmt::Display| Unpassed::NotReached(why.to_string());
        *request.uri_mut() = below(&self.base, request.uri()).map_err(|error| not_reached(&error))?;
        *request.version_mut() = http::Version::HTTP_11;
        request.headers_mut().remove(header::HOST);
        request.headers_mut().insert(header::AUTHORIZATION, self.authorization.clone());
        self.client.request(request).await.map_err(|error| {
            let why = stolos_serve::because(&error);
            if error.is_connect() { Unpassed::NotReached(why) } else { Unpassed::Broken(why) }
        })
    }
}

/// A path with its query, below a server's address.
fn below(base: &Uri, path: &Uri) -> Result<Uri, http::Error> {
    let prefix = base.path().trim_end_matches('/');
    let path = path.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(format!("{prefix}{path}").parse()?);
    Ok(Uri::from_parts(parts)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_below_the_servers_own() {
        for (base, path, expected) in [
            ("https://a:6443", "/api/v1/pods?watch=1", "https://a:6443/api/v1/pods?watch=1"),
            ("https://a/k8s/c-1/", "/version", "https://a/k8s/c-1/version"),
            ("https://[::1]:1/", "/", "https://[::1]:1/"),
            ("https://a", "/api/v1/namespaces/a%2Fb?x=%20", "https://a/api/v1/namespaces/a%2Fb?x=%20"),
        ] {
            assert_eq!(below(&base.parse().unwrap(), &path.parse().unwrap()).unwrap().to_string(), expected);
        }
    }
}
