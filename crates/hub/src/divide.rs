//! How many replicas each cluster gets: Karmada's division, newest (v1.18.2) and of v1.2.7.
//!
//! Every share is made by [`seats`]: highest averages with odd divisors (Sainte-Laguë, Webster). What differs between the
//! strategies is what votes: weights of the policy, room in the clusters, or what runs there already. The same inputs give
//! the same result; there is no other memory.

mod seats;
mod v1_2;

use serde::{Deserialize, Serialize};

use crate::model::TargetCluster;

pub use seats::{NameOrder, Seats, Vote, seats};

/// Whose algorithms divide and select.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Karmada v1.18.2's.
    #[default]
    #[serde(rename = "v1.18")]
    Newest,
    /// Karmada v1.2.7's.
    #[serde(rename = "v1.2")]
    V1_2,
}

/// How replicas become shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Every cluster gets all.
    Duplicated,
    /// By the policy's weights.
    StaticWeight,
    /// By the room in the clusters.
    DynamicWeight,
    /// In as few clusters as have room.
    Aggregated,
    /// There is nothing to divide: not a workload, or several pod templates in one.
    Unnumbered,
}

/// A cluster that was selected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The cluster.
    pub name: String,
    /// 0, or the place of the overflow group that it came by, from 1.
    pub tier: usize,
    /// The policy's weight for it.
    pub weight: i64,
    /// How many more replicas fit.
    pub available: i64,
}

/// What is divided.
#[derive(Clone, Copy, Debug)]
pub struct Division<'a> {
    /// Whose algorithm.
    pub algorithm: Algorithm,
    /// How.
    pub strategy: Strategy,
    /// All replicas.
    pub replicas: i64,
    /// Among whom, in candidate order.
    pub candidates: &'a [Candidate],
    /// Who has how many now.
    pub current: &'a [TargetCluster],
    /// Whether what runs now does not count: somebody asked for a fresh division.
    pub fresh: bool,
    /// Which name goes first where votes and seats are equal.
    pub order: NameOrder,
    /// Whether clusters without replicas stay in the result (Karmada's `--enable-empty-workload-propagation`).
    pub keep_empty: bool,
}

/// Which way a division went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Movement {
    /// All replicas are divided by the votes.
    Whole,
    /// Only what is missing is divided; nothing that runs moves.
    Up,
    /// What runs votes, so everybody gives up a share.
    Down,
    /// The number is the same; nothing moves.
    None,
}

/// What a division gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divided {
    /// The shares, by name.
    pub clusters: Vec<TargetCluster>,
    /// Which way it went.
    pub movement: Movement,
    /// Who was about to get the next seat when the seats were gone, though it had the same claim as the last that got one.
    pub tie: Option<Tie>,
}

/// The last seat was given by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tie {
    /// Who got it.
    pub winner: String,
    /// Who had the same claim.
    pub losers: Vec<String>,
}

/// The clusters have not enough room. Karmada's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Clusters available replicas {available} are not enough to schedule.")]
pub struct NotEnough {
    /// All room together.
    pub available: i64,
}

