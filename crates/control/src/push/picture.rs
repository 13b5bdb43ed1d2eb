//! What one proxy is sent: what it shares with others, and what comes in to its own workload.

use std::sync::Arc;

use stolos_xds::{Resource, Resources, Snapshot, message};

use super::describe::pod_of;
use super::groups::{Group, Groups};
use crate::model::{ClusterView, PodFacts, ProxyInfo, ProxyKind, Settings, World};
use crate::policy::Policies;
use crate::translate::{clusters, inbound, listeners};

/// What a proxy is sent, and what it was made of.
#[derive(Clone)]
pub(super) struct Built {
    from: From,
    group: Arc<Group>,
    own: Arc<Own>,
    clusters: Arc<Resources>,
    listeners: Arc<Resources>,
    /// All of it. As long as nothing of it changes, this is the same `Arc`, whatever becomes of the picture.
    pub(super) snapshot: Arc<Snapshot>,
}

/// What comes in to a proxy depends on these. Not the picture itself: a proxy that nothing concerns would keep an old one
/// alive.
#[derive(Clone)]
struct From {
    info: Arc<ProxyInfo>,
    pod: Option<Arc<PodFacts>>,
    services: Option<Arc<ClusterView>>,
    policies: Arc<Policies>,
    settings: Arc<Settings>,
}

impl From {
    fn is_same(&self, other: &Self) -> bool {
        let same_services = match (&self.services, &other.services) {
            (Some(a), Some(b)) => Arc::ptr_eq(&a.services, &b.services),
            (None, None) => true,
            _ => false,
        };
        same_services
            && (Arc::ptr_eq(&self.info, &other.info) || *self.info == *other.info)
            && self.pod == other.pod
            && Arc::ptr_eq(&self.policies, &other.policies)
            && Arc::ptr_eq(&self.settings, &other.settings)
    }
}

/// A proxy's own resources.
#[derive(Default)]
struct Own {
    clusters: Vec<Arc<Resource>>,
    listeners: Vec<Arc<Resource>>,
}

/// What a proxy is sent at the picture of `groups`; `before` is what it was sent of the picture before.
pub(super) fn build(info: &Arc<ProxyInfo>, groups: &mut Groups, before: Option<&Built>) -> Built {
    let world = Arc::clone(groups.world());
    let group = groups.of(info);
    let from = From {
        info: Arc::clone(info),
        pod: pod_of(info, &world).cloned(),
        services: world.cluster(&info.cluster).cloned(),
        policies: Arc::clone(&world.policies),
        settings: Arc::clone(&world.settings),
    };
    let same = before.filter(|built| built.from.is_same(&from));
    let own = match same {
        Some(built) => Arc::clone(&built.own),
        None => Arc::new(own(&world, info)),
    };
    // A part whose pieces are the same is the same `Arc`, so that the server need not look into it.
    let reuse = same.filter(|built| {
        let (old, new) = (&built.group.outward, &group.outward);
        Arc::ptr_eq(&old.clusters, &new.clusters) && Arc::ptr_eq(&old.listeners, &new.listeners)
    });
    let with = |all: &Arc<Resources>, own: &[Arc<Resource>]| {
        let mut all = Arc::clone(all);
        for resource in own {
            Arc::make_mut(&mut all).insert(Arc::clone(resource));
        }
        all
    };
    let (clusters, listeners) = match reuse {
        Some(built) => (Arc::clone(&built.clusters), Arc::clone(&built.listeners)),
        None => (with(&group.outward.clusters, &own.clusters), with(&group.outward.listeners, &own.listeners)),
    };
    let snapshot = {
        let types = [
            (message::CLUSTER, Some(&clusters)),
            (message::ENDPOINT, Some(&group.endpoints)),
            (message::LISTENER, Some(&listeners)),
            (message::ROUTE, Some(&group.outward.routes)),
            (message::NAME_TABLE, group.outward.names.as_ref()),
        ];
        let types = || types.iter().filter_map(|(type_url, resources)| Some((*type_url, (*resources)?)));
        let is_same = |snapshot: &Snapshot| {
            types().all(|(type_url, now)| snapshot.get(type_url).is_some_and(|have| Arc::ptr_eq(have, now)))
        };
        match before.map(|built| &built.snapshot) {
            Some(snapshot) if is_same(snapshot) => Arc::clone(snapshot),
            Some(snapshot) => Arc::new(snapshot.at(world.version.to_string(), types())),
            None => Arc::new(Snapshot::default().at(world.version.to_string(), types())),
        }
    };
    Built { from, group, own, clusters, listeners, snapshot }
}

impl Built {
    /// Goes on to the picture of `groups` where only endpoints are others; `None` if more is.
    ///
    /// `version` is the picture's, as a text that all share.
    pub(super) fn follow(&self, info: &Arc<ProxyInfo>, groups: &Groups, version: &Arc<str>) -> Option<Self> {
        if !Arc::ptr_eq(info, &self.from.info) {
            return None;
        }
        let group = groups.became(&self.group)?;
        let snapshot = if Arc::ptr_eq(&group.endpoints, &self.group.endpoints) {
            Arc::clone(&self.snapshot)
        } else {
            Arc::new(self.snapshot.at(Arc::clone(version), [(message::ENDPOINT, &group.endpoints)]))
        };
        Some(Self { group, snapshot, ..self.clone() })
    }
}

fn own(world: &World, info: &ProxyInfo) -> Own {
    if info.kind == ProxyKind::Router {
        return Own::default();
    }
    let clusters = clusters::fixed(info).into_iter().chain(inbound::clusters(world, info));
    Own {
        clusters: clusters.map(|cluster| Arc::new(Resource::of(&cluster))).collect(),
        listeners: [listeners::virtual_outbound(world, info), inbound::listener(world, info)]
            .iter()
            .map(|listener| Arc::new(Resource::of(listener)))
            .collect(),
    }
}
