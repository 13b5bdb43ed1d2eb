//! Every pod from every network, and the host, dials everything; exactly the matrix must come out.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stolos_lab::Fault;
use stolos_lab::address::{Subnet, hidden};
use stolos_lab::directory::Directories;
use stolos_lab::network::World;
use stolos_lab::podnet::{ClusterNet, INBOUND_PORT, OUTBOUND_PORT, PodNet, PodSockets, proxy_header};
use stolos_serve::{HostNet, Listener, Net, Stop, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Nobody else in this crate's tests uses this block; tests in one file take one cluster range each.
const BLOCK: u8 = 7;

fn subnet(slot: u8) -> Subnet {
    Subnet { block: BLOCK, slot }
}

fn pod(world: &Arc<World>, subnet: Subnet, index: u16, redirect: bool) -> Arc<PodSockets> {
    let name = format!("pod-{index}");
    let address = subnet.pod(index).unwrap();
    PodSockets::new(world, &Directories::default(), ("default", &name), address, redirect, Stop::new())
}

/// Answers every connection with `name` and what it was sent first, if anything comes within a moment.
fn serve(listener: Listener, name: &'static str) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 28];
                let hello = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut head)).await;
                let _ = stream.write_all(name.as_bytes()).await;
                if matches!(hello, Ok(Ok(_))) {
                    let _ = stream.write_all(&head).await;
                }
            });
        }
    });
}

/// What answers at `to`, or `refused`.
async fn ask(net: &dyn Net, to: SocketAddr) -> Vec<u8> {
    let asking = async {
        let mut stream = net.dial(to).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map(|_| answer)
    };
    match tokio::time::timeout(Duration::from_secs(5), asking).await.expect("nothing may hang") {
        Ok(answer) => answer,
        Err(_) => b"refused".to_vec(),
    }
}

#[tokio::test]
async fn exactly_the_matrix() {
    matrix([subnet(0), subnet(1), subnet(2)], false).await;
}

/// The same where a program of others (an Envoy) listens, whose sockets have no doors.
#[tokio::test]
async fn exactly_the_matrix_with_foreign_programs() {
    matrix([subnet(8), subnet(9), subnet(10)], true).await;
}

/// A program of others in `pod`: a plain socket at the hidden address.
async fn foreign(pod: &Arc<PodSockets>, port: u16, name: &'static str) {
    pod.run_foreign();
    let socket = tokio::net::TcpListener::bind((hidden(pod.address()), port)).await.unwrap();
    serve(socket.into(), name);
    pod.publish([port].into()).await.unwrap();
}

