//! What runs in each cluster, and how it is set.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stolos_k8s::{istio, meta};
use stolos_pki::Certificate;
use stolos_spec::Role;

use crate::diagnose::scene::{Engine, Judgement, Member, Scene, Version, is_system, selects, some};
use crate::diagnose::snapshot::{From, Touch, is_ready, named, since};

/// The value that most have; of equally many, the one that comes first.
fn most<'v, T: PartialEq>(all: &'v [(&Member<'_>, T)]) -> Option<&'v T> {
    let count = |value: &T| all.iter().filter(|(_, v)| v == value).count();
    (0..all.len()).max_by_key(|i| (count(&all[*i].1), all.len() - i)).map(|i| &all[i].1)
}

/// D-29
pub(crate) fn mesh_id(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut all = Vec::new();
    for member in scene.primaries() {
        if !judgement.can_read(member, &["ConfigMap"]) {
            continue;
        }
        let (values, config) = (member.values(), member.mesh_config());
        let id = values["global"]["meshID"]
            .as_str()
            .or(config["defaultConfig"]["meshId"].as_str())
            .filter(|id| !id.is_empty());
        if let Some(id) = id {
            all.push((member, id.to_owned()));
        }
    }
    let Some(common) = most(&all).cloned() else { return };
    for (member, id) in &all {
        judgement.looked();
        if *id != common {
            judgement
                .found(member, format!("its mesh ID is {id}, that of the others {common}"), scene.apply.clone())
                .object("ConfigMap istio-system/istio-sidecar-injector")
                .since(member.seen.system("ConfigMap", istio::INJECTOR_CONFIG_MAP).and_then(since));
        }
    }
}

/// D-31
pub(crate) fn versions(scene: &Scene<'_>, judgement: &mut Judgement) {
    let mut newest: Option<(&str, Version)> = None;
    for member in scene.primaries() {
        if judgement.can_read(member, &["Deployment", "Pod"])
            && let Some(version) = member
                .seen
                .istiod_deployments()
                .filter_map(|d| Version::of_image(d["spec"]["template"]["spec"]["containers"][0]["image"].as_str()?))
                .max()
            && newest.is_none_or(|(_, n)| n < version)
        {
            newest = Some((member.name(), version));
        }
    }
    let Some((of, newest)) = newest else { return };
    for member in scene.primaries() {
        let Some(version) = member.istiod_version() else { continue };
        judgement.looked();
        let apart = |older: Version, by: u32| older.major == newest.major && older.minor + by < newest.minor;
        if version.major != newest.major || apart(version, 1) {
            judgement
                .found(
                    member,
                    format!("its control plane is {version}, that of {of} is {newest}"),
                    "upgrade one minor version at a time, base and control plane before gateways",
                )
                .object("Deployment istio-system/istiod");
        }
        let old: Vec<_> = member
            .proxied()
            .filter_map(|(pod, proxy)| Some((pod, Version::of_image(proxy["image"].as_str()?)?)))
            .filter(|(_, v)| v.major != version.major || v.minor + 2 < version.minor)
            .collect();
        if let Some((pod, proxy)) = old.first() {
            let seen = format!(
                "proxies are {proxy} under a control plane of {version}: {}",
                some(old.iter().map(|(p, _)| meta::name(p)))
            );
            let mend = member.kubectl(&format!("-n {} rollout restart deployment", meta::namespace(pod)));
            judgement.found(member, seen, mend).object(named("Pod", pod));
        }
    }
}

/// D-32
pub(crate) fn flags(scene: &Scene<'_>, judgement: &mut Judgement) {
    type Read = fn(&Member<'_>) -> Value;
    const FLAGS: [(&str, Read); 7] = [
        ("DNS capture (defaultConfig.proxyMetadata)", |m| {
            m.mesh_config()["defaultConfig"]["proxyMetadata"]["ISTIO_META_DNS_CAPTURE"].clone()
        }),
        ("serviceSettings (clusterLocal)", |m| m.mesh_config()["serviceSettings"].clone()),
        ("localityLbSetting", |m| m.mesh_config()["localityLbSetting"].clone()),
        ("outboundTrafficPolicy", |m| m.mesh_config()["outboundTrafficPolicy"].clone()),
        ("rootNamespace", |m| m.mesh_config()["rootNamespace"].clone()),
        ("ISTIO_MULTIROOT_MESH", |m| m.istiod_env("ISTIO_MULTIROOT_MESH").into()),
        ("clusterDomain", |m| m.values()["global"]["proxy"]["clusterDomain"].clone()),
    ];
    let mut members = Vec::new();
    for member in scene.primaries() {
        if judgement.can_read(member, &["ConfigMap", "Deployment"]) && member.mesh_config_map().is_some() {
            members.push(member);
        }
    }
    if members.len() < 2 {
        return;
    }
    for (what, read) in FLAGS {
        let all: Vec<_> = members.iter().map(|m| (*m, read(m))).collect();
        let Some(common) = most(&all) else { continue };
        for (member, value) in &all {
            judgement.looked();
            if value != common {
                let text = |v: &Value| if v.is_null() { "not set".to_owned() } else { v.to_string() };
                judgement
                    .found(
                        member,
                        format!("{what} is {} here and {} elsewhere", text(value), text(common)),
                        scene.apply.clone(),
                    )
                    .object("ConfigMap istio-system/istio")
                    .since(member.mesh_config_map().and_then(since));
            }
        }
    }
}

/// D-40
pub(crate) fn selectors(scene: &Scene<'_>, judgement: &mut Judgement) {
    for reader in scene.primaries() {
        if !judgement.can_read(reader, &["ConfigMap"]) {
            continue;
        }
        let config = reader.mesh_config();
        let Some(selectors) = config["discoverySelectors"].as_array().filter(|s| !s.is_empty()) else { continue };
        let mut visible: BTreeMap<&str, (Vec<&Member<'_>>, Vec<&Member<'_>>)> = BTreeMap::new();
        for member in scene.members.iter().filter(|m| judgement.can_read(m, &["Namespace", "Service"])) {
            let with_services: BTreeSet<&str> = member.services().map(meta::namespace).collect();
            for name in with_services {
                let labels = member.namespace(name).map(meta::labels).unwrap_or_default();
                let entry = visible.entry(name).or_default();
                if selectors.iter().any(|s| selects(s, &labels)) { entry.0.push(member) } else { entry.1.push(member) }
            }
        }
        for (namespace, (shown, hidden)) in visible {
            judgement.looked();
            let (Some(shown), false) = (shown.first(), hidden.is_empty()) else { continue };
            for member in hidden {
                let seen = format!(
                    "the discoverySelectors of {} select namespace {namespace} in {} and not here",
                    reader.name(),
                    shown.name()
                );
                let labels = shown.namespace(namespace).map(meta::labels).unwrap_or_default();
                let wanted: Vec<_> = labels
                    .iter()
                    .filter(|(k, _)| !k.starts_with("kubernetes.io/"))
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect();
                let mend = member.kubectl(&format!("label namespace {namespace} {}", wanted.join(" ")));
                judgement
                    .found(member, seen, mend)
                    .object(format!("Namespace {namespace}"))
                    .since(member.namespace(namespace).and_then(since));
            }
        }
    }
}

fn injectors<'a>(member: &Member<'a>) -> impl Iterator<Item = &'a Value> {
    member.seen.all("MutatingWebhookConfiguration").iter().filter(|w| {
        let own = |hook: &Value| hook["name"].as_str().is_some_and(|n| n.ends_with(istio::INJECTOR_WEBHOOK_SUFFIX));
        meta::label(w, "app") == Some("sidecar-injector")
            || w["webhooks"].as_array().is_some_and(|all| all.iter().any(own))
    })
}

/// D-48
pub(crate) fn two_defaults(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["MutatingWebhookConfiguration", "Namespace"]) {
            continue;
        }
        let injectors: Vec<_> = injectors(member).collect();
        if injectors.is_empty() {
            continue;
        }
        judgement.looked();
        let mut said = BTreeSet::new();
        for namespace in member.seen.all("Namespace").iter().filter(|n| !is_system(meta::name(n))) {
            let labels = meta::labels(namespace);
            // Pods mostly say nothing of injection themselves.
            let matching: Vec<_> = injectors
                .iter()
                .filter(|w| {
                    w["webhooks"].as_array().into_iter().flatten().any(|hook| {
                        selects(&hook["namespaceSelector"], &labels)
                            && selects(&hook["objectSelector"], &BTreeMap::new())
                    })
                })
                .map(|w| meta::name(w))
                .collect();
            if matching.len() > 1 && said.insert(matching.clone()) {
                let seen =
                    format!("pods of namespace {} are injected by {}", meta::name(namespace), matching.join(" and "));
                let mend = format!(
                    "keep one: {}",
                    member.kubectl(&format!("delete mutatingwebhookconfiguration {}", matching[matching.len() - 1]))
                );
                judgement
                    .found(member, seen, mend)
                    .object(format!("MutatingWebhookConfiguration {}", matching[matching.len() - 1]));
            }
            let both = labels.get(istio::INJECTION_LABEL).is_some_and(|v| v == istio::INJECTION_ENABLED)
                && labels.contains_key(istio::REVISION_LABEL);
            if both {
                let seen = format!(
                    "it has both labels, {} and {}; the first wins",
                    istio::INJECTION_LABEL,
                    istio::REVISION_LABEL
                );
                let mend =
                    member.kubectl(&format!("label namespace {} {}-", meta::name(namespace), istio::INJECTION_LABEL));
                judgement
                    .found(member, seen, mend)
                    .object(format!("Namespace {}", meta::name(namespace)))
                    .since(since(namespace));
            }
        }
    }
}

