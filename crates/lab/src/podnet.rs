//! A pod's sockets.
//!
//! Workloads get a [`PodNet`] and never make a socket themselves. Where a pod has a sidecar, the application's
//! `PodNet` redirects as iptables would: what it dials goes to the sidecar's port 15001, and who dials it reaches port
//! 15006, each connection opened by a PROXY v2 header that carries the original source and destination.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::future::BoxFuture;
use stolos_proxy::dns;
use stolos_serve::{Admission, Door, Listener, Net, Stop, Stream};
use tokio::io::AsyncWriteExt;
use tokio_util::task::TaskTracker;

use crate::address::{self, hidden, socket_port};
use crate::directory::{Answer, CLUSTER_DOMAIN, Directories, Route};
use crate::network::{self, NetworkDoor, World, unreachable_host, v4};

/// Where a sidecar takes its application's outgoing connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where a sidecar takes connections to its application.
pub const INBOUND_PORT: u16 = 15006;

/// What all containers of a pod share: its address and who listens on which port.
pub struct PodSockets {
    world: Arc<World>,
    directories: Directories,
    namespace: String,
    hostname: String,
    address: Ipv4Addr,
    /// Whether applications of this pod are redirected through a sidecar.
    redirect: bool,
    /// Whether the pod's proxy is a program of others, which makes its sockets itself: at the hidden address.
    foreign: AtomicBool,
    /// The ports of that program that are open at the pod's address.
    fronts: Mutex<HashMap<u16, Stop>>,
    listening: Mutex<HashMap<u16, Listening>>,
    next: Mutex<u64>,
    tasks: TaskTracker,
    stop: Stop,
}

/// One port of a pod that somebody listens on.
#[derive(Clone, Copy)]
struct Listening {
    id: u64,
    /// Behind the redirection, or a foreign program's.
    hidden: bool,
    /// A foreign program's.
    foreign: bool,
}

impl PodSockets {
    /// The sockets of the pod `hostname` at `address`; they end with `stop`.
    #[must_use]
    pub fn new(
        world: &Arc<World>,
        directories: &Directories,
        (namespace, hostname): (&str, &str),
        address: Ipv4Addr,
        redirect: bool,
        stop: Stop,
    ) -> Arc<Self> {
        let sockets = Arc::new(Self {
            world: Arc::clone(world),
            directories: directories.clone(),
            namespace: namespace.to_owned(),
            hostname: hostname.to_owned(),
            address,
            redirect,
            foreign: AtomicBool::new(false),
            fronts: Mutex::default(),
            listening: Mutex::default(),
            next: Mutex::default(),
            tasks: TaskTracker::new(),
            stop,
        });
        world.settle(address, &sockets);
        sockets
    }

    /// The network of an application container.
    #[must_use]
    pub fn application(self: &Arc<Self>) -> Arc<PodNet> {
        Arc::new(PodNet { pod: Arc::clone(self), redirected: self.redirect })
    }

    /// The network of the sidecar, which nothing redirects.
    #[must_use]
    pub fn proxy(self: &Arc<Self>) -> Arc<PodNet> {
        Arc::new(PodNet { pod: Arc::clone(self), redirected: false })
    }

    /// The pod's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Whether this pod's applications are redirected through a sidecar at all.
    #[must_use]
    pub fn is_redirected(&self) -> bool {
        self.redirect
    }

    /// Whether connections to `port` go through the sidecar.
    #[must_use]
    pub fn redirects(&self, port: u16) -> bool {
        self.redirect && self.listening().get(&port).is_some_and(|l| l.hidden && !l.foreign)
    }

    /// From now on the pod's proxy is a program of others. It makes its sockets itself, so that no [`Door`] can be at
    /// them: they are at the pod's hidden address, and at its own one the lab listens and brings there whom it lets in.
    pub fn run_foreign(&self) {
        self.foreign.store(true, Ordering::Release);
    }

