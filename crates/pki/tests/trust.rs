//! What a mesh asks of its certificates, tried with OpenSSL and with real handshakes.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::ServerName;
use stolos_pki::tls::{ClientAuth, Peers};
use stolos_pki::{
    Authority, CaCerts, Certificate, Credentials, PrivateKey, Refused, Roots, Secret, SpiffeId, WorkloadRequest,
    decrypt_key, encrypt_key, tls,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::now()
}

fn root() -> Authority {
    Authority::new_root("mymesh.example.com", 3650 * DAY, now()).unwrap()
}

fn intermediate(root: &Authority, cluster: &str) -> CaCerts {
    root.issue_intermediate(cluster, "mymesh.example.com", "cluster.local", 730 * DAY, now()).unwrap()
}

fn workload(ca: &CaCerts, id: &SpiffeId) -> Credentials {
    let request = WorkloadRequest::new(id).unwrap();
    let signed = ca.authority(now()).unwrap().sign_workload(&request.csr_pem, id, DAY, now()).unwrap();
    let (_, chain) = signed.split_last().unwrap();
    Credentials::from_pem(&chain.concat(), request.key.to_pem().expose()).unwrap()
}

#[test]
fn an_intermediate_is_what_istiod_loads() {
    let root = root();
    let ca = intermediate(&root, "cluster-east-1");
    let facts = ca.check(now()).unwrap();

    assert_eq!(facts.signing.path_len(), Some(0));
    assert!(facts.signing.is_ca());
    assert_eq!(facts.signing.dns_names(), ["istiod.istio-system.svc"]);
    assert_eq!(facts.roots, [root.certificate().clone()]);
    assert!(facts.signing.subject().contains("L=cluster-east-1"), "{}", facts.signing.subject());
    assert!(facts.signing.subject().contains("O=mymesh.example.com"), "{}", facts.signing.subject());
    let chain = Certificate::all_from_pem(&ca.cert_chain).unwrap();
    assert_eq!(chain, [facts.signing, root.certificate().clone()]);
    assert!(ca.ca_key.expose().starts_with("-----BEGIN PRIVATE KEY-----"));
}

#[test]
fn what_a_root_signs_ends_no_later_than_the_root() {
    let root = Authority::new_root("short", 10 * DAY, now()).unwrap();
    let ca = intermediate(&root, "c");
    let signing = Certificate::from_pem(&ca.ca_cert).unwrap();
    assert_eq!(signing.not_after(), root.certificate().not_after());
}

#[test]
fn cacerts_that_istiod_would_not_load_are_refused() {
    let (root, other) = (root(), root());
    let good = intermediate(&root, "a");
    let foreign = intermediate(&other, "a");
    let refused = |ca: CaCerts| ca.check(now()).unwrap_err();

    assert!(matches!(refused(CaCerts { ca_key: foreign.ca_key.clone(), ..good.clone() }), Refused::KeyMismatch { .. }));
    assert!(matches!(
        refused(CaCerts { root_cert: foreign.root_cert.clone(), cert_chain: good.ca_cert.clone(), ..good.clone() }),
        Refused::NoPath { .. }
    ));
    assert_eq!(refused(CaCerts { cert_chain: root.roots_pem().to_owned(), ..good.clone() }), Refused::ChainOrder);
    assert!(matches!(good.check(now() + 800 * DAY), Err(Refused::Expired { .. })));
    assert!(matches!(good.check(now() - DAY), Err(Refused::NotYetValid { .. })));
    assert!(matches!(refused(CaCerts { ca_cert: "no PEM".into(), ..good }), Refused::Unreadable(_)));
}

#[test]
fn a_root_of_the_users_own_is_checked() {
    let (root, other) = (root(), root());
    let pem = |a: &Authority| a.certificate().pem();
    assert!(Authority::load(&pem(&root), root.key_pem().expose(), now()).is_ok());
    assert!(matches!(Authority::load(&pem(&root), other.key_pem().expose(), now()), Err(Refused::KeyMismatch { .. })));
    assert!(matches!(
        Authority::load(&pem(&root), root.key_pem().expose(), now() + 4000 * DAY),
        Err(Refused::Expired { .. })
    ));
    let ca = intermediate(&root, "a");
    assert!(matches!(Authority::load(&ca.ca_cert, ca.ca_key.expose(), now()), Err(Refused::PathTooLong { .. })));
    let leaf = workload(&ca, &SpiffeId::new("cluster.local", "n", "s"));
    let error = Authority::load(&leaf.leaf().pem(), leaf.key_pem().unwrap().expose(), now()).unwrap_err();
    assert!(matches!(error, Refused::NotAnAuthority { .. } | Refused::NoPath { .. }), "{error}");
}

