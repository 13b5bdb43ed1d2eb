//! What the observations of a run mean. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::{EndpointState, Endpoints, Latency, Pair, Verdict};

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

/// One endpoint of the shared service, as a proxy has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// `address:port`.
    pub(crate) address: String,
    /// Why the proxy would rather not use it.
    pub(crate) unfit: Option<String>,
}

/// A proxy's own view, or why there is none.
pub(crate) type View = Result<Vec<Held>, String>;

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
    /// Those of them that are its own.
    pub(crate) own_gateways: BTreeSet<String>,
}

/// The lines of one caller: one for every cluster.
pub(crate) fn pairs(from: &ExpectedCluster, expected: &Expected, requests: &[Request], view: &View) -> Vec<Pair> {
    expected.clusters.iter().map(|to| pair(from, to, expected, requests, view)).collect()
}

/// What `from`'s proxy has for `to`, and what is wrong with that.
///
/// An endpoint on another network is reached by the gateways of its own cluster; where it has none, by any of its network
/// (contract B.3). Behind such shared gateways the view says that there is a way into the network; which of its clusters
/// answers, only requests say.
fn endpoints(from: &ExpectedCluster, to: &ExpectedCluster, view: &View) -> (Endpoints, Option<String>) {
    let view = match view {
        Ok(view) => view,
        Err(why) => return (Endpoints { reason: Some(why.clone()), ..Endpoints::default() }, None),
    };
    let by_its_own = from.network != to.network && !to.own_gateways.is_empty();
    let planned = if by_its_own { &to.own_gateways } else { from.planned(to) };
    let held: Vec<&Held> = view.iter().filter(|held| planned.contains(&held.address)).collect();
    let addresses = held.iter().map(|held| held.address.clone()).collect();
    let unfit: Option<Vec<String>> =
        held.iter().map(|held| Some(format!("`{}`: {}", held.address, held.unfit.as_ref()?))).collect();
    let (state, why) = match unfit {
        None => (EndpointState::Held, None),
        Some(unfit) if !unfit.is_empty() => {
            let why = format!("its proxy has no healthy endpoint for `{}`: {}", to.name, unfit.join(", "));
            (EndpointState::Unhealthy, Some(why))
        }
        Some(_) => {
            let wanted = planned.iter().map(|address| format!("`{address}`")).collect::<Vec<_>>().join(", ");
            let wanted = match (from.network == to.network, planned.is_empty()) {
                (true, _) => format!("its server {wanted} is missing"),
                (false, false) => format!("{wanted}, the way into `{}`, is missing", to.network),
                (false, true) => format!("no gateway leads into `{}`", to.network),
            };
            (EndpointState::Missing, Some(format!("its proxy has no endpoint for `{}`: {wanted}", to.name)))
        }
    };
    (Endpoints { state, addresses, reason: None }, why)
}

/// Whether a proxy's view lacks nothing that is planned, so that it need not be read again.
pub(crate) fn is_complete(from: &ExpectedCluster, expected: &Expected, view: &View) -> bool {
    expected.clusters.iter().all(|to| endpoints(from, to, view).1.is_none())
}

impl ExpectedCluster {
    /// Where its clients are to go for `to`.
    fn planned<'a>(&self, to: &'a ExpectedCluster) -> &'a BTreeSet<String> {
        if self.network == to.network { &to.servers } else { &to.gateways }
    }
}

fn pair(from: &ExpectedCluster, to: &ExpectedCluster, expected: &Expected, requests: &[Request], view: &View) -> Pair {
    let answered: Vec<&Request> =
        requests.iter().filter(|r| r.succeeded() && r.answered_by.as_ref() == Some(&to.name)).collect();
    let failed: Vec<&Request> = requests.iter().filter(|r| !r.succeeded()).collect();
    // A request that failed belongs to the cluster it was sent to, as far as the dialled address tells.
    let lost: Vec<&Request> = failed.iter().copied().filter(|r| was_meant_for(r, from, to, expected)).collect();
    let about_to = || answered.iter().chain(&lost).copied();

    let identities = count(about_to().filter_map(|r| r.identity.clone()));
    let direct = from.network == to.network;
    let hops = count(about_to().filter_map(|r| r.dialled.clone()));

    let (endpoints, lacking) = endpoints(from, to, view);
    let mut why: Vec<String> = lacking.into_iter().collect();
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
    let planned = from.planned(to);
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
        endpoints,
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
            own_gateways: BTreeSet::new(),
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

    fn held(addresses: &[&str]) -> View {
        Ok(addresses.iter().map(|address| Held { address: (*address).to_owned(), unfit: None }).collect())
    }

    const BOTH: [&str; 2] = ["127.16.1.1:5000", "127.32.0.16:15443"];

    fn from_east(requests: &[Request]) -> Vec<Pair> {
        let expected = expected();
        pairs(&expected.clusters[0], &expected, requests, &held(&BOTH))
    }

    #[test]
    fn what_the_proxy_has_decides_whatever_the_requests_say() {
        let expected = expected();
        let requests = [answered("east", BOTH[0]), answered("west", BOTH[1])];
        let ejected = Held { address: BOTH[1].into(), unfit: Some("failed_outlier_check".into()) };
        let own = Held { address: BOTH[0].into(), unfit: None };
        for (case, view, state, why) in [
            ("all", held(&BOTH), EndpointState::Held, ""),
            (
                "missing",
                held(&[BOTH[0], "127.32.1.1:5000"]),
                EndpointState::Missing,
                "its proxy has no endpoint for `west`: `127.32.0.16:15443`, the way into `net-west`, is missing",
            ),
            (
                "ejected",
                Ok(vec![own, ejected]),
                EndpointState::Unhealthy,
                "its proxy has no healthy endpoint for `west`: `127.32.0.16:15443`: failed_outlier_check",
            ),
            ("unread", Err("forbidden".into()), EndpointState::NotMeasured, ""),
        ] {
            let lines = pairs(&expected.clusters[0], &expected, &requests, &view);
            assert_eq!(lines[1].endpoints.state, state, "{case}");
            assert_eq!(lines[1].why.join("; "), why, "{case}");
            assert_eq!(lines[1].verdict == Verdict::Fail, !why.is_empty(), "{case}");
            assert_eq!(lines[0].verdict, Verdict::Pass, "{case}");
            assert_eq!(is_complete(&expected.clusters[0], &expected, &view), why.is_empty(), "{case}");
        }
        // A neighbour's gateway is the way to a cluster that has none of its own, and to no other.
        let mut two = expected.clone();
        two.clusters.push(cluster("west-2", "net-west", "127.48.1.1:5000", &["127.32.0.16:15443"]));
        let state =
            |expected: &Expected| pairs(&expected.clusters[0], expected, &requests, &held(&BOTH))[2].endpoints.state;
        assert_eq!(state(&two), EndpointState::Held);
        two.clusters[2].own_gateways = BTreeSet::from(["127.48.0.16:15443".to_owned()]);
        two.clusters[2].gateways.insert("127.48.0.16:15443".to_owned());
        assert_eq!(state(&two), EndpointState::Missing);

        let blind = &pairs(&expected.clusters[0], &expected, &requests, &Err("forbidden".into()))[0].endpoints;
        assert_eq!((blind.reason.as_deref(), blind.addresses.len()), (Some("forbidden"), 0));
        let direct = &pairs(&expected.clusters[0], &expected, &requests, &held(&[]))[0];
        assert_eq!(direct.why, ["its proxy has no endpoint for `east`: its server `127.16.1.1:5000` is missing"]);
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