/// Why nobody answers a webhook's call, if nobody does.
fn unanswered(member: &Member<'_>, hook: &Value) -> Option<String> {
    let service = hook["clientConfig"]["service"].as_object()?;
    let (namespace, name) = (service["namespace"].as_str()?, service["name"].as_str()?);
    let Some(found) = member.seen.get("Service", namespace, name) else {
        return Some(format!("Service {namespace}/{name} does not exist"));
    };
    if found["spec"]["type"] == "ExternalName" {
        return Some(format!("Service {namespace}/{name} is of type ExternalName, which webhooks cannot use"));
    }
    let ready = member
        .seen
        .all("EndpointSlice")
        .iter()
        .filter(|s| meta::namespace(s) == namespace && meta::label(s, istio::SERVICE_NAME_LABEL) == Some(name))
        .flat_map(|s| s["endpoints"].as_array().into_iter().flatten())
        .any(|e| e["conditions"]["ready"] != false);
    (!ready).then(|| format!("Service {namespace}/{name} has no ready endpoint"))
}

fn fails_closed(hook: &Value) -> bool {
    hook["failurePolicy"].as_str().is_none_or(|policy| policy == "Fail")
}

/// D-49
pub(crate) fn dead_webhook(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["MutatingWebhookConfiguration", "Service", "EndpointSlice"]) {
            continue;
        }
        for webhook in injectors(member) {
            judgement.looked();
            // A remote's own injector is its primary's: why that cannot be reached is another cause (D-46), and to delete
            // the webhook would mend nothing.
            let revision = scene.mesh.control_plane.revision.as_deref().unwrap_or_default();
            let of_primary = |h: &Value| {
                let istiod = istio::with_revision(istio::ISTIOD, revision);
                !member.is_primary() && h["clientConfig"]["service"]["name"] == istiod.as_str()
            };
            let hooks = webhook["webhooks"].as_array().into_iter().flatten();
            let hooks = hooks.filter(|h| fails_closed(h) && !of_primary(h));
            if let Some(why) = hooks.filter_map(|h| unanswered(member, h)).next() {
                // One of the control plane that is here is mended by bringing it back, any other goes.
                let revision = meta::label(webhook, istio::REVISION_LABEL);
                let lives = member.seen.istiod_deployments().any(|d| {
                    meta::label(d, istio::REVISION_LABEL) == revision
                        && !meta::name(webhook).contains(istio::REVISION_TAG_PREFIX)
                });
                let mend = if lives {
                    scene.apply.clone()
                } else {
                    member.kubectl(&format!("delete mutatingwebhookconfiguration {}", meta::name(webhook)))
                };
                judgement
                    .found(member, format!("{why}, and its failurePolicy is Fail"), mend)
                    .object(format!("MutatingWebhookConfiguration {}", meta::name(webhook)))
                    .since(since(webhook));
            }
        }
    }
}

