//! Connections to members, mirrors of what they hold, and what is known of each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;
use stolos_serve::Stop;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Hub;
use super::clusters::is_ready;
use super::execute::Applied;
use crate::evict::health;
use crate::member::Ways;
use crate::mirror::{self, Changed, Mirror};
use crate::model::{self, Cluster};
use crate::{Error, member};

/// Mirrors by kind, and by the labels that their objects have.
type Mirrors = HashMap<(Resource, Option<&'static str>), Arc<Mirror>>;

/// A member that the hub talks to. It is made anew when its address or credential changes.
pub(crate) struct Member {
    pub(crate) client: kube::Client,
    /// What it was made of.
    made_of: (Value, Option<Value>),
    mirrors: Mutex<Mirrors>,
    /// What was written to it, so that what is as it should be is not written again.
    books: Mutex<Applied>,
    stop: Stop,
    tasks: TaskTracker,
}

/// How long a mirror of a member may take to be complete.
const COMPLETE: Duration = Duration::from_secs(15);

impl Member {
    /// Makes a client by what the Cluster and its Secret say. Nothing is sent yet.
    pub(crate) fn connect(
        cluster: &Value,
        secret: &Value,
        ways: &Ways,
        stop: &Stop,
        tasks: &TaskTracker,
    ) -> Result<Self, Error> {
        let client = member::client(cluster, secret, ways)?;
        Ok(Self {
            client,
            made_of: (address(cluster), Some(secret["data"].clone())),
            mirrors: Mutex::default(),
            books: Mutex::default(),
            stop: stop.child(),
            tasks: tasks.clone(),
        })
    }

    /// Over a client that is there.
    #[cfg(test)]
    pub(super) fn over(client: kube::Client, stop: &Stop, tasks: &TaskTracker) -> Self {
        let (mirrors, books) = (Mutex::default(), Mutex::default());
        Self { client, made_of: (Value::Null, None), mirrors, books, stop: stop.child(), tasks: tasks.clone() }
    }

    /// Whether it is reached as these say.
    pub(crate) fn is_of(&self, cluster: &Value, secret: Option<&Value>) -> bool {
        self.made_of == (address(cluster), secret.map(|secret| secret["data"].clone()))
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Applied> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A mirror of a kind in the member, complete; it is begun with the first question.
    ///
    /// `None` where the member does not answer in time.
    pub(crate) async fn mirror(
        &self,
        resource: &Resource,
        labels: Option<&'static str>,
        changed: impl FnOnce() -> Box<Changed>,
    ) -> Option<Arc<Mirror>> {
        let mirror = {
            let mut mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
            match mirrors.get(&(resource.clone(), labels)) {
                Some(mirror) => Arc::clone(mirror),
                None => {
                    let changed = changed();
                    let mirror = Mirror::new(resource.clone(), None, labels, changed);
                    // What has no label of the hub's is there to be counted.
                    let old = if labels.is_some() { mirror::OLD } else { mirror::OLD_WHERE_COUNTED };
                    self.tasks.spawn(Arc::clone(&mirror).run(self.client.clone().into(), old, self.stop.clone()));
                    mirrors.insert((resource.clone(), labels), Arc::clone(&mirror));
                    mirror
                }
            }
        };
        mirror.ready(COMPLETE).await.then_some(mirror)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

impl Hub {
    pub(super) fn member(&self, name: &str) -> Option<Arc<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(super) fn put_member(&self, name: &str, member: Member) {
        self.members.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::new(member));
        self.stands_anew(name);
        self.queues.impersonate.add(name.to_owned());
        self.retry_works(name);
    }

    pub(super) fn forget_member(&self, name: &str) {
        self.members.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// A member is no longer the hub's.
    pub(super) fn forget(&self, name: &str) {
        self.forget_member(name);
        self.doubts().remove(name);
        self.answered().remove(name);
        self.read_clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// A member as a type; nothing of what cannot be read. It is read once for each revision: members say every few
    /// seconds how they are, and every binding asks for all of them.
    pub(super) fn cluster(&self, object: &Value) -> Option<Arc<Cluster>> {
        let (name, revision) = (meta::name(object), meta::resource_version(object));
        let mut read = self.read_clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, cluster)) = read.get(name)
            && known == revision
        {
            return Some(Arc::clone(cluster));
        }
        let cluster = Arc::new(model::read::<Cluster>(object).ok()?.0);
        read.insert(name.to_owned(), (revision.to_owned(), Arc::clone(&cluster)));
        Some(cluster)
    }

    pub(super) fn answered(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn doubts(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what a member has may be counted on: it is ready, and has said so itself just now.
    pub(super) fn hears(&self, cluster: &Value) -> bool {
        let name = meta::name(cluster);
        let answered = self.answered().get(name).map(Instant::elapsed);
        is_ready(cluster) && !self.doubts().contains_key(name) && health::heard(answered, &self.patience)
    }

    /// Whether a member's namespace of Works is there.
    pub(super) fn is_prepared(&self, cluster: &str) -> bool {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).contains(cluster)
    }

    /// A member's namespace of Works is there from now on: it gets the hub's namespaces.
    pub(super) fn prepare(&self, cluster: &str) {
        if self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.to_owned()) {
            for namespace in self.templates_of(|version, kind| (version, kind) == ("v1", "Namespace")) {
                self.queues.namespaces.add(meta::name(&namespace).to_owned());
            }
            self.retry_works(cluster);
        }
    }

    /// A member has become ready, is reached in another way, or leaves: all its Works are looked at.
    pub(super) fn retry_works(&self, cluster: &str) {
        for work in self.own.works.keys_of_namespace(&crate::name::execution_namespace(cluster)) {
            self.queues.works.add(work);
        }
    }
}

/// What of a Cluster says how it is reached.
fn address(cluster: &Value) -> Value {
    let spec = &cluster["spec"];
    let fields = ["apiEndpoint", "insecureSkipTLSVerification", "secretRef", "syncMode", "proxyURL"];
    fields.iter().map(|field| spec[*field].clone()).collect()
}
