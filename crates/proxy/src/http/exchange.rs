//! The record of one request: what the log and the counters are told when it has ended, however it ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use crate::config::{Cluster, Host, Side};
use crate::http::Connection;
use crate::http::body::Tee;
use crate::http::headers;
use crate::log;
use crate::metrics::{self, Facts, Requests, Timestamp, Workload};
use crate::pool::{self, About, Busy, Leased};

/// The last of gRPC's status codes.
const UNAUTHENTICATED: u16 = 16;

/// One request and its response.
pub(crate) struct Exchange {
    pub(crate) connection: Arc<Connection>,
    pub(crate) began: Instant,
    start: Timestamp,
    method: Method,
    path: Option<PathAndQuery>,
    pub(crate) authority: String,
    version: Version,
    pub(crate) grpc: bool,
    /// What gRPC's own trailer said.
    grpc_status: Option<u16>,
    request: Vec<(HeaderName, HeaderValue)>,
    response: Vec<(HeaderName, HeaderValue)>,
    first_byte: Option<Duration>,
    pub(crate) code: u16,
    pub(crate) flags: &'static str,
    pub(crate) details: &'static str,
    pub(crate) failure: String,
    pub(crate) tee: Option<Arc<Tee>>,
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// The cluster that there should have been.
    pub(crate) no_cluster: String,
    pub(crate) host: Option<Arc<Host>>,
    pub(crate) about: Option<About>,
    /// Who the proxy at the other end says it is: the client's on the way in, the server's on the way out.
    pub(crate) peer: Option<Arc<metrics::Peer>>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) attempts: u32,
    pub(crate) leased: Option<Leased>,
    pub(crate) busy: Option<Busy>,
    finished: bool,
}

impl Exchange {
    pub(crate) fn begin(connection: &Arc<Connection>, parts: &Parts, authority: String) -> Box<Self> {
        connection.begun.fetch_add(1, Ordering::Relaxed);
        connection.open.fetch_add(1, Ordering::Relaxed);
        if parts.version == Version::HTTP_2 && !connection.asks.load(Ordering::Relaxed) {
            connection.asks.store(true, Ordering::Relaxed);
        }
        Box::new(Self {
            connection: Arc::clone(connection),
            began: Instant::now(),
            start: Timestamp::now(),
            method: parts.method.clone(),
            path: parts.uri.path_and_query().cloned(),
            authority,
            version: parts.version,
            grpc: headers::is_grpc(&parts.headers),
            grpc_status: None,
            request: Vec::new(),
            response: Vec::new(),
            first_byte: None,
            code: 0,
            flags: "",
            details: "",
            failure: String::new(),
            tee: None,
            cluster: None,
            no_cluster: String::new(),
            host: None,
            about: None,
            peer: None,
            route: None,
            attempts: 0,
            leased: None,
            busy: None,
            finished: false,
        })
    }

    /// Keeps what the log will show of the request's headers.
    pub(crate) fn keep_request(&mut self, headers: &HeaderMap) {
        self.request = log::kept(headers, &self.connection.http.logged.request);
    }

    /// Keeps what the log will show of the response.
    pub(crate) fn keep_response(&mut self, code: u16, headers: &HeaderMap) {
        self.code = code;
        self.first_byte = Some(self.began.elapsed());
        self.response = log::kept(headers, &self.connection.http.logged.response);
        self.keep_grpc_status(headers);
    }

    /// Keeps the outcome of a call, which stands in the trailers, or among the headers of a response without a body.
    pub(crate) fn keep_grpc_status(&mut self, headers: &HeaderMap) {
        if !self.grpc {
            return;
        }
        let status = headers.get("grpc-status").and_then(|status| status.to_str().ok());
        // A host may say anything; a label may not.
        let known = status.and_then(|status| status.trim().parse().ok()).filter(|status| *status <= UNAUTHENTICATED);
        self.grpc_status = known.or(self.grpc_status);
    }

    /// The host ended before its response did.
    pub(crate) fn upstream_broke(&mut self) {
        if self.leased.take().is_some() {
            self.flags = "UPE";
        }
    }

