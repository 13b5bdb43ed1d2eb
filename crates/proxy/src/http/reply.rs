//! Responses: what is added to a host's on its way back, and the proxy's own.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Response};
use hyper::body::Incoming;

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::headers::{self, Local};
use super::request::scheme;
use crate::config::Side;
use crate::route::{self, Route};

impl Exchange {
    /// The response has begun.
    pub(super) fn first_byte(&mut self, response: &mut Response<Incoming>) {
        let took = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        response.headers_mut().insert(&headers::SERVICE_TIME, HeaderValue::from(took));
        self.details = "via_upstream";
        self.failure.clear();
        let (code, headers) = (response.status().as_u16(), response.headers());
        self.keep_response(code, headers);
    }
}

/// The same for responses: on the way out the server's is taken, on the way in ours is given to a client that asked.
pub(super) fn introduce_server(exchange: &mut Exchange, response: &mut HeaderMap, introduced: bool) {
    let shared = &exchange.connection.shared;
    match exchange.connection.http.side {
        Side::Outbound => {
            response.remove(&headers::PEER_ID);
            let said = response.remove(&headers::PEER);
            let host = exchange.host.as_ref().filter(|host| host.is_in_mesh());
            exchange.peer = said.and_then(|said| host?.peers.get(&said));
        }
        Side::Inbound => {
            if let (true, Some(said)) = (introduced, &shared.said) {
                response.insert(&headers::PEER, said.clone());
            }
        }
    }
}

pub(super) fn redirected(
    exchange: Box<Exchange>,
    redirect: &route::Redirect,
    route: &Route,
    parts: &Parts,
) -> Response<ResponseBody> {
    let scheme = if redirect.https { "https" } else { scheme(&exchange.connection) };
    let host = redirect.host.as_deref().unwrap_or_else(|| route::without_port(&exchange.authority)).to_owned();
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = match (&redirect.path, &redirect.prefix) {
        (Some(path), _) => path.clone(),
        (None, Some(prefix)) => route.path.rewritten(parts.uri.path(), prefix),
        (None, None) => parts.uri.path().to_owned(),
    };
    let query = parts.uri.query().filter(|_| !redirect.strip_query && !path.contains('?'));
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let local = Local { status: redirect.status, flags: "", details: "direct_response", body: "" };
    let mut response = respond(exchange, local, Bytes::new());
    if let Ok(location) = HeaderValue::from_str(&format!("{scheme}://{host}{port}{path}{query}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// An answer of the proxy's own.
pub(super) fn here(exchange: Box<Exchange>, local: Local) -> Response<ResponseBody> {
    respond(exchange, local, Bytes::from_static(local.body.as_bytes()))
}

pub(super) fn respond(mut exchange: Box<Exchange>, local: Local, body: Bytes) -> Response<ResponseBody> {
    exchange.flags = local.flags;
    exchange.details = local.details;
    exchange.leased = None;
    if exchange.grpc && !local.status.is_redirection() {
        return grpc(exchange, local, &body);
    }
    exchange.keep_response(local.status.as_u16(), &HeaderMap::new());
    let text = !body.is_empty();
    let mut response = Response::new(ResponseBody::here(body, exchange));
    *response.status_mut() = local.status;
    if text {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// The same to a client of gRPC, which reads no HTTP status: an answer of trailers alone, as Envoy gives it.
fn grpc(mut exchange: Box<Exchange>, local: Local, body: &[u8]) -> Response<ResponseBody> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let status = if local.status.is_success() { 0 } else { headers::grpc_status(local.status) };
    headers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    if let Some(message) = headers::grpc_message(&String::from_utf8_lossy(body)).filter(|text| !text.is_empty()) {
        headers.insert("grpc-message", message);
    }
    exchange.keep_response(response.status().as_u16(), response.headers());
    response.map(|()| ResponseBody::here(Bytes::new(), exchange))
}
