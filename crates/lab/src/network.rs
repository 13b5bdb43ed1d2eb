//! Who is at which address, who may dial whom, and which links are cut or slow.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use stolos_serve::{Admission, Door, Gate, Link, Listener, Stream, Weather};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};

use crate::Fault;
use crate::address::{self, Role, Subnet};
use crate::podnet::{self, PodSockets};

/// Who is at an address. The number is the cluster's place in the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The machine itself: 127.0.0.1.
    Host,
    /// Somebody beside the lab on this machine, in no network of it: 127.0.0.2 and what follows.
    Outside,
    /// Something of a cluster.
    Of(usize, Role),
    /// Nobody this lab knows.
    Unknown,
}

/// May `from` open a connection to `to`? `same_network` compares two clusters.
///
/// # Flow
///
/// 1. Everybody the lab knows may dial API servers, load-balancer addresses and what is outside.
/// 2. Pods dial pods of their own network.
/// 3. A cluster's own API server and nodes dial its pods (webhooks, probes, port-forward); its nodes reach hidden
///    addresses too.
/// 4. Nobody else dials anybody.
#[must_use]
pub fn may_dial(from: Who, to: Who, same_network: impl Fn(usize, usize) -> bool) -> bool {
    match (from, to) {
        (Who::Unknown, _) | (_, Who::Unknown | Who::Host) => false,
        (Who::Of(_, Role::Hidden | Role::LoadBalancer), _) => false,
        (_, Who::Of(_, Role::ApiServer | Role::LoadBalancer) | Who::Outside) => true,
        (Who::Of(a, Role::Pod), Who::Of(b, Role::Pod)) => same_network(a, b),
        (Who::Of(a, Role::ApiServer | Role::Node), Who::Of(b, Role::Pod | Role::Node)) => a == b,
        (Who::Of(a, Role::Node), Who::Of(b, Role::Hidden)) => a == b,
        _ => false,
    }
}

/// A cluster as the network sees it.
#[derive(Clone, Debug)]
struct Member {
    name: String,
    network: String,
}

/// A count of connections that were refused because of where they came from or went to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Refusal {
    /// The dialling cluster, or `host`, or `unknown`.
    pub from: String,
    /// The dialled cluster.
    pub to: String,
    /// How many.
    pub count: u64,
}

/// The lab's whole network.
#[derive(Default)]
pub struct World {
    members: RwLock<Vec<Member>>,
    subnets: RwLock<HashMap<Subnet, usize>>,
    pods: RwLock<HashMap<Ipv4Addr, Weak<PodSockets>>>,
    /// By direction: from one cluster to another.
    gates: Mutex<HashMap<(usize, usize), Arc<Gate>>>,
    /// What is wrong with links now, in the order in which it was asked for.
    faults: Mutex<Vec<Fault>>,
    /// Connections of the lab's own that cross a link and have not been accepted yet: their other end knows of the link.
    dialled: Mutex<HashMap<(SocketAddrV4, SocketAddrV4), Instant>>,
    /// Connections the lab's load balancers make in somebody else's name: (source, destination).
    vouched: Mutex<HashSet<(SocketAddrV4, SocketAddrV4)>>,
    refusals: Mutex<BTreeMap<(String, String), u64>>,
    /// Names of load balancers that have no address to show, by cluster: what DNS outside of all clusters would know.
    names: RwLock<BTreeMap<String, BTreeMap<String, Ipv4Addr>>>,
}

impl World {
    /// A network without clusters.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds a cluster and returns its place.
    pub fn add(&self, name: &str, network: &str, subnet: Subnet) -> usize {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.push(Member { name: name.to_owned(), network: network.to_owned() });
        let index = members.len() - 1;
        self.subnets.write().unwrap_or_else(PoisonError::into_inner).insert(subnet, index);
        index
    }

    /// From now on these are the names that load balancers of this cluster have.
    pub(crate) fn set_names(&self, cluster: &str, names: BTreeMap<String, Ipv4Addr>) {
        self.names.write().unwrap_or_else(PoisonError::into_inner).insert(cluster.to_owned(), names);
    }