    /// Ends the exchange. A connection whose exchange is complete can serve the next.
    pub(crate) fn finish(mut self: Box<Self>, sent: u64, complete: bool) {
        self.end(sent, complete);
    }

    fn end(&mut self, sent: u64, complete: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        self.connection.open.fetch_sub(1, Ordering::Relaxed);
        if let (true, Some(leased), Some(host)) = (complete, self.leased.take(), &self.host) {
            pool::give_back(host, leased);
        }
        self.busy = None;
        if !complete && self.flags.is_empty() {
            self.flags = "DC";
        }
        let duration = self.began.elapsed();
        self.requests().add(duration);
        let http = &self.connection.http;
        if !http.log.is_empty() {
            let entry = self.entry(sent, duration);
            log::write(&http.log, &self.connection.shared.output, &entry);
        }
    }

    fn entry(&self, sent: u64, duration: Duration) -> log::Entry<'_> {
        let about = self.about.as_ref();
        log::Entry {
            start: self.start,
            duration,
            first_byte: self.first_byte,
            method: self.method.as_str(),
            path: self.path.as_ref().map_or("/", PathAndQuery::as_str),
            authority: &self.authority,
            protocol: match self.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
            request: &self.request,
            response: &self.response,
            code: self.code,
            flags: self.flags,
            details: self.details,
            failure: &self.failure,
            received: self.tee.as_ref().map_or(0, |tee| tee.received()),
            sent,
            upstream_host: self.host.as_ref().map(|host| &*host.text).unwrap_or_default(),
            upstream_cluster: self.cluster.as_ref().map_or(&self.no_cluster, |cluster| &cluster.name),
            upstream_local: about.and_then(|about| about.local),
            upstream_uri: about.and_then(|about| about.peer.as_deref()).unwrap_or_default(),
            route: self.route.as_deref().unwrap_or_default(),
            attempts: self.attempts,
            ..self.connection.arrived.entry()
        }
    }

    fn requests(&self) -> Requests {
        let (connection, shared) = (&self.connection, &self.connection.shared);
        let find = || {
            let identity = shared.identity.load();
            let own = identity.as_ref().map(|identity| &*identity.uri).unwrap_or_default();
            let unknown = Workload::default();
            let peer = self.peer.as_ref().map(|peer| &peer.workload);
            let service = self.cluster.as_ref().map(|cluster| cluster.service.clone()).unwrap_or_default();
            let client = connection.arrived.peer.as_ref().map(|peer| &*peer.uri);
            let host = self.about.as_ref().and_then(|about| about.peer.as_deref());
            let common = Facts {
                reporter: "source",
                source: &shared.local,
                source_principal: own,
                destination: peer.or(self.host.as_ref().map(|host| &host.workload)).unwrap_or(&unknown),
                destination_principal: host.unwrap_or_default(),
                service: &service,
                protocol: if self.grpc { "grpc" } else { "http" },
                code: Some(self.code),
                grpc_status: self.grpc_status,
                flags: self.flags,
                security: "unknown",
            };
            match connection.http.side {
                Side::Outbound => shared.metrics.requests(&common),
                Side::Inbound => shared.metrics.requests(&Facts {
                    reporter: "destination",
                    source: peer.unwrap_or(&unknown),
                    source_principal: client.unwrap_or_default(),
                    destination: &shared.local,
                    destination_principal: own,
                    security: if client.is_some() { "mutual_tls" } else { "none" },
                    ..common
                }),
            }
        };
        match (connection.http.side, &self.host) {
            (_, None) => find(),
            (_, Some(_)) if self.grpc => find(),
            (Side::Outbound, Some(host)) if host.retired.load(Ordering::Relaxed) => find(),
            (_, Some(_)) if self.peer.is_some() => {
                self.peer.as_ref().map_or_else(find, |peer| peer.series.get(self.code, self.flags, find))
            }
            (Side::Outbound, Some(host)) => host.series.get(self.code, self.flags, find),
            (Side::Inbound, Some(_)) => connection.series.get(self.code, self.flags, find),
        }
    }
}

impl Drop for Exchange {
    /// The client went away before there was a response.
    fn drop(&mut self) {
        self.end(0, false);
    }
}