/// D-59
pub(crate) fn definitions(scene: &Scene<'_>, judgement: &mut Judgement) {
    const NEEDED: [&str; 6] = [
        "gateways.networking.istio.io",
        "virtualservices.networking.istio.io",
        "destinationrules.networking.istio.io",
        "serviceentries.networking.istio.io",
        "peerauthentications.security.istio.io",
        "authorizationpolicies.security.istio.io",
    ];
    for member in &scene.members {
        if !judgement.can_read(
            member,
            &["CustomResourceDefinition", "ValidatingWebhookConfiguration", "Service", "EndpointSlice"],
        ) {
            continue;
        }
        if member.has_istiod() {
            judgement.looked();
            let served = |name: &&str| {
                member.seen.all("CustomResourceDefinition").iter().any(|c| {
                    let conditions = c["status"]["conditions"].as_array().into_iter().flatten();
                    meta::name(c) == *name
                        && conditions.into_iter().any(|c| c["type"] == "Established" && c["status"] == "True")
                })
            };
            let missing: Vec<_> = NEEDED.iter().filter(|name| !served(name)).collect();
            if let Some(first) = missing.first() {
                judgement
                    .found(member, format!("not served: {}", some(&missing)), scene.apply.clone())
                    .object(format!("CustomResourceDefinition {first}"));
            }
        }
        let ours = |w: &&Value| {
            let rule = |r: &Value| {
                r["apiGroups"]
                    .as_array()
                    .is_some_and(|g| g.iter().any(|g| g.as_str().is_some_and(|g| g.ends_with(".istio.io"))))
            };
            w["webhooks"]
                .as_array()
                .is_some_and(|all| all.iter().any(|h| h["rules"].as_array().is_some_and(|r| r.iter().any(rule))))
        };
        for webhook in member.seen.all("ValidatingWebhookConfiguration").iter().filter(ours) {
            judgement.looked();
            let hooks = webhook["webhooks"].as_array().into_iter().flatten().filter(|h| fails_closed(h));
            if let Some(why) = hooks.filter_map(|h| unanswered(member, h)).next() {
                judgement
                    .found(
                        member,
                        format!("{why}, so every object of Istio's is refused"),
                        member.kubectl(&format!("delete validatingwebhookconfiguration {}", meta::name(webhook))),
                    )
                    .object(format!("ValidatingWebhookConfiguration {}", meta::name(webhook)))
                    .since(since(webhook));
            }
        }
    }
}