/// The RSA and SHA-1 roots that people bring come from OpenSSL.
#[test]
fn roots_made_by_openssl_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let make = |digest: &str, key: &str| {
        let path = |name: &str| folder.path().join(format!("{digest}-{key}-{name}")).display().to_string();
        let (key_file, cert_file) = (path("key.pem"), path("cert.pem"));
        let kind: &[&str] = if key == "rsa" {
            &["-newkey", "rsa:2048"]
        } else {
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        };
        let made = openssl(
            &[
                &[
                    "req",
                    "-x509",
                    "-nodes",
                    "-days",
                    "10",
                    "-subj",
                    "/O=theirs/CN=Root CA",
                    digest,
                    "-keyout",
                    &key_file,
                    "-out",
                    &cert_file,
                ][..],
                kind,
            ]
            .concat(),
        )?;
        assert!(made.success);
        Some((std::fs::read_to_string(cert_file).unwrap(), std::fs::read_to_string(key_file).unwrap()))
    };
    for kind in ["rsa", "ec"] {
        let Some((cert, key)) = make("-sha256", kind) else { return };
        let root = Authority::load(&cert, &key, now()).unwrap();
        intermediate(&root, "a").check(now()).unwrap();
    }
    if let Some((cert, key)) = make("-sha1", "rsa") {
        assert!(matches!(Authority::load(&cert, &key, now()), Err(Refused::Sha1 { .. })));
    }
}

#[test]
fn openssl_accepts_every_chain() {
    let folder = tempfile::tempdir().unwrap();
    let root = root();
    let ca = intermediate(&root, "cluster-west-1");
    let leaf = workload(&ca, &SpiffeId::new("cluster.local", "sample", "helloworld"));
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let root_file = write("root-cert.pem", &ca.root_cert);
    let chain_file = write("cert-chain.pem", &ca.cert_chain);
    for certificate in [write("ca-cert.pem", &ca.ca_cert), write("leaf.pem", &leaf.leaf().pem())] {
        let Some(verified) =
            openssl(&["verify", "-x509_strict", "-CAfile", &root_file, "-untrusted", &chain_file, &certificate])
        else {
            return;
        };
        assert!(verified.success, "{}", verified.output);
    }
}

