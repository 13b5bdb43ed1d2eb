//! Connections to members, and mirrors of what they hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use stolos_cluster::objects::Resource;
use stolos_serve::Stop;
use tokio_util::task::TaskTracker;

use super::execute::Applied;
use crate::member::Ways;
use crate::mirror::{Changed, Mirror};
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
                    self.tasks.spawn(Arc::clone(&mirror).run(self.client.clone(), self.stop.clone()));
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

/// What of a Cluster says how it is reached.
fn address(cluster: &Value) -> Value {
    let spec = &cluster["spec"];
    serde_json::json!([spec["apiEndpoint"], spec["insecureSkipTLSVerification"], spec["secretRef"], spec["syncMode"]])
}