    /// Whether the pod's proxy is a program of others.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Acquire)
    }

    /// Where the pod's proxy takes redirected connections.
    pub(crate) fn proxy_address(&self) -> Ipv4Addr {
        if self.is_foreign() { hidden(self.address) } else { self.address }
    }

    /// Opens the pod's address for these ports of its foreign program, and closes it for all others of it. The program
    /// sees who dials: its own connections come from the client's address.
    ///
    /// # Errors
    ///
    /// When a port is taken; the others are open then.
    pub async fn publish(self: &Arc<Self>, ports: BTreeSet<u16>) -> io::Result<()> {
        let gone: Vec<u16> = self.fronts().keys().filter(|port| !ports.contains(port)).copied().collect();
        for port in gone {
            if let Some(stop) = self.fronts().remove(&port) {
                stop.ask();
            }
            let mut listening = self.listening();
            if listening.get(&port).is_some_and(|l| l.foreign) {
                listening.remove(&port);
            }
        }
        let mut result = Ok(());
        for port in ports {
            if self.fronts().contains_key(&port) {
                continue;
            }
            let tcp = match network::listen(SocketAddrV4::new(self.address, socket_port(port))).await {
                Ok(tcp) => tcp,
                Err(error) => {
                    result = Err(io::Error::new(error.kind(), format!("port {port}: {error}")));
                    continue;
                }
            };
            let stop = self.stop.child();
            self.fronts().insert(port, stop.clone());
            self.listening().insert(port, Listening { id: 0, hidden: true, foreign: true });
            let front = Listener::guarded(tcp, Arc::new(NetworkDoor { world: Arc::clone(&self.world) }));
            let to = self.socket(port);
            self.tasks.spawn(bring(front, to, self.tasks.clone(), stop));
        }
        result
    }

    fn fronts(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Stop>> {
        self.fronts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where whoever listens on `port` really is: what probes, port-forward and the pod itself dial.
    #[must_use]
    pub fn socket(&self, port: u16) -> SocketAddrV4 {
        let hidden_port = self.listening().get(&port).is_some_and(|l| l.hidden);
        let ip = if hidden_port { hidden(self.address) } else { self.address };
        SocketAddrV4::new(ip, socket_port(port))
    }

    /// Ends the pod's redirections and makes it unknown to others. Open connections end with their owners.
    pub fn close(&self) {
        self.stop.ask();
        self.world.leave(self.address, self);
    }

    fn listening(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Listening>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection from the pod to itself, past any redirection.
    async fn dial_self(&self, port: u16) -> io::Result<Stream> {
        let tcp = network::bound(self.address)?.connect(SocketAddr::V4(self.socket(port))).await?;
        Ok(Stream::from(tcp))
    }

    async fn bind(self: &Arc<Self>, port: u16, redirected: bool) -> io::Result<Listener> {
        let ip = if redirected { hidden(self.address) } else { self.address };
        let tcp = network::listen(SocketAddrV4::new(ip, socket_port(port))).await?;
        let port = if port == 0 { tcp.local_addr()?.port() } else { port };
        let id = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let stop = self.stop.child();
        if redirected {
            let outside = SocketAddrV4::new(self.address, socket_port(port));
            let outside = network::listen(outside).await?;
            let outside = Listener::guarded(outside, Arc::new(OutsideDoor { pod: Arc::downgrade(self) }));
            self.tasks.spawn(Arc::clone(self).redirect(outside, port, stop.clone()));
        }
        self.listening().insert(port, Listening { id, hidden: redirected, foreign: false });
        let door = PortDoor { pod: Arc::clone(self), port, id, redirected, stop };
        Ok(Listener::guarded(tcp, Arc::new(door)))
    }

    /// Takes what comes to podIP:`port` to the sidecar, and what comes from the pod itself to the application.
    async fn redirect(self: Arc<Self>, outside: Listener, port: u16, stop: Stop) {
        loop {
            let (mut client, peer) = tokio::select! {
                Ok(accepted) = outside.accept() => accepted,
                () = stop.asked() => return,
                else => return,
            };
            let (pod, stop) = (Arc::clone(&self), stop.clone());
            self.tasks.spawn(async move {
                let carried = async {
                    // A foreign proxy hands its application's connections over from the hidden address; what comes
                    // from the pod's own one is meant for the pod as others see it.
                    let own = if pod.is_foreign() { hidden(pod.address) } else { pod.address };
                    let mut inner = if peer.ip() == IpAddr::V4(own) {
                        pod.dial_self(port).await?
                    } else {
                        let proxy = SocketAddr::V4(SocketAddrV4::new(pod.proxy_address(), INBOUND_PORT));
                        let mut inner = Stream::from(network::bound(pod.address)?.connect(proxy).await?);
                        let to = SocketAddrV4::new(pod.address, port);
                        inner.write_all(&proxy_header(v4(peer)?, to)).await?;
                        inner
                    };
                    tokio::io::copy_bidirectional(&mut client, &mut inner).await
                };
                let result = tokio::select! {
                    result = carried => result,
                    () = stop.asked() => return,
                };
                if let Err(error) = result {
                    tracing::debug!(%peer, port, %error, "redirected connection ended");
                }
            });
        }
    }
}

impl Drop for PodSockets {
    fn drop(&mut self) {
        self.close();
    }
}

/// Brings connections that the lab has let in to where a foreign program listens, until `stop`.
async fn bring(front: Listener, to: SocketAddrV4, tasks: TaskTracker, stop: Stop) {
    loop {
        let (mut client, peer) = tokio::select! {
            Ok(accepted) = front.accept() => accepted,
            () = stop.asked() => return,
            else => return,
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            let carried = async {
                let tcp = match network::bound(*v4(peer)?.ip())?.connect(SocketAddr::V4(to)).await {
                    Ok(tcp) => tcp,
                    Err(error) => {
                        // Nobody there is what the client should see as well.
                        client.reset_on_drop();
                        return Err(error);
                    }
                };
                let mut inner = Stream::from(tcp);
                tokio::io::copy_bidirectional(&mut client, &mut inner).await
            };
            tokio::select! {
                result = carried => if let Err(error) = result {
                    tracing::debug!(%peer, %to, %error, "connection to a foreign program ended");
                },
                () = stop.asked() => {}
            }
        });
    }
}

/// The door of a redirection: whom the network lets in, and the pod's own foreign proxy.
struct OutsideDoor {
    pod: Weak<PodSockets>,
}

impl Door for OutsideDoor {
    fn admit(&self, peer: SocketAddr, local: SocketAddr) -> Admission {
        match self.pod.upgrade() {
            Some(pod) if pod.is_foreign() && peer.ip() == IpAddr::V4(hidden(pod.address)) => Admission::Pass,
            Some(pod) => pod.world.admit(peer, local),
            None => Admission::Refuse,
        }
    }
}

/// The door of a port, and its entry in the pod's table: both end with the listener.
struct PortDoor {
    pod: Arc<PodSockets>,
    port: u16,
    id: u64,
    redirected: bool,
    stop: Stop,
}

impl Door for PortDoor {
    fn admit(&self, peer: SocketAddr, local: SocketAddr) -> Admission {
        if peer.ip() == IpAddr::V4(self.pod.address) {
            return Admission::Pass;
        }
        // `judge` knows that a hidden address admits nobody but the nodes of its cluster.
        debug_assert!(!self.redirected || local.ip() == IpAddr::V4(hidden(self.pod.address)));
        self.pod.world.admit(peer, local)
    }
}

impl Drop for PortDoor {
    fn drop(&mut self) {
        self.stop.ask();
        let mut listening = self.pod.listening();
        if listening.get(&self.port).is_some_and(|l| l.id == self.id) {
            listening.remove(&self.port);
        }
    }
}

/// A pod's network as one of its containers sees it.
pub struct PodNet {
    pod: Arc<PodSockets>,
    redirected: bool,
}

impl PodNet {
    /// # Flow
    ///
    /// 1. The pod itself (its address, localhost): straight to whoever listens there.
    /// 2. A redirected container: to the sidecar, with the original destination in front.
    /// 3. A virtual address of the cluster: to a ready endpoint.
    /// 4. The network's verdict, the link, the socket.
    async fn dial(&self, to: SocketAddr) -> io::Result<Stream> {
        let pod = &self.pod;
        if to.ip().is_loopback() && (to.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) || to.is_ipv6())
            || to.ip() == IpAddr::V4(pod.address)
        {
            return pod.dial_self(to.port()).await;
        }
        let to = v4(to)?;
        if self.redirected {
            let socket = network::bound(pod.address)?;
            let source = v4(socket.local_addr()?)?;
            let proxy = SocketAddr::V4(SocketAddrV4::new(pod.proxy_address(), OUTBOUND_PORT));
            let mut stream = Stream::from(socket.connect(proxy).await?);
            stream.write_all(&proxy_header(source, to)).await?;
            return Ok(stream);
        }
        match pod.directories.now().route(to, |count| rand::random_range(0..count)) {
            Route::Direct if !to.ip().is_loopback() => Err(unreachable_host()),
            Route::Direct => pod.world.dial(pod.address, to).await,
            Route::To(endpoint) if *endpoint.ip() == pod.address => pod.dial_self(endpoint.port()).await,
            Route::To(endpoint) => pod.world.dial(pod.address, endpoint).await,
            Route::Nobody => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
        }
    }

    /// Where the pod's sidecar answers names, it is asked, as if packets to port 53 were redirected; else the cluster.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let pod = &self.pod;
        let captured = self.redirected && pod.listening().get(&dns::PORT).is_some_and(|l| !l.hidden);
        let own = host == "localhost" || host == pod.hostname || host.parse::<IpAddr>().is_ok();
        if own || !captured {
            return self.look_up(host);
        }
        let agent = pod.dial_self(dns::PORT).await?;
        dns::resolve(agent, host, &pod.namespace, CLUSTER_DOMAIN).await
    }

    fn look_up(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if host == "localhost" {
            return Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        }
        if host == self.pod.hostname {
            return Ok(vec![IpAddr::V4(self.pod.address)]);
        }
        let directory = self.pod.directories.now();
        let mut name = host.to_owned();
        // An alias may lead to another, as CNAMEs do, but not for ever.
        for _ in 0..8 {
            match directory.resolve(&name, &self.pod.namespace) {
                Some(Answer::Addresses(addresses)) => return Ok(addresses),
                Some(Answer::Alias(next)) => match next.parse() {
                    Ok(address) => return Ok(vec![address]),
                    Err(_) => name = next,
                },
                Some(Answer::Nobody) | None => break,
            }
        }
        if let Some(address) = self.pod.world.named(name.trim_end_matches('.')) {
            return Ok(vec![IpAddr::V4(address)]);
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for `{host}`")))
    }
}