    /// The address of a load balancer by its name, wherever it is asked for.
    #[must_use]
    pub fn named(&self, host: &str) -> Option<Ipv4Addr> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.values().find_map(|names| names.get(host).copied())
    }

    /// Who is at `address`.
    #[must_use]
    pub fn who(&self, address: IpAddr) -> Who {
        let IpAddr::V4(address) = address else { return Who::Unknown };
        if address == Ipv4Addr::LOCALHOST {
            return Who::Host;
        }
        if address.octets()[..2] == [127, 0] {
            return Who::Outside;
        }
        let Some((subnet, role)) = Subnet::locate(address) else { return Who::Unknown };
        match self.subnets.read().unwrap_or_else(PoisonError::into_inner).get(&subnet) {
            Some(&index) => Who::Of(index, role),
            None => Who::Unknown,
        }
    }

    /// May somebody at `from` dial `to`? A refusal is counted.
    #[must_use]
    pub fn judge(&self, from: IpAddr, to: IpAddr) -> bool {
        let (from, to) = (self.who(from), self.who(to));
        let allowed = {
            let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
            may_dial(from, to, |a, b| members[a].network == members[b].network)
        } && !self.is_private(from, to);
        if !allowed {
            *lock(&self.refusals).entry((self.name(from), self.name(to))).or_default() += 1;
        }
        allowed
    }

    /// Whether `to` is an API server that lets nobody of another cluster in.
    fn is_private(&self, from: Who, to: Who) -> bool {
        let (Who::Of(from, _), Who::Of(to, Role::ApiServer)) = (from, to) else { return false };
        let private = |fault: &Fault| matches!(fault, Fault::Private { what } if self.find(what).contains(&to));
        from != to && lock(&self.faults).iter().any(private)
    }

    /// The link that `here` and `there` have between them, as `here` sees it; none within one cluster or to and from
    /// the host.
    #[must_use]
    pub fn link(&self, here: IpAddr, there: IpAddr) -> Option<Link> {
        match (self.who(here), self.who(there)) {
            (Who::Of(a, _), Who::Of(b, _)) if a != b => {
                Some(Link { inward: self.gate(b, a), outward: self.gate(a, b), alone: false })
            }
            _ => None,
        }
    }

    fn gate(&self, from: usize, to: usize) -> Arc<Gate> {
        let mut gates = lock(&self.gates);
        let gate = gates.entry((from, to)).or_insert_with(|| {
            let gate = Gate::open();
            self.settle_gate(from, to, &gate, &lock(&self.faults));
            gate
        });
        Arc::clone(gate)
    }

    /// Adds a fault of links, instead of what it was before where it concerns the same ones. Names that stand for no
    /// cluster concern nobody.
    pub fn afflict(&self, fault: Fault) {
        let gates = lock(&self.gates);
        let mut faults = lock(&self.faults);
        faults.retain(|old| !old.is_replaced_by(&fault));
        faults.push(fault);
        self.settle_gates(&gates, &faults);
    }

    /// Ends what is wrong with the links of these clusters, or with all.
    pub fn heal(&self, clusters: Option<&[usize]>) {
        let gates = lock(&self.gates);
        let mut faults = lock(&self.faults);
        faults.retain(|fault| {
            clusters.is_some_and(|healed| {
                !fault.places().any(|name| self.find(name).iter().any(|place| healed.contains(place)))
            })
        });
        self.settle_gates(&gates, &faults);
    }

    /// What is wrong with links now.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        lock(&self.faults).clone()
    }

    fn settle_gates(&self, gates: &HashMap<(usize, usize), Arc<Gate>>, faults: &[Fault]) {
        for ((from, to), gate) in gates {
            self.settle_gate(*from, *to, gate, faults);
        }
    }

    fn settle_gate(&self, from: usize, to: usize, gate: &Gate, faults: &[Fault]) {
        let (mut shut, mut weather) = (self.is_severed(from, to, faults), Weather::default());
        for fault in faults {
            let concerns = |a: &str, b: &str, one_way: bool| {
                let (a, b) = (self.find(a), self.find(b));
                let along = a.contains(&from) && b.contains(&to);
                along || (!one_way && a.contains(&to) && b.contains(&from))
            };
            match fault {
                Fault::Cut { from: a, to: b } => shut |= concerns(a, b, true),
                Fault::Delay { from: a, to: b, delay_ms, jitter_ms, one_way } if concerns(a, b, *one_way) => {
                    weather.delay = Duration::from_millis(*delay_ms);
                    weather.jitter = Duration::from_millis(*jitter_ms);
                }
                Fault::Loss { from: a, to: b, percent, one_way } if concerns(a, b, *one_way) => {
                    weather.loss = percent / 100.0;
                }
                _ => {}
            }
        }
        gate.set_weather(weather);
        gate.set_shut(shut);
    }

    /// Two clusters that are both cut off still see each other if they share a network.
    fn is_severed(&self, a: usize, b: usize, faults: &[Fault]) -> bool {
        let together = {
            let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
            members[a].network == members[b].network
        };
        let (a, b) = (self.is_among_cut(a, faults), self.is_among_cut(b, faults));
        if together { a != b } else { a || b }
    }

    fn is_among_cut(&self, index: usize, faults: &[Fault]) -> bool {
        faults.iter().any(|fault| matches!(fault, Fault::Partition { what } if self.find(what).contains(&index)))
    }

    /// The places of the clusters called `name` or on the network `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Vec<usize> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let named: Vec<_> = (0..members.len()).filter(|i| members[*i].name == name).collect();
        if named.is_empty() { (0..members.len()).filter(|i| members[*i].network == name).collect() } else { named }
    }

    /// Whether the cluster at `index` is cut off.
    #[must_use]
    pub fn is_cut(&self, index: usize) -> bool {
        self.is_among_cut(index, &lock(&self.faults))
    }

    /// What was refused so far.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        let refusals = lock(&self.refusals);
        refusals
            .iter()
            .map(|((from, to), count)| Refusal { from: from.clone(), to: to.clone(), count: *count })
            .collect()
    }

    fn name(&self, who: Who) -> String {
        match who {
            Who::Host => "host".to_owned(),
            Who::Outside => "outside".to_owned(),
            Who::Unknown => "unknown".to_owned(),
            Who::Of(index, _) => self.members.read().unwrap_or_else(PoisonError::into_inner)[index].name.clone(),
        }
    }

    /// Makes a pod's sockets known, so that a dial to it finds its redirection.
    pub(crate) fn settle(&self, pod: Ipv4Addr, sockets: &Arc<PodSockets>) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(pod, Arc::downgrade(sockets));
    }

    /// Forgets a pod, unless a newer one has its address by now.
    pub(crate) fn leave(&self, pod: Ipv4Addr, sockets: *const PodSockets) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        if pods.get(&pod).is_some_and(|known| std::ptr::eq(known.as_ptr(), sockets)) {
            pods.remove(&pod);
        }
    }

    pub(crate) fn pod(&self, address: Ipv4Addr) -> Option<Arc<PodSockets>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(&address).and_then(Weak::upgrade)
    }

    /// Opens a connection from `from` to `to` after the verdict and the link have let it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::HostUnreachable`] where the network's verdict is no; otherwise what the socket says.
    pub async fn dial(&self, from: Ipv4Addr, to: SocketAddrV4) -> io::Result<Stream> {
        if !self.judge(IpAddr::V4(from), IpAddr::V4(*to.ip())) {
            return Err(unreachable_host());
        }
        let link = self.link(IpAddr::V4(from), IpAddr::V4(*to.ip()));
        if let Some(link) = &link {
            link.passable().await;
            // The kernel makes the connection at once; over a link it takes a round trip.
            let greeting = link.greeting();
            if !greeting.is_zero() {
                tokio::time::sleep(greeting).await;
                link.passable().await;
            }
        }
        self.open(from, to, link).await
    }

    /// A connection in the name of `client`, which has come to a load-balancer address. The verdict was that
    /// listener's; the link between `client` and `to` is the one its first half already passes.
    pub(crate) async fn dial_for(
        self: &Arc<Self>,
        client: Ipv4Addr,
        to: SocketAddrV4,
    ) -> io::Result<(Stream, Vouched)> {
        let mut tried = 0;
        loop {
            let socket = bound(client)?;
            let source = v4(socket.local_addr()?)?;
            let plan = self.approach(to);
            let pair = (source, plan.socket);
            // Another live connection may have the very same pair: its voucher is not ours to take away.
            if !lock(&self.vouched).insert(pair) && tried < 8 {
                tried += 1;
                continue;
            }
            let vouched = Vouched { world: Arc::clone(self), pair };
            return Ok((plan.connect(socket, source, None).await?, vouched));
        }
    }

    async fn open(&self, from: Ipv4Addr, to: SocketAddrV4, link: Option<Link>) -> io::Result<Stream> {
        let socket = bound(from)?;
        let source = v4(socket.local_addr()?)?;
        let plan = self.approach(to);
        let pair = (source, plan.socket);
        // A foreign program delays nothing: this end does it for both.
        let link = link.map(|link| Link { alone: link.alone || plan.is_foreign, ..link });
        if link.is_some() && !plan.is_foreign {
            let (now, mut dialled) = (Instant::now(), lock(&self.dialled));
            if dialled.len() > 1024 {
                // Whoever listened went away before it accepted.
                dialled.retain(|_, since| now.duration_since(*since) < Duration::from_secs(30));
            }
            dialled.insert(pair, now);
        }
        let opened = plan.connect(socket, source, link).await;
        if opened.is_err() {
            lock(&self.dialled).remove(&pair);
        }
        opened
    }

    /// The socket to connect to for `to`, and the header to begin with: a redirected pod's proxy takes its
    /// application's connections.
    fn approach(&self, to: SocketAddrV4) -> Approach {
        let (mut socket, mut announce) = (SocketAddrV4::new(*to.ip(), address::socket_port(to.port())), None);
        let pod = self.pod(*to.ip());
        let is_foreign = pod.as_ref().is_some_and(|pod| pod.is_foreign());
        match pod {
            Some(pod) if pod.redirects(to.port()) => {
                socket = SocketAddrV4::new(pod.proxy_address(), podnet::INBOUND_PORT);
                announce = Some(to);
            }
            // What a foreign program listens for is dialled where it really is.
            Some(pod) if is_foreign => socket = pod.socket(to.port()),
            _ => {}
        }
        Approach { socket, announce, is_foreign }
    }

    /// Listens at `at`, open to whoever may dial that address.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub async fn listen(self: &Arc<Self>, at: SocketAddrV4) -> io::Result<Listener> {
        let tcp = listen(at).await?;
        Ok(Listener::guarded(tcp, Arc::new(NetworkDoor { world: Arc::clone(self) })))
    }

    pub(crate) fn admit(&self, peer: SocketAddr, local: SocketAddr) -> Admission {
        if let (SocketAddr::V4(peer), SocketAddr::V4(local)) = (peer, local)
            && lock(&self.vouched).contains(&(peer, local))
        {
            return Admission::Pass;
        }
        if !self.judge(peer.ip(), local.ip()) {
            return Admission::Refuse;
        }
        match self.link(local.ip(), peer.ip()) {
            Some(mut link) => {
                let known = match (peer, local) {
                    (SocketAddr::V4(peer), SocketAddr::V4(local)) => {
                        lock(&self.dialled).remove(&(peer, local)).is_some()
                    }
                    _ => false,
                };
                link.alone = !known;
                Admission::Through(link)
            }
            None => Admission::Pass,
        }
    }
}

