//! The promise: a secret that goes in is nowhere in what comes out, in no form.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};
use stolos_spec::SourceText;

use super::*;
use crate::diagnose::snapshot::{Datum, Seen, Snapshot};
use crate::diagnose::{CheckOptions, judge};

/// Every file of an archive.
fn unpacked(archive: &[u8]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(archive)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        assert_eq!(entry.header().mode().unwrap(), 0o600, "{path}");
        entry.read_to_string(&mut text).unwrap();
        files.insert(path.split_once('/').unwrap().1.to_owned(), text);
    }
    files
}

/// A mesh of one cluster that holds these objects, and pages beside them.
fn packed(objects: &[(&str, Vec<Value>)], pages: &[(&str, String)], mesh_text: &str) -> Vec<u8> {
    let mesh = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\n\
                spec: {trust: {organization: acme}, clusters: [{name: east, context: ctx-east, network: net}]}\n";
    let mesh = stolos_spec::read(&SourceText::new("mesh.yaml", mesh), None).unwrap().mesh;
    let now = SystemTime::now();
    let objects = objects.iter().map(|(kind, all)| ((*kind).to_owned(), Datum::now(all.clone()))).collect();
    let seen = Seen { server: "https://east.example:6443".to_owned(), objects, ..Seen::default() };
    let snapshot = Snapshot { now, clusters: BTreeMap::from([("east".to_owned(), Datum::now(seen))]) };
    let report = judge(&mesh, &snapshot, &CheckOptions::default());
    let page = |(path, body): &(&str, String)| Page {
        cluster: "east".to_owned(),
        what: (*path).to_owned(),
        path: (*path).to_owned(),
        at: now,
        body: Ok(body.clone()),
    };
    let contents = Contents {
        mesh: &mesh,
        inputs: vec![("1-mesh.yaml".to_owned(), mesh_text.to_owned())],
        told: ManifestTold::default(),
        gathered: Gathered { snapshot, report, pages: pages.iter().map(page).collect() },
        extras: vec![Extra {
            path: "plan.txt".to_owned(),
            what: "plan".to_owned(),
            body: Err("no token=Canary-in-an-error-77".to_owned()),
        }],
        made_by: "stolos test".to_owned(),
        folder: "bundle".to_owned(),
        most_objects: 1000,
        most_bytes: 1 << 20,
    };
    let mut archive = Vec::new();
    write(contents, &mut archive).unwrap();
    archive
}

fn secret(name: &str, of_type: &str, data: &[(&str, &str)]) -> Value {
    let data: BTreeMap<_, _> = data.iter().map(|(key, value)| (*key, STANDARD.encode(value))).collect();
    json!({"apiVersion": "v1", "kind": "Secret", "type": of_type, "data": data,
        "metadata": {"name": name, "namespace": "istio-system"}})
}

fn jwt(claims: &Value, signature: &str) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    format!("{}.{}.{signature}", part(&json!({"alg": "RS256", "kid": "k1"})), part(claims))
}

/// A secret in every form in which it could be in a file.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned(), Value::from(secret).to_string().trim_matches('"').to_owned()];
    for bytes in [secret.as_bytes().to_vec(), format!("{secret}\n").into_bytes()] {
        forms.extend([STANDARD.encode(&bytes), URL_SAFE.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)]);
    }
    // Inside of something that was encoded as a whole.
    for before in ["", "a", "ab"] {
        let whole = STANDARD.encode(format!("{before}{secret}"));
        forms.push(whole.trim_end_matches('=')[4..whole.trim_end_matches('=').len() - 2].to_owned());
    }
    forms
}

#[track_caller]
fn nowhere(files: &BTreeMap<String, String>, secrets: &[&str]) {
    for (path, text) in files {
        for secret in secrets {
            for form in forms(secret) {
                assert!(!text.contains(&form), "{secret} is in {path} as {form}:\n{text}");
            }
        }
    }
}

const PASSWORD: &str = "Canary-Passw0rd/one+two==";
const OPAQUE: &str = "canary-opaque-0001-value";
const SIGNATURE: &str = "Q2FuYXJ5U2lnbmF0dXJlT2ZBVG9rZW4wMDAx";
const REGISTRY: &str = "canaryRegistryPw9";
const ENVIRONMENT: &str = "postgres://shop:canaryEnvPw8@db/shop";
const ARGUMENT: &str = "--admin-hash=canaryArgument7";
const BARE: &str = "canaryBareToken0123456789";
const EXEC: &str = "canaryExecArgument55";
const IN_CONFIG: &str = "canaryInConfigMap66";
const IN_BLOCK: &str = "canaryInABlockScalar44";
const GITHUB: &str = "ghp_canary0123456789abcdefghijklmnop";

