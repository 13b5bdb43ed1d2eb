//! Why a template is where it is: the policy, each cluster with its reason, who got the last replica, and what would change
//! it. A value to print or to write as JSON; it repeats what [`choose`](crate::choose) and [`place`](crate::place) decided and
//! decides nothing itself.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_k8s::meta;

use crate::choose::{Choice, Match, Other, called, choose};
use crate::divide::{Candidate, Division, Movement, NameOrder, Strategy};
use crate::estimate::available;
use crate::evict::application::outlook;
use crate::interpret::replicas;
use crate::model::{Binding, Cluster, ObjectReference, PropagationPolicy, TargetCluster};
use crate::place::{Attempt, Decision, Outcome, Settings, Verdict, place};

/// The explanation of one template's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// As `Deployment shop/web`.
    pub template: String,
    /// The policy it follows.
    pub policy: Option<Followed>,
    /// Its rank among bindings that wait, where its policy gives it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// How its place was decided.
    pub decision: Option<Decision>,
    /// What is on its way there, and what it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub under_way: Vec<String>,
    /// What would change it.
    pub changes: Vec<String>,
}

/// The policy that a template follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Followed {
    /// With its kind.
    pub policy: String,
    /// How exactly it selects the template.
    pub matched: Match,
    /// It had the template before.
    pub claimed: bool,
    /// The others that select it, and why they do not have it.
    pub others: Vec<Other>,
}

/// Explains a template's place.
#[must_use]
pub fn why(template: &ObjectReference, choice: Option<&Choice<'_>>, decision: Option<&Decision>) -> Why {
    let ObjectReference { kind, namespace, name, .. } = template;
    let policy = choice.map(|choice| Followed {
        policy: called(choice.policy),
        matched: choice.matched,
        claimed: choice.claimed,
        others: choice.others.clone(),
    });
    let mut changes = Vec::new();
    if policy.is_none() {
        changes.push(format!("a PropagationPolicy whose resourceSelectors mean this {kind}"));
    }
    if let Some(decision) = decision {
        changes.extend(what_would_change(decision));
    }
    Why {
        template: match namespace.as_str() {
            "" => format!("{kind} {name}"),
            namespace => format!("{kind} {namespace}/{name}"),
        },
        policy,
        priority: None,
        decision: decision.cloned(),
        under_way: Vec::new(),
        changes,
    }
}

/// Explains the place of a template of a hub by what there is in it: its binding, or one as it would be; all policies; all
/// members. It is decided anew, now; for what is settled that is where it is.
#[must_use]
pub fn explain(
    template: &Value,
    binding: Option<&Binding>,
    policies: &[PropagationPolicy],
    clusters: &[Cluster],
    settings: Settings,
) -> Why {
    let choice = choose(template, policies, settings.algorithm, true);
    let made = choice.as_ref().map(|choice| unbound(template, choice.policy));
    let binding = binding.or(made.as_ref());
    let decision = binding.filter(|binding| binding.spec.placement.is_some()).map(|binding| {
        let requirements = binding.spec.replica_requirements.as_ref();
        place(binding, clusters, &|cluster| available(cluster, requirements), settings)
    });
    let resource = reference(template);
    let mut why = why(&resource, choice.as_ref(), decision.as_ref());
    why.priority = binding.and_then(|binding| binding.spec.schedule_priority.as_ref()).map(|it| it.priority);
    why.under_way = binding.map(under_way).unwrap_or_default();
    if let Some(binding) = binding {
        let requirements = binding.spec.replica_requirements.as_ref();
        let decide =
            |binding: &Binding| match place(binding, clusters, &|cluster| available(cluster, requirements), settings)
                .outcome
            {
                Outcome::Placed { clusters, .. } => Ok(clusters),
                other => Err(other.message().to_owned()),
            };
        why.under_way.extend(outlook(binding, &decide));
    }
    for by in binding.iter().flat_map(|binding| &binding.spec.required_by) {
        let clusters: Vec<&str> = by.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        why.changes.push(format!("where {} goes, which needs it: {}", by.name, clusters.join(", ")));
    }
    why
}

