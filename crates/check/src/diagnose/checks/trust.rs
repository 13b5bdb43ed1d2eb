//! Roots, intermediates, trust domains, clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use stolos_k8s::{istio, meta};
use stolos_pki::{Certificate, Refused, verify_chain};

use crate::bundle::MARK;
use crate::diagnose::Severity;
use crate::diagnose::scene::{
    Judgement, Member, Scene, ca_certs, moment_of_validity, secret_keys, secret_text, short, some,
};
use crate::diagnose::snapshot::{instant, since};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Contract D-05: the larger of 30 days and three lives of a workload's certificate (24 h).
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks that differ by less are not worth a word: `Date` has whole seconds, and the network takes its time.
const SKEW: Duration = Duration::from_secs(60);
/// Which difference breaks things: certificates are made valid from a little before, but no more than that.
const BAD_SKEW: Duration = Duration::from_secs(300);
const CACERTS: &str = "Secret istio-system/cacerts";
const ROOT_MAP: &str = "ConfigMap istio-system/istio-ca-root-cert";

fn keys_of(roots: &[Certificate]) -> BTreeSet<Vec<u8>> {
    roots.iter().map(|r| r.public_der().to_vec()).collect()
}

fn prints(roots: &[Certificate]) -> String {
    some(roots.iter().map(|r| short(&r.fingerprint()).to_owned()))
}

/// The root that a cluster's certificates come from: the one its intermediate leads to, if that is in effect; else the
/// first of those it publishes.
fn signing_root<'r>(member: &Member<'_>, published: &'r [Certificate]) -> Option<&'r Certificate> {
    let led = member.cacerts().and_then(ca_certs).and_then(|certs| {
        let signing = Certificate::from_pem(&certs.ca_cert).ok()?;
        let chain = Certificate::all_from_pem(&certs.cert_chain).ok()?;
        let at = moment_of_validity(std::slice::from_ref(&signing))?;
        published.iter().find(|root| verify_chain(&signing, &chain, std::slice::from_ref(*root), at).is_ok())
    });
    led.or(published.first())
}

/// D-01
pub(crate) fn different_roots(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut known = Vec::new();
    for member in &scene.members {
        if !judgement.can_read(member, &["ConfigMap", "Secret"]) {
            continue;
        }
        match member.published_roots().filter(|roots| !roots.is_empty()) {
            Some(roots) => known.push((member, roots)),
            None if member.has_istiod() => judgement.gap(member, format!("{ROOT_MAP} is not there yet")),
            None => {}
        }
    }
    if known.len() < 2 {
        return;
    }
    let signing: Vec<Vec<u8>> = known
        .iter()
        .map(|(member, roots)| signing_root(member, roots).map(|r| r.public_der().to_vec()).unwrap_or_default())
        .collect();
    // The root of most; of equally many, the one of the cluster that the file names first.
    let count = |root: &Vec<u8>| signing.iter().filter(|r| *r == root).count();
    let Some(reference) = (0..known.len()).max_by_key(|i| (count(&signing[*i]), known.len() - i)) else { return };
    let (of, theirs) = &known[reference];
    for (index, (member, roots)) in known.iter().enumerate() {
        judgement.looked();
        let (trusts, is_trusted) =
            (keys_of(roots).contains(&signing[reference]), keys_of(theirs).contains(&signing[index]));
        if trusts && is_trusted {
            continue;
        }
        // Without `cacerts` a control plane signs for itself, unless nobody meant it to sign.
        let by_itself = member.cacerts().is_none() && scene.mesh.authority_elsewhere().is_none();
        let seen = format!(
            "it trusts {} and {} trusts {}{}",
            prints(roots),
            of.name(),
            prints(theirs),
            if by_itself { "; it has no cacerts, so it signs for itself" } else { "" }
        );
        let mend =
            format!("{}; then {}", scene.apply, member.kubectl("-n istio-system rollout restart deployment/istiod"));
        judgement
            .found(member, seen, mend)
            .object(ROOT_MAP)
            .since(member.seen.system("ConfigMap", istio::ROOT_CONFIG_MAP).and_then(since));
    }
}

