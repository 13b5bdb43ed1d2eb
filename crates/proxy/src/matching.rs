//! Which filter chain a connection belongs to, by Envoy's rules.
//!
//! Criteria are looked at in a fixed order: destination port, destination address, server name, transport protocol,
//! application protocols. At each the most specific entry that fits is taken, and there is no way back: when the
//! criteria after it fit nothing, the connection belongs to the default chain or to none.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// Where the client meant to go.
    pub(crate) destination: SocketAddr,
    /// The SNI, in lower case.
    pub(crate) server_name: Option<&'a str>,
    /// `tls` or `raw_buffer`.
    pub(crate) transport: &'a str,
    /// ALPN as offered, or what the HTTP inspector found.
    pub(crate) protocols: &'a [String],
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    address: IpAddr,
    bits: u8,
}

impl Range {
    pub(crate) fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { address, bits })
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        fn number(address: IpAddr) -> u128 {
            match address {
                IpAddr::V4(four) => u128::from(u32::from(four)) << 96,
                IpAddr::V6(six) => u128::from(six),
            }
        }
        let away = number(self.address) ^ number(address);
        self.address.is_ipv4() == address.is_ipv4() && (self.bits == 0 || away >> (128 - u32::from(self.bits)) == 0)
    }
}

/// The criteria of one chain. What is empty fits everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Criteria {
    pub(crate) port: Option<u16>,
    pub(crate) ranges: Vec<Range>,
    pub(crate) server_names: Vec<String>,
    pub(crate) transport: String,
    pub(crate) protocols: Vec<String>,
}

/// Two chains that fit the same connections equally well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlap;

type Protocols<T> = Vec<(String, T)>;
type Transports<T> = Vec<(String, Protocols<T>)>;
type Names<T> = HashMap<String, Transports<T>>;

type Ranges<T> = Vec<(Option<Range>, Names<T>)>;

/// The chains of a listener, compiled for look-up.
#[derive(Debug)]
pub(crate) struct Table<T> {
    ports: HashMap<Option<u16>, Ranges<T>>,
    default: Option<T>,
}

impl<T: Clone> Table<T> {
    pub(crate) fn new(default: Option<T>) -> Self {
        Self { ports: HashMap::new(), default }
    }

    /// Adds a chain.
    pub(crate) fn add(&mut self, criteria: &Criteria, chain: &T) -> Result<(), Overlap> {
        let ranges = self.ports.entry(criteria.port).or_default();
        let wanted: Vec<Option<Range>> = match criteria.ranges.as_slice() {
            [] => vec![None],
            some => some.iter().copied().map(Some).collect(),
        };
        let any = [String::new()];
        let or_any = |list: &[String]| if list.is_empty() { any.to_vec() } else { list.to_vec() };
        for range in wanted {
            let at = match ranges.iter().position(|(known, _)| *known == range) {
                Some(at) => at,
                None => {
                    // Longest prefix first, no prefix last.
                    let bits = |range: &Option<Range>| range.map_or(-1, |r| i32::from(r.bits));
                    let at = ranges.partition_point(|(known, _)| bits(known) >= bits(&range));
                    ranges.insert(at, (range, HashMap::new()));
                    at
                }
            };
            for name in or_any(&criteria.server_names) {
                let name = name.to_ascii_lowercase();
                // `*.shop.local` is kept as `.shop.local`; `*` alone means any.
                let name = name.strip_prefix('*').map_or(name.clone(), ToOwned::to_owned);
                let transports = ranges[at].1.entry(name).or_default();
                let protocols = entry(transports, &criteria.transport);
                for protocol in or_any(&criteria.protocols) {
                    if protocols.iter().any(|(known, _)| *known == protocol) {
                        return Err(Overlap);
                    }
                    protocols.push((protocol, chain.clone()));
                }
            }
        }
        Ok(())
    }

    /// The chain of a connection.
    pub(crate) fn find(&self, facts: Facts<'_>) -> Option<&T> {
        self.by_port(facts).or(self.default.as_ref())
    }

    fn by_port(&self, facts: Facts<'_>) -> Option<&T> {
        let ranges = self.ports.get(&Some(facts.destination.port())).or_else(|| self.ports.get(&None))?;
        let fits = |range: &Option<Range>| range.is_none_or(|range| range.contains(facts.destination.ip()));
        let (_, names) = ranges.iter().find(|(range, _)| fits(range))?;
        let transports = by_name(names, facts.server_name)?;
        let protocols = value(transports, facts.transport).or_else(|| value(transports, ""))?;
        facts.protocols.iter().find_map(|offered| value(protocols, offered)).or_else(|| value(protocols, ""))
    }
}

fn by_name<'a, T>(names: &'a Names<T>, server_name: Option<&str>) -> Option<&'a Transports<T>> {
    let any = || names.get("");
    let Some(name) = server_name else { return any() };
    if let Some(exact) = names.get(name) {
        return Some(exact);
    }
    let mut rest = name;
    while let Some(dot) = rest.find('.') {
        if let Some(wild) = names.get(&rest[dot..]) {
            return Some(wild);
        }
        rest = &rest[dot + 1..];
    }
    any()
}

