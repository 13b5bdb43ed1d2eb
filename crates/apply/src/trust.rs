//! Looks at the trust of one cluster: what `cacerts` intends, what its control planes show and publish, and what every
//! proxy has, by the proxy's own words.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream::{self, StreamExt as _};
use serde_json::Value;
use stolos_cluster::{Cluster, Error, forward, objects};
use stolos_k8s::{istio, meta};
use stolos_pki::Certificate;
use stolos_plan::rotation::{ClusterTrust, Held};
use stolos_plan::secret_text;

use crate::observe::resource;
use stolos_serve::because;

/// How many pods of one cluster are looked into at a time.
const AT_ONCE: usize = 16;
/// The page of a proxy's with the secrets it uses; what `istioctl proxy-config secret` reads.
const SECRETS: &str = "/config_dump?resource=dynamic_active_secrets";
/// Envoy's own pages.
const ADMIN_PORT: u16 = 15000;

/// Proxies that were seen to be as wanted and need not be looked into again, by the UID of their pods.
pub(crate) type Seen = BTreeSet<String>;

/// What there is now. Proxies of `seen` are left out; so `uids` says which pod each of the others is.
pub(crate) struct Look {
    pub(crate) trust: ClusterTrust,
    /// UIDs of the pods of `trust.proxies`, in the same order.
    pub(crate) uids: Vec<String>,
    /// How many proxies there are, those of `seen` included.
    pub(crate) proxies: usize,
}

