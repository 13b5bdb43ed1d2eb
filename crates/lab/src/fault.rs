//! What can go wrong on demand.

use serde::{Deserialize, Serialize};

/// A fault, or its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "fault")]
pub enum Fault {
    /// Everything of a cluster ends at once; [`Fault::Start`] brings it back from its storage.
    KillCluster {
        /// Which.
        cluster: String,
    },
    /// Starts a killed cluster.
    Start {
        /// Which.
        cluster: String,
    },
    /// Every container of a pod ends as by SIGKILL; the kubelet starts it again.
    KillPod {
        /// In which cluster.
        cluster: String,
        /// In which namespace.
        namespace: String,
        /// Which.
        pod: String,
    },
    /// The east-west gateway pods of a cluster are killed.
    KillGateway {
        /// Which cluster's.
        cluster: String,
    },
    /// A cluster, or all clusters of a network, is cut off from the others: connections hang, streams stall.
    Partition {
        /// The cluster's or the network's name.
        what: String,
    },
    /// Nothing that `from` sends reaches `to` any more, while the other direction goes on: connections that are open
    /// stall one way, and none is made, since TCP needs both directions for that.
    Cut {
        /// A cluster's or a network's name.
        from: String,
        /// A cluster's or a network's name.
        to: String,
    },
    /// What is sent between the two arrives later, in each direction: a round trip takes twice as much more.
    Delay {
        /// A cluster's or a network's name.
        from: String,
        /// A cluster's or a network's name.
        to: String,
        /// By how much, in milliseconds.
        delay_ms: u64,
        /// By how much that varies either way, in milliseconds.
        #[serde(default)]
        jitter_ms: u64,
        /// Only what `from` sends to `to`.
        #[serde(default)]
        one_way: bool,
    },
    /// A share of the segments between the two is lost. They are carried by TCP, which sends them again, so a loss is
    /// time (`stolos_serve::Gate::late` says how much), never missing bytes.
    Loss {
        /// A cluster's or a network's name.
        from: String,
        /// A cluster's or a network's name.
        to: String,
        /// How many of a hundred.
        percent: f64,
        /// Only what `from` sends to `to`.
        #[serde(default)]
        one_way: bool,
    },
    /// The API servers of a cluster, or of all clusters of a network, take connections from their own cluster and from
    /// this machine alone; others' are refused.
    Private {
        /// The cluster's or the network's name.
        what: String,
    },
    /// Whatever is wrong with links ends: partitions, cuts, delays, losses, private API servers.
    Heal {
        /// The cluster's or the network's name; everything if not said.
        what: Option<String>,
    },
}

impl Fault {
    /// The clusters and networks whose links it concerns.
    pub(crate) fn places(&self) -> impl Iterator<Item = &str> {
        let places = match self {
            Self::Partition { what } | Self::Private { what } => [Some(what), None],
            Self::Cut { from, to } | Self::Delay { from, to, .. } | Self::Loss { from, to, .. } => {
                [Some(from), Some(to)]
            }
            _ => [None, None],
        };
        places.into_iter().flatten().map(String::as_str)
    }

    /// Whether it says nothing any more once `newer` is said.
    pub(crate) fn is_replaced_by(&self, newer: &Self) -> bool {
        let both = |one_way: bool, from: &String, to: &String, newer: (&bool, &String, &String)| {
            let same = (from, to) == (newer.1, newer.2);
            let mirrored = (to, from) == (newer.1, newer.2);
            if *newer.0 { one_way && same } else { same || mirrored }
        };
        match (self, newer) {
            (Self::Delay { from, to, one_way, .. }, Self::Delay { from: f, to: t, one_way: o, .. })
            | (Self::Loss { from, to, one_way, .. }, Self::Loss { from: f, to: t, one_way: o, .. }) => {
                both(*one_way, from, to, (o, f, t))
            }
            _ => self == newer,
        }
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let way = |one_way: bool, from: &str, to: &str| {
            if one_way { format!("{from} → {to}") } else { format!("{from} ↔ {to}") }
        };
        match self {
            Self::Partition { what } => format!("{what} is cut off"),
            Self::Private { what } => format!("the API server of {what} is private"),
            Self::Cut { from, to } => format!("{}: cut", way(true, from, to)),
            Self::Delay { from, to, delay_ms, jitter_ms, one_way } => {
                let jitter = if *jitter_ms > 0 { format!(" ± {jitter_ms} ms") } else { String::new() };
                format!("{}: {delay_ms} ms{jitter} later", way(*one_way, from, to))
            }
            Self::Loss { from, to, percent, one_way } => format!("{}: {percent}% lost", way(*one_way, from, to)),
            Self::KillCluster { cluster } => format!("{cluster} is killed"),
            Self::KillGateway { cluster } => format!("the gateway of {cluster} is killed"),
            Self::KillPod { cluster, namespace, pod } => format!("pod {namespace}/{pod} of {cluster} is killed"),
            Self::Start { cluster } => format!("{cluster} is started"),
            Self::Heal { what } => format!("{} is healed", what.as_deref().unwrap_or("everything")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delay(from: &str, to: &str, one_way: bool) -> Fault {
        Fault::Delay { from: from.into(), to: to.into(), delay_ms: 50, jitter_ms: 10, one_way }
    }

    #[test]
    fn a_fault_is_said_once() {
        for (old, new, replaced) in [
            (delay("a", "b", false), delay("a", "b", false), true),
            (delay("a", "b", false), delay("b", "a", false), true),
            (delay("a", "b", true), delay("b", "a", false), true),
            (delay("a", "b", false), delay("a", "b", true), false),
            (delay("b", "a", true), delay("a", "b", true), false),
            (delay("a", "c", false), delay("a", "b", false), false),
            (delay("a", "b", false), Fault::Partition { what: "a".into() }, false),
            (Fault::Partition { what: "a".into() }, Fault::Partition { what: "a".into() }, true),
        ] {
            assert_eq!(old.is_replaced_by(&new), replaced, "{old:?} {new:?}");
        }
    }

    #[test]
    fn a_fault_in_words_and_on_the_wire() {
        assert_eq!(delay("east", "west", true).in_words(), "east → west: 50 ms ± 10 ms later");
        let loss = Fault::Loss { from: "a".into(), to: "b".into(), percent: 2.5, one_way: false };
        assert_eq!(loss.in_words(), "a ↔ b: 2.5% lost");
        let text = serde_json::to_string(&delay("a", "b", true)).unwrap();
        assert_eq!(text, r#"{"fault":"delay","from":"a","to":"b","delayMs":50,"jitterMs":10,"oneWay":true}"#);
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), delay("a", "b", true));
    }
}
