//! Which loopback addresses a lab owns, and how two labs keep out of each other's way.
//!
//! A *block* is a /16 of 127.0.0.0/8 and holds sixteen clusters of a /20 each. A lab owns a block by holding a
//! listening socket, the sentinel, in it; whoever connects to a sentinel is told which lab it belongs to.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_serve::Stop;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Error;

/// Where a block's sentinel listens, at the block's last usable address.
const SENTINEL_PORT: u16 = 15999;
/// Clusters in one block.
pub(crate) const CLUSTERS_PER_BLOCK: usize = 16;
/// The port of every lab cluster's API server.
pub const API_PORT: u16 = 6443;
/// What is added to a port below 1024, which no unprivileged process may bind.
const UNPRIVILEGED: u16 = 20_000;

/// One cluster's /20: block `block`, place `slot` in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subnet {
    /// Second octet.
    pub block: u8,
    /// 0 to 15.
    pub slot: u8,
}

/// What an address of a lab stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// An API server.
    ApiServer,
    /// An address that a load balancer has or may get.
    LoadBalancer,
    /// A node.
    Node,
    /// A pod.
    Pod,
    /// The address of a redirected pod's application, known to that pod alone.
    Hidden,
}

impl Subnet {
    /// How many addresses load balancers share.
    pub const LOAD_BALANCERS: u16 = 238;
    /// How many pods a cluster can have at a time.
    pub const PODS: u16 = 7 * 256 - 2;

    fn at(self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.block, (self.slot << 4) | third, fourth)
    }

    /// The address of the API server.
    #[must_use]
    pub fn api_server(self) -> SocketAddrV4 {
        SocketAddrV4::new(self.at(0, 1), API_PORT)
    }

    /// Where the API server really listens when calls to its address are delayed for a bench.
    #[must_use]
    pub fn undelayed_api_server(self) -> SocketAddrV4 {
        SocketAddrV4::new(self.at(0, 2), API_PORT)
    }

    /// The `index`-th load-balancer address.
    #[must_use]
    pub fn load_balancer(self, index: u16) -> Option<Ipv4Addr> {
        (index < Self::LOAD_BALANCERS).then(|| self.at(0, 16 + index as u8))
    }

    /// The address at which a cluster's node is reached from outside: for node ports.
    #[must_use]
    pub fn node_outside(self) -> Ipv4Addr {
        self.at(0, 254)
    }

    /// The `index`-th node's address.
    #[must_use]
    pub fn node(self, index: u8) -> Ipv4Addr {
        self.at(1, 1 + index.min(253))
    }

    /// The `index`-th pod's address.
    #[must_use]
    pub fn pod(self, index: u16) -> Option<Ipv4Addr> {
        let index = index + 1;
        (index <= Self::PODS).then(|| self.at(2 + (index >> 8) as u8, (index & 255) as u8))
    }

    /// What `address` stands for, if it is in some cluster's subnet.
    #[must_use]
    pub fn locate(address: Ipv4Addr) -> Option<(Self, Role)> {
        let [127, block, third, fourth] = address.octets() else { return None };
        if block == 0 {
            return None;
        }
        let subnet = Self { block, slot: third >> 4 };
        let role = match (third & 15, fourth) {
            (0, 1 | 2) => Role::ApiServer,
            (0, 16..=254) => Role::LoadBalancer,
            (0, _) => return None,
            (1, _) => Role::Node,
            (2..=8, _) => Role::Pod,
            _ => Role::Hidden,
        };
        Some((subnet, role))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/20", self.at(0, 0))
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hidden address of the application in the pod at `pod`.
#[must_use]
pub fn hidden(pod: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, d] = pod.octets();
    Ipv4Addr::new(a, b, c + 7, d)
}

/// The port a socket for `port` really has: nothing binds below 1024.
#[must_use]
pub fn socket_port(port: u16) -> u16 {
    if (1..1024).contains(&port) { UNPRIVILEGED + port } else { port }
}

/// The blocks a lab owns, for as long as this value lives.
pub(crate) struct Claim {
    blocks: Vec<u8>,
    stop: Stop,
}

/// What a sentinel tells whoever asks.
#[derive(Serialize, Deserialize)]
struct Owner {
    lab: String,
    state: PathBuf,
    pid: u32,
}

impl Claim {
    /// Claims `wanted` again, or, where nothing was claimed before, as many free blocks as `clusters` need.
    pub(crate) async fn make(wanted: &[u8], clusters: usize, lab: &str, state: &Path) -> Result<Self, Error> {
        let stop = Stop::new();
        let mut claim = Self { blocks: Vec::new(), stop };
        for &block in wanted {
            let mut tries = 0;
            while let Err(error) = claim.take(block, lab, state).await {
                // The folder is ours alone: what holds this block in its name is a lab that is just ending.
                let ending = error.kind() == io::ErrorKind::AddrInUse && tries < 100;
                if ending && ask(block).await.is_none_or(|owner| owner.state == state) {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                return Err(claim.held(block, error).await);
            }
        }
        let needed = clusters.div_ceil(CLUSTERS_PER_BLOCK).max(1);
        let mut candidates = candidates(state);
        while claim.blocks.len() < needed {
            let Some(block) = candidates.next() else { return Err(Error::NoAddresses { needed }) };
            if claim.blocks.contains(&block) {
                continue;
            }
            match claim.take(block, lab, state).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(Error::Claim { block, source: error }),
            }
        }
        Ok(claim)
    }

