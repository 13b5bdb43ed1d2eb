//! From what the agent has to what the proxy does.

use std::sync::Arc;

use stolos_xds::Snapshot;
use stolos_xds::envoy::config::core::v3::Node;
use stolos_xds::message::{self, CLUSTER, ENDPOINT, LISTENER, ROUTE};

use crate::agent::{AgentHandle, node_text};
use crate::metrics::Workload;
use crate::state::Store;

/// Hands every change of identity and configuration to the store, for as long as there is an agent.
pub(crate) async fn follow(agent: &AgentHandle, mut store: Store) {
    let (mut identity, mut resources) = (agent.identity(), agent.resources());
    let mut taken = Snapshot::default();
    loop {
        if let Some(new) = identity.borrow_and_update().clone() {
            store.set_identity(new);
        }
        loop {
            let wanted = resources.borrow_and_update().clone();
            take(&mut store, &taken, &wanted);
            taken = Snapshot::clone(&wanted);
            tokio::select! {
                changed = resources.changed() => if changed.is_err() { return std::future::pending().await },
                changed = identity.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return std::future::pending().await,
                },
            }
        }
    }
}

/// Takes over what differs, in the order in which nothing refers to what is not there.
fn take(store: &mut Store, old: &Snapshot, new: &Snapshot) {
    for type_url in [CLUSTER, ENDPOINT, LISTENER, ROUTE] {
        let Some(resources) = new.get(type_url) else { continue };
        let before = old.get(type_url);
        if before.is_some_and(|before| Arc::ptr_eq(before, resources)) {
            continue;
        }
        let known = |name: &str| before.and_then(|before| before.get(name));
        let changed: Vec<_> = resources
            .iter()
            .filter(|resource| known(&resource.name).is_none_or(|old| old.version != resource.version))
            .map(|resource| (resource.name.to_string(), resource.body.clone()))
            .collect();
        let gone = before.into_iter().flat_map(|before| before.iter());
        let gone = gone.filter(|old| resources.get(&old.name).is_none()).map(|old| old.name.to_string());
        // Each was judged before it came here; what is refused all the same has been logged and counted.
        let _ = store.update(type_url, &changed, &gone.collect::<Vec<_>>());
    }
}

/// Who the node says it is.
pub(crate) fn workload(node: &Node) -> Workload {
    let text = |path: &[&str]| Arc::<str>::from(node_text(node, path).unwrap_or_default());
    let labels = node.metadata.as_ref().map(|metadata| message::texts_at(metadata, &["LABELS"])).unwrap_or_default();
    let label = |names: &[&str]| {
        let value = names.iter().find_map(|name| labels.get(*name)).map(String::as_str);
        Arc::<str>::from(value.unwrap_or_default())
    };
    Workload {
        name: text(&["WORKLOAD_NAME"]),
        namespace: text(&["NAMESPACE"]),
        service: label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]),
        revision: label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]),
        cluster: text(&["CLUSTER_ID"]),
        app: label(&["app"]),
        version: label(&["version"]),
    }
}