impl Division<'_> {
    /// Divides.
    ///
    /// # Errors
    ///
    /// When the strategy looks at room and there is too little of it.
    pub fn divide(&self) -> Result<Divided, NotEnough> {
        let whole = |shares: Vec<i64>| Divided {
            clusters: self
                .candidates
                .iter()
                .zip(shares)
                .map(|(candidate, replicas)| target(&candidate.name, replicas))
                .collect(),
            movement: Movement::Whole,
            tie: None,
        };
        let mut divided = match (self.strategy, self.algorithm) {
            (Strategy::Unnumbered, _) => return Ok(by_name(whole(vec![0; self.candidates.len()]))),
            (Strategy::Duplicated, _) => whole(vec![self.replicas; self.candidates.len()]),
            (Strategy::StaticWeight, Algorithm::Newest) => self.by_weight(),
            (Strategy::StaticWeight, Algorithm::V1_2) => return Ok(by_name(whole(v1_2::by_weight(self)))),
            (Strategy::DynamicWeight | Strategy::Aggregated, Algorithm::Newest) => self.by_room()?,
            (Strategy::DynamicWeight | Strategy::Aggregated, Algorithm::V1_2) => {
                return v1_2::by_room(self).map(by_name);
            }
        };
        divided.clusters.retain(|cluster| cluster.replicas > 0);
        if self.keep_empty {
            let missing: Vec<TargetCluster> = (self.candidates.iter())
                .filter(|candidate| !divided.clusters.iter().any(|cluster| cluster.name == candidate.name))
                .map(|candidate| target(&candidate.name, 0))
                .collect();
            divided.clusters.extend(missing);
        }
        Ok(by_name(divided))
    }

    /// Static weights: from zero each time; room is not looked at. A cluster without weight gets nothing, but where none
    /// has any, all are equal.
    fn by_weight(&self) -> Divided {
        let none = self.candidates.iter().all(|candidate| candidate.weight <= 0);
        let votes: Vec<Vote> = (self.candidates.iter())
            .filter(|candidate| none || candidate.weight > 0)
            .map(|candidate| Vote { name: &candidate.name, votes: if none { 1 } else { candidate.weight } })
            .collect();
        let Seats { shares, tie } = seats(self.replicas, &votes, self.order);
        let clusters = votes.iter().zip(shares).map(|(vote, replicas)| target(vote.name, replicas)).collect();
        Divided { clusters, movement: Movement::Whole, tie }
    }

    fn by_room(&self) -> Result<Divided, NotEnough> {
        let current = |candidate: &Candidate| held(self.current, &candidate.name);
        let assigned: i64 = self.candidates.iter().map(current).sum();
        let (movement, target_sum) = match assigned {
            _ if self.fresh => (Movement::Whole, self.replicas),
            0 => (Movement::Whole, self.replicas),
            _ if assigned > self.replicas => (Movement::Down, self.replicas),
            _ if assigned < self.replicas => (Movement::Up, self.replicas - assigned),
            _ => (Movement::None, 0),
        };
        let kept = |candidate: &Candidate| if movement == Movement::Up { current(candidate) } else { 0 };
        if movement == Movement::None {
            let clusters =
                self.candidates.iter().map(|candidate| target(&candidate.name, current(candidate))).collect();
            return Ok(Divided { clusters, movement, tie: None });
        }
        let votes: Vec<i64> = (self.candidates.iter())
            .map(|candidate| match movement {
                Movement::Down => current(candidate),
                _ if self.fresh => candidate.available.max(0).saturating_add(current(candidate)),
                _ => candidate.available.max(0),
            })
            .collect();
        let available = votes.iter().fold(0_i64, |sum, votes| sum.saturating_add(*votes));
        if available < target_sum {
            return Err(NotEnough { available });
        }
        let mut shares: Vec<i64> = self.candidates.iter().map(kept).collect();
        let (mut rest, mut tie) = (target_sum, None);
        let mut tiers: Vec<usize> = self.candidates.iter().map(|candidate| candidate.tier).collect();
        tiers.sort_unstable();
        tiers.dedup();
        for tier in tiers {
            let mut members: Vec<usize> =
                (0..self.candidates.len()).filter(|at| self.candidates[*at].tier == tier).collect();
            members.sort_by_key(|at| std::cmp::Reverse(votes[*at]));
            let room = members.iter().fold(0_i64, |sum, at| sum.saturating_add(votes[*at]));
            let part = rest.min(room);
            if part == 0 {
                continue;
            }
            if self.strategy == Strategy::Aggregated {
                let used = |at: &usize| !self.fresh && current(&self.candidates[*at]) > 0;
                fewest(&mut members, used, &votes, part);
            }
            let named: Vec<Vote> =
                members.iter().map(|at| Vote { name: &self.candidates[*at].name, votes: votes[*at] }).collect();
            let given = seats(part, &named, self.order);
            for (at, share) in members.iter().zip(given.shares) {
                shares[*at] += share;
            }
            tie = given.tie.or(tie);
            rest -= part;
        }
        let clusters =
            self.candidates.iter().zip(shares).map(|(candidate, replicas)| target(&candidate.name, replicas)).collect();
        Ok(Divided { clusters, movement, tie })
    }
}

/// Keeps the fewest clusters that have room for `part`: those in use first, each part as it is ordered.
fn fewest(members: &mut Vec<usize>, used: impl Fn(&usize) -> bool, votes: &[i64], part: i64) {
    members.sort_by_key(|at| !used(at));
    let mut sum = 0_i64;
    let enough = members.iter().position(|at| {
        sum = sum.saturating_add(votes[*at]);
        sum >= part
    });
    if let Some(last) = enough {
        members.truncate(last + 1);
    }
}

/// How many replicas a cluster has.
fn held(current: &[TargetCluster], name: &str) -> i64 {
    current.iter().find(|cluster| cluster.name == name).map_or(0, |cluster| cluster.replicas.max(0))
}

fn target(name: &str, replicas: i64) -> TargetCluster {
    TargetCluster { name: name.to_owned(), replicas }
}

fn by_name(mut divided: Divided) -> Divided {
    divided.clusters.sort_by(|one, other| one.name.cmp(&other.name));
    divided
}

#[cfg(test)]
mod tests;
