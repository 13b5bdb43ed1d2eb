//! What the observations of a run mean. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Latency, Pair, Verdict};

/// Requests that one caller sends to a service with `clusters` equal shares, so that the chance of missing any of the
/// n² pairs by bad luck is below one in a million: ⌈n·ln(n²/10⁻⁶)⌉, at least 20.
///
/// A share is missed with (1−1/n)^k ≤ e^(−k/n), and there are n² of them.
pub(crate) fn requests_per_caller(clusters: usize) -> usize {
    let n = clusters.max(1) as f64;
    ((n * (n * n / 1e-6).ln()).ceil() as usize).max(20)
}

/// One request, as the client and its proxy saw it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Request {
    /// The answer's HTTP status; 0 when there was none.
    pub(crate) status: u16,
    /// The cluster whose server says it answered.
    pub(crate) answered_by: Option<String>,
    /// How long the client waited.
    pub(crate) millis: f64,
    /// The URI SAN that the client's proxy saw on the connection.
    pub(crate) identity: Option<String>,
    /// `address:port` that the client's proxy dialled.
    pub(crate) dialled: Option<String>,
    /// Why the proxy could not use what it dialled.
    pub(crate) trouble: Option<String>,
}

impl Request {
    fn succeeded(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What the mesh file and the clusters say how it should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// In the order of the mesh file.
    pub(crate) clusters: Vec<ExpectedCluster>,
    /// The server's identity.
    pub(crate) identity: String,
}

/// One cluster, as it should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExpectedCluster {
    pub(crate) name: String,
    pub(crate) network: String,
    /// `address:port` of its servers.
    pub(crate) servers: BTreeSet<String>,
    /// `address:port` of the gateways that lead into its network.
    pub(crate) gateways: BTreeSet<String>,
}

/// The lines of one caller: one for every cluster.
pub(crate) fn pairs(from: &ExpectedCluster, expected: &Expected, requests: &[Request]) -> Vec<Pair> {
    expected.clusters.iter().map(|to| pair(from, to, expected, requests)).collect()
}

fn pair(from: &ExpectedCluster, to: &ExpectedCluster, expected: &Expected, requests: &[Request]) -> Pair {
    let answered: Vec<&Request> =
        requests.iter().filter(|r| r.succeeded() && r.answered_by.as_ref() == Some(&to.name)).collect();
    let failed: Vec<&Request> = requests.iter().filter(|r| !r.succeeded()).collect();
    // A request that failed belongs to the cluster it was sent to, as far as the dialled address tells.
    let lost: Vec<&Request> = failed.iter().copied().filter(|r| was_meant_for(r, from, to, expected)).collect();
    let about_to = || answered.iter().chain(&lost).copied();

    let identities = count(about_to().filter_map(|r| r.identity.clone()));
    let direct = from.network == to.network;
    let hops = count(about_to().filter_map(|r| r.dialled.clone()));

    let mut why = Vec::new();
    if answered.is_empty() {
        why.push(format!("no request was answered by `{}`", to.name));
    }
    if !failed.is_empty() {
        let trouble = count(failed.iter().filter_map(|r| r.trouble.clone()));
        let words = trouble.keys().next().map_or(String::new(), |t| format!(": {t}"));
        why.push(format!("{} of {} requests failed{words}", failed.len(), requests.len()));
    }
    for identity in identities.keys().filter(|i| **i != expected.identity) {
        why.push(format!("the peer is `{identity}`, it should be `{}`", expected.identity));
    }
    if !answered.is_empty() && identities.is_empty() {
        why.push("no request shows the identity of its peer".to_owned());
    }
    let planned = if direct { &to.servers } else { &to.gateways };
    for hop in hops.keys().filter(|h| !planned.contains(*h)) {
        why.push(if direct {
            format!("it went to `{hop}`, which is no server of `{}`; the path should be direct", to.name)
        } else {
            format!("it went to `{hop}`, which is no gateway of `{}`", to.network)
        });
    }
    if !answered.is_empty() && hops.is_empty() {
        why.push("no request shows where it went".to_owned());
    }

    // What is shown is what differs from the plan, if anything does: a single wrong hop must not hide behind many good ones.
    let shown_identity =
        identities.keys().find(|i| **i != expected.identity).or_else(|| identities.keys().next()).cloned();
    let shown_hop = hops.keys().find(|h| !planned.contains(*h)).or_else(|| hops.keys().next()).cloned();
    Pair {
        from: from.name.clone(),
        to: to.name.clone(),
        requests: requests.len(),
        answered: answered.len(),
        failed: failed.len(),
        identity: shown_identity,
        gateway: shown_hop.filter(|hop| !to.servers.contains(hop)),
        latency_ms: latency(answered.iter().map(|r| r.millis).collect()),
        verdict: if why.is_empty() { Verdict::Pass } else { Verdict::Fail },
        why,
    }
}

/// Whether a failed request was on its way to `to`: it dialled one of its servers or gateways. An address that is
/// nobody's is held against the callers' own cluster pairs with nobody to answer.
fn was_meant_for(request: &Request, from: &ExpectedCluster, to: &ExpectedCluster, expected: &Expected) -> bool {
    let Some(dialled) = &request.dialled else { return false };
    let leads_to = |c: &ExpectedCluster| {
        c.servers.contains(dialled) || (c.network != from.network && c.gateways.contains(dialled))
    };
    leads_to(to) || !expected.clusters.iter().any(leads_to)
}