/// Which copies are leaving, and what is waited for before one becomes smaller, as the hub said it last.
fn under_way(binding: &Binding) -> Vec<String> {
    let leaving = binding.spec.graceful_eviction_tasks.iter().map(|task| {
        let since = task.creation_timestamp.map(|since| format!(" since {since}")).unwrap_or_default();
        format!("{} is being left{since}: {}", task.from_cluster, task.message)
    });
    let waits = binding.status.conditions.iter().filter(|it| it.type_ == "Settled" && it.status == "False");
    leaving.chain(waits.flat_map(|it| it.message.split("; ").map(str::to_owned))).collect()
}

fn reference(template: &Value) -> ObjectReference {
    ObjectReference {
        api_version: meta::api_version(template).to_owned(),
        kind: meta::kind(template).to_owned(),
        namespace: meta::namespace(template).to_owned(),
        name: meta::name(template).to_owned(),
        uid: meta::uid(template).to_owned(),
        resource_version: String::new(),
    }
}

/// The binding that a template would have by a policy.
fn unbound(template: &Value, policy: &PropagationPolicy) -> Binding {
    let needs = replicas(template);
    let mut binding = Binding::default();
    binding.spec.resource = reference(template);
    binding.spec.replicas = needs.as_ref().map_or(0, |needs| needs.count);
    binding.spec.replica_requirements = needs.and_then(|needs| needs.requirements);
    binding.spec.placement = Some(policy.spec.placement.clone());
    binding
}

/// So many clusters that are left out are told how to come in.
const MOST_REMEDIES: usize = 8;

fn what_would_change(decision: &Decision) -> Vec<String> {
    let mut changes = Vec::new();
    let Some(attempt) = decision.attempts.last() else { return changes };
    match &decision.outcome {
        Outcome::Placed { clusters, .. } => {
            for (label, replicas) in
                [("one replica more", decision.replicas + 1), ("one replica less", decision.replicas - 1)]
            {
                if let Some(moves) = moved(decision, attempt, clusters, replicas) {
                    changes.push(format!("{label}: {moves}"));
                }
            }
            if let Some(tie) = &attempt.tie {
                changes.push(format!(
                    "another UID of the template, or a weight or room that is not equal: {} and {} had the same claim to the \
                     last replica",
                    tie.winner,
                    tie.losers.join(", ")
                ));
            }
        }
        Outcome::Unschedulable { .. } => {
            let room: i64 =
                attempt.clusters.iter().filter(|verdict| verdict.selected).filter_map(|it| it.available).sum();
            let runs: i64 =
                attempt.clusters.iter().filter(|verdict| verdict.selected).filter_map(|it| it.current).sum();
            let missing = decision.replicas - runs - room;
            changes.push(format!("room for {missing} more in the clusters that are selected, or fewer replicas"));
        }
        Outcome::Failed { .. } | Outcome::NoFit { .. } => {}
    }
    let left_out: Vec<&Verdict> =
        attempt.clusters.iter().filter(|verdict| verdict.excluded.is_none() && !verdict.selected).collect();
    if !left_out.is_empty() {
        let names: Vec<&str> = left_out.iter().map(|verdict| verdict.cluster.as_str()).collect();
        changes.push(format!("a spread constraint with a greater maxGroups, for {}", names.join(", ")));
    }
    let remedies = attempt.clusters.iter().filter_map(|verdict| {
        let remedy = verdict.excluded.as_ref()?.remedy(&verdict.cluster)?;
        Some(format!("for {}: {remedy}", verdict.cluster))
    });
    changes.extend(remedies.take(MOST_REMEDIES));
    let divided = !matches!(decision.strategy, Strategy::Duplicated | Strategy::Unnumbered);
    if divided && matches!(decision.outcome, Outcome::Placed { .. }) {
        changes.push(
            "not a cluster that joins, and not room that comes or goes: what runs is divided again when its number or its \
             placement changes, or with a WorkloadRebalancer"
                .to_owned(),
        );
    }
    changes
}

