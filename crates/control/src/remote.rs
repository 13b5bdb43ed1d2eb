//! Remote secrets: which clusters there are. Pure: what follows from a secret is returned, not done.

use std::collections::BTreeMap;

use crate::registry::{Change, Key};

/// What a remote secret says: kubeconfigs by cluster.
pub type Kubeconfigs = BTreeMap<String, Vec<u8>>;

/// What is to be done about a cluster.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Add {
        /// Its ID.
        cluster: String,
        /// The secret's `namespace/name`.
        secret: String,
        /// How to reach it.
        kubeconfig: Vec<u8>,
    },
    /// It is reached in another way now: the new way first, then the old one goes.
    Replace {
        /// Its ID.
        cluster: String,
        /// The secret's `namespace/name`.
        secret: String,
        /// How to reach it.
        kubeconfig: Vec<u8>,
    },
    /// It is no longer one of us.
    Remove {
        /// Its ID.
        cluster: String,
    },
    /// Somebody should know.
    Warn(String),
}

impl std::fmt::Debug for Action {
    /// Without the credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { cluster, secret, .. } => write!(f, "add {cluster} ({secret})"),
            Self::Replace { cluster, secret, .. } => write!(f, "replace {cluster} ({secret})"),
            Self::Remove { cluster } => write!(f, "remove {cluster}"),
            Self::Warn(text) => f.write_str(text),
        }
    }
}

/// The clusters by secret.
pub struct Remotes {
    own: String,
    secrets: BTreeMap<Key, Kubeconfigs>,
    /// Which secret each cluster is taken from.
    owners: BTreeMap<String, (Key, Vec<u8>)>,
}

impl Remotes {
    /// None yet. `own` is this control plane's cluster, which no secret may speak for.
    #[must_use]
    pub fn new(own: &str) -> Self {
        Self { own: own.to_owned(), secrets: BTreeMap::new(), owners: BTreeMap::new() }
    }

    /// What follows from a change of the secrets.
    pub fn apply(&mut self, change: Change<Kubeconfigs>) -> Vec<Action> {
        match change {
            Change::Set(key, kubeconfigs) => self.set(&key, kubeconfigs),
            Change::Gone(key) => self.set(&key, Kubeconfigs::new()),
            Change::All(all) => {
                let gone: Vec<_> = self.secrets.keys().filter(|key| !all.contains_key(*key)).cloned().collect();
                let mut actions: Vec<_> = gone.into_iter().flat_map(|key| self.set(&key, Kubeconfigs::new())).collect();
                actions.extend(all.into_iter().flat_map(|(key, kubeconfigs)| self.set(&key, kubeconfigs)));
                actions
            }
        }
    }

    fn set(&mut self, key: &Key, kubeconfigs: Kubeconfigs) -> Vec<Action> {
        let mut actions = Vec::new();
        let secret = format!("{}/{}", key.0, key.1);
        let before = self.secrets.remove(key).unwrap_or_default();
        for cluster in before.keys().filter(|cluster| !kubeconfigs.contains_key(*cluster)) {
            if self.owners.get(cluster).is_some_and(|(owner, _)| owner == key) {
                self.owners.remove(cluster);
                actions.push(Action::Remove { cluster: cluster.clone() });
            }
        }
        for (cluster, kubeconfig) in &kubeconfigs {
            let (cluster, kubeconfig) = (cluster.clone(), kubeconfig.clone());
            if cluster == self.own {
                actions.push(Action::Warn(format!("secret {secret}: {cluster} is this cluster; ignored")));
                continue;
            }
            match self.owners.get(&cluster) {
                Some((owner, _)) if owner != key => {
                    let text = format!(
                        "secret {secret}: {cluster} is already given by secret {}/{}; ignored",
                        owner.0, owner.1
                    );
                    actions.push(Action::Warn(text));
                }
                Some((_, same)) if *same == kubeconfig => {}
                known => {
                    let known = known.is_some();
                    self.owners.insert(cluster.clone(), (key.clone(), kubeconfig.clone()));
                    let secret = secret.clone();
                    actions.push(if known {
                        Action::Replace { cluster, secret, kubeconfig }
                    } else {
                        Action::Add { cluster, secret, kubeconfig }
                    });
                }
            }
        }
        if !kubeconfigs.is_empty() {
            self.secrets.insert(key.clone(), kubeconfigs);
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("istio-system".to_owned(), name.to_owned())
    }

    fn set(name: &str, clusters: &[(&str, &str)]) -> Change<Kubeconfigs> {
        let clusters = clusters.iter().map(|(id, config)| ((*id).to_owned(), config.as_bytes().to_vec()));
        Change::Set(key(name), clusters.collect())
    }

    #[test]
    fn secrets_add_change_and_remove_clusters() {
        let mut remotes = Remotes::new("own");
        let steps: [(Change<Kubeconfigs>, &str); 11] = [
            (set("a", &[("own", "k")]), "[secret istio-system/a: own is this cluster; ignored]"),
            (set("a", &[("east", "k1"), ("west", "k1")]), "[add east (istio-system/a), add west (istio-system/a)]"),
            (set("a", &[("east", "k1"), ("west", "k1")]), "[]"),
            (set("a", &[("east", "k2"), ("west", "k1")]), "[replace east (istio-system/a)]"),
            (
                set("b", &[("east", "k3")]),
                "[secret istio-system/b: east is already given by secret istio-system/a; ignored]",
            ),
            (Change::Gone(key("b")), "[]"),
            (set("a", &[("east", "k2")]), "[remove west]"),
            (set("c", &[("west", "k4")]), "[add west (istio-system/c)]"),
            (Change::Gone(key("a")), "[remove east]"),
            (
                Change::All([(key("d"), [("north".to_owned(), b"k".to_vec())].into())].into()),
                "[remove west, add north (istio-system/d)]",
            ),
            (Change::All(BTreeMap::new()), "[remove north]"),
        ];
        for (change, expected) in steps {
            assert_eq!(format!("{:?}", remotes.apply(change)), expected);
        }
    }
}
