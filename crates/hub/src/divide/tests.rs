use proptest::prelude::{
    Just, ProptestConfig, TestCaseError, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::strategy::Strategy as Generator;

use super::*;

/// `a3 b6`: names of one letter with numbers. `–` and the like is nothing.
fn pairs(text: &str) -> Vec<(String, i64)> {
    let one = |word: &str| word[1..].parse().ok().map(|number| (word[..1].to_owned(), number));
    text.split_whitespace().filter_map(one).collect()
}

fn targets(text: &str) -> Vec<TargetCluster> {
    pairs(text).into_iter().map(|(name, replicas)| TargetCluster { name, replicas }).collect()
}

fn shown(clusters: &[TargetCluster]) -> String {
    clusters.iter().map(|cluster| format!("{}{}", cluster.name, cluster.replicas)).collect::<Vec<_>>().join(" ")
}

fn order(text: &str) -> NameOrder {
    if text == "desc" { NameOrder::Descending } else { NameOrder::Ascending }
}

const BASE: Division<'static> = Division {
    algorithm: Algorithm::Newest,
    strategy: Strategy::StaticWeight,
    replicas: 0,
    candidates: &[],
    current: &[],
    fresh: false,
    order: NameOrder::Ascending,
    keep_empty: false,
};

#[test]
fn static_weights_are_divided_as_worked_out() {
    let cases = [
        ("S1", 9, "a1 b2", "asc", "a3 b6", "a3 b6"),
        ("S2", 9, "a1 b3", "asc", "a2 b7", "a2 b7"),
        ("S3", 10, "a1 b1", "asc", "a5 b5", "a5 b5"),
        ("S4", 11, "a1 b1", "asc", "a6 b5", "a6 b5"),
        ("S5", 11, "a1 b1", "desc", "a5 b6", "a6 b5"),
        ("S6", 2, "a1 b1 c1", "asc", "a1 b1", "a1 b1 c0"),
        ("S7", 2, "a1 b1 c1", "desc", "b1 c1", "a1 b1 c0"),
        ("S8", 7, "a2 b1 c1", "asc", "a3 b2 c2", "a4 b2 c1"),
        ("S9", 1, "a1 b5", "asc", "b1", "a0 b1"),
        ("S10", 3, "a1 b5", "asc", "a1 b2", "a0 b3"),
        ("S11", 5, "a1 b5", "asc", "a1 b4", "a0 b5"),
        ("S12", 10, "a3 b2 c1", "asc", "a5 b3 c2", "a6 b3 c1"),
        ("S13", 12, "a3 b2 c1", "asc", "a6 b4 c2", "a6 b4 c2"),
        ("S14", 13, "a3 b2 c1", "asc", "a7 b4 c2", "a7 b4 c2"),
        ("S15", 10, "a1 b1 c1", "asc", "a4 b3 c3", "a4 b3 c3"),
        ("S16", 10, "a1 b1 c1", "desc", "a3 b3 c4", "a4 b3 c3"),
        ("S17", 100, "a1 b2 c4", "asc", "a14 b29 c57", "a14 b28 c58"),
        ("S18", 5, "a0 b0 c0", "asc", "a2 b2 c1", "a2 b2 c1"),
        ("S19", 4, "a0 b2 c1", "asc", "b3 c1", "a0 b3 c1"),
        ("S20", 4, "a100000 b80000 c30000 d20000", "asc", "a2 b1 c1", "a2 b2 c0 d0"),
        ("S21", 8, "a100000 b80000 c30000 d20000", "asc", "a3 b3 c1 d1", "a4 b3 c1 d0"),
        ("S22", 6, "a4 b4 c1", "asc", "a3 b2 c1", "a3 b3 c0"),
    ];
    for (case, replicas, weights, tie, newest, v1_2) in cases {
        let candidates: Vec<Candidate> = (pairs(weights).into_iter())
            .map(|(name, weight)| Candidate { name, tier: 0, weight, available: 0 })
            .collect();
        for (algorithm, expected) in [(Algorithm::Newest, newest), (Algorithm::V1_2, v1_2)] {
            let division = Division { algorithm, replicas, candidates: &candidates, order: order(tie), ..BASE };
            assert_eq!(shown(&division.divide().unwrap().clusters), expected, "{case} {algorithm:?}");
        }
    }
}

