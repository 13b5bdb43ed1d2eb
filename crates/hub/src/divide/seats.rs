//! Highest averages with odd divisors: who gets the next seat has the most votes per (2 × seats + 1).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use super::Tie;

/// Which name goes first where nothing else decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameOrder {
    /// From a to z.
    #[default]
    Ascending,
    /// From z to a.
    Descending,
}

impl NameOrder {
    /// The order of a template: it hangs on the UID, so that not every workload favours the same cluster (Karmada v1.18:
    /// descending if FNV-1a-32 of the UID is odd).
    #[must_use]
    pub fn of(uid: &str) -> Self {
        // The multiplier is odd, so the lowest bit is the parity of the lowest bits of the offset and all bytes.
        let odd = !uid.is_empty() && uid.bytes().fold(1, |bit, byte| bit ^ (byte & 1)) == 1;
        if odd { Self::Descending } else { Self::Ascending }
    }

    fn first(self, one: &str, other: &str) -> Ordering {
        match self {
            Self::Ascending => one.cmp(other),
            Self::Descending => other.cmp(one),
        }
    }
}

/// A cluster and what speaks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote<'a> {
    /// The cluster.
    pub name: &'a str,
    /// Its votes.
    pub votes: i64,
}

/// How seats were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seats {
    /// For each vote, in the votes' order.
    pub shares: Vec<i64>,
    /// The last seat was given by name.
    pub tie: Option<Tie>,
}

/// A claim on the next seat.
struct Claim<'a> {
    quotient: f64,
    seats: i64,
    name: &'a str,
    at: usize,
    order: NameOrder,
}

impl Claim<'_> {
    /// Whether nothing but the name tells the two apart.
    fn equals(&self, other: &Claim<'_>) -> bool {
        self.quotient.total_cmp(&other.quotient).is_eq() && self.seats == other.seats
    }
}

impl Ord for Claim<'_> {
    /// The greatest claim is the next to be served.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.quotient.total_cmp(&other.quotient))
            .then_with(|| other.seats.cmp(&self.seats))
            .then_with(|| self.order.first(other.name, self.name))
    }
}

impl PartialOrd for Claim<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claim<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Claim<'_> {}

/// Gives `count` seats one by one to the greatest claim; equal claims: fewer seats, then the name. Where nobody has a vote,
/// all are equal.
#[must_use]
pub fn seats(count: i64, votes: &[Vote<'_>], order: NameOrder) -> Seats {
    let none = votes.iter().all(|vote| vote.votes <= 0);
    let weight = |vote: &Vote<'_>| if none { 1 } else { vote.votes.max(0) };
    let total: i128 = votes.iter().map(|vote| i128::from(weight(vote))).sum();
    if votes.is_empty() || count <= 0 {
        return Seats { shares: vec![0; votes.len()], tie: None };
    }
    // Nobody ends more than half the clusters and one below its exact share, so these seats need not be given one by one:
    // the claims that are served are the same `count` greatest ones.
    let slack = votes.len() as i128 + 2;
    let mut shares: Vec<i64> = votes
        .iter()
        .map(|vote| {
            let exact = i128::from(count) * i128::from(weight(vote)) / total.max(1);
            i64::try_from((exact - slack).max(0)).unwrap_or(0)
        })
        .collect();
    #[allow(clippy::cast_precision_loss)] // 64-bit floats, as Karmada divides.
    let claim = |at: usize, seats: i64| Claim {
        quotient: weight(&votes[at]) as f64 / (2 * seats + 1) as f64,
        seats,
        name: votes[at].name,
        at,
        order,
    };
    let mut claims: BinaryHeap<Claim<'_>> = (0..votes.len()).map(|at| claim(at, shares[at])).collect();
    let mut last = None;
    for _ in shares.iter().sum::<i64>()..count {
        let Some(next) = claims.pop() else { break };
        shares[next.at] += 1;
        claims.push(claim(next.at, shares[next.at]));
        last = Some(next);
    }
    let tie = last.and_then(|winner| {
        let mut losers: Vec<String> =
            claims.iter().filter(|claim| claim.equals(&winner)).map(|claim| claim.name.to_owned()).collect();
        losers.sort_unstable();
        (!losers.is_empty()).then(|| Tie { winner: winner.name.to_owned(), losers })
    });
    Seats { shares, tie }
}
