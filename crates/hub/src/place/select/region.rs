//! Selection by region: which regions, then which of their clusters.

use std::cmp::Reverse;

use super::Fit;
use crate::divide::Algorithm;
use crate::model::SpreadConstraint;

/// The unit in which clusters of a region count, against scores.
const UNIT: i64 = 1000;
/// So many ways through the regions are looked at. With more regions than anybody has, the search would not end.
const MOST_STEPS: usize = 200_000;

/// The candidates of one region, in their order.
struct Region<'a> {
    name: &'a str,
    clusters: Vec<&'a Fit>,
    score: i64,
}

fn size(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

pub(super) fn select(
    fits: &[Fit],
    by_region: &SpreadConstraint,
    by_cluster: Option<&SpreadConstraint>,
    algorithm: Algorithm,
    replicas: i64,
    need: Option<i64>,
) -> Result<Vec<Fit>, String> {
    let mut regions: Vec<Region<'_>> = Vec::new();
    for fit in fits {
        match regions.iter_mut().find(|region| region.name == fit.region) {
            Some(region) => region.clusters.push(fit),
            None => regions.push(Region { name: &fit.region, clusters: vec![fit], score: 0 }),
        }
    }
    if regions.len() < size(by_region.min_groups) {
        return Err("the number of feasible region is less than spreadConstraint.MinGroups".to_owned());
    }
    let least = by_cluster.map_or(0, |constraint| size(constraint.min_groups));
    let most = by_cluster.map_or(usize::MAX, |constraint| size(constraint.max_groups));
    let chosen: Vec<&Region<'_>> = match algorithm {
        Algorithm::Newest => {
            for region in &mut regions {
                region.score = match need {
                    None => duplicated(region, replicas),
                    Some(need) => divided(region, need, by_region.min_groups.max(1), least),
                };
            }
            regions.sort_by_key(|region| (region.clusters.len(), Reverse(region.score), region.name));
            best_path(&regions, by_region, least)
                .ok_or("the number of clusters is less than the cluster spreadConstraint.MinGroups")?
        }
        Algorithm::V1_2 => {
            for region in &mut regions {
                region.score = region.clusters.iter().map(|fit| fit.score).max().unwrap_or(0);
            }
            regions.sort_by_key(|region| (Reverse(region.score), region.name));
            swapped(&regions, size(by_region.min_groups), least)
                .ok_or("the number of clusters is less than the cluster spreadConstraint.MinGroups")?
        }
    };
    // The first of each region, then others in their order.
    let mut selected: Vec<&Fit> = chosen.iter().filter_map(|region| region.clusters.first().copied()).collect();
    let all: usize = chosen.iter().map(|region| region.clusters.len()).sum();
    let wanted = all.min(most);
    let others: Vec<&Fit> = (fits.iter())
        .filter(|fit| chosen.iter().any(|region| region.name == fit.region) && !selected.contains(fit))
        .collect();
    selected.extend(others.into_iter().take(wanted.saturating_sub(selected.len())));
    Ok(selected.into_iter().cloned().collect())
}

/// How good a region is when each cluster gets all: by how many of its clusters have room.
fn duplicated(region: &Region<'_>, replicas: i64) -> i64 {
    let roomy: Vec<&&Fit> = region.clusters.iter().filter(|fit| fit.room >= replicas).collect();
    let count = i64::try_from(roomy.len()).unwrap_or(i64::MAX);
    if count == 0 {
        return 0;
    }
    UNIT.saturating_mul(count).saturating_add(roomy.iter().map(|fit| fit.score).sum::<i64>() / count)
}

/// How good a region is when replicas are divided: whether its first clusters have room for its part.
fn divided(region: &Region<'_>, replicas: i64, regions: i64, least: usize) -> i64 {
    let part = replicas.div_euclid(regions) + i64::from(replicas.rem_euclid(regions) != 0);
    let least = i64::try_from(least).unwrap_or(i64::MAX).max(regions);
    let (mut room, mut score, mut taken) = (0_i64, 0_i64, 0_i64);
    for fit in &region.clusters {
        room = room.saturating_add(fit.room);
        score += fit.score;
        taken += 1;
        if taken >= least && room >= part {
            return UNIT.saturating_mul(part).saturating_add(score / taken);
        }
    }
    UNIT.saturating_mul(room).saturating_add(if taken == 0 { 0 } else { score / taken })
}

/// The best set of regions: within the numbers wanted and with enough clusters.
fn best_path<'a>(regions: &'a [Region<'a>], by_region: &SpreadConstraint, least: usize) -> Option<Vec<&'a Region<'a>>> {
    let (fewest, most) = (size(by_region.min_groups), size(by_region.max_groups));
    let mut paths: Vec<Vec<usize>> = Vec::new();
    let mut steps = 0;
    walk(regions, (fewest, most, least), 0, &mut Vec::new(), &mut paths, &mut steps);
    let score = |path: &[usize]| path.iter().fold(0_i64, |sum, at| sum.saturating_add(regions[*at].score));
    let clusters = |path: &[usize]| path.iter().map(|at| regions[*at].clusters.len()).sum::<usize>();
    // Stable: what was found first stays first.
    paths.sort_by_key(|path| (Reverse(score(path)), Reverse(clusters(path))));
    for path in &mut paths {
        path.sort_by_key(|at| (Reverse(regions[*at].score), regions[*at].name));
    }
    let mut best = paths.first()?;
    for path in &paths[1..] {
        if path.len() < best.len() && best.starts_with(path) {
            best = path;
        }
    }
    Some(best.iter().map(|at| &regions[*at]).collect())
}

/// Goes through the sets of regions in their order, and no further where one is enough.
fn walk(
    regions: &[Region<'_>],
    wanted @ (fewest, most, least): (usize, usize, usize),
    from: usize,
    path: &mut Vec<usize>,
    paths: &mut Vec<Vec<usize>>,
    steps: &mut usize,
) {
    *steps += 1;
    let clusters: usize = path.iter().map(|at| regions[*at].clusters.len()).sum();
    if !path.is_empty() && clusters >= least && (fewest..=most).contains(&path.len()) {
        paths.push(path.clone());
        return;
    }
    if path.len() >= most {
        return;
    }
    for next in from..regions.len() {
        if *steps >= MOST_STEPS {
            return;
        }
        path.push(next);
        walk(regions, wanted, next + 1, path, paths, steps);
        path.pop();
    }
}

/// v1.2: the best regions, replaced from the last by unused ones with more clusters until there are enough.
fn swapped<'a>(regions: &'a [Region<'a>], count: usize, least: usize) -> Option<Vec<&'a Region<'a>>> {
    let mut chosen: Vec<&Region<'_>> = regions.iter().take(count).collect();
    let mut unused: Vec<&Region<'_>> = regions.iter().skip(count).collect();
    let clusters = |chosen: &[&Region<'_>]| chosen.iter().map(|region| region.clusters.len()).sum::<usize>();
    for at in (0..chosen.len()).rev() {
        if clusters(&chosen) >= least {
            break;
        }
        // The first of those with most clusters.
        let most = (0..unused.len()).max_by_key(|other| (unused[*other].clusters.len(), Reverse(*other)));
        if let Some(other) = most.filter(|other| unused[*other].clusters.len() > chosen[at].clusters.len()) {
            std::mem::swap(&mut chosen[at], &mut unused[other]);
        }
    }
    (clusters(&chosen) >= least).then_some(chosen)
}
