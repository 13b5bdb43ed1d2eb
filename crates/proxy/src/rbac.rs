//! Who may do what: Envoy's RBAC, for connections and for requests. Pure.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range as Numbers;

use crate::matching::Range;
use crate::route::{Asked, HeaderMatch, Text};

/// One filter's rules.
#[derive(Debug)]
pub(crate) struct Rules {
    /// What becomes of what a policy matches: it is refused, or it alone is let in.
    pub(crate) deny: bool,
    pub(crate) policies: Vec<Policy>,
}

/// Something that some may do: one of the permissions and one of the principals must hold.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) permissions: Vec<Condition>,
    pub(crate) principals: Vec<Condition>,
}

/// What must hold.
#[derive(Debug)]
pub(crate) enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Always(bool),
    /// The peer has shown a certificate, with this identity if one is said.
    Peer(Option<Text>),
    Source(Range),
    Destination(Range),
    Ports(Numbers<u32>),
    ServerName(Text),
    Header(HeaderMatch),
    Path(Text),
}

/// What is known of a connection, and of a request on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) peer: Option<&'a str>,
    pub(crate) source: IpAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) server_name: &'a str,
    pub(crate) asked: Option<Asked<'a>>,
}

impl Condition {
    fn holds(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.holds(subject)),
            Self::Any(any) => any.iter().any(|one| one.holds(subject)),
            Self::Not(one) => !one.holds(subject),
            Self::Always(is) => *is,
            Self::Peer(name) => subject.peer.is_some_and(|peer| name.as_ref().is_none_or(|name| name.fits(peer))),
            Self::Source(range) => range.contains(subject.source),
            Self::Destination(range) => range.contains(subject.destination.ip()),
            Self::Ports(ports) => ports.contains(&u32::from(subject.destination.port())),
            Self::ServerName(name) => name.fits(subject.server_name),
            Self::Header(header) => subject.asked.is_some_and(|asked| header.fits(asked)),
            Self::Path(path) => subject.asked.is_some_and(|asked| path.fits(asked.path)),
        }
    }
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// By this policy, or because `none` allows it.
    Policy(String),
    /// Nothing is let in that way any more, not even a connection.
    Closed,
}

impl Refusal {
    /// The policy, as Envoy calls it.
    pub(crate) fn policy(&self) -> &str {
        match self {
            Self::Policy(name) => name,
            Self::Closed => "none",
        }
    }
}

/// Whether every filter lets the subject through, one after another.
pub(crate) fn judge(filters: &[Rules], subject: &Subject<'_>) -> Result<(), Refusal> {
    for rules in filters {
        let fits = |policy: &&Policy| {
            let any = |conditions: &[Condition]| conditions.iter().any(|one| one.holds(subject));
            any(&policy.permissions) && any(&policy.principals)
        };
        match (rules.policies.iter().find(fits), rules.deny) {
            (Some(policy), true) => return Err(Refusal::Policy(policy.name.clone())),
            (None, false) => return Err(Refusal::Policy("none".to_owned())),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    fn exact(text: &str) -> Text {
        Text::Exact(text.to_owned(), false)
    }

    fn rules(deny: bool, permission: Condition, principal: Condition) -> Rules {
        let policy = Policy { name: "one".into(), permissions: vec![permission], principals: vec![principal] };
        Rules { deny, policies: vec![policy] }
    }

    #[test]
    fn what_is_denied_is_refused_and_with_allowing_rules_all_else() {
        let headers = HeaderMap::new();
        let asked = |path| Asked {
            method: &Method::GET,
            authority: "shop.example.com",
            path,
            query: None,
            scheme: "http",
            headers: &headers,
        };
        let subject = |peer, path| Subject {
            peer,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2:8080".parse().unwrap(),
            server_name: "",
            asked: Some(asked(path)),
        };
        const SLEEP: &str = "spiffe://cluster.local/ns/sample/sa/sleep";
        let of_sleep = || Condition::Peer(Some(exact(SLEEP)));
        let always = || Condition::Always(true);
        let secret = || Condition::Path(Text::Prefix("/secret".to_owned(), false));
        let refused = |name: &str| Err(Refusal::Policy(name.to_owned()));
        let cases = [
            ("no filter", vec![], Some(SLEEP), "/", Ok(())),
            ("no rule allows", vec![Rules { deny: false, policies: vec![] }], Some(SLEEP), "/", refused("none")),
            ("no rule denies", vec![Rules { deny: true, policies: vec![] }], None, "/", Ok(())),
            ("allowed", vec![rules(false, always(), of_sleep())], Some(SLEEP), "/", Ok(())),
            ("plaintext", vec![rules(false, always(), of_sleep())], None, "/", refused("none")),
            (
                "plaintext is not `not sleep`'s match",
                vec![rules(false, always(), Condition::Peer(None))],
                None,
                "/",
                refused("none"),
            ),
            (
                "denied before allowed",
                vec![rules(true, secret(), always()), rules(false, always(), of_sleep())],
                Some(SLEEP),
                "/secret/a",
                refused("one"),
            ),
            (
                "neither denied nor allowed",
                vec![rules(true, secret(), always()), rules(false, always(), of_sleep())],
                Some("spiffe://cluster.local/ns/sample/sa/other"),
                "/",
                refused("none"),
            ),
            (
                "all parts must hold",
                vec![rules(
                    false,
                    Condition::All(vec![Condition::Ports(8080..8081), Condition::Not(Box::new(secret()))]),
                    Condition::Any(vec![
                        of_sleep(),
                        Condition::Source(Range::new("10.0.0.0".parse().unwrap(), 24).unwrap()),
                    ]),
                )],
                None,
                "/open",
                Ok(()),
            ),
        ];
        for (what, filters, peer, path, expected) in cases {
            assert_eq!(judge(&filters, &subject(peer, path)), expected, "{what}");
        }
        // A connection has no path: what is asked of one does not hold, and what must not be holds.
        let connection = Subject { asked: None, ..subject(None, "/secret") };
        assert_eq!(judge(&[rules(true, secret(), always())], &connection), Ok(()));
        assert_eq!(judge(&[rules(true, Condition::Not(Box::new(secret())), always())], &connection), refused("one"));
    }
}
