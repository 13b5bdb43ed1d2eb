//! Replacing the root of a running mesh: which phase wants what of a cluster, and what a phase still waits for.
//!
//! ```text
//!   distribute ──► reissue ──► retire ──► done        the new root is trusted, then signs, then is the only one
//!       │             │
//!       └──► restore ◄┘ ──► withdraw ──► as before    the old root signs again, then is the only one
//! ```
//!
//! Before a phase ends, every control plane and every proxy of every cluster has been seen to have what the next one
//! needs (contract C.9). Nothing here looks or writes.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use stolos_pki::{CaCerts, CaFacts, Certificate, leads_to};

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Everybody is told to trust both roots; the old one signs.
    Distribute,
    /// The clusters get signing certificates of the new root, one after the other.
    Reissue,
    /// The old root is taken out. From here there is no way back.
    Retire,
    /// Taking back: clusters that have signing certificates of the new root get new ones of the old root.
    Restore,
    /// Taking back: the new root is taken out.
    Withdraw,
}

impl Phase {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Distribute => "distribute",
            Self::Reissue => "reissue",
            Self::Retire => "retire",
            Self::Restore => "restore",
            Self::Withdraw => "withdraw",
        }
    }

    /// What comes after it.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Distribute => Some(Self::Reissue),
            Self::Reissue => Some(Self::Retire),
            Self::Restore => Some(Self::Withdraw),
            Self::Retire | Self::Withdraw => None,
        }
    }

    /// Whether the way leads back to the old root.
    #[must_use]
    pub fn is_back(self) -> bool {
        matches!(self, Self::Restore | Self::Withdraw)
    }

    /// Whether the new root is the one that signs.
    #[must_use]
    pub fn new_signs(self) -> bool {
        matches!(self, Self::Reissue | Self::Retire)
    }

    /// What it does, in a few words.
    #[must_use]
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Distribute => "every cluster is told to trust both roots",
            Self::Reissue => "every cluster gets a signing certificate of the new root, one after the other",
            Self::Retire => "the old root is taken out",
            Self::Restore => "clusters that the new root signed for get signing certificates of the old one again",
            Self::Withdraw => "the new root is taken out",
        }
    }

    /// What is confirmed at its end, in a few words.
    #[must_use]
    pub fn gate(self) -> &'static str {
        match self {
            Self::Distribute => "every proxy trusts both roots",
            Self::Reissue => "every workload certificate leads to the new root",
            Self::Retire => "every proxy trusts the new root alone",
            Self::Restore => "every workload certificate leads to the old root",
            Self::Withdraw => "every proxy trusts the old root alone",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A rotation that has begun and not ended, as the state folder remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// Where it is.
    pub phase: Phase,
    /// SHA-256 of the old root, in hex.
    pub from: String,
    /// SHA-256 of the new root, in hex.
    pub to: String,
    /// When it began, RFC 3339.
    pub started_at: String,
}

/// Both roots.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The one that everybody trusted before.
    pub old: Certificate,
    /// The one that everybody is to trust.
    pub new: Certificate,
}

/// What a cluster's `cacerts` is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is as wanted.
    AsIs,
    /// Only `root-cert.pem` changes, to this.
    Roots(String),
    /// A new signing certificate, of the new root or of the old one, with this `root-cert.pem`.
    Issue {
        /// Whether the new root signs it.
        by_new: bool,
        /// `root-cert.pem`.
        roots: String,
    },
}