/// A worked case by room; `=` in the last column: as the newest; `-`: not defined.
type RoomCase = (&'static str, i64, &'static str, &'static str, &'static str, bool, &'static str, &'static str);

fn check_by_room(strategy: Strategy, cases: &[RoomCase]) {
    for (case, replicas, room, current, tie, fresh, newest, v1_2) in cases {
        let candidates: Vec<Candidate> = (pairs(room).into_iter())
            .map(|(name, available)| Candidate { name, tier: 0, weight: 0, available })
            .collect();
        let current = targets(current);
        let v1_2 = if *v1_2 == "=" { newest } else { v1_2 };
        for (algorithm, expected) in [(Algorithm::Newest, newest), (Algorithm::V1_2, v1_2)] {
            let division = Division {
                algorithm,
                strategy,
                replicas: *replicas,
                candidates: &candidates,
                current: &current,
                fresh: *fresh,
                order: order(tie),
                keep_empty: false,
            };
            let result = division.divide().map_or_else(|error| error.to_string(), |divided| shown(&divided.clusters));
            if *expected != "-" {
                assert_eq!(result, *expected, "{case} {algorithm:?}");
            }
        }
    }
}

#[test]
fn dynamic_weights_are_divided_as_worked_out() {
    let few = "Clusters available replicas 10 are not enough to schedule.";
    check_by_room(
        Strategy::DynamicWeight,
        &[
            ("D1", 12, "a18 b12 c6", "", "asc", false, "a6 b4 c2", "="),
            ("D2", 12, "a20 b12 c6", "", "asc", false, "a6 b4 c2", "a7 b4 c1"),
            ("D3", 12, "a6 b12 c6", "", "asc", false, "a3 b6 c3", "="),
            ("D4", 10, "a10 b10 c10", "", "asc", false, "a4 b3 c3", "="),
            ("D5", 10, "a10 b10 c10", "", "desc", false, "a3 b3 c4", "a4 b3 c3"),
            ("D6", 20, "a5 b5", "", "asc", false, few, "="),
            ("D7", 7, "a3 b3 c1", "", "asc", false, "a3 b3 c1", "-"),
            ("D8", 6, "a8 b2", "a3 b1", "asc", false, "a5 b1", "="),
            ("D9", 12, "a6 b0 c12", "a4 b4", "asc", false, "a5 b4 c3", "="),
            ("D10", 6, "a9 b3", "a2 x4", "asc", false, "a5 b1", "="),
            ("D11", 8, "a0 b9", "a4 b4", "asc", false, "a4 b4", "="),
            ("D12", 4, "a0 b9 c9", "a4 b2 c2", "asc", false, "a2 b1 c1", "="),
            ("D13", 3, "a9 b9", "a4 b4", "asc", false, "a2 b1", "="),
            ("D14", 1, "a9 b9", "a2 b2", "asc", false, "a1", "a1 b0"),
            ("D15", 8, "a2 b10", "a6 b2", "asc", true, "a3 b5", "-"),
            ("D16", 8, "a0 b10", "a8", "asc", true, "a4 b4", "-"),
        ],
    );
}

#[test]
fn aggregated_is_divided_as_worked_out() {
    let few = "Clusters available replicas 12 are not enough to schedule.";
    check_by_room(
        Strategy::Aggregated,
        &[
            ("A1", 12, "a6 b12 c6", "", "asc", false, "b12", "="),
            ("A2", 12, "a6 b6 c6", "", "asc", false, "a6 b6", "="),
            ("A3", 13, "a6 b6 c6", "", "asc", false, "a5 b4 c4", "="),
            ("A4", 8, "a3 b2 c20", "a4", "asc", false, "a5 c3", "-"),
            ("A5", 6, "a3 b2 c20", "a4", "asc", false, "a6", "="),
            ("A6", 5, "a9 b9", "a4 b4", "asc", false, "a3 b2", "="),
            ("A7", 4, "a9 b9", "a4 b4", "asc", false, "a4", "="),
            ("A8", 3, "a9 b9", "a5 b2", "asc", false, "a3", "="),
            ("A9", 20, "a6 b6", "", "asc", false, few, "="),
            ("A10", 10, "a5 b1 c9", "a2 b2", "asc", true, "a4 c6", "-"),
            ("A11", 4, "a1 b10", "a4", "asc", true, "b4", "-"),
        ],
    );
}

