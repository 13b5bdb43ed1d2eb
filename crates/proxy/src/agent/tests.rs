use super::*;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use futures::future::BoxFuture;
use stolos_pki::{Authority, SpiffeId, tls::ClientAuth};
use stolos_serve::{HostNet, Listener, Net, Output, Stream, listen};
use stolos_xds::Resources;
use stolos_xds::envoy::config::cluster::v3::Cluster;
use stolos_xds::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use stolos_xds::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use stolos_xds::server::{Proxy, Server, Source, per_connection};

/// A network in which every name is the host's.
struct Names(HostNet);

impl Net for Names {
    fn address(&self) -> IpAddr {
        [127, 0, 0, 1].into()
    }
    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        self.0.dial(to)
    }
    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        self.0.bind(port)
    }
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async { Ok(vec![[127, 0, 0, 1].into()]) })
    }
}

pub(crate) struct ControlPlane {
    pub(crate) authority: Authority,
    lifetime: Duration,
    is_ill: AtomicBool,
    signed: AtomicU64,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
}

impl ControlPlane {
    pub(crate) fn new(lifetime: Duration) -> Arc<Self> {
        let now = SystemTime::now();
        let root = Authority::new_root("test", Duration::from_secs(86_400), now).unwrap();
        let certificates =
            root.issue_intermediate("east", "test", "cluster.local", Duration::from_secs(80_000), now).unwrap();
        let clusters = [Cluster { name: "BlackHoleCluster".into(), ..Cluster::default() }];
        let snapshot = Snapshot::new("1").with(CLUSTER, Resources::of(&clusters)).with(LISTENER, Resources::default());
        Arc::new(Self {
            authority: certificates.authority(now).unwrap(),
            lifetime,
            is_ill: AtomicBool::new(false),
            signed: AtomicU64::new(0),
            snapshots: watch::Sender::new(Arc::new(snapshot)),
        })
    }