/// What `phase` wants of a cluster that has these files.
#[must_use]
pub fn wanted(phase: Phase, roots: &Roots, live: &CaCerts, facts: &CaFacts) -> Wanted {
    let Roots { old, new } = roots;
    let has = |root: &Certificate| facts.roots.contains(root);
    let signed_by = |root: &Certificate| {
        let mut shown = vec![facts.signing.clone()];
        shown.extend(Certificate::all_from_pem(&live.cert_chain).unwrap_or_default());
        leads_to(&shown, root)
    };
    // Below Istio 1.30 a new bundle must contain the old one as text (contract C.9), so what is there stays as it is.
    let both = || match (has(old), has(new)) {
        (true, true) => live.root_cert.clone(),
        (true, false) => ended(&live.root_cert) + &new.pem(),
        _ => old.pem() + &new.pem(),
    };
    match phase {
        Phase::Distribute if has(old) && has(new) => Wanted::AsIs,
        Phase::Distribute => Wanted::Roots(both()),
        Phase::Reissue if signed_by(new) && has(old) && has(new) => Wanted::AsIs,
        Phase::Reissue => Wanted::Issue { by_new: true, roots: both() },
        Phase::Restore if signed_by(old) => Wanted::AsIs,
        Phase::Restore => Wanted::Issue { by_new: false, roots: both() },
        Phase::Retire | Phase::Withdraw => {
            let root = if phase == Phase::Retire { new } else { old };
            if facts.roots == [root.clone()] { Wanted::AsIs } else { Wanted::Roots(root.pem()) }
        }
    }
}

fn ended(pem: &str) -> String {
    if pem.ends_with('\n') { pem.to_owned() } else { format!("{pem}\n") }
}

/// What was seen of the trust of one cluster, from the outside in: what is intended, what its control planes show and
/// publish, and what its proxies have.
#[derive(Clone, Debug, Default)]
pub struct ClusterTrust {
    /// The signing certificate of `cacerts`.
    pub signing: Option<Certificate>,
    /// Control planes by pod, with the chain that they show at 15012, or why it could not be seen.
    pub control_planes: Vec<(String, Result<Vec<Certificate>, String>)>,
    /// The roots in ConfigMap `istio-ca-root-cert`, by namespace.
    pub published: Vec<(String, Vec<Certificate>)>,
    /// The roots in `caBundle` of webhooks that call a control plane, by configuration.
    pub webhooks: Vec<(String, Vec<Certificate>)>,
    /// Proxies by `pod.namespace`, with what they have, or why it could not be seen.
    pub proxies: Vec<(String, Result<Held, String>)>,
    /// What could not be listed at all.
    pub unread: Vec<String>,
}

/// What one proxy shows and whom it trusts, from its own view.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its certificate, then what it sends along.
    pub chain: Vec<Certificate>,
    /// The roots it trusts.
    pub roots: Vec<Certificate>,
}