/// Lets in whom the network lets in.
pub(crate) struct NetworkDoor {
    pub(crate) world: Arc<World>,
}

impl Door for NetworkDoor {
    fn admit(&self, peer: SocketAddr, local: SocketAddr) -> Admission {
        self.world.admit(peer, local)
    }
}

/// A connection that the lab made in its client's name; ends with this value.
pub(crate) struct Vouched {
    world: Arc<World>,
    pair: (SocketAddrV4, SocketAddrV4),
}

impl Drop for Vouched {
    fn drop(&mut self) {
        lock(&self.world.vouched).remove(&self.pair);
    }
}

struct Approach {
    socket: SocketAddrV4,
    announce: Option<SocketAddrV4>,
    /// Whether a program of others listens there.
    is_foreign: bool,
}

impl Approach {
    async fn connect(self, socket: TcpSocket, source: SocketAddrV4, link: Option<Link>) -> io::Result<Stream> {
        let tcp = socket.connect(SocketAddr::V4(self.socket)).await?;
        let mut stream = Stream::linked(tcp, link);
        if let Some(destination) = self.announce {
            stream.write_all(&podnet::proxy_header(source, destination)).await?;
        }
        Ok(stream)
    }
}

/// A socket that will connect from `from`.
pub(crate) fn bound(from: Ipv4Addr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // Ports of closed connections may be used again at once: a mesh makes many short ones.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::V4(SocketAddrV4::new(from, 0)))?;
    Ok(socket)
}

