//! What is counted, under Istio's names.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use http::HeaderValue;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use prost::Message as _;

use crate::config::Service;

/// A moment, shown as in access logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp(SystemTime);

impl Timestamp {
    pub(crate) fn now() -> Self {
        Self(SystemTime::now())
    }

    /// Writes what [`Display`](fmt::Display) does; the date is worked out once a second.
    pub(crate) fn push(self, line: &mut String) {
        thread_local! {
            /// A second, and what it is called up to its fraction.
            static KNOWN: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
        }
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        KNOWN.with_borrow_mut(|(second, text)| {
            if *second != since.as_secs() || text.is_empty() {
                *second = since.as_secs();
                *text = self.to_string();
                text.truncate(text.len().saturating_sub("000Z".len()));
            }
            line.push_str(text);
        });
        let millis = since.subsec_millis();
        for digit in [millis / 100, millis / 10 % 10, millis % 10] {
            line.push(char::from_digit(digit, 10).unwrap_or('0'));
        }
        line.push('Z');
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Self(SystemTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Days to a date of the proleptic Gregorian calendar, with years that begin in March.
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
    }
}

/// Who a workload is, for labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) service: Arc<str>,
    pub(crate) revision: Arc<str>,
    pub(crate) cluster: Arc<str>,
    pub(crate) app: Arc<str>,
    pub(crate) version: Arc<str>,
}

impl Workload {
    /// Reads `name;namespace;canonicalName;canonicalRevision;cluster`.
    pub(crate) fn of_endpoint(text: &str) -> Self {
        let mut parts = text.split(';').map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        let (name, namespace, service, revision, cluster) = (next(), next(), next(), next(), next());
        Self { name, namespace, service, revision, cluster, ..Self::default() }
    }
}

/// What a workload says of itself to the proxy at the other end, as Istio's proxies do.
const SAID: [&str; 4] = ["WORKLOAD_NAME", "NAMESPACE", "CLUSTER_ID", "LABELS"];

impl Workload {
    /// Itself, as the value of `x-envoy-peer-metadata`.
    pub(crate) fn to_header(&self) -> Option<HeaderValue> {
        use stolos_xds::message::{object, string, structure};
        let labels = [
            ("app", &self.app),
            ("version", &self.version),
            ("service.istio.io/canonical-name", &self.service),
            ("service.istio.io/canonical-revision", &self.revision),
        ];
        let labels = labels.into_iter().filter(|(_, value)| !value.is_empty());
        let labels = object(labels.map(|(key, value)| (key, string(&**value))));
        let [name, namespace, cluster, of_labels] = SAID;
        let said = structure([
            (name, string(&*self.name)),
            (namespace, string(&*self.namespace)),
            (cluster, string(&*self.cluster)),
            (of_labels, labels),
        ]);
        let text = base64::engine::general_purpose::STANDARD.encode(said.encode_to_vec());
        HeaderValue::from_str(&text).ok()
    }

    fn of_header(said: &HeaderValue) -> Option<Self> {
        const LONGEST: usize = 16 * 1024;
        let bytes = said.as_bytes();
        let bytes = (bytes.len() <= LONGEST).then_some(bytes)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).ok()?;
        let said = prost_types::Struct::decode(bytes.as_slice()).ok()?;
        let [name, namespace, cluster, of_labels] = SAID;
        let text = |key: &str| Arc::<str>::from(stolos_xds::message::text_at(&said, &[key]).unwrap_or_default());
        let labels = stolos_xds::message::texts_at(&said, &[of_labels]);
        let label = |key: &str| Arc::<str>::from(labels.get(key).map(String::as_str).unwrap_or_default());
        Some(Self {
            name: text(name),
            namespace: text(namespace),
            cluster: text(cluster),
            service: label("service.istio.io/canonical-name"),
            revision: label("service.istio.io/canonical-revision"),
            app: label("app"),
            version: label("version"),
        })
    }
}

/// Istio's labels of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    reporter: Arc<str>,
    source_workload: Arc<str>,
    source_workload_namespace: Arc<str>,
    source_principal: Arc<str>,
    source_app: Arc<str>,
    source_version: Arc<str>,
    source_canonical_service: Arc<str>,
    source_canonical_revision: Arc<str>,
    source_cluster: Arc<str>,
    destination_workload: Arc<str>,
    destination_workload_namespace: Arc<str>,
    destination_principal: Arc<str>,
    destination_app: Arc<str>,
    destination_version: Arc<str>,
    destination_canonical_service: Arc<str>,
    destination_canonical_revision: Arc<str>,
    destination_cluster: Arc<str>,
    destination_service: Arc<str>,
    destination_service_name: Arc<str>,
    destination_service_namespace: Arc<str>,
    request_protocol: Arc<str>,
    response_code: Arc<str>,
    grpc_response_status: Arc<str>,
    response_flags: Arc<str>,
    connection_security_policy: Arc<str>,
}