    /// The blocks, in the order they were claimed.
    pub(crate) fn blocks(&self) -> &[u8] {
        &self.blocks
    }

    async fn take(&mut self, block: u8, lab: &str, state: &Path) -> io::Result<()> {
        let listener = TcpListener::bind(sentinel(block)).await?;
        let owner = Owner { lab: lab.to_owned(), state: state.to_owned(), pid: std::process::id() };
        let answer = serde_json::to_vec(&owner)?;
        let stop = self.stop.clone();
        tokio::spawn(async move {
            loop {
                let (mut asking, _) = tokio::select! {
                    Ok(accepted) = listener.accept() => accepted,
                    () = stop.asked() => return,
                    else => return,
                };
                let _ = tokio::time::timeout(Duration::from_secs(1), asking.write_all(&answer)).await;
            }
        });
        self.blocks.push(block);
        Ok(())
    }

    async fn held(&self, block: u8, error: io::Error) -> Error {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Error::Claim { block, source: error };
        }
        let holder = match ask(block).await {
            Some(owner) => format!("lab `{}` (state {}, process {})", owner.lab, owner.state.display(), owner.pid),
            None => "another process".to_owned(),
        };
        Error::AddressesHeld { block, holder }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

fn sentinel(block: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(127, block, 255, 254), SENTINEL_PORT)
}

async fn ask(block: u8) -> Option<Owner> {
    let asking = async {
        let mut stream = TcpStream::connect(sentinel(block)).await.ok()?;
        let mut text = Vec::new();
        (&mut stream).take(64 * 1024).read_to_end(&mut text).await.ok()?;
        serde_json::from_slice(&text).ok()
    };
    tokio::time::timeout(Duration::from_secs(1), asking).await.ok()?
}

/// Every block, starting somewhere that depends on the state folder, so that a lab that was stopped usually finds its
/// old block still free. Low blocks come last: other programs of the machine like them.
fn candidates(state: &Path) -> impl Iterator<Item = u8> {
    const FIRST: u8 = 16;
    const COUNT: usize = 255 - FIRST as usize;
    let seed = state
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let start = (seed % COUNT as u64) as usize;
    (0..COUNT).map(move |i| FIRST + ((start + i) % COUNT) as u8).chain(1..FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_says_what_it_is() {
        let subnet = Subnet { block: 31, slot: 2 };
        let table = [
            ("127.31.32.1", Some(Role::ApiServer)),
            ("127.31.32.16", Some(Role::LoadBalancer)),
            ("127.31.32.254", Some(Role::LoadBalancer)),
            ("127.31.32.3", None),
            ("127.31.33.1", Some(Role::Node)),
            ("127.31.34.1", Some(Role::Pod)),
            ("127.31.40.255", Some(Role::Pod)),
            ("127.31.41.1", Some(Role::Hidden)),
            ("127.31.47.255", Some(Role::Hidden)),
        ];
        for (address, role) in table {
            let expected = role.map(|role| (subnet, role));
            assert_eq!(Subnet::locate(address.parse().unwrap()), expected, "{address}");
        }
        for outside in ["127.0.0.1", "127.0.34.1", "10.0.0.1"] {
            assert_eq!(Subnet::locate(outside.parse().unwrap()), None, "{outside}");
        }
    }

    #[test]
    fn pods_are_distinct_and_so_are_their_hidden_addresses() {
        let subnet = Subnet { block: 200, slot: 15 };
        let pods: Vec<_> = (0..Subnet::PODS).map(|i| subnet.pod(i).unwrap()).collect();
        let all: std::collections::HashSet<_> = pods.iter().copied().chain(pods.iter().map(|p| hidden(*p))).collect();
        assert_eq!(all.len(), 2 * pods.len());
        assert!(pods.iter().all(|p| Subnet::locate(*p) == Some((subnet, Role::Pod))));
        assert!(pods.iter().all(|p| Subnet::locate(hidden(*p)) == Some((subnet, Role::Hidden))));
        assert_eq!(subnet.pod(Subnet::PODS), None);
        assert_eq!(subnet.load_balancer(Subnet::LOAD_BALANCERS), None);
    }

    #[test]
    fn low_ports_move_up() {
        assert_eq!([80, 443, 1024, 15443, 0].map(socket_port), [20080, 20443, 1024, 15443, 0]);
    }

    #[tokio::test]
    async fn a_held_block_names_its_holder_and_a_dropped_claim_is_free() {
        let first = Claim::make(&[], 17, "blue", Path::new("/tmp/blue")).await.unwrap();
        assert_eq!(first.blocks().len(), 2, "seventeen clusters need two blocks");
        let held = Claim::make(first.blocks(), 17, "green", Path::new("/tmp/green")).await;
        let message = held.err().unwrap().to_string();
        assert!(message.contains("lab `blue` (state /tmp/blue, process "), "{message}");

        let blocks = first.blocks().to_vec();
        drop(first);
        for attempt in 0.. {
            match Claim::make(&blocks, 17, "blue", Path::new("/tmp/blue")).await {
                Ok(again) => {
                    assert_eq!(again.blocks(), blocks);
                    break;
                }
                Err(_) if attempt < 100 => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
