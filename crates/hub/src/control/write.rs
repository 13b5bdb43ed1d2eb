//! How the hub writes objects of mirrored kinds: what has been written is seen at once.

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::Hub;
use crate::MANAGER;
use crate::mirror::{self, Key, Mirror};

/// The time as Kubernetes writes it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The merge patch (RFC 7386) that makes `after` of `before`.
pub(super) fn difference(before: &Value, after: &Value) -> Value {
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else { return after.clone() };
    let mut patch = serde_json::Map::new();
    for (field, value) in new {
        match old.get(field) {
            Some(known) if known == value => {}
            Some(known) if known.is_object() && value.is_object() => {
                patch.insert(field.clone(), difference(known, value));
            }
            _ => {
                patch.insert(field.clone(), value.clone());
            }
        }
    }
    patch.extend(old.keys().filter(|field| !new.contains_key(*field)).map(|field| (field.clone(), Value::Null)));
    patch.into()
}

impl Hub {
    /// Merges a patch into an object of a mirrored kind.
    pub(super) async fn merge(
        &self,
        mirror: &Mirror,
        key: &Key,
        patch: &Value,
        status: bool,
    ) -> Result<Arc<Value>, stolos_cluster::Error> {
        let place = (key.0.as_str(), key.1.as_str());
        Ok(mirror.take_written(self.keeper.merge(&mirror.resource, place, patch, status, MANAGER).await?))
    }

    /// Makes `after` of an object of a mirrored kind, if nobody else has changed it; what it is then.
    pub(super) async fn change(
        &self,
        mirror: &Mirror,
        before: &Value,
        after: &Value,
    ) -> Result<Arc<Value>, stolos_cluster::Error> {
        let mut patch = difference(before, after);
        patch["metadata"]["resourceVersion"] = meta::resource_version(before).into();
        self.merge(mirror, &mirror::key(before), &patch, false).await
    }

    /// Takes the hub's finalizer off an object that is on its way out: the last that the hub has to do with it.
    pub(super) async fn let_go(
        &self,
        mirror: &Mirror,
        object: &Value,
        finalizer: &str,
    ) -> Result<(), stolos_cluster::Error> {
        let left: Vec<_> = meta::finalizers(object).into_iter().filter(|known| *known != finalizer).collect();
        let mut free = object.clone();
        free["metadata"]["finalizers"] = json!(left);
        self.change_if_there(mirror, object, &free).await
    }

    /// Makes `after` of an object of a mirrored kind like [`Hub::change`]; nothing where it is gone.
    pub(super) async fn change_if_there(
        &self,
        mirror: &Mirror,
        before: &Value,
        after: &Value,
    ) -> Result<(), stolos_cluster::Error> {
        match self.change(mirror, before, after).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Merges a patch into a member's Cluster.
    pub(super) async fn merge_cluster(&self, name: &str, patch: &Value) -> Result<Arc<Value>, stolos_cluster::Error> {
        self.merge(&self.own.clusters, &(String::new(), name.to_owned()), patch, false).await
    }

    /// Writes the status of an object of a mirrored kind where it differs, if nobody else has changed the object: parts
    /// of it are lists, which would undo each other's entries. Whether it differed.
    pub(super) async fn put_status(
        &self,
        mirror: &Mirror,
        object: &Value,
        status: &Value,
    ) -> Result<bool, stolos_cluster::Error> {
        let part = |status: &Value| json!({"status": status});
        let mut patch = difference(&part(&object["status"]), &part(status));
        if patch["status"].as_object().is_none_or(serde_json::Map::is_empty) {
            return Ok(false);
        }
        patch["metadata"] = json!({"resourceVersion": meta::resource_version(object)});
        match self.merge(mirror, &mirror::key(object), &patch, true).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(true),
        }
    }

    /// Creates an object of a mirrored kind.
    pub(super) async fn create(&self, mirror: &Mirror, object: &Value) -> Result<Arc<Value>, stolos_cluster::Error> {
        Ok(mirror.take_written(self.keeper.create(&mirror.resource, object, MANAGER).await?))
    }

    /// Replaces an object of a mirrored kind.
    pub(super) async fn replace(&self, mirror: &Mirror, object: &Value) -> Result<Arc<Value>, stolos_cluster::Error> {
        Ok(mirror.take_written(self.keeper.replace(&mirror.resource, object, MANAGER).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_the_patch_from_one_to_the_other() {
        let before = json!({"a": {"x": 1, "y": 2}, "b": [1], "c": "gone"});
        let after = json!({"a": {"x": 1, "z": 3}, "b": [1, 2], "d": {"new": {}}});
        let patch = difference(&before, &after);
        assert_eq!(patch, json!({"a": {"y": null, "z": 3}, "b": [1, 2], "c": null, "d": {"new": {}}}));
        assert_eq!(stolos_k8s::patch::merge(&before, &patch), after);
        assert_eq!(difference(&after, &after), json!({}));
    }
}