#[test]
fn no_secret_is_anywhere_in_any_form() {
    let key = stolos_pki::PrivateKey::generate().unwrap();
    let (key, public) = (key.to_pem().expose().to_owned(), STANDARD.encode(key.public_der()));
    let body: Vec<_> = key.lines().filter(|l| !l.contains("-----")).collect();
    let now = SystemTime::now();
    let root = stolos_pki::Authority::new_root("acme", std::time::Duration::from_secs(3600), now).unwrap();
    let certs =
        root.issue_intermediate("east", "acme", "cluster.local", std::time::Duration::from_secs(600), now).unwrap();
    let ca_key = certs.ca_key.expose().to_owned();
    let ca_body: Vec<_> = ca_key.lines().filter(|l| !l.contains("-----")).collect();
    let token = jwt(
        &json!({"exp": 4_000_000_000_u64, "sub": "system:serviceaccount:istio-system:reader",
        "hint": OPAQUE}),
        SIGNATURE,
    );
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: west, cluster: {{server: 'https://west.example:6443'}}}}]\n\
         contexts: [{{name: west, context: {{cluster: west, user: west}}}}]\ncurrent-context: west\n\
         users:\n- name: west\n  user:\n    token: {token}\n- name: old\n  user: {{username: admin, password: '{PASSWORD}',\n    \
         client-key-data: {}}}\n- name: cloud\n  user: {{exec: {{command: aws, args: [{EXEC}], env: [{{name: A, value: {EXEC}}}]}}}}\n",
        STANDARD.encode(&key)
    );
    let docker =
        json!({"auths": {"registry.example": {"auth": STANDARD.encode(format!("robot:{REGISTRY}"))}}}).to_string();
    let mut applied = secret("applied", "Opaque", &[("value", OPAQUE)]);
    applied["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": applied.to_string(),
        "example.com/note": format!("old token: {BARE}")});
    applied["metadata"]["managedFields"] = json!([{"manager": "kubectl", "time": "2026-01-02T00:00:00Z",
        "fieldsV1": {"f:data": {format!("v:{OPAQUE}"): {}}}}]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop", "namespace": "shop"},
        "spec": {"containers": [
            {"name": "shop", "image": "shop:1", "args": [ARGUMENT], "command": ["sh", "-c", format!("login {REGISTRY}")],
             "env": [{"name": "DATABASE", "value": ENVIRONMENT}, {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "shop", "key": "key"}}}],
             "livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "X-Probe", "value": BARE}]}}},
            {"name": "istio-proxy", "image": "proxyv2:1.28.0", "env": [{"name": "ISTIO_META_CLUSTER_ID", "value": "east"},
             {"name": "VAULT_TOKEN", "value": BARE}]}]}});
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"pem": key, "mesh": format!("trustDomain: cluster.local\nextension:\n  password: {IN_CONFIG}\n  clientSecret: |\n    {IN_BLOCK}\n"),
                 "broken": format!("a: [\npassword: {IN_CONFIG}\ntoken: |\n  {IN_BLOCK}\nb: 1\n"),
                 "kubeconfig": kubeconfig, "encoded": STANDARD.encode(&kubeconfig), "note": format!("curl -H 'Authorization: Bearer {BARE}' https://u:{REGISTRY}@x/")}});
    let filter = json!({"apiVersion": "networking.istio.io/v1", "kind": "EnvoyFilter", "metadata": {"name": "f", "namespace": "shop"},
        "spec": {"configPatches": [{"patch": {"value": {"private_key": {"inline_string": key},
            "password": {"inline_bytes": STANDARD.encode(PASSWORD)}, "headers": [{"header": {"key": "authorization", "value": BARE}}]}}}]}});
    let pages = [
        ("control-planes/istiod/syncz.json", json!([{"proxy": "shop.shop", "token": BARE, "note": OPAQUE, "jwt": token}]).to_string()),
        ("proxies/shop/shop/config_dump.json", json!({"configs": [{"secret": {"name": "default", "tls_certificate":
            {"private_key": {"inline_bytes": STANDARD.encode(&key)}, "certificate_chain": {"inline_bytes": STANDARD.encode(&certs.ca_cert)}}}}]}).to_string()),
        ("control-planes/istiod/discovery.log", format!("info login with password={PASSWORD} and {OPAQUE}\nerror: {token}\n{key}\n{GITHUB} {}\n", STANDARD.encode(format!("x{OPAQUE}")))),
    ];
    let secrets = vec![
        secret(
            "cacerts",
            "Opaque",
            &[
                ("ca-cert.pem", &certs.ca_cert),
                ("ca-key.pem", &ca_key),
                ("root-cert.pem", &certs.root_cert),
                ("both.pem", &format!("{}{key}", certs.ca_cert)),
            ],
        ),
        secret("istio-remote-secret-west", "Opaque", &[("west", &kubeconfig)]),
        secret("reader", "kubernetes.io/service-account-token", &[("token", &token), ("namespace", "istio-system")]),
        secret("pull", "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", &docker)]),
        secret("helm", "helm.sh/release.v1", &[("release", &STANDARD.encode(PASSWORD))]),
        secret("one", "Opaque", &[("a", OPAQUE)]),
        secret("two", "Opaque", &[("b", OPAQUE)]),
        secret("plain", "Opaque", &[("password", PASSWORD)]),
        applied,
    ];
    let mesh_text = format!(
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec:\n  trust: {{organization: acme}}\n  \
         clusters: [{{name: east, context: ctx-east, network: net}}]\n# token: {BARE}\n"
    );
    let objects = [("Secret", secrets), ("Pod", vec![pod]), ("ConfigMap", vec![config]), ("EnvoyFilter", vec![filter])];
    let archive = packed(&objects, &pages, &mesh_text);
    let files = unpacked(&archive);
    let mut canaries = vec![
        PASSWORD,
        OPAQUE,
        SIGNATURE,
        REGISTRY,
        ENVIRONMENT,
        "canaryEnvPw8",
        ARGUMENT,
        BARE,
        EXEC,
        IN_CONFIG,
        IN_BLOCK,
        GITHUB,
        "Canary-in-an-error-77",
        &token,
    ];
    canaries.extend(body.iter().chain(&ca_body).copied());
    nowhere(&files, &canaries);
    for (path, text) in &files {
        assert!(!text.contains("PRIVATE KEY"), "{path}");
    }

    // What a check needs is there: certificates as they were, the public half of keys, until when a token holds.
    let bundle = Bundle::open(&archive[..]).unwrap();
    let seen = bundle.clusters[0].seen.as_ref().unwrap();
    let value = |name: &str, key: &str| {
        let text = seen.system("Secret", name).unwrap()["data"][key].as_str().unwrap().to_owned();
        String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
    };
    assert_eq!(value("cacerts", "root-cert.pem"), certs.root_cert);
    assert!(value("cacerts", "ca-key.pem").starts_with("-----BEGIN PUBLIC KEY-----"));
    assert!(value("cacerts", "both.pem").replace('\n', "").contains(&public));
    let claims = value("reader", "token").split('.').nth(1).map(|c| URL_SAFE_NO_PAD.decode(c).unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&claims).unwrap()["exp"], 4_000_000_000_u64);
    assert!(value("istio-remote-secret-west", "west").contains("https://west.example:6443"));
    assert!(files["clusters/east/proxies/shop/shop/config_dump.json"].contains(&STANDARD.encode(&certs.ca_cert)));
    // Equal ones are seen to be equal, and what kind of thing they were.
    assert_eq!(value("one", "a"), value("two", "b"));
    assert!(value("one", "a").starts_with("redacted-secret-value-24-"), "{}", value("one", "a"));
    assert_ne!(value("one", "a"), value("plain", "password"));
    assert!(bundle.manifest.redacted["private-key"] >= 2, "{:?}", bundle.manifest.redacted);
    assert_eq!(bundle.manifest.missing[0].what, "plan");
    // The same secret has another mark in another archive.
    let other = Bundle::open(&packed(&objects, &pages, &mesh_text)[..]).unwrap();
    let mark = |bundle: &Bundle| {
        bundle.clusters[0].seen.as_ref().unwrap().system("Secret", "one").unwrap()["data"]["a"].clone()
    };
    assert_ne!(mark(&bundle), mark(&other));
}