async fn matrix(subnets: [Subnet; 3], are_foreign: bool) {
    let world = World::new();
    for (subnet, (name, network)) in subnets.iter().zip([("e1", "east"), ("e2", "east"), ("w1", "west")]) {
        world.add(name, network, *subnet);
    }
    let pods = subnets.map(|subnet| pod(&world, subnet, 0, false));
    let nets = pods.each_ref().map(PodSockets::application);
    for ((net, pod), name) in nets.iter().zip(&pods).zip(["pod e1", "pod e2", "pod w1"]) {
        if are_foreign {
            foreign(pod, 5000, name).await;
        } else {
            serve(net.bind(5000).await.unwrap(), name);
        }
    }
    let mut targets: Vec<(String, SocketAddr)> = Vec::new();
    for (subnet, name) in subnets.iter().zip(["e1", "e2", "w1"]) {
        let api = subnet.api_server();
        let balancer = SocketAddrV4::new(subnet.load_balancer(0).unwrap(), 15443);
        for (what, at) in [("api", api), ("lb", balancer)] {
            serve(world.listen(at).await.unwrap(), if what == "api" { "api" } else { "lb" });
            targets.push((format!("{what} {name}"), at.into()));
        }
        targets.push((format!("pod {name}"), (subnet.pod(0).unwrap(), 5000).into()));
    }

    let host: Arc<dyn Net> = Arc::new(HostNet::new(Ipv4Addr::LOCALHOST.into()));
    let node: Arc<dyn Net> = ClusterNet::new(&world, &Directories::default(), subnets[0].node(0));
    let stranger = Stranger("127.250.1.1".parse().unwrap());
    let mut from: Vec<(&str, Arc<dyn Net>)> = vec![("host", host), ("node e1", node), ("stranger", Arc::new(stranger))];
    for (name, net) in ["pod e1", "pod e2", "pod w1"].into_iter().zip(&nets) {
        from.push((name, Arc::clone(net) as Arc<dyn Net>));
    }
    let mut picture = String::new();
    for (name, net) in &from {
        let mut answered = Vec::new();
        for (target, at) in &targets {
            if ask(net.as_ref(), *at).await != b"refused" {
                answered.push(target.as_str());
            }
        }
        picture += &format!("{name}: {}\n", answered.join(", "));
    }
    insta::allow_duplicates! {
    insta::assert_snapshot!(picture, @r"
    host: api e1, lb e1, api e2, lb e2, api w1, lb w1
    node e1: api e1, lb e1, pod e1, api e2, lb e2, api w1, lb w1
    stranger: 
    pod e1: api e1, lb e1, pod e1, api e2, lb e2, pod e2, api w1, lb w1
    pod e2: api e1, lb e1, pod e1, api e2, lb e2, pod e2, api w1, lb w1
    pod w1: api e1, lb e1, api e2, lb e2, api w1, lb w1, pod w1
    ");
    }
    let refusals: Vec<_> = world.refusals().iter().map(|r| format!("{}->{} {}", r.from, r.to, r.count)).collect();
    assert_eq!(
        refusals.join(", "),
        "e1->e2 1, e1->w1 2, e2->w1 1, host->e1 1, host->e2 1, host->w1 1, \
        unknown->e1 3, unknown->e2 3, unknown->w1 3, w1->e1 1, w1->e2 1"
    );
}

/// Somebody with an address of 127.0.0.0/8 that no lab gave out.
struct Stranger(Ipv4Addr);

impl Net for Stranger {
    fn address(&self) -> std::net::IpAddr {
        self.0.into()
    }
    fn dial(&self, to: SocketAddr) -> futures::future::BoxFuture<'_, std::io::Result<stolos_serve::Stream>> {
        Box::pin(async move {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((self.0, 0)))?;
            Ok(socket.connect(to).await?.into())
        })
    }
    fn bind(&self, _: u16) -> futures::future::BoxFuture<'_, std::io::Result<Listener>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }
    fn resolve<'a>(&'a self, _: &'a str) -> futures::future::BoxFuture<'a, std::io::Result<Vec<std::net::IpAddr>>> {
        Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) })
    }
}

#[tokio::test]
async fn a_redirected_pod_hears_and_speaks_through_its_sidecar() {
    let world = World::new();
    world.add("c", "net", subnet(4));
    let server = pod(&world, subnet(4), 0, true);
    let client = pod(&world, subnet(4), 1, true);
    let (app, proxy) = (server.application(), server.proxy());
    serve(app.bind(80).await.unwrap(), "app ");
    serve(proxy.bind(INBOUND_PORT).await.unwrap(), "sidecar ");
    serve(proxy.bind(15020).await.unwrap(), "own port");
    serve(client.proxy().bind(OUTBOUND_PORT).await.unwrap(), "out ");
    let at = |port| SocketAddr::from((server.address(), port));

    // The client's application: everything to its own sidecar, which learns where it was meant to go.
    let virtual_ip: SocketAddr = "10.9.0.1:80".parse().unwrap();
    let answer = ask(client.application().as_ref(), virtual_ip).await;
    assert!(answer.starts_with(b"out "));
    let header: [u8; 28] = answer[4..].try_into().unwrap();
    let source = SocketAddrV4::new(client.address(), u16::from_be_bytes([header[24], header[25]]));
    assert_eq!(header, proxy_header(source, "10.9.0.1:80".parse().unwrap()));

    // A foreign sidecar's dial to the server: its sidecar, with the original destination; by our own short cut and by
    // a plain socket alike.
    let plain: Arc<dyn Net> = Arc::new(Stranger(client.address()));
    for (net, port) in [(client.proxy() as Arc<dyn Net>, 80), (plain, 20080)] {
        let answer = ask(net.as_ref(), at(port)).await;
        assert!(answer.starts_with(b"sidecar "), "{:?}", String::from_utf8_lossy(&answer));
        let header: [u8; 28] = answer[8..].try_into().unwrap();
        let source = SocketAddrV4::new(client.address(), u16::from_be_bytes([header[24], header[25]]));
        assert_eq!(header, proxy_header(source, SocketAddrV4::new(server.address(), 80)));
    }

    // The sidecar and the application itself reach the application, by every name the pod has for itself.
    let own: [(Arc<PodNet>, SocketAddr); 3] = [
        (server.proxy(), at(80)),
        (server.application(), at(80)),
        (server.application(), "127.0.0.1:80".parse().unwrap()),
    ];
    for (net, to) in own {
        assert_eq!(ask(net.as_ref(), to).await, b"app ");
    }
    assert_eq!(ask(&Stranger(server.address()), at(20080)).await, b"app ", "a foreign process in the pod");
    // The sidecar's own ports are open as they are; the hidden address is open to the node alone.
    assert_eq!(ask(client.proxy().as_ref(), at(15020)).await, b"own port");
    let node = ClusterNet::new(&world, &Directories::default(), subnet(4).node(0));
    assert_eq!(ask(node.as_ref(), server.socket(80).into()).await, b"app ");
    assert_eq!(ask(client.proxy().as_ref(), server.socket(80).into()).await, b"refused");
    assert_eq!(ask(&Stranger(client.address()), (hidden(server.address()), 20080).into()).await, b"refused");
}