/// Who gains and who loses if the number of replicas were another one.
fn moved(decision: &Decision, attempt: &Attempt, clusters: &[TargetCluster], replicas: i64) -> Option<String> {
    let divided = !matches!(decision.strategy, Strategy::Duplicated | Strategy::Unnumbered);
    if !divided || replicas < 0 {
        return None;
    }
    let candidates: Vec<Candidate> = (attempt.clusters.iter())
        .filter(|verdict| verdict.selected)
        .map(|verdict| {
            let gained = verdict.replicas.unwrap_or(0) - verdict.current.unwrap_or(0);
            let available = verdict.available.unwrap_or(0).saturating_sub(gained).max(0);
            Candidate { name: verdict.cluster.clone(), tier: verdict.tier, weight: verdict.weight, available }
        })
        .collect();
    let division = Division {
        algorithm: decision.algorithm,
        strategy: decision.strategy,
        replicas,
        candidates: &candidates,
        current: clusters,
        fresh: false,
        order: decision.order,
        keep_empty: true,
    };
    let then = match division.divide() {
        Ok(divided) => divided.clusters,
        Err(few) => return Some(format!("nowhere to go: {few}")),
    };
    let held = |clusters: &[TargetCluster], name: &str| {
        clusters.iter().find(|cluster| cluster.name == name).map_or(0, |cluster| cluster.replicas)
    };
    let moves: Vec<String> = (candidates.iter())
        .map(|candidate| (&candidate.name, held(&then, &candidate.name), held(clusters, &candidate.name)))
        .filter(|(_, then, now)| then != now)
        .map(|(name, then, now)| format!("{name} {now} → {then}"))
        .collect();
    Some(moves.join(", "))
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Duplicated => "each cluster gets all",
            Self::StaticWeight => "divided by weights of the policy",
            Self::DynamicWeight => "divided by the room in the clusters",
            Self::Aggregated => "in as few clusters as have room",
            Self::Unnumbered => "not divided",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Why { template, policy, priority, decision, under_way, changes } = self;
        write!(f, "{template}")?;
        if let Some(decision) = decision {
            match decision.strategy {
                Strategy::Unnumbered => write!(f, ": {}", decision.strategy)?,
                strategy if decision.replicas == 1 => write!(f, ": 1 replica, {strategy}")?,
                strategy => write!(f, ": {} replicas, {strategy}", decision.replicas)?,
            }
        }
        writeln!(f)?;
        match policy {
            None => writeln!(f, "\npolicy: none selects it")?,
            Some(followed) => {
                let how = match followed.matched {
                    Match::Name => "by name",
                    Match::Labels => "by labels",
                    Match::All => "with all of its kind",
                };
                let claimed = if followed.claimed { ", and has it already" } else { "" };
                writeln!(f, "\npolicy: {}, which selects it {how}{claimed}", followed.policy)?;
                for Other { policy, reason } in &followed.others {
                    writeln!(f, "  not {policy}: {reason}")?;
                }
            }
        }
        if let Some(priority) = priority {
            writeln!(f, "  priority {priority}: scheduled, and moved, before what has a lower one (others: 0)")?;
        }
        if let Some(decision) = decision {
            for attempt in &decision.attempts {
                write_attempt(f, decision, attempt)?;
            }
            if !matches!(decision.outcome, Outcome::Placed { .. }) {
                let (reason, message) = (decision.outcome.reason(), decision.outcome.message());
                writeln!(f, "\n{reason}: {message}\n  nothing new is placed, and what runs stays where it is")?;
            }
        }
        if !under_way.is_empty() {
            writeln!(f, "\nunder way:")?;
            for what in under_way {
                writeln!(f, "  {what}")?;
            }
        }
        if !changes.is_empty() {
            writeln!(f, "\nwhat would change it:")?;
            for change in changes {
                writeln!(f, "  {change}")?;
            }
        }
        Ok(())
    }
}