/// Listens at `at`; an address that is just being given up is waited for a little.
pub(crate) async fn listen(at: SocketAddrV4) -> io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        match TcpListener::bind(SocketAddr::V4(at)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 20 => {
                tries += 1;
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            result => return result,
        }
    }
}

pub(crate) fn v4(address: SocketAddr) -> io::Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => Err(unreachable_host()),
    }
}

pub(crate) fn unreachable_host() -> io::Error {
    io::Error::new(io::ErrorKind::HostUnreachable, "No route to host")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_dial_whom() {
        use Role::{ApiServer, Hidden, LoadBalancer, Node, Pod};
        // Clusters 0 and 1 share a network, 2 has its own.
        let same = |a: usize, b: usize| (a < 2) == (b < 2);
        let everyone = [
            Who::Host,
            Who::Outside,
            Who::Of(0, Pod),
            Who::Of(0, Node),
            Who::Of(0, ApiServer),
            Who::Of(0, LoadBalancer),
            Who::Of(0, Hidden),
            Who::Unknown,
        ];
        let targets = [
            Who::Of(0, ApiServer),
            Who::Of(2, ApiServer),
            Who::Of(2, LoadBalancer),
            Who::Of(0, Pod),
            Who::Of(1, Pod),
            Who::Of(2, Pod),
            Who::Of(0, Hidden),
            Who::Of(0, Node),
            Who::Host,
            Who::Outside,
            Who::Unknown,
        ];
        let mut picture = String::new();
        for from in everyone {
            let row: String = targets.iter().map(|to| if may_dial(from, *to, same) { '+' } else { '.' }).collect();
            picture += &format!("{:<22} {row}\n", format!("{from:?}"));
        }
        insta::assert_snapshot!(picture, @r"
        Host                   +++......+.
        Outside                +++......+.
        Of(0, Pod)             +++++....+.
        Of(0, Node)            ++++..++.+.
        Of(0, ApiServer)       ++++...+.+.
        Of(0, LoadBalancer)    ...........
        Of(0, Hidden)          ...........
        Unknown                ...........
        ");
    }

    #[test]
    fn a_private_api_server_lets_its_own_cluster_and_the_host_in() {
        let world = World::default();
        let subnets = [0, 1].map(|slot| Subnet { block: 9, slot });
        for (name, subnet) in [("a", subnets[0]), ("b", subnets[1])] {
            world.add(name, "flat", subnet);
        }
        let api = IpAddr::V4(*subnets[0].api_server().ip());
        let of_pods = || subnets.map(|subnet| world.judge(IpAddr::V4(subnet.pod(0).unwrap()), api));
        assert_eq!(of_pods(), [true, true]);
        world.afflict(Fault::Private { what: "a".into() });
        assert_eq!(of_pods(), [true, false]);
        assert!(world.judge(IpAddr::V4(Ipv4Addr::LOCALHOST), api) && world.judge("127.0.0.2".parse().unwrap(), api));
        assert_eq!(world.refusals(), [Refusal { from: "b".into(), to: "a".into(), count: 1 }]);
        world.heal(None);
        assert_eq!(of_pods(), [true, true]);
    }

    #[test]
    fn a_cut_network_keeps_its_inner_links() {
        let world = World::default();
        for (slot, (name, network)) in [("a", "east"), ("b", "east"), ("c", "west")].into_iter().enumerate() {
            world.add(name, network, Subnet { block: 9, slot: slot as u8 });
        }
        let shut = |world: &World| [(0, 1), (0, 2), (1, 2)].map(|(a, b)| world.gate(a, b).is_shut());
        assert_eq!(shut(&world), [false, false, false]);
        let cut = |what: &str| Fault::Partition { what: what.into() };
        world.afflict(cut("east"));
        assert_eq!(shut(&world), [false, true, true]);
        world.heal(Some(&world.find("east")));
        world.afflict(cut("b"));
        assert_eq!(shut(&world), [true, false, true]);
        world.heal(Some(&world.find("b")));
        assert_eq!(shut(&world), [false, false, false]);
    }
}
