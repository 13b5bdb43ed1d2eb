//! Who may be acted for in a member is kept as the hub's own roles say ([`member::Names`]): in the ClusterRole of the account
//! by which the hub passes others' requests on.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, header};
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use stolos_serve::because;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Hub;
use super::clusters::is_ready;
use crate::member::{self, CREDENTIALS, Came, Let, Names};
use crate::name;
use crate::proxy::Caller;
use crate::queue::{Again, Trouble};

const FROM: &str = "unified-auth-controller";
/// The rules are the hub's; all else of the role belongs to whoever joined the member.
const MANAGER: &str = "stolos-hub-impersonation";
/// How often the role is put right, should somebody have changed it.
const AGAIN: Duration = Duration::from_secs(300);
/// How soon a member is asked again that lets nobody change it.
const REFUSED: Duration = Duration::from_secs(60);
/// How long somebody waits who comes for the first time.
const ADMITTED: Duration = Duration::from_secs(5);
/// How long a member may take until its own servers know of a change, and how often one is asked.
const KNOWN: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(20));

/// What is known of one member.
#[derive(Default)]
pub(super) struct Standing {
    came: Came,
    /// What the role in the member says, and since when.
    told: Option<(Names, Instant)>,
    /// It does not let the hub's account change the role: it joined before there was that right.
    refused: bool,
    /// Its turns, for those who wait.
    turns: watch::Sender<u64>,
}

impl Standing {
    /// Whether these may be acted for, as far as the hub can see to that.
    fn has(&self, names: &Names) -> bool {
        self.refused || self.told.as_ref().is_some_and(|(told, _)| told.has(names))
    }
}

type Standings = std::collections::BTreeMap<String, Standing>;

/// Looks at one member.
pub(super) async fn look(hub: Arc<Hub>, name: String) -> Result<Again, Trouble> {
    let cluster = hub.own.clusters.get("", &name).filter(|it| meta::deletion_timestamp(it).is_none());
    let Some(cluster) = cluster else {
        hub.standings().remove(&name);
        return Ok(None);
    };
    let by = hub.secret(CREDENTIALS, &name::impersonator(&name));
    let (Some(member), Some(by)) = (hub.member(&name), by) else { return Ok(None) };
    // It is looked at when it is back.
    if !is_ready(&cluster) {
        return Ok(None);
    }
    let (roles, bindings) = hub.roles();
    let all = Let::of(&name, &roles, &bindings);
    let mut names = Names::of(&all);
    let before = {
        let mut standings = hub.standings();
        let standing = standings.entry(name.clone()).or_default();
        standing.came.add_to(&mut names, &all, Instant::now());
        standing.told.clone()
    };
    if before.as_ref().is_some_and(|(told, when)| *told == names && when.elapsed() < AGAIN) {
        return Ok(Some(AGAIN));
    }
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": member::impersonator_role(&name)}, "rules": names.rules()});
    let kind = Resource::of(&role)?;
    match objects::apply(&member.client, &kind, &role, MANAGER, true).await {
        Ok(_) => {}
        Err(error) if error.is_forbidden() => {
            let again = format!("joining again (`stolos hub join {name}`, `stolos agent {name}`) gives it that right");
            let first = !std::mem::replace(&mut hub.standings().entry(name.clone()).or_default().refused, true);
            if first {
                let text = format!("Sync impersonation config failed: {}; {again}", because(&error));
                hub.events.warning(&cluster, FROM, "SyncImpersonationConfigFailed", text);
            }
            hub.turn(&name);
            return Ok(Some(REFUSED));
        }
        Err(error) => {
            let text = format!("Sync impersonation config failed: {}", because(&error));
            hub.events.warning(&cluster, FROM, "SyncImpersonationConfigFailed", text);
            return Err(error.into());
        }
    }
    let had = before.map(|(told, _)| told);
    if had.as_ref() != Some(&names) {
        let secret = member_secret(&hub, &name)?;
        let client = member::client_by(&cluster, &secret, &by, &hub.ways)?;
        let new: Vec<_> =
            names.each().filter(|one| had.as_ref().is_none_or(|had| !had.each().any(|old| old == *one))).collect();
        known(&client, &new).await;
        hub.events.normal(&cluster, FROM, "SyncImpersonationConfigSucceed", "Sync impersonation config succeed.");
    }
    {
        let mut standings = hub.standings();
        let standing = standings.entry(name.clone()).or_default();
        (standing.told, standing.refused) = (Some((names, Instant::now())), false);
    }
    hub.turn(&name);
    Ok(Some(AGAIN))
}

fn member_secret(hub: &Hub, name: &str) -> Result<Arc<Value>, Trouble> {
    hub.secret(CREDENTIALS, name).ok_or_else(|| "its credential is gone".into())
}

/// Waits until a member's own authorization knows that the last of these may be acted for; not for ever, as it is the member
/// that decides.
async fn known(client: &kube::Client, new: &[(&'static str, &str)]) {
    let Some((resource, name)) = new.last() else { return };
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "impersonate", "resource": resource, "name": name}}});
    let (patience, pause) = KNOWN;
    let waiting = async {
        loop {
            let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
                .header(header::CONTENT_TYPE, "application/json")
                .body(review.to_string().into_bytes());
            let Ok(request) = request else { return };
            match client.request::<Value>(request).await {
                Ok(answer) if answer["status"]["allowed"] != true => tokio::time::sleep(pause).await,
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(patience, waiting).await;
}

impl Hub {
    /// A member is reached in another way: it may have been joined again, with a role that has nothing in it.
    pub(super) fn stands_anew(&self, name: &str) {
        if let Some(standing) = self.standings().get_mut(name) {
            (standing.told, standing.refused) = (None, false);
        }
    }

    fn standings(&self) -> MutexGuard<'_, Standings> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hub's own roles, and who has them.
    fn roles(&self) -> (Vec<Arc<Value>>, Vec<Arc<Value>>) {
        let of = |wanted: &str| {
            self.templates_of(|version, kind| version == "rbac.authorization.k8s.io/v1" && kind == wanted)
        };
        (of("ClusterRole"), of("ClusterRoleBinding"))
    }

    /// Those who wait for a member look again.
    fn turn(&self, member: &str) {
        if let Some(standing) = self.standings().get(member) {
            standing.turns.send_modify(|turns| *turns = turns.wrapping_add(1));
        }
    }

    /// Roles have changed: who may be acted for is looked at everywhere.
    pub(super) fn roles_changed(&self) {
        for cluster in self.own.clusters.list() {
            self.queues.impersonate.add(meta::name(&cluster).to_owned());
        }
    }

    /// Somebody whom the hub lets through to a member: returns when they may be acted for there, or that has taken too long.
    pub(crate) async fn admit(&self, member: &str, caller: &Caller) {
        // One that is away answers nobody.
        if !self.cluster_object(member).is_some_and(|cluster| is_ready(&cluster)) {
            return;
        }
        let mut needed = Names::default();
        needed.add(caller);
        let mut turns = {
            let mut standings = self.standings();
            let standing = standings.entry(member.to_owned()).or_default();
            if standing.has(&needed) {
                return;
            }
            standing.turns.subscribe()
        };
        let (roles, bindings) = self.roles();
        let all = Let::of(member, &roles, &bindings);
        self.standings().entry(member.to_owned()).or_default().came.put(caller, &all, Instant::now());
        self.queues.impersonate.add(member.to_owned());
        let waiting = async {
            while turns.changed().await.is_ok() {
                if self.standings().get(member).is_none_or(|standing| standing.has(&needed)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(ADMITTED, waiting).await;
    }
}
