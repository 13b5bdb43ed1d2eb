//! The hidden role `simulate-proxies`: as many discovery clients as there are to be, over TLS, in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, skip_field};
use prost::{DecodeError, Message};
use stolos_k8s::istio;
use stolos_pki::Roots;
use stolos_serve::because;
use stolos_serve::{HostNet, Listener, Net, Stop, Stream};
use stolos_xds::client::{Client, Target};
use stolos_xds::envoy::config::cluster::v3::Cluster;
use stolos_xds::envoy::config::core::v3::Node;
use stolos_xds::envoy::service::discovery::v3 as discovery;
use stolos_xds::message::{self, CLUSTER, ENDPOINT, LISTENER, ROUTE, string, structure};
use stolos_xds::{Resource, Resources, Snapshot, unpack};
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic_prost::ProstCodec;

use super::fleet::Fleet;

/// What the role is to be.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Setup {
    /// Where the control plane is.
    pub(crate) address: IpAddr,
    /// Where its root certificate is.
    pub(crate) folder: PathBuf,
    /// How many proxies.
    pub(crate) proxies: usize,
}

/// Runs the role until standard input ends.
pub(crate) fn run(setup: &str) -> Result<()> {
    let setup: Setup = super::setup(setup)?;
    crate::process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async move {
        let roots = Roots::from_pem(&std::fs::read_to_string(super::root_certificate(&setup.folder))?)?;
        let tls = stolos_pki::tls::client_by_name(None, &roots, &[b"h2"])?;
        let target = Target {
            net: Arc::new(Lead(HostNet::default(), setup.address)),
            host: "istiod.istio-system.svc".to_owned(),
            port: istio::XDS_PORT,
            tls: Some(Arc::new(move || Ok(tls.clone()))),
            timeout: Duration::from_secs(120),
        };
        let begun = std::time::Instant::now();
        let stop = Stop::new();
        let (ready, mut complete) = mpsc::channel(setup.proxies.max(1));
        let fleet = Fleet::default();
        let mut handles = Vec::new();
        for n in 0..setup.proxies {
            let (node, token) = (node(&fleet, n), format!("{}:{}", fleet.namespace(n), fleet.service(n)));
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", format!("Bearer {token}").parse()?);
            metadata.insert(istio::CLUSTER_ID_METADATA, fleet.cluster(0).parse()?);
            if n % 4 == 3 {
                tokio::spawn(whole(target.clone(), node, metadata, ready.clone()));
            } else {
                let metadata: stolos_xds::client::Metadata = Arc::new(move || {
                    let metadata = metadata.clone();
                    Box::pin(async move { Ok(metadata) })
                });
                let handle = Client { metadata, ..Client::new(target.clone(), node) }.start(stop.clone());
                let (mut snapshots, ready) = (handle.snapshots(), ready.clone());
                tokio::spawn(async move {
                    if snapshots.wait_for(|snapshot| is_complete(snapshot)).await.is_ok() {
                        let _ = ready.send(()).await;
                    }
                });
                handles.push(handle);
            }
        }
        for _ in 0..setup.proxies {
            complete.recv().await;
        }
        super::say(&super::Told { seconds: begun.elapsed().as_secs_f64(), ..super::Told::default() })?;
        while tokio::task::spawn_blocking(super::line::<()>).await??.is_some() {}
        anyhow::Ok(())
    })
}

/// Whether there is everything that clusters and listeners refer to.
fn is_complete(snapshot: &Snapshot) -> bool {
    let count = |type_url: &str| snapshot.get(type_url).map_or(0, |all| all.len());
    let clusters = snapshot.get(CLUSTER).into_iter().flat_map(|all| all.iter());
    let wanted = clusters.filter(|cluster| cluster.name.starts_with("outbound|")).count();
    wanted > 0 && wanted == count(ENDPOINT) && count(ROUTE) > 0
}

fn node(fleet: &Fleet, n: usize) -> Node {
    // More proxies than services: further pods of them.
    let (service, at) = (n % fleet.services, n / fleet.services);
    let (pod, namespace) = (fleet.pod(service, 0, at), fleet.namespace(service));
    let labels = [(istio::APP_LABEL, fleet.service(service)), (istio::VERSION_LABEL, "v1".to_owned())];
    Node {
        id: format!("sidecar~10.0.{}.{}~{pod}.{namespace}~{namespace}.svc.cluster.local", n >> 8, n & 255),
        metadata: Some(structure([
            ("CLUSTER_ID", string(&*fleet.cluster(0))),
            ("NETWORK", string(fleet.network(0))),
            ("NAMESPACE", string(namespace)),
            ("SERVICE_ACCOUNT", string(fleet.service(service))),
            ("LABELS", message::object(labels.map(|(key, value)| (key, string(value))))),
        ])),
        ..Node::default()
    }
}