/// What a request or connection was, from the reporter's side.
pub(crate) struct Facts<'a> {
    pub(crate) reporter: &'static str,
    pub(crate) source: &'a Workload,
    pub(crate) source_principal: &'a str,
    pub(crate) destination: &'a Workload,
    pub(crate) destination_principal: &'a str,
    pub(crate) service: &'a Service,
    pub(crate) protocol: &'static str,
    /// Nothing for a connection.
    pub(crate) code: Option<u16>,
    /// Of a gRPC call that was answered.
    pub(crate) grpc_status: Option<u16>,
    pub(crate) flags: &'a str,
    pub(crate) security: &'static str,
}

impl Facts<'_> {
    fn labels(&self) -> Labels {
        let known = |text: &Arc<str>| if text.is_empty() { Arc::from("unknown") } else { Arc::clone(text) };
        let text = |text: &str| Arc::from(if text.is_empty() { "unknown" } else { text });
        let revision = |text: &Arc<str>| if text.is_empty() { Arc::from("latest") } else { Arc::clone(text) };
        let (source, destination) = (self.source, self.destination);
        Labels {
            reporter: self.reporter.into(),
            source_workload: known(&source.name),
            source_workload_namespace: known(&source.namespace),
            source_principal: text(self.source_principal),
            source_app: known(&source.app),
            source_version: known(&source.version),
            source_canonical_service: known(&source.service),
            source_canonical_revision: revision(&source.revision),
            source_cluster: known(&source.cluster),
            destination_workload: known(&destination.name),
            destination_workload_namespace: known(&destination.namespace),
            destination_principal: text(self.destination_principal),
            destination_app: known(&destination.app),
            destination_version: known(&destination.version),
            destination_canonical_service: known(&destination.service),
            destination_canonical_revision: revision(&destination.revision),
            destination_cluster: known(&destination.cluster),
            destination_service: known(&self.service.host),
            destination_service_name: known(&self.service.name),
            destination_service_namespace: known(&self.service.namespace),
            request_protocol: self.protocol.into(),
            response_code: self.code.map_or_else(|| Arc::from(""), |code| code.to_string().into()),
            grpc_response_status: self.grpc_status.map_or_else(|| Arc::from(""), |status| status.to_string().into()),
            response_flags: if self.flags.is_empty() { "-".into() } else { self.flags.into() },
            connection_security_policy: self.security.into(),
        }
    }
}

#[derive(Clone, Debug)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        // Istio's buckets are Envoy's, in milliseconds.
        Histogram::new([
            0.5,
            1.0,
            5.0,
            10.0,
            25.0,
            50.0,
            100.0,
            250.0,
            500.0,
            1000.0,
            2500.0,
            5000.0,
            10_000.0,
            30_000.0,
            60_000.0,
            300_000.0,
            600_000.0,
            1_800_000.0,
            3_600_000.0,
        ])
    }
}

/// The counters of one label set of requests.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    count: Counter,
    duration: Histogram,
}

impl Requests {
    pub(crate) fn add(&self, duration: Duration) {
        self.count.inc();
        self.duration.observe(duration.as_secs_f64() * 1000.0);
    }
}

/// The counters of one label set of connections.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pub(crate) opened: Counter,
    pub(crate) closed: Counter,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
}

/// Where a status and flags have been looked up already, on a host or on a connection: there the other labels are the
/// same every time.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Vec<(u16, &'static str, Requests)>>);

impl Cache {
    pub(crate) fn get(&self, code: u16, flags: &'static str, find: impl FnOnce() -> Requests) -> Requests {
        const MOST: usize = 32;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, found)) = known.iter().find(|(c, f, _)| *c == code && *f == flags) {
            return found.clone();
        }
        let found = find();
        if known.len() < MOST {
            known.push((code, flags, found.clone()));
        }
        found
    }
}

/// A workload that says who it is, and what was counted with it.
#[derive(Debug)]
pub(crate) struct Peer {
    said: HeaderValue,
    pub(crate) workload: Workload,
    pub(crate) series: Cache,
}

/// Workloads that have said who they are, over one connection or from one address.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<Vec<Arc<Peer>>>);

