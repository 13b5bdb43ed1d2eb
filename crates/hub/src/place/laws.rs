//! What every placement keeps, over random worlds.

use std::collections::BTreeSet;

use proptest::prelude::{Just, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Generator;
use serde_json::{Value, json};

use super::*;
use crate::model::{SpreadField, read};

/// A world, and a binding that wants to be placed in it.
#[derive(Clone, Debug)]
struct Case {
    clusters: Vec<Cluster>,
    room: Vec<i64>,
    binding: Binding,
    algorithm: Algorithm,
}

fn any_case() -> impl Generator<Value = Case> {
    let cluster = (0_usize..4, 0_i64..12, 0_u8..12, 0_i64..4);
    let constraints = prop_oneof![
        Just(json!([])),
        (1_i64..4, 0_i64..4).prop_map(
            |(least, more)| json!([{"spreadByField": "cluster", "minGroups": least, "maxGroups": least + more}])
        ),
        (1_i64..3, 0_i64..2, 1_i64..4, 0_i64..4).prop_map(|(regions, more, least, others)| json!([
            {"spreadByField": "region", "minGroups": regions, "maxGroups": regions + more},
            {"spreadByField": "cluster", "minGroups": least, "maxGroups": least + others}])),
    ];
    let scheduling = prop_oneof![
        Just(json!({"replicaSchedulingType": "Duplicated"})),
        Just(json!({"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Aggregated"})),
        Just(json!({"replicaSchedulingType": "Divided", "weightPreference": {"dynamicWeight": "AvailableReplicas"}})),
        prop::collection::vec((0_usize..8, 1_i64..5), 0..4).prop_map(|rules| {
            let rule = |(at, weight): &(usize, i64)| json!({"targetCluster": {"clusterNames": [format!("c{at}")]}, "weight": weight});
            json!({"replicaSchedulingType": "Divided",
                "weightPreference": {"staticWeightList": rules.iter().map(rule).collect::<Vec<Value>>()}})
        }),
    ];
    let world = prop::collection::vec(cluster, 0..8);
    (world, constraints, scheduling, 0_i64..20, any::<bool>(), any::<bool>()).prop_map(
        |(world, constraints, scheduling, replicas, odd, old)| {
            let made = |(at, (region, _, state, _)): (usize, &(usize, i64, u8, i64))| -> Cluster {
                let region = if *region == 3 { String::new() } else { format!("r{region}") };
                let taints = if *state == 0 { json!([{"key": "lost", "effect": "NoSchedule"}]) } else { json!([]) };
                let served = json!([{"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}]);
                let served = if *state == 1 { json!([]) } else { served };
                read(&json!({"metadata": {"name": format!("c{at}")}, "spec": {"region": region, "taints": taints},
                    "status": {"apiEnablements": served}}))
                .unwrap()
                .0
            };
            let clusters: Vec<Cluster> = world.iter().enumerate().map(made).collect();
            let current: Vec<Value> = (world.iter().enumerate())
                .filter(|(_, (_, _, state, held))| *state > 6 && *held > 0)
                .map(|(at, (_, _, _, held))| json!({"name": format!("c{at}"), "replicas": held}))
                .collect();
            let uid = if odd { "11111111-1111-1111-1111-111111111111" } else { "" };
            let binding = json!({"metadata": {"name": "web"}, "spec": {
                "resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web", "uid": uid},
                "replicas": replicas, "clusters": current,
                "placement": {"replicaScheduling": scheduling, "spreadConstraints": constraints}}});
            Case {
                clusters,
                room: world.iter().map(|(_, room, _, _)| *room).collect(),
                binding: read(&binding).unwrap().0,
                algorithm: if old { Algorithm::V1_2 } else { Algorithm::Newest },
            }
        },
    )
}

fn decide(case: &Case, clusters: &[Cluster], binding: &Binding, room: &dyn Fn(&str) -> i64) -> Decision {
    let settings = Settings { algorithm: case.algorithm, keep_empty: false };
    place(binding, clusters, &|cluster| room(&cluster.metadata.name), settings)
}

proptest! {
    #[test]
    fn placements_keep_the_laws(case in any_case()) {
        let room = |name: &str| case.room[name[1..].parse::<usize>().unwrap()];
        let decision = decide(&case, &case.clusters, &case.binding, &room);
        // In which order clusters are listed says nothing.
        let backwards: Vec<Cluster> = case.clusters.iter().rev().cloned().collect();
        prop_assert_eq!(&decide(&case, &backwards, &case.binding, &room).outcome, &decision.outcome);
        let Outcome::Placed { clusters, .. } = &decision.outcome else { return Ok(()) };
        let verdict = |name: &str| decision.attempts[0].clusters.iter().find(|verdict| verdict.cluster == name);
        let divided = !matches!(decision.strategy, Strategy::Duplicated | Strategy::Unnumbered);
        let sum: i64 = clusters.iter().map(|cluster| cluster.replicas).sum();
        prop_assert!(!divided || sum == case.binding.spec.replicas);
        // v1.2 scales down over all clusters of the binding, also those that are no candidates any more.
        let down = case.algorithm == Algorithm::V1_2 && decision.attempts[0].movement == Some(Movement::Down);
        if down {
            return Ok(());
        }
        for cluster in clusters {
            let verdict = verdict(&cluster.name).unwrap();
            prop_assert!(verdict.excluded.is_none() && verdict.selected, "{:?}", verdict);
            prop_assert!(decision.strategy == Strategy::Unnumbered || verdict.replicas == Some(cluster.replicas));
        }
        // Spread constraints are kept, where they are looked at.
        let constraints = &case.binding.spec.placement.as_ref().unwrap().spread_constraints;
        let selected: Vec<&str> =
            decision.attempts[0].clusters.iter().filter(|verdict| verdict.selected).map(|verdict| verdict.cluster.as_str()).collect();
        let region = |name: &&str| case.clusters.iter().find(|it| it.metadata.name == **name).unwrap().spec.region.clone();
        let regions: BTreeSet<String> = selected.iter().map(region).collect();
        let scheduling = case.binding.spec.placement.as_ref().unwrap().replica_scheduling.as_ref().unwrap();
        let room_matters = scheduling.division.is_some()
            || scheduling.weights.as_ref().is_some_and(|weights| weights.dynamic.is_some())
            || scheduling.scheduling == SchedulingType::Duplicated;
        for constraint in constraints.iter().filter(|_| room_matters) {
            let (count, by_region) = match constraint.spread_by_field {
                Some(SpreadField::Region) => (regions.len(), true),
                _ => (selected.len(), false),
            };
            let count = i64::try_from(count).unwrap();
            // Each chosen region gives a cluster, so there may be more clusters than maxGroups, as many as regions.
            let most = constraint.max_groups.max(if by_region { 0 } else { i64::try_from(regions.len()).unwrap() });
            prop_assert!(count <= most, "{:?}: {:?}", constraint, selected);
            // v1.2 takes exactly the least number of regions; a region's clusters may be cut by the clusters' maxGroups.
            prop_assert!(count >= constraint.min_groups.min(most), "{:?}: {:?}", constraint, selected);
        }
        // A place that satisfies the policy is kept: asked again, nothing moves.
        let by_region = constraints.iter().any(|constraint| constraint.spread_by_field == Some(SpreadField::Region));
        // Static weights are divided anew each time: where constraints select first, or where clusters stay that got nothing
        // (v1.2), the selection itself may be another one then.
        let anew = decision.strategy == Strategy::StaticWeight
            && (case.algorithm == Algorithm::V1_2 || !constraints.is_empty());
        if by_region || anew || sum == 0 {
            return Ok(());
        }
        let mut settled = case.binding.clone();
        settled.spec.clusters = clusters.clone();
        let held = |clusters: &[TargetCluster], name: &str| clusters.iter().find(|it| it.name == name).map_or(0, |it| it.replicas);
        let left = |name: &str| (room(name) - (held(clusters, name) - held(&case.binding.spec.clusters, name)).max(0)).max(0);
        let again = decide(&case, &case.clusters, &settled, &left);
        prop_assert_eq!(&again.outcome, &decision.outcome);
    }
}
