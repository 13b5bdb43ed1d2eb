//! The servers of ours that are measured, as child processes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::pipe::{PipeFlags, SpliceFlags};
use stolos_proxy::{Proxy, Store};
use stolos_serve::{Container, HostNet, Output, Stop};
use stolos_xds::envoy::config::accesslog::v3 as accesslog;
use stolos_xds::envoy::config::cluster::v3 as cluster;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::endpoint::v3 as endpoint;
use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::envoy::extensions::access_loggers::file::v3 as file;
use stolos_xds::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use stolos_xds::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use stolos_xds::prost::Name;
use stolos_xds::{message, pack};

use super::{ACCESS_LOG, SERVER_NAME};

/// Our gateway, until it is killed: `PORT BACKEND… [log]`. The runtime is the one of `stolos proxy router`: as many
/// threads as it may use cores, so one worker on one core.
pub(crate) fn gateway(arguments: &[&str]) -> Result<()> {
    let (arguments, log) = match arguments {
        [arguments @ .., "log"] => (arguments, true),
        arguments => (arguments, false),
    };
    let [port, backends @ ..] = arguments else { bail!("PORT BACKEND… [log]") };
    let (port, backends) = (port.parse()?, addresses(backends)?);
    let container = Container {
        // A pod knows its address (INSTANCE_IP).
        net: Arc::new(HostNet::new(IpAddr::V4(Ipv4Addr::LOCALHOST))),
        root: "/".into(),
        env: BTreeMap::from([("ISTIO_META_CLUSTER_ID".to_owned(), "cluster-east-1".to_owned())]),
        args: vec!["proxy".into(), "router".into()],
        output: Output::new(|line| {
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }),
        programs: None,
    };
    crate::process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (proxy, mut store) = Proxy::new(&container);
        put(&mut store, SERVER_NAME, &eds())?;
        put(&mut store, SERVER_NAME, &endpoints(&backends))?;
        put(&mut store, "0.0.0.0_15443", &passthrough(port, log)?)?;
        proxy.run(Stop::new()).await;
        Ok(())
    })
}

fn addresses(texts: &[&str]) -> Result<Vec<SocketAddr>> {
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

fn put<M: Name>(store: &mut Store, name: &str, message: &M) -> Result<()> {
    store.update(&M::type_url(), &[(name.to_owned(), pack(message))], &[]).map_err(|refused| anyhow!(refused))
}

/// The listener that `control::translate::gateway` makes.
fn passthrough(port: u16, log: bool) -> Result<listener::Listener> {
    let proxy = tcp::TcpProxy {
        stat_prefix: SERVER_NAME.into(),
        access_log: if log { vec![access_log()?] } else { Vec::new() },
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(SERVER_NAME.into())),
        ..Default::default()
    };
    let protocols = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
    let chain = listener::FilterChain {
        name: SERVER_NAME.into(),
        filter_chain_match: Some(listener::FilterChainMatch {
            server_names: vec![SERVER_NAME.into()],
            application_protocols: protocols.map(str::to_owned).into(),
            ..Default::default()
        }),
        filters: vec![listener::Filter {
            name: "envoy.filters.network.tcp_proxy".into(),
            config_type: Some(listener::filter::ConfigType::TypedConfig(pack(&proxy))),
        }],
        ..Default::default()
    };
    Ok(listener::Listener {
        name: "0.0.0.0_15443".into(),
        address: Some(message::address("0.0.0.0", port)),
        listener_filters: vec![listener::ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".into(),
            config_type: Some(listener::listener_filter::ConfigType::TypedConfig(pack(&TlsInspector::default()))),
            ..Default::default()
        }],
        filter_chains: vec![chain],
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    })
}

/// The access log of `control::translate::parts`.
fn access_log() -> Result<accesslog::AccessLog> {
    let format: BTreeMap<String, String> = serde_json::from_str(ACCESS_LOG)?;
    let format = format.into_iter().map(|(key, value)| (key, message::string(value)));
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::JsonFormat(message::structure(format))),
        ..Default::default()
    };
    let log = file::FileAccessLog {
        path: "/dev/stdout".into(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(format)),
    };
    Ok(accesslog::AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(pack(&log))),
        ..Default::default()
    })
}

fn eds() -> cluster::Cluster {
    let unlimited = cluster::circuit_breakers::Thresholds {
        max_connections: Some(u32::MAX),
        max_pending_requests: Some(u32::MAX),
        max_requests: Some(u32::MAX),
        max_retries: Some(u32::MAX),
        ..Default::default()
    };
    cluster::Cluster {
        name: SERVER_NAME.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        lb_policy: cluster::cluster::LbPolicy::LeastRequest.into(),
        connect_timeout: Duration::from_millis(500).try_into().ok(),
        circuit_breakers: Some(cluster::CircuitBreakers { thresholds: vec![unlimited], ..Default::default() }),
        ..Default::default()
    }
}

fn endpoints(backends: &[SocketAddr]) -> endpoint::ClusterLoadAssignment {
    let workload = message::structure([("workload", message::string("helloworld-v1;sample;helloworld;v1;east"))]);
    let mut metadata = core::Metadata::default();
    metadata.filter_metadata.insert("istio".into(), workload);
    let one = |address: &SocketAddr| endpoint::LbEndpoint {
        metadata: Some(metadata.clone()),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(message::address(address.ip().to_string(), address.port())),
            ..Default::default()
        })),
        ..Default::default()
    };
    endpoint::ClusterLoadAssignment {
        cluster_name: SERVER_NAME.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: backends.iter().map(one).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The least that carrying bytes between two sockets costs: `splice` through a large pipe, blocking, a thread for each
/// direction, no look at what passes. `PORT BACKEND…`.
pub(crate) fn relay(arguments: &[&str]) -> Result<()> {
    let [port, backends @ ..] = arguments else { bail!("PORT BACKEND…") };
    let backends = addresses(backends)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?))?;
    for (client, backend) in listener.incoming().zip(backends.iter().cycle()) {
        let (client, backend) = (client?, *backend);
        std::thread::spawn(move || relayed(client, backend));
    }
    Ok(())
}

fn relayed(mut client: TcpStream, backend: SocketAddr) -> Result<()> {
    let mut head = vec![0; 16 * 1024];
    let count = client.read(&mut head)?;
    if count == 0 {
        return Ok(());
    }
    let mut server = TcpStream::connect(backend)?;
    server.write_all(&head[..count])?;
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || spliced(&client_too, &server_too));
    spliced(&server, &client)?;
    up.join().ok().context("a thread panicked")?
}

fn spliced(from: &TcpStream, to: &TcpStream) -> Result<()> {
    const PIPE: usize = 1 << 20;
    let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::pipe::fcntl_setpipe_size(&into, PIPE)?;
    loop {
        let mut held = rustix::pipe::splice(from, None, &into, None, PIPE, SpliceFlags::MOVE)?;
        if held == 0 {
            return Ok(to.shutdown(Shutdown::Write)?);
        }
        while held > 0 {
            held -= rustix::pipe::splice(&out, None, to, None, held, SpliceFlags::MOVE)?;
        }
    }
}
