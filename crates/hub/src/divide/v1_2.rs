//! Division as Karmada v1.2.7 does it: whole parts first, then what remains one by one from the top of a list.

use super::{Divided, Division, Movement, NotEnough, Strategy, fewest, held, target};
use crate::model::TargetCluster;

/// Whole parts, and one more for each in the list's order while something remains.
fn largest_first(count: i64, votes: &[i64]) -> Vec<i64> {
    let total: i128 = votes.iter().map(|votes| i128::from(*votes)).sum();
    if total <= 0 {
        return vec![0; votes.len()];
    }
    let mut shares: Vec<i64> =
        votes.iter().map(|votes| i64::try_from(i128::from(count) * i128::from(*votes) / total).unwrap_or(0)).collect();
    let rest = count - shares.iter().sum::<i64>();
    for share in shares.iter_mut().take(usize::try_from(rest).unwrap_or(0)) {
        *share += 1;
    }
    shares
}

/// Static weights, for each candidate; those that get nothing stay in the result.
pub(super) fn by_weight(division: &Division<'_>) -> Vec<i64> {
    let candidates = division.candidates;
    let none = candidates.iter().all(|candidate| candidate.weight <= 0);
    let weight = |at: &usize| if none { 1 } else { candidates[*at].weight.max(0) };
    let mut list: Vec<usize> = (0..candidates.len()).collect();
    list.sort_by(|one, other| {
        weight(other).cmp(&weight(one)).then_with(|| candidates[*one].name.cmp(&candidates[*other].name))
    });
    let votes: Vec<i64> = list.iter().map(weight).collect();
    let mut shares = vec![0; candidates.len()];
    for (at, share) in list.iter().zip(largest_first(division.replicas, &votes)) {
        shares[*at] = share;
    }
    shares
}

/// Dynamic weights and Aggregated. Scaling down is over all clusters of the binding, in its order.
pub(super) fn by_room(division: &Division<'_>) -> Result<Divided, NotEnough> {
    let Division { candidates, current, replicas, .. } = *division;
    let scheduled = |name: &str| candidates.iter().any(|candidate| candidate.name == name);
    let kept: Vec<&TargetCluster> = current.iter().filter(|cluster| scheduled(&cluster.name)).collect();
    let assigned: i64 = kept.iter().map(|cluster| cluster.replicas).sum();
    if assigned == replicas && !kept.is_empty() {
        let clusters = kept.into_iter().cloned().collect();
        return Ok(Divided { clusters, movement: Movement::None, tie: None });
    }
    let down = assigned > replicas;
    let mut list: Vec<(&str, i64)> = if down {
        current.iter().map(|cluster| (cluster.name.as_str(), cluster.replicas)).collect()
    } else {
        candidates.iter().map(|candidate| (candidate.name.as_str(), candidate.available.max(0))).collect()
    };
    if !down {
        list.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
    }
    let part = if down { replicas } else { replicas - assigned };
    let available = list.iter().fold(0_i64, |sum, (_, votes)| sum.saturating_add(*votes));
    if available < part {
        return Err(NotEnough { available });
    }
    let votes: Vec<i64> = list.iter().map(|(_, votes)| *votes).collect();
    let mut members: Vec<usize> = (0..list.len()).collect();
    if division.strategy == Strategy::Aggregated {
        members.sort_by_key(|at| std::cmp::Reverse(votes[*at]));
        fewest(&mut members, |at| held(current, list[*at].0) > 0, &votes, part);
    }
    let chosen: Vec<i64> = members.iter().map(|at| votes[*at]).collect();
    let shares = largest_first(part, &chosen);
    let mut clusters: Vec<TargetCluster> =
        members.iter().zip(shares).map(|(at, share)| target(list[*at].0, share)).collect();
    if !down {
        for cluster in kept {
            match clusters.iter_mut().find(|made| made.name == cluster.name) {
                Some(made) => made.replicas += cluster.replicas,
                None => clusters.push(cluster.clone()),
            }
        }
    }
    let movement = match (down, assigned) {
        (true, _) => Movement::Down,
        (false, 0) => Movement::Whole,
        (false, _) => Movement::Up,
    };
    Ok(Divided { clusters, movement, tie: None })
}