/// Remote clusters that answered, with their primaries' names.
fn remotes<'s, 'a>(scene: &'s Scene<'a>) -> impl Iterator<Item = (&'s Member<'a>, &'a str)> {
    scene.members.iter().filter_map(|m| match &m.wanted.role {
        Role::Remote { primary } => Some((m, primary.as_str())),
        Role::Primary => None,
    })
}

/// D-45
pub(crate) fn attached(scene: &Scene<'_>, judgement: &mut Judgement) {
    for (member, primary) in remotes(scene) {
        if !judgement.can_read(member, &["Namespace", "ConfigMap", "MutatingWebhookConfiguration"]) {
            continue;
        }
        judgement.looked();
        let Some(namespace) = member.seen.system_namespace() else {
            judgement
                .found(member, "there is no namespace istio-system", scene.apply.clone())
                .object("Namespace istio-system");
            continue;
        };
        let named = meta::annotation(namespace, istio::CONTROL_PLANE_CLUSTERS_ANNOTATION).unwrap_or_default();
        if !named.split(',').any(|c| [primary, "*"].contains(&c.trim())) {
            let seen = format!(
                "the annotation {} is {}, it should name {primary}",
                istio::CONTROL_PLANE_CLUSTERS_ANNOTATION,
                if named.is_empty() { "absent" } else { named }
            );
            judgement.found(member, seen, scene.apply.clone()).object("Namespace istio-system").since(since(namespace));
        }
        if let Some(serving) = scene.member(primary)
            && judgement.can_read(serving, &["Deployment"])
            && serving.engine() == Engine::Istio
            && serving.has_istiod()
            && serving.istiod_env("EXTERNAL_ISTIOD") != Some(istio::TRUE)
        {
            judgement
                .found(
                    member,
                    format!(
                        "the control plane of {primary} has no EXTERNAL_ISTIOD=true, so it serves no other cluster"
                    ),
                    scene.apply.clone(),
                )
                .object("Deployment istio-system/istiod");
        }
        match member.published_roots() {
            None => {
                judgement
                    .found(member, "the primary has published no root here", scene.apply.clone())
                    .object("ConfigMap istio-system/istio-ca-root-cert");
            }
            Some(roots) => {
                for webhook in injectors(member) {
                    let bundle = |hook: &Value| -> Vec<Certificate> {
                        use base64::Engine as _;
                        let pem = hook["clientConfig"]["caBundle"]
                            .as_str()
                            .and_then(|b| base64::engine::general_purpose::STANDARD.decode(b).ok());
                        pem.and_then(|p| Certificate::all_from_pem(std::str::from_utf8(&p).ok()?).ok())
                            .unwrap_or_default()
                    };
                    let hooks: Vec<_> = webhook["webhooks"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter(|h| h["clientConfig"]["service"].is_object())
                        .collect();
                    if hooks.iter().any(|h| !bundle(h).iter().any(|c| roots.contains(c))) {
                        judgement
                            .found(member, "its caBundle is not the root of the mesh", scene.apply.clone())
                            .object(format!("MutatingWebhookConfiguration {}", meta::name(webhook)));
                    }
                }
            }
        }
    }
}

/// D-46
pub(crate) fn injector(scene: &Scene<'_>, judgement: &mut Judgement) {
    for (member, _) in remotes(scene) {
        match &member.seen.injection {
            None => judgement.gap(member, "no namespace asks for sidecars, so none could be asked for"),
            Some(tried) => match (tried.value(), tried.why()) {
                (Some(Ok(())), _) => judgement.looked(),
                (Some(Err(why)), _) => {
                    judgement.looked();
                    judgement
                        .found(
                            member,
                            format!("a pod that asks for a sidecar is refused: {why}"),
                            member.kubectl("-n istio-system get service,endpointslice"),
                        )
                        .object("MutatingWebhookConfiguration istio-sidecar-injector");
                }
                (None, why) => judgement.gap(member, why.unwrap_or_default()),
            },
        }
    }
}

/// D-47
pub(crate) fn exposed_istiod(scene: &Scene<'_>, judgement: &mut Judgement) {
    for (member, primary) in remotes(scene) {
        let probes: Vec<_> = member
            .seen
            .gateways
            .iter()
            .filter(|p| p.cluster == primary && p.port == istio::XDS_PORT && p.from == From::Here)
            .collect();
        if probes.is_empty() {
            judgement.gap(member, format!("no gateway of {primary} to dial"));
        }
        for probe in probes {
            let Some(shaken) = &probe.handshake else {
                let why = probe.touch.value().map_or("it was not dialled".to_owned(), Touch::to_string);
                judgement.gap(member, format!("{}:{}: {why}", probe.address, probe.port));
                continue;
            };
            judgement.looked();
            let leaf = shaken.chain.as_ref().ok().and_then(|c| Certificate::from_der(c.first()?.clone().into()).ok());
            let seen = match (&shaken.chain, leaf) {
                (Err(why), _) => {
                    format!("a handshake with {}:{} for {} failed: {why}", probe.address, probe.port, shaken.sni)
                }
                (_, Some(leaf)) if leaf.dns_names().contains(&shaken.sni) => continue,
                (_, leaf) => {
                    let names = leaf.map(|l| some(l.dns_names())).unwrap_or_default();
                    format!("{}:{} shows a certificate for {names}, not for {}", probe.address, probe.port, shaken.sni)
                }
            };
            let mend = format!(
                "{}; then kubectl --context {} -n istio-system get gateway,virtualservice",
                scene.apply,
                scene.member(primary).map_or(primary, |m| m.seen.context.as_str())
            );
            judgement
                .found(member, seen, mend)
                .object(format!("Gateway istio-system/{} of {primary}", istio::ISTIOD_GATEWAY));
        }
        if let Some(serving) = scene.member(primary) {
            let ready = serving.seen.istiods.len();
            if ready == 0
                && !serving
                    .seen
                    .all("Pod")
                    .iter()
                    .any(|p| is_ready(p) && meta::label(p, istio::APP_LABEL) == Some(istio::ISTIOD))
            {
                judgement.gap(member, format!("no control plane's pod is ready in {primary}"));
            }
        }
    }
}