/// What still keeps `phase` from its end in one cluster, the nearest to the cause first; none, and it is confirmed.
#[must_use]
pub fn unmet(phase: Phase, roots: &Roots, seen: &ClusterTrust) -> Vec<String> {
    let Roots { old, new } = roots;
    let signer = if phase.new_signs() { new } else { old };
    let (need, alone): (Vec<&Certificate>, bool) = match phase {
        Phase::Distribute | Phase::Reissue => (vec![old, new], false),
        Phase::Restore => (vec![old], false),
        Phase::Retire => (vec![new], true),
        Phase::Withdraw => (vec![old], true),
    };
    let trusts = |have: &[Certificate]| -> Result<(), &'static str> {
        let lacks = |root: &Certificate| need.contains(&root) && !have.contains(root);
        match () {
            () if lacks(old) => Err("does not trust the old root"),
            () if lacks(new) => Err("does not trust the new root yet"),
            () if alone && have.contains(old) && need != [old] => Err("still trusts the old root"),
            () if alone && have.contains(new) && need != [new] => Err("still trusts the new root"),
            () => Ok(()),
        }
    };
    let mut unmet: Vec<String> = seen.unread.clone();
    for (pod, shown) in &seen.control_planes {
        match shown {
            Err(why) => unmet.push(format!("control plane {pod}: not measured ({why})")),
            Ok(chain) => {
                let serial = |c: &Certificate| c.serial().to_owned();
                let intended = seen.signing.as_ref().map(serial);
                let presents = intended.is_some_and(|intended| chain.iter().any(|c| serial(c) == intended));
                if !presents || !leads_to(chain, signer) {
                    unmet.push(format!("control plane {pod} does not sign by Secret cacerts as it is now"));
                }
            }
        }
    }
    let mut by_reason: Vec<(&'static str, Vec<&str>)> = Vec::new();
    let mut note = |reason: &'static str, who| match by_reason.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, all)) => all.push(who),
        None => by_reason.push((reason, vec![who])),
    };
    for (namespace, have) in &seen.published {
        if let Err(reason) = trusts(have) {
            note(published_reason(reason), namespace.as_str());
        }
    }
    for (webhook, have) in &seen.webhooks {
        // What a webhook's caller trusts beside is the control plane's affair: it must trust who signs now.
        if !have.contains(signer) || need.iter().any(|root| !have.contains(root)) {
            note("webhook whose caBundle is not there yet", webhook.as_str());
        }
    }
    for (proxy, held) in &seen.proxies {
        match held {
            Err(why) => unmet.push(format!("proxy {proxy}: not measured ({why})")),
            Ok(held) => match trusts(&held.roots) {
                Err(reason) => note(proxy_reason(reason), proxy.as_str()),
                Ok(()) if !leads_to(&held.chain, signer) => {
                    note("proxy whose certificate leads to the other root still", proxy.as_str());
                }
                Ok(()) => {}
            },
        }
    }
    unmet.extend(by_reason.into_iter().map(|(reason, who)| match who.as_slice() {
        [] => String::new(),
        [one] => format!("1 {reason} ({one})"),
        [first, rest @ ..] => format!("{} × {reason} ({first} and {} more)", who.len(), rest.len()),
    }));
    unmet
}