#[test]
fn what_is_no_secret_stays() {
    let mut redactor = Redactor::default();
    for text in [
        "trustDomain: cluster.local\ndefaultConfig:\n  proxyMetadata: {}\n",
        "credentialName: shop-certificate\nsecretName: shop\n",
        "serviceAccountToken: {audience: istio-ca, expirationSeconds: 43200}",
        "https://10.0.0.1:6443",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "outbound|80||web.shop.svc.cluster.local",
        "the token for west ends in 3 hours",
    ] {
        assert_eq!(redactor.text(text), text);
    }
    assert_eq!(redactor.counts(), BTreeMap::new());
}

#[test]
fn what_does_not_fit_is_named() {
    let pod = |i: usize| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{i}"), "namespace": "shop"}});
    let archive = packed(&[("Pod", (0..1200).map(pod).collect()), ("Service", vec![])], &[], "");
    let bundle = Bundle::open(&archive[..]).unwrap();
    assert_eq!(bundle.clusters[0].objects.len(), 1000);
    let gap = bundle.manifest.missing.iter().find(|gap| gap.what == "objects of kind Pod").unwrap();
    assert_eq!(gap.why, "only 1000 of 1200 are here: the bundle of one cluster was full");
    let snapshot = bundle.snapshot();
    let seen = snapshot.clusters["east"].value().unwrap();
    assert_eq!(seen.unread("Pod"), Some("only 1000 of 1200 are in the archive"));
    assert_eq!((seen.unread("Service"), seen.unread("Node")), (None, Some("it was not asked for")));
}