/// Looks at everything in `cluster` but the proxies of `seen`. What cannot be listed is said in the result.
pub(crate) async fn look(cluster: &Cluster, seen: &Seen) -> Look {
    let client = &cluster.client;
    let list = |version: &'static str, kind: &'static str, labels: Option<&'static str>| async move {
        objects::list(client, &resource(version, kind), None, labels).await
    };
    let cacerts = async {
        let secrets = resource("v1", "Secret");
        objects::get(client, &secrets, Some(istio::SYSTEM_NAMESPACE), istio::CACERTS_SECRET).await
    };
    let (pods, published, mutating, validating, cacerts) = tokio::join!(
        list("v1", "Pod", None),
        list("v1", "ConfigMap", Some("istio.io/config=true")),
        list("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None),
        list("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", None),
        cacerts,
    );
    let mut trust = ClusterTrust::default();
    let mut listed = |what: &str, answer: Result<Vec<Value>, Error>| match answer {
        Ok(found) => found,
        Err(error) => {
            trust.unread.push(format!("{what}: not measured ({})", because(&error)));
            vec![]
        }
    };
    let (pods, published) = (listed("pods", pods), listed("istio-ca-root-cert", published));
    let mut webhooks = listed("webhooks", mutating);
    webhooks.extend(listed("webhooks", validating));
    let cacerts = listed("cacerts", cacerts.map(|found| found.into_iter().collect()));

    let signing = cacerts.first().and_then(|secret| secret_text(secret, istio::CA_CERT_KEY));
    trust.signing = signing.and_then(|pem| Certificate::from_pem(&pem).ok());
    let stays = |object: &&Value| meta::deletion_timestamp(object).is_none();
    for map in published.iter().filter(|map| meta::name(map) == istio::ROOT_CONFIG_MAP).filter(stays) {
        let pem = map["data"][istio::ROOT_CERT_KEY].as_str().unwrap_or_default();
        trust.published.push((meta::namespace(map).to_owned(), all(pem)));
    }
    trust.webhooks = webhooks.iter().filter_map(bundle).collect();

    trust.control_planes = control_planes(client, &pods).await;

    let proxies: Vec<_> = pods.iter().filter(|pod| runs(pod, istio::PROXY_CONTAINER)).collect();
    let asking = proxies.iter().filter(|pod| !seen.contains(meta::uid(pod))).map(|pod| {
        let (namespace, name, uid) = (meta::namespace(pod).to_owned(), meta::name(pod).to_owned(), meta::uid(pod));
        let passes_on = is_gateway(pod);
        async move {
            let page = forward::page(client, &namespace, &name, ADMIN_PORT, SECRETS).await;
            let held = page.map_err(|error| because(&error)).and_then(|text| {
                let dump: Value =
                    serde_json::from_str(&text).map_err(|error| format!("its config dump is no JSON: {error}"))?;
                if passes_on && is_without_secrets(&dump) { Ok(None) } else { held(&dump).map(Some) }
            });
            (uid.to_owned(), (format!("{name}.{namespace}"), held))
        }
    });
    let asked: Vec<_> = stream::iter(asking.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
    let mut uids = Vec::new();
    for (uid, (name, held)) in asked {
        // A gateway that neither shows a certificate nor checks any has nothing to be seen.
        if let Some(held) = held.transpose() {
            uids.push(uid);
            trust.proxies.push((name, held));
        }
    }
    Look { trust, uids, proxies: proxies.len() }
}

/// The control planes of a cluster by pod, with the chain that each shows at 15012, or why it could not be seen.
///
/// # Errors
///
/// When they cannot be listed.
pub(crate) async fn shown(cluster: &Cluster) -> Result<Vec<Shown>, String> {
    let labels = format!("{}={}", istio::APP_LABEL, istio::ISTIOD);
    let pods =
        objects::list(&cluster.client, &resource("v1", "Pod"), Some(istio::SYSTEM_NAMESPACE), Some(&labels)).await;
    Ok(control_planes(&cluster.client, &pods.map_err(|error| because(&error))?).await)
}

/// Pages that each control plane of a cluster shows about itself, by pod.
///
/// # Errors
///
/// When they cannot be listed.
pub(crate) async fn debug_pages(
    cluster: &Cluster,
    port: u16,
    paths: &[&str],
) -> Result<Vec<(String, Result<Vec<Value>, String>)>, String> {
    let labels = format!("{}={}", istio::APP_LABEL, istio::ISTIOD);
    let pods =
        objects::list(&cluster.client, &resource("v1", "Pod"), Some(istio::SYSTEM_NAMESPACE), Some(&labels)).await;
    let mut found = Vec::new();
    for pod in pods.map_err(|error| because(&error))?.iter().filter(|pod| runs(pod, "discovery")) {
        if meta::deletion_timestamp(pod).is_some() {
            continue;
        }
        let name = meta::name(pod);
        let mut pages = Ok(Vec::new());
        for path in paths {
            let page = forward::page(&cluster.client, istio::SYSTEM_NAMESPACE, name, port, path).await;
            let page = page.map_err(|error| because(&error));
            let page = page.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
            pages = match (pages, page) {
                (Ok(mut pages), Ok(page)) => {
                    pages.push(page);
                    Ok(pages)
                }
                (Err(why), _) | (_, Err(why)) => Err(why),
            };
        }
        found.push((name.to_owned(), pages));
    }
    Ok(found)
}

/// A control plane's pod, and the chain it shows.
pub(crate) type Shown = (String, Result<Vec<Certificate>, String>);

async fn control_planes(client: &kube::Client, pods: &[Value]) -> Vec<Shown> {
    let istiods = pods.iter().filter(|pod| {
        meta::namespace(pod) == istio::SYSTEM_NAMESPACE
            && meta::label(pod, istio::APP_LABEL) == Some(istio::ISTIOD)
            && meta::deletion_timestamp(pod).is_none()
            && runs(pod, "discovery")
    });
    let showing = istiods.map(|pod| meta::name(pod).to_owned()).map(|pod| async move {
        let name = format!("{}.{}.svc", istio::ISTIOD, istio::SYSTEM_NAMESPACE);
        let shown = forward::certificates(client, istio::SYSTEM_NAMESPACE, &pod, istio::XDS_PORT, &name).await;
        let chain = shown.map_err(|error| because(&error)).and_then(|chain| {
            let read = chain.into_iter().map(|der| Certificate::from_der(der.into()));
            read.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
        });
        (pod, chain)
    });
    stream::iter(showing.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await
}

/// Whether this container of the pod runs now, wherever it stands (native sidecars are init containers).
pub(crate) fn runs(pod: &Value, container: &str) -> bool {
    let lists = ["containerStatuses", "initContainerStatuses"].into_iter();
    let mut statuses = lists.filter_map(|list| pod["status"][list].as_array()).flatten();
    statuses.any(|status| status["name"] == container && status["state"]["running"].is_object())
}

/// The roots in the `caBundle` of a configuration whose webhooks call a control plane; the fewest, if they differ.
fn bundle(configuration: &Value) -> Option<(String, Vec<Certificate>)> {
    let hooks = configuration["webhooks"].as_array()?.iter().filter(|hook| {
        let service = &hook["clientConfig"]["service"];
        service["namespace"] == istio::SYSTEM_NAMESPACE
            && service["name"].as_str().is_some_and(|name| name.starts_with(istio::ISTIOD))
    });
    let roots = hooks.map(|hook| {
        let encoded = hook["clientConfig"]["caBundle"].as_str().unwrap_or_default();
        all(&String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap_or_default()).unwrap_or_default())
    });
    let fewest = roots.min_by_key(Vec::len)?;
    Some((meta::name(configuration).to_owned(), fewest))
}

fn all(pem: &str) -> Vec<Certificate> {
    Certificate::all_from_pem(pem).unwrap_or_default()
}

/// Whether the proxy of a pod is a gateway's: `proxy router`, as Istio's charts and ours start it.
fn is_gateway(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let args = containers.filter(|c| c["name"] == istio::PROXY_CONTAINER).filter_map(|c| c["args"].as_array());
    args.flatten().any(|arg| arg == "router")
}

/// Whether Envoy has fetched no secret at all: a gateway that only passes TLS on by its server name uses none.
fn is_without_secrets(dump: &Value) -> bool {
    let configs = match (&dump["configs"], dump.as_object()) {
        (Value::Array(configs), _) => configs.as_slice(),
        (_, Some(all)) if all.is_empty() => &[],
        _ => return false,
    };
    let lists = ["dynamic_active_secrets", "dynamic_warming_secrets"];
    configs.iter().all(|config| {
        config["secret"].is_null() && lists.iter().all(|list| config[*list].as_array().is_none_or(Vec::is_empty))
    })
}

/// The workload's certificate and roots in Envoy's config dump: of all of it, or of `dynamic_active_secrets` alone.
fn held(dump: &Value) -> Result<Held, String> {
    let configs = dump["configs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let nested = configs.iter().filter_map(|config| config["dynamic_active_secrets"].as_array()).flatten();
    let secrets: Vec<&Value> = configs.iter().filter(|config| config["secret"].is_object()).chain(nested).collect();
    let read = |name: &str, path: &str| {
        let secret = secrets.iter().find(|secret| secret["name"] == name);
        let encoded = secret.and_then(|secret| secret["secret"].pointer(path)).and_then(Value::as_str);
        let pem = encoded.and_then(|text| String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok());
        let found = pem.map(|pem| all(&pem)).filter(|found| !found.is_empty());
        found.ok_or_else(|| format!("its config dump has no secret {name} in use"))
    };
    Ok(Held {
        chain: read("default", "/tls_certificate/certificate_chain/inline_bytes")?,
        roots: read("ROOTCA", "/validation_context/trusted_ca/inline_bytes")?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::json;
    use stolos_pki::Authority;

    use super::*;

    #[test]
    fn a_config_dump_is_read_in_both_forms() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let root = Authority::new_root("example.com", day, now).unwrap();
        let leaf = root.sign_server(&["a".into()], &[], None, day, now).unwrap();
        let inline = |pem: String| json!({"inline_bytes": BASE64_STANDARD.encode(pem)});
        let secrets = [
            json!({"name": "default", "secret": {"tls_certificate": {"certificate_chain": inline(leaf.chain_pem())}}}),
            json!({"name": "ROOTCA", "secret": {"validation_context": {"trusted_ca": inline(root.roots_pem().into())}}}),
        ];
        let whole = json!({"configs": [{"bootstrap": {}}, {"dynamic_active_secrets": secrets}]});
        for dump in [json!({"configs": secrets}), whole] {
            let held = held(&dump).unwrap();
            assert_eq!((held.chain, held.roots), (leaf.chain().to_vec(), vec![root.certificate().clone()]));
        }
        assert!(held(&json!({"configs": [secrets[1]]})).unwrap_err().contains("no secret default in use"));
        assert_eq!(held(&json!({})).unwrap_err(), "its config dump has no secret default in use");
    }

    #[test]
    fn only_a_gateway_may_be_without_secrets() {
        for (dump, without) in [
            (json!({}), true),
            (json!({"configs": []}), true),
            (json!({"configs": [{"bootstrap": {}}, {"dynamic_active_secrets": []}]}), true),
            (json!({"configs": [{"dynamic_warming_secrets": [{"name": "default"}]}]}), false),
            (json!({"configs": [{"name": "ROOTCA", "secret": {}}]}), false),
            (json!({"error": "not ready"}), false),
            (json!("no dump"), false),
        ] {
            assert_eq!(is_without_secrets(&dump), without, "{dump}");
        }
        let pod = |args: Value| {
            json!({"spec": {"containers": [{"name": "app", "args": ["router"]},
            {"name": "istio-proxy", "args": args}]}})
        };
        assert!(is_gateway(&pod(json!(["proxy", "router", "--domain", "x"]))));
        assert!(!is_gateway(&pod(json!(["proxy", "sidecar"]))) && !is_gateway(&pod(Value::Null)));
    }

    #[test]
    fn a_webhook_counts_by_its_poorest_bundle() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let root = Authority::new_root("example.com", day, now).unwrap();
        let hook = |name: &str, pem: &str| {
            json!({"clientConfig": {"caBundle": BASE64_STANDARD.encode(pem),
                "service": {"namespace": "istio-system", "name": name}}})
        };
        let configuration = |hooks: Vec<Value>| json!({"metadata": {"name": "x"}, "webhooks": hooks});
        let (_, roots) = bundle(&configuration(vec![hook("istiod", root.roots_pem()), hook("istiod-1", "")])).unwrap();
        assert_eq!(roots, []);
        assert!(bundle(&configuration(vec![hook("somebody", "")])).is_none());
    }
}