#[test]
fn duplicated_and_unnumbered_are_not_divided() {
    let candidates: Vec<Candidate> =
        ["a", "b", "c"].map(|name| Candidate { name: name.into(), tier: 0, weight: 0, available: 0 }).into();
    let current = targets("a3 b3 c3");
    for (case, strategy, replicas, keep_empty, expected) in [
        ("U1", Strategy::Duplicated, 3, false, "a3 b3 c3"),
        ("U2", Strategy::Duplicated, 5, false, "a5 b5 c5"),
        ("U3", Strategy::Unnumbered, 0, false, "a0 b0 c0"),
        ("scaled to 0", Strategy::Duplicated, 0, false, ""),
        ("scaled to 0, kept", Strategy::Duplicated, 0, true, "a0 b0 c0"),
        ("by weight to 0, kept", Strategy::StaticWeight, 0, true, "a0 b0 c0"),
    ] {
        let division = Division { strategy, replicas, candidates: &candidates, current: &current, keep_empty, ..BASE };
        assert_eq!(shown(&division.divide().unwrap().clusters), expected, "{case}");
    }
}

#[test]
fn what_does_not_fit_overflows_in_order_and_comes_back_from_the_last() {
    let of = |tier: usize, name: &str, available: i64| Candidate { name: name.into(), tier, weight: 0, available };
    let candidates = [of(0, "a", 4), of(0, "b", 2), of(1, "c", 3), of(2, "d", 9)];
    for (replicas, current, expected) in [
        (3, "", "a2 b1"),
        (6, "", "a4 b2"),
        (8, "", "a4 b2 c2"),
        (12, "", "a4 b2 c3 d3"),
        (7, "a4 b2 c3 d3", "a4 b2 c1"),
        (5, "a4 b2 c3 d3", "a3 b2"),
    ] {
        let current = targets(current);
        let division = Division {
            strategy: Strategy::DynamicWeight,
            replicas,
            candidates: &candidates,
            current: &current,
            ..BASE
        };
        assert_eq!(shown(&division.divide().unwrap().clusters), expected, "{replicas} of {current:?}");
    }
}

#[test]
fn the_order_of_names_hangs_on_the_uid() {
    for (uid, expected) in [
        ("", NameOrder::Ascending),
        ("00000000-0000-0000-0000-000000000001", NameOrder::Ascending),
        ("00000000-0000-0000-0000-000000000002", NameOrder::Descending),
        ("11111111-1111-1111-1111-111111111111", NameOrder::Descending),
    ] {
        assert_eq!(NameOrder::of(uid), expected, "{uid}");
        let hash = uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        assert_eq!(hash % 2 == 1 && !uid.is_empty(), expected == NameOrder::Descending, "{uid}");
    }
}

#[test]
fn who_lost_the_last_seat_by_name_is_told() {
    let votes = ["a", "b", "c"].map(|name| Vote { name, votes: 1 });
    let tie = |count, order| seats(count, &votes, order).tie.map(|tie| (tie.winner, tie.losers.concat()));
    assert_eq!(tie(10, NameOrder::Ascending), Some(("a".into(), "bc".into())));
    assert_eq!(tie(10, NameOrder::Descending), Some(("c".into(), "ab".into())));
    assert_eq!(tie(9, NameOrder::Ascending), None);
}

