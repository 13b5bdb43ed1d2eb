//! Names for the workload: a DNS server (RFC 1035) over TCP (RFC 7766) that answers from the control plane's table of
//! names, and asks the cluster's own DNS for everything else.
//!
//! It is what makes a service that exists only in another cluster resolve: the table has every service of the mesh,
//! the cluster's DNS only its own. Istio's agent does the same on the same port.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use stolos_serve::{Net, Stop, Stream};
use stolos_xds::istio::networking::nds::v1::NameTable;
use stolos_xds::message::NAME_TABLE;
use stolos_xds::{Snapshot, unpack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

/// Where the agent answers its workload's questions, as Istio's does.
pub const PORT: u16 = 15053;

/// How many clients are served at once; more wait to be accepted.
const MOST: usize = 128;
/// How long a client may think about its next question.
const QUIET: Duration = Duration::from_secs(10);
/// How long the cluster's DNS may take.
const UPSTREAM: Duration = Duration::from_secs(2);
/// How long whoever asks waits for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// A question is one name of at most 255 bytes; more is nobody we know.
const LONGEST_QUESTION: usize = 512;
/// Seconds for which an answer holds, as Istio's agent says.
const TTL: u32 = 30;

const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;

const NO_ERROR: u16 = 0;
const FORMAT_ERROR: u16 = 1;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;
const NOT_IMPLEMENTED: u16 = 4;

/// The addresses of every name in full, and how far short ones reach.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    all: HashMap<String, Vec<IpAddr>>,
    /// What short names lack at their ends: `.<namespace>.svc.<suffix>`, `.svc.<suffix>`, `.<suffix>`.
    ends: Vec<String>,
}

impl Names {
    /// The names of a table for a workload whose own DNS domain is `domain` (`shop.svc.cluster.local`).
    ///
    /// Istio's agent writes the short names of every service into its table; here they are completed when they are
    /// asked for, which comes to the same and takes a quarter of the room.
    pub(crate) fn of(table: &NameTable, domain: &str) -> Self {
        let all = table.table.iter().map(|(host, info)| {
            let addresses = info.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            (host.trim_end_matches('.').to_ascii_lowercase(), addresses)
        });
        let tail = |labels: usize| domain.splitn(labels + 1, '.').last().filter(|tail| !tail.is_empty());
        let ends = (0..3).filter_map(tail).map(|tail| format!(".{tail}")).collect();
        Self { all: all.collect(), ends }
    }

    fn get(&self, name: &str) -> Option<&[IpAddr]> {
        let complete = |end: &String| self.all.get(&format!("{name}{end}"));
        // A host that is called so in full goes before one that is called so for short.
        self.all.get(name).or_else(|| self.ends.iter().find_map(complete)).map(Vec::as_slice)
    }
}