#[tokio::test]
async fn a_foreign_sidecar_takes_what_is_redirected_and_is_seen_where_it_listens() {
    let world = World::new();
    world.add("c", "net", subnet(11));
    let server = pod(&world, subnet(11), 0, true);
    let client = pod(&world, subnet(11), 1, false);
    foreign(&server, 15021, "health ").await;
    let inside = |port| (hidden(server.address()), port);
    for (port, name) in [(INBOUND_PORT, "in "), (OUTBOUND_PORT, "out ")] {
        serve(tokio::net::TcpListener::bind(inside(port)).await.unwrap().into(), name);
    }
    serve(server.application().bind(8080).await.unwrap(), "app ");
    let at = |port| SocketAddr::from((server.address(), port));

    let in_the_lab = client.application() as Arc<dyn Net>;
    let by_a_socket: Arc<dyn Net> = Arc::new(Stranger(client.address()));
    for net in [&in_the_lab, &by_a_socket] {
        assert!(ask(net.as_ref(), at(8080)).await.starts_with(b"in "), "to the sidecar");
        assert_eq!(ask(net.as_ref(), at(15021)).await, b"health ", "which is not redirected to itself");
        assert_eq!(ask(net.as_ref(), at(INBOUND_PORT)).await, b"refused", "that door is the lab's alone");
    }
    assert!(ask(server.application().as_ref(), "10.9.0.1:80".parse().unwrap()).await.starts_with(b"out "));
    // The sidecar hands over from the hidden address; from the pod's own one it would meet itself.
    assert_eq!(ask(&Stranger(hidden(server.address())), at(8080)).await, b"app ");
    assert!(ask(&Stranger(server.address()), at(8080)).await.starts_with(b"in "));

    server.publish([15443].into()).await.unwrap();
    assert_eq!(ask(by_a_socket.as_ref(), at(15021)).await, b"refused", "closed again");
}

#[tokio::test]
async fn a_closed_listener_frees_its_port_and_its_redirection() {
    let world = World::new();
    world.add("c", "net", subnet(5));
    let pod = pod(&world, subnet(5), 0, true);
    for _ in 0..3 {
        let listener = pod.application().bind(8080).await.unwrap();
        assert!(pod.redirects(8080));
        drop(listener);
        assert!(!pod.redirects(8080));
    }
}

#[tokio::test]
async fn a_partition_stalls_and_a_heal_goes_on() {
    let world = World::new();
    world.add("a", "net", subnet(6));
    world.add("b", "net", subnet(7));
    let (a, b) = (pod(&world, subnet(6), 0, false), pod(&world, subnet(7), 0, false));
    let listener = b.application().bind(7000).await.unwrap();
    let to = SocketAddr::from((b.address(), 7000));
    let net = a.application();
    let mut client = net.dial(to).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();

    world.afflict(Fault::Partition { what: "b".into() });
    let sent = tokio::time::timeout(Duration::from_millis(50), client.write_all(b"x")).await;
    assert!(sent.is_err(), "an open stream stalls");
    let dialled = tokio::time::timeout(Duration::from_millis(50), net.dial(to)).await;
    assert!(dialled.is_err(), "a new connection hangs");

    world.heal(Some(&world.find("b")));
    client.write_all(b"y").await.unwrap();
    let mut byte = [0];
    tokio::time::timeout(Duration::from_secs(5), server.read_exact(&mut byte)).await.unwrap().unwrap();
    assert_eq!(&byte, b"y");
    tokio::time::timeout(Duration::from_secs(5), net.dial(to)).await.unwrap().unwrap();
}