fn published_reason(reason: &'static str) -> &'static str {
    match reason {
        "does not trust the new root yet" => "namespace whose istio-ca-root-cert lacks the new root",
        "does not trust the old root" => "namespace whose istio-ca-root-cert lacks the old root",
        "still trusts the old root" => "namespace whose istio-ca-root-cert still has the old root",
        _ => "namespace whose istio-ca-root-cert still has the new root",
    }
}

fn proxy_reason(reason: &'static str) -> &'static str {
    match reason {
        "does not trust the new root yet" => "proxy that does not trust the new root yet",
        "does not trust the old root" => "proxy that does not trust the old root",
        "still trusts the old root" => "proxy that still trusts the old root",
        _ => "proxy that still trusts the new root",
    }
}

/// The fingerprints of some roots.
#[must_use]
pub fn fingerprints(roots: &[Certificate]) -> BTreeSet<String> {
    roots.iter().map(Certificate::fingerprint).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use stolos_pki::Authority;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    struct Both {
        old: Authority,
        new: Authority,
        now: SystemTime,
    }

    impl Both {
        fn new() -> Self {
            let now = SystemTime::now();
            // Of one name: that is what happens, since the organization stays.
            let [old, new] = [0, 1].map(|_| Authority::new_root("example.com", 10 * DAY, now).unwrap());
            Self { old, new, now }
        }

        fn roots(&self) -> Roots {
            Roots { old: self.old.certificate().clone(), new: self.new.certificate().clone() }
        }

        fn files(&self, by: &Authority, bundle: &str) -> CaCerts {
            let issued = by.issue_intermediate("east", "example.com", "cluster.local", DAY, self.now).unwrap();
            CaCerts { root_cert: bundle.to_owned(), ..issued }
        }
    }

    /// Every phase, done by hand as apply does it, leads to files that istiod takes, and wants nothing afterwards.
    #[test]
    fn a_phase_that_is_done_wants_nothing() {
        let both = Both::new();
        let (roots, now) = (both.roots(), both.now);
        let step = |phase: Phase, live: &CaCerts| -> CaCerts {
            let next = match wanted(phase, &roots, live, &live.check(now).unwrap()) {
                Wanted::AsIs => live.clone(),
                Wanted::Roots(root_cert) => CaCerts { root_cert, ..live.clone() },
                Wanted::Issue { by_new, roots } => both.files(if by_new { &both.new } else { &both.old }, &roots),
            };
            let facts = next.check(now).unwrap();
            assert_eq!(wanted(phase, &roots, &next, &facts), Wanted::AsIs, "{phase}");
            next
        };
        let start = both.files(&both.old, both.old.roots_pem());
        let distributed = step(Phase::Distribute, &start);
        assert!(distributed.root_cert.starts_with(&start.root_cert), "the old bundle is in it as text");
        let reissued = step(Phase::Reissue, &distributed);
        let retired = step(Phase::Retire, &reissued);
        assert_eq!(retired.check(now).unwrap().roots, std::slice::from_ref(&roots.new));
        for from in [&start, &distributed, &reissued] {
            let back = step(Phase::Withdraw, &step(Phase::Restore, from));
            assert_eq!(back.check(now).unwrap().roots, std::slice::from_ref(&roots.old));
        }
    }

    #[test]
    fn a_gate_says_who_is_missing() {
        let both = Both::new();
        let roots = both.roots();
        let bundle = [roots.old.clone(), roots.new.clone()];
        let held = |by: &Authority, trusted: &[Certificate]| {
            let leaf = by.sign_server(&["x".into()], &[], None, DAY, both.now).unwrap();
            Ok(Held { chain: leaf.chain().to_vec(), roots: trusted.to_vec() })
        };
        let istiod = both.old.sign_server(&["istiod".into()], &[], None, DAY, both.now).unwrap();
        let mut seen = ClusterTrust {
            signing: Some(istiod.leaf().clone()),
            control_planes: vec![("istiod-1".into(), Ok(istiod.chain().to_vec()))],
            published: vec![("sample".into(), bundle.to_vec()), ("default".into(), vec![roots.old.clone()])],
            webhooks: vec![("istio-sidecar-injector".into(), vec![roots.old.clone()])],
            proxies: vec![
                ("a.sample".into(), held(&both.old, &bundle)),
                ("b.sample".into(), held(&both.old, &bundle[..1])),
                ("c.sample".into(), held(&both.old, &bundle[..1])),
                ("d.sample".into(), Err("forbidden".into())),
            ],
            unread: vec![],
        };
        insta::assert_snapshot!(unmet(Phase::Distribute, &roots, &seen).join("\n"), @r"
        proxy d.sample: not measured (forbidden)
        1 namespace whose istio-ca-root-cert lacks the new root (default)
        1 webhook whose caBundle is not there yet (istio-sidecar-injector)
        2 × proxy that does not trust the new root yet (b.sample and 1 more)
        ");
        seen.published.truncate(1);
        seen.webhooks[0].1 = bundle.to_vec();
        seen.proxies.truncate(1);
        assert_eq!(unmet(Phase::Distribute, &roots, &seen), [""; 0]);
        insta::assert_snapshot!(unmet(Phase::Reissue, &roots, &seen).join("\n"), @r"
        control plane istiod-1 does not sign by Secret cacerts as it is now
        1 proxy whose certificate leads to the other root still (a.sample)
        ");
        let istiod = both.new.sign_server(&["istiod".into()], &[], None, DAY, both.now).unwrap();
        seen.signing = Some(istiod.leaf().clone());
        seen.control_planes[0].1 = Ok(istiod.chain().to_vec());
        seen.proxies[0].1 = held(&both.new, &bundle);
        assert_eq!(unmet(Phase::Reissue, &roots, &seen), [""; 0]);
        insta::assert_snapshot!(unmet(Phase::Retire, &roots, &seen).join("\n"), @r"
        1 namespace whose istio-ca-root-cert still has the old root (sample)
        1 proxy that still trusts the old root (a.sample)
        ");
    }
}