impl Net for PodNet {
    fn address(&self) -> IpAddr {
        IpAddr::V4(self.pod.address)
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(Self::dial(self, to))
    }

    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        Box::pin(self.pod.bind(port, self.redirected))
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(Self::resolve(self, host))
    }
}

/// The network of a cluster's own machinery at one of its addresses: the API server (webhooks), a node (probes).
pub struct ClusterNet {
    world: Arc<World>,
    directories: Directories,
    address: Ipv4Addr,
}

impl ClusterNet {
    /// The network as seen from `address`.
    #[must_use]
    pub fn new(world: &Arc<World>, directories: &Directories, address: Ipv4Addr) -> Arc<Self> {
        Arc::new(Self { world: Arc::clone(world), directories: directories.clone(), address })
    }
}

impl Net for ClusterNet {
    fn address(&self) -> IpAddr {
        IpAddr::V4(self.address)
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let to = v4(to)?;
            match self.directories.now().route(to, |count| rand::random_range(0..count)) {
                Route::Direct => self.world.dial(self.address, to).await,
                Route::To(endpoint) => self.world.dial(self.address, endpoint).await,
                Route::Nobody => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            }
        })
    }

    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        Box::pin(self.world.listen(SocketAddrV4::new(self.address, address::socket_port(port))))
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            match host.parse() {
                Ok(address) => Ok(vec![address]),
                Err(_) => match self.directories.now().resolve(host, "default") {
                    Some(Answer::Addresses(addresses)) => Ok(addresses),
                    _ => Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for `{host}`"))),
                },
            }
        })
    }
}

/// A PROXY protocol version 2 header for a TCP connection over IPv4.
#[must_use]
pub fn proxy_header(source: SocketAddrV4, destination: SocketAddrV4) -> [u8; 28] {
    let mut header = [0; 28];
    header[..12].copy_from_slice(b"\r\n\r\n\0\r\nQUIT\n");
    header[12..16].copy_from_slice(&[0x21, 0x11, 0, 12]);
    header[16..20].copy_from_slice(&source.ip().octets());
    header[20..24].copy_from_slice(&destination.ip().octets());
    header[24..26].copy_from_slice(&source.port().to_be_bytes());
    header[26..28].copy_from_slice(&destination.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_carries_both_ends() {
        let header = proxy_header("127.16.2.1:40000".parse().unwrap(), "10.16.0.9:5000".parse().unwrap());
        assert_eq!(header, *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\x10\x02\x01\x0a\x10\0\x09\x9c\x40\x13\x88");
    }
}
