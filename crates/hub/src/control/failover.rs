//! What leaves a cluster because it is not well there: the decisions are [`crate::evict::application`]'s.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::Value;
use stolos_k8s::meta;

use super::Hub;
use super::evict::Turn;
use super::template::TemplateKey;
use crate::evict::application::{self, Failures};
use crate::mirror::{self, Mirror};
use crate::model::{Binding, Cluster};
use crate::place::{self, Outcome};
use crate::queue::{Again, Trouble};
use crate::{estimate, interpret, label, name};

/// How often it is looked whether something would take the place of a copy that stays: room comes and goes without anybody
/// saying so.
const LOOKED_AFTER: Duration = Duration::from_secs(60);

/// Whether a binding's policy says what happens to copies that are not well, or one has left.
pub(super) fn is_wanted(binding: &Value) -> bool {
    !binding["spec"]["failover"]["application"].is_null() || meta::annotation(binding, label::FAILED_IN).is_some()
}

/// Looks at the copies of one binding that are where they are to be.
pub(super) async fn look(
    hub: &Hub,
    mirror: &Mirror,
    object: &Value,
    binding: &Binding,
    (clusters, turn): (&[Arc<Cluster>], &mut Turn<'_>),
) -> Result<Again, Trouble> {
    if !is_wanted(object) {
        hub.forget_watch(object);
        return Ok(None);
    }
    let Some((_, template)) = hub.template(&TemplateKey::of_binding(object)) else { return Ok(None) };
    let now = jiff::Timestamp::now();
    let manifest = |cluster: &str| hub.told_apart(&template, cluster).ok().flatten();
    let mut failures = Failures::of(binding);
    // What an override keeps from being known for a while is not forgotten for that.
    for cluster in failures.clusters() {
        hub.told_apart(&template, cluster)?;
    }
    let over = failures.look(binding, &manifest, now);
    if failures != Failures::of(binding) {
        let mut after = object.clone();
        remember(&mut after, &failures);
        hub.change(mirror, object, &after).await?;
        return Ok(over);
    }
    let well = |cluster: &str| {
        let of = hub.own.clusters.get("", cluster)?;
        hub.hears(&of).then(|| manifest(cluster)).flatten()
    };
    let key = mirror::key(object);
    let (due, again, watch) = {
        let mut watches = hub.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = watches.entry(key.clone()).or_default();
        let (due, again) = watch.look(binding, &well, now);
        (due, again, watch.clone())
    };
    let mut again = [again, over].into_iter().flatten().min();
    let requirements = binding.spec.replica_requirements.as_ref();
    let room = |cluster: &Cluster| estimate::available(cluster, requirements);
    let staying: Vec<&Cluster> =
        clusters.iter().map(|it| &**it).filter(|it| it.metadata.deletion_timestamp.is_none()).collect();
    let place = |binding: &Binding| match place::place(binding, &staying, &room, hub.placing).outcome {
        Outcome::Placed { clusters, .. } => Ok(clusters),
        other => Err(other.message().to_owned()),
    };
    for cluster in due {
        match application::leave(binding, &watch, &cluster, &place, now) {
            Ok((change, failures)) => {
                if let Err(wait) = turn.ask(object, clusters) {
                    return Ok(Some(again.map_or(wait, |known| known.min(wait))));
                }
                let mut after = super::evict::changed(object, &change)?;
                remember(&mut after, &failures);
                hub.change(mirror, object, &after).await?;
                super::evict::tell(hub, object, &change.news, application::producer(binding));
                // What it is then is looked at anew.
                return Ok(None);
            }
            Err(stays) => {
                let mut watches = hub.watches.lock().unwrap_or_else(PoisonError::into_inner);
                if !watches.entry(key.clone()).or_default().told(&cluster) {
                    let text = format!("It is unhealthy in cluster {cluster} and stays there: {stays}.");
                    let template: &Value = &template;
                    for about in [object, template] {
                        hub.events.warning(
                            about,
                            application::producer(binding),
                            "EvictWorkloadFromClusterFailed",
                            text.as_str(),
                        );
                    }
                }
                again = Some(again.map_or(LOOKED_AFTER, |known| known.min(LOOKED_AFTER)));
            }
        }
    }
    Ok(again)
}

/// Writes where a workload has failed onto its binding.
fn remember(binding: &mut Value, failures: &Failures) {
    match failures.written() {
        Some(written) => meta::set_annotation(binding, label::FAILED_IN, &written),
        None => {
            if let Some(known) = binding["metadata"]["annotations"].as_object_mut() {
                known.remove(label::FAILED_IN);
            }
        }
    }
}

impl Hub {
    /// What tells what would go to a cluster from another manifest, whatever the number of its replicas; nothing of a cluster
    /// that is not the hub's.
    fn told_apart(&self, template: &Value, cluster: &str) -> Result<Option<String>, Trouble> {
        let Some(of) = self.own.clusters.get("", cluster) else { return Ok(None) };
        let mut manifest = interpret::manifest(template);
        interpret::revise(&mut manifest, 0);
        self.overridden(&mut manifest, &of)?;
        if let Some(fields) = manifest.as_object_mut() {
            fields.remove("metadata");
        }
        Ok(Some(name::fingerprint(&manifest)))
    }

    /// Nothing is known any more of a binding's copies.
    pub(super) fn forget_watch(&self, binding: &Value) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).remove(&mirror::key(binding));
    }
}
