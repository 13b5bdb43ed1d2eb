//! A control plane for two sidecars: what the real one would send them (`stolos_control::translate`), over the same
//! protocol, and an authority that signs what it is asked to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use stolos_control::model::{
    ClusterView, Endpoint, Health, Labels, Locality, PodFacts, Port, Protocol, ProxyInfo, Resolution, Service,
    Settings, Target, World,
};
use stolos_control::policy::{Applies, Mtls, PeerAuthentication, Policies};
use stolos_control::translate::endpoints::{self, Style};
use stolos_control::translate::{clusters, inbound, listeners};
use stolos_pki::tls::{self, ClientAuth};
use stolos_pki::{Authority, SpiffeId};
use stolos_serve::{HostNet, Net, Stop, listen};
use stolos_xds::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use stolos_xds::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use stolos_xds::message::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use stolos_xds::server::{Proxy, Server, Source, per_connection};
use stolos_xds::{Resources, Snapshot};
use tokio::sync::watch;

pub(super) const CLUSTER_ID: &str = "east";
pub(super) const NAMESPACE: &str = "sample";
/// The client's pod, its account and its label `app`; the same for the server.
pub(super) const CLIENT: &str = "client";
pub(super) const SERVER: &str = "server";
pub(super) const HOST: &str = "server.sample.svc.cluster.local";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);
const DAY: Duration = Duration::from_secs(86_400);

/// What the service speaks on which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Http,
    Http2,
    Tcp,
}

impl Spoken {
    pub(super) const ALL: [Self; 3] = [Self::Http, Self::Http2, Self::Tcp];

    pub(super) fn port(self) -> u16 {
        match self {
            Self::Http => 8080,
            Self::Http2 => 8082,
            Self::Tcp => 9000,
        }
    }

    fn port_of_service(self) -> Port {
        let (name, protocol) = match self {
            Self::Http => ("http", Protocol::Http),
            Self::Http2 => ("http2", Protocol::Http2),
            Self::Tcp => ("tcp", Protocol::Tcp),
        };
        Port { name: name.into(), number: self.port(), protocol, target: Target::Number(self.port()) }
    }

    /// Where a client believes that it connects to.
    pub(super) fn service(self) -> SocketAddr {
        (VIP, self.port()).into()
    }
}

/// Addresses of one mesh of two pods on this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The client's pod.
    pub(super) client: Ipv4Addr,
    /// The server's pod.
    pub(super) server: Ipv4Addr,
    /// The server's application itself, past the redirection.
    pub(super) application: Ipv4Addr,
}

impl Places {
    /// The `index`-th mesh's; nothing else on this machine uses 127.253.0.0/16 unless a lab has claimed it.
    pub(super) fn of(index: u8) -> Self {
        let place = |last| Ipv4Addr::new(127, 253, index, last);
        Self { client: place(1), server: place(2), application: place(3) }
    }
}

/// The picture that the control plane would have of these two pods.
fn world(places: Places) -> World {
    let own = |app: &str| Labels::from([("app".to_owned(), app.to_owned()), ("version".to_owned(), "v1".to_owned())]);
    let host: Arc<str> = HOST.into();
    let ports = Spoken::ALL.map(Spoken::port_of_service).to_vec();
    let endpoints = Spoken::ALL.map(|spoken| Endpoint {
        address: Some(places.server.into()),
        port: spoken.port(),
        port_name: spoken.port_of_service().name,
        cluster: CLUSTER_ID.into(),
        network: "network-east".into(),
        locality: Locality::default(),
        identity: identity(SERVER).to_string(),
        tls: true,
        weight: 1,
        labels: Arc::new(own(SERVER)),
        health: Health::Healthy,
        workload: SERVER.into(),
        namespace: NAMESPACE.into(),
        node: "node".into(),
        hostname: None,
    });
    let service = Service {
        name: SERVER.into(),
        namespace: NAMESPACE.into(),
        host: HOST.into(),
        ports,
        resolution: Resolution::ClientSide,
        vips: [(CLUSTER_ID.into(), vec![VIP.into()])].into(),
        vip: Some(VIP.into()),
        accounts: Default::default(),
        labels: Labels::new(),
        selector: [("app".to_owned(), SERVER.to_owned())].into(),
        created: 1,
        export_to: Default::default(),
        node_local: false,
        publish_not_ready: false,
        distribution: None,
    };
    let pod = |name: &str, address: Ipv4Addr| {
        let facts = PodFacts {
            namespace: NAMESPACE.into(),
            name: name.into(),
            addresses: vec![address.into()],
            labels: own(name),
            account: name.into(),
            node: "node".into(),
            workload: name.into(),
            ..PodFacts::default()
        };
        ((NAMESPACE.to_owned(), name.to_owned()), Arc::new(facts))
    };
    let view = ClusterView {
        id: CLUSTER_ID.into(),
        network: "network-east".into(),
        services: Arc::new([(Arc::clone(&host), Arc::new(service))].into()),
        accounts: Arc::new([(Arc::clone(&host), [identity(SERVER).to_string()].into())].into()),
        endpoints: [(host, Arc::new(endpoints.to_vec()))].into(),
        gateways: Arc::default(),
        namespaces: Arc::new([(NAMESPACE.to_owned(), Labels::new())].into()),
        pods: Arc::new([pod(CLIENT, places.client), pod(SERVER, places.server)].into()),
    };
    let settings = Settings { own: CLUSTER_ID.into(), mesh: "bench".into(), ..Settings::default() };
    let everywhere = Applies { namespace: settings.root_namespace.clone(), selector: Labels::new(), any: false };
    let strict = PeerAuthentication { applies: everywhere, mode: Some(Mtls::Strict), ports: BTreeMap::new() };
    let policies = Policies { peers: vec![strict], ..Policies::default() };
    World::compose(&World::default(), Arc::new(settings), vec![Arc::new(view)], Arc::new(policies))
}