fn entry<'a, T>(list: &'a mut Vec<(String, Vec<T>)>, key: &str) -> &'a mut Vec<T> {
    let at = list.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
        list.push((key.to_owned(), Vec::new()));
        list.len() - 1
    });
    &mut list[at].1
}

fn value<'a, T>(list: &'a [(String, T)], key: &str) -> Option<&'a T> {
    list.iter().find(|(known, _)| known == key).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|t| (*t).to_owned()).collect()
    }

    fn criteria(port: Option<u16>, transport: &str, names: &[&str], protocols: &[&str]) -> Criteria {
        Criteria {
            port,
            transport: transport.into(),
            server_names: texts(names),
            protocols: texts(protocols),
            ..Criteria::default()
        }
    }

    fn facts<'a>(port: u16, transport: &'a str, name: Option<&'a str>, protocols: &'a [String]) -> Facts<'a> {
        Facts { destination: ([10, 1, 0, 1], port).into(), server_name: name, transport, protocols }
    }

    #[test]
    fn a_permissive_auto_port_is_split_as_istio_means_it() {
        let mut table = Table::new(None);
        let http = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
        let rows = [
            (criteria(Some(80), "tls", &[], &http), "http mtls"),
            (criteria(Some(80), "raw_buffer", &[], &["http/1.1", "h2c"]), "http plain"),
            (criteria(Some(80), "tls", &[], &["istio-peer-exchange", "istio"]), "tcp mtls"),
            (criteria(Some(80), "raw_buffer", &[], &[]), "tcp plain"),
            (criteria(Some(80), "tls", &[], &[]), "tcp passed on"),
            (criteria(Some(15006), "", &[], &[]), "blackhole"),
            (criteria(None, "tls", &[], &["istio"]), "catch-all mtls"),
        ];
        for (criteria, chain) in &rows {
            table.add(criteria, chain).unwrap();
        }
        let cases: [(u16, &str, &[&str], Option<&str>); 9] = [
            (80, "tls", &["istio-http/1.1", "istio", "http/1.1"], Some("http mtls")),
            (80, "tls", &["istio-peer-exchange", "istio"], Some("tcp mtls")),
            (80, "tls", &["h2"], Some("tcp passed on")),
            (80, "tls", &[], Some("tcp passed on")),
            (80, "raw_buffer", &["http/1.1"], Some("http plain")),
            (80, "raw_buffer", &[], Some("tcp plain")),
            (15006, "raw_buffer", &[], Some("blackhole")),
            (81, "tls", &["istio"], Some("catch-all mtls")),
            (81, "raw_buffer", &[], None),
        ];
        for (port, transport, protocols, expected) in cases {
            let protocols = texts(protocols);
            let found = table.find(facts(port, transport, None, &protocols));
            assert_eq!(found.copied(), expected, "{port} {transport} {protocols:?}");
        }
    }

    #[test]
    fn the_most_specific_name_wins_and_there_is_no_way_back() {
        let mut table = Table::new(None);
        table.add(&criteria(None, "tls", &["a.shop.local"], &["istio"]), &1).unwrap();
        table.add(&criteria(None, "tls", &["*.shop.local"], &[]), &2).unwrap();
        table.add(&criteria(None, "tls", &["*.local"], &[]), &3).unwrap();
        let istio = texts(&["istio"]);
        let cases = [
            ("a.shop.local", &istio[..], Some(1)),
            ("a.shop.local", &[], None),
            ("b.shop.local", &[], Some(2)),
            ("c.b.shop.local", &[], Some(2)),
            ("x.local", &[], Some(3)),
            ("local", &[], None),
        ];
        for (name, protocols, expected) in cases {
            assert_eq!(table.find(facts(1, "tls", Some(name), protocols)).copied(), expected, "{name}");
        }
        assert_eq!(table.find(facts(1, "raw_buffer", None, &[])), None);
    }

    #[test]
    fn the_longest_range_wins_and_an_overlap_is_refused() {
        let range = |text: &str, bits| Range::new(text.parse().unwrap(), bits).unwrap();
        let with = |ranges| Criteria { ranges, ..Criteria::default() };
        let mut table = Table::new(Some("default"));
        table.add(&with(vec![range("10.0.0.0", 8)]), &"eight").unwrap();
        table.add(&with(vec![range("10.1.0.0", 16), range("fd00::", 8)]), &"sixteen").unwrap();
        assert_eq!(table.add(&with(vec![range("10.0.0.0", 8)]), &"again"), Err(Overlap));
        for (to, expected) in
            [("10.1.2.3:1", "sixteen"), ("10.2.2.3:1", "eight"), ("[fd12::1]:1", "sixteen"), ("11.0.0.1:1", "default")]
        {
            let destination = to.parse().unwrap();
            let facts = Facts { destination, server_name: None, transport: "raw_buffer", protocols: &[] };
            assert_eq!(table.find(facts), Some(&expected), "{to}");
        }
    }
}