/// D-02
pub(crate) fn not_in_effect(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["ConfigMap", "Secret", "Pod"]) {
            continue;
        }
        let (Some(secret), true) = (member.cacerts(), member.has_istiod()) else { continue };
        let Some(certs) = ca_certs(secret) else { continue };
        let intended = Certificate::all_from_pem(&certs.root_cert).unwrap_or_default();
        let Some(published) = member.published_roots() else {
            judgement.gap(member, format!("{ROOT_MAP} is not there"));
            continue;
        };
        judgement.looked();
        if intended.is_empty() || keys_of(&intended) == keys_of(&published) {
            continue;
        }
        let own = member.seen.system("Secret", istio::SELF_SIGNED_SECRET);
        let own = own.and_then(|s| Certificate::from_pem(&secret_text(s, istio::CA_CERT_KEY)?).ok());
        let changed = since(secret);
        let older = member.seen.all("Pod").iter().any(|p| {
            meta::label(p, istio::APP_LABEL) == Some(istio::ISTIOD)
                && p["status"]["startTime"].as_str().and_then(instant).zip(changed).is_some_and(|(a, b)| a < b)
        });
        let why = match own {
            Some(own) if keys_of(&published).contains(own.public_der()) => "; that is its own (istio-ca-secret)",
            _ if older => "; the control plane started before the Secret was changed",
            _ => "",
        };
        let seen = format!("cacerts has root {}, in effect is {}{why}", prints(&intended), prints(&published));
        judgement
            .found(member, seen, member.kubectl("-n istio-system rollout restart deployment/istiod"))
            .object(CACERTS)
            .since(changed);
    }
}

/// D-03
pub(crate) fn incomplete(scene: &Scene<'_>, judgement: &mut Judgement) {
    const ISTIO: [&str; 4] = [istio::CA_CERT_KEY, istio::CA_KEY_KEY, istio::CERT_CHAIN_KEY, istio::ROOT_CERT_KEY];
    const TLS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
    for member in scene.primaries() {
        if !judgement.can_read(member, &["Secret"]) {
            continue;
        }
        let Some(secret) = member.cacerts() else { continue };
        judgement.looked();
        let have = secret_keys(secret);
        let wanted: &[&str] = if have.contains("tls.crt") { &TLS } else { &ISTIO };
        let missing: Vec<_> = wanted.iter().filter(|key| !have.contains(*key)).collect();
        if missing.is_empty() {
            continue;
        }
        let odd: Vec<_> = have
            .iter()
            .filter(|key| {
                !ISTIO.contains(key) && !TLS.contains(key) && ![istio::CA_CRL_KEY, "istio-generated"].contains(key)
            })
            .collect();
        let mut seen = format!("{} missing", some(missing));
        if !odd.is_empty() {
            seen += &format!("; there is {}", some(odd));
        }
        if member.istiod_version().is_some_and(|v| v.minor < 26 && v.major == 1) {
            seen += "; this version then signs for itself";
        }
        judgement
            .found(member, seen, member.kubectl(&format!("-n istio-system delete secret cacerts && {}", scene.apply)))
            .object(CACERTS)
            .since(since(secret));
    }
}

/// D-04
pub(crate) fn unusable(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in scene.primaries() {
        if !judgement.can_read(member, &["Secret"]) {
            continue;
        }
        let Some((secret, certs)) = member.cacerts().and_then(|s| Some((s, ca_certs(s)?))) else { continue };
        // Of an archive's keys there are the public halves, where they could be told.
        let public = public_half(certs.ca_key.expose());
        if public.is_none() && certs.ca_key.expose().starts_with(MARK) && !certs.ca_key.expose().contains("encrypted") {
            judgement.gap(member, "the private key of cacerts is not in the archive");
            continue;
        }
        judgement.looked();
        // Time has a cause of its own, so the rest is judged at a moment when all are valid, where there is one.
        let all = [&certs.ca_cert, &certs.cert_chain, &certs.root_cert];
        let all: Vec<_> = all.into_iter().flat_map(|pem| Certificate::all_from_pem(pem).unwrap_or_default()).collect();
        let at = moment_of_validity(&all).unwrap_or(scene.snapshot.now);
        let checked = match public {
            Some(public) => certs.check_with(&public, at),
            None => certs.check(at),
        };
        let why = match checked {
            Ok(_) | Err(Refused::Expired { .. } | Refused::NotYetValid { .. }) => continue,
            Err(_) if certs.ca_key.expose().to_lowercase().contains("encrypted") => {
                "the private key is encrypted".to_owned()
            }
            Err(why) => why.to_string(),
        };
        judgement
            .found(member, why, member.kubectl(&format!("-n istio-system delete secret cacerts && {}", scene.apply)))
            .object(CACERTS)
            .since(since(secret));
    }
}

/// What stands for a key in an archive.
fn public_half(pem: &str) -> Option<Vec<u8>> {
    let body = pem.trim().strip_prefix("-----BEGIN PUBLIC KEY-----")?.strip_suffix("-----END PUBLIC KEY-----")?;
    base64::engine::general_purpose::STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}