fn write_attempt(f: &mut fmt::Formatter<'_>, decision: &Decision, attempt: &Attempt) -> fmt::Result {
    match &attempt.group {
        Some(group) => writeln!(f, "\nclusters, by affinity group {group}:")?,
        None => writeln!(f, "\nclusters:")?,
    }
    let width = attempt.clusters.iter().map(|verdict| verdict.cluster.chars().count()).max().unwrap_or(0);
    let alike =
        decision.strategy == Strategy::StaticWeight && attempt.clusters.iter().all(|verdict| verdict.weight <= 0);
    for verdict in &attempt.clusters {
        writeln!(f, "  {:width$}  {}", verdict.cluster, told(decision, verdict, alike))?;
    }
    if let Some(why) = &attempt.failure {
        return writeln!(f, "  not possible: {why}");
    }
    if alike {
        writeln!(f, "  the policy gives none of them a weight, so all are alike")?;
    }
    let moved = match attempt.movement {
        _ if decision.fresh => Some("all were divided afresh: somebody asked for it"),
        Some(Movement::Up) => Some("only the new ones were divided; nothing that runs moves"),
        Some(Movement::Down) => Some("what runs is the weight, so that everybody gives up a share"),
        Some(Movement::None) => Some("their number is the same, so nothing moves"),
        Some(Movement::Whole) | None => None,
    };
    if let Some(moved) = moved {
        writeln!(f, "  {moved}")?;
    }
    if let Some(tie) = &attempt.tie {
        let order = match decision.order {
            NameOrder::Ascending => "from a to z",
            NameOrder::Descending => "from z to a",
        };
        let losers = tie.losers.join(", ");
        writeln!(
            f,
            "  the last replica went to {}: {losers} had the same claim, and names go {order} for this UID",
            tie.winner
        )?;
    }
    Ok(())
}

/// One cluster in one line. Where all are `alike` there is no weight to tell.
fn told(decision: &Decision, verdict: &Verdict, alike: bool) -> String {
    if let Some(exclusion) = &verdict.excluded {
        return format!("left out: {exclusion}");
    }
    let mut words = Vec::new();
    match verdict.replicas {
        Some(1) => words.push("1 replica".to_owned()),
        Some(replicas) => words.push(format!("{replicas} replicas")),
        None if verdict.selected && decision.strategy == Strategy::Unnumbered => words.push("gets it".to_owned()),
        None if verdict.selected => words.push("selected".to_owned()),
        None => words.push("not taken by the spread constraints".to_owned()),
    }
    if let Some(before) = verdict.current.filter(|before| verdict.replicas.is_some_and(|now| now != *before)) {
        words.push(format!("had {before}"));
    }
    match decision.strategy {
        Strategy::StaticWeight if alike => {}
        Strategy::StaticWeight => words.push(format!("weight {}", verdict.weight)),
        Strategy::DynamicWeight | Strategy::Aggregated => {
            words.extend(verdict.available.map(|room| format!("room for {room} more")));
        }
        Strategy::Duplicated | Strategy::Unnumbered => {}
    }
    if verdict.tier > 0 {
        words.push(format!("overflow group {}", verdict.tier));
    }
    let there = verdict.score >= 100;
    let standing = verdict.mesh.as_ref().map(|standing| standing.to_string());
    let reasons: Vec<String> = there.then(|| "it is there already".to_owned()).into_iter().chain(standing).collect();
    if !reasons.is_empty() {
        words.push(format!("score {}: {}", verdict.score, reasons.join("; ")));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests;