/// Serves names until `stop`. A port that cannot be had is tried again.
pub(crate) async fn run(net: Arc<dyn Net>, domain: String, mut resources: watch::Receiver<Arc<Snapshot>>, stop: Stop) {
    const RETRY: Duration = Duration::from_secs(1);
    let (told, names) = watch::channel(Arc::new(Names::default()));
    let following = async {
        loop {
            let table = resources.borrow_and_update().get(NAME_TABLE).cloned();
            if let Some(resource) = table.as_ref().and_then(|all| all.iter().next()) {
                match unpack::<NameTable>(&resource.body) {
                    Ok(table) => drop(told.send_replace(Arc::new(Names::of(&table, &domain)))),
                    Err(error) => tracing::warn!(%error, "the table of names cannot be read"),
                }
            }
            // Only a new table is of interest.
            let same = |snapshot: &Arc<Snapshot>| match (snapshot.get(NAME_TABLE), &table) {
                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                (None, None) => true,
                _ => false,
            };
            if resources.wait_for(|snapshot| !same(snapshot)).await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    let tasks = TaskTracker::new();
    let serving = async {
        let open = Arc::new(Semaphore::new(MOST));
        let listener = loop {
            match net.bind(PORT).await {
                Ok(listener) => break listener,
                Err(error) => tracing::warn!(%error, port = PORT, "cannot answer names, trying again"),
            }
            tokio::time::sleep(RETRY).await;
        };
        loop {
            let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return };
            let client = match listener.accept().await {
                Ok((client, peer)) if peer.ip() == net.address() => client,
                // Only the workload itself asks: others have no business to know its names.
                Ok(_) => continue,
                Err(error) => return tracing::error!(%error, "cannot answer names any more"),
            };
            let (net, names, stop) = (Arc::clone(&net), names.clone(), stop.clone());
            tasks.spawn(async move {
                let _permit = permit;
                tokio::select! {
                    ended = answer_all(client, net.as_ref(), &names) => if let Err(error) = ended {
                        tracing::debug!(%error, "a client that asked for names is gone");
                    },
                    () = stop.asked() => {}
                }
            });
        }
    };
    tokio::select! {
        () = serving => {}
        () = following => {}
        () = stop.asked() => {}
    }
    tasks.close();
    tasks.wait().await;
}

/// Answers one client's questions, one after another.
async fn answer_all(mut client: Stream, net: &dyn Net, names: &watch::Receiver<Arc<Names>>) -> io::Result<()> {
    loop {
        let Ok(question) = tokio::time::timeout(QUIET, read(&mut client, LONGEST_QUESTION)).await else {
            return Ok(());
        };
        let Some(question) = question? else { return Ok(()) };
        let Some(asked) = Asked::read(&question) else { return Err(io::ErrorKind::InvalidData.into()) };
        let known = names.borrow().clone();
        let (code, addresses) = match &asked.question {
            Err(code) => (*code, Vec::new()),
            Ok(question) => match known.get(&question.name) {
                Some(addresses) => (NO_ERROR, addresses.to_vec()),
                // Its own DNS knows what the mesh does not: aliases, names outside.
                None => match tokio::time::timeout(UPSTREAM, net.resolve(&question.name)).await {
                    Ok(Ok(addresses)) => (NO_ERROR, addresses),
                    Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => (NO_SUCH_NAME, Vec::new()),
                    Ok(Err(_)) | Err(_) => (SERVER_FAILURE, Vec::new()),
                },
            },
        };
        write(&mut client, &asked.answer(code, &addresses)).await?;
    }
}

/// A message with its length in front; `None` when the other end has closed.
async fn read(stream: &mut Stream, most: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write(stream: &mut Stream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::other("the message is too long"))?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// A question's message, as far as it can be answered.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    id: u16,
    /// The flags that an answer repeats: operation, recursion desired.
    flags: u16,
    /// The question as it was written.
    raw: Vec<u8>,
    question: Result<Question, u16>,
}

#[derive(Debug, PartialEq, Eq)]
struct Question {
    /// In lower case, without the dot at the end.
    name: String,
    kind: u16,
}

impl Asked {
    /// Reads a message; `None` when it is none, or no question.
    fn read(message: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
        let (id, flags) = (number(0)?, number(2)?);
        if flags & 0x8000 != 0 {
            return None;
        }
        let mut asked = Self { id, flags: flags & 0x7900, raw: Vec::new(), question: Err(FORMAT_ERROR) };
        if flags & 0x7800 != 0 {
            asked.question = Err(NOT_IMPLEMENTED);
            return Some(asked);
        }
        if number(4)? != 1 {
            return Some(asked);
        }
        let Some((name, end)) = name_at(message, 12) else { return Some(asked) };
        let (Some(kind), Some(class)) = (number(end), number(end + 2)) else { return Some(asked) };
        asked.raw = message[12..end + 4].to_vec();
        asked.question = if class == INTERNET { Ok(Question { name, kind }) } else { Err(NOT_IMPLEMENTED) };
        Some(asked)
    }

    /// The answer: those addresses that are of the kind that was asked for. A name that has only others is there, but
    /// has none of these.
    fn answer(&self, code: u16, addresses: &[IpAddr]) -> Vec<u8> {
        const MOST_ANSWERS: usize = 512;
        let kind = self.question.as_ref().map_or(0, |question| question.kind);
        let fitting: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|address| matches!((kind, address), (A, IpAddr::V4(_)) | (AAAA, IpAddr::V6(_))))
            .take(MOST_ANSWERS)
            .collect();
        let count = u16::try_from(fitting.len()).unwrap_or_default();
        // A response, authoritative, recursion available.
        let flags = 0x8480 | self.flags | code;
        let questions = u16::from(!self.raw.is_empty());
        let mut message: Vec<u8> =
            [self.id, flags, questions, count, 0, 0].iter().flat_map(|number| number.to_be_bytes()).collect();
        message.extend_from_slice(&self.raw);
        for address in fitting {
            // The name is that of the question, which stands at offset 12.
            message.extend([0xc0, 12]);
            message.extend([kind, INTERNET].iter().flat_map(|number| number.to_be_bytes()));
            message.extend(TTL.to_be_bytes());
            match address {
                IpAddr::V4(address) => message.extend([&[0, 4][..], &address.octets()].concat()),
                IpAddr::V6(address) => message.extend([&[0, 16][..], &address.octets()].concat()),
            }
        }
        message
    }
}

