//! Which places are used first, and how much of each.

use std::collections::BTreeMap;

use stolos_k8s::istio;

use super::endpoints::{Group, total};
use crate::model::{Distribution, Labels, Locality, ProxyInfo, Service, World};
use crate::policy::{LocalitySetting, PortPolicy};

/// Applies the locality setting that is in effect for these groups (Istio 1.30, section 7).
///
/// Failover priorities exist only where a DestinationRule asks for outlier detection, as in Istio: the ejection that
/// this control plane writes by itself does not turn them on.
pub(super) fn prefer(
    groups: &mut Vec<Group>,
    world: &World,
    proxy: &ProxyInfo,
    service: &Service,
    policy: &PortPolicy,
) {
    if let Some(setting) = &policy.locality {
        if !setting.disabled {
            apply(groups, proxy, setting, policy.outlier.is_some());
        }
    } else if let Some(distribution) = service.distribution {
        let mut labels = vec![istio::NETWORK_LABEL, istio::REGION_LABEL, istio::ZONE_LABEL];
        if distribution == Distribution::SameNode {
            labels.extend([istio::SUBZONE_LABEL, HOSTNAME_LABEL]);
        }
        let failover_priority = labels.into_iter().map(str::to_owned).collect();
        apply(groups, proxy, &LocalitySetting { failover_priority, ..Default::default() }, true);
    } else {
        let default = LocalitySetting::default();
        let setting = world.settings.locality.as_ref().unwrap_or(&default);
        if !setting.disabled {
            apply(groups, proxy, setting, policy.outlier.is_some());
        }
    }
}

/// The node's name, as a label.
pub(crate) const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

fn apply(groups: &mut Vec<Group>, proxy: &ProxyInfo, setting: &LocalitySetting, failover: bool) {
    if !setting.distribute.is_empty() {
        distribute(groups, &proxy.locality, setting);
    } else if failover {
        if setting.failover_priority.is_empty() {
            by_distance(groups, &proxy.locality, setting);
        } else {
            by_labels(groups, proxy, &setting.failover_priority);
            if !setting.failover.is_empty() {
                by_distance(groups, &proxy.locality, setting);
            }
        }
    }
}

/// 7.2: nearer places first.
fn by_distance(groups: &mut [Group], from: &Locality, setting: &LocalitySetting) {
    if from.is_empty() {
        return;
    }
    let partner = setting.failover.iter().find(|(region, _)| *region == from.region).map(|(_, to)| to);
    for group in groups.iter_mut() {
        let to = &group.locality;
        let raw = if to.region != from.region {
            if partner.is_some_and(|partner| *partner != to.region) { 4 } else { 3 }
        } else if to.zone != from.zone {
            2
        } else if to.subzone != from.subzone {
            1
        } else {
            0
        };
        group.priority = group.priority * 5 + raw;
    }
    compact(groups);
}

/// 7.3: the more of these labels match, in their order, the earlier.
fn by_labels(groups: &mut Vec<Group>, proxy: &ProxyInfo, names: &[String]) {
    if proxy.labels.is_empty() && proxy.locality.is_empty() {
        return;
    }
    let own = labels_of(proxy);
    let mut split = Vec::new();
    for group in groups.drain(..) {
        if group.endpoints.is_empty() {
            split.push(Group { priority: names.len() as u32, ..group });
            continue;
        }
        let mut by_priority = BTreeMap::<u32, Vec<_>>::new();
        for endpoint in group.endpoints {
            let matches = |name: &String| {
                let (name, wanted) = match name.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (name.as_str(), own.get(name).map(String::as_str)),
                };
                endpoint.labels.get(name).map_or("", String::as_str) == wanted.unwrap_or_default()
            };
            let matched = names.iter().take_while(|name| matches(name)).count();
            by_priority.entry((names.len() - matched) as u32).or_default().push(endpoint);
        }
        for (priority, endpoints) in by_priority {
            let weight = total(&endpoints);
            split.push(Group { locality: group.locality.clone(), endpoints, weight, priority });
        }
    }
    *groups = split;
    compact(groups);
}

/// The proxy's labels, with those that follow from where it runs.
fn labels_of(proxy: &ProxyInfo) -> Labels {
    let mut labels = proxy.labels.clone();
    let derived = [
        (istio::NETWORK_LABEL, &*proxy.network),
        (istio::CLUSTER_LABEL, &*proxy.cluster),
        (istio::REGION_LABEL, &proxy.locality.region),
        (istio::ZONE_LABEL, &proxy.locality.zone),
        (istio::SUBZONE_LABEL, &proxy.locality.subzone),
        (HOSTNAME_LABEL, &proxy.node),
    ];
    for (name, value) in derived {
        if !value.is_empty() {
            labels.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    labels
}

/// Makes priorities 0, 1, 2, … without holes.
fn compact(groups: &mut [Group]) {
    let mut used: Vec<_> = groups.iter().map(|group| group.priority).collect();
    used.sort_unstable();
    used.dedup();
    for group in groups {
        group.priority = used.binary_search(&group.priority).unwrap_or_default() as u32;
    }
}

/// 7.4: fixed shares.
fn distribute(groups: &mut [Group], from: &Locality, setting: &LocalitySetting) {
    let Some((_, to)) = setting.distribute.iter().find(|(pattern, _)| covers(pattern, from)) else { return };
    let mut taken = vec![false; groups.len()];
    for (pattern, share) in to {
        let matched: Vec<_> =
            (0..groups.len()).filter(|at| !taken[*at] && covers(pattern, &groups[*at].locality)).collect();
        let sum: u64 = matched.iter().map(|at| u64::from(groups[*at].weight.unwrap_or_default())).sum();
        for at in matched {
            taken[at] = true;
            if let (Some(weight), 1..) = (groups[at].weight, sum) {
                let weight = (u64::from(weight) * u64::from(*share)).div_ceil(sum);
                groups[at].weight = u32::try_from(weight).ok();
            }
        }
    }
    for (group, taken) in groups.iter_mut().zip(taken) {
        if !taken {
            group.endpoints.clear();
            group.weight = None;
        }
    }
}

/// Whether a pattern, in which anything may be `*` or missing, is this place.
fn covers(pattern: &str, place: &Locality) -> bool {
    let mut parts = pattern.splitn(3, '/');
    let mut fits = |value: &str| parts.next().is_none_or(|part| part.is_empty() || part == "*" || part == value);
    fits(&place.region) && fits(&place.zone) && fits(&place.subzone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_places() {
        let place = Locality::parse("r1/z1/s1");
        for pattern in ["*", "r1", "r1/*", "r1/z1", "r1/z1/*", "r1/z1/s1"] {
            assert!(covers(pattern, &place), "{pattern}");
        }
        for pattern in ["r2", "r1/z2/*", "r1/z1/s2"] {
            assert!(!covers(pattern, &place), "{pattern}");
        }
    }
}