/// Seats given one by one, as the rule is written.
fn one_by_one(count: i64, votes: &[Vote<'_>], order: NameOrder) -> Vec<i64> {
    let mut shares = vec![0_i64; votes.len()];
    for _ in 0..count {
        let best = (0..votes.len()).max_by(|one, other| {
            let quotient = |at: usize| votes[at].votes as f64 / (2 * shares[at] + 1) as f64;
            let by_name = votes[*other].name.cmp(votes[*one].name);
            (quotient(*one).total_cmp(&quotient(*other)))
                .then(shares[*other].cmp(&shares[*one]))
                .then(if order == NameOrder::Ascending { by_name } else { by_name.reverse() })
        });
        shares[best.unwrap()] += 1;
    }
    shares
}

/// A random division; small numbers make ties.
#[derive(Debug, Clone)]
struct Case {
    replicas: i64,
    candidates: Vec<Candidate>,
    current: Vec<TargetCluster>,
    order: NameOrder,
}

fn any_case() -> impl Generator<Value = Case> {
    let number = || prop_oneof![0_i64..4, 0_i64..40, 0_i64..3000];
    let cluster = (number(), number(), prop_oneof![Just(0_i64), number()]);
    (number(), prop::collection::vec(cluster, 1..9), any::<bool>()).prop_map(|(replicas, clusters, descending)| {
        let name = |at: usize| format!("c{at}");
        let of = |(at, (weight, available, _)): (usize, &(i64, i64, i64))| Candidate {
            name: name(at),
            tier: 0,
            weight: *weight,
            available: *available,
        };
        let candidates = clusters.iter().enumerate().map(of).collect();
        let current = clusters.iter().enumerate().filter(|(_, cluster)| cluster.2 > 0);
        let current = current.map(|(at, cluster)| TargetCluster { name: name(at), replicas: cluster.2 }).collect();
        let order = if descending { NameOrder::Descending } else { NameOrder::Ascending };
        Case { replicas, candidates, current, order }
    })
}

/// What every division keeps, whatever it is given.
fn check_laws(case: &Case) -> Result<(), TestCaseError> {
    let Case { replicas, candidates, current, order } = case;
    let sum = |divided: &Divided| divided.clusters.iter().map(|cluster| cluster.replicas).sum::<i64>();
    let share = |divided: &Divided, name: &str| held(&divided.clusters, name);
    let votes = |strategy| -> Vec<Vote<'_>> {
        let of = |candidate: &'_ Candidate| match strategy {
            Strategy::StaticWeight => candidate.weight,
            _ => candidate.available,
        };
        candidates.iter().map(|candidate| Vote { name: &candidate.name, votes: of(candidate) }).collect()
    };
    for algorithm in [Algorithm::Newest, Algorithm::V1_2] {
        for strategy in [Strategy::StaticWeight, Strategy::DynamicWeight, Strategy::Aggregated] {
            let division =
                Division { algorithm, strategy, replicas: *replicas, candidates, current, order: *order, ..BASE };
            let assigned: i64 = current.iter().map(|cluster| cluster.replicas).sum();
            let divided = match division.divide() {
                Ok(divided) => divided,
                Err(NotEnough { available }) => {
                    // Refused only for want of room, and never when nothing has to be added.
                    prop_assert!(available < replicas - assigned && strategy != Strategy::StaticWeight);
                    continue;
                }
            };
            // The sum is kept, and nobody has less than nothing.
            prop_assert_eq!(sum(&divided), *replicas, "{:?} {:?}", algorithm, strategy);
            prop_assert!(divided.clusters.iter().all(|cluster| cluster.replicas >= 0));
            // The same question has the same answer, and the answer, asked again, is itself: no needless moves.
            prop_assert_eq!(&division.divide().unwrap(), &divided);
            let again = Division { current: &divided.clusters, ..division };
            let settled = again.divide();
            if strategy == Strategy::StaticWeight || *replicas > 0 {
                prop_assert_eq!(&settled.unwrap().clusters, &divided.clusters);
            }
            if strategy == Strategy::StaticWeight {
                continue;
            }
            for candidate in candidates {
                let (had, has) = (held(current, &candidate.name), share(&divided, &candidate.name));
                match divided.movement {
                    // Growing takes from nobody, and goes only where there is room. (v1.2 gives what remains of an
                    // aggregated division to clusters in use first, full ones too.)
                    Movement::Up | Movement::Whole => {
                        let over = i64::from(algorithm == Algorithm::V1_2 && strategy == Strategy::Aggregated);
                        prop_assert!(has >= had && has - had <= candidate.available + over);
                    }
                    // Shrinking gives to nobody.
                    Movement::Down => prop_assert!(has <= had),
                    Movement::None => prop_assert_eq!(has, had),
                }
            }
        }
    }
    // Webster: given one by one or with a head start, the seats are the same.
    for strategy in [Strategy::StaticWeight, Strategy::DynamicWeight] {
        let votes = votes(strategy);
        if votes.iter().all(|vote| vote.votes == 0) {
            continue;
        }
        let Seats { shares, .. } = seats(*replicas, &votes, *order);
        if *replicas < 100 {
            prop_assert_eq!(&shares, &one_by_one(*replicas, &votes, *order));
        }
        // Monotone: one replica more takes from nobody.
        let more = seats(replicas + 1, &votes, *order).shares;
        prop_assert!(shares.iter().zip(&more).all(|(before, after)| before <= after));
        // Fair: more votes never mean fewer seats; and no seat given could have gone to a greater claim, that is, some
        // divisor rounds everybody's votes to its seats.
        for (one, given) in votes.iter().zip(&shares) {
            for (other, got) in votes.iter().zip(&shares) {
                prop_assert!(one.votes <= other.votes || given >= got);
                prop_assert!(
                    *given == 0
                        || i128::from(one.votes) * i128::from(2 * got + 1)
                            >= i128::from(other.votes) * i128::from(2 * given - 1)
                );
            }
        }
        // Up to three clusters, nobody is a whole replica away from its exact share (with more, Webster may be).
        let total: i128 = votes.iter().map(|vote| i128::from(vote.votes)).sum();
        let largest: Vec<i64> = {
            let by_weight =
                |vote: &Vote<'_>| Candidate { name: vote.name.into(), tier: 0, weight: vote.votes, available: 0 };
            let candidates: Vec<Candidate> = votes.iter().map(by_weight).collect();
            let division =
                Division { algorithm: Algorithm::V1_2, replicas: *replicas, candidates: &candidates, ..BASE };
            let divided = division.divide().unwrap();
            votes.iter().map(|vote| share(&divided, vote.name)).collect()
        };
        for ((vote, newest), v1_2) in votes.iter().zip(&shares).zip(&largest) {
            let away = |share: i64| (i128::from(share) * total - i128::from(*replicas) * i128::from(vote.votes)).abs();
            prop_assert!(votes.len() > 3 || away(*newest) < total, "{:?} of {:?}", shares, votes);
            // In v1.2 a share is the whole part or one more.
            prop_assert!(away(*v1_2) <= total, "{:?} of {:?}", largest, votes);
        }
    }
    Ok(())
}

/// `STOLOS_DIVISIONS=1000000` for the long form.
fn cases() -> u32 {
    std::env::var("STOLOS_DIVISIONS").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn divisions_keep_the_laws(case in any_case()) {
        check_laws(&case)?;
    }
}

#[test]
fn two_billion_replicas_are_divided_at_once() {
    let votes: Vec<String> = (0..100).map(|at| format!("c{at:02}")).collect();
    let votes: Vec<Vote<'_>> =
        votes.iter().zip(1..).map(|(name, votes)| Vote { name, votes: votes * 1_000_003 }).collect();
    let shares = seats(i64::from(i32::MAX), &votes, NameOrder::Ascending).shares;
    assert_eq!(shares.iter().sum::<i64>(), i64::from(i32::MAX));
    let none: Vec<Vote<'_>> = votes.iter().map(|vote| Vote { votes: 0, ..*vote }).collect();
    assert_eq!(seats(i64::from(i32::MAX), &none, NameOrder::Ascending).shares.iter().sum::<i64>(), i64::from(i32::MAX));
    let huge = [Vote { name: "a", votes: i64::MAX }, Vote { name: "b", votes: i64::MAX }];
    assert_eq!(seats(7, &huge, NameOrder::Ascending).shares, [4, 3]);
}