/// D-05
pub(crate) fn expired(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["Secret", "ConfigMap"]) {
            continue;
        }
        let now = scene.clock(member);
        let mut all: BTreeMap<String, (&str, Certificate, &str)> = BTreeMap::new();
        let mut add = |pem: &str, what, object| {
            for certificate in Certificate::all_from_pem(pem).unwrap_or_default() {
                all.entry(certificate.fingerprint()).or_insert((what, certificate, object));
            }
        };
        if let Some(certs) = member.cacerts().and_then(ca_certs) {
            add(&certs.ca_cert, "intermediate", CACERTS);
            add(&certs.root_cert, "root", CACERTS);
            add(&certs.cert_chain, "chain", CACERTS);
        }
        if let Some(map) = member.seen.system("ConfigMap", istio::ROOT_CONFIG_MAP) {
            add(map["data"][istio::ROOT_CERT_KEY].as_str().unwrap_or_default(), "root", ROOT_MAP);
        }
        for (what, certificate, object) in all.values() {
            judgement.looked();
            let end = certificate.not_after();
            let life = end.duration_since(certificate.not_before()).unwrap_or_default();
            let left = end.duration_since(now).ok();
            // One that was made to live shortly is renewed at half its life.
            let (seen, severity) = match left {
                None => (format!("{what} `{}` has expired", certificate.subject()), Severity::Error),
                Some(left) if left < SOON.min(life / 2) => {
                    let days = left.as_secs() / DAY.as_secs();
                    (format!("{what} `{}` ends in {days} days", certificate.subject()), Severity::Warning)
                }
                Some(_) => continue,
            };
            let since = (severity == Severity::Error).then_some(end);
            judgement.found(member, seen, scene.apply.clone()).object(*object).since(since).severity(severity);
        }
    }
}

/// D-06
pub(crate) fn clocks(scene: &Scene<'_>, judgement: &mut Judgement) {
    const MEND: &str = "let every node and this machine follow one time source (chrony or systemd-timesyncd)";
    let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).unwrap_or_else(|e| e.duration());
    let seconds = |d: Duration| format!("{} s", d.as_secs());
    for member in &scene.members {
        match member.seen.clock {
            None => judgement.gap(member, "the API server's answers carry no time"),
            Some(clock) => {
                judgement.looked();
                let skew = apart(clock.api, clock.local);
                if skew > SKEW {
                    let ahead = if clock.api > clock.local { "ahead of" } else { "behind" };
                    let seen = format!("the API server's clock is {} {ahead} this machine's", seconds(skew));
                    let severity = if skew > BAD_SKEW { Severity::Error } else { Severity::Warning };
                    judgement.found(member, seen, MEND).severity(severity);
                }
            }
        }
        let now = scene.clock(member);
        for lease in member.seen.all("Lease").iter().filter(|l| meta::namespace(l) == "kube-node-lease") {
            judgement.looked();
            let renewed = lease["spec"]["renewTime"].as_str().and_then(instant);
            // Only the future tells: a node that says nothing is not one whose clock is late.
            if let Some(ahead) = renewed.and_then(|at| at.duration_since(now).ok()).filter(|a| *a > SKEW) {
                let seen = format!("node {} writes a time {} in the future", meta::name(lease), seconds(ahead));
                judgement.found(member, seen, MEND).object(format!("Lease {}", meta::name(lease)));
            }
        }
        let Some(certs) = member.cacerts().and_then(ca_certs) else { continue };
        for certificate in
            [&certs.ca_cert, &certs.root_cert].iter().flat_map(|pem| Certificate::all_from_pem(pem).unwrap_or_default())
        {
            judgement.looked();
            if let Ok(ahead) = certificate.not_before().duration_since(now)
                && ahead > Duration::from_secs(1)
            {
                let seen = format!("`{}` is valid only in {}", certificate.subject(), seconds(ahead));
                judgement.found(member, seen, MEND).object(CACERTS);
            }
        }
    }
}

/// D-30
pub(crate) fn domains(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut all = Vec::new();
    for member in scene.primaries() {
        if !judgement.can_read(member, &["ConfigMap"]) || member.mesh_config_map().is_none() {
            continue;
        }
        let config = member.mesh_config();
        let domain = config["trustDomain"].as_str().unwrap_or(istio::DEFAULT_DOMAIN).to_owned();
        let aliases = config["trustDomainAliases"].as_array().into_iter().flatten().filter_map(|a| a.as_str());
        let accepted: BTreeSet<String> = aliases.map(str::to_owned).chain([domain.clone()]).collect();
        all.push((member, domain, accepted));
    }
    if all.len() < 2 {
        return;
    }
    let count = |domain: &str| all.iter().filter(|(_, d, _)| d == domain).count();
    let Some(reference) = (0..all.len()).max_by_key(|i| (count(&all[*i].1), all.len() - i)) else { return };
    let (of, theirs, accepted) = &all[reference];
    for (member, domain, own) in &all {
        judgement.looked();
        if own.contains(theirs) && accepted.contains(domain) {
            continue;
        }
        let seen = format!(
            "its trust domain is {domain}, that of {} is {theirs}, and neither is the other's alias",
            of.name()
        );
        judgement
            .found(member, seen, scene.apply.clone())
            .object("ConfigMap istio-system/istio")
            .since(member.mesh_config_map().and_then(since));
    }
}