    pub(crate) async fn serve(self: &Arc<Self>, stop: &Stop) -> u16 {
        let names = ["istiod.istio-system.svc".to_owned()];
        let serving =
            self.authority.sign_server(&names, &[], None, Duration::from_secs(3600), SystemTime::now()).unwrap();
        let config = tls::server(&serving, ClientAuth::None, &[b"h2"]).unwrap();
        let server = Server::new(Arc::clone(self), stop.clone());
        let authority = IstioCertificateServiceServer::new(Signing(Arc::clone(self)));
        let routes = tonic::service::Routes::new(server.service()).add_service(authority).into_axum_router();
        let listener = Names(HostNet::new([127, 0, 0, 1].into())).bind(0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let settings =
            listen::Settings { tls: Some(Arc::new(move || Arc::clone(&config))), ..listen::Settings::default() };
        tokio::spawn(listen::http(listener, settings, stop.clone(), move |peer| per_connection(routes.clone(), peer)));
        port
    }
}

impl Source for ControlPlane {
    fn connect<'a>(&'a self, proxy: &'a Proxy) -> BoxFuture<'a, Result<watch::Receiver<Arc<Snapshot>>, tonic::Status>> {
        Box::pin(async move {
            is_known(&proxy.metadata)?;
            assert_eq!(proxy.text(&["LABELS", "app"]), Some("sleep"));
            Ok(self.snapshots.subscribe())
        })
    }
}

struct Signing(Arc<ControlPlane>);

#[tonic::async_trait]
impl IstioCertificateService for Signing {
    async fn create_certificate(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<tonic::Response<IstioCertificateResponse>, tonic::Status> {
        if self.0.is_ill.load(Ordering::SeqCst) {
            return Err(tonic::Status::internal("not ready"));
        }
        is_known(request.metadata())?;
        let id = SpiffeId::new("cluster.local", "sample", "sleep");
        let csr = &request.get_ref().csr;
        let cert_chain = self.0.authority.sign_workload(csr, &id, self.0.lifetime, SystemTime::now());
        self.0.signed.fetch_add(1, Ordering::SeqCst);
        Ok(tonic::Response::new(IstioCertificateResponse { cert_chain: cert_chain.unwrap() }))
    }
}

fn is_known(metadata: &MetadataMap) -> Result<(), tonic::Status> {
    let is = |key: &str, value: &str| metadata.get(key).is_some_and(|found| found == value);
    if is("authorization", "Bearer a-token") && is("clusterid", "east") {
        return Ok(());
    }
    Err(tonic::Status::unauthenticated("unknown caller"))
}

fn write(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

pub(crate) fn container(root: &Path, port: u16, roots: &str) -> Container {
    write(root, "var/run/secrets/tokens/istio-token", "a-token\n");
    write(root, "var/run/secrets/istio/root-cert.pem", roots);
    write(root, "etc/istio/pod/labels", "app=\"sleep\"\n");
    let place = format!("istiod.istio-system.svc:{port}");
    let env = [
        ("POD_NAME", "sleep-1"),
        ("POD_NAMESPACE", "sample"),
        ("SERVICE_ACCOUNT", "sleep"),
        ("CA_ADDR", &place),
        ("PROXY_CONFIG", &format!(r#"{{"discoveryAddress": "{place}"}}"#)),
        ("ISTIO_META_CLUSTER_ID", "east"),
    ];
    Container {
        net: Arc::new(Names(HostNet::default())),
        root: root.to_owned(),
        env: env.map(|(key, value)| (key.into(), value.into())).into(),
        args: vec!["proxy".into(), "sidecar".into()],
        output: Output::discard(),
        programs: None,
    }
}

async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("{what} in time"))
}

#[tokio::test]
async fn an_agent_becomes_ready_and_renews() {
    let (stop, root) = (Stop::new(), tempfile::tempdir().unwrap());
    let control = ControlPlane::new(Duration::from_secs(2));
    control.is_ill.store(true, Ordering::SeqCst);
    let port = control.serve(&stop).await;
    let agent = start(&container(root.path(), port, control.authority.roots_pem()), decodes(), stop.clone()).unwrap();
    assert!(agent.readiness().is_err());
    let mut resources = agent.resources();
    soon("resources", resources.wait_for(|snapshot| snapshot.get(LISTENER).is_some())).await.unwrap();
    let mut failure = agent.failure.clone();
    soon("a failure", failure.wait_for(Option::is_some)).await.unwrap();
    let said = agent.readiness().unwrap_err();
    assert_eq!(said, "no certificate yet (the authority refuses: Internal: not ready)");

    control.is_ill.store(false, Ordering::SeqCst);
    soon("readiness", agent.ready()).await;
    assert_eq!(agent.readiness(), Ok(()));
    let mut identity = agent.identity();
    let first = identity.borrow_and_update().clone().unwrap();
    assert_eq!(first.credentials.leaf().uris(), ["spiffe://cluster.local/ns/sample/sa/sleep"]);
    assert_eq!(first.credentials.chain().len(), 2);
    assert_eq!(first.roots.certificates().len(), 1);

    soon("renewal", identity.changed()).await.unwrap();
    let second = identity.borrow_and_update().clone().unwrap();
    assert_ne!(first.credentials.leaf().serial(), second.credentials.leaf().serial());
    stop.ask();
    soon("the end", agent.ended()).await;
}

#[tokio::test]
async fn a_control_plane_of_another_root_is_not_believed() {
    let (stop, root) = (Stop::new(), tempfile::tempdir().unwrap());
    let control = ControlPlane::new(Duration::from_secs(3600));
    let port = control.serve(&stop).await;
    let other = ControlPlane::new(Duration::from_secs(3600));
    let agent = start(&container(root.path(), port, other.authority.roots_pem()), decodes(), stop.clone()).unwrap();
    let mut failure = agent.failure.clone();
    let why = soon("a failure", failure.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert!(why.contains("invalid peer certificate"), "{why}");
    assert_eq!(control.signed.load(Ordering::SeqCst), 0);
    // The mesh's bundle arrives later.
    write(root.path(), "var/run/secrets/istio/root-cert.pem", control.authority.roots_pem());
    soon("readiness", agent.ready()).await;
    stop.ask();
    soon("the end", agent.ended()).await;
}