#[test]
fn a_passphrase_guards_the_root_key_and_openssl_can_open_it() {
    let key = PrivateKey::generate().unwrap();
    let passphrase = Secret::new("correct horse".into());
    let sealed = encrypt_key(&key, &passphrase).unwrap();
    assert!(sealed.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    assert!(PrivateKey::from_pem(&sealed).is_err());
    assert_eq!(decrypt_key(&sealed, &passphrase).unwrap().to_pem(), key.to_pem());
    assert!(matches!(decrypt_key(&sealed, &Secret::new("wrong".into())).unwrap_err(), stolos_pki::Error::Passphrase));
    assert_eq!(format!("{key:?} {passphrase:?}"), "PrivateKey(…) Secret(…)");

    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(sealed.as_bytes()).unwrap();
    if let Some(opened) =
        openssl(&["pkcs8", "-in", &file.path().display().to_string(), "-passin", "pass:correct horse"])
    {
        assert!(opened.success, "{}", opened.output);
    }
}

#[test]
fn a_request_gives_nothing_but_its_key() {
    let ca = intermediate(&root(), "a");
    let authority = ca.authority(now()).unwrap();
    let asked = WorkloadRequest::new(&SpiffeId::new("cluster.local", "kube-system", "admin")).unwrap();
    let granted = SpiffeId::new("cluster.local", "sample", "sleep");
    let signed = authority.sign_workload(&asked.csr_pem, &granted, Duration::ZERO, now()).unwrap();
    let leaf = Certificate::from_pem(&signed[0]).unwrap();
    assert_eq!(leaf.uris(), [granted.to_string()]);
    assert!(!leaf.is_ca());
    assert_eq!(signed.last().unwrap(), &ca.root_cert);
    assert!(leaf.not_after() <= now() + DAY);

    assert!(authority.sign_workload(&asked.csr_pem, &granted, 91 * DAY, now()).is_err());
    assert!(authority.sign_workload("not a request", &granted, DAY, now()).is_err());
}

#[test]
fn identities_are_read_exactly() {
    let good = "spiffe://cluster.local/ns/a/sa/b";
    assert_eq!(SpiffeId::parse(good).unwrap().to_string(), good);
    for bad in [
        "",
        "spiffe://",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns//sa/b",
        "https://td/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/c",
    ] {
        assert!(SpiffeId::parse(bad).is_err(), "{bad}");
    }
}

/// Client and server of two clusters, each with a certificate of its own cluster's intermediate.
#[test]
fn clusters_of_one_root_trust_each_other_and_nobody_else() {
    let (ours, foreign) = (root(), root());
    let server_id = SpiffeId::new("cluster.local", "sample", "helloworld");
    let client_id = SpiffeId::new("cluster.local", "sample", "sleep");
    let server = workload(&intermediate(&ours, "west"), &server_id);
    let client = workload(&intermediate(&ours, "east"), &client_id);
    let stranger = workload(&intermediate(&foreign, "east"), &client_id);
    let roots = Roots::from_pem(ours.roots_pem()).unwrap();
    let exactly = |id: &SpiffeId| Peers::Exactly(BTreeSet::from([id.to_string()]));
    let domain = Peers::TrustDomains(BTreeSet::from(["cluster.local".to_owned()]));
    let strict = tls::server(&server, ClientAuth::Required(roots.clone(), domain), &[b"istio"]).unwrap();
    let as_client = |who: Option<&Credentials>, expects: Peers| tls::client(who, &roots, expects, &[b"istio"]).unwrap();

    let seen = handshake(as_client(Some(&client), exactly(&server_id)), Arc::clone(&strict)).unwrap();
    assert_eq!(seen, (Some(server_id.to_string()), Some(client_id.to_string())));

    let error = handshake(as_client(Some(&client), exactly(&client_id)), Arc::clone(&strict)).unwrap_err();
    let found = vec![server_id.to_string()];
    assert_eq!(tls::wrong_identity(&std::io::Error::other(error)), Some(&tls::WrongIdentity { found }));

    for (case, config) in [
        ("another identity than expected", as_client(Some(&client), exactly(&client_id))),
        ("a client of another root", as_client(Some(&stranger), exactly(&server_id))),
        ("a client without a certificate", as_client(None, exactly(&server_id))),
    ] {
        assert!(handshake(config, Arc::clone(&strict)).is_err(), "{case}");
    }
    let other_domain = Peers::TrustDomains(BTreeSet::from(["elsewhere".to_owned()]));
    let picky = tls::server(&server, ClientAuth::Required(roots.clone(), other_domain), &[b"istio"]).unwrap();
    assert!(handshake(as_client(Some(&client), exactly(&server_id)), picky).is_err());
}

/// What each side sees of the other: (server as seen by the client, client as seen by the server).
type Seen = (Option<String>, Option<String>);

fn handshake(client: Arc<rustls::ClientConfig>, server: Arc<rustls::ServerConfig>) -> Result<Seen, rustls::Error> {
    let name = ServerName::try_from("outbound_.5000_._.helloworld.sample.svc.cluster.local").unwrap();
    let mut client = rustls::ClientConnection::new(client, name)?;
    let mut server = rustls::ServerConnection::new(server)?;
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert_eq!(server.server_name(), Some("outbound_.5000_._.helloworld.sample.svc.cluster.local"));
    Ok((client.peer_certificates().and_then(tls::peer_uri), server.peer_certificates().and_then(tls::peer_uri)))
}

struct Ran {
    success: bool,
    output: String,
}

/// Runs OpenSSL; `None`, loudly, where there is none.
#[expect(clippy::print_stderr, reason = "a test that did not run says so")]
fn openssl(args: &[&str]) -> Option<Ran> {
    match Command::new("openssl").args(args).stdin(Stdio::null()).output() {
        Ok(ran) => Some(Ran {
            success: ran.status.success(),
            output: String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned(),
        }),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "openssl is needed where CI is set: {error}");
            eprintln!("SKIPPED: no `openssl` on this machine ({error})");
            None
        }
    }
}