fn count(values: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    values.fold(BTreeMap::new(), |mut counts, value| {
        *counts.entry(value).or_default() += 1;
        counts
    })
}

fn latency(mut millis: Vec<f64>) -> Option<Latency> {
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| {
        // Nearest rank: the smallest value that at least `share` of all do not exceed.
        let rank = (share * millis.len() as f64).ceil() as usize;
        millis.get(rank.saturating_sub(1)).map(|ms| (ms * 100.0).round() / 100.0)
    };
    Some(Latency { p50: at(0.5)?, p99: at(0.99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "spiffe://cluster.local/ns/probe/sa/helloworld";

    fn cluster(name: &str, network: &str, server: &str, gateways: &[&str]) -> ExpectedCluster {
        ExpectedCluster {
            name: name.into(),
            network: network.into(),
            servers: BTreeSet::from([server.to_owned()]),
            gateways: gateways.iter().map(|g| (*g).to_owned()).collect(),
        }
    }

    fn expected() -> Expected {
        Expected {
            clusters: vec![
                cluster("east", "net-east", "127.16.1.1:5000", &["127.16.0.16:15443"]),
                cluster("west", "net-west", "127.32.1.1:5000", &["127.32.0.16:15443"]),
            ],
            identity: ID.into(),
        }
    }

    fn answered(by: &str, dialled: &str) -> Request {
        Request {
            status: 200,
            answered_by: Some(by.into()),
            millis: 1.0,
            identity: Some(ID.into()),
            dialled: Some(dialled.into()),
            trouble: None,
        }
    }

    fn from_east(requests: &[Request]) -> Vec<Pair> {
        let expected = expected();
        pairs(&expected.clusters[0], &expected, requests)
    }

    #[test]
    fn the_number_of_requests_grows_so_that_luck_does_not_decide() {
        for (clusters, requests) in [(1, 20), (2, 31), (3, 49), (5, 86), (10, 185), (100, 2303)] {
            assert_eq!(requests_per_caller(clusters), requests, "{clusters} clusters");
        }
    }

    #[test]
    fn direct_on_one_network_and_through_the_gateway_across() {
        let lines = from_east(&[answered("east", "127.16.1.1:5000"), answered("west", "127.32.0.16:15443")]);
        assert!(lines.iter().all(|p| p.verdict == Verdict::Pass), "{lines:?}");
        assert_eq!(lines[0].gateway, None);
        assert_eq!(lines[1].gateway.as_deref(), Some("127.32.0.16:15443"));
        assert_eq!((lines[1].requests, lines[1].answered, lines[1].failed), (2, 1, 0));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let east = answered("east", "127.16.1.1:5000");
        let west = answered("west", "127.32.0.16:15443");
        let impostor = "spiffe://cluster.local/ns/probe/sa/impostor";
        for (case, odd, why) in [
            (
                "past the gateway",
                Request { dialled: Some("127.32.1.1:5000".into()), ..west.clone() },
                "it went to `127.32.1.1:5000`, which is no gateway of `net-west`",
            ),
            (
                "another peer",
                Request { identity: Some(impostor.into()), ..west.clone() },
                "the peer is `spiffe://cluster.local/ns/probe/sa/impostor`, it should be `spiffe://cluster.local/ns/probe/sa/helloworld`",
            ),
            ("unseen peer", Request { identity: None, ..west.clone() }, "no request shows the identity of its peer"),
        ] {
            let lines = from_east(&[east.clone(), odd]);
            assert_eq!(lines[0].verdict, Verdict::Pass, "{case}");
            assert_eq!(lines[1].verdict, Verdict::Fail, "{case}");
            assert_eq!(lines[1].why, [why], "{case}");
        }
    }

    #[test]
    fn a_refused_peer_is_shown_on_the_line_it_was_meant_for() {
        let refused = Request {
            status: 503,
            answered_by: None,
            identity: Some("spiffe://cluster.local/ns/probe/sa/impostor".into()),
            trouble: Some("the peer is spiffe://cluster.local/ns/probe/sa/impostor".into()),
            ..answered("", "127.32.0.16:15443")
        };
        let lines = from_east(&[answered("east", "127.16.1.1:5000"), refused]);
        assert_eq!(lines[0].identity.as_deref(), Some(ID));
        assert_eq!(lines[1].identity.as_deref(), Some("spiffe://cluster.local/ns/probe/sa/impostor"));
        assert_eq!(lines[1].answered, 0);
        assert_eq!(lines[1].verdict, Verdict::Fail);
        // A request without an answer fails every line of its caller: somebody's requests get lost.
        assert_eq!(lines[0].verdict, Verdict::Fail);
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        assert_eq!(latency(vec![]), None);
        assert_eq!(latency(vec![3.0]), Some(Latency { p50: 3.0, p99: 3.0 }));
        let hundred = (1..=100).map(f64::from).collect();
        assert_eq!(latency(hundred), Some(Latency { p50: 50.0, p99: 99.0 }));
    }
}
