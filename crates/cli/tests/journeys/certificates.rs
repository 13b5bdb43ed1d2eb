//! Certificates of a mesh whose authority is a program, and new ones for clusters that run.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use serde_json::Value;
use stolos_pki::{Authority, Certificate};

use crate::world::{World, text};

const MESH: &str = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: signed}\nspec:\n  trust:\n    \
                    root: {exec: {command: [./authority/sign.sh, --profile, ca]}}\n  clusters:\n\
                    \x20 - {name: one, context: one, network: network-1}\n\
                    \x20 - {name: two, context: two, network: network-2}\n";

/// An authority of one's own: the request on standard input, the chain on standard output.
const SIGN: &str = r#"#!/bin/sh
set -e
here=$(dirname "$0")
[ "$1 $2" = "--profile ca" ] || { echo "unknown profile: $*" >&2; exit 64; }
[ -e "$here/ca.key" ] || { echo "the vault is sealed" >&2; exit 3; }
request=$(mktemp)
trap 'rm -f "$request"' EXIT
cat > "$request"
openssl x509 -req -in "$request" -CA "$here/ca.pem" -CAkey "$here/ca.key" -CAcreateserial -copy_extensions copy \
    -days "$((STOLOS_VALIDITY_HOURS / 24))" 2>/dev/null
cat "$here/ca.pem"
"#;

/// Whether there is an openssl that copies extensions (3.0 and newer).
fn has_openssl() -> bool {
    let said = std::process::Command::new("openssl").arg("version").output();
    let text = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let major = text.split_whitespace().nth(1).and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let fits = major.is_some_and(|major| major >= 3);
    if !fits {
        let required = std::env::var("STOLOS_REQUIRE_PROGRAMS").is_ok_and(|required| required == "1");
        assert!(!required, "NOT RUN: there is no openssl 3, and STOLOS_REQUIRE_PROGRAMS=1");
        let _ = writeln!(std::io::stderr(), "\n*** NOT RUN: there is no openssl 3 ***\n");
    }
    fits
}

/// The authority's own root, in a new folder.
fn authority(folder: &Path, organization: &str) -> Certificate {
    let year = Duration::from_secs(3 * 365 * 24 * 3600);
    let root = Authority::new_root(organization, year, SystemTime::now()).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("ca.pem"), root.certificate().pem()).unwrap();
    std::fs::write(folder.join("ca.key"), root.key_pem().expose()).unwrap();
    std::fs::write(folder.join("sign.sh"), SIGN).unwrap();
    std::fs::set_permissions(folder.join("sign.sh"), std::fs::Permissions::from_mode(0o700)).unwrap();
    root.certificate().clone()
}

async fn signing(world: &World, cluster: &str) -> Option<Certificate> {
    let secrets: Api<Secret> = Api::namespaced(world.cluster(cluster).await.client, "istio-system");
    let data = secrets.get_opt("cacerts").await.unwrap()?.data.unwrap();
    Some(Certificate::from_pem(&String::from_utf8(data["ca-cert.pem"].0.clone()).unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_behind_a_program() {
    if !has_openssl() {
        return;
    }
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    let folder = world.path("authority");
    world.up(&file).await;
    let apply = ["apply", "-f", text(&file), "--yes"];

    // One that fails is named, with its code and its own last words; nothing is half written.
    let root = authority(&folder, "Somebody Inc");
    let key = std::fs::read(folder.join("ca.key")).unwrap();
    std::fs::remove_file(folder.join("ca.key")).unwrap();
    let failed = world.run(&apply).await;
    assert!(failed.code.is_some_and(|code| code != 0), "{failed:?}");
    let said = format!("{}{}", failed.out, failed.err);
    for word in ["authority/sign.sh --profile ca", "exit code 3", "the vault is sealed"] {
        assert!(said.contains(word), "{word}:\n{said}");
    }
    assert_eq!(signing(&world, "one").await, None);
    std::fs::write(folder.join("ca.key"), key).unwrap();

    world.good(&apply).await;
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 4).await;
    let before = signing(&world, "one").await.unwrap();
    assert!(before.is_signed_by(&root) && signing(&world, "two").await.unwrap().is_signed_by(&root));

    // New signing certificates come from there as well, and control planes show them before the next cluster's turn.
    let rotated = world.good(&["cert", "rotate", "intermediates", "-f", text(&file), "-o", "json"]).await.document();
    assert_eq!(rotated["issued"].as_array().map(Vec::len), Some(2), "{rotated:#}");
    for (index, cluster) in ["one", "two"].into_iter().enumerate() {
        let now = signing(&world, cluster).await.unwrap();
        assert!(now.is_signed_by(&root) && now != before);
        assert_eq!(rotated["issued"][index], serde_json::json!([cluster, now.serial()]));
    }
    let alone = world.good(&["cert", "rotate", "intermediates", "-f", text(&file), "--cluster", "two"]).await;
    assert!(alone.err.contains("two: shown at 15012 by 1 control plane"), "{}", alone.err);
    world.proven(&file, 4).await;

    // Another root than before would split the mesh in two.
    let known = signing(&world, "one").await;
    authority(&folder, "Somebody Else Inc");
    let split = world.run(&["cert", "rotate", "intermediates", "-f", text(&file)]).await.ends_with(1);
    assert!(split.err.contains("another root than before"), "{}", split.err);
    assert_eq!(signing(&world, "one").await, known);
    let refused = world.run(&["cert", "rotate", "root", "-f", text(&file), "--yes"]).await.ends_with(1);
    assert!(refused.err.contains("not Stolos' own"), "{}", refused.err);

    // One list of all that ends, soonest first.
    let list = world.good(&["cert", "list", "-f", text(&file), "-o", "json"]).await.document();
    let list = list["certificates"].as_array().unwrap();
    let field = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let ends: Vec<_> = list.iter().map(|entry| field(entry, "notAfter")).collect();
    assert!(ends.is_sorted() && !ends[0].is_empty(), "{ends:?}");
    let mut all: Vec<_> = list.iter().map(|e| format!("{}: {}", field(e, "cluster"), field(e, "what"))).collect();
    all.sort();
    insta::assert_snapshot!(all.join("\n"), @r"
    one: intermediate
    one: root
    one: token for two
    state folder: root
    two: intermediate
    two: root
    two: token for one
    ");
    let wide = world.good(&["cert", "list", "-f", text(&file), "-o", "wide"]).await.out;
    assert!(wide.contains(known.unwrap().serial()) && wide.starts_with("DAYS LEFT"), "{wide}");
}