/// A key's last line is its public half, which stands in its certificate: at any place of it.
#[test]
fn certificates_stay_whatever_their_keys_look_like() {
    for before in 0..3_usize {
        let key = stolos_pki::PrivateKey::generate().unwrap();
        let shown = STANDARD.encode([&vec![7; before][..], &key.public_der()].concat());
        let secret = secret("cacerts", "Opaque", &[("ca-key.pem", key.to_pem().expose())]);
        let files = unpacked(&packed(&[("Secret", vec![secret])], &[("shown", shown.clone())], ""));
        assert_eq!(files["clusters/east/shown"], shown);
    }
}

/// A cluster may be called by whoever runs it: nothing leaves the folder that the archive unpacks to.
#[test]
fn no_name_leads_out_of_the_folder() {
    let files =
        unpacked(&packed(&[], &[("proxies/../../etc/passwd", "x".to_owned()), ("proxies//a b", "y".to_owned())], ""));
    assert_eq!(files["clusters/east/proxies/_/_/etc/passwd"], "x");
    assert_eq!(files["clusters/east/proxies/_/a_b"], "y");
}

#[test]
fn other_archives_are_refused() {
    let refused = |bytes: &[u8]| Bundle::open(bytes).err().unwrap().to_string();
    assert_eq!(refused(b"no gzip"), "could not read the archive");
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    tar.append_data(&mut header, "x/other.json", &b"{}"[..]).unwrap();
    let bytes = tar.into_inner().unwrap().finish().unwrap();
    assert_eq!(refused(&bytes), "this is no archive of `stolos bundle`: it has no manifest.json");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever stands around it, and whatever it is made of.
    #[test]
    fn any_value_of_a_secret_goes(value in "[ -~]{12,60}", around in "[ -~\n]{0,40}") {
        prop_assume!(value.trim().len() >= 12 && value.bytes().any(|b| b.is_ascii_digit()));
        prop_assume!(!around.contains(value.trim()) && !value.starts_with("redacted"));
        let object = secret("any", "Opaque", &[("value", &value)]);
        let log = format!("{around}{}{around}", value.trim());
        let files = unpacked(&packed(&[("Secret", vec![object])], &[("log", log)], ""));
        for (path, text) in &files {
            prop_assert!(!text.contains(value.trim()), "{path}: {text}");
        }
    }

    /// No text is too odd to be looked at.
    #[test]
    fn nothing_panics(text in ".{0,200}", kind in "Secret|ConfigMap|CustomResourceDefinition|Pod") {
        let mut redactor = Redactor::default();
        let _ = redactor.text(&text);
        for body in [json!(text), json!([text]), json!({"containers": [text], "spec": text}), json!({"containers": [{"env": text, "args": [1]}], "versions": [text]})] {
            redactor.object(&mut json!({"kind": kind, "metadata": body, "spec": body, "data": body, "clusters": [text], "users": [text]}));
        }
    }
}