/// A name without compression, and where it ends.
fn name_at(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels: Vec<String> = Vec::new();
    let start = at;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > 63 || at + length - start > 254 {
            return None;
        }
        let label = message.get(at..at + length)?;
        // A dot inside a label would make another name of it.
        if label.contains(&b'.') {
            return None;
        }
        labels.push(std::str::from_utf8(label).ok()?.to_ascii_lowercase());
        at += length;
    }
    Some((labels.join("."), at))
}

/// Asks the agent of a workload for `name`, as its resolver would: with the search path of its namespace for names of
/// fewer than five dots. `connect` gives a connection to the agent's [`PORT`].
///
/// # Errors
///
/// Of kind `NotFound` when nobody knows the name or it has no address; any other when the agent does not answer.
pub async fn resolve(mut connection: Stream, name: &str, namespace: &str, domain: &str) -> io::Result<Vec<IpAddr>> {
    let asking = async {
        for (id, candidate) in (1..).zip(candidates(name, namespace, domain)) {
            let Some(question) = question(id, &candidate) else { continue };
            write(&mut connection, &question).await?;
            let answer = read(&mut connection, usize::from(u16::MAX)).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match addresses(&answer, id, question.len()) {
                Some((NO_ERROR, found)) if !found.is_empty() => return Ok(found),
                Some((NO_ERROR | NO_SUCH_NAME, _)) => {}
                Some((code, _)) => return Err(io::Error::other(format!("the name server answers {code}"))),
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "the name server's answer is none")),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for `{name}`")))
    };
    tokio::time::timeout(ANSWER, asking).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// The names to try, in order: `ndots:5` and the search path that a kubelet writes.
fn candidates(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    if let Some(full) = name.strip_suffix('.') {
        return vec![full.to_owned()];
    }
    let search =
        [format!("{name}.{namespace}.svc.{domain}"), format!("{name}.svc.{domain}"), format!("{name}.{domain}")];
    let own = std::iter::once(name.to_owned());
    if name.matches('.').count() >= 5 { own.chain(search).collect() } else { search.into_iter().chain(own).collect() }
}

/// A question for the IPv4 addresses of a name; `None` when it cannot be a name.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    const RECURSION_DESIRED: u16 = 0x0100;
    let mut message: Vec<u8> =
        [id, RECURSION_DESIRED, 1, 0, 0, 0].iter().flat_map(|number| number.to_be_bytes()).collect();
    if name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend([A, INTERNET].iter().flat_map(|number| number.to_be_bytes()));
    Some(message)
}

/// The code and the IPv4 addresses of an answer to a question of this length.
fn addresses(message: &[u8], id: u16, question: usize) -> Option<(u16, Vec<IpAddr>)> {
    let number = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let flags = number(2)?;
    if number(0)? != id || flags & 0x8000 == 0 {
        return None;
    }
    let (count, mut at) = (number(6)?, if number(4)? == 0 { 12 } else { question });
    let mut found = Vec::new();
    for _ in 0..count {
        // A name is a pointer, or labels up to an empty one or a pointer.
        loop {
            match *message.get(at)? {
                0 => {
                    at += 1;
                    break;
                }
                pointer if pointer >= 0xc0 => {
                    at += 2;
                    break;
                }
                length => at += 1 + usize::from(length),
            }
        }
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if let (A, Ok(octets)) = (kind, <[u8; 4]>::try_from(data)) {
            found.push(IpAddr::from(octets));
        }
        at += 10 + length;
    }
    Some((flags & 0xf, found))
}

/// Where the agent of the workload at `address` answers.
#[must_use]
pub fn server(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, PORT)
}