fn identity(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", NAMESPACE, account)
}

/// All that a sidecar is sent, as `stolos_control` puts it together.
fn snapshot(world: &World, info: &ProxyInfo) -> Result<Snapshot> {
    let service = world.services.by_host.get(HOST).context("the service")?;
    let outbound = |port: &Port| clusters::outbound(world, info, service, port, "", Style::Client, None);
    let of_services: Vec<_> = service.ports.iter().filter_map(outbound).collect();
    let assignments: Vec<_> = service
        .ports
        .iter()
        .map(|port| {
            let name = clusters::name(Style::Client, port.number, "", HOST);
            endpoints::assignment(&name, endpoints::select(world, info, service, port, "", Style::Client, None))
        })
        .collect();
    let all = of_services.into_iter().chain(clusters::fixed(info)).chain(inbound::clusters(world, info));
    let mut listening = listeners::outbound(world, info);
    listening.extend([listeners::virtual_outbound(world, info), inbound::listener(world, info)]);
    Ok(Snapshot::new("1")
        .with(CLUSTER, Resources::of(&all.collect::<Vec<_>>()))
        .with(ENDPOINT, Resources::of(&assignments))
        .with(LISTENER, Resources::of(&listening))
        .with(ROUTE, Resources::of(&listeners::routes(world, info))))
}

/// The control plane of one mesh.
pub(super) struct Control {
    authority: Authority,
    places: Places,
    world: World,
}

impl Control {
    pub(super) fn new(places: Places) -> Result<Arc<Self>> {
        let now = SystemTime::now();
        let root = Authority::new_root("bench", 10 * DAY, now)?;
        let intermediate = root.issue_intermediate(CLUSTER_ID, "bench", "cluster.local", 5 * DAY, now)?;
        let authority = intermediate.authority(now).context("the intermediate")?;
        Ok(Arc::new(Self { authority, places, world: world(places) }))
    }

    /// The roots that sidecars are given.
    pub(super) fn roots(&self) -> &str {
        self.authority.roots_pem()
    }

    /// Serves discovery and signing; returns the port.
    pub(super) async fn serve(self: &Arc<Self>, stop: &Stop) -> Result<u16> {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let serving = self.authority.sign_server(&[], &[here], None, DAY, SystemTime::now())?;
        let config = tls::server(&serving, ClientAuth::None, &[b"h2"])?;
        let server = Server::new(Arc::clone(self), stop.clone());
        let authority = IstioCertificateServiceServer::new(Signing(Arc::clone(self)));
        let routes = tonic::service::Routes::new(server.service()).add_service(authority).into_axum_router();
        let listener = HostNet::new(here).bind(0).await?;
        let port = listener.local_addr()?.port();
        let settings =
            listen::Settings { tls: Some(Arc::new(move || Arc::clone(&config))), ..listen::Settings::default() };
        tokio::spawn(listen::http(listener, settings, stop.clone(), move |peer| per_connection(routes.clone(), peer)));
        Ok(port)
    }
}

impl Source for Control {
    fn connect<'a>(&'a self, proxy: &'a Proxy) -> BoxFuture<'a, Result<watch::Receiver<Arc<Snapshot>>, tonic::Status>> {
        Box::pin(async move {
            let account = proxy.text(&["SERVICE_ACCOUNT"]).unwrap_or_default().to_owned();
            let address = if account == SERVER { self.places.server } else { self.places.client };
            let info = ProxyInfo {
                id: proxy.node.id.clone(),
                address: Some(address.into()),
                bind: proxy.text(&["STOLOS_BIND"]).and_then(|bind| bind.parse().ok()),
                name: account.clone(),
                namespace: NAMESPACE.into(),
                cluster: CLUSTER_ID.into(),
                network: "network-east".into(),
                labels: [("app".to_owned(), account.clone())].into(),
                account,
                proxy_protocol: true,
                ..ProxyInfo::default()
            };
            let snapshot = snapshot(&self.world, &info).map_err(|e| tonic::Status::internal(e.to_string()))?;
            // Never changed, but kept: an ended watch would end the stream.
            let (sender, receiver) = watch::channel(Arc::new(snapshot));
            tokio::spawn(async move { sender.closed().await });
            Ok(receiver)
        })
    }

    fn refused(&self, _: &Proxy, nack: &stolos_xds::server::Nack) {
        // A figure of a proxy that does not do its job would be worth nothing: the run will not become ready.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("refused: {}\n", nack.message).as_bytes());
    }
}

/// Signs for whoever the token says it is: nobody else can reach it.
struct Signing(Arc<Control>);

#[tonic::async_trait]
impl IstioCertificateService for Signing {
    async fn create_certificate(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<tonic::Response<IstioCertificateResponse>, tonic::Status> {
        let token = request.metadata().get("authorization").and_then(|token| token.to_str().ok()).unwrap_or_default();
        let account = token.strip_prefix("Bearer ").ok_or_else(|| tonic::Status::unauthenticated("no token"))?;
        let signed = self.0.authority.sign_workload(&request.get_ref().csr, &identity(account), DAY, SystemTime::now());
        let cert_chain = signed.map_err(|e| tonic::Status::invalid_argument(e.to_string()))?;
        Ok(tonic::Response::new(IstioCertificateResponse { cert_chain }))
    }
}