impl Peers {
    /// The peer that says this of itself.
    pub(crate) fn get(&self, said: &HeaderValue) -> Option<Arc<Peer>> {
        const MOST: usize = 32;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.iter().find(|peer| peer.said == said) {
            return Some(Arc::clone(found));
        }
        let workload = Workload::of_header(said)?;
        let peer = Arc::new(Peer { said: said.clone(), workload, series: Cache::default() });
        if known.len() >= MOST {
            known.remove(0);
        }
        known.push(Arc::clone(&peer));
        Some(peer)
    }
}

/// All that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Histogram, Buckets>,
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    pub(crate) no_chain: Counter,
    pub(crate) connections: Gauge,
    pub(crate) update_success: Counter,
    pub(crate) update_rejected: Counter,
    pub(crate) retries: Counter,
    pub(crate) handshake_failures: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations = Family::new_with_constructor(Buckets);
        let (opened, closed, sent, received) =
            (Family::default(), Family::default(), Family::default(), Family::default());
        registry.register("istio_requests", "Requests", requests.clone());
        registry.register("istio_request_duration_milliseconds", "How long requests took", durations.clone());
        registry.register("istio_tcp_connections_opened", "Connections opened", opened.clone());
        registry.register("istio_tcp_connections_closed", "Connections closed", closed.clone());
        registry.register("istio_tcp_sent_bytes", "Bytes sent in response", sent.clone());
        registry.register("istio_tcp_received_bytes", "Bytes received in request", received.clone());
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let no_chain = counter(&mut registry, "envoy_listener_no_filter_chain_match", "Connections no chain took");
        let update_success = counter(&mut registry, "stolos_xds_update_success", "Accepted xDS updates");
        let update_rejected = counter(&mut registry, "stolos_xds_update_rejected", "Refused xDS updates");
        let retries = counter(&mut registry, "envoy_cluster_upstream_rq_retry", "Requests sent once more");
        let handshake_failures = counter(&mut registry, "stolos_tls_handshake_failures", "TLS handshakes that failed");
        let connections = Gauge::default();
        registry.register("stolos_downstream_connections", "Open client connections", connections.clone());
        Self {
            registry,
            requests,
            durations,
            opened,
            closed,
            sent,
            received,
            no_chain,
            connections,
            update_success,
            update_rejected,
            retries,
            handshake_failures,
        }
    }
}

impl Metrics {
    /// The counters for requests like this.
    pub(crate) fn requests(&self, facts: &Facts<'_>) -> Requests {
        let labels = facts.labels();
        Requests {
            count: self.requests.get_or_create_owned(&labels),
            duration: self.durations.get_or_create(&labels).clone(),
        }
    }

    /// The counters for connections like this.
    pub(crate) fn connections(&self, facts: &Facts<'_>) -> Connections {
        let labels = facts.labels();
        Connections {
            opened: self.opened.get_or_create_owned(&labels),
            closed: self.closed.get_or_create_owned(&labels),
            sent: self.sent.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
        }
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_252_157, "2026-11-21T09:09:17.000Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(Timestamp(time).to_string(), expected);
        }
    }

    #[test]
    fn what_a_workload_says_of_itself_is_understood() {
        let workload = Workload { version: "v1".into(), ..Workload::of_endpoint("hello-v1;sample;hello;v1;west") };
        let peers = Peers::default();
        let said = workload.to_header().unwrap();
        assert_eq!(peers.get(&said).unwrap().workload, workload);
        assert!(Arc::ptr_eq(&peers.get(&said).unwrap(), &peers.get(&said).unwrap()));
        assert!(peers.get(&HeaderValue::from_static("%%%")).is_none());
    }

    #[test]
    fn requests_are_counted_under_istios_names() {
        let metrics = Metrics::default();
        let source = Workload { cluster: "east".into(), ..Workload::default() };
        let destination = Workload::of_endpoint("helloworld-v1;sample;helloworld;;west");
        let facts = Facts {
            reporter: "source",
            source: &source,
            source_principal: "",
            destination: &destination,
            destination_principal: "spiffe://cluster.local/ns/sample/sa/default",
            service: &Service::default(),
            protocol: "http",
            code: Some(200),
            grpc_status: None,
            flags: "",
            security: "unknown",
        };
        metrics.requests(&facts).add(Duration::from_millis(3));
        let text = metrics.text();
        let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
        assert!(line.contains(r#"source_cluster="east""#) && line.contains(r#"destination_cluster="west""#), "{line}");
        assert!(line.ends_with(" 1"), "{line}");
    }
}