/// Three clusters on two networks; what is measured is one round trip over a new connection and one over an open one.
#[tokio::test]
async fn a_link_is_slow_in_the_directions_that_were_said() {
    let world = World::new();
    world.add("a", "east", subnet(8));
    world.add("b", "west", subnet(9));
    world.add("c", "west", subnet(10));
    let balancer = |block| SocketAddrV4::new(subnet(block).load_balancer(0).unwrap(), 7000);
    let mut listeners = vec![];
    for block in [8, 9, 10] {
        let listener = world.listen(balancer(block)).await.unwrap();
        listeners.push(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(&mut stream);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        }));
    }
    let from = |block| pod(&world, subnet(block), 1, false);
    let (a, b) = (from(8), from(9));
    let ask_once = async |stream: &mut Stream| {
        let began = Instant::now();
        stream.write_all(b"?").await.unwrap();
        stream.read_u8().await.unwrap();
        began.elapsed().as_millis()
    };
    // The shortest of some: a busy machine only ever adds to them.
    let ask = async |stream: &mut Stream| {
        let mut shortest = u128::MAX;
        for _ in 0..5 {
            shortest = shortest.min(ask_once(stream).await);
        }
        shortest
    };
    let dial = async |from: &Arc<PodSockets>, to: u8| {
        let mut dialled = Vec::new();
        for _ in 0..3 {
            let began = Instant::now();
            let stream = from.application().dial(balancer(to).into()).await.unwrap();
            dialled.push((stream, began.elapsed().as_millis()));
        }
        dialled.into_iter().min_by_key(|(_, took)| *took).unwrap()
    };
    let (mut far, _) = dial(&a, 9).await;
    let (mut near, _) = dial(&b, 10).await;
    let delay = |one_way| Fault::Delay { from: "east".into(), to: "west".into(), delay_ms: 80, jitter_ms: 0, one_way };

    world.afflict(delay(false));
    assert!((160..250).contains(&ask(&mut far).await), "an open connection: there and back");
    assert!(ask(&mut near).await < 60, "the others are not concerned");
    let (mut fresh, connect) = dial(&a, 10).await;
    assert!((160..250).contains(&connect), "a connection takes a round trip: {connect}");
    assert!((160..250).contains(&ask(&mut fresh).await));

    // Somebody else's process does not know of the link, but finds the same round trip.
    let mut foreigners = Vec::new();
    for _ in 0..3 {
        let foreign = tokio::net::TcpSocket::new_v4().unwrap();
        foreign.bind(SocketAddr::from((a.address(), 0))).unwrap();
        let mut foreign = Stream::from(foreign.connect(balancer(9).into()).await.unwrap());
        let first = ask_once(&mut foreign).await;
        foreigners.push((foreign, first));
    }
    let (mut foreign, first) = foreigners.into_iter().min_by_key(|(_, first)| *first).unwrap();
    assert!((320..450).contains(&first), "its connection and its question: {first}");
    assert!((160..250).contains(&ask(&mut foreign).await));

    world.heal(None);
    assert!(world.faults().is_empty());
    assert!(ask(&mut far).await < 60 && ask(&mut foreign).await < 60);
    world.afflict(delay(true));
    assert!((80..150).contains(&ask(&mut far).await), "one way");
    world.heal(Some(&world.find("b")));
    assert!(ask(&mut far).await < 60, "a fault ends for one of its clusters as for all");

    world.afflict(Fault::Cut { from: "east".into(), to: "b".into() });
    let asked = tokio::time::timeout(Duration::from_millis(100), far.write_all(b"!")).await;
    assert!(asked.is_err(), "what east says does not arrive");
    let dialled = tokio::time::timeout(Duration::from_millis(100), b.application().dial(balancer(8).into())).await;
    assert!(dialled.is_err(), "a connection needs both directions");
    assert!(dial(&a, 10).await.1 < 60, "c is not concerned");
    assert_eq!(world.faults().len(), 1);
    world.heal(None);
    assert!(ask(&mut far).await < 60);

    world.afflict(Fault::Loss { from: "east".into(), to: "west".into(), percent: 100.0, one_way: false });
    let asked = tokio::time::timeout(Duration::from_millis(150), ask(&mut far)).await;
    assert!(asked.is_err(), "lost again and again");
    listeners.iter().for_each(tokio::task::JoinHandle::abort);
}
