//! ClusterRoles that are made of others: `aggregationRule`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::access::CLUSTER_ROLES;
use crate::api::Api;
use crate::rules;
use crate::verb::{self, How};

/// The rules of the roles that `role` selects, in the order of its selectors and their names; none twice.
///
/// `None` when it selects none by rule, so that its rules are its own.
pub(super) fn gathered<'a>(role: &Value, all: impl Iterator<Item = &'a Value> + Clone) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let mut gathered: Vec<&Value> = Vec::new();
    for selector in selectors {
        // The cache lists by name.
        for other in all.clone().filter(|other| meta::name(other) != meta::name(role)) {
            if !rules::label_selector_matches(selector, &other["metadata"]["labels"]) {
                continue;
            }
            for rule in other["rules"].as_array().into_iter().flatten() {
                if !gathered.contains(&rule) {
                    gathered.push(rule);
                }
            }
        }
    }
    Some(json!(gathered))
}

fn differs(role: &Value, wanted: &Value) -> bool {
    role["rules"] != *wanted && !(role["rules"].is_null() && *wanted == json!([]))
}

/// Keeps every such role as what it gathers, until the server stops.
pub(crate) async fn run(api: Arc<Api>) {
    let cache = api.state.cache(CLUSTER_ROLES);
    let mut changed = cache.subscribe();
    loop {
        changed.borrow_and_update();
        let mut failed = false;
        let roles = cache.list("");
        for role in &roles {
            let Some(wanted) = gathered(&role.value, roles.iter().map(|role| &*role.value)) else { continue };
            if !differs(&role.value, &wanted) {
                continue;
            }
            let table = api.registry.table();
            let Some(resource) = table.find_stored(CLUSTER_ROLES) else { continue };
            let (place, how) = (("", meta::name(&role.value), ""), How::internal());
            let change = verb::change(&api, resource, place, &how, |now| {
                let mut new = now.clone();
                new["rules"] = wanted.clone();
                Ok(new)
            });
            if let Err(failure) = change.await {
                tracing::debug!(role = place.1, %failure, "cannot gather the rules of a role");
                failed = true;
            }
        }
        let again = tokio::time::sleep(Duration::from_secs(1));
        tokio::select! {
            () = api.stop.asked() => return,
            _ = changed.changed() => {}
            () = again, if failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_gathers_what_its_selectors_choose_once() {
        let role = |name: &str, label: &str, resources: &[&str]| {
            let rules: Vec<Value> = resources
                .iter()
                .map(|resource| json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]}))
                .collect();
            json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules})
        };
        let all = [role("a", "x", &["pods", "secrets"]), role("b", "y", &["pods", "nodes"]), role("c", "z", &["jobs"])];
        let gathering = json!({"metadata": {"name": "g"}, "aggregationRule": {"clusterRoleSelectors": [
            {"matchLabels": {"y": "true"}}, {"matchExpressions": [{"key": "x", "operator": "Exists"}]}]}});
        let found = gathered(&gathering, all.iter()).unwrap();
        let found: Vec<_> = found.as_array().unwrap().iter().map(|rule| rule["resources"][0].clone()).collect();
        assert_eq!(found, ["pods", "nodes", "secrets"]);
        assert_eq!(gathered(&all[0], all.iter()), None);
    }
}
