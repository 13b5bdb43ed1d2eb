//! A network, a proxy in it, and resources as a control plane would write them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use stolos_pki::{Authority, Credentials, Roots, SpiffeId, WorkloadRequest};
use stolos_serve::{Container, Listener, Net, Output, Stop, Stream};
use stolos_xds::envoy::config::cluster::v3::{self as cluster, Cluster};
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::endpoint::v3 as endpoint;
use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::message::{self, string, structure};
use stolos_xds::prost::Name;
use stolos_xds::{Any, pack};
use tokio::net::{TcpListener, TcpStream};

use crate::{Proxy, Store};

/// How long a test waits for what must happen.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// A network on the loopback in which every port is free: what is bound lies somewhere else and is found here.
#[derive(Default)]
pub(super) struct Ports {
    bound: Mutex<HashMap<u16, SocketAddr>>,
}

impl Ports {
    /// Where a port has come to lie.
    pub(super) async fn at(&self, port: u16) -> SocketAddr {
        eventually(|| self.bound.lock().unwrap().get(&port).copied()).await
    }
}

impl Net for Ports {
    fn address(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        let lies = self.bound.lock().unwrap().get(&to.port()).copied();
        let to = lies.filter(|lies| lies.ip() == to.ip()).unwrap_or(to);
        Box::pin(async move { Ok(Stream::from(TcpStream::connect(to).await?)) })
    }

    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        Box::pin(async move {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            self.bound.lock().unwrap().insert(port, listener.local_addr()?);
            Ok(Listener::from(listener))
        })
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(vec![host.parse().unwrap_or(Ipv4Addr::LOCALHOST.into())]) })
    }
}

/// A running proxy.
pub(super) struct Running {
    pub(super) store: Store,
    pub(super) lines: Arc<Mutex<Vec<String>>>,
    pub(super) stop: Stop,
    net: Arc<Ports>,
    pub(super) task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(super) fn start() -> Self {
        Self::start_in("east")
    }

    /// A proxy of a workload in `cluster`.
    pub(super) fn start_in(cluster: &str) -> Self {
        Self::start_with(&[("ISTIO_META_CLUSTER_ID", cluster)])
    }

    pub(super) fn start_with(env: &[(&str, &str)]) -> Self {
        let net = Arc::new(Ports::default());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&lines);
        let container = Container {
            net: net.clone(),
            root: "/".into(),
            env: env.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            args: Vec::new(),
            output: Output::new(move |line| written.lock().unwrap().push(line.to_owned())),
            programs: None,
        };
        let (proxy, store) = Proxy::new(&container);
        let stop = Stop::new();
        let task = tokio::spawn(proxy.run(stop.clone()));
        Self { store, lines, stop, net, task }
    }

    pub(super) fn put<M: Name>(&mut self, name: &str, message: &M) {
        self.try_put(name, message).unwrap();
    }

    pub(super) fn try_put<M: Name>(&mut self, name: &str, message: &M) -> Result<(), String> {
        self.store.update(&M::type_url(), &[(name.to_owned(), pack(message))], &[])
    }

    /// Where a port has come to lie.
    pub(super) async fn at(&self, port: u16) -> SocketAddr {
        self.net.at(port).await
    }

    pub(super) async fn dial(&self, port: u16) -> TcpStream {
        TcpStream::connect(self.at(port).await).await.unwrap()
    }

    /// Waits for the log line that contains `text`, as JSON.
    pub(super) async fn line(&self, text: &str) -> serde_json::Value {
        let find = || self.lines.lock().unwrap().iter().find(|line| line.contains(text)).cloned();
        serde_json::from_str(&eventually(find).await).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.ask();
        self.task.abort();
    }
}

/// Waits until there is something.
pub(super) async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, looking).await.expect("it did not happen in time")
}

/// A trust root of one cluster.
pub(super) struct Trust(Authority, Roots);

impl Trust {
    pub(super) fn new() -> Self {
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let root = Authority::new_root("test", 10 * day, now).unwrap();
        let cluster = root.issue_intermediate("east", "test", "cluster.local", day, now).unwrap();
        let roots = Roots::from_pem(&cluster.root_cert).unwrap();
        Self(cluster.authority(now).unwrap(), roots)
    }

    pub(super) fn roots(&self) -> Roots {
        self.1.clone()
    }

    /// An identity in namespace `sample`.
    pub(super) fn workload(&self, account: &str) -> Credentials {
        let id = SpiffeId::new("cluster.local", "sample", account);
        let request = WorkloadRequest::new(&id).unwrap();
        let now = SystemTime::now();
        let chain = self.0.sign_workload(&request.csr_pem, &id, Duration::from_secs(3600), now).unwrap();
        Credentials::from_pem(&chain.concat(), request.key.to_pem().expose()).unwrap()
    }
}

pub(super) fn any_filter(name: &str, any: Any) -> listener::Filter {
    listener::Filter { name: name.into(), config_type: Some(listener::filter::ConfigType::TypedConfig(any)) }
}

pub(super) fn listener_filter<M: Name>(message: &M) -> listener::ListenerFilter {
    listener::ListenerFilter {
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(pack(message))),
        ..Default::default()
    }
}

pub(super) fn socket(name: &str, any: Any) -> core::TransportSocket {
    core::TransportSocket { name: name.into(), config_type: Some(core::transport_socket::ConfigType::TypedConfig(any)) }
}

pub(super) fn millis(millis: u64) -> Option<prost_types::Duration> {
    Duration::from_millis(millis).try_into().ok()
}

/// An EDS cluster with Istio's terms.
pub(super) fn eds(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        lb_policy: cluster::cluster::LbPolicy::LeastRequest.into(),
        connect_timeout: millis(500),
        ..Cluster::default()
    }
}

/// An ORIGINAL_DST cluster.
pub(super) fn original(name: &str) -> Cluster {
    Cluster {
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided.into(),
        ..eds(name)
    }
}

/// Endpoints of one locality, with metadata as Istio's.
pub(super) fn endpoints(name: &str, addresses: &[SocketAddr], tls: bool) -> endpoint::ClusterLoadAssignment {
    let mut metadata = core::Metadata::default();
    let workload = structure([("workload", string("helloworld-v1;sample;helloworld;v1;west"))]);
    metadata.filter_metadata.insert("istio".into(), workload);
    if tls {
        let mode = structure([("tlsMode", string("istio"))]);
        metadata.filter_metadata.insert("envoy.transport_socket_match".into(), mode);
    }
    let one = |address: &SocketAddr| endpoint::LbEndpoint {
        metadata: Some(metadata.clone()),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(message::address(address.ip().to_string(), address.port())),
            ..Default::default()
        })),
        ..Default::default()
    };
    endpoint::ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: addresses.iter().map(one).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// An address where nobody listens, nor will: the port is held for as long as the tests run.
pub(super) fn nobody() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    std::mem::forget(socket);
    address
}