/// The host's network, in which the control plane has its name.
struct Lead(HostNet, IpAddr);

impl Net for Lead {
    fn address(&self) -> IpAddr {
        self.0.address()
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        self.0.dial(to)
    }

    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        self.0.bind(port)
    }

    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async { Ok(vec![self.1]) })
    }
}

/// A client of the state of the world: takes everything, follows what clusters and listeners refer to.
async fn whole(target: Target, node: Node, metadata: MetadataMap, ready: mpsc::Sender<()>) {
    loop {
        if let Err(error) = whole_stream(&target, &node, &metadata, &ready).await {
            // Nobody reads it: nothing is lost.
            let _ = writeln!(io::stderr(), "{}: {error:#}", node.id);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn whole_stream(target: &Target, node: &Node, metadata: &MetadataMap, ready: &mpsc::Sender<()>) -> Result<()> {
    let mut lacking = BTreeSet::from([ENDPOINT, ROUTE]);
    let channel = target.connect().await.map_err(|error| anyhow::anyhow!(because(&error)))?;
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(256 << 20);
    let (requests, queue) = mpsc::channel(16);
    let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    let mut request = tonic::Request::new(queue);
    *request.metadata_mut() = metadata.clone();
    for type_url in [CLUSTER, LISTENER] {
        let node = (type_url == CLUSTER).then(|| node.clone());
        requests.send(Asking { node, ..Asking::of(type_url, &[]) }).await?;
    }
    client.ready().await?;
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
    let codec = ProstCodec::<Asking, discovery::DiscoveryResponse>::default();
    let mut responses = client.streaming(request, path.parse()?, codec).await?.into_inner();
    // What is asked for of each type.
    let mut asked = BTreeMap::from([CLUSTER, LISTENER].map(|type_url| (type_url, Asking::of(type_url, &[]))));
    while let Some(response) = responses.message().await? {
        let type_url = response.type_url.as_str();
        let Some(asking) = asked.get_mut(type_url) else { continue };
        asking.nonce.clone_from(&response.nonce);
        requests.send(Asking { version: response.version_info.clone(), ..asking.clone() }).await?;
        if lacking.remove(type_url) && lacking.is_empty() {
            ready.send(()).await?;
        }
        let (follows, names) = match type_url {
            CLUSTER => (ENDPOINT, endpoints(&response)),
            LISTENER => (ROUTE, routes(&response)),
            _ => continue,
        };
        let mut wanted = Asking::of(follows, &names);
        let before = asked.get(follows);
        if before.is_none_or(|before| before.written != wanted.written) {
            wanted.nonce = before.map(|before| before.nonce.clone()).unwrap_or_default();
            requests.send(wanted.clone()).await?;
            asked.insert(follows, wanted);
        }
    }
    Ok(())
}

/// A `DiscoveryRequest`. Every acknowledgement repeats a thousand names: they are written once, as a proxy in C++ would
/// not make them anew either, or the load would be what is measured.
#[derive(Clone, Debug, Default)]
struct Asking {
    node: Option<Node>,
    /// The type and the names.
    written: Bytes,
    nonce: String,
    version: String,
}

impl Asking {
    fn of(type_url: &str, names: &[String]) -> Self {
        let request = discovery::DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: names.to_vec(),
            ..discovery::DiscoveryRequest::default()
        };
        Self { written: request.encode_to_vec().into(), ..Self::default() }
    }

    /// What differs from time to time.
    fn rest(&self) -> discovery::DiscoveryRequest {
        discovery::DiscoveryRequest {
            node: self.node.clone(),
            response_nonce: self.nonce.clone(),
            version_info: self.version.clone(),
            ..discovery::DiscoveryRequest::default()
        }
    }
}

// Two messages one behind the other are one message that has the fields of both.
impl Message for Asking {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.written);
        self.rest().encode_raw(buffer);
    }

    fn encoded_len(&self) -> usize {
        self.written.len() + self.rest().encoded_len()
    }

    // Nobody sends one to a proxy.
    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire, tag, buffer, context)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

fn endpoints(response: &discovery::DiscoveryResponse) -> Vec<String> {
    let clusters = response.resources.iter().filter_map(|any| unpack::<Cluster>(any).ok());
    clusters.filter(|cluster| cluster.eds_cluster_config.is_some()).map(|cluster| cluster.name).collect()
}

fn routes(response: &discovery::DiscoveryResponse) -> Vec<String> {
    let listeners: Resources = response
        .resources
        .iter()
        .enumerate()
        .map(|(n, any)| Resource { name: n.to_string().into(), version: "".into(), body: any.clone() })
        .collect();
    let names = stolos_xds::client::references(&Snapshot::new("").with(LISTENER, listeners));
    let names: BTreeSet<String> = names.get(ROUTE).cloned().unwrap_or_default();
    names.into_iter().collect()
}