/// What [`crate::fuzz::dns`] promises.
pub(crate) fn fuzz(bytes: &[u8]) {
    let addresses_of_all = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    if let Some(asked) = Asked::read(bytes) {
        let code = asked.question.as_ref().err().copied().unwrap_or(NO_ERROR);
        let answer = asked.answer(code, &addresses_of_all);
        assert!(answer.len() <= bytes.len() + 40, "an answer of two addresses is no amplifier");
        let kind = asked.question.as_ref().map_or(0, |question| question.kind);
        let expected = if kind == A { vec![addresses_of_all[0]] } else { Vec::new() };
        let read = addresses(&answer, asked.id, 12 + asked.raw.len());
        assert_eq!(read, Some((code, expected)), "an answer is read as it was meant");
    }
    let id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    for question in [0, 12, 29] {
        let _ = addresses(bytes, id, question);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stolos_xds::istio::networking::nds::v1::name_table::NameInfo;

    fn table() -> NameTable {
        let info = |ips: &[&str], shortname: &str, namespace: &str| NameInfo {
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            registry: "Kubernetes".into(),
            shortname: shortname.into(),
            namespace: namespace.into(),
            ..NameInfo::default()
        };
        NameTable {
            table: [
                ("far.shop.svc.cluster.local".to_owned(), info(&["10.2.0.9"], "far", "shop")),
                ("web.shop.svc.cluster.local".to_owned(), info(&["127.1.2.1", "127.1.2.2"], "web", "shop")),
                ("web-0.web.shop.svc.cluster.local".to_owned(), info(&["127.1.2.1"], "web-0.web", "shop")),
                ("six.other.svc.cluster.local".to_owned(), info(&["fd00::1"], "six", "other")),
            ]
            .into(),
        }
    }

    #[test]
    fn the_agent_adds_the_short_names_of_istios() {
        let names = Names::of(&table(), "shop.svc.cluster.local");
        let of = |name: &str| names.get(name).map(|a| a.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        let table = [
            ("far.shop.svc.cluster.local", Some("10.2.0.9")),
            ("far.shop.svc", Some("10.2.0.9")),
            ("far.shop", Some("10.2.0.9")),
            ("far", Some("10.2.0.9")),
            ("web-0.web.shop.svc", Some("127.1.2.1")),
            ("six", None),
            ("six.other", Some("fd00::1")),
            ("nobody.shop", None),
        ];
        for (name, expected) in table {
            assert_eq!(of(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn questions_are_answered_by_kind() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.2.0.9".parse().unwrap(), "fd00::1".parse().unwrap());
        let mut asked = question(7, "Far.shop.svc.cluster.local").unwrap();
        let read = Asked::read(&asked).unwrap();
        assert_eq!(read.question, Ok(Question { name: "far.shop.svc.cluster.local".into(), kind: A }));
        let answer = read.answer(NO_ERROR, &[v4, v6]);
        assert_eq!(addresses(&answer, 7, asked.len()), Some((NO_ERROR, vec![v4])));
        assert_eq!(addresses(&answer, 8, asked.len()), None, "somebody else's answer");
        let answer = read.answer(NO_SUCH_NAME, &[]);
        assert_eq!(addresses(&answer, 7, asked.len()), Some((NO_SUCH_NAME, vec![])));
        // AAAA of a name that has IPv4 addresses only: there, but empty.
        let at = asked.len() - 3;
        asked[at] = 28;
        let read = Asked::read(&asked).unwrap();
        assert_eq!(addresses(&read.answer(NO_ERROR, &[v4]), 7, asked.len()), Some((NO_ERROR, vec![])));
        assert_eq!(read.answer(NO_ERROR, &[v6]).len(), asked.len() + 28);
        // Another class, and another operation.
        let end = asked.len() - 1;
        asked[end] = 3;
        assert_eq!(Asked::read(&asked).unwrap().question, Err(NOT_IMPLEMENTED));
        asked[2] = 0x28;
        assert_eq!(Asked::read(&asked).unwrap().question, Err(NOT_IMPLEMENTED));
        assert_eq!(Asked::read(&answer), None, "an answer is not a question");
    }

    #[test]
    fn names_are_searched_as_a_resolver_does() {
        let of = |name: &str| candidates(name, "shop", "cluster.local").join(" ");
        assert_eq!(of("a"), "a.shop.svc.cluster.local a.svc.cluster.local a.cluster.local a");
        assert_eq!(
            of("a.b.c.d.e.f"),
            "a.b.c.d.e.f a.b.c.d.e.f.shop.svc.cluster.local a.b.c.d.e.f.svc.cluster.local a.b.c.d.e.f.cluster.local"
        );
        assert_eq!(of("a.b."), "a.b");
        assert_eq!(question(1, "a..b"), None);
        assert_eq!(question(1, &"a".repeat(64)), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Asked::read(&bytes).map(|asked| asked.answer(NO_ERROR, &[IpAddr::from([1, 2, 3, 4])]));
            let _ = addresses(&bytes, 1, 30);
        }

        #[test]
        fn what_is_asked_is_read(name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,5}", at in 0usize..100, value: u8) {
            let mut asked = question(9, &name).unwrap();
            prop_assert_eq!(Asked::read(&asked).unwrap().question, Ok(Question { name, kind: A }));
            let length = asked.len();
            asked[at % length] = value;
            if let Some(read) = Asked::read(&asked) {
                let _ = addresses(&read.answer(NO_ERROR, &[IpAddr::from([1, 2, 3, 4])]), 9, length);
            }
        }
    }
}
